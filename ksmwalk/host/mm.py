"""Address spaces: system calls and faults of a modelled process."""

from __future__ import annotations

import errno

import numpy as np

from ..gate import MAX_U64, as_flag, as_int, counted, shown
from ..kernels import STATS
from ..ksm.rmap import RmapItem, rmap_items
from ..ksm.sysfs import RMAP_ITEM_SIZE
from ..layout import PAGE_SIZE, PMD_SIZE, MmFlag, Vm
from ..tables.tables import PageTables
from . import _doors, _heap
from .door import refuse, up
from .heap import Heap
from .locking import Locking
from .nodes import Placed
from .notebook import ShownMm
from .tasks import ADVICE_NUMBERS, Tasks, advice_number
from .vma import Vma
from .watched import Watched

# Plain integers: arithmetic on enum members takes a microsecond.
_READ, _WRITE, _EXEC, _MERGEABLE = int(Vm.READ), int(Vm.WRITE), int(Vm.EXEC), int(Vm.MERGEABLE)
_SHARED = int(Vm.SHARED | Vm.MAYSHARE)
_NORESERVE, _LOCKED = int(Vm.NORESERVE), int(Vm.LOCKED)
_GROWSDOWN = int(Vm.GROWSDOWN)
#: what makes each kind of mapping what it is
KINDS = {
    "anon": Vm(0),
    "file": Vm(0),
    "hugetlb": Vm.HUGETLB | Vm.DONTEXPAND,
    "pfnmap": Vm.PFNMAP | Vm.IO | Vm.DONTEXPAND | Vm.DONTDUMP,
    "io": Vm.IO | Vm.DONTEXPAND,
    "dontexpand": Vm.DONTEXPAND,
    "mixedmap": Vm.MIXEDMAP,
    "droppable": Vm.DROPPABLE | Vm.NORESERVE | Vm.WIPEONFORK,
    "dax": Vm.DAX,
}
EFAULT = -errno.EFAULT
#: frames that an entry can name
_MOST_PFN = (1 << 40) - 1
#: what `mmap` takes as further flags: what MAP_* flags and madvise could have set; the rest is said by prot, shared, kind
_FURTHER = int(
    Vm.LOCKED | Vm.IO | Vm.SEQ_READ | Vm.RAND_READ | Vm.DONTCOPY | Vm.DONTEXPAND | Vm.ACCOUNT | Vm.NORESERVE
    | Vm.WIPEONFORK | Vm.DONTDUMP | Vm.HUGEPAGE | Vm.NOHUGEPAGE | Vm.GROWSDOWN
)  # fmt: skip


def _prot(prot: str) -> int:
    if not isinstance(prot, str):
        raise TypeError(f'prot {shown(prot)}: must be a string like "rw" or "none"')
    if prot == "none":
        return 0
    if set(prot) - set("rwx-"):
        raise ValueError(f'prot {shown(prot)}: must be made of "r", "w", "x", or be "none"')
    return (_READ if "r" in prot else 0) | (_WRITE if "w" in prot else 0) | (_EXEC if "x" in prot else 0)


