"""`ksmwalk simulate`: what KSM does with some memory over time, alone or with who tunes it from outside."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

import numpy as np

from ..controllers import CONTROLLERS
from ..estimates.estimate import MARKS, check_contents, tunables_of, which_mark
from ..ksm.costs import Costs
from ..layout import PAGE_SIZE
from ..layout.whole import write_whole
from ..signatures import RecordArray
from ..sources.contents import MemoryCapture
from ..sources.memory import load_memory
from . import files, report
from .codes import FINE
from .estimate import tunables
from .given import add_source_arguments, memory_of
from .meter import Meter
from .screen import Column, HelpFormatter, Screen

#: rows of the table where nothing is said, and most that may be asked for
_ROWS, _MOST_ROWS = 15, 100_000
_LEAST, _LONGEST = 0.001, 10 * 366 * 86400.0  # seconds
#: KSM alone, with the tunables as they are
ALONE = "alone"
_COLUMNS = (
    Column("time"), Column("in use", style="green"), Column("freed", style="green"), Column("scans"),
    Column("pages_to_scan", rank=1), Column("sleep ms", rank=1), Column("CPU"), Column("of a CPU", rank=2),
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "simulate",
        help="what KSM does over time, and who tunes it from outside",
        description="Read processes, captures, cores or images, and let ksmd work on their memory in the model, at its own "
        "pace: batches take what they cost, ksmd sleeps, the advisor or a controller tunes. The contents stay as they were "
        "read. Nothing is merged or set.",
        epilog="examples:\n"
        "  ksmwalk simulate 'qemu*' --seconds 600                        at the present tunables\n"
        "  ksmwalk simulate --all --controller ksmtuned --controller advisor   side by side\n"
        "  ksmwalk simulate capture/ --set pages_to_scan=1000 --png ksm.png",
        formatter_class=HelpFormatter,
    )
    add_source_arguments(parser)
    parser.set_defaults(samples=1)
    parser.add_argument("--seconds", type=float, default=600, metavar="S", help="how long (default %(default)s)")
    parser.add_argument("--every", type=float, metavar="S", help=f"seconds from a row to the next (default: {_ROWS} rows)")
    parser.add_argument(
        "--controller", dest="controllers", action="append", choices=(ALONE, *CONTROLLERS), metavar="NAME",
        help=f"who tunes: {', '.join(CONTROLLERS)}, or {ALONE} (default: ksmd as it is set); several are run one after the other",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=float, metavar="GIB",
        help="memory of the machine, by which controllers judge what is free (default: that of this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="mark", choices=MARKS, default="auto", help="what ksmd is to search, as for `ksmwalk estimate`"
    )
    parser.add_argument(
        "--set", dest="knobs", action="append", default=[], metavar="NAME=VALUE",
        help="a tunable of /sys/kernel/mm/ksm that is to differ from the present one",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="as if KSM had not run before")
    parser.add_argument("--costs", metavar="FILE", help="what ksmd's work costs (default: this machine's, else stored ones)")
    parser.add_argument("--png", metavar="FILE", help="draw memory over time, .png, .svg or .pdf (needs the extra `plot`)")
    parser.add_argument("--json", action="store_true", help="print every row as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk simulate``; exit code 0."""
    knobs = tunables(args.knobs)
    if not _LEAST <= args.seconds <= _LONGEST:
        raise ValueError(f"--seconds {args.seconds:g}: must be at least {_LEAST:g}, and at most ten years")
    every = max(args.seconds / _ROWS, _LEAST) if args.every is None else args.every
    if every < _LEAST:
        raise ValueError(f"--every {every:g}: must be at least {_LEAST:g}")
    if not args.seconds / _MOST_ROWS <= every <= args.seconds:
        raise ValueError(f"--every {every:g}: must give from 1 to {_MOST_ROWS:,} rows")
    total = _machine() if args.memory is None else args.memory * 2**30
    if not 1 <= total < 2**60 or math.isnan(total):
        raise ValueError(f"--memory {args.memory:g}: must be a size in GiB")
    if args.png is not None:
        from . import charts  # before anything is read: matplotlib may be missing

        kind = files.check("--png", args.png, (".png", ".svg", ".pdf"))[1:]
    costs = Costs.load(args.costs)
    names = list(dict.fromkeys(args.controllers or [ALONE]))
    with Meter() as meter:
        capture = memory_of(args, meter)
        runs, notes = [], []
        for number, name in enumerate(names):
            meter("controllers run", number, len(names))
            rows, refused = simulated(capture, name, args.seconds, every, knobs, costs, int(total), args.mark, args.fresh)
            runs.append((name, rows))
            if refused:
                notes.append(f"{name}: KSM refused {refused} settings, as it does of pages_to_scan while the advisor is on.")
    if args.png is not None:
        with charts.style():
            drawn = charts.figure(8.4, 3.4)
            charts.memory_over_time(drawn.add_subplot(), runs)
            write_whole(args.png, charts.rendered(drawn, kind))
    if args.json:
        report.print_json({
            "seconds": args.seconds, "costs": costs.source, "memory_bytes": int(total),
            "runs": [{"controller": name, **_columns(rows)} for name, rows in runs], "notes": notes,
        })  # fmt: skip
        return FINE
    screen = Screen()
    for name, rows in runs:
        show(screen, name, rows)
    for note in notes:
        screen.paragraph(note)
    screen.paragraph(f"ksmd's work costs as {costs.source} ({report.printable(costs.machine)}).")
    return FINE


