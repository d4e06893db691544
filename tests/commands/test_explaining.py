"""Pace, place in the pass, what is saved and what is hidden: arithmetic on moments and machines that are made up."""

from __future__ import annotations

import json

import pytest
from fakeroot import FakeRoot

from ksmwalk.commands import explain, explaining
from ksmwalk.ksm.costs import Costs
from ksmwalk.proc.ksmstate import Moment, read_ksm_state

P = 4096
STILL = explaining.pace([Moment(0.0)])


@pytest.fixture
def machine(tmp_path):
    made = FakeRoot(tmp_path)
    made.set("run", 1)
    return made


def moments(*rows):
    """(seconds, full_scans, pages_scanned, pages_skipped)"""
    return [Moment(*row) for row in rows]


def scan(machine, *rows):
    seen = explaining.pace(moments(*rows)) if rows else STILL
    return explaining.scan_pass(read_ksm_state(machine.path, memory=True), seen)


def test_the_pace_counts_visits_and_skips_apart():
    seen = explaining.pace([Moment(10.0, 3, 1000, 50, 10**9), Moment(12.0, 3, 1600, 250, 10**9 + 5 * 10**8)])
    assert seen["visits_per_second"] == 300 and seen["met_per_second"] == 400
    assert seen["skipped_share"] == pytest.approx(0.25) and seen["cpu_share"] == pytest.approx(0.25)
    assert seen["passes"] == 0 and seen["since_end"] is None


def test_one_moment_has_no_pace_and_an_old_kernel_none_either():
    assert STILL["met_per_second"] is None and STILL["passes"] is None
    old = explaining.pace([Moment(0.0, 1), Moment(1.0, 2)])
    assert old["met_per_second"] is None and old["passes"] == 1 and old["since_end"] is None


def test_between_two_ends_lies_a_pass():
    seen = explaining.pace(moments((0, 4, 0, 0), (1, 5, 70, 10), (2, 5, 120, 20), (4, 6, 200, 40), (5, 6, 230, 45)))
    assert (seen["passes"], seen["pass_seconds"], seen["pass_pages"], seen["since_end"]) == (2, 3, 160, 35)


def test_several_ends_between_two_looks_share_the_time():
    seen = explaining.pace(moments((0, 0, 0, 0), (1, 3, 30, 0), (2, 7, 70, 0)))
    assert seen["passes"] == 7 and seen["pass_seconds"] == pytest.approx(0.25) and seen["pass_pages"] == 10


def test_unmerging_everything_is_no_end_of_a_pass():
    seen = explaining.pace(moments((0, 8, 0, 0), (1, 9, 50, 0), (2, 0, 80, 0), (3, 0, 90, 0)))
    assert seen["passes"] == 0 and seen["since_end"] is None and seen["pass_pages"] is None


def test_counters_that_run_backwards_make_no_negative_pace():
    seen = explaining.pace(moments((0, 8, 900, 0), (1, 8, 0, 0)))
    assert seen["met_per_second"] == 0


def test_the_first_pass_is_as_far_as_there_are_rmap_items(machine):
    machine.process(10, marked_pages=1000)
    machine.sets(pages_volatile=250)
    got = scan(machine, (0, 0, 0, 0), (1, 0, 50, 0))
    assert (got["number"], got["pages"], got["done"], got["rate"], got["seconds"], got["left"]) == (1, 1000, 250, 50, 20, 15)
    assert got["rate_from"] == "measured" and got["pages_from"] == "mappings" and got["complete"]


def test_a_later_pass_is_nowhere_until_an_end_was_seen(machine):
    machine.process(10, marked_pages=1000)
    machine.sets(full_scans=3, pages_unshared=1000)
    got = scan(machine, (0, 3, 0, 0), (1, 3, 50, 0))
    assert got["done"] is None and got["left"] is None and got["seconds"] == 20
    got = scan(machine, (0, 2, 0, 0), (1, 3, 50, 0), (2, 3, 150, 50))
    assert got["done"] == 150 and got["rate"] == 100 and got["left"] == pytest.approx(8.5)


def test_more_done_than_there_is_ends_at_once(machine):
    machine.process(10, marked_pages=100)
    machine.sets(pages_volatile=250)
    assert scan(machine, (0, 0, 0, 0), (1, 0, 50, 0))["left"] == 0


def test_memory_that_may_not_be_looked_into_counts_with_its_rmap_items(machine):
    machine.process(10, marked_pages=1000, items=900)
    machine.sets(full_scans=3, pages_unshared=2900)
    state = read_ksm_state(machine.path, memory=True)
    assert explaining.pass_pages(state) == (1000, "mappings")
    state.refused = 1
    assert explaining.pass_pages(state) == (3000, "mappings")
    state.processes = []
    assert explaining.pass_pages(state) == (2900, "rmap_items")


