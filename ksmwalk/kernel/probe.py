"""Which of the known kernels this machine's is most like, found out by what it answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import kernels
from ..host.host import Host
from ..kernels import Profile
from ..layout import Switch
from ..proc.frames import bits_lie
from ..scenarios.compare import as_shown, first_difference
from ..scenarios.format import Scenario
from ..scenarios.ops import MERGE_ANY, MOVING
from ..scenarios.records import COUNTERS, STATS, Record
from ..scenarios.replay import Replay
from . import knobs
from .fullscan import timed_scans
from .session import Session
from .telltales import TELLTALES

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["Probe", "by_time", "decide", "look", "of_guest", "probe", "summary"]

#: bytes of the area with one page that is scanned and unmerged, and how long either takes at least who goes address by
#: address: unmerging, four million addresses, 33 ms on the fastest machine seen; by ranges it takes microseconds
_GIANT = 16 << 30
_EACH_SECONDS = 0.1
_UNMERGE_SECONDS = 0.005
_PATIENCE = 60.0
_FRAMES = 1 << 13

#: a process with one page in a giant area: says when it is there, then how long unmerging it took
_PROGRAM = f"""
import mmap, sys, time
area = mmap.mmap(-1, {_GIANT}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
area.madvise(15)
area[{_GIANT} // 2] = 1
area.madvise(12)
print("there", flush=True)
sys.stdin.readline()
best = 1e9
for _ in range(3):
    area.madvise(12)
    start = time.monotonic()
    area.madvise(13)
    best = min(best, time.monotonic() - start)
print(best, flush=True)
sys.stdin.readline()
"""


@dataclass
class Probe:
    """What was found out.

    Attributes
    ----------
    release : str
        The kernel's own name.
    named : str
        The version known by that name, or the nearest to it; empty where none is.
    on, off : set of Switch
        Switches that it was seen to have, and not to have.
    unknown : dict of Switch to str
        Those that could not be told, with the reason.
    """

    release: str
    named: str = ""
    on: set[Switch] = field(default_factory=set)
    off: set[Switch] = field(default_factory=set)
    unknown: dict[Switch, str] = field(default_factory=dict)

    @property
    def profile(self) -> Profile:
        """The known kernel that answers most like it: the one its name says, if none does better."""
        known = [*self.on, *self.off]
        switches = Switch(sum(self.on))
        nearest = kernels.nearest(switches, known)
        named = kernels.PROFILES.get(self.named)
        if named is not None and not len(self.differing(named)) > len(self.differing(nearest)):
            return named
        return nearest

    def differing(self, profile: Profile) -> list[Switch]:
        """Switches in which it is otherwise than a profile."""
        seen = {one: one in self.on for one in (*self.on, *self.off)}
        return [one for one in Switch if one in seen and seen[one] != bool(profile.switches & one)]

    def told(self, switch: Switch, on: bool) -> None:
        """Note what was seen."""
        (self.on if on else self.off).add(switch)
        (self.off if on else self.on).discard(switch)
        self.unknown.pop(switch, None)


def _moves(scenario: Scenario) -> bool:
    return any(op[0] in MOVING for op in scenario.ops)


def _model(scenario: Scenario, switches: Switch) -> list[Record]:
    """What a kernel with these switches answers that shows everything."""
    nodes = 2 if _moves(scenario) else 1
    host = Host(nodes * _FRAMES, nodes)
    with host.world:
        ctl = host.world.arrays["ctl"]
        ctl["kernel"] = int(ctl["kernel"][0]) & ~sum(Switch) | int(switches)
    return list(Replay(scenario, host).records())


def decide(
    found: Probe, answers: dict[Switch, list[Record]], ignore: Collection[str] = (), start: int = 0, pages: bool = True
) -> None:
    """Tell each switch from what a kernel answered to its scenario: as the model does with it, or without it.

    Scenarios touch on more switches than their own, so what was found out is used for the others, until nothing changes.

    Parameters
    ----------
    found : Probe
        Told what was seen.
    answers : dict of Switch to list of records
        For switches of `TELLTALES`.
    ignore : collection of str
        What the kernel does not show: counters, statistics, ``t``.
    start : int
        Switches that are taken for granted at first.
    pages : bool
        Whether pages can be told apart in parts of huge pages that were split.
    """
    missing = {name for name in COUNTERS if name in ignore}
    stats = [name for name in STATS if name not in ignore]
    switches = Switch(start)
    for _ in range(len(answers) + 1):
        before = switches
        for switch, real in answers.items():
            leave = {*ignore, *(() if pages or "hugepage" not in str(TELLTALES[switch].ops) else ("p",))}
            want = list(as_shown(real, missing, stats, "t" not in ignore))
            same = []
            for on in (True, False):
                made = _model(TELLTALES[switch], switches | switch if on else switches & ~switch)
                made = list(as_shown(made, missing, stats, "t" not in ignore))
                same.append(first_difference(want, made, leave) is None)
            if same[0] != same[1]:
                found.told(switch, same[0])
                switches = switches | switch if same[0] else switches & ~switch
            elif switch not in found.on | found.off:
                found.unknown[switch] = "neither answer" if not same[0] else "both answers are the same"
        if switches == before:
            break


def probe(session: Session) -> Probe:
    """Ask the machine's KSM, taken, and return what it answers; `by_time` tells the rest.

    Parameters
    ----------
    session : Session

    Returns
    -------
    Probe
    """
    name = os.uname()
    try:
        full = kernels.full_version(name.release, name.version)
    except ValueError:
        full = ""
    return _by_answers(session, name.release, full, bits_lie())


def of_guest(guest: Guest) -> Probe:
    """Ask the KSM of an emulated machine, and measure it, and return what it is like.

    Parameters
    ----------
    guest : Guest

    Returns
    -------
    Probe

    Raises
    ------
    KernelUnavailable
        The guest has ended, or does not answer.
    """
    look = guest.look()
    found = _by_answers(guest, guest.release, guest.version, look["lies"])
    for name, on in look["timed"].items():
        found.told(Switch[name], on)
    found.unknown |= {Switch[name]: why for name, why in look["unknown"].items()}
    return found


def look() -> dict[str, Any]:
    """What `of_guest` wants to know besides answers to scenarios, as plain data; KSM must be taken."""
    lying, found = bits_lie(), Probe("")
    by_time(found)
    timed = {one.name: one in found.on for one in (*found.on, *found.off)}
    return {"lies": lying, "timed": timed, "unknown": {one.name: why for one, why in found.unknown.items()}}


def _by_answers(session: Session | Guest, release: str, full: str, lying: bool | None) -> Probe:
    found = Probe(release)
    start = Switch(0)
    try:
        nearest = kernels.find(full)
        found.named, start = nearest.profile.version, nearest.profile.switches
    except ValueError:
        pass
    found.told(Switch.NO_SMART_SCAN, "smart_scan" in session.missing)
    found.told(Switch.NO_MERGE_ANY, any(MERGE_ANY in what for what in session.left_out))
    if lying is None:
        found.unknown[Switch.BITS_LIE] = "no page of our own could be looked at"
    else:
        found.told(Switch.BITS_LIE, lying)
    answers = {}
    for switch, scenario in TELLTALES.items():
        fitted = session.fit(scenario)
        if fitted is None and _moves(scenario):
            continue      # of no account on one NUMA node
        if fitted is None:
            found.unknown[switch] = session.lacks(scenario) or "can't be run here"
        else:
            answers[switch] = session.record(fitted)
    # where all anonymous pages look like KSM's, events tell which ones are
    decide(found, answers, session.ignore, start, not lying or "t" not in session.ignore)
    return found


def by_time(found: Probe) -> None:
    """Tell by the time of one full scan, and of unmerging, whether it goes address by address; KSM must be taken.

    Parameters
    ----------
    found : Probe
        Told what was seen.
    """
    knobs.reset()
    giant = subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert giant.stdin is not None and giant.stdout is not None
    try:
        if giant.stdout.readline() != "there\n":
            found.unknown |= dict.fromkeys((Switch.SCAN_EACH, Switch.UNMERGE_RANGE), "no room for a giant area")
            return
        timed = timed_scans(1, 1000, _PATIENCE, giant.kill)
        found.told(Switch.SCAN_EACH, not timed.finished or timed.seconds[0] > _EACH_SECONDS)
        if not timed.finished:
            found.unknown[Switch.UNMERGE_RANGE] = "its scans take too long"
            return
        giant.stdin.write("\n")
        giant.stdin.flush()
        found.told(Switch.UNMERGE_RANGE, float(giant.stdout.readline()) < _UNMERGE_SECONDS)
    finally:
        giant.kill()
        giant.communicate()


def summary(found: Probe) -> dict[str, Any]:
    """What was found out as plain data."""
    profile = found.profile
    return {
        "release": found.release,
        "nearest": profile.version,
        "exactly": not found.differing(profile) and not found.unknown,
        "on": [one.name for one in Switch if one in found.on],
        "off": [one.name for one in Switch if one in found.off],
        "unknown": {one.name: why for one, why in found.unknown.items()},
        "differs_from_nearest": [one.name for one in found.differing(profile)],
    }
