"""Memory that KSM has merged already: what it saves is somebody's, and can be thought away."""

from __future__ import annotations

import numpy as np
import pytest
from seen import capture_of

from ksmwalk import Host
from ksmwalk.estimates.advice import by_domain
from ksmwalk.estimates.estimate import estimate

P = 4096


@pytest.fixture
def merged():
    """Three processes of 90 pages in 7 contents, before and after KSM has merged them; the third has 10 pages more."""
    host = Host(1 << 12)
    for i in range(3):
        mm = host.new_mm()
        start = mm.mmap(100 * P)
        mm.madvise(start, 100 * P, "mergeable")
        mm.write(start, np.arange(90 + 10 * (i == 2), dtype=np.uint64) % 7 + 1)
    before = capture_of(host)
    host.ksm.run = 1
    for _ in range(4):
        host.ksm.full_scan()
    return before, capture_of(host)


def test_what_is_saved_already_is_the_processes_that_save_it(merged):
    before, after = (estimate(one, mark="marked") for one in merged)
    assert after.expected.counters["freed_bytes"] == before.expected.counters["freed_bytes"] == 273 * P
    assert after.expected.counters["freed_more_bytes"] == 0
    rows = [[row["freed_bytes"] for row in one.expected.by_process] for one in (before, after)]
    assert rows[1] == pytest.approx(rows[0], abs=P / 16)
    assert sum(rows[1]) == pytest.approx(273 * P, abs=P / 16)
    mappings = [sum(row["freed_bytes"] for row in one.expected.by_mapping) for one in (before, after)]
    assert mappings[1] == pytest.approx(mappings[0], abs=P / 16)


def test_as_if_ksm_had_not_run_is_what_was_before_it_ran(merged):
    before, after = estimate(merged[0], mark="marked"), estimate(merged[1], mark="marked", take_over=False)
    for name in ("freed_bytes", "freed_more_bytes", "pages_shared", "pages_sharing", "pages_unshared", "rmap_items"):
        assert after.expected.counters[name] == before.expected.counters[name], name


@pytest.mark.parametrize("take_over", [True, False])
def test_what_is_merged_across_domains_is_not_merged_within_them(merged, take_over):
    before, after = (estimate(one, mark="marked", domain="process", take_over=take_over) for one in merged)
    assert after.expected.counters["freed_bytes"] == before.expected.counters["freed_bytes"] == (280 - 21) * P
    whole = estimate(merged[1], mark="marked", take_over=take_over)
    assert by_domain(whole, take_over=take_over)["process"] == (280 - 21) * P
    assert by_domain(after, take_over=take_over)["all"] == (280 - 7) * P
