"""What a scenario does with the life of a process: its tasks, its end, what others do to its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..layout import PAGE_SIZE as PAGE
from ..layout import Vm
from .kinds import ScenarioError
from .records import SWAP, Pages

if TYPE_CHECKING:
    from ..host.mm import Mm
    from .format import Scenario
    from .replay import Contents

_WATCHED = int(Vm.UFFD_MISSING | Vm.UFFD_WP | Vm.UFFD_MINOR)


class Life:
    """Operations on tasks, on the memory of others, and of userfaultfd: stores to what it protects never wait.

    Attributes
    ----------
    live : dict of str to Mm
        Processes by name; two tasks of one address space have the same.
    lodgers : set of str
        Those that live in the memory of another, whose pages are told of under the other's name only.
    away : dict of str to str
        Who waits for a vfork child, and for which; none once it is gone or has a memory of its own.
    watchers : set of str
        Those who have a userfaultfd: it ends with them.
    """

    if TYPE_CHECKING:
        scenario: Scenario
        contents: Contents
        live: dict[str, Mm]
        lodgers: set[str]
        away: dict[str, str]
        watchers: set[str]

        def _born(self, name: str, mm: Mm) -> None: ...
        def unmap_for_devices(self, name: str) -> None: ...
        def close_pipes(self, name: str) -> None: ...
        def _program(self, mm: Mm) -> None: ...

    def do_exit(self, name: str) -> None:
        self._leave(name)
        self.unmap_for_devices(name)
        self.live.pop(name).exit()
        self.close_pipes(name)

    def do_exec(self, name: str) -> None:
        self._leave(name)
        self.unmap_for_devices(name)
        mm = self.live[name].exec()
        self.close_pipes(name)
        self._program(mm)
        self._born(name, mm)

    def _leave(self, name: str) -> None:
        """A task is about to leave the memory it lives in; whoever waited for it goes on."""
        self.lodgers.discard(name)
        self.away |= {parent: "" for parent, child in self.away.items() if child == name}
        mm = self.live[name]
        if name in self.watchers:
            self.watchers.discard(name)
            if mm.tasks > 1:
                for area in mm.vmas:
                    if area.vm_flags & _WATCHED:
                        mm.uffd_unregister(area.vm_start, area.vm_end - area.vm_start)

    def do_clone(self, name: str, child: str) -> None:
        self.live[child] = self.live[name].clone()
        self.lodgers.add(child)

    def do_vfork(self, name: str, child: str) -> None:
        self.do_clone(name, child)
        self.away[name] = child

    def do_vforked(self, name: str) -> None:
        """The parent goes on: it did nothing meanwhile."""
        child = self.away.pop(name, None)
        if child != "":
            what = "no vfork of it is over" if child is None else f"its vfork child {child} is there still"
            raise ScenarioError(f"{self.scenario.name}: vforked", what, name)

    def do_watch(self, name: str, vpn: int, n: int) -> None:
        """All that is mapped is told of here, in areas that grew, too."""

    def do_advise(self, giver: str, name: str, vpn: int, n: int, advice: str) -> None:
        self.live[giver].process_madvise(self.live[name], vpn * PAGE, n * PAGE, advice)

    def do_store(self, name: str, vpn: int, offset: int, stored: list[int]) -> None:
        mm = self.live[name]
        old = int(mm.read_keys(vpn * PAGE, 1)[0])
        mm.write(vpn * PAGE, self.contents.after_store(old, offset, bytes(stored)))

    # ------------------------------------------------------------ userfaultfd

    def _with_absent(self, mm: Mm, pages: Pages) -> Pages:
        """The pages of an address space together with swap entries and markers."""
        absent = mm.absent_entries().astype(np.int64) >> 12
        vpn = np.concatenate([pages[0], absent])
        frame = np.concatenate([pages[1], np.zeros(len(absent), np.int64)])
        kind = np.concatenate([pages[2], np.full(len(absent), SWAP)])
        order = np.argsort(vpn)
        return vpn[order], frame[order], kind[order]

    def do_uffd_wp(self, name: str, vpn: int, n: int) -> None:
        self.do_uffd(name, vpn, n, {"wp": 1})
        self.live[name].uffd_protect(vpn * PAGE, n * PAGE)

    def do_uffd(self, name: str, vpn: int, n: int, modes: dict[str, int]) -> None:
        wanted = {mode: bool(on) for mode, on in modes.items()}
        self.watchers.add(name)
        self.live[name].uffd_register(vpn * PAGE, n * PAGE, **wanted, asynchronous=True)

    def do_uffd_unregister(self, name: str, vpn: int, n: int) -> None:
        self.live[name].uffd_unregister(vpn * PAGE, n * PAGE)

    def do_uffd_protect(self, name: str, vpn: int, n: int, on: int) -> None:
        self.live[name].uffd_protect(vpn * PAGE, n * PAGE, bool(on))

    def do_uffd_copy(self, name: str, vpn: int, contents: list[int], options: dict[str, int] | None = None) -> None:
        keys = [self.contents.key(number) for number in contents]
        self.live[name].uffd_copy(vpn * PAGE, keys, wp=bool((options or {}).get("wp")))

    def do_uffd_zero(self, name: str, vpn: int, n: int) -> None:
        self.live[name].uffd_zero(vpn * PAGE, n * PAGE)

    def do_uffd_move(self, name: str, vpn: int, source: int, n: int) -> None:
        self.live[name].uffd_move(vpn * PAGE, source * PAGE, n * PAGE)
