"""Estimates held against the real ksmd on live workloads: one is started, estimated, scanned to its end and compared."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import PAGE_SIZE as PAGE
from ..proc import processes
from ..proc.child import ChildError
from ..proc.frames import Kpf, folio_orders, frame_records, has
from ..proc.gather import gather
from ..proc.pagemap import PAGE_IS_FILE, PAGE_IS_PFNZERO, PM_PFN, PM_PRESENT, scan_regions
from ..signatures import U64Array
from . import knobs
from .session import Session
from .workload_yard import WorkloadFailed, Yard
from .workloads import Workload

#: an estimate of processes: of (pids, samples, seconds between two), giving what `Estimate.to_json` does
Predict = Callable[[Sequence[int], int, float], dict[str, Any]]

#: pages a batch, for whole scans
_WHOLE = 10_000_000
#: full scans in which nothing may change, and after how many it is given up
STEADY, _MOST_SCANS = 3, 200
_KPAGEFLAGS = "/proc/kpageflags"
#: the end of the addresses that a process can have
_ADDRESSES = (1 << 47) - PAGE

_COUNTERS = (
    "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages", "stable_node_chains",
    "stable_node_dups", "general_profit",
)  # fmt: skip
UNSETTLED = "pages_unshared + pages_volatile"
#: by process: names of the estimate, which are those of ksm_stat but for the first two
_STAT = {"ksm_rmap_items": "ksm_rmap_items", "ksm_merging_pages": "ksm_merging_pages", "ksm_zero_pages": "ksm_zero_pages"}

#: runs of those that stand still, and seconds that ksmd rests between two scans, as it does by itself: what the processor's
#: caches hold is as it is then
STATIC_RUNS, _REST = 3, int(knobs.DEFAULTS["sleep_millisecs"]) / 1e3
# of the writers
RUNS, WITHIN, BAND = 10, 9, 0.2
_WARM_SECONDS, _SAMPLES, _INTERVAL, _SETTLING_SCANS, _MEASURED_SCANS = 0.5, 3, 0.6, 5, 8
_PATIENCE = 60.0


# ---------------------------------------------------------------- what the machine shows


def frames(pids: Sequence[int]) -> int:
    """Count the frames that processes have for their private memory, the zero page apart.

    Parameters
    ----------
    pids : sequence of int

    Returns
    -------
    int
        Each counted once, however many map it; of a huge page of which a part is mapped all, for it is freed as a whole.

    Raises
    ------
    ProcessExited
        One is gone.

    Models: /proc/PID/pagemap and /proc/kpageflags. Differs: frames of files and of shared memory are left out.
    """
    found: list[U64Array] = []
    for pid in pids:
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        try:
            pages, categories = scan_regions(fd, pid, 0, _ADDRESSES).pages()
            pages = pages[categories & np.uint64(PAGE_IS_FILE | PAGE_IS_PFNZERO) == 0]
            entries = gather(fd, pages, 64, pid) if len(pages) else np.empty(0, np.uint64)
        finally:
            os.close(fd)
        found.append(entries[entries & np.uint64(PM_PRESENT) != 0] & np.uint64(PM_PFN))
    distinct = np.unique(np.concatenate(found)).astype(np.int64) if found else np.empty(0, np.int64)
    fd = os.open(_KPAGEFLAGS, os.O_RDONLY)
    try:
        flags = frame_records(fd, distinct)
        # the huge zero page is no zero page to pagemap
        own = ~has(flags, Kpf.ZERO_PAGE)
        large = own & has(flags, Kpf.COMPOUND_HEAD | Kpf.COMPOUND_TAIL)
        orders = folio_orders(fd, distinct[large]).astype(np.int64)
    finally:
        os.close(fd)
    _, first = np.unique(distinct[large] >> orders << orders, return_index=True)
    return int(np.count_nonzero(own & ~large)) + int((1 << orders[first]).sum())


def memory_free() -> int:
    """Return MemFree of /proc/meminfo, bytes."""
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("MemFree:")[2].split()[0]) << 10


def huge_bytes(pids: Sequence[int]) -> int:
    """Return how much of the memory of processes is mapped as huge pages, counted for each, bytes."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(text.partition("AnonHugePages:")[2].split()[0]) << 10 for text in texts)


def _stat(pid: int) -> dict[str, int]:
    words = [line.split() for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines()]
    values = {word[0].rstrip(":"): word[1] for word in words if len(word) == 2}
    return {name: int(values.get(there, "0")) for name, there in _STAT.items()}


# ---------------------------------------------------------------- ksmd


