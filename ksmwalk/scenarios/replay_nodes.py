"""Operations of scenarios on NUMA nodes, in the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..host.host import Host
from ..host.mm import Mm
from ..layout import PAGE_SIZE as PAGE
from ..layout import NodeFlag, Switch, Vm
from .records import SWAP, ZERO, Pages

#: MPOL_MF_MOVE, MPOL_MF_MOVE_ALL
_MOVE, _MOVE_ALL = 2, 4
_ACCESS = Vm.READ | Vm.WRITE | Vm.EXEC


class NodeOps:
    """The part of a `Replay` that places and moves pages."""

    host: Host
    live: dict[str, Mm]
    #: where KSM pages were before the operation at hand and where they are
    _followed: dict[int, int] | None = None
    def _took(self) -> list[tuple[Any, ...]]:
        """The KSM pages that the operation at hand moved, as a `Recorder` is told."""
        moved, self._followed = self._followed, None
        return [("moved", moved)] if moved else []

    def _nodes_of(self, pages: dict[str, Pages]) -> dict[str, np.ndarray] | None:
        """The NUMA nodes of pages, where there are several; the zero page is nowhere, nor is what is swapped out, nor, on 6.1,
        what nobody may use."""
        if self.host.nr_nodes == 1:
            return None
        node = self.host.world.arrays["f_nid"].astype(np.int64)
        unseen = {name: (kind == ZERO) | (kind == SWAP) for name, (_, _, kind) in pages.items()}
        if self.host.kernel.switches & (Switch.NO_SMART_SCAN | Switch.OLD_CALLS) == Switch.NO_SMART_SCAN:
            for name, (vpn, _, _) in pages.items():
                for vma in self.live[name].vmas:
                    if not vma.vm_flags & _ACCESS:
                        unseen[name] |= (vpn >= vma.vm_start // PAGE) & (vpn < vma.vm_end // PAGE)
        return {name: np.where(unseen[name], -1, node[frame]) for name, (_, frame, _) in pages.items()}

    def _ksm_frames(self) -> np.ndarray:
        nodes = self.host.world.arrays["nodes"][: int(self.host.world.arrays["ctl"]["stable_used"][0])]
        page = nodes["flags"] & int(NodeFlag.USED | NodeFlag.CHAIN) == int(NodeFlag.USED)
        return np.where(page, nodes["pfn"], -1)

    def _follow(self, before: np.ndarray) -> None:
        """Note which KSM pages an operation moved."""
        after = self._ksm_frames()
        moved = np.flatnonzero((before != after) & (before >= 0))
        self._followed = dict(zip(before[moved].tolist(), after[moved].tolist(), strict=True))

    def do_place(self, name: str, vpn: int, n: int, node: int, flags: int = 0) -> None:
        before = self._ksm_frames()
        self.live[name].mbind(vpn * PAGE, n * PAGE, node, move=bool(flags & _MOVE), move_all=bool(flags & _MOVE_ALL))
        self._follow(before)

    def do_move(self, name: str, vpns: list[int], node: int, flags: int = _MOVE) -> list[Any] | None:
        before = self._ksm_frames()
        status = self.live[name].move_pages(np.array(vpns, np.uint64) * PAGE, node, move_all=bool(flags & _MOVE_ALL))
        self._follow(before)
        return [0, status.tolist()] if (status != node).any() else None

    def do_movepid(self, name: str, vpns: list[int], node: int) -> list[Any] | None:
        return self.do_move(name, vpns, node, _MOVE_ALL)

    def do_migrate(self, name: str, source: int, target: int) -> int:
        before = self._ksm_frames()
        stuck = self.live[name].migrate_pages(source, target)
        self._follow(before)
        return stuck
