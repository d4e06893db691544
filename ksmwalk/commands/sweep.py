"""`ksmwalk sweep`: KSM's tunables against each other, CPU against memory freed against time."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import KsmwalkError
from ..estimates.estimate import MARKS
from ..estimates.spread import MERGING, PACE
from ..estimates.sweep import Memory, Pool, checked, default_settings, grid, of_all, sweep_each
from ..gate import shown
from ..ksm.costs import Costs
from ..layout.whole import write_whole
from ..sources.captures import is_capture, open_capture
from ..sources.contents import MemoryCapture
from . import report, sweep_text
from .codes import FINE
from .given import add_source_arguments, memory_of
from .meter import Meter
from .screen import HelpFormatter, Screen

_MOST_VALUES, _MOST_SETTINGS, _MOST_WORKERS = 1000, 100_000, 4096
# Seconds until a Dask cluster that does not answer, or has no worker, is given up.
_PATIENCE, _WORKERS_IN = 5, 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="KSM's tunables against each other: CPU against memory freed against time",
        description="Estimate what comes of many settings of KSM on the same memory, and show those that no other beats. "
        "Several captures are machines of a fleet: each is looked at for itself, all with the same settings.",
        epilog="examples:\n"
        "  ksmwalk sweep --all                                        192 settings worth comparing\n"
        "  ksmwalk sweep redis-server --set pages_to_scan=100..100000:7 --set smart_scan=0,1\n"
        "  ksmwalk sweep host1 host2 host3 --processes 8 --csv fleet.csv\n"
        "  ksmwalk sweep /shared/host* --shared --dask tcp://10.0.0.5:8786\n\n"
        "Exit code: 0; 2 if nothing could be read, or nobody answers at the address.",
        formatter_class=HelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--set", dest="values", action="append", default=[], metavar="NAME=V1,V2,...|NAME=A..B:N",
        help="values that a tunable is to have, or N of them from A to B, each so many times the one before; those that are "
        "not named stay as they are",
    )  # fmt: skip
    parser.add_argument("--together", action="store_true", help="several captures are one machine's memory (of one --secret)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--threads", type=_workers, metavar="N", help="on so many threads (default: one a processor)")
    where.add_argument("--processes", type=_workers, metavar="N", help="on so many processes")
    where.add_argument("--dask", metavar="ADDRESS", help="on a Dask cluster, such as tcp://HOST:8786 (needs the extra `dask`)")
    parser.add_argument("--shared", action="store_true", help="workers open the captures themselves, under the same path as here")
    parser.add_argument(
        "--as", dest="mark", choices=MARKS, default="auto",
        help="what ksmd is to search: what is marked now, all that could be; auto (default): what is marked, if anything is",
    )  # fmt: skip
    parser.add_argument("--costs", metavar="FILE", help="what ksmd's work costs (default: this machine's, else stored ones)")
    parser.add_argument("--csv", metavar="FILE", help="write all settings as a table")
    parser.add_argument("--html", metavar="FILE", help="write a page that needs nothing else (needs the extra `plot`)")
    parser.add_argument("--plot", metavar="FILE", help="draw into this file, .png, .svg or .pdf (needs the extra `plot`)")
    parser.add_argument("--json", action="store_true", help="print all settings as JSON")
    parser.set_defaults(run=run)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{shown(text)}: a number from 1 to {_MOST_WORKERS} is needed")
    return int(text)


def values_of(words: Sequence[str]) -> list[dict[str, int]]:
    """The settings that `--set` asks for; those worth comparing, where nothing does.

    Parameters
    ----------
    words : sequence of str
        NAME=V1,V2,... or NAME=A..B:N.

    Raises
    ------
    ValueError
        Something else, a tunable that can't be varied or is named twice, too many settings.
    """
    if not words:
        return default_settings()
    found: dict[str, list[int]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        where = f"--set {shown(word)}"
        if not equals or not text:
            raise ValueError(f"{where}: NAME=V1,V2,... or NAME=A..B:N is needed")
        if name not in (*PACE, *MERGING):
            raise ValueError(f"{where}: {shown(name)} can't be varied; these can: {', '.join((*PACE, *MERGING))}")
        if name in found:
            raise ValueError(f"{where}: {name} has been given already")
        found[name] = _range(text, where) if ".." in text else [_number(part, where) for part in text.split(",")]
        if len(found[name]) > _MOST_VALUES:
            raise ValueError(f"{where}: more than {_MOST_VALUES} values")
        found[name] = list(dict.fromkeys(found[name]))
    number = math.prod(map(len, found.values()))
    if number > _MOST_SETTINGS:
        raise ValueError(f"--set: {number:,} settings, more than {_MOST_SETTINGS:,}")
    return grid(**found)


def _number(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"{where}: {shown(text)} is no number")
    return int(text)


def _range(text: str, where: str) -> list[int]:
    ends, colon, many = text.partition(":")
    low, _, high = ends.partition("..")
    if not colon:
        raise ValueError(f"{where}: A..B:N is needed, with how many values")
    first, last, number = (_number(part, where) for part in (low, high, many))
    if not 1 <= first <= last or not 2 <= number <= _MOST_VALUES:
        raise ValueError(f"{where}: A..B:N needs 1 <= A <= B and N from 2 to {_MOST_VALUES}")
    return [round(float(value)) for value in np.geomspace(first, last, number)]


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, or an error."""
    begin = time.monotonic()
    settings = values_of(args.values)
    _check_files(args)
    costs = Costs.load(args.costs)
    with Meter() as meter:
        with _executor(args) as executor:
            names, captures = _captures(args, meter)
            at, machines = _present(captures, settings)
            settings = settings if at < len(settings) else [*settings, {}]
            rows = sweep_each(
                captures, settings, executor=executor, shared=args.shared, mark=args.mark, costs=costs, progress=_told(meter)
            )
    found = sweep_text.Found(names, rows, of_all(rows), at, costs, time.monotonic() - begin, machines)
    _write(args, found)
    if args.json:
        report.print_json(found.to_json())
    else:
        sweep_text.show(Screen(), found)
    return FINE


