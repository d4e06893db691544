"""Every recording of a real ksmd on two NUMA nodes replays in the model without a difference."""

from pathlib import Path

import pytest

from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.format import load
from ksmwalk.scenarios.replay import replay

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "guests" / "numa").glob("*numa_*.json"))


def test_all_are_here():
    assert len(GOLDEN) >= 163


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    recording = load(path)
    difference = first_difference(recording.records, replay(recording), recording.nondet)
    assert difference is None, difference.text("kernel", "model")
