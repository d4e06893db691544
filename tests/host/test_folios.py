"""Folios of 16 KiB to 1 MiB, modes of huge pages, khugepaged's passes."""

import numpy as np
import pytest
from hostcheck import check
from hypothesis import given
from hypothesis import strategies as st

import ksmwalk
from ksmwalk.entries import Pte
from ksmwalk.layout import PAGE_SIZE as PAGE
from ksmwalk.layout import Frame

BASE = 1 << 40
HUGE = 512 * PAGE
SIZES = (16, 32, 64, 128, 256, 512, 1024)


def folio_of(host, mm, addr):
    """(first address of its folio as mapped here, pages) of a present page."""
    pfn = int(mm.read_pfns(addr, 1)[0])
    heads = host.frames.head
    head = int(heads[pfn])
    return addr - (pfn - head) * PAGE, int(np.count_nonzero(heads[head : head + 512] == head))


def largest(sizes, area, present, page):
    """What W30 says: pages of the folio that a store takes, in pages from the area's own number on; slow and plain."""
    for kib in sorted(sizes, reverse=True):
        n = kib // 4
        first = page // n * n
        if area[0] <= first and first + n <= area[1] and not present & set(range(first, first + n)):
            return range(first, first + n)
    return range(page, page + 1)


@given(
    st.sets(st.sampled_from(SIZES)), st.integers(0, 300), st.integers(1, 900),
    st.lists(st.tuples(st.integers(0, 899), st.booleans()), max_size=30),
)  # fmt: skip
def test_a_store_takes_the_largest_folio_that_meets_nothing(sizes, start, length, accesses):
    host = ksmwalk.Host(1 << 13, mthp=dict.fromkeys(sizes, "always"))
    mm = host.new_mm()
    mm.mmap(length * PAGE, BASE + start * PAGE)
    present = set()
    for at, store in accesses:
        page = start + at % length
        if not store:
            mm.read(BASE + page * PAGE)
            present.add(page)
            continue
        if page not in present:
            wanted = largest(sizes, (start, start + length), present, page)
            mm.write(BASE + page * PAGE, 7)
            assert folio_of(host, mm, BASE + page * PAGE) == (BASE + wanted.start * PAGE, len(wanted))
            present |= set(wanted)
        mm.write(BASE + page * PAGE, 7)
    assert {(int(addr) - BASE) // PAGE for addr in mm.tables.mappings()["addr"]} == present
    check(host)
    mm.exit()
    assert host.frames_used == 1
    check(host)


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, 63), st.booleans()), max_size=60))
def test_folios_are_aligned_and_apart_and_go_with_their_last_mapping(steps):
    host = ksmwalk.Host(1 << 12)
    mm = host.new_mm()
    mm.mmap(64 * 256 * PAGE, BASE)
    there = {}
    for kib, slot, gone in steps:
        at = BASE + slot * 256 * PAGE
        if gone or slot in there:
            mm.madvise(at, 256 * PAGE, "dontneed")
            there.pop(slot, None)
        elif host.nr_frames - host.frames_used > 1200:
            host.mthp = {kib: "always"}
            mm.write(at, slot + 1)
            there[slot] = kib // 4
    taken = {}
    for slot, pages in there.items():
        pfns = mm.read_pfns(BASE + slot * 256 * PAGE, pages)
        assert pfns[0] % pages == 0 and (np.diff(pfns) == 1).all()
        assert not taken.keys() & set(pfns.tolist())
        taken |= dict.fromkeys(pfns.tolist(), slot)
    assert host.frames_used == 1 + len(taken)
    check(host)


