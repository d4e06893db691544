"""What of an address space was touched, held against plain sets; and that asking and clearing change nothing else."""

import numpy as np
import pytest
from hostcheck import check

import ksmwalk
from ksmwalk.host.traces import trace_events
from ksmwalk.layout import Frame

PAGE, PMD = 4096, 1 << 21
BASE = 1 << 40
A, CLEAN = 1 << 5, 1 << 52


def pages(mm, **kw):
    return set(mm.touched(**kw).tolist())


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("seed", range(8))
def test_touched_pages_are_those_of_plain_sets(seed, thp):
    rng = np.random.default_rng(seed)
    host = ksmwalk.Host(1 << 14, thp=thp)
    mms, n = [host.new_mm()], 3 * 512 + 100
    read, written = [set()], [set()]
    mms[0].mmap(n * PAGE, BASE)
    for _ in range(300):
        who = int(rng.integers(len(mms)))
        mm, page = mms[who], int(rng.integers(n))
        what = rng.choice(["read", "write", "traced", "fork", "clear"], p=[0.3, 0.3, 0.3, 0.03, 0.07])
        # The pages that have one entry with this one.
        whole = thp == "always" and page < 3 * 512
        reach = set(range(page & -512, (page & -512) + 512)) if whole else {page}
        if what == "read":
            mm.read(BASE + page * PAGE + 7)
            read[who] |= reach
        elif what in ("write", "traced"):
            if what == "write":
                mm.write(BASE + page * PAGE, int(rng.integers(9)))
            else:
                host.apply(trace_events("write", BASE + page * PAGE + 99, 3), {0: mm})
            read[who] |= reach
            written[who] |= reach
        elif what == "clear":
            mm.clear_touched()
            read[who], written[who] = set(), set()
        elif thp == "never" and len(mms) < 4:
            mms.append(mm.fork())
            # the child has accessed nothing yet
            read.append(set()), written.append(set(written[who]))
        for i, one in enumerate(mms):
            assert pages(one) == {BASE + p * PAGE for p in read[i]}
            assert pages(one, written=True) == {BASE + p * PAGE for p in written[i]}
    check(host)


def program(host, mm, rng, clear):
    """Everything that makes, changes and moves entries; `clear`: with a look and a clear after each step."""
    at = mm.mmap(900 * PAGE, BASE)
    mm.mmap(4 * PMD, BASE + 8 * PMD)
    mm.mmap(40 * PAGE, BASE + 16 * PMD, kind="file"), mm.mmap(PMD, BASE + 20 * PMD, kind="hugetlb")
    mm.prctl_merge(True)
    places = [(at, 900), (BASE + 8 * PMD, 2048), (BASE + 16 * PMD, 40), (BASE + 20 * PMD, 512)]
    mms = [mm]
    for _ in range(150):
        start, n = places[int(rng.integers(4))]
        one = mms[int(rng.integers(len(mms)))]
        addr = start + int(rng.integers(n)) * PAGE
        length = int(rng.integers(1, 40)) * PAGE
        what = int(rng.integers(12))
        try:
            if what < 3:
                one.write(addr, rng.integers(0, 4, int(rng.integers(1, 30))))
            elif what < 5:
                one.read(addr, int(rng.integers(1, 30)))
            elif what == 5:
                one.mprotect(addr, length, ("r", "rw", "none")[int(rng.integers(3))])
            elif what == 6:
                one.madvise(addr, length, ("dontneed", "free", "collapse", "guard_install", "guard_remove")[int(rng.integers(5))])
            elif what == 7 and len(mms) < 4:
                mms.append(one.fork())
            elif what == 8:
                one.mremap(addr, length, length, BASE + (1 << 35) + int(rng.integers(64)) * PMD)
            elif what == 9:
                one.uffd_wp(addr, length, bool(rng.integers(2)))
            elif what == 10:
                host.pin(one, addr)
            else:
                host.ksm.do_scan(500)
        except OSError:
            pass
        if clear:
            for each in mms:
                each.touched(), each.touched(written=True), each.clear_touched()
    host.ksm.full_scan(), host.ksm.full_scan()


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("seed", range(8))
def test_asking_and_clearing_change_nothing_else(seed, thp):
    hosts = []
    for clear in (False, True):
        host = ksmwalk.Host(1 << 14, thp=thp)
        program(host, host.new_mm(), np.random.default_rng(seed), clear)
        hosts.append(host.__getstate__()["arrays"])
    one, two = hosts
    for name in one:
        if name == "rows":
            assert np.array_equal(one[name] & ~np.uint64(A | CLEAN), two[name] & ~np.uint64(A | CLEAN))
        elif name == "f_flags":  # what khugepaged takes for use, too
            assert np.array_equal(one[name] & ~np.uint16(Frame.REFERENCED), two[name] & ~np.uint16(Frame.REFERENCED))
        else:
            assert np.array_equal(one[name], two[name]), name