@dataclass
class Seen:
    """What the kernel shows once nothing changes any more.

    Attributes
    ----------
    values : dict
        Counters, ``rmap_items`` and ``full_scans``: those made until nothing had changed over `STEADY` of them.
    by_process : dict
        Of each pid what ksm_stat says.
    cpu_seconds : float
        ksmd's, for all these scans.
    """

    values: dict[str, int]
    by_process: dict[int, dict[str, int]]
    cpu_seconds: float = 0.0


class Ksmd:
    """The real ksmd by whole scans or batches; KSM must be taken and reset. To be closed."""

    def __init__(self) -> None:
        self._session = Session(None)
        self._pid = processes.kernel_thread("ksmd")
        self._running = False

    def close(self) -> None:
        """Close all files."""
        self._session.close()

    def cpu_seconds(self) -> float:
        """CPU time of ksmd so far."""
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0]) / 1e9

    def batch(self, pages: int) -> None:
        """Visit at most so many pages, not beyond the end of the scan."""
        knobs.write("pages_to_scan", pages)
        self._session.tick()
        self._session.settle()
        if not self._running:
            # from between two batches into the long wait, out of which this does a batch at once
            self._session.write_run(1)
            self._session.settle()
            self._running = True

    def scans(self, n: int) -> None:
        """Do full scans, the first to the end of the present one."""
        for _ in range(n):
            before = int(knobs.read("full_scans"))
            for _ in range(3):
                self.batch(_WHOLE)
                if int(knobs.read("full_scans")) > before:
                    break
            else:
                raise WorkloadFailed("ksmd does not come to the end of a scan")

    def rest(self) -> None:
        """Stop, where the cursor is."""
        self._session.write_run(0)
        self._session.tick()
        self._session.settle()
        self._running = False

    def see(self, pids: Sequence[int]) -> Seen:
        """Return what the kernel shows now."""
        values = self._session.counters()
        by_process = {pid: _stat(pid) for pid in pids}
        values["rmap_items"] = sum(stat["ksm_rmap_items"] for stat in by_process.values())
        return Seen(values, by_process)

    def steady(self, pids: Sequence[int], skipping: bool) -> Seen:
        """Scan until nothing changes over three full scans.

        Raises
        ------
        WorkloadFailed
            That does not come.
        """
        start, base = self.cpu_seconds(), int(knobs.read("full_scans"))
        last, since = None, 0
        for number in range(1, _MOST_SCANS + 1):
            time.sleep(_REST)
            self.scans(1)
            seen = self.see(pids)
            if last is None or _compared(seen.values, skipping) != _compared(last.values, skipping):
                last, since = seen, number
            elif number - since == STEADY:
                if int(knobs.read("full_scans")) != base + number:
                    raise WorkloadFailed("full_scans does not count the scans made")
                last.values["full_scans"] = number
                last.cpu_seconds = self.cpu_seconds() - start
                return last
        raise WorkloadFailed(f"no steady state in {_MOST_SCANS} full scans")


def _compared(values: dict[str, Any], skipping: bool) -> dict[str, Any]:
    """The counters that are held against each other; where smart scan skips pages two of them in sum."""
    out = {name: values[name] for name in (*_COUNTERS, "rmap_items") if name in values}
    if skipping:
        out[UNSETTLED] = out.pop("pages_unshared") + out.pop("pages_volatile")
    return out


# ---------------------------------------------------------------- outcomes


@dataclass
class Difference:
    """A field in which an estimate and the kernel differ."""

    field: str
    model: Any
    kernel: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.model}/{self.kernel}"


@dataclass
class Outcome:
    """What came of one workload.

    Attributes
    ----------
    workload : Workload
    status : str
        ``agrees``, ``differs``, ``excused`` (it differs, as its `excuse` says), ``skipped`` (what it needs is not there),
        ``not run`` (it failed by itself).
    reason : str
    differences : list of Difference
        Model and kernel.
    processes, pages : int
        How many, and private pages that they had.
    model, kernel : dict
        All that was compared.
    beside : dict
        What was seen and is not compared: MemFree, CPU time.
    seconds : float
    """

    workload: Workload
    status: str = "agrees"
    reason: str = ""
    differences: list[Difference] = field(default_factory=list)
    processes: int = 0
    pages: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    kernel: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        out: dict[str, Any] = {"name": self.workload.name, "about": self.workload.about, "status": self.status}
        out |= {"static": self.workload.static, "processes": self.processes, "pages": self.pages}
        out |= {"model": self.model, "kernel": self.kernel, "beside": self.beside, "seconds": round(self.seconds, 3)}
        out["differences"] = [{"field": one.field, "model": one.model, "kernel": one.kernel} for one in self.differences]
        return out | ({"reason": self.reason} if self.reason else {})

    def text(self) -> str:
        """Return it in a line, differences in lines of their own."""
        line = f"{self.workload.name}: {self.status}"
        if self.reason:
            line += f": {self.reason}"
        elif self.kernel:
            freed = self.kernel.get("freed_bytes", 0)
            line += f": {self.processes} processes, {self.pages:,} pages, {freed / 2**20:.1f} MiB freed"
            line += f" in {self.kernel['full_scans']} scans" if "full_scans" in self.kernel else ""
        return "\n  ".join([line, *map(str, self.differences)])


