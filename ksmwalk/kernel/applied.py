"""The journal of `apply`: what KSM's tunables held before it, kept until it is undone, and how they are put back.

It lies beside the lock (`state.DIRECTORY`), so a restart forgets it, as it does the tunables themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ksm import sysfs
from . import state

JOURNAL = "apply.json"
#: refused by the kernel while pages are shared
ONLY_UNSHARED = ("max_page_sharing", "merge_across_nodes")


@dataclass(slots=True)
class Applied:
    """What was applied.

    Attributes
    ----------
    former : dict of str to str
        What the tunables held that were changed, by name; with advisor_mode also pages_to_scan, with which that plays.
    wrote : dict of str to str
        What they were set to.
    prediction : dict
        Counters of the estimate: expected, lower, upper.
    complete : bool
        Whether all of them were written; if not, `run` was not yet. Whoever has the lock and sees False knows that the
        one who wrote it was killed.
    pid : int
    at : float
        Seconds since 1970.
    """

    former: dict[str, str]
    wrote: dict[str, str]
    prediction: dict[str, dict[str, float]] = field(default_factory=dict)
    complete: bool = False
    pid: int = 0
    at: float = 0.0


def keep(what: Applied) -> None:
    """Write the journal; it is on the disk when this returns, whole or not at all."""
    state.write_record(
        JOURNAL,
        {
            "former": what.former, "wrote": what.wrote, "prediction": what.prediction, "complete": what.complete,
            "at": time.time(),
        },
    )  # fmt: skip


def find() -> Applied | None:
    """Return what is applied; None where nothing is, or the journal is damaged or of before the machine was started."""
    data = state.read_record(JOURNAL)
    if data is None:
        return None
    try:
        former, wrote = (_tunables(data[name]) for name in ("former", "wrote"))
        prediction = data["prediction"] if isinstance(data["prediction"], dict) else {}
        return Applied(former, wrote, prediction, data["complete"] is True, int(data["pid"]), float(data["at"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _tunables(data: Any) -> dict[str, str]:
    return {name: str(value) for name, value in data.items() if name in sysfs.KNOBS}


def forget() -> None:
    """Remove the journal: all is as it was."""
    state.remove_record(JOURNAL)


# ---------------------------------------------------------------- the order of writes


def ordered(values: Mapping[str, str], advisor: str) -> list[tuple[str, str]]:
    """Tunables in an order in which the kernel takes them.

    Parameters
    ----------
    values : mapping of str to str
    advisor : str
        advisor_mode as it is now; "none" too where the kernel has no advisor.

    Returns
    -------
    list of (str, str)
        The advisor is off while pages_to_scan is written, and comes after its own limits; pages_to_scan is left out where
        the advisor, which owns it, is on in the end. `run` is the last.

    Models: /sys/kernel/mm/ksm of Linux 6.18. Differs: nothing known.
    """
    finally_on = values.get("advisor_mode", advisor) != "none"
    names = [name for name in sysfs.KNOBS if name in values and name not in ("run", "advisor_mode")]
    steps = [(name, values[name]) for name in names if not (name == "pages_to_scan" and finally_on)]
    if "advisor_mode" in values:
        off = ("advisor_mode", "none")
        steps = [off, *steps] if not finally_on else [*steps, ("advisor_mode", values["advisor_mode"])]
    if "run" in values:
        steps.append(("run", values["run"]))
    return steps


def put_back(former: Mapping[str, str], read: Callable[[str], str], write: Callable[[str, object], int]) -> list[str]:
    """Write tunables back, all that the kernel takes.

    Parameters
    ----------
    former : mapping of str to str
        Without what is not to be written.
    read, write : callable
        `knobs.read`, `knobs.write`.

    Returns
    -------
    list of str
        What could not be put back, with its errno.
    """
    advisor = "none"
    if "advisor_mode" in former or "pages_to_scan" in former:
        try:
            advisor = read("advisor_mode")
        except OSError:
            advisor = "none"
    failed = []
    for name, value in ordered(former, advisor):
        if read(name) != value and (error := write(name, value)):
            failed.append(f"{name} = {value}: {os.strerror(-error)}")
    return failed


def put_back_unfinished(read: Callable[[str], str], write: Callable[[str, object], int], say: Callable[[str], None]) -> bool:
    """Put back what an `apply` left that was killed before it had written everything; the lock must be held.

    Returns
    -------
    bool
        Whether there was such a one. Its journal is gone if all could be put back.
    """
    left = find()
    if left is None or left.complete:
        return False
    failed = put_back({name: value for name, value in left.former.items() if name != "run"}, read, write)
    if not failed:
        forget()
    say(f"an apply that was killed (pid {left.pid}) had left KSM's tunables half changed: they are put back")
    if failed:
        say("\n  ".join(["but for:", *failed]))
    return True