def _machine() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def simulated(
    capture: MemoryCapture, controller: str, seconds: float, every: float, knobs: dict[str, object], costs: Costs, total: int,
    mark: str = "auto", fresh: bool = False,
) -> tuple[RecordArray, int]:  # fmt: skip
    """Load a capture and let time pass.

    Parameters
    ----------
    capture : MemoryCapture
    controller : str
        One of `CONTROLLERS`, or `ALONE`.
    seconds, every : float
    knobs : dict
        Tunables that differ from those of the capture.
    costs : Costs
    total : int
        Bytes of memory of the machine.
    mark : str
    fresh : bool

    Returns
    -------
    ndarray of host.running.RUN_DTYPE, int
        The rows, and how many settings of the controller KSM refused.

    Raises
    ------
    NothingToMerge
        A capture without contents, or of no process.
    """
    check_contents(capture)
    loaded = load_memory(
        capture, mark="as-is" if which_mark(capture, mark) == "marked" else "all", knobs=tunables_of(capture, knobs),
        take_over=not fresh,
    )  # fmt: skip
    host, who = loaded.host, []
    if controller == ALONE:
        host.ksm.run = 1
    elif controller == "advisor":
        who = [CONTROLLERS[controller]()]
    else:
        who = [CONTROLLERS[controller](total=total)]
    rows = host.run(seconds, every=every, controllers=who, costs=costs, prefix=capture.prefix)
    return rows, sum(getattr(one, "refused", 0) for one in who)


def _columns(rows: RecordArray) -> dict[str, Any]:
    """Rows as columns for JSON, with what is freed in bytes."""
    out: dict[str, Any] = {name: rows[name].tolist() for name in rows.dtype.names or ()}
    out["used_bytes"] = (rows["frames_used"] * PAGE_SIZE).tolist()
    out["freed_bytes"] = ((rows["frames_used"][0] - rows["frames_used"]) * PAGE_SIZE).tolist()
    return out


def show(screen: Screen, name: str, rows: RecordArray) -> None:
    """Write one run as a table."""
    screen.line((name, "bold"))
    freed = (rows["frames_used"][0] - rows["frames_used"]) * PAGE_SIZE
    busy = np.diff(rows["cpu"], prepend=0.0) / np.maximum(np.diff(rows["time"], prepend=0.0), 1e-9)
    lines = [
        (
            f"{row['time']:,.4g} s" if row["time"] < 10_000 else report.duration(float(row["time"])),
            report.size(int(row["frames_used"]) * PAGE_SIZE), report.size(int(back)), report.count(int(row["full_scans"])),
            report.count(int(row["pages_to_scan"])) if row["run"] == 1 else "stopped", report.count(int(row["sleep_millisecs"])),
            f"{row['cpu']:,.2f} s", f"{part:.1%}",
        )
        for row, back, part in zip(rows, freed.tolist(), busy.tolist(), strict=True)
    ]  # fmt: skip
    screen.table(_COLUMNS, lines)
    screen.line()
