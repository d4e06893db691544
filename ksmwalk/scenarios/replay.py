"""Scenarios in the model: run their operations on a Host, one after the other, and record what could be seen."""

from __future__ import annotations

import errno
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np

from .. import kernels
from ..errors import ArenaFullError
from ..host.host import Host
from ..host.mm import Mm
from ..layout import PAGE_SIZE as PAGE
from ..layout import Batch, Event, Frame, Switch, Vm
from .format import Recording, Scenario
from .kinds import ADVICE_NAME, ScenarioError
from .ops import MOVING, row, shows_swap_entries
from .records import ANON, HUGE, KSM, OTHER, STATS, ZERO, Pages, Record, Recorder
from .replay_huge import ENVIRONMENT as HUGE_ENVIRONMENT
from .replay_huge import HugePages
from .replay_life import Life
from .replay_locks import Locks, host_options
from .replay_nodes import NodeOps
from .replay_pins import Pins
from .replay_swap import Swapping
from .spans import Spans

__all__ = ["NotModelled", "Replay", "modelled", "replay", "stream"]

#: raw system calls (x86-64 numbers) the model has: mlock, munlock, mlockall, munlockall, mlock2
SYSCALLS = (149, 150, 151, 152, 325)

#: parts of an environment the model has: what their names begin with
ENVIRONMENT: tuple[str, ...] = (*HUGE_ENVIRONMENT, "swap_mib", "memcg")

#: frames of a Host made for a scenario: those it may touch at most, with room for copies
LEAST_FRAMES = 1 << 14
#: and what no scenario gets more than: 16 GiB
MOST_FRAMES = 1 << 22

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
    """Return the first operation of a scenario, or part of its environment, that the model does not have; None if it
    has them all."""
    for key, value in scenario.env.items():
        if not any(key.startswith(known) for known in ENVIRONMENT):
            return ["env", key, value]
        if "swap_mib" in scenario.env and key.startswith("mthp_") and value != "never":
            return ["env", key, value]  # swapped pages come back in such folios
    if unknown := [name for name in scenario.vmstat if name not in kernels.VMSTAT]:
        return ["vmstat", *unknown]
    return next((op for op in scenario.ops if not _has(op)), None)


def _has(op: list[Any]) -> bool:
    return op[2] in SYSCALLS if op[0] == "syscall" else hasattr(Replay, "do_" + op[0])


# ---------------------------------------------------------------- contents


class _NoKeyLeft(Exception):
    """A content turned up between two whose keys are neighbours."""


class Contents:
    """Keys for page contents, ordered as memcmp orders the pages.

    A page with content id k holds k as 8 bytes big-endian and zeros, so k itself is the key as long as nothing else
    is ever written. Where a scenario stores bytes, any page may turn up: then the keys are spread over all 64 bits,
    and a new content gets one between those of its neighbours. Where there is none between them the keys are spread
    anew, and the run has to start again with these: order is all that can be seen of them.
    """

    def __init__(self, ops: list[list[Any]]):
        self._spread = any(row(op).bytes for op in ops)
        self._key: dict[bytes, int] = {b"": 0}
        self._page: dict[int, bytes] = {}
        self._sorted: list[bytes] = []
        if self._spread:
            self._key |= {_page_of(number): 0 for op in ops for number in row(op).contents(op) if number is not None}
            self._spread_keys()

    def _spread_keys(self) -> None:
        self._sorted = sorted(self._key)
        gap = (1 << 64) // len(self._sorted)
        self._key = {page: place * gap for place, page in enumerate(self._sorted)}
        self._page = {key: page for page, key in self._key.items()}

    def key(self, number: int) -> int:
        """The key of content id `number`."""
        return self._key[_page_of(number)] if self._spread else number

    def after_memset(self, key: int, byte: int, length: int) -> int:
        """The key of a page of content `key` whose first `length` bytes are set to `byte`."""
        return self.after_store(key, 0, bytes([byte]) * length)

    def after_store(self, key: int, offset: int, stored: bytes) -> int:
        """The key of a page of content `key` into which some bytes are stored, from byte `offset` of it on."""
        old = self._page[key].ljust(offset, b"\0")
        page = (old[:offset] + stored + old[offset + len(stored) :]).rstrip(b"\0")
        if page not in self._key:
            place = bisect(self._sorted, page)
            low = self._key[self._sorted[place - 1]]
            high = self._key[self._sorted[place]] if place < len(self._sorted) else 1 << 64
            new = (low + high) // 2
            self._sorted.insert(place, page)
            self._key[page], self._page[new] = new, page
            if new == low:
                self._spread_keys()
                raise _NoKeyLeft
        return self._key[page]


def _page_of(number: int) -> bytes:
    """The bytes of a page up to its last that is not zero: these are ordered as the pages are."""
    return number.to_bytes(8, "big").rstrip(b"\0")


# ---------------------------------------------------------------- one run


