"""Arrays that grow without moving.

Every arena of a Host is one anonymous `mmap` of its full capacity with MAP_NORESERVE: address space, not memory.
Pages appear as records are used, so "growing" is counting up, pointers made once stay good, and a zero-copy view
handed to a callback can't go stale because somebody mapped a page.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from ..signatures import AnyArray, RecordArray
from . import Array

if TYPE_CHECKING:
    import ctypes

_SMALL = 1 << 16  # bytes: below this an array is better off among others than on pages of its own
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_HUGE_PAGE = 2 << 20
#: bytes: below this, an array does not fill half a huge page
_HUGE_FROM = _HUGE_PAGE // 2

_FEW = 64  # table pages

#: bytes that nobody may touch, before and after every arena, where KSMWALK_GUARD is set (see CONTRIBUTING, sanitizers)
_GUARD = (1 << 20) if os.environ.get("KSMWALK_GUARD") else 0
_SHADOW = 0x7FFF8000  # where AddressSanitizer keeps, on x86-64, a byte for every eight


def _forget_poison(libc: ctypes.CDLL, start: int, size: int) -> None:
    """Drop what AddressSanitizer knows of an arena: poison stays behind when it is unmapped, for who comes next there.

    Its own call would write a byte for every eight of an arena that may be of terabytes; dropped pages read as zero.
    """
    first, end = (start >> 3) + _SHADOW, ((start + size) >> 3) + _SHADOW
    inner = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    libc.madvise(inner[0], inner[1] - inner[0], mmap.MADV_DONTNEED)
    # What is left of the first and last page of it lies in the guards.
    libc.__asan_unpoison_memory_region(start, _GUARD)
    libc.__asan_unpoison_memory_region(start + size - _GUARD, _GUARD)


def _guarded(size: int, flags: int) -> tuple[mmap.mmap, int]:
    """Map `size` bytes between two guards; return the mapping and where in it the bytes begin.

    The guards are PROT_NONE pages: an index a little out of bounds is a SIGSEGV at once, and no write into whatever
    lies beside. Between the last byte and its page's end there is memory still; AddressSanitizer, if it is there, is
    told of that and of the guards.
    """
    import ctypes

    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    buf = mmap.mmap(-1, whole + 2 * _GUARD, flags=flags)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buf))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for at in (start, start + _GUARD + whole):
        if libc.mprotect(at, _GUARD, 0):
            raise OSError(ctypes.get_errno(), "mprotect of an arena's guard")
    if hasattr(libc, "__asan_poison_memory_region"):
        poison, unpoison = libc.__asan_poison_memory_region, libc.__asan_unpoison_memory_region
        poison.argtypes = unpoison.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        poison(start, _GUARD)
        poison(start + _GUARD + size, whole - size + _GUARD)
        weakref.finalize(buf, _forget_poison, libc, start, whole + 2 * _GUARD).atexit = False
    return buf, _GUARD


def _aligned(size: int, row: int, flags: int) -> tuple[mmap.mmap, int]:
    """Map whole huge pages for `size` bytes and ask for them; return the mapping and where in it the bytes begin.

    A small array at random access waits for the TLB if it lies on ordinary pages, and a prefetch that would have to
    wait for it is dropped. The first one begins behind the first row, which stands for "none" (of frames, for the zero
    page), of table pages behind the first few, those of upper levels: so a host of a round number of pages needs no
    further huge page for its last one.
    """
    buf = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE + 2 * _HUGE_PAGE, flags=flags)
    before = row if row < mmap.PAGESIZE else _FEW * row
    offset = -(np.frombuffer(buf, np.uint8).ctypes.data + before) % _HUGE_PAGE
    with contextlib.suppress(OSError):  # a kernel without THP
        buf.madvise(mmap.MADV_HUGEPAGE, offset + before)
        buf.madvise(mmap.MADV_NOHUGEPAGE, 0, offset + before)
    return buf, offset


def shape_of(array: Array, ctl: RecordArray) -> tuple[int, ...]:
    """The shape of one of a Host's arrays, worked out with the fields of its `ctl` record.

    Parameters
    ----------
    array : layout.Array
    ctl : ndarray of layout.CTL, shape (1,)
    """
    sizes = []
    for part in array.shape:
        size = 1
        for factor in part.split("*"):
            size *= int(factor) if factor.isdigit() else int(ctl[factor][0])
        sizes.append(size)
    return tuple(sizes)


def reserve(capacity: int, dtype: DTypeLike, *, shape: tuple[int, ...] = (), huge: bool = False) -> AnyArray:
    """Reserve a zeroed array of `capacity` records that occupies memory only where it is written.

    Parameters
    ----------
    capacity : int
        Number of records (rows, where `shape` is given).
    dtype : dtype
        Type of a record.
    shape : tuple of int
        Shape of a row, () for plain records.
    huge : bool
        Ask for huge pages where the array is large: fewer TLB misses in random access, 2 MiB at the first touch.

    Returns
    -------
    ndarray of shape (capacity, *shape)

    Raises
    ------
    MemoryError
        The address space can't be had, with the size asked for.
    """
    dtype = np.dtype(dtype)
    if capacity < 1:
        raise ValueError(f"capacity {capacity}: must be at least 1")
    row = math.prod(shape) * dtype.itemsize
    size = capacity * row
    if size <= _SMALL:
        return np.zeros((capacity, *shape), dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    huge = huge and size >= _HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE")
    try:
        if _GUARD:
            buf, offset = _guarded(size, flags)
        elif huge:
            buf, offset = _aligned(size, row, flags)
        else:
            buf, offset = mmap.mmap(-1, size, flags=flags), 0
    except (OSError, ValueError, OverflowError) as err:
        raise MemoryError(f"can't reserve {size} bytes of address space for {capacity} x {dtype}: {err}") from err
    return np.frombuffer(buf, dtype=dtype, count=size // dtype.itemsize, offset=offset).reshape((capacity, *shape))