def run(workload: Workload, predict: Predict, runs: int = RUNS) -> Outcome:
    """Run one workload and hold its estimate against the real ksmd; KSM must be taken.

    Parameters
    ----------
    workload : Workload
    predict : callable
    runs : int
        How often, if it goes on writing.

    Returns
    -------
    Outcome
    """
    outcome, start = Outcome(workload), time.perf_counter()
    try:
        if reason := workload.needs() if workload.needs is not None else None:
            outcome.status, outcome.reason = "skipped", reason
        elif workload.static:
            _run_static(outcome, predict)
        else:
            _run_writers(outcome, predict, runs)
    except (WorkloadFailed, ChildError, knobs.KernelUnavailable, OSError) as error:
        outcome.status, outcome.reason = "not run", str(error)
    if outcome.differences:
        outcome.status, outcome.reason = "excused" if workload.excuse else "differs", workload.excuse
    outcome.seconds = time.perf_counter() - start
    return outcome


def run_all(workloads: Sequence[Workload], predict: Predict, runs: int = RUNS) -> Iterator[Outcome]:
    """Take the machine's KSM, run workloads and yield what came of each.

    Raises
    ------
    KernelUnavailable
        The machine's KSM can't be taken; nothing has been changed.
    """
    with knobs.taken():
        for workload in workloads:
            yield run(workload, predict, runs)


def _begin(workload: Workload, stack: ExitStack) -> tuple[Yard, Ksmd]:
    """Start the processes, with KSM as new and knobs as wanted."""
    knobs.reset()
    ksmd = Ksmd()
    stack.callback(ksmd.close)
    # still running from before, it would end what it is at only once it is woken
    ksmd.rest()
    for name, value in workload.knobs.items():
        if error := knobs.write(name, value):
            raise WorkloadFailed(f"{knobs.KSM / name} refuses {value}: {os.strerror(-error)}")
    yard = stack.enter_context(Yard())
    # what is merged is let go of before its processes are
    stack.callback(knobs.write, "run", 2)
    with ExitStack() as around:
        for name, text in workload.thp.items():
            around.enter_context(knobs.changed(knobs.THP / name, text))
        workload.start(yard)
    return yard, ksmd


def _run_static(outcome: Outcome, predict: Predict) -> None:
    """Some times over: all that is compared must agree in each. Of CPU time, which ksmd does not repeat, the median counts."""
    seconds = []
    for number in range(STATIC_RUNS):
        one = Outcome(outcome.workload) if number else outcome
        seconds.append(_run_once(one, predict))
        outcome.differences = outcome.differences or one.differences
    outcome.beside["cpu_seconds"] |= {"kernel": statistics.median(seconds), "kernel_runs": seconds}


def _run_once(outcome: Outcome, predict: Predict) -> float:
    """One run; ksmd's CPU seconds in it."""
    workload = outcome.workload
    with ExitStack() as stack:
        yard, ksmd = _begin(workload, stack)
        # the counter is left too high for ever by some ways out of a zero page
        base = int(knobs.read("ksm_zero_pages"))
        if workload.before is not None:
            workload.before(yard, ksmd)
            ksmd.rest()
        yard.stop()
        skipping = knobs.read("smart_scan") == "1"
        knobs.write("pages_to_scan", _WHOLE)
        knobs.write("sleep_millisecs", knobs.DEFAULTS["sleep_millisecs"])
        before = frames(yard.pids)
        predicted = predict(yard.pids, 1, 0.0)
        outcome.processes, outcome.pages = len(yard.pids), before
        outcome.beside["huge_bytes"] = huge_bytes(yard.pids)
        free = memory_free()
        seen = ksmd.steady(yard.pids, skipping)
        outcome.beside["mem_free_bytes"] = memory_free() - free
        outcome.beside["cpu_seconds"] = {"model": predicted.get("cost", {}).get("cpu_seconds")}
        seen.values["freed_bytes"] = (before - frames(yard.pids)) * PAGE
        for name, back in (("ksm_zero_pages", base), ("general_profit", base * PAGE)):
            seen.values[name] -= back
        _compare(outcome, predicted, seen, skipping)
    return seen.cpu_seconds


