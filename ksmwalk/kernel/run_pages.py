"""What holds pages, in the real kernel: locks, pins, userfaultfd."""

from __future__ import annotations

import struct

from ..layout import PAGE_SIZE as PAGE
from ..scenarios.kinds import UFFD_BITS
from . import worker
from .run_side import Side

_IOCTL, _MLOCK, _MUNLOCK, _MLOCKALL, _MUNLOCKALL, _MLOCK2 = 16, 149, 150, 151, 152, 325
_VMSPLICE, _PIPE2, _USERFAULTFD, _IO_URING_SETUP, _IO_URING_REGISTER = 278, 293, 323, 425, 427
_CLOEXEC = 0o2000000
_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_IO_URING_PARAMS_BYTES = 120
_EAGAIN = 11

# userfaultfd: requests, and of what its API offers: no store to a protected page waits (there is nobody to answer), a
# touch of a missing page fails, UFFDIO_MOVE is there
_API, _REGISTER, _UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_COPY, _ZEROPAGE, _MOVE, _WRITEPROTECT = 0xC028AA03, 0xC020AA04, 0xC028AA05, 0xC018AA06
_SIGBUS, _WP_UNPOPULATED, _WP_ASYNC, _CAN_MOVE = 1 << 7, 1 << 13, 1 << 15, 1 << 16
_FEATURES = (_SIGBUS | _WP_UNPOPULATED | _WP_ASYNC | _CAN_MOVE, _SIGBUS | _WP_ASYNC | _WP_UNPOPULATED, _SIGBUS)
#: struct uffdio_copy
_COPY_WORDS, _COPY_WP = 5, 2


