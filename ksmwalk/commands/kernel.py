"""The commands that drive the real ksmd: ``ksmwalk verify`` and ``ksmwalk record``."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from .. import kernels
from ..kernel import guest, stepper
from ..kernel.knobs import KernelUnavailable, to_stderr, unusable
from ..kernel.stepper import Session
from ..kernel.timed import STORIES
from ..kernel.verify import Replay, Results, verify
from ..kernel.worker import WorkerDied
from ..kernel.workloads import WORKLOADS
from ..scenarios.format import Recording, Scenario, ScenarioError, load, save
from ..scenarios.generate import generate
from ..scenarios.mix import mix
from . import advised, timed, verification_page, workloads
from .codes import FAILED, FINE, UNUSABLE, complain
from .report import printable

#: what ends a command with a line instead of a traceback
UNABLE = (KernelUnavailable, stepper.Disturbed, WorkerDied, ScenarioError, ValueError, OSError)


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    one.add_argument("--mixed", type=int, default=0, metavar="N", help="also N scenarios mixed of those in the files")
    one.add_argument("--seed", type=int, default=1, metavar="S", help="of the random and mixed scenarios (default 1)")
    one.add_argument("--first", type=int, default=0, metavar="K", help="start the random and mixed scenarios at number K")
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
    one.add_argument(
        "--workloads",
        nargs="*",
        metavar="NAME",
        help="in their place hold the estimate against the real ksmd on live workloads, all or these: "
        + ", ".join(one.name for one in WORKLOADS),
    )
    one.add_argument(
        "--time",
        nargs="*",
        metavar="NAME",
        help="in their place hold the model's clock against the real ksmd, at default tunables and with the advisor, on "
        "all timed workloads or these: " + ", ".join(one.name for one in STORIES),
    )
    one.add_argument(
        "--advisor",
        type=int,
        metavar="N",
        help="in their place hold N fresh steps of the real scan-time advisor against the model's arithmetic, a third of them "
        "on each of three settings (minutes; --seed draws the knobs; --json prints the steps)",
    )
    one.add_argument("--seconds", type=float, default=60, metavar="S", help="of each timed workload (default %(default)s)")
    one.add_argument(
        "--costs", type=Path, metavar="FILE", help="costs for --time and --workloads (default: those of `ksmwalk calibrate`)"
    )
    one.add_argument(
        "--guest",
        type=Path,
        metavar="IMAGE",
        help="not this machine's kernel but this one (vmlinuz), in an emulated machine: needs qemu-system-x86_64, no root",
    )
    one.add_argument("--nodes", type=int, choices=(1, 2), default=1, help="NUMA nodes of that machine (default %(default)s)")
    one.add_argument("--docs", type=Path, metavar="FILE", help="write the verification page, or its part, there")
    one.add_argument("--json", action="store_true", help="print the results as JSON")
    one.set_defaults(run=run_verify)
    _add_record(subparsers)


def _add_record(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def _refused(reason: object) -> int:
    complain("ksmwalk", str(reason))
    return UNUSABLE


def _loaded(paths: list[Path]) -> tuple[list[tuple[Path, Recording]], list[dict[str, str]]]:
    """The files that can be run, and what is wrong with the others: all that can be said before anything is."""
    good, broken = [], []
    for path in paths:
        try:
            recording = load(path)
            stepper.check(recording.scenario)
            good.append((path, recording))
        except (ScenarioError, OSError) as error:
            broken.append(_broken(path, error))
    return good, broken


def _broken(path: Path, error: Exception) -> dict[str, str]:
    """Name a file that could not be run."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = text if str(path) in text else f"{path}: {text}"
    complain("ksmwalk", text)
    return {"file": str(path), "error": text}


