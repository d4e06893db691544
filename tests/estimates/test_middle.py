"""A start in the middle: taken over from what can be seen, the model comes to where the other one comes as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seen import capture_of

from ksmwalk import Host
from ksmwalk.estimates.before import unmerged
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.steady import WATCHED, run_to_steady
from ksmwalk.sources.memory import load_memory

P = 4096


def machine(smart=0, zero=0, limit=256):
    host = Host(1 << 14)
    host.ksm.smart_scan, host.ksm.use_zero_pages, host.ksm.max_page_sharing = smart, zero, limit
    return host


def marked(host, keys, thp=False):
    mm = host.new_mm()
    start = mm.mmap(1 << 22, addr=1 << 30)
    if thp:
        mm.madvise(start, 1 << 22, "hugepage")
    mm.madvise(start, 1 << 22, "mergeable")
    mm.write(start, np.array(keys, np.uint64))
    return mm, start


def agree(host, mms=None, but=()):
    found = estimate(capture_of(host, mms)).expected.counters
    frames = host.frames_used
    wanted = run_to_steady(host).counters
    names = [name for name in WATCHED if name not in but]
    assert {name: found[name] for name in names} == {name: wanted[name] for name in names}
    return found, frames - host.frames_used


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("scan"), st.integers(1, 400)),
        st.tuples(st.just("write"), st.integers(0, 5), st.integers(0, 99), st.integers(0, 6)),
        st.tuples(st.just("fork"), st.integers(0, 5)),
        st.tuples(st.just("new"), st.lists(st.integers(0, 12), min_size=1, max_size=80)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.integers(0, 99)),
        st.tuples(st.just("exit"), st.integers(0, 5)),
    ),
    max_size=14,
)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=100), STEPS, st.booleans(), st.booleans())
def test_whatever_had_happened_before(keys, steps, zero, thp):
    host = machine(zero=int(zero))
    mms = [marked(host, keys, thp)]
    for step, *args in steps:
        mm, start = mms[args[0] % len(mms)] if mms and step not in ("scan", "new") else (None, 0)
        if step == "scan":
            host.ksm.do_scan(args[0])
        elif step == "new":
            mms.append(marked(host, args[0]))
        elif mm is None:
            continue
        elif step == "write":
            mm.write(start + args[1] * P, args[2])
        elif step == "fork":
            mms.append((mm.fork(), start))
        elif step == "drop":
            mm.madvise(start + args[1] * P, P, "dontneed")
        elif len(mms) > 1:
            mms.remove((mm, start))
            mm.exit()
    agree(host)


@pytest.mark.parametrize("scans", [0, 1, 2, 5])
@pytest.mark.parametrize("limit", [2, 3, 256])
def test_sharing_limits(scans, limit):
    host = machine(limit=limit)
    marked(host, [1, 1, 1, 1, 1, 1, 1, 2, 2, 3, *range(10, 60)])
    marked(host, [1, 1, 1, 1, 4, 4, 3, *range(10, 40)])
    for _ in range(scans):
        host.ksm.full_scan()
    agree(host)


ROWS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=80), min_size=1, max_size=4)


@given(ROWS, st.integers(1, 4), st.sampled_from([2, 3, 8, 256]), st.booleans())
def test_where_each_page_was_visited_its_checksum_is_known(rows, scans, limit, zero):
    """So that it takes as many scans as it really does; without it one more where pages have to be merged still."""
    host = machine(zero=int(zero), limit=limit)
    for keys in rows:
        marked(host, keys)
    for _ in range(scans):
        host.ksm.full_scan()
    found = estimate(capture_of(host)).expected.counters
    wanted = run_to_steady(host).counters
    assert found["full_scans"] == wanted["full_scans"] or zero  # which zero pages have an item still can't be seen
    assert {name: found[name] for name in WATCHED} == {name: wanted[name] for name in WATCHED}


def test_what_came_or_was_not_reached_yet_is_not_taken_for_visited():
    host = machine()
    mm, _ = marked(host, range(1, 40))
    host.ksm.full_scan()
    marked(host, range(20, 60))
    parts = capture_of(host).processes
    loaded = load_memory(capture_of(host))
    assert [len(mm.rmap_items) for mm in loaded.mms] == [39, 0]
    # items of pages that have gone: which of the others have none can't be told
    host.ksm.full_scan()
    host.ksm.full_scan()
    mm.madvise(int(parts[0].addr[0]), P, "dontneed")
    loaded = load_memory(capture_of(host))
    assert [len(mm.rmap_items) for mm in loaded.mms] == [20, 40]  # of the first those merged
    assert len(load_memory(unmerged(capture_of(host))).mms[0].rmap_items) == 0


def test_smart_scan_ends_with_the_same_sum():
    host = machine(smart=1, zero=1)
    mm, start = marked(host, [*range(50), *range(20), 0, 0])
    marked(host, [*range(30, 80)])
    for _ in range(2):
        host.ksm.full_scan()
    host.ksm.do_scan(40)
    child = mm.fork()
    child.write(start, [100, 101])
    found, _ = agree(host, but=("pages_unshared", "pages_volatile"))
    assert found["pages_unshared"] > 0


def test_what_is_freed_is_what_becomes_free():
    host = machine()
    mm, start = marked(host, [*range(1, 50), *range(1, 20)])
    mm.fork()  # shared already: merging frees nothing twice
    found, freed = agree(host)
    assert found["freed_bytes"] == freed * P == 19 * P
    # what the kernel says of it counts the forked mappings as well
    assert found["pages_sharing"] > 19 * 2


def test_what_was_freed_before_is_named_apart():
    host = machine()
    marked(host, [*range(1, 50), *range(1, 20)])
    for _ in range(4):
        host.ksm.full_scan()
    found, freed = agree(host)
    assert freed == 0
    assert found["freed_bytes"] == 19 * P and found["freed_more_bytes"] == 0


def test_a_frame_that_somebody_else_maps_is_not_freed():
    host = machine()
    mm, _ = marked(host, [7, 7, 8])
    mm.fork()
    alone = estimate(capture_of(host, [mm])).expected.counters
    assert alone["pages_sharing"] == 1 and alone["freed_bytes"] == 0
    [row] = estimate(capture_of(host, [mm])).expected.by_process
    assert row["freed_bytes"] == 0
    both = estimate(capture_of(host)).expected.counters
    assert both["freed_bytes"] == P


def test_zero_pages_of_ksm_are_counted():
    host = machine(zero=1)
    marked(host, [0, 0, 0, 1, 2])
    for _ in range(3):
        host.ksm.full_scan()
    assert host.ksm.ksm_zero_pages == 3
    found, _ = agree(host)
    assert found["ksm_zero_pages"] == 3 and found["freed_bytes"] == 3 * P


def test_what_was_merged_counts_at_once():
    host = machine()
    one, _ = marked(host, [*range(1, 50), *range(1, 20)])
    two, _ = marked(host, [*range(1, 10)])
    for _ in range(4):
        host.ksm.full_scan()
    loaded = load_memory(capture_of(host))
    for name in ("pages_shared", "pages_sharing"):
        assert getattr(loaded.host.ksm, name) == getattr(host.ksm, name) > 0
    for mine, real in zip(loaded.mms, (one, two), strict=True):
        assert mine.ksm_stat()["ksm_merging_pages"] == real.ksm_stat()["ksm_merging_pages"]
    assert loaded.nr_merged == host.ksm.pages_shared + host.ksm.pages_sharing