@pytest.mark.parametrize(
    ("knobs", "marked", "idle"),
    [
        ({"run": 0}, True, "stopped"),
        ({"run": 2}, True, "unmerged"),
        ({"run": "?"}, True, "unknown"),
        ({"run": 3}, True, "unknown"),
        ({"pages_to_scan": 0}, True, "pages_to_scan"),
        ({}, False, "nothing marked"),
        ({"sleep_millisecs": 5000}, True, "between batches"),
        ({}, True, "asleep"),
    ],
)
def test_why_nothing_is_scanned(machine, knobs, marked, idle):
    machine.sets(**knobs)
    if marked:
        machine.process(10, marked_pages=10)
    assert scan(machine, (0, 3, 50, 0), (2, 3, 50, 0))["idle"] == idle


def test_without_a_look_the_tunables_say_how_long_a_pass_takes(machine):
    machine.process(10, marked_pages=10_000)
    machine.sets(full_scans=3)
    got = scan(machine)
    assert got["idle"] is None and got["rate_from"] == "tunables" and got["seconds"] == pytest.approx(2, rel=0.01)
    machine.set("sleep_millisecs", 0)
    assert scan(machine)["seconds"] is None  # no limit but ksmd's own speed


def test_a_pass_takes_the_sleep_of_a_batch_and_ksmd_s_work_whatever_the_tunables_allow(machine):
    machine.process(10, marked_pages=27_310)
    machine.sets(full_scans=3, pages_to_scan=10_000_000, pages_unshared=27_310)
    state = read_ksm_state(machine.path, memory=True)
    visit = (Costs().page_ns + Costs().checksum_ns) / 1e9
    assert explaining.limit(state, Costs()) == pytest.approx(1 / visit)
    # the end of a pass ends a batch
    assert explaining.pass_least(state, 27_310, Costs()) == pytest.approx(0.02 + 27_310 * visit)
    assert scan(machine)["seconds"] > 0.02
    machine.sets(pages_sharing=27_310, pages_unshared=0)
    merged = read_ksm_state(machine.path, memory=True)
    assert explaining.limit(merged, Costs()) > explaining.limit(state, Costs())


def test_costs_that_cannot_be_read_do_not_stop_it(machine, monkeypatch, tmp_path):
    (tmp_path / "ksmwalk").mkdir()
    (tmp_path / "ksmwalk" / "costs.json").write_text("{")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert explaining.limit(read_ksm_state(machine.path)) == 5000


def test_what_is_saved_is_the_kernels_own_account(machine):
    machine.sets(pages_shared=10, pages_sharing=90, pages_unshared=5, ksm_zero_pages=7, stable_node_chains=2,
                 general_profit=97 * P - 105 * 64)  # fmt: skip
    got = explaining.saved(read_ksm_state(machine.path))
    assert got == {"sharing": 90 * P, "kept": 10 * P, "zero": 7 * P, "rmap_items": 105 * 64, "nodes": 12 * 64,
                   "profit": 97 * P - 105 * 64}  # fmt: skip
    machine.remove("general_profit")
    assert explaining.saved(read_ksm_state(machine.path))["profit"] == got["profit"]
    machine.remove("pages_sharing")
    assert explaining.saved(read_ksm_state(machine.path))["profit"] is None


def test_what_forks_may_have_shared_is_all_but_the_largest_of_each_family(machine):
    machine.sets(pages_shared=10, pages_sharing=1000)
    for pid, merging in ((10, 50), (11, 70), (12, 60)):
        machine.process(pid, merging=merging, family=(2, 3, 4))
    machine.process(20, merging=500, family=(2, 3, 5))
    got = explaining.hidden(read_ksm_state(machine.path))
    assert got["forked"] == 3 and got["fork_bytes"] == 110 * P
    machine.set("pages_sharing", 40)  # no more than what counts as saved
    assert explaining.hidden(read_ksm_state(machine.path))["fork_bytes"] == 40 * P


def test_what_is_owed_is_summed_apart_by_sign(machine):
    machine.process(10, merging=30, ksm_pages=25)
    machine.process(11, merging=30, ksm_pages=38)
    assert explaining.hidden(read_ksm_state(machine.path))["broken"] is None
    got = explaining.hidden(read_ksm_state(machine.path, memory=True))
    assert (got["broken"], got["unvisited"]) == (5, 8)


