"""Accessed bits of a real process, as "Referenced" of its smaps tells them, and those of the model."""

import ctypes
import mmap
import os
import random
import re
from pathlib import Path

import pytest

import ksmwalk

PAGE, PAGES = 4096, 64
CLEAR = Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason="no /proc/self/clear_refs here")


def referenced(addr):
    """Pages accessed in the area at an address."""
    mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            mine = int(place[1], 16) == addr
        elif mine and line.startswith("Referenced:"):
            return int(line.split()[1]) * 1024 // PAGE
    raise AssertionError("the area is gone")


def one_run(rng):
    """(what the kernel says, what the model says) after each clearing and at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, (PAGES + 2) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held = ctypes.c_char.from_buffer(memory)
    addr = ctypes.addressof(held) + PAGE
    for edge in (addr - PAGE, addr + PAGES * PAGE):  # an area of its own
        assert libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(PAGE), 0) == 0
    assert libc.madvise(ctypes.c_void_p(addr), ctypes.c_size_t(PAGES * PAGE), 15) == 0  # no huge pages
    model = ksmwalk.Host(4096).new_mm()
    start = model.mmap(PAGES * PAGE)
    written, said = [], []
    for _ in range(100):
        what, page = rng.random(), rng.randrange(PAGES)
        if what < 0.1:
            said.append((referenced(addr), len(model.touched())))
            CLEAR.write_text("1")
            model.clear_touched()
        elif what < 0.5 and written:  # a load of an empty page maps the zero page, of which smaps says nothing
            page = rng.choice(written)
            assert memory[(page + 1) * PAGE] == 7
            model.read(start + page * PAGE)
        else:
            memory[(page + 1) * PAGE] = 7
            model.write(start + page * PAGE, 7)
            written.append(page)
    said.append((referenced(addr), len(model.touched())))
    del held
    return said


@pytest.mark.parametrize("seed", range(5))
def test_touched_counts_what_the_kernel_calls_referenced(seed):
    for _ in range(3):  # reclaim of a machine short of memory clears bits too
        said = one_run(random.Random(seed))
        if all(kernel == model for kernel, model in said):
            return
    raise AssertionError(said)
