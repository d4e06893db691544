"""The merge engine and its door: knobs, counters, events, inputs, determinism, keeping."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ksmcheck import check_ksm

from ksmwalk.errors import ArenaFullError
from ksmwalk.host.host import Host
from ksmwalk.ksm.advisor import advise
from ksmwalk.layout import Event
from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.format import Scenario, load
from ksmwalk.scenarios.generate import generate
from ksmwalk.scenarios.replay import NotModelled, Replay, replay

GOLDEN = Path(__file__).parents[1] / "golden"
PAGE = 4096
BASE = 1 << 32


def mergeable(host, keys, addr=BASE):
    """A new process with these contents in marked pages."""
    mm = host.new_mm()
    mm.mmap(len(keys) * PAGE, addr)
    mm.write(addr, np.array(keys, np.uint64))
    mm.madvise(addr, len(keys) * PAGE, "mergeable")
    host.drain()
    return mm


def scans(host, n=1):
    for _ in range(n):
        host.ksm.do_scan(1 << 30)


# ---------------------------------------------------------------- knobs

# What writes to /sys/kernel/mm/ksm of Linux 6.18 were answered, value by value: what is read back, or -errno.
WRITES = {
    "pages_to_scan": {"0": 0, "4294967295": 4294967295, "4294967296": -22, "-1": -22, "y": -22, "0x10": -22, " 5": -22},
    "sleep_millisecs": {"600000": 600000, "4294967296": -22, "x": -22},
    "smart_scan": {"0": 0, "1": 1, "2": -22, "-1": -22, "70": -22, "101": 1, "y": 1, "on": 1, "x": -22, "0x10": 0},
    "use_zero_pages": {"1": 1, "off": 0, "18446744073709551616": 1, "600000": -22},
    "max_page_sharing": {"0": -22, "1": -22, "2": 2, "2147483647": 2147483647, "2147483648": -34, "-1": -22, "y": -22},
    "merge_across_nodes": {"0": 0, "2": -22, "18446744073709551615": -22, "18446744073709551616": -34, "y": -22},
    "stable_node_chains_prune_millisecs": {"4294967295": 4294967295, "4294967296": -22},
    "advisor_min_pages_to_scan": {"18446744073709551615": 18446744073709551615, "18446744073709551616": -22, "0": 0},
    "advisor_max_pages_to_scan": {"4294967296": 4294967296, "-1": -22},
    "advisor_target_scan_time": {"0": -22, "1": 1, "4294967296": 4294967296},
    "advisor_max_cpu": {"101": 101, "4294967295": 4294967295, "4294967296": 0, "18446744073709551616": -22},
    "advisor_mode": {"none": "none", "scan-time": "scan-time", "Scan-Time": -22, "0": -22, "none ": -22, "scan": -22},
    "run": {"0": 0, "1": 1, "2": 2, "3": -22, "-1": -22, "x": -22},
}


@pytest.mark.parametrize("knob", WRITES)
def test_a_knob_takes_what_the_kernel_takes(knob):
    for text, answer in WRITES[knob].items():
        host = Host(1024)
        ksm = host.ksm
        before = getattr(ksm, knob)
        if isinstance(answer, int) and answer < 0:
            with pytest.raises(OSError, match=knob) as caught:
                ksm.write(knob, text)
            assert caught.value.errno == -answer, text
            assert getattr(ksm, knob) == before
        else:
            ksm.write(knob, text)
            assert getattr(ksm, knob) == answer, text


def test_defaults():
    host = Host(1024)
    ksm = host.ksm
    wanted = {
        "run": 0, "pages_to_scan": 100, "sleep_millisecs": 20, "smart_scan": 1, "use_zero_pages": 0,
        "max_page_sharing": 256, "merge_across_nodes": 1, "stable_node_chains_prune_millisecs": 2000,
        "advisor_mode": "none", "advisor_max_cpu": 70, "advisor_min_pages_to_scan": 500,
        "advisor_max_pages_to_scan": 30000, "advisor_target_scan_time": 200,
    }
    assert {name: getattr(ksm, name) for name in wanted} == wanted


def test_no_such_knob():
    host = Host(1024)
    ksm = host.ksm
    with pytest.raises(AttributeError, match="pages_to_skip"):
        ksm.write("pages_to_skip", 1)
    with pytest.raises(AttributeError, match="pages_to_skip"):
        _ = ksm.pages_to_skip


def test_the_advisor_owns_pages_to_scan():
    host = Host(1024)
    ksm = host.ksm
    ksm.advisor_mode = "scan-time"
    assert ksm.pages_to_scan == 500
    with pytest.raises(OSError) as caught:
        ksm.pages_to_scan = 100
    assert caught.value.errno == errno.EINVAL and ksm.pages_to_scan == 500
    ksm.advisor_mode = "none"
    assert ksm.pages_to_scan == 100
    ksm.pages_to_scan = 123
    ksm.advisor_mode = "none"
    assert ksm.pages_to_scan == 123


# seconds of a scan, pages_to_scan in it and after it, target 2: what the advisor of Linux 6.18 was seen to choose
ADVISED = [
    (6, 100, 245),
    (4, 245, 372),
    (4, 372, 617),
    (6, 617, 1925),
    (3, 1925, 2536),
    (2, 2536, 2028),
    (3, 2028, 3102),
]


def test_the_advisor_follows_the_real_one():
    change, last = 30, 3
    knobs = {"max_cpu": 100, "max_pages": 10**6, "target": 2}
    for seconds, before, after in ADVISED:
        new, change, last = advise(before, change, last, 1000 * seconds + 700, 300, knobs)
        assert new == after


def advised(scan_seconds, cpu_seconds, **knobs):
    """pages_to_scan after five scans that took so long."""
    host = Host(1024)
    mergeable(host, [1, 2, 3])
    host.ksm.smart_scan = 0
    for name, value in knobs.items():
        setattr(host.ksm, name, value)
    host.ksm.advisor_mode = "scan-time"
    for _ in range(5):
        host.ksm.do_scan(1)
        host.ksm.now_ms += scan_seconds * 1000
        host.ksm.cpu_ms += cpu_seconds * 1000
        host.ksm.do_scan(1 << 20)
    return host.ksm.pages_to_scan


def test_the_advisor_wants_more_where_scans_take_long():
    assert advised(100, 30) < advised(400, 120) < advised(4000, 1200) <= 30000
    assert advised(10**6, 0, advisor_max_pages_to_scan=2000) == 2000


def test_the_advisor_keeps_below_its_cpu_limit():
    assert advised(4000, 1900, advisor_max_cpu=10) < advised(4000, 1900) < advised(4000, 0)


def test_max_page_sharing_waits_until_nothing_is_shared():
    host = Host(1024)
    mm = mergeable(host, [5, 5])
    scans(host, 2)
    for name, value in (("max_page_sharing", 10), ("merge_across_nodes", 0)):
        before = getattr(host.ksm, name)
        with pytest.raises(OSError) as caught:
            setattr(host.ksm, name, value)
        assert caught.value.errno == errno.EBUSY and getattr(host.ksm, name) == before
        setattr(host.ksm, name, before)
    mm.exit()
    with pytest.raises(OSError):
        host.ksm.max_page_sharing = 10
    scans(host)
    host.ksm.max_page_sharing = 10
    host.ksm.merge_across_nodes = 0
    check_ksm(host)


# ---------------------------------------------------------------- events and inputs


def test_events_cost_nothing_and_say_nothing_until_asked():
    host = Host(1024)
    mergeable(host, [5, 5])
    scans(host, 2)
    assert len(host.ksm.events) == 0 and not host.ksm.events.on and len(host.ksm.events.take()) == 0


def test_events_in_order():
    host = Host(1024)
    host.ksm.events.on = True
    mm = mergeable(host, [5, 5])
    scans(host, 2)
    events = host.ksm.events.take()
    assert [Event(kind).name for kind in events["kind"]] == ["ENTER", "START", "STOP", "START", "NEW", "ADD", "STOP"]
    assert (events["mm"][[0, 4, 5]] == mm.index).all()
    assert events["a"][4] == events["a"][5] == mm.read_pfns(BASE, 1)[0]
    assert len(host.ksm.events) == 0 and host.ksm.events.lost == 0


def test_a_full_ring_loses_the_oldest_and_counts_them():
    host = Host(1 << 18)
    n = 40000
    mergeable(host, np.arange(2 * n) // 2 + 1)
    host.ksm.events.on = True
    scans(host, 2)
    events = host.ksm.events.take()
    assert len(events) == 1 << 16 and host.ksm.events.lost == 2 * n + 4 - (1 << 16)
    assert events["kind"][-1] == Event.STOP


def test_a_pinned_page_does_not_merge():
    host = Host(1024)
    mm = mergeable(host, [5, 5])
    pfn = host.pin(mm, BASE + PAGE)
    host.ksm.events.on = True
    scans(host, 3)
    assert host.ksm.pages_shared == 0
    events = host.ksm.events.take()
    assert set(events["err"][events["kind"] == Event.NEW]) == {-14}
    host.unpin(pfn)
    scans(host, 2)
    assert host.ksm.pages_shared == 1 and host.ksm.pages_sharing == 1
    check_ksm(host)


def test_a_pinned_twin_undoes_the_merge():
    host = Host(1024)
    mm = mergeable(host, [5, 5])
    host.pin(mm, BASE)
    before = mm.read_pfns(BASE, 2)
    host.ksm.events.on = True
    scans(host, 2)
    events = host.ksm.events.take()
    events = events[events["kind"] >= Event.NEW]
    assert events["kind"].tolist() == [Event.NEW, Event.ADD] and events["err"].tolist() == [0, -14]
    after = mm.read_pfns(BASE, 2)
    assert after[0] == before[0] and after[1] != before[1] and mm.read_keys(BASE, 2).tolist() == [5, 5]
    check_ksm(host)


def test_a_locked_page_does_not_merge():
    host = Host(1024)
    mm = mergeable(host, [5, 5])
    pfn = int(mm.read_pfns(BASE + PAGE, 1)[0])
    host.lock_page(pfn)
    scans(host, 3)
    assert host.ksm.pages_shared == 0
    host.lock_page(pfn, False)
    scans(host, 2)
    assert host.ksm.pages_shared == 1


def test_the_lru_batch_holds_a_page_faulted_in_mid_scan():
    host = Host(1024)
    host.lru_batch = 15
    mm = mergeable(host, [9, 7, 5, 5])
    scans(host, 1)
    host.ksm.do_scan(1)  # the scan has begun: nothing is drained any more
    mm.write(BASE + 2 * PAGE, 6)
    mm.madvise(BASE + 3 * PAGE, PAGE, "dontneed")
    mm.write(BASE + 3 * PAGE, 5)
    mm.write(BASE + 2 * PAGE, 5)
    scans(host, 1)
    assert host.ksm.pages_shared == 0
    host.drain()
    scans(host, 2)
    assert host.ksm.pages_shared == 1


def test_the_clock_prunes_chains():
    host = Host(1024)
    host.ksm.max_page_sharing = 2
    host.ksm.smart_scan = 0
    mm = mergeable(host, [5] * 6)
    scans(host, 2)
    assert host.ksm.stable_node_chains == 1 and host.ksm.stable_node_dups == 3
    host.ksm.now_ms = 1999
    mm.write(BASE, np.array([51, 52], np.uint64))
    host.ksm.events.on = True
    host.ksm.now_ms = 2000
    scans(host, 2)
    assert host.ksm.stable_node_dups == 2
    check_ksm(host)


def test_wake_and_step():
    host = Host(1024)
    ksm = host.ksm
    assert ksm.step() == 0 and ksm.wake() == 0
    ksm.run = 1
    assert ksm.wake() == 0  # nobody is there
    mm = mergeable(host, [1, 2])
    assert ksm.wake() == 2 and ksm.full_scans == 1
    assert ksm.wake() == 0  # between two batches it is the clock that wakes it
    mm.exit()
    mergeable(host, [1, 2, 3])
    assert ksm.wake() == 0
    assert ksm.step() == 3
    ksm.run = 0
    assert ksm.step() == 0
    ksm.run = 1
    assert ksm.wake() == 3


def test_a_batch_needs_a_sensible_number():
    host = Host(1024)
    ksm = host.ksm
    for bad in (-1, 1 << 63):
        with pytest.raises(ValueError, match=f"{bad}|{bad:#x}"):
            ksm.do_scan(bad)


def test_run_2_without_memory_stops():
    host = Host(16)
    mm = mergeable(host, [5, 5, 5, 5])
    scans(host, 2)
    filler = host.new_mm()
    filler.mmap(64 * PAGE, BASE)
    with pytest.raises((OSError, ArenaFullError)):
        filler.write(BASE, np.arange(1, 65, dtype=np.uint64))
    with pytest.raises(OSError) as caught:
        host.ksm.run = 2
    assert caught.value.errno == errno.ENOMEM and host.ksm.run == 0
    assert mm.read_keys(BASE, 4).tolist() == [5, 5, 5, 5]
    filler.exit()
    host.ksm.run = 2
    assert host.ksm.pages_shared == 0 and len(set(mm.read_pfns(BASE, 4))) == 4
    check_ksm(host)


# ---------------------------------------------------------------- NUMA


def numa_host():
    host = Host(4096, nr_nodes=2)
    here, there = host.new_mm(0), host.new_mm(1)
    for mm in (here, there):
        mm.mmap(4 * PAGE, BASE)
        mm.write(BASE, np.array([5, 5, 6, 7], np.uint64))
        mm.madvise(BASE, 4 * PAGE, "mergeable")
    host.drain()
    return host, here, there


def test_nodes_merge_apart_when_told():
    host, here, there = numa_host()
    host.ksm.merge_across_nodes = 0
    scans(host, 3)
    assert host.ksm.pages_shared == 2 and host.ksm.pages_sharing == 2 and host.ksm.pages_unshared == 4
    assert here.read_pfns(BASE, 1) != there.read_pfns(BASE, 1)
    check_ksm(host)


def test_nodes_merge_together_by_default():
    host, here, there = numa_host()
    scans(host, 3)
    assert host.ksm.pages_shared == 3 and host.ksm.pages_sharing == 5
    assert (here.read_pfns(BASE, 4) == there.read_pfns(BASE, 4)).all()


def test_a_tree_changes_sides_in_mid_scan():
    host, here, there = numa_host()
    for mm in (here, there):
        mm.write(BASE, np.array([1, 2, 3, 4], np.uint64) + np.uint64(10 * mm.index))
    host.drain()
    scans(host)
    host.ksm.do_scan(6)
    host.ksm.merge_across_nodes = 0
    there.madvise(BASE, PAGE, "dontneed")
    scans(host, 3)
    assert host.ksm.pages_unshared == 7
    check_ksm(host)


# ---------------------------------------------------------------- the two strategies, determinism, keeping


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_one_address_at_a_time_gives_the_same_records(path):
    recording = load(path)
    run = Replay(recording.scenario)
    run.host.ksm.scan.strategy = "per-address"
    difference = first_difference(recording.records, list(run.records()), recording.nondet)
    assert difference is None, difference.text("kernel", "model")


def arrays_of(host):
    return {name: array.tobytes() for name, array in host.__getstate__()["arrays"].items()}


HASH = """
import hashlib, sys
from ksmwalk.scenarios.replay import Replay
from ksmwalk.scenarios.format import load
run = Replay(load(sys.argv[1]).scenario)
for _ in run.records():
    pass
