"""Random scenarios on two NUMA nodes: memory placed and moved while KSM has it, merge_across_nodes changed between.

What else there is of the world around KSM meets that too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .format import Scenario
from .generate_plain import FIRST_VPN
from .generate_world import WorldMaker

#: what nodes add to what processes do anyway, with weights
_KINDS = (("place", 22), ("move", 20), ("movepid", 26), ("migrate", 18), ("across", 16), ("node_area", 10), ("step", 40))
_NODES = (0, 1)
#: MPOL_MF_MOVE, MPOL_MF_MOVE_ALL
_MOVE, _MOVE_ALL = 2, 4


def there(can: Callable[[Scenario], bool]) -> bool:
    """Whether there are two nodes."""
    return can(Scenario("possible", [["spawn", "A"], ["migrate", "A", 0, 1]]))


class NodesMaker(WorldMaker):
    """Makes one scenario."""

    def __init__(self, rng: random.Random, can: Callable[[Scenario], bool]):
        super().__init__(rng, can)
        self.across = int(rng.random() < 0.3)

    def tunables(self) -> dict[str, int | str]:
        return super().tunables() | {"merge_across_nodes": self.across}

    def work(self, kinds: Sequence[tuple[str, int]]) -> None:
        super().work([*kinds, *_KINDS])

    def node(self) -> int:
        return self.rng.choice(_NODES)

    def some_pages(self) -> tuple[str, list[int]]:
        """Pages of a process to be moved: a row of them, or here and there, one twice, one where there is none."""
        name, space = self.someone()
        rng = self.rng
        if rng.random() < 0.6 and (found := self.run_of(list(space.pages), rng.choice((2, 8, 60, 600)))):
            return name, list(range(found[0], sum(found)))
        pages = self.pick(list(space.pages), 8)
        if rng.random() < 0.1:
            pages.append(FIRST_VPN - 16)
        return name, pages

    def do_place(self) -> None:
        name, space = self.someone()
        flags = self.rng.choice(([], [], [_MOVE], [_MOVE], [_MOVE_ALL], [_MOVE | _MOVE_ALL]))
        self.add("place", name, *self.part(space), self.node(), *flags)

    def do_move(self) -> None:
        name, pages = self.some_pages()
        if pages:
            self.add("move", name, pages, self.node(), *self.rng.choice(([], [], [_MOVE_ALL])))

    def do_movepid(self) -> None:
        name, pages = self.some_pages()
        if pages:
            self.add("movepid", name, pages, self.node())

    def do_migrate(self) -> None:
        name, _ = self.someone()
        source = self.node()
        self.add("migrate", name, source, 1 - source if self.rng.random() < 0.9 else source)

    def do_across(self) -> None:
        """Changed at once where nothing is shared, refused elsewhere."""
        if self.rng.random() < 0.6:
            self.across = 1 - self.across
        unmerge = self.running and self.settle and self.rng.random() < 0.5
        if unmerge:
            self.add("run", 2)
        self.add("set", "merge_across_nodes", self.across)
        if unmerge:
            self.add("run", 1)

    def do_node_area(self) -> None:
        """An area whose memory comes from a node of its own from the start."""
        place = len(self.ops)
        self.do_area()
        if op := next((op for op in self.ops[place:] if op[0] == "mmap"), None):
            self.ops.insert(self.ops.index(op, place) + 1, ["place", *op[1:4], self.node()])
