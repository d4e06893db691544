"""The names and values that KSM's Python face takes, and what it says of those it does not."""

import copy
import inspect
import pickle
import weakref

import numpy as np
import pytest

from ksmwalk._core import World
from ksmwalk.host.host import Host
from ksmwalk.ksm import sysfs
from ksmwalk.ksm.ksmd import Ksm
from ksmwalk.ksm.rmap import RmapItem
from ksmwalk.ksm.scan import KsmScan

PAGE = 4096
BASE = 1 << 32


def merging(keys, **knobs):
    """A Host with one process of these contents, all marked."""
    host = Host(4096)
    mm = host.new_mm()
    mm.mmap(len(keys) * PAGE, BASE)
    mm.write(BASE, np.array(keys, np.uint64))
    mm.madvise(BASE, len(keys) * PAGE, "mergeable")
    for name, value in knobs.items():
        setattr(host.ksm, name, value)
    return host


# ---------------------------------------------------------------- names

@pytest.mark.parametrize("wrong, right", [
    ("page_to_scan", "pages_to_scan"), ("run_", "run"), ("smartscan", "smart_scan"), ("use_zero_page", "use_zero_pages"),
    ("now", "now_ms"), ("pages_share", "pages_shared"),
])  # fmt: skip
def test_a_misspelt_tunable_is_an_error_that_offers_the_right_name(wrong, right):
    host = Host(1024)
    before = host.ksm.counters(), {name: getattr(host.ksm, name) for name in sysfs.KNOBS}
    with pytest.raises(AttributeError, match=f"{wrong!r}.*did you mean.*{right}"):
        setattr(host.ksm, wrong, 1)
    with pytest.raises(AttributeError, match=f"{wrong!r}.*did you mean.*{right}"):
        getattr(host.ksm, wrong)
    assert (host.ksm.counters(), {name: getattr(host.ksm, name) for name in sysfs.KNOBS}) == before


def test_a_misspelt_name_in_a_write_is_an_error_that_offers_the_right_one():
    host = Host(1024)
    with pytest.raises(AttributeError, match="did you mean pages_to_scan"):
        host.ksm.write("page_to_scan", 1)
    with pytest.raises(AttributeError, match="is a counter"):
        host.ksm.write("pages_shared", 1)


def test_the_cursor_and_the_events_take_no_other_names():
    host = Host(1024)
    with pytest.raises(AttributeError, match="'stratgy'.*did you mean strategy"):
        host.ksm.scan.stratgy = "per-address"
    with pytest.raises(AttributeError, match="'om'; it has lost, on, take"):
        host.ksm.events.om = True
    for name in ("scan", "events", "registered", "do_scan"):
        with pytest.raises(AttributeError):
            setattr(host.ksm, name, None)
    for name in ("seqnr", "address", "scan", "scan_get_next_rmap_item"):
        with pytest.raises(AttributeError):
            setattr(host.ksm.scan, name, 0)
    assert host.ksm.scan.strategy == "range" and not host.ksm.events.on


@pytest.mark.parametrize("name", sysfs.COUNTERS)
def test_a_counter_can_only_be_read(name):
    host = merging([1, 1, 2])
    host.ksm.run_until(limit=3)
    before = host.ksm.counters()
    with pytest.raises(AttributeError, match=f"{name} is a counter"):
        setattr(host.ksm, name, 3)
    with pytest.raises(AttributeError):
        delattr(host.ksm, name)
    assert host.ksm.counters() == before and getattr(host.ksm, name) == before[name]


def test_tunables_and_counters_stand_in_dir_with_a_line_of_help():
    host = Host(1024)
    assert {*sysfs.KNOBS, *sysfs.COUNTERS} <= set(dir(host.ksm))
    for name in (*sysfs.KNOBS, *sysfs.COUNTERS):
        assert inspect.getdoc(getattr(Ksm, name)).endswith("."), name


def test_a_row_of_the_tables_is_a_field_of_the_record_or_worked_out():
    fields = set(Host(1024)._arrays["ksm"].dtype.names)
    assert {knob.field for knob in sysfs.KNOBS.values()} <= fields
    assert {row.field for row in sysfs.COUNTERS.values() if row.field} <= fields
    worked_out = {name for name, row in sysfs.COUNTERS.items() if not row.field}
    assert worked_out == {"full_scans", "pages_volatile", "general_profit"}


# ---------------------------------------------------------------- values

@pytest.mark.parametrize("value", [np.uint64(1), np.int8(1), True, np.True_, "1", 1])
def test_a_knob_takes_every_kind_of_integer(value):
    host = Host(1024)
    switch = isinstance(value, (bool, np.bool_))
    for name in ("smart_scan", "run", "merge_across_nodes") if switch else ("smart_scan", "run", "pages_to_scan"):
        setattr(host.ksm, name, 0)
        setattr(host.ksm, name, value)
        assert getattr(host.ksm, name) == 1