def _compare(outcome: Outcome, predicted: dict[str, Any], seen: Seen, skipping: bool) -> None:
    expected, kernel = predicted["expected"], seen.values
    outcome.model, outcome.kernel = _compared(expected, skipping), _compared(kernel, skipping)
    # what has been freed before it began is not to be seen in frames
    outcome.model["freed_bytes"], outcome.kernel["freed_bytes"] = expected["freed_more_bytes"], kernel["freed_bytes"]
    # of a start in the middle the end is known, not the way there
    scans = outcome.beside.setdefault("full_scans", {}) if outcome.workload.before is not None else None
    for side, values, into in (("model", expected, outcome.model), ("kernel", kernel, outcome.kernel)):
        if scans is None:
            into["full_scans"] = values["full_scans"]
        else:
            scans[side] = values["full_scans"]
    rows = {row["pid"]: row for row in predicted["by_process"]}
    for pid, stat in seen.by_process.items():
        for name, value in stat.items():
            key = f"process {list(seen.by_process).index(pid)} {name}"
            outcome.model[key], outcome.kernel[key] = rows.get(pid, {}).get(name), value
    outcome.differences = [
        Difference(name, outcome.model.get(name), value)
        for name, value in outcome.kernel.items()
        if outcome.model.get(name) != value
    ]


# ---------------------------------------------------------------- what goes on writing


def _run_writers(outcome: Outcome, predict: Predict, runs: int) -> None:
    """Hold the band of the estimate against what is freed on average, some times over."""
    within, moments_within, widths, rows = 0, 0, [], []
    for _ in range(runs):
        with ExitStack() as stack:
            yard, ksmd = _begin(outcome.workload, stack)
            knobs.write("sleep_millisecs", outcome.workload.knobs.get("sleep_millisecs", knobs.DEFAULTS["sleep_millisecs"]))
            time.sleep(_WARM_SECONDS)
            predicted = predict(yard.pids, _SAMPLES, _INTERVAL)
            outcome.processes, outcome.pages = len(yard.pids), frames(yard.pids)
            counts, seconds = _frames_at_ends(yard.pids)
        moments = [(outcome.pages - there) * PAGE for there in counts]
        freed = statistics.mean(moments)
        low, expected, high = (predicted[name]["freed_bytes"] for name in ("lower", "expected", "upper"))
        within += low <= freed <= high
        moments_within += sum(low <= moment <= high for moment in moments)
        widths.append((high - low) / max(expected, 1))
        rows.append({"lower": low, "expected": expected, "upper": high, "kernel": freed})
        rows[-1]["seconds_per_scan"] = {"model": predicted.get("cost", {}).get("seconds_per_scan"), "kernel": seconds}
    outcome.beside["runs"] = rows
    outcome.model = {"freed_bytes": statistics.mean(row["expected"] for row in rows)}
    outcome.kernel = {"freed_bytes": statistics.mean(row["kernel"] for row in rows)}
    outcome.beside |= {"within": within, "widest": max(widths), "moments_within": moments_within / runs / _MEASURED_SCANS}
    if within * RUNS < WITHIN * runs:
        missed = [f"{row['lower']}..{row['upper']}: {row['kernel']}" for row in rows]
        outcome.differences.append(Difference(f"runs within the band of freed_bytes: {'; '.join(missed)}", runs, within))
    if max(widths) > BAND:
        outcome.differences.append(Difference("width of the band by expected", round(max(widths), 3), BAND))


def _frames_at_ends(pids: Sequence[int]) -> tuple[list[int], float]:
    """Frames at the ends of scans, and seconds a scan, once nothing but the writing changes, ksmd at its own pace."""
    counts: list[int] = []
    knobs.write("run", 1)
    start = time.monotonic()
    first = scans = int(knobs.read("full_scans"))
    while len(counts) < _SETTLING_SCANS + _MEASURED_SCANS:
        while (now := int(knobs.read("full_scans"))) == scans:
            if time.monotonic() - start > _PATIENCE:
                raise WorkloadFailed("ksmd does not come to the end of its scans")
            time.sleep(0.005)
        scans = now
        counts.append(frames(pids))
    knobs.write("run", 0)
    return counts[_SETTLING_SCANS:], (time.monotonic() - start) / (scans - first)
