"""brk(2): where a heap may end, and which areas that makes. What Linux 6.18 does with each of these is in the names."""

import pytest
from hostcheck import check

from ksmwalk import Host
from ksmwalk.layout import Vm

PAGE, HEAP = 4096, 49152 * 4096


@pytest.fixture
def host():
    return Host(1000)


@pytest.fixture
def mm(host):
    made = host.new_mm()
    made.start_brk = HEAP
    return made


def pages(mm, n):
    """Let the heap be of n pages; how many it is of then."""
    return (mm.brk(HEAP + n * PAGE) - HEAP) // PAGE


def areas(mm):
    return [((v.vm_start - HEAP) // PAGE, (v.vm_end - HEAP) // PAGE) for v in mm.vmas]


def test_without_a_beginning_there_is_no_heap(host):
    mm = host.new_mm()
    assert mm.brk() == mm.brk(HEAP) == 0 and not mm.vmas
    with pytest.raises(ValueError, match="page aligned"):
        mm.start_brk = 5


def test_it_grows_in_one_area_and_shrinks(host, mm):
    assert pages(mm, 4) == 4 and areas(mm) == [(0, 4)]
    assert pages(mm, 6) == 6 and areas(mm) == [(0, 6)]
    mm.write(HEAP + 5 * PAGE, 7)
    assert mm.brk(HEAP + PAGE + 1) == HEAP + PAGE + 1 and areas(mm) == [(0, 2)]
    assert pages(mm, 0) == 0 and not mm.vmas and host.frames_used == 1
    assert mm.brk(HEAP - 1) == HEAP
    check(host)


def test_a_page_stays_free_before_what_is_mapped_next_and_the_gap_of_a_stack(mm):
    mm.mmap(2 * PAGE, HEAP + 20 * PAGE)
    assert [pages(mm, n) for n in (19, 20, 21)] == [19, 19, 19]
    mm.munmap(HEAP + 20 * PAGE, 2 * PAGE)
    mm.mmap(2 * PAGE, HEAP + 300 * PAGE, flags=int(Vm.GROWSDOWN))
    assert [pages(mm, n) for n in (43, 44, 299, 301)] == [43, 43, 43, 43]


def test_it_is_not_joined_with_what_lies_below_nor_with_what_is_marked(mm):
    mm.mmap(4 * PAGE, HEAP - 4 * PAGE)
    assert pages(mm, 3) == 3 and areas(mm) == [(-4, 0), (0, 3)]
    mm.madvise(HEAP, 3 * PAGE, "mergeable")
    assert pages(mm, 5) == 5 and areas(mm) == [(-4, 0), (0, 3), (3, 5)]


def test_it_does_not_shrink_over_nothing(mm):
    assert pages(mm, 3) == 3
    mm.munmap(HEAP, 3 * PAGE)
    mm.mmap(PAGE, HEAP + PAGE, "r")
    assert pages(mm, 2) == 3, "nothing is mapped in the third page"
    assert pages(mm, 1) == 1 and not mm.vmas
    assert pages(mm, 0) == 1


def test_marks_and_locks_of_the_future_hold_for_it(host, mm):
    mm.prctl_merge(True)
    mm.mlockall(2)
    assert pages(mm, 3) == 3
    (area,) = mm.vmas
    assert area.vm_flags & Vm.MERGEABLE and area.vm_flags & Vm.LOCKED
    assert (mm.read_pfns(HEAP, 3) > 0).all()
    check(host)


def test_a_child_has_its_own_and_a_new_program_none(host, mm):
    assert pages(mm, 3) == 3
    child = mm.fork()
    assert pages(child, 5) == 5 and areas(mm) == [(0, 3)]
    assert child.exec().brk() == 0
    check(host)
