"""The real ksmd run operation by operation and batch by batch, so that what it shows repeats exactly.

What makes it deterministic: LRU batches drained before each operation, no chain pruning by the clock unless the
scenario wants it, khugepaged asleep, nobody else's memory mergeable, processes that own nothing but the scenario's
pages, and nothing read before the batch is over.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..scenarios import records
from ..scenarios.format import ADVICE, PAGE, Recording, Scenario, ScenarioError
from . import knobs, pages, trace, worker
from .knobs import KSM, KernelUnavailable
from .pages import Process

_libc = ctypes.CDLL(None, use_errno=True)
_MOVE_PAGES = 279
_MREMAP, _MUNMAP, _MPROTECT, _MADVISE, _PRCTL, _MMAP = 25, 11, 10, 28, 157, 9
_PR_SET_MEMORY_MERGE, _PR_GET_MEMORY_MERGE, _PR_SET_THP_DISABLE = 67, 68, 41
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANON, _MAP_NORESERVE, _MAP_POPULATE = 1, 2, 0x10, 0x20, 0x4000, 0x8000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2

#: two huge times between batches: writing the other one wakes ksmd for exactly one batch
_LONG = ("4000000000", "4000000001")

#: what a kernel without a knob does; the model is set to it
WITHOUT = {"smart_scan": 0, "use_zero_pages": 0, "merge_across_nodes": 1}

STAT_NAMES = (
    "ksm_rmap_items",
    "ksm_zero_pages",
    "ksm_merging_pages",
    "ksm_process_profit",
    "ksm_merge_any",
    "ksm_mergeable",
)


class Disturbed(RuntimeError):
    """Somebody else used KSM meanwhile: what was seen is worth nothing, start over."""


class Session:
    """The machine's KSM, taken; runs any number of scenarios. Use :func:`session`.

    Attributes
    ----------
    left_out : list of str
        What this kernel does not show, in words.
    ignore : set of str
        The same as field names for :func:`ksmwalk.compare.first_difference`.
    """

    def __init__(self, events: trace.Events | None):
        self._events = events
        self._kinds = pages.FrameKinds()
        pids = [entry.name for entry in os.scandir("/proc") if entry.name.isdigit() and _comm(entry.name) == "ksmd"]
        if not pids:
            raise KernelUnavailable("no ksmd among the processes")
        self._ksmd = [os.open(f"/proc/{pids[0]}/{name}", os.O_RDONLY) for name in ("stat", "syscall")]
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
        for name, short in zip(STAT_NAMES, records.STATS, strict=True):
            if name not in have:
                self.left_out.append(f"no {name} in ksm_stat")
                self.ignore.add(short)
        self.missing = {name for name in knobs.DEFAULTS if not (KSM / name).exists()}
        self.left_out += [f"no knob {name}" for name in sorted(self.missing)]
        self.has_prctl = _libc.prctl(_PR_GET_MEMORY_MERGE, 0, 0, 0, 0) >= 0
        if not self.has_prctl:
            self.left_out.append("no PR_SET_MEMORY_MERGE")

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
        if not self.has_prctl and any(op[0] in ("prctl", "prctl_get") for op in scenario.ops):
            return None
        if not self.missing:
            return scenario
        tunables = {knob: value for knob, value in scenario.tunables.items() if knob not in self.missing}
        tunables |= {knob: value for knob, value in WITHOUT.items() if knob in self.missing}
        ops = [op for op in scenario.ops if op[0] != "set" or op[1] not in self.missing]
        return Scenario(scenario.name, ops, scenario.note, tunables)

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
        os.pwrite(self._sleep, _LONG[self._tick].encode(), 0)

    def counters(self) -> dict[str, int]:
        """Return the counters as they stand."""
        return {name: int(os.pread(fd, 32, 0)) for name, fd in self._counters.items()}

    def write_run(self, value: int) -> int:
        """Write `run`; 0 or -errno."""
        try:
            os.pwrite(self._run, str(value).encode(), 0)
        except OSError as error:
            return -error.errno
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
        with _Run(self, scenario) as run:
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


class _Run:
    """One scenario on its way."""

    def __init__(self, session: Session, scenario: Scenario):
        self.session = session
        self.scenario = scenario
        self.recorder = records.Recorder(events=session._events is not None)
        self.live: dict[str, Process] = {}
        self.name_of_mm: dict[str, str] = {}

    def __enter__(self) -> _Run:
        session = self.session
        names = list(dict.fromkeys(op[-1] for op in self.scenario.ops if op[0] in ("spawn", "fork")))
        for index, op in enumerate(self.scenario.ops):
            self._check_place(index, op)
        knobs.reset()
        # out of the wait between batches into the long one, where the first process to come wakes it
        session.tick()
        session.settle()
        for knob, value in self.scenario.tunables.items():
            if knob in session.missing and value == WITHOUT.get(knob):
                continue
            if error := knobs.write(knob, value):
                raise ScenarioError(f"{self.scenario.name}: tunables: {knob}", os.strerror(-error), value)
        counters = session.counters()
        self.base = {name: counters.get(name, 0) for name in ("pages_scanned", "pages_skipped", "ksm_zero_pages")}
        # Some ways out of a KSM-placed zero page (MADV_FREE before, say) leave this counter too high for ever.
        self.base["general_profit"] = self.base["ksm_zero_pages"] * PAGE
        if session._events is not None:
            session._events.read()
        self.pool = worker.Pool(names)
        return self

    def __exit__(self, *_) -> None:
        for process in self.live.values():
            process.close()
        self.pool.close()
        self.session.write_run(2)

    def _check_place(self, index: int, op: list[Any]) -> None:
        ends = []
        if op[0] in ("mmap", "munmap", "mprotect", "madvise", "uffd_wp"):
            ends = [op[2] + op[3]]
        elif op[0] == "mremap":
            ends = [op[2] + max(op[3], op[4]), (op[5] or 0) + op[4]]
        elif op[0] == "fill":
            ends = [op[2] + len(op[3])]
        elif op[0] in ("write", "pwrite"):
            ends = [vpn + 1 for vpn, _ in op[2]]
        elif op[0] == "touch":
            ends = [vpn + 1 for vpn in op[2]]
        elif op[0] == "memset":
            ends = [op[2] + -(-op[4] // PAGE)]
        if ends and max(ends) > worker.LIMIT_VPN:
            where = f"{self.scenario.name}: op {index} {op[0]}"
            raise ScenarioError(where, f"pages from {worker.LIMIT_VPN} on are the worker's own", max(ends) - 1)

    def records(self) -> Iterator[dict[str, Any]]:
        session = self.session
        for _, op in self.scenario.steps():
            session.drain()
            ret = getattr(self, "do_" + op[0])(*op[1:])
            session.settle()
            counters = session.counters()
            for name, base in self.base.items():
                if name in counters:
                    counters[name] -= base
            told = self._told(op) if session._events is not None else ()
            yield self.recorder.record(op, ret, counters, self._stats(), self._pages(), told)

    def _stats(self) -> dict[str, list[int]]:
        out = {}
        for name, process in self.live.items():
            fd = process.files()[1]
            if fd < 0:
                out[name] = [0] * len(STAT_NAMES)
                continue
            text = os.pread(fd, 512, 0).decode().replace(":", "").split()
            values = dict(zip(text[::2], text[1::2], strict=True))
            out[name] = [_number(values.get(field, "0")) for field in STAT_NAMES]
        return out

    def _pages(self) -> dict[str, records.Pages]:
        found = {name: pages.present(p.files()[0], p.disjoint()) for name, p in self.live.items()}
        kinds: Callable = self.session._kinds
        return {name: (vpns, frames, kinds(frames)) for name, (vpns, frames) in found.items()}

    def _told(self, op: list[Any]) -> list[tuple]:
        """The events with our names in the place of the kernel's pointers."""
        out = []
        ours = {process.pid for process in self.live.values()}
        for event in self.session._events.read():
            what = event[0]
            if what == "enter":
                _, mm, pid = event
                if pid not in ours:
                    raise Disturbed(f"process {pid} registered with KSM")
                # a child is registered by its parent
                self.name_of_mm[mm] = op[2] if op[0] == "fork" else op[1]
                out.append((what, self.name_of_mm[mm]))
                continue
            place = {"exit": 1, "new": 2, "add": 2, "zero": 1, "rmi": 2}.get(what)
            if place is not None:
                if event[place] not in self.name_of_mm:
                    raise Disturbed(f"KSM worked on a process that is not the scenario's: {event}")
                event = (*event[:place], self.name_of_mm[event[place]], *event[place + 1 :])
                if what == "exit":
                    event = event[:2]
            out.append(event)
        return out

    # ------------------------------------------------------------ the operations, each returning 0 or what it got

    def do_spawn(self, name: str) -> int:
        self.live[name] = Process(self.pool.spawn(name))
        return 0

    def do_exit(self, name: str) -> int:
        self.live.pop(name).close()
        self.pool.exit(name)
        return 0

    def do_exec(self, name: str) -> int:
        process = self.live[name]
        ret = self.pool.exec(name)
        if ret == 0:
            process.close()
            process.spans.clear()
        return ret

    def do_fork(self, parent: str, child: str) -> int:
        pid = self.pool.fork(parent, child)
        if pid < 0:
            return pid
        self.live[child] = Process(pid, self.live[parent].spans)
        return 0

    def do_mmap(self, name: str, vpn: int, n: int, options: dict[str, Any] | None = None) -> int:
        options = options or {}
        flags = _MAP_FIXED | _MAP_ANON | (_MAP_SHARED if options.get("shared") else _MAP_PRIVATE)
        flags |= _MAP_NORESERVE if options.get("noreserve") else 0
        flags |= _MAP_POPULATE if options.get("populate") else 0
        prot = _prot(options.get("prot", "rw"))
        ret = self.pool.syscall(name, _MMAP, vpn * PAGE, n * PAGE, prot, flags, -1, 0)
        if ret < 0 and ret > -PAGE:
            return ret
        self.live[name].add(vpn, n)
        return 0

    def do_munmap(self, name: str, vpn: int, n: int) -> int:
        return self.pool.syscall(name, _MUNMAP, vpn * PAGE, n * PAGE)

    def do_mremap(self, name: str, vpn: int, n: int, new_n: int, new_vpn: int | None) -> int:
        flags = 0 if new_vpn is None else _MREMAP_MAYMOVE | _MREMAP_FIXED
        ret = self.pool.syscall(name, _MREMAP, vpn * PAGE, n * PAGE, new_n * PAGE, flags, (new_vpn or 0) * PAGE)
        if ret < 0 and ret > -PAGE:
            return ret
        self.live[name].add(vpn if new_vpn is None else new_vpn, new_n)
        return 0

    def do_mprotect(self, name: str, vpn: int, n: int, prot: str) -> int:
        return self.pool.syscall(name, _MPROTECT, vpn * PAGE, n * PAGE, _prot(prot))

    def do_madvise(self, name: str, vpn: int, n: int, advice: str) -> int:
        return self.pool.syscall(name, _MADVISE, vpn * PAGE, n * PAGE, ADVICE[advice])

    def do_fill(self, name: str, vpn: int, contents: list[int | None]) -> int:
        pairs = [[vpn + i, content] for i, content in enumerate(contents) if content is not None]
        return self.do_write(name, pairs)

    def do_write(self, name: str, pairs: list[list[int]]) -> int:
        return self.pool.do(name, worker.STORE, [word for pair in pairs for word in pair])

    def do_touch(self, name: str, vpns: list[int]) -> int:
        return self.pool.do(name, worker.TOUCH, vpns)

    def do_memset(self, name: str, vpn: int, byte: int, length: int) -> int:
        return self.pool.do(name, worker.MEMSET, [vpn * PAGE, byte, length])

    def do_pwrite(self, name: str, pairs: list[list[int]]) -> int:
        try:
            fd = os.open(f"/proc/{self.live[name].pid}/mem", os.O_RDWR)
            try:
                for vpn, content in pairs:
                    os.pwrite(fd, content.to_bytes(8, "big") + bytes(PAGE - 8), vpn * PAGE)
            finally:
                os.close(fd)
        except OSError as error:
            return -error.errno
        return 0

    def do_prctl(self, name: str, value: int) -> int:
        return self.pool.syscall(name, _PRCTL, _PR_SET_MEMORY_MERGE, value, 0, 0, 0)

    def do_prctl_get(self, name: str) -> int:
        return self.pool.syscall(name, _PRCTL, _PR_GET_MEMORY_MERGE, 0, 0, 0, 0)

    def do_thpdisable(self, name: str, value: int) -> int:
        return self.pool.syscall(name, _PRCTL, _PR_SET_THP_DISABLE, value, 0, 0, 0)

    def do_uffd_wp(self, name: str, vpn: int, n: int) -> int:
        return self.pool.do(name, worker.UFFD_WP, [vpn * PAGE, n * PAGE])

    def do_syscall(self, name: str, *words: int) -> int:
        return self.pool.syscall(name, *words)

    def do_set(self, knob: str, value: int | str) -> int:
        return knobs.write(knob, value)

    def do_run(self, value: int) -> int:
        ret = self.session.write_run(value)
        if ret == 0 and value != 1:
            # from between two batches into the long wait, so that run=1 scans at once
            self.session.tick()
        return ret

    def do_step(self) -> int:
        self.session.tick()
        return 0

    def do_sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return 0

    def do_drain(self) -> int:
        self.session.drain()
        return 0


