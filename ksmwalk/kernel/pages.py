"""The present pages of a process with frame and kind, from pagemap and kpageflags, for comparison with the model."""

from __future__ import annotations

import os

import numpy as np

from ..layout import PAGE_SHIFT
from ..proc.frames import Kpf, bits_lie, frame_records, has
from ..proc.gather import read_span
from ..proc.pagemap import PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PM_PFN, PM_PRESENT, PM_SWAP, scan_regions
from ..scenarios.records import ANON, HUGE, KSM, OTHER, SWAP, ZERO

#: larger spans are not read entry by entry: their present parts are asked for first
_LARGE = 1 << 14
#: entries between two wanted ones that are cheaper to read along than to make another call for
_GAP = 256
#: what stands for the frame of a swap entry or a marker
NO_FRAME = -1


class FrameKinds:
    """/proc/kpageflags, kept open."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/kpageflags", os.O_RDONLY)
        #: whether every anonymous page has KSM's bit
        self.lies: bool = bool(bits_lie())

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
            `ANON`, `KSM`, `HUGE`, `ZERO` or `OTHER`; `SWAP` for `NO_FRAME`.
        """
        none = frames == NO_FRAME
        if none.any():
            kind = np.full(len(frames), SWAP)
            kind[~none] = self(frames[~none])
            return kind
        flags = frame_records(self._fd, frames, gap=_GAP)
        kind = np.full(len(frames), OTHER)
        anon = has(flags, Kpf.ANON)
        kind[anon] = ANON
        kind[anon & has(flags, Kpf.THP)] = HUGE
        ksm = has(flags, Kpf.KSM)
        if self.lies:
            # those that are KSM's are small and dirty, without swap; so are parts of huge pages that were split
            ksm &= has(flags, Kpf.DIRTY) & ~has(flags, Kpf.THP)
        kind[ksm] = KSM
        kind[has(flags, Kpf.ZERO_PAGE)] = ZERO
        return kind


def present(
    fd: int, spans: list[tuple[int, int]], pid: int, swapped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the present pages of some spans of an address space.

    Parameters
    ----------
    fd : int
        An open /proc/PID/pagemap.
    spans : list of (vpn, n)
        Ascending and apart.
    pid : int
        Named if it ends meanwhile.
    swapped : bool
        Whether swap entries and markers are wanted as well.

    Returns
    -------
    (int64[k], int64[k])
        Page numbers, ascending, and frames, `NO_FRAME` for a swap entry or a marker.

    Raises
    ------
    ScanMissing
        A large span on a kernel without PAGEMAP_SCAN.
    ProcessExited
        The process is gone.
    """
    parts = []
    for vpn, n in _coalesced(spans):
        parts += [(vpn, n)] if n <= _LARGE else _regions(fd, pid, vpn, n, PAGE_IS_PRESENT | swapped * PAGE_IS_SWAPPED)
    vpns, frames = [], []
    for vpn, n in parts:
        entries = read_span(fd, vpn, n, pid)
        here = np.flatnonzero(entries & np.uint64(PM_PRESENT | swapped * PM_SWAP))
        vpns.append(here + vpn)
        there = entries[here] & np.uint64(PM_PRESENT) != 0
        frames.append(np.where(there, (entries[here] & np.uint64(PM_PFN)).astype(np.int64), NO_FRAME))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found, frame = np.concatenate(vpns), np.concatenate(frames)
    # what lies between two spans was read along with them, and is not asked for
    starts = np.array([start for start, _ in spans])
    ends = np.array([start + n for start, n in spans])
    asked = found < ends[np.searchsorted(starts, found, "right") - 1]
    return found[asked], frame[asked]


def _coalesced(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for vpn, n in spans:
        if joined and vpn - sum(joined[-1]) <= _GAP and vpn + n - joined[-1][0] <= _LARGE:
            joined[-1] = joined[-1][0], vpn + n - joined[-1][0]
        else:
            joined.append((vpn, n))
    return joined


def _regions(fd: int, pid: int, vpn: int, n: int, any_of: int) -> list[tuple[int, int]]:
    """Return the parts of a span that are wanted by PAGEMAP_SCAN."""
    found = scan_regions(fd, pid, vpn << PAGE_SHIFT, vpn + n << PAGE_SHIFT, any_of=any_of)
    shift = np.uint64(PAGE_SHIFT)
    starts, lengths = found.start >> shift, (found.end - found.start) >> shift
    return list(zip(starts.tolist(), lengths.tolist(), strict=True))


class Process:
    """One live process: what of its address space the scenario may have used, its files in /proc, what it holds.

    Parameters
    ----------
    pid : int
    spans : dict of int to int, optional
        vpn -> n of every mapping ever made.
    shown_under : str, optional
        In whose memory it runs, where that is not its own: the pages are shown under that name.
    """

    def __init__(self, pid: int, spans: dict[int, int] | None = None, shown_under: str | None = None):
        self.pid = pid
        self.shown_under = shown_under
        # those who share a memory share its mappings
        self.spans: dict[int, int] = spans if spans is not None and shown_under else dict(spans or {})
        self.child: str | None = None  # whose exec or end vfork waits for
        self.descriptors: dict[tuple[str, int], tuple[int, ...]] = {}  # of pins and the like, by kind and vpn
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
