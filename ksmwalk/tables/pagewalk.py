"""The range walk of page tables with callbacks: `walk_page_range`, `walk_page_range_vma`, `walk_page_vma`.

Callbacks are called level by level exactly as Linux 6.18 does. The compiled finder of mergeable pages (`_core.find_page`)
gives the same answers without a Python call; a C caller passes function pointers to the same walker (`_walk.pxd`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from ..errors import ArenaFullError, BadEntryError
from ..gate import as_int, shown
from ..signatures import AddressSpace, Area
from . import _callbacks
from ._callbacks import Entry, MmWalk
from .tables import PageTables

__all__ = [
    "Action",
    "Entry",
    "MmWalk",
    "MmWalkOps",
    "walk_page_range",
    "walk_page_range_novma",
    "walk_page_range_vma",
    "walk_page_vma",
]

_EINVAL = -errno.EINVAL
_MOST_RECORDS = (1 << 31) - 1
_TOP = 1 << 64

EntryCallback: TypeAlias = Callable[[Entry, int, int, MmWalk], int | None]
HoleCallback: TypeAlias = Callable[[int, int, int, MmWalk], int | None]
RangeCallback: TypeAlias = Callable[[int, int, MmWalk], int | None]
DoneCallback: TypeAlias = Callable[[MmWalk], object]
Callback: TypeAlias = EntryCallback | HoleCallback | RangeCallback | DoneCallback


class Action(IntEnum):
    """What to do after a pud or pmd callback (`walk.action`, set back to SUBTREE before each such entry)."""

    SUBTREE = 0
    CONTINUE = 1
    AGAIN = 2


_callbacks.set_actions(*Action)


@dataclass(slots=True)
class MmWalkOps:
    """The callbacks of a walk; any may be None.

    A callback returns None or 0 to go on; any other int ends the walk and is its result, unchanged. An exception ends
    the walk too and comes out as it is.

    Parameters
    ----------
    pgd_entry, p4d_entry, pud_entry, pmd_entry : callable(entry, addr, next, walk)
        Called for each non-empty entry of the range. `entry` (`Entry`) can be read and written; at pmd level
        `entry.ptes` are the 512 ptes below it. With 4 levels p4d_entry is called right after pgd_entry for the same entry.
    pte_entry : callable(entry, addr, next, walk)
        Called for every pte of the range, the none ones included.
    pte_hole : callable(addr, next, depth, walk)
        Called for each empty entry above pte level: depth 0 pgd, 1 p4d, 2 pud, 3 pmd; -1 outside every vma.
    hugetlb_entry : callable(entry, addr, next, walk)
        Called instead of all others in a hugetlb vma.
    test_walk : callable(start, next, walk)
        `walk_page_range` asks it for each vma: 0 walk it, > 0 skip it, < 0 end the walk with that value.
    pre_vma : callable(start, end, walk)
        Called before a vma is walked; non-zero ends the walk.
    post_vma : callable(walk)
        Called after a vma was walked, also after a walk that ended early.

    Models: struct mm_walk_ops of Linux 6.18. Differs: no install_pte, no walk_lock.
    """

    pgd_entry: EntryCallback | None = None
    p4d_entry: EntryCallback | None = None
    pud_entry: EntryCallback | None = None
    pmd_entry: EntryCallback | None = None
    pte_entry: EntryCallback | None = None
    pte_hole: HoleCallback | None = None
    hugetlb_entry: EntryCallback | None = None
    test_walk: RangeCallback | None = None
    pre_vma: RangeCallback | None = None
    post_vma: DoneCallback | None = None

    def _functions(self) -> tuple[Callback | None, ...]:
        return (
            self.pgd_entry,
            self.p4d_entry,
            self.pud_entry,
            self.pmd_entry,
            self.pte_entry,
            self.hugetlb_entry,
            self.pte_hole,
            self.test_walk,
            self.pre_vma,
            self.post_vma,
        )


def _aligned(start: int, end: int, limit: int) -> None:
    if (start | end) & 4095 or end > limit:
        name, value = ("start", start) if start & 4095 or start > limit else ("end", end)
        raise ValueError(f"{name} {value:#x}: must be page aligned and within 0-{limit:#x}")


def _arguments(start: object, end: object, ops: object) -> tuple[int, int]:
    if not isinstance(ops, MmWalkOps):
        raise TypeError(f"ops {shown(ops)}: must be MmWalkOps")
    if type(start) is int and type(end) is int and 0 <= start <= _TOP and 0 <= end <= _TOP:
        return start, end
    return as_int(start, "start", 0, _TOP), as_int(end, "end", 0, _TOP)


def _mm_of(vma: Area) -> AddressSpace | None:
    if not hasattr(vma, "vm_mm"):
        raise TypeError(f"vma {shown(vma)}: must be a Vma")
    return vma.vm_mm


def _tables_of(mm: AddressSpace) -> PageTables:
    tables = getattr(mm, "tables", None)
    if not isinstance(tables, PageTables):
        raise TypeError(f"mm {shown(mm)}: must be an Mm")
    return tables


def _run(
    tables: PageTables, mm_no: int, vma_no: int, start: int, end: int, ops: MmWalkOps, mm: AddressSpace | None,
    vma: Area | None, private: object, whole_mm: bool = False, high: int | None = None,
) -> int:  # fmt: skip
    if not (type(mm_no) is int and type(vma_no) is int and 0 <= mm_no | vma_no <= _MOST_RECORDS):
        mm_no, vma_no = as_int(mm_no, "mm", 0, _MOST_RECORDS), as_int(vma_no, "vma", 0, _MOST_RECORDS)
    stop = tables._on_bad == "raise"
    if stop:
        tables._tables.forget_bad()
    result, code = _callbacks.run_walk(
        tables._tables, mm_no, vma_no, start, end, ops, ops._functions(), mm, vma, private, stop, whole_mm, high
    )
    if code:
        if stop and tables.bad_count:
            b = tables.bad[0]
            raise BadEntryError(b["addr"], b["level"], b["raw"], b["kind"])
        raise ArenaFullError(f"no table page left to split a large leaf in {start:#x}-{end:#x}")
    return result


def walk_page_range(mm: AddressSpace | None, start: int, end: int, ops: MmWalkOps, private: Any = None) -> int:
    """Walk a range of an address space, vma by vma.

    Parameters
    ----------
    mm : Mm
        The address space.
    start, end : int
        Bytes, half-open, page aligned.
    ops : MmWalkOps
        Callbacks. Address space outside every vma is one `pte_hole(addr, next, -1, walk)` per gap.
    private : object
        Given to callbacks as `walk.private`.

    Returns
    -------
    int
        0, or the first non-zero value a callback returned (of test_walk only a negative one); -22 (EINVAL) for an empty
        range or no mm.

    Raises
    ------
    ValueError
        An address that is not page aligned or beyond the tables.
    BadEntryError
        An entry that can't be followed.
    ReferenceError
        A callback freed the page tables that were being walked (munmap, exit, collapse), and did not end the walk.

    Models: walk_page_range() of Linux 6.18. Differs: a callback may call its own Host.
    """
    start, end = _arguments(start, end, ops)
    if mm is None or start >= end:
        return _EINVAL
    tables = _tables_of(mm)
    _aligned(start, end, tables.end)
    return _run(tables, mm.number, 0, start, end, ops, mm, None, private, whole_mm=True)


def walk_page_range_vma(vma: Area, start: int, end: int, ops: MmWalkOps, private: Any = None) -> int:
    """Walk a part of one vma; `test_walk` is not asked.

    Parameters
    ----------
    vma : Vma
        The mapping.
    start, end : int
        Bytes, half-open, page aligned, within the vma.
    ops, private
        As for `walk_page_range`.

    Returns
    -------
    int
        As `walk_page_range`; -22 (EINVAL) also if the range leaves the vma or the vma has no mm.

    Models: walk_page_range_vma() of Linux 6.18. Differs: nothing known.
    """
    start, end = _arguments(start, end, ops)
    mm = _mm_of(vma)
    if mm is None or start >= end or start < vma.vm_start or end > vma.vm_end:
        return _EINVAL
    tables = _tables_of(mm)
    _aligned(start, end, tables.end)
    return _run(tables, mm.number, vma.index, start, end, ops, mm, vma, private)


def walk_page_vma(vma: Area, ops: MmWalkOps, private: Any = None) -> int:
    """Walk one whole vma; `test_walk` is not asked.

    Models: walk_page_vma() of Linux 6.18. Differs: nothing known.
    """
    _mm_of(vma)
    return walk_page_range_vma(vma, vma.vm_start, vma.vm_end, ops, private)


def walk_page_range_novma(tables: PageTables, start: int, end: int, ops: MmWalkOps, private: Any = None) -> int:
    """Walk page tables without vmas: a leaf, or an entry that is not present, is not descended into.

    Parameters
    ----------
    tables : PageTables
        An arena or an image.
    start, end, ops, private
        As for `walk_page_range`. Addresses of the upper half are canonical (sign-extended; the very end is 2**64). A range
        over both halves leaves out what is not canonical. `walk.mm` and `walk.vma` are None.

    Returns
    -------
    int
        As `walk_page_range`. Entries that can't be followed are in `tables.bad`, or raised, as the tables say.

    Models: walk_kernel_page_table_range() and walk_page_range_debug() of Linux 6.18. Differs: nothing known.
    """
    if not isinstance(tables, PageTables):
        raise TypeError(f"tables {shown(tables)}: must be PageTables")
    start, end = _arguments(start, end, ops)
    if start >= end:
        return _EINVAL
    half, top = tables.end // 2, 1 << 64
    _aligned(start, end, top)
    result = 0
    if start < half:
        result = _run(tables, 0, 0, start, min(end, half), ops, None, None, private)
    if not result and end > top - half:
        low, high = tables._index(max(start, top - half)), tables._index(end)
        result = _run(tables, 0, 0, low, high, ops, None, None, private, high=tables._high)
    return result


