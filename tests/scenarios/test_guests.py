"""Every recording of other kernels replays in the model of that kernel without a difference."""

from pathlib import Path

import pytest

from ksmwalk import kernels
from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.format import load
from ksmwalk.scenarios.replay import kernel_of, replay

GUESTS = Path(__file__).parents[1] / "golden" / "guests"
#: recordings of each folder, and the kernel they are of
FOLDERS = {
    "5.10": (91, "5.10.223"), "6.1": (166, "6.1.192"), "6.12": (118, "6.12.117"), "6.16": (23, "6.16.12"), "7.2": (6, "7.2.13"),
    "7.3": (43, "7.3.4"), "6.18": (5, "6.18.15"),
}  # fmt: skip
#: two NUMA nodes, 6.1.192
NODES = sorted((GUESTS / "numa").glob("k6.1_*.json"))
ALL = [*(path for folder in FOLDERS for path in sorted((GUESTS / folder).glob("*.json"))), *NODES]


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_are_here(folder):
    nr, version = FOLDERS[folder]
    found = list((GUESTS / folder).glob("*.json"))
    assert len(found) >= nr
    assert {kernel_of(load(path))[0].version for path in found} == {version}
    assert len(NODES) >= 39


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_guest(path):
    recording = load(path)
    difference = first_difference(recording.records, replay(recording), recording.nondet)
    assert difference is None, difference.text("kernel", "model")


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_kernel_is_told_apart(folder):
    """As the default some recordings of each folder come out otherwise: the profile decides something there."""
    differ = 0
    for path in sorted((GUESTS / folder).glob("*.json")):
        recording = load(path)
        ignore = {*recording.nondet, "t", "s.merge_any", "s.mergeable", "c"}
        differ += first_difference(recording.records, replay(recording, kernels.DEFAULT), ignore) is not None
        if differ > 1:
            return
    assert differ
