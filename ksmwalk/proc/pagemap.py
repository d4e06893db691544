"""Which pages of a process are present: the PAGEMAP_SCAN ioctl, and what stands in for it on older kernels.

Nothing here reads the memory itself: reading absent memory would create it.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from dataclasses import dataclass

import numpy as np

from ..layout import PAGE_SHIFT
from ..signatures import I64Array, U64Array
from .errors import ProcessExited
from .gather import read_span
from .maps import VmaRecord

# Categories of PAGEMAP_SCAN (Linux 6.7 and later; GUARD 6.15).
PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6

# Bits of an entry of /proc/PID/pagemap.
PM_PFN = (1 << 55) - 1
PM_EXCLUSIVE = 1 << 56
PM_FILE = 1 << 61
PM_SWAP = 1 << 62
PM_PRESENT = 1 << 63

# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
# category_anyof_mask, return_mask; the request number is _IOWR('f', 16, struct pm_scan_arg).
_SCAN_ARG = struct.Struct("=12Q")
_PAGEMAP_SCAN = 3 << 30 | _SCAN_ARG.size << 16 | ord("f") << 8 | 16
_WALK_END = 4 * 8
_RETURN = PAGE_IS_FILE | PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_HUGE

REGIONS_PER_CALL = 1 << 16
PAGES_PER_READ = 1 << 17
#: records that cost about as much to read as the system call that is saved by reading them: absent pages are cheap for
#: the kernel
PAGEMAP_GAP = 256


@dataclass(slots=True)
class Regions:
    """Runs of present pages of equal categories, ascending: `start`, `end` in bytes, all uint64[n]."""

    start: U64Array
    end: U64Array
    categories: U64Array

    @property
    def nr_pages(self) -> int:
        return int((self.end - self.start).sum()) >> PAGE_SHIFT

    def pages(self) -> tuple[I64Array, U64Array]:
        """(page number, categories) of each present page, int64[nr_pages] ascending and uint64[nr_pages]."""
        lengths = ((self.end - self.start) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        before = np.cumsum(lengths) - lengths
        first = (self.start >> np.uint64(PAGE_SHIFT)).astype(np.int64) - before
        pages = np.repeat(first, lengths)
        pages += np.arange(len(pages))
        return pages, np.repeat(self.categories, lengths)


class ScanMissing(OSError):
    """The kernel has no PAGEMAP_SCAN."""


def scan_regions(
    fd: int, pid: int, start: int, end: int, regions_per_call: int = REGIONS_PER_CALL, any_of: int = PAGE_IS_PRESENT
) -> Regions:
    """The present pages of [start, end) as the PAGEMAP_SCAN ioctl on an open pagemap lists them, or those of `any_of`
    the given categories.

    Raises ScanMissing where the kernel has no such call, ProcessExited where the address space is gone.
    """
    vec = np.empty((regions_per_call, 3), np.uint64)
    found: list[U64Array] = []
    while start < end:
        arg = bytearray(
            _SCAN_ARG.pack(
                _SCAN_ARG.size, 0, start, end, 0, vec.ctypes.data, len(vec), 0, 0, 0, any_of, _RETURN
            )
        )
        try:
            n = fcntl.ioctl(fd, _PAGEMAP_SCAN, arg)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL) and not found:
                raise ScanMissing(error.errno, "this kernel has no PAGEMAP_SCAN (Linux 6.7 and later have)") from None
            if error.errno == errno.ESRCH:
                raise ProcessExited(pid, "ended while its pages were being looked for") from None
            raise
        found.append(vec[:n].copy())
        # A short answer means the end was reached. walk_end tells where to go on otherwise, but it may be stale:
        # at the last flush of the kernel's own buffer of 512 regions, in front of regions already handed out.
        if n < len(vec):
            break
        start = max(struct.unpack_from("=Q", arg, _WALK_END)[0], int(vec[n - 1, 1]))
    rows = np.concatenate(found) if found else np.empty((0, 3), np.uint64)
    return Regions(*(np.ascontiguousarray(rows[:, column]) for column in range(3)))


def read_regions(fd: int, pid: int, vmas: list[VmaRecord]) -> Regions:
    """The present pages of all mappings that have any, from the pagemap file: for kernels without PAGEMAP_SCAN.

    Absent pages cost time as well here (about 1.5 ns each), so a mapping whose resident size is 0 is passed over;
    the shared zero page does not count as resident and is missed in these.
    """
    pages, categories = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for vma in vmas:
        if not vma.rss or "pf" in vma.flags:
            continue
        for first in range(vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT, PAGES_PER_READ):
            last = min(first + PAGES_PER_READ, vma.end >> PAGE_SHIFT)
            entries = read_span(fd, first, last - first, pid)
            here = np.flatnonzero(entries >> np.uint64(63))
            if len(here):
                pages.append(here.astype(np.uint64) + np.uint64(first))
                file = entries[here] & np.uint64(PM_FILE) != 0
                categories.append(np.where(file, PAGE_IS_PRESENT | PAGE_IS_FILE, PAGE_IS_PRESENT).astype(np.uint64))
    return regions_of(np.concatenate(pages), np.concatenate(categories))


def regions_of(pages: U64Array, categories: U64Array) -> Regions:
    """Runs of neighbouring pages with equal categories; `pages` are page numbers, ascending."""
    if not len(pages):
        return Regions(pages, pages, categories)
    new = np.flatnonzero((np.diff(pages) != 1) | (np.diff(categories) != 0)) + 1
    first = np.concatenate(([0], new))
    last = np.concatenate((new, [len(pages)])) - 1
    shift = np.uint64(PAGE_SHIFT)
    return Regions(pages[first] << shift, (pages[last] + np.uint64(1)) << shift, categories[first])
