"""Reclaim and swap: what goes out, what comes back and to whom, and what a saved Host may say of it."""

import errno
import pickle

import numpy as np
import pytest
from hostcheck import check
from hypothesis import given, settings
from hypothesis import strategies as st

import ksmwalk
from ksmwalk.host import _swap

PAGE = 4096
ACCESSED = 0x20
BASE = 1 << 32
HUGE = 1 << 21


def one(pages=8, **options):
    host = ksmwalk.Host(1 << 13, **{"swap_pages": 1000, **options})
    mm = host.new_mm()
    mm.mmap(pages * PAGE, BASE)
    return host, mm


def out(mm):
    """Page numbers, from the first of the area, that are swapped out."""
    addrs, slots = _swap.swapped(mm.host.world, mm.index)
    return [(int(addr) - BASE) // PAGE for addr, slot in zip(addrs, slots, strict=True) if slot]


def keys(mm, n=8):
    return mm.read_keys(BASE, n).tolist()


def test_what_went_out_comes_back_with_its_content():
    host, mm = one()
    mm.write(BASE, 5)
    mm.write(BASE + PAGE, 6)
    mm.madvise(BASE, 8 * PAGE, "pageout")
    assert out(mm) == [0, 1] and host.swap_used == 2 and host.frames_used == 1
    assert keys(mm, 3) == [5, 6, 0] and mm.read_pfns(BASE, 2).tolist() == [-1, -1]
    assert mm.read(BASE) == 5
    mm.write(BASE + PAGE, 7)
    assert out(mm) == [] and host.swap_used == 0 and keys(mm, 2) == [5, 7]
    check(host)


def test_an_entry_is_what_x86_has_for_the_first_device():
    host, mm = one()
    mm.write(BASE, 5)
    host.reclaim()
    (entry,) = [e for e in host.tables.rows.ravel().tolist() if e and not e & 0x101]
    assert entry >> 59 == 0 and (~entry >> 9) & (1 << 50) - 1 == 1
    assert entry & 0x8, "it was exclusive"
    mm.fork()
    assert [e & 0x8 for e in host.tables.rows.ravel().tolist() if e and not e & 0x101] == [0, 0]


def test_without_swap_only_what_was_marked_goes():
    host, mm = one(swap_pages=0)
    for i in range(4):
        mm.write(BASE + i * PAGE, 1 + i)
    mm.madvise(BASE, 2 * PAGE, "free")
    mm.write(BASE, 9)
    host.reclaim()
    assert mm.read_pfns(BASE, 4).tolist()[1] == -1 and keys(mm, 4) == [9, 0, 3, 4]
    mm.madvise(BASE, 2 * PAGE, "free")      # what was stored to is one like others again, and may be marked again
    host.reclaim()
    assert keys(mm, 4) == [0, 0, 3, 4]
    check(host)


def test_accessed_bits_are_cleared():
    host, mm = one(swap_pages=0)
    mm.write(BASE, 1)
    assert int(mm.tables.mappings()["flags"][0]) & ACCESSED
    host.reclaim()
    assert not int(mm.tables.mappings()["flags"][0]) & ACCESSED


def test_locked_pages_stay_in_all_who_share_them():
    host, mm = one()
    for i in range(3):
        mm.write(BASE + i * PAGE, 1 + i)
    child = mm.fork()
    child.mlock(BASE, PAGE)                  # its own copy now
    mm.exit()
    grandchild = child.fork()                # not locked, but of the same page
    host.reclaim()
    assert out(child) == [1, 2] and out(grandchild) == [1, 2]
    check(host)


def test_the_device_may_be_full():
    host, mm = one(swap_pages=3)
    for i in range(5):
        mm.write(BASE + i * PAGE, 1 + i)
    host.reclaim()
    assert out(mm) == [0, 1, 2] and host.swap_used == 3
    mm.madvise(BASE + 3 * PAGE, PAGE, "pageout")
    assert out(mm) == [0, 1, 2]
    mm.munmap(BASE, PAGE)
    mm.madvise(BASE + 3 * PAGE, PAGE, "pageout")
    assert out(mm) == [1, 2, 3] and keys(mm, 5)[1:] == [2, 3, 4, 5]
    check(host)


def test_a_pinned_page_is_unmapped_but_keeps_its_frame():
    host, mm = one()
    mm.write(BASE, 5)
    pfn = host.pin(mm, BASE)
    host.reclaim()
    assert out(mm) == [0] and host.frames_used == 2
    mm.read(BASE)
    assert mm.read_pfns(BASE, 1)[0] == pfn and host.swap_used == 0
    host.unpin(pfn)
    check(host)


def test_what_comes_back_alone_is_exclusive():
    """So a pin does not make a store copy it."""
    host, mm = one()
    mm.write(BASE, 5)
    host.reclaim()
    mm.read(BASE)
    pfn = host.pin(mm, BASE)
    mm.write(BASE, 6)
    assert mm.read_pfns(BASE, 1)[0] == pfn
    host.unpin(pfn)
    check(host)


def test_protection_goes_out_and_comes_back():
    host, mm = one()
    mm.write(BASE, 5)
    mm.uffd_wp(BASE, PAGE)
    host.reclaim()
    mm.read(BASE)
    with pytest.raises(OSError) as waits:
        mm.write(BASE, 6)
    assert waits.value.errno == errno.EFAULT and mm.read(BASE) == 5
    host.reclaim()
    mm.uffd_wp(BASE, PAGE, on=False)
    mm.write(BASE, 6)
    assert mm.read(BASE) == 6
    check(host)


def test_what_was_stored_to_after_madv_free_goes_out_at_the_second_try():
    host, mm = one()
    mm.write(BASE, 5)
    mm.madvise(BASE, PAGE, "free")
    mm.write(BASE, 6)
    mm.madvise(BASE, PAGE, "pageout")
    assert out(mm) == []
    mm.madvise(BASE, PAGE, "pageout")
    assert out(mm) == [0] and mm.read(BASE) == 6
    mm.madvise(BASE, PAGE, "free")
    mm.write(BASE, 7)
    host.reclaim()
    assert out(mm) == [0] and mm.read(BASE) == 7


def test_dontneed_free_munmap_and_exit_give_slots_back():
    host, mm = one()
    for i in range(8):
        mm.write(BASE + i * PAGE, 1 + i)
    child = mm.fork()
    host.reclaim()
    assert host.swap_used == 8
    for part in (mm, child):
        part.madvise(BASE, PAGE, "dontneed")
        part.madvise(BASE + PAGE, PAGE, "free")
        part.munmap(BASE + 2 * PAGE, PAGE)
    assert host.swap_used == 5
    mm.exit()
    check(host)
    assert host.swap_used == 5
    child.exit()
    assert host.swap_used == 0


def test_what_moves_keeps_its_place_among_relatives():
    """A page is known by its offset in its area, which mremap keeps, not by its address."""
    host, mm = one(1)
    mm.write(BASE, 5)
    child = mm.fork()
    host.reclaim()
    there = BASE + (1 << 30)
    child.mremap(BASE, PAGE, PAGE, there)
    mm.read(BASE)
    child.read(there)
    assert mm.read_pfns(BASE, 1)[0] == child.read_pfns(there, 1)[0]
    assert host.vmstat()["ksm_swpin_copy"] == 0
    check(host)


def test_a_second_device_and_none_are_refused():
    host, _ = one()
    with pytest.raises(OSError, match="1000 pages") as busy:
        host.swapon(5)
    assert busy.value.errno == errno.EBUSY
    host.swapoff()
    assert host.swap_pages == 0
    with pytest.raises(OSError) as none:
        host.swapoff()
    assert none.value.errno == errno.EINVAL
    host.swapon(5)
    assert host.swap_pages == 5


def test_swapoff_without_a_frame_leaves_the_device():
    host = ksmwalk.Host(600, swap_pages=900)
    mm = host.new_mm()
    mm.mmap(1100 * PAGE, BASE)
    for start in (0, 500):
        addrs = np.arange(BASE + start * PAGE, BASE + (start + 500) * PAGE, PAGE, np.uint64)
        mm.write_at(addrs, np.arange(1, 501, dtype=np.uint64))
        host.reclaim()
    with pytest.raises(ksmwalk.ArenaFullError):
        host.swapoff()
    assert host.swap_pages == 900 and keys(mm, 1000) == [*range(1, 501), *range(1, 501)]
    check(host)


def test_huge_pages_go_out_whole_while_there_is_room_for_one():
    host, mm = one(1024, swap_pages=600)
    mm.mmap(2 * HUGE, BASE + HUGE * 4)
    start = BASE + HUGE * 4
    mm.madvise(start, 2 * HUGE, "hugepage")
    for i in (0, 1, 512, 513):
        mm.write(start + i * PAGE, 1 + i)
    host.reclaim()
    addrs, _ = _swap.swapped(host.world, mm.index)
    # the first whole, of the second the pages that are not empty
    assert len(addrs) == host.swap_used == 512 + 2
    assert mm.read_keys(start + 512 * PAGE, 2).tolist() == [513, 514]
    check(host)


# ------------------------------------------------------------------ saved Hosts


def swapped():
    host, mm = one()
    for i in range(4):
        mm.write(BASE + i * PAGE, 1 + i)
    child = mm.fork()
    host.reclaim()
    child.read(BASE)
    return host, mm


def test_a_saved_host_keeps_what_is_out(tmp_path):
    host, mm = swapped()
    host.save(tmp_path / "h")
    for again in (ksmwalk.Host.load(tmp_path / "h"), pickle.loads(pickle.dumps(host))):
        check(again)
        assert again.swap_used == host.swap_used and keys(again.mm_by_number(mm.index)) == keys(mm)
        again.mm_by_number(mm.index).read(BASE)
        check(again)


@pytest.mark.parametrize(
    "field, record, value, text",
    [
        ("count", 1, 7, "entries that mean it"), ("count", 2, 0, "entries that mean it"), ("flags", 1, 0, "means no swap slot"),
        ("pfn", 2, 1 << 20, "no anonymous page"), ("pfn", 1, 2, "slots.pfn"), ("root", 1, 99, "not given out"),
        ("flags", 3, 65, "slots.flags"), ("root", 3, 1, "not in the swap cache"), ("key", 0, 3, "record 0"),
    ],
)  # fmt: skip
def test_forged_slots_are_refused_by_name(field, record, value, text):
    host, _ = swapped()
    state = host.__getstate__()
    state["arrays"]["slots"][field][record] = value
    with pytest.raises(ValueError, match="slot") as refused:
        pickle.loads(pickle.dumps(host)).__setstate__(state)
    assert text in str(refused.value)


@pytest.mark.parametrize("pfn, slot", [(3, 1), (3, 9999), (3, -1)])
def test_a_forged_swap_cache_is_refused_by_name(pfn, slot):
    host, _ = swapped()
    state = host.__getstate__()
    state["arrays"]["slot_of"][pfn] = slot
    with pytest.raises(ValueError, match="slot"):
        pickle.loads(pickle.dumps(host)).__setstate__(state)


def test_an_entry_without_a_slot_is_refused_by_name():
    host, _ = swapped()
    state = host.__getstate__()
    rows = state["arrays"]["rows"].reshape(-1)
    entry = next(i for i, e in enumerate(rows) if e and not int(e) & 0x101 and int(e) >> 59 == 0)
    rows[entry] -= np.uint64(500 << 9)
    with pytest.raises(ValueError, match="means no swap slot"):
        pickle.loads(pickle.dumps(host)).__setstate__(state)


# ------------------------------------------------------------------ anything, in any order

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "pageout", "cold", "dontneed", "willneed", "reclaim", "fork", "exit",
                         "swapoff", "step", "mlock", "huge"]),
        st.integers(0, 3), st.integers(0, 15), st.integers(0, 3),
    ),
    min_size=5, max_size=60,
)  # fmt: skip


