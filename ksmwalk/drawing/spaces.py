"""An address space cut down to what is there: rows of present memory, equal ones folded, and the gaps as labels.

Whoever draws one draws from this: `ksmwalk map` in letters and as a plot, notebooks in HTML.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..gate import counted
from ..layout import PAGE_SIZE
from ..signatures import I64Array, U8Array, U64Array
from .words import count, printable, size

PAGE = PAGE_SIZE

# What a present page is, in the order in which they are stacked and listed.
SMALL, THP, KSM, ZERO, OTHER, SHARED = range(6)
KINDS = ("anonymous", "THP", "KSM", "zero page", "not eligible", "shared by fork")
# Of bare page tables only the first two can be told.
TABLE_KINDS = ("small pages", "large pages")
# Equal rows at equal distances that are shown as one, at least.
FOLD = 4
# Odd, so that different places and kinds of pages come out as different sums.
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Area(Protocol):
    """A mapping, as a picture needs it; bytes, half-open."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def mergeable(self) -> bool: ...
    @property
    def not_compatible(self) -> str | None: ...
    @property
    def sort(self) -> Hashable: ...


@dataclass(slots=True)
class Runs:
    """What is present: runs of pages side by side that are of one kind, ascending, none going on where one ends.

    Attributes
    ----------
    addr : uint64[n]
        Bytes.
    nr : int64[n]
        Pages.
    kind : uint8[n]
    """

    addr: U64Array
    nr: I64Array
    kind: U8Array

    @classmethod
    def of_pages(cls, addr: U64Array, kind: U8Array, nr: I64Array | None = None) -> Runs:
        """The runs that pages, or pieces of runs of `nr` pages, make; ascending."""
        if not len(addr):
            return cls(addr.astype(np.uint64), np.empty(0, np.int64), kind.astype(np.uint8))
        each = np.ones(len(addr), np.int64) if nr is None else nr
        ends = addr + (each * PAGE).astype(np.uint64)
        begin = np.concatenate(([True], (addr[1:] != ends[:-1]) | (kind[1:] != kind[:-1])))
        at = np.flatnonzero(begin)
        return cls(addr[at], np.add.reduceat(each, at), kind[at])

    @property
    def ends(self) -> U64Array:
        """One behind the last byte of each."""
        return self.addr + (self.nr * PAGE).astype(np.uint64)

    def pages(self, first: int = 0, last: int | None = None) -> I64Array:
        """Pages of the runs [first, last) by kind: int64[len(KINDS)]."""
        some = slice(first, last)
        return np.bincount(self.kind[some], self.nr[some], len(KINDS)).astype(np.int64)


