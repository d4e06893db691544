"""What a scenario does with the life of a process: its tasks, its end, what others do to its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layout import PAGE_SIZE as PAGE

if TYPE_CHECKING:
    from ..host.mm import Mm


class Life:
    """Operations on tasks and on the memory of others.

    Attributes
    ----------
    live : dict of str to Mm
        Processes by name; two tasks of one address space have the same.
    lodgers : set of str
        Those that live in the memory of another, whose pages are told of under the other's name only.
    """

    if TYPE_CHECKING:
        live: dict[str, Mm]
        lodgers: set[str]

        def _born(self, name: str, mm: Mm) -> None: ...
        def _program(self, mm: Mm) -> None: ...

    def do_exit(self, name: str) -> None:
        self.lodgers.discard(name)
        self.live.pop(name).exit()

    def do_exec(self, name: str) -> None:
        mm = self.live[name].exec()
        self.lodgers.discard(name)
        self._program(mm)
        self._born(name, mm)

    def do_clone(self, name: str, child: str) -> None:
        self.live[child] = self.live[name].clone()
        self.lodgers.add(child)

    def do_vfork(self, name: str, child: str) -> None:
        self.do_clone(name, child)

    def do_vforked(self, name: str) -> None:
        """The parent goes on: it did nothing meanwhile."""

    def do_watch(self, name: str, vpn: int, n: int) -> None:
        """All that is mapped is told of here, in areas that grew, too."""

    def do_advise(self, giver: str, name: str, vpn: int, n: int, advice: str) -> None:
        self.live[giver].process_madvise(self.live[name], vpn * PAGE, n * PAGE, advice)
