"""Physical frames as the kernel shows them: the one reader of /proc/kpageflags and /proc/kpagecount."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from enum import IntFlag
from pathlib import Path

import numpy as np

from ..signatures import BoolArray, I64Array, U8Array, U64Array
from .gather import RECORD, gather

#: records that cost about as much to read as the system call that is saved by reading them: frames are not cheap for
#: the kernel, as absent pages of pagemap are
FRAME_GAP = 8
#: from this many frames in a row on, on average, reading them in the order they came in beats sorting them first
_FRAMES_PER_RUN = 16
_FRAMES_PER_READ = 1 << 17
_BLOCK_SHIFT = 9
_MADV_UNMERGEABLE = 13
#: what there is to say where `bits_lie`
LYING = (
    "/proc/kpageflags of this kernel calls every anonymous page KSM's: how many are is smaps' word, which are can't be seen."
)


class Kpf(IntFlag):
    """Flags of a frame in /proc/kpageflags, those that anything here asks for.

    Models: KPF_* of Linux 6.18. Differs: nothing known.
    """

    DIRTY = 1 << 4
    BUDDY = 1 << 10
    MMAP = 1 << 11
    ANON = 1 << 12
    COMPOUND_HEAD = 1 << 15
    COMPOUND_TAIL = 1 << 16
    HUGE = 1 << 17
    NOPAGE = 1 << 20
    KSM = 1 << 21
    THP = 1 << 22
    ZERO_PAGE = 1 << 24


def has(flags: U64Array, wanted: int) -> BoolArray:
    """Return which frames have one of some flags.

    Parameters
    ----------
    flags : ndarray of uint64
    wanted : Kpf

    Returns
    -------
    ndarray of bool
    """
    found: BoolArray = flags & np.uint64(wanted) != 0
    return found


def frame_records(fd: int, pfn: I64Array, pid: int = 0, gap: int = FRAME_GAP) -> U64Array:
    """Return the record of each frame, where frames come in any order and any number of times.

    Parameters
    ----------
    fd : int
        An open /proc/kpageflags or /proc/kpagecount.
    pfn : int64[n]
        Frame numbers.
    pid : int
        The process they are read for, named if the reading comes to an end before they do.
    gap : int
        Records between two wanted ones that are rather read along than asked for in two calls.

    Returns
    -------
    uint64[n]
        `Kpf` bits of each, or how often it is mapped.

    Raises
    ------
    ProcessExited
        A frame lies beyond the end of memory.

    Models: /proc/kpageflags, /proc/kpagecount. Differs: nothing known.
    """
    if not len(pfn):
        return np.empty(0, np.uint64)
    if np.count_nonzero(np.diff(pfn) != 1) < len(pfn) // _FRAMES_PER_RUN:
        return gather(fd, pfn, gap, pid)
    order = np.argsort(pfn)
    ascending = pfn[order]
    new = np.ones(len(pfn), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    out = np.empty(len(pfn), np.uint64)
    out[order] = gather(fd, ascending[new], gap, pid)[np.cumsum(new) - 1]
    return out


def bits_lie() -> bool | None:
    """Whether this kernel calls a page KSM's that is not: a page of our own is looked at.

    Returns
    -------
    bool or None
        None where that can't be seen: only root is shown frames.

    Models: bit KSM of `/proc/kpageflags` in the kernels of `kernels.PROFILES`. Differs: nothing known.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        with contextlib.suppress(OSError):
            page.madvise(_MADV_UNMERGEABLE)  # whatever of this process is merged
        page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            entry = int.from_bytes(os.pread(file.fileno(), RECORD, address // mmap.PAGESIZE * RECORD), "little")
        frame = entry & (1 << 55) - 1
        if not frame:
            return None
        with open("/proc/kpageflags", "rb", buffering=0) as file:
            flags = int.from_bytes(os.pread(file.fileno(), RECORD, frame * RECORD), "little")
        return bool(flags & Kpf.KSM)
    except OSError:
        return None


def ksm_frames(root: Path = Path("/")) -> tuple[int, int]:
    """Count the frames of the machine that are KSM's, and their mappings: about 0.25 s of the kernel's time a million frames.

    Parameters
    ----------
    root : Path
        What stands for the machine's root directory.

    Returns
    -------
    (int, int)
        KSM pages there are, and how often they are mapped in all.

    Raises
    ------
    OSError
        Only root is shown frames.

    Models: bit KSM of `/proc/kpageflags` and `/proc/kpagecount` of Linux.
    Differs: where every anonymous page has the bit (`bits_lie`), those that are dirty are counted: KSM pages all are, and
    parts of huge pages that were split may be.
    """
    bits = Kpf.KSM | Kpf.MMAP | (Kpf.DIRTY if root == Path("/") and bits_lie() else 0)
    found, first = [], 0
    with open(root / "proc/kpageflags", "rb", buffering=0) as file:
        while some := file.read(_FRAMES_PER_READ * RECORD):
            records = np.frombuffer(some[: len(some) // RECORD * RECORD], np.uint64)
            # frames of the kernel's own caches have bits there that mean nothing: some seem to be KSM's, none is mapped
            wanted = np.uint64(bits)
            found.append(np.flatnonzero(records & wanted == wanted) + first)
            first += len(records)
    pfn = np.concatenate(found) if found else np.zeros(0, np.int64)
    fd = os.open(root / "proc/kpagecount", os.O_RDONLY | os.O_CLOEXEC)
    try:
        counts = frame_records(fd, pfn) if len(pfn) else np.zeros(0, np.uint64)
    finally:
        os.close(fd)
    return len(pfn), int(counts.sum())


def folio_orders(fd: int, pfn: I64Array, pid: int = 0) -> U8Array:
    """Return how large the folio is that each frame is part of.

    Parameters
    ----------
    fd : int
        An open /proc/kpageflags.
    pfn : int64[n]
        Frame numbers.
    pid : int
        The process they are read for, named if the reading comes to an end before they do.

    Returns
    -------
    uint8[n]
        The logarithm to base 2 of its pages: 0 for a page of its own, 9 for 2 MiB. A folio begins at a multiple of its
        size, and is at most 2 MiB here: a larger one is told as 2 MiB.

    Raises
    ------
    ProcessExited
        A frame lies beyond the end of memory.

    Models: KPF_COMPOUND_HEAD and KPF_COMPOUND_TAIL of /proc/kpageflags. Differs: nothing known.
    """
    if not len(pfn):
        return np.empty(0, np.uint8)
    blocks, block = np.unique(pfn >> _BLOCK_SHIFT, return_inverse=True)
    within = np.arange(1 << _BLOCK_SHIFT)
    flags = frame_records(fd, ((blocks << _BLOCK_SHIFT)[:, None] + within).ravel(), pid).reshape(len(blocks), -1)
    tail = has(flags, Kpf.COMPOUND_TAIL)
    # of each frame the first one behind it, in its block, that begins something else
    ends = np.where(tail, len(within), within)
    ends = np.minimum.accumulate(np.append(ends[:, 1:], np.full((len(blocks), 1), len(within)), axis=1)[:, ::-1], axis=1)
    # and where what it is part of begins; a tail without a head in its block is of a larger folio
    begins = np.maximum.accumulate(np.where(tail, 0, within), axis=1)
    at = block, pfn & (len(within) - 1)
    size = ends[:, ::-1][at] - begins[at]
    order: U8Array = np.log2(size).astype(np.uint8)
    return order
