"""Full scans of processes by the machine's real ksmd, timed: for `ksmwalk demo --kernel` and the benchmarks."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..proc import processes
from . import knobs, signals, trace
from .session import LONG

SCANS = 5
#: a kernel that looks up one address at a time would take minutes
PATIENCE = 20.0
_POLL_SECONDS, _CPU_POLL_SECONDS = 0.0005, 0.005
_TIME = re.compile(r"\s(\d+\.\d+): ksm_(start|stop)_scan:")


@dataclass
class Timed:
    """Full scans one after the other.

    Attributes
    ----------
    seconds : list of float
        Time of each.
    measured_by : str
        ``trace events``, from a scan's start to its stop, or ``ksmd's CPU time`` where there are none.
    finished : bool
        Whether all came to their end.
    waited : float
        Seconds that all took, or that were waited for them.
    pages_scanned : int or None
        In all of them; None where the kernel does not count them.
    """

    seconds: list[float] = field(default_factory=list)
    measured_by: str = "ksmd's CPU time"
    finished: bool = False
    waited: float = 0.0
    pages_scanned: int | None = 0


def visits() -> int | None:
    """Pages scanned since the machine was started; None where the kernel does not count them (before 6.7)."""
    try:
        return int(knobs.read("pages_scanned"))
    except FileNotFoundError:
        return None


def timed_scans(scans: int, pages: int, patience: float, give_up: Callable[[], object] = lambda: None) -> Timed:
    """Let ksmd scan everything that is mergeable some times over, a full scan a batch.

    KSM must be taken (:func:`ksmwalk.kernel.knobs.taken`) and reset; what is to be scanned must be there already, and
    nothing else be mergeable. The knobs `run`, `pages_to_scan` and `sleep_millisecs` are changed, others are not.

    Parameters
    ----------
    scans : int
        How many.
    pages : int
        At least the pages there are.
    patience : float
        Seconds to wait for all scans.
    give_up : callable
        Called if they don't come to their end in that time: ends what is scanned, for then its scan ends too.

    Returns
    -------
    Timed
    """
    knobs.write("pages_to_scan", pages)
    _tick()
    timed = Timed()
    with _stamps() as instance:
        cpu = _cpu_seconds()
        scanned, before = visits(), int(knobs.read("full_scans"))
        start = time.monotonic()
        for number in range(1, scans + 1):
            if number == 1:
                knobs.write("run", 1)
            else:
                _tick()
            while (done := int(knobs.read("full_scans"))) < before + number and time.monotonic() - start < patience:
                time.sleep(_POLL_SECONDS)
            timed.waited = time.monotonic() - start
            if done < before + number:
                give_up()
                knobs.write("run", 0)
                return timed
            now = _cpu_seconds()
            timed.seconds.append(now - cpu)
            cpu = now
        knobs.write("run", 0)
        timed.finished = True
        timed.pages_scanned = None if scanned is None else int(knobs.read("pages_scanned")) - scanned
        if instance is not None and len(traced := _traced(instance)) >= scans:
            timed.seconds, timed.measured_by = traced[:scans], "trace events"
    return timed


def cpu_of_full_scan(
    pages_to_scan: int, sleep_millisecs: int | None = None, patience: float = 60.0, unwatched: float = 0.0
) -> float | None:
    """Let ksmd make one full scan from where it is, and return the CPU time that it took.

    KSM must be taken and stopped, as after :func:`ksmwalk.kernel.knobs.reset` or this function.

    Parameters
    ----------
    pages_to_scan : int
        Visits in a batch.
    sleep_millisecs : int, optional
        Between batches; by default there is to be one batch only.
    patience : float
        Seconds to wait for its end.
    unwatched : float
        Seconds before it is first looked whether it has ended: on an idle machine ksmd wakes up more slowly than on one
        where somebody looks all the time.

    Returns
    -------
    float or None
        Seconds of CPU; None where it did not come to its end in that time.

    Models: nothing; schedstat of ksmd, read while it sleeps. Differs: interrupts that it was disturbed by count too.
    """
    ksmd = processes.kernel_thread("ksmd")
    knobs.write("pages_to_scan", pages_to_scan)
    # out of the wait between two batches into the long one, from which it is woken by `run`
    _tick()
    end = time.monotonic() + patience
    _asleep(ksmd, end)
    if sleep_millisecs is not None:
        knobs.write("sleep_millisecs", sleep_millisecs)
    before, start = int(knobs.read("full_scans")), _cpu_seconds(ksmd)
    knobs.write("run", 1)
    time.sleep(unwatched)
    while int(knobs.read("full_scans")) == before and time.monotonic() < end:
        # it is not its end that is timed, and whoever looks too often takes the processor from it
        time.sleep(_CPU_POLL_SECONDS)
    # takes KSM's mutex: a batch that has begun is over when this returns
    knobs.write("run", 0)
    _asleep(ksmd, end)
    return _cpu_seconds(ksmd) - start if int(knobs.read("full_scans")) > before else None


def _asleep(pid: int | None, end: float) -> None:
    """Wait until a kernel thread sleeps: only then is its CPU time up to date."""
    while pid and time.monotonic() < end and not _asleep_now(pid):
        time.sleep(_POLL_SECONDS)


def _asleep_now(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"S"


def full_scans(giant: Any, pages: int, patience: float = PATIENCE) -> dict[str, Any]:
    """Let ksmd scan a process some times over, every page in every scan.

    KSM must be taken (:func:`ksmwalk.kernel.knobs.taken`) and reset, and `giant` be the only process with mergeable
    memory.

    Parameters
    ----------
    giant : object
        With a `close()` that ends the process: done if ksmd does not come to an end, for then its scan does.
    pages : int
        Pages of the process.
    patience : float
        Seconds to wait for all scans.

    Returns
    -------
    dict
        finished, release, and either waited or seconds (median of a scan), scans, measured_by, pages_scanned.
    """
    # every page in every scan; older kernels have no such knob, and do so anyway
    knobs.write("smart_scan", 0)
    timed = timed_scans(SCANS, pages + 1000, patience, giant.close)
    release = os.uname().release
    if not timed.finished:
        return {"finished": False, "release": release, "waited": timed.waited}
    return {
        "finished": True,
        "release": release,
        "seconds": statistics.median(timed.seconds),
        "scans": len(timed.seconds),
        "measured_by": timed.measured_by,
        "pages_scanned": timed.pages_scanned and timed.pages_scanned // SCANS,
    }


@contextlib.contextmanager
def _stamps() -> Iterator[Path | None]:
    """A tracing instance that notes only where scans start and stop: an event a page would be timed with them."""
    with trace.tracefs(lambda text: None) as root:
        if root is None or not (root / "events" / "ksm").is_dir():
            yield None
            return
        with trace.instance(root) as place:
            switches = [place / "events" / "ksm" / f"ksm_{what}_scan" / "enable" for what in ("start", "stop")]
            try:
                # changing the clock empties the buffer
                with contextlib.suppress(OSError):
                    (place / "trace_clock").write_text("mono")
                for switch in switches:
                    switch.write_text("1")
                yield place
            finally:
                with signals.held():
                    for switch in switches:
                        switch.write_text("0")


def _tick() -> None:
    """Wake ksmd out of the wait between two batches, which only a time that is not the one it waits for does."""
    knobs.write("sleep_millisecs", LONG[knobs.read("sleep_millisecs") == LONG[0]])


def _traced(instance: Path) -> list[float]:
    """Seconds between start and stop of each scan in the trace."""
    seconds, start = [], None
    for at, kind in _TIME.findall((instance / "trace").read_text()):
        if kind == "start":
            start = float(at)
        elif start is not None:
            seconds.append(float(at) - start)
            start = None
    return seconds


def _cpu_seconds(pid: int | None = None) -> float:
    """CPU time of ksmd so far; its number is looked up where it is not known."""
    pid = pid or processes.kernel_thread("ksmd")
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 if pid else 0.0
