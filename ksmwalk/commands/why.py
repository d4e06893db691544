"""`ksmwalk why`: why the pages of processes are, or are not, merged."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from typing import Any

from ..errors import KsmwalkError
from ..estimates.answers import answers
from ..estimates.near_words import near_groups
from ..estimates.why import ABSENT, Reason, Why, explain_pages
from ..proc import processes
from ..sources import capture as look
from ..sources.contents import MemoryCapture, NothingToRead, capture_memory
from ..sources.near import Near, find_near
from ..sources.second_look import look_again
from . import report, why_text
from .choosing import choose, no_such
from .codes import FAILED, FINE, UNUSABLE, complain
from .meter import Meter
from .screen import HelpFormatter, Screen

_WHO = "ksmwalk why"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "why",
        help="why pages of running processes are, or are not, merged",
        description="Read the memory of processes, compare it with that of all that KSM looks at, let the model merge it, "
        "and say for each mapping and in sum why its pages are, or are not, merged: with the figure that the answer rests "
        "on, and what to do. Nothing is changed, no page is made by looking.",
        epilog="examples:\n"
        "  ksmwalk why 4711                      one process against all that is marked mergeable\n"
        "  ksmwalk why 'qemu*' --areas           by name, mapping by mapping\n"
        "  ksmwalk why 4711 --with 'python*'     others count as partners too, marked or not\n"
        "  ksmwalk why 4711 --near               pages that are unique by a few bytes only\n"
        "  ksmwalk why 4711 --passes 12          wait for ksmd's passes: shows pages it can't merge\n\n"
        "Exit code: 0, 1 if a process that was asked for could not be read, 2 if none could.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "processes", nargs="+", metavar="PROCESS", help="a PID, a name, or a pattern of names such as 'python*'"
    )
    partners = parser.add_mutually_exclusive_group()
    partners.add_argument("--with", nargs="+", dest="partners", default=[], metavar="PROCESS",
                          help="processes whose pages count as partners, besides those that have marked memory")  # fmt: skip
    partners.add_argument("--all", action="store_true", help="every process that may be read counts as a partner")
    parser.add_argument("--areas", action="store_true", help="every mapping, none folded")
    parser.add_argument("--near", action="store_true", help="pages that are unique by a few bytes only, and at which offsets")
    parser.add_argument("--passes", type=int, default=0, metavar="N",
                        help="wait for N whole passes of ksmd and look again at what should be merged by then")  # fmt: skip
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="readings of each page (default 2)")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="from one to the next (default 2)")
    parser.add_argument("--stop", action="store_true", help="hold the processes still while they are read")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, 1 where a process that was asked for can't be read, 2 where none can."""
    chosen = choose(args.processes)
    errors = [no_such(word, "why") for word in chosen.unknown]
    if not chosen.pids:
        for error in errors:
            complain(_WHO, error)
        return UNUSABLE
    others = choose(args.partners)
    errors += [no_such(word, "why") for word in others.unknown]
    # our own memory is read by nobody: it would change while it is
    pids = [pid for pid in dict.fromkeys([*chosen.pids, *_partners(args.all, others.pids)]) if pid != os.getpid()]
    if not pids:
        raise NothingToRead(_reason(os.getpid()))
    begin = time.monotonic()
    near: Near | None = None
    with Meter() as tell:
        capture = _capture(pids, args, tell)
        there = {one.pid for one in capture.processes}
        errors += [_reason(pid) for pid in chosen.pids if pid in chosen.named and pid not in there]
        about = [pid for pid in chosen.pids if pid in there]
        if not about:
            raise NothingToRead(errors[0] if errors else "none of these processes could be read")
        second = look_again(capture, about=about, passes=args.passes, since=begin, progress=tell)
        why = explain_pages(capture, about=about, second=second, each=lambda scans: tell("scans in the model", scans, 0))
        why.notes += second.notes
        if args.near:
            near = find_near(capture, about=about, progress=tell)
            why.notes += near.notes
    for error in errors:
        complain(_WHO, report.printable(error))
    groups = None if near is None else near_groups(near, capture)
    if args.json:
        report.print_json(_plain(why, near, groups, errors))
    else:
        why_text.show(Screen(), why, args.areas, near, groups)
    return FAILED if errors else FINE


def _reason(pid: int) -> str:
    """Why a process was not read."""
    if pid == os.getpid():
        return f"process {pid} is this command itself"
    try:
        look(pid, frames=False)
    except (OSError, KsmwalkError) as error:
        return getattr(error, "strerror", None) or str(error)
    return f"process {pid} could not be read"


def _partners(everybody: bool, named: list[int]) -> list[int]:
    """Processes that count as partners: all, or those named and those with marked memory."""
    if everybody:
        return processes.every_pid()
    found = list(named)
    for pid in processes.every_pid():
        with contextlib.suppress(OSError):
            if processes.marked(pid):
                found.append(pid)
    return found


def _capture(pids: list[int], args: argparse.Namespace, tell: Any) -> MemoryCapture:
    return capture_memory(pids, samples=args.samples, interval=args.interval, stop=args.stop, progress=tell)


def _plain(why: Why, near: Near | None, groups: list[dict[str, Any]] | None, errors: list[str]) -> dict[str, Any]:
    """Everything as plain data."""
    names = why.mappings.dtype.names or ()
    counted = [reason.name.lower() for reason in Reason]
    mappings = []
    for row in why.mappings:
        one = {name: row[name].item() if hasattr(row[name], "item") else row[name] for name in names if name not in counted}
        one["pages"] = {name: int(row[name]) for name in counted if row[name]}
        mappings.append(one)
    result = {
        "processes": [
            {"pid": one.pid, "name": one.name, "command": list(one.identity.command), "present": one.nr_pages,
             **why.figures["processes"][one.pid]}
            for one in (why.capture.processes[i] for i in why.about)
        ],
        "partners": [one.pid for i, one in enumerate(why.capture.processes) if i not in why.about],
        "answers": [answer.to_json() for answer in answers(why)],
        "absent": [reason.name.lower() for reason in ABSENT],
        "mappings": mappings,
        "figures": {name: value for name, value in why.figures.items() if name != "processes"},
        "notes": why.notes,
        "errors": errors,
    }  # fmt: skip
    if near is not None:
        result["near"] = {
            "unique_pages": near.looked_at,
            "near_pages": len(near.pairs),
            "groups": groups,
            "offsets": {int(at): int(near.histogram[at]) for at in near.histogram.nonzero()[0]},
        }
    return result
