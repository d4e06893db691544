"""Whose memory it is: each page's part of its frame, before and after merging, by process, mapping or any group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..gate import counted
from ..layout import PAGE_SHIFT, PAGE_SIZE, Frame
from ..signatures import BoolArray, I64Array, RecordArray, U64Array
from ..sources.memory import LoadedMemory

F64Array = NDArray[np.float64]


def frames_of(loaded: LoadedMemory, number: int) -> I64Array:
    """The frame that each captured page of a process has in the Host now.

    Parameters
    ----------
    loaded : LoadedMemory
    number : int
        Index of the process in the capture.

    Returns
    -------
    int64[nr_pages]
        0 for the shared zero page.

    Models: frame numbers of /proc/PID/pagemap of Linux 6.18. Differs: nothing known.
    """
    addr: U64Array = loaded.capture.processes[number].addr
    if not len(addr):
        return np.empty(0, np.int64)
    runs = loaded.mms[number].tables.mappings(runs=True)
    many = _pages_of_runs(runs, addr)
    if many is None:
        at = np.searchsorted(runs["addr"], addr, "right") - 1
        found: I64Array = (runs["pfn"][at] + ((addr - runs["addr"][at]) >> np.uint64(PAGE_SHIFT))).astype(np.int64)
        return found
    # frame less page number stands still along a run
    ahead = runs["pfn"] - (runs["addr"] >> np.uint64(PAGE_SHIFT))
    frames: U64Array = np.repeat(ahead, many) if len(ahead) < len(addr) else ahead
    frames += addr >> np.uint64(PAGE_SHIFT)
    return frames.view(np.int64)


def _pages_of_runs(runs: RecordArray, addr: U64Array) -> I64Array | None:
    """How many pages each run has, if these are all those at `addr` and no others: int64[runs]."""
    many = runs["nr"].astype(np.int64) << (runs["level"].astype(np.int64) - 1) * 9
    last = np.cumsum(many) - 1
    if not len(runs) or last[-1] + 1 != len(addr):
        return None
    # a run whose first and last page are there has all of them there
    first = runs["addr"]
    whole = (addr[last + 1 - many] == first) & (addr[last] == first + ((many - 1) << PAGE_SHIFT).view(np.uint64))
    return many if whole.all() else None


def merged_pages(loaded: LoadedMemory, number: int, frames: I64Array | None = None) -> BoolArray:
    """Which captured pages of a process are KSM's in the Host now, or have become zero pages.

    Parameters
    ----------
    loaded : LoadedMemory
    number : int
        Index of the process in the capture.
    frames : int64[nr_pages], optional
        `frames_of` it, where that is known.

    Returns
    -------
    bool[nr_pages]

    Models: KPF_KSM of /proc/kpageflags of Linux 6.18. Differs: nothing known.
    """
    one = loaded.capture.processes[number]
    flags = loaded.host.frames.flags[frames_of(loaded, number) if frames is None else frames]
    merged: BoolArray = (flags & np.uint16(Frame.KSM) != 0) | ((flags & np.uint16(Frame.ZERO) != 0) & ~one.zero)
    return merged


@dataclass(slots=True)
class Shares:
    """Each captured page's part of its frame, in pages: 1 of its own, 1/n of a frame that n pages map.

    0 of the zero page, and of a frame that a process outside the capture maps too: it does not become free.

    Attributes
    ----------
    frames : list of int64[nr_pages]
        `frames_of` each process of the capture.
    part : float64[nr_frames]
        Of each frame what one of its pages has.
    nr_frames : int
        Frames that the captured pages have alone.

    Models: Pss of /proc/PID/smaps of Linux 6.18. Differs: frames that processes outside the capture map.
    """

    frames: list[I64Array]
    part: F64Array
    nr_frames: int

    def __repr__(self) -> str:
        return f"<Shares of {counted(len(self.frames), 'process')} in {counted(self.nr_frames, 'frame')}>"

    def by_page(self, number: int) -> F64Array:
        """The parts of a process's pages: float64[nr_pages]; their sum over all processes is the number of frames."""
        return self.part[self.frames[number]]


def shares(loaded: LoadedMemory) -> Shares:
    """The parts as they are in the Host now.

    Parameters
    ----------
    loaded : LoadedMemory

    Returns
    -------
    Shares

    Models: see Shares. Differs: see Shares.
    """
    frames = [frames_of(loaded, number) for number in range(len(loaded.mms))]
    count = np.zeros(loaded.host.nr_frames, np.int32)
    for some in frames:
        # takes no longer for a thousand small processes than for a large one, as counting all frames for each would
        np.add.at(count, some, np.int32(1))
    zero = loaded.host.frames.flags & np.uint16(Frame.ZERO) != 0
    # what a process outside the capture maps too is nothing that merging could free
    count[zero | (loaded.host.frames.mapcount > count)] = 0
    parts = np.concatenate(([0.0], 1.0 / np.arange(1, int(count.max(initial=0)) + 1)))
    return Shares(frames, parts[count], int(np.count_nonzero(count)))


def apart(loaded: LoadedMemory, now: Shares) -> Shares:
    """The parts as they are in the Host now, had KSM not merged what it has: each mapping of its pages has a frame.

    Parameters
    ----------
    loaded : LoadedMemory
    now : Shares

    Returns
    -------
    Shares

    Models: see Shares. Differs: see Shares; which zero pages KSM has placed is not known.
    """
    merged = loaded.host.frames.flags & np.uint16(Frame.KSM) != 0
    part = np.where(merged, 1.0, now.part)
    mappings = sum(int(np.count_nonzero(merged[some])) for some in now.frames)
    return Shares(now.frames, part, now.nr_frames + mappings - int(np.count_nonzero(merged & (now.part > 0))))


def freed_by_vma(loaded: LoadedMemory, before: Shares, after: Shares, number: int) -> I64Array:
    """What the merging frees in each mapping of a process, bytes.

    Parameters
    ----------
    loaded : LoadedMemory
    before, after : Shares
    number : int
        Index of the process in the capture.

    Returns
    -------
    int64[mappings]

    Models: the difference of Pss of each mapping. Differs: see Shares.
    """
    less = np.concatenate(([0.0], np.cumsum(before.by_page(number) - after.by_page(number))))
    slices = np.array(loaded.capture.processes[number].vma_slices(), np.int64).reshape(-1, 2)
    freed: I64Array = np.rint((less[slices[:, 1]] - less[slices[:, 0]]) * PAGE_SIZE).astype(np.int64)
    return freed

