"""The real ksmd run operation by operation and batch by batch, so that what it shows repeats exactly.

What makes it deterministic: LRU batches drained before each operation, no chain pruning by the clock unless the
scenario wants it, khugepaged asleep, nobody else's memory mergeable, processes that own nothing but the scenario's
pages, and nothing read before the batch is over.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ..scenarios.compare import differing_fields
from ..scenarios.format import Recording, Scenario
from .run import HARMLESS, STAT_NAMES, WITHOUT, Disturbed, check
from .session import Session, session

__all__ = [
    "HARMLESS", "STAT_NAMES", "WITHOUT", "Disturbed", "Session", "check", "kernel_name", "record", "record_in", "session",
]  # fmt: skip


def kernel_name() -> str:
    """Return what the running kernel calls itself."""
    return os.uname().release


def record(scenario: Scenario, runs: int = 1, say: Callable[[str], None] | None = None) -> Recording:
    """Run a scenario on the machine's real ksmd and return its records.

    Parameters
    ----------
    scenario : Scenario
    runs : int
        How often; fields that differ between runs are named in the recording's `nondet`.
    say : callable of str, optional
        As for :func:`session`.

    Returns
    -------
    Recording

    Raises
    ------
    KernelUnavailable
        The machine's KSM can't be taken; nothing has been changed.
    """
    with session(say) as taken:
        return record_in(taken, scenario, runs)


def record_in(taken: Session, scenario: Scenario, runs: int = 1) -> Recording:
    """Like :func:`record`, in a session that is open already."""
    first = taken.record(scenario)
    nondet: set[str] = set()
    for _ in range(runs - 1):
        nondet |= differing_fields(first, taken.record(scenario))
    return Recording(scenario, kernel_name(), runs, sorted(nondet), first)