class Held(Side):
    """Operations that lock, pin or watch pages."""

    def do_mlock(self, name: str, vpn: int, n: int) -> int:
        """Lock and populate."""
        return self.pool.syscall(name, _MLOCK, vpn * PAGE, n * PAGE)

    def do_mlock2(self, name: str, vpn: int, n: int, flags: int) -> int:
        """Lock as the flags say."""
        return self.pool.syscall(name, _MLOCK2, vpn * PAGE, n * PAGE, flags)

    def do_munlock(self, name: str, vpn: int, n: int) -> int:
        """Unlock."""
        return self.pool.syscall(name, _MUNLOCK, vpn * PAGE, n * PAGE)

    def do_mlockall(self, name: str, flags: int) -> int:
        """Lock all there is, or will be."""
        return self.pool.syscall(name, _MLOCKALL, flags)

    def do_munlockall(self, name: str) -> int:
        """Unlock all."""
        return self.pool.syscall(name, _MUNLOCKALL)

    # ------------------------------------------------------------ pins

    def do_pin(self, name: str, vpn: int) -> int:
        """Splice a page into a pipe of the process."""
        # both ends in one word: the kernel writes two ints
        ends = self.pool.call_with(name, _PIPE2, [bytes(8), _CLOEXEC], answer=0)
        if ends < 0:
            return ends
        fds = ends & 0xFFFFFFFF, ends >> 32
        ret = self.pool.call_with(name, _VMSPLICE, [fds[1], struct.pack("=2Q", vpn * PAGE, PAGE), 1, 0])
        if ret != PAGE:
            self.close_fds(name, fds)
            return ret
        self._give_back(name, ("pin", vpn))
        self.live[name].descriptors["pin", vpn] = fds
        return 0

    def do_unpin(self, name: str, vpn: int) -> int:
        """Throw the pipe away."""
        return self._give_back(name, ("pin", vpn))

    def do_dmapin(self, name: str, vpn: int, n: int) -> int:
        """Register pages as a buffer for input and output."""
        ring = self.own_fd(name, _IO_URING_SETUP, [1, bytes(_IO_URING_PARAMS_BYTES)])
        if ring < 0:
            return ring
        where = struct.pack("=2Q", vpn * PAGE, n * PAGE)
        ret = self.pool.call_with(name, _IO_URING_REGISTER, [ring, _REGISTER_BUFFERS, where, 1])
        if ret < 0:
            self.close_fds(name, (ring,))
            return ret
        self.do_dmaunpin(name, vpn)
        self.live[name].descriptors["dma", vpn] = (ring,)
        return 0

    def do_dmaunpin(self, name: str, vpn: int) -> int:
        """Take it back; not left to the end of the ring, which comes some time after it is closed."""
        for ring in self.live[name].descriptors.get(("dma", vpn), ()):
            self.pool.syscall(name, _IO_URING_REGISTER, ring, _UNREGISTER_BUFFERS, 0, 0)
        return self._give_back(name, ("dma", vpn))

    def _give_back(self, name: str, what: tuple[str, int]) -> int:
        self.close_fds(name, self.live[name].descriptors.pop(what, ()))
        return 0

    # ------------------------------------------------------------ userfaultfd

    def do_uffd_wp(self, name: str, vpn: int, n: int) -> int:
        """Register and protect, by a userfaultfd for this alone."""
        return self.pool.do(name, worker.UFFD_WP, [vpn * PAGE, n * PAGE])

    def _uffd(self, name: str) -> int:
        """The process's userfaultfd, or -errno."""
        known = self.live[name].descriptors.get(("uffd", 0))
        if known is not None:
            return known[0]
        error = 0
        for features in _FEATURES:
            fd = self.own_fd(name, _USERFAULTFD, [_CLOEXEC])
            if fd < 0:
                return fd
            error = self.pool.call_with(name, _IOCTL, [fd, _API, struct.pack("=3Q", 0xAA, features, 0)])
            if error == 0:
                self.live[name].descriptors["uffd", 0] = (fd,)
                return fd
            # one that was asked for too much is of no more use
            self.close_fds(name, (fd,))
        return error

    def _request(self, name: str, request: int, *words: int, answer: int | None = None) -> int:
        fd = self._uffd(name)
        if fd < 0:
            return fd
        return self.pool.call_with(name, _IOCTL, [fd, request, struct.pack(f"={len(words)}q", *words)], answer)

    def do_uffd(self, name: str, vpn: int, n: int, modes: dict[str, int]) -> int:
        """Register."""
        mode = sum(bit for key, bit in UFFD_BITS.items() if modes.get(key))
        return self._request(name, _REGISTER, vpn * PAGE, n * PAGE, mode, 0)

    def do_uffd_unregister(self, name: str, vpn: int, n: int) -> int:
        """Unregister."""
        return self._request(name, _UNREGISTER, vpn * PAGE, n * PAGE)

    def do_uffd_protect(self, name: str, vpn: int, n: int, on: int) -> int:
        """Protect, or not any more."""
        return self._request(name, _WRITEPROTECT, vpn * PAGE, n * PAGE, on)

    def do_uffd_copy(self, name: str, vpn: int, contents: list[int], options: dict[str, int] | None = None) -> int:
        """Place pages with contents; the first that fails is the last."""
        fd = self._uffd(name)
        mode = _COPY_WP if (options or {}).get("wp") else 0
        ret = min(fd, 0)
        for place, content in enumerate(contents):
            if ret < 0:
                break
            ret = self._copy(name, fd, (vpn + place) * PAGE, content, mode)
        return ret

    def _copy(self, name: str, fd: int, addr: int, content: int, mode: int) -> int:
        page = content.to_bytes(8, "big") + bytes(PAGE - 8)
        # the page stands behind the structure
        head = struct.pack("=5q", addr, _COPY_WORDS * 8, PAGE, mode, 0)
        return self.pool.call_with(name, _IOCTL, [fd, _COPY, head + page], pointer=1)

    def do_uffd_zero(self, name: str, vpn: int, n: int) -> int:
        """Place zero pages; the first that fails is the last."""
        for place in range(vpn, vpn + n):
            if (ret := self._request(name, _ZEROPAGE, place * PAGE, PAGE, 0, 0)) < 0:
                return ret
        return 0

    def do_uffd_move(self, name: str, vpn: int, source: int, n: int) -> int:
        """Move pages here; the first that fails is the last."""
        done = 0
        while done < n:
            words = (vpn + done) * PAGE, (source + done) * PAGE, (n - done) * PAGE, 0, 0
            moved = self._request(name, _MOVE, *words, answer=4)
            if moved <= 0:
                return moved or -_EAGAIN
            done += moved // PAGE
        return 0
