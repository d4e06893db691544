"""What a scenario does with reclaim and swap, and the counters of the kernel that it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..host.host import Host
    from .format import Scenario

#: pages of a MiB
_MIB = 256


class Swapping:
    """Operations on the swap device.

    Attributes
    ----------
    scenario : Scenario
    host : Host
    """

    if TYPE_CHECKING:
        scenario: Scenario
        host: Host
        _counted: dict[str, int]

    def _swap_begins(self) -> None:
        """The device that the environment asks for."""
        self._counted = self.host.vmstat()
        self.do_swapon()

    def do_reclaim(self) -> None:
        self.host.reclaim()

    def do_swapoff(self) -> None:
        self.host.swapoff()

    def do_swapon(self) -> None:
        if wanted := self.scenario.env.get("swap_mib", 0) * _MIB:
            # no more is ever out than there is room for in the frames
            self.host.swapon(min(wanted, int(self.host.world.arrays["ctl"]["slots_cap"][0]) - 1))

    def _vmstat(self) -> dict[str, int]:
        """By what the counters that the scenario asks for have grown since the record before."""
        before, self._counted = self._counted, self.host.vmstat()
        return {name: self._counted[name] - before[name] for name in self.scenario.vmstat if name in before}
