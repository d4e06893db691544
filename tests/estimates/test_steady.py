"""The steady state, and what its counters are with smart_scan, which skips pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seen import capture_of
from servers import COSTS, P, memory

from ksmwalk import Host
from ksmwalk.estimates import steady
from ksmwalk.estimates.estimate import cost_of, estimate
from ksmwalk.estimates.shares import frames_of, shares
from ksmwalk.estimates.steady import WATCHED, run_to_steady
from ksmwalk.sources.memory import load_memory


def host_of(rows, limit, zero, scans):
    host = Host(1 << 13)
    host.ksm.smart_scan, host.ksm.max_page_sharing, host.ksm.use_zero_pages = 1, limit, zero
    for keys in rows:
        mm = host.new_mm()
        start = mm.mmap(len(keys) * P)
        mm.madvise(start, len(keys) * P, "mergeable")
        mm.write(start, keys)
    for _ in range(scans):
        host.ksm.full_scan()
    return host


contents = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=60), min_size=1, max_size=4)


@given(contents, st.sampled_from([2, 3, 8, 256]), st.booleans(), st.integers(0, 12))
def test_what_is_known_of_scans_that_skip_nothing_is_what_such_a_scan_finds(rows, limit, zero, scans):
    """However many scans there have been: ages that make smart scan skip are left from them."""
    found = run_to_steady(host_of(rows, limit, zero, scans)).counters
    host = host_of(rows, limit, zero, scans)
    old, steady._skipped_nothing = steady._skipped_nothing, lambda rows: None
    try:
        tried = run_to_steady(host).counters
    finally:
        steady._skipped_nothing = old
    assert found == tried
    host.ksm.smart_scan = 0
    host.ksm.full_scan()
    assert {name: host.ksm.counters()[name] for name in WATCHED if name != "rmap_items"} == {
        name: found[name] for name in WATCHED if name != "rmap_items"
    }


def test_no_scan_is_made_only_to_learn_what_is_known_already():
    scans = []
    host = host_of([[1, 2, 3], [1, 2, 4]], 256, False, 0)
    run_to_steady(host, each=scans.append)
    assert host.ksm.full_scans == len(scans) == 5


def in_tables(mm, one):
    """Frames by plain reading of the tables."""
    pages = {}
    for leaf in mm.tables.mappings():
        for at in range(512 ** (int(leaf["level"]) - 1)):
            pages[int(leaf["addr"]) + at * P] = int(leaf["pfn"]) + at
    return [pages[int(addr)] for addr in one.addr]


@pytest.mark.parametrize("thp", ["never", "always"])
def test_frames_of_captured_pages_are_those_of_the_page_tables(thp):
    host = Host(1 << 14, thp=thp)
    for number in range(2):
        mm = host.new_mm()
        start = mm.mmap(1536 * P, addr=1 << 30)
        mm.write(start, [*range(1, 512), *([0] * 20), *range(1000 * number, 1000 * number + 700)])
    mm.fork()
    what = capture_of(host)
    assert what.processes[0].huge.any() == (thp == "always")
    loaded = load_memory(what, mark="all", knobs={"use_zero_pages": 1})
    for _ in range(3):
        for number, one in enumerate(what.processes):
            assert frames_of(loaded, number).tolist() == in_tables(loaded.mms[number], one)
        loaded.host.ksm.full_scan()
    assert loaded.host.ksm.pages_sharing > 500 and (thp == "always" or loaded.host.ksm.ksm_zero_pages > 0)
    now = shares(loaded)
    assert sum(now.by_page(number).sum() for number in range(3)) == pytest.approx(now.nr_frames)
    every = np.concatenate(now.frames)
    assert now.nr_frames == len(np.unique(every[every != 0]))


def test_frames_where_more_is_mapped_than_was_captured():
    what = memory(("web", 200, 10, 0))
    loaded = load_memory(what, mark="all")
    (one,) = what.processes
    whole = frames_of(loaded, 0)
    some = np.r_[0:7, 20:21, 90:200]
    one.addr = one.addr[some]
    assert frames_of(loaded, 0).tolist() == whole[some].tolist()


def test_what_a_setting_costs_does_not_depend_on_the_pace_that_the_run_was_counted_at():
    what = memory(("web", 700, 100, 50), ("web", 700, 10, 0))
    slow, quick = (estimate(what, knobs={"pages_to_scan": pages}, costs=COSTS) for pages in (10, 10_000))
    assert slow.cost["cpu_seconds"] > quick.cost["cpu_seconds"]
    assert cost_of(quick.expected, COSTS, slow.knobs) == slow.cost
