"""The operations of a scenario: one row of data each.

A row says what an operation's arguments are, and so how they are checked and written, which pages it speaks of and
which process it acts on, makes or ends. What an operation *does* stands in two more places: `do_NAME` of the model
(:mod:`ksmwalk.scenarios.replay`) and `do_NAME` of the one that drives the real kernel (:mod:`ksmwalk.kernel.run`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from ..host import ADVICE
from ..ksm import sysfs
from ..layout import PAGE_SIZE

#: page numbers stay below this: 57 bits of address are what five levels of tables hold
VPN_END = 1 << 45

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

    def op(self, index: int, op: object) -> Op:
        """Check one operation and return it in its canonical form.

        Raises
        ------
        ScenarioError
            Names the file, the operation's index and the value refused.
        """
        self.where = f"{self.file}: op {index} {_op_text(op)}"
        if not isinstance(op, list) or not op or not isinstance(op[0], str):
            self.fail("an operation is a list that starts with its name, not", op)
        row = OPS.get(op[0])
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
#
# Each takes the check, the operation as far as it has been checked, and the value; it returns the canonical value.

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
    if name in check.alive:
        check.fail("there is a process of this name already", value)
    check.alive.add(name)
    return name


def VPN(check: Check, op: Op, value: object) -> int:
    """A page number."""
    return check.number(value, "a page number", 0, VPN_END)


def PAGES(check: Check, op: Op, value: object) -> int:
    """A number of pages from the page number before it on."""
    return check.number(value, "a number of pages", 1, VPN_END - op[2] + 1)


def NEW_PAGES(check: Check, op: Op, value: object) -> int:
    """A number of pages, wherever they will be."""
    return check.number(value, "a number of pages", 1, VPN_END)


def NEW_VPN(check: Check, op: Op, value: object) -> int | None:
    """A page number for the pages counted before it; none where they stay in their place."""
    vpn = None if value is None else VPN(check, op, value)
    check.number(op[-1], "a number of pages", 1, VPN_END - (op[2] if vpn is None else vpn) + 1)
    return vpn


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
        elif key in ("shared", "noreserve", "populate"):
            if not isinstance(one, int) or one not in (0, 1):
                check.fail(f"mmap's {key} is 0 or 1, not", one)
            out[key] = int(one)
        else:
            check.fail("no option of mmap", key)
    return out


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


# ---------------------------------------------------------------- pages an operation speaks of


def _span(op: Op) -> list[Span]:
    return [(op[2], op[3])]


def _old_and_new(op: Op) -> list[Span]:
    _, _, vpn, n, new_n, new_vpn = op
    return [(vpn, max(n, new_n)), (vpn if new_vpn is None else new_vpn, new_n)]


def _row_of_pages(op: Op) -> list[Span]:
    return [(op[2], len(op[3]))] if op[3] else []


def _each_first(op: Op) -> list[Span]:
    return [(vpn, 1) for vpn, _ in op[2]]


def _each(op: Op) -> list[Span]:
    return [(vpn, 1) for vpn in op[2]]


def _bytes(op: Op) -> list[Span]:
    return [(op[2], -(-op[4] // PAGE_SIZE))]


def _nothing(op: Op) -> Iterable[Any]:
    return ()


# ---------------------------------------------------------------- what it may bring into memory, and store


def _all(op: Op) -> bool:
    return True


def _none(op: Op) -> bool:
    return False


def _populates(op: Op) -> bool:
    return len(op) > 4 and bool(op[4].get("populate"))


def _advised_to(op: Op) -> bool:
    return op[4] in ("populate_read", "populate_write")


def _listed(op: Op) -> list[int | None]:
    contents: list[int | None] = op[3]
    return contents


def _paired(op: Op) -> list[int]:
    return [number for _, number in op[2]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a scenario, as data.

    Attributes
    ----------
    args : tuple of kinds
        What stands after its name.
    optional : int
        How many of the last of them may be left out.
    spans : callable of an operation, returning (vpn, n) pairs
        The pages it speaks of.
    present : callable of an operation, returning bool
        Whether it may make each of these pages present.
    contents : callable of an operation, returning content ids
        What it stores; none where it stores nothing, or bytes.
    bytes : bool
        Whether it stores bytes that need no content id be.
    maps : bool
        Whether these pages, or some of them, come to be mapped by it.
    ends : bool
        Whether the process it acts on ends.
    needs : str
        What a kernel must have for it, in words; empty where all have it.
    """

    args: tuple[Kind, ...] = ()
    optional: int = 0
    spans: Callable[[Op], Iterable[Span]] = _nothing
    present: Callable[[Op], bool] = _none
    contents: Callable[[Op], Iterable[int | None]] = _nothing
    bytes: bool = False
    maps: bool = False
    ends: bool = False
    needs: str = ""

    def arg(self, op: Op, kind: Kind, default: Any = None) -> Any:
        """Return the first argument of a kind."""
        place = 1 + self.args.index(kind) if kind in self.args else len(op)
        return op[place] if place < len(op) else default

    def process(self, op: Op) -> str | None:
        """Return the process an operation acts on, which must be there; None where it acts on none."""
        name: str | None = self.arg(op, PROCESS)
        return name

    def made(self, op: Op) -> str | None:
        """Return the process an operation makes."""
        name: str | None = self.arg(op, NEWBORN)
        return name


