"""`ksmwalk apply`: from an estimate to a host: settings and marks as commands, done only if asked to, and undone."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
import time
from typing import Any

from ..estimates.steady import SCANS
from ..kernel import apply as kernel
from ..kernel import knobs, marking
from ..proc.ksmstate import Moment, read_ksm_state, read_moment
from . import apply_text, applying, report
from .applying import Plan
from .codes import FAILED, FINE, UNUSABLE, complain
from .explaining import against, merged_share
from .given import add_source_arguments, memory_of
from .meter import Meter
from .screen import HelpFormatter, Screen

WHO = "ksmwalk apply"
_WATCH, _LONGEST = 5.0, 86400.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "apply",
        help="make an estimate true: settings, marks, and back",
        description="Say which tunables to set, in which order, and how those processes are marked that are worth it. Only "
        "with --yes the tunables are set, all or none of them, and KSM is started and watched. Marking means restarting, "
        "which is left to you.",
        epilog="examples:\n"
        "  ksmwalk estimate --all --json > est.json\n"
        "  ksmwalk apply est.json                     what would be done, as commands\n"
        "  ksmwalk apply est.json --yes               set it, start KSM, watch (root)\n"
        "  ksmwalk apply redis-server --set pages_to_scan=2000\n"
        "  ksmwalk apply --exec python3 server.py     start a program that may be merged\n"
        "  ksmwalk apply --undo                       every tunable as it was; what is merged stays merged\n"
        "  ksmwalk apply --undo --unmerge             and nothing is merged any more\n\n"
        "Exit code: 0; 1 if not all could be put back; 2 if nothing was done.",
        formatter_class=HelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--set",
        dest="knobs",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a tunable that is to be this, whatever is advised",
    )
    parser.add_argument("--yes", action="store_true", help="do it (root)")
    parser.add_argument(
        "--watch", type=_seconds, metavar="SECONDS",
        help="after --yes a line every SECONDS, until nothing changes any more or Ctrl-C, which leaves it applied (default "
        f"{_WATCH:g} on a terminal, else 0: not at all)",
    )  # fmt: skip
    parser.add_argument("--undo", action="store_true", help="put every tunable back as it was before (root)")
    parser.add_argument(
        "--unmerge", action="store_true", help="with --undo: also unmerge everything; says first how long that takes"
    )
    parser.add_argument(
        "--force", action="store_true", help="apply what is not worth it; unmerge though the memory for it is not there"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--exec", dest="program", nargs=argparse.REMAINDER, metavar="COMMAND",
        help="become COMMAND with all its memory marked, and that of what it starts; takes all words that follow",
    )  # fmt: skip
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds == 0 or 0.1 <= seconds <= _LONGEST):
        raise argparse.ArgumentTypeError(f"{report.printable(text)[:40]}: 0, or seconds from 0.1 to {_LONGEST:.0f}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Exit code: 0; 1 where not all could be put back, 2 where nothing was done."""
    if args.program is not None:
        return _exec(args)
    if args.unmerge and not args.undo:
        raise ValueError("--unmerge: goes with --undo")
    try:
        if args.undo:
            return _undo(args)
        if args.yes and (reason := knobs.unusable()):
            raise knobs.KernelUnavailable(reason)
        plan = _plan(args)
        return _apply(args, plan) if args.yes else _show(args, plan)
    except knobs.KernelUnavailable as error:
        complain(WHO, str(error))
        return UNUSABLE


def _exec(args: argparse.Namespace) -> int:
    if not args.program or args.sources or args.all or args.yes or args.undo:
        raise ValueError("--exec: a command follows, and nothing else stands before it")
    sys.stdout.flush()
    try:
        marking.exec_marked(args.program)
    except FileNotFoundError:
        raise ValueError(f"--exec {args.program[0]}: there is no such program") from None


# ---------------------------------------------------------------- the plan


def _plan(args: argparse.Namespace) -> Plan:
    from .estimate import tunables  # what reads and estimates is large, and `--undo` needs none of it

    given = tunables(args.knobs)
    if len(args.sources) == 1 and not args.all and applying.is_estimate(args.sources[0]):
        plan = applying.make_plan(applying.read_checked(args.sources[0]), args.sources[0], given)
        if given:
            plan.notes.append("what --set says the estimate was not made with: its prediction is of other settings")
        return plan
    if words := [word for word in args.sources if applying.is_estimate(word)]:
        raise ValueError(f"{words[0]}: an estimate stands alone, nothing else can be named beside it")
    return applying.make_plan(_estimated(args, given), "the estimate", given)


def _estimated(args: argparse.Namespace, given: dict[str, object]) -> dict[str, Any]:
    """An estimate of what is named, with those marked that are worth it."""
    from ..estimates.advice import YOUNG, advise
    from ..estimates.estimate import estimate
    from .estimate import as_json

    with Meter() as meter:
        capture = memory_of(args, meter)
        settings = {name: value for name, value in given.items() if name != "run"}
        found = estimate(capture, knobs=settings, each=lambda scans: meter("full scans made", scans, 0))
        advice = advise(found, young=YOUNG if args.all else 0.0, each=lambda scans: meter("full scans made", scans, 0))
    return as_json(advice.estimate, advice, {})


