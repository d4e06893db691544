"""Scenarios in the model: run their operations on a Host, one after the other, and record what could be seen."""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..host.host import Host
from ..host.mm import Mm
from ..layout import Event, Frame
from .format import PAGE, Recording, Scenario, ScenarioError
from .records import ANON, HUGE, KSM, OTHER, ZERO, Record, Recorder

__all__ = ["NotModelled", "Replay", "modelled", "replay"]

#: raw system calls (x86-64 numbers) the model has: name of the Mm's method
SYSCALLS = {149: "mlock", 150: "munlock"}

#: frames of a Host made for a scenario: those it may touch at most, with room for copies
LEAST_FRAMES = 1 << 14

#: where a process has its program: above all pages of a scenario
PROGRAM = (1 << 47) - (1 << 21)


class NotModelled(ValueError):
    """An operation that the model does not have.

    Attributes
    ----------
    op : list
        The operation.
    """

    def __init__(self, where: str, op: list[Any]):
        super().__init__(f"{where}: not modelled: {op}")
        self.op = op


def modelled(scenario: Scenario) -> list[Any] | None:
    """Return the first operation of a scenario that the model does not have, None if it has them all."""
    for op in scenario.ops:
        if op[0] == "syscall" and op[2] not in SYSCALLS:
            return op
    return None


# ---------------------------------------------------------------- contents


class _NewContent(Exception):
    """A content turned up that has no key yet."""


class Contents:
    """Keys for page contents, ordered as memcmp orders the pages.

    A page with content id k holds k as 8 bytes big-endian and zeros, so k itself is the key as long as nothing else
    is ever written. Where a scenario has `memset`, any bytes may turn up: then all contents are ranked, and a new one
    among them means that the run starts again with a key for it too.
    """

    def __init__(self, ops: list[list[Any]]):
        self._ranked = any(op[0] == "memset" for op in ops)
        self._pages = [bytes(PAGE)]
        if self._ranked:
            for op in ops:
                ids = op[3] if op[0] == "fill" else [pair[1] for pair in op[2]] if op[0] in ("write", "pwrite") else ()
                for number in ids:
                    if number is not None:
                        self._add(_page_of(number))

    def _add(self, page: bytes) -> None:
        if page not in self._pages:
            insort(self._pages, page)

    def key(self, number: int) -> int:
        """The key of content id `number`."""
        return self._pages.index(_page_of(number)) if self._ranked else number

    def after_memset(self, key: int, byte: int, length: int) -> int:
        """The key of a page of content `key` whose first `length` bytes are set to `byte`."""
        page = bytes([byte]) * length + self._pages[key][length:]
        if page not in self._pages:
            self._add(page)
            raise _NewContent
        return self._pages.index(page)


