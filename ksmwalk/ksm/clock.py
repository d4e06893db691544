"""ksmd in time: batches take what their work costs, and between them it sleeps until the kernel's timer wakes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..layout import ItemFlag
from ..signatures import AnyArray
from .costs import LOWER_WHILE_GROWING, Costs, nanoseconds
from .work import Stretch

if TYPE_CHECKING:
    from .ksmd import Ksm

__all__ = ["Clock", "end_sleep", "timer"]

_MS, _S = 1_000_000, 1_000_000_000
_GOLDEN = (5**0.5 - 1) / 2
#: visits after which a batch makes way for what is due meanwhile
AT_ONCE = 512
# slots of the ksm record's `advisor`, beside those of ksmd.py: what of a nanosecond clock does not fit milliseconds
# (clock + _MS * CPU clock); visits left of the batch under way (+ _ONE * all of its visits); when ksmd goes on, with
# these visits or from its sleep
_REST, _BATCH, _NEXT = 5, 6, 7
_ONE, _MOST = 1 << 32, (1 << 29) - 1


def timer(now: int, sleep_ms: int, hz: int = 250, late: float = 0.0) -> int:
    """When a sleep ends that begins now.

    The kernel counts sleeps in ticks, rounded up, and wakes at the tick after; a sleep of 63 ticks and more at one of 8,
    of 504 and more at one of 64, and so on.

    Parameters
    ----------
    now : int
        Nanoseconds; a tick is at 0.
    sleep_ms : int
        Milliseconds.
    hz : int
        Ticks a second.
    late : float
        Part of all sleeps that end a tick later than they should, from 0 to 1, or more ticks than one; which ones follows
        from `now`.

    Returns
    -------
    int
        Nanoseconds.

    Examples
    --------
    >>> timer(3_000_000, 20) / 1e6
    24.0
    >>> timer(0, 1000) / 1e6
    1024.0

    Models: schedule_timeout() and the timer wheel of Linux 6.18. Differs: how late a busy processor is, is `late`.
    """
    if sleep_ms <= 0:
        return now
    ticks, coarse = -(-sleep_ms * hz // 1000), 1
    while ticks >= 63 * coarse:
        coarse *= 8
    tick = now * hz // _S
    due = (tick + ticks + coarse) // coarse * coarse
    # multiples of the golden ratio are spread evenly, whatever lies between two sleeps
    due += int(late) + (tick * _GOLDEN % 1 < late % 1)
    return -(-due * _S // hz)


def end_sleep(state: AnyArray) -> None:
    """What a write of another number to sleep_millisecs does to ksmd asleep: it wakes."""
    if int(state[_BATCH]) % _ONE == 0:
        state[_NEXT] = 0


class Clock:
    """ksmd of one Ksm, at work and asleep; its state is the Ksm's, so that a new clock goes on where one stopped.

    Parameters
    ----------
    ksm : Ksm
    costs : Costs
    prefix : float
        Bytes, on average, that two different pages that are compared have in common at their front.
    hz : int
        Ticks of the kernel a second.
    late : float
        As for `timer`.

    Attributes
    ----------
    batches : int
        Batches begun since it was made.

    Models: the loop of ksmd of Linux 6.18.
    Differs: 512 visits of a batch are one moment, from which on they take their time: what is due meanwhile finds them
    done. A batch takes its CPU time, as on a machine that is idle.
    """

    def __init__(self, ksm: Ksm, costs: Costs, prefix: float = 0.0, hz: int = 250, late: float = 0.0):
        self._ksm, self._world, self._record = ksm, ksm._world, ksm._ksm
        self._costs, self._prefix, self._hz, self._late = costs, prefix, hz, late
        self.batches = 0
        self._state = self._record["advisor"][0]
        self._tree = self._in_tree()

    def _in_tree(self) -> int:
        """Items in the unstable tree: what this scan has put there."""
        arrays = self._world.arrays
        items = arrays["items"][: int(arrays["ctl"]["items_used"][0])]
        seq = np.uint8(int(arrays["cursor"]["seqnr"][0]) & 255)
        return int(np.count_nonzero((items["flags"] & np.uint8(ItemFlag.UNSTABLE) != 0) & (items["seq"] == seq)))

    @property
    def now(self) -> int:
        """The clock, nanoseconds; `Ksm.now_ms` to the millisecond."""
        return int(self._record["now_ms"][0]) * _MS + int(self._state[_REST]) % _MS

    @property
    def cpu(self) -> int:
        """CPU time of ksmd so far, nanoseconds; `Ksm.cpu_ms` to the millisecond."""
        return self._ksm.cpu_ms * _MS + int(self._state[_REST]) // _MS

    def _set(self, now: int, cpu: int) -> None:
        self._record["now_ms"][0], self._ksm.cpu_ms = now // _MS, cpu // _MS
        self._state[_REST] = now % _MS + _MS * (cpu % _MS)

    def advance(self, until: int) -> None:
        """Let ksmd work until a time.

        Parameters
        ----------
        until : int
            Nanoseconds.

        Raises
        ------
        BadEntryError, ArenaFullError
            As `Ksm.do_scan`.
        TypeError, ValueError
            A policy's `pace` answered what makes no sense; the batch has not begun.
        """
        ksm = self._ksm
        while (now := self.now) < until:
            due, batch = int(self._state[_NEXT]), int(self._state[_BATCH])
            if due > now:
                self._set(min(due, until), self.cpu)
            elif batch % _ONE:
                self._work(now, batch % _ONE, batch // _ONE)
            elif ksm._number("run") == 1 and ksm.registered:
                pages = self._pages()
                self._record["long_wait"][0] = 0
                self.batches += 1
                self._work(now, pages, min(pages, _MOST))
            else:
                self._record["long_wait"][0] = 1
                self._set(until, self.cpu)

    def _pages(self) -> int:
        """How many pages the batch that begins scans; the policy, if there is one, also says how long ksmd sleeps then."""
        ksm = self._ksm
        pace = None if ksm._policy is None else ksm._paced()
        ksm._rest = None if pace is None else pace[1]
        return ksm._number("pages_to_scan") if pace is None else pace[0]

    def _work(self, now: int, left: int, whole: int) -> None:
        """Some visits of a batch; of the last ones, its end."""
        ksm, state, n = self._ksm, self._state, min(left, AT_ONCE)
        stretch = Stretch(self._world)
        done, ended = ksm._visit(n)
        over = done < n or ended or n == left or ksm._number("run") == 2
        cost = self._cost(stretch, (left if over else n) / whole if whole else 1.0)
        then, cpu = now + cost, self.cpu + cost
        if ended:
            self._tree = 0
            self._set(then, cpu)  # the advisor counts these visits
            ksm._advise()
        self._set(now, cpu)
        state[_BATCH] = 0 if over else left - n + _ONE * whole
        sleep = ksm._number("sleep_millisecs") if ksm._rest is None else ksm._rest
        state[_NEXT] = timer(then, sleep, self._hz, self._late) if over else then

    def _cost(self, stretch: Stretch, batches: float) -> int:
        """Nanoseconds that a stretch of visits took, which was so much of a batch."""
        row: dict[str, float] = {**stretch.row(), "batches": batches, "prefix": self._prefix}
        inserted = row["unstable_items"]
        # of as many levels as the tree has now, not of those of one that has grown to this height in the stretch
        row["unstable_items"] = (1 + self._tree + inserted / 2) * 2**LOWER_WHILE_GROWING - 1
        self._tree += int(inserted - row["merges"])
        return max(1000, round(nanoseconds(row, self._costs)))
