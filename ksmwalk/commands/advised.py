"""``ksmwalk verify --advisor N``: fresh steps of the real scan-time advisor, held against the model's arithmetic."""

from __future__ import annotations

import argparse
import json
import sys

from ..errors import KsmwalkError
from ..kernel import advised
from ..kernel.knobs import KernelUnavailable, unusable
from ..kernel.stepper import kernel_name
from .codes import FAILED, FINE, UNUSABLE, complain

_MOST_STEPS = 10_000


def run_advised(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk verify --advisor``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0 if all steps are equal, 1 if some are not, 2 if nothing could be run.
    """
    out = sys.stderr if args.json else sys.stdout
    runs: list[advised.Run] = []
    counts = []
    try:
        if not 1 <= args.advisor <= _MOST_STEPS:
            raise ValueError(f"--advisor {args.advisor}: must be from 1 to {_MOST_STEPS}")
        if reason := unusable():
            raise KernelUnavailable(reason)
        share = -(-args.advisor // len(advised.SETTINGS))
        print(f"kernel {kernel_name()}, {share} steps on each of {len(advised.SETTINGS)} settings", file=out)
        for run, setting in zip(advised.record(advised.SETTINGS, share, args.seed), advised.SETTINGS, strict=True):
            runs.append(run)
            counts.append(_counted(run))
            print(_text(setting, counts[-1], run), file=out, flush=True)
    except BrokenPipeError:
        raise
    except (KernelUnavailable, KsmwalkError, ValueError, OSError) as error:
        complain("ksmwalk", str(error))
        return UNUSABLE
    steps, equal, within = (sum(count[key] for count in counts) for key in ("steps", "equal", "possible"))
    measured = sum(count["measured"] for count in counts)
    if args.json:
        print(json.dumps(advised.to_json(runs, kernel_name()) | {"counts": counts}))
    else:
        print(f"{equal} of {steps} steps equal on {len(runs)} settings; {within} of {measured} that were measured are possible")
    return FINE if equal == steps and within == measured else FAILED


def _counted(run: advised.Run) -> dict[str, int]:
    """How many steps of a run are equal, and how many of those that were measured are possible."""
    judged = list(advised.judge(run))
    return {
        "steps": len(judged),
        "equal": sum(one.equal for one in judged),
        "measured": sum(bool(one.possible) for one in judged),
        "possible": sum(one.within for one in judged),
        "only": sum(one.possible == {one.step[3]} for one in judged),
    }


def _text(setting: advised.Setting, count: dict[str, int], run: advised.Run) -> str:
    lines = [
        f"{setting.name} ({setting.about}): {count['equal']} of {count['steps']} equal; measured from outside "
        f"{count['possible']} of {count['measured']} possible, {count['only']} the only answer possible"
    ]
    for number, one in enumerate(advised.judge(run)):
        if not one.equal or (one.possible and not one.within):
            row = dict(zip(advised.COLUMNS, one.step, strict=True))
            lines.append(f"  step {number}: {row}: the model says {one.answer}, possible {sorted(one.possible)[:20]}")
    return "\n".join(lines)
