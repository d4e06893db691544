"""One scenario on the machine's real ksmd: what each operation does there, and what could be seen after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..host import ADVICE
from ..layout import PAGE_SIZE as PAGE
from ..scenarios.format import Scenario, ScenarioError
from ..scenarios.ops import row
from ..scenarios.records import Pages, Recorder
from . import knobs, pages, signals, worker
from .pages import Process

if TYPE_CHECKING:
    from .session import Session

# numbers of x86-64, which the worker is made for
_MREMAP, _MUNMAP, _MPROTECT, _MADVISE, _PRCTL, _MMAP = 25, 11, 10, 28, 157, 9
_PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE, _PR_SET_THP_DISABLE = 67, 68, 41
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANON, _MAP_NORESERVE, _MAP_POPULATE = 1, 2, 0x10, 0x20, 0x4000, 0x8000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
#: what a system call returns from here up to -1 is an error, what is below is an address
_MAX_ERRNO = 4095

#: raw system calls that a scenario may make here, as root: they touch nothing but the worker's own memory
HARMLESS = {39: "getpid", 149: "mlock", 150: "munlock", 151: "mlockall", 152: "munlockall", 325: "mlock2"}

#: what a kernel without a knob does; the model is set to it
WITHOUT = {"smart_scan": 0, "use_zero_pages": 0, "merge_across_nodes": 1}

#: names in ksm_stat of what a record holds of a process, in its order
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


def check(scenario: Scenario) -> None:
    """Refuse a scenario that may not be run on a real kernel; nothing of it has been run then.

    Parameters
    ----------
    scenario : Scenario

    Raises
    ------
    ScenarioError
        A raw system call that is not in `HARMLESS`, or pages where the worker itself lives; file, operation and value
        are named.
    """
    for index, op in enumerate(scenario.ops):
        where = f"{scenario.name}: op {index} {op[0]}"
        if op[0] == "syscall" and op[2] not in HARMLESS:
            allowed = ", ".join(f"{number} {name}" for number, name in HARMLESS.items())
            raise ScenarioError(where, f"a raw system call runs as root, so it is one of {allowed}, not", op[2])
        end = max((vpn + n for vpn, n in row(op).spans(op)), default=0)
        if end > worker.LIMIT_VPN:
            raise ScenarioError(where, f"pages from {worker.LIMIT_VPN} on are the worker's own", end - 1)


class Run:
    """One scenario on its way."""

    def __init__(self, session: Session, scenario: Scenario):
        self.session = session
        self.scenario = scenario
        self.recorder: Recorder = Recorder(events=session._events is not None)
        self.live: dict[str, Process] = {}
        self.name_of_mm: dict[str, str] = {}

    def __enter__(self) -> Run:
        session = self.session
        check(self.scenario)
        made = (row(op).made(op) for op in self.scenario.ops)
        names = list(dict.fromkeys(name for name in made if name is not None))
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
        self.base: dict[str, int] = {name: counters.get(name, 0) for name in ("pages_scanned", "pages_skipped", "ksm_zero_pages")}
        # Some ways out of a KSM-placed zero page (MADV_FREE before, say) leave this counter too high for ever.
        self.base["general_profit"] = self.base["ksm_zero_pages"] * PAGE
        if session._events is not None:
            session._events.read()
        self.pool: worker.Pool = worker.Pool(names)
        return self

    def __exit__(self, *_: object) -> None:
        with signals.held():
            for process in self.live.values():
                process.close()
            self.pool.close()
            self.session.write_run(2)

    def records(self) -> Iterator[dict[str, Any]]:
        session = self.session
        for index, op in self.scenario.steps():
            for name in row(op).processes(op):
                if name not in self.live:
                    where = f"{self.scenario.name}: op {index} {op[0]}"
                    raise ScenarioError(where, "its fork failed, so there is no process", name)
            session.drain()
            ret = getattr(self, "do_" + op[0])(*op[1:])
            session.settle()
            counters = session.counters()
            for name, base in self.base.items():
                if name in counters:
                    counters[name] -= base
            told = self._told(op)
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

    def _pages(self) -> dict[str, Pages]:
        found = {name: pages.present(p.files()[0], p.disjoint(), p.pid) for name, p in self.live.items()}
        kinds = self.session._kinds
        return {name: (vpns, frames, kinds(frames)) for name, (vpns, frames) in found.items()}

    def _told(self, op: list[Any]) -> list[tuple[Any, ...]]:
        """The events with our names in the place of the kernel's pointers."""
        out: list[tuple[Any, ...]] = []
        ours = {process.pid for process in self.live.values()}
        for event in self.session._events.read() if self.session._events is not None else ():
            what = event[0]
            if what == "enter":
                _, mm, pid = event
                if pid not in ours:
                    raise Disturbed(f"process {pid} registered with KSM")
                # a child is registered by its parent
                self.name_of_mm[mm] = row(op).made(op) or op[1]
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
        if -_MAX_ERRNO <= ret < 0:
            return ret
        self.live[name].add(vpn, n)
        return 0

    def do_munmap(self, name: str, vpn: int, n: int) -> int:
        return self.pool.syscall(name, _MUNMAP, vpn * PAGE, n * PAGE)

    def do_mremap(self, name: str, vpn: int, n: int, new_n: int, new_vpn: int | None) -> int:
        flags = 0 if new_vpn is None else _MREMAP_MAYMOVE | _MREMAP_FIXED
        ret = self.pool.syscall(name, _MREMAP, vpn * PAGE, n * PAGE, new_n * PAGE, flags, (new_vpn or 0) * PAGE)
        if -_MAX_ERRNO <= ret < 0:
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
            return -(error.errno or 0)
        return 0

    def do_prctl(self, name: str, value: int) -> int:
        return self.pool.syscall(name, _PRCTL, _PR_SET_MEMORY_MERGE, value, 0, 0, 0)

    def do_prctl_get(self, name: str) -> int:
        return self.pool.syscall(name, _PRCTL, PR_GET_MEMORY_MERGE, 0, 0, 0, 0)

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


def _number(text: str) -> int:
    return {"yes": 1, "no": 0}[text] if text in ("yes", "no") else int(text)


def _prot(text: str) -> int:
    return 0 if text == "none" else sum({"r": 1, "w": 2, "x": 4}[letter] for letter in text)
