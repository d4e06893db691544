"""userfaultfd: areas watched, pages protected, placed and moved."""

from __future__ import annotations

import errno

import numpy as np

from ..gate import as_array, as_flag, as_int
from ..layout import PAGE_SIZE, Switch, Vm
from ..signatures import Integer, Integers, U64Array
from . import _doors, _watched
from .door import Door, refuse

_MODES = {"missing": int(Vm.UFFD_MISSING), "wp": int(Vm.UFFD_WP), "minor": int(Vm.UFFD_MINOR)}
_ASYNC = int(Vm.UFFD_ASYNC)
_MOST_WATCHERS = 0xFFFF


class Watched(Door):
    """The userfaultfds of an address space, known by numbers of yours. Nobody reads them: an access that would wait fails."""

    def _watched_range(self, addr: int, length: int, what: str) -> tuple[int, int]:
        """Whole pages, at least one, within user memory."""
        length = as_int(length, "length")
        start, end = self._range(addr, length, what)
        if length % PAGE_SIZE or start == end or end > self.task_size:
            raise refuse(errno.EINVAL, f"{what} {start:#x}, length {length:#x}")
        return start, end

    def uffd_register(
        self,
        addr: int,
        length: int,
        *,
        missing: bool = False,
        wp: bool = False,
        minor: bool = False,
        asynchronous: bool = False,
        userfaultfd: int = 0,
    ) -> None:
        """Watch the areas in [addr, addr + length).

        Parameters
        ----------
        addr, length : int
            Bytes, whole pages. Holes are passed over.
        missing : bool
            An access where no page is (of shared memory and files: where the object has none) waits: it fails.
        wp : bool
            Pages can be protected, see `uffd_protect`: a store to one waits.
        minor : bool
            An access to a page that the object has, but is not mapped, waits.
        asynchronous : bool
            A store to a protected page does not wait, but takes its protection away (UFFD_FEATURE_WP_ASYNC).
        userfaultfd : int
            Number of the one that watches, 0 to 65,535: areas of two do not become one.

        Raises
        ------
        OSError
            EINVAL: nothing mapped there, no mode, or an area that can't be watched so; `asynchronous` on kernels that do not
            have it. EBUSY: another userfaultfd watches some of it. Nothing has changed.

        Models: UFFDIO_REGISTER of Linux 6.18, with UFFD_FEATURE_SIGBUS and UFFD_FEATURE_WP_UNPOPULATED.
        Differs: EFAULT stands for SIGBUS; a private file is taken for one of memfd_create.
        """
        modes = {"missing": missing, "wp": wp, "minor": minor}
        flags = sum(_MODES[name] for name, on in modes.items() if as_flag(on, name))
        asynchronous = as_flag(asynchronous, "asynchronous")
        start, end = self._watched_range(addr, length, "uffd_register")
        if not flags:
            raise refuse(errno.EINVAL, "uffd_register without a mode")
        if asynchronous and self.host.kernel.switches & Switch.OLD_UFFD:
            raise refuse(errno.EINVAL, f"UFFD_FEATURE_WP_ASYNC in Linux {self.host.kernel.version}")
        if wp and asynchronous:
            flags |= _ASYNC
        watcher = as_int(userfaultfd, "userfaultfd", 0, _MOST_WATCHERS)
        self._check(_watched.watch(self._world, self._at(), start, end, flags, watcher), f"uffd_register {start:#x}-{end:#x}")

    def uffd_unregister(self, addr: int, length: int, *, userfaultfd: int = 0) -> None:
        """Watch it no more: protection and markers go.

        Raises
        ------
        OSError
            EINVAL: nothing mapped there, an area that can't be watched, or one that another userfaultfd watches.

        Models: UFFDIO_UNREGISTER of Linux 6.18. Differs: nothing known.
        """
        start, end = self._watched_range(addr, length, "uffd_unregister")
        watcher = as_int(userfaultfd, "userfaultfd", 0, _MOST_WATCHERS)
        self._check(_watched.watch(self._world, self._at(), start, end, 0, watcher), f"uffd_unregister {start:#x}-{end:#x}")

    def uffd_protect(self, addr: int, length: int, on: bool = True) -> None:
        """Protect pages from stores, those that are not there by markers; off: let stores through again.

        Raises
        ------
        OSError
            ENOENT: nothing mapped there, or not registered with `wp`; what lies before it is done.

        Models: UFFDIO_WRITEPROTECT of Linux 6.18. Differs: nothing known.
        """
        on = as_flag(on, "on")
        start, end = self._watched_range(addr, length, "uffd_protect")
        self._check(_watched.protect(self._world, self._at(), start, end, on), f"uffd_protect {start:#x}-{end:#x}")

    def uffd_copy(self, addr: int, keys: Integer | Integers, *, wp: bool = False) -> None:
        """Put pages in place, exclusive ones as a store makes them; the first that fails is the last.

        Parameters
        ----------
        addr : int
            Bytes, page aligned.
        keys : int, or array of uint64
            Content of the page, or of each of the pages from `addr` on.
        wp : bool
            Protected.

        Raises
        ------
        OSError
            ENOENT: not watched; EEXIST: there is a page; EINVAL: `wp` without having been registered for it; EFAULT:
            beyond the end of a file.

        Models: UFFDIO_COPY of Linux 6.18, one page a call. Differs: not of hugetlb.
        """
        wp = as_flag(wp, "wp")
        if not isinstance(keys, (list, tuple)) and not (isinstance(keys, np.ndarray) and keys.ndim):
            keys = [as_int(keys, "keys")]
        keys = as_array(keys, "keys")
        if len(keys):
            start, _ = self._watched_range(addr, len(keys) * PAGE_SIZE, "uffd_copy")
            self._check(_watched.place(self._world, self._at(), start, len(keys), keys, wp), f"uffd_copy {start:#x}")

    def uffd_zero(self, addr: int, length: int) -> None:
        """Put the zero page in place, into shared memory empty pages; the first that fails is the last.

        Raises
        ------
        OSError
            As `uffd_copy`; EEXIST at a marker, too.

        Models: UFFDIO_ZEROPAGE of Linux 6.18, one page a call. Differs: not of hugetlb.
        """
        start, end = self._watched_range(addr, length, "uffd_zero")
        self._check(
            _watched.place(self._world, self._at(), start, (end - start) // PAGE_SIZE, None, False), f"uffd_zero {start:#x}"
        )

    def uffd_move(self, to: int, addr: int, length: int, *, userfaultfd: int = 0) -> None:
        """Move pages [addr, addr + length) to `to`; the first that fails is the last.

        A huge page goes whole where all of it is to move and nothing ever was in its place; else it is split first.
        Protection does not go along.

        Raises
        ------
        OSError
            EINVAL: not private anonymous memory with the same permissions on both sides and locked alike, not within one
            area, not writable, or `to` not watched by this userfaultfd; ENOENT: no area, or no page; EEXIST: there is a
            page, or a marker; EBUSY: a KSM page, or one that is not exclusive (shared by fork); EFAULT: a marker. EINVAL
            on kernels that do not have it.

        Models: UFFDIO_MOVE of Linux 6.18. Differs: nothing known.
        """
        if self.host.kernel.switches & Switch.OLD_UFFD:
            raise refuse(errno.EINVAL, f"UFFDIO_MOVE in Linux {self.host.kernel.version}")
        start, end = self._watched_range(addr, length, "uffd_move")
        to, _ = self._watched_range(as_int(to, "to"), length, "uffd_move to")
        watcher = as_int(userfaultfd, "userfaultfd", 0, _MOST_WATCHERS)
        code = _watched.move(self._world, self._at(), to, start, (end - start) // PAGE_SIZE, watcher)
        self._check(code, f"uffd_move {start:#x}-{end:#x} to {to:#x}")

    def uffd_wp(self, addr: int, length: int, on: bool = True) -> None:
        """Register the range with a userfaultfd and write-protect its present pages (off: let stores through again).

        Models: UFFDIO_REGISTER and UFFDIO_WRITEPROTECT of Linux 6.18 without UFFD_FEATURE_WP_UNPOPULATED.
        Differs: whoever watches it already goes on; a store fails with EFAULT.
        """
        on = as_flag(on, "on")
        start, end = self._user_range(addr, length, "uffd_wp")
        self._check(_doors.uffd_wp(self._world, self.index, start, end, on), f"uffd_wp {start:#x}-{end:#x}")

    def absent_entries(self) -> U64Array:
        """Where a page is not present, but its entry is not empty either.

        Returns
        -------
        ndarray of uint64, shape (n,)
            Addresses of pages of 4 KiB, ascending: swap entries, markers of userfaultfd, guards.

        Models: what /proc/PID/pagemap of Linux 6.18 calls swapped. Differs: nothing known.
        """
        with self._world:
            n = _watched.absent_entries(self._world, self._at(), None)
            out = np.empty(n, np.uint64)
            _watched.absent_entries(self._world, self._at(), out)
        return out
