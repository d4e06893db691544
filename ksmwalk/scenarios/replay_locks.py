"""Scenarios in the model: what concerns locked memory, and who runs on which CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..host.host import Host
    from ..host.mm import Mm
    from .format import Scenario

from ..layout import PAGE_SIZE as PAGE

#: CPUs of a Host whose scenario names none: ksmd's, and that of everybody else
_LEAST_CPUS = 2


def host_options(scenario: Scenario) -> dict[str, Any]:
    """What a Host for a scenario must have besides frames: a batch for each CPU the scenario names."""
    named = [op[2] for op in scenario.ops if op[0] == "cpu"]
    return {"nr_cpus": max([_LEAST_CPUS, *(cpu + 1 for cpu in named)])} if named or not scenario.settle else {}


class Locks:
    """The operations on locked memory."""

    if TYPE_CHECKING:
        host: Host
        live: dict[str, Mm]

    def do_mlock(self, name: str, vpn: int, n: int) -> None:
        self.live[name].mlock(vpn * PAGE, n * PAGE)

    def do_mlock2(self, name: str, vpn: int, n: int, flags: int) -> None:
        self.live[name].mlock(vpn * PAGE, n * PAGE, flags)

    def do_munlock(self, name: str, vpn: int, n: int) -> None:
        self.live[name].munlock(vpn * PAGE, n * PAGE)

    def do_mlockall(self, name: str, flags: int) -> None:
        self.live[name].mlockall(flags)

    def do_munlockall(self, name: str) -> None:
        self.live[name].munlockall()

    def do_cpu(self, name: str, number: int) -> None:
        if name == "ksmd":
            self.host.ksm.cpu = number
        else:
            self.live[name].cpu = number

    def _program_gone(self, last: bool, cpu: int) -> None:
        """With the last task of a scenario's process goes its stack, which is shared memory: emptying that lets go of what
        waits on the CPU at hand, the process's own locked pages too."""
        if last:
            self.host.drain(cpu)

    def _locks_syscall(self, name: str, number: int, words: tuple[int, ...]) -> None:
        """A raw system call of the family: registers that are not given are zero, and hold 64 bits."""
        addr, length, flags = (word & (1 << 64) - 1 for word in (*words, 0, 0, 0)[:3])
        mm = self.live[name]
        match number:
            case 149:
                mm.mlock(addr, length)
            case 150:
                mm.munlock(addr, length)
            case 151:
                mm.mlockall(addr & 0xFFFFFFFF)
            case 152:
                mm.munlockall()
            case 325:
                mm.mlock(addr, length, flags & 0xFFFFFFFF)
