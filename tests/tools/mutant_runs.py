"""What is run in a copy of the package to tell a mutant from the engine: recordings, and random programs with digests.

    python mutant_runs.py golden PACKAGE RECORDINGS [WORD ...]
    python mutant_runs.py aimed PACKAGE STYLE SEED FIRST COUNT PROBE

`golden` replays the recordings, those with a word in their names first, then the shortest first, until one differs.
`aimed` prints one line for each random program: its number, how often the mutated line was reached and a digest of all
that could be seen after every step.
"""

from __future__ import annotations

import ctypes
import pickle
import random
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

PAGE = 4096
HUGE = 512
#: of processor time that one recording may take; the longest takes one, without optimisation two
SECONDS = 20
BASE = 0x40000000
PAGES = 3 * HUGE

ADVICE = (
    "mergeable", "mergeable", "unmergeable", "hugepage", "nohugepage", "dontneed", "free", "dontfork", "dofork", "collapse",
    "populate_read", "populate_write", "guard_install", "guard_remove", "wipeonfork", "keeponfork", "random", "normal", "cold",
)

#: fields of the KSM record that nothing but the engine's own shortcuts go by
AGES = ("generation", "tree_generation", "changes_seen")

#: what a style does, by weight; what is not named has the weight of "else"
STYLES: dict[str, dict[str, int]] = {
    "areas": {"mmap": 20, "mprotect": 20, "munmap": 10, "mremap": 12, "madvise": 12, "mlock": 6, "fork": 4, "else": 2},
    "faults": {"write": 20, "fill": 6, "read": 10, "poke": 5, "mmap": 12, "fork": 8, "uffd": 3, "lru": 2, "else": 2},
    "huge": {"madvise": 20, "write": 12, "ksm": 10, "mremap": 6, "munmap": 4, "fork": 5, "pin": 4, "else": 2},
    "merging": {"ksm": 30, "write": 12, "fill": 6, "fork": 6, "exit": 2, "knob": 8, "madvise": 6, "run": 2, "else": 1},
    "kept": {"keep": 8, "ksm": 10, "write": 12, "fill": 6, "fork": 4, "else": 1},
    "tables": {"walk": 10, "table": 40, "mmap": 2, "write": 2, "fill": 4, "else": 1},
}


