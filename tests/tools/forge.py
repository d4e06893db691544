"""Forged Hosts and page tables: loaded, and used if they were taken; no crash, no hang.

    python tests/tools/forge.py --directed --random 100000 [--seed 1] [--jobs 2]

A forgery is a saved Host (or page tables) with something in it that no Host would have written: directed ones put each
of a list of values into each field of records of each kind, and do to each file what can happen to one; random ones
flip bytes, copy records over others and put values anywhere. Each is loaded in a child process. What is refused must
name the array. What is taken is scanned, written, read, forked, unmapped, unmerged, left, saved again. A child that dies
or does not answer within 5 seconds of its processor time is a failure. Build the checked profile first for the long run.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import busy

from ksmwalk import Host, MmWalkOps, PageTables, layout, walk_page_range_vma
from ksmwalk.errors import KsmwalkError

PAGE = 4096
HANG_SECONDS = 5  # of processor time, so that a crowded machine makes no hang
ASLEEP_SECONDS = 60
MEMORY = 16 << 30  # bytes of address space for arenas, which are reserved whole, beyond what is there: a sanitizer's shadow
SOURCES = {
    "busy": busy.busy_host, "crowded": busy.crowded_host, "one-node": lambda: busy.crowded_host(1), "numa": busy.numa_host,
    "tables": busy.busy_tables, "image": busy.busy_image,
}  # fmt: skip
NASTY = (-1, 0, 1, 2, 3, 511, 512, 4096, 1 << 21, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 47, 1 << 62, (1 << 63) - 1)
NAMES = {*layout.ARRAYS, "about", "rows", "frames", "arena", "format.json", "kind", "version", "arrays", "root", "frame"}
FINE = (OSError, ValueError, KsmwalkError, MemoryError, LookupError, ReferenceError, ProcessLookupError)
HOW_FILES = (
    "gone", "empty", "cut", "longer", "garbage", "dtype", "shape", "shape-huge", "pickled", "link", "pipe", "folder", "fortran",
)  # fmt: skip
UNTOUCHED = ("events", "work")  # by random forgeries: large, and only shown
FORMATS = (
    b"", b"[]", b"{}", b"[" * 60000, b'{"kind": 1, "version": 1, "arrays": []}', b"\xff\xfe",
    b'{"kind": "saved Host", "version": 2, "arrays": []}', b'{"kind": "saved Host", "version": true, "arrays": []}',
    b'{"kind": "saved Host", "version": -1, "arrays": []}', b'{"kind": "saved Host", "version": 1, "arrays": ["../x"]}',
    b'{"kind": "saved Host", "version": 1, "arrays": 7}', b'{"kind": "saved PageTables", "version": 99, "arrays": []}',
)  # fmt: skip


# ------------------------------------------------------------------ forging


def columns(array: np.ndarray):
    """(name, view) of all fields of an array."""
    if array.dtype.names:
        for name in array.dtype.names:
            yield name, array[name]
    else:
        yield None, array


def put(view: np.ndarray, at: int, value: int) -> None:
    """Write an integer of any size into a flat place, cut to its bits."""
    flat = view.reshape(-1) if view.flags.c_contiguous else view
    bits = flat.dtype.itemsize * 8
    flat[at] = np.array(value & (1 << bits) - 1, f"u{flat.dtype.itemsize}").view(flat.dtype)[()]


def sample(name: str, array: np.ndarray) -> list[int]:
    """Records of an array that differ in kind: the first, one in use, one free, the last."""
    n = len(array)
    kinds = array["flags"] if array.dtype.names and "flags" in array.dtype.names else (
        array != 0 if array.ndim == 1 and not array.dtype.names else np.zeros(n))
    picked = {0, n - 1}
    for kind in np.unique(kinds)[:6]:
        where = np.flatnonzero(kinds == kind)
        picked |= {int(where[0]), int(where[len(where) // 2])}
    return sorted(picked)


def directed_values(state: dict) -> list[tuple]:
    """(array, field, record, value) of every directed forgery of what the arrays hold."""
    out = []
    for name, array in state.items():
        if name == "rows":
            used = np.argwhere(array)
            picked = [tuple(map(int, used[i])) for i in np.linspace(0, len(used) - 1, 24).astype(int)]
            for (row, entry), pfn in itertools.product(picked, (0, 1, row_of(used, 0), len(array) - 1, len(array), 1 << 39)):
                for flags in (0, 1, 0x67, 0xE7, 0x100, 0x267):
                    out.append((name, None, row * 512 + entry, pfn << 12 | flags))
            continue
        for field, view in columns(array) if len(array) else ():
            own = [(record, 0) for record in sample(name, array)] if view.ndim == 1 else [(0, i) for i in (0, 1, view.shape[1] - 1)]
            for record, part in own:
                at = record if view.ndim == 1 else record * view.shape[1] + part
                for value in dict.fromkeys((*NASTY, record, record + 1, len(array), len(array) - 1, int(view.reshape(-1)[at]) + 1)):
                    out.append((name, field, at, value))
    return out


def row_of(used: np.ndarray, i: int) -> int:
    return int(used[i][0])


def forge_value(state: dict, array: str, field: str | None, at: int, value: int) -> None:
    a = state[array]
    if field is not None and a[field].ndim > 1:
        put(a[field][0], at, value)
    else:
        put(a[field] if field else a, at, value)


def forge_random(state: dict, rng: np.random.Generator) -> None:
    """One to three things that can be wrong anywhere."""
    names = [name for name in state if state[name].size and name not in UNTOUCHED]
    for _ in range(rng.integers(1, 4)):
        name = names[rng.integers(len(names))]
        array = state[name]
        busy_records = np.flatnonzero(array.reshape(len(array), -1).view(np.uint8).reshape(len(array), -1).any(axis=1))
        record = int(rng.choice(busy_records)) if len(busy_records) and rng.random() < 0.8 else int(rng.integers(len(array)))
        kind = rng.integers(4)
        if kind == 0:
            raw = array[record : record + 1].reshape(-1).view(np.uint8)
            raw[rng.integers(len(raw))] ^= np.uint8(1 << rng.integers(8))
        elif kind == 1:
            array[record] = array[rng.integers(len(array))]
        elif kind == 2:
            other = int(rng.integers(len(array)))
            array[[record, other]] = array[[other, record]]
        else:
            view = [v for _, v in columns(array[record : record + 1])]
            one = view[rng.integers(len(view))].reshape(-1) if array.dtype.names is None else view[rng.integers(len(view))]
            value = int(rng.choice([-1, 0, 1, 2, len(array) - 1, len(array), record, int(rng.integers(len(array)))]))
            if one.ndim == 1 and len(one):
                put(one, int(rng.integers(len(one))), value)


def forge_file(folder: Path, name: str, how: str) -> None:
    """What can happen to a file."""
    file = folder / f"{name}.npy"
    raw = file.read_bytes()
    array = np.load(file)
    file.unlink()
    if how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(raw[:-1])
    elif how == "longer":
        file.write_bytes(raw + b"\0" * 64)
    elif how == "garbage":
        file.write_bytes(b"\x93NUMPY\x01\x00" + bytes(range(256)))
    elif how == "dtype":
        np.save(file, np.zeros(array.shape, "f4"))
    elif how == "shape":
        np.save(file, np.resize(array, (len(array) + 1, *array.shape[1:])))
    elif how == "shape-huge":
        file.write_bytes(raw.replace(f"({len(array)},".encode(), b"(1099511627776,"))
    elif how == "pickled":
        np.save(file, np.array([print, {}], dtype=object), allow_pickle=True)
    elif how == "link":
        (folder / "elsewhere").write_bytes(raw)
        file.symlink_to("elsewhere")
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "fortran":
        file.write_bytes(raw.replace(b"'fortran_order': False", b"'fortran_order': True "))


# ------------------------------------------------------------------ using what was taken


def attempt(call) -> None:
    """What is refused or fails with an error of ours is fine."""
    try:
        call()
    except FINE:
        pass


def each_mm(host: Host, call) -> None:
    for mm in list(host.mm_list):
        attempt(lambda mm=mm: call(mm))


def areas_of(mm) -> list[tuple[int, int]]:
    """[start, number of pages) of its first areas; of a large one the first thousand pages."""
    return [(v.vm_start, min(v.vm_end - v.vm_start >> 12, 1000)) for v in mm.vmas[:8]]


def touch(mm) -> None:
    for start, n in areas_of(mm):
        attempt(lambda start=start, n=n: mm.write(start, np.arange(n, dtype=np.uint64) % 5))
        attempt(lambda start=start, n=n: mm.read(start, n))
        attempt(lambda start=start: walk_page_range_vma(mm.find_vma(start), start, start + PAGE, MmWalkOps(pte_entry=lambda *_: 0)))
    attempt(mm.tables.mappings)
    attempt(mm.maps)
    attempt(mm.ksm_stat)
    attempt(lambda: [repr(i) for i in mm.rmap_items])


def rearrange(mm) -> None:
    attempt(mm.fork)
    for start, n in areas_of(mm):
        for call in (
            lambda s, n: mm.madvise(s, n * PAGE, "unmergeable"), lambda s, n: mm.madvise(s, n * PAGE, "mergeable"),
            lambda s, n: mm.mprotect(s, (n // 2 + 1) * PAGE, "r"), lambda s, n: mm.madvise(s, n // 3 * PAGE, "dontneed"),
            lambda s, n: mm.mremap(s, n * PAGE, (n + 3) * PAGE), lambda s, n: mm.munmap(s, (n // 2) * PAGE),
        ):  # fmt: skip
            attempt(lambda call=call, start=start, n=n: call(start, n))


def use_host(host: Host, folder: Path) -> None:
    """Everything that works on the arrays."""
    attempt(lambda: host.ksm.do_scan(400))
    each_mm(host, touch)
    attempt(lambda: setattr(host.ksm, "run", 1))
    for _ in range(4):
        attempt(lambda: host.ksm.do_scan(600))
    attempt(host.ksm.events.take)
    each_mm(host, rearrange)
    attempt(lambda: setattr(host.ksm.scan, "strategy", "per-address"))
    attempt(lambda: host.ksm.do_scan(2000))
    attempt(host.ksm.counters)
    attempt(host.drain)
    for mm in host.mm_list[::2]:
        attempt(mm.exit)
    attempt(lambda: host.ksm.do_scan(1000))
    host.save(folder, overwrite=True)
    attempt(lambda: setattr(host.ksm, "run", 2))
    attempt(lambda: host.ksm.do_scan(1000))
    attempt(lambda: repr((host, host.memory())))
    each_mm(host, lambda mm: mm.exit())
    host.save(folder, overwrite=True)


def use_tables(tables: PageTables, folder: Path) -> None:
    for view in ("kernel", "hardware"):
        attempt(lambda view=view: tables.mappings(view=view, limit=20000))
    attempt(lambda: tables.lookup(busy.AT))
    if not tables.readonly:
        attempt(lambda: tables.map_range(3 << 39, np.arange(1500, dtype=np.uint64)))
        attempt(lambda: tables.split(2 << 30))
        attempt(lambda: tables.unmap(busy.AT, busy.AT + (1 << 22)))
        attempt(lambda: tables.map_range(5 << 39, np.arange(600, dtype=np.uint64)))
        attempt(lambda: tables.unmap(0, tables.end // 2))
    attempt(lambda: repr(tables))
    attempt(lambda: tables.save(folder, overwrite=True))


# ------------------------------------------------------------------ one forgery


class Forger:
    """All forgeries of one source, by number: the directed ones first, then the random ones of a seed."""

    def __init__(self, source: str, seed: int):
        self.source, self.seed = source, seed
        self.original = SOURCES[source]()
        self.state = self.original.__getstate__()
        self.values = directed_values(self.state["arrays"])
        self.files = [("file", name, how) for name in self.state["arrays"] for how in HOW_FILES]
        self.files += [("format", i, None) for i in range(len(FORMATS))]
        self.nr_directed = len(self.values) + len(self.files)

    def what(self, number: int) -> str:
        """A line that names a forgery."""
        if number < len(self.values):
            return f"{self.source} {self.values[number]}"
        if number < self.nr_directed:
            return f"{self.source} {self.files[number - len(self.values)]}"
        return f"{self.source} random {number - self.nr_directed} of seed {self.seed}"

    def take(self, number: int, folder: Path):
        """The forged thing, loaded."""
        if len(self.values) <= number < self.nr_directed:
            kind, name, how = self.files[number - len(self.values)]
            forged = folder / "forged"
            self.original.save(forged)
            try:
                if kind == "file":
                    forge_file(forged, name, how)
                else:
                    (forged / "format.json").write_bytes(FORMATS[name])
                return type(self.original).load(forged)
            finally:
                shutil.rmtree(forged)
        touched = [self.values[number][0]] if number < len(self.values) else [n for n in self.state["arrays"] if n not in UNTOUCHED]
        arrays = self.state["arrays"] | {name: self.state["arrays"][name].copy() for name in touched}
        state = {**self.state, "arrays": arrays}
        if number < len(self.values):
            forge_value(state["arrays"], *self.values[number])
        else:
            forge_random(state["arrays"], np.random.default_rng([self.seed, number - self.nr_directed, *self.source.encode()]))
        out = type(self.original).__new__(type(self.original))
        out.__setstate__(state)
        return out

    def run(self, number: int, folder: Path) -> str:
        """What came of a forgery: refused, unnamed, survived, strange."""
        try:
            taken = self.take(number, folder)
        except (OSError, ValueError, MemoryError) as err:
            named = any(name in str(err) for name in NAMES)
            return "refused" if named else f"unnamed: {type(err).__name__}: {err}"
        except BaseException as err:
            return f"strange: {type(err).__name__}: {err}"
        try:
            (use_host if isinstance(taken, Host) else use_tables)(taken, folder / "again")
        except BaseException as err:
            return f"strange: {type(err).__name__}: {err}"
        return "survived"


# ------------------------------------------------------------------ children


def child(forger: Forger, numbers, fd: int) -> None:
    """Run forgeries and write a line for each as it is done."""
    most = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.fsync = lambda fd: None  # nothing here has to outlive the machine
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        for number in numbers:
            line = forger.run(number, Path(folder)).replace("\n", " ")[:500]
            os.write(fd, f"{number} {line}\n".encode())


def run(forger: Forger, numbers) -> dict[int, str]:
    """What came of each of these forgeries; a child is started anew behind one that ended it."""
    left, out = collections.deque(numbers), {}
    while left:
        read, write = os.pipe()
        said = os.memfd_create("stderr")
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.dup2(said, 2)
            try:
                child(forger, list(left), write)
            finally:
                os._exit(0)
        os.close(write)
        hung = listen(read, pid, left, out)
        if hung:
            os.kill(pid, signal.SIGKILL)
        os.close(read)
        _, status = os.waitpid(pid, 0)
        if left:
            died = f"crash: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "crash: it ended"
            out[left.popleft()] = "hang" if hung else f"{died}: {last_words(said)}"
        os.close(said)
    return out


def last_words(fd: int) -> str:
    """What a failed check of the checked build says, or the summary of a sanitizer's report."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        lines = file.read().decode(errors="replace").splitlines() or ["it said nothing"]
    return next((line for line in lines if line.startswith("SUMMARY") or "runtime error" in line), lines[-1])[:300]


