"""Linux 6.18, as a policy: every decision spelled out."""

from __future__ import annotations

from typing import Any

from ..ksm.ksmd import Ksm
from ..ksm.policy import Area, Policy, TablePages
from ..signatures import AnyArray

__all__ = ["Linux"]


class Linux(Policy):
    """Linux 6.18: what ksmd does that nobody else decides for.

    The same as no policy at all, to the bit, but asked: the place to begin from. Source: the kernel's documentation
    (Documentation/admin-guide/mm/ksm.rst) and its recordings in tests/golden.
    """

    name = "linux"

    def begin(self, ksm: Ksm) -> None:
        """Nothing is planned ahead."""

    def order(self, mms: AnyArray) -> AnyArray:
        """All processes, in the order of the list."""
        return mms

    def domain(self, mm: Any) -> int:
        """Pages of all processes may be merged with each other."""
        return mm.domain  # type: ignore[no-any-return] # an Mm

    def area(self, area: Area) -> int:
        """Every area that is marked is scanned."""
        return self.SCAN

    def pages(self, pages: TablePages) -> None:
        """All of its pages."""

    def action(self, pages: TablePages) -> int:
        """A page is compared when its content is that of the visit before."""
        return self.COMPARE

    def after(self, area: Area) -> None:
        """Nothing is learned."""

    def pace(self, ksm: Ksm) -> tuple[int, int]:
        """As the tunables say, which the advisor may set."""
        return ksm.pages_to_scan, ksm.sleep_millisecs
