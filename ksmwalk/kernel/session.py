"""The machine's KSM, taken: ksmd stepped batch by batch, its counters, what this kernel has and has not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..layout import PAGE_SIZE as PAGE
from ..proc import processes
from ..scenarios import records
from ..scenarios.format import Scenario
from ..scenarios.ops import HEAPS, IO_URING, MERGE_ANY, NODES, SWAP, USERFAULTFD
from . import devices, fitting, knobs, pages, signals, surround, trace, worker
from .knobs import KSM, KernelUnavailable
from .run import MERGING, PR_GET_MEMORY_MERGE, STAT_NAMES, Disturbed, Run

_libc = ctypes.CDLL(None, use_errno=True)
_MOVE_PAGES, _USERFAULTFD, _IO_URING_SETUP = 279, 323, 425
_PR_SET_MM, _PR_SET_MM_MAP_SIZE = 35, 15
_NODES = Path("/sys/devices/system/node")

#: two huge times between batches: writing the other one wakes ksmd for exactly one batch
LONG = ("4000000000", "4000000001")


class Session:
    """The machine's KSM, taken; runs any number of scenarios. Use :func:`session`.

    Attributes
    ----------
    kernel : str
        What the running kernel calls itself.
    left_out : list of str
        What this kernel does not show, in words.
    ignore : set of str
        The same as field names for :func:`ksmwalk.scenarios.compare.first_difference`.
    """

    kernel: str = os.uname().release

    def __init__(self, events: trace.Events | None):
        self._events = events
        self._kinds = pages.FrameKinds()
        pid = processes.kernel_thread("ksmd")
        if pid is None:
            raise KernelUnavailable("no ksmd among the processes")
        self._ksmd = [os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in ("stat", "syscall")]
        self._run = os.open(KSM / "run", os.O_RDWR)
        self._sleep = os.open(KSM / "sleep_millisecs", os.O_WRONLY)
        self._tick = 0
        self._counters = {name: os.open(KSM / name, os.O_RDONLY) for name in records.COUNTERS if (KSM / name).exists()}
        # for the drain: a page of our own that is asked to go where it is
        self._page = mmap.mmap(-1, PAGE)
        self._page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._drain_args = (ctypes.c_void_p * 1)(address), (ctypes.c_int * 1)(0), (ctypes.c_int * 1)(0)
        self._look_for_features()
        surround.engage()

    def _look_for_features(self) -> None:
        self.left_out: list[str] = []
        self.ignore: set[str] = set()
        for name in records.COUNTERS:
            if name not in self._counters:
                self.left_out.append(f"no counter {name}")
                self.ignore.add(name)
        if self._events is None:
            self.left_out.append("no trace events of KSM (tracefs)")
            self.ignore.add("t")
        stat = Path("/proc/self/ksm_stat")
        have = stat.read_text() if stat.exists() else ""
        self.merging_file: bool = MERGING not in have and Path(f"/proc/self/{MERGING}").exists()
        for name, short in zip(STAT_NAMES, records.STATS, strict=True):
            if name not in have and not (name == MERGING and self.merging_file):
                self.left_out.append(f"no {name} in ksm_stat")
                self.ignore.add(short)
        self.missing: set[str] = {name for name in knobs.DEFAULTS if not (KSM / name).exists()}
        self.left_out += [f"no knob {name}" for name in sorted(self.missing)]
        # what operations need and this kernel lacks
        self.lacking: set[str] = set()
        if _libc.prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) < 0:
            self.lacking.add(MERGE_ANY)
            self.left_out.append(f"no {MERGE_ANY}")
        for what, number in ((USERFAULTFD, _USERFAULTFD), (IO_URING, _IO_URING_SETUP)):
            # with arguments that it refuses where it is
            if _libc.syscall(number, -1, 0) < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
                self.lacking.add(what)
        if _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP_SIZE, ctypes.byref(ctypes.c_uint()), 0, 0) < 0:
            self.lacking.add(HEAPS)
        if len(list(_NODES.glob("node[0-9]*"))) < 2:
            self.lacking.add(NODES)
        if devices.no_swap():
            self.lacking.add(SWAP)

    def lacks(self, scenario: Scenario) -> str | None:
        """Return what a scenario needs and this machine has not, in words, or None.

        Parameters
        ----------
        scenario : Scenario

        Returns
        -------
        str or None
        """
        cpus = {op[2] for op in scenario.ops if op[0] == "cpu"} - os.sched_getaffinity(0)
        if cpus:
            return f"no CPU {min(cpus)} to run on"
        return fitting.lacks(scenario, self.lacking) or surround.lacking(scenario.env)

    def fit(self, scenario: Scenario) -> Scenario | None:
        """Return a scenario as this kernel can run it, the model likewise.

        Parameters
        ----------
        scenario : Scenario

        Returns
        -------
        Scenario or None
            Itself where the kernel lacks nothing it uses; without the knobs that there are not; None where it is
            about something that there is not.
        """
        return None if self.lacks(scenario) else fitting.fit(scenario, self.missing)

    def close(self) -> None:
        """Close all files."""
        self._kinds.close()
        for fd in [*self._ksmd, self._run, self._sleep, *self._counters.values()]:
            os.close(fd)

    # ------------------------------------------------------------ ksmd

    def drain(self) -> None:
        """Drain the per-CPU LRU batches of all CPUs: every move_pages(2) starts with that."""
        address, node, status = self._drain_args
        if _libc.syscall(_MOVE_PAGES, 0, 1, address, node, status, 2) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"move_pages: {os.strerror(number)}")

    def move_pages(self, pid: int, addresses: list[int], node: int | None, flags: int = 0) -> list[int]:
        """Move pages of a process with one call (None: only ask); the node where each is then, or -errno.

        OSError where the call itself is refused.
        """
        n = len(addresses)
        if n == 0:
            return []
        where, status = (ctypes.c_void_p * n)(*addresses), (ctypes.c_int * n)()
        to = None if node is None else (ctypes.c_int * n)(*[node] * n)
        if _libc.syscall(_MOVE_PAGES, pid, n, where, to, status, flags) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"move_pages: {os.strerror(number)}")
        return list(status)

    def settle(self) -> None:
        """Wait until ksmd sleeps and KSM's mutex has been had once."""
        stat, syscall = self._ksmd
        while True:
            if not os.pread(syscall, 32, 0).startswith(b"running"):
                text = os.pread(stat, 64, 0)
                if text[text.rindex(b")") + 2 :][:1] == b"S":
                    break
            time.sleep(0)
        # a write of what is there already takes the mutex and does nothing else
        os.pwrite(self._run, os.pread(self._run, 8, 0), 0)

    def tick(self) -> None:
        """Wake ksmd for one batch, if it is between batches."""
        self._tick ^= 1
        os.pwrite(self._sleep, LONG[self._tick].encode(), 0)

    def counters(self) -> dict[str, int]:
        """Return the counters as they stand."""
        return {name: int(os.pread(fd, 32, 0)) for name, fd in self._counters.items()}

    def write_run(self, value: int) -> int:
        """Write `run`; 0 or -errno."""
        try:
            os.pwrite(self._run, str(value).encode(), 0)
        except OSError as error:
            return -(error.errno or 0)
        return 0

    # ------------------------------------------------------------ one scenario

    def records(self, scenario: Scenario) -> Iterator[dict[str, Any]]:
        """Run a scenario and yield its records as they come.

        Parameters
        ----------
        scenario : Scenario

        Yields
        ------
        dict

        Raises
        ------
        ScenarioError
            A tunable is refused, or a page number lies where the worker itself lives.
        Disturbed
            Another process used KSM meanwhile.
        """
        with Run(self, scenario) as run:
            yield from run.records()

    def record(self, scenario: Scenario, attempts: int = 3) -> list[dict[str, Any]]:
        """Run a scenario and return its records; starts over where somebody else disturbed it."""
        for attempt in range(attempts):
            try:
                return list(self.records(scenario))
            except Disturbed:
                if attempt + 1 == attempts:
                    raise
        raise AssertionError("no attempt")


@contextlib.contextmanager
def session(say: Callable[[str], None] | None = None, wait: float | None = None) -> Iterator[Session]:
    """Take the machine's KSM for any number of scenarios; everything is put back on any way out.

    Parameters
    ----------
    say : callable of str, optional
        Told what takes time or is changed for the time being; default: print to stderr.
    wait : float, optional
        Seconds to wait for the lock at most; default: for ever.

    Raises
    ------
    KernelUnavailable
        The machine's KSM can't be taken; nothing has been changed.
    """
    if reason := worker.available():
        raise KernelUnavailable(reason)
    with knobs.taken(say, wait), trace.events(say) as events:
        made = Session(events)
        try:
            yield made
        finally:
            with signals.held():
                made.close()
