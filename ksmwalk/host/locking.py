"""Locked memory of an address space, and the CPU that it runs on."""

from __future__ import annotations

import errno

from ..gate import MAX_U64, as_int
from ..layout import PAGE_SIZE, MmFlag, Vm
from . import _doors
from .door import Door, refuse, up

_LOCKED, _ON_FAULT = int(Vm.LOCKED), int(Vm.LOCKONFAULT)
#: the flag of mlock2(2)
MLOCK_ONFAULT = 1
#: the flags of mlockall(2)
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


class Locking(Door):
    """The part of an address space that mlock(2) and its like are about.

    A small page that comes into a locked area, or leaves one, waits with a reference held to it in the mlock batch of the
    CPU where that happens, until the batch is full (31 entries; 15 up to Linux 6.1) or drained: it can't be merged so long.
    """

    @property
    def cpu(self) -> int:
        """CPU that its tasks run on, whose batches its pages wait in; may be set."""
        return self._field("cpu")

    @cpu.setter
    def cpu(self, number: int) -> None:
        number = as_int(number, "cpu", 0, self.host.nr_cpus - 1)
        with self._world:
            self._world.arrays["mms"]["cpu"][self._at()] = number

    @property
    def locks_future(self) -> int:
        """Flags that mlockall(2) left for areas to come: `MCL_FUTURE`, `MCL_ONFAULT`; 0: none."""
        flags = self._field("flags")
        return (MCL_FUTURE if flags & MmFlag.LOCK_FUTURE else 0) | (MCL_ONFAULT if flags & MmFlag.LOCK_ONFAULT else 0)

    def _locked_range(self, addr: int, length: int, what: str) -> tuple[int, int]:
        """The pages that [addr, addr + length) touches, as mlock rounds them: a length that wraps is 0."""
        self._at()
        addr, length = as_int(addr, "addr"), as_int(length, "length")
        start = addr & -PAGE_SIZE
        end = start + (up(length + (addr - start)) & MAX_U64)
        if end > MAX_U64:
            raise refuse(errno.EINVAL, f"{what} {addr:#x}, length {length:#x}")
        return start, end

    def mlock(self, addr: int, length: int, flags: int = 0) -> None:
        """Lock memory and bring it in: private memory that may be stored to as a store to each page would.

        Parameters
        ----------
        addr, length : int
            Bytes: of the pages that they touch.
        flags : int
            Of mlock2(2): 0, or `MLOCK_ONFAULT` to bring nothing in.

        Raises
        ------
        OSError
            EINVAL; ENOMEM: a hole, or pages that can't be had. What lies before it is done.

        Models: mlock(2) and mlock2(2) of Linux 6.18. Differs: no limit on locked memory.
        """
        flags = as_int(flags, "flags", -1 << 63, MAX_U64)
        if flags & ~MLOCK_ONFAULT:
            raise refuse(errno.EINVAL, f"mlock2 with flags {flags:#x}")
        start, end = self._locked_range(addr, length, "mlock")
        locks = _LOCKED | (_ON_FAULT if flags else 0)
        self._check(_doors.mlock(self._world, self.index, start, end, locks), f"mlock {start:#x}-{end:#x}")

    def munlock(self, addr: int, length: int) -> None:
        """Unlock memory.

        Models: munlock(2) of Linux 6.18. Differs: nothing known.
        """
        start, end = self._locked_range(addr, length, "munlock")
        self._check(_doors.mlock(self._world, self.index, start, end, 0), f"munlock {start:#x}-{end:#x}")

    def mlockall(self, flags: int) -> None:
        """Lock all areas there are (`MCL_CURRENT`), all to come (`MCL_FUTURE`), or both.

        Parameters
        ----------
        flags : int
            MCL_* bits of mlockall(2); with `MCL_ONFAULT` nothing is brought in. What can't be brought in is passed over.

        Raises
        ------
        OSError
            EINVAL: flags that there are not, or none.

        Models: mlockall(2) of Linux 6.18. Differs: no limit on locked memory.
        """
        flags = as_int(flags, "flags", -1 << 63, MAX_U64)
        if not 0 < flags <= MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT:
            raise refuse(errno.EINVAL, f"mlockall with flags {flags:#x}")
        self._check(_doors.mlockall(self._world, self._at(), flags), f"mlockall with flags {flags:#x}")

    def munlockall(self) -> None:
        """Unlock all areas, and lock none to come.

        Models: munlockall(2) of Linux 6.18. Differs: nothing known.
        """
        self._check(_doors.mlockall(self._world, self._at(), 0), "munlockall")
