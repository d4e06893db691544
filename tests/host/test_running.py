"""A Host in time: the clock, what is due and when, and that a run is the same however it is cut."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import Host
from ksmwalk.host.running import RUN_DTYPE
from ksmwalk.ksm.clock import timer
from ksmwalk.ksm.costs import Costs

P = 4096


def process(host, keys):
    mm = host.new_mm()
    addr = mm.mmap(len(keys) * P)
    mm.write(addr, np.asarray(keys, np.uint64))
    mm.madvise(addr, len(keys) * P, "mergeable")
    return mm, addr


def scanning(n=1000, **tunables):
    host = Host(1 << 15)
    for name, value in tunables.items():
        host.ksm.write(name, value)
    places = [process(host, np.arange(1, n + 1)) for _ in range(2)]
    host.ksm.run = 1
    return host, places


def test_batches_and_sleeps_make_the_pace():
    host, _ = scanning(smart_scan=0, sleep_millisecs=20, pages_to_scan=100)
    rows = host.run(10, every=2)
    assert rows.dtype == RUN_DTYPE and rows["time"].tolist() == [0, 2, 4, 6, 8, 10]
    # 20 ms are 5 ticks of 250 a second, and one more: 24 ms with the time of a batch, or 28 where it takes longer than one
    visits = np.diff(rows["pages_scanned"])
    assert (visits <= 100 * 2000 / 24 + 100).all() and (visits >= 100 * 2000 / 28 - 200).all()
    assert rows["pages_sharing"][-1] == 1000
    assert (np.diff(rows["cpu"]) > 0).all() and rows["cpu"][-1] < 1
    assert host.ksm.now_ms == 10_000 and host.ksm.cpu_ms == int(rows["cpu"][-1] * 1000)


@pytest.mark.parametrize(
    ("now", "sleep", "hz", "wakes"),
    [(0, 20, 250, 24), (3.9, 20, 250, 24), (4, 20, 250, 28), (0, 1, 250, 8), (0, 20, 1000, 21), (1.5, 10, 100, 20),
     (0, 0, 250, 0), (7.7, 0, 250, 7.7), (0, 248, 250, 252), (0, 252, 250, 256), (0, 260, 250, 288), (0, 10_000, 250, 10_240)],
)  # fmt: skip
def test_a_sleep_ends_at_a_tick(now, sleep, hz, wakes):
    assert timer(round(now * 1e6), sleep, hz) == wakes * 10**6


def test_nothing_moves_but_the_clock_where_ksmd_has_nothing_to_do():
    host, _ = scanning()
    host.ksm.run = 0
    rows = host.run(3)
    assert len(rows) == 4 and not rows["pages_scanned"].any() and not rows["cpu"].any() and host.ksm.now_ms == 3000
    rows = Host(1024).run(0)
    assert len(rows) == 1 and rows["time"][0] == 0 and rows["frames_used"][0] == 1


def test_the_advisor_counts_the_visits_that_end_the_scan():
    host, _ = scanning(2, advisor_mode="scan-time", advisor_target_scan_time=2)
    assert host.ksm.pages_to_scan == 500
    host.run(1, costs=Costs(scan_ns=2.2e9))
    # 2 s of 2 wanted, the change weighs 30 percent; of no time at all 10 percent of a CPU would be 5,000
    assert host.ksm.pages_to_scan == 150


def test_ksmd_wakes_at_once_for_the_first_process_and_for_run():
    host = Host(1 << 12)
    host.ksm.run = 1
    seen = []
    host.run(2, [(1.5, lambda host: process(host, [1, 2])), (1.501, lambda host: seen.append(host.ksm.pages_scanned))])
    assert seen == [2]
    host, _ = scanning()
    host.ksm.run = 0
    host.ksm.sleep_millisecs = 60_000
    steps = [(1, lambda host: host.ksm.write("run", 1)), (1.1, lambda host: seen.append(host.ksm.pages_scanned))]
    host.run(2, steps)
    assert seen[1:] == [100]
    # another length ends the sleep
    host.run(1, [(0.5, lambda host: host.ksm.write("sleep_millisecs", 50_000))])
    assert host.ksm.pages_scanned == 200


def test_run_0_ends_at_the_end_of_a_sleep_and_run_2_at_once():
    host, _ = scanning()
    host.run(3, [(1, lambda host: host.ksm.write("run", 0))])
    stopped = host.ksm.pages_scanned
    assert stopped <= 4300
    host.run(1)
    assert host.ksm.pages_scanned == stopped
    host, _ = scanning(pages_to_scan=100_000)
    host.run(1, [(0.5, lambda host: host.ksm.write("run", 2))])
    assert host.ksm.pages_shared == 0


def test_a_long_batch_makes_way_for_what_is_due():
    host, (first, _) = scanning(n=10_000, pages_to_scan=1 << 30, smart_scan=0)
    host.run(0.5)
    seen = []
    steps = [(t / 1000, lambda host: seen.append(host.ksm.pages_scanned)) for t in range(0, 500, 5)]
    host.run(0.5, steps)
    assert len(set(seen)) > 10 and all(np.diff(seen) >= 0)


def test_the_advisor_and_pruning_follow_the_clock():
    host, _ = scanning(n=500, smart_scan=0)
    host.ksm.cpu_ms = 100_000  # all of it counts at the first end, so that the first step is down
    host.ksm.advisor_mode = "scan-time"
    rows = host.run(60, every=0.01)
    steps = [pages for pages, before in zip(rows["pages_to_scan"][1:], rows["pages_to_scan"], strict=False) if pages != before]
    assert rows["pages_to_scan"][0] == 500 and steps == [10, 100, 1000, 10000, 30000]
    # 10 pages a batch: 100 batches and their sleeps for a scan
    slow = rows["time"][rows["pages_to_scan"] == 10]
    assert slow[-1] - slow[0] == pytest.approx(100 * 0.024, abs=0.05)


def test_a_chain_is_pruned_when_it_is_due():
    def stale(millisecs):
        host = Host(1 << 12)
        host.ksm.max_page_sharing, host.ksm.smart_scan = 2, 0
        host.ksm.stable_node_chains_prune_millisecs = millisecs
        mms = [process(host, [7, 7]) for _ in range(4)]
        host.ksm.run = 1
        host.run(1)
        assert host.ksm.stable_node_chains == 1
        for mm, addr in mms[:3]:
            mm.write(addr, [100 + addr, 200 + addr])
        late = [(0, lambda host: process(host, [7]))]
        return host.run(2, late)["stable_node_dups"][-1], host

    assert stale(0)[0] <= stale(10**6)[0]


keys = st.lists(st.integers(0, 9), min_size=1, max_size=60)
stores = st.lists(st.tuples(st.integers(0, 2900), st.integers(0, 1), st.integers(0, 59), st.integers(0, 9)), max_size=12)


@given(keys, keys, stores, st.integers(1, 50), st.lists(st.integers(1, 2999), max_size=4), st.booleans())
def test_a_run_is_the_same_in_one_or_in_pieces(one, other, writes, pages, cuts, saved):
    """State, times and CPU time, to the nanosecond, in mid-batch too, and with the Host kept in between."""

    def begin():
        host = Host(1 << 12)
        host.ksm.use_zero_pages = 1
        host.ksm.pages_to_scan = pages
        process(host, one)
        process(host, other)
        host.ksm.run = 1
        return host

    def store(which, page, key):
        def act(host):
            mm = host.mm_list[which]
            vma = mm.vmas[0]
            mm.write(vma.vm_start + page % ((vma.vm_end - vma.vm_start) // P) * P, [key])

        return act

    steps = sorted(((time / 1000, store(*what)) for time, *what in writes), key=lambda step: step[0])
    whole = begin()
    rows = whole.run(3, steps, every=0.01)
    host, done, pieces = begin(), 0.0, []
    for cut in [*sorted({cut // 10 / 100 for cut in cuts}), 3]:
        part = [(time - done, act) for time, act in steps if done < time <= cut or (done == 0 and time == 0)]
        pieces.append(host.run(cut - done, part, every=0.01))
        done = cut
        if saved:
            host = pickle.loads(pickle.dumps(host))
    assert host.ksm.counters() == whole.ksm.counters()
    assert host.ksm.now_ms == whole.ksm.now_ms == 3000
    np.testing.assert_array_equal(host.world.arrays["ksm"]["advisor"], whole.world.arrays["ksm"]["advisor"])
    joined = np.concatenate([piece[:-1] for piece in pieces[:-1]] + [pieces[-1]])
    np.testing.assert_array_equal(joined["pages_scanned"], rows["pages_scanned"])
    np.testing.assert_array_equal(joined["pages_sharing"], rows["pages_sharing"])


def test_time_passes_once():
    host, _ = scanning()
    twin, _ = scanning()
    with pytest.raises(RuntimeError, match="runs already"):
        host.run(6, [(2, lambda host: host.run(1))])
    twin.run(2)
    assert host.ksm.now_ms == twin.ksm.now_ms and host.run(4).tobytes() == twin.run(4).tobytes()


def test_events_come_before_controllers_and_those_before_the_row():
    host, order = Host(1024), []

    class Told:
        interval = 1.0

        def __init__(self, name):
            self.name = name

        def act(self, host):
            order.append(self.name)
            host.ksm.pages_to_scan += 1

    rows = host.run(2, [(t, lambda host: order.append("event")) for t in (1, 2, 2.5)], controllers=[Told("a"), Told("b")])
    assert order == ["event", "a", "b"] * 2
    assert rows["pages_to_scan"].tolist() == [100, 102, 104]


def test_arrays_of_events_are_applied_piece_by_piece():
    host, _ = scanning()
    events = np.zeros(10, [("time", np.int64), ("number", np.int64)])
    events["time"] = np.arange(10) * 100_000_000
    events["number"] = np.arange(10)
    got = []
    more = events[:2].copy()
    more["time"] = 950_000_000
    host.run(0.95, iter([events, events[:0], more]), apply=lambda piece: got.append((host.ksm.now_ms, piece["number"].tolist())))
    assert [number for _, piece in got for number in piece] == [*range(10), 0, 1]
    assert [now for now, _ in got] == [*range(0, 1000, 100), 950]


@pytest.mark.parametrize(
    ("workload", "error", "words"),
    [
        ([(1, print, 2)], TypeError, "step 1"), ([(1, 2)], TypeError, "step 1"), (3, TypeError, "workload 3"),
        ([(-1, print)], ValueError, "step 1 -1"), ([(1, repr), (0.5, repr)], ValueError, "step 2: at 0.5 s"),
        ([(float("nan"), repr)], ValueError, "step 1 nan"), ([np.zeros(3)], TypeError, "step 1: an array of float64"),
        (np.array([(2,), (1,)], [("time", np.int64)]), ValueError, "event 1 is before"),
        (np.array([(2,), (1,)], [("time", np.uint64)]), ValueError, "event 1 is before"),
        (np.array([(-5,), (1,)], [("time", np.int64)]), ValueError, "step 1: event 0 at -5 ns: must not be before the run begins"),
        (np.array([(5,), (-(2**63),)], [("time", np.int64)]), ValueError, "event 1 at -9223372036854775808 ns"),
        (np.array([(2**62,), (-(2**62) - 5,)], [("time", np.int64)]), ValueError, "event 1 at"),
        (np.array([(float("nan"),)], [("time", float)]), TypeError, "times of float64"),
    ],
)  # fmt: skip
def test_bad_workloads_are_refused(workload, error, words):
    host, _ = scanning()
    with pytest.raises(error, match=words):
        host.run(5, workload, apply=lambda piece: None)


class Changing:
    """Looks after these seconds, one after the other."""

    def __init__(self, *seconds):
        self.seconds, self.at = seconds, []

    @property
    def interval(self):
        return self.seconds[min(len(self.at), len(self.seconds) - 1)]

    def act(self, host):
        self.at.append(host.ksm.now_ms)


def test_a_controller_may_change_how_often_it_looks():
    host, _ = scanning()
    controller = Changing(0.5, np.float64(0.001), 2, 0.25)
    host.run(3, controllers=[controller])
    assert controller.at == [500, 501, 2501, 2751]


@pytest.mark.parametrize("wrong", [0, -1, 1e-10, float("nan"), float("inf"), 1e10, "1", None, True])
def test_an_interval_is_looked_at_whenever_it_is_read(wrong):
    host, _ = scanning()
    controllers = [Changing(1), Changing(0.5, 0.1, wrong)]
    with pytest.raises((ValueError, TypeError), match=rf"controller 1 \(Changing\): interval {wrong!r}: must be"):
        host.run(3, controllers=controllers)
    assert host.ksm.now_ms == 600 and host.ksm.pages_scanned
    with pytest.raises((ValueError, TypeError), match=r"controller 0 \(Changing\): interval"):
        host.run(3, controllers=[Changing(wrong)])
    assert host.ksm.now_ms == 600


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"seconds": -1}, ValueError, "seconds -1"), ({"seconds": "x"}, TypeError, "seconds 'x'"),
        ({"seconds": 1e12}, ValueError, "seconds"), ({"every": 0}, ValueError, "every 0"), ({"hz": 0}, ValueError, "hz 0"),
        ({"costs": 3}, TypeError, "costs 3"), ({"prefix": 5000}, ValueError, "prefix 5000"),
        ({"prefix": None}, TypeError, "prefix None"), ({"controllers": [3]}, TypeError, "controller 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(more, error, words):
    host, _ = scanning()
    with pytest.raises(error, match=words):
        host.run(**{"seconds": 1, **more})
    assert host.ksm.pages_scanned == 0 and host.ksm.now_ms == 0


def test_costs_that_are_nothing_still_let_time_pass():
    host, _ = scanning(sleep_millisecs=0, pages_to_scan=10)
    none = Costs(**{name: 0 for name in Costs.__dataclass_fields__ if name.endswith("_ns")})
    rows = host.run(0.01, costs=none, every=0.005)
    assert rows["cpu"][-1] == pytest.approx(0.01, abs=1e-5)
