"""A policy's pace: `Host.run` asks for it before each batch, and ksmd sleeps as long as it says."""

import numpy as np
import pytest

from ksmwalk import Host
from ksmwalk.ksm.costs import Costs
from ksmwalk.policies import Linux, OnRequest, Policy

P = 4096


def scanning(n=1000, **tunables):
    """Two processes with the same n pages, and ksmd at work on them."""
    host, places = Host(1 << 15), []
    for name, value in tunables.items():
        host.ksm.write(name, value)
    for _ in range(2):
        mm = host.new_mm()
        addr = mm.mmap(n * P)
        mm.write(addr, np.arange(1, n + 1, dtype=np.uint64))
        mm.madvise(addr, n * P, "mergeable")
        places.append((mm, addr))
    host.ksm.run = 1
    return host, places


class Paced(Policy):
    """Answers what it is told to, and keeps when it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def pace(self, ksm):
        self.asked.append(ksm.now_ms)
        return self.answer


def test_a_run_asks_the_policy_before_each_batch():
    host, _ = scanning()
    policy = host.ksm.policy = Paced((1, 1000))
    rows = host.run(10, every=5)
    # a second is 250 ticks, and wakes at the next multiple of 8: 1.024 s
    assert rows["pages_scanned"].tolist() == [0, 5, 10] == rows["batches"].tolist()
    assert policy.asked == [1024 * n for n in range(10)]
    policy.answer = None
    host.run(0.25)
    assert host.ksm.pages_scanned == 110  # its last sleep, then as the tunables say
    policy.answer = 0, 100
    host.run(0.25)
    assert host.ksm.pages_scanned == 110


def test_a_batch_cut_in_two_sleeps_as_was_said_before_it():
    host, _ = scanning(n=5000)
    policy = host.ksm.policy = Paced((1500, 2000))
    costs = Costs(page_ns=1e6)
    host.run(0.6, costs=costs)
    policy.answer = 7, 0
    host.run(2.9, costs=costs)
    assert host.ksm.pages_scanned == 1500 and len(policy.asked) == 1


def test_another_policy_or_sleep_millisecs_wakes_ksmd():
    forever = 0xFFFFFFFF
    seen = []
    host, _ = scanning()
    policy = host.ksm.policy = Paced((10, forever))
    look = lambda host: seen.append(host.ksm.pages_scanned)  # noqa: E731
    host.run(9, [(5, look), (5, lambda host: host.ksm.write("sleep_millisecs", 21)), (5.001, look), (8, look)])
    assert seen == [10, 20, 20] and len(policy.asked) == 2
    steps = [(0, lambda host: setattr(host.ksm, "policy", Paced((3, forever)))), (0.5, look)]
    host.run(1, [*steps, (0.6, lambda host: setattr(host.ksm, "policy", None)), (0.601, look)])
    assert seen[3:] == [23, 123]


def test_on_request_a_run_merges_nothing_by_itself_but_what_is_asked_for_at_first():
    for at_first in (True, False):
        host, places = scanning(smart_scan=0)
        policy = host.ksm.policy = OnRequest(at_first)
        rows = host.run(100, every=50)
        assert rows["pages_scanned"].tolist() == [0, 2000 * at_first, 2000 * at_first] and rows["batches"].tolist() == [0, 1, 1]
        policy.request(host.ksm, [(mm, addr, 1000 * P) for mm, addr in places])
        assert host.ksm.pages_sharing == 1000


def test_linux_as_a_policy_runs_as_none():
    whole = []
    for policy in (None, Linux()):
        host, _ = scanning(advisor_mode="scan-time")
        host.ksm.policy = policy
        steps = [(0.9013, lambda host: host.ksm.write("sleep_millisecs", 3)), (2, lambda host: host.ksm.write("run", 2))]
        whole.append((host.run(3, steps, every=0.01, costs=Costs(scan_ns=2e5)), host.world.arrays["ksm"]["advisor"].tolist()))
    np.testing.assert_array_equal(whole[0][0], whole[1][0])
    assert whole[0][1] == whole[1][1]


def test_a_pace_that_makes_no_sense_comes_out_of_the_run():
    host, _ = scanning()
    policy = host.ksm.policy = Paced((1, 20))
    host.run(1)
    before = host.ksm.pages_scanned, host.ksm.now_ms
    policy.answer = 1, -5
    with pytest.raises(ValueError, match=r"milliseconds of pace\(\) -5"):
        host.run(1)
    assert host.ksm.pages_scanned == before[0] and host.ksm.now_ms - before[1] < 30
    policy.answer = 1, 20
    host.run(1)
    assert host.ksm.pages_scanned > before[0] + 30