@settings(deadline=None)
@given(STEPS, st.sampled_from([0, 3, 600]))
def test_contents_are_those_of_memory_that_never_goes_out(steps, room):
    """The same steps with and without swap: every process reads the same, and no count is off."""
    worlds = []
    for pages in (room, 0):
        host = ksmwalk.Host(1 << 14, swap_pages=pages) if pages else ksmwalk.Host(1 << 14)
        host.ksm.write("pages_to_scan", 1000)
        host.ksm.write("run", 1)
        worlds.append((host, run(host, steps, pages)))
    (host, seen), (_, plain) = worlds
    check(host)
    assert seen == plain


def run(host, steps, pages):
    """Contents of all processes after each step."""
    first = host.new_mm()
    first.mmap(1024 * PAGE, BASE)
    first.madvise(BASE, 1024 * PAGE, "mergeable")
    mms, seen = [first], []
    for what, who, page, key in steps:
        mm = mms[who % len(mms)]
        addr = BASE + page * PAGE
        if what == "write":
            mm.write(addr, key)
        elif what == "read":
            seen.append(int(mm.read(addr)))
        elif what in ("pageout", "cold", "dontneed", "willneed"):
            mm.madvise(addr, (key + 1) * PAGE, what)
        elif what == "reclaim":
            host.reclaim()
        elif what == "fork" and len(mms) < 4:
            mms.append(mm.fork())
        elif what == "exit" and len(mms) > 1:
            mms.remove(mm)
            mm.exit()
        elif what == "swapoff" and pages:
            host.swapoff()
            host.swapon(pages)
        elif what == "huge":
            mm.madvise(BASE + 512 * PAGE, 512 * PAGE, "hugepage")
            mm.write(BASE + (512 + page) * PAGE, key)
            mm.madvise(BASE + 512 * PAGE, (1 + 511 * (key & 1)) * PAGE, "pageout")
        elif what == "mlock" and key == 0:
            mm.mlock(addr, PAGE)
            mm.munlock(addr, PAGE)
        elif what == "step":
            host.ksm.step()
        seen.append([mm.read_keys(BASE, 16).tolist() + mm.read_keys(BASE + 512 * PAGE, 16).tolist() for mm in mms])
    return seen


