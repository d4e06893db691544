"""Tunables from an estimate put into the machine's KSM, all or none of them, and taken back."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..gate import shown
from ..ksm import sysfs
from ..layout import PAGE_SIZE
from ..proc import processes
from ..proc.ksmstate import KsmState, default_text, read_ksm_state
from ..proc.maps import parse_smaps
from . import applied, knobs, signals
from .applied import Applied
from .knobs import KernelUnavailable
from .marking import kernel_version

#: what stands for the machine's root directory in all that is read
ROOT = Path("/")
#: nanoseconds for 4 KiB of a mergeable area when everything is unmerged, present or not, as measured on Linux 6.18
UNMERGE_NS = (64, 80)
#: the first series that were seen to pass over what is not present
_BY_RANGE = ((6, 19), (7, 1))
# who else sets these tunables, as it sees fit
_TUNERS = ("ksmtuned", "ksmtuned.sh")


class Refused(KernelUnavailable):
    """Something can't be applied or undone as things are; nothing has been changed, the text says what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """A tunable and what it is to be.

    Attributes
    ----------
    name : str
    old, new : str
    """

    name: str
    old: str
    new: str

    @property
    def command(self) -> str:
        """The same for a shell."""
        return f"echo {self.new} > {knobs.KSM / self.name}"


# ---------------------------------------------------------------- what to set


def wanted_tunables(estimate: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, str]:
    """Say what the tunables are to be.

    Parameters
    ----------
    estimate : mapping
        As `ksmwalk estimate --json` prints it: `knobs` are those that it was made with, of its `advice` the `best` setting.
    given : mapping of str to object
        What is asked for beside it, by name.

    Returns
    -------
    dict of str to str
        All but `run`. advisor_mode only where it is given: an estimate has none.

    Raises
    ------
    ValueError
        A tunable that KSM has not got, or pages_to_scan beside the advisor, which sets that.
    OSError
        A value that the kernel would refuse, with its errno.
    """
    if "run" in given:
        raise ValueError("--set run: apply starts KSM itself, as the last thing, and --undo stops it")
    values: dict[str, object] = {}
    for name, value in (estimate.get("knobs") or {}).items():
        if name in sysfs.KNOBS and name not in ("run", "advisor_mode"):
            values[name] = value
    best = (estimate.get("advice") or {}).get("best") or {}
    values |= {name: best[name] for name in ("pages_to_scan", "sleep_millisecs") if name in best}
    values |= given
    if str(values.get("advisor_mode", "none")).strip() != "none":
        if "pages_to_scan" in given:
            raise ValueError(f"--set pages_to_scan: with advisor_mode {shown(values['advisor_mode'])} the advisor sets it")
        values.pop("pages_to_scan", None)
    return {name: _text(name, value) for name, value in values.items()}


def _text(name: str, value: object) -> str:
    """A value as the tunable's file will show it."""
    if name not in sysfs.KNOBS:
        raise ValueError(f"{shown(name)}: KSM has no such tunable; it has {', '.join(sysfs.KNOBS)}")
    try:
        number = sysfs.KNOBS[name].read(value)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return str(sysfs.KNOBS[name].show(number))


def changes(wanted: Mapping[str, str], state: KsmState) -> list[Change]:
    """The tunables that differ, in the order in which the kernel takes them; `run` at the end, where it is not 1.

    Parameters
    ----------
    wanted : mapping of str to str
        From `wanted_tunables`. What this kernel has not got and would be as every kernel is without it is left out.
    state : KsmState

    Returns
    -------
    list of Change

    Raises
    ------
    ValueError
        This kernel has no such tunable.
    """
    values = {"run": "1"}
    for name, value in wanted.items():
        if name in state.knobs:
            values[name] = value
        elif value != default_text(name):
            raise ValueError(f"{name} = {value}: this kernel has no such tunable")
    now = state.knobs
    differ = {name: value for name, value in values.items() if now.get(name) != value}
    if "advisor_mode" in differ and "pages_to_scan" in values:
        # switching the advisor off sets this anew
        differ["pages_to_scan"] = values["pages_to_scan"]
    return [Change(name, now.get(name, "?"), value) for name, value in applied.ordered(differ, now.get("advisor_mode", "none"))]


def obstacles(wanted: Mapping[str, str], state: KsmState) -> list[str]:
    """Why the kernel would refuse some of them as things are, and what to do about it.

    Parameters
    ----------
    wanted : mapping of str to str
    state : KsmState

    Returns
    -------
    list of str
        Sentences without a full stop; empty if nothing stands against it.

    Models: EINVAL and EBUSY of /sys/kernel/mm/ksm of Linux 6.18. Differs: nothing known.
    """
    found = []
    now = state.knobs
    advisor = now.get("advisor_mode", "none")
    pages = wanted.get("pages_to_scan")
    if advisor != "none" and "advisor_mode" not in wanted and pages is not None and pages != now.get("pages_to_scan"):
        found.append(
            f"pages_to_scan can't be set while the advisor is on (advisor_mode is {advisor}): switch it off with "
            f"--set advisor_mode=none, or let it do its work: --set advisor_mode={advisor}"
        )
    shared = state.counters.get("pages_shared", 0)
    for name in applied.ONLY_UNSHARED:
        if shared and name in wanted and name in now and wanted[name] != now[name]:
            found.append(
                f"{name} can't be changed from {now[name]} to {wanted[name]} while pages are shared (pages_shared is "
                f"{shared:,}): leave it with --set {name}={now[name]}, or unmerge everything first: echo 2 > {knobs.KSM / 'run'}"
            )
    return found


