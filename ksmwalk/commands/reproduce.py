"""`ksmwalk reproduce`: a scenario as a C program of its own, for those who have no ksmwalk."""

from __future__ import annotations

import argparse
import json

from ..kernel.reproduce import program
from ..layout.whole import write_whole
from ..scenarios.format import load
from ..scenarios.replay import kernel_of
from . import files
from .codes import FINE
from .profile import version_of
from .report import printable


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``reproduce`` with an argparse subparsers object."""
    parser = subparsers.add_parser(
        "reproduce",
        help="write a scenario as a C program that shows it on any kernel",
        description="Write a scenario, a shrunk difference say, as a C program that needs nothing but libc. As root on any "
        "kernel for x86-64 it starts the processes, steps ksmd batch by batch and prints after each operation what the model "
        "expects beside what the kernel shows; it ends with 0 where all is equal and 1 where something differs. What can't be "
        "said in C is refused by name.",
        epilog="example: ksmwalk reproduce pair.json -o pair.c && gcc -std=gnu11 -O1 -o pair pair.c && sudo ./pair",
    )
    parser.add_argument("file", metavar="FILE.json", help="scenario or recording")
    parser.add_argument("-o", "--output", metavar="OUT.c", help="where the program goes (default: standard output)")
    parser.add_argument(
        "--kernel", metavar="VERSION", help="the kernel that the model is (default: the recording's, else 6.18.44)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk reproduce``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0; 2 where the file can't be read, is not modelled or can't be said in C.
    """
    if args.output is not None:
        files.check("-o", args.output, (".c", ".h"))
    kernel = version_of("ksmwalk reproduce", args.kernel)
    recording = load(args.file)
    text = program(recording, kernel)
    if args.output is not None:
        write_whole(args.output, text.encode())
    scenario = recording.scenario
    if args.json:
        made = {"file": args.file, "name": scenario.name, "kernel": kernel or kernel_of(recording)[0].version}
        made |= {"records": scenario.nr_records, "lines": text.count("\n"), "output": args.output}
        print(json.dumps(made | ({} if args.output else {"program": text})))
    elif args.output is None:
        print(text, end="")
    else:
        print(f"{printable(args.output)}: {scenario.nr_records} records, {text.count(chr(10))} lines")
    return FINE
