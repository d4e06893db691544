"""Few pages in very much address space: how long ksmd's full scan of them takes, and what the model says that it must take.

What a kernel does is counted by the model, what each piece of it costs is measured on the machine at hand (an emulated one
too) on small spans; counts times costs is then held against large ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..host import Host
from ..layout import PAGE_SIZE
from . import knobs
from .calibrate import not_negative
from .fullscan import cpu_of_full_scan, visits

__all__ = ["COSTS", "SCANS", "SMALL", "Giant", "Measured", "Work", "costs_of", "predicted", "scanned", "work_of"]

#: scans of one that are timed, unless they take so long together, seconds
SCANS, _ENOUGH = 5, 1.0
_FRAMES = 1 << 13
_NORESERVE = 0x4000
_WORD = 8

#: what is counted and has a cost: a full scan, a page found in it, a single address looked up, a page table entry read
COSTS = ("scan", "page", "lookup", "entry")


@dataclass(frozen=True, slots=True)
class Giant:
    """A mapping with few pages in it, marked mergeable.

    Parameters
    ----------
    span : int
        Bytes of address space.
    pages : int
        Evenly spread, no two alike.
    """

    span: int
    pages: int = 1

    def offsets(self) -> range:
        """Where the pages are, bytes from the start."""
        step = self.span // PAGE_SIZE // self.pages
        return range(step // 2 * PAGE_SIZE, (step // 2 + step * self.pages) * PAGE_SIZE, step * PAGE_SIZE)


#: what costs are measured on: hardly anything, lookups that end at three levels, many entries, many pages
SMALL = (Giant(2 << 20), Giant(1 << 30), Giant(16 << 30), Giant(64 << 30, 64), Giant(8 << 20, 2048))


@dataclass(frozen=True, slots=True)
class Measured:
    """Full scans of a giant by ksmd.

    Parameters
    ----------
    address : int
        Where it lay, bytes.
    seconds : list of float
        ksmd's CPU time, a scan each.
    visits : int or None
        Pages that it looked at in a scan; None where the kernel does not count them.
    """

    address: int
    seconds: list[float] = field(default_factory=list)
    visits: int | None = None

    @property
    def median(self) -> float:
        """Seconds of a scan."""
        return float(np.median(self.seconds))


@contextlib.contextmanager
def _alive(giant: Giant) -> Iterator[int]:
    """A process with a giant; the address of that."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _be(giant, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        if len(said := os.read(ours, _WORD)) != _WORD:
            raise knobs.KernelUnavailable(f"no process with {giant.span} bytes of address space")
        yield int.from_bytes(said, "little")
    finally:
        os.close(ours)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _be(giant: Giant, line: int) -> None:
    """Map it, say where, and wait for the end."""
    area = mmap.mmap(-1, giant.span, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        area.madvise(mmap.MADV_NOHUGEPAGE)
    for number, offset in enumerate(giant.offsets(), 1):
        area[offset : offset + _WORD] = number.to_bytes(_WORD, "big")
    area.madvise(mmap.MADV_MERGEABLE)
    os.write(line, ctypes.addressof(ctypes.c_char.from_buffer(area)).to_bytes(_WORD, "little"))
    while True:
        signal.pause()


def scanned(giant: Giant, patience: float) -> Measured:
    """Let ksmd scan a giant some times over, every page in every scan; KSM must be taken.

    Parameters
    ----------
    giant : Giant
    patience : float
        Seconds to wait at most for the end of a scan.

    Returns
    -------
    Measured

    Raises
    ------
    KernelUnavailable
        There is no such process, or no end to its scan.

    Models: nothing; schedstat of ksmd. Differs: interrupts that it was disturbed by count too.
    """
    knobs.reset()
    with contextlib.suppress(FileNotFoundError):  # kernels without it skip no page
        knobs.write("smart_scan", 0)
    with _alive(giant) as address:
        seconds: list[float] = []
        before = visits()
        while len(seconds) < SCANS and sum(seconds) < _ENOUGH:
            took = cpu_of_full_scan(giant.pages + 1000, patience=patience)
            if took is None:
                raise knobs.KernelUnavailable(f"ksmd did not come to the end of a scan in {patience:.0f} s")
            seconds.append(took)
        after = visits()
    knobs.reset()
    return Measured(address, seconds, None if before is None or after is None else (after - before) // len(seconds))


# ---------------------------------------------------------- the model


@dataclass(frozen=True, slots=True)
class Work:
    """What one full scan of a giant is, in the model.

    Parameters
    ----------
    pages : int
        Found.
    lookups : int
        Single addresses looked up.
    entries : int
        Page table entries read, of all levels.
    """

    pages: int
    lookups: int
    entries: int

    def counts(self) -> tuple[float, ...]:
        """How often each of `COSTS` arises."""
        return 1.0, float(self.pages), float(self.lookups), float(self.entries)


def work_of(giant: Giant, kernel: str, address: int | None = None) -> Work:
    """Count the work of a full scan after the first.

    Parameters
    ----------
    giant : Giant
    kernel : str
        Version, as for a Host.
    address : int, optional
        Where it lies, bytes: how many entries there are above it depends on that.

    Returns
    -------
    Work

    Models: the scan of that kernel, by its way of finding the next page. Differs: as `Scan.work`.
    """
    host = Host(_FRAMES, kernel=kernel)
    mm = host.new_mm()
    start = mm.mmap(giant.span, addr=address, noreserve=True)
    for advice in ("nohugepage", "mergeable"):
        mm.madvise(start, giant.span, advice)
    at = np.uint64(start) + np.array(giant.offsets(), np.uint64)
    mm.write_at(at, np.arange(1, giant.pages + 1, dtype=np.uint64))
    if host.ksm.has("smart_scan"):
        host.ksm.smart_scan = 0
    host.ksm.full_scan()
    host.ksm.scan.reset_work()
    host.ksm.full_scan()
    work = host.ksm.scan.work
    entries = sum(work[level] for level in ("pgd", "p4d", "pud", "pmd", "pte") if level in work)
    return Work(work["found"], work["lookups"], entries)


def costs_of(samples: Sequence[tuple[Work, float]]) -> tuple[dict[str, float], float]:
    """What each kind of work costs: the costs that explain some scans best, none of them negative.

    Parameters
    ----------
    samples : sequence of (Work, float)
        The work of a scan, and the seconds that it took.

    Returns
    -------
    (dict of str to float, float)
        Seconds for each of `COSTS`, and the largest relative difference that is left.
    """
    seconds = np.array([took for _, took in samples])
    counts = np.array([work.counts() for work, _ in samples])
    found, _ = not_negative(counts / seconds[:, None], np.ones(len(seconds)))
    costs = dict(zip(COSTS, found.tolist(), strict=True))
    left: NDArray[np.float64] = np.abs(np.array([predicted(work, costs) for work, _ in samples]) / seconds - 1)
    return costs, float(left.max())


def predicted(work: Work, costs: dict[str, float]) -> float:
    """Seconds that a full scan must take by its work and what that costs.

    Parameters
    ----------
    work : Work
    costs : dict of str to float
        From `costs_of`.

    Returns
    -------
    float
    """
    return sum(times * costs[name] for name, times in zip(COSTS, work.counts(), strict=True))
