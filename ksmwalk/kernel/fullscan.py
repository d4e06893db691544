"""Full scans of a process by the machine's real ksmd, timed."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

from . import knobs, trace

SCANS = 5
#: a kernel that looks up one address at a time would take minutes
PATIENCE = 20.0
_LONG = ("4000000000", "4000000001")
_TIME = re.compile(r"\s(\d+\.\d+): ksm_(start|stop)_scan:")


def full_scans(giant, pages: int, patience: float = PATIENCE) -> dict[str, Any]:
    """Let ksmd scan everything that is mergeable some times over, a full scan a batch.

    KSM must be taken (`knobs.taken`) and reset, and `giant` be the only process with mergeable memory.

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
    release = os.uname().release
    knobs.write("pages_to_scan", pages + 1000)
    knobs.write("sleep_millisecs", _LONG[0])
    # every page in every scan; older kernels have no such knob, and do so anyway
    knobs.write("smart_scan", 0)
    with trace.events(lambda text: None) as events:
        if events is not None:
            with contextlib.suppress(OSError):
                # changing the clock empties the buffer
                (events.instance / "trace_clock").write_text("mono")
        cpu = _cpu_seconds()
        scanned = int(knobs.read("pages_scanned"))
        start = time.monotonic()
        knobs.write("run", 1)
        times = []
        for number in range(1, SCANS + 1):
            while int(knobs.read("full_scans")) < number and time.monotonic() - start < patience:
                time.sleep(0.0005)
            if int(knobs.read("full_scans")) < number:
                giant.close()
                knobs.write("run", 0)
                return {"finished": False, "release": release, "waited": time.monotonic() - start}
            now = _cpu_seconds()
            times.append(now - cpu)
            cpu = now
            if number < SCANS:
                knobs.write("sleep_millisecs", _LONG[number % 2])
        knobs.write("run", 0)
        measured_by = "ksmd's CPU time"
        if events is not None and len(traced := _traced(events.instance)) >= SCANS:
            times, measured_by = traced, "trace events"
    return {
        "finished": True,
        "release": release,
        "seconds": statistics.median(times),
        "scans": len(times),
        "measured_by": measured_by,
        "pages_scanned": (int(knobs.read("pages_scanned")) - scanned) // SCANS,
    }


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


def _cpu_seconds() -> float:
    """CPU time of ksmd so far."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if Path(entry.path, "comm").read_text() == "ksmd\n":
                    return int(Path(entry.path, "schedstat").read_text().split()[0]) / 1e9
    return 0.0
