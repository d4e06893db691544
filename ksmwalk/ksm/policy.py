"""Policies: what decides in ksmd's stead where designs differ. Plugged in as `host.ksm.policy`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from .. import _core
from ..gate import as_int, shown
from ..signatures import AnyArray
from . import _asking
from ._asking import Area, TablePages
from .clock import end_sleep

if TYPE_CHECKING:
    from .ksmd import Ksm

__all__ = ["Area", "Chosen", "TablePages", "Policy"]

#: methods that the scan asks; one that a policy does not write costs nothing
ASKED = ("begin", "order", "domain", "area", "pages", "action", "after")
_U32 = (1 << 32) - 1


class Policy:
    """What a scan asks where designs differ; every method as it stands here answers what Linux 6.18 does.

    A policy is a class of one's own with some of these methods. Only those that it writes are called, and None as an
    answer always means: as Linux does. They are called in the middle of a scan: they may look at everything and
    keep what they like in `self`, but change nothing of the Host.

    Attributes
    ----------
    name : str
        For tables and plots; the class's name if it has none.
    processes : mapping of int to ProcessCapture
        Of a capture, by `mm.number`: which process it is (`pid`, `name`, `identity.uid`, ...). `estimates.comparing.compare`
        sets it.
    SCAN, PAUSE, LEAVE : int
        Answers of `area`: scan it; pass it, with its rmap_items and what is merged kept; pass it, and let its
        rmap_items go.
    COMPARE, NOW, ZERO_FIRST, IGNORE : int
        Answers of `action`: note the content, and compare it at a visit that finds it unchanged; compare it at this
        visit; if it is empty, replace it by the zero page at once, else as COMPARE; count the visit, and no more.

    Examples
    --------
    >>> from ksmwalk import Host
    >>> from ksmwalk.ksm.policy import Policy
    >>> class SmallFirst(Policy):
    ...     def area(self, area):
    ...         return self.SCAN if area.pages <= 512 else self.PAUSE
    >>> host = Host(4096)
    >>> host.ksm.policy = SmallFirst()
    >>> mm = host.new_mm()
    >>> for pages in (2, 1024):
    ...     start = mm.mmap(pages * 4096)
    ...     mm.write(start, [7, 7])
    ...     mm.madvise(start, pages * 4096, "mergeable")
    >>> rows = host.ksm.run_until()
    >>> host.ksm.pages_sharing
    1

    Models: the decisions of ksmd of Linux 6.18. Differs: Linux has them in one place and asks nobody.
    """

    SCAN: ClassVar[int] = 0
    PAUSE: ClassVar[int] = 1
    LEAVE: ClassVar[int] = 2
    COMPARE: ClassVar[int] = 1
    NOW: ClassVar[int] = 2
    ZERO_FIRST: ClassVar[int] = 3
    IGNORE: ClassVar[int] = 4

    name: str = ""
    processes: Mapping[int, Any] = MappingProxyType({})

    def attach(self, ksm: Ksm) -> None:
        """Called when it is plugged in: the place to set tunables that belong to it."""

    def detach(self, ksm: Ksm) -> None:
        """Called when another takes its place: the place to put them back."""

    def begin(self, ksm: Ksm) -> None:
        """Called when a full scan begins."""

    def order(self, mms: AnyArray) -> AnyArray | Sequence[int] | None:
        """Which processes a full scan visits, and in which order; asked when it begins.

        Parameters
        ----------
        mms : ndarray of int32
            Numbers of the address spaces on ksmd's list, in its order.

        Returns
        -------
        array of int
            Some or all of them, each once. Those left out keep their rmap_items and what is merged. A process that
            has exited is cleaned up all the same.
        """
        return mms

    def domain(self, mm: Any) -> int | None:
        """With whose pages those of a process may be merged; asked when the scan comes to it.

        Parameters
        ----------
        mm : Mm

        Returns
        -------
        int
            A small number: pages are merged within it only. It becomes `mm.domain`.
        """
        return mm.domain  # type: ignore[no-any-return] # an Mm, which this floor does not know

    def area(self, area: Area) -> int | None:
        """What to do with an area; asked when the scan comes to it.

        Returns
        -------
        int
            SCAN, PAUSE or LEAVE.
        """
        return self.SCAN

    def pages(self, pages: TablePages) -> AnyArray | None:
        """Which pages of a table to visit; asked when the scan comes to it.

        Returns
        -------
        ndarray of bool, shape (len(pages),)
            The others are passed, as those of a paused area.
        """
        return None

    def action(self, pages: TablePages) -> AnyArray | int | None:
        """What happens to the pages of a table that are visited.

        Returns
        -------
        int, or ndarray of int, shape (len(pages),)
            COMPARE, NOW, ZERO_FIRST or IGNORE, for all or for each.
        """
        return self.COMPARE

    def after(self, area: Area) -> None:
        """Called when the scan has been through an area: `area.visited`, `merged`, `broken` and `changed` are counted."""

    def pace(self, ksm: Ksm) -> tuple[int, int] | None:
        """How much the next batch scans, and how long ksmd sleeps after it; asked before each batch.

        Returns
        -------
        (int, int)
            Pages, milliseconds. Another `sleep_millisecs` written meanwhile ends the sleep.
        """
        return ksm.pages_to_scan, ksm.sleep_millisecs


#: those that a policy was plugged into
_PLUGGED: weakref.WeakSet[Any] = weakref.WeakSet()
_LOCK = threading.Lock()


def _plugged_in(policy: Policy, ksm: Any) -> Any:
    """Another Host's KSM that a policy is plugged into, or None."""
    with _LOCK:
        return next((one for one in _PLUGGED if one is not ksm and one._policy is policy), None)


