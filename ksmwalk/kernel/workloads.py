"""Live workloads of different kinds, on which the estimate is held against the real ksmd: the list."""

from __future__ import annotations

import importlib.util
import random
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..host import ADVICE
from ..layout import PAGE_SIZE as PAGE
from ..proc.child import Child
from .workload_collapsed import then_collapsed, thin_twins
from .workload_yard import Yard, ask_qemu

HUGE = 512
_GIB = 1 << 18

Start = Callable[[Yard], None]


class Scanner(Protocol):
    """The real ksmd as a workload may use it before it is looked at: see `workload_runs.Ksmd`."""

    def scans(self, n: int) -> None:
        """Do `n` full scans."""

    def batch(self, pages: int) -> None:
        """Visit so many pages."""


@dataclass(frozen=True)
class Workload:
    """A live workload.

    Attributes
    ----------
    name : str
    about : str
        What it is, for a table.
    start : callable of Yard
        Starts its processes.
    knobs : mapping
        Knobs of KSM that are not at their defaults.
    needs : callable, optional
        Why it can't be run here, or None.
    static : bool
        Stopped before it is looked at; otherwise it goes on writing.
    before : callable of (Yard, Scanner), optional
        What happens, with the real ksmd at work, before the estimate: a start in the middle.
    thp : mapping
        Files of transparent_hugepage and what they hold while it starts.
    excuse : str
        What the model does not have yet, or nobody can see: differences are told and don't count.
    small : bool
        Of the few that run with the test suite.
    """

    name: str
    about: str
    start: Start
    knobs: Mapping[str, int] = field(default_factory=dict)
    needs: Callable[[], str | None] | None = None
    static: bool = True
    before: Callable[[Yard, Scanner], None] | None = None
    thp: Mapping[str, str] = field(default_factory=dict)
    excuse: str = ""
    small: bool = False


# ---------------------------------------------------------------- what fills memory


def _words(child: Child, address: int, pages: int, word: str, first: int = 0) -> None:
    """Write a word into each of some pages: an expression of the number `i` of the page; where it is 0 all is zeros."""
    child.do(f"put({address} + {first * PAGE}, range(0, {pages * PAGE}, P), ({word} for i in range({pages})))")


def _filled(yard: Yard, pages: int, word: str, *, huge: bool | None = False, merge_any: bool = False) -> tuple[Child, int]:
    child = yard.child(merge_any)
    address = yard.area(child, pages, huge=huge, mark=not merge_any)
    _words(child, address, pages, word)
    return child, address


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not installed"


# ---------------------------------------------------------------- Python


def _python_modules(yard: Yard) -> None:
    modules = ["json", "sqlite3", "asyncio", "decimal", *filter(importlib.util.find_spec, ["numpy"])]
    for _ in range(4):
        yard.program("modules", *modules)


def _python_pool(yard: Yard) -> None:
    yard.program("pool", 4, 16000)


def _sqlite(yard: Yard) -> None:
    for rows in (40000, 40000, 30000):
        yard.program("sqlite", rows)


# ---------------------------------------------------------------- forked pools


def _forked_pool(yard: Yard) -> None:
    child, address = _filled(yard, 6000, "1 + i % 4000", merge_any=True)
    for worker in range(5):
        first, size = address + worker * 900 * PAGE, 800 * PAGE
        yard.fork(child, f"put({first}, range(0, {size}, P), (1 + (i + {worker % 2}) % 4000 for i in range(800)))")


def _fork_and_twin(yard: Yard) -> None:
    child, _ = _filled(yard, 4000, "1 + i")
    yard.fork(child)
    _filled(yard, 4000, "1 + i")


# ---------------------------------------------------------------- huge pages


def _huge_duplicates(yard: Yard) -> None:
    for _ in range(3):
        _filled(yard, 12 * HUGE, "1 + i % 3000", huge=True)


def _huge_unique(yard: Yard) -> None:
    for process in range(2):
        _filled(yard, 16 * HUGE, f"1 + {process << 32} + i", huge=True)


def _huge_zeros(yard: Yard) -> None:
    for process in range(2):
        _filled(yard, 16 * HUGE, f"(i % 16 == 3) * (1 + {process} + i)", huge=True)


