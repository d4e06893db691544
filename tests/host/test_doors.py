"""Doors to what is gone: an address space, an area, a Host. Each says so; none shows or changes what took the place."""

import copy
import errno
import gc
import weakref

import hostcheck
import numpy as np
import pytest

from ksmwalk import Host, Mm, MmWalkOps, PageTables, Vma, walk_page_range, walk_page_range_novma, walk_page_range_vma
from ksmwalk.host import TableArena

PAGE, M = 4096, 1 << 20
AT = 1 << 30


def process(host, pages=16):
    mm = host.new_mm()
    mm.mmap(pages * PAGE, AT)
    mm.write(AT, np.arange(1, pages + 1, dtype=np.uint64))
    return mm


def uses_of_tables(t):
    return [
        lambda: t.rows, lambda: t.root, lambda: t.nr_tables, lambda: t.mappings(), lambda: t.lookup(AT),
        lambda: t.map(AT + M, 5), lambda: t.unmap(AT, AT + PAGE), lambda: t.split(AT), lambda: t.__getstate__(),
        lambda: walk_page_range_novma(t, 0, 1 << 40, MmWalkOps(pte_entry=lambda *a: 0)),
    ]  # fmt: skip


def test_page_tables_of_an_exited_process_are_not_those_of_the_next():
    host = Host(4096)
    gone = process(host)
    tables = gone.tables
    gone.exit()
    mm = process(host)
    assert mm.index == gone.index, "the record is used again"
    before, frames = mm.read_keys(AT, 16), host.frames_used
    for use in uses_of_tables(tables):
        with pytest.raises(ReferenceError, match="address space 1 is gone"):
            use()
    assert (mm.read_keys(AT, 16) == before).all() and host.frames_used == frames
    hostcheck.check(host)


def test_exec_takes_the_door_along_and_leaves_the_old_memory_behind():
    host = Host(4096)
    mm = process(host)
    tables, area = mm.tables, mm.vmas[0]
    number = mm.index
    assert mm.exec() is mm and mm.index != number and mm.alive and host.mm_by_number(mm.index) is mm
    other = process(host)
    assert other.index == number
    for use in uses_of_tables(tables):
        with pytest.raises(ReferenceError):
            use()
    with pytest.raises(ReferenceError):
        area.vm_start  # noqa: B018
    assert mm.vmas == [] and len(mm.tables.mappings()) == 0
    mm.mmap(PAGE, AT)
    mm.write(AT, 3)
    assert mm.read(AT) == 3 and other.read(AT) == 1
    hostcheck.check(host)


def test_an_exited_process_has_no_items_of_the_next():
    host = Host(4096)
    mm = process(host)
    mm.madvise(AT, 16 * PAGE, "mergeable")
    host.ksm.do_scan(100)
    mm.exit()
    assert len(mm.rmap_items) == 16, "it waits to be cleaned"
    host.ksm.do_scan(100)
    host.ksm.do_scan(100)
    assert mm.rmap_items == []
    after = process(host)
    after.madvise(AT, 16 * PAGE, "mergeable")
    host.ksm.do_scan(100)
    assert after.index == mm.index and len(after.rmap_items) == 16 and mm.rmap_items == []
    after.exit()
    assert len(after.rmap_items) == 16 and mm.rmap_items == []


def test_no_door_to_a_record_that_is_none():
    host, other = Host(4096), Host(4096)
    mm, child = process(host), host.new_mm()
    thing = host.new_object()
    for number in (-1, 0, 3, thing, 99, 2**31, 2**63, 2**64 - 1):
        with pytest.raises(LookupError, match="there is none"):
            Mm(host, number)
    assert Mm(host, mm.index) is mm and host.mm_by_number(mm.index) is mm
    mine = mm.vmas[0].index
    for owner, number in [(mm, -1), (mm, 0), (mm, mine + 1), (child, mine), (mm, 2**40)]:
        with pytest.raises(LookupError, match=f"not an area of address space {owner.index}"):
            owner.vma_by_number(number)
        with pytest.raises(LookupError):
            Vma(owner, number)
    assert mm.vma_by_number(mine) == mm.vmas[0] and AT in mm.vma_by_number(mine)
    for nothing in (None, 5, host):
        with pytest.raises(TypeError, match="mm"):
            Vma(nothing, mine)
    with pytest.raises(TypeError, match="host"):
        Mm(None, 1)
    with pytest.raises(TypeError, match="host"):
        TableArena(7)
    with pytest.raises(ValueError, match="of this Host"):
        other.pin(mm, AT)


def test_an_object_is_dropped_once_and_a_page_unpinned_as_often_as_pinned():
    host = Host(4096)
    mm = process(host)
    thing = host.new_object(16 * PAGE)
    mm.mmap(4 * PAGE, AT + M, backing=thing, shared=True, kind="file")
    mm.write(AT + M, [7, 8])
    host.drop_object(thing)
    with pytest.raises(ValueError, match=f"object {thing}: dropped already"):
        host.drop_object(thing)
    assert mm.read(AT + M) == 7
    file_page = int(mm.read_pfns(AT + M, 1)[0])
    with pytest.raises(ValueError, match="not pinned"):
        host.unpin(file_page)  # the object's reference is not ours to give up
    host.lru_batch = 8
    mm.mmap(PAGE, AT + 2 * M)
    mm.write(AT + 2 * M, 5)
    waiting = int(mm.read_pfns(AT + 2 * M, 1)[0])
    with pytest.raises(ValueError, match="not pinned"):
        host.unpin(waiting)
    assert host.pin(mm, AT + M) == host.pin(mm, AT + M) == file_page
    host.unpin(file_page)
    host.unpin(file_page)
    with pytest.raises(ValueError, match="not pinned"):
        host.unpin(file_page)
    hostcheck.check(host)
    host.drain()
    mm.exit()
    hostcheck.check(host)


