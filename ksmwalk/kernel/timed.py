"""`Host.run` held against the real ksmd: the same processes do the same at the same times, counters and CPU are compared."""

from __future__ import annotations

import functools
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import kernels
from ..host import Host
from ..ksm import sysfs
from ..ksm.costs import Costs, ksmd_seconds
from ..layout import PAGE_SIZE
from ..proc import processes
from ..proc.child import ChildError
from ..signatures import RecordArray, U64Array
from . import knobs
from .calibrate import Area, Twin, batches

#: how much the model may be off: of pages_sharing, on average over time and at each moment; of CPU time, in sum
SHARING, CPU = 0.05, 0.20
#: seconds from a look to the next, and from a row of the model to the next
EVERY, FINE = 0.25, 0.01
#: where a step is to be seen a moment is this long, seconds before and after
MOMENT = 0.25
# looks from one search for processes of others to the next, and how often a story that was disturbed is told again
_SEARCHES, _ATTEMPTS = 8, 3
# ticks that a sleep may be longer before the model is told
_NOTICED = 0.01
# pages that merge of what the machine's speed is measured by, twice as many unlike all others, and pages of a batch
_YARDSTICK = 1 << 11, 100
_CONFIG = Path("/proc/config.gz")
_HZ = 250

#: what is looked at: counters that a row of `Host.run` has as well
_SEEN = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "full_scans", "pages_scanned", "pages_to_scan")
SEEN_DTYPE = np.dtype([("time", np.float64), ("cpu", np.float64), *((name, np.int64) for name in _SEEN)])


@dataclass(frozen=True, slots=True)
class Act:
    """What a process does at some time, the same in both: store keys from a page on, mark its memory, or end."""

    seconds: float
    process: int
    what: str
    first: int = 0
    keys: U64Array = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Story:
    """One workload.

    Parameters
    ----------
    name, about : str
    contents : callable, giving a sequence of ndarray of uint64
        Of each process, by page.
    acts : callable of float, giving Acts in order
        What happens over so many seconds.
    unmarked : sequence of int
        Processes whose memory is not mergeable from the beginning.
    """

    name: str
    about: str
    contents: Callable[[], Sequence[U64Array]]
    acts: Callable[[float], Sequence[Act]] = lambda seconds: ()
    unmarked: Sequence[int] = ()


def _numbers(n: int, contents: int, seed: int, first: int = 1) -> U64Array:
    """n pages of some contents, at random."""
    return np.random.default_rng(seed).integers(first, first + contents, n).astype(np.uint64)


def _mixed() -> U64Array:
    """Empty pages, pages of few contents, pages unlike all others, in turn."""
    n = np.arange(12_000, dtype=np.uint64)
    return np.select([n % np.uint64(3) == 0, n % np.uint64(3) == 1], [0 * n, 1 + n % np.uint64(250)], n + np.uint64(1 << 32))


def _stores(seconds: float) -> list[Act]:
    """Twice a second 100 pages, which are restored two seconds later."""
    acts, plain = [], _numbers(4000, 1 << 40, 2)
    for number, at in enumerate(np.arange(0.5, seconds, 0.5)):
        first = 100 * number % 4000
        acts.append(Act(float(at), 1, "store", first, np.arange(100, dtype=np.uint64) + np.uint64((1 << 50) + 100 * number)))
        if number >= 4:
            back = 100 * (number - 4) % 4000
            acts.append(Act(float(at) + 0.1, 1, "store", back, plain[back : back + 100]))
    return acts


def _few(seconds: float) -> list[Act]:
    """Five times a second 60 pages get others of the few contents."""
    return [
        Act(float(at), number % 2, "store", 60 * number % 3000, _numbers(60, 40, 100 + number))
        for number, at in enumerate(np.arange(0.2, seconds, 0.2))
    ]


def _come_and_go(seconds: float) -> list[Act]:
    return [Act(at * seconds, number, what) for at, number, what in ((0.15, 1, "mark"), (0.4, 2, "mark"), (0.75, 0, "end"))]


def _same(processes: int) -> list[U64Array]:
    return [_numbers(4000, 1 << 40, 2)] * processes


