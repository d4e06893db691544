"""What the arguments of a scenario's operations may be: one function for each kind, and the check that calls them.

Each kind takes the check, the operation as far as it has been checked, and the value; it returns the canonical value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeGuard

from ..host import ADVICE
from ..host.saved import MOST_CPUS
from ..ksm import sysfs
from ..layout import PAGE_SIZE

#: page numbers stay below this: 57 bits of address are what five levels of tables hold
VPN_END = 1 << 45

#: NUMA nodes of the machine a scenario may speak of
MOST_NODES = 255
#: what is on or off in a mapping
MMAP_SWITCHES = ("shared", "noreserve", "populate", "locked", "growsdown", "file")
#: what mremap and UFFDIO_COPY may be told besides
MREMAP_SWITCHES, COPY_SWITCHES = ("dontunmap",), ("wp",)
#: what a userfaultfd is to be told of, with the bits of UFFDIO_REGISTER
UFFD_BITS = {"missing": 1, "wp": 2, "minor": 4}

#: bytes that one memset may store: it is stored page by page, also where it is absurd
MOST_BYTES = 1 << 30
#: records that one scenario may make, one an operation and batch
MOST_RECORDS = 1_000_000
#: characters of a word that may be written into a knob, and of a name
MOST_LETTERS = 100
#: bits of a number that may be written into a knob: more than any knob takes, so that refusals can be compared too
KNOB_BITS = 128

#: knobs of /sys/kernel/mm/ksm that a scenario may write: `run` has its own operation, `sleep_millisecs` drives `step`
KNOBS = tuple(name for name in sysfs.KNOBS if name not in ("run", "sleep_millisecs"))

#: page where the heap of every process begins, and pages it may have
HEAP_VPN, MOST_HEAP = 49152, 1 << 30

Op = list[Any]
Span = tuple[int, int]


class ScenarioError(ValueError):
    """A scenario that says something it may not.

    Attributes
    ----------
    where : str
        File and operation, e.g. ``churn.json: op 3 ["mmap", "A", -1, 2]``.
    value : object
        The value that was refused.
    """

    def __init__(self, where: str, what: str, value: object):
        super().__init__(f"{where}: {what}: {shown(value)}")
        self.where = where
        self.value = value


def shown(value: object, limit: int = 200) -> str:
    """Return a value as a message can show it: never longer than some lines, whatever was given."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # digits beyond what Python prints, lists in lists in lists
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters)"


def _op_text(op: object) -> str:
    try:
        text = json.dumps(op)
    except (TypeError, ValueError, RecursionError):
        text = shown(op)
    return text if len(text) < 100 else text[:96] + " ..."


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


class Check:
    """Checks operations one after the other, keeping who is alive.

    Parameters
    ----------
    file : str
        Name used in errors.
    """

    def __init__(self, file: str):
        self.file = file
        self.where: str = file
        self.alive: set[str] = set()

    def fail(self, what: str, value: object) -> NoReturn:
        """Refuse a value."""
        raise ScenarioError(self.where, what, value)

    def number(self, value: object, what: str, low: int, high: int) -> int:
        """Check low <= value < high."""
        if not is_int(value) or not low <= value < high:
            self.fail(f"{what} is a whole number of {low} to {high - 1}, not", value)
        return value

    def listed(self, value: object) -> list[Any]:
        """Check that it is a list."""
        if not isinstance(value, list):
            self.fail("a list is wanted, not", value)
        return value

    def op(self, index: int, op: object, rows: Mapping[str, Any]) -> Op:
        """Check one operation and return it in its canonical form; `rows` are `ops.OPS`.

        Raises
        ------
        ScenarioError
            Names the file, the operation's index and the value refused.
        """
        self.where = f"{self.file}: op {index} {_op_text(op)}"
        if not isinstance(op, list) or not op or not isinstance(op[0], str):
            self.fail("an operation is a list that starts with its name, not", op)
        row = rows.get(op[0])
        if row is None:
            self.fail("no operation of this name", op[0])
        given, most = len(op) - 1, len(row.args)
        if not most - row.optional <= given <= most:
            wanted = most if not row.optional else f"{most - row.optional} to {most}"
            self.fail(f"{op[0]} takes {wanted} arguments, not", given)
        out: Op = [op[0]]
        for kind, value in zip(row.args, op[1:], strict=False):
            out.append(kind(self, out, value))
        if row.ends:
            self.alive.discard(out[1])
        return out