state = run.host.__getstate__()["arrays"]
print(hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state))).hexdigest())
"""


def test_two_processes_come_to_the_same_arrays():
    answers = {
        subprocess.run(
            [sys.executable, "-c", HASH, str(GOLDEN / "heavy_0.json")], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def kept(run, tmp_path, index):
    """The same run on a copy of its Host that went through a directory."""
    place = tmp_path / str(index)
    run.host.save(place)
    host = Host.load(place)
    assert host.ksm.events.on
    run.live = {name: host.mm_by_number(mm.index) for name, mm in run.live.items()}
    run.host = host
    run._arrays = host.world.arrays


@pytest.mark.parametrize(
    "name", ["heavy_0", "heavy_3", "thp_zero_small", "chains_always", "exit_at_cursor", "rand_002"]
)
def test_a_host_saved_in_mid_scan_goes_on_exactly(name, tmp_path):
    recording = load(GOLDEN / f"{name}.json")
    straight = Replay(recording.scenario)
    list(straight.records())
    run = Replay(recording.scenario)
    records = []
    for index, record in enumerate(run.records()):
        records.append(record)
        if index % 7 == 3:
            kept(run, tmp_path, index)
    difference = first_difference(recording.records, records, recording.nondet)
    assert difference is None, difference.text("kernel", "model")
    assert arrays_of(run.host) == arrays_of(straight.host)


@given(st.integers(0, 10**6), st.sampled_from(["range", "per-address"]))
def test_arrays_agree_after_every_operation(number, strategy):
    scenario = generate(4711, number)
    scenario.ops = [op for op in scenario.ops if op[0] != "memset"]
    run = Replay(scenario)
    run.host.ksm.scan.strategy = strategy
    for index, _ in enumerate(run.records()):
        if index % 3 == 0:
            check_ksm(run.host)
    check_ksm(run.host)


# ---------------------------------------------------------------- scenarios


def test_what_is_not_modelled_is_named():
    scenario = Scenario("x", [["spawn", "A"], ["syscall", "A", 39]])
    with pytest.raises(NotModelled, match="op 1"):
        replay(scenario)


def test_memset_contents_are_ordered_by_their_bytes():
    one = 0x0101010101010101
    ops = [
        ["spawn", "A"],
        ["mmap", "A", 65536, 8],
        ["madvise", "A", 65536, 8, "mergeable"],
        ["fill", "A", 65536, [one, one + 1, None, one, 0]],
        ["memset", "A", 65538, 1, PAGE],
        ["memset", "A", 65541, 0, PAGE],
        ["memset", "A", 65542, 1, 8],
        ["memset", "A", 65543, 0xFF, 5],
        ["run", 1],
        ["step", 2],
    ]
    records = replay(Scenario("memset", ops, tunables={"smart_scan": 0}))
    # equal: 65536, 65539 and the page whose first 8 bytes alone were set; and the two empty ones
    assert records[-1]["op"] == ["step"]
    codes = {vpn + i: code for record in records for vpn, n, code in record.get("p", {}).get("A", []) for i in range(n)}
    assert codes[65536].rstrip("'") == codes[65539].rstrip("'") == codes[65542].rstrip("'") != codes[65538].rstrip("'")
    assert codes[65540].rstrip("'") == codes[65541].rstrip("'")


# ---------------------------------------------------------------- batches, one by one, and large ones


def engine_state(host):
    """What the engine has come to, apart from work counts and the hints of the search."""
    state = host.__getstate__()["arrays"]
    links = state["links"].copy()
    links["aux"] &= 1
    names = ("items", "nodes", "trees", "f_flags", "f_mapcount", "f_extra", "f_key", "f_node", "rows")
    return [state[name].tobytes() for name in names] + [links.tobytes(), str(host.ksm.counters())]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(2, 5), st.booleans(), st.data())
def test_a_batch_is_its_visits_one_by_one(keys, limit, zero, data):
    hosts = [Host(4096) for _ in range(2)]
    for host in hosts:
        host.ksm.max_page_sharing = limit
        host.ksm.use_zero_pages = zero
        mergeable(host, keys)
    for _ in range(5):
        scans(hosts[0])
        scan = hosts[1].ksm.full_scans
        while hosts[1].ksm.full_scans == scan:
            hosts[1].ksm.do_scan(1)
        assert engine_state(hosts[0]) == engine_state(hosts[1])
        changes = data.draw(st.lists(st.tuples(st.integers(0, len(keys) - 1), st.integers(0, 6)), max_size=6))
        for host in hosts:
            for place, key in changes:
                host.mm_list[0].write(BASE + place * PAGE, key)
    check_ksm(hosts[0])


def test_run_2_over_32_tib_by_both_strategies():
    span = 32 << 40
    work = {}
    for strategy in ("per-address", "range"):
        host = Host(1 << 14)
        mm = host.new_mm()
        mm.mmap(span, 1 << 44, noreserve=True)
        mm.madvise(1 << 44, span, "mergeable")
        places = [(1 << 44) + i * (span // 1000 // PAGE) * PAGE for i in range(1000)]
        for i, addr in enumerate(places):
            mm.write(addr, 1 + i // 2)
        host.drain()
        scans(host, 2)
        assert host.ksm.pages_shared == host.ksm.pages_sharing == 500
        host.ksm.scan.strategy = strategy
        host.ksm.scan.reset_work()
        host.ksm.run = 2
        work[strategy] = host.ksm.scan.work
        assert host.ksm.pages_shared == 0 and not mm.rmap_items
        assert len({int(mm.read_pfns(addr, 1)[0]) for addr in places}) == 1000
        check_ksm(host)
    # a page that was broken is looked up once more
    assert work["per-address"]["lookups"] == span // PAGE + 1000 and work["per-address"]["found"] == 1000
    assert work["range"]["lookups"] == 0 and work["range"]["found"] == 1000
    entries = sum(work["range"][level] for level in ("pgd", "pud", "pmd", "pte"))
    assert entries < 3000 * 512
