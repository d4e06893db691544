"""Whose memory it is: each page's part of its frame, before and after merging, by process, mapping or any group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..layout import PAGE_SHIFT, PAGE_SIZE, Frame
from ..signatures import BoolArray, I64Array, U64Array
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
    found = loaded.mms[number].tables.mappings(runs=True)
    at = np.searchsorted(found["addr"], addr, "right") - 1
    frames: I64Array = (found["pfn"][at] + ((addr - found["addr"][at]) >> np.uint64(PAGE_SHIFT))).astype(np.int64)
    return frames


def merged_pages(loaded: LoadedMemory, number: int) -> BoolArray:
    """Which captured pages of a process are KSM's in the Host now, or have become zero pages.

    Parameters
    ----------
    loaded : LoadedMemory
    number : int
        Index of the process in the capture.

    Returns
    -------
    bool[nr_pages]

    Models: KPF_KSM of /proc/kpageflags of Linux 6.18. Differs: nothing known.
    """
    one = loaded.capture.processes[number]
    flags = loaded.host.frames.flags[frames_of(loaded, number)]
    merged: BoolArray = (flags & np.uint16(Frame.KSM) != 0) | ((flags & np.uint16(Frame.ZERO) != 0) & ~one.zero)
    return merged


@dataclass(slots=True)
class Shares:
    """Each captured page's part of its frame, in pages: 1 of its own, 1/n of a frame that n pages map, 0 of the zero page.

    Attributes
    ----------
    by_page : list of float64[nr_pages]
        For each process of the capture; their sum over all is the number of frames.
    nr_frames : int
        Frames that the captured pages have, the zero page left out.

    Models: Pss of /proc/PID/smaps of Linux 6.18. Differs: mappings of processes that were not captured don't count.
    """

    by_page: list[F64Array]
    nr_frames: int


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
        count += np.bincount(some, minlength=len(count)).astype(np.int32)
    zero = loaded.host.frames.flags & np.uint16(Frame.ZERO) != 0
    count[zero] = 0
    part = np.zeros(len(count))
    np.divide(1.0, count, out=part, where=count > 0)
    return Shares([part[some] for some in frames], int(np.count_nonzero(count)))


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
    less = np.concatenate(([0.0], np.cumsum(before.by_page[number] - after.by_page[number])))
    slices = np.array(loaded.capture.processes[number].vma_slices(), np.int64).reshape(-1, 2)
    freed: I64Array = np.rint((less[slices[:, 1]] - less[slices[:, 0]]) * PAGE_SIZE).astype(np.int64)
    return freed

