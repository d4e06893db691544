"""`ksmwalk estimate`: what merging would free and cost, before it is switched on."""

from __future__ import annotations

import argparse
from typing import Any

from ..estimates.advice import YOUNG, advise, by_domain
from ..estimates.domains import DOMAINS
from ..estimates.estimate import MARKS, Estimate, estimate
from ..estimates.sampling import estimate_sample
from ..estimates.tables import BY
from ..gate import shown
from ..ksm import sysfs
from ..ksm.costs import Costs
from ..sources.contents import MemoryCapture
from ..sources.matrix import SharingMatrix, sharing_matrix
from . import estimate_text, report, sharing_text
from .codes import FAILED, FINE, complain
from .given import add_command_argument, add_source_arguments, memory_of, without_commands
from .meter import Meter
from .screen import HelpFormatter, Screen

# Up to so many pages what a domain frees is found unasked: it takes as long as the estimate, for each.
_CHEAP_PAGES = 200_000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "estimate",
        help="what merging would free, and what it would cost",
        description="Read processes, captures, cores or images, merge their pages in the model until nothing changes any "
        "more, and say whether KSM should be switched on, for which processes, at which settings. Nothing is merged or set.",
        epilog="examples:\n"
        "  ksmwalk estimate --all                         every process that may be read\n"
        "  ksmwalk estimate 'qemu*' --samples 5           by name; pages that change show better\n"
        "  ksmwalk estimate redis-server --set pages_to_scan=5000 --set use_zero_pages=1\n"
        "  ksmwalk estimate --all --html ksm.html --json  a page to hand on, and plain data\n\n"
        "Exit code: 0, 1 if something that was asked for could not be read, 2 if nothing could.",
        formatter_class=HelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--as", dest="mark", choices=MARKS, default="auto",
        help="what ksmd is to search: what is marked now, all that could be; auto (default): what is marked, if anything is",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="knobs", action="append", default=[], metavar="NAME=VALUE",
        help="a tunable of /sys/kernel/mm/ksm that is to differ from the present one",
    )  # fmt: skip
    parser.add_argument("--domain", choices=DOMAINS, default="all", help="merge only within these (default all)")
    parser.add_argument("--domains", action="store_true", help="what each domain would free, however long that takes")
    parser.add_argument("--fresh", action="store_true", help="as if KSM had not run before")
    parser.add_argument("--costs", metavar="FILE", help="what ksmd's work costs (default: this machine's, else stored ones)")
    parser.add_argument("--by", choices=BY, default="process", help="rows of the table (default process)")
    parser.add_argument(
        "--sample", metavar="PART", type=float,
        help="of a host too large to be run whole: from this part of its contents, 0.01 say, with bounds",
    )  # fmt: skip
    add_command_argument(parser)
    parser.add_argument("--html", metavar="FILE", help="write a page that needs nothing else (needs the extra `plot`)")
    parser.add_argument("--plot", metavar="FILE", help="draw into this file, .png, .svg or .pdf (needs the extra `plot`)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def tunables(words: list[str]) -> dict[str, object]:
    """What `--set` says: values by name.

    Parameters
    ----------
    words : list of str
        NAME=VALUE.

    Raises
    ------
    ValueError
        Something else, or a name that KSM has not got.
    """
    found: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set {shown(word)}: NAME=VALUE is needed")
        if name not in sysfs.KNOBS:
            raise ValueError(f"--set {shown(word)}: KSM has no such tunable; it has {', '.join(sysfs.KNOBS)}")
        found[name] = value
    return found


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, 1 where something asked for can't be read, 2 where nothing can."""
    given = tunables(args.knobs)
    if args.sample is not None and (args.html is not None or args.plot is not None):
        raise ValueError("--sample gives figures with bounds, no pages: not with --html or --plot")
    if args.html is not None or args.plot is not None:
        from . import estimate_plots, page  # before anything is read: matplotlib may be missing

        if args.plot is not None:
            estimate_plots.check(args.plot)
        if args.html is not None:
            page.check(args.html)
    costs = Costs.load(args.costs)
    with Meter() as meter:
        capture = memory_of(args, meter)
        if args.no_command:
            capture = without_commands(capture)
        read = {one.pid for one in capture.processes}
        unread = [word for word in args.sources if word.isascii() and word.isdigit() and int(word) not in read]
        found = None if args.sample is None else _sampled(args, capture, given, costs, meter)
    if found is not None:
        if args.json:
            report.print_json(found.to_json())
        else:
            estimate_text.show_sample(Screen(), found, args.by)
        return FINE
    with Meter() as meter:
        found = estimate(
            capture, mark=args.mark, knobs=given, domain=args.domain, costs=costs, take_over=not args.fresh,
            each=lambda scans: meter("full scans made", scans, 0),
        )  # fmt: skip
        # processes that are named are meant, however young
        young = YOUNG if args.all else 0.0
        advice = advise(found, take_over=not args.fresh, young=young, each=lambda scans: meter("full scans made", scans, 0))
        domains: dict[str, int | None] = {}
        if args.domains or (args.domain == "all" and len(capture.processes) > 1 and capture.nr_pages <= _CHEAP_PAGES):
            meter("merging within domains", 0, 0)
            domains = by_domain(found, take_over=not args.fresh)
        matrix = None
        if len(set(capture.sources or ())) > 1:
            meter("comparing sources", 0, 0)
            matrix = sharing_matrix(capture)
    # in words a note says it
    for word in unread if args.json else ():
        complain("ksmwalk estimate", f"process {word} could not be read")
    if args.plot is not None:
        estimate_plots.draw(found, args.plot, matrix)
    if args.html is not None:
        page.write(found, advice, domains, args.html, matrix)
    if args.json:
        report.print_json(as_json(found, advice, domains, matrix))
    else:
        screen = Screen()
        estimate_text.show(screen, found, advice, domains, args.by)
        if matrix is not None:
            sharing_text.show(screen, matrix)
    return FAILED if unread else FINE


def _sampled(
    args: argparse.Namespace, capture: MemoryCapture, knobs: dict[str, object], costs: Costs, meter: Meter
) -> Estimate:
    """The figures of a part of the contents, scaled up, with their bounds."""
    return estimate_sample(
        capture, args.sample, mark=args.mark, knobs=knobs, domain=args.domain, costs=costs, take_over=not args.fresh,
        each=lambda scans: meter("full scans made", scans, 0),
    )  # fmt: skip


def as_json(
    found: Estimate, advice: Any, domains: dict[str, int | None], matrix: SharingMatrix | None = None
) -> dict[str, Any]:
    """Everything as plain data: the estimate's own, the advice, what domains free, who shares with whom."""
    data = {**found.to_json(), "advice": advice.to_json(), "by_domain": domains}
    return data if matrix is None else {**data, "matrix": matrix.to_json()}