_MERGE_ANY = "PR_SET_MEMORY_MERGE"
#: every operation there is, by its name
OPS: dict[str, Operation] = {
    "spawn": Operation((NEWBORN,)),
    "exit": Operation((PROCESS,), ends=True),
    "exec": Operation((PROCESS,)),
    "fork": Operation((PROCESS, NEWBORN)),
    "mmap": Operation((PROCESS, VPN, PAGES, OPTIONS), 1, spans=_span, present=_populates, maps=True),
    "munmap": Operation((PROCESS, VPN, PAGES), spans=_span),
    "mremap": Operation((PROCESS, VPN, PAGES, NEW_PAGES, NEW_VPN), spans=_old_and_new, maps=True),
    "mprotect": Operation((PROCESS, VPN, PAGES, PROT), spans=_span),
    "madvise": Operation((PROCESS, VPN, PAGES, ADVICE_NAME), spans=_span, present=_advised_to),
    "fill": Operation((PROCESS, VPN, CONTENTS), spans=_row_of_pages, present=_all, contents=_listed),
    "write": Operation((PROCESS, PAIRS), spans=_each_first, present=_all, contents=_paired),
    "pwrite": Operation((PROCESS, PAIRS), spans=_each_first, present=_all, contents=_paired),
    "touch": Operation((PROCESS, VPNS), spans=_each, present=_all),
    "memset": Operation((PROCESS, VPN, BYTE, BYTES), spans=_bytes, present=_all, bytes=True),
    "prctl": Operation((PROCESS, FLAG), needs=_MERGE_ANY),
    "prctl_get": Operation((PROCESS,), needs=_MERGE_ANY),
    "thpdisable": Operation((PROCESS, FLAG)),
    "uffd_wp": Operation((PROCESS, VPN, PAGES), spans=_span),
    "syscall": Operation((PROCESS, *[WORD] * 7), 6),
    "set": Operation((KNOB, KNOB_VALUE)),
    "run": Operation((RUN,)),
    "step": Operation((BATCHES,), 1),
    "sleep": Operation((SECONDS,)),
    "drain": Operation(),
}


def row(op: Op) -> Operation:
    """Return the row of an operation."""
    return OPS[op[0]]


def singles(op: Op) -> Iterable[Op]:
    """Return an operation as those that make one record each: ``["step", k]`` is k times ``["step"]``."""
    if BATCHES not in OPS[op[0]].args:
        return (op,)
    return ([op[0]] for _ in range(OPS[op[0]].arg(op, BATCHES, 1)))


def nr_records(op: Op) -> int:
    """Return how many records an operation makes."""
    n: int = OPS[op[0]].arg(op, BATCHES, 1)
    return n
