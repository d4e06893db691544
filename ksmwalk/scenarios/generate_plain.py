"""Random scenarios of processes and the daemon alone: what needs nothing of the machine but KSM.

The generator keeps a rough idea of every address space, so that nearly all operations meet something, and lets a few
miss on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from ..layout import PAGE_SIZE
from .format import Op, Scenario

HUGE = 512
#: small areas start here, huge ones at the next place that 2 MiB divide
FIRST_VPN = 65536
MAX_PAGES = 512
MAX_OPS = 60
MAX_PROCESSES = 4

NEVER = 4000000000  # milliseconds of stable_node_chains_prune_millisecs that do not pass

#: what is written into each knob, refusals among it; `advisor_mode` has a way of its own
KNOB_VALUES: tuple[tuple[str, tuple[int | str, ...]], ...] = (
    ("pages_to_scan", (0, 1, 3, 7, 20, 100, 300, 2000, -1, "x")),
    ("smart_scan", (0, 1)),
    ("use_zero_pages", (0, 1)),
    ("max_page_sharing", (1, 2, 3, 5, 10, 256)),
    ("merge_across_nodes", (0, 1)),
    ("stable_node_chains_prune_millisecs", (0, NEVER)),
    ("advisor_max_cpu", (1, 70, 100)),
    ("advisor_target_scan_time", (1, 200)),
    ("advisor_min_pages_to_scan", (1, 500)),
    ("advisor_max_pages_to_scan", (500, 30000)),
)


class Space:
    """What a process has mapped, as far as the generator keeps track."""

    def __init__(self, other: Space | None = None):
        self.pages: dict[int, str] = dict(other.pages) if other else {}  # vpn -> protection
        self.areas: list[tuple[int, int]] = list(other.areas) if other else []
        self.merge_any: bool = other.merge_any if other else False
        self.heap: int = other.heap if other else 0  # its pages

    def map(self, vpn: int, n: int, prot: str = "rw") -> None:
        self.unmap(vpn, n)
        self.areas.append((vpn, n))
        self.pages |= dict.fromkeys(range(vpn, vpn + n), prot)

    def unmap(self, vpn: int, n: int) -> None:
        for page in range(vpn, vpn + n):
            self.pages.pop(page, None)
        kept = []
        for start, length in self.areas:
            for low, high in ((start, min(start + length, vpn)), (max(start, vpn + n), start + length)):
                if low < high:
                    kept.append((low, high - low))
        self.areas = kept

    def protect(self, vpn: int, n: int, prot: str) -> None:
        for page in range(vpn, vpn + n):
            if page in self.pages:
                self.pages[page] = prot

    def writable(self) -> list[int]:
        return [vpn for vpn, prot in self.pages.items() if "w" in prot]

    def readable(self) -> list[int]:
        return [vpn for vpn, prot in self.pages.items() if prot != "none"]


class Maker:
    """Makes one scenario."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.ops: list[Op] = []
        self.live: dict[str, Space] = {}
        self.born: int = 0
        self.unique: int = 100000
        self.running: bool = False
        self.most_pages = MAX_PAGES
        self.style = rng.choices(("churn", "areas", "thp"), (45, 35, 20))[0]
        self.alphabet = rng.choice((2, 3, 4, 6, 8, 12, 20))
        self.zeros: float = rng.choice((0.02, 0.1, 0.3))
        self.uniques: float = rng.choice((0.0, 0.1, 0.3) if self.style != "thp" else (0.3, 0.6, 0.9))
        self.holes: float = rng.choice((0.0, 0.05, 0.2))
        # how often what is done next is done to the same pages again: there rules meet that else seldom do
        self.again: float = rng.choice((0.0, 0.0, 0.5, 0.85))
        self.who: str = ""  # did something last, and where
        self.where: tuple[int, int] = (FIRST_VPN, 1)

    # ------------------------------------------------------------ small choices

    def content(self) -> int:
        draw = self.rng.random()
        if draw < self.zeros:
            return 0
        if draw < self.zeros + self.uniques:
            self.unique += 1
            return self.unique
        return self.rng.randint(1, self.alphabet)

    def contents(self, n: int) -> list[int | None]:
        return [None if self.rng.random() < self.holes else self.content() for _ in range(n)]

    def tunables(self) -> dict[str, int | str]:
        rng = self.rng
        scan = (1, 2, 3, 5, 7, 13, 16, 40, 100, 300, 1000)
        chosen: dict[str, int | str] = {
            "pages_to_scan": rng.choice(scan[3:] if self.style != "thp" else (100, 300, 1000, 3000)),
            "smart_scan": rng.randint(0, 1),
            "use_zero_pages": rng.randint(0, 1),
            "max_page_sharing": rng.choice((2, 2, 3, 4, 5, 8, 16, 256)),
            # the default of two seconds would make chains depend on how fast the machine is
            "stable_node_chains_prune_millisecs": rng.choice((0, NEVER)),
        }
        if rng.random() < 0.05:
            chosen["merge_across_nodes"] = 0
        if rng.random() < 0.03:
            chosen["pages_to_scan"] = rng.choice(scan[:3])
        if rng.random() < 0.05:
            chosen["advisor_target_scan_time"] = rng.choice((1, 50, 1000))
            chosen["advisor_max_cpu"] = rng.choice((1, 50, 100))
        return chosen

    def someone(self) -> tuple[str, Space]:
        if self.who not in self.live or self.rng.random() >= self.again:
            self.who = self.rng.choice(list(self.live))
        return self.who, self.live[self.who]

    def part(self, space: Space) -> tuple[int, int]:
        """A piece of an area: often whole, sometimes reaching over its end; or where it was last time, or in it."""
        if not space.areas:
            return FIRST_VPN, 1
        if self.where[0] in space.pages and self.rng.random() < self.again:
            vpn, n = self.where
            if self.rng.random() < 0.5:
                return vpn, n
            start = self.rng.randrange(n)
            return vpn + start, self.rng.randint(1, n - start)
        self.where = self.piece(space)
        return self.where

    def piece(self, space: Space) -> tuple[int, int]:
        """A piece of any area."""
        vpn, n = self.rng.choice(space.areas)
        if self.rng.random() < 0.3:
            return vpn, n
        start = self.rng.randrange(n)
        length = self.rng.randint(1, n - start)
        if self.rng.random() < 0.06:
            length += self.rng.randint(1, 4)
        return vpn + start, length

    def pick(self, pages: list[int], most: int) -> list[int]:
        vpn, n = self.where
        near = [page for page in pages if vpn <= page < vpn + n] if self.rng.random() < self.again else []
        return self.rng.choices(near or pages, k=self.rng.randint(1, most)) if pages else []

    def room(self, space: Space) -> int:
        return self.most_pages - len(space.pages)

    def add(self, *op: Any) -> None:
        self.ops.append(list(op))

    # ------------------------------------------------------------ areas and processes

    def free_place(self, space: Space, n: int, huge: bool) -> int:
        if huge:
            places = range(FIRST_VPN, FIRST_VPN + 8 * HUGE, HUGE)
        else:
            places = range(FIRST_VPN + self.rng.randrange(64), FIRST_VPN + 64 * HUGE, self.rng.randint(100, 700))
        for vpn in places:
            if not any(page in space.pages for page in range(vpn, vpn + n)):
                return vpn
        return FIRST_VPN + 100 * HUGE

    def area(self, name: str, mark: bool = True) -> None:
        """A new area, usually mergeable and filled."""
        space, rng = self.live[name], self.rng
        room = self.room(space)
        huge = self.style == "thp" and room >= HUGE and rng.random() < 0.8
        if room < 1:
            return
        n = HUGE if huge else min(room, rng.choice((1, 2, 4, 6, 6, 10, 20, 40, 60, 120)))
        if self.style == "churn":
            n = min(n, 40)
        vpn = self.free_place(space, n, huge)
        options: dict[str, Any] = {}
        if not huge and rng.random() < 0.04:
            options["shared"] = 1
        if rng.random() < 0.04:
            options["noreserve"] = 1
        if rng.random() < 0.04:
            options["populate"] = 1
        self.add("mmap", name, vpn, n, *([options] if options else []))
        space.map(vpn, n)
        if huge:
            self.add("madvise", name, vpn, n, "hugepage")
        steps: list[Callable[[], None]] = [lambda: self.add("fill", name, vpn, self.contents(n))]
        if mark and rng.random() < 0.9:
            steps.insert(rng.randint(0, 1), lambda: self.add("madvise", name, vpn, n, "mergeable"))
        for step in steps:
            step()

    def newborn(self) -> str | None:
        if len(self.live) >= MAX_PROCESSES or self.born >= 8:
            return None
        name = "ABCDEFGH"[self.born]
        self.born += 1
        return name

    def spawn(self) -> None:
        name = self.newborn()
        if name is None:
            return
        self.add("spawn", name)
        self.live[name] = Space()
        if self.rng.random() < 0.08:
            self.add("prctl", name, 1)
            self.live[name].merge_any = True
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            self.area(name)

    # ------------------------------------------------------------ what can happen

    def do_write(self) -> None:
        name, space = self.someone()
        if pages := self.pick(space.writable(), self.rng.choice((1, 3, 12))):
            self.add("write", name, [[vpn, self.content()] for vpn in pages])

    def do_rewrite(self) -> None:
        """The same content to several places: what merges next."""
        name, space = self.someone()
        content = self.content()
        if pages := self.pick(space.writable(), 8):
            self.add("write", name, [[vpn, content] for vpn in pages])

    def do_fill(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        n = min(n, 64)
        if all("w" in space.pages.get(page, "") for page in range(vpn, vpn + n)):
            self.add("fill", name, vpn, self.contents(n))

    def do_fault(self) -> None:
        """A store or a read where the process may not: it fails there and the rest is not done."""
        name, space = self.someone()
        pages = self.pick([*space.pages, FIRST_VPN - 16], 3)
        if self.rng.random() < 0.5:
            self.add("write", name, [[vpn, self.content()] for vpn in pages])
        else:
            self.add("touch", name, pages)

    def do_touch(self) -> None:
        name, space = self.someone()
        if pages := self.pick(space.readable(), 5):
            self.add("touch", name, pages)

    def do_memset(self) -> None:
        name, space = self.someone()
        if pages := space.writable():
            vpn = self.pick(pages, 1)[0]
            n = 1
            while n < 6 and "w" in space.pages.get(vpn + n, "") and self.rng.random() < 0.6:
                n += 1
            self.add("memset", name, vpn, self.rng.choice((0, 0, 1, 255)), n * PAGE_SIZE)

    def do_pwrite(self) -> None:
        name, space = self.someone()
        if pages := self.pick(list(space.pages), 3):
            self.add("pwrite", name, [[vpn, self.content()] for vpn in pages])

    def do_madvise(self) -> None:
        name, space = self.someone()
        advice = self.rng.choices(
            (
                "mergeable",
                "unmergeable",
                "dontneed",
                "free",
                "dontfork",
                "dofork",
                "hugepage",
                "nohugepage",
                "collapse",
            ),
            (25, 22, 30, 8, 3, 3, 4, 3, 14 if self.style == "thp" else 1),
        )[0]
        vpn, n = self.part(space)
        self.add("madvise", name, vpn, n, advice)

    def do_munmap(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        self.add("munmap", name, vpn, n)
        space.unmap(vpn, n)

    def do_remap(self) -> None:
        """Unmap and map the same place anew."""
        name, space = self.someone()
        vpn, n = self.part(space)
        if self.rng.random() < 0.7:
            self.add("munmap", name, vpn, n)
        self.add("mmap", name, vpn, n)
        space.map(vpn, n)
        if self.rng.random() < 0.7:
            self.add("madvise", name, vpn, n, "mergeable")
        self.add("fill", name, vpn, self.contents(n))

    def do_mremap(self) -> None:
        name, space = self.someone()
        if not space.areas:
            return
        vpn, n = self.rng.choice(space.areas)
        if any(space.pages.get(page) != space.pages.get(vpn) for page in range(vpn, vpn + n)) and n > 1:
            n = 1  # an area cut by protections is several vmas
        new_n = max(1, min(n + self.room(space), n + self.rng.choice((0, 0, 0, 3, -1, -2))))
        if self.rng.random() < 0.3:
            # in place: only where nothing is in the way, so that it grows or fails alike everywhere
            grown = range(vpn + n, vpn + new_n)
            if any(page in space.pages for page in grown):
                return
            self.add("mremap", name, vpn, n, new_n, None)
            new_vpn = vpn
        else:
            new_vpn = self.free_place(space, max(n, new_n), n >= HUGE and self.rng.random() < 0.7)
            self.add("mremap", name, vpn, n, new_n, new_vpn)
        prot = space.pages.get(vpn, "rw")
        space.unmap(vpn, n)
        space.map(new_vpn, new_n, prot)

    def do_mprotect(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        prot = self.rng.choice(("r", "none", "rw", "rw", "rw"))
        self.add("mprotect", name, vpn, n, prot)
        if all(page in space.pages for page in range(vpn, vpn + n)):
            space.protect(vpn, n, prot)
        else:  # stops at a hole with an error: what stands before it has changed
            space.unmap(vpn, n)

    def do_area(self) -> None:
        name, _ = self.someone()
        self.area(name)

    def do_fork(self) -> None:
        parent, space = self.someone()
        if child := self.newborn():
            self.add("fork", parent, child)
            self.live[child] = Space(space)

    def do_exit(self) -> None:
        if len(self.live) > 1 or self.rng.random() < 0.2:
            name, _ = self.someone()
            self.add("exit", name)
            del self.live[name]
            if not self.live:
                self.spawn()
            if not self.live:
                raise Finished

    def do_exec(self) -> None:
        name, space = self.someone()
        self.add("exec", name)
        fresh = Space()
        fresh.merge_any = space.merge_any
        self.live[name] = fresh
        self.area(name)

    def do_prctl(self) -> None:
        name, space = self.someone()
        space.merge_any = not space.merge_any if self.rng.random() < 0.8 else space.merge_any
        self.add("prctl", name, int(space.merge_any))

    def do_prctl_get(self) -> None:
        self.add("prctl_get", self.someone()[0])

    def do_thpdisable(self) -> None:
        self.add("thpdisable", self.someone()[0], self.rng.choice((1, 0)))

    def do_set(self) -> None:
        self.write_knob(*self.rng.choice(KNOB_VALUES))

    def write_knob(self, knob: str, values: Sequence[int | str]) -> None:
        self.add("set", knob, self.rng.choice(values))

    def do_advisor(self) -> None:
        """Switched on and off again between two batches: how far it goes in a scan depends on the machine's speed."""
        self.add("set", "advisor_mode", "scan-time")
        if self.rng.random() < 0.5:
            self.add("set", "pages_to_scan", 50)
        self.add("set", "advisor_mode", "none")

    def do_run(self) -> None:
        if not self.running:
            value = 1
        else:
            value = self.rng.choices((0, 1, 2), (30, 30, 40))[0]
        self.add("run", value)
        if value != 1 and self.rng.random() < 0.6:
            self.add("run", 1)
            value = 1
        self.running = value == 1

    def do_step(self) -> None:
        k = self.rng.choices((1, 2, 3, 4, 6), (60, 18, 12, 6, 4))[0]
        self.add(*(("step",) if k == 1 else ("step", k)))

    def do_drain(self) -> None:
        self.add("drain")

    WEIGHTS = (
        ("step", 100),
        ("write", 30),
        ("rewrite", 12),
        ("fill", 6),
        ("fault", 1),
        ("touch", 5),
        ("memset", 2),
        ("pwrite", 2),
        ("madvise", 22),
        ("munmap", 5),
        ("remap", 4),
        ("mremap", 3),
        ("mprotect", 5),
        ("area", 5),
        ("spawn", 4),
        ("fork", 9),
        ("exit", 4),
        ("exec", 1),
        ("prctl", 4),
        ("prctl_get", 1),
        ("thpdisable", 1),
        ("set", 7),
        ("advisor", 1),
        ("run", 6),
        ("drain", 1),
    )

    def make(self, name: str) -> Scenario:
        tunables = self.tunables()
        self.work(self.WEIGHTS)
        return Scenario(name, self.ops[:MAX_OPS], f"random, style {self.style}", tunables)

    def work(self, kinds: Sequence[tuple[str, int]]) -> None:
        """Make operations of these kinds and weights."""
        rng = self.rng
        size = rng.randint(12, MAX_OPS)
        for _ in range(rng.choice((1, 1, 2, 3))):
            self.spawn()
        self.do_run()
        names, weights = zip(*kinds, strict=True)
        makers: dict[str, Callable[[], None]] = {
            kind: getattr(self, f"do_{kind}", None) or self.spawn for kind in names
        }
        try:
            while len(self.ops) < size:
                makers[rng.choices(names, weights)[0]]()
                self.between(len(self.ops) / size)
                if not self.running and rng.random() < 0.3:
                    self.do_run()
        except Finished:
            pass

    def between(self, done: float) -> None:
        """What is done besides, once so much of the scenario is there."""


class Finished(Exception):
    """Every process is gone and no name is left."""
