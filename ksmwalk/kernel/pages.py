"""The present pages of a process with frame and kind, from pagemap and kpageflags, for comparison with the model."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

import numpy as np

from ..scenarios.records import ANON, HUGE, KSM, OTHER, ZERO

_PFN = (1 << 55) - 1
_PRESENT = 63
_KPF_ANON, _KPF_KSM, _KPF_THP, _KPF_ZERO = 12, 21, 22, 24

#: larger spans are not read entry by entry: their present parts are asked for first
_LARGE = 1 << 14
#: entries between two wanted ones that are cheaper to read along than to make another call for
_GAP = 256

_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_PRESENT = 1 << 3


class FrameKinds:
    """/proc/kpageflags, kept open."""

    def __init__(self):
        self._fd = os.open("/proc/kpageflags", os.O_RDONLY)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return the kind of each frame.

        Parameters
        ----------
        frames : int64[n]

        Returns
        -------
        int64[n]
            `ANON`, `KSM`, `HUGE`, `ZERO` or `OTHER`.
        """
        if not len(frames):
            return np.empty(0, np.int64)
        wanted, back = np.unique(frames, return_inverse=True)
        flags = np.empty(len(wanted), np.uint64)
        cuts = np.flatnonzero(np.diff(wanted) > _GAP) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(wanted)], strict=True):
            first, last = int(wanted[start]), int(wanted[stop - 1])
            data = os.pread(self._fd, 8 * (last - first + 1), 8 * first)
            flags[start:stop] = np.frombuffer(data, np.uint64)[wanted[start:stop] - first]
        kind = np.full(len(wanted), OTHER)
        anon = _bit(flags, _KPF_ANON)
        kind[anon] = ANON
        kind[anon & _bit(flags, _KPF_THP)] = HUGE
        kind[_bit(flags, _KPF_KSM)] = KSM
        kind[_bit(flags, _KPF_ZERO)] = ZERO
        return kind[back]


def _bit(words: np.ndarray, number: int) -> np.ndarray:
    return (words >> np.uint64(number)) & np.uint64(1) == 1


def present(fd: int, spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the present pages of some spans of an address space.

    Parameters
    ----------
    fd : int
        An open /proc/PID/pagemap.
    spans : list of (vpn, n)
        Ascending and apart.

    Returns
    -------
    (int64[k], int64[k])
        Page numbers, ascending, and frames.

    Raises
    ------
    OSError
        A large span on a kernel without PAGEMAP_SCAN (ENOTTY), or the process is gone.
    """
    parts = []
    for vpn, n in _coalesced(spans):
        parts += [(vpn, n)] if n <= _LARGE else _regions(fd, vpn, n)
    vpns, frames = [], []
    for vpn, n in parts:
        entries = np.frombuffer(os.pread(fd, 8 * n, 8 * vpn), np.uint64)
        here = np.flatnonzero(_bit(entries, _PRESENT))
        vpns.append(here + vpn)
        frames.append((entries[here] & np.uint64(_PFN)).astype(np.int64))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(vpns), np.concatenate(frames)


def _coalesced(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for vpn, n in spans:
        if joined and vpn - sum(joined[-1]) <= _GAP and vpn + n - joined[-1][0] <= _LARGE:
            joined[-1] = joined[-1][0], vpn + n - joined[-1][0]
        else:
            joined.append((vpn, n))
    return joined


def _regions(fd: int, vpn: int, n: int) -> list[tuple[int, int]]:
    """Return the present parts of a span by PAGEMAP_SCAN."""
    found: list[tuple[int, int]] = []
    room = 512
    vec = ctypes.create_string_buffer(24 * room)
    start, end = vpn << 12, (vpn + n) << 12
    while start < end:
        arg = bytearray(
            struct.pack(
                "=12Q", 96, 0, start, end, 0, ctypes.addressof(vec), room, 0, 0, 0, _PAGE_IS_PRESENT, _PAGE_IS_PRESENT
            )
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, arg)
        for i in range(count):
            low, high, _ = struct.unpack_from("=3Q", vec, 24 * i)
            found.append((low >> 12, (high - low) >> 12))
        if count < room:
            break
        # walk_end may be stale where a call found many regions
        start = max(struct.unpack_from("=Q", arg, 32)[0], sum(found[-1]) << 12)
    return found


class Process:
    """One live process: what of its address space the scenario may have used, and its files in /proc."""

    def __init__(self, pid: int, spans: dict[int, int] | None = None):
        self.pid = pid
        self.spans = dict(spans or {})  # vpn -> n of every mapping ever made
        self._opened: tuple[int, int] | None = None

    def files(self) -> tuple[int, int]:
        """Return open pagemap and ksm_stat, -1 where the kernel has none."""
        if self._opened is None:
            pagemap = os.open(f"/proc/{self.pid}/pagemap", os.O_RDONLY)
            try:
                stat = os.open(f"/proc/{self.pid}/ksm_stat", os.O_RDONLY)
            except FileNotFoundError:
                stat = -1
            self._opened = pagemap, stat
        return self._opened

    def close(self) -> None:
        """Close the files; they are opened anew when wanted."""
        for fd in self._opened or ():
            if fd >= 0:
                os.close(fd)
        self._opened = None

    def add(self, vpn: int, n: int) -> None:
        """Note a mapping."""
        self.spans[vpn] = max(n, self.spans.get(vpn, 0))

    def disjoint(self) -> list[tuple[int, int]]:
        """Return all spans, ascending and apart."""
        out: list[tuple[int, int]] = []
        for vpn, n in sorted(self.spans.items()):
            if out and vpn <= sum(out[-1]):
                out[-1] = out[-1][0], max(sum(out[-1]), vpn + n) - out[-1][0]
            else:
                out.append((vpn, n))
        return out