@dataclass(slots=True)
class Row:
    """A stretch of address space without a cut gap, or equal ones folded: [start, end) in bytes, from the first to the last.

    `pages` counts the pages of all of them by kind; `stride` is the distance in bytes from one to the next.
    """

    start: int
    end: int
    first: int  # index of its first run
    last: int  # one behind its last
    pages: I64Array  # int64[len(KINDS)]
    vmas: list[Area] = field(default_factory=list)
    times: int = 1
    stride: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def each(self) -> Row:
        """The first of the folded rows; the row itself if it is alone."""
        if self.times == 1:
            return self
        end = self.end - self.stride * (self.times - 1)
        last = self.first + (self.last - self.first) // self.times
        vmas = [vma for vma in self.vmas if vma.start < end]
        return Row(self.start, end, self.first, last, self.pages // self.times, vmas)


@dataclass(slots=True)
class Gap:
    """Address space with no page present that was cut out: `mapped` of its bytes belong to mappings."""

    start: int
    end: int
    mapped: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class Picture:
    """Rows and gaps in ascending order; `kinds` are the names of the kinds of pages, `title` says whose it is."""

    vmas: Sequence[Area]
    runs: Runs
    rows: list[Row]
    gaps: list[Gap]
    kinds: tuple[str, ...] = KINDS
    title: str = ""
    notes: list[str] = field(default_factory=list)

    def pieces(self) -> list[Row | Gap]:
        """Rows and gaps together, ascending."""
        return sorted([*self.rows, *self.gaps], key=lambda piece: piece.start)


def mapped_bytes(vmas: Sequence[Area], start: int, end: int) -> int:
    """How many bytes of [start, end) belong to mappings."""
    return sum(max(0, min(vma.end, end) - max(vma.start, start)) for vma in vmas)


def picture(
    vmas: Sequence[Area], runs: Runs, max_rows: int = 24, min_gap: int = 8 << 20, kinds: tuple[str, ...] = KINDS
) -> Picture:
    """Cut the largest gaps out of an address space, and fold rows that are equal and equally far apart.

    Parameters
    ----------
    vmas : sequence of Area
        Ascending.
    runs : Runs
    max_rows : int
        Rows at most, so that max_rows - 1 gaps are cut inside.
    min_gap : int
        Bytes; smaller gaps are never cut.
    kinds : tuple of str
        What the kinds of pages are called: KINDS, or TABLE_KINDS where only page tables are known.

    Returns
    -------
    Picture
    """
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows}: at least 1 is needed")
    if not vmas:
        return Picture(vmas, runs, [], [], kinds)
    low, high = vmas[0].start, vmas[-1].end
    if not len(runs.addr):
        return Picture(vmas, runs, [], [Gap(low, high, mapped_bytes(vmas, low, high))], kinds)
    void = runs.addr[1:] - runs.ends[:-1]
    # where a stretch begins, and one behind the last
    bounds = np.concatenate(([0], np.flatnonzero(void >= np.uint64(max(min_gap, 1))) + 1, [len(runs.addr)]))
    begins = _folds(vmas, runs, bounds)
    # those that begin a piece: behind the largest gaps
    cut = begins[1:]
    if len(cut) > max_rows - 1:
        largest = np.argsort(void[bounds[cut] - 1], kind="stable")[::-1][: max_rows - 1]
        cut = np.sort(cut[largest])
    rows = []
    for begin, after in zip([0, *cut.tolist()], [*cut.tolist(), len(bounds) - 1], strict=True):
        # one fold alone stays one; what is joined with others is a stretch like any
        folded = after - begin >= FOLD and np.searchsorted(begins, begin, "right") == np.searchsorted(begins, after)
        rows.append(_row(vmas, runs, bounds, begin, after, bool(folded)))
    edges = [low, *(edge for row in rows for edge in (row.start, row.end)), high]
    gaps = [
        Gap(start, end, mapped_bytes(vmas, start, end))
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        if end > start
    ]
    return Picture(vmas, runs, rows, gaps, kinds)


def _row(vmas: Sequence[Area], runs: Runs, bounds: I64Array, begin: int, after: int, folded: bool) -> Row:
    """The stretches [begin, after) as one row."""
    first, last = int(bounds[begin]), int(bounds[after])
    start, end = int(runs.addr[first]), int(runs.addr[last - 1]) + int(runs.nr[last - 1]) * PAGE
    row = Row(start, end, first, last, runs.pages(first, last), [vma for vma in vmas if vma.start < end and vma.end > start])
    if folded:
        row.times, row.stride = after - begin, int(runs.addr[bounds[begin + 1]]) - start
    return row


def _folds(vmas: Sequence[Area], runs: Runs, bounds: I64Array) -> I64Array:
    """Numbers of the stretches, ascending, that do not go on a row of FOLD or more equal ones at equal distances."""
    nr = len(bounds) - 1
    if nr < FOLD:
        return np.arange(nr)
    firsts = bounds[:-1]
    start = runs.addr[firsts]
    # Equal: pages of the same kinds at the same places, in mappings of the same name and kind.
    place = runs.addr - np.repeat(start, np.diff(bounds)) + np.uint64(1)
    what = runs.nr.astype(np.uint64) * np.uint64(len(KINDS)) + runs.kind
    shape = np.add.reduceat((place * _MIX ^ what) * _MIX ^ (place * _MIX >> np.uint64(29)), firsts)
    sorts: dict[object, int] = {}
    sort = np.array([sorts.setdefault(vma.sort, len(sorts)) for vma in vmas])
    starts = np.array([vma.start for vma in vmas], np.uint64)
    edges = (start, runs.ends[bounds[1:] - 1] - np.uint64(PAGE))
    ends = [sort[np.searchsorted(starts, at, "right") - 1] for at in edges]
    alike = (np.diff(shape) == 0) & (np.diff(np.diff(bounds)) == 0) & (np.diff(ends[0]) == 0) & (np.diff(ends[1]) == 0)
    stride = np.diff(start)
    # Links between neighbours, in groups of the same stride. The stretch between two groups goes to the first, if that
    # is a fold; so the second needs a link more.
    new = np.ones(nr - 1, bool)
    new[1:] = ~(alike[1:] & alike[:-1] & (stride[1:] == stride[:-1]))
    group = np.cumsum(new) - 1
    links = np.bincount(group)
    enough = links >= FOLD - 1
    enough[1:] &= (links[1:] >= FOLD) | ~enough[:-1]
    long = enough[group] & alike
    begins = np.ones(nr, bool)
    begins[np.flatnonzero(long) + 1] = False
    heads = np.flatnonzero(long & new)
    begins[heads[~begins[heads]] + 1] = True
    return np.flatnonzero(begins)


