"""What every door to an address space has: where it stands, whether it is still there, and the errors of its calls."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Self

from .. import _core
from ..errors import Settled, check
from ..gate import MAX_U64, as_int, shown
from ..ksm import _domains
from ..layout import PAGE_SIZE, TREES
from ..tables import PageTables

if TYPE_CHECKING:
    from .host import Host


def up(n: int, size: int = PAGE_SIZE) -> int:
    """Round up to whole pages of a size."""
    return (n + size - 1) & -size


def refuse(code: int, what: str) -> OSError:
    """The error of a system call, with the call and its arguments."""
    return OSError(code, f"{os.strerror(code)}: {what}")


class Door(Settled):
    """One address space of a Host, or what is left of it."""

    host: Host
    index: int
    _world: _core.World
    _life: _core.Life
    _tables: PageTables | None

    def __new__(cls, host: Host, index: int) -> Self:
        if not hasattr(host, "mm_by_number"):
            raise TypeError(f"host {shown(host)}: must be a Host")
        return host.mm_by_number(index)  # type: ignore[return-value] # Self is Mm: of a Door nobody makes another kind

    @classmethod
    def _door(cls, host: Host, index: int, life: _core.Life) -> Self:
        self = object.__new__(cls)
        self.__dict__.update(host=host, index=index)
        self._world, self._life, self._tables = host.world, life, None
        return self

    def _at(self) -> int:
        if self._life.gone:
            raise ProcessLookupError(errno.ESRCH, f"{os.strerror(errno.ESRCH)}: address space {self.index} has exited")
        return self.index

    def _field(self, name: str) -> int:
        return int(self._world.arrays["mms"][name][self._at()])

    @property
    def number(self) -> int:
        """The same as `index`."""
        return self.index

    @property
    def alive(self) -> bool:
        """False once it has exited."""
        return not self._life.gone

    @property
    def task_size(self) -> int:
        """First address beyond user memory, bytes."""
        return (1 << (47 if self.host.levels == 4 else 56)) - PAGE_SIZE

    @property
    def nid(self) -> int:
        """NUMA node that new pages come from while it has any; may be set."""
        return self._field("nid")

    @nid.setter
    def nid(self, node: int) -> None:
        node = as_int(node, "nid", 0, self.host.nr_nodes - 1)
        with self._world:
            self._world.arrays["mms"]["nid"][self._at()] = node

    @property
    def domain(self) -> int:
        """Whose pages its own may be merged with: those of address spaces of the same number, 0 at first. May be set.

        A child of fork is in its parent's. Setting another number breaks what is merged in it into private copies, as
        `madvise(..., "unmergeable")` does, and the scan finds its pages anew. A page that two domains came to share by
        fork stays shared until one writes to it, and is merged with others in the domain that comes first only. A Host
        has room for 65,536 // nr_nodes domains, and is quick with as many as are used: number them from 0 on.

        Raises
        ------
        ValueError, TypeError
            No number of a domain; nothing is changed.
        ArenaFullError
            No frame left for a private copy: the domain stays, what was broken stays so.

        Models: nothing of Linux. Differs: Linux knows one domain, the machine.
        """
        return self._field("domain")

    @domain.setter
    def domain(self, number: int) -> None:
        number = as_int(number, "domain", 0, TREES // self.host.nr_nodes - 1)
        self._check(_domains.py_set_domain(self._world, self._at(), number), f"domain of address space {self.index}")

    def _check(self, code: int, what: str) -> int:
        return check(code, what, self._world.arrays["bad"])

    def _range(self, addr: int, length: int, what: str, wrapped: int = errno.EINVAL) -> tuple[int, int]:
        """[start, end) of a call's range, page aligned; `wrapped`: errno where it leaves 64 bits."""
        self._at()
        addr, length = as_int(addr, "addr"), as_int(length, "length")
        end = addr + up(length)
        if addr % PAGE_SIZE or end > MAX_U64:
            code = errno.EINVAL if addr % PAGE_SIZE else wrapped
            raise refuse(code, f"{what} {addr:#x}, length {length:#x}")
        return addr, end

    def _user_range(self, addr: int, length: int, what: str) -> tuple[int, int]:
        """As `_range`, not empty and within user memory."""
        start, end = self._range(addr, length, what)
        if start == end or end > self.task_size:
            raise refuse(errno.EINVAL, f"{what} {start:#x}-{end:#x}: empty, or beyond {self.task_size:#x}")
        return start, end
