"""One full scan of a loaded process with either strategy, in work counts and time; shared by `demo` and `scan`."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from ..host.host import Host
from ..proc.maps import VmaRecord
from ..sources import ProcessCapture, load
from ..sources.reading import PAGE_ARRAYS

# From where on, and how empty, an address space is called a sparse giant.
GIANT, FULL = 1 << 30, 0.01
_BATCH = 1 << 20
# Lookups really made to learn what one costs; a tenth of a second of them at the most.
_SLICE_LOOKUPS = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """What one full scan found, did and took."""

    pages: int
    seconds: float
    work: dict[str, int]

    @property
    def entries(self) -> int:
        """Page-table entries read, of all levels."""
        return sum(self.work.get(level, 0) for level in ("pgd", "p4d", "pud", "pmd", "pte"))


def full_scan(host: Host, strategy: str) -> Pass:
    """One full scan of a Host, from wherever the cursor is to the end of the list."""
    scan = host.ksm.scan
    scan.strategy = strategy
    scan.reset_work()
    before, pages = scan.seqnr, 0
    start = time.perf_counter()
    while scan.seqnr == before:
        handed_out = scan.scan(_BATCH)
        pages += handed_out
        if not handed_out and scan.seqnr == before:
            break  # nobody on the list
    return Pass(pages, time.perf_counter() - start, scan.work)


def later_pass(host: Host, strategy: str, rounds: int = 5) -> Pass:
    """A full scan of pages that have rmap_items already: the fastest of some rounds."""
    return min((full_scan(host, strategy) for _ in range(rounds)), key=lambda one: one.seconds)


def cut_out(what: ProcessCapture, vma: VmaRecord, start: int, end: int) -> ProcessCapture:
    """The part [start, end) of one mapping of a capture, as a capture of its own."""
    first, last = np.searchsorted(what.addr, [start, end])
    arrays = {
        name: getattr(what, name)[first:last]
        for name in PAGE_ARRAYS
        if getattr(what, name) is not None
    }
    return dataclasses.replace(what, vmas=[dataclasses.replace(vma, start=start, end=end)], **arrays)


def seconds_per_lookup(what: ProcessCapture, vma: VmaRecord) -> tuple[float, int]:
    """What one lookup of the old strategy costs here: (seconds, lookups really made) on a slice around a page."""
    size = min(_SLICE_LOOKUPS << 12, vma.size)
    inside = what.addr[np.searchsorted(what.addr, vma.start) : np.searchsorted(what.addr, vma.end)]
    page = int(inside[0]) if len(inside) else vma.start
    start = min(max(vma.start, page - size // 2 & ~0xFFF), vma.end - size)
    image = load(cut_out(what, vma, start, start + size), mark="all")
    if image.host.ksm.has("smart_scan"):
        image.host.ksm.smart_scan = 0
    image.host.ksm.scan.real_lookups = True
    one = later_pass(image.host, "per-address", rounds=3)
    return one.seconds / max(one.work["lookups"], 1), one.work["lookups"]