class Replay(HugePages, Life, Locks, NodeOps, Pins, Swapping):
    """One scenario on a Host of its own.

    Parameters
    ----------
    scenario : Scenario
    host : Host, optional
        A fresh Host to run it on; default: one large enough.
    kernel : str
        Version of the kernel that Host is.
    contents : Contents, optional
        Keys of contents.

    Attributes
    ----------
    host : Host
        What it runs on: free to look at between records.

    Models: Linux 6.18 with its LRU batches drained before each operation, khugepaged asleep and nobody else's memory
    mergeable. Differs: see `modelled`.
    """

    def __init__(
        self, scenario: Scenario, host: Host | None = None, contents: Contents | None = None, kernel: str = kernels.DEFAULT
    ):
        self.scenario = scenario
        nodes = 2 if any(op[0] in MOVING for op in scenario.ops) else 1
        self.host: Host = host or Host(nodes * _frames_for(scenario), nodes, kernel=kernel, **host_options(scenario))
        self.contents: Contents = contents or Contents(scenario.ops)
        self.recorder: Recorder = Recorder(self.host.kernel.events)
        self.live: dict[str, Mm] = {}
        self.lodgers: set[str] = set()
        self.away: dict[str, str] = {}
        self.userfaultfds: dict[int, tuple[str, bool]] = {}
        self.numbers: Iterator[int] = count()
        self.spans: Spans = Spans(scenario.ops)
        self.piped: dict[tuple[str, int], int] = {}
        self.mapped_for_devices: dict[tuple[str, int], np.ndarray] = {}
        self.name_of: dict[int, str] = {}
        self._arrays = self.host.world.arrays
        self._surround_huge(scenario.env)
        self._shows_absent = shows_swap_entries(scenario)
        self._swap_begins()
        ksm = self.host.ksm
        ksm.events.on = True
        if not scenario.settle:
            self.host.lru_batch = Batch.OLD if self.host.kernel.switches & Switch.NO_SMART_SCAN else Batch.SIZE
        for knob, value in scenario.tunables.items():
            if not ksm.has(knob):
                continue        # a recording of such a kernel was made without
            try:
                ksm.write(knob, value)
            except OSError as error:
                raise ScenarioError(f"{scenario.name}: tunables: {knob}", error.strerror or "refused", value) from None

    def records(self) -> Iterator[Record]:
        """Run the operations and yield a record after each.

        Raises
        ------
        NotModelled
            The model does not have an operation; it names it.
        ScenarioError
            An operation needs more memory than the model gives a scenario, or a process whose fork failed.
        """
        for index, op in self.scenario.steps():
            where = f"{self.scenario.name}: op {index}"
            do: Callable[..., int | list[Any] | None] | None = getattr(self, "do_" + op[0], None)
            if do is None or not _has(op):
                raise NotModelled(where, op)
            for name in row(op).processes(op):
                if name not in self.live:
                    raise ScenarioError(where, "its fork failed, so there is no process", name)
                self.not_waiting(where, name, op)
            if self.scenario.settle:
                self.host.drain()
            try:
                ret = do(*op[1:]) or 0
            except OSError as error:
                if error.errno is None:
                    raise
                ret = -error.errno
            except ArenaFullError as error:
                raise ScenarioError(where, str(error), op) from None
            except NotModelled:
                raise NotModelled(where, op) from None
            self.spans.note(op, not isinstance(ret, int) or ret >= 0)
            self.host.ksm.wake()
            told = self._told(where, op) if self.host.kernel.events else []
            pages = self._pages()
            nodes = self._nodes_of(pages)
            yield self.recorder.record(op, ret, self.host.ksm.counters(), self._stats(), pages, told, self._vmstat(), nodes)

    # ------------------------------------------------------------ what can be seen

    def _stats(self) -> dict[str, list[int | None]]:
        shown = [f"ksm_{name}" for name in STATS]
        return {name: [stat.get(key) for key in shown] for name, mm in self.live.items() for stat in (mm.ksm_stat(),)}

    def _pages(self) -> dict[str, Pages]:
        shown = ((name, mm) for name, mm in self.live.items() if name not in self.lodgers)
        return {name: self.spans.told(name, self._pages_of(mm)) for name, mm in shown}

    def _pages_of(self, mm: Mm) -> Pages:
        leaves = mm.tables.mappings()
        leaves = leaves[leaves["addr"] < PROGRAM]  # which a record does not show
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
        return self._with_absent(mm, (vpn, frame, kind)) if self._shows_absent else (vpn, frame, kind)

    def _told(self, where: str, op: list[Any]) -> list[tuple[Any, ...]]:
        events = self.host.ksm.events
        told: list[tuple[Any, ...]] = self._took()
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
            raise ScenarioError(where, f"{events.lost} events more than are kept of one operation", op)
        return told

    # ------------------------------------------------------------ processes

    def _born(self, name: str, mm: Mm) -> None:
        self.live[name] = mm
        self.name_of[mm.index] = name
        if self.host.kernel.switches & Switch.OLD_CALLS:
            self.host.drain(mm.cpu)  # a new task has more pages of its own than wait there

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

    def do_prctl(self, name: str, on: int) -> None:
        self.live[name].prctl_merge(bool(on))

    def do_prctl_get(self, name: str) -> int:
        if self.host.kernel.switches & Switch.NO_MERGE_ANY:
            raise OSError(errno.EINVAL, "no PR_GET_MEMORY_MERGE")
        return int(self.live[name].merge_any)

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
            kind="file" if options.get("file") else "anon",
            flags=Vm.GROWSDOWN if options.get("growsdown") else 0,
            locked=bool(options.get("locked")),
            populate=bool(options.get("populate")),
        )

    def do_munmap(self, name: str, vpn: int, n: int) -> None:
        self.live[name].munmap(vpn * PAGE, n * PAGE)

    def do_mremap(
        self, name: str, vpn: int, n: int, new_n: int, new_vpn: int | None, options: dict[str, int] | None = None
    ) -> None:
        # Without a new place the call is made without MREMAP_MAYMOVE: grow in place or fail.
        to = None if new_vpn is None else new_vpn * PAGE
        keep = bool((options or {}).get("dontunmap"))
        self.live[name].mremap(vpn * PAGE, n * PAGE, new_n * PAGE, to, maymove=to is not None, dontunmap=keep)

    def do_mprotect(self, name: str, vpn: int, n: int, prot: str) -> None:
        self.live[name].mprotect(vpn * PAGE, n * PAGE, prot)

    def do_madvise(self, name: str, vpn: int, n: int, advice: str) -> None:
        mm, start, end = self.live[name], vpn * PAGE, (vpn + n) * PAGE
        if advice == "collapse" and self.collapses_shared(mm, start, end):
            raise NotModelled(name, [advice])
        mm.madvise(start, end - start, advice)

    def do_syscall(self, name: str, number: int, *words: int) -> None:
        self._locks_syscall(name, number, words)

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
    """Frames that are enough for a scenario: every page it may bring into memory in every process, huge pages around
    them; `MOST_FRAMES` where that is more."""
    mapped = present = 0
    for op in scenario.ops:
        pages = sum(n for _, n in row(op).spans(op))
        mapped += pages if row(op).maps else 0
        present += pages if row(op).present(op) else 0
    huge = bool(scenario.env) or any(row(op).arg(op, ADVICE_NAME) in ("hugepage", "collapse") for op in scenario.ops)
    processes = 1 + sum(row(op).made(op) is not None for op in scenario.ops)
    wanted = min(mapped, 512 * present if huge else present) + 512 * (huge and present > 0)
    return min(LEAST_FRAMES + 2 * 512 * processes + 2 * processes * wanted, MOST_FRAMES)