@pytest.mark.parametrize("value", [True, np.False_])
def test_a_number_is_no_switch(value):
    host = Host(1024)
    for name in ("pages_to_scan", "sleep_millisecs", "max_page_sharing", "advisor_max_cpu"):
        before = getattr(host.ksm, name)
        with pytest.raises(TypeError, match=name):
            setattr(host.ksm, name, value)
        assert getattr(host.ksm, name) == before


@pytest.mark.parametrize("value", [5.0, 0.5, None, [5], b"5", np.float64(5), float("nan"), 5j, object()])
def test_a_knob_refuses_what_is_no_integer_and_no_text(value):
    host = Host(1024)
    for name in ("pages_to_scan", "smart_scan", "run", "advisor_mode"):
        before = getattr(host.ksm, name)
        with pytest.raises(TypeError, match=name):
            setattr(host.ksm, name, value)
        assert getattr(host.ksm, name) == before


@pytest.mark.parametrize("value", [1.0, "1", None, np.float32(1)])
def test_counts_and_clocks_refuse_what_is_no_integer(value):
    host = merging([1, 1])
    if value is not None:
        with pytest.raises(TypeError, match="n "):
            host.ksm.do_scan(value)
    with pytest.raises(TypeError, match="n "):
        host.ksm.scan.scan(value)
    with pytest.raises(TypeError, match="now_ms"):
        host.ksm.now_ms = value
    with pytest.raises(TypeError, match="cpu_ms"):
        host.ksm.cpu_ms = value
    with pytest.raises(TypeError, match="limit"):
        host.ksm.run_until(limit=value)
    with pytest.raises(TypeError, match="on"):
        host.ksm.events.on = value
    with pytest.raises(TypeError, match="real_lookups"):
        host.ksm.scan.real_lookups = value
    assert host.ksm.pages_scanned == 0 and host.ksm.now_ms == host.ksm.cpu_ms == 0


def test_counts_take_numpy_integers():
    host = merging([1, 1, 2])
    assert host.ksm.do_scan(np.uint64(2)) == 2 and host.ksm.scan.scan(np.int32(1)) == 1
    host.ksm.now_ms = np.uint64(5)
    assert host.ksm.now_ms == 5


@pytest.mark.parametrize("value", ["Range", "", None, [], 0])
def test_a_strategy_that_there_is_not(value):
    host = Host(1024)
    with pytest.raises(ValueError, match="strategy"):
        host.ksm.scan.strategy = value


# ---------------------------------------------------------------- doors

def test_every_door_says_that_its_host_is_gone():
    host = merging([1, 1, 2])
    mm = host.mm_list[0]
    ksm, scan, events = host.ksm, host.ksm.scan, host.ksm.events
    item, _ = scan.scan_get_next_rmap_item()
    world = host.world
    assert all(weakref.ref(door)() is door for door in (ksm, scan, events, host.frames))
    del mm, host
    assert world.owner() is None, "no door keeps the Host"
    calls = [
        lambda: ksm.run, lambda: setattr(ksm, "run", 1), lambda: ksm.pages_shared, ksm.counters, ksm.do_scan,
        ksm.full_scan, ksm.run_until, ksm.step, ksm.wake, lambda: ksm.registered, lambda: ksm.now_ms,
        lambda: setattr(ksm, "cpu_ms", 1), lambda: repr(ksm),
        lambda: scan.scan(1), scan.scan_get_next_rmap_item, lambda: scan.mm_slot, lambda: scan.address,
        lambda: scan.work, scan.reset_work, lambda: setattr(scan, "strategy", "range"), lambda: scan.rmap_list,
        events.take, lambda: events.on, lambda: len(events),
        lambda: item.age, lambda: item.mm, lambda: item.checksum,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ReferenceError, match="Host is gone"):
            call()


def test_doors_that_no_host_made_are_refused():
    for bad in (RmapItem, lambda: RmapItem(1), KsmScan, lambda: KsmScan.__new__(KsmScan), lambda: KsmScan(None)):
        with pytest.raises(TypeError):
            bad()
    for name in ("address", "age", "mm", "node", "stable", "unstable", "checksum", "remaining_skips"):
        with pytest.raises(ReferenceError):
            getattr(RmapItem.__new__(RmapItem), name)
    assert "no cursor" in repr(RmapItem.__new__(RmapItem))
    assert RmapItem.__new__(RmapItem) != 3 and hash(RmapItem.__new__(RmapItem)) is not None
    for arrays in ({}, {"ctl": Host(1024)._arrays["ctl"]}):
        with pytest.raises(TypeError, match="arrays of a Host"):
            KsmScan(World(arrays))
        with pytest.raises(TypeError, match="arrays of a Host"):
            Ksm(World(arrays))


