"""Callbacks that free what is being walked: entries refuse, the walk ends with a clear error, nothing is corrupted."""

import hostcheck
import numpy as np
import pytest

from ksmwalk import Host, MmWalkOps, PageTables, walk_page_range, walk_page_range_novma, walk_page_vma
from ksmwalk.errors import BadEntryError
from ksmwalk.layout import Bad

PAGE, M, GIB = 4096, 1 << 20, 1 << 30
AT = GIB


def process(host, pages=2048, **how):
    mm = host.new_mm()
    mm.mmap(pages * PAGE, AT, **how)
    mm.write(AT, np.arange(1, pages + 1, dtype=np.uint64))
    return mm


LEVELS = ["pte_entry", "pmd_entry", "pud_entry", "pgd_entry", "p4d_entry"]


@pytest.mark.parametrize("callback", LEVELS)
@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("way", ["munmap", "exit", "exec"])
def test_an_entry_of_a_freed_table_is_not_written(callback, levels, way):
    host = Host(16384, levels=levels)
    mm, other = process(host), process(host)
    called = []

    def entry_callback(entry, addr, next, walk):
        called.append(addr)
        {"munmap": lambda: mm.munmap(AT, 2048 * PAGE), "exit": mm.exit, "exec": mm.exec}[way]()
        again = process(host)  # takes the tables that were freed
        if way == "munmap" and callback in ("pgd_entry", "p4d_entry") and entry.level == levels:
            entry.value = 0  # the top table stays as long as its process
        else:
            for use in (lambda: setattr(entry, "value", 0), lambda: entry.value, lambda: entry.ptes, lambda: int(entry)):
                with pytest.raises(ReferenceError, match="was freed"):
                    use()
        assert again.read(AT) == 1

    ops = MmWalkOps(**{callback: entry_callback})
    if way == "munmap" and callback in ("pgd_entry", "p4d_entry"):
        if levels == 4 or callback == "pgd_entry":
            assert walk_page_range(mm, AT, AT + 2048 * PAGE, ops) == 0
            hostcheck.check(host)
            return
    with pytest.raises(ReferenceError, match="a callback freed the page tables that were being walked"):
        walk_page_range(mm, AT, AT + 2048 * PAGE, ops)
    assert len(called) == 1 and other.read(AT) == 1
    hostcheck.check(host)
    host.ksm.do_scan(1)


def test_a_callback_may_free_other_tables_and_those_below():
    host = Host(16384)
    mm, other = process(host), process(host)

    def pte_entry(entry, addr, next, walk):
        if addr == AT:
            other.exit()
            mm.munmap(AT + 4 * M, 4 * M)
        e = entry.value
        entry.value = e
        return None

    assert walk_page_range(mm, AT, AT + 4 * M, MmWalkOps(pte_entry=pte_entry)) == 0
    holes = []
    ops = MmWalkOps(
        pmd_entry=lambda e, addr, *a: mm.munmap(addr, 2 * M), pte_entry=lambda *a: 1 / 0,
        pte_hole=lambda addr, next, depth, walk: holes.append((addr, next)),
    )  # fmt: skip
    # The second of them takes the pmd table along.
    with pytest.raises(ReferenceError, match=hex(AT + 2 * M)):
        walk_page_range(mm, AT, AT + 4 * M, ops)
    hostcheck.check(host)


def test_a_callback_that_ends_the_walk_may_free_what_it_likes():
    host = Host(16384)
    mm = process(host)

    def stop(*args):
        mm.exit()
        return 7

    assert walk_page_range(mm, AT, AT + 4 * M, MmWalkOps(pte_entry=stop)) == 7

    def fail(*args):
        mm.exit()
        raise KeyError("mine")

    mm = process(host)
    with pytest.raises(KeyError, match="mine"):
        walk_page_range(mm, AT, AT + 4 * M, MmWalkOps(pte_entry=fail))
    hostcheck.check(host)


@pytest.mark.parametrize("callback", ["pte_hole", "test_walk", "pre_vma", "post_vma"])
def test_a_process_that_exits_in_its_walk_is_not_walked_on(callback):
    host = Host(16384)
    mm = process(host)
    mm.munmap(AT + PAGE, 2 * M)
    calls = []

    def exits(*args):
        if not calls:
            mm.exit()
            process(host)
        calls.append(args)

    ops = MmWalkOps(pte_entry=lambda *a: None, **{callback: exits})
    with pytest.raises(ReferenceError, match="a callback freed"):
        walk_page_range(mm, AT - M, AT + 16 * M, ops)
    assert len(calls) == 1
    hostcheck.check(host)


def test_an_area_that_a_callback_unmapped_is_gone():
    host = Host(16384)
    mm = process(host)

    def pre_vma(start, end, walk):
        mm.munmap(AT, 2048 * PAGE)
        with pytest.raises(ReferenceError, match="gone"):
            walk.vma.vm_flags  # noqa: B018
        return 3

    assert walk_page_range(mm, AT, AT + PAGE, MmWalkOps(pre_vma=pre_vma, pte_entry=lambda *a: 0)) == 3


