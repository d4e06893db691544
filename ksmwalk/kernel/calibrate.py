"""What ksmd's work costs on this machine: known work given to the real ksmd, its CPU time read, the costs fitted to it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..estimates.work import count_full_scan
from ..host import Host, Mm
from ..ksm.costs import FIELDS, MEASURED, Costs, design, ksmd_seconds
from ..layout import PAGE_SIZE, PMD_SIZE, PUD_SIZE
from ..proc.child import Child, ChildError
from ..signatures import RecordArray, U64Array
from . import knobs
from .fullscan import cpu_of_full_scan

_EVERY = 1 << 31
#: seconds before a scan, and the part of one in batches that nobody looks at
_PAUSE, _UNWATCHED = 0.25, 0.9
_NOHUGEPAGE, _HUGEPAGE, _MERGEABLE = 15, 14, 12


@dataclass(frozen=True, slots=True)
class Area:
    """Mergeable memory of a process, the same in the model and for the real ksmd.

    Parameters
    ----------
    keys : ndarray of uint64
        Content of each page: a page of zeros with this number in one word.
    step : int
        Bytes from one page to the next.
    word : int
        Byte of the page at which the number stands: what is before it is compared in vain.
    huge : bool
        Whether they are in huge pages; with a step of 2 MiB each is the first of one, the rest of which is neither empty
        nor mergeable.
    """

    keys: U64Array
    step: int = PAGE_SIZE
    word: int = 0
    huge: bool = False

    @property
    def size(self) -> int:
        """Bytes of address space."""
        return len(self.keys) * self.step


class Twin:
    """A process with areas, and its twin in the model."""

    child: Child

    def __init__(self, host: Host):
        self.child = Child()
        self.mm: Mm = host.new_mm()
        self.places: list[tuple[int, int]] = []
        self.areas: list[Area] = []

    def add(self, area: Area, mark: bool = True) -> None:
        """Map an area in both and mark it mergeable, or leave that for later."""
        size, advice = area.size, _HUGEPAGE if area.huge else _NOHUGEPAGE
        real = self.child.do(f"new({size}, align={PMD_SIZE})")
        self.child.do(f"libc.madvise({real}, {size}, {advice})")
        room = self.mm.mmap(size + PMD_SIZE)
        model = -(-room // PMD_SIZE) * PMD_SIZE
        self.mm.madvise(model, size, "hugepage" if area.huge else "nohugepage")
        self.places.append((real, model))
        self.areas.append(area)
        self.write(len(self.areas) - 1, area.keys)
        if not mark:
            return
        if area.step < PMD_SIZE or not area.huge:
            self.child.do(f"call('madvise', {real}, {size}, {_MERGEABLE})")
            self.mm.madvise(model, size, "mergeable")
            return
        for offset in range(0, size, area.step):
            self.child.do(f"call('madvise', {real + offset}, {PAGE_SIZE}, {_MERGEABLE})")
            self.mm.madvise(model + offset, PAGE_SIZE, "mergeable")

    def write(self, number: int, keys: U64Array) -> None:
        """Store contents into the pages of an area."""
        (real, model), area = self.places[number], self.areas[number]
        step = PAGE_SIZE if area.huge else area.step
        # in the order of memcmp
        keys = keys.astype(np.uint64)
        if area.huge and area.step == PMD_SIZE:
            # the first page of each huge page is the one that is looked at
            keys = np.stack([keys, *(keys + np.uint64(n) for n in range(1, area.step // step))], axis=1).ravel()
        self.child.do(
            f"put({real + area.word}, range(0, {area.size}, {step}), numbers({len(keys)}))", keys.byteswap().tobytes()
        )
        self.mm.write_at(np.uint64(model) + np.arange(len(keys), dtype=np.uint64) * np.uint64(step), keys)

    def close(self) -> None:
        """End the process."""
        self.child.close()


@dataclass(frozen=True, slots=True)
class Sample:
    """One full scan: its name, what was to be done, and the CPU time that it took, in seconds."""

    name: str
    work: RecordArray
    seconds: float


class Bench:
    """One story: processes, and full scans of them one after the other, by the real ksmd and the model."""

    name: str
    host: Host

    def __init__(self, name: str, **tunables: int):
        self.name = name
        self.samples: list[Sample] = []
        self._tunables = tunables
        self._zeros = 0
        self.host = Host(1 << 21)
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        knobs.reset()
        # some ways out of a KSM-placed zero page leave this counter too high for ever
        self._zeros = int(knobs.read("ksm_zero_pages"))
        for name, value in self._tunables.items():
            self.set(name, value)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # before KSM is reset: areas are unmerged address by address, those of processes that are gone are not
        self._ends.close()
        knobs.reset()

    def set(self, name: str, value: int) -> None:
        """Set a tunable of both."""
        knobs.write(name, value)
        self.host.ksm.write(name, value)

    def process(self, *areas: Area) -> Twin:
        """A new process with these areas."""
        twin = Twin(self.host)
        self._ends.callback(twin.close)
        for area in areas:
            twin.add(area)
        return twin

    def scan(self, what: str, prefix: float = 0.0, pages_to_scan: int = _EVERY, sleep_millisecs: int | None = None) -> None:
        """One full scan by both, after a pause: a daemon's caches hold what others did while it slept."""
        work = count_full_scan(self.host, prefix=prefix, pages_to_scan=pages_to_scan)
        unwatched = _UNWATCHED * int(work["batches"]) * (sleep_millisecs or 0) / 1000
        time.sleep(_PAUSE)
        seconds = cpu_of_full_scan(pages_to_scan, sleep_millisecs, unwatched=unwatched)
        if seconds is None:
            raise knobs.KernelUnavailable(f"{self.name}, {what}: ksmd did not come to the end of a scan in a minute")
        for name in ("pages_shared", "pages_sharing", "pages_unshared", "ksm_zero_pages"):
            real = int(knobs.read(name)) - (self._zeros if name == "ksm_zero_pages" else 0)
            if real != (ours := getattr(self.host.ksm, name)):
                raise knobs.KernelUnavailable(f"{self.name}, {what}: disturbed: {name} is {real}, not {ours}")
        self.samples.append(Sample(f"{self.name}: {what}", work, seconds))