# ---------------------------------------------------------------- kinds of arguments

Kind = Callable[[Check, Op, Any], Any]


def _name(check: Check, value: object) -> str:
    if not isinstance(value, str) or not value.isalnum() or not value.isascii() or len(value) > MOST_LETTERS:
        check.fail("a process name is made of letters and digits, not", value)
    return value


def PROCESS(check: Check, op: Op, value: object) -> str:
    """One that is alive."""
    name = _name(check, value)
    if name not in check.alive:
        check.fail("no such process at this point", value)
    return name


def NEWBORN(check: Check, op: Op, value: object) -> str:
    """One that this operation makes."""
    name = _name(check, value)
    if name == "ksmd":
        check.fail("no name for a process: it is the daemon's", value)
    if name in check.alive:
        check.fail("there is a process of this name already", value)
    check.alive.add(name)
    return name


def VPN(check: Check, op: Op, value: object) -> int:
    """A page number."""
    return check.number(value, "a page number", 0, VPN_END)


def PAGES(check: Check, op: Op, value: object) -> int:
    """A number of pages from the page number before it on."""
    return check.number(value, "a number of pages", 1, VPN_END - op[-1] + 1)


def NEW_PAGES(check: Check, op: Op, value: object) -> int:
    """A number of pages, wherever they will be."""
    return check.number(value, "a number of pages", 1, VPN_END)


def NEW_VPN(check: Check, op: Op, value: object) -> int | None:
    """A page number for the pages counted before it; none where they stay in their place."""
    vpn = None if value is None else VPN(check, op, value)
    check.number(op[-1], "a number of pages", 1, VPN_END - (op[2] if vpn is None else vpn) + 1)
    return vpn


def HEAP_PAGES(check: Check, op: Op, value: object) -> int:
    """Pages of a heap."""
    return check.number(value, "a number of pages", 0, MOST_HEAP + 1)


def PROT(check: Check, op: Op, value: object) -> str:
    """A protection."""
    if value != "none" and (
        not isinstance(value, str) or not value or len(set(value)) != len(value) or set(value) - set("rwx")
    ):
        check.fail("a protection is none or some of r, w, x, not", value)
    return value


def OPTIONS(check: Check, op: Op, value: object) -> dict[str, Any]:
    """What mmap may be told besides: a protection, and what is on or off."""
    if not isinstance(value, dict):
        check.fail("options of mmap are an object, not", value)
    out: dict[str, Any] = {}
    for key, one in value.items():
        if key == "prot":
            out[key] = PROT(check, op, one)
        elif key in MMAP_SWITCHES:
            out[key] = _switch(check, f"mmap's {key}", one)
        else:
            check.fail("no option of mmap", key)
    return out


def _switch(check: Check, what: str, value: object) -> int:
    if not isinstance(value, int) or value not in (0, 1):
        check.fail(f"{what} is 0 or 1, not", value)
    return int(value)


