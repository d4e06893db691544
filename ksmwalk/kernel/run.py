"""One scenario on the machine's real ksmd: what each operation does there, and what could be seen after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layout import PAGE_SIZE as PAGE
from ..scenarios.format import Scenario, ScenarioError
from ..scenarios.ops import MERGE_ANY, MOVING, row, shows_swap_entries
from ..scenarios.records import STATS, Pages, Recorder
from . import knobs, pages, signals, surround, worker
from .knobs import KernelUnavailable
from .pages import Process
from .run_memory import Memory
from .run_outside import Outside
from .run_pages import Held
from .run_tasks import PR_GET_MEMORY_MERGE, Tasks

if TYPE_CHECKING:
    from .session import Session

__all__ = ["HARMLESS", "PR_GET_MEMORY_MERGE", "STAT_NAMES", "WITHOUT", "Disturbed", "Run", "check"]

#: raw system calls that a scenario may make here, as root: they touch nothing but the worker's own memory
HARMLESS = {39: "getpid", 149: "mlock", 150: "munlock", 151: "mlockall", 152: "munlockall", 325: "mlock2"}

#: what a kernel without a knob does; the model is set to it
WITHOUT = {"smart_scan": 0, "use_zero_pages": 0, "merge_across_nodes": 1}

#: in a file of its own before ksm_stat showed it
MERGING = "ksm_merging_pages"
#: names in ksm_stat of what a record holds of a process, in its order
STAT_NAMES = tuple(f"ksm_{name}" for name in STATS)


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


class Run(Held, Memory, Tasks, Outside):
    """One scenario on its way."""

    def __init__(self, session: Session, scenario: Scenario):
        self.session = session
        self.scenario = scenario
        self.recorder: Recorder = Recorder(events=session._events is not None)
        self.live: dict[str, Process] = {}
        self.name_of_mm: dict[str, str] = {}
        self.around: surround.Surroundings = surround.Surroundings(scenario.env)
        self.placed: bool = any(op[0] in MOVING for op in scenario.ops)
        self.swapped: bool = shows_swap_entries(scenario)

    def __enter__(self) -> Run:
        session = self.session
        check(self.scenario)
        # what only the kernel itself lacks it may say itself
        if (what := session.lacks(self.scenario)) and what != f"no {MERGE_ANY}":
            raise ScenarioError(f"{self.scenario.name}: it can't be run on this machine", what, self.scenario.env)
        made = (row(op).made(op) for op in self.scenario.ops)
        names = list(dict.fromkeys(name for name in made if name is not None))
        knobs.reset()
        try:
            self.around.__enter__()
        except KernelUnavailable as error:
            raise ScenarioError(f"{self.scenario.name}: env", str(error), self.scenario.env) from None
        try:
            return self._started(names)
        except BaseException:
            with signals.held():
                self.around.__exit__()
            raise

    def _started(self, names: list[str]) -> Run:
        session = self.session
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
        self.counted: dict[str, int] = {}
        self._vmstat()
        self.pool: worker.Pool = worker.Pool(names)
        return self

    def __exit__(self, *_: object) -> None:
        with signals.held():
            for process in self.live.values():
                process.close()
            self.pool.close()
            self.session.write_run(2)
            self.around.__exit__()

    def records(self) -> Iterator[dict[str, Any]]:
        session = self.session
        for index, op in self.scenario.steps():
            for name in row(op).processes(op):
                if name not in self.live:
                    where = f"{self.scenario.name}: op {index} {op[0]}"
                    raise ScenarioError(where, "its fork failed, so there is no process", name)
                self.not_waiting(f"{self.scenario.name}: op {index} {op[0]}", name, op)
            if self.scenario.settle:
                session.drain()
            ret = getattr(self, "do_" + op[0])(*op[1:])
            session.settle()
            counters = session.counters()
            for name, base in self.base.items():
                if name in counters:
                    counters[name] -= base
            told = self._told(op)
            seen = self._pages()
            if session._kinds.lies and session._events is not None:
                self.recorder.sift_ksm(seen, told, op[0], self._like(op))
            if session._events is not None and op[0] in MOVING and (moved := self.recorder.moves(seen)):
                told.append(("moved", moved))
            yield self.recorder.record(
                op, ret, counters, self._stats(), seen, told, self._vmstat(), self._nodes(seen) if self.placed else None
            )

    def _vmstat(self) -> dict[str, int]:
        """By what the counters that the scenario asks for have changed since the last call."""
        if not self.scenario.vmstat:
            return {}
        before = self.counted
        rows = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        self.counted = {name: int(value) for name, value in rows if name in self.scenario.vmstat}
        return {name: value - before.get(name, value) for name, value in self.counted.items()}

    def _stats(self) -> dict[str, list[int | None]]:
        """What the kernel shows of each process, None of what it does not."""
        out: dict[str, list[int | None]] = {}
        for name, process in self.live.items():
            fd = process.files()[1]
            text = os.pread(fd, 512, 0).decode().replace(":", "").split() if fd >= 0 else []
            values = dict(zip(text[::2], text[1::2], strict=True))
            if self.session.merging_file:
                values[MERGING] = Path(f"/proc/{process.pid}/{MERGING}").read_text().strip()
            out[name] = [_number(values[field]) if field in values else None for field in STAT_NAMES]
        return out

    def _pages(self) -> dict[str, Pages]:
        own = {name: process for name, process in self.live.items() if process.shown_under is None}
        found = {name: pages.present(p.files()[0], p.disjoint(), p.pid, self.swapped) for name, p in own.items()}
        kinds = self.session._kinds
        return {name: (vpns, frames, kinds(frames)) for name, (vpns, frames) in found.items()}

    def _like(self, op: list[Any]) -> dict[str, str]:
        """A child whose parent is shown under one that has ended has what that had."""
        child = row(op).made(op)
        parent = self.live[op[1]].shown_under if child in self.live else None
        return {child: parent} if child and parent else {}

    def _nodes(self, seen: dict[str, Pages]) -> dict[str, np.ndarray]:
        """The NUMA nodes of pages, -1 of a zero page or a swap entry."""
        ask = self.session.move_pages
        return {
            name: np.maximum(np.array(ask(self.live[name].pid, (vpn * PAGE).tolist(), None), np.int64), -1)
            for name, (vpn, _, _) in seen.items()
        }

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
                name = row(op).made(op) or op[1]
                self.name_of_mm[mm] = self.live[name].shown_under or name if name in self.live else name
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


def _number(text: str) -> int:
    return {"yes": 1, "no": 0}[text] if text in ("yes", "no") else int(text)
