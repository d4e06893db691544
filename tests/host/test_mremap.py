"""mremap with an old length of 0: a second mapping of the same shared pages, where there is one to be had."""

import errno

import pytest

from ksmwalk import Host

PAGE = 4096
BASE = 1 << 32
ELSEWHERE = BASE + 64 * PAGE


@pytest.mark.parametrize("to", [None, ELSEWHERE])
def test_an_old_length_of_0_maps_shared_pages_once_more(to):
    mm = Host(4096).new_mm()
    mm.mmap(4 * PAGE, BASE, shared=True)
    mm.write(BASE + PAGE, 7)
    second = mm.mremap(BASE + PAGE, 0, 2 * PAGE, to)
    assert to is None or second == to
    assert mm.read(second) == 7 and mm.read_pfns(second, 1)[0] == mm.read_pfns(BASE + PAGE, 1)[0]
    mm.write(second + PAGE, 8)
    assert mm.read(BASE + 2 * PAGE) == 8


def test_an_old_length_of_0_is_refused_for_private_memory():
    mm = Host(4096).new_mm()
    mm.mmap(4 * PAGE, BASE)
    with pytest.raises(OSError) as caught:
        mm.mremap(BASE, 0, PAGE, ELSEWHERE)
    assert caught.value.errno == errno.EINVAL
