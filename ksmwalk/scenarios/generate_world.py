"""Random scenarios with the world around KSM: locks, pins, swap, folios, khugepaged, userfaultfd, tasks, advice.

A scenario has up to three of these subjects, so that those meet which seldom do: moved subpages and fork, locks and
run=2, swap and chains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from ..layout import PAGE_SIZE
from .environment import FOLIO_KIB
from .format import Op, Scenario
from .generate_plain import FIRST_VPN, HUGE, MAX_OPS, Maker, Space
from .ops import row
from .subjects import AROUND, NEEDS, SMALLEST, SUBJECTS

#: pages of a process at most
MOST_PAGES = 4 * HUGE

#: how many subjects a scenario has
_HOW_MANY = ((0, 1, 2, 3), (15, 40, 30, 15))

#: what puts the new pages it makes into the batch of locked ones
_LOCKING = ("mlock", "mlock2", "drain")
_COUNTED = ["ksm_swpin_copy", "cow_ksm"]


class WorldMaker(Maker):
    """Makes one scenario.

    Parameters
    ----------
    rng : random.Random
    can : callable of Scenario, returning bool
        Whether there are these operations and surroundings.
    """

    def __init__(self, rng: random.Random, can: Callable[[Scenario], bool]):
        super().__init__(rng)
        self.can = can
        self.most_pages = MOST_PAGES
        self.env: dict[str, Any] = {}
        self.settle: bool = True
        self.vmstat: list[str] = []
        self.pins: list[tuple[str, str, int]] = []  # operation that gives it back, process, page
        self.watched: list[tuple[str, int, int]] = []
        self.subjects: list[str] = []
        self.locked: dict[str, set[int]] = {}  # pages of each process that are, or were before they were unmapped
        self.grown: int = 0

    def possible(self, *ops: Op, **around: Any) -> bool:
        """Whether there are these operations, of a process A, and these surroundings."""
        return self.can(Scenario("possible", [["spawn", "A"], *ops], **around))

    # ------------------------------------------------------------ one scenario

    def make(self, name: str) -> Scenario:
        rng = self.rng
        there = [subject for subject in SUBJECTS if subject not in AROUND or self.possible(env=AROUND[subject])]
        there = [subject for subject in there if self._has(SUBJECTS[subject][0][0])]
        wanted = rng.choices(*_HOW_MANY)[0]
        self.subjects = rng.sample(there, min(wanted, len(there)))
        if {"owners", "folios", "khuge"} & {*self.subjects}:
            self.style = rng.choice(("thp", "thp", "areas"))
        for subject in self.subjects:
            getattr(self, f"with_{subject}", bool)()
        self.surround()
        tunables = self.tunables()
        kinds = [*self.WEIGHTS, ("store", 4)]
        for subject in self.subjects:
            kinds += [(kind, 2 * weight) for kind, weight in SUBJECTS[subject]] + [("step", 30)]
        self.work([(kind, weight) for kind, weight in kinds if self._has(kind)])
        note = f"random, style {self.style}" + "".join(f", {subject}" for subject in self.subjects)
        ops = self.ops[: MAX_OPS + 20]
        return Scenario(name, ops, note, tunables, self.env, self.settle, self.vmstat)

    def surround(self) -> None:
        """What surrounds it besides."""

    def _has(self, kind: str) -> bool:
        if kind == "mlockall" and not self.settle:
            return False  # the pages of the program itself would be in the batches too
        if kind in ("clone", "vfork", "uffd_wp") and "uffd" in self.subjects:
            return False  # two userfaultfds on one memory
        needed = NEEDS.get(kind, [SMALLEST[kind]] if kind in SMALLEST else None)
        return needed is None or self.possible(*needed)

    def with_locks(self) -> None:
        """Whose batch an entry goes to, and when it is emptied, is to be the same every time."""
        self.settle = self.rng.random() < 0.5 or not self.possible(settle=False)
        if self._has("cpu"):
            self.add("cpu", "ksmd", self.rng.randint(0, 1))

    def with_folios(self) -> None:
        """Modes of huge pages and of smaller folios."""
        rng = self.rng
        if rng.random() < 0.6:
            self.env["thp"] = rng.choice(("always", "always", "never"))
        for kib in rng.sample(FOLIO_KIB, rng.choice((0, 1, 2, 2, 3))):
            if self.possible(env=self.env | {f"mthp_{kib}": "always"}):
                self.env[f"mthp_{kib}"] = rng.choice(("always", "madvise"))

    def with_khuge(self) -> None:
        """Limits of khugepaged."""
        rng = self.rng
        if rng.random() < 0.7:
            self.env["khugepaged/max_ptes_none"] = rng.choice((0, 100, 255, 400, 482, 511))
        if rng.random() < 0.7:
            self.env["khugepaged/max_ptes_shared"] = rng.choice((0, 1, 8, 100, 256))

    def with_swap(self) -> None:
        """A swap device, what can be reclaimed, and what is counted."""
        if not self.possible(env=self.env | AROUND["swap"]):
            self.env = {key: value for key, value in self.env.items() if not key.startswith("mthp_")}
        self.env |= AROUND["swap"]
        if self.possible(vmstat=_COUNTED):
            self.vmstat = _COUNTED

    def spawn(self) -> None:
        before = set(self.live)
        place = len(self.ops)
        super().spawn()
        # right after it is there: all that it stores goes through the batches of one CPU
        if "locks" in self.subjects and (born := set(self.live) - before) and self._has("cpu"):
            self.ops.insert(place + 1, ["cpu", *born, self.rng.randint(0, 1)])

    def do_exit(self) -> None:
        super().do_exit()
        self.pins = [one for one in self.pins if one[1] in self.live]
        self.watched = [one for one in self.watched if one[0] in self.live]

    def run_of(self, pages: Sequence[int], most: int) -> tuple[int, int] | None:
        """Some pages in a row out of these."""
        if not pages:
            return None
        vpn, n, have = self.pick([*pages], 1)[0], 1, {*pages}
        while n < most and vpn + n in have:
            n += 1
        return vpn, self.rng.randint(1, n)

    def within(self, space: Space) -> tuple[int, int] | None:
        """A piece of one area, of one protection, to be moved."""
        if not space.areas:
            return None
        vpn, n = self.part(space)
        start, length = next((one for one in space.areas if one[0] <= vpn < sum(one)), (vpn, 1))
        n = min(n, start + length - vpn)
        same = next((i for i in range(n) if space.pages.get(vpn + i) != space.pages.get(vpn)), n)
        return vpn, max(same, 1)

    def add(self, *op: Any) -> None:
        """Where nobody empties the batches, only those of locked pages are to hold any.

        A page that is new in an area that is not locked waits in its CPU's batch of new pages, which whatever else runs
        there may empty at any time.
        """
        super().add(*op)
        if not self.settle and op[0] not in _LOCKING and not self._all_locked([*op]):
            super().add("drain")

    def _all_locked(self, op: Op) -> bool:
        if op[0] in ("madvise", "mremap", "run"):
            return False  # KSM pages may have been copied
        if not row(op).present(op):
            return True
        locked = self.locked.get(op[1], set())
        return all(vpn in locked for start, n in row(op).spans(op) for vpn in range(start, start + n))

    def do_store(self) -> None:
        """Bytes in the middle of a page."""
        name, space = self.someone()
        if pages := space.writable():
            offset = self.rng.choice((0, 7, 8, 4000, 4095))
            n = self.rng.randint(1, min(9, PAGE_SIZE - offset))
            self.add("store", name, self.pick(pages, 1)[0], offset, [self.rng.choice((0, 0, 1, 5)) for _ in range(n)])

    # ------------------------------------------------------------ locks

    def do_mlock(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        self.add("mlock", name, vpn, n)
        self.locked.setdefault(name, set()).update(range(vpn, vpn + n))

    def do_mlock2(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        flags = self.rng.choice((0, 1, 1, 1, 2))
        self.add("mlock2", name, vpn, n, flags)
        if flags < 2:
            self.locked.setdefault(name, set()).update(range(vpn, vpn + n))

    def do_munlock(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        self.add("munlock", name, vpn, n)
        self.locked.get(name, set()).difference_update(range(vpn, vpn + n))

    def do_mlockall(self) -> None:
        self.add("mlockall", self.someone()[0], self.rng.choice((1, 1, 2, 3, 5, 6, 7, 4)))

    def do_munlockall(self) -> None:
        name, _ = self.someone()
        self.add("munlockall", name)
        self.locked.pop(name, None)

    def do_cpu(self) -> None:
        who = "ksmd" if self.rng.random() < 0.5 else self.someone()[0]
        self.add("cpu", who, self.rng.randint(0, 1))

    def do_dontneed_locked(self) -> None:
        self._advice("dontneed_locked")

    def do_locked_area(self) -> None:
        self._area_with({"locked": 1}, 40)

    def do_unmerge(self) -> None:
        if self.running and self.settle:  # which CPU the writer of `run` is on is not to be said
            self.add("run", 2)
            self.add("run", 1)

    # ------------------------------------------------------------ who owns a page

    def do_pin(self) -> None:
        name, space = self.someone()
        if pages := space.readable():
            vpn = self.pick(pages, 1)[0]
            self.add("pin", name, vpn)
            self.pins.append(("unpin", name, vpn))

    def do_dmapin(self) -> None:
        name, space = self.someone()
        if found := self.run_of(space.writable(), self.rng.choice((1, 2, 4, 600))):
            self.add("dmapin", name, *found)
            self.pins.append(("dmaunpin", name, found[0]))

    def do_unpin(self) -> None:
        if self.pins:
            self.add(*self.pins.pop(self.rng.randrange(len(self.pins))))

    do_dmaunpin = do_unpin

    def do_move_part(self) -> None:
        """Subpages of a huge page to another place."""
        name, space = self.someone()
        if (found := self.within(space)) is None:
            return
        vpn, n = found
        place = self.free_place(space, n, n >= HUGE and self.rng.random() < 0.7)
        self.add("mremap", name, vpn, n, n, place)
        prot = space.pages.get(vpn, "rw")
        space.unmap(vpn, n)
        space.map(place, n, prot)

    # ------------------------------------------------------------ huge pages

    def do_punch(self) -> None:
        """Holes in an area: what khugepaged fills, and where a fault finds no room for a folio."""
        name, space = self.someone()
        if found := self.within(space):
            vpn, n = found
            self.add("madvise", name, vpn, max(1, n // self.rng.choice((1, 2, 8))), "dontneed")

    def do_thin_area(self) -> None:
        """An area for a huge page with a few small pages in it."""
        name, space = self.someone()
        if self.room(space) < HUGE:
            return
        rng = self.rng
        vpn = self.free_place(space, HUGE, True)
        self.add("mmap", name, vpn, HUGE)
        space.map(vpn, HUGE)
        n = rng.choice((8, 20, 30, 112, 200, 512))
        start = vpn + rng.randint(0, HUGE - n)
        steps = ["fill", "madvise"]
        rng.shuffle(steps)
        for step in steps:
            if step == "fill":
                self.add("fill", name, start, self.contents(n))
            else:
                self.add("madvise", name, vpn, HUGE, "mergeable")
        self.add("madvise", name, vpn, HUGE, "hugepage")

    def do_khuge(self) -> None:
        self.add("khuge")

    # ------------------------------------------------------------ swap and advice

    def do_reclaim(self) -> None:
        self.add("reclaim")

    def do_swapoff(self) -> None:
        self.add("swapoff")
        if self.rng.random() < 0.5:
            self.add("step")
        self.add("swapon")

    def _advice(self, advice: str) -> None:
        name, space = self.someone()
        self.add("madvise", name, *self.part(space), advice)

    def do_cold(self) -> None:
        self._advice("cold")

    def do_pageout(self) -> None:
        self._advice("pageout")

    def do_willneed(self) -> None:
        self._advice("willneed")

    def do_free(self) -> None:
        self._advice("free")

    def do_populate(self) -> None:
        self._advice(self.rng.choice(("populate_read", "populate_write")))

    def do_remove(self) -> None:
        self._advice("remove")

    def do_advise(self) -> None:
        giver, _ = self.someone()
        name, space = self.someone()
        advice = self.rng.choice(("cold", "cold", "pageout", "pageout", "willneed", "collapse", "mergeable", "dontneed", "free"))
        self.add("advise", giver, name, *self.part(space), advice)

    def _area_with(self, options: dict[str, int], most: int) -> None:
        name, space = self.someone()
        n = self.rng.randint(1, most)
        if self.room(space) < n:
            return
        vpn = self.free_place(space, n, False)
        self.add("mmap", name, vpn, n, options)
        space.map(vpn, n)
        if self.rng.random() < 0.8:
            self.add("madvise", name, vpn, n, "mergeable")
        self.add("fill", name, vpn, self.contents(n))

    def do_shared_area(self) -> None:
        self._area_with({"shared": 1}, 20)

    # ------------------------------------------------------------ userfaultfd

    def do_uffd(self) -> None:
        name, space = self.someone()
        vpn, n = self.part(space)
        modes = self.rng.choice(({"missing": 1}, {"wp": 1}, {"wp": 1}, {"missing": 1, "wp": 1}))
        self.add("uffd", name, vpn, n, modes)
        self.watched.append((name, vpn, n))

    def _watched(self) -> tuple[str, int, int] | None:
        if not self.watched:
            self.do_uffd()
            return None
        name, vpn, n = self.rng.choice(self.watched)
        start = self.rng.randrange(n)
        return name, vpn + start, self.rng.randint(1, n - start)

    def do_uffd_protect(self) -> None:
        if found := self._watched():
            self.add("uffd_protect", *found, self.rng.choice((1, 1, 0)))

    def do_uffd_copy(self) -> None:
        if found := self._watched():
            name, vpn, n = found
            n = min(n, 6)
            if self.rng.random() < 0.6:  # else most are present
                self.add("madvise", name, vpn, n, "dontneed")
            options = [{"wp": 1}] if self.rng.random() < 0.3 else []
            self.add("uffd_copy", name, vpn, [self.content() for _ in range(n)], *options)

    def do_uffd_zero(self) -> None:
        if found := self._watched():
            name, vpn, n = found
            self.add("madvise", name, vpn, min(n, 4), "dontneed")
            self.add("uffd_zero", name, vpn, min(n, 4))

    def do_uffd_move(self) -> None:
        if found := self._watched():
            name, vpn, n = found
            source = self.run_of(self.live[name].writable(), min(n, 4))
            if source is None:
                return
            if self.rng.random() < 0.7:
                self.add("madvise", name, vpn, source[1], "dontneed")
            self.add("uffd_move", name, vpn, *source)

    def do_uffd_unregister(self) -> None:
        if found := self._watched():
            self.add("uffd_unregister", *found)

    def do_uffd_wp(self) -> None:
        name, space = self.someone()
        self.add("uffd_wp", name, *self.part(space))

    # ------------------------------------------------------------ tasks, stacks, files

    def do_clone(self) -> None:
        parent, space = self.someone()
        if child := self.newborn():
            self.add("clone", parent, child)
            self.live[child] = space

    def do_vfork(self) -> None:
        """The parent waits all the while."""
        parent, space = self.someone()
        child = self.newborn()
        if child is None:
            return
        self.add("vfork", parent, child)
        if pages := self.pick(space.writable(), 3):
            self.add("write", child, [[vpn, self.content()] for vpn in pages])
        if self.rng.random() < 0.5:
            self.add("step")
        if self.rng.random() < 0.6:
            self.add("exec", child)
            self.live[child] = Space()
            self.live[child].merge_any = space.merge_any
            self.add("vforked", parent)
            self.area(child)
        else:
            self.add("exit", child)
            self.add("vforked", parent)

    def do_growsdown(self) -> None:
        """A stack, and stores below it."""
        name, space = self.someone()
        self.grown += 1
        vpn, n, more = FIRST_VPN + (100 + 4 * self.grown) * HUGE, self.rng.randint(1, 6), self.rng.randint(1, 40)
        self.add("mmap", name, vpn, n, {"growsdown": 1})
        if self.rng.random() < 0.8:
            self.add("madvise", name, vpn, n, "mergeable")
        self.add("fill", name, vpn, self.contents(n))
        self.add("watch", name, vpn - more, more)
        pages = self.rng.sample(range(vpn - more, vpn), min(more, 4))
        if self.rng.random() < 0.8:
            self.add("write", name, [[page, self.content()] for page in pages])
        else:
            self.add("touch", name, pages)
        lowest = min(pages)
        space.map(lowest, vpn + n - lowest)

    def do_dontunmap(self) -> None:
        name, space = self.someone()
        if (found := self.within(space)) is None or self.room(space) < found[1]:
            return
        vpn, n = found
        place = self.free_place(space, n, n >= HUGE)
        self.add("mremap", name, vpn, n, n, place, {"dontunmap": 1})
        space.map(place, n, space.pages.get(vpn, "rw"))

    def do_file_area(self) -> None:
        self._area_with({"file": 1}, 20)
