"""`ksmwalk probe`: which of the known kernels this machine's is most like, found out by what it answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import kernels
from ..errors import KsmwalkError
from ..kernel import guest, knobs, probe, stepper
from ..kernel.worker import WorkerDied
from . import report
from .codes import FAILED, FINE
from .screen import Column, HelpFormatter, Screen

# What the machine's own KSM may be waited for: another program may hold it for long.
_WAIT = 60.0

TABLE = (Column("", right=False), Column("what this kernel does otherwise than 6.18.44", right=False, elastic=True))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``probe`` with an argparse subparsers object."""
    parser = subparsers.add_parser(
        "probe",
        help="find out which known kernel this machine's is most like (root, ten seconds)",
        description="Run some thirty small scenarios on the real ksmd of this machine, and say in what it differs from Linux "
        "6.18.44 and which of the known kernels answers most like it. KSM is taken under a lock, refused if it is in use, "
        "and put back as it was. Exit code 1 where no known kernel is exactly like it.",
        epilog="example: sudo ksmwalk probe --json",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--guest",
        type=Path,
        metavar="IMAGE",
        help="not this machine's kernel but this one (vmlinuz), in an emulated machine: needs qemu-system-x86_64, no root",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk probe``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0; 1 where no known kernel is exactly like it, or something could not be told.
    """
    try:
        found = _here() if args.guest is None else _there(args.guest)
    except (knobs.KernelUnavailable, stepper.Disturbed, WorkerDied) as reason:
        raise KsmwalkError(report.printable(str(reason))) from None
    told = probe.summary(found)
    if args.json:
        report.print_json(told)
    else:
        show(Screen(), found)
    return FINE if told["exactly"] else FAILED


def _here() -> probe.Probe:
    if reason := knobs.unusable():
        raise knobs.KernelUnavailable(reason)
    with stepper.session(knobs.to_stderr, _WAIT) as session:
        found = probe.probe(session)
    with knobs.taken(knobs.to_stderr, _WAIT):
        probe.by_time(found)
    return found


def _there(image: Path) -> probe.Probe:
    with guest.guest(image, say=knobs.to_stderr) as machine:
        return probe.of_guest(machine)


def show(screen: Screen, found: probe.Probe) -> None:
    """Write what was found out."""
    profile, switches = found.profile, kernels.SWITCHES
    differing = found.differing(profile)
    like = "answers like" if not differing else "is nearest to"
    screen.paragraph(f"This kernel, {report.printable(found.release)}, {like} {profile.version} (seen in {profile.seen}).")
    if found.named and found.named != profile.version:
        screen.paragraph(f"By its name {found.named} would be expected.")
    screen.line()
    if found.on:
        screen.table(TABLE, [(one.name or "", text) for one, text in switches.items() if one in found.on])
    else:
        screen.paragraph("It does nothing otherwise than 6.18.44.")
    for one in differing:
        has = "has" if one in found.on else "has not"
        screen.paragraph(f"Otherwise than {profile.version} it {has} {one.name}: {switches[one]}.")
    for one, why in found.unknown.items():
        screen.paragraph(f"{one.name} could not be told: {why}.")