def _page_of(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(PAGE - 8)


# ---------------------------------------------------------------- one run


class Replay:
    """One scenario on a Host of its own.

    Parameters
    ----------
    scenario : Scenario
    host : Host, optional
        A fresh Host to run it on; default: one large enough.
    contents : Contents, optional
        Keys of contents.

    Attributes
    ----------
    host : Host
        What it runs on: free to look at between records.

    Models: Linux 6.18 with its LRU batches drained before each operation, khugepaged asleep and nobody else's memory
    mergeable. Differs: see `modelled`.
    """

    def __init__(self, scenario: Scenario, host: Host | None = None, contents: Contents | None = None):
        self.scenario = scenario
        self.host = host or Host(_frames_for(scenario))
        self.contents = contents or Contents(scenario.ops)
        self.recorder = Recorder()
        self.live: dict[str, Mm] = {}
        self.name_of: dict[int, str] = {}
        self._arrays = self.host.world.arrays
        ksm = self.host.ksm
        ksm.events.on = True
        for knob, value in scenario.tunables.items():
            try:
                ksm.write(knob, value)
            except OSError as error:
                raise ScenarioError(f"{scenario.name}: tunables: {knob}", error.strerror, value) from None

    def records(self) -> Iterator[Record]:
        """Run the operations and yield a record after each.

        Raises
        ------
        NotModelled
            The model does not have an operation; it names it.
        """
        for index, op in self.scenario.steps():
            do: Callable[..., int | None] | None = getattr(self, "do_" + op[0], None)
            if do is None or (op[0] == "syscall" and op[2] not in SYSCALLS):
                raise NotModelled(f"{self.scenario.name}: op {index}", op)
            self.host.drain()
            try:
                ret = do(*op[1:]) or 0
            except OSError as error:
                if error.errno is None:
                    raise
                ret = -error.errno
            self.host.ksm.wake()
            yield self.recorder.record(
                op, ret, self.host.ksm.counters(), self._stats(), self._pages(), self._told()
            )

    # ------------------------------------------------------------ what can be seen

    def _stats(self) -> dict[str, list[int]]:
        return {name: [int(value) for value in mm.ksm_stat().values()] for name, mm in self.live.items()}

    def _pages(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return {name: self._pages_of(mm) for name, mm in self.live.items()}

    def _pages_of(self, mm: Mm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        leaves = mm.tables.mappings()
        small = 9 * (leaves["level"].astype(np.int64) - 1)
        pages = np.left_shift(1, small)
        within = np.arange(int(pages.sum())) - np.repeat(np.cumsum(pages) - pages, pages)
        vpn = np.repeat(leaves["addr"].astype(np.int64) >> 12, pages) + within
        frame = np.repeat(leaves["pfn"].astype(np.int64), pages) + within
        flags = self._arrays["f_flags"][frame]
        kind = np.full(len(frame), OTHER)
        anon = flags & Frame.ANON != 0
        kind[anon] = ANON
        kind[anon & (flags & (Frame.HEAD | Frame.TAIL) != 0)] = HUGE
        kind[flags & Frame.KSM != 0] = KSM
        kind[flags & Frame.ZERO != 0] = ZERO
        return vpn, frame, kind

    def _told(self) -> list[tuple]:
        events = self.host.ksm.events
        told: list[tuple] = []
        for kind, mm, a, b, _, err in events.take().tolist():
            name = self.name_of.get(mm, "?")
            match kind:
                case Event.START | Event.STOP:
                    told.append(("start" if kind == Event.START else "stop", a, b))
                case Event.ENTER | Event.EXIT:
                    told.append(("enter" if kind == Event.ENTER else "exit", name))
                case Event.NEW:
                    told.append(("new", a, name, err, b))
                case Event.ADD:
                    told.append(("add", a, name, err, b))
                case Event.ZERO:
                    told.append(("zero", name, err))
                case Event.RMI:
                    told.append(("rmi", a, name, b))
                case Event.RMK:
                    told.append(("rmk", a))
        if events.lost:
            raise RuntimeError(f"{self.scenario.name}: {events.lost} events lost: the ring holds {len(events)}")
        return told

    # ------------------------------------------------------------ processes

    def _born(self, name: str, mm: Mm) -> None:
        self.live[name] = mm
        self.name_of[mm.index] = name

    def _program(self, mm: Mm) -> None:
        """What every process has: a program's private file mapping, mergeable under PR_SET_MEMORY_MERGE."""
        mm.mmap(PAGE, PROGRAM, "rx", kind="file")

    def do_spawn(self, name: str) -> None:
        mm = self.host.new_mm()
        self._program(mm)
        self._born(name, mm)

    def do_fork(self, parent: str, child: str) -> None:
        mm = self.live[parent].fork()
        self._born(child, mm)

    def do_exit(self, name: str) -> None:
        self.live.pop(name).exit()

    def do_exec(self, name: str) -> None:
        mm = self.live[name].exec()
        self._program(mm)
        self._born(name, mm)

    def do_prctl(self, name: str, on: int) -> None:
        self.live[name].prctl_merge(bool(on))

    def do_prctl_get(self, name: str) -> int:
        return int(self.live[name].ksm_stat()["ksm_merge_any"])

    def do_thpdisable(self, name: str, on: int) -> None:
        self.live[name].thp_disable(bool(on))

    # ------------------------------------------------------------ address space

    def do_mmap(self, name: str, vpn: int, n: int, options: dict[str, Any] | None = None) -> None:
        options = options or {}
        mm = self.live[name]
        mm.mmap(
            n * PAGE,
            vpn * PAGE,
            options.get("prot", "rw"),
            shared=bool(options.get("shared")),
            noreserve=bool(options.get("noreserve")),
        )
        if options.get("populate"):
            mm.populate(vpn * PAGE, n * PAGE)

    def do_munmap(self, name: str, vpn: int, n: int) -> None:
        self.live[name].munmap(vpn * PAGE, n * PAGE)

    def do_mremap(self, name: str, vpn: int, n: int, new_n: int, new_vpn: int | None) -> None:
        self.live[name].mremap(vpn * PAGE, n * PAGE, new_n * PAGE, None if new_vpn is None else new_vpn * PAGE)

    def do_mprotect(self, name: str, vpn: int, n: int, prot: str) -> None:
        self.live[name].mprotect(vpn * PAGE, n * PAGE, prot)

    def do_madvise(self, name: str, vpn: int, n: int, advice: str) -> None:
        self.live[name].madvise(vpn * PAGE, n * PAGE, advice)

    def do_uffd_wp(self, name: str, vpn: int, n: int) -> None:
        self.live[name].uffd_wp(vpn * PAGE, n * PAGE)

    def do_syscall(self, name: str, number: int, *words: int) -> None:
        addr, length = words
        getattr(self.live[name], SYSCALLS[number])(addr, length)

    # ------------------------------------------------------------ loads and stores

    def do_fill(self, name: str, vpn: int, contents: list[int | None]) -> None:
        self.do_write(name, [[vpn + i, number] for i, number in enumerate(contents) if number is not None])

    def do_write(self, name: str, pairs: list[list[int]]) -> None:
        mm = self.live[name]
        for vpn, number in pairs:
            mm.write(vpn * PAGE, self.contents.key(number))

    def do_pwrite(self, name: str, pairs: list[list[int]]) -> None:
        mm = self.live[name]
        try:
            for vpn, number in pairs:
                mm.poke(vpn * PAGE, self.contents.key(number))
        except OSError as error:
            # what is EFAULT to the process itself is EIO through /proc/PID/mem
            if error.errno == errno.EFAULT:
                raise OSError(errno.EIO, error.strerror) from error
            raise

    def do_touch(self, name: str, vpns: list[int]) -> None:
        mm = self.live[name]
        for vpn in vpns:
            mm.read(vpn * PAGE)

    def do_memset(self, name: str, vpn: int, byte: int, length: int) -> None:
        mm = self.live[name]
        for start in range(0, length, PAGE):
            addr = vpn * PAGE + start
            old = int(mm.read_keys(addr, 1)[0])
            mm.write(addr, self.contents.after_memset(old, byte, min(PAGE, length - start)))

    # ------------------------------------------------------------ the daemon

    def do_set(self, knob: str, value: int | str) -> None:
        self.host.ksm.write(knob, value)

    def do_run(self, value: int) -> None:
        self.host.ksm.write("run", value)

    def do_step(self) -> None:
        self.host.ksm.step()

    def do_sleep(self, seconds: float) -> None:
        self.host.ksm.now_ms += round(seconds * 1000)

    def do_drain(self) -> None:
        self.host.drain()


def _frames_for(scenario: Scenario) -> int:
    """Frames that are enough for a scenario: every page it stores to in every process, huge pages around them."""
    pages = sum(
        op[3] if op[0] == "mmap" and (len(op) < 5 or not op[4].get("noreserve")) else 0 for op in scenario.ops
    )
    touched = sum(len(op[3]) if op[0] == "fill" else len(op[2]) for op in scenario.ops if op[0] in _TOUCHING)
    huge = any(op[0] == "madvise" and op[4] in ("hugepage", "collapse") for op in scenario.ops)
    processes = 1 + sum(op[0] in ("spawn", "fork") for op in scenario.ops)
    wanted = min(pages, 512 * touched if huge else touched) + 512 * (huge and touched > 0)
    populated = sum(op[3] for op in scenario.ops if op[0] == "mmap" and len(op) > 4 and op[4].get("populate"))
    wanted += populated + sum(-(-op[4] // PAGE) for op in scenario.ops if op[0] == "memset")
    return LEAST_FRAMES + 2 * 512 * processes + 2 * processes * wanted


_TOUCHING = ("fill", "write", "pwrite", "touch")


def replay(scenario: Scenario | Recording) -> list[Record]:
    """Run a scenario in the model and return its records.

    Parameters
    ----------
    scenario : Scenario or Recording

    Returns
    -------
    list of dict
        One record per operation and batch, in the format of recordings.

    Raises
    ------
    NotModelled
        The model does not have an operation; it names it.
    ScenarioError
        A tunable is refused.

    Models: as `Replay`. Differs: as `Replay`.
    """
    if isinstance(scenario, Recording):
        scenario = scenario.scenario
    if (op := modelled(scenario)) is not None:
        raise NotModelled(f"{scenario.name}: op {scenario.ops.index(op)}", op)
    contents = Contents(scenario.ops)
    while True:
        try:
            return list(Replay(scenario, contents=contents).records())
        except _NewContent:
            continue

