"""Advice that finds something in its way: guard markers, pages that somebody holds."""

import errno

import numpy as np
import pytest

from ksmwalk import Frame, Host

PAGE = 4096
HUGE = 512 * PAGE
BASE = 1 << 32


def test_dontneed_leaves_guard_markers():
    mm = Host(4096).new_mm()
    mm.mmap(4 * PAGE, BASE)
    mm.write(BASE, np.arange(4))
    mm.madvise(BASE + PAGE, PAGE, "guard_install")
    mm.madvise(BASE, 4 * PAGE, "dontneed")
    mm.write(BASE, 1)
    with pytest.raises(OSError) as caught:
        mm.write(BASE + PAGE, 1)
    assert caught.value.errno == errno.EFAULT
    mm.madvise(BASE, 4 * PAGE, "guard_remove")
    mm.write(BASE + PAGE, 1)


def test_collapse_passes_over_pages_that_somebody_holds():
    host = Host(4096)
    mm = host.new_mm()
    mm.mmap(HUGE, BASE)
    mm.write(BASE, np.arange(512))
    pinned = host.pin(mm, BASE + 5 * PAGE)
    with pytest.raises(OSError) as caught:
        mm.madvise(BASE, HUGE, "collapse")
    assert caught.value.errno == errno.EAGAIN
    assert not host.frames.flags[mm.read_pfns(BASE, 1)[0]] & Frame.HEAD
    host.unpin(pinned)
    mm.madvise(BASE, HUGE, "collapse")
    assert host.frames.flags[mm.read_pfns(BASE, 1)[0]] & Frame.HEAD
    assert np.array_equal(mm.read_keys(BASE, 512), np.arange(512))
