"""Merging within domains only: a tenant, a container, a user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..ksm.ksmd import Ksm
from ..ksm.policy import Policy

__all__ = ["ByDomain"]


class ByDomain(Policy):
    """Merging by domain: pages are shared only among processes of the same container, user or tenant.

    Source: S. Panda, "mm: Selective KSM" (RFC, linux-mm, 2025), which divides the merge space into security domains, each
    with trees of its own, so that nothing can be learned of another's memory from how long a write takes; and the
    documentation of systemd's MemoryKSM=, which asks for it only among services of one security domain.

    Parameters
    ----------
    of : callable of Mm, or dict of int, optional
        The domain of a process: anything that can be a key of a dict. A dict has it by the number of the address space.
        Left out: every process is a domain of its own.

    Differs: the RFC merges on request; here ksmd scans on as ever.
    """

    name = "by-domain"

    def __init__(self, of: Callable[[Any], object] | Mapping[int, object] | None = None):
        self.of = of
        self._numbers: dict[object, int] = {}

    def attach(self, ksm: Ksm) -> None:
        """Forget the domains of another Host."""
        self._numbers.clear()

    def domain(self, mm: Any) -> int:
        """The number of the process's domain, given out as they turn up."""
        if self.of is None:
            key: object = mm.number
        else:
            key = self.of(mm) if callable(self.of) else self.of[mm.number]
        return self._numbers.setdefault(key, len(self._numbers))
