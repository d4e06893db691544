"""`ksmwalk trace`: what is in a trace of memory accesses, and what a Host makes of it."""

from __future__ import annotations

import argparse
import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..host import Host, Player
from ..layout import PAGE_SIZE
from ..signatures import RecordArray
from ..sources.traces import KINDS, TraceSummary, iter_trace, watched
from . import ksm_events, report
from .codes import FAILED, FINE
from .screen import Column, HelpFormatter, Screen

_LINES = 12  # of the table of how the footprint grew
_FRAMES = 1 << 22  # 16 GiB, of which only what is used costs memory

TABLE = (Column("seconds"), Column("pages"), Column("footprint", style="green"))


class Outcome(NamedTuple):
    """What applying a trace to a Host came to."""

    player: Player
    seconds: float
    touched: int
    written: int
    scans: int


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``trace`` with an argparse subparsers object."""
    parser = subparsers.add_parser(
        "trace",
        help="tell what is in a trace of memory accesses, and apply it to a Host",
        description="Read a trace (.npy, CSV, valgrind's lackey, ChampSim; packed by gzip, xz or bzip2 or not) piece by piece and "
        "tell which pages it touches, how that grows over time, and which share is written to. With --run it is applied to "
        "a Host; where it accesses memory that it did not map, 2 MiB are mapped.",
        epilog="examples:\n"
        "  valgrind --tool=lackey --trace-mem=yes --log-file=ls.log ls\n"
        "  ksmwalk trace ls.log                         what it touches\n"
        "  ksmwalk trace 600.champsimtrace.xz --fetches with the pages of its instructions\n"
        "  ksmwalk trace workload.npy --run --scans 2   apply it, then two full scans of ksmd\n"
        "  ksmwalk trace ksm.txt --events --scenario pair.json   KSM's own events, beside those expected",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the trace")
    parser.add_argument("--kind", choices=KINDS, help="what it is, where its name and beginning don't say it")
    parser.add_argument("--fetches", action="store_true", help="fetches of instructions count as loads (lackey, ChampSim)")
    parser.add_argument("--run", action="store_true", dest="apply", help="apply it to a Host")
    parser.add_argument(
        "--frames", type=_at_least(2), default=_FRAMES, metavar="N", help=f"frames of 4 KiB of the Host (default {_FRAMES})"
    )
    parser.add_argument(
        "--scans", type=_at_least(0), default=0, metavar="N",
        help="with --run: mark all memory mergeable, and so many full scans of ksmd behind it",
    )  # fmt: skip
    parser.add_argument(
        "--events", action="store_true",
        help="it is text of ksm:* events (trace-cmd report, tracefs, perf script): what they are",
    )  # fmt: skip
    parser.add_argument("--scenario", metavar="FILE.json", help="with --events: hold them against this scenario's, one by one")
    parser.add_argument(
        "--kernel", metavar="VERSION", help="with --scenario: the kernel that the model is (default: the recording's, else 6.18.44)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= 1 << 31:
            raise argparse.ArgumentTypeError(f"{report.printable(text)}: must be a number from {low} to {1 << 31}")
        return int(text)

    return number


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk trace``; exit code 1 where events failed."""
    if args.scans and not args.apply:
        raise ValueError("--scans: needs --run")
    if args.events:
        if args.apply or args.kind or args.fetches:
            raise ValueError("--events: goes without --run, --kind and --fetches")
        return ksm_events.run_events(args)
    if args.scenario:
        raise ValueError("--scenario: needs --events")
    if args.kernel:
        raise ValueError("--kernel: needs --events and --scenario")
    summary = TraceSummary()
    pieces = watched(iter_trace(args.file, args.kind, fetches=args.fetches), summary)
    outcome = None
    if args.apply:
        outcome = applied(pieces, args.frames, args.scans)
    else:
        for _ in pieces:
            pass
    if args.json:
        report.print_json(to_json(args.file, summary, outcome))
    else:
        show(Screen(), args.file, summary, outcome)
    return FAILED if outcome and outcome.player.failed else FINE


