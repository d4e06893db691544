"""The heap of an address space: what brk(2) grows and shrinks."""

from __future__ import annotations

from ..gate import as_int
from ..layout import PAGE_SIZE
from . import _heap
from .door import Door


class Heap(Door):
    """The part of an address space that brk(2) is about.

    It begins where `start_brk` says, in the kernel behind the data of the program, and is private memory like other. A
    child has that of its parent; after an `exec` there is none.
    """

    @property
    def start_brk(self) -> int:
        """Where the heap begins, bytes; 0: there is none. Set, a page aligned address, it is empty and begins there."""
        return self._field("start_brk")

    @start_brk.setter
    def start_brk(self, addr: int) -> None:
        addr = as_int(addr, "start_brk", 0, self.task_size)
        if addr % PAGE_SIZE:
            raise ValueError(f"start_brk {addr:#x}: must be page aligned")
        with self._world:
            record = self._world.arrays["mms"][self._at()]
            record["start_brk"] = record["brk"] = addr

    def brk(self, addr: int = 0) -> int:
        """Let the heap end somewhere else.

        Parameters
        ----------
        addr : int
            Address, bytes: whole pages are mapped, and unmapped. 0: only ask.

        Returns
        -------
        int
            Where it ends now: where it did before if it can't end there, being below `start_brk`, or less than a page and
            the gap of a stack before what is mapped next, or if of what is to go nothing is mapped.

        Models: brk(2) of Linux 6.18, as the system call answers. Differs: no RLIMIT_DATA.
        """
        addr = as_int(addr, "addr")
        return self._check(_heap.brk(self._world, self._at(), addr), f"brk {addr:#x}")