def _huge_ragged(yard: Yard) -> None:
    child, address = _filled(yard, 16 * HUGE, "1 + i % 5000", huge=True)
    # parts of huge pages gone, parts read-only, a worker that stored into parts
    for huge in range(0, 16, 3):
        child.do(f"call('madvise', {address + (huge * HUGE + 100) * PAGE}, {77 * PAGE}, 4)")
    child.do(f"call('mprotect', {address + 5 * HUGE * PAGE}, {200 * PAGE}, 1)")
    yard.fork(child, f"put({address + 8 * HUGE * PAGE}, range(0, {3 * HUGE * PAGE}, 4 * P), range(1, 1000))")


def _huge_for_everybody(yard: Yard) -> None:
    for process in range(2):
        word = f"(i % 5 > 0) * (1 + {process << 20} * (i > 2000) + i % 1500)"
        child, _ = _filled(yard, 8 * HUGE, word, huge=None, merge_any=True)
        yard.fork(child)


def _folios(yard: Yard) -> None:
    """Folios of 64 KiB, some of them with holes, and a worker that stored into parts."""
    for process in range(2):
        child = yard.child()
        # too small for huge pages
        parts = [yard.area(child, 320, huge=True) for _ in range(12)]
        for number, address in enumerate(parts):
            _words(child, address, 320, f"(i % 16 > 2) * (1 + (i + {number * 320}) % 3000 + {process})")
        child.do(f"call('madvise', {parts[3] + 5 * PAGE}, {150 * PAGE}, 4)")
        yard.fork(child, f"put({parts[5]}, range(0, {300 * PAGE}, 3 * P), range(9000, 9999))")


def _half_marked(yard: Yard) -> None:
    """A heap that is not mergeable, workers forked over it that are."""
    child = yard.child()
    address = yard.area(child, 4000, mark=False)
    _words(child, address, 4000, "1 + i % 3000")
    for worker in range(3):
        yard.fork(child, f"merge_any(); put({address}, range(0, {500 * (worker + 1) * PAGE}, P), range(3000))")


def _at_random(seed: int) -> Start:
    """Processes that fork, store, let go, move and protect memory, small and huge pages, as a seed has it."""

    def start(yard: Yard) -> None:
        draw = random.Random(seed)
        living: list[tuple[Child, int]] = []
        pages = 4 * HUGE
        for _ in range(4):
            child = yard.child(merge_any=bool(draw.randrange(2)))
            address = yard.area(child, pages, huge=draw.choice((True, False)))
            word = f"(i % {draw.choice((3, 7, 600))} > 0) * (1 + i * {draw.choice((1, 1, 3))} % {draw.choice((100, 900, 5000))})"
            _words(child, address, pages, word)
            living.append((child, address))
            for _ in range(6):
                child, address = draw.choice(living)
                at = address + draw.randrange(pages - 400) * PAGE
                n = draw.randrange(1, 400)
                line = draw.choice((
                    f"put({at}, range(0, {n * PAGE}, P * {draw.randrange(1, 9)}), range({draw.randrange(2000)}, 5000))",
                    f"call('madvise', {at}, {n * PAGE}, 4)",
                    f"call('mprotect', {at}, {n * PAGE}, 3)",
                    f"call('madvise', {at}, {n * PAGE}, {draw.choice((12, 13, 20))})",
                ))  # fmt: skip
                if draw.randrange(2):
                    child.do(line)
                else:
                    yard.fork(child, line)

    return start


# ---------------------------------------------------------------- zeros, giants, limits


def _zeros(yard: Yard) -> None:
    for process in range(3):
        _filled(yard, 8000, f"(i % 4 == 0) * (1 + {process} + i)")


def _sparse_giant(yard: Yard) -> None:
    child = yard.child()
    address = yard.area(child, 64 * _GIB)
    step = 64 * _GIB // 1000
    child.do(f"put({address}, range(0, {1000 * step * PAGE}, {step * PAGE}), (1 + i % 700 for i in range(1000)))")
    child.do(f"put({address + PAGE}, range(0, {100 * step * PAGE}, {step * PAGE}), (0 for i in range(100)))")


def _many_sharers(yard: Yard) -> None:
    for process in range(3):
        _filled(yard, 5000, f"1 + i * i * {process + 1} % 331")


def _pairs(yard: Yard) -> None:
    for _ in range(2):
        _filled(yard, 10000, "1 + i * 7919 % 9000")


