"""Estimates from a part of the contents: the truth lies between their bounds as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen import capture_of

from ksmwalk import Host
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.sampling import estimate_sample

P = 4096


@pytest.fixture(scope="module")
def memory():
    host = Host(1 << 14)
    random = np.random.default_rng(4)
    for _ in range(3):
        mm = host.new_mm()
        start = mm.mmap(3000 * P)
        mm.madvise(start, 3000 * P, "mergeable")
        keys = random.integers(1, 2000, 3000).astype(np.uint64)
        keys[:300] = 7  # one that many pages have
        keys[300:400] = 0
        keys[400:1500] = random.integers(10_000, 1 << 40, 1100)
        mm.write(start, keys)
    return capture_of(host)


def test_the_whole_is_the_whole(memory):
    found, true = estimate_sample(memory, 1.0), estimate(memory)
    for name in ("pages_shared", "pages_sharing", "pages_unshared", "freed_bytes", "rmap_items", "general_profit"):
        assert found.expected.counters[name] == true.expected.counters[name]
    assert found.lower["freed_bytes"] == found.upper["freed_bytes"] == true.expected.counters["freed_bytes"]
    assert [row["freed_bytes"] for row in found.expected.by_process] == pytest.approx(
        [row["freed_bytes"] for row in true.expected.by_process], abs=P
    )


def test_what_is_known_is_not_scaled_and_time_is(memory):
    found, true = estimate_sample(memory, 0.2), estimate(memory)
    for row, known in zip(found.expected.by_process, true.expected.by_process, strict=True):
        assert row["anonymous_pages"] == known["anonymous_pages"] and row["pages"] == known["pages"]
    assert 0.6 * true.cost["cpu_seconds"] < found.cost["cpu_seconds"] < 1.6 * true.cost["cpu_seconds"]
    assert 0.8 * true.cost["seconds"] < found.cost["seconds"] < 1.3 * true.cost["seconds"]


@given(st.lists(st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.booleans(), st.booleans()),
                min_size=1, max_size=3), st.booleans(), st.sampled_from(["marked", "all"]),
       st.sampled_from(["all", "process"]), st.booleans(), st.integers(0, 2))  # fmt: skip
@settings(max_examples=25)
def test_huge_pages_that_would_be_split_are_those_of_the_whole(rows, zero, mark, domain, seen, scans):
    host = Host(1 << 14, thp="always")
    for number, (odd, marks, forks) in enumerate(rows):
        mm = host.new_mm()
        start = mm.mmap(len(odd) * 512 * P, addr=1 << 30)
        if marks:
            mm.madvise(start, len(odd) * 512 * P, "mergeable")
        # each huge page has one page that others may hold, the rest nobody has; 6: that one too; and zeros, where these go to
        # the page of zeros anyway: else it depends on who is split first
        keys = np.arange(len(odd) * 512) + 1000 + (number << 20)
        keys[::512] = [key if key != 6 and (key or zero) else 100 + i + 50 * number for i, key in enumerate(odd)]
        mm.write(start, keys.astype(np.uint64))
        if forks:
            mm.fork()
    for _ in range(scans):
        host.ksm.full_scan()
    what = capture_of(host)
    if not seen:
        for one in what.processes:
            one.pfn = one.exclusive = one.frame_flags = one.frame_counts = None
    options = {"mark": mark, "domain": domain, "knobs": {"use_zero_pages": int(zero)}}
    true = estimate(what, changing=False, **options).expected.counters["huge_pages_split"]
    assert estimate_sample(what, 0.5, **options).expected.counters["huge_pages_split"] == true


def test_the_truth_lies_between_the_bounds(memory):
    true = estimate(memory).expected.counters
    inside = dict.fromkeys(("freed_bytes", "pages_shared", "pages_sharing"), 0)
    draws = 40
    for seed in range(draws):
        found = estimate_sample(memory, 0.2, seed=seed)
        for name in inside:
            inside[name] += found.lower[name] <= true[name] <= found.upper[name]
        assert found.upper["freed_bytes"] < 1.5 * true["freed_bytes"]
    # of 40 with a chance of 0.95 each fewer than 34 come about once in 300 times
    assert min(inside.values()) >= 34, inside


@pytest.mark.parametrize(("contents", "pages", "part"), [(5, 50, 0.05), (10, 2, 0.05), (1, 3, 0.5)])
def test_the_bounds_hold_where_little_or_nothing_is_drawn_of_what_is_shared(contents, pages, part):
    host = Host(1 << 12)
    mm = host.new_mm()
    start = mm.mmap(1000 * P)
    mm.madvise(start, 1000 * P, "mergeable")
    keys = np.arange(10_000, 11_000, dtype=np.uint64)
    keys[: contents * pages] = np.repeat(np.arange(1, contents + 1), pages)
    mm.write(start, keys)
    memory = capture_of(host)
    true = estimate(memory).expected.counters
    inside = dict.fromkeys(("freed_bytes", "pages_shared", "pages_sharing", "general_profit"), 0)
    for seed in range(40):
        found = estimate_sample(memory, part, seed=seed)
        for name in inside:
            inside[name] += found.lower[name] <= true[name] <= found.upper[name]
    assert min(inside.values()) >= 34, inside


def test_a_part_too_small_to_draw_anything_is_refused(memory):
    with pytest.raises(ValueError, match="part 1e-300: must be 1e-09 or more"):
        estimate_sample(memory, 1e-300)


@pytest.mark.parametrize("part", [0, -1, 1.5, "a", True, float("nan")])
def test_no_such_part(memory, part):
    with pytest.raises(ValueError, match="part .*: must be above 0 and at most 1"):
        estimate_sample(memory, part)
