"""``ksmwalk trace --events``: KSM's own events, traced elsewhere, and held against those of a scenario."""

from __future__ import annotations

import argparse
import json

from ..scenarios.format import load
from ..scenarios.replay import stream
from ..sources.ksm_events import EventsCompared, KsmEvents, compare_events, read_ksm_events
from . import report
from .codes import FAILED, FINE
from .profile import version_of
from .screen import Screen


def run_events(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk trace --events``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0; 1 where an event differs from what is expected.
    """
    if args.kernel and not args.scenario:
        raise ValueError("--kernel: needs --scenario")
    args.kernel = version_of("ksmwalk trace", args.kernel)
    read = read_ksm_events(args.file)
    found = None
    if args.scenario:
        found = compare_events(read, list(stream(load(args.scenario), args.kernel)))
    if args.json:
        print(json.dumps(_to_json(args, read, found)))
    else:
        _show(Screen(), args, read, found)
    return FAILED if found is not None and found.difference else FINE


def _seconds(read: KsmEvents) -> float:
    times = read.events["time"]
    return float(times.max() - times.min()) if len(times) else 0.0


def _to_json(args: argparse.Namespace, read: KsmEvents, found: EventsCompared | None) -> dict[str, object]:
    out: dict[str, object] = {"file": args.file, "events": len(read.events), "kinds": read.counts(), "others": read.others}
    out |= {"lost": read.lost, "seconds": _seconds(read), "processes": int(read.events["mm"].max(initial=-1)) + 1}
    if found is not None:
        out["compared"] = {
            "scenario": args.scenario,
            "equal": found.equal,
            "expected": found.expected,
            "behind": found.behind,
            "difference": found.difference or None,
        }
    return out


def _show(screen: Screen, args: argparse.Namespace, read: KsmEvents, found: EventsCompared | None) -> None:
    said = ", ".join(f"{report.count(n)} {kind}" for kind, n in read.counts().items()) or "none"
    # without a fraction it is another clock than one of seconds
    over = f" over {report.duration(_seconds(read))}" if (read.events["time"] % 1).any() else ""
    screen.paragraph(f"{report.printable(args.file)}: {report.count(len(read.events))} events of KSM{over}: {said}")
    if read.others:
        screen.paragraph(f"{report.count(read.others)} other events are passed over.")
    if read.lost:
        screen.paragraph(f"Events were lost at {report.count(read.lost)} places.")
    if found is not None:
        behind = f"; {report.count(found.behind)} came behind its last" if found.behind else ""
        equal, expected = report.count(found.equal), report.count(found.expected)
        screen.paragraph(f"{equal} of {expected} events of the scenario are as expected{behind}.")
        if found.difference:
            screen.paragraph(f"The first that is not: {report.printable(found.difference)}")
