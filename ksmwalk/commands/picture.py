"""An address space cut down to what is there: rows of present memory, and the gaps between them as labels.

Both faces of `ksmwalk map` draw from this: the text and the plot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..proc.maps import VmaRecord
from ..sources.reading import ProcessCapture
from . import report

PAGE = 4096

# What a present page is, in the order in which they are stacked and listed.
SMALL, THP, KSM, ZERO, OTHER = range(5)
KINDS = ("anonymous", "THP", "KSM", "zero page", "not eligible")


@dataclass(slots=True)
class Row:
    """A stretch of address space without a cut gap: [start, end) in bytes; `pages` counts them by kind."""

    start: int
    end: int
    first: int  # index of its first page in the capture
    last: int  # one behind its last
    pages: np.ndarray  # int64[len(KINDS)]
    vmas: list[VmaRecord] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.end - self.start


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
    """Rows and gaps in ascending order; `kind` is the kind of each page of the capture, uint8[nr_pages]."""

    capture: ProcessCapture
    kind: np.ndarray
    rows: list[Row]
    gaps: list[Gap]

    def pieces(self) -> list[Row | Gap]:
        """Rows and gaps together, ascending."""
        return sorted([*self.rows, *self.gaps], key=lambda piece: piece.start)


def page_kinds(capture: ProcessCapture) -> np.ndarray:
    """The kind of each page: uint8[nr_pages] of SMALL, THP, KSM, ZERO, OTHER."""
    eligible = np.zeros(capture.nr_pages, bool)
    for vma, (first, last) in zip(capture.vmas, capture.vma_slices(), strict=True):
        if vma.not_compatible is None:
            eligible[first:last] = True
    kind = np.full(capture.nr_pages, OTHER, np.uint8)
    anon = eligible & capture.anon
    kind[anon] = SMALL
    kind[anon & capture.huge] = THP
    if capture.ksm is not None:
        kind[anon & capture.ksm] = KSM
    kind[eligible & capture.zero] = ZERO
    return kind


def mapped_bytes(vmas: list[VmaRecord], start: int, end: int) -> int:
    """How many bytes of [start, end) belong to mappings."""
    return sum(max(0, min(vma.end, end) - max(vma.start, start)) for vma in vmas)


def picture(capture: ProcessCapture, max_rows: int = 24, min_gap: int = 8 << 20) -> Picture:
    """Cut the largest gaps out of an address space.

    Parameters
    ----------
    capture : ProcessCapture
    max_rows : int
        Rows at most, so that max_rows - 1 gaps are cut inside.
    min_gap : int
        Bytes; smaller gaps are never cut.

    Returns
    -------
    Picture
    """
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows}: at least 1 is needed")
    kind = page_kinds(capture)
    if not capture.vmas:
        return Picture(capture, kind, [], [])
    low, high = capture.vmas[0].start, capture.vmas[-1].end
    if not capture.nr_pages:
        return Picture(capture, kind, [], [Gap(low, high, mapped_bytes(capture.vmas, low, high))])
    addr = capture.addr
    void = np.diff(addr) - np.uint64(PAGE)
    cut = np.flatnonzero(void >= np.uint64(max(min_gap, 1)))
    if len(cut) > max_rows - 1:
        largest = np.argsort(void[cut], kind="stable")[::-1][: max_rows - 1]
        cut = np.sort(cut[largest])
    firsts = [0, *(cut + 1).tolist()]
    lasts = [*(cut + 1).tolist(), len(addr)]
    rows = []
    for first, last in zip(firsts, lasts, strict=True):
        start, end = int(addr[first]), int(addr[last - 1]) + PAGE
        pages = np.bincount(kind[first:last], minlength=len(KINDS))
        vmas = [vma for vma in capture.vmas if vma.start < end and vma.end > start]
        rows.append(Row(start, end, first, last, pages, vmas))
    edges = [low, *(edge for row in rows for edge in (row.start, row.end)), high]
    gaps = [
        Gap(start, end, mapped_bytes(capture.vmas, start, end))
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        if end > start
    ]
    return Picture(capture, kind, rows, gaps)


def columns(drawn: Picture, row: Row, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A row as `width` columns of equal size.

    Returns
    -------
    (share, vma)
        share: float64[width, len(KINDS)], the part of each column's bytes that is present, by kind.
        vma: int64[width], index in row.vmas of the mapping at the column's middle, -1 where nothing is mapped.
    """
    total = row.size
    pages = (drawn.capture.addr[row.first : row.last] - np.uint64(row.start)).astype(np.float64)
    kinds = drawn.kind[row.first : row.last].astype(np.int64)
    scale = width / total
    # A page may be wider than a column or lie across an edge: give each column its part.
    share = np.zeros((width, len(KINDS)))
    begin, end = pages * scale, (pages + PAGE) * scale
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
    """One line on the whole process."""
    what = drawn.capture
    mapped = sum(vma.size for vma in what.vmas)
    return (
        f"{what.name} ({what.pid}): {report.size(mapped)} mapped in {len(what.vmas)} areas, "
        f"{report.size(what.nr_pages * 4096)} present"
    )


def gap_label(gap: Gap) -> str:
    """What a gap is made of."""
    if not gap.mapped:
        return f"{report.size(gap.size)} unmapped"
    if gap.mapped == gap.size:
        return f"{report.size(gap.size)} mapped, nothing present"
    return f"{report.size(gap.mapped)} mapped, nothing present; {report.size(gap.size - gap.mapped)} unmapped"


def row_label(row: Row) -> str:
    """What is present in a row."""
    parts = [f"{report.size(int(n) * 4096)} {KINDS[kind]}" for kind, n in enumerate(row.pages) if n]
    return f"{report.size(row.size)}: " + ", ".join(parts)


def row_names(row: Row) -> list[str]:
    """The names of the mappings in a row, each once, in order."""
    names = dict.fromkeys(vma.name.rsplit("/", 1)[-1] for vma in row.vmas if vma.name)
    return list(names)


def marks(row: Row) -> str:
    """How much of a row is marked mergeable."""
    marked = sum(min(vma.end, row.end) - max(vma.start, row.start) for vma in row.vmas if vma.mergeable)
    if not marked:
        return ""
    return "; all marked mergeable" if marked == row.size else f"; {report.size(marked)} of it marked mergeable"
