"""Arrays that are reserved: where their huge pages begin, and what a first write takes."""

import numpy as np
import pytest

from ksmwalk.layout import arena

HUGE = 2 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(arena._GUARD > 0, reason="arenas between guards are not aligned")
@pytest.mark.parametrize(("shape", "before"), [((), 32), ((512,), 64 * 4096)])
def test_huge_pages_begin_behind_what_every_host_has(shape, before):
    dtype = np.dtype("u8") if shape else np.dtype([("a", "u8", 4)])
    array = arena.reserve(1 << 16 if not shape else 1 << 13, dtype, shape=shape, huge=True)
    assert (array.ctypes.data + before) % HUGE == 0
    start = resident()
    array[0] = np.ones((), array.dtype) if not shape else 1
    assert resident() - start < HUGE // 4, "record 0 takes no huge page"
    array.view(np.uint64).reshape(-1)[before // 8 :: 512] = 1
    assert np.count_nonzero(array.view(np.uint64)) >= array.nbytes // 4096 - 64
