"""A Host in time: ksmd at its own pace, what processes do meanwhile, and whoever tunes KSM from outside."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

from ..gate import as_int, shown
from ..ksm.clock import Clock
from ..ksm.costs import Costs
from ..ksm.sysfs import COUNTERS
from ..signatures import RecordArray
from .traces import Player, as_events, unmasked

if TYPE_CHECKING:
    from .host import Host

__all__ = ["RUN_DTYPE", "Controller", "Running", "Workload"]

_S = 1_000_000_000
_LONGEST = 1e9  # seconds, some 30 years
#: a moment of `Host.run`: seconds since it began, ksmd's CPU seconds and batches since then, what was set, frames in use
#: (the zero page included), and the counters
RUN_DTYPE = np.dtype(
    [("time", np.float64), ("cpu", np.float64), ("batches", np.int64), ("run", np.int64), ("pages_to_scan", np.int64),
     ("sleep_millisecs", np.int64), ("frames_used", np.int64),
     *((name, np.int64) for name in COUNTERS)]
)  # fmt: skip


class Controller(Protocol):
    """Who sets tunables from outside while KSM runs: `ksmwalk.controllers` has those that people use.

    Attributes
    ----------
    interval : float
        Seconds from one `act` to the next, from 0.001 to 1e9, read after each; the first comes after as long.

    One that has a method `begin(host)` is called at the beginning of each run besides.
    """

    @property
    def interval(self) -> float: ...
    def act(self, host: Host) -> None:
        """Look at the host and set its tunables."""


#: what a workload is made of: an array of `layout.TRACE_EVENT`, or (seconds, what to do then)
Step: TypeAlias = RecordArray | tuple[float, Callable[["Host"], object]]
Workload: TypeAlias = RecordArray | Iterable[Step]


class _Due:
    """What a workload does next: in order of time, arrays piece by piece."""

    def __init__(self, host: Host, workload: Workload | None, apply: Callable[[RecordArray], object] | None):
        self._host = host
        player = getattr(apply, "__self__", None)
        self._apply = _applier(player) if isinstance(player, Player) and apply == player.apply else apply
        if isinstance(workload, np.ndarray):
            workload = [workload]
        if workload is not None and not isinstance(workload, Iterable):
            raise TypeError(f"workload {shown(workload)}: must be an array of events, or an iterable")
        self._steps: Iterator[Step] = iter(workload or ())
        self._piece: RecordArray | None = None
        self._todo: Callable[[Host], object] | None = None
        self._count = 0
        #: nanoseconds at which there is something to do
        self.time = -1.0
        self._fetch()

    def _fetch(self) -> None:
        """Look at the next step."""
        self._piece = self._todo = None
        for step in self._steps:
            self._count += 1
            if isinstance(step, np.ndarray):
                if step.ndim == 1 and not len(step):
                    continue
                self._piece = self._checked(step)
                time = int(self._piece["time"][0])
            else:
                time, self._todo = self._pair(step)
            if time < self.time:
                raise ValueError(f"workload, step {self._count}: at {time / _S:g} s, before the one at {self.time / _S:g} s")
            self.time = time
            return
        self.time = math.inf

    def _checked(self, events: RecordArray) -> RecordArray:
        where = f"workload, step {self._count}"
        if events.ndim != 1 or events.dtype.names is None or "time" not in events.dtype.names:
            raise TypeError(f"{where}: an array of {events.dtype}: must be of layout.TRACE_EVENT")
        events = unmasked(events)
        times = events["time"]
        if times.dtype.kind not in "iu":
            raise TypeError(f"{where}: times of {times.dtype}: must be integers, nanoseconds")
        if len(early := np.flatnonzero(times < 0)):
            raise ValueError(f"{where}: event {int(early[0])} at {times[early[0]]} ns: must not be before the run begins, at 0")
        if len(back := np.flatnonzero(times[1:] < times[:-1])):
            raise ValueError(f"{where}: event {int(back[0]) + 1} is before the one before it")
        if self._apply is None:
            self._apply = _applier(self._host.player())
        return events

    def _pair(self, step: Any) -> tuple[int, Callable[[Host], object]]:
        where = f"workload, step {self._count}"
        if not isinstance(step, tuple) or len(step) != 2 or not callable(step[1]):
            raise TypeError(f"{where}: {shown(step)}: must be an array of events, or (seconds, a function of the Host)")
        return round(_seconds(step[0], where, least=0.0) * _S), step[1]

    def act(self, now: float) -> None:
        """Do all that is due by a time, nanoseconds."""
        while self.time <= now:
            if self._todo is not None:
                self._todo(self._host)
                self._fetch()
                continue
            piece = cast(RecordArray, self._piece)
            upto = int(np.searchsorted(piece["time"], now, side="right"))
            assert self._apply is not None
            self._apply(piece[:upto])
            if upto == len(piece):
                self._fetch()
            else:
                self._piece, self.time = piece[upto:], int(piece["time"][upto])


def _applier(player: Player) -> Callable[[RecordArray], None]:
    """Applies the arrays of a workload piece by piece; an error tells which of all its events failed."""
    begin = player.done
    return lambda piece: player._apply(as_events(piece), begin)


def _within(value: object, name: str, low: float, high: float, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} {shown(value)}: must be a number of {unit}")
    if not low <= value <= high:
        raise ValueError(f"{name} {shown(value)}: must be from {low:g} to {high:g} {unit}")
    return float(value)


def _seconds(value: object, name: str, least: float) -> float:
    return _within(value, name, least, _LONGEST, "seconds")


class Running:
    """What a Host does in time."""

    _running = False

    def run(
        self,
        seconds: float,
        workload: Workload | None = None,
        *,
        every: float = 1.0,
        controllers: Sequence[Controller] = (),
        costs: Costs | None = None,
        prefix: float = 0.0,
        hz: int = 250,
        late: float = 0.0,
        apply: Callable[[RecordArray], object] | None = None,
    ) -> RecordArray:
        """Let time pass: ksmd works and sleeps, a workload goes on, controllers tune.

        ksmd scans if `ksm.run` is 1 and a process is registered. Each batch takes what its work costs; then it sleeps
        `sleep_millisecs`; the advisor and pruning follow the clock, which is `ksm.now_ms`, as `ksm.cpu_ms` is the CPU
        time. A run goes on where the one before ended, in mid-batch too. Two runs of the same are equal, bit for bit.

        Parameters
        ----------
        seconds : float
            How long.
        workload : array, or iterable
            An array of `layout.TRACE_EVENT`; or an iterable, a generator for one, of such arrays and of pairs: a time
            in seconds and a function, called with the Host then. Times ascend and count from the beginning of this run.
            What would come after its end is not done.
        every : float
            Seconds from a row to the next.
        controllers : sequence of Controller
            Who tunes, in this order where several are due; see `ksmwalk.controllers`. At the same time events come
            first, then controllers, then the row.
        costs : Costs, optional
            What work costs; by default the stored ones, the same everywhere. `Costs.load()` gives those of this machine.
        prefix : float
            Bytes, on average, that two different pages have in common at their front.
        hz : int
            Ticks of the kernel a second, to which its sleeps are rounded up.
        late : float
            Ticks, on average, that they last longer: 0 on an idle machine.
        apply : callable, optional
            Applies arrays of events; by default that of a `player()` of this Host.

        Returns
        -------
        ndarray of running.RUN_DTYPE, shape (seconds // every + 1,)
            A row a moment, the first at 0: `time` and `cpu`, seconds since the beginning; `batches` since then; `run`,
            `pages_to_scan`, `sleep_millisecs`; `frames_used`, frames; the counters as in `Ksm.counters`.

        Raises
        ------
        ValueError, TypeError
            A number out of range, an interval of a controller at any time; a workload that goes back in time or holds
            what is neither; nothing has been done, or what came before the bad step.
        BadEntryError, ArenaFullError
            As `Ksm.do_scan`.
        OSError
            As `Player.apply`; the index of the event is that over all arrays of the workload.
        RuntimeError
            Called by a workload, a controller or a policy of this Host while it runs.

        Examples
        --------
        Two processes with the same 1,000 pages; after 3 seconds one of them stores to a half of its own, which ksmd finds out
        when it comes by:

        >>> from ksmwalk import Host
        >>> host = Host(1 << 14)
        >>> for _ in range(2):
        ...     mm = host.new_mm()
        ...     start = mm.mmap(1000 * 4096)
        ...     mm.write(start, list(range(1, 1001)))
        ...     mm.madvise(start, 1000 * 4096, "mergeable")
        >>> host.ksm.run = 1
        >>> rows = host.run(5, [(3, lambda host: mm.write(start, list(range(2001, 2501))))])
        >>> rows["pages_sharing"].tolist()
        [0, 1000, 1000, 1000, 500, 500]

        Models: ksmd of Linux 6.18 on a machine that is idle otherwise. Differs: see `ksm.clock.Clock`.
        """
        host = cast("Host", self)
        if host._running:
            raise RuntimeError("the Host runs already: a workload can't let time pass in the midst of it")
        length = round(_seconds(seconds, "seconds", 0.0) * _S)
        step = round(_seconds(every, "every", 1e-3) * _S)
        hz = as_int(hz, "hz", 1, 100_000)
        if costs is not None and not isinstance(costs, Costs):
            raise TypeError(f"costs {shown(costs)}: must be Costs")
        if apply is not None and not callable(apply):
            raise TypeError(f"apply {shown(apply)}: must be callable")
        prefix = _within(prefix, "prefix", 0, 4096, "bytes")
        late = _within(late, "late", 0, 1000, "ticks")
        clock = Clock(host.ksm, costs or Costs(), prefix, hz, late)
        due = _Due(host, workload, apply)
        # (when, whose turn, number of it): controllers before the row
        turns = [*_turns(controllers, host), (0, len(controllers))]
        heapq.heapify(turns)
        host._running = True
        try:
            return _run(host, clock, due, turns, controllers, length, step)
        finally:
            host._running = False


def _turns(controllers: Sequence[Controller], host: Host) -> list[tuple[int, int]]:
    """When each controller looks first, and its number; those that want to are called now."""
    if not isinstance(controllers, Sequence):
        raise TypeError(f"controllers {shown(controllers)}: must be a sequence of them")
    turns = []
    for number, one in enumerate(controllers):
        if not callable(getattr(one, "act", None)) or isinstance(one, type):
            raise TypeError(f"controller {number} {shown(one)}: must have an interval and act(host)")
        turns.append((_interval(one, number), number))
    for one in controllers:
        if begin := getattr(one, "begin", None):
            begin(host)
    return turns


def _interval(controller: Controller, number: int) -> int:
    """Nanoseconds until it looks next, as it says now."""
    name = f"controller {number} ({type(controller).__name__}): interval"
    return round(_seconds(getattr(controller, "interval", None), name, 1e-3) * _S)


def _run(
    host: Host, clock: Clock, due: _Due, turns: list[tuple[int, int]], controllers: Sequence[Controller], length: int, step: int
) -> RecordArray:
    """The loop of `Running.run`, all in nanoseconds."""
    rows: list[tuple[float, ...]] = []
    ksm, start, cpu = host.ksm, clock.now, clock.cpu
    while True:
        when, whose = turns[0]
        until = min(when, due.time, length)
        clock.advance(start + int(until))
        due.act(until)
        if when > until:
            if until >= length:
                break
            continue
        if whose < len(controllers):
            controllers[whose].act(host)
            heapq.heapreplace(turns, (when + _interval(controllers[whose], whose), whose))
        else:
            told = when / _S, (clock.cpu - cpu) / _S, clock.batches, ksm.run, ksm.pages_to_scan, ksm.sleep_millisecs
            rows.append((*told, host.frames_used, *ksm._counted().values()))
            heapq.heapreplace(turns, (when + step, whose))
    return np.array(rows, RUN_DTYPE)