def test_a_locked_huge_page_across_two_tables_is_not_locked_as_a_whole():
    """Moved off its place it has parts in two tables; what the first of them maps is asked for up to its end only."""
    host = ksmwalk.Host(4096, swap_pages=2048)
    a = host.new_mm()
    a.mmap(512 * 4096, 1 << 30)
    a.madvise(1 << 30, 512 * 4096, "hugepage")
    a.write(1 << 30, np.arange(1, 513, dtype=np.uint64))
    to = (1 << 31) + 300 * 4096
    a.mremap(1 << 30, 512 * 4096, 512 * 4096, to)
    a.mlock(to, 512 * 4096)
    host.reclaim()
    assert (a.read_pfns(to, 512) >= 0).all() and host.swap_used == 0
    a.munlock(to, 512 * 4096)
    host.reclaim()
    assert (a.read_pfns(to, 512) == -1).all() and host.swap_used == 512
    check(host)


@pytest.mark.parametrize(("others", "split"), [(30, False), (31, False), (32, True)])
def test_what_madv_free_marked_and_still_waits_does_not_keep_the_shrinker_off(others, split):
    """128 marked, four of them in a batch: as if there were fewer. Of 31 others the kernel itself says now this, now that."""
    host = ksmwalk.Host(8192, swap_pages=4096)
    host.lru_batch, host.khuge_limits = 31, {"max_ptes_none": 100}
    mm = host.new_mm()
    small, huge = mm.mmap((128 + others) * PAGE), mm.mmap(512 * PAGE)
    mm.write(small, np.arange(1, 129 + others, dtype=np.uint64))
    mm.madvise(huge, 512 * PAGE, "hugepage")
    mm.write(huge, np.array([0, 5] * 256, np.uint64))
    mm.madvise(small, 128 * PAGE, "free")
    host.reclaim()
    assert len(mm.absent_entries()) == others + (256 if split else 512)
