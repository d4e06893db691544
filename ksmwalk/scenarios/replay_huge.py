"""Scenarios in the model: huge pages, folios of other sizes, khugepaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..host import _doors
from ..host.host import Host
from ..host.mm import Mm
from ..host.vma import Vma
from ..layout import PAGE_SIZE, Vm

#: bytes of a huge page
HUGE = 1 << 21
#: parts of an environment that are here: what their names begin with
ENVIRONMENT = ("thp", "mthp_", "khugepaged/")


class HugePages:
    """The operations and the environment of huge pages."""

    if TYPE_CHECKING:
        host: Host

    def _surround_huge(self, env: dict[str, Any]) -> None:
        """Set the Host to what surrounds the scenario."""
        self.host.thp = env.get("thp", "madvise")
        self.host.mthp = {int(key.removeprefix("mthp_")): m for key, m in env.items() if key.startswith("mthp_")}
        knobs = {key.removeprefix("khugepaged/"): n for key, n in env.items() if key.startswith("khugepaged/")}
        self.host.khuge_limits = knobs

    def collapses_shared(self, mm: Mm, start: int, end: int) -> bool:
        """Whether the kernel would make huge pages of shared memory here, which the model does not."""
        for v in mm.vmas:
            if not v.vm_flags & Vm.SHARED or ((v.vm_start >> 12) - v.vm_pgoff) % 512:
                continue
            first, last = -(-max(v.vm_start, start) // HUGE), min(v.vm_end, end) // HUGE
            if any(self._object_has(v, number * HUGE) for number in range(first, last)):
                return True
        return False

    def _object_has(self, v: Vma, addr: int) -> bool:
        """Whether the object mapped by an area has any page where these 2 MiB are."""
        pfns = np.empty(HUGE // PAGE_SIZE, np.int64)
        assert v.backing is not None
        _doors.look(self.host.world, v.backing, v.vm_pgoff * PAGE_SIZE + addr - v.vm_start, len(pfns), None, pfns)
        return bool((pfns >= 0).any())

    def do_khuge(self) -> None:
        self.host.khugepaged()
