"""What of an address space was touched."""

from __future__ import annotations

import numpy as np

from ..gate import MAX_U64, as_flag, as_int
from ..layout import PAGE_SIZE
from ..signatures import U64Array
from . import _touched
from .contents import Contents
from .door import up


class Touched(Contents):
    """Accessed and dirty bits, asked and cleared."""

    def touched(self, start: int = 0, end: int = MAX_U64, *, written: bool = False) -> U64Array:
        """Find the pages that were accessed since `clear_touched`, or since they are there.

        Parameters
        ----------
        start, end : int
            Bytes, half-open: of the pages that it reaches into.
        written : bool
            Only those stored to.

        Returns
        -------
        ndarray of uint64, shape (n,)
            Addresses of pages of 4 KiB, ascending; of a huge page, whose bits go for all of it, 512.

        Raises
        ------
        BadEntryError
            A page-table entry written by hand can't be followed.

        Models: the accessed bits behind "Referenced" of /proc/PID/smaps, and with `written` the soft-dirty bits of
        /proc/PID/pagemap, of Linux 6.18. Differs: zero pages count as accessed, too, of which smaps says nothing; a page
        that KSM merged since then counts as not written; an area made since then counts only page by page, as it is
        written to. As in Linux a fork's child takes over what was written, and nothing that was accessed.

        Examples
        --------
        >>> mm = ksmwalk.Host(4096).new_mm()
        >>> at = mm.mmap(16384, 0x10000)
        >>> mm.write(at, [1, 2]), mm.read(at + 8192)
        (None, 0)
        >>> mm.touched().tolist(), mm.touched(written=True).tolist()
        ([65536, 69632, 73728], [65536, 69632])
        >>> mm.clear_touched(), mm.write(at, 5), mm.touched().tolist()
        (None, None, [65536])
        """
        (start, end), written = self._span(start, end), as_flag(written, "written")
        with self._world:
            n = self._check(_touched.touched(self._world, self._at(), start, end, written, None), "touched")
            out = np.empty(n, np.uint64)
            self._check(_touched.touched(self._world, self._at(), start, end, written, out), "touched")
        return out

    def clear_touched(self, start: int = 0, end: int = MAX_U64) -> None:
        """Forget what was touched: from now on no page counts as accessed or written to until it is again.

        Nothing else changes: no store takes a fault for it, and KSM, forks and mprotect do what they would have done.

        Parameters
        ----------
        start, end : int
            Bytes, half-open: of the pages that it reaches into, huge ones as a whole.

        Models: 1 and 4 written to /proc/PID/clear_refs of Linux 6.18. Differs: a range can be chosen; pages are not
        write-protected, the store itself is noticed.
        """
        start, end = self._span(start, end)
        self._check(_touched.clear(self._world, self._at(), start, end), "clear_touched")

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """Whole pages, below the end of what page tables can map."""
        self._at()
        start, end = as_int(start, "start"), as_int(end, "end")
        return start & -PAGE_SIZE, min(up(end), 1 << 57)
