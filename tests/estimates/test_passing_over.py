"""Scans that are not made, because what they would find is known, held against the same scans made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seen import capture_of

from ksmwalk import Host
from ksmwalk.estimates.costs import Costs
from ksmwalk.estimates.estimate import _counted, estimate
from ksmwalk.estimates.steady import NeverSteady

P = 4096

areas = st.lists(st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.booleans()), min_size=1, max_size=4)
knobs = st.fixed_dictionaries({
    "smart_scan": st.integers(0, 1), "use_zero_pages": st.integers(0, 1), "max_page_sharing": st.sampled_from([2, 3, 8, 256]),
    "pages_to_scan": st.sampled_from([1, 7, 100]),
})  # fmt: skip


def host_of(rows, knobs, scans, stores, thp, unmarked):
    """Memory with a past: scans, stores in between, forks, huge pages, and areas that are no longer searched."""
    host = Host(1 << 13, thp="always" if thp else "never")
    for name, value in knobs.items():
        setattr(host.ksm, name, value)
    marked = []
    for keys, fork in rows:
        mm = host.new_mm()
        start = mm.mmap(len(keys) * P)
        mm.madvise(start, len(keys) * P, "mergeable")
        mm.write(start, keys)
        if thp:
            huge = mm.mmap(512 * P, addr=1 << 32)
            mm.madvise(huge, 512 * P, "mergeable")
            mm.write(huge, [keys[i % len(keys)] for i in range(512)])
        marked.append((mm, start, len(keys)))
        if fork:
            mm.fork()
    for number in range(scans):
        host.ksm.full_scan()
        for which, page, key in stores[number::scans]:
            mm, start, n = marked[which % len(marked)]
            mm.write(start + page % n * P, [key])
    if unmarked and scans:
        mm, start, n = marked[0]
        mm.munmap(start, n * P)
    return host


def run(host, passing):
    work, told = [], []
    try:
        found = _counted(SimpleNamespace(host=host, capture=SimpleNamespace(prefix=7.0)), work, told.append, passing)
    except NeverSteady:
        return None
    return found.counters, found.rows.tolist(), found.settled, [row.tolist() for row in work], told


@given(areas, knobs, st.integers(0, 9), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 59), st.integers(0, 15)), max_size=12),
       st.booleans(), st.booleans())  # fmt: skip
def test_scans_passed_over_are_as_if_they_had_been_made(rows, knobs, scans, stores, thp, unmarked):
    made = run(host_of(rows, knobs, scans, stores, thp, unmarked), False)
    assert run(host_of(rows, knobs, scans, stores, thp, unmarked), True) == made


@pytest.mark.parametrize("smart", [0, 1])
def test_of_five_scans_of_memory_that_stands_still_two_are_passed_over(smart):
    host = host_of([([1, 2, 3], False), ([1, 2, 4], False)], {"smart_scan": smart}, 0, [], False, False)
    counters = run(host, True)[0]
    assert counters["full_scans"] == 5 and host.ksm.full_scans == 3


def test_an_estimate_is_the_same_as_with_all_scans_made(monkeypatch):
    host = host_of([(list(range(40)), True), (list(range(20, 60)), False)], {}, 0, [], True, False)
    what = capture_of(host)
    passing = estimate(what, mark="all", costs=Costs())
    never = lambda loaded, work, each, passing: _counted(loaded, work, each, False)  # noqa: E731
    monkeypatch.setattr("ksmwalk.estimates.estimate._counted", never)
    made = estimate(what, mark="all", costs=Costs())
    assert passing.expected.counters == made.expected.counters and passing.cost == made.cost
    assert passing.expected.by_process == made.expected.by_process and passing.expected.by_mapping == made.expected.by_mapping
    assert (passing.expected.work == made.expected.work).all()
    assert all(np.array_equal(a, b) for a, b in zip(passing.expected.merged, made.expected.merged, strict=True))