def test_doors_are_neither_copied_nor_pickled():
    host = merging([1, 1])
    item, _ = host.ksm.scan.scan_get_next_rmap_item()
    for door in (item, host.ksm.scan):
        with pytest.raises(TypeError):
            copy.copy(door)
        with pytest.raises(TypeError):
            pickle.dumps(door)


# ---------------------------------------------------------------- full scans, counters over time

def test_a_full_scan_is_what_batches_up_to_its_end_make():
    one, many = (merging([1, 1, 2, 3, 3, 3, 0]) for _ in range(2))
    for host in (one, many):
        host.ksm.do_scan(3)
    assert one.ksm.full_scan() == 4
    done, before = 0, many.ksm.full_scans
    while many.ksm.full_scans == before:
        done += many.ksm.do_scan(2)
    assert done == 4 and one.ksm.counters() == many.ksm.counters()
    assert [one.ksm.full_scan() for _ in range(2)] == [7, 7] and one.ksm.full_scans == 3


def test_a_full_scan_where_nobody_is_registered_visits_nothing():
    host = Host(1024)
    assert host.ksm.full_scan() == 0 and len(host.ksm.run_until()) == 0
    assert host.ksm.full_scans == 0


@pytest.mark.parametrize("smart", [0, 1])
def test_run_until_ends_when_what_is_merged_is_settled(smart):
    host = merging([1, 1, 2, 3, 3, 3, 0, 0], smart_scan=smart, use_zero_pages=1)
    seen = host.ksm.run_until()
    assert seen.dtype == sysfs.COUNTERS_DTYPE and seen.dtype.names == tuple(host.ksm.counters())
    assert seen["full_scans"].tolist() == list(range(1, len(seen) + 1))
    assert seen["pages_sharing"].tolist() == [0] + [3] * (len(seen) - 1)
    assert len(seen) == (12 if smart else 5) and seen["ksm_zero_pages"][-1] == 2
    assert dict(zip(seen.dtype.names, seen[-1].item(), strict=True)) == host.ksm.counters()
    assert (seen["general_profit"][:1] < 0).all(), "the first scan only costs"


def test_what_is_settled_stays_so():
    rng = np.random.default_rng(3)
    for _ in range(30):
        host = merging(rng.integers(0, 6, 20), smart_scan=int(rng.integers(2)), max_page_sharing=int(rng.integers(2, 5)))
        mm = host.mm_list[0]
        for _ in range(6):  # ages and leftovers of all kinds, the cursor anywhere
            mm.write(BASE + int(rng.integers(20)) * PAGE, int(rng.integers(6)))
            host.ksm.do_scan(int(rng.integers(1, 30)))
        last = host.ksm.run_until()[-1]
        for _ in range(20):
            host.ksm.full_scan()
        now = host.ksm.counters()
        for name in ("pages_shared", "pages_sharing", "ksm_zero_pages"):
            assert now[name] == last[name]


def test_run_until_a_condition_batch_by_batch():
    host = merging([1, 1, 2, 3, 3, 3], pages_to_scan=2)
    seen = host.ksm.run_until(lambda ksm: ksm.pages_sharing >= 2, each="batch")
    assert seen["pages_scanned"].tolist() == [2, 4, 6, 6, 8, 10, 12][: len(seen)]
    assert seen["pages_sharing"][-1] >= 2 > seen["pages_sharing"][-2]
    assert len(host.ksm.run_until(lambda ksm: False, limit=4)) == 4
    for bad in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            host.ksm.run_until(limit=bad)
    with pytest.raises(ValueError, match="each 'scan'"):
        host.ksm.run_until(each="scan")
    before = host.ksm.counters()
    with pytest.raises(TypeError, match="until 5"):
        host.ksm.run_until(5)
    assert host.ksm.counters() == before


@pytest.mark.parametrize("name", [name for name in sysfs.KNOBS if name != "advisor_mode"])
def test_numbers_that_python_does_not_print_are_refused_like_other_large_ones(name):
    host = merging([1, 2])
    before = getattr(host.ksm, name)
    for value in (10**6000, -(10**6000), "9" * 5000, "-" + "9" * 5000):
        if sysfs.KNOBS[name].parse is sysfs._bool and value == 10**6000:
            continue  # begins with a 1, and a switch reads no further
        with pytest.raises(OSError, match=f"{name} = "):
            setattr(host.ksm, name, value)
    assert getattr(host.ksm, name) == before


def test_leading_zeros_are_no_matter_however_many():
    host = merging([1, 2])
    host.ksm.pages_to_scan = "+" + "0" * 5000 + "7\n"
    assert host.ksm.pages_to_scan == 7
