"""`ksmwalk calibrate`: what ksmd's work costs on this machine, measured with its own ksmd and kept for estimates."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KsmwalkError
from ..kernel import calibrate, knobs
from ..kernel.calibrate import Sample
from ..ksm.costs import FIELDS, Costs, ksmd_seconds
from . import report
from .codes import FINE
from .screen import Column, HelpFormatter, Screen, progress

# What the machine's own KSM may be waited for: another program may hold it for long.
_WAIT = 60.0

TABLE = (Column("ns", style="green"), Column("of ksmd's CPU for", right=False, elastic=True))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``calibrate`` with an argparse subparsers object."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what ksmd's work costs on this machine (root, about a minute)",
        description="Give this machine's ksmd work of known kind and size, read its CPU time, and keep what each kind "
        "costs for `ksmwalk estimate`. Up to 1 GiB of memory is used for about a minute; KSM is taken under a "
        "lock, refused if it is in use, and put back as it was.",
        epilog="examples:\n"
        "  sudo ksmwalk calibrate                      measure, and keep it where root's estimates look\n"
        "  sudo ksmwalk calibrate --output costs.json  keep it elsewhere",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where the costs go (default ~/.cache/ksmwalk/costs.json)"
    )
    parser.add_argument("--json", action="store_true", help="print the costs and every scan as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk calibrate``; exit code 0."""
    # before minutes are spent on it
    if args.output is not None and not args.output.parent.is_dir():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(args.output.parent))
    if args.output is not None and args.output.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(args.output))
    try:
        if reason := knobs.unusable():
            raise knobs.KernelUnavailable(reason)
        costs, samples = calibrate.measure(progress(calibrate.stories(), "measuring"), _WAIT)
    except knobs.KernelUnavailable as reason:
        # the reason may name a process
        raise KsmwalkError(report.printable(str(reason))) from None
    saved = costs.save(args.output)
    if args.json:
        report.print_json(to_json(costs, samples, saved))
    else:
        show(Screen(), costs, samples, saved)
    return FINE


def to_json(costs: Costs, samples: list[Sample], saved: Path) -> dict[str, Any]:
    """What ``--json`` prints: the costs, where they are, and each scan with its work, CPU time and what costs say of it."""
    scans = [
        {
            "name": sample.name,
            "seconds": sample.seconds,
            "fitted_seconds": float(ksmd_seconds(sample.work, costs)[0]),
            "work": {name: sample.work[name].item() for name in sample.work.dtype.names or ()},
        }
        for sample in samples
    ]
    return {"costs": dataclasses.asdict(costs), "saved": str(saved), "scans": scans}


def show(screen: Screen, costs: Costs, samples: list[Sample], saved: Path) -> None:
    """Write the costs as a table, and how well they explain what was measured."""
    screen.paragraph(f"{costs.machine}, Linux {costs.release}")
    screen.line()
    screen.table(TABLE, [(_digits(getattr(costs, name)), what) for name, what in FIELDS.items()])
    screen.line()
    said = np.array([ksmd_seconds(sample.work, costs)[0] / sample.seconds for sample in samples])
    screen.paragraph(
        f"Caches hold about {costs.near_levels:g} levels of a tree. These costs explain half of the {len(samples)} scans "
        f"measured to {np.median(np.abs(said - 1)):.0%}, and all to {costs.residual:.0%}."
    )
    screen.paragraph(f"Kept in {report.printable(str(saved))}.")


def _digits(ns: float) -> str:
    return f"{ns:,.0f}" if ns >= 10 else f"{ns:.2g}"