def test_pages_spent_for_the_sharing_limit_are_those_beyond_the_first(machine):
    machine.sets(pages_shared=3, pages_sharing=17, stable_node_chains=1, stable_node_dups=3)
    got = explaining.hidden(read_ksm_state(machine.path))
    assert got["extra_pages"] == 2 and got["sharers"] == pytest.approx(20 / 3)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (None, (None, None, None)),
        ((90, 400), (90, 400, 10)),
        ((104, 400), (104, 400, 0)),  # four that an unvisited fork keeps
        ((5000, 5000), (None, None, None)),  # every anonymous page, on kernels that call them so
    ],
)
def test_frames_show_how_many_ksm_pages_are_gone(machine, frames, expected):
    machine.set("pages_shared", 100)
    state = read_ksm_state(machine.path)
    state.frames = frames
    got = explaining.hidden(state)
    assert (got["frames"], got["frame_mappings"], got["stale"]) == expected


# ---------------------------------------------------------------- predictions


def prediction(tmp_path, data):
    path = tmp_path / "estimate.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return str(path)


def test_a_prediction_stands_beside_what_it_came_to(machine, tmp_path):
    machine.sets(pages_shared=10, pages_sharing=45, ksm_zero_pages=5, general_profit=77)
    path = prediction(tmp_path, {
        "expected": {"freed_bytes": 400, "pages_sharing": 90, "ksm_zero_pages": 10, "general_profit": 100, "rmap_items": 60},
        "lower": {"pages_sharing": 80}, "upper": None, "by_process": [],
    })  # fmt: skip
    machine.set("smart_scan", 0)
    rows = explaining.against(explaining.read_prediction(path), read_ksm_state(machine.path))
    by_name = {row["name"]: row for row in rows}
    assert by_name["freed_bytes"]["achieved"] is None
    assert by_name["pages_sharing"] == {"name": "pages_sharing", "predicted": 90, "lower": 80, "upper": None, "achieved": 45}
    assert by_name["general_profit"]["achieved"] == 77 and by_name["rmap_items"]["achieved"] == 55
    assert explaining.merged_share(rows) == pytest.approx(0.5)


def test_with_smart_scan_what_is_not_merged_is_compared_in_sum(machine, tmp_path):
    machine.sets(pages_unshared=10, pages_volatile=50, smart_scan=1)
    band = {"pages_unshared": 55, "pages_volatile": 5, "full_scans": 9}
    path = prediction(tmp_path, {"expected": band, "lower": band, "upper": {**band, "pages_volatile": 7}})
    read = explaining.read_prediction(path)
    (row,) = [row for row in explaining.against(read, read_ksm_state(machine.path)) if row["name"].startswith("pages_")]
    assert row == {"name": "pages_unshared + pages_volatile", "predicted": 60, "lower": 60, "upper": 62, "achieved": 60}
    machine.set("smart_scan", 0)
    rows = explaining.against(read, read_ksm_state(machine.path))
    assert [(row["name"], row["achieved"]) for row in rows][:2] == [("pages_unshared", 10), ("pages_volatile", 50)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "expected"),
        ({"expected": 3}, "expected"),
        ({"expected": {}}, "none of the figures"),
        ({"expected": {"pages_sharing": "many\x1b"}}, '"pages_sharing" is no number'),
        ({"expected": {"pages_sharing": True}}, "is no number"),
        (b'{"expected": {"freed_bytes": NaN}}', "is no number"),
        (b'{"expected": {"freed_bytes": 1e999}}', "is no number"),
        ({"expected": {"freed_bytes": -(10**400)}}, "is no number"),
        ({"expected": {"pages_sharing": 1}, "lower": [1]}, '"lower"'),
    ],
)
def test_what_is_no_prediction_is_named(tmp_path, data, words):
    path = prediction(tmp_path, data)
    with pytest.raises(ValueError, match="estimate.json") as refused:
        explaining.read_prediction(path)
    assert words in str(refused.value) and str(refused.value).isprintable() and len(str(refused.value)) < 500


def test_a_long_watch_forgets_what_nothing_came_of_and_keeps_the_ends(machine):
    looking = explain.Looking(machine.path)
    looking.seen = moments(*((at, at // 1000, at * 10, 0) for at in range(5500)))
    before = {name: looking.pace()[name] for name in ("pass_seconds", "pass_pages", "since_end")}
    assert len(looking.seen) < 20
    looking.seen += moments((5500, 5, 55000, 0))
    after = looking.pace()
    assert before == {"pass_seconds": 1000, "pass_pages": 10000, "since_end": 4990}
    assert (after["pass_seconds"], after["pass_pages"], after["since_end"]) == (1000, 10000, 5000)