def _mixed(n: int, first: int = 1, seed: int = 1) -> U64Array:
    """n numbers from `first` on, in a random order."""
    return np.random.default_rng(seed).permutation(n).astype(np.uint64) + np.uint64(first)


def unique(pages: int, scans: int = 5) -> list[Sample]:
    """Pages unlike all others: noted, compared, compared, compared, skipped."""
    with Bench(f"{pages} unique pages") as bench:
        bench.process(Area(_mixed(pages, 1 << 40)))
        for what in ("first scan", "second", "third", "fourth", "skipped")[:scans]:
            bench.scan(what)
        return bench.samples


def alike(pages: int) -> list[Sample]:
    """Unique pages that differ in their last bytes only."""
    with Bench(f"{pages} pages unlike at the end") as bench:
        bench.process(Area(_mixed(pages, 1 << 40), word=PAGE_SIZE - 8))
        for what in ("first scan", "second", "third"):
            bench.scan(what, prefix=PAGE_SIZE - 8)
        return bench.samples


def pairs(pages: int) -> list[Sample]:
    """Pages each of which there is twice; then a third one of each that comes late, and others that are like none."""
    half, base = pages // 2, 1 << 39
    with Bench(f"{pages} pages in pairs", smart_scan=0) as bench:
        # even numbers, so that the odd ones of those that come last find their way to everywhere in the tree
        even = [2 * _mixed(half, base, seed) for seed in (1, 2, 3)]
        bench.process(Area(even[0]), Area(even[1]))
        for what in ("first scan", "merging", "merged", "merged again"):
            bench.scan(what)
        bench.process(Area(even[2]))
        for what in ("third copies", "joining", "joined"):
            bench.scan(what)
        bench.process(Area(2 * _mixed(half, base, 4) + np.uint64(1)))
        for what in ("others", "compared", "compared again"):
            bench.scan(what)
        return bench.samples


def changing(pages: int) -> list[Sample]:
    """Pages that are other ones at each scan."""
    with Bench(f"{pages} changing pages", smart_scan=0) as bench:
        twin = bench.process(Area(_mixed(pages, 1 << 40)))
        bench.scan("first scan")
        for number in range(2, 4):
            twin.write(0, _mixed(pages, number << 40))
            bench.scan(f"changed, scan {number}")
        return bench.samples


def empty(pages: int) -> list[Sample]:
    """Pages of zeros, which become the zero page; and as many that are merged with each other."""
    with Bench(f"{pages} empty pages", use_zero_pages=1) as bench:
        bench.process(Area(np.zeros(pages, np.uint64)))
        for what in ("first scan", "to the zero page", "gone"):
            bench.scan(what)
        samples = bench.samples
    with Bench(f"{pages} equal pages") as bench:
        bench.process(Area(np.full(pages, 1 << 40, np.uint64)))
        for what in ("first scan", "merging", "merged"):
            bench.scan(what)
        return samples + bench.samples


