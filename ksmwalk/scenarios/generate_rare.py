"""Random scenarios in which everything that can be said turns up often enough to be compared.

Besides what its subjects make likely each scenario has some errands: operations, options and advice drawn evenly from a
list of all there are, done once each, somewhere on the way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from ..host import ADVICE
from ..layout import PAGE_SIZE
from .environment import FOLIO_KIB
from .format import Scenario
from .generate_plain import HUGE, KNOB_VALUES, Space
from .generate_world import WorldMaker
from .kinds import HEAP_VPN, UFFD_BITS
from .said import said

#: errands of one scenario
_HOW_MANY = (10, 11, 12, 13)
#: errands drawn besides, each with its chance: what often finds nothing to do, or is for few scenarios only
_MORE = {"clone": 0.08, "vfork": 0.12, "uffd_wp": 0.08, "syscall": 0.06, "swapoff": 0.6, "reclaim": 0.3, "brk": 0.1}
#: what seldom meets by itself, with the chance that it is made to
_MEETINGS = {("fork", "moved"): 0.1, ("run", "locked_unmerged"): 0.08, ("fork", "guarded"): 0.06}
#: how often an errand is tried that finds nothing to do
_TRIES = 3
#: pages that advice is for which takes something away, at most: else little would be left to merge
_FEW = 8
_TAKING = ("guard_install", "remove", "dontneed_locked", "wipeonfork", "unmergeable", "dontneed")
#: what makes memory of two tasks or two userfaultfds, of which a scenario has one kind
_TASKS, _UFFD = ("clone", "vfork", "uffd_wp"), ("uffd", "uffd_protect", "uffd_copy", "uffd_zero", "uffd_move", "uffd_unregister")


class RareMaker(WorldMaker):
    """Makes one scenario.

    Parameters
    ----------
    rng : random.Random
    can : callable of Scenario, returning bool
        Whether there are these operations and surroundings.
    """

    def __init__(self, rng: random.Random, can: Callable[[Scenario], bool]):
        super().__init__(rng, can)
        self.errands: list[tuple[float, str, Callable[[], None]]] | None = None
        self.protected: set[str] = set()  # who may have pages that userfaultfd write-protects
        self.tasks_of: dict[str, str] = {}  # whose memory a clone or vfork child has

    def surround(self) -> None:
        """Besides what the subjects want: now and then a size of folios, a limit of khugepaged."""
        rng = self.rng
        for kib in FOLIO_KIB:
            if rng.random() < 0.06 and self.possible(env=self.env | {f"mthp_{kib}": "always"}):
                self.env[f"mthp_{kib}"] = rng.choice(("always", "madvise"))
        if "memcg" not in self.env and rng.random() < 0.06 and self.possible(env=self.env | {"memcg": 1}):
            self.env["memcg"] = 1
        if rng.random() < 0.12:
            self.env["khugepaged/max_ptes_swap"] = rng.choice((0, 1, 8, 64, 511))

    # ------------------------------------------------------------ when

    def between(self, done: float) -> None:
        if self.errands is None:
            self.errands = self._drawn()
        while self.errands and self.errands[-1][0] <= done:
            _, word, errand = self.errands.pop()
            for _ in range(_TRIES):
                before = len(self.ops)
                errand()
                if word in said(Scenario("so far", self.ops[before:])):
                    break

    def _drawn(self) -> list[tuple[float, str, Callable[[], None]]]:
        """Some errands with their times, the first one last."""
        words = {word: errand for word, errand in self._all().items() if self._can_say(word)}
        chosen = self.rng.sample([*words], min(len(words), self.rng.choice(_HOW_MANY)))
        chosen += [word for word, chance in _MORE.items() if word in words and self.rng.random() < chance]
        meetings = [
            (word, getattr(self, f"_{how}")) for (word, how), chance in _MEETINGS.items() if self.rng.random() < chance
        ]
        kinds = {word.partition(" ")[0] for word in chosen}
        if kinds & {*_UFFD}:
            chosen = [word for word in chosen if word not in _TASKS]
        timed = [(self.rng.random(), word, errand) for word, errand in [*((word, words[word]) for word in chosen), *meetings]]
        return sorted(timed, key=lambda one: one[0], reverse=True)

    def _can_say(self, word: str) -> bool:
        kind = word.partition(" ")[0]
        if kind in _UFFD and {"tasks", "advice"} & {*self.subjects}:
            return False
        if kind == "swapoff":
            return "swap_mib" in self.env
        if kind == "reclaim":
            return "memcg" in self.env
        if word == "mmap growsdown":
            return self._has("growsdown")
        if word == "mremap dontunmap":
            return self._has("dontunmap")
        if word == "mmap file":
            return self._has("file_area")
        return self._has(kind)

    # ------------------------------------------------------------ what

    def _all(self) -> dict[str, Callable[[], None]]:
        """Every errand by what it says."""
        out: dict[str, Callable[[], None]] = {}
        for advice in ADVICE:
            out[f"madvise {advice}"] = partial(self._own_advice, advice)
            out[f"advise {advice}"] = partial(self._others_advice, advice)
        for knob, values in KNOB_VALUES:
            out[f"set {knob}"] = partial(self.write_knob, knob, values)
        out["set advisor_mode"] = self.do_advisor
        options: dict[str, dict[str, Any]] = {name: {name: 1} for name in ("shared", "noreserve", "populate", "locked", "file")}
        for name, given in options.items():
            out[f"mmap {name}"] = partial(self._area_with, given, 30)
        for prot in ("r", "none", "rwx", "w"):
            out[f"mmap {prot}"] = partial(self._protected_area, prot)
        for mode in UFFD_BITS:
            out[f"uffd {mode}"] = partial(self._watch_for, mode)
        out["mmap growsdown"], out["mremap dontunmap"] = self.do_growsdown, self.do_dontunmap
        out["uffd_copy wp"] = partial(self._placed, {"wp": 1})
        out["uffd_copy"] = partial(self._placed, {})
        for kind in (
            "mlock", "mlock2", "munlock", "mlockall", "munlockall", "prctl_get", "thpdisable", "pin", "unpin", "dmapin",
            "dmaunpin", "clone", "vfork", "sleep", "syscall", "swapoff", "reclaim", "khuge", "uffd_wp", "uffd_protect",
            "uffd_zero", "uffd_move", "uffd_unregister", "brk", "memset", "store", "pwrite", "exec", "drain", "cpu",
        ):  # fmt: skip
            out[kind] = getattr(self, f"do_{kind}")
        return out

    def _few(self) -> tuple[str, int, int]:
        """A process, and some pages of it."""
        name, space = self.someone()
        vpn, n = self.part(space)
        return name, vpn, min(n, self.rng.randint(1, _FEW))

    def _own_advice(self, advice: str) -> None:
        """With what makes it matter: a fork, a store, the opposite."""
        rng = self.rng
        name, vpn, n = self._few()
        if advice not in _TAKING and rng.random() < 0.5:
            vpn, n = self.part(self.live[name])
        if advice == "dontneed_locked" and rng.random() < 0.7:
            self.do_locked_pages(name, vpn, n)
        self.add("madvise", name, vpn, n, advice)
        if advice in ("wipeonfork", "dontfork", "guard_install") and rng.random() < 0.5:
            self.do_fork()
        opposite = {"wipeonfork": "keeponfork", "guard_install": "guard_remove", "dontdump": "dodump", "dontfork": "dofork"}
        if advice in opposite and rng.random() < 0.4:
            self.add("madvise", name, vpn, n, opposite[advice])

    def add(self, *op: Any) -> None:
        """Say it, unless the kernel would never come back from it (`Mm.madvise`)."""
        if op[0] in ("clone", "vfork"):
            self.tasks_of[op[2]] = self.tasks_of.get(op[1], op[1])
        if op[0] == "uffd_wp" or op[0] == "uffd" and "wp" in op[4]:
            self.protected.add(self.tasks_of.get(op[1], op[1]))
        if op[-1] != "guard_install" or self.tasks_of.get(op[-4], op[-4]) not in self.protected:
            super().add(*op)

    def do_locked_pages(self, name: str, vpn: int, n: int) -> None:
        self.add("mlock", name, vpn, n)
        self.locked.setdefault(name, set()).update(range(vpn, vpn + n))

    def _others_advice(self, advice: str) -> None:
        name, vpn, n = self._few()
        others = [one for one in self.live if one != name]
        giver = self.rng.choice(others) if others and self.rng.random() < 0.6 else name
        self.add("advise", giver, name, vpn, n, advice)

    def _protected_area(self, prot: str) -> None:
        """An area that may not all be stored to, at first."""
        name, space = self.someone()
        n = self.rng.randint(1, 12)
        if self.room(space) < n:
            return
        vpn = self.free_place(space, n, False)
        self.add("mmap", name, vpn, n, {"prot": prot})
        space.map(vpn, n, prot)
        self.add("madvise", name, vpn, n, "mergeable")
        if prot == "r" and self.rng.random() < 0.5:
            self.add("touch", name, [vpn, vpn + n - 1])
        if "w" not in prot:
            self.add("mprotect", name, vpn, n, "rw")
            space.protect(vpn, n, "rw")
        self.add("fill", name, vpn, self.contents(n))

    def do_brk(self) -> None:
        """A heap grows, mostly is filled, and shrinks later."""
        rng = self.rng
        name, space = self.someone()
        old = space.heap
        n = max(0, old + rng.choice((1, 3, 10, 30, -2, -5, 0) if old else (1, 4, 12, 40)))
        if n - old > self.room(space):
            return
        self.add("brk", name, n)
        space.heap = n
        if n < old:
            space.unmap(HEAP_VPN + n, old - n)
        elif n > old:
            space.map(HEAP_VPN + old, n - old)
            if rng.random() < 0.7:
                self.add("madvise", name, HEAP_VPN, n, "mergeable")
            if rng.random() < 0.8:
                self.add("fill", name, HEAP_VPN + old, self.contents(n - old))

    def do_sleep(self) -> None:
        self.add("sleep", self.rng.choice((0, 0.001, 0.01)))

    def do_syscall(self) -> None:
        """mlock and its like with registers as they are."""
        rng = self.rng
        name, vpn, n = self._few()
        odd = rng.choice((0, 0, 1, 4095))
        locking = {149: [], 325: [rng.choice((0, 1, 2))]}
        number = rng.choice((149, 150, 325, *((151, 152) if self.settle else ())))
        if number == 151:
            self.add("syscall", name, number, rng.choice((1, 2, 3, 4, 5, 8)))
        elif number == 152:
            self.add("syscall", name, number)
        else:
            self.add("syscall", name, number, vpn * PAGE_SIZE + odd, n * PAGE_SIZE - odd, *locking.get(number, []))
        pages = range(vpn, vpn + n)
        if number in locking:
            self.locked.setdefault(name, set()).update(pages)
        elif number == 150:
            self.locked.get(name, set()).difference_update(pages)

    # ------------------------------------------------------------ what seldom meets

    def _fork_of(self, parent: str) -> None:
        if child := self.newborn():
            self.add("fork", parent, child)
            self.live[child] = Space(self.live[parent])

    def _moved(self) -> None:
        """Pages of a huge page are elsewhere, and it is forked, before that or after."""
        rng = self.rng
        name = self._with_huge_area()
        if name is None:
            return
        space = self.live[name]
        vpn, _ = rng.choice([area for area in space.areas if area[1] >= HUGE])
        n = rng.choice((1, 3, 40, 511))
        start = vpn + rng.randrange(HUGE - n + 1)
        steps: list[Callable[[], None]] = [lambda: self._move(name, start, n), lambda: self._fork_of(name)]
        if rng.random() < 0.5:
            steps.reverse()
        for step in steps:
            step()
            if rng.random() < 0.5:
                self.do_step()

    def _with_huge_area(self) -> str | None:
        """A process that has room for a huge page in one of its areas, perhaps just made."""
        have = [name for name, space in self.live.items() if any(n >= HUGE for _, n in space.areas)]
        if have:
            return self.rng.choice(have)
        name, space = self.someone()
        if self.room(space) < HUGE:
            return None
        vpn = self.free_place(space, HUGE, True)
        self.add("mmap", name, vpn, HUGE)
        space.map(vpn, HUGE)
        self.add("madvise", name, vpn, HUGE, "hugepage")
        self.add("madvise", name, vpn, HUGE, "mergeable")
        self.add("fill", name, vpn, self.contents(HUGE))
        return name

    def _move(self, name: str, vpn: int, n: int) -> None:
        space = self.live[name]
        place = self.free_place(space, n, False)
        self.add("mremap", name, vpn, n, n, place)
        prot = space.pages.get(vpn, "rw")
        space.unmap(vpn, n)
        space.map(place, n, prot)

    def _locked_unmerged(self) -> None:
        """Locked pages are merged, and then everything is unmerged."""
        if not self.settle:
            return  # which CPU the writer of `run` is on is not to be said
        self.do_mlock()
        self.add("step", self.rng.randint(1, 3))
        self.add("run", 2)
        self.add("run", 1)
        self.running = True

    def _guarded(self) -> None:
        """Guards, a fork, and who runs into them."""
        name, vpn, n = self._few()
        self.add("madvise", name, vpn, n, "guard_install")
        self._fork_of(name)
        self.add("write", name, [[vpn, self.content()]])

    # ------------------------------------------------------------ what needs something first

    def do_unpin(self) -> None:
        if not [one for one in self.pins if one[0] == "unpin"]:
            self.do_pin()
            self.add("step")
        self._give_back("unpin")

    def do_dmaunpin(self) -> None:
        if not [one for one in self.pins if one[0] == "dmaunpin"]:
            self.do_dmapin()
            self.add("step")
        self._give_back("dmaunpin")

    def _give_back(self, kind: str) -> None:
        if mine := [one for one in self.pins if one[0] == kind]:
            one = self.rng.choice(mine)
            self.pins.remove(one)
            self.add(*one)

    def _watch_for(self, mode: str) -> None:
        name, vpn, n = self._few()
        modes = {mode: 1}
        if self.rng.random() < 0.5:
            modes[self.rng.choice(tuple(UFFD_BITS))] = 1
        self.add("uffd", name, vpn, n, modes)
        self.watched.append((name, vpn, n))

    def _watched(self) -> tuple[str, int, int] | None:
        """What is watched, after watching something where nothing is."""
        return super()._watched() or super()._watched()

    def _placed(self, options: dict[str, int]) -> None:
        if found := self._watched():
            name, vpn, n = found
            n = min(n, 6)
            if self.rng.random() < 0.7:
                self.add("madvise", name, vpn, n, "dontneed")
            self.add("uffd_copy", name, vpn, [self.content() for _ in range(n)], *([options] if options else []))