@pytest.mark.parametrize("whole", [False, True])
def test_hugetlb_entries_of_freed_tables(whole):
    host = Host(8192)
    mm = process(host, 2048, kind="hugetlb")
    before = []

    def hugetlb_entry(entry, addr, next, walk):
        before.append(entry.value)
        if len(before) == 2:
            mm.munmap(AT if whole else addr, 8 * M if whole else 2 * M)
            if whole:
                with pytest.raises(ReferenceError, match="was freed"):
                    entry.value = before[0]
            else:
                assert entry.none
        return None

    assert walk_page_vma(mm.vmas[0], MmWalkOps(hugetlb_entry=hugetlb_entry)) == 0
    assert len(before) == (2 if whole else 4)
    hostcheck.check(host)


def test_a_view_of_the_ptes_can_be_written_to_during_its_callback_only():
    host = Host(16384)
    mm = process(host)
    kept = []

    def pmd_entry(entry, addr, next, walk):
        ptes = entry.ptes
        assert ptes is entry.ptes and ptes.flags.writeable
        ptes[0] = ptes[0]
        kept.append(ptes)

    epoch = mm.epoch
    walk_page_range(mm, AT, AT + 4 * M, MmWalkOps(pmd_entry=pmd_entry))
    assert mm.epoch > epoch, "they may have been written to"
    for ptes in kept:
        with pytest.raises(ValueError, match="read-only"):
            ptes[0] = 0
        assert ptes[0]
    mm.exit()
    assert not kept[0][1:].any()


def test_a_scribbled_free_table_is_not_handed_out():
    """Through a view that a callback kept past the end of its table."""
    host = Host(16384)
    mm = process(host)

    def pmd_entry(entry, addr, next, walk):
        part = entry.ptes[3:]
        whole = entry.ptes
        mm.munmap(AT, 2048 * PAGE)
        part[:] = 0xDEADBEEF
        whole[0] = 1 << 40
        return 1

    assert walk_page_range(mm, AT, AT + 4 * M, MmWalkOps(pmd_entry=pmd_entry)) == 1
    mm.mmap(64 * M, AT)
    # A link that leads nowhere ends the list of free pages: fresh ones are used, zeroed ones.
    mm.write(AT, np.arange(16000, dtype=np.uint64) % 7)
    assert mm.read_keys(AT, 16000).tolist() == [i % 7 for i in range(16000)]
    hostcheck.check(host)


def test_walks_of_an_arena_of_its_own():
    tables = PageTables()
    tables.map_range(GIB, np.arange(1, 1025, dtype=np.uint64))

    def pte_entry(entry, addr, next, walk):
        tables.unmap(0, 1 << 47)
        entry.value = 5

    with pytest.raises(ReferenceError, match="level 1 was freed"):
        walk_page_range_novma(tables, GIB, GIB + 4 * M, MmWalkOps(pte_entry=pte_entry))
    assert tables.nr_tables == 1


def test_no_frame_keeps_a_walk_that_failed():
    import gc
    import weakref

    host = Host(16384)
    mm = process(host)
    watch = weakref.ref(host)

    def fail(entry, addr, next, walk):
        raise KeyError

    gc.disable()
    try:
        with pytest.raises(KeyError):
            walk_page_range(mm, AT, AT + PAGE, MmWalkOps(pte_entry=fail))
        del mm, host
        assert watch() is None
    finally:
        gc.enable()


def child(tables, row, index):
    return int(tables.rows[row, index]) >> 12 & (1 << 40) - 1


def path(mm):
    """Rows of the tables at AT: of level 4, 3, 2, 1."""
    rows = [mm.tables.root]
    for level in (4, 3, 2):
        rows.append(child(mm.tables, rows[-1], AT >> 3 + 9 * level & 511))
    return dict(zip((4, 3, 2, 1), rows, strict=True))


#: where an entry of that level leads once it was written over
STRAY = {
    "a freed table": lambda host, mm, other, level: int(host.world.arrays["ctl"]["rows_free"][0]),
    "another process's table": lambda host, mm, other, level: path(other)[level - 1],
    "a table of another level": lambda host, mm, other, level: child(mm.tables, path(mm)[3], 8) if level == 2 else path(mm)[1],
    "row 0": lambda host, mm, other, level: 0,
}


@pytest.mark.parametrize("where", STRAY)
@pytest.mark.parametrize("level", [2, 3])
def test_an_entry_written_over_leads_to_no_table_but_its_own(where, level):
    host = Host(16384)
    mm, other, gone = process(host), process(host), process(host)
    mm.write(mm.mmap(PAGE, 8 * GIB), 1)
    gone.exit()
    tables = mm.tables
    place = path(mm)[level], AT >> 3 + 9 * level & 511
    stray = STRAY[where](host, mm, other, level) << 12 | 0x67
    assert len(tables.mappings()) == 2049
    host.world.arrays["rows"][place] = np.uint64(stray)
    # Nothing is read through it, nothing handed out.
    for call in (
        tables.mappings, lambda: tables.lookup(AT),
        lambda: walk_page_range(mm, AT, AT + 8 * M, MmWalkOps(pte_entry=lambda *a: None)),
        lambda: walk_page_range_novma(tables, AT, AT + 8 * M, MmWalkOps(pte_entry=lambda *a: None)),
    ):  # fmt: skip
        with pytest.raises(BadEntryError) as caught:
            call()
        assert (caught.value.level, caught.value.entry, caught.value.kind) == (level, stray, Bad.FRAME)
    if level == 2:
        seen = []
        ops = MmWalkOps(pmd_entry=lambda entry, *a: seen.append(entry.ptes) or 1)
        assert walk_page_range(mm, AT, AT + 2 * M, ops) == 1 and seen == [None]