def _mixed_users(yard: Yard) -> None:
    for user in (0, 65534, 65533, 0):
        child = yard.child()
        if user:
            child.do(f"os.setgid({user})")
            child.do(f"os.setuid({user})")
            # another user is another story to the kernel, which forgets the wish then
            child.do("die_with_parent()")
        address = yard.area(child, 3000)
        _words(child, address, 3000, f"1 + i + {user // 2 * 1500}")


def _file_copies(yard: Yard) -> None:
    """Pages of a private file mapping that were stored to, read-only, PROT_NONE and moved memory."""
    path = yard.directory / "file"
    path.write_bytes(b"".join(struct.pack("<Q", i % 50) + bytes(PAGE - 8) for i in range(2000)))
    for process in range(2):
        child = yard.child(merge_any=True)
        child.do("import mmap")
        child.do(f"mapped = mmap.mmap(os.open({str(path)!r}, os.O_RDONLY), 0, flags=mmap.MAP_PRIVATE, prot=3)")
        child.do("base = ctypes.addressof(ctypes.c_char.from_buffer(mapped))")
        child.do("put(base, range(0, 2000 * P, 3 * P), (1 + i % 300 for i in range(667)))")
        address = yard.area(child, 2000, mark=False)
        _words(child, address, 2000, f"1 + i % 700 + {process}")
        child.do(f"call('mprotect', {address}, {300 * PAGE}, 0)")
        child.do(f"call('mprotect', {address + 300 * PAGE}, {300 * PAGE}, 1)")
        child.do(f"call('munmap', {address + 900 * PAGE}, {50 * PAGE})")


def _locked(yard: Yard) -> None:
    for _ in range(2):
        child, address = _filled(yard, 3000, "(i % 3 > 0) * (1 + i % 2500)")
        child.do(f"mlock({address}, {1000 * PAGE})")
        yard.fork(child)


def _swapped(yard: Yard) -> None:
    yard.around({"swap_mib": 256})
    for _ in range(2):
        child, address = _filled(yard, 10000, "1 + i * 7919 % 9000")
        child.do(f"call('madvise', {address}, {5000 * PAGE}, {ADVICE['pageout']})")


# ---------------------------------------------------------------- servers, virtual machines


def _redis(yard: Yard) -> None:
    for number in range(2):
        socket = f"redis{number}"
        here = str(yard.directory)
        yard.command(["redis-server", "--port", "0", "--unixsocket", f"{here}/{socket}", "--save", "", "--dir", here], ready=False)
        connection = yard.connect(socket)
        keys = 25000
        lines = (f"SET key:{i} {f'value {i * 31 % 9973} ' * 8!r}\r\n" for i in range(keys))
        connection.sendall("".join(lines).encode() + b"PING\r\n")
        said = b""
        while not said.endswith(b"+PONG\r\n"):
            said = said[-20:] + connection.recv(1 << 16)


_JAVA = """
import java.util.*;
public class Main {
    public static void main(String[] args) throws Exception {
        Map<Integer, String> map = new HashMap<>();
        for (int i = 0; i < 40000; i++) map.put(i, "value " + i % 1000);
        byte[][] blocks = new byte[100][];
        for (int i = 0; i < 100; i++) { blocks[i] = new byte[65536]; Arrays.fill(blocks[i], (byte) (i % 7)); }
        System.out.println("ready");
        Thread.sleep(Long.MAX_VALUE);
        System.out.println(map.size() + blocks.length);
    }
}
"""


def _java(yard: Yard) -> None:
    source = yard.directory / "Main.java"
    source.write_text(_JAVA)
    for _ in range(2):
        yard.command(["java", "-Xshare:auto", "-XX:+UseSerialGC", "-Xms40m", "-Xmx40m", "-XX:TieredStopAtLevel=1", str(source)])


_NODE = """
const map = new Map();
for (let i = 0; i < 30000; i++) map.set(i, {name: `value ${i % 1000}`, parts: [i, i + 1]});
const blocks = Array.from({length: 50}, (_, i) => Buffer.alloc(65536, i % 7));
console.log('ready');
setInterval(() => map.size + blocks.length, 1 << 30);
"""


def _node(yard: Yard) -> None:
    for _ in range(2):
        yard.command(["node", "--max-old-space-size=64", "-e", _NODE])


