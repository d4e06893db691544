"""What a scenario does with the life of a process: its tasks, its end, what others do to its memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layout import PAGE_SIZE as PAGE
from ..layout import Switch
from .kinds import HEAP_VPN, ScenarioError
from .records import SWAP, Pages

if TYPE_CHECKING:
    from ..host.mm import Mm
    from .format import Scenario
    from .replay import Contents


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
    userfaultfds : dict of int to (str, bool)
        By number the task that has it, with which it ends, and whether it is the one for all but ``uffd_wp``, which makes
        another each time.
    """

    if TYPE_CHECKING:
        scenario: Scenario
        contents: Contents
        live: dict[str, Mm]
        lodgers: set[str]
        away: dict[str, str]
        numbers: Iterator[int]
        userfaultfds: dict[int, tuple[str, bool]]

        def _born(self, name: str, mm: Mm) -> None: ...
        def unmap_for_devices(self, name: str) -> None: ...
        def close_pipes(self, name: str) -> None: ...
        def _program(self, mm: Mm) -> None: ...
        def _program_gone(self, last: bool, cpu: int) -> None: ...

    def do_exit(self, name: str) -> None:
        self._leave(name)
        self.unmap_for_devices(name)
        mm = self.live.pop(name)
        last, cpu = mm.tasks == 1, mm.cpu
        mm.exit()
        self._program_gone(last, cpu)
        self.close_pipes(name)

    def do_exec(self, name: str) -> None:
        self._leave(name)
        self.unmap_for_devices(name)
        old = self.live[name]
        last, cpu = old.tasks == 1, old.cpu
        mm = old.exec()
        self._program_gone(last, cpu)
        self.close_pipes(name)
        self._program(mm)
        self._born(name, mm)

    def _leave(self, name: str) -> None:
        """A task is about to leave the memory it lives in; whoever waited for it goes on."""
        self.lodgers.discard(name)
        self.away |= {parent: "" for parent, child in self.away.items() if child == name}
        mm = self.live[name]
        if mm.tasks > 1:
            # it closes its userfaultfds, and the memory lives on
            watched = [(v.vm_start, len(v), v.userfaultfd) for v in mm.vmas if v.userfaultfd is not None]
            for start, length, number in watched:
                if self.userfaultfds[number][0] == name:
                    mm.uffd_unregister(start, length, userfaultfd=number)
        self.userfaultfds = {number: one for number, one in self.userfaultfds.items() if one[0] != name}

    def do_clone(self, name: str, child: str) -> None:
        self.live[child] = self.live[name].clone()
        self.lodgers.add(child)

    def do_vfork(self, name: str, child: str) -> None:
        self.do_clone(name, child)
        self.away[name] = child

    def not_waiting(self, where: str, name: str, op: list[Any]) -> None:
        """Refuse to have anything done by a process that waits for its vfork child."""
        if op[0] != "vforked" and name in self.away:
            raise ScenarioError(where, "it waits for its vfork child and does nothing", name)

    def do_vforked(self, name: str) -> None:
        """The parent goes on: it did nothing meanwhile."""
        child = self.away.pop(name, None)
        if child != "":
            what = "no vfork of it is over" if child is None else f"its vfork child {child} is there still"
            raise ScenarioError(f"{self.scenario.name}: vforked", what, name)

    def do_watch(self, name: str, vpn: int, n: int) -> None:
        """`Spans` takes note."""

    def do_brk(self, name: str, n: int) -> None:
        mm, end = self.live[name], (HEAP_VPN + n) * PAGE
        if not mm.start_brk:
            mm.start_brk = HEAP_VPN * PAGE
        if mm.brk(end) != end:
            raise OSError(errno.ENOMEM, "the heap can't end there")

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
        """By a userfaultfd for this alone."""
        self._watch(name, vpn, n, {"wp": True}, self._new_userfaultfd(name, False))
        self.live[name].uffd_protect(vpn * PAGE, n * PAGE)

    def do_uffd(self, name: str, vpn: int, n: int, modes: dict[str, int]) -> None:
        self._watch(name, vpn, n, {mode: bool(on) for mode, on in modes.items()}, self._own_userfaultfd(name))

    def _own_userfaultfd(self, name: str) -> int:
        """The number of the one that a task has for all but `uffd_wp`."""
        own = (number for number, one in self.userfaultfds.items() if one == (name, True))
        number = next(own, None)
        return self._new_userfaultfd(name, True) if number is None else number

    def _new_userfaultfd(self, name: str, own: bool) -> int:
        number = next(self.numbers)
        self.userfaultfds[number] = name, own
        return number

    def _watch(self, name: str, vpn: int, n: int, modes: dict[str, bool], userfaultfd: int) -> None:
        mm = self.live[name]
        asynchronous = not mm.host.kernel.switches & Switch.OLD_UFFD
        mm.uffd_register(vpn * PAGE, n * PAGE, **modes, asynchronous=asynchronous, userfaultfd=userfaultfd)

    def do_uffd_unregister(self, name: str, vpn: int, n: int) -> None:
        self.live[name].uffd_unregister(vpn * PAGE, n * PAGE, userfaultfd=self._own_userfaultfd(name))

    def do_uffd_protect(self, name: str, vpn: int, n: int, on: int) -> None:
        self.live[name].uffd_protect(vpn * PAGE, n * PAGE, bool(on))

    def do_uffd_copy(self, name: str, vpn: int, contents: list[int], options: dict[str, int] | None = None) -> None:
        keys = [self.contents.key(number) for number in contents]
        self.live[name].uffd_copy(vpn * PAGE, keys, wp=bool((options or {}).get("wp")))

    def do_uffd_zero(self, name: str, vpn: int, n: int) -> None:
        self.live[name].uffd_zero(vpn * PAGE, n * PAGE)

    def do_uffd_move(self, name: str, vpn: int, source: int, n: int) -> None:
        number = self._own_userfaultfd(name)
        self.live[name].uffd_move(vpn * PAGE, source * PAGE, n * PAGE, userfaultfd=number)
