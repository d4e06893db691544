"""`ksmwalk capture`: the memory of processes kept as the pattern of its contents, without the contents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..sources.captures import check_place, save_capture
from ..sources.contents import MemoryCapture, readable
from ..sources.keys import UNKNOWN
from . import given, report
from .codes import FINE
from .meter import Meter
from .screen import HelpFormatter, Screen


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "capture",
        help="keep which pages of running processes are equal, for estimates elsewhere or later",
        description="Read processes and keep which of their pages have equal contents, for other commands to look at later "
        "or elsewhere. The pages themselves are not kept, nor, without --secret, anything by which a guess of what is in "
        "one could be confirmed. The processes are not changed; each page is read twice to see which change.",
        epilog="examples:\n"
        "  ksmwalk capture --all -o before       every process\n"
        "  ksmwalk capture 'qemu*' -o vms        by name\n"
        "  ksmwalk capture redis-server --stop -o redis\n"
        "  head -c 32 /dev/urandom > key; chmod 600 key\n"
        "  ksmwalk capture --all --secret key -o host1     to be compared with host2's, made with the same key\n\n"
        "Exit code: 0; 2 if nothing could be read or kept; 130 if interrupted, with nothing left.",
        formatter_class=HelpFormatter,
    )
    given.add_source_arguments(parser)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the capture goes; its owner alone can read it")
    parser.add_argument("--force", action="store_true", help="replace a capture that is there")
    given.add_command_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, or an error."""
    try:
        check_place(args.output, args.force)
    except FileExistsError as error:
        raise FileExistsError(error.errno, str(error.strerror).replace("overwrite=True", "--force")) from None
    with Meter() as meter:
        what = given.memory_of(args, meter)
        if args.no_command:
            what = given.without_commands(what)
        save_capture(what, args.output, overwrite=args.force)
    found = summary(what)
    found["directory"] = str(args.output)
    found["bytes"] = sum(path.stat().st_size for path in Path(args.output).iterdir())
    if args.json:
        report.print_json(found)
    else:
        _show(Screen(), found)
    return FINE


def summary(what: MemoryCapture) -> dict[str, Any]:
    """A capture in a few numbers.

    Parameters
    ----------
    what : MemoryCapture

    Returns
    -------
    dict
        processes, pages, anonymous_pages (those that merging is about, as often as they are mapped), contents (different
        ones), zero_pages (of zeros, of a process's own), changing_pages, changes_per_second (pages that had changed, by the
        second; a page changed twice between two readings counts once), unread_pages, samples, seconds_between, notes, seconds.
    """
    wanted = [readable(one) for one in what.processes]
    keys = [np.empty(0, np.uint64) if one.key is None else one.key[some] for one, some in zip(what.processes, wanted, strict=True)]
    key = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    known = key[key != np.uint64(UNKNOWN)]
    changes = [one.changes for one in what.processes if one.changes is not None]
    changed = sum(int(some.sum()) for some in changes)
    return {
        "processes": len(what.processes),
        "pages": what.nr_pages,
        "anonymous_pages": len(key),
        "contents": len(np.unique(known)),
        "zero_pages": int(np.count_nonzero(known == 0)),
        "changing_pages": sum(int(np.count_nonzero(some)) for some in changes),
        "changes_per_second": changed / what.seconds_between if what.seconds_between else 0.0,
        "unread_pages": len(key) - len(known),
        "samples": what.samples,
        "seconds_between": what.seconds_between,
        "ordered": what.ordered,
        "notes": what.notes,
        "seconds": sum(what.seconds.values()),
    }


def _show(screen: Screen, found: dict[str, Any]) -> None:
    count = report.count
    some = found["processes"]
    screen.entry(f"{count(some)} process{'' if some == 1 else 'es'} captured in ", (report.printable(found["directory"]), "bold"),
                 f" ({report.size(found['bytes'])}, {report.duration(found['seconds'])})")  # fmt: skip
    lines = [
        ("pages", found["pages"], ""),
        ("that could merge", found["anonymous_pages"], "anonymous and private, as often as they are mapped"),
        ("different contents", found["contents"], ""),
        ("zero pages", found["zero_pages"], ""),
    ]
    if found["samples"] > 1:
        rate = f"{found['changes_per_second']:.3g} pages/s written, by readings {report.duration(found['seconds_between'])} apart"
        lines.append(("changing", found["changing_pages"], rate if found["changing_pages"] else ""))
    if found["unread_pages"]:
        lines.append(("not read", found["unread_pages"], ""))
    width = max(len(count(number)) for _, number, _ in lines)
    for name, number, more in lines:
        screen.entry(f"  {name:<18}  {count(number):>{width}}", more=more, style="dim")
    for note in found["notes"]:
        screen.paragraph(report.printable(note), "dim")
