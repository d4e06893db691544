"""`ksmwalk compare`: policies of scanning side by side, on the same memory."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..estimates.comparing import Followed, compare
from ..estimates.estimate import MARKS, numbers_of, tunables_of
from ..gate import shown
from ..ksm.costs import Costs
from ..layout import PAGE_SIZE
from ..policies import POLICIES, Policy
from . import report
from .codes import FINE
from .estimate import tunables
from .given import add_source_arguments, memory_of
from .meter import Meter
from .screen import Column, HelpFormatter, Screen

if TYPE_CHECKING:
    from .estimate_plots import Panel

_DOMAINS = ("user", "container", "process")
_MOST_SCANS = 100_000
_PACE = ("pages_to_scan", "sleep_millisecs", "smart_scan")
# columns that give way on a narrow screen, the highest number first
_RANKS = {"skipped": 4, "to 90 %": 3, "broken": 2, "examined": 1}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="policies of scanning side by side: memory freed, pages examined, CPU, time, broken merges",
        description="Merge the same memory in the model under several policies, those of others or your own, each from nothing "
        "merged on, and put side by side what they come to. Nothing is merged or set.",
        epilog="examples:\n"
        "  ksmwalk compare --all                                  all policies that come with ksmwalk\n"
        "  ksmwalk compare 'qemu*' --policy linux --policy sampling --samples 3\n"
        "  ksmwalk compare host1/ --policy mine.py:Mine --scans 50 --plot mine.png\n\n"
        f"policies: {', '.join(POLICIES)}\n"
        "Exit code: 0; 2 if nothing could be read, or there is no such policy.",
        formatter_class=HelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--policy", dest="policies", action="append", default=[], metavar="NAME|FILE.py:CLASS",
        help="one that comes with ksmwalk, or a class of your own, whose code is run; again for more (default: all)",
    )  # fmt: skip
    parser.add_argument("--scans", type=_scans, default=20, metavar="N", help="full scans for each (default 20)")
    parser.add_argument("--domain", choices=_DOMAINS, default="container", help="what by-domain merges within (default container)")
    parser.add_argument(
        "--as", dest="mark", choices=MARKS, default="auto",
        help="what ksmd is to search: what is marked now, all that could be; auto (default): what is marked, if anything is",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="knobs", action="append", default=[], metavar="NAME=VALUE",
        help="a tunable of /sys/kernel/mm/ksm that is to differ from the present one",
    )  # fmt: skip
    parser.add_argument("--costs", metavar="FILE", help="what ksmd's work costs (default: this machine's, else stored ones)")
    parser.add_argument("--plot", metavar="FILE", help="draw into this file, .png, .svg or .pdf (needs the extra `plot`)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def _scans(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= _MOST_SCANS:
        raise argparse.ArgumentTypeError(f"{shown(text)}: a number from 1 to {_MOST_SCANS} is needed")
    return int(text)


def policy_of(word: str) -> Policy:
    """The policy that a word means.

    Parameters
    ----------
    word : str
        A name of `POLICIES`, or FILE.py:CLASS: the file is run.

    Raises
    ------
    ValueError
        No such policy, file or class; one that can't be made without arguments.
    """
    if word in POLICIES:
        return POLICIES[word]()
    path, colon, name = word.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(f"--policy {shown(word)}: no such policy; there are {', '.join(POLICIES)}, and FILE.py:CLASS")
    if not os.path.isfile(path):
        raise ValueError(f"--policy {shown(word)}: there is no file {shown(path)}")
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.append(folder)  # what stands beside it may be imported, now and while it runs
    with _of_policy(f"--policy {shown(word)}: {path} can't be run"):
        spec.loader.exec_module(module)
    made = getattr(module, name, None)
    if not (isinstance(made, type) and issubclass(made, Policy)):
        mine = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Policy) and v.__module__ == spec.name]
        there = f"; it has {', '.join(mine)}" if mine else ""
        raise ValueError(f"--policy {shown(word)}: {path} has no class {name} made from ksmwalk.policies.Policy{there}")
    with _of_policy(f"--policy {shown(word)}: can't be made without arguments"):
        policy = made()
    if not policy.name:
        policy.name = name
    return policy


@contextlib.contextmanager
def _of_policy(what: str) -> Iterator[None]:
    """Say in one line what a policy's file raised."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _in_files(words: list[str]) -> Iterator[None]:
    """The same of what their methods raise; what is raised elsewhere is let through."""
    files = {os.path.abspath(word.rpartition(":")[0]) for word in words if ":" in word}
    try:
        yield
    except (Exception, SystemExit) as error:
        stack = reversed(traceback.extract_tb(error.__traceback__))
        at = next((one for one in stack if os.path.abspath(one.filename) in files), None)
        if at is None:
            raise
        raise ValueError(f"{at.filename}:{at.lineno}, {at.name}: {type(error).__name__}: {error}") from error


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, or an error."""
    given = tunables(args.knobs)
    words = args.policies or list(POLICIES)
    if twice := [word for word in words if words.count(word) > 1]:
        raise ValueError(f"--policy {shown(twice[0])}: named twice")
    with contextlib.redirect_stdout(sys.stderr):  # what a policy prints is no result
        policies = [policy_of(word) for word in words]
    names = [policy.name for policy in policies]
    if alike := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two policies are called {shown(alike[0])}: give one another name")
    if args.plot is not None:
        from . import estimate_plots  # before anything is read: matplotlib may be missing

        estimate_plots.check(args.plot)
    costs = Costs.load(args.costs)
    with Meter() as meter:
        capture = memory_of(args, meter)
    knobs = numbers_of(tunables_of(capture, given))
    with Meter() as meter, contextlib.redirect_stdout(sys.stderr), _in_files(words):
        found = compare(
            capture, policies, scans=args.scans, mark=args.mark, knobs=given, domain=args.domain, costs=costs,
            each=lambda name, done: meter(f"{name}, scans", done, args.scans),
        )  # fmt: skip
    if args.plot is not None:
        from . import estimate_plots

        estimate_plots.draw_panels(panels(found), heading(found), args.plot)
    if args.json:
        report.print_json({
            "policies": [one.to_json() for one in found], "scans": args.scans, "costs": costs.source,
            "processes": len(capture.processes), "knobs": knobs, "notes": list(capture.notes),
        })  # fmt: skip
    else:
        screen = Screen()
        show(screen, found)
        screen.paragraph("At " + ", ".join(f"{name} {knobs[name]}" for name in _PACE) + ", unless a policy has a pace of its own.")
    return FINE


def heading(found: list[Followed]) -> str:
    """What was compared and what came out, in a few words."""
    best = max(found, key=lambda one: int(one.rows["freed"][-1]))
    scans = len(best.rows)
    what = f"{len(found)} {'policy' if len(found) == 1 else 'policies'}, {scans} full {'scan' if scans == 1 else 'scans'} each"
    most = int(best.rows["freed"][-1])
    if most <= 0:
        return f"{what}: nothing comes free"
    return f"{what}: {report.printable(best.name)} frees the most, {report.size(most * PAGE_SIZE)}"


def show(screen: Screen, found: list[Followed]) -> None:
    """The table.

    Parameters
    ----------
    screen : Screen
    found : list of Followed
    """
    screen.paragraph(heading(found), "bold")
    screen.line()
    heads = ("freed", "examined", "skipped", "CPU", "time", "to 90 %", "broken")
    columns = [Column("policy", right=False, elastic=True), *(Column(head, right=True, rank=_RANKS.get(head, 0)) for head in heads)]
    rows = []
    for one in found:
        last, soon = one.rows[-1], one.seconds_to_90
        rows.append((
            report.printable(one.name), report.size(int(last["freed"]) * PAGE_SIZE), report.count(int(last["examined"])),
            report.count(int(last["skipped"])), report.duration(float(last["cpu_seconds"])),
            report.duration(float(last["seconds"])), "–" if math.isnan(soon) else report.duration(soon),
            report.count(int(last["broken"])),
        ))  # fmt: skip
    screen.table(columns, rows)
    screen.line()
    screen.paragraph(
        "freed: at the end. examined, skipped, CPU, time: pages looked at and passed by smart scan, ksmd's CPU time, and time "
        "with its sleep, over all scans. to 90 %: until nine tenths of the most that the policy freed were. broken: merges "
        "that a write undid."
    )


def panels(found: list[Followed]) -> list[Panel]:
    """The charts.

    Parameters
    ----------
    found : list of Followed
    """
    from . import policy_charts

    def one(draw: Any) -> Any:
        return lambda axes: draw(axes, found)

    return [("freed", 3.2, one(policy_charts.freed_by_cpu)), ("work", 1.3 + 0.3 * len(found), one(policy_charts.examined))]