def run_verify(args: argparse.Namespace, replay: Replay | None = None) -> int:
    """Carry out ``ksmwalk verify``.

    Parameters
    ----------
    args : argparse.Namespace
    replay : callable, optional
        The model; default :func:`ksmwalk.scenarios.replay.replay`.

    Returns
    -------
    int
        0 all agree, 1 some do not or could not be run, 2 nothing could be run.
    """
    if args.time is not None:
        alone = args.workloads is None and not args.files and args.random <= 0 and args.docs is None
        return timed.run_timed(args) if alone else _refused("--time goes alone")
    if args.advisor is not None:
        alone = args.workloads is None and not args.files and args.random <= 0 and args.docs is None and args.guest is None
        return advised.run_advised(args) if alone else _refused("--advisor goes alone")
    if args.workloads is not None:
        return _refused("--workloads goes alone") if args.files or args.random > 0 else workloads.run_workloads(args)
    if not args.files and args.random <= 0:
        return _refused("nothing to verify: give FILE..., --random N, --workloads, --time or --advisor N")
    if args.mixed > 0 and not args.files:
        return _refused("--mixed goes with FILE...: of what?")
    if args.guest is None and args.nodes > 1:
        return _refused("--nodes goes with --guest")
    if args.guest is not None and args.docs is not None:
        return _refused("--docs goes without --guest")
    if reason := unusable() if args.guest is None else guest.why_not(args.guest):
        return _refused(reason)
    files, broken = _loaded(args.files)
    if not files and args.random <= 0:
        return UNUSABLE
    say = to_stderr if args.json else print
    try:
        with _judge(args) as session:
            say(f"kernel {session.kernel}" + "".join(f"; left out: {what}" for what in session.left_out))
            if replay is None:
                replay = _model(session)
            results = verify(
                _all([recording for _, recording in files], args, session),
                replay,
                session,
                say=say,
                progress=_progress(len(files) + args.random + args.mixed),
                save_to=args.save,
                shrink_seconds=args.shrink_seconds,
            )
    except BrokenPipeError:
        raise
    except UNABLE as error:
        return _refused(error)
    if args.json:
        print(json.dumps(results.to_json() | {"broken": broken}, indent=1))
    else:
        print(
            f"{results.records} records, {results.values} values, {results.seconds:.1f} s (kernel "
            f"{results.kernel_seconds:.1f}, model {results.model_seconds:.1f})"
        )
        print(results.last_line())
    if args.docs:
        verification_page.write(results, _command(args), args.docs)
    return FINE if results.count("agrees") == len(results.verdicts) and not broken else FAILED


def _judge(args: argparse.Namespace) -> AbstractContextManager[Session | guest.Guest]:
    """The kernel that the model is held against."""
    if args.guest is None:
        return stepper.session(to_stderr)
    return guest.guest(args.guest, args.nodes, to_stderr)


def _model(session: Session | guest.Guest) -> Replay:
    """The model of that kernel."""
    from ..scenarios.replay import replay

    note = session.profile.note if isinstance(session, guest.Guest) else kernels.here()[1]
    if note:
        complain("ksmwalk verify", note)
    return functools.partial(replay, kernel=_version(session))


def _version(session: Session | guest.Guest) -> str:
    """The version of the kernel that the model is."""
    profile = session.profile.profile if isinstance(session, guest.Guest) else kernels.here()[0]
    return profile.version


def _all(recordings: list[Recording], args: argparse.Namespace, session: Session | guest.Guest) -> Iterator[Recording | Scenario]:
    from ..scenarios.replay import modelled

    def can(scenario: Scenario) -> bool:
        return modelled(scenario) is None and session.lacks(scenario) is None

    yield from recordings
    for number in range(args.first, args.first + args.random):
        yield generate(args.seed, number, can)
    sources, version = [one.scenario for one in recordings], _version(session)
    for number in range(args.first, args.first + args.mixed):
        yield mix(sources, args.seed, number, can, version)


def _command(args: argparse.Namespace) -> str:
    parts = ["ksmwalk verify", *map(str, args.files[:3])]
    if len(args.files) > 3:
        parts.append(f"... ({len(args.files)} files)")
    if args.mixed:
        parts.append(f"--mixed {args.mixed}")
    if args.random or args.mixed:
        parts.append(f"--random {args.random} --seed {args.seed}")
    return " ".join([*parts, f"--docs {args.docs}"])


def _progress(total: int) -> Callable[[int, Results], None] | None:
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
        0, 1 if some could not be run, 2 if nothing could.
    """
    if args.runs < 1:
        return _refused(f"--runs is at least 1, not {args.runs}")
    names = [path.name for path in args.files]
    if twice := {name for name in names if names.count(name) > 1}:
        return _refused(f"two files of one name would go to one place: {', '.join(sorted(twice))}")
    if reason := unusable():
        return _refused(reason)
    files, broken = _loaded(args.files)
    if not files:
        return UNUSABLE
    done = []
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        with stepper.session(to_stderr) as session:
            left_out = session.left_out
            for path, recording in files:
                target = args.output / path.name
                try:
                    made = stepper.record_in(session, recording.scenario, args.runs)
                except (ScenarioError, WorkerDied) as error:
                    broken.append(_broken(path, error))
                    continue
                save(made, target)
                nr_records = len(made.records or ())
                done.append({"file": str(target), "records": nr_records, "nondet": made.nondet})
                if not args.json:
                    unsteady = f", not repeatable: {', '.join(made.nondet)}" if made.nondet else ""
                    print(f"{printable(target)}: {nr_records} records{unsteady}")
    except BrokenPipeError:
        raise
    except UNABLE as error:
        return _refused(error)
    if args.json:
        print(json.dumps({"kernel": stepper.kernel_name(), "left_out": left_out, "files": done, "broken": broken}, indent=1))
    if not done:
        return UNUSABLE
    return FAILED if broken else FINE
