"""Linux through the interface of policies replays every recording of the real ksmd, and leaves the same arrays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ksmcheck import check_ksm

from ksmwalk.ksm.policy import ASKED, Policy, written
from ksmwalk.policies.linux import Linux
from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.format import load
from ksmwalk.scenarios.generate import generate
from ksmwalk.scenarios.replay import Replay

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.json"))


class AreasOnly(Policy):
    """The fast way through the scan: no table is asked for."""

    def area(self, area):
        return self.SCAN

    def after(self, area):
        assert area.visited >= area.merged >= 0 and area.mm.alive


def test_it_is_asked_everything():
    assert sorted(written(Linux())) == sorted(ASKED) and written(Policy()) == {}
    assert type(Linux()).pace is not Policy.pace


def arrays_of(host):
    return {name: array for name, array in host.__getstate__()["arrays"].items()}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_recording_replays_bit_for_bit(path):
    recording = load(path)
    plain = Replay(recording.scenario)
    list(plain.records())
    for policy in (Linux(), AreasOnly()):
        run = Replay(recording.scenario)
        run.host.ksm.policy = policy
        difference = first_difference(recording.records, list(run.records()), recording.nondet)
        assert difference is None, difference.text("kernel", "model")
        straight = arrays_of(plain.host)
        for name, array in arrays_of(run.host).items():
            assert np.array_equal(array, straight[name]), (name, type(policy).__name__)


@given(st.integers(0, 10**6), st.sampled_from(["range", "per-address"]))
def test_random_scenarios_go_the_same_way(number, strategy):
    scenario = generate(515, number)
    scenario.ops = [op for op in scenario.ops if op[0] != "memset"]
    hosts = []
    for policy in (None, Linux(), AreasOnly()):
        run = Replay(scenario)
        run.host.ksm.scan.strategy = strategy
        run.host.ksm.policy = policy
        list(run.records())
        check_ksm(run.host)
        hosts.append(arrays_of(run.host))
    for other in hosts[1:]:
        for name, array in hosts[0].items():
            assert np.array_equal(array, other[name]), name