def test_where_memory_is_in_pieces_the_next_smaller_folio_is_taken():
    host = ksmwalk.Host(1 << 10, mthp={16: "always", 1024: "always"})
    mm = host.new_mm()
    mm.mmap(8 * HUGE, BASE)
    host.mthp = {}
    mm.populate(BASE, (host.nr_frames - 1) * PAGE)
    # of each 8 frames 4 come free: whole folios of 16 KiB, nothing larger
    pfns = mm.read_pfns(BASE, host.nr_frames - 1)
    for i in np.flatnonzero(pfns % 8 >= 4).tolist():
        mm.madvise(BASE + i * PAGE, PAGE, "dontneed")
    host.mthp = {16: "always", 1024: "always"}
    mm.write(BASE + 6 * HUGE, 1)
    assert folio_of(host, mm, BASE + 6 * HUGE)[1] == 4
    check(host)


def test_folios_come_only_where_they_may():
    host = ksmwalk.Host(1 << 12, mthp={64: "madvise", 16: "always"})
    mm = host.new_mm()

    def pages(advice=None):
        at = mm.mmap(16 * PAGE, BASE)
        if advice:
            mm.madvise(at, 16 * PAGE, advice)
        mm.write(at + 5 * PAGE, 1)
        n = folio_of(host, mm, at + 5 * PAGE)[1]
        mm.munmap(at, 16 * PAGE)
        return n

    assert (pages(), pages("hugepage"), pages("nohugepage")) == (4, 16, 1)
    mm.thp_disable(True)
    assert pages("hugepage") == 1
    mm.thp_disable(False)
    host.mthp = {64: "never"}
    assert pages("hugepage") == 1
    assert host.mthp == dict.fromkeys(SIZES, "never")


@pytest.mark.parametrize("wrong", [{8: "always"}, {64: "sometimes"}, {True: "always"}, [64], {2048: "never"}, {64: None}])
def test_sizes_and_modes_that_there_are_not_are_refused(wrong):
    host = ksmwalk.Host(1 << 10, mthp={32: "always"})
    with pytest.raises(ValueError, match="mthp"):
        host.mthp = wrong
    assert host.mthp[32] == "always"
    with pytest.raises(ValueError, match="mthp"):
        ksmwalk.Host(1 << 10, mthp=wrong)


def test_a_saved_host_keeps_its_folios_and_limits(tmp_path):
    host = ksmwalk.Host(1 << 12, mthp={64: "always"})
    host.khuge_limits = {"max_ptes_none": 3}
    mm = host.new_mm()
    mm.mmap(64 * PAGE, BASE)
    mm.write(BASE + 20 * PAGE, 5)
    host.save(tmp_path / "host")
    again = ksmwalk.Host.load(tmp_path / "host")
    assert again.mthp == host.mthp and again.khuge_limits == {"max_ptes_none": 3, "max_ptes_shared": 256, "max_ptes_swap": 64}
    mm = again.mm_list[0]
    assert folio_of(again, mm, BASE + 20 * PAGE) == (BASE + 16 * PAGE, 16)
    mm.write(BASE, 1)
    assert folio_of(again, mm, BASE)[1] == 16


# ---------------------------------------------------------------- khugepaged


def huge_at(host, mm, addr):
    pfn = int(mm.read_pfns(addr, 1)[0])
    return pfn >= 0 and bool(host._arrays["f_flags"][host.frames.head[pfn]] & Frame.HEAD)


def small_pages(host, n=20, advice="hugepage"):
    """2 MiB with n small pages, advised afterwards."""
    mm = host.new_mm()
    mm.mmap(HUGE, BASE)
    mm.write(BASE, list(range(1, n + 1)))
    if advice:
        mm.madvise(BASE, HUGE, advice)
    return mm


@pytest.mark.parametrize(
    ("thp", "advice", "made"),
    [("madvise", "hugepage", 1), ("madvise", None, 0), ("always", "nohugepage", 0), ("never", "hugepage", 0)],
)
def test_khugepaged_collapses_where_the_mode_says(thp, advice, made):
    host = ksmwalk.Host(1 << 12)
    mm = small_pages(host, advice=advice)
    host.thp = thp
    assert host.khugepaged() == made
    assert huge_at(host, mm, BASE) == bool(made)
    assert mm.read_keys(BASE, 21).tolist() == [*range(1, 21), 0]
    assert host.khugepaged() == 0
    check(host)


