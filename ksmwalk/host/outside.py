"""What happens to a Host from outside, which a model can't guess and is told: pins, page locks, batches drained."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from .. import layout
from ..errors import check
from ..gate import as_flag, as_int, shown
from ..layout import Frame
from . import _doors
from .mm import Mm

if TYPE_CHECKING:
    from .. import _core
    from ..signatures import AnyArray


class Outside:
    """The part of a Host that takes the events of the world around it."""

    if TYPE_CHECKING:
        world: _core.World
        nr_frames: int
        _arrays: dict[str, AnyArray]
        _pins: dict[int, int]

    def drain(self) -> None:
        """Drain the batches of all CPUs: the references they hold go.

        Models: lru_add_drain_all() of Linux 6.18. Differs: nothing known.
        """
        _doors.drain(self.world)

    def pin(self, mm: Mm, addr: int) -> int:
        """Hold a reference to the page at `addr`, as direct I/O does.

        Returns
        -------
        int
            Its frame, for `unpin`.

        Raises
        ------
        OSError
            EFAULT: nothing is present there.

        Models: pin_user_pages() of a present page in Linux 6.18.
        Differs: nothing is faulted in, the zero page is refused.
        """
        if not isinstance(mm, Mm) or mm.host is not self:
            raise ValueError(f"mm {shown(mm)}: must be an Mm of this Host")
        pfn = int(mm.read_pfns(as_int(addr, "addr") & -layout.PAGE_SIZE, 1)[0])
        if not 0 <= pfn < self.nr_frames or self._arrays["f_flags"][pfn] & Frame.ZERO:
            check(-errno.EFAULT, f"pin at {addr:#x}: no page to pin")
        _doors.pin(self.world, pfn)
        head = int(self._arrays["f_head"][pfn])
        self._pins[head] = self._pins.get(head, 0) + 1
        return pfn

    def unpin(self, pfn: int) -> None:
        """Let go of a page that `pin` gave.

        Raises
        ------
        ValueError
            It is not pinned.

        Models: unpin_user_page() of Linux 6.18. Differs: nothing known.
        """
        pfn = as_int(pfn, "pfn", 1, self.nr_frames - 1)
        head = int(self._arrays["f_head"][pfn])
        pins = self._pins.get(head, 0)
        if pins < 1 and not self._pinned_before(head) or _doors.extra_refs(self.world, pfn) < 1:
            raise ValueError(f"frame {pfn}: not pinned")
        _doors.unpin(self.world, pfn)
        if pins > 1:
            self._pins[head] = pins - 1
        else:
            self._pins.pop(head, None)

    def _pinned_before(self, head: int) -> bool:
        """Whether a folio carries a reference that only a pin can be: one that was there when the Host was saved."""
        flags = int(self._arrays["f_flags"][head])
        if flags & (Frame.FILE | Frame.DEVICE | Frame.HUGETLB):
            return False  # an object may hold it
        return int(_doors.extra_refs(self.world, head)) > bool(flags & Frame.LRU)

    def lock_page(self, pfn: int, on: bool = True) -> None:
        """Hold (or release) the page lock of a frame, as somebody else's I/O does.

        Models: folio_trylock() failing in Linux 6.18. Differs: only KSM and MADV_COLLAPSE ask for the lock.
        """
        pfn, on = as_int(pfn, "pfn", 1, self.nr_frames - 1), as_flag(on, "on")
        flags = self._arrays["f_flags"]
        with self.world:
            if not flags[pfn] & Frame.USED:
                raise ValueError(f"frame {pfn}: not in use")
            flags[pfn] = flags[pfn] | Frame.LOCKED if on else flags[pfn] & ~np.uint16(Frame.LOCKED)
