"""The knobs and counters of /sys/kernel/mm/ksm: names, defaults, what a write accepts, what a refused one gets."""

from __future__ import annotations

import errno
import operator
import os
import re
from collections.abc import Callable
from typing import Generic, Never, NoReturn, Self, SupportsIndex, TypeVar, overload

import numpy as np

from ..gate import MAX_U64, shown
from .advisor import advise as advise

T = TypeVar("T")

#: bytes the kernel spends on one rmap_item, for the profit
RMAP_ITEM_SIZE = 64
#: bytes it spends on one stable node, as its slab shows it (Linux 6.18, x86-64)
STABLE_NODE_SIZE = 64

ADVISORS = ("none", "scan-time")
_BEYOND = 10**20  # no number that is kept is so large
#: pages_to_scan when the advisor is switched off; switched on it starts at advisor_min_pages_to_scan
PAGES_TO_SCAN_DEFAULT = 100


def chosen(text: str) -> str:
    """What a file of sysfs holds, of a choice the word in brackets."""
    return text[text.index("[") + 1 : text.index("]")] if "[" in text and "]" in text else text.strip()


def refuse(code: int, knob: str, value: object) -> OSError:
    """The OSError of a write that the kernel refuses, naming knob and value."""
    return OSError(code, f"{os.strerror(code)}: {knob} = {shown(value)}")