def test_of_huge_pages_all_512_count_and_a_range_is_kept_to():
    host = ksmwalk.Host(4096, thp="always")
    mm = host.new_mm()
    at = mm.mmap(2 * PMD, BASE)
    mm.write(at + 5 * PAGE, 1), mm.read(at + PMD)
    assert len(mm.touched()) == 1024 and len(mm.touched(written=True)) == 512
    assert mm.touched(at + 5 * PAGE + 1, at + 7 * PAGE + 1).tolist() == [at + i * PAGE for i in (5, 6, 7)]
    assert len(mm.touched(at + PMD)) == 512 and len(mm.touched(0, at)) == len(mm.touched(at, at)) == 0
    mm.clear_touched(at + PMD + 1, at + PMD + 2)
    assert len(mm.touched()) == 512
    mm.clear_touched(0, at + 1)
    assert len(mm.touched()) == 0 and len(mm.touched(written=True)) == 0
    mm.read(at)
    assert len(mm.touched()) == 512 and len(mm.touched(written=True)) == 0


def test_a_zero_page_of_ksm_was_not_written_to_and_a_merged_page_is_until_it_is_stored_to():
    host = ksmwalk.Host(4096)
    mm = host.new_mm()
    at = mm.mmap(4 * PAGE, BASE)
    mm.madvise(at, 4 * PAGE, "mergeable")
    mm.write(at, [0, 0, 5, 5])
    host.ksm.use_zero_pages = 1
    mm.clear_touched()
    for _ in range(3):
        host.ksm.full_scan()
    assert host.ksm.ksm_zero_pages == 2 and host.ksm.pages_sharing == 1
    # ksmd maps a page anew where it merges it with another, and what is new is accessed
    assert mm.touched().tolist() == [at + 2 * PAGE] and len(mm.touched(written=True)) == 0
    mm.write(at, [1, 0, 6])
    assert mm.touched(written=True).tolist() == mm.touched().tolist() == [at, at + PAGE, at + 2 * PAGE]
    check(host)


def test_with_five_levels_and_in_an_empty_address_space():
    host = ksmwalk.Host(4096, levels=5)
    mm = host.new_mm()
    assert mm.touched().dtype == np.uint64 and len(mm.touched()) == 0
    at = mm.mmap(PAGE, (1 << 55))
    mm.write(at, 1)
    assert mm.touched().tolist() == [1 << 55]
    mm.clear_touched()
    assert len(mm.touched()) == 0


def test_bad_arguments_and_those_who_exited():
    mm = ksmwalk.Host(64).new_mm()
    for call in (lambda: mm.touched(-1), lambda: mm.touched(0, 1 << 64), lambda: mm.clear_touched(-1)):
        with pytest.raises(ValueError, match="start|end"):
            call()
    for call in (lambda: mm.touched(0.5), lambda: mm.touched(written=3), lambda: mm.clear_touched(0, "x")):
        with pytest.raises(TypeError):
            call()
    mm.exit()
    for call in (mm.touched, mm.clear_touched):
        with pytest.raises((ProcessLookupError, ReferenceError)):
            call()


def test_an_entry_that_can_not_be_followed_is_named():
    host = ksmwalk.Host(64)
    mm = host.new_mm()
    mm.mmap(PAGE, BASE), mm.write(BASE, 1)
    host.world.arrays["rows"][int(host.mms["root"][mm.index]), (BASE >> 39) & 511] = 0x7777001
    for call in (mm.touched, mm.clear_touched):
        with pytest.raises(ksmwalk.BadEntryError):
            call()
