"""What `ksmwalk apply` goes by: an estimate, checked, and what comes of it as plain data."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..kernel import apply as kernel
from ..kernel import marking
from ..kernel import state as kernel_state
from ..kernel.knobs import KernelUnavailable
from ..kernel.marking import Marking
from ..ksm import sysfs
from ..layout import PAGE_SIZE
from ..proc.ksmstate import KsmState, read_ksm_state
from .explaining import prediction_of, read_estimate
from .report import printable

_ROW = {
    "pid": int, "name": str, "freed_bytes": int, "ksm_rmap_items": int, "cgroup": str, "container": str, "command": list,
}  # fmt: skip
_SETTING = ("pages_to_scan", "sleep_millisecs")


def is_estimate(word: str) -> bool:
    """Whether a word is a file that `ksmwalk estimate --json` may have printed: JSON by its name or its first letter."""
    if word == "-" or word.endswith(".json"):
        return True
    try:
        if not stat.S_ISREG(os.stat(word).st_mode):
            return False
        with open(word, "rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except (OSError, ValueError):
        return False


def read_checked(path: str) -> dict[str, Any]:
    """Read what `ksmwalk estimate --json` printed, and see that what `apply` goes by is what it should be.

    Raises
    ------
    ValueError
        It is no such thing; names the file and the field.
    OSError
        It can't be read.
    """
    name = "standard input" if path == "-" else printable(path)
    data = read_estimate("/dev/stdin" if path == "-" else path)

    def wrong(what: str, value: object) -> ValueError:
        return ValueError(f"{name}: {what}: {printable(repr(value))[:60]}")

    def check(good: bool, what: str, value: object) -> None:
        if not good:
            raise wrong(what, value)

    knobs = data.get("knobs")
    check(isinstance(knobs, dict), '"knobs" is no object', knobs)
    for knob, value in (knobs or {}).items():
        known = knob in sysfs.KNOBS and (_whole(value) or isinstance(value, str))
        check(known, f'"knobs"."{printable(knob)[:40]}" is no value of a tunable', value)
    rows = data.get("by_process")
    check(isinstance(rows, list), '"by_process" is no list', rows)
    for at, row in enumerate(rows or ()):
        check(isinstance(row, dict), f'"by_process"[{at}] is no object', row)
        for key, kind in _ROW.items():
            value = row.get(key)
            good = _whole(value) if kind is int else isinstance(value, kind)
            check(good, f'"by_process"[{at}]."{key}" is missing or no {kind.__name__}', value)
        check(row["pid"] >= 0, f'"by_process"[{at}]."pid" is no process', row["pid"])
        words = row["command"]
        check(all(isinstance(word, str) for word in words), f'"by_process"[{at}]."command" is no list of words', words)
    _check_advice(data.get("advice"), check)
    return data


def _check_advice(advice: Any, check: Any) -> None:
    if advice is None:
        return
    check(isinstance(advice, dict), '"advice" is no object', advice)
    check(isinstance(advice.get("worth"), bool), '"advice"."worth" is missing or neither true nor false', advice.get("worth"))
    check(isinstance(advice.get("why"), str), '"advice"."why" is missing or no text', advice.get("why"))
    best = advice.get("best")
    check(best is None or isinstance(best, dict), '"advice"."best" is no object', best)
    for name in _SETTING if best is not None else ():
        check(_whole(best.get(name)), f'"advice"."best"."{name}" is missing or no number', best.get(name))
    rows = advice.get("processes")
    good = isinstance(rows, list) and all(isinstance(row, dict) and _whole(row.get("pid")) for row in rows)
    check(good, '"advice"."processes" is no list of processes', rows)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64


# ---------------------------------------------------------------- the plan


@dataclass(slots=True)
class Plan:
    """What would be done.

    Attributes
    ----------
    wanted : dict of str to str
        What the tunables are to be.
    changes : list of kernel.apply.Change
        In the order in which the kernel takes them.
    marks : list of Marking
    prediction : dict
    worth : bool
        Whether it is worth it by the estimate's own advice.
    why : str
    obstacles, notes : list of str
        Sentences without a full stop.
    state : KsmState
    undo_cost : kernel.apply.UnmergeCost
        Of unmerging once all of it is marked, and merged as predicted.
    """

    wanted: dict[str, str]
    changes: list[kernel.Change]
    marks: list[Marking]
    prediction: dict[str, dict[str, float]]
    worth: bool
    why: str
    state: KsmState
    undo_cost: kernel.UnmergeCost
    obstacles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_plan(data: Mapping[str, Any], name: str, given: Mapping[str, object]) -> Plan:
    """Say what an estimate comes to on this machine.

    Parameters
    ----------
    data : mapping
        From `read_checked`, or of an estimate just made.
    name : str
        What it is called in errors.
    given : mapping
        Tunables that were asked for beside it.

    Raises
    ------
    KernelUnavailable
        This kernel has no KSM.
    ValueError, OSError
        See `kernel.apply.wanted_tunables` and `kernel.apply.changes`.
    """
    state = read_ksm_state(kernel.ROOT)
    if not state.available:
        raise KernelUnavailable("this kernel has no KSM (no /sys/kernel/mm/ksm)")
    wanted = kernel.wanted_tunables(data, given)
    advice = data.get("advice") or {}
    here = _of_this_machine(data)
    chosen = {row["pid"] for row in advice["processes"]} if advice.get("processes") else None
    marks = marking.markings(data["by_process"], chosen, here is not False)
    prediction = prediction_of(dict(data), name)
    cost = kernel.unmerge_cost(state, [pid for one in marks for pid in one.pids] if here is not False else ())
    merged = sum(prediction["expected"].get(name, 0) for name in ("pages_sharing", "ksm_zero_pages"))
    cost.found_bytes = max(cost.found_bytes, round(merged) * PAGE_SIZE)
    plan = Plan(
        wanted, kernel.changes(wanted, state), marks, prediction, advice.get("worth", bool(marks)),
        advice.get("why", "" if marks else "no process frees more than its rmap_items take"), state, cost,
        kernel.obstacles(wanted, state), marking.limits(marks, os.uname().release, marking.systemd_version() if marks else None),
    )  # fmt: skip
    if who := kernel_state.held_by():
        plan.notes.append(f"{who} drives KSM: the tunables shown are not those of the machine at rest, but of that test run")
    if here is False:
        plan.notes.append(
            f"the estimate is of another machine ({printable(data['source']['machine']['hostname'])[:64]}): processes are "
            "meant by name, and what is marked is not looked up"
        )
    rows = len(data["by_process"])
    if chosen is not None and len(chosen) < rows:
        plan.notes.append(f"the prediction is of all {rows} processes, of which {len(chosen)} are worth marking")
    plan.notes += [
        f"process {pid} (ksmtuned) sets KSM's tunables as it sees fit: stop it first, with systemctl disable --now ksmtuned"
        for pid in kernel.tuners()
    ]
    return plan


def _of_this_machine(data: Mapping[str, Any]) -> bool | None:
    """Whether an estimate is of this machine; None if it doesn't say."""
    source = data.get("source")
    machine = source.get("machine") if isinstance(source, dict) else None
    host = machine.get("hostname") if isinstance(machine, dict) else None
    return None if not isinstance(host, str) else host == os.uname().nodename


# ---------------------------------------------------------------- plain data


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain data; names as text that can be printed."""
    return {
        "worth": plan.worth,
        "why": plan.why,
        "settings": [change_json(one) for one in plan.changes],
        "mark": [
            {
                **dataclasses.asdict(one), "what": printable(one.what), "unmarked": len(one.pids) - one.marked,
                "commands": [printable(words) for words in one.commands],
            }
            for one in plan.marks
        ],
        "obstacles": plan.obstacles,
        "notes": plan.notes,
        "predicted": plan.prediction,
        "unmerge_cost": cost_json(plan.undo_cost),
        "applied": False,
    }  # fmt: skip


def change_json(one: kernel.Change) -> dict[str, Any]:
    """A change of a tunable as plain data."""
    return {"name": one.name, "now": one.old, "then": one.new, "command": one.command}


def cost_json(cost: kernel.UnmergeCost) -> dict[str, Any]:
    """What unmerging takes as plain data."""
    return {**dataclasses.asdict(cost), "seconds": list(cost.seconds), "fits": cost.fits}
