"""Arrays that grow without moving.

Every arena of a Host is one anonymous `mmap` of its full capacity with MAP_NORESERVE: address space, not memory.
Pages appear as records are used, so "growing" is counting up, pointers made once stay good, and a zero-copy view
handed to a callback can't go stale because somebody mapped a page.
"""

from __future__ import annotations

import math
import mmap

import numpy as np

from . import Array

_SMALL = 1 << 16  # bytes: below this an array is better off among others than on pages of its own
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_HUGE_FROM = 32 << 20  # bytes: below this, huge pages would cost a small Host more memory than they save time


def shape_of(array: Array, ctl: np.ndarray) -> tuple[int, ...]:
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


def reserve(capacity: int, dtype, *, shape: tuple[int, ...] = (), huge: bool = False) -> np.ndarray:
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
    try:
        buf = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except (OSError, ValueError, OverflowError) as err:
        raise MemoryError(f"can't reserve {size} bytes of address space for {capacity} x {dtype}: {err}") from err
    if huge and size >= _HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            buf.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without THP
    return np.frombuffer(buf, dtype=dtype).reshape((capacity, *shape))
