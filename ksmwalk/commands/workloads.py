"""``ksmwalk verify --workloads``: the estimate held against the real ksmd on live workloads."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import KsmwalkError
from ..kernel import workload_runs
from ..kernel.knobs import KernelUnavailable, unusable
from ..kernel.stepper import kernel_name
from ..kernel.workload_runs import Outcome, Predict
from ..kernel.workloads import find
from ..ksm.costs import Costs
from . import verification_page
from .codes import FAILED, FINE, UNUSABLE, complain
from .report import printable


def predicted(pids: Sequence[int], samples: int, seconds: float, costs: Costs | None = None) -> dict[str, Any]:
    """Estimate what KSM would do with processes, under the machine's present tunables.

    Parameters
    ----------
    pids : sequence of int
    samples : int
        How often each page is read.
    seconds : float
        Between two readings.
    costs : Costs, optional
        As for `estimate`.

    Returns
    -------
    dict
        See `Estimate.to_json`.
    """
    from ..estimates.estimate import estimate
    from ..sources.contents import capture_memory

    return estimate(capture_memory(list(pids), samples=samples, interval=seconds), costs=costs).to_json()


def run_workloads(args: argparse.Namespace, predict: Predict | None = None) -> int:
    """Carry out ``ksmwalk verify --workloads``.

    Parameters
    ----------
    args : argparse.Namespace
    predict : callable, optional
        The estimate.

    Returns
    -------
    int
        0 if all agree that could be run, 1 some do not or could not be run, 2 nothing could be run.
    """
    outcomes: list[Outcome] = []
    try:
        chosen = find(args.workloads)
        predict = predict or functools.partial(predicted, costs=Costs.load(args.costs))
        if reason := unusable():
            raise KernelUnavailable(reason)
        for outcome in workload_runs.run_all(chosen, predict):
            outcomes.append(outcome)
            print(printable_lines(outcome), file=sys.stderr if args.json else sys.stdout, flush=True)
    except BrokenPipeError:
        raise
    except (KernelUnavailable, KsmwalkError, ValueError, OSError) as error:
        complain("ksmwalk", str(error))
        return UNUSABLE
    if args.json:
        print(json.dumps({"kernel": kernel_name(), "workloads": [outcome.to_json() for outcome in outcomes]}, indent=1))
    else:
        print(last_line(outcomes))
    if args.docs:
        names = "".join(f" {name}" for name in args.workloads)
        costs = f" --costs {args.costs.name}" if args.costs else ""
        command = f"ksmwalk verify --workloads{names}{costs} --docs {args.docs}"
        verification_page.write_workloads(outcomes, kernel_name(), command, args.docs)
    if all(outcome.status == "skipped" for outcome in outcomes):
        return UNUSABLE
    return FAILED if any(outcome.status in ("differs", "not run") for outcome in outcomes) else FINE


def printable_lines(outcome: Outcome) -> str:
    """Return an outcome as lines that a terminal prints and does not obey."""
    return "\n".join(map(printable, outcome.text().split("\n")))


def last_line(outcomes: Sequence[Outcome]) -> str:
    """Return ``N of M workloads agree``, with what else there was."""
    statuses = [outcome.status for outcome in outcomes]
    line = f"{statuses.count('agrees')} of {len(statuses)} workloads agree"
    more = [f"{statuses.count(what)} {what}" for what in ("differs", "excused", "skipped", "not run") if what in statuses]
    return line + (f" ({', '.join(more)})" if more else "")