@pytest.mark.parametrize("n", [29, 30])
def test_absent_and_zero_pages_are_counted_against_max_ptes_none(n):
    host = ksmwalk.Host(1 << 12)
    host.khuge_limits = {"max_ptes_none": 482}
    mm = small_pages(host, n)
    mm.read(BASE + 100 * PAGE)
    assert host.khugepaged() == (n == 30)


@pytest.mark.parametrize("shared", [8, 9])
def test_pages_of_several_are_counted_against_max_ptes_shared(shared):
    host = ksmwalk.Host(1 << 12)
    host.khuge_limits = {"max_ptes_shared": 8}
    mm = small_pages(host)
    child = mm.fork()
    mm.write(BASE + shared * PAGE, [1] * (20 - shared))
    assert host.khugepaged() == (shared == 8)
    assert huge_at(host, mm, BASE) == (shared == 8) and not huge_at(host, child, BASE)
    check(host)


def test_memory_not_accessed_lately_is_left_alone():
    host = ksmwalk.Host(1 << 12)
    mm = small_pages(host)
    child = mm.fork()
    assert host.khugepaged() == 1          # the child has accessed nothing
    child.read(BASE + 3 * PAGE)
    assert host.khugepaged() == 1
    other = small_pages(host)
    other.clear_touched()
    assert host.khugepaged() == 0
    other.mprotect(BASE, HUGE, "r"), other.mprotect(BASE, HUGE, "rw")
    assert host.khugepaged() == 0
    other.write(BASE + 500 * PAGE, 1)
    assert host.khugepaged() == 1
    check(host)


def test_what_somebody_holds_is_passed_over():
    host = ksmwalk.Host(1 << 12)
    mm = small_pages(host)
    pfn = host.pin(mm, BASE + PAGE)
    assert host.khugepaged() == 0
    host.unpin(pfn)
    mm.uffd_wp(BASE, PAGE)
    assert host.khugepaged() == 0
    mm.madvise(BASE + 8 * PAGE, PAGE, "guard_install")
    assert host.khugepaged() == 0


def test_huge_pages_mapped_in_parts_are_made_anew_within_the_limit_of_shared_pages():
    host = ksmwalk.Host(1 << 13)
    mm = host.new_mm()
    mm.mmap(HUGE, BASE)
    mm.madvise(BASE, HUGE, "hugepage")
    mm.write(BASE, 7)
    child = mm.fork()
    mm.write(BASE + PAGE, 9)
    child.read(BASE)
    # every page of a folio of several owners counts, also where one of them has lost it
    assert host.khugepaged() == 0
    host.khuge_limits = {"max_ptes_shared": 511}
    assert host.khugepaged() == 1
    assert (mm.read(BASE), mm.read(BASE + PAGE), child.read(BASE + PAGE)) == (7, 9, 0)
    check(host)


def test_limits_that_there_are_not_are_refused():
    host = ksmwalk.Host(1 << 10)
    for wrong in ({"max_ptes_none": 512}, {"max_ptes": 1}, [1]):
        with pytest.raises(ValueError):
            host.khuge_limits = wrong
    assert host.khuge_limits == {"max_ptes_none": 511, "max_ptes_shared": 256, "max_ptes_swap": 64}


def test_a_debuggers_store_makes_the_page_dirty_and_not_its_pte():
    """get_user_pages takes no fault where the pte may be stored to; MADV_FREE has cleared its dirty bit before."""
    host = ksmwalk.Host(1024)
    mm = host.new_mm()
    at = mm.mmap(2 * PAGE)
    mm.write(at, [1, 2])
    mm.madvise(at, 2 * PAGE, "free")
    mm.poke(at, 7)
    assert (mm.tables.mappings(columns=True).entry & np.uint64(Pte.D)).tolist() == [0, 0]
    dirty = host.frames.flags[mm.read_pfns(at, 2)] & int(Frame.DIRTY)
    assert dirty.astype(bool).tolist() == [True, False]
    assert mm.read_keys(at, 2).tolist() == [7, 2]