def sparse(pages: int, step: int) -> list[Sample]:
    """Merged pages far from each other."""
    with Bench(f"{pages} pages, one in {step >> 10} KiB", max_page_sharing=1 << 20) as bench:
        bench.process(Area(np.full(pages, 1 << 40, np.uint64), step))
        for what in ("first scan", "merging", "merged", "merged again"):
            bench.scan(what)
        return bench.samples


def in_huge_pages(pages: int) -> list[Sample]:
    """Unique pages that are parts of huge pages."""
    with Bench(f"{pages} unique pages, huge") as bench:
        bench.process(Area(_mixed(pages, 1 << 40), huge=True))
        for what in ("first scan", "second", "third", "fourth", "skipped"):
            bench.scan(what)
        return bench.samples


def splitting(pages: int) -> list[Sample]:
    """Pages of different huge pages in pairs."""
    keys = np.tile(_mixed(pages // 2, 1 << 40), 2)
    with Bench(f"{pages} huge pages") as bench:
        bench.process(Area(keys, PMD_SIZE, huge=True))
        for what in ("first scan", "splitting", "merged"):
            bench.scan(what)
        return bench.samples


def chains(pages: int) -> list[Sample]:
    """Contents of which each has more pages than may share one; then others that are like none."""
    with Bench(f"{pages} pages in chains", smart_scan=0, max_page_sharing=2) as bench:
        bench.process(Area(np.tile(2 * _mixed(pages // 16, 1 << 39), 16)))
        for what in ("first scan", "merging", "merged"):
            bench.scan(what)
        bench.process(Area(2 * _mixed(pages // 2, 1 << 39, 2) + np.uint64(1)))
        for what in ("others", "compared", "compared again"):
            bench.scan(what)
        return bench.samples


def batches(pages: int, size: int) -> list[Sample]:
    """Pages that merge, and twice as many unique ones, so many at a time with the default pauses."""
    paused = {"pages_to_scan": size, "sleep_millisecs": 20}
    with Bench(f"{pages} pages in batches of {size}") as bench:
        bench.process(Area(np.repeat(_mixed(pages // 2, 1 << 40), 2)))
        for what in ("first scan", "merging", "merged", "merged again"):
            bench.scan(what, **paused)
        samples = bench.samples
    with Bench(f"{2 * pages} unique pages in batches of {size}", smart_scan=0) as bench:
        bench.process(Area(_mixed(2 * pages, 1 << 40)))
        for what in ("first scan", "second", "third", "fourth"):
            bench.scan(what, **paused)
        return samples + bench.samples


#: makes some full scans, with KSM taken
Story = Callable[[], list[Sample]]


def stories(room: int | None = None) -> list[Story]:
    """What is measured, the smaller ones first: each is called with KSM taken.

    Parameters
    ----------
    room : int, optional
        Bytes of memory that they may take; by default half of what is available.

    Raises
    ------
    KernelUnavailable
        There is too little memory for the trees to outgrow the caches.
    """
    room = _available() // 2 if room is None else room
    by_pages: list[tuple[int, Story]] = [
        (1 << 12, lambda: unique(1 << 12)),
        (1 << 11, lambda: batches(1 << 10, 20)),
        (1 << 13, lambda: batches(1 << 12, 100)),
        (1 << 14, lambda: batches(1 << 13, 500)),
        (1 << 15, lambda: batches(1 << 14, 3000)),
        (1 << 14, lambda: unique(1 << 14)),
        (1 << 14, lambda: changing(1 << 14)),
        (1 << 14, lambda: empty(1 << 14)),
        (1 << 13, lambda: sparse(1 << 12, 16 * PAGE_SIZE)),
        (1 << 13, lambda: sparse(1 << 12, PMD_SIZE)),
        (1 << 12, lambda: sparse(1 << 9, PUD_SIZE)),
        (1 << 15, lambda: splitting(64)),
        (1 << 14, lambda: chains(1 << 13)),
        (1 << 15, lambda: pairs(1 << 14)),
        (1 << 16, lambda: unique(1 << 16)),
        (1 << 16, lambda: in_huge_pages(1 << 16)),
        (1 << 16, lambda: alike(1 << 16)),
        (1 << 17, lambda: pairs(1 << 16)),
        (1 << 18, lambda: unique(1 << 18, scans=2)),
        # what most machines do all day, once more: it is measured worst
        (1 << 13, lambda: batches(1 << 12, 100)),
    ]
    fitting = [story for pages, story in by_pages if pages * PAGE_SIZE <= room]
    if len(fitting) < len(by_pages) - 1:
        raise knobs.KernelUnavailable(f"{room >> 20} MiB of memory to measure with, {(1 << 17) * PAGE_SIZE >> 20} are needed")
    return fitting


def _available() -> int:
    """Bytes of memory that are to be had without swapping."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * int(text.partition("MemAvailable:")[2].split()[0])


def measure(what: Iterable[Story] | None = None, wait: float | None = None) -> tuple[Costs, list[Sample]]:
    """Measure the costs of this machine; KSM is taken, and put back as it was.

    Parameters
    ----------
    what : iterable of stories, optional
        `stories()` by default.
    wait : float, optional
        Seconds to wait at most for another program that drives KSM.

    Returns
    -------
    (Costs, list of Sample)
        The costs, not saved yet, and what they were fitted to.

    Raises
    ------
    KernelUnavailable
        KSM can't be taken or is in use, or somebody disturbed it; it is as it was.

    Models: nothing; it times ksmd. Differs: nothing known.
    """
    samples: list[Sample] = []
    with knobs.taken(wait=wait):
        try:
            for story in stories() if what is None else what:
                samples += story()
        except ChildError as error:
            raise knobs.KernelUnavailable(f"a process to scan could not be made: {error.why}") from None
    costs = fit(samples)
    today = datetime.date.today().isoformat()
    return dataclasses.replace(
        costs, source=MEASURED, machine=_processor(), release=os.uname().release, date=today
    ), samples


def _processor() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return f"{value.strip()}, {os.cpu_count()} processors"
    return f"{os.uname().machine}, {os.cpu_count()} processors"


#: which of the costs are of levels that the caches don't hold, and what none of them comes near on any machine
_FAR = np.array([name in ("stable_far_ns", "unstable_far_ns", "cold_ns") for name in FIELDS])
_SLOWEST_LEVEL_NS = 20_000


def fit(samples: Sequence[Sample]) -> Costs:
    """The costs that explain the samples best, none of them negative.

    Parameters
    ----------
    samples : sequence of Sample
        In which every kind of work arises.

    Returns
    -------
    Costs
        With `residual`.

    Models: nothing. Differs: nothing known.
    """
    work = np.stack([sample.work for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    # between relative and absolute differences: short scans are to count, and long ones are measured better
    weights = seconds**-0.75
    best: tuple[float, float, NDArray[np.float64]] | None = None
    # where the caches end shows in how well what follows from it fits
    for near in np.arange(4.0, 16.5, 0.5):
        columns = design(work, near) * weights[:, None]
        found, error = not_negative(columns, seconds * weights * 1e9)
        if (wild := _FAR & (found > _SLOWEST_LEVEL_NS)).any():
            # a sliver of a level beyond the caches took up what was noise: it was not measured
            columns[:, wild] = 0
            found, error = not_negative(columns, seconds * weights * 1e9)
        if best is None or error < best[0]:
            best = error, float(near), found
    assert best is not None
    found_ns: dict[str, Any] = {name: float(ns) for name, ns in zip(FIELDS, best[2], strict=True)}
    costs = Costs(near_levels=best[1], **found_ns)
    wrong = np.abs(ksmd_seconds(work, costs) / seconds - 1)
    return dataclasses.replace(costs, residual=float(wrong.max()))


def not_negative(columns: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Least squares without negative factors (Lawson and Hanson): the factors, and what is left, squared."""
    n = columns.shape[1]
    # of one size, for the solver's sake
    scale = np.linalg.norm(columns, axis=0)
    columns = columns / np.where(scale > 0, scale, 1)
    found, inside = np.zeros(n), np.zeros(n, bool)
    for _ in range(10 * n):
        slope = columns.T @ (wanted - columns @ found)
        if inside.all() or slope[~inside].max() <= 1e-9 * np.linalg.norm(wanted):
            break
        inside[np.flatnonzero(~inside)[slope[~inside].argmax()]] = True
        while True:
            tried = np.zeros(n)
            tried[inside] = np.linalg.lstsq(columns[:, inside], wanted, rcond=None)[0]
            below = inside & (tried <= 0)
            if not below.any():
                break
            # as far towards it as none becomes negative
            step = (found[below] / (found[below] - tried[below])).min()
            found += step * (tried - found)
            inside &= found > 1e-12 * np.abs(tried).max()
            found[~inside] = 0
        found = tried
    return found / np.where(scale > 0, scale, 1), float(np.sum((columns @ found - wanted) ** 2))
