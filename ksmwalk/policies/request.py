"""Merging on request only: no daemon, a call merges what it names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ksm.ksmd import Ksm
from ..ksm.policy import Area, Policy, TablePages
from ..signatures import AnyArray

__all__ = ["OnRequest"]

_FOREVER = 0xFFFFFFFF  # milliseconds


class OnRequest(Policy):
    """Nothing is merged until somebody asks; then at once, in the call.

    Source: M. Desnoyers, "SKSM: Synchronous Kernel Samepage Merging" (RFC, linux-mm, February 2025: MADV_MERGE merges a
    range then and there), and S. Panda, "mm: Selective KSM" (RFC, linux-mm, 2025: `pid start end` written to trigger_merge,
    or ksm_merge(), instead of a daemon in the background).

    Parameters
    ----------
    at_first : bool
        Whether all that is marked counts as asked for once, when the first scan comes: for comparisons.

    Differs: what one request names is compared with itself and with what is merged already, not with pages of requests
    before it that found no partner. Its pass counts as a full scan. Domains are `ByDomain`'s.
    """

    name = "on-request"

    def __init__(self, at_first: bool = True):
        self._all = at_first
        self._asked: list[tuple[int, int, int]] = []
        self._wanted: list[tuple[int, int, int]] = []  # of the scan under way

    def request(self, ksm: Ksm, ranges: Iterable[tuple[Any, int, int]]) -> int:
        """Merge these ranges now.

        Parameters
        ----------
        ksm : Ksm
            With this policy plugged in.
        ranges : iterable of (Mm, int, int)
            Address space, first address, length, bytes. Only what is marked in them is merged.

        Returns
        -------
        int
            Pages looked at.
        """
        if ksm.policy is not self:
            raise ValueError("request: this policy is not the one that is plugged in")
        asked = [(mm.number, start, start + length) for mm, start, length in ranges]
        if ksm.scan.mm_slot is not None:
            ksm.full_scan()  # the rest of a scan under way
        self._asked = asked
        return ksm.full_scan()

    def order(self, mms: AnyArray) -> list[int]:
        """The processes of the request; none without one."""
        if self._all:
            self._asked = [(int(number), 0, 1 << 57) for number in mms]
        self._wanted = [one for one in self._asked if one[0] in mms]
        self._all, self._asked = False, []
        return list(dict.fromkeys(number for number, _, _ in self._wanted))

    def area(self, area: Area) -> int:
        """Those that the request names a part of."""
        return self.SCAN if self._of(area) else self.PAUSE

    def _of(self, area: Area) -> list[tuple[int, int]]:
        number = area.mm.number
        return [(a, b) for mm, a, b in self._wanted if mm == number and a < area.end and area.start < b]

    def pages(self, pages: TablePages) -> AnyArray:
        """The pages that it names."""
        mask = pages.addr < 0
        for start, end in self._of(pages.area):
            mask |= (pages.addr >= start) & (pages.addr < end)
        return mask

    def action(self, pages: TablePages) -> int:
        """Compared at once: the caller says that they will not change."""
        return self.NOW

    def pace(self, ksm: Ksm) -> tuple[int, int]:
        """What is asked for at once; then sleep."""
        return _FOREVER, _FOREVER
