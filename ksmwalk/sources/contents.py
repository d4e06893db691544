"""Memory of several processes with what its pages hold: captured from live ones, or put together from elsewhere."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing.words import size
from ..errors import KsmwalkError
from ..gate import as_int, counted, shown
from ..ksm.sysfs import chosen
from ..layout import PAGE_SIZE
from ..proc.freeze import frozen
from ..proc.memory import LivePages, OpenFiles
from ..signatures import BoolArray, I64Array, U64Array
from .keys import UNKNOWN, Interned, Pages, Progress, intern
from .reading import ProcessCapture, capture

_LOOKERS = 4
_KSM = "/sys/kernel/mm/ksm"


class NothingToRead(KsmwalkError, RuntimeError):
    """Not one of the processes could be read."""


@dataclass(slots=True)
class MemoryCapture:
    """Memory of one or more processes, cores or virtual machines, with the contents of their pages as keys.

    Parameters
    ----------
    processes : list of ProcessCapture
        With `key` and `changes`; keys are comparable among all of them.
    nr_contents : int
        One more than the highest key.
    ordered : bool
        Whether keys stand in the byte order of contents, which decides the shape of ksmd's trees.
    samples : int
        How often each page was read.
    seconds_between : float
        From the first to the last reading.
    machine : dict
        Where it comes from: kind ("live", "core", "guest"), release, hostname, knobs and counters of its KSM, mem_total
        (bytes), uptime (seconds since boot).
    registered : list of int or None
        Process numbers in the order in which they asked for merging, where that is known.
    prefix : float
        Bytes that two contents have in common at their front, on average, where a search of ksmd compares them; 0: not
        known.
    digests : ndarray of uint64, shape (nr_contents, 2), or None
        Keyed hash of each content, where the capture was made with a secret.
    sources : list of str or None
        Of each process the machine, file or capture that it comes from, where there are several.
    notes : list of str
        What the reader of the result has to know, in sentences.
    seconds : dict
        Time by step.

    Models: nothing; this is the real machine's own view.
    Differs: processes are read one after the other, and go on meanwhile unless they are held still.
    """

    processes: list[ProcessCapture]
    nr_contents: int
    ordered: bool = True
    samples: int = 1
    seconds_between: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    registered: list[int] | None = None
    digests: U64Array | None = None
    sources: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    prefix: float = 0.0

    def __repr__(self) -> str:
        what = f"{counted(len(self.processes), 'process')}, {counted(self.nr_pages, 'page')} ({size(self.nr_pages * PAGE_SIZE)})"
        return f"<MemoryCapture of {what}, {counted(max(self.nr_contents - 1, 0), 'content')}>"

    @property
    def nr_pages(self) -> int:
        """Present pages of all processes, those that they share as often as they are mapped."""
        return sum(one.nr_pages for one in self.processes)

    @property
    def frames_seen(self) -> bool:
        """Whether it is known which pages are the same frame."""
        return bool(self.processes) and all(one.pfn is not None or not one.nr_pages for one in self.processes)


def readable(what: ProcessCapture) -> BoolArray:
    """Which pages ksmd could ever look at: anonymous, private, no zero page, in a mapping that can be marked."""
    wanted = what.anon & ~what.zero
    for vma, (first, last) in zip(what.vmas, what.vma_slices(), strict=True):
        if vma.not_compatible is not None:
            wanted[first:last] = False
    return wanted


def _say_nothing(what: str, done: int, total: int) -> None:
    """Progress that nobody is told of."""


def capture_memory(
    pids: Iterable[int],
    *,
    samples: int = 2,
    interval: float = 2.0,
    stop: bool = False,
    secret: bytes | None = None,
    progress: Progress = _say_nothing,
) -> MemoryCapture:
    """Read processes with the contents of their anonymous memory, which is neither changed nor kept.

    Parameters
    ----------
    pids : iterable of int
    samples : int
        How often each page is read, so that those that change show; the last reading counts.
    interval : float
        Seconds from one reading to the next.
    stop : bool
        Hold the processes still while they are read (by ptrace: they go on whatever happens to the reader).
    secret : bytes, optional
        Make contents comparable with captures of other machines that were given the same secret: see `intern`.
    progress : callable of (str, int, int)
        What is done, pages done, pages in all. With `stop` it is told nothing.

    Returns
    -------
    MemoryCapture

    Raises
    ------
    NothingToRead
        Not one process could be read; of those that were read some may have ended since, which is noted.
    ValueError
        No process, `samples` below 1, an `interval` that is no time.

    Models: see MemoryCapture. Differs: see MemoryCapture; a page that a process lets go of between the look whether it is
    there and the reading (64 pages at a time) is made by the reading, and counted in a note. With `stop` there is none.
    """
    numbers = list(dict.fromkeys(as_int(pid, "pid", 1, (1 << 31) - 1) for pid in pids))
    samples = as_int(samples, "samples", 1, 1000)
    if not isinstance(interval, (int, float)) or not 0 <= interval <= 86400:
        raise ValueError(f"interval {shown(interval)}: seconds, 0 to a day")
    if not numbers:
        raise ValueError("no process to read")
    clock = time.perf_counter()
    notes: list[str] = []
    if stop:
        progress = _say_nothing  # who shows it, a terminal say, may be held, and a full pipe to it would hold us
    files = OpenFiles()
    moments: list[float] = []
    with contextlib.ExitStack() as held:

        def hold() -> None:
            if stop:
                notes.extend(note for note in held.enter_context(frozen(numbers)) if note not in notes)

        def before(sample: int) -> None:
            if sample:
                held.close()
                time.sleep(interval)
                hold()
            moments.append(time.monotonic())

        hold()
        found = _readings(numbers, notes, progress)
        result = MemoryCapture(found, 0, secret is None, samples, machine=machine(), notes=notes)
        result.seconds["mappings"] = time.perf_counter() - clock
        reading = _FramesOnce(found, files)
        try:
            interned = intern(reading.sources, samples=samples, before=before, secret=secret, progress=progress)
        finally:
            files.close()
    reading.hand_out(interned)
    result.nr_contents, result.digests, result.prefix = interned.nr_contents, interned.digests, interned.prefix
    result.seconds_between = moments[-1] - moments[0]
    result.seconds["contents"] = time.perf_counter() - clock - result.seconds["mappings"]
    notes.extend(reading.losses())
    if secret is not None:
        notes.append("Contents are numbered by their keyed hashes: the shape of ksmd's trees is not that of the real one.")
    return result


def _readings(pids: Sequence[int], notes: list[str], progress: Progress) -> list[ProcessCapture]:
    found, problems = [], []
    counts = _sees_counts()

    def look(pid: int) -> ProcessCapture | OSError | KsmwalkError:
        try:
            return capture(pid, counts=counts)
        except (OSError, KsmwalkError) as error:
            return error

    # more than half of it is the kernel's work
    pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _LOOKERS))
    try:
        progress("looking for pages", 0, len(pids))
        for number, one in enumerate(pool.map(look, pids), 1):
            progress("looking for pages", number, len(pids))
            if isinstance(one, ProcessCapture):
                found.append(one)
            else:
                problems.append(getattr(one, "strerror", None) or str(one))
                first = one
    finally:
        pool.shutdown(cancel_futures=True)
    if not found:
        if len(problems) == 1:
            raise first
        raise NothingToRead(f"none of {len(pids):,} processes could be read; the first: {problems[0]}")
    if problems:
        notes.append(f"{len(problems):,} of {len(pids):,} processes could not be read; the first: {problems[0]}.")
    return found


def _sees_counts() -> bool:
    return os.access("/proc/kpagecount", os.R_OK)


class _FramesOnce:
    """What is to be read of some processes: each frame once, by the first that maps it."""

    def __init__(self, processes: Sequence[ProcessCapture], files: OpenFiles):
        self.processes = processes
        self.wanted: list[I64Array] = [np.flatnonzero(readable(one)) for one in processes]
        #: of each wanted page of all processes the place among those that are read; None: all are, in their order
        self.place: I64Array | None = None
        chosen = np.ones(sum(len(pages) for pages in self.wanted), bool)
        pairs = list(zip(processes, self.wanted, strict=True))
        if pairs and all(one.pfn is not None and one.exclusive is not None for one in processes):
            # what is mapped once comes once
            shared = np.flatnonzero(np.concatenate([~one.exclusive[pages] for one, pages in pairs]))  # type: ignore[index] # seen
            if len(shared):
                frames = np.concatenate([one.pfn[pages] for one, pages in pairs])[shared]  # type: ignore[index] # seen
                _, first, inverse = np.unique(frames, return_index=True, return_inverse=True)
                chosen[shared] = False
                chosen[shared[first]] = True
                self.place = np.cumsum(chosen) - 1
                self.place[shared] = self.place[shared[first]][inverse]
        self.sources: list[Pages] = []
        at = 0
        for one, pages in pairs:
            some = pages[chosen[at : at + len(pages)]]
            self.sources.append(LivePages(one.pid, one.addr[some], None if one.pfn is None else one.pfn[some], files))
            at += len(pages)

    def hand_out(self, interned: Interned) -> None:
        """Give every process the keys of its pages."""
        keys, changes = np.concatenate(interned.keys), np.concatenate(interned.changes)
        if self.place is not None:
            keys, changes = keys[self.place], changes[self.place]
        at = 0
        for one, pages in zip(self.processes, self.wanted, strict=True):
            one.key = np.full(one.nr_pages, UNKNOWN, np.uint64)
            one.key[one.zero] = 0
            one.changes = np.zeros(one.nr_pages, np.uint16)
            one.key[pages] = keys[at : at + len(pages)]
            one.changes[pages] = changes[at : at + len(pages)]
            at += len(pages)

    def losses(self) -> list[str]:
        """What could not be read, and what reading made, in sentences."""
        sources = [source for source in self.sources if isinstance(source, LivePages)]
        out = []
        if ended := [source.pid for source in sources if source.ended]:
            if len(ended) == 1:
                out.append(f"1 process ({ended[0]}) ended while it was read: its pages are unknown.")
            else:
                out.append(f"{len(ended):,} processes ended while they were read, {ended[0]} among them: their pages are unknown.")
        for count, *what in (
            (sum(source.gone for source in sources), "had gone before it was to be read, and was not",
             "had gone before they were to be read, and were not"),
            (sum(source.made for source in sources), "went in the moment of the reading, which made an empty page of it",
             "went in the moment of the reading, which made empty pages of them"),
            (sum(source.refused for source in sources), "could not be read: the kernel refused"),
        ):  # fmt: skip
            if count:
                out.append(f"{counted(count, 'page', *what)}.")
        return out


def key_pages(
    parts: Sequence[tuple[ProcessCapture, Pages, I64Array]],
    kind: str,
    *,
    secret: bytes | None = None,
    progress: Progress = lambda what, done, total: None,
) -> MemoryCapture:
    """Put captures whose pages can be read into one, with keys.

    Parameters
    ----------
    parts : sequence of (ProcessCapture, Pages, int64 array)
        A capture, its pages with bytes, and which pages of the capture these are.
    kind : str
        Where it comes from: "core", "guest".
    secret, progress
        As for `capture_memory`.

    Returns
    -------
    MemoryCapture

    Models: see MemoryCapture. Differs: see MemoryCapture.
    """
    start = time.perf_counter()
    interned = intern([pages for _, pages, _ in parts], secret=secret, progress=progress)
    for (one, _, which), keys in zip(parts, interned.keys, strict=True):
        one.key = np.full(one.nr_pages, UNKNOWN, np.uint64)
        one.key[which] = keys
        one.changes = np.zeros(one.nr_pages, np.uint16)
    result = MemoryCapture([one for one, _, _ in parts], interned.nr_contents, secret is None, digests=interned.digests)
    result.machine, result.prefix = {"kind": kind}, interned.prefix
    result.seconds = {"contents": time.perf_counter() - start}
    return result


def machine() -> dict[str, Any]:
    """This machine and its KSM, as a capture says where it comes from.

    Models: /sys/kernel/mm/ksm, /proc/meminfo of Linux 6.18. Differs: nothing known.
    """
    system = os.uname()
    files: dict[str, str] = {}
    for path in sorted(Path(_KSM).glob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            files[path.name] = chosen(path.read_text())
    total = 0
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        total = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemTotal:"))
    return {"kind": "live", "release": system.release, "version": system.version, "hostname": system.nodename,
            "ksm": files, "mem_total": total, "uptime": round(time.clock_gettime(time.CLOCK_BOOTTIME), 2)}  # fmt: skip