def processor_time(pid: int) -> float:
    """Seconds that a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listen(fd: int, pid: int, left: collections.deque, out: dict[int, str]) -> bool:
    """Take the child's lines until it ends; whether it stopped answering."""
    rest = b""
    began, ran = time.monotonic(), processor_time(pid)
    while True:
        if not select.select([fd], [], [], 1)[0]:
            if processor_time(pid) - ran > HANG_SECONDS or time.monotonic() - began > ASLEEP_SECONDS:
                return True
            continue
        began, ran = time.monotonic(), processor_time(pid)
        data = os.read(fd, 1 << 16)
        if not data:
            return False
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            number, what = line.decode(errors="replace").split(" ", 1)
            out[int(number)] = what
            assert left.popleft() == int(number)


def forge(source: str, *, directed: int | None = 0, random: int = 0, seed: int = 1) -> tuple[collections.Counter, list[str]]:
    """Run directed forgeries of a source (None: all; a number: evenly picked ones) and random ones: counts, and failures."""
    forger = Forger(source, seed)
    count = forger.nr_directed if directed is None else min(directed, forger.nr_directed)
    numbers = np.unique(np.linspace(0, forger.nr_directed - 1, count).astype(int)).tolist() if count else []
    numbers += range(forger.nr_directed, forger.nr_directed + random)
    counts: collections.Counter = collections.Counter()
    failures = []
    for number, what in run(forger, numbers).items():
        kind = what.split(":")[0]
        counts[kind] += 1
        if kind not in ("refused", "survived"):
            failures.append(f"{forger.what(number)}: {what}")
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directed", action="store_true", help="all directed forgeries")
    parser.add_argument("--most", type=int, metavar="N", help="of a source's directed ones, evenly picked")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random forgeries, over all sources together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", choices=SOURCES, action="append", help="only these")
    args = parser.parse_args()
    sources = args.source or list(SOURCES)
    total: collections.Counter = collections.Counter()
    failed = 0
    for source in sources:
        start = time.perf_counter()
        directed = args.most if args.directed else 0
        counts, failures = forge(source, directed=directed, random=args.random // len(sources), seed=args.seed)
        print(f"{source}: {dict(counts)}, {time.perf_counter() - start:.1f} s", flush=True)
        for line in failures:
            print("  " + line)
        total += counts
        failed += len(failures)
    print(f"{sum(total.values())} forgeries: {dict(total)}; {failed} failures")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