def _check_files(args: argparse.Namespace) -> None:
    """Before anything is read: matplotlib may be missing, a file's name be wrong."""
    from . import files

    if args.csv is not None:
        files.check("--csv", args.csv)
    if args.plot is not None:
        from . import estimate_plots

        estimate_plots.check(args.plot)
    if args.html is not None:
        from . import page

        page.check(args.html)


def _captures(args: argparse.Namespace, meter: Meter) -> tuple[list[str], list[Memory]]:
    """What is swept, each for itself, and what it is called."""
    each = not args.together and not args.all and bool(args.sources) and all(map(is_capture, args.sources))
    if args.shared and not each:
        raise ValueError("--shared: workers can open captures only, each for itself: name their directories")
    if not each:
        capture = memory_of(args, meter)
        return [str(capture.machine.get("hostname") or "memory")], [capture]
    if twice := [word for word in args.sources if args.sources.count(word) > 1]:
        raise ValueError(f"{twice[0]}: named twice")
    return list(args.sources), list(args.sources)


def _present(captures: Sequence[Memory], settings: Sequence[dict[str, int]]) -> tuple[int, list[dict[str, Any]]]:
    """Which setting is what the machines have now, where they have one, else the number of settings; and the machines."""
    places: set[int] = set()
    machines: list[dict[str, Any]] = []
    for one in captures:
        capture = one if isinstance(one, MemoryCapture) else open_capture(one, mmap=True)
        machines += capture.machine.get("machines") or [capture.machine]
        rows = checked(capture, [*settings, {}])
        places.add(int(np.flatnonzero(rows == rows[-1])[0]))
    return (places.pop() if len(places) == 1 else len(settings)), machines


def _told(meter: Meter) -> Callable[[int, int], None]:
    begin = time.monotonic()

    def tell(done: int, total: int) -> None:
        left = (time.monotonic() - begin) / done * (total - done) if done else 0.0
        meter(f"settings, {report.duration(round(left, 1))} left" if done and left else "settings", done, total)

    return tell


# ---------------------------------------------------------- where it is done


@contextlib.contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Pool]:
    if args.dask is not None:
        with _dask(args.dask) as client:
            yield client.get_executor()
    elif args.processes is not None:
        # no fork: there may be threads, of which a child would hold the locks
        how = multiprocessing.get_context("spawn")
        yield lambda: ProcessPoolExecutor(args.processes, mp_context=how)
    else:
        number = args.threads or len(os.sched_getaffinity(0))
        yield lambda: _threads(number)


def _threads(number: int) -> Executor:
    return ThreadPoolExecutor(number, thread_name_prefix="sweep")


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Any]:
    """A client of a cluster that answers, whose workers have this ksmwalk."""
    import logging
    import warnings

    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise KsmwalkError(f"--dask needs distributed ({error}): pip install 'ksmwalk[dask]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    where = f"--dask {report.printable(address)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of other libraries: ours is compared below
        try:
            # a client that comes to nothing would go on trying, and say so at the end
            asyncio.run(_greet(address))
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except Exception as error:
            raise KsmwalkError(f"{where}: no Dask scheduler answers there ({_short(error)})") from None
        with client:
            try:
                client.wait_for_workers(1, timeout=_WORKERS_IN)
                versions = client.run(_version)
            except ModuleNotFoundError as error:
                raise KsmwalkError(f"{where}: its workers lack {error.name}: install the same ksmwalk there") from None
            except Exception as error:
                raise KsmwalkError(f"{where}: no worker of the cluster can be used ({_short(error)})") from None
            for worker, version in versions.items():
                if version != _version():
                    raise KsmwalkError(f"{where}: worker {worker} has ksmwalk {shown(version)}, here it is {_version()}")
            yield client


async def _greet(address: str) -> None:
    """See that somebody at the address talks as Dask does."""
    comms: Any = importlib.import_module("distributed.comm")
    comm = await comms.connect(address, timeout=_PATIENCE)
    await comm.close()


def _version() -> str:
    from .. import __version__

    return __version__


def _short(error: BaseException) -> str:
    return report.printable(" ".join(str(error).split()) or type(error).__name__)


# ---------------------------------------------------------- what is written


def _write(args: argparse.Namespace, found: sweep_text.Found) -> None:

    if args.csv is not None:
        write_whole(args.csv, found.to_csv().encode("utf-8", "backslashreplace"))
    if args.plot is not None:
        from . import estimate_plots, sweep_page

        estimate_plots.draw_panels(sweep_page.panels(found), sweep_text.heading(found), args.plot)
    if args.html is not None:
        from . import sweep_page

        write_whole(args.html, sweep_page.written(found).encode("utf-8", "backslashreplace"))