def tuners() -> list[int]:
    """Processes that set KSM's tunables by themselves: ksmtuned."""
    found = []
    for pid in processes.every_pid():
        with contextlib.suppress(OSError):
            if processes.comm(pid) in _TUNERS:
                found.append(pid)
    return found


# ---------------------------------------------------------------- apply


def apply(
    wanted: Mapping[str, str], prediction: dict[str, dict[str, float]], say: Callable[[str], None]
) -> tuple[list[Change], Applied]:
    """Write tunables and start KSM: all of it or nothing.

    Parameters
    ----------
    wanted : mapping of str to str
        From `wanted_tunables`.
    prediction : dict
        Kept with it.
    say : callable of str
        Told what a killed run had left, which is put back first.

    Returns
    -------
    (list of Change, Applied)
        What was changed now; all that is applied, with what was before.

    Raises
    ------
    Refused
        There are obstacles, or the kernel refused a value: what had been written is put back.
    KernelUnavailable
        No root, no KSM, or a test run has it.
    """
    if reason := knobs.unusable():
        raise KernelUnavailable(reason)
    with signals.orderly(), knobs.lock(say, 0), signals.held():
        knobs.put_back_after_killed(say)
        state = read_ksm_state(ROOT, processes=False)
        if against := obstacles(wanted, state):
            raise Refused("; ".join(against))
        todo = changes(wanted, state)
        before = applied.find()
        here = _former(todo, state)
        if not todo and before is None:
            return [], Applied({}, {}, prediction)
        # of two applies in a row the first one knows what was before
        now = Applied({"run": state.knobs.get("run", "0"), **here}, {one.name: one.new for one in todo}, prediction)
        if before is not None:
            now.former |= before.former
            now.wrote = before.wrote | now.wrote
        _write_all(todo, here, now, before)
        return todo, now


def _former(todo: list[Change], state: KsmState) -> dict[str, str]:
    """What the tunables hold that will change, by themselves or with others."""
    names = {one.name for one in todo}
    if "advisor_mode" in names:
        names.add("pages_to_scan")
    return {name: state.knobs[name] for name in names if name in state.knobs}


def _write_all(todo: list[Change], here: Mapping[str, str], now: Applied, before: Applied | None) -> None:
    """Write tunables, or put them back as they are `here`."""
    # whoever finds half of it, if this is killed, puts it back: `undo` all, `taken` that of a first apply
    now.complete = before is not None
    applied.keep(now)
    try:
        for change in todo:
            if change.name == "run":
                now.complete = True
                applied.keep(now)
            if error := knobs.write(change.name, change.new):
                raise Refused(f"{knobs.KSM / change.name} refuses {change.new}: {os.strerror(-error)}")
        if not now.complete:
            now.complete = True
            applied.keep(now)
    except (Refused, OSError) as error:
        left = applied.put_back(here, knobs.read, knobs.write)
        if not left:
            applied.keep(before) if before is not None else applied.forget()
        text = f"{error}; what had been written before is put back" + (" but for:" if left else "")
        raise Refused("\n  ".join([text, *left])) from None


# ---------------------------------------------------------------- undo


@dataclass(slots=True)
class UnmergeCost:
    """What it takes to unmerge everything now.

    Attributes
    ----------
    area_bytes : int
        Mergeable areas of all processes, present or not.
    seconds : (float, float)
        For going through them address by address, with KSM's mutex held.
    found_bytes : int
        Memory that must be found: each mapping gets a page of its own again.
    available_bytes : int or None
        MemAvailable; None where it can't be read.
    by_range : bool
        Whether this kernel was seen to pass over what is not present: then it takes much less.
    refused : int
        Processes that could not be looked into.

    Models: run = 2 of Linux 6.18, measured. Differs: time for the copies themselves is not in it.
    """

    area_bytes: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    found_bytes: int = 0
    available_bytes: int | None = None
    by_range: bool = False
    refused: int = 0

    @property
    def fits(self) -> bool:
        """Whether the memory is there."""
        return self.available_bytes is None or self.found_bytes <= self.available_bytes