class Program:
    """A random program of calls on a Host; the same seed and number give the same one."""

    def __init__(self, style: str, seed: int, number: int):
        from ksmwalk import Host, PageTables
        from ksmwalk.errors import ArenaFullError, BadEntryError

        self.expected = (OSError, ArenaFullError, BadEntryError, ValueError)
        self.rng = rng = random.Random(f"{style} {seed} {number}")
        frames = rng.choice((16 * HUGE, 16 * HUGE, 16 * HUGE, 3 * HUGE + 100)) if style != "tables" else 2 * HUGE
        always = "always" if style == "huge" and rng.random() < 0.5 else "madvise"
        self.host = Host(frames, rng.choice((1, 1, 2)), rng.choice((4, 4, 5)), thp=always)
        self.host.lru_batch = rng.choice((0, 0, 0, 1, 5, 15))
        ksm = self.host.ksm
        ksm.smart_scan, ksm.use_zero_pages = rng.choice(((0, 0), (0, 1), (1, 0), (1, 1)))
        ksm.max_page_sharing = rng.choice((2, 3, 256))
        if rng.random() < 0.3 and style == "merging":
            ksm.merge_across_nodes = 0
        ksm.run = 1
        ksm.events.on = True
        self.mms, self.pins, self.digest = [self.host.new_mm()], [], 0
        self.at = self.mms[0]
        self.table = PageTables(rng.choice((4, 5)), 64) if style == "tables" else None
        names = [name.removeprefix("do_") for name in dir(self) if name.startswith("do_")]
        weights = STYLES[style]
        self.names = [name for name in names if {"table": "tables", "keep": "kept"}.get(name, style) == style]
        self.weights = [weights.get(name, weights["else"]) for name in self.names]
        self.do_mmap(self.mms[0], (0, PAGES if style == "huge" else 64))
        if style in ("merging", "huge", "kept"):
            self.mms[0].madvise(BASE, (PAGES if style == "huge" else 64) * PAGE, "mergeable")

    def run(self) -> int:
        for _ in range(self.rng.randint(8, 30)):
            mm = self.at = self.rng.choice(self.mms)
            try:
                answer = getattr(self, "do_" + self.rng.choices(self.names, self.weights)[0])(mm)
            except self.expected as error:
                answer = f"{type(error).__name__} {error}"
            if not self.mms:
                self.mms.append(self.host.new_mm())
            self.look(answer)
        while self.mms:
            self.mms.pop().exit()
        self.look("end")
        return self.digest

    def look(self, answer: object) -> None:
        """Add to the digest everything that the arrays and the doors show."""
        arrays = self.host.world.arrays
        parts = [repr(answer).encode()]
        for name in ("f_flags", "f_mapcount", "f_extra", "f_key", "f_node", "work"):
            parts.append(arrays[name].tobytes())
        parts.append(arrays["trees"][: int(arrays["ctl"]["trees_used"][0])].tobytes())
        # What tells old keys of the unstable tree from new ones shows in what searches find.
        parts.append(repr([arrays["ksm"][name][0] for name in arrays["ksm"].dtype.names if name not in AGES]).encode())
        parts.append(self.host.frames.head[arrays["f_flags"] != 0].tobytes())
        parts.append(self.host.tables.rows[: int(arrays["ctl"]["rows_used"][0])].tobytes())
        parts.append(self.host.ksm.events.take().tobytes())
        for mm in self.mms:
            seen = [(v.vm_start, v.vm_end, v.vm_flags, v.vm_pgoff, v.anon_vma, v.backing) for v in mm.vmas]
            items = [(i.address, i.age, i.remaining_skips, i.checksum, i.stable, i.unstable) for i in mm.rmap_items]
            parts.append(repr((seen, items, mm.ksm_stat(), mm.nr_tables, mm.epoch)).encode())
        if self.table is not None:
            parts.append(self.table.mappings().tobytes() + repr((self.table.nr_tables, self.table.bad_count)).encode())
        for part in parts:
            self.digest = zlib.crc32(part, self.digest)

    # ------------------------------------------------------------ places

    def span(self, most: int = 700) -> tuple[int, int]:
        rng = self.rng
        areas = self.at.vmas
        if areas and rng.random() < 0.7:  # part of an area, or a little more
            area = rng.choice(areas)
            first, n = (area.vm_start - BASE) // PAGE, len(area) // PAGE
            if rng.random() < 0.3:
                return first, min(n, most)
            skip = rng.choice((0, rng.randrange(n), min(rng.randrange(8), n - 1)))
            return first + skip, min(most, rng.choice((rng.randint(1, 8), rng.randint(1, n - skip), n - skip)))
        first = rng.choice((rng.randrange(64), rng.randrange(64), rng.randrange(500, 530), rng.randrange(PAGES), 0, HUGE))
        return first, min(most, rng.choice((rng.randint(1, 8), rng.randint(1, 8), 40, HUGE, 600, 2 * HUGE)))

    def place(self) -> int:
        first, n = self.span()
        return BASE + (first + self.rng.randrange(n)) * PAGE

    # ------------------------------------------------------------ areas

    def do_mmap(self, mm, where=None):
        first, n = where or self.span()
        kind = self.rng.choices(("anon", "file", "hugetlb", "dax", "droppable", "pfnmap"), (70, 10, 8, 3, 3, 2))[0]
        if where or kind == "hugetlb":
            first, n, kind = (first // HUGE * HUGE, HUGE, kind) if not where else (first, n, "anon")
        prot = self.rng.choice(("rw", "rw", "rw", "r", "none", "rwx"))
        return mm.mmap(n * PAGE, BASE + first * PAGE, "rw" if where else prot, kind=kind, noreserve=self.rng.random() < 0.1,
                       shared=not where and kind != "droppable" and self.rng.random() < 0.15)

    def do_munmap(self, mm):
        first, n = self.span()
        mm.munmap(BASE + first * PAGE, n * PAGE)

    def do_mprotect(self, mm):
        first, n = self.span()
        mm.mprotect(BASE + first * PAGE, n * PAGE, self.rng.choice(("rw", "rw", "r", "none", "rwx")))

    def do_madvise(self, mm):
        first, n = self.span(2 * HUGE)
        mm.madvise(BASE + first * PAGE, n * PAGE, self.rng.choice(ADVICE))

    def do_mremap(self, mm):
        first, n = self.span()
        to = None if self.rng.random() < 0.3 else BASE + self.span()[0] * PAGE
        return mm.mremap(BASE + first * PAGE, n * PAGE, max(1, self.rng.choice((n, n, n - 3, n + 5))) * PAGE, to)

    def do_mlock(self, mm):
        first, n = self.span(40)
        (mm.munlock if self.rng.random() < 0.4 else mm.mlock)(BASE + first * PAGE, n * PAGE)

    def do_uffd(self, mm):
        first, n = self.span()
        mm.uffd_wp(BASE + first * PAGE, n * PAGE, self.rng.random() < 0.7)

    # ------------------------------------------------------------ contents

    def do_write(self, mm):
        mm.write(self.place(), self.rng.randrange(4), nid=self.rng.choice((None, None, self.host.nr_nodes - 1)))

    def do_fill(self, mm):
        import numpy as np

        first, n = self.span()
        mm.write(BASE + first * PAGE, np.arange(n, dtype=np.uint64) % self.rng.choice((1, 2, 3, 700)))

    def do_read(self, mm):
        return mm.read(self.place(), self.rng.choice((1, 1, 20))).tolist()

    def do_poke(self, mm):
        mm.poke(self.place(), self.rng.randrange(4))

    # ------------------------------------------------------------ processes, machine

    def do_fork(self, mm):
        if len(self.mms) < 4:
            self.mms.append(mm.fork())

    def do_exit(self, mm):
        self.mms.remove(mm)
        mm.exit()

    def do_exec(self, mm):
        mm.exec()

    def do_prctl(self, mm):
        (mm.prctl_merge if self.rng.random() < 0.7 else mm.thp_disable)(self.rng.random() < 0.5)

    def do_pin(self, mm):
        if len(self.pins) > 1:
            self.host.unpin(self.pins.pop(0))
        pfn = self.host.pin(mm, self.place())
        self.pins.append(pfn)
        if self.rng.random() < 0.3:
            self.host.lock_page(pfn, self.rng.random() < 0.6)

    def do_lru(self, mm):
        if self.rng.random() < 0.5:
            self.host.drain()
        self.host.lru_batch = self.rng.choice((0, 1, 5, 15))

    def do_keep(self, mm):
        """A copy of the Host as pickle makes it: all checks of kept arrays."""
        return pickle.loads(pickle.dumps(self.host)).frames_used

    def do_thp(self, mm):
        self.host.thp = self.rng.choice(("always", "madvise", "never"))

    # ------------------------------------------------------------ the daemon, walks

    def do_ksm(self, mm):
        self.host.ksm.do_scan(self.rng.choice((1, 7, 100, 700, 2000)))

    def do_run(self, mm):
        self.host.ksm.write("run", 2)
        self.host.ksm.write("run", 1)

    def do_knob(self, mm):
        name, values = self.rng.choice((
            ("smart_scan", (0, 1)), ("use_zero_pages", (0, 1)), ("max_page_sharing", (2, 4)), ("merge_across_nodes", (0, 1)),
            ("stable_node_chains_prune_millisecs", (0, 4000000000)),
        ))
        self.host.ksm.write(name, self.rng.choice(values))

    def do_strategy(self, mm):
        from ksmwalk import KsmScan

        scan = KsmScan(self.host.world)
        scan.strategy = self.rng.choice(("range", "per-address"))
        scan.real_lookups = self.rng.random() < 0.3

    def do_walk(self, mm):
        from ksmwalk import MmWalkOps, walk_page_range

        log: list[tuple] = []

        def note(kind: str) -> Callable:
            return lambda *args: log.append((kind, int(args[1]), int(args[2]))) or 0

        ops = {name: note(name) for name in ("pud_entry", "pmd_entry", "pte_entry", "pte_hole") if self.rng.random() < 0.6}
        ops["pre_vma"] = lambda start, end, walk: log.append(("vma", int(start), int(end))) or 0
        first, n = self.span()
        return walk_page_range(mm, BASE + first * PAGE, BASE + (first + n) * PAGE, MmWalkOps(**ops)), log

    def do_table(self, mm):
        """Tables by hand: entries of all sizes, holes, splits, lookups."""
        table, rng = self.table, self.rng
        level = rng.choices((1, 2, 3), (70, 25, 5))[0]
        size = 1 << (3 + 9 * level)
        addr = (rng.choice((0, BASE, (1 << 47) - (1 << 30))) + rng.randrange(40) * size) & ~(size - 1)
        what = rng.choice(("map", "map", "map", "unmap", "split", "lookup", "runs", "hardware"))
        if what == "map":
            flags = 0x67 | rng.choice((0, 0, 1 << 63, 0x100)) | (0x80 if level > 1 else 0)
            table.map_range(addr, [rng.randrange(1 << 20) << (9 * (level - 1)) for _ in range(rng.choice((1, 3, 30)))], flags,
                            level)
            return None
        if what == "unmap":
            return table.unmap(addr, addr + rng.choice((PAGE, 8 * PAGE, size, 3 * size)))
        if what == "split":
            return table.split(addr)
        if what == "lookup":
            return repr(table.lookup(addr))
        start = max(0, addr - 3 * size)
        found = table.mappings(start, addr + 3 * size, runs=what == "runs", view="hardware" if what == "hardware" else "kernel")
        return found.tobytes()


def scenario_digest(seed: int, number: int) -> int:
    """A scenario of the package's own generator, replayed; as much of it as a recording would show."""
    from ksmwalk.scenarios.format import record_text
    from ksmwalk.scenarios.generate import generate
    from ksmwalk.scenarios.replay import replay

    digest = 0
    for record in replay(generate(seed, number)):
        digest = zlib.crc32(record_text(record).encode(), digest)
    return digest


def aimed(style: str, seed: int, first: int, count: int, probe: str) -> None:
    reached = ctypes.c_long.in_dll(ctypes.CDLL(probe, mode=ctypes.RTLD_GLOBAL), "kw_probe_count")
    for number in range(first, first + count):
        reached.value = 0
        try:
            digest: object = scenario_digest(seed, number) if style == "scenario" else Program(style, seed, number).run()
        except Exception as error:
            digest = type(error).__name__
        print(number, reached.value, digest, flush=True)


def golden(recordings: Path, words: list[str]) -> None:
    from ksmwalk.scenarios.compare import first_difference
    from ksmwalk.scenarios.format import load
    from ksmwalk.scenarios.replay import replay

    def rank(path: Path) -> tuple[bool, bool, int]:
        name = path.relative_to(recordings).with_suffix("").as_posix()
        return path.stem not in words, not any(word in name for word in words), path.stat().st_size

    for path in sorted(recordings.rglob("*.json"), key=rank):
        print("try", path.stem, flush=True)
        # What never ends is ended: by its own processor time, which a busy machine does not add to.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        recording = load(path)
        difference = first_difference(recording.records, replay(recording), recording.nondet)
        if difference is not None:
            fields = ", ".join(field for field, _, _ in difference.fields)
            print("caught", path.stem, f"record {difference.index}: {fields}", flush=True)
            return


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    if sys.argv[1] == "golden":
        golden(Path(sys.argv[3]), sys.argv[4:])
    else:
        aimed(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]), sys.argv[7])