def columns(drawn: Picture, row: Row, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A row as `width` columns of equal size.

    Returns
    -------
    (share, vma)
        share: float64[width, len(KINDS)], the part of each column's bytes that is present, by kind.
        vma: int64[width], index in row.vmas of the mapping at the column's middle, -1 where nothing is mapped.
    """
    some = slice(row.first, row.last)
    start = (drawn.runs.addr[some] - np.uint64(row.start)).astype(np.float64)
    kinds, nr = drawn.runs.kind[some].astype(np.int64), drawn.runs.nr[some]
    scale = width / row.size
    # A run may be wider than a column or lie across an edge: give each column its part.
    share = np.zeros((width, len(KINDS)))
    begin, end = start * scale, (start + nr * PAGE) * scale
    first = np.minimum(begin.astype(np.int64), width - 1)
    last = np.minimum(np.ceil(end).astype(np.int64), width)
    spans = last - first
    column = np.repeat(first, spans) + np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
    part = np.minimum(np.repeat(end, spans), column + 1) - np.maximum(np.repeat(begin, spans), column)
    np.add.at(share, (column, np.repeat(kinds, spans)), part)
    middle = row.start + (np.arange(width) + 0.5) / scale
    starts = np.array([vma.start for vma in row.vmas], np.float64)
    ends = np.array([vma.end for vma in row.vmas], np.float64)
    at = np.searchsorted(starts, middle, "right") - 1
    at[(at < 0) | (middle >= ends[np.maximum(at, 0)])] = -1
    return share, at


def heading(drawn: Picture) -> str:
    """One line on the whole of it."""
    mapped = sum(vma.size for vma in drawn.vmas)
    present = int(drawn.runs.nr.sum()) * PAGE
    return f"{printable(drawn.title)}: {size(mapped)} mapped in {counted(len(drawn.vmas), 'area')}, {size(present)} present"


def gap_label(gap: Gap) -> str:
    """What a gap is made of."""
    if not gap.mapped:
        return f"{size(gap.size)} unmapped"
    if gap.mapped == gap.size:
        return f"{size(gap.size)} mapped, nothing present"
    return f"{size(gap.mapped)} mapped, nothing present; {size(gap.size - gap.mapped)} unmapped"


def kinds_label(pages: np.ndarray, kinds: tuple[str, ...] = KINDS) -> str:
    """Sizes by kind."""
    return ", ".join(f"{size(int(n) * PAGE)} {kinds[kind]}" for kind, n in enumerate(pages) if n)


def row_label(row: Row, kinds: tuple[str, ...] = KINDS) -> str:
    """What is present in a row: `20 x 4 KiB every 64 MiB: 80 KiB anonymous`."""
    each = size(row.each.size)
    if row.times > 1:
        each = f"{count(row.times)} x {each} every {size(row.stride)}"
    return f"{each}: {kinds_label(row.pages, kinds)}"


def total(drawn: Picture) -> np.ndarray:
    """The pages of the whole process by kind: int64[len(KINDS)]."""
    return drawn.runs.pages()


def parts(pages: np.ndarray, width: int) -> np.ndarray:
    """`width` cells shared out among the kinds as their pages are, none of them without a cell: int64[len(KINDS)]."""
    there = pages > 0
    if not there.any():
        return np.zeros(len(pages), np.int64)
    exact = pages * (width / pages.sum())
    out = np.where(there, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    while (left := width - int(out.sum())) != 0:
        # what rounding left over goes to, or comes from, where it is missed, or felt, most
        lack = np.where(there & ((left > 0) | (out > 1)), exact - out, -np.inf if left > 0 else np.inf)
        out[int(lack.argmax() if left > 0 else lack.argmin())] += 1 if left > 0 else -1
    return out


def row_names(row: Row) -> list[str]:
    """The names of the mappings in a row, each once, in order, as they can be printed."""
    names = dict.fromkeys(printable(vma.name.rsplit("/", 1)[-1]) for vma in row.vmas if vma.name)
    return list(names)


def marks(row: Row) -> str:
    """How much of a row is marked mergeable."""
    marked = sum(min(vma.end, row.end) - max(vma.start, row.start) for vma in row.vmas if vma.mergeable)
    if not marked:
        return ""
    return "; all marked mergeable" if marked == row.size else f"; {size(marked)} of it marked mergeable"
