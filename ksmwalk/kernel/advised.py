"""The real scan-time advisor, step by step, held against `ksm.advisor.advise`: for ``ksmwalk verify --advisor``.

What the advisor reckons with comes to light in the trace event ``ksm_advisor``: the scan's time in whole seconds, ksmd's
CPU time in whole percent of it, and the `pages_to_scan` that comes out. The kernel reckons with just these whole numbers,
so that nothing of its input is lost: each step has one answer, and the model must give that one.

Besides the same two numbers are measured from outside, so that they need not be believed: the scan's time by the clock of
the trace, from the start of the scan to the event, and CPU time by ``/proc/PID/schedstat`` of ksmd, looked at before and
after the event. Both are known within bounds. What the advisor may have had as input is all whole numbers within these
bounds, and its answer must be one of those that `advise` gives for them; how many those are is told with each step.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..ksm.advisor import advise
from ..layout import PAGE_SIZE
from ..proc import processes
from ..proc.child import Child
from . import knobs, signals, trace
from .fullscan import _asleep_now
from .knobs import KernelUnavailable

__all__ = ["COLUMNS", "SETTINGS", "Judged", "Run", "Setting", "judge", "record"]

#: what is written down of a step, in this order: bounds in milliseconds, knobs as they were at its end
COLUMNS = ("before", "scan_s", "cpu_percent", "after", "target", "least", "most", "max_cpu",
           "scan_ms_low", "scan_ms_high", "cpu_ms_low", "cpu_ms_high")  # fmt: skip
#: pages that are scanned, all unlike, and steps after which other knobs are drawn
PAGES, _EVERY = 60_000, 6
_LOOK_SECONDS = 0.002
#: milliseconds that the kernel's own look at its clock may lie beside the event that tells of it
_CLOCK_MS = 2
#: seconds without a step after which there is none to come
_PATIENCE = 240.0
#: CPU times before and after an event that are not found by then are unknown
_UNKNOWN = -1
_EVENT = re.compile(r"\s(\d+)\.(\d{6}): ksm_(advisor|start_scan): (.*)")
_ADVISED = re.compile(r"ksm scan time (\d+) pages_to_scan (\d+) cpu percent (\d+)")
_MERGEABLE, _NOHUGEPAGE = 12, 15


@dataclass(frozen=True, slots=True)
class Setting:
    """What the advisor is told: knobs drawn anew every few steps.

    Parameters
    ----------
    name, about : str
    least, most, target, max_cpu : (int, int)
        From and to: pages_to_scan at the beginning and at most, seconds a scan, percent of a CPU.
    """

    name: str
    about: str
    least: tuple[int, int]
    most: tuple[int, int]
    target: tuple[int, int]
    max_cpu: tuple[int, int]

    def draw(self, rng: np.random.Generator) -> dict[str, int]:
        """Knobs by their names in `advise`, and `least`."""
        drawn = {
            "target": int(rng.integers(*self.target, endpoint=True)),
            "max_cpu": int(rng.integers(*self.max_cpu, endpoint=True)),
            "max_pages": int(rng.integers(*self.most, endpoint=True)),
            "least": int(rng.integers(*self.least, endpoint=True)),
        }
        return drawn | {"max_pages": max(drawn["max_pages"], drawn["least"] + 1)}


#: under which the advisor is looked at
SETTINGS = (
    Setting("target", "targets of 1 to 3 s, of a CPU all that is wanted", (900, 1200), (30_000, 30_000), (1, 3), (70, 70)),
    Setting("cpu", "12 to 30 percent of a CPU at most", (900, 1200), (30_000, 30_000), (1, 2), (12, 30)),
    Setting("pages", "800 to 4,000 pages a batch at most", (500, 790), (800, 4_000), (1, 3), (40, 70)),
)


@dataclass
class Run:
    """Steps of one setting, in order, from switching the advisor on.

    Attributes
    ----------
    setting : str
    steps : list of list of int
        Each as `COLUMNS` says.
    """

    setting: str
    steps: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Judged:
    """One step and the model's answer.

    Attributes
    ----------
    step : list of int
    answer : int
        The model's, for what the kernel says that it reckoned with.
    equal : bool
    possible : frozenset of int
        The model's answers to all that may have been measured; empty where that is not known.
    within : bool
        Whether the kernel's answer is one of these, and what it says that it reckoned with is within the bounds.
    """

    step: list[int]
    answer: int
    equal: bool
    possible: frozenset[int]
    within: bool


# ---------------------------------------------------------------- judging


def judge(run: Run) -> Iterator[Judged]:
    """Hold the steps of a run against the model, one after the other.

    Parameters
    ----------
    run : Run

    Yields
    ------
    Judged
    """
    change = last = 0
    for step in run.steps:
        row = dict(zip(COLUMNS, step, strict=True))
        its = {"target": row["target"], "max_cpu": row["max_cpu"], "max_pages": row["most"]}
        answer, then, seconds = _answer(row["before"], change, last, row["scan_s"], row["cpu_percent"], its)
        possible, within = set(), False
        if _UNKNOWN not in step[8:]:
            for scan_s in range(max(1, row["scan_ms_low"] // 1000), max(1, row["scan_ms_high"] // 1000) + 1):
                low, high = (max(1, row[f"cpu_ms_{end}"] // (10 * scan_s)) for end in ("low", "high"))
                within |= scan_s == row["scan_s"] and low <= row["cpu_percent"] <= high
                possible |= {_answer(row["before"], change, last, scan_s, cpu, its)[0] for cpu in range(low, high + 1)}
        yield Judged(step, answer, answer == row["after"], frozenset(possible), within and row["after"] in possible)
        change, last = then, seconds


def _answer(before: int, change: int, last: int, scan_s: int, cpu_percent: int, its: dict[str, int]) -> tuple[int, int, int]:
    return advise(before, change, last, 1000 * scan_s, 10 * cpu_percent * scan_s, its)


# ---------------------------------------------------------------- recording


def record(
    settings: Sequence[Setting], steps: int, seed: int = 1, say: Callable[[str], None] | None = None
) -> Iterator[Run]:
    """Let the machine's real ksmd scan under the advisor and yield what it did, a run for each setting.

    Parameters
    ----------
    settings : sequence of Setting
    steps : int
        Of each.
    seed : int
        Of the knobs that are drawn.
    say : callable of str, optional
        Told who holds KSM; default: print to stderr.

    Yields
    ------
    Run
        KSM is taken for each by itself, so that others get their turn.

    Raises
    ------
    KernelUnavailable
        The machine's KSM can't be taken, or has no such advisor; nothing has been changed.
    """
    for number, setting in enumerate(settings):
        with knobs.taken(say), trace.tracefs(say) as root:
            if root is None or not (root / "events" / "ksm" / "ksm_advisor").is_dir():
                raise KernelUnavailable("no advisor, or no trace event of it (tracefs)")
            with trace.instance(root) as instance, _Watch(instance) as watch, Child() as child:
                yield _recorded(setting, steps, np.random.default_rng([seed, number]), watch, child)


def _recorded(setting: Setting, steps: int, rng: np.random.Generator, watch: _Watch, child: Child) -> Run:
    run, knobs_now = Run(setting.name), setting.draw(rng)
    size = PAGES * PAGE_SIZE
    knobs.reset()
    # all pages unlike, and looked at in each scan: otherwise scans would become shorter than the clock tells apart
    knobs.write("smart_scan", 0)
    area = child.do(f"new({size})")
    child.do(f"libc.madvise({area}, {size}, {_NOHUGEPAGE})")
    child.do(f"put({area}, range(0, {size}, {PAGE_SIZE}), range(1, {PAGES + 1}))")
    child.do(f"call('madvise', {area}, {size}, {_MERGEABLE})")
    _write(knobs_now)
    try:
        knobs.write("advisor_mode", "scan-time")
        knobs.write("sleep_millisecs", 20)
        before = int(knobs.read("pages_to_scan"))
        knobs.write("run", 1)
        while len(run.steps) < steps:
            for told in watch.steps():
                in_force = (knobs_now[key] for key in ("target", "least", "max_pages", "max_cpu"))
                run.steps.append([before, *told[:3], *in_force, *told[3:]])
                before = told[2]
                if len(run.steps) % _EVERY == 0:
                    knobs_now = setting.draw(rng)
                    _write(knobs_now)
    finally:
        with signals.held():
            knobs.write("run", 0)
            knobs.reset()
    del run.steps[steps:]
    return run


def _write(drawn: dict[str, int]) -> None:
    """Write knobs; the least pages first where the most would fall below it."""
    names = {"least": "advisor_min_pages_to_scan", "max_pages": "advisor_max_pages_to_scan", "target": "advisor_target_scan_time",
             "max_cpu": "advisor_max_cpu"}  # fmt: skip
    for key, name in names.items():
        if error := knobs.write(name, drawn[key]):
            raise KernelUnavailable(f"{name} refuses {drawn[key]}: {os.strerror(-error)}")


@dataclass(frozen=True, slots=True)
class _Look:
    """Nanoseconds of CPU that ksmd was seen to have used, between two moments, and whether it slept at the first."""

    begin: float
    end: float
    cpu: int
    asleep: bool

    def settles(self, at: float) -> bool:
        """Whether at a moment before it can't have been more."""
        return self.asleep and self.begin > at