class Chosen:
    """The part of `Ksm` that has to do with its policy."""

    __slots__ = ()

    _bound: _core.World
    _policy: Any
    _asking: _asking.Asking | None
    _domains: dict[int, int] | None
    _rest: int | None  # milliseconds of sleep after the batch under way, as the policy said; None: sleep_millisecs

    @property
    def host(self) -> Any:
        """The Host that it belongs to, of whose processes a policy's `attach` or `begin` may want to know.

        Models: nothing of Linux. Differs: nothing known.
        """
        return self._bound.live()

    @property
    def policy(self) -> Any:
        """What decides in ksmd's stead (`policy.Policy`), None: Linux 6.18. May be set.

        It belongs to this Host while it is plugged in, and is not kept with it: a Host that is loaded or unpickled has
        none. Setting it in mid-scan is fine: what the scan comes to from there on is up to the new one. Where the old one
        told domains, processes go back to those that they were in, newer ones to the first. A sleep of which a policy said
        how long, or the new one would say, ends.

        Raises
        ------
        TypeError
            It is no Policy (a class instead of an object of it, for one).
        ValueError
            It is plugged into another Host.

        Models: nothing of Linux. Differs: nothing known.
        """
        return self._policy

    @policy.setter
    def policy(self: Any, policy: Any) -> None:
        compiled = _asking.is_compiled(policy)
        if not (policy is None or compiled or isinstance(policy, Policy)):
            raise TypeError(f"policy {shown(policy)}: must be an object of a class made from Policy, or None")
        world = self._world
        elsewhere = _plugged_in(policy, self) if isinstance(policy, Policy) else None
        if elsewhere is not None:
            raise ValueError(f"policy {shown(policy)} is plugged into another Host: make one for each")
        asking = None
        if compiled:
            asking = _asking.Asking(world, weakref.ref(self), {}, policy)
        elif policy is not None:
            asking = _asking.Asking(world, weakref.ref(self), written(policy))
        if isinstance(self._policy, Policy):
            self._policy.detach(self)
        if _paces(self._policy) or _paces(policy):
            self._end_sleep()
        self._policy = self._asking = None
        host = world.live()
        for mm in host.mm_list if self._domains is not None else ():
            mm.domain = self._domains.get(mm.number, 0)
        self._domains = None
        if isinstance(policy, Policy):
            policy.attach(self)
        if asking is not None and asking.asks_domains:
            self._domains = {mm.number: mm.domain for mm in host.mm_list}
        self._policy, self._asking = policy, asking
        with _LOCK:
            (_PLUGGED.discard if policy is None else _PLUGGED.add)(self)

    def _end_sleep(self: Any) -> None:
        """ksmd asleep wakes, and what the policy said of its sleep is void."""
        self._rest = None
        end_sleep(self._ksm["advisor"][0])

    def pace(self: Any) -> tuple[int, int]:
        """How much the next batch scans, in pages, and how long ksmd sleeps after it, in milliseconds.

        Models: pages_to_scan and sleep_millisecs of Linux 6.18, where no policy says otherwise. Differs: nothing known.
        """
        return self._paced() or (self.pages_to_scan, self.sleep_millisecs)

    def _paced(self: Any) -> tuple[int, int] | None:
        """What the policy says of the next batch, if it says anything."""
        answer = self._policy.pace(self) if _paces(self._policy) else None
        if answer is None:
            return None
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise TypeError(f"pace() answered {shown(answer)}: must be pages and milliseconds")
        return as_int(answer[0], "pages of pace()", 0, _U32), as_int(answer[1], "milliseconds of pace()", 0, _U32)


def _paces(policy: Any) -> bool:
    """Whether a policy has a pace of its own."""
    return isinstance(policy, Policy) and type(policy).pace is not Policy.pace


def written(policy: Policy) -> dict[str, Any]:
    """The methods that a policy has of its own, by name."""
    return {name: getattr(policy, name) for name in ASKED if getattr(type(policy), name) is not getattr(Policy, name)}