def test_a_pin_outlives_a_copy_of_the_host():
    host = Host(4096)
    mm = process(host)
    pfn = host.pin(mm, AT)
    twin = copy.deepcopy(host)
    twin.unpin(pfn)
    with pytest.raises(ValueError, match="not pinned"):
        twin.unpin(pfn)
    hostcheck.check(twin)
    hostcheck.check(host, pinned=[pfn])


# ------------------------------------------------------------------ a Host is freed when dropped


@pytest.fixture
def without_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def use_everything(host):
    mm = process(host)
    mm.tables.mappings()
    mm.madvise(AT, 16 * PAGE, "mergeable")
    host.ksm.do_scan(100)
    host.ksm.scan.scan_get_next_rmap_item()
    child = mm.fork()
    child.write(AT, 9)

    def stop(entry, addr, next, walk):
        raise KeyError(walk.vma)

    with pytest.raises(KeyError):
        walk_page_range_novma(mm.tables, 0, 1 << 40, MmWalkOps(pte_entry=stop))
    return [mm, child, mm.vmas, mm.tables, host.tables, host.mm_list, mm.rmap_items[0].address]


def test_a_host_goes_with_its_last_door_without_the_collector(without_gc):
    host = Host(4096)
    watch, world = weakref.ref(host), weakref.ref(host.frames)
    doors = use_everything(host)
    del host
    assert watch() is not None, "its doors keep it"
    del doors
    assert watch() is None and world() is None


def test_doors_without_a_host_say_that_it_is_gone():
    host = Host(4096)
    mm = process(host)
    mm.madvise(AT, 16 * PAGE, "mergeable")
    ksm, scan = host.ksm, host.ksm.scan
    item, _ = scan.scan_get_next_rmap_item()
    del mm, host
    for use in (lambda: ksm.do_scan(1), lambda: scan.scan(1), scan.scan_get_next_rmap_item, lambda: item.stable,
                lambda: item.mm):  # fmt: skip
        with pytest.raises(ReferenceError, match="the Host is gone"):
            use()


def test_page_tables_and_areas_keep_their_host():
    tables = process(Host(4096)).tables
    assert len(tables.mappings()) == 16
    area = process(Host(4096)).vmas[0]
    assert area.vm_mm.read(area.vm_start) == 1


# ------------------------------------------------------------------ arrays to look at


def test_arrays_given_out_are_to_look_at():
    host = Host(4096)
    mm = process(host)
    image = PageTables.from_image(mm.tables.rows, mm.tables.root)
    for array in (host.mms, host.vmas, host.tables.rows, mm.tables.rows, PageTables().rows, image.rows):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_what_a_door_was_made_with_is_not_replaced_and_a_misspelt_name_is_an_error():
    host = Host(1 << 12)
    mm = process(host)
    for thing, name in ((mm, "index"), (mm, "host"), (host, "frames"), (host, "world")):
        with pytest.raises(AttributeError, match=f"{name} of this {type(thing).__name__} can't be set"):
            setattr(thing, name, 1 << 20)
    for thing, name, meant in ((host, "thpp", "thp"), (host, "lru_bacth", "lru_batch"), (mm, "nidd", "nid"),
                               (mm.tables, "on_badd", "on_bad")):  # fmt: skip
        with pytest.raises(AttributeError, match=f"has nothing named '{name}': did you mean {meant}"):
            setattr(thing, name, 1)
        with pytest.raises(AttributeError, match=f"did you mean {meant}"):
            getattr(thing, name)


class Pretender:
    """Calls itself an address space, or an area."""

    def __init__(self, **what):
        self.__dict__.update(what)


def test_a_walk_takes_no_other_records_than_those_of_the_tables():
    host = Host(1 << 12)
    mm, other, alone = process(host), process(host), PageTables()
    ops = MmWalkOps(pte_entry=lambda *a: 0)
    for tables, number in ((mm.tables, 0), (mm.tables, -5), (mm.tables, other.index), (mm.tables, 10**6), (alone, 1)):
        with pytest.raises(ValueError, match=f"mm {number}: "):
            walk_page_range(Pretender(tables=tables, number=number), 0, PAGE, ops)
    for number in (0, 10**6, other.vmas[0].index):
        area = Pretender(vm_mm=mm, vm_start=0, vm_end=1 << 46, index=number)
        with pytest.raises(LookupError, match=f"vma {number}: not an area of address space {mm.index}"):
            walk_page_range_vma(area, 0, 1 << 30, ops)
    for number in (-5, 1 << 40):
        with pytest.raises(ValueError, match=f"vma {number}"):
            walk_page_range_vma(Pretender(vm_mm=mm, vm_start=0, vm_end=1 << 46, index=number), 0, 1 << 30, ops)


@pytest.mark.parametrize("kind", ["anon", "file", "hugetlb", "pfnmap", "droppable"])
def test_a_length_that_wraps_when_it_is_rounded_finds_no_place(kind):
    host = Host(1 << 12)
    mm = process(host)
    before = mm.maps()
    for length in ((1 << 64) - 1, (1 << 64) - PAGE, 1 << 63, 1 << 47):
        for addr in (None, AT):
            with pytest.raises(OSError, match="no place") as raised:
                mm.mmap(length, addr, kind=kind)
            assert raised.value.errno == errno.ENOMEM
    assert mm.maps() == before
