"""A second look at processes that were captured, after ksmd has passed: what it has done, and how fast it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import KsmwalkError
from ..gate import as_int
from ..proc.processes import pinned_bytes
from ..signatures import BoolArray, I64Array
from .contents import MemoryCapture, machine
from .keys import Progress
from .reading import ProcessCapture, capture

_KHUGEPAGED = "/sys/kernel/mm/transparent_hugepage/khugepaged"
_POLL_SECONDS = 0.05


@dataclass(slots=True)
class Later:
    """What became of the pages of one process, by the second look.

    Attributes
    ----------
    still : ndarray of bool, shape (nr_pages,)
        There, no part of another huge page, and neither KSM's nor the zero page.
    moved : ndarray of bool, shape (nr_pages,)
        These, where the frame is another one: a merge that is undone leaves a copy.
    collapsed : ndarray of bool, shape (nr_pages,)
        Part of a huge page, on another frame.
    merged : ndarray of bool, shape (nr_pages,)
        A KSM page.
    """

    still: BoolArray
    moved: BoolArray
    collapsed: BoolArray
    merged: BoolArray


@dataclass(slots=True)
class SecondLook:
    """What was seen after a capture.

    Attributes
    ----------
    ksm : dict of str to str
        The files of /sys/kernel/mm/ksm.
    scanned_per_second : float
        Pages that ksmd visited a second, between the capture's beginning and the second look; 0: not known.
    passes : int
        Whole passes of ksmd between the last reading of the pages and the second look.
    ages : dict of int to float
        Seconds since each process was started.
    pinned : dict of int to int
        Bytes that each process has pinned, as far as the kernel counts that: see `proc.processes.pinned_bytes`.
    khugepaged : dict of str to int
        pages_collapsed, full_scans.
    later : dict of int to Later
        By index in the capture; only where frames could be seen and passes were waited for.
    notes : list of str

    Models: nothing; this is the real machine's own view.
    Differs: contents are not read again: a page that changed in between is not noticed.
    """

    ksm: dict[str, str] = field(default_factory=dict)
    scanned_per_second: float = 0.0
    passes: int = 0
    ages: dict[int, float] = field(default_factory=dict)
    pinned: dict[int, int] = field(default_factory=dict)
    khugepaged: dict[str, int] = field(default_factory=dict)
    later: dict[int, Later] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, index: int) -> Later | None:
        """What became of the pages of a process; None: not looked at again."""
        return self.later.get(index)


def look_again(
    what: MemoryCapture,
    *,
    about: Iterable[int] | None = None,
    passes: int = 0,
    since: float | None = None,
    patience: float = 600.0,
    progress: Progress = lambda what, done, total: None,
) -> SecondLook:
    """Look at captured live processes again, once ksmd has made some passes.

    Parameters
    ----------
    what : MemoryCapture
        Of processes that still run.
    about : iterable of int, optional
        Numbers of the processes whose pages are looked at; by default all.
    passes : int
        Whole passes to wait for; with 0 pages are not looked at again.
    since : float, optional
        time.monotonic() when the capture was begun, for ksmd's speed.
    patience : float
        Seconds to wait at most.
    progress : callable of (str, int, int)
        What is waited for, passes seen, passes in all.

    Returns
    -------
    SecondLook

    Models: see SecondLook. Differs: see SecondLook.
    """
    passes = as_int(passes, "passes", 0, 10_000)
    result = SecondLook()
    if what.machine.get("kind") != "live":
        return result
    if passes:
        _wait(result, passes, patience, progress)
    result.ksm = machine()["ksm"]
    scanned = _file(result.ksm, "pages_scanned") - _file(what.machine.get("ksm", {}), "pages_scanned")
    # of less than two batches no speed can be told
    if since is not None and scanned >= 2 * max(1, _file(result.ksm, "pages_to_scan")):
        result.scanned_per_second = scanned / max(1e-3, time.monotonic() - since)
    wanted = None if about is None else set(about)
    for index, one in enumerate(what.processes):
        if wanted is not None and one.pid not in wanted:
            continue
        if one.identity.started:
            ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
            result.ages[one.pid] = max(0.0, ticks - one.identity.started) / os.sysconf("SC_CLK_TCK")
        with contextlib.suppress(OSError):
            result.pinned[one.pid] = pinned_bytes(one.pid)
        if passes and result.passes:
            _compare(result, index, one)
    for name in ("pages_collapsed", "full_scans"):
        with contextlib.suppress(OSError, ValueError):
            result.khugepaged[name] = int(Path(_KHUGEPAGED, name).read_text())
    return result


def _file(files: dict[str, str], name: str) -> int:
    text = files.get(name, "")
    return int(text) if text.isdigit() else 0


def _wait(result: SecondLook, passes: int, patience: float, progress: Progress) -> None:
    """Wait for whole passes: the one that is under way does not count."""
    first = machine()["ksm"]
    end = time.monotonic() + patience
    while first.get("run") == "1":
        files = machine()["ksm"]
        result.passes = max(0, _file(files, "full_scans") - _file(first, "full_scans") - 1)
        progress("waiting for ksmd's passes", min(result.passes, passes), passes)
        if result.passes >= passes or files.get("run") != "1":
            break
        if time.monotonic() > end:
            result.notes.append(f"ksmd made {result.passes} of {passes} passes in {patience:g} seconds: no longer waited for.")
            break
        time.sleep(_POLL_SECONDS)
    else:
        result.notes.append("KSM does not run: no pass was waited for.")


def _compare(result: SecondLook, index: int, one: ProcessCapture) -> None:
    if one.pfn is None:
        result.notes.append("Frames can't be seen by this user: whether ksmd refuses pages can't be either.")
        return
    try:
        now = capture(one.pid)
    except (OSError, KsmwalkError) as error:
        result.notes.append(f"The second look failed: {getattr(error, 'strerror', None) or error}.")
        return
    if now.pfn is None or now.ksm is None or now.identity.started != one.identity.started:
        return
    place: I64Array = np.searchsorted(now.addr, one.addr)
    there = place < now.nr_pages
    place[~there] = 0
    if now.nr_pages:
        there &= now.addr[place] == one.addr
        moved = there & (now.pfn[place] != one.pfn)
        collapsed = moved & now.huge[place]
        still = there & ~(now.ksm | now.zero)[place] & ~collapsed
        result.later[index] = Later(still, still & moved, collapsed, there & now.ksm[place])
