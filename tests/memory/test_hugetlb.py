"""Stores into private hugetlb pages that fork has shared."""

import errno

import pytest
from hostcheck import check

from ksmwalk import Host

PAGE = 4096
HUGE = 512 * PAGE
BASE = 1 << 32


def test_a_store_copies_a_hugetlb_page_while_the_child_maps_it_and_no_longer():
    host = Host(8 * 512)
    mm = host.new_mm()
    mm.mmap(2 * HUGE, BASE, kind="hugetlb")
    mm.write(BASE, 1)
    mm.write(BASE + HUGE, 2)
    first, second = (int(mm.read_pfns(BASE + i * HUGE, 1)[0]) for i in (0, 1))
    child = mm.fork()
    mm.write(BASE, 3)
    assert mm.read_pfns(BASE, 1)[0] != first == child.read_pfns(BASE, 1)[0] and child.read(BASE) == 1
    child.exit()
    mm.write(BASE + HUGE, 4)
    assert mm.read_pfns(BASE + HUGE, 1)[0] == second and mm.read(BASE + HUGE) == 4


@pytest.mark.parametrize(("addr", "length"), [(PAGE, PAGE), (0, PAGE), (HUGE - PAGE, PAGE), (-PAGE, 2 * PAGE)])
def test_userfaultfd_takes_hugetlb_pages_whole_only(addr, length):
    host = Host(8 * 512)
    mm = host.new_mm()
    mm.mmap(2 * HUGE, BASE, kind="hugetlb"), mm.mmap(PAGE, BASE - PAGE)
    with pytest.raises(OSError) as caught:
        mm.uffd_wp(BASE + addr, length)
    assert caught.value.errno == errno.EINVAL and len(mm.vmas) == 2
    mm.uffd_wp(BASE - PAGE, PAGE + HUGE)
    assert [v.vm_end - v.vm_start for v in mm.vmas] == [PAGE, HUGE, HUGE]
    check(host)