def _qemu(yard: Yard) -> None:
    """Two guests with an image of the same data in their memory, and some of their own; stopped by QMP."""
    for guest in range(2):
        data = yard.directory / f"data{guest}"
        data.write_bytes(b"".join(struct.pack("<Q", i % 3000 + (i > 4000) * (guest << 20)) + bytes(PAGE - 8) for i in range(5000)))
        yard.command(
            ["qemu-system-x86_64", "-M", "pc,accel=tcg", "-m", "48", "-nodefaults", "-display", "none",
             "-qmp", f"unix:{yard.directory}/qmp{guest},server=on,wait=off",
             "-device", f"loader,file={data},addr=0x1000000,force-raw=on"],
            merge_any=False, ready=False,
        )  # fmt: skip
        connection = yard.connect(f"qmp{guest}")
        ask_qemu(connection, "qmp_capabilities")
        # the firmware has come to where it finds nothing to start
        time.sleep(0.7)
        ask_qemu(connection, "stop")


# ---------------------------------------------------------------- a start in the middle


def _mixed(yard: Yard) -> None:
    for process in range(2):
        child, address = _filled(yard, 5000, f"(i % 6 > 0) * (1 + i % 3500 + {process})")
        for worker in range(2):
            yard.fork(child, f"put({address + worker * 500 * PAGE}, range(0, {400 * PAGE}, P), range(1, 401))")
    _filled(yard, 4 * HUGE, "1 + i % 1500", huge=True)


def _in_mid_scan(yard: Yard, ksmd: Scanner) -> None:
    ksmd.scans(1)
    ksmd.batch(9000)


def _then_changed(yard: Yard, ksmd: Scanner) -> None:
    child, address = _filled(yard, 4000, "1 + i % 3500")
    ksmd.scans(4)
    yard.fork(child, f"put({address}, range(0, {300 * PAGE}, P), range(10000, 10300))")
    _words(child, address, 500, "1 + i", first=2000)
    _filled(yard, 2000, "1 + i")


def _then_forked(yard: Yard, ksmd: Scanner) -> None:
    _then_ended(yard, ksmd, also=False)


def _then_ended(yard: Yard, ksmd: Scanner, also: bool = True) -> None:
    child, address = _filled(yard, 3000, "(i % 4 > 0) * (1 + i % 900)")
    worker = yard.fork(child)
    ksmd.scans(3)
    if also:
        yard.end(worker)
    yard.fork(child, f"put({address}, range(0, {700 * PAGE}, 3 * P), range(1, 300))")
    ksmd.batch(11000)
    if also:
        _words(child, address, 600, "7 + i % 40", first=1000)


def _in_mid_chains(yard: Yard, ksmd: Scanner) -> None:
    ksmd.scans(2)
    ksmd.batch(7000)


# ---------------------------------------------------------------- writers


def _writer(rate: float, hot: int, contents: int = 0) -> Start:
    def start(yard: Yard) -> None:
        for seed in (1, 2):
            child, address = _filled(yard, 6000, "1 + i % 4000")
            child.tell(f"rewrite({address}, {hot}, {rate}, {contents}, {seed})")

    return start


_PACE = {"pages_to_scan": 4000, "sleep_millisecs": 50}
_OFF = {"smart_scan": 0}