#: what is run, the static ones first
STORIES: tuple[Story, ...] = (
    Story("pairs", "two processes of the same 6,000 pages", lambda: [_numbers(6000, 1 << 40, 1)] * 2),
    Story("mixed", "a third each empty, of few contents, unlike all others", lambda: [_mixed()]),
    Story("stores", "200 stores a second into merged pages, undone two seconds later", lambda: _same(2), _stores),
    Story("few-contents", "300 stores a second among 40 contents", lambda: [_numbers(3000, 40, n) for n in (3, 4)], _few),
    Story("come-and-go", "memory is marked later, a process ends", lambda: _same(3), _come_and_go, unmarked=(1, 2)),
)


def find(names: Sequence[str]) -> list[Story]:
    """Return stories by name, all where none is named; ValueError for one that there is not."""
    known = {story.name: story for story in STORIES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no timed workload {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(STORIES)


@functools.cache
def ticks() -> int:
    """Ticks of this machine's kernel a second, 250 where it doesn't tell."""
    import gzip

    try:
        with gzip.open(_CONFIG, "rt") as file:
            return next(int(line.partition("=")[2]) for line in file if line.startswith("CONFIG_HZ="))
    except (OSError, StopIteration, ValueError):
        return _HZ


# ---------------------------------------------------------------- both sides


class _Players:
    """The processes of a story, and their twins in the model."""

    def __init__(self, story: Story, host: Host, stack: ExitStack):
        self.host = host
        self.twins: list[Twin] = []
        for number, keys in enumerate(story.contents()):
            twin = Twin(host)
            stack.callback(twin.close)
            twin.add(Area(keys), mark=number not in story.unmarked)
            self.twins.append(twin)

    def real(self, act: Act) -> None:
        """Do it in the process."""
        twin = self.twins[act.process]
        at = twin.places[0][0] + act.first * PAGE_SIZE
        if act.what == "store":
            size = len(act.keys) * PAGE_SIZE
            twin.child.do(f"put({at}, range(0, {size}, P), numbers({len(act.keys)}))", act.keys.byteswap().tobytes())
        elif act.what == "mark":
            twin.child.do(f"call('madvise', {at}, {twin.areas[0].size}, MERGEABLE)")
        else:
            twin.close()

    def model(self, act: Act, host: Host) -> None:
        """Do it in the model."""
        twin = self.twins[act.process]
        mm = host.mm_by_number(twin.mm.index)
        at = twin.places[0][1] + act.first * PAGE_SIZE
        if act.what == "store":
            mm.write_at(np.uint64(at) + np.arange(len(act.keys), dtype=np.uint64) * np.uint64(PAGE_SIZE), act.keys)
        elif act.what == "mark":
            mm.madvise(at, twin.areas[0].size, "mergeable")
        else:
            mm.exit()


class _Disturbed(RuntimeError):
    """Somebody else has mergeable memory."""


def _seconds_per_batch(rows: RecordArray) -> float:
    """How long a batch and its sleep took on average, from the visits between looks that found the same pages_to_scan."""
    same = (np.diff(rows["pages_to_scan"]) == 0) & (rows["pages_to_scan"][1:] > 0)
    visits = np.diff(rows["pages_scanned"])[same] / rows["pages_to_scan"][1:][same]
    return float(np.diff(rows["time"])[same].sum() / max(1.0, visits.sum()))


def _late(real: RecordArray, model: RecordArray) -> float:
    """Ticks that ksmd's sleeps lasted longer than on an idle machine."""
    return max(0.0, (_seconds_per_batch(real) - _seconds_per_batch(model)) * ticks())


def _schedule(acts: Sequence[Act], seconds: float) -> Iterator[tuple[float, Act | None]]:
    """What is done and when it is looked, in order."""
    looks = [(float(at), None) for at in np.arange(0, seconds + EVERY / 2, EVERY)]
    yield from sorted([*((act.seconds, act) for act in acts if act.seconds <= seconds), *looks], key=lambda due: due[0])


def _watch(players: _Players, acts: Sequence[Act], seconds: float, pid: int) -> tuple[RecordArray, list[tuple[float, Act]]]:
    """Let the real ksmd run: what was seen, and when each act was really done."""
    files = {name: os.open(knobs.KSM / name, os.O_RDONLY) for name in _SEEN}
    stat = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
    rows: list[tuple[float, ...]] = []
    done: list[tuple[float, Act]] = []
    try:
        start_cpu = int(os.pread(stat, 64, 0).split()[0])
        start = time.monotonic()
        knobs.write("run", 1)
        for at, act in _schedule(acts, seconds):
            if (wait := start + at - time.monotonic()) > 0:
                time.sleep(wait)
            now = time.monotonic() - start
            if act is not None:
                players.real(act)
                # in the middle of what took a while
                done.append(((now + time.monotonic() - start) / 2, act))
                continue
            counters = [int(os.pread(fd, 32, 0)) for fd in files.values()]
            if len(rows) % _SEARCHES == 0:
                _undisturbed(players)
            cpu = (int(os.pread(stat, 64, 0).split()[0]) - start_cpu) / 1e9
            rows.append((now, cpu, *counters))
    finally:
        for fd in (*files.values(), stat):
            os.close(fd)
        knobs.write("run", 0)
    return np.array(rows, SEEN_DTYPE), done


def _undisturbed(players: _Players) -> None:
    own = {twin.child.pid for twin in players.twins}
    for pid, name in knobs.mergeable_processes():
        if pid not in own:
            raise _Disturbed(f"another process has mergeable memory: {pid} ({processes.printable(name)})")


def _model(
    kept: bytes, players: _Players, done: Sequence[tuple[float, Act]], real: RecordArray, costs: Costs, late: float
) -> RecordArray:
    """The same by `Host.run`: a row for each of the real ones."""
    steps = [(at, functools.partial(players.model, act)) for at, act in done]
    host: Host = pickle.loads(kept)
    rows = host.run(float(real["time"][-1]) + FINE, steps, every=FINE, costs=costs, hz=ticks(), late=late)
    rows = rows[np.searchsorted(rows["time"], real["time"], side="right") - 1]
    out = np.zeros(len(rows), SEEN_DTYPE)
    for name in SEEN_DTYPE.names or ():
        out[name] = rows[name]
    out["time"] = real["time"]
    for name in ("full_scans", "pages_scanned"):  # the machine's count goes on from before
        out[name] += real[name][0] - out[name][0]
    return out


# ---------------------------------------------------------------- outcomes


@dataclass
class Timed:
    """What came of one story.

    Attributes
    ----------
    story : Story
    advisor : bool
    status : str
        ``agrees``, ``differs`` or ``not run``.
    reason : str
    late : float
        Ticks, on average, that ksmd's sleeps were longer than on an idle machine: how busy it was is given to the model.
    slower : float
        How many times as long as its costs say the machine took for known work before and after: given to the model too.
    real, model : ndarray of SEEN_DTYPE
        What was seen over time, and what the model says of the same moments.
    """

    story: Story
    advisor: bool
    status: str = "not run"
    reason: str = ""
    late: float = 0.0
    slower: float = 1.0
    real: RecordArray = field(default_factory=lambda: np.empty(0, SEEN_DTYPE))
    model: RecordArray = field(default_factory=lambda: np.empty(0, SEEN_DTYPE))

    @property
    def sharing_off(self) -> float:
        """The mean difference of pages_sharing over time, in the mean pages_sharing."""
        real, model = self.real["pages_sharing"].astype(float), self.model["pages_sharing"]
        return float(np.abs(real - model).mean() / max(1.0, real.mean())) if len(real) else 0.0

    @property
    def moment_off(self) -> float:
        """The largest difference of pages_sharing from what the model has within `MOMENT`, in the largest pages_sharing."""
        real, model, around = self.real["pages_sharing"], self.model["pages_sharing"], round(MOMENT / EVERY)
        shifted = [model[np.clip(np.arange(len(model)) + by, 0, len(model) - 1)] for by in range(-around, around + 1)]
        low, high = np.min(shifted, axis=0), np.max(shifted, axis=0)
        return float(np.maximum(low - real, real - high).max(initial=0) / max(1, int(real.max(initial=0))))

    @property
    def cpu_off(self) -> float:
        """The difference of ksmd's CPU time in all, relative."""
        return float(self.model["cpu"][-1] / max(1e-9, self.real["cpu"][-1]) - 1) if len(self.real) else 0.0

    def text(self) -> str:
        """Return it in a line."""
        name = self.story.name + (", advisor" if self.advisor else "")
        if self.status == "not run":
            return f"{name}: not run: {self.reason}"
        visits, modelled = (int(rows["pages_scanned"][-1] - rows["pages_scanned"][0]) for rows in (self.real, self.model))
        return (
            f"{name}: {self.status}: pages_sharing {self.sharing_off:.1%} off on average, {self.moment_off:.1%} at most; "
            f"{self.real['pages_sharing'][-1]:,} in the end (model {self.model['pages_sharing'][-1]:,}); "
            f"CPU {self.real['cpu'][-1]:.2f} s (model {self.cpu_off:+.1%}); visits {visits:,} (model {modelled:,}), "
            f"{self.late:.2f} ticks late, {self.slower:.2f} of the costs"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        out: dict[str, Any] = {"name": self.story.name, "about": self.story.about, "advisor": self.advisor, "status": self.status}
        if self.reason:
            out["reason"] = self.reason
        if len(self.real):
            out |= {"late_ticks": self.late, "slower": self.slower, "sharing_off": self.sharing_off, "moment_off": self.moment_off}
            out["cpu_off"] = self.cpu_off
            for side, rows in (("kernel", self.real), ("model", self.model)):
                out[side] = {name: rows[name].tolist() for name in SEEN_DTYPE.names or ()}
        return out


def run(story: Story, seconds: float, costs: Costs, advisor: bool = False) -> Timed:
    """Run one story on both; KSM must be taken.

    Parameters
    ----------
    story : Story
    seconds : float
    costs : Costs
        Of this machine: `ksmwalk calibrate` measures them.
    advisor : bool
        With advisor_mode scan-time; else all tunables have their defaults.

    Returns
    -------
    Timed
    """
    outcome = Timed(story, advisor)
    for attempt in range(_ATTEMPTS):
        try:
            _told(outcome, story, seconds, costs, advisor)
            break
        except _Disturbed as error:
            if attempt + 1 == _ATTEMPTS:
                outcome.reason = str(error)
                return outcome
        except (ChildError, knobs.KernelUnavailable, OSError) as error:
            outcome.reason = str(error)
            return outcome
    good = max(outcome.sharing_off, outcome.moment_off) <= SHARING and abs(outcome.cpu_off) <= CPU
    outcome.status = "agrees" if good else "differs"
    return outcome


def _slower(costs: Costs) -> float:
    """How many times as long as these costs say the machine's ksmd takes for known work in batches, as it is now."""
    samples = batches(*_YARDSTICK)
    work = np.stack([sample.work for sample in samples])
    return sum(sample.seconds for sample in samples) / float(ksmd_seconds(work, costs).sum())


def _told(outcome: Timed, story: Story, seconds: float, costs: Costs, advisor: bool) -> None:
    """Run a story on both sides, with the machine's speed measured before it and after."""
    before = _slower(costs)
    with ExitStack() as stack:
        knobs.reset()
        stack.callback(knobs.reset)
        knobs.write("sleep_millisecs", knobs.DEFAULTS["sleep_millisecs"])
        host = Host(1 << 18, kernel=kernels.here()[0].version)
        players = _Players(story, host, stack)
        pid = processes.kernel_thread("ksmd")
        if pid is None:
            raise knobs.KernelUnavailable("no ksmd among the processes")
        # the advisor counts from when the machine was started
        host.ksm.now_ms = int(time.monotonic() * 1000)
        host.ksm.cpu_ms = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) // 1_000_000
        if advisor:
            knobs.write("advisor_mode", sysfs.ADVISORS[1])
            host.ksm.advisor_mode = sysfs.ADVISORS[1]
        host.ksm.run = 1
        kept = pickle.dumps(host)
        outcome.real, done = _watch(players, story.acts(seconds), seconds, pid)
    outcome.slower = (before + _slower(costs)) / 2
    costs = costs.scaled(outcome.slower)
    outcome.model = _model(kept, players, done, outcome.real, costs, 0.0)
    outcome.late = _late(outcome.real, outcome.model)
    if outcome.late > _NOTICED:
        outcome.model = _model(kept, players, done, outcome.real, costs, outcome.late)


def run_all(stories: Sequence[Story], seconds: float, costs: Costs, advisor: Sequence[bool] = (False, True)) -> Iterator[Timed]:
    """Take the machine's KSM, run stories, at default tunables and with the advisor, and yield what came of each.

    Raises
    ------
    KernelUnavailable
        The machine's KSM can't be taken; nothing has been changed.
    """
    with knobs.taken():
        for on in advisor:
            for story in stories:
                yield run(story, seconds, costs, on)