def kernel_of(recording: Scenario | Recording) -> tuple[kernels.Profile, str]:
    """The kernel of a recording and what there is to say: the nearest that was seen; the default where none is known.

    Where a release does not begin with its version, that stands behind it: "6.1.0-57-cloud-amd64 (6.1.192)".
    """
    release, _, version = (recording.kernel if isinstance(recording, Recording) else "").partition(" (")
    return kernels.of_release(version.rstrip(")") or release)


def stream(scenario: Scenario | Recording, kernel: str | None = None) -> Iterator[Record]:
    """Run a scenario in the model and yield its records as they come: none is kept.

    Parameters
    ----------
    scenario : Scenario or Recording
    kernel : str, optional
        Version of the kernel to be; left out: that of the recording, see `kernel_of`.

    Yields
    ------
    dict
        One record per operation and batch, in the format of recordings.

    Raises
    ------
    NotModelled
        The model does not have an operation; it names it, before anything is run.
    ScenarioError
        A tunable is refused, or an operation needs more memory than the model gives a scenario.

    Models: as `Replay`. Differs: as `Replay`.
    """
    if kernel is None:
        kernel = kernel_of(scenario)[0].version
    if isinstance(scenario, Recording):
        scenario = scenario.scenario
    if (op := modelled(scenario)) is not None:
        where = f"op {scenario.ops.index(op)}" if op in scenario.ops else "what surrounds it"
        raise NotModelled(f"{scenario.name}: {where}", op)
    contents = Contents(scenario.ops)
    told = 0
    while True:
        try:
            for record in islice(Replay(scenario, contents=contents, kernel=kernel).records(), told, None):
                told += 1
                yield record
            return
        except _NoKeyLeft:
            # the records so far come out again as they were, keys being in the same order
            continue


def replay(scenario: Scenario | Recording, kernel: str | None = None) -> list[Record]:
    """Run a scenario in the model and return its records.

    Parameters
    ----------
    scenario : Scenario or Recording
    kernel : str, optional
        As for `stream`.

    Returns
    -------
    list of dict
        One record per operation and batch, in the format of recordings.

    Raises
    ------
    NotModelled, ScenarioError
        As `stream`.

    Models: as `Replay`. Differs: as `Replay`.
    """
    return list(stream(scenario, kernel))
