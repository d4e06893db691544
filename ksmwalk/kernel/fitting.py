"""Scenarios as a kernel can run them that lacks something."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..scenarios.format import Scenario
from ..scenarios.kinds import KNOB
from ..scenarios.ops import row
from .run import WITHOUT


def lacks(scenario: Scenario, lacking: Collection[str]) -> str | None:
    """Return what the operations of a scenario need of what a kernel has not, in words, or None.

    Parameters
    ----------
    scenario : Scenario
    lacking : collection of str
        In the words of `Operation.needs`.
    """
    needed = (row(op).needs for op in scenario.ops)
    return next((f"no {what}" for what in needed if what in lacking), None)


def fit(scenario: Scenario, missing: Collection[str]) -> Scenario:
    """Return a scenario without the knobs that a kernel does not have; the model runs it likewise.

    Parameters
    ----------
    scenario : Scenario
    missing : collection of str
        Names of knobs.
    """
    if not missing:
        return scenario
    tunables = {knob: value for knob, value in scenario.tunables.items() if knob not in missing}
    tunables |= {knob: value for knob, value in WITHOUT.items() if knob in missing}
    ops = [op for op in scenario.ops if row(op).arg(op, KNOB) not in missing]
    return replace(scenario, ops=ops, tunables=tunables)
