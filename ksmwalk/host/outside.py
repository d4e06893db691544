"""What happens to a Host from outside, which a model can't guess and is told: pins, page locks, batches drained, reclaim."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from .. import layout
from ..errors import check
from ..gate import as_flag, as_int, as_row, shown
from ..layout import Frame
from . import _doors, _swap
from .mm import Mm

if TYPE_CHECKING:
    from .. import _core
    from ..signatures import AnyArray, Integers
    from .host import Host


class Outside:
    """The part of a Host that takes the events of the world around it."""

    if TYPE_CHECKING:
        world: _core.World

        @property
        def nr_frames(self) -> int: ...

        _arrays: dict[str, AnyArray]
        _pins: dict[int, int]

    def drain(self, cpu: int | None = None) -> None:
        """Drain the batches of all CPUs, or of one: the references they hold go.

        Models: lru_add_drain_all() and lru_add_drain() of Linux 6.18. Differs: nothing known.
        """
        if cpu is None:
            _doors.drain(self.world)
        else:
            _doors.drain_cpu(self.world, as_int(cpu, "cpu", 0, int(self._arrays["ctl"]["nr_cpus"][0]) - 1))

    # ---------------------------------------------------------- reclaim and swap

    @property
    def swap_pages(self) -> int:
        """Pages that the swap device has room for; 0: there is none."""
        return int(self._arrays["ctl"]["slots_most"][0])

    @property
    def swap_used(self) -> int:
        """Pages of the swap device in use."""
        return int(self._arrays["ctl"]["slots_live"][0])

    def swapon(self, pages: int) -> None:
        """Add the swap device: from now on `reclaim` and MADV_PAGEOUT find room for anonymous pages.

        Parameters
        ----------
        pages : int
            Pages of 4 KiB that it has room for, a few more than the Host has frames at most.

        Raises
        ------
        OSError
            EBUSY: there is one.

        Models: swapon(2) of Linux 6.18 with a device that needs no readahead (zram). Differs: one device.
        """
        with self.world:
            ctl = self._arrays["ctl"]
            pages = as_int(pages, "pages", 1, int(ctl["slots_cap"][0]) - 1)
            if self.swap_pages:
                check(-errno.EBUSY, f"swapon: there is a device of {self.swap_pages} pages")
            ctl["slots_most"] = pages
            ctl["born"] = np.maximum(ctl["born"], 1)     # from now on pages have ages

    def swapoff(self) -> None:
        """Bring every page back, address space by address space, in ascending order, and take the swap device away.

        The address space whose first page went out last comes first, a child that was born with pages out right after its
        parent.

        Raises
        ------
        OSError
            EINVAL: there is none.
        ArenaFullError
            No frame is left: the device is still there, some pages are back.

        Models: swapoff(2) of Linux 6.18.
        """
        if not self.swap_pages:
            check(-errno.EINVAL, "swapoff: there is no swap device")
        check(_swap.swapoff(self.world), "swapoff")

    def reclaim(self) -> None:
        """Make everything count as not accessed, and reclaim all that can be.

        Pages that MADV_FREE marked and nobody stored to since are freed; where somebody has, the next pass takes the page as
        one like others: as many are made as find something. With a swap device all other anonymous pages,
        KSM pages too, and shared memory go out to it; huge pages whole, while it has room for one. What is mapped in a
        locked area, or held by a DMA pin or a batch, stays; what is held otherwise is unmapped, but keeps its frame.

        Raises
        ------
        ArenaFullError
            No table page is left to split a huge page with: some pages are out, the others not.

        Models: force_empty of a memory cgroup of Linux 6.18, again and again with its statistics up to date until nothing
        more goes, after the accessed bits of its processes were cleared.
        Differs: everything counts as one cgroup; the slot that a page gets.
        """
        check(_swap.reclaim(self.world), "reclaim")

    def vmstat(self) -> dict[str, int]:
        """What the kernel has counted: the counters of /proc/vmstat that belong to KSM.

        Returns
        -------
        dict
            `ksm_swpin_copy`: pages copied because they came back from swap for several places; `cow_ksm`: KSM pages copied
            by stores and by unmerging. Since the Host was made or loaded. Those that its kernel has: 5.10 none.

        Models: /proc/vmstat of Linux 6.18. Differs: the two that KSM has.
        """
        counted = _swap.vmstat(self.world)
        return {name: counted[name] for name in cast("Host", self).kernel.vmstat}

    # ---------------------------------------------------------- pins and locks

    def pin(self, mm: Mm, addr: int) -> int:
        """Hold a reference to the page at `addr`, as a pipe does that it was spliced into.

        Returns
        -------
        int
            Its frame, for `unpin`.

        Raises
        ------
        OSError
            EFAULT: nothing is present there.

        Models: get_user_pages() of a present page in Linux 6.18: it stays shared with whom it was shared, and is shared by
        a fork, but stores of all who share it copy. Differs: nothing is faulted in, the zero page is refused.
        """
        if not isinstance(mm, Mm) or mm.host is not self:
            raise ValueError(f"mm {shown(mm)}: must be an Mm of this Host")
        addr = as_int(addr, "addr")
        pfn = int(mm.read_pfns(addr & -layout.PAGE_SIZE, 1)[0]) if addr < mm.task_size else -1
        if not 0 <= pfn < self.nr_frames or self._arrays["f_flags"][pfn] & Frame.ZERO:
            check(-errno.EFAULT, f"pin at {addr:#x}: no page to pin")
        _doors.pin(self.world, pfn)
        head = int(self._arrays["f_head"][pfn]) or pfn
        self._pins[head] = self._pins.get(head, 0) + 1
        return pfn

    def unpin(self, pfn: int) -> None:
        """Let go of a page that `pin` gave.

        Raises
        ------
        ValueError
            It is not pinned.

        Models: put_page() of Linux 6.18. Differs: nothing known.
        """
        pfn = as_int(pfn, "pfn", 1, self.nr_frames - 1)
        head = int(self._arrays["f_head"][pfn]) or pfn
        pins = self._pins.get(head, 0)
        if pins < 1 and not self._pinned_before(head) or _doors.extra_refs(self.world, pfn) < 1:
            raise ValueError(f"frame {pfn}: not pinned")
        _doors.unpin(self.world, pfn)
        if pins > 1:
            self._pins[head] = pins - 1
        else:
            self._pins.pop(head, None)

    def dma_pin(self, mm: Mm, addr: int, length: int = layout.PAGE_SIZE) -> NDArray[np.int64]:
        """Give a device the pages of a range, to read and write: as registered buffers of io_uring, or RDMA.

        Parameters
        ----------
        mm : Mm
        addr, length : int
            The range, bytes; of pages in part, the whole pages.

        Returns
        -------
        ndarray of int64
            Their frames in ascending order of addresses, for `dma_unpin`: each is pinned once more.

        Raises
        ------
        OSError
            EFAULT: not all of it may be stored to. No page is pinned; those before may have been brought in.

        Models: pin_user_pages(FOLL_WRITE | FOLL_LONGTERM) of Linux 6.18: first a store to each page that could not be stored
        to without a fault, then a pin; a fork copies pinned pages of private memory at once. Differs: no page is moved to
        where it does not hinder others.
        """
        if not isinstance(mm, Mm) or mm.host is not self:
            raise ValueError(f"mm {shown(mm)}: must be an Mm of this Host")
        addr, length = as_int(addr, "addr"), as_int(length, "length", 1)
        start = addr & -layout.PAGE_SIZE
        n = ((addr + length + layout.PAGE_SIZE - 1) >> layout.PAGE_SHIFT) - (start >> layout.PAGE_SHIFT)
        if n > self.nr_frames:
            # somewhere there must be pages that can't be stored to
            check(-errno.EFAULT, f"dma_pin at {addr:#x}, {length} bytes: more pages than this Host has frames")
        pfns = np.empty(n, np.int64)
        check(_doors.dma_pin(self.world, mm.number, start, pfns), f"dma_pin at {addr:#x}")
        return pfns

    def dma_unpin(self, pfns: Integers) -> None:
        """Take pages back from a device.

        Parameters
        ----------
        pfns : array of int
            Frames that `dma_pin` gave, as often as it gave them.

        Raises
        ------
        ValueError
            A frame is not pinned so; those before it are not pinned any more.

        Models: unpin_user_pages() of Linux 6.18. Differs: nothing known.
        """
        frames, _ = as_row(pfns, "pfns", np.int64, 0, self.nr_frames - 1)
        at = _doors.dma_unpin(self.world, np.ascontiguousarray(frames))
        if at >= 0:
            raise ValueError(f"pfns[{at}] {int(frames[at])}: not pinned for DMA")

    def _pinned_before(self, head: int) -> bool:
        """Whether a folio carries a reference that only a pin can be: one that was there when the Host was saved."""
        flags = int(self._arrays["f_flags"][head])
        if flags & (Frame.FILE | Frame.DEVICE | Frame.HUGETLB):
            return False  # an object may hold it
        dma = int(self._arrays["pins_of"][head]) if self._arrays["ctl"]["dma_pins"][0] else 0
        batches = self._arrays["batches"]
        waits = sum(
            int(np.count_nonzero(batch[name][: batch[f"nr_{name}"]] == head)) for batch in batches for name in ("mlock", "lazy")
        )
        return int(_doors.extra_refs(self.world, head)) > bool(flags & Frame.LRU) + dma + waits

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
