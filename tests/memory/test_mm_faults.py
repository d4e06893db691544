"""Faults, huge pages, splitting, unmerging: single cases with their counts."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
from hostcheck import check

from ksmwalk import ArenaFullError, BadEntryError, Frame, Host, Vm, entries
from ksmwalk.host import _doors as _host
from ksmwalk.layout import Code

PAGE, PMD = 4096, 1 << 21
AT = 0x40000000
RANGE, PER_ADDRESS = 0, 1


def area(host, pages, *advice, addr=AT):
    mm = host.new_mm()
    mm.mmap(pages * PAGE, addr)
    for word in advice:
        mm.madvise(addr, pages * PAGE, word)
    return mm


def entry(mm, addr):
    m = mm.tables.lookup(addr)
    return SimpleNamespace(pfn=int(m["pfn"]), flags=int(m["flags"]), level=int(m["level"]))


def merge(host, scans=3):
    host.ksm.run = 1
    for _ in range(scans):
        host.ksm.do_scan(100000)


def test_first_load_maps_the_zero_page_and_leaves_no_anon_vma():
    host = Host(4096)
    mm = area(host, 4)
    assert mm.read(AT) == 0
    m = entry(mm, AT)
    assert m.pfn == 0 and m.flags & 0x200 and not m.flags & (0x40 | 2)
    assert mm.vmas[0].anon_vma is None and host.frames_used == 1
    mm.write(AT, 0)
    m = entry(mm, AT)
    assert m.pfn != 0 and m.flags & 0x42 == 0x42 and mm.vmas[0].anon_vma is not None
    check(host)


@pytest.mark.parametrize("levels", [4, 5])
def test_huge_pages_only_where_the_aligned_2_mib_fit(levels):
    host = Host(16 * 512, levels=levels)
    mm = area(host, 3 * 512, "hugepage", addr=AT + 8 * PAGE)
    for page in (8, 512, 3 * 512):
        mm.write(AT + page * PAGE, 1)
    assert [entry(mm, AT + page * PAGE).level for page in (8, 512, 3 * 512)] == [1, 2, 1]
    assert np.count_nonzero(mm.read_keys(AT + PMD, 512)) == 1
    mm.thp_disable(True)
    mm.write(AT + PMD * 2, 1)
    assert entry(mm, AT + PMD * 2).level == 1
    check(host)


@pytest.mark.parametrize(("thp", "advice", "huge"), [
    ("never", "hugepage", False), ("madvise", "hugepage", True), ("madvise", "normal", False),
    ("always", "normal", True), ("always", "nohugepage", False),
])  # fmt: skip
def test_thp_policy(thp, advice, huge):
    host = Host(4096, thp=thp)
    mm = area(host, 512, advice)
    mm.write(AT, 1)
    assert (entry(mm, AT).level == 2) == huge


def test_a_load_maps_the_huge_zero_page_and_a_store_replaces_it_as_a_whole():
    host = Host(4096)
    mm = area(host, 512, "hugepage")
    mm.read(AT + 5 * PAGE)
    m = entry(mm, AT)
    zero = int(m.pfn)
    assert m.level == 2 and host.frames.flags[zero] & Frame.ZERO and mm.vmas[0].anon_vma is not None
    child = mm.fork()
    assert entry(child, AT).level == 2
    mm.write(AT + 6 * PAGE, 9)
    assert entry(mm, AT).level == 2 and entry(mm, AT).pfn != zero
    assert list(mm.read_keys(AT + 5 * PAGE, 3)) == [0, 9, 0]
    child.mprotect(AT, PAGE, "r")
    assert entry(child, AT).level == 1 and host.frames.flags[zero] & Frame.ZERO
    check(host)


def test_a_store_after_fork_copies_one_page_of_a_huge_page():
    host = Host(8192)
    mm = area(host, 512, "hugepage")
    mm.write(AT, np.arange(512, dtype=np.uint64))
    child = mm.fork()
    before = mm.read_pfns(AT, 512)
    child.write(AT + 3 * PAGE, 77)
    after = child.read_pfns(AT, 512)
    assert np.flatnonzero(after != before).tolist() == [3]
    assert entry(mm, AT).level == 2 and entry(child, AT).level == 1
    # The folio is still shared: the page only the parent maps now is copied as well.
    assert host.frames.mapcount[before[3]] == 1
    mm.write(AT + 3 * PAGE, 88)
    assert int(mm.read_pfns(AT + 3 * PAGE, 1)[0]) != int(before[3])
    check(host)
    child.exit()
    was = mm.read_pfns(AT + 9 * PAGE, 1)[0]
    mm.write(AT + 9 * PAGE, 99)
    assert mm.read_pfns(AT + 9 * PAGE, 1)[0] == was, "nobody else maps the folio any more"
    check(host)


def test_a_huge_page_that_lost_pages_stays_whole_until_the_last_goes():
    host = Host(4096)
    mm = area(host, 512, "hugepage")
    mm.write(AT, 1)
    mm.madvise(AT + 10 * PAGE, 500 * PAGE, "dontneed")
    assert host.frames_used == 513 and entry(mm, AT).level == 1
    check(host)
    mm.munmap(AT, 10 * PAGE)
    assert host.frames_used == 513
    mm.munmap(AT, PMD)
    assert host.frames_used == 1
    check(host)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("hint", [False, True])
def test_splitting_a_folio_reaches_every_mapping_and_drops_empty_pages(moved, hint):
    host = Host(8192)
    mm = area(host, 512, "hugepage")
    keys = np.arange(512, dtype=np.uint64)
    keys[100:110] = 0
    mm.write(AT, keys)
    child, grandchild = mm.fork(), mm.fork()
    at = AT
    if moved:
        at = child.mremap(AT, PMD, PMD, AT + 5 * PMD + 7 * PAGE)
    grandchild.madvise(AT + 20 * PAGE, 5 * PAGE, "dontneed")
    head = int(mm.read_pfns(AT, 1)[0])
    assert _host.split(host.world, head + 3, AT + 3 * PAGE if hint else None) == 0
    for who, where in ((mm, AT), (child, at), (grandchild, AT)):
        pfns, found = who.read_pfns(where, 512), who.read_keys(where, 512)
        want = keys.copy()
        if who is grandchild:
            want[20:25] = 0
            assert (pfns[20:25] == -1).all()
        assert np.array_equal(found, want)
        assert (pfns[100:110] == 0).all() and pfns[0] == 0
    assert not (host.frames.flags & (Frame.HEAD | Frame.TAIL)).any()
    assert host.frames_used == 1 + 512 - 11
    assert host.ksm.counters()["ksm_zero_pages"] == 0
    check(host)


def test_a_pinned_folio_is_not_split():
    host = Host(4096)
    mm = area(host, 512, "hugepage")
    mm.write(AT, 5)
    pfn = host.pin(mm, AT + 9 * PAGE)
    assert _host.split(host.world, pfn, None) == Code.BUSYENTRY
    assert entry(mm, AT).level == 2
    host.unpin(pfn)
    assert _host.split(host.world, pfn, None) == 0
    check(host)


def test_locked_memory_keeps_its_empty_pages_when_split():
    host = Host(4096)
    mm = area(host, 512, "hugepage")
    mm.write(AT, 5)
    mm.mlock(AT, PMD)
    assert _host.split(host.world, int(mm.read_pfns(AT, 1)[0]), AT) == 0
    assert (mm.read_pfns(AT, 512) > 0).all()
    check(host)


def test_a_page_that_waits_on_the_lru_batch_outlives_its_mapping():
    host = Host(4096)
    host.lru_batch = 15
    mm = area(host, 4)
    mm.write(AT, 1)
    pfn = int(mm.read_pfns(AT, 1)[0])
    assert host.frames.refs[pfn] == 2
    mm.munmap(AT, PAGE)
    assert host.frames_used == 2
    check(host)
    host.drain()
    assert host.frames_used == 1
    check(host)


def spread(host, pages=1000, span=1 << 45, placed_zero=0):
    """`pages` equal pages spread over a mapping of `span` bytes, merged."""
    mm = host.new_mm()
    start = mm.mmap(span, 1 << 44, noreserve=True)
    mm.madvise(start, span, "mergeable")
    step = span // pages & -PAGE
    for i in range(pages):
        mm.write(start + i * step, 7)
    merge(host)
    assert mm.ksm_stat()["ksm_merging_pages"] == pages
    return mm, start, step


@pytest.mark.parametrize("strategy", ["range", "per-address"])
def test_unmerging_32_tib(strategy):
    host = Host(16384)
    host.ksm.max_page_sharing = 100000
    mm, start, step = spread(host)
    host.ksm.scan.strategy = strategy
    host.ksm.scan.reset_work()
    used, epoch = host.frames_used, mm.epoch
    mm.madvise(start, 1 << 45, "unmergeable")
    assert host.frames_used == used + 999
    assert mm.epoch > epoch and not mm.vmas[0].mergeable
    work = host.ksm.scan.work
    assert work["found"] == 1000
    if strategy == "per-address":
        assert work["lookups"] == 2**33 + 1000 and work["lookup_misses"] == 2**33
        assert work["pte"] == 0 and work["resched"] == work["lookups"]
    else:
        assert work["lookups"] == 0
        assert work["pte"] == 1000 * 512
        assert work["pmd"] <= 1000 * 512 and work["resched"] == 1000
    check(host)


def test_really_looked_up_and_closed_form_agree():
    work = []
    for real in (False, True):
        host = Host(8192)
        host.ksm.max_page_sharing = 1000
        mm = area(host, 3000, "mergeable")
        mm.write(AT, np.arange(900, dtype=np.uint64) % 3)
        merge(host)
        host.ksm.scan.strategy, host.ksm.scan.real_lookups = "per-address", real
        host.ksm.scan.reset_work()
        mm.madvise(AT, 3000 * PAGE, "unmergeable")
        work.append(host.ksm.scan.work)
        check(host)
    assert work[0] == work[1] and work[0]["found"] == 900


def test_unmerging_keeps_permissions_and_breaks_every_kind():
    host = Host(8192)
    host.ksm.use_zero_pages = 1
    mm = area(host, 8, "mergeable")
    mm.write(AT, [5, 5, 5, 5, 0, 0, 6, 7])
    mm.mprotect(AT + PAGE, PAGE, "none")
    mm.uffd_wp(AT + 2 * PAGE, PAGE)
    merge(host)
    assert mm.ksm_stat()["ksm_zero_pages"] == 2 and host.ksm.counters()["ksm_zero_pages"] == 2
    mm.madvise(AT, 8 * PAGE, "unmergeable")
    pfns = mm.read_pfns(AT, 8)
    assert len(set(pfns.tolist())) == 8 and not (host.frames.flags[pfns] & Frame.KSM).any()
    assert list(mm.read_keys(AT, 8)) == [5, 5, 5, 5, 0, 0, 6, 7]
    assert host.ksm.counters()["ksm_zero_pages"] == 0 and mm.ksm_stat()["ksm_zero_pages"] == 0
    assert not entry(mm, AT + PAGE).flags & 1
    check(host)


def test_ksm_zero_pages_are_counted_down_by_whatever_takes_them():
    host = Host(8192)
    host.ksm.use_zero_pages = 1
    mm = area(host, 6, "mergeable")
    mm.write(AT, [0] * 6)
    merge(host)

    def counts():
        return mm.ksm_stat()["ksm_zero_pages"], host.ksm.counters()["ksm_zero_pages"]

    assert counts() == (6, 6)
    mm.write(AT, 1)
    assert counts() == (5, 5)
    mm.madvise(AT + PAGE, PAGE, "dontneed")
    mm.munmap(AT + 2 * PAGE, PAGE)
    assert counts() == (3, 3)
    child = mm.fork()
    assert child.ksm_stat()["ksm_zero_pages"] == 3 and host.ksm.counters()["ksm_zero_pages"] == 6
    child.exit()
    assert counts() == (3, 3)
    check(host)


def test_a_freed_ksm_page_makes_its_node_stale():
    host = Host(4096)
    mm = area(host, 2, "mergeable")
    mm.write(AT, [5, 5])
    merge(host)
    pfn = int(mm.read_pfns(AT, 1)[0])
    node = int(host.frames.node[pfn])
    assert node and host.world.arrays["nodes"]["pfn"][node] == pfn
    mm.madvise(AT, 2 * PAGE, "dontneed")
    assert host.world.arrays["nodes"]["pfn"][node] == -1 and not host.frames.flags[pfn]


@pytest.mark.parametrize("kind", ["file", "io", "pfnmap", "dontexpand", "mixedmap", "droppable", "dax", "hugetlb"])
def test_kinds_and_what_ksm_thinks_of_them(kind):
    host = Host(8192)
    mm = host.new_mm()
    start = mm.mmap(PMD, AT, kind=kind)
    mm.madvise(start, PMD, "mergeable")
    vma = mm.vmas[0]
    if kind == "file":
        assert vma.mergeable and vma.why_not is None
    else:
        assert not vma.vm_flags & Vm.MERGEABLE and not vma.mergeable and vma.why_not
    if kind in ("io", "pfnmap"):
        with pytest.raises(OSError) as err:
            mm.write(start, 1)
        assert err.value.errno == errno.EFAULT
    else:
        mm.write(start + PAGE, 3)
        child = mm.fork()
        want = 0 if kind == "droppable" else 3
        assert child.read(start + PAGE) == want
        child.write(start + PAGE, 4)
        assert mm.read(start + PAGE) == 3
        child.exit()
    check(host)
    mm.exit()
    assert host.frames_used == 1
    check(host)


def test_raw_frames_are_special_and_need_not_exist():
    host = Host(1024)
    mm = host.new_mm()
    start = mm.mmap(4 * PAGE, AT, kind="pfnmap", pfn=0xFEDC0)
    assert [int(m["pfn"]) for m in mm.tables.mappings()] == [0xFEDC0, 0xFEDC1, 0xFEDC2, 0xFEDC3]
    assert all(entries.special(np.uint64(m["flags"])) for m in mm.tables.mappings())
    child = mm.fork()
    assert len(child.tables.mappings()) == 4
    mm.munmap(start, 4 * PAGE)
    check(host)


def test_shared_memory_is_seen_by_all_and_goes_with_the_last():
    host = Host(4096)
    mm = host.new_mm()
    start = mm.mmap(4 * PAGE, shared=True)
    mm.write(start, 1)
    child = mm.fork()
    assert child.read(start) == 1
    child.write(start + PAGE, 2)
    assert mm.read(start + PAGE) == 2 and mm.read_pfns(start, 2)[1] == child.read_pfns(start, 2)[1]
    mm.exit()
    assert child.read(start) == 1
    check(host)
    child.exit()
    assert host.frames_used == 1 and host.tables.nr_tables == 0


def test_one_object_mapped_twice():
    host = Host(4096)
    mm = host.new_mm()
    thing = host.new_object(3 * PAGE)
    one = mm.mmap(4 * PAGE, kind="file", backing=thing, shared=True)
    two = mm.mmap(2 * PAGE, kind="file", backing=thing, offset=PAGE)
    mm.write(one + PAGE, 9)
    assert mm.read(two) == 9
    mm.write(two, 8)
    assert mm.read(one + PAGE) == 9 and mm.read(two) == 8
    with pytest.raises(OSError) as err:
        mm.write(one + 3 * PAGE, 1)
    assert err.value.errno == errno.EFAULT
    host.drop_object(thing)
    assert mm.read(one + PAGE) == 9
    mm.exit()
    assert host.frames_used == 1
    check(host)


def test_populate_at_array_speed_equals_single_stores():
    keys = np.arange(3000, dtype=np.uint64) * 7 % 50
    hosts = []
    for single in (False, True):
        host = Host(16384, thp="always")
        mm = area(host, 3000, addr=AT + 100 * PAGE)
        start = AT + 100 * PAGE
        if single:
            for i, key in enumerate(keys):
                mm.write(start + i * PAGE, int(key))
        else:
            mm.populate(start, 3000 * PAGE, keys)
        check(host)
        hosts.append(host)
    for name in ("f_flags", "f_key", "f_mapcount", "f_extra", "rows", "b_free"):
        a, b = (h.world.arrays[name][: h._used(name)] for h in hosts)
        assert np.array_equal(a, b), name


def test_populate_leaves_contents():
    host = Host(4096)
    mm = area(host, 6)
    mm.write(AT, [1, 2, 3])
    child = mm.fork()
    child.populate(AT, 6 * PAGE)
    assert list(child.read_keys(AT, 6)) == [1, 2, 3, 0, 0, 0]
    assert not set(child.read_pfns(AT, 6)) & set(mm.read_pfns(AT, 3))
    check(host)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda mm: mm.mmap(0), errno.EINVAL),
        (lambda mm: mm.mmap(PAGE, AT + 1), errno.EINVAL),
        (lambda mm: mm.mmap(1 << 47), errno.ENOMEM),
        (lambda mm: mm.munmap(AT, 0), errno.EINVAL),
        (lambda mm: mm.munmap(AT + 5, PAGE), errno.EINVAL),
        (lambda mm: mm.mprotect(AT + 8 * PAGE, PAGE, "r"), errno.ENOMEM),
        (lambda mm: mm.madvise(AT, 16 * PAGE, "mergeable"), errno.ENOMEM),
        (lambda mm: mm.madvise(AT, PAGE, 77), errno.EINVAL),
        (lambda mm: mm.madvise(AT + 1, PAGE, "dontneed"), errno.EINVAL),
        (lambda mm: mm.mremap(AT, PAGE, 0), errno.EINVAL),
        (lambda mm: mm.mremap(AT + 9 * PAGE, PAGE, PAGE * 2), errno.EFAULT),
        (lambda mm: mm.mremap(AT, 4 * PAGE, 4 * PAGE, AT + PAGE), errno.EINVAL),
        (lambda mm: mm.mremap(AT, 4 * PAGE, 8 * PAGE, maymove=False), errno.ENOMEM),
        (lambda mm: mm.write(AT + 20 * PAGE, 1), errno.EFAULT),
        (lambda mm: mm.read(AT + 20 * PAGE), errno.EFAULT),
        (lambda mm: mm.mlock(AT, 16 * PAGE), errno.ENOMEM),
        (lambda mm: mm.uffd_wp(AT + 20 * PAGE, PAGE), errno.EINVAL),
    ],
)
def test_errors_of_bad_calls(call, code):
    host = Host(4096)
    mm = area(host, 8)
    with pytest.raises(OSError) as err:
        call(mm)
    assert err.value.errno == code
    check(host)


def test_madvise_over_a_hole_does_what_is_there():
    host = Host(4096)
    mm = area(host, 8)
    mm.munmap(AT + 2 * PAGE, PAGE)
    with pytest.raises(OSError, match="mergeable") as err:
        mm.madvise(AT, 8 * PAGE, "mergeable")
    assert err.value.errno == errno.ENOMEM
    assert [v.mergeable for v in mm.vmas] == [True, True]


@pytest.mark.parametrize(("call", "error"), [
    (lambda mm: mm.mmap(PAGE, kind="what"), "kind 'what'"), (lambda mm: mm.mmap(PAGE, prot="q"), "prot 'q'"),
    (lambda mm: mm.madvise(AT, PAGE, "please"), "advice 'please'"), (lambda mm: mm.write(AT + 1, 1), "page aligned"),
    (lambda mm: mm.populate(AT, 2 * PAGE, [1]), "1 keys for 2 pages"),
])  # fmt: skip
def test_nonsense_is_named(call, error):
    mm = area(Host(4096), 8)
    with pytest.raises(ValueError, match=error):
        call(mm)


def test_top_down_placement_and_alignment():
    mm = Host(4096).new_mm()
    a = mm.mmap(3 * PAGE)
    b = mm.mmap(2 * PAGE)
    assert b + 2 * PAGE == a and len(mm.vmas) == 1, "neighbours that are alike become one"
    c = mm.mmap(2 * PMD)
    assert c % PMD == 0 and c + 2 * PMD <= b


def test_processes_come_and_go_without_end():
    host = Host(4096)
    mm = area(host, 2, "mergeable")
    mm.write(AT, [5, 5])
    for _ in range(60):
        child = mm.fork()
        child.write(AT, 6)
        merge(host, 2)
        child.exit()
        merge(host, 1)
    assert len(host.mms) < 8 and host.tables.nr_tables == mm.nr_tables
    check(host)


def test_entries_written_by_hand_are_never_trusted():
    """Frames that are not allocated, beyond memory, tables for pages: nothing may crash, nothing be freed twice."""
    host = Host(2048)
    rng = np.random.default_rng(5)
    mm = area(host, 2048)
    mm.write(AT, np.arange(700, dtype=np.uint64))
    rows = host._arrays["rows"]
    at = mm.tables.root
    for shift in (39, 30):
        at = int(rows[at, AT >> shift & 511]) >> 12 & 0xFFFFFFFF
    first = int(rows[at, AT >> 21 & 511]) >> 12 & 0xFFFFFFFF
    for _ in range(60):
        pfn = int(rng.choice([1, 700, 2000, 2047, 5000, 2**39]))
        rows[first, rng.integers(512)] = pfn << 12 | int(rng.choice([0x25, 0x67, 0xE7, 0x100, 0x600, 0x267]))
        rows[at, 1 + rng.integers(7)] = pfn << 12 | int(rng.choice([0xE7, 0xA5, 0x180, 0x2A5]))
    for call in (
        lambda m: m.read(AT + 5 * PAGE), lambda m: m.write(AT + 9 * PAGE, 3), lambda m: m.read_keys(AT, 2048),
        lambda m: m.fork().exit(), lambda m: m.mprotect(AT, 2048 * PAGE, "r"),
        lambda m: m.mprotect(AT, 2048 * PAGE, "rw"),
        lambda m: m.mremap(AT, PMD, PMD, AT + 9 * PMD + 3 * PAGE), lambda m: m.populate(AT, 100 * PAGE),
        lambda m: m.madvise(AT, 2 * PMD, "collapse"), lambda m: m.madvise(AT, 2 * PMD, "free"), lambda m: m.exit(),
    ):  # fmt: skip
        try:
            call(mm)
        except (OSError, ArenaFullError, BadEntryError):
            pass
    other = area(host, 300)
    other.populate(AT, 300 * PAGE)
    assert len(set(other.read_pfns(AT, 300))) == 300


def test_many_areas():
    host = Host(1 << 16)
    mm = host.new_mm()
    n = 20000
    start = mm.mmap(2 * n * PAGE, AT)
    for i in range(n):
        mm.mprotect(AT + 2 * i * PAGE, PAGE, "r")
    assert len(mm.vmas) == 2 * n
    mm.madvise(start, 2 * n * PAGE, "mergeable")
    assert all(v.mergeable for v in mm.vmas)
    assert mm.find_vma(AT).vm_end == AT + PAGE and mm.find_vma(AT + 2 * n * PAGE) is None
    child = mm.fork()
    child.mprotect(start, 2 * n * PAGE, "rw")
    assert len(child.vmas) == 1
    with pytest.raises(OSError) as err:
        for i in range(40000):
            mm.mmap(PAGE, AT * 4 + 2 * i * PAGE)
    assert err.value.errno == errno.ENOMEM and len(mm.vmas) == 65530


def test_five_levels_reach_beyond_47_bits():
    host = Host(4096, levels=5)
    mm = host.new_mm()
    high = mm.mmap(4 * PAGE, 1 << 55)
    mm.write(high, [1, 2])
    assert list(mm.read_keys(high, 2)) == [1, 2] and mm.nr_tables == 5
    assert mm.mmap(PAGE) < 1 << 47, "without a hint the lower half is used"
    with pytest.raises(OSError):
        Host(4096).new_mm().mmap(PAGE, 1 << 55)
    check(host)


def test_an_area_in_the_place_of_the_one_found_last():
    mm = Host(4096).new_mm()
    mm.mmap(2 * PAGE, AT + 2 * PAGE)
    assert mm.find_vma(AT + 2 * PAGE) is not None
    mm.mmap(5 * PAGE, AT)
    assert [(v.vm_start, v.vm_end) for v in mm.vmas] == [(AT, AT + 5 * PAGE)]


def test_raw_frames_that_find_no_room_leave_no_area_behind():
    host = Host(1024)
    mm = host.new_mm()
    with pytest.raises(ArenaFullError, match="table pages"):
        mm.mmap(1 << 40, kind="pfnmap", pfn=9)
    assert mm.vmas == [] and mm.nr_tables <= 4
    check(host)


def test_whole_areas_can_go_from_a_host_without_table_pages():
    host = Host(1024)
    mm = host.new_mm()
    mm.mmap(512 << 30, 1 << 40)
    with pytest.raises(ArenaFullError):
        for i in range(512):
            mm.read((1 << 40) + (i << 30), 1)
            mm.mmap(2 << 30, (2 << 40) + (i << 32), kind="pfnmap", pfn=9)
    mm.munmap(1 << 40, 1 << 46)
    assert mm.vmas == [] and host.tables.nr_tables == 1
    check(host)


@pytest.mark.parametrize("store", [True, False])
def test_a_file_of_small_pages_gives_no_huge_one(store):
    """Where a table stands in the file's tree, its row number is no frame."""
    host = Host(4096)
    mm = host.new_mm()
    file = host.new_object(2 * PMD)
    mm.write(mm.mmap(PMD, shared=True, backing=file), [1, 2, 3])
    huge = mm.mmap(PMD, kind="hugetlb", shared=True, backing=file)
    with pytest.raises(OSError, match="Bad address"):
        mm.write(huge, 5) if store else mm.read(huge, 1)
    check(host)
