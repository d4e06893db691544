"""Where frames can't be seen: merging frees no less than the lower figures say, whoever shares them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from seen import capture_of

from ksmwalk import Host
from ksmwalk.estimates.estimate import estimate

P = 4096


@pytest.fixture
def family():
    """A process of 90 pages in 3 contents, and a child that has written 30 of them anew."""
    host = Host(1 << 12)
    parent = host.new_mm()
    start = parent.mmap(90 * P)
    parent.madvise(start, 90 * P, "mergeable")
    parent.write(start, np.arange(90, dtype=np.uint64) % 3 + 1)
    child = parent.fork()
    child.write(start, np.arange(30, dtype=np.uint64) % 3 + 1)
    return host, parent, child


def hidden(capture, exclusive=True):
    """The same as somebody without rights has it."""
    some = [
        dataclasses.replace(one, pfn=None, frame_flags=None, frame_counts=None, exclusive=one.exclusive if exclusive else None)
        for one in capture.processes
    ]
    return dataclasses.replace(capture, processes=some)


@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)])
def test_what_is_freed_lies_between_the_figures_though_a_sharer_was_not_read(family, who):
    host, *mms = family
    seen = capture_of(host, [mms[i] for i in who])
    true, found = estimate(seen, mark="marked"), estimate(hidden(seen), mark="marked")
    assert found.lower["freed_bytes"] <= true.expected.counters["freed_bytes"] <= found.upper["freed_bytes"]
    assert "bit 56" in found.notes[-1]


def test_a_process_that_shares_nothing_has_no_range(family):
    host, parent, child = family
    seen = capture_of(host, [child])
    one = seen.processes[0]
    alone = dataclasses.replace(seen, processes=[dataclasses.replace(one, exclusive=np.ones(one.nr_pages, bool))])
    found = estimate(hidden(alone), mark="marked")
    assert found.lower["freed_bytes"] == found.upper["freed_bytes"] == 87 * P


def test_of_what_is_not_even_known_to_be_shared_equal_pages_at_equal_addresses_are(family):
    host, *mms = family
    found = estimate(hidden(capture_of(host, mms), exclusive=False), mark="marked")
    assert "equal addresses" in found.notes[-1]
    assert found.lower["freed_bytes"] < found.upper["freed_bytes"] == 177 * P