def _text(value: object, name: str, switch: bool) -> str:
    """What would be written into the file; True and False go into a switch only."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)) and switch:
        return str(int(value))
    try:
        if not isinstance(value, bool):
            number = operator.index(value)  # type: ignore[arg-type] # what it refuses is the question
            return str(max(-_BEYOND, min(number, _BEYOND)))
    except TypeError:
        pass
    raise TypeError(f"{name} {shown(value)}: must be an integer, or the text that would be written")


def _number(bits: int, signed: bool, too_big: int) -> Callable[[str], int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+\n?" if signed else r"\+?[0-9]+\n?", text):
            raise ValueError(errno.EINVAL)
        # Python does not read numbers of any length.
        digits = text.strip("\n").lstrip("+-").lstrip("0") or "0"
        number = int(digits) if len(digits) <= 20 else _BEYOND
        number = -number if text[0] == "-" else number
        if not low <= number <= high:
            raise ValueError(too_big)
        return number

    return parse


def _bool(text: str) -> int:
    # As kstrtobool: the first letter decides, of "on" and "off" the second.
    for answer, starts in ((1, ("y", "Y", "t", "T", "1")), (0, ("n", "N", "f", "F", "0"))):
        if text.startswith(starts):
            return answer
    if text[:1] in ("o", "O") and text[1:2] in ("n", "N", "f", "F"):
        return int(text[1] in "nN")
    raise ValueError(errno.EINVAL)


def _mode(text: str) -> int:
    try:
        return ADVISORS.index(text.removesuffix("\n"))
    except ValueError:
        raise ValueError(errno.EINVAL) from None


# A number beyond its type gets EINVAL where the kernel's reader turns every parse error into it, ERANGE elsewhere.
_u32 = _number(32, False, errno.EINVAL)
_u64 = _number(64, False, errno.EINVAL)
_u64_erange = _number(64, False, errno.ERANGE)
_i32_erange = _number(31 + 1, True, errno.ERANGE)


class Knob(Generic[T]):
    """One tunable: an attribute of `Files`, where it is kept, its default, how a written text is read.

    Parameters
    ----------
    doc : str
        What it does, for `help`.
    field : str
        Field of the `ksm` record.
    default : int
    parse : callable
        What the kernel makes of a written text; ValueError(errno) where it refuses it.
    low, high : int
        Numbers that are allowed then.
    kept : int
        Bits of the number that are kept.
    """

    name: str
    field: str
    default: int
    parse: Callable[[str], int]
    low: int
    high: int
    kept: int

    def __init__(
        self, doc: str, field: str, default: int, parse: Callable[[str], int], low: int = 0, high: int = MAX_U64,
        *, kept: int = MAX_U64,
    ):  # fmt: skip
        self.__doc__ = doc
        self.field, self.default, self.parse = field, default, parse
        self.low, self.high, self.kept = low, high, kept

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, ksm: None, owner: type) -> Self: ...
    @overload
    def __get__(self, ksm: Files, owner: type) -> T: ...
    def __get__(self, ksm: Files | None, owner: type) -> Self | T:
        if ksm is None:
            return self
        if not ksm.has(self.name):
            raise OSError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}: {self.name}")
        return self.show(ksm._number(self.field))

    def __set__(self, ksm: Files, value: SupportsIndex | str) -> None:
        ksm.write(self.name, value)

    def show(self, number: int) -> T:
        """What the file shows for the number that is kept."""
        raise NotImplementedError

    def read(self, value: object) -> int:
        """The number a write of `value` would set.

        Raises
        ------
        OSError
            What the kernel's write gives: EINVAL, or ERANGE where it is that.
        TypeError
            Neither an integer nor a text.
        """
        try:
            number = self.parse(_text(value, self.name, self.parse is _bool or self.high <= 2))
        except ValueError as err:
            raise refuse(err.args[0], self.name, value) from None
        if not self.low <= number <= self.high:
            raise refuse(errno.EINVAL, self.name, value)
        return number & self.kept


class Number(Knob[int]):
    """A tunable that holds a number."""

    def show(self, number: int) -> int:
        return number & MAX_U64


class Choice(Knob[str]):
    """A tunable that holds one of `ADVISORS`."""

    def show(self, number: int) -> str:
        return ADVISORS[number]


class Counter:
    """One counter: an attribute of `Files` that can only be read.

    Parameters
    ----------
    doc : str
        What it counts.
    field : str, optional
        Field of the `ksm` record; left out where it is worked out (`Files.counters`).
    """

    name: str

    def __init__(self, doc: str, field: str | None = None):
        self.__doc__ = doc
        self.field = field

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, ksm: None, owner: type) -> Self: ...
    @overload
    def __get__(self, ksm: Files, owner: type) -> int: ...
    def __get__(self, ksm: Files | None, owner: type) -> Self | int:
        if ksm is None:
            return self
        return ksm._number(self.field) if self.field else ksm._counted()[self.name]

    def __set__(self, ksm: Files, value: Never) -> NoReturn:
        raise AttributeError(f"{self.name} is a counter: KSM counts it, it can only be read")


class Files:
    """The files of /sys/kernel/mm/ksm, each an attribute: one row here, one field of kw_ksm in _layout.h."""

    __slots__ = ()

    run: Number = Number("0 stopped, 1 merging, 2 stopped and everything unmerged.", "run", 0, _u32, 0, 2)
    pages_to_scan: Number = Number("Visits in a batch.", "pages_to_scan", PAGES_TO_SCAN_DEFAULT, _u32)
    sleep_millisecs: Number = Number("Milliseconds between batches, for `Host.run`.", "sleep_millisecs", 20, _u32)
    smart_scan: Number = Number("1: pages that did not merge for long are skipped now and then.", "smart_scan", 1, _bool)
    use_zero_pages: Number = Number("1: empty pages are mapped to the shared zero page.", "use_zero_pages", 0, _bool)
    max_page_sharing: Number = Number("rmap_items that one KSM page takes.", "max_page_sharing", 256, _i32_erange, 2)
    merge_across_nodes: Number = Number(
        "0: only pages of one NUMA node are merged.", "merge_across_nodes", 1, _u64_erange, 0, 1
    )
    stable_node_chains_prune_millisecs: Number = Number(
        "Milliseconds after which a passing search prunes a chain.", "prune_millisecs", 2000, _u32
    )
    advisor_mode: Choice = Choice('"none" or "scan-time".', "advisor_mode", 0, _mode)
    advisor_max_cpu: Number = Number(
        "Percent of a CPU that the advisor lets ksmd use.", "advisor_max_cpu", 70, _u64, kept=(1 << 32) - 1
    )
    advisor_min_pages_to_scan: Number = Number("pages_to_scan that the advisor starts with.", "advisor_min_pages", 500, _u64)
    advisor_max_pages_to_scan: Number = Number("Most pages_to_scan of the advisor.", "advisor_max_pages", 30000, _u64)
    advisor_target_scan_time: Number = Number(
        "Seconds a full scan should take with the advisor.", "advisor_target", 200, _u64, 1
    )

    pages_scanned: Counter = Counter("Visits so far, pages.", "pages_scanned")
    pages_skipped: Counter = Counter("Pages that smart_scan skipped so far.", "pages_skipped")
    full_scans: Counter = Counter("Full scans completed.")
    pages_shared: Counter = Counter("KSM pages: what is kept of the pages that were merged.", "pages_shared")
    pages_sharing: Counter = Counter("Mappings of KSM pages beyond the first: pages that are saved.", "pages_sharing")
    pages_unshared: Counter = Counter("Pages that were compared and are unlike all others.", "pages_unshared")
    pages_volatile: Counter = Counter("Pages that changed too fast, or were not looked at twice yet.")
    ksm_zero_pages: Counter = Counter("Mappings of the shared zero page that KSM placed.", "zero_pages")
    stable_node_chains: Counter = Counter("Contents with more than one KSM page.", "chains")
    stable_node_dups: Counter = Counter("KSM pages of such contents.", "dups")
    general_profit: Counter = Counter("Bytes saved, less what the rmap_items cost; may be negative.")

    def write(self, name: str, value: SupportsIndex | str) -> None:
        """Write a tunable."""
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        """All counters, by name."""
        raise NotImplementedError

    def _counted(self) -> dict[str, int]:
        """The same, with those that the kernel does not show."""
        raise NotImplementedError

    def has(self, name: str) -> bool:
        """Whether the kernel has this file."""
        raise NotImplementedError

    def _number(self, field: str) -> int:
        """A field of the `ksm` record."""
        raise NotImplementedError


#: every tunable and every counter by the kernel's name, in the order of `Files`
KNOBS: dict[str, Knob[int] | Knob[str]] = {name: row for name, row in vars(Files).items() if isinstance(row, Knob)}
COUNTERS: dict[str, Counter] = {name: row for name, row in vars(Files).items() if isinstance(row, Counter)}

#: one moment of all counters, a field each
COUNTERS_DTYPE = np.dtype([(name, np.int64) for name in COUNTERS])