def _comm(pid: str) -> str:
    with contextlib.suppress(OSError):
        return Path("/proc", pid, "comm").read_text().strip()
    return ""


def _number(text: str) -> int:
    return {"yes": 1, "no": 0}[text] if text in ("yes", "no") else int(text)


def _prot(text: str) -> int:
    return 0 if text == "none" else sum({"r": 1, "w": 2, "x": 4}[letter] for letter in text)


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
            made.close()


def kernel_name() -> str:
    """Return what the running kernel calls itself."""
    return os.uname().release


def record(scenario: Scenario, runs: int = 1, say: Callable[[str], None] | None = None) -> Recording:
    """Run a scenario on the machine's real ksmd and return its records.

    Parameters
    ----------
    scenario : Scenario
    runs : int
        How often; fields that differ between runs are named in the recording's `nondet`.
    say : callable of str, optional
        As for :func:`session`.

    Returns
    -------
    Recording

    Raises
    ------
    KernelUnavailable
        The machine's KSM can't be taken; nothing has been changed.
    """
    with session(say) as taken:
        return record_in(taken, scenario, runs)


def record_in(taken: Session, scenario: Scenario, runs: int = 1) -> Recording:
    """Like :func:`record`, in a session that is open already."""
    from ..scenarios.compare import differing_fields

    first = taken.record(scenario)
    nondet: set[str] = set()
    for _ in range(runs - 1):
        nondet |= differing_fields(first, taken.record(scenario))
    return Recording(scenario, kernel_name(), runs, sorted(nondet), first)
