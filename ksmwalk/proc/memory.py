"""The bytes of a live process's pages, read without making any: what is not present is not read.

Reading absent memory through /proc/PID/mem creates it. So 64 pages at a time are looked up in pagemap right before they are
read and right after: a page that went in between was made again by the reading (an empty one, where the process had let go of
it), which can't be helped but is counted. With the process stopped none can.

process_vm_readv() takes a third less time and is not used: it pins what it reads, for which the kernel gives a process a copy
of its own of each page that it shares by fork or by KSM.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np

from ..layout import PAGE_SHIFT
from ..signatures import BoolArray, I64Array, U8Array, U64Array
from . import _pread
from .errors import ProcessExited, not_allowed
from .gather import failed
from .pagemap import PAGEMAP_GAP, PM_PFN, PM_PRESENT

_PRESENT = np.uint64(PM_PRESENT)
_FRAME = np.uint64(PM_PFN)
_NOTHING = np.empty(0, np.uint64)
#: processes whose files are kept open at a time
OPEN_AT_A_TIME = 100


class OpenFiles:
    """The files of many processes, of which a few are open at a time."""

    def __init__(self, most: int = OPEN_AT_A_TIME):
        self._open: OrderedDict[LivePages, tuple[int, int, list[int]]] = OrderedDict()
        self._most = most
        self._lock = Lock()

    def take(self, pages: LivePages) -> tuple[int, int]:
        """pagemap and mem of a process, to be given back."""
        with self._lock:
            entry = self._open.pop(pages, None)
            if entry is None:
                entry = (*self._opened(pages), [0])
            entry[2][0] += 1
            self._open[pages] = entry
            self._close_unused(self._most)
            return entry[0], entry[1]

    def _opened(self, pages: LivePages) -> tuple[int, int]:
        try:
            return pages.open()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                raise
        # this process, or the machine, may have no more open: go on with fewer
        self._most = max(1, len(self._open) // 2)
        self._close_unused(0)
        return pages.open()

    def _close_unused(self, most: int) -> None:
        for old in [old for old in self._open if not self._open[old][2][0]][: max(0, len(self._open) - most)]:
            _close(self._open.pop(old))

    def give_back(self, pages: LivePages) -> None:
        with self._lock:
            self._open[pages][2][0] -= 1

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            while self._open:
                _close(self._open.popitem()[1])


def _close(entry: tuple[int, int, list[int]]) -> None:
    os.close(entry[0])
    os.close(entry[1])


class LivePages:
    """Present pages of a live process, by number: a `sources.keys.Pages`.

    Parameters
    ----------
    pid : int
    addr : uint64[n]
        Their addresses in bytes, ascending.
    pfn : uint64[n] or None
        Their frames, where these can be seen.
    files : OpenFiles

    Attributes
    ----------
    gone : int
        Pages that were no longer present right before they were to be read, so that they were not.
    made : int
        Pages that went between that look and the reading, which made empty ones of them.
    refused : int
        Pages that the kernel did not give.

    Models: /proc/PID/mem and pagemap of Linux 6.18. Differs: nothing known.
    """

    pid: int
    addr: U64Array
    pfn: U64Array | None
    files: OpenFiles
    gone: int
    made: int
    refused: int
    ended: bool

    def __init__(self, pid: int, addr: U64Array, pfn: U64Array | None, files: OpenFiles):
        self.pid, self.addr, self.pfn, self.files = pid, addr, pfn, files
        self.vpn: I64Array = (addr >> np.uint64(PAGE_SHIFT)).view(np.int64)
        self.gone = self.made = self.refused = 0
        self.ended = False
        self._by_scan = True
        self._between: Callable[[], object] | None = None

    @property
    def nr_pages(self) -> int:
        return len(self.addr)

    def open(self) -> tuple[int, int]:
        """File descriptors of pagemap and mem.

        Raises
        ------
        ProcessExited, PermissionError
        """
        opened = []
        for name in ("pagemap", "mem"):
            try:
                opened.append(os.open(f"/proc/{self.pid:d}/{name}", os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                for fd in opened:
                    os.close(fd)
                if error.errno in (errno.ENOENT, errno.ESRCH):
                    raise ProcessExited(self.pid, "ended while it was being read") from None
                if isinstance(error, PermissionError):
                    raise not_allowed(self.pid, name) from None
                raise
        return opened[0], opened[1]

    def read(self, which: I64Array, into: U8Array) -> BoolArray:
        """Read pages by number, ascending, into uint8[n, 4096]: which of them were there before, after, and readable.

        A process that has ended has none: that is no error here.
        """
        return self.read_folded(which, into, _NOTHING, _NOTHING)

    def read_folded(self, which: I64Array, into: U8Array, seeds: U64Array, hashes: U64Array) -> BoolArray:
        """The same, and hash what is read by the seeds of `_fold.h` into uint64[n] while it is in the processor's cache.

        Of what was not read the hash means nothing.
        """
        if self.ended:
            return np.zeros(len(which), bool)
        try:
            pagemap, mem = self.files.take(self)
        except ProcessExited:
            self.ended = True
            return np.zeros(len(which), bool)
        try:
            return self._read(pagemap, mem, which, into, seeds, hashes)
        except ProcessExited:
            self.ended = True
            return np.zeros(len(which), bool)
        finally:
            self.files.give_back(self)

    def _read(
        self, pagemap: int, mem: int, which: I64Array, into: U8Array, seeds: U64Array, hashes: U64Array
    ) -> BoolArray:
        vpn = self.vpn[which]
        before, after = np.empty(len(vpn), np.uint64), np.empty(len(vpn), np.uint64)
        read = np.empty(len(vpn), bool)
        looked = (before, after, read.view(np.uint8), seeds, hashes, self._between)
        odd = _pread.present(pagemap, mem, vpn, PAGEMAP_GAP, self._by_scan, into, *looked)
        if self._by_scan and odd in (-errno.ENOTTY, -errno.EINVAL):
            # Linux before 6.7
            self._by_scan = False
            odd = _pread.present(pagemap, mem, vpn, PAGEMAP_GAP, False, into, *looked)
        if odd < 0:
            raise failed(-odd, self.pid)
        if not odd:
            return read
        present, there = before & _PRESENT != 0, after & _PRESENT != 0
        made = read & there & self._made(before, after, into)
        self.gone += int(np.count_nonzero(~present))
        self.refused += int(np.count_nonzero(present & ~read))
        self.made += int(np.count_nonzero(made))
        held: BoolArray = read & there & ~made
        return held

    def _made(self, before: U64Array, after: U64Array, into: U8Array) -> BoolArray:
        """Which pages the reading has made: that are the shared zero page now, and were none before."""
        moved: BoolArray = (before ^ after) & _FRAME != 0
        if self._by_scan:
            moved &= after & _FRAME != 0
            return moved
        # what this kernel does not tell: what has another frame, if these can be seen, and is empty
        few = np.flatnonzero(moved)
        moved[few] = [not into[i].any() for i in few.tolist()]
        return moved