class Mm(Placed, Tasks, Locking, Heap, Watched, ShownMm):
    """An address space; `Host.new_mm`, `fork` make them. `Mm(host, number)` is the same door as `host.mm_by_number`.

    A bad call raises the `OSError` that the system call would fail with, and does what the system call does
    before it fails (mostly nothing). What no C program could pass (a float, a negative number, 2**64 and more) is a
    TypeError or ValueError. An address space that has exited answers `ProcessLookupError`. After `exec` this door
    stands for the new memory; areas and page tables of the old one raise ReferenceError.

    Attributes
    ----------
    host : Host
    index : int
        Number of its record in `host.mms`; changes with `exec`.

    Models: struct mm_struct and the mm system calls of Linux 6.18 on x86-64.
    Differs: khugepaged comes when it is told to; no limits but vm.max_map_count and the 8 MiB of a stack; nobody answers a
    userfaultfd: what would wait for one fails.
    """

    # ---------------------------------------------------------- looking

    @property
    def tables(self) -> PageTables:
        """Its page tables."""
        tables = self._tables
        if tables is None or self._life.gone:
            tables = self._tables = PageTables.of_world(self._world, self._at(), self.host.levels, life=self._life)
        return tables

    @property
    def nr_tables(self) -> int:
        """Table pages, the top one included."""
        return self._field("nr_tables")

    @property
    def epoch(self) -> int:
        """Rises with every change of a mapping or of a page's content."""
        return self._field("epoch")

    @property
    def merge_any(self) -> bool:
        """PR_GET_MEMORY_MERGE."""
        return bool(self._field("flags") & MmFlag.MERGE_ANY)

    @property
    def thp_disabled(self) -> bool:
        """PR_GET_THP_DISABLE."""
        return bool(self._field("flags") & MmFlag.THP_DISABLED)

    @property
    def vmas(self) -> list[Vma]:
        """Its areas, ascending."""
        return [Vma._door(self, v) for v in _doors.vma_numbers(self._world, self._at())]

    def vma_by_number(self, number: int) -> Vma:
        """The door to a vma record of this address space.

        Raises
        ------
        LookupError
            The record is no area of this address space.
        """
        return Vma(self, number)

    def _area(self, number: int) -> Vma:
        return Vma._door(self, number)

    def find_vma(self, addr: int) -> Vma | None:
        """Find the area that contains `addr` (bytes), or None.

        Models: vma_lookup() of Linux 6.18. Differs: nothing known.
        """
        addr = as_int(addr, "addr")
        v = _doors.find_vma(self._world, self._at(), addr)
        return Vma._door(self, v) if v and int(self._world.arrays["vmas"]["start"][v]) <= addr else None

    def maps(self) -> str:
        """Show what /proc/PID/maps shows.

        Models: /proc/PID/maps of Linux 6.18. Differs: objects have numbers instead of files, devices and inodes.
        """
        out = []
        for v in self.vmas:
            line = f"{v.vm_start:08x}-{v.vm_end:08x} {v.perms} "
            if v.backing:
                name = "/dev/zero (deleted)" if v.vm_flags & Vm.SHARED else f"/object/{v.backing}"
                line += f"{v.vm_pgoff * PAGE_SIZE:08x} 00:01 {v.backing}"
                out.append(f"{line} ".ljust(73) + name)
            else:
                out.append(f"{line}00000000 00:00 0 ")
        return "".join(f"{line}\n" for line in out)

    @property
    def rmap_items(self) -> list[RmapItem]:
        """Its rmap_items, ascending by address (also of an address space that exited and waits to be cleaned)."""
        if self._life.gone:
            # Once ksmd has cleaned up behind it, the record is free or somebody else's.
            mine = self.host._lives.get(self.index) is self._life
            if not mine or not self.host._mm_flags(self.index) & MmFlag.EXITING:
                return []
        return list(rmap_items(self._world, self.index))

    def ksm_stat(self) -> dict[str, int]:
        """What /proc/PID/ksm_stat shows.

        Models: ksm_stat of the Host's kernel. Differs: that of 6.1 has ksm_merging_pages, which is a file of its own there.
        """
        counts, stats = self._ksm_counts(), self.host.kernel.stats
        return counts if stats == STATS else {f"ksm_{name}": counts[f"ksm_{name}"] for name in stats}

    def _ksm_counts(self) -> dict[str, int]:
        """The same, whatever the kernel shows of it."""
        r = self._world.arrays["mms"][self._at()]
        items, zero, merging = int(r["nr_rmap_items"]), int(r["nr_zero"]), int(r["nr_merging"])
        return {
            "ksm_rmap_items": items,
            "ksm_zero_pages": zero,
            "ksm_merging_pages": merging,
            "ksm_process_profit": (merging + zero) * PAGE_SIZE - items * RMAP_ITEM_SIZE,
            "ksm_merge_any": int(self.merge_any),
            "ksm_mergeable": int(any(v.vm_flags & _MERGEABLE for v in self.vmas)),
        }

    # ---------------------------------------------------------- mapping

    def mmap(
        self,
        length: int,
        addr: int | None = None,
        prot: str = "rw",
        *,
        shared: bool = False,
        kind: str = "anon",
        noreserve: bool = False,
        locked: bool = False,
        populate: bool = False,
        backing: int | None = None,
        offset: int = 0,
        flags: int = 0,
        pfn: int = 0,
    ) -> int:
        """Map memory.

        Parameters
        ----------
        length : int
            Bytes, rounded up to pages (2 MiB for hugetlb).
        addr : int, optional
            Place, page aligned; what is mapped there goes (MAP_FIXED). None: the highest free place that fits.
        prot : str
            "none", or of "r", "w", "x".
        shared : bool
            MAP_SHARED.
        kind : str
            "anon", "file", "hugetlb", "pfnmap", "io", "dontexpand", "mixedmap", "droppable" or "dax".
        noreserve : bool
            MAP_NORESERVE.
        locked : bool
            MAP_LOCKED: it is brought into memory and stays there. What can't be brought in is passed over.
        populate : bool
            MAP_POPULATE: it is brought into memory as for `locked`.
        backing : int, optional
            Object to map (`Host.new_object`). None: a fresh one where the kind needs one.
        offset : int
            Bytes into the object.
        flags : int
            Further `layout.Vm` bits; with Vm.GROWSDOWN it is a stack, which loads and stores below it grow down.
        pfn : int
            First raw frame of a pfnmap mapping, 0: nothing is mapped in it.

        Returns
        -------
        int
            Start address, bytes.

        Raises
        ------
        OSError
            EINVAL, ENOMEM.
        ValueError, TypeError
            A kind, prot or flags that there are not.

        Models: mmap(2) of Linux 6.18 with the top-down layout. Differs: nothing is randomised; no file permissions.
        """
        self._at()
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind {shown(kind)}: must be one of {', '.join(KINDS)}")
        access = _prot(prot)
        shared, noreserve = as_flag(shared, "shared"), as_flag(noreserve, "noreserve")
        locked, populate = as_flag(locked, "locked"), as_flag(populate, "populate")
        size = PMD_SIZE if kind == "hugetlb" else PAGE_SIZE
        length, offset, flags = as_int(length, "length"), as_int(offset, "offset"), as_int(flags, "flags")
        addr = None if addr is None else as_int(addr, "addr")
        if flags & ~_FURTHER:
            raise ValueError(f"flags {flags:#x}: only bits of {_FURTHER:#x} may be given, the rest follows from the kind")
        if length == 0 or offset % size or (addr is not None and addr % size):
            raise refuse(errno.EINVAL, f"mmap of {length} bytes at {addr}, offset {offset}")
        if kind == "droppable" and shared:
            raise refuse(errno.EINVAL, "droppable memory can't be shared")
        if flags & _GROWSDOWN and (shared or kind != "anon"):
            raise refuse(errno.EINVAL, "a stack is private anonymous memory")
        length = up(length, size)
        if length > self.task_size:
            raise refuse(errno.ENOMEM, f"no place for {length:#x} bytes")
        pfn = as_int(pfn, "pfn", 0, max(0, _MOST_PFN + 1 - length // PAGE_SIZE))
        if backing is not None:
            backing = self.host.check_object(backing)
        vm = access | int(KINDS[kind]) | flags | (_SHARED if shared else 0) | (_NORESERVE if noreserve else 0)
        vm |= _LOCKED if locked else 0
        with self._world:
            if addr is None:
                align = PMD_SIZE if length % PMD_SIZE == 0 and (kind in ("anon", "droppable") and not shared) else size
                start = _doors.place(self._world, self.index, length, align)
            else:
                start = addr
            if not start and addr is None or start + length > self.task_size or offset + length > 1 << 47:
                raise refuse(errno.ENOMEM, f"no place for {length:#x} bytes at {start:#x}")
            self._map(start, length, vm, kind, backing, offset, populate)
            if kind == "pfnmap" and pfn:
                code = _doors.map_raw(self._world, self.index, start, length // PAGE_SIZE, pfn, vm)
                if code < 0:
                    _doors.munmap(self._world, self.index, start, start + length)
                    self._check(code, f"mmap of {length:#x} bytes at {start:#x}")
        return start

    def _map(self, start: int, length: int, vm: int, kind: str, backing: int | None, offset: int, populate: bool) -> None:
        """Map an object, a fresh one where the kind needs one, or none."""
        mine = backing is None and (kind in ("file", "dax") or bool(vm & _SHARED) and kind not in ("pfnmap", "io"))
        if mine:
            backing = self.host.new_object(offset + length, device=kind == "dax")
        shift = 21 if kind == "hugetlb" else 12
        pgoff = offset // PAGE_SIZE if backing else start // PAGE_SIZE
        end = start + length
        try:
            code = _heap.mmap(self._world, self.index, start, end, vm, backing or 0, pgoff, shift, populate)
            self._check(code, f"mmap of {length:#x} bytes at {start:#x}")
        finally:
            if mine and backing:
                _doors.backing_done(self._world, backing)

    def munmap(self, addr: int, length: int) -> None:
        """Unmap [addr, addr + length); holes in it are fine.

        Models: munmap(2) of Linux 6.18. Differs: nothing known.
        """
        start, end = self._user_range(addr, length, "munmap")
        self._check(_doors.munmap(self._world, self.index, start, end), f"munmap {start:#x}-{end:#x}")

    def mprotect(self, addr: int, length: int, prot: str) -> None:
        """Change permissions; at a hole it stops with ENOMEM, what lies before it is done.

        Models: mprotect(2) of Linux 6.18. Differs: no protection keys.
        """
        access = _prot(prot)
        start, end = self._range(addr, length, "mprotect", errno.ENOMEM)
        code = _doors.mprotect(self._world, self.index, start, end, access)
        self._check(code, f"mprotect {start:#x}-{end:#x} {prot}")

    def madvise(self, addr: int, length: int, advice: str | int) -> None:
        """Give advice on [addr, addr + length).

        Parameters
        ----------
        addr, length : int
            Bytes; the start page aligned.
        advice : str or int
            A name of `ADVICE` or a number of madvise(2).

        Raises
        ------
        OSError
            EINVAL; ENOMEM where the range has holes: what is mapped has been done all the same. EDEADLK where the kernel
            would try for ever: guard_install over pages of a file that userfaultfd write-protected.
        ValueError
            A name that there is not.

        Models: madvise(2) of Linux 6.18. Differs: willneed reads no files; EDEADLK.
        """
        number = advice_number(advice)
        start, end = self._range(addr, length, f"madvise {advice}")
        if number not in ADVICE_NUMBERS:
            raise refuse(errno.EINVAL, f"advice {advice!r}")
        code = _doors.madvise(self._world, self.index, start, end, number)
        self._check(code, f"madvise {advice} {start:#x}-{end:#x}")

    def mremap(
        self, addr: int, old: int, new: int, new_addr: int | None = None, *, maymove: bool = True, dontunmap: bool = False
    ) -> int:
        """Grow, shrink or move memory.

        Parameters
        ----------
        addr, old : int
            Bytes: what there is.
        new : int
            Bytes: its new length.
        new_addr : int, optional
            Move it there (MREMAP_FIXED); what is mapped there goes. With new == old the range may hold several areas
            and gaps.
        maymove : bool
            MREMAP_MAYMOVE.
        dontunmap : bool
            MREMAP_DONTUNMAP: only the pages move, the areas stay where they were, empty, marks and all; new == old.

        Returns
        -------
        int
            Its address now.

        Models: mremap(2) of Linux 6.18. Differs: nothing known.
        """
        at = self._at()
        # Lengths are rounded in 64 bits: the last 4095 wrap to nothing.
        addr, old, new = as_int(addr, "addr"), up(as_int(old, "old")) & MAX_U64, up(as_int(new, "new")) & MAX_U64
        new_addr = None if new_addr is None else as_int(new_addr, "new_addr")
        maymove, dontunmap = as_flag(maymove, "maymove"), as_flag(dontunmap, "dontunmap")
        code = _doors.mremap(self._world, at, addr, old, new, maymove, new_addr, dontunmap)
        where = "" if new_addr is None else f", to {new_addr:#x}"
        return self._check(code, f"mremap of {addr:#x}, {old:#x} to {new:#x} bytes{where}")

    # ---------------------------------------------------------- life

    def fork(self) -> Mm:
        """Make a child with a copy of this address space.

        Models: dup_mmap() of Linux 6.18. Differs: pages with plain pins are shared as well.
        """
        with self._world:
            return self.host._adopt(self._check(_doors.mm_fork(self._world, self._at()), "fork"))

    def prctl_merge(self, on: bool) -> None:
        """PR_SET_MEMORY_MERGE: mark all areas, present and future, as mergeable; off unmerges every one.

        Models: prctl(PR_SET_MEMORY_MERGE) of Linux 6.18. Differs: nothing known.
        """
        self._check(_doors.prctl_merge(self._world, self._at(), as_flag(on, "on")), f"prctl_merge {on}")

    def thp_disable(self, on: bool) -> None:
        """PR_SET_THP_DISABLE: no huge pages for this address space.

        Models: prctl(PR_SET_THP_DISABLE) of Linux 6.18. Differs: without the flags of 6.18.
        """
        on = as_flag(on, "on")
        with self._world:
            flags, at = self._world.arrays["mms"]["flags"], self._at()
            flags[at] = flags[at] | MmFlag.THP_DISABLED if on else flags[at] & ~np.uint32(MmFlag.THP_DISABLED)

    def __repr__(self) -> str:
        return f"<Mm {self.index}, {'exited' if self._life.gone else counted(len(self.vmas), 'area')}>"
