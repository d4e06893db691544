"""The scan of kernels with `SCAN_EACH` (:mod:`ksmwalk.kernels`): every address of an area is looked up."""

from __future__ import annotations

from ..ksm.ksmd import Ksm
from ..ksm.policy import Policy

__all__ = ["BeforeThePatch"]


class BeforeThePatch(Policy):
    """The scan before the patch: one look-up for every address of an area, mapped or not.

    What is merged is the same as today's; only the way to the next page is another. Source: P. Demarchi Gomes, "ksm: use
    range-walk function to jump over holes in scan_get_next_rmap_item", linux-mm, October 2025, which describes the scan it
    replaces: an area of 32 TiB with a single page kept ksmd busy for more than an hour.

    Differs: look-ups that meet a hole are counted, not performed, unless `host.ksm.scan.real_lookups` is set.
    """

    name = "before-the-patch"

    def attach(self, ksm: Ksm) -> None:
        """Set the cursor's strategy."""
        self._strategy = ksm.scan.strategy
        ksm.scan.strategy = "per-address"

    def detach(self, ksm: Ksm) -> None:
        """Put it back."""
        ksm.scan.strategy = self._strategy
