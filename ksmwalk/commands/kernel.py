"""The commands that drive the real ksmd: ``ksmwalk verify`` and ``ksmwalk record``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ..kernel import stepper
from ..kernel.knobs import KernelUnavailable, to_stderr
from ..kernel.verify import Results, verify
from ..kernel.worker import WorkerDied
from ..scenarios.format import Recording, Scenario, ScenarioError, load, save
from ..scenarios.generate import generate
from . import verification_page

FAILED, UNUSABLE = 1, 2
#: what ends a command with a line instead of a traceback
UNABLE = (KernelUnavailable, stepper.Disturbed, WorkerDied, ScenarioError, ValueError, OSError)


def add_parsers(subparsers) -> None:
    """Register ``verify`` and ``record`` with an argparse subparsers object.

    Parameters
    ----------
    subparsers : object
        From ``ArgumentParser.add_subparsers``. Each command sets ``run``, a callable of the parsed arguments that
        returns the exit code.
    """
    one = subparsers.add_parser(
        "verify",
        help="compare the model with the real ksmd of this machine (root)",
        description="Run scenarios in the model and on the real ksmd of this machine, stepped batch by batch, and "
        "compare every record. KSM is taken under a lock, refused if it is in use, and put back as it was.",
    )
    one.add_argument("files", nargs="*", metavar="FILE", type=Path, help="scenarios or recordings (JSON)")
    one.add_argument("--random", type=int, default=0, metavar="N", help="also N random scenarios")
    one.add_argument("--seed", type=int, default=1, metavar="S", help="of the random scenarios (default 1)")
    one.add_argument("--first", type=int, default=0, metavar="K", help="start the random scenarios at number K")
    one.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        default=Path("ksmwalk-failed"),
        help="where shrunk failing scenarios go (default %(default)s)",
    )
    one.add_argument(
        "--shrink-seconds",
        type=float,
        default=60,
        metavar="T",
        help="how long a failing scenario may be shrunk (default %(default)s; 0: not at all)",
    )
    one.add_argument("--docs", type=Path, metavar="FILE", help="write the verification page there")
    one.add_argument("--json", action="store_true", help="print the results as JSON")
    one.set_defaults(run=run_verify)

    two = subparsers.add_parser(
        "record",
        help="save what the real ksmd of this machine answers to scenarios (root)",
        description="Run scenarios on the real ksmd of this machine and save its records.",
    )
    two.add_argument("files", nargs="+", metavar="FILE", type=Path, help="scenarios or recordings (JSON)")
    two.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="where the recordings go")
    two.add_argument(
        "--runs",
        type=int,
        default=1,
        metavar="N",
        help="run each N times and name the fields that differ between runs (default 1)",
    )
    two.add_argument("--json", action="store_true", help="print the summary as JSON")
    two.set_defaults(run=run_record)


def _refused(error: Exception) -> int:
    to_stderr(f"ksmwalk: {error}")
    return UNUSABLE


def run_verify(args: argparse.Namespace, replay=None) -> int:
    """Carry out ``ksmwalk verify``.

    Parameters
    ----------
    args : argparse.Namespace
    replay : callable, optional
        The model; default :func:`ksmwalk.replay.replay`.

    Returns
    -------
    int
        0 all agree, 1 some do not, 2 nothing could be run.
    """
    if not args.files and args.random <= 0:
        return _refused(ValueError("nothing to verify: give FILE... or --random N"))
    try:
        recordings = [load(path) for path in args.files]
        if replay is None:
            from ..scenarios.replay import replay
        with stepper.session(to_stderr) as session:
            say = to_stderr if args.json else print
            say(f"kernel {stepper.kernel_name()}" + "".join(f"; left out: {what}" for what in session.left_out))
            results = verify(
                _all(recordings, args),
                replay,
                session,
                say=say,
                progress=_progress(len(args.files) + args.random),
                save_to=args.save,
                shrink_seconds=args.shrink_seconds,
            )
    except UNABLE as error:
        return _refused(error)
    if args.docs:
        verification_page.write(results, _command(args), args.docs)
    if args.json:
        print(json.dumps(results.to_json(), indent=1))
    else:
        print(
            f"{results.records} records, {results.values} values, {results.seconds:.1f} s (kernel "
            f"{results.kernel_seconds:.1f}, model {results.model_seconds:.1f})"
        )
        print(results.last_line())
    return 0 if results.count("agrees") == len(results.verdicts) else FAILED


def _all(recordings: list[Recording], args: argparse.Namespace) -> Iterator[Recording | Scenario]:
    yield from recordings
    for number in range(args.first, args.first + args.random):
        yield generate(args.seed, number)


def _command(args: argparse.Namespace) -> str:
    parts = ["ksmwalk verify", *map(str, args.files[:3])]
    if len(args.files) > 3:
        parts.append(f"... ({len(args.files)} files)")
    if args.random:
        parts.append(f"--random {args.random} --seed {args.seed}")
    return " ".join([*parts, f"--docs {args.docs}"])


def _progress(total: int):
    """A line that counts on, where somebody sees it."""
    if not sys.stderr.isatty():
        return None

    def show(number: int, results: Results) -> None:
        end = "\n" if number + 1 == total else ""
        print(f"\r{number + 1}/{total}  {results.last_line()}  {results.seconds:.0f} s ", end=end, file=sys.stderr)

    return show


def run_record(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk record``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0, or 2 if nothing could be run.
    """
    try:
        if args.runs < 1:
            raise ValueError(f"--runs is at least 1, not {args.runs}")
        recordings = [load(path) for path in args.files]
        names = [path.name for path in args.files]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two files of one name would go to one place: {', '.join(sorted(twice))}")
        args.output.mkdir(parents=True, exist_ok=True)
        with stepper.session(to_stderr) as session:
            done = []
            for path, recording in zip(args.files, recordings, strict=True):
                made = stepper.record_in(session, recording.scenario, args.runs)
                save(made, args.output / path.name)
                done.append({"file": str(args.output / path.name), "records": len(made.records), "nondet": made.nondet})
                if not args.json:
                    unsteady = f", not repeatable: {', '.join(made.nondet)}" if made.nondet else ""
                    print(f"{args.output / path.name}: {len(made.records)} records{unsteady}")
            left_out = session.left_out
    except UNABLE as error:
        return _refused(error)
    if args.json:
        print(json.dumps({"kernel": stepper.kernel_name(), "left_out": left_out, "files": done}, indent=1))
    return 0