def applied(pieces: Iterable[RecordArray], frames: int, scans: int) -> Outcome:
    """The trace applied to a Host of its own."""
    host = Host(frames)
    player = host.player(errors="count", map_missing=True)
    begin = time.process_time()
    player.apply(pieces)
    seconds = time.process_time() - begin
    touched = sum(len(mm.touched()) for mm in player.mms.values())
    written = sum(len(mm.touched(written=True)) for mm in player.mms.values())
    for mm in player.mms.values() if scans else ():
        mm.prctl_merge(True)
    for _ in range(scans):
        host.ksm.full_scan()
    return Outcome(player, seconds, touched, written, scans)


def to_json(path: str, summary: TraceSummary, outcome: Outcome | None) -> dict[str, Any]:
    """What ``--json`` prints."""
    found: dict[str, Any] = {
        "file": path,
        "events": summary.events,
        "operations": summary.operations,
        "processes": summary.processes,
        "seconds": summary.seconds,
        "pages": summary.pages,
        "written_pages": summary.written,
        "footprint": [{"seconds": seconds, "pages": pages} for seconds, pages in summary.footprint],
    }
    if outcome:
        host = outcome.player.host
        found["run"] = {
            "events": outcome.player.done,
            "failed": {_errno(code): count for code, count in outcome.player.failed.items()},
            "cpu_seconds": outcome.seconds,
            "processes": len(outcome.player.mms),
            "frames_used": host.frames_used,
            "table_pages": host.tables.nr_tables,
            "touched_pages": outcome.touched,
            "written_pages": outcome.written,
            "ksm": host.ksm.counters() if outcome.scans else None,
        }
    return found


def show(screen: Screen, path: str, summary: TraceSummary, outcome: Outcome | None) -> None:
    """Write it for a person."""
    said = ", ".join(f"{report.count(n)} {name}" for name, n in summary.operations.items()) or "none"
    screen.paragraph(f"{report.printable(path)}: {report.count(summary.events)} events of {_of(summary.processes)}: {said}")
    share = f", {summary.written / summary.pages:.0%} of them written to" if summary.pages else ""
    over = f" over {report.duration(summary.seconds)}" if summary.seconds else ""
    screen.paragraph(f"{report.count(summary.pages)} pages ({report.size(summary.pages * PAGE_SIZE)}) accessed{over}{share}")
    if len(summary.footprint) > 1:
        at = np.unique(np.linspace(0, len(summary.footprint) - 1, _LINES).round().astype(int))
        rows = [summary.footprint[i] for i in at.tolist()]
        screen.line()
        screen.table(TABLE, [(f"{when:.6g}", report.count(n), report.size(n * PAGE_SIZE)) for when, n in rows])
    if outcome:
        screen.line()
        _show_run(screen, outcome)


def _show_run(screen: Screen, outcome: Outcome) -> None:
    player, host = outcome.player, outcome.player.host
    screen.paragraph(
        f"Applied in {report.duration(outcome.seconds)} of CPU, reading included: {report.count(player.done)} events. "
        f"{_of(len(player.mms))} alive, {report.count(host.frames_used - 1)} "
        f"frames and {report.count(host.tables.nr_tables)} table pages in use; {report.count(outcome.touched)} pages touched, "
        f"{report.count(outcome.written)} written to."
    )
    for code, n in player.failed.items():
        screen.paragraph(f"{report.count(n)} events failed with {_errno(code)} ({os.strerror(code)}).")
    if outcome.scans:
        ksm = host.ksm
        screen.paragraph(
            f"After {outcome.scans} full scans: {report.count(ksm.pages_shared)} pages shared, {report.count(ksm.pages_sharing)} "
            f"sharing them, {report.count(ksm.pages_unshared)} unshared."
        )


def _of(n: int) -> str:
    return f"{report.count(n)} process" + ("" if n == 1 else "es")


def _errno(code: int) -> str:
    return errno.errorcode.get(code, str(code))