#: all of them; the first ones are the quickest
WORKLOADS: tuple[Workload, ...] = (
    Workload("fork-and-twin", "a process, its fork, and another of equal contents", _fork_and_twin, _OFF, small=True),
    Workload("zeros", "three quarters zeros, use_zero_pages 0: a chain of KSM pages", _zeros, {"use_zero_pages": 0, **_OFF}),
    Workload("zeros-to-zero-page", "the same, use_zero_pages 1", _zeros, {"use_zero_pages": 1, **_OFF}, small=True),
    Workload("pairs-skipping", "two processes of equal contents, smart_scan 1", _pairs),
    Workload("pairs", "the same, smart_scan 0", _pairs, _OFF),
    Workload("limit-8", "many sharers, max_page_sharing 8", _many_sharers, {"max_page_sharing": 8, **_OFF}, small=True),
    Workload("limit-2", "many sharers, max_page_sharing 2", _many_sharers, {"max_page_sharing": 2, **_OFF}),
    Workload("huge-duplicates", "three processes with equal huge pages", _huge_duplicates, _OFF),
    Workload("huge-unique", "huge pages of which none has an equal", _huge_unique, _OFF),
    Workload("huge-zeros", "huge pages, 15 of 16 pages of them zeros, use_zero_pages 0", _huge_zeros, _OFF),
    Workload("huge-zeros-to-zero-page", "the same, use_zero_pages 1", _huge_zeros, {"use_zero_pages": 1, **_OFF}),
    Workload("huge-ragged", "huge pages with holes and read-only parts, and a fork with stores", _huge_ragged, _OFF),
    Workload("huge-for-everybody", "THP always: processes under merge-any, and forks", _huge_for_everybody,
             thp={"enabled": "always"}),
    Workload("folios", "folios of 64 KiB with holes, and forks with stores", _folios, _OFF,
             thp={"hugepages-64kB/enabled": "madvise"}),
    Workload("half-marked", "a heap that is not mergeable, three workers forked over it that are", _half_marked, _OFF),
    *(Workload(f"random-{seed}", "processes that fork, store, let go and protect at random", _at_random(seed), _OFF)
      for seed in range(1, 5)),
    Workload("sparse-giant", "64 GiB of address space with 1,000 pages in it", _sparse_giant, _OFF),
    Workload("forked-pool", "five workers over a heap of 6,000 pages, each with stores of its own", _forked_pool, _OFF),
    Workload("mixed-users", "four processes of three users", _mixed_users, _OFF),
    Workload("file-copies", "copies of file pages, read-only and inaccessible memory, under merge-any", _file_copies, _OFF),
    Workload("python-modules", "four Pythons with the same modules, merge-any through exec", _python_modules),
    Workload("python-pool", "a Python heap and four workers forked over it, merge-any through exec", _python_pool, _OFF),
    Workload("sqlite", "three sqlite databases in memory", _sqlite, _OFF),
    Workload("redis", "two redis servers with equal data", _redis, needs=_program("redis-server")),
    Workload("java", "two JVMs with the same program", _java, _OFF, needs=_program("java")),
    Workload("node", "two node.js with the same program", _node, _OFF, needs=_program("node")),
    Workload("qemu", "two QEMU guests, mem-merge on", _qemu, _OFF, needs=_program("qemu-system-x86_64")),
    Workload("middle-of-scan", "ksmd has done a scan and part of the next", _mixed, _OFF, before=_in_mid_scan),
    Workload("middle-changed", "ksmd has done four scans; then a fork, stores, a new process", _mixed, _OFF, before=_then_changed),
    Workload("middle-chains", "ksmd in its third scan, max_page_sharing 8, use_zero_pages 1, smart_scan 1", _mixed,
             {"max_page_sharing": 8, "use_zero_pages": 1}, before=_in_mid_chains),
    Workload("middle-ended", "ksmd has done three scans; then one ends, a fork, stores; use_zero_pages 1", _mixed,
             {"use_zero_pages": 1, **_OFF}, before=_then_ended),
    Workload("middle-limit-2", "ksmd has done three scans, max_page_sharing 2; then a fork", _mixed,
             {"max_page_sharing": 2, **_OFF}, before=_then_forked),
    Workload("middle-limit-2-ended", "the same, one ends, and stores: who takes the room that they leave?", _mixed,
             {"max_page_sharing": 2, **_OFF}, before=_then_ended,
             excuse="which merged pages were broken, and which wait for their second visit, can't be seen"),
    Workload("locked", "processes with locked memory, and their forks", _locked, {"use_zero_pages": 1, **_OFF}),
    Workload("swapped", "two processes of 10,000 pages of which half is swapped out", _swapped, _OFF),
    Workload("collapsed", "ksmd has done three scans; then khugepaged makes huge pages, and there is a fork", thin_twins, _OFF,
             before=then_collapsed),
    Workload("writer-fast", "two processes of 6,000 pages, 500 of them rewritten four times a second with new contents",
             _writer(2000, 500), _PACE | _OFF, static=False),
    Workload("writer-slow", "the same with 1,500 pages that are rewritten every ten seconds or so, with one of 300 contents",
             _writer(150, 1500, 300), _PACE | _OFF, static=False),
    Workload("writer-middling", "the same with 1,000 pages that are rewritten every two seconds or so, with one of 40 contents",
             _writer(500, 1000, 40), _PACE | _OFF, static=False),
)  # fmt: skip


def find(names: list[str]) -> list[Workload]:
    """Return workloads by name, all where none is named.

    Parameters
    ----------
    names : list of str

    Returns
    -------
    list of Workload

    Raises
    ------
    ValueError
        There is none of a name.
    """
    known = {workload.name: workload for workload in WORKLOADS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no workload {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(WORKLOADS)
