"""Huge pages and smaller folios of a Host: in which sizes anonymous memory comes, and khugepaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import check
from ..gate import as_int, shown
from ..layout import BLOCK, MmFlag, Thp
from . import _doors

if TYPE_CHECKING:
    from .. import _core
    from ..signatures import AnyArray

_LIMITS = {"max_ptes_none": "khuge_none", "max_ptes_shared": "khuge_shared", "max_ptes_swap": "khuge_swap"}
_MODES = ("never", "madvise", "always")
#: orders of folios between a page and a huge page, by their size in KiB
ORDERS = {4 << order: order for order in range(2, 9)}


def mode(value: str, what: str = "thp") -> Thp:
    """Pass the mode of a size through, as its number; ValueError if it is none."""
    if not isinstance(value, str) or value not in _MODES:
        raise ValueError(f'{what} {shown(value)}: must be "madvise", "always" or "never"')
    return Thp[value.upper()]


class Folios:
    """The part of a Host that makes huge pages and folios."""

    if TYPE_CHECKING:
        world: _core.World
        _arrays: dict[str, AnyArray]

        def drain(self) -> None: ...

    @property
    def thp(self) -> str:
        """Huge pages for anonymous memory: "madvise", "always" or "never"; may be set."""
        return Thp(int(self._arrays["ctl"]["thp"][0])).name.lower()

    @thp.setter
    def thp(self, value: str) -> None:
        number = mode(value)
        with self.world:
            self._arrays["ctl"]["thp"] = number

    @property
    def mthp(self) -> dict[int, str]:
        """Smaller folios for anonymous memory, by size: 16 to 1024 KiB, in powers of two, each "never", "madvise" or
        "always"; may be set, the sizes left out to "never".

        Models: ``hugepages-*kB/enabled`` of Linux 6.18. Differs: no "inherit".
        """
        modes = self._arrays["ctl"]["mthp"][0]
        return {kib: Thp(int(modes[order])).name.lower() for kib, order in ORDERS.items()}

    @mthp.setter
    def mthp(self, sizes: Mapping[int, str]) -> None:
        if not isinstance(sizes, Mapping):
            raise ValueError(f"mthp {shown(sizes)}: must map sizes in KiB to modes")
        modes = [0] * len(self._arrays["ctl"]["mthp"][0])
        for kib, value in sizes.items():
            if isinstance(kib, bool) or kib not in ORDERS:
                raise ValueError(f"mthp {shown(kib)}: must be one of {', '.join(map(str, ORDERS))} KiB")
            modes[ORDERS[kib]] = mode(value, f"mthp {kib}")
        # what a fault looks at first: whether there is any
        modes[0] = max(modes)
        with self.world:
            self._arrays["ctl"]["mthp"] = modes

    def khugepaged(self) -> int:
        """Let khugepaged make one whole pass over all address spaces.

        Returns
        -------
        int
            The huge pages it made.

        Raises
        ------
        KeyboardInterrupt
            What is collapsed by then stays so.

        Models: a full scan of khugepaged in Linux 6.18, within `khuge_limits`, in areas with MADV_HUGEPAGE (all with
        `thp="always"`, none with "never"). It goes over those that it got to know, in this order: by MADV_HUGEPAGE for an
        area with pages, by a fault that found room for a huge page, by areas with room for one that grew or were joined,
        and children of those.
        Differs: it collapses private memory only.
        """
        mms = self._arrays["mms"][: int(self._arrays["ctl"]["mms_used"][0])]
        alive = np.flatnonzero(mms["flags"] & int(MmFlag.USED | MmFlag.EXITING | MmFlag.BACKING) == MmFlag.USED)
        known = alive[mms["khuge"][alive] > 0]
        in_order = known[np.argsort(mms["khuge"][known], kind="stable")]
        self.drain()
        try:
            return sum(check(_doors.khugepaged(self.world, mm), "khugepaged") for mm in in_order.tolist())
        finally:
            if not self._arrays["ctl"]["lru_batch"][0]:
                self.drain()

    @property
    def khuge_limits(self) -> dict[str, int]:
        """khugepaged's `max_ptes_none`, `max_ptes_shared` and `max_ptes_swap`; may be set, some of them too."""
        ctl = self._arrays["ctl"]
        return {name: int(ctl[field][0]) for name, field in _LIMITS.items()}

    @khuge_limits.setter
    def khuge_limits(self, limits: Mapping[str, int]) -> None:
        if not isinstance(limits, Mapping) or any(name not in _LIMITS for name in limits):
            raise ValueError(f"khuge_limits {shown(limits)}: must map some of {', '.join(_LIMITS)} to numbers")
        found = {_LIMITS[name]: as_int(n, name, 0, BLOCK - 1) for name, n in limits.items()}
        with self.world:
            for field, n in found.items():
                self._arrays["ctl"][field] = n