def unmerge_cost(state: KsmState | None = None, also: Iterable[int] = ()) -> UnmergeCost:
    """Say what unmerging everything would take.

    Parameters
    ----------
    state : KsmState, optional
        With its processes; read now by default.
    also : iterable of int
        Processes as if they were marked as a whole.

    Returns
    -------
    UnmergeCost
    """
    state = state or read_ksm_state(ROOT)
    cost = UnmergeCost(refused=state.refused, by_range=_passes_over_holes(os.uname().release))
    whole = set(also)
    for pid in whole | {one.pid for one in state.processes if one.marked}:
        try:
            areas = parse_smaps((ROOT / f"proc/{pid}/smaps").read_bytes())
        except (OSError, ValueError):
            continue  # gone by now
        cost.area_bytes += sum(
            area.end - area.start for area in areas if area.mergeable or (pid in whole and not area.not_compatible)
        )
    low, high = (cost.area_bytes / PAGE_SIZE * ns / 1e9 for ns in UNMERGE_NS)
    cost.seconds = (low, high)
    counters = state.counters
    cost.found_bytes = (counters.get("pages_sharing", 0) + counters.get("ksm_zero_pages", 0)) * PAGE_SIZE
    with contextlib.suppress(OSError):
        found = re.search(rb"^MemAvailable:\s+(\d{1,15}) kB", (ROOT / "proc/meminfo").read_bytes(), re.M)
        cost.available_bytes = int(found[1]) << 10 if found else None
    return cost


def _passes_over_holes(release: str) -> bool:
    version = kernel_version(release)
    return version == _BY_RANGE[0] or version >= _BY_RANGE[1]


@dataclass(slots=True)
class Undone:
    """What `undo` did.

    Attributes
    ----------
    changes : list of Change
        Tunables put back.
    failed : list of str
        What the kernel refused.
    overruled : list of Change
        Of these, what somebody else had set since: from what was applied (old) to what it was then (new).
    cost : UnmergeCost or None
        If everything was unmerged.
    notes : list of str
    """

    changes: list[Change] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    overruled: list[Change] = field(default_factory=list)
    cost: UnmergeCost | None = None
    notes: list[str] = field(default_factory=list)


def undo(
    say: Callable[[str], None],
    *,
    unmerge: bool = False,
    force: bool = False,
    before_unmerging: Callable[[UnmergeCost], object] = lambda cost: None,
) -> Undone:
    """Put every tunable back that `apply` has changed.

    Parameters
    ----------
    say : callable of str
        Told what a killed run had left.
    unmerge : bool
        Unmerge everything, whoever merged it.
    force : bool
        Unmerge though the memory for it is not there.
    before_unmerging : callable of UnmergeCost
        Told what it will take.

    Returns
    -------
    Undone

    Raises
    ------
    Refused
        Nothing is applied; tunables that can't be put back while pages are shared; not enough memory to unmerge.
    KernelUnavailable
        No root, no KSM, or a test run has it.
    """
    if reason := knobs.unusable():
        raise KernelUnavailable(reason)
    with signals.orderly(), knobs.lock(say, 0):
        left = applied.find()
        unfinished = left is not None and not left.complete
        knobs.put_back_after_killed(say)
        what = applied.find()
        if unfinished and what is None:
            return Undone(notes=["what an apply had left that was killed is put back; KSM had not been started"])
        if what is None:
            raise Refused("nothing is applied: no apply has changed this machine's KSM since it was started, or it is undone")
        return _undo(what, unmerge, force, before_unmerging)


def _undo(what: Applied, unmerge: bool, force: bool, before_unmerging: Callable[[UnmergeCost], object]) -> Undone:
    result = Undone()
    state = read_ksm_state(ROOT, processes=unmerge)
    shared = state.counters.get("pages_shared", 0)
    stuck = [name for name in applied.ONLY_UNSHARED if name in what.former and state.knobs.get(name) != what.former[name]]
    if stuck and shared and not unmerge:
        raise Refused(
            f"{' and '.join(stuck)} can't be put back while pages are shared (pages_shared is {shared:,}): "
            f"--undo --unmerge unmerges them first"
        )
    former = dict(what.former)
    if former.get("run") == "2" and not unmerge:
        former["run"] = "0"
        result.notes.append("run was 2 before; it is 0 now, which stops KSM as well, but leaves merged what is merged")
    result.overruled = [
        Change(name, value, state.knobs[name])
        for name, value in what.wrote.items()
        if state.knobs.get(name, value) != value and not (name == "pages_to_scan" and state.knobs.get("advisor_mode") != "none")
    ]
    if unmerge:
        result.cost = cost = unmerge_cost(state)
        if not cost.fits and not force:
            raise Refused(
                f"unmerging needs {cost.found_bytes >> 10:,} KiB, and {(cost.available_bytes or 0) >> 10:,} KiB are available "
                f"(MemAvailable): end something first, or say --force"
            )
        before_unmerging(cost)
        # Ctrl-C may break this off: the journal is there still
        if error := knobs.write("run", 2):
            raise Refused(f"{knobs.KSM / 'run'} refuses 2: {os.strerror(-error)}; the tunables are as they were")
        if former.get("run") == "1":
            result.notes.append("KSM was running before apply, and runs again: what is marked will be merged again")
    with signals.held():
        result.failed = applied.put_back(former, knobs.read, knobs.write)
        if not result.failed:
            applied.forget()
    after = read_ksm_state(ROOT, processes=False)
    result.changes = [
        Change(name, state.knobs[name], after.knobs[name])
        for name in former
        if name in state.knobs and name in after.knobs and state.knobs[name] != after.knobs[name]
    ]
    return result
