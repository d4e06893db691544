"""Hosts in the states that the bench measures, and the same shapes as real processes."""

from __future__ import annotations

import numpy as np
from measure import SMOKE, memory_available, note
from rivals import PagemapScan
from shapes import Shape

from ksmwalk import Host

PAGE = 4096
TIB = 1 << 40
DENSE = 1 << (13 if SMOKE else 19)
NX = np.uint64(1 << 63)
FRAME = np.uint64(0x000FFFFFFFFFF000)


def sparse_host(span: int, offsets=(0,), strategy: str = "range"):
    """A Host with one mergeable mapping of `span` bytes in which the pages at these offsets are written."""
    host = Host(max(2048, 2 * len(offsets) + 1024))
    mm = host.new_mm()
    start = mm.mmap(span, addr=TIB, noreserve=True)
    for i, offset in enumerate(offsets):
        mm.write(start + int(offset), i + 1)
    mm.madvise(start, span, "mergeable")
    host.ksm.smart_scan = 0
    host.ksm.scan.strategy = strategy
    return host


def host_with(keys, spare: int = 0):
    """A Host with one mergeable mapping of pages with these contents, smart_scan off, and so many frames to spare."""
    host = Host(len(keys) + spare + (1 << 14))
    mm = host.new_mm()
    start = mm.mmap(len(keys) * PAGE, addr=TIB)
    mm.populate(start, len(keys) * PAGE, keys)
    mm.madvise(start, len(keys) * PAGE, "mergeable")
    host.ksm.smart_scan = 0
    return host


def full_scan(host) -> int:
    """One full scan of a Host by the cursor alone; pages found."""
    scan = host.ksm.scan
    return scan.scan(1 << 40)


def dense_host(pages: int = DENSE, shuffled: bool = False, smart_scan: bool = False):
    """A Host with one mergeable mapping of `pages` pages side by side, frames in order or shuffled."""
    host = host_with(np.arange(1, pages + 1, dtype=np.uint64))
    host.ksm.smart_scan = int(smart_scan)
    if shuffled:
        rows = host._arrays["rows"][: len(host.tables.rows)]
        row, index = np.nonzero(rows & NX)  # of an anonymous mapping only the leaves are NX
        entries = rows[row, index]
        order = np.random.default_rng(1).permutation(len(entries))
        rows[row, index] = (entries & ~FRAME) | (entries[order] & FRAME)
    return host


def shape(span: int, offsets, huge=()) -> Shape | None:
    """A process of this shape, or None (said aloud) where the machine has not got the memory or the kernel says no."""
    offsets = np.asarray(offsets, dtype=np.uint64)
    tables = len(np.unique(offsets >> np.uint64(21)))
    need = (len(offsets) + tables) * PAGE * 5 // 4 + (256 << 20)
    if memory_available() < need:
        note(f"no process of {need >> 20} MiB: not enough memory; its rows are left out")
        return None
    try:
        return Shape(span, offsets, huge)
    except OSError as err:
        note(f"no process of this shape: {err}")
        return None


def pagemap_scan(process: Shape) -> PagemapScan | None:
    """PAGEMAP_SCAN on a process, or None (said aloud) on a kernel without it."""
    scan = PagemapScan(process.pid)
    try:
        scan(process.start, process.start + PAGE)
    except OSError as err:
        scan.close()
        note(f"no PAGEMAP_SCAN here: {err}")
        return None
    return scan
