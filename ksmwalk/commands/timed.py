"""``ksmwalk verify --time``: `Host.run` held against the real ksmd over time."""

from __future__ import annotations

import argparse
import json
import sys

from ..errors import KsmwalkError
from ..kernel import timed
from ..kernel.knobs import KernelUnavailable, unusable
from ..kernel.stepper import kernel_name
from ..ksm.costs import Costs
from .codes import FAILED, FINE, UNUSABLE, complain
from .report import printable


def run_timed(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk verify --time``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0 if all agree, 1 some do not or could not be run, 2 nothing could be run.
    """
    outcomes: list[timed.Timed] = []
    try:
        chosen = timed.find(args.time)
        if not 2 <= args.seconds <= 3600:
            raise ValueError(f"--seconds {args.seconds:g}: must be from 2 to 3600")
        costs = Costs.load(args.costs)
        if reason := unusable():
            raise KernelUnavailable(reason)
    except (KernelUnavailable, KsmwalkError, ValueError, OSError) as error:
        complain("ksmwalk", str(error))
        return UNUSABLE
    try:
        out = sys.stderr if args.json else sys.stdout
        where = f"costs {costs.source}, of {printable(costs.machine)}"
        print(f"kernel {kernel_name()}, {timed.ticks()} ticks a second; {where}", file=out)
        for outcome in timed.run_all(chosen, args.seconds, costs):
            outcomes.append(outcome)
            print(printable(outcome.text()), file=out, flush=True)
    except BrokenPipeError:
        raise
    except (KernelUnavailable, KsmwalkError, OSError) as error:
        complain("ksmwalk", str(error))
        return UNUSABLE
    good = sum(outcome.status == "agrees" for outcome in outcomes)
    if args.json:
        print(json.dumps({"kernel": kernel_name(), "seconds": args.seconds, "runs": [one.to_json() for one in outcomes]}))
    else:
        asked = f"pages_sharing within {timed.SHARING:.0%} over time, CPU within {timed.CPU:.0%}"
        print(f"{good} of {len(outcomes)} agree ({asked})")
    if all(outcome.status == "not run" for outcome in outcomes):
        return UNUSABLE
    return FINE if good == len(outcomes) else FAILED
