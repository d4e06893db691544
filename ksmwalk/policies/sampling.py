"""Sampling areas first, and climbing where duplicates are found: the idea of UKSM."""

from __future__ import annotations

import numpy as np

from ..ksm.ksmd import Ksm
from ..ksm.policy import Area, Policy, TablePages
from ..signatures import AnyArray

__all__ = ["Sampling"]


class Sampling(Policy):
    """UKSM's idea: a few pages of every area are looked at, and more of those in which duplicates turn up.

    Areas stand on levels. A scan looks at every n-th page of an area, n by its level; an area of which enough pages
    merged climbs a level, one with too few, or with too many merges broken by writes, goes down one. A page is compared
    when it is met, not one visit later. Source: N. Xia et al., "UKSM: Swift Memory Deduplication via Hierarchical and
    Adaptive Memory Region Distilling", FAST 2018, and uksm.txt ("rich areas are given a full scan speed; poor areas are
    sampled"; min_scan_ratio is 1/125 of an area).

    Parameters
    ----------
    steps : tuple of int
        Every how many pages one is looked at, from the lowest level up.
    enough : float
        Part of the pages looked at that must be merged for an area to climb.
    thrash : float
        Part of them whose merge was broken since at which it goes down.

    Differs: the same pages of all areas are sampled in one scan, so that clones are found (UKSM draws them at random);
    UKSM hashes parts of pages, does without rmap_items for what is only sampled, scans every area, marked or not, and its
    thresholds and levels can be set, which is done here by the parameters.
    """

    name = "sampling"

    def __init__(self, steps: tuple[int, ...] = (125, 25, 5, 1), enough: float = 0.2, thrash: float = 0.5):
        self.steps, self.enough, self.thrash = steps, enough, thrash
        self._level: dict[int, int] = {}
        self._scan = 0

    def begin(self, ksm: Ksm) -> None:
        """Other pages in every scan; areas that are gone are forgotten once in a while."""
        self._scan += 1
        if self._scan % 256 == 0:
            self._level = {serial: level for serial, level in self._level.items() if level}

    def pages(self, pages: TablePages) -> AnyArray:
        """Every n-th page of the area, from a place that moves on with each scan, and all that are merged already."""
        step = self.steps[self._level.get(pages.area.serial, 0)]
        at = ((pages.addr - np.uint64(pages.area.start)) >> np.uint64(12)).astype(np.int64)
        return ((at + self._scan) % step == 0) | pages.merged  # type: ignore[no-any-return]

    def action(self, pages: TablePages) -> int:
        """No second visit is waited for."""
        return self.NOW

    def after(self, area: Area) -> None:
        """Up or down a level."""
        if not area.visited:
            return
        level = self._level.get(area.serial, 0)
        good = area.merged >= self.enough * area.visited and area.broken <= self.thrash * area.visited
        self._level[area.serial] = min(level + 1, len(self.steps) - 1) if good else max(level - 1, 0)