def _switches(check: Check, call: str, names: Collection[str], value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        check.fail(f"options of {call} are an object, not", value)
    for key in value:
        if key not in names:
            check.fail(f"no option of {call}", key)
    return {key: _switch(check, f"{call}'s {key}", one) for key, one in value.items()}


def MOVE_OPTIONS(check: Check, op: Op, value: object) -> dict[str, int]:
    """What mremap may be told besides."""
    return _switches(check, "mremap", MREMAP_SWITCHES, value)


def UFFD_MODES(check: Check, op: Op, value: object) -> dict[str, int]:
    """What a userfaultfd is to be told of."""
    return _switches(check, "uffd", UFFD_BITS, value)


def UFFD_COPY_OPTIONS(check: Check, op: Op, value: object) -> dict[str, int]:
    """What UFFDIO_COPY may be told besides."""
    return _switches(check, "uffd_copy", COPY_SWITCHES, value)


def LOCK_FLAGS(check: Check, op: Op, value: object) -> int:
    """Flags of mlock2 or mlockall, as in C."""
    return check.number(value, "flags", 0, 1 << 31)


def RUNNER(check: Check, op: Op, value: object) -> str:
    """A process that is alive, or ksmd."""
    return value if value == "ksmd" else PROCESS(check, op, value)


def CPU(check: Check, op: Op, value: object) -> int:
    """A CPU's number."""
    return check.number(value, "the number of a CPU", 0, MOST_CPUS)


def NODE(check: Check, op: Op, value: object) -> int:
    """A NUMA node's number."""
    return check.number(value, "the number of a NUMA node", 0, MOST_NODES)


def MOVE_FLAGS(check: Check, op: Op, value: object) -> int:
    """MPOL_MF_MOVE (2), MPOL_MF_MOVE_ALL (4), as in C."""
    return check.number(value, "flags of a move", 0, 8)


def ADVICE_NAME(check: Check, op: Op, value: object) -> str:
    """A name of `ADVICE`."""
    if not isinstance(value, str) or value not in ADVICE:
        check.fail("no advice of this name", value)
    return value


def _content(check: Check, value: object) -> int:
    return check.number(value, "a content id", 0, 1 << 64)


def CONTENTS(check: Check, op: Op, value: object) -> list[int | None]:
    """Content ids of pages from the page number before on, none where a page is left alone."""
    contents = [content if content is None else _content(check, content) for content in check.listed(value)]
    if contents:
        PAGES(check, op, len(contents))
    return contents


def ALL_CONTENTS(check: Check, op: Op, value: object) -> list[int]:
    """The same with a content for each page."""
    contents = [_content(check, content) for content in check.listed(value)]
    if contents:
        PAGES(check, op, len(contents))
    return contents


def PAIRS(check: Check, op: Op, value: object) -> list[list[int]]:
    """Pairs of a page number and a content id."""
    pairs = check.listed(value)
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            check.fail("a pair [vpn, id] is wanted, not", pair)
        VPN(check, op, pair[0])
        _content(check, pair[1])
    return pairs


def VPNS(check: Check, op: Op, value: object) -> list[int]:
    """Page numbers."""
    return [VPN(check, op, vpn) for vpn in check.listed(value)]


def BYTE(check: Check, op: Op, value: object) -> int:
    """The value of a byte."""
    return check.number(value, "a byte", 0, 256)


def BYTES(check: Check, op: Op, value: object) -> int:
    """A number of bytes from the page number before on."""
    return check.number(value, "a number of bytes", 1, min((VPN_END - op[2]) * PAGE_SIZE, MOST_BYTES) + 1)


def OFFSET(check: Check, op: Op, value: object) -> int:
    """A place within a page, in bytes."""
    return check.number(value, "a place within a page", 0, PAGE_SIZE)


def PART(check: Check, op: Op, value: object) -> list[int]:
    """Bytes for a page, from the place before on."""
    stored = [BYTE(check, op, byte) for byte in check.listed(value)]
    check.number(len(stored), "a number of bytes", 1, PAGE_SIZE - op[-1] + 1)
    return stored


def FLAG(check: Check, op: Op, value: object) -> int:
    """On or off."""
    return check.number(value, "the argument", 0, 2)


def WORD(check: Check, op: Op, value: object) -> int:
    """A register of a system call."""
    return check.number(value, "a system call number or argument", -(1 << 63), 1 << 64)


def KNOB(check: Check, op: Op, value: object) -> str:
    """A knob that a scenario may write."""
    if not isinstance(value, str) or value not in KNOBS:
        check.fail("no knob that a scenario may write", value)
    return value


def KNOB_VALUE(check: Check, op: Op, value: object) -> int | str:
    """What is written into the knob before."""
    if is_int(value):
        return _knob_number(check, value)
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > MOST_LETTERS:
        check.fail(f"a value of {op[-1]} is a whole number or a word, not", value)
    return value


def _knob_number(check: Check, value: int) -> int:
    return check.number(value, "what is written into a knob", -(1 << KNOB_BITS), 1 << KNOB_BITS)


def RUN(check: Check, op: Op, value: object) -> int:
    """What is written into `run`."""
    if not is_int(value):
        check.fail("run is a whole number, not", value)
    return _knob_number(check, value)


def BATCHES(check: Check, op: Op, value: object) -> int:
    """How many batches: a record each."""
    return check.number(value, "a number of batches", 1, MOST_RECORDS + 1)


def SECONDS(check: Check, op: Op, value: object) -> int | float:
    """A time."""
    if not (is_int(value) or isinstance(value, float)) or not 0 <= value <= 3600:
        check.fail("a time is a number of 0 to 3600 seconds, not", value)
    return value
