"""Mappings, loads and stores of a scenario, in the real kernel."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from typing import Any

from ..host import ADVICE
from ..layout import PAGE_SIZE as PAGE
from ..scenarios.kinds import HEAP_VPN
from . import worker
from .run_side import Side, errno_of

# numbers of x86-64, which the worker is made for
_CLOSE, _MMAP, _MPROTECT, _MUNMAP, _MREMAP, _MADVISE, _FTRUNCATE, _MEMFD_CREATE = 3, 9, 10, 11, 25, 28, 77, 319
_PIDFD_OPEN, _PROCESS_MADVISE = 434, 440
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANON = 1, 2, 0x10, 0x20
_OPTIONS = {"growsdown": 0x100, "locked": 0x2000, "noreserve": 0x4000, "populate": 0x8000}
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_MFD_CLOEXEC = 1
_BRK, _PRCTL, _PR_SET_MM, _PR_SET_MM_MAP = 12, 157, 35, 14
#: struct prctl_mm_map: code, data, heap, stack, arguments and environment from where to where, auxv and its size, a file
_MM_MAP = "=12QIi"
#: code and data below every heap, where nothing need be
_MM_LOWEST = (0x10000, 0x11000, 0x12000, 0x12000)


class Memory(Side):
    """Operations on mappings and on what is in them."""

    def do_mmap(self, name: str, vpn: int, n: int, options: dict[str, Any] | None = None) -> int:
        """Map anonymous memory, or a fresh memfd, at exactly this place."""
        options = options or {}
        flags = _MAP_FIXED | (_MAP_SHARED if options.get("shared") else _MAP_PRIVATE)
        flags |= sum(bit for key, bit in _OPTIONS.items() if options.get(key))
        prot = _prot(options.get("prot", "rw"))
        fd = -1
        if options.get("file"):
            fd = self.own_fd(name, _MEMFD_CREATE, [b"scenario\0", _MFD_CLOEXEC])
            if fd < 0:
                return fd
            self.pool.syscall(name, _FTRUNCATE, fd, n * PAGE)
        else:
            flags |= _MAP_ANON
        ret = errno_of(self.pool.syscall(name, _MMAP, vpn * PAGE, n * PAGE, prot, flags, fd, 0))
        if fd >= 0:
            self.pool.syscall(name, _CLOSE, fd)
        if ret == 0:
            self.live[name].add(vpn, n)
        return ret

    def do_brk(self, name: str, n: int) -> int:
        """Let the heap be of so many pages; it begins where all scenarios have it."""
        if self.pool.syscall(name, _BRK, 0) >= worker.LIMIT_VPN * PAGE:  # behind the worker: nobody has used it yet
            layout = struct.pack(_MM_MAP, *_MM_LOWEST, *[HEAP_VPN * PAGE] * 2, *[worker.LIMIT_VPN * PAGE] * 5, 0, 0, -1)
            if (ret := self.pool.call_with(name, _PRCTL, [_PR_SET_MM, _PR_SET_MM_MAP, layout, len(layout), 0])) < 0:
                return ret
        end = (HEAP_VPN + n) * PAGE
        self.live[name].add(HEAP_VPN, max(n, 1))
        return 0 if self.pool.syscall(name, _BRK, end) == end else -errno.ENOMEM

    def do_watch(self, name: str, vpn: int, n: int) -> int:
        """Show these pages as well."""
        self.live[name].add(vpn, n)
        return 0

    def do_munmap(self, name: str, vpn: int, n: int) -> int:
        """Unmap."""
        return self.pool.syscall(name, _MUNMAP, vpn * PAGE, n * PAGE)

    def do_mremap(
        self, name: str, vpn: int, n: int, new_n: int, new_vpn: int | None, options: dict[str, int] | None = None
    ) -> int:
        """Grow or shrink in place, or move."""
        flags = 0 if new_vpn is None else _MREMAP_MAYMOVE | _MREMAP_FIXED
        flags |= _MREMAP_DONTUNMAP | _MREMAP_MAYMOVE if (options or {}).get("dontunmap") else 0
        to = (new_vpn or 0) * PAGE
        ret = errno_of(self.pool.syscall(name, _MREMAP, vpn * PAGE, n * PAGE, new_n * PAGE, flags, to))
        # of several areas the first may have moved before one is refused
        self.live[name].add(vpn if new_vpn is None else new_vpn, new_n)
        return ret

    def do_mprotect(self, name: str, vpn: int, n: int, prot: str) -> int:
        """Protect."""
        return self.pool.syscall(name, _MPROTECT, vpn * PAGE, n * PAGE, _prot(prot))

    def do_madvise(self, name: str, vpn: int, n: int, advice: str) -> int:
        """Advise for one's own memory."""
        return self.pool.syscall(name, _MADVISE, vpn * PAGE, n * PAGE, ADVICE[advice])

    def do_advise(self, name: str, other: str, vpn: int, n: int, advice: str) -> int:
        """Advise for another's memory; 0 where all of it is."""
        fd = self.own_fd(name, _PIDFD_OPEN, [self.live[other].pid, 0])
        if fd < 0:
            return fd
        where = (vpn * PAGE).to_bytes(8, "little") + (n * PAGE).to_bytes(8, "little")
        ret = self.pool.call_with(name, _PROCESS_MADVISE, [fd, where, 1, ADVICE[advice], 0])
        self.close_fds(name, (fd,))
        return 0 if ret == n * PAGE else ret

    # ------------------------------------------------------------ loads and stores

    def do_fill(self, name: str, vpn: int, contents: list[int | None]) -> int:
        """Store contents page by page."""
        pairs = [[vpn + i, content] for i, content in enumerate(contents) if content is not None]
        return self.do_write(name, pairs)

    def do_write(self, name: str, pairs: list[list[int]]) -> int:
        """Store contents, in this order."""
        return self.pool.do(name, worker.STORE, [word for pair in pairs for word in pair])

    def do_touch(self, name: str, vpns: list[int]) -> int:
        """Load a byte of each."""
        return self.pool.do(name, worker.TOUCH, vpns)

    def do_memset(self, name: str, vpn: int, byte: int, length: int) -> int:
        """Store equal bytes."""
        return self.pool.do(name, worker.MEMSET, [vpn * PAGE, byte, length])

    def do_store(self, name: str, vpn: int, offset: int, stored: list[int]) -> int:
        """Store bytes into a page, those that are equal at once."""
        at = vpn * PAGE + offset
        for byte, run in itertools.groupby(stored):
            length = len(list(run))
            if (ret := self.pool.do(name, worker.MEMSET, [at, byte, length])) < 0:
                return ret
            at += length
        return 0

    def do_pwrite(self, name: str, pairs: list[list[int]]) -> int:
        """Store as a debugger does."""
        try:
            fd = os.open(f"/proc/{self.live[name].pid}/mem", os.O_RDWR)
            try:
                for vpn, content in pairs:
                    os.pwrite(fd, content.to_bytes(8, "big") + bytes(PAGE - 8), vpn * PAGE)
            finally:
                os.close(fd)
        except OSError as error:
            return -(error.errno or 0)
        return 0


def _prot(text: str) -> int:
    return 0 if text == "none" else sum({"r": 1, "w": 2, "x": 4}[letter] for letter in text)
