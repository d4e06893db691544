"""The tasks of an address space, and what one process may do with the memory of another."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from ..gate import as_int, shown
from ..layout import Switch
from . import _advice, _doors
from .door import Door, refuse

if TYPE_CHECKING:
    from .mm import Mm

#: advice names of madvise(2) with their numbers
ADVICE: dict[str, int] = _advice.advice_numbers()
#: and the numbers alone
ADVICE_NUMBERS = frozenset(ADVICE.values())
#: what a process may advise for another: nothing that changes what it will find there; on old kernels these alone
_FOR_OTHERS = frozenset(ADVICE[name] for name in ("cold", "pageout", "willneed", "collapse"))
_OF_OLD = frozenset(ADVICE[name] for name in ("cold", "pageout"))
#: most tasks that one address space has
_MOST_TASKS = (1 << 30) - 1


class Tasks(Door):
    """Tasks that live in one address space: it is there until the last of them is gone."""

    @property
    def tasks(self) -> int:
        """Tasks that live in it: 1 at first, one more with each `clone`."""
        return self._field("tasks") + 1

    def clone(self) -> Mm:
        """Let one more task live in this address space.

        Returns
        -------
        Mm
            This one: its tasks share all of it, what ksmd counts too. Each ends by an `exit`, or leaves by an `exec`.

        Raises
        ------
        OSError
            EAGAIN: there are 2**30 already.

        Models: clone(CLONE_VM) and vfork(2) of Linux 6.18. Differs: who waits for a vfork child is not kept.
        """
        with self._world:
            tasks = self.tasks
            if tasks > _MOST_TASKS:
                raise refuse(errno.EAGAIN, f"{tasks} tasks in address space {self.index}")
            self._world.arrays["mms"]["tasks"][self._at()] = tasks
        return cast("Mm", self)

    def exec(self) -> Mm:
        """Give a task an empty address space of its own; merge_any stays.

        Returns
        -------
        Mm
            Of its only task: itself, with another `index`; what it had mapped is gone. Of one of several: a new one,
            and this one stays for the others.

        Models: exec_mmap() of Linux 6.18. Differs: the new address space is empty; map what the program would.
        """
        with self._world:
            alone = self.tasks == 1
            new = self._check(_doors.mm_exec(self._world, self._at()), "exec")
            if not alone:
                return self.host._adopt(new)
            self.host._moved(cast("Mm", self), new)
            self.__dict__["index"] = new
            self._tables = None
        return cast("Mm", self)

    def exit(self) -> None:
        """End a task. With the last one everything goes; ksmd cleans up behind when it comes by.

        Models: mmput() of Linux 6.18. Differs: nothing known.
        """
        with self._world:
            last = self.tasks == 1
            self._check(_doors.mm_exit(self._world, self._at()), "exit")
            if last:
                self._life.end()

    def process_madvise(self, other: Mm, addr: int, length: int, advice: str | int) -> None:
        """Give advice on a range of another process.

        Parameters
        ----------
        other : Mm
            Whose memory it is; for oneself any advice will do, since 6.16.
        addr, length : int
            Bytes in it, the start page aligned.
        advice : str or int
            For others "cold", "pageout", "willneed" and "collapse" only; in 5.10 the first two.

        Raises
        ------
        OSError
            EINVAL: not for others. As `madvise` besides.

        Models: process_madvise(2) by root, with one range, of each known kernel. Differs: as `madvise`.
        """
        if not isinstance(other, Tasks) or other.host is not self.host:
            raise ValueError(f"other {shown(other)}: must be an Mm of the same Host")
        at = self._at()
        number = advice_number(advice)
        switches = self.host.kernel.switches
        free = other._at() == at and not switches & Switch.NO_GUARD
        if not free and number not in (_OF_OLD if switches & Switch.OLD_CALLS else _FOR_OTHERS):
            raise refuse(errno.EINVAL, f"process_madvise {advice} for address space {other.index}")
        other.madvise(addr, length, advice)


def advice_number(advice: str | int) -> int:
    """The number of an advice given by name or number, which need not be one that there is; ValueError: a wrong name."""
    if not isinstance(advice, str):
        return as_int(advice, "advice", -1 << 31, (1 << 31) - 1)
    if advice not in ADVICE:
        raise ValueError(f"advice {shown(advice)}: must be one of {', '.join(ADVICE)}")
    return ADVICE[advice]
