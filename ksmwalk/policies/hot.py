"""Skipping hot areas: those whose merges are broken by writes as fast as they are made."""

from __future__ import annotations

from ..ksm.ksmd import Ksm
from ..ksm.policy import Area, Policy

__all__ = ["SkipHot"]


class SkipHot(Policy):
    """Areas whose merged pages keep being written to are left alone for a while.

    Source: UKSM's documentation (uksm.txt: "thrashing area avoidance"; its usage page: `thrash_threshold`, the percentage
    of merged pages copied by writes that is tolerated of an area, above which it is scanned slowly). Here an area above it
    is paused, twice as long each time; what is merged in it stays so.

    Parameters
    ----------
    threshold : float
        Part of the merges of an area that may be broken between two looks.
    scans : int
        Full scans that an area is paused the first time.
    most : int
        And at most.

    Differs: UKSM counts copies as they happen; here they are seen when the scan comes by, as merges that are gone.
    """

    name = "skip-hot"

    def __init__(self, threshold: float = 0.5, scans: int = 4, most: int = 64):
        self.threshold, self.scans, self.most = threshold, scans, most
        self._merged: dict[int, int] = {}  # by serial of an area: pages merged when it was left last
        self._wait: dict[int, tuple[int, int]] = {}  # scan in which it is looked at again, and how long it waited
        self._scan = 0

    def begin(self, ksm: Ksm) -> None:
        """Time passes in scans."""
        self._scan += 1

    def area(self, area: Area) -> int:
        """Pause it while it waits."""
        return self.PAUSE if self._scan < self._wait.get(area.serial, (0, 0))[0] else self.SCAN

    def after(self, area: Area) -> None:
        """See how many of the merges are gone; the page of a partner may have taken this one's merge along."""
        before = self._merged.get(area.serial, 0)
        if before and before - area.merged > self.threshold * before:
            wait = min(2 * self._wait.get(area.serial, (0, self.scans // 2))[1], self.most)
            self._wait[area.serial] = self._scan + wait + 1, wait
        self._merged[area.serial] = area.merged