def _show(args: argparse.Namespace, plan: Plan) -> int:
    if args.json:
        report.print_json(applying.as_json(plan))
    else:
        apply_text.show(Screen(), plan, False)
    return FINE


# ---------------------------------------------------------------- doing it


def _say(text: str) -> None:
    complain(WHO, text)


def _apply(args: argparse.Namespace, plan: Plan) -> int:
    if not plan.worth and not args.force:
        raise kernel.Refused(f"not worth it by the estimate: {plan.why}; nothing was changed (--force applies it all the same)")
    screen = Screen()
    changes, _ = kernel.apply(plan.wanted, plan.prediction, _say)
    if not args.json:
        apply_text.done(screen, changes)
        screen.line()
        apply_text.show(screen, plan, True)
        screen.line()
        screen.out.flush()
    every = args.watch if args.watch is not None else _WATCH if screen.terminal and not args.json else 0.0
    ended = ""
    if every:
        ended = _watch(screen, plan, every, args.json)
    if args.json:
        state = read_ksm_state(kernel.ROOT, processes=False)
        data = applying.as_json(plan) | {
            "settings": [applying.change_json(one) for one in changes], "applied": True,
            "achieved": against(plan.prediction, state), "watched": ended,
        }  # fmt: skip
        report.print_json(data)
    else:
        screen.line("It stays applied, until `ksmwalk apply --undo` or a restart.")
    return FINE


class _Rest:
    """Tells when ksmd's counters have stood still for some scans."""

    def __init__(self, first: int | None):
        self.since = first
        self.counters: tuple[int | None, ...] = ()

    def __call__(self, seen: Moment, counters: tuple[int | None, ...]) -> bool:
        if seen.full_scans is None or self.since is None:
            return False
        if counters != self.counters or seen.full_scans < self.since:
            self.counters, self.since = counters, seen.full_scans
        # the first of them had begun before the look; nothing merges in the first pass
        return seen.full_scans - self.since > SCANS


def _watch(screen: Screen, plan: Plan, every: float, quiet: bool) -> str:
    """Look again and again, until nothing changes, KSM is stopped, or Ctrl-C: which of these it was."""
    ksmd = read_ksm_state(kernel.ROOT).ksmd
    first = read_moment(kernel.ROOT, ksmd)
    rest = _Rest(first.full_scans)
    ended = "interrupted"
    with contextlib.suppress(KeyboardInterrupt), Meter() as meter:
        while True:
            time.sleep(every)
            state = read_ksm_state(kernel.ROOT, processes=False)
            seen = read_moment(kernel.ROOT, ksmd)
            rows = against(plan.prediction, state)
            words = apply_text.progress_words(rows, state, seen, first)
            if quiet:
                meter(words, 0, 0)
            else:
                screen.line(words)
                screen.out.flush()
            if state.knobs.get("run") != "1":
                ended = "stopped"
                break
            counters = tuple(state.counters.get(name) for name in ("pages_shared", "pages_sharing", "ksm_zero_pages"))
            if rest(seen, counters):
                ended = "steady"
                break
    if not quiet:
        _say_ended(screen, plan, ended)
    return ended


def _say_ended(screen: Screen, plan: Plan, ended: str) -> None:
    state = read_ksm_state(kernel.ROOT, processes=False)
    share = merged_share(against(plan.prediction, state))
    reached = "" if share is None else f" {share:.0%} of the merging that was predicted is done."
    if ended == "stopped":
        screen.paragraph("Somebody else has stopped KSM (run is not 1 any more).", "yellow")
    elif ended == "steady":
        unmarked = sum(len(one.pids) - one.marked for one in plan.marks)
        why = f" {unmarked} processes were not marked when this began." if unmarked and (share or 0) < 1 else ""
        screen.paragraph(f"Nothing has changed for {SCANS} full scans.{reached}{why}")
    else:
        screen.line()
        screen.paragraph(f"No longer watched.{reached}")


# ---------------------------------------------------------------- and back


def _undo(args: argparse.Namespace) -> int:
    if args.sources or args.all or args.knobs:
        raise ValueError("--undo: takes back what is applied, nothing is named beside it")
    if not args.unmerge and not knobs.unusable():
        cost = kernel.unmerge_cost()
        if cost.found_bytes and not args.json:
            complain(
                WHO, f"what is merged stays merged; to unmerge it as well (--unmerge) would take {apply_text.cost_words(cost)}"
            )

    def tell(cost: kernel.UnmergeCost) -> None:
        complain(WHO, f"unmerging everything: {apply_text.cost_words(cost)}")

    result = kernel.undo(_say, unmerge=args.unmerge, force=args.force, before_unmerging=tell)
    if args.json:
        report.print_json(
            {
                "undone": not result.failed,
                "settings": [applying.change_json(one) for one in result.changes],
                "failed": result.failed,
                "overruled": [dataclasses.asdict(one) for one in result.overruled],
                "unmerged": result.cost is not None,
                "unmerge_cost": None if result.cost is None else applying.cost_json(result.cost),
                "notes": result.notes,
            }
        )
    else:
        apply_text.undone(Screen(), result)
    return FAILED if result.failed else FINE