class _Watch:
    """The advisor's events, with the time of each scan and ksmd's CPU time, from looking often."""

    def __init__(self, instance: Path):
        self._instance = instance
        ksmd = processes.kernel_thread("ksmd")
        if ksmd is None:
            raise KernelUnavailable("no ksmd among the processes")
        self._ksmd = ksmd

    def __enter__(self) -> _Watch:
        self._switches = [self._instance / "events" / "ksm" / f"ksm_{name}" / "enable" for name in ("advisor", "start_scan")]
        (self._instance / "trace_clock").write_text("mono")
        for switch in self._switches:
            switch.write_text("1")
        self._pipe = os.open(self._instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        self._started: float | None = None
        self._looks: list[_Look] = []
        self._ended: tuple[int, int] | None = 0, 0  # CPU of ksmd at the end of the scan before: none where it was started
        self._waiting: list[tuple[float, float | None, tuple[int, int, int]]] = []
        return self

    def __exit__(self, *_: object) -> None:
        with signals.held():
            os.close(self._pipe)
            for switch in self._switches:
                switch.write_text("0")

    def steps(self) -> Iterator[tuple[int, ...]]:
        """Yield scan_s, cpu_percent, after and the four bounds of each step that has ended; waits for one."""
        end = time.monotonic() + _PATIENCE
        while True:
            self._look()
            self._read()
            while self._waiting and (after := next((look for look in self._looks if look.settles(self._waiting[0][0])), None)):
                yield self._bounded(*self._waiting.pop(0), after)
                end = 0.0
            if end and time.monotonic() > end:
                raise KernelUnavailable("the advisor makes no step")
            if not end:
                return
            time.sleep(_LOOK_SECONDS)

    def _bounded(
        self, at: float, started: float | None, told: tuple[int, int, int], after: _Look
    ) -> tuple[int, ...]:
        """A step with what was measured of it."""
        low = max((look.cpu for look in self._looks if look.end < at), default=None)
        now = None if low is None else (low, after.cpu)
        scan_s, pages, percent = told
        bounds = [_UNKNOWN] * 4
        if started is not None and now is not None and self._ended is not None:
            scan = (at - started) * 1000
            bounds = [max(0, int(scan) - _CLOCK_MS), int(scan) + 1 + _CLOCK_MS]
            bounds += [max(0, now[0] - self._ended[1]) // 10**6, -(-(now[1] - self._ended[0]) // 10**6) + 1]
        self._ended = now
        self._looks = [look for look in self._looks if look.begin >= after.begin]
        return scan_s, percent, pages, *bounds

    def _look(self) -> None:
        """How much CPU time ksmd has used: what is shown while it runs may be of a moment ago, what it slept on is all."""
        begin, asleep = time.monotonic(), _asleep_now(self._ksmd)
        cpu = int(Path(f"/proc/{self._ksmd}/schedstat").read_text().split()[0])
        self._looks.append(_Look(begin, time.monotonic(), cpu, asleep))

    def _read(self) -> None:
        text = b""
        with contextlib.suppress(BlockingIOError):
            while some := os.read(self._pipe, 1 << 16):
                text += some
        for seconds, micros, kind, fields in _EVENT.findall(text.decode()):
            at = int(seconds) + int(micros) / 1e6
            if kind == "start_scan":
                self._started = at
            elif found := _ADVISED.match(fields):
                scan_s, pages, percent = (int(one) for one in found.groups())
                self._waiting.append((at, self._started, (scan_s, pages, percent)))
                self._started = None


def to_json(runs: Sequence[Run], kernel: str) -> dict[str, Any]:
    """What a file of steps holds.

    Parameters
    ----------
    runs : sequence of Run
    kernel : str
    """
    return {"kernel": kernel, "columns": list(COLUMNS), "runs": [{"setting": run.setting, "steps": run.steps} for run in runs]}
