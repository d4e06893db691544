"""What comes to a scenario's processes from outside, in the real kernel: KSM's knobs, CPUs, reclaim, nodes, time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ..layout import PAGE_SIZE as PAGE
from ..scenarios.format import ScenarioError
from . import devices, knobs
from .run_side import Side

_MBIND, _MIGRATE_PAGES = 237, 256
_MPOL_BIND, _MF_MOVE, _MF_MOVE_ALL = 2, 2, 4
_NODE_BITS = 256
#: clear_refs: bits that say that a page was accessed
_ACCESSED = "1"


class Outside(Side):
    """Operations of the daemon, the machine and its administrator."""

    def do_set(self, knob: str, value: int | str) -> int:
        """Write a knob."""
        return knobs.write(knob, value)

    def do_run(self, value: int) -> int:
        """Write `run`."""
        ret = self.session.write_run(value)
        if ret == 0 and value != 1:
            # from between two batches into the long wait, so that run=1 scans at once
            self.session.tick()
        return ret

    def do_step(self) -> int:
        """One batch."""
        self.session.tick()
        return 0

    def do_sleep(self, seconds: float) -> int:
        """Let time pass."""
        time.sleep(seconds)
        return 0

    def do_drain(self) -> int:
        """Empty the batches of all CPUs."""
        self.session.drain()
        return 0

    def do_cpu(self, name: str, cpu: int) -> int:
        """Run on one CPU from now on."""
        if name == "ksmd":
            return devices.ksmd_to(cpu)
        try:
            os.sched_setaffinity(self.live[name].pid, {cpu})
        except OSError as error:
            return -(error.errno or 0)
        return 0

    def do_khuge(self) -> int:
        """One whole pass of khugepaged."""
        return self.around.one_pass()

    # ------------------------------------------------------------ reclaim

    def do_reclaim(self) -> int:
        """Reclaim all that the processes can give."""
        if self.around.cgroup is None:
            raise self._needs("memcg", "reclaim")
        for process in self.live.values():
            Path(f"/proc/{process.pid}/clear_refs").write_text(_ACCESSED)
        return self.around.cgroup.empty_all()

    def do_swapoff(self) -> int:
        """Bring all back that is swapped out, and swap no more."""
        if self.around.swap is None:
            raise self._needs("swap_mib", "swapoff")
        return self.around.swap.switch_off()

    def do_swapon(self) -> int:
        """Swap again."""
        if self.around.swap is None:
            raise self._needs("swap_mib", "swapon")
        return self.around.swap.switch_on()

    def _needs(self, key: str, op: str) -> ScenarioError:
        return ScenarioError(f"{self.scenario.name}: {op}", f"it needs {key} in the scenario's env, which is", self.scenario.env)

    # ------------------------------------------------------------ NUMA nodes

    def do_place(self, name: str, vpn: int, n: int, node: int, flags: int = 0) -> int:
        """Say where an area's memory is to be."""
        args: list[int | bytes] = [vpn * PAGE, n * PAGE, _MPOL_BIND, _mask(node), _NODE_BITS + 1, flags]
        return self.pool.call_with(name, _MBIND, args)

    def do_move(self, name: str, vpns: list[int], node: int, flags: int = _MF_MOVE) -> Any:
        """Move pages of one's own, with one call."""
        return self._move(name, vpns, node, flags)

    def do_movepid(self, name: str, vpns: list[int], node: int) -> Any:
        """Move pages from outside, from whoever has them too."""
        return self._move(name, vpns, node, _MF_MOVE_ALL)

    def _move(self, name: str, vpns: list[int], node: int, flags: int) -> Any:
        """0 where all went where they were to go, -errno where the call is refused, else 0 and what is said of each page."""
        try:  # who asks makes no difference to what it may
            status = self.session.move_pages(self.live[name].pid, [vpn * PAGE for vpn in vpns], node, flags)
        except OSError as error:
            return -(error.errno or 0)
        return 0 if all(one == node for one in status) else [0, status]

    def do_migrate(self, name: str, old: int, new: int) -> int:
        """Move all of a process from a node to another, by itself."""
        return self.pool.call_with(name, _MIGRATE_PAGES, [0, _NODE_BITS + 1, _mask(old), _mask(new)])


def _mask(node: int) -> bytes:
    return (1 << node).to_bytes(_NODE_BITS // 8 + 8, "little")
