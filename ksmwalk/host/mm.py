"""Address spaces: system calls and faults of a modelled process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from ..errors import check
from ..gate import MAX_U64, as_array, as_flag, as_int, as_row, shown
from ..ksm.rmap import RmapItem, rmap_items
from ..layout import PAGE_SIZE, PMD_SIZE, MmFlag, Vm
from ..layout.madvise import ADVICE, Madvise
from ..tables.tables import PageTables
from . import _doors
from .vma import Vma

if TYPE_CHECKING:
    from .host import Host

#: advice that Mm takes: nothing can be removed of private memory, and shared memory has no holes here
_ADVICE_NUMBERS = frozenset(ADVICE.values()) - {Madvise.REMOVE}

# Plain integers: arithmetic on enum members takes a microsecond.
_MAY = int(Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC)
_READ, _WRITE, _EXEC, _MERGEABLE = int(Vm.READ), int(Vm.WRITE), int(Vm.EXEC), int(Vm.MERGEABLE)
_SHARED = int(Vm.SHARED | Vm.MAYSHARE)
_NORESERVE, _ACCOUNT, _LOCKED = int(Vm.NORESERVE), int(Vm.ACCOUNT), int(Vm.LOCKED)
_NOT_ACCOUNTED = int(Vm.NORESERVE | Vm.SHARED | Vm.HUGETLB)
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
_FORCE, _KEEP = 1, 2  # FAULT_* of memory/_fault.pxd
_AT_ONCE = 1 << 17  # scattered addresses in one compiled call: between two, Ctrl-C is heard
EFAULT = -errno.EFAULT
#: frames that an entry can name
_MOST_PFN = (1 << 40) - 1
#: what `mmap` takes as further flags: what MAP_* flags and madvise could have set; the rest is said by prot, shared, kind
_FURTHER = int(
    Vm.LOCKED | Vm.IO | Vm.SEQ_READ | Vm.RAND_READ | Vm.DONTCOPY | Vm.DONTEXPAND | Vm.ACCOUNT | Vm.NORESERVE
    | Vm.WIPEONFORK | Vm.DONTDUMP | Vm.HUGEPAGE | Vm.NOHUGEPAGE
)  # fmt: skip


def _up(n: int, size: int = PAGE_SIZE) -> int:
    return (n + size - 1) & -size


def _prot(prot: str) -> int:
    if not isinstance(prot, str):
        raise TypeError(f'prot {shown(prot)}: must be a string like "rw" or "none"')
    if prot == "none":
        return 0
    if set(prot) - set("rwx-"):
        raise ValueError(f'prot {shown(prot)}: must be made of "r", "w", "x", or be "none"')
    return (_READ if "r" in prot else 0) | (_WRITE if "w" in prot else 0) | (_EXEC if "x" in prot else 0)


def _refuse(code: int, what: str) -> OSError:
    return OSError(code, f"{os.strerror(code)}: {what}")


class Mm:
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
    Differs: no swap, no khugepaged, no limits but
    vm.max_map_count; a store to a page under userfaultfd write protection fails instead of waiting; the
    exclusive mark of anonymous pages is deduced from their mappings, pins don't count in it.
    """

    host: Host
    index: int
    _world: _core.World
    _life: _core.Life
    _tables: PageTables | None

    def __new__(cls, host: Host, index: int) -> Mm:
        if not hasattr(host, "mm_by_number"):
            raise TypeError(f"host {shown(host)}: must be a Host")
        return host.mm_by_number(index)

    @classmethod
    def _door(cls, host: Host, index: int, life: _core.Life) -> Mm:
        self = object.__new__(cls)
        self.host, self.index, self._world, self._life, self._tables = host, index, host.world, life, None
        return self

    # ---------------------------------------------------------- looking

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
    def tables(self) -> PageTables:
        """Its page tables."""
        at = self._at()
        if self._tables is None:
            self._tables = PageTables.of_world(self._world, at, self.host.levels, life=self._life)
        return self._tables

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
    def nid(self) -> int:
        """NUMA node that new pages come from while it has any; may be set."""
        return self._field("nid")

    @nid.setter
    def nid(self, node: int) -> None:
        self._world.arrays["mms"]["nid"][self._at()] = as_int(node, "nid", 0, self.host.nr_nodes - 1)

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

        Models: ksm_stat of Linux 6.18. Differs: nothing known.
        """
        r = self._world.arrays["mms"][self._at()]
        items, zero, merging = int(r["nr_rmap_items"]), int(r["nr_zero"]), int(r["nr_merging"])
        return {
            "ksm_rmap_items": items,
            "ksm_zero_pages": zero,
            "ksm_merging_pages": merging,
            "ksm_process_profit": (merging + zero) * PAGE_SIZE - items * 64,
            "ksm_merge_any": int(self.merge_any),
            "ksm_mergeable": int(any(v.vm_flags & _MERGEABLE for v in self.vmas)),
        }

    # ---------------------------------------------------------- mapping

    def _range(self, addr: int, length: int, what: str, wrapped: int = errno.EINVAL) -> tuple[int, int]:
        """[start, end) of a call's range, page aligned; `wrapped`: errno where it leaves 64 bits."""
        self._at()
        addr, length = as_int(addr, "addr"), as_int(length, "length")
        end = addr + _up(length)
        if addr % PAGE_SIZE or end > MAX_U64:
            code = errno.EINVAL if addr % PAGE_SIZE else wrapped
            raise _refuse(code, f"{what} {addr:#x}, length {length:#x}")
        return addr, end

    def _user_range(self, addr: int, length: int, what: str) -> tuple[int, int]:
        """As `_range`, not empty and within user memory."""
        start, end = self._range(addr, length, what)
        if start == end or end > self.task_size:
            raise _refuse(errno.EINVAL, f"{what} {start:#x}-{end:#x}: empty, or beyond {self.task_size:#x}")
        return start, end

    def _locked_range(self, addr: int, length: int, what: str) -> tuple[int, int]:
        """The pages that [addr, addr + length) touches, as mlock rounds them: a length that wraps is 0."""
        self._at()
        addr, length = as_int(addr, "addr"), as_int(length, "length")
        start = addr & -PAGE_SIZE
        end = start + (_up(length + (addr - start)) & MAX_U64)
        if end > MAX_U64:
            raise _refuse(errno.EINVAL, f"{what} {addr:#x}, length {length:#x}")
        return start, end

    def _check(self, code: int, what: str) -> int:
        return check(code, what, self._world.arrays["bad"])

    def mmap(
        self,
        length: int,
        addr: int | None = None,
        prot: str = "rw",
        *,
        shared: bool = False,
        kind: str = "anon",
        noreserve: bool = False,
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
        backing : int, optional
            Object to map (`Host.new_object`). None: a fresh one where the kind needs one.
        offset : int
            Bytes into the object.
        flags : int
            Further `layout.Vm` bits.
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
        size = PMD_SIZE if kind == "hugetlb" else PAGE_SIZE
        length, offset, flags = as_int(length, "length"), as_int(offset, "offset"), as_int(flags, "flags")
        addr = None if addr is None else as_int(addr, "addr")
        if flags & ~_FURTHER:
            raise ValueError(f"flags {flags:#x}: only bits of {_FURTHER:#x} may be given, the rest follows from the kind")
        if length == 0 or offset % size or (addr is not None and addr % size):
            raise _refuse(errno.EINVAL, f"mmap of {length} bytes at {addr}, offset {offset}")
        if kind == "droppable" and shared:
            raise _refuse(errno.EINVAL, "droppable memory can't be shared")
        length = _up(length, size)
        pfn = as_int(pfn, "pfn", 0, max(0, _MOST_PFN + 1 - length // PAGE_SIZE))
        if backing is not None:
            backing = self.host.check_object(backing)
        vm = access | _MAY | int(KINDS[kind]) | flags
        if shared:
            vm |= _SHARED
        if noreserve:
            vm |= _NORESERVE
        if access & _WRITE and not vm & _NOT_ACCOUNTED:
            vm |= _ACCOUNT
        with self._world:
            return self._place(length, addr, size, vm, kind, shared, backing, offset, pfn)

    def _place(self, length, addr, size, vm, kind, shared, backing, offset, pfn) -> int:
        """Find the place, or clear it, and map there."""
        if addr is None:
            align = PMD_SIZE if length % PMD_SIZE == 0 and (kind in ("anon", "droppable") and not shared) else size
            start = _doors.place(self._world, self.index, length, align)
        else:
            start = addr
        if not start and addr is None or start + length > self.task_size or offset + length > 1 << 47:
            raise _refuse(errno.ENOMEM, f"no place for {length:#x} bytes at {start:#x}")
        if addr is not None:
            self._check(_doors.munmap(self._world, self.index, start, start + length), f"mmap at {start:#x}")
        return self._map(start, length, vm, kind, shared, backing, offset, pfn)

    def _map(self, start, length, vm, kind, shared, backing, offset, pfn) -> int:
        mine = backing is None and (kind in ("file", "dax") or shared and kind not in ("pfnmap", "io"))
        if mine:
            backing = self.host.new_object(offset + length, device=kind == "dax")
        shift = 21 if kind == "hugetlb" else 12
        pgoff = offset // PAGE_SIZE if backing else start // PAGE_SIZE
        what = f"mmap of {length:#x} bytes at {start:#x}"
        try:
            self._check(_doors.mmap(self._world, self.index, start, length, vm, backing or 0, pgoff, shift), what)
        finally:
            if mine:
                _doors.backing_done(self._world, backing)
        if kind == "pfnmap" and pfn:
            code = _doors.map_raw(self._world, self.index, start, length // PAGE_SIZE, pfn, vm)
            if code < 0:
                _doors.munmap(self._world, self.index, start, start + length)
                self._check(code, what)
        if vm & _LOCKED:
            self.mlock(start, length)
        return start

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
            EINVAL; ENOMEM where the range has holes: what is mapped has been done all the same.
        ValueError
            A name that there is not.

        Models: madvise(2) of Linux 6.18. Differs: cold, pageout and willneed only check their arguments.
        """
        if isinstance(advice, str):
            if advice not in ADVICE:
                raise ValueError(f"advice {shown(advice)}: must be one of {', '.join(ADVICE)}")
            number = ADVICE[advice]
        else:
            number = as_int(advice, "advice", -1 << 31, (1 << 31) - 1)
        start, end = self._range(addr, length, f"madvise {advice}")
        if number not in _ADVICE_NUMBERS:
            raise _refuse(errno.EINVAL, f"advice {advice!r}")
        code = _doors.madvise(self._world, self.index, start, end, number)
        self._check(code, f"madvise {advice} {start:#x}-{end:#x}")

    def mremap(self, addr: int, old: int, new: int, new_addr: int | None = None, *, maymove: bool = True) -> int:
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

        Returns
        -------
        int
            Its address now.

        Models: mremap(2) of Linux 6.18. Differs: no MREMAP_DONTUNMAP.
        """
        at = self._at()
        # Lengths are rounded in 64 bits: the last 4095 wrap to nothing.
        addr, old, new = as_int(addr, "addr"), _up(as_int(old, "old")) & MAX_U64, _up(as_int(new, "new")) & MAX_U64
        new_addr = None if new_addr is None else as_int(new_addr, "new_addr")
        code = _doors.mremap(self._world, at, addr, old, new, as_flag(maymove, "maymove"), new_addr)
        where = "" if new_addr is None else f", to {new_addr:#x}"
        return self._check(code, f"mremap of {addr:#x}, {old:#x} to {new:#x} bytes{where}")

    # ---------------------------------------------------------- life

    def fork(self) -> Mm:
        """Make a child with a copy of this address space.

        Models: dup_mmap() of Linux 6.18.
        Differs: the child always gets anon_vmas of its own; pinned pages are shared as well.
        """
        with self._world:
            return self.host._adopt(self._check(_doors.mm_fork(self._world, self._at()), "fork"))

    def exec(self) -> Mm:
        """Replace this address space by an empty one; merge_any stays.

        Returns
        -------
        Mm
            Itself, with another `index`.

        Models: exec_mmap() of Linux 6.18. Differs: the new address space is empty; map what the program would.
        """
        with self._world:
            new = self._check(_doors.mm_exec(self._world, self._at()), "exec")
            self.host._moved(self, new)
            self.index = new
            self._tables = None
        return self

    def exit(self) -> None:
        """Give up everything; ksmd cleans up behind when it comes by.

        Models: __mmput() of Linux 6.18. Differs: nothing known.
        """
        with self._world:
            self._check(_doors.mm_exit(self._world, self._at()), "exit")
            self._life.end()

    def prctl_merge(self, on: bool) -> None:
        """PR_SET_MEMORY_MERGE: mark all areas, present and future, as mergeable; off unmerges every one.

        Models: prctl(PR_SET_MEMORY_MERGE) of Linux 6.18. Differs: nothing known.
        """
        self._check(_doors.prctl_merge(self._world, self._at(), as_flag(on, "on")), f"prctl_merge {on}")

    def thp_disable(self, on: bool) -> None:
        """PR_SET_THP_DISABLE: no huge pages for this address space.

        Models: prctl(PR_SET_THP_DISABLE) of Linux 6.18. Differs: without the flags of 6.18.
        """
        flags = self._world.arrays["mms"]["flags"]
        at = self._at()
        flags[at] = flags[at] | MmFlag.THP_DISABLED if as_flag(on, "on") else flags[at] & ~np.uint32(MmFlag.THP_DISABLED)

    thpdisable = thp_disable

    def mlock(self, addr: int, length: int) -> None:
        """Lock memory, faulting it in; ENOMEM where there is none.

        Models: mlock(2) of Linux 6.18. Differs: no limit on locked memory.
        """
        start, end = self._locked_range(addr, length, "mlock")
        self._check(_doors.mlock(self._world, self.index, start, end, True), f"mlock {start:#x}-{end:#x}")

    def munlock(self, addr: int, length: int) -> None:
        """Unlock memory.

        Models: munlock(2) of Linux 6.18. Differs: nothing known.
        """
        start, end = self._locked_range(addr, length, "munlock")
        self._check(_doors.mlock(self._world, self.index, start, end, False), f"munlock {start:#x}-{end:#x}")

    def uffd_wp(self, addr: int, length: int, on: bool = True) -> None:
        """Register the range with a userfaultfd and write-protect its present pages (off: let stores through again).

        Models: UFFDIO_REGISTER and UFFDIO_WRITEPROTECT of Linux 6.18.
        Differs: one userfaultfd per address space, no markers in absent pages, a store fails with EFAULT.
        """
        on = as_flag(on, "on")
        start, end = self._user_range(addr, length, "uffd_wp")
        self._check(_doors.uffd_wp(self._world, self.index, start, end, on), f"uffd_wp {start:#x}-{end:#x}")

    # ---------------------------------------------------------- contents

    def _pages(self, addr: int) -> int:
        if type(addr) is not int or not 0 <= addr <= MAX_U64:
            addr = as_int(addr, "addr")
        if addr % PAGE_SIZE:
            raise ValueError(f"addr {addr:#x}: must be page aligned")
        self._at()
        return addr

    @contextmanager
    def _on_node(self, nid: int | None):
        """With new pages from a node for the time being."""
        with self._world:
            before = self.nid
            if nid is not None:
                self.nid = nid
            try:
                yield
            finally:
                if nid is not None:
                    self._world.arrays["mms"]["nid"][self.index] = before

    def write(self, addr: int, keys, *, nid: int | None = None) -> None:
        """Store contents into a page, or into consecutive pages at array speed, with all faults that takes.

        Parameters
        ----------
        addr : int
            Bytes, page aligned.
        keys : int, or array of uint64
            Content of the page, or of each of the pages from `addr` on.
        nid : int, optional
            NUMA node for new pages, instead of the address space's.

        Raises
        ------
        OSError
            EFAULT: no area there, or none that may be written to; pages before it are written.
        ArenaFullError
            No frame or no table page left.

        Models: stores and their faults in Linux 6.18. Differs: a store replaces the whole content of a page.
        """
        addr = self._pages(addr)
        if nid is not None:
            with self._on_node(nid):
                self.write(addr, keys)
            return
        if type(keys) is int and 0 <= keys <= MAX_U64:
            code = _doors.write_one(self._world, self.index, addr, keys, 0)
        elif isinstance(keys, np.ndarray) and keys.ndim or isinstance(keys, (list, tuple)):
            keys = as_array(keys, "keys")
            self._store(addr, len(keys), keys, 0)
            return
        else:
            code = _doors.write_one(self._world, self.index, addr, as_int(keys, "keys"), 0)
        if code < 0:
            self._check(code, f"write at {addr:#x}")

    def _store(self, addr: int, n: int, keys, mode: int) -> None:
        if addr + n * PAGE_SIZE > MAX_U64:
            raise _refuse(errno.EFAULT, f"{n} pages from {addr:#x} on: beyond all memory")
        done, code = _doors.write(self._world, self._at(), addr, n, keys, mode)
        if code < 0:
            self._check(code, f"write at {addr + done * PAGE_SIZE:#x} ({done} of {n} pages done)")

    def poke(self, addr: int, keys) -> None:
        """Store as a debugger does through /proc/PID/mem: past the permissions of private areas.

        Models: FOLL_FORCE of Linux 6.18. Differs: nothing known.
        """
        addr = self._pages(addr)
        if not isinstance(keys, (list, tuple)) and not (isinstance(keys, np.ndarray) and keys.ndim):
            keys = [as_int(keys, "keys")]
        keys = as_array(keys, "keys")
        self._store(addr, len(keys), keys, _FORCE)

    def populate(self, addr: int, length: int, keys=None, *, nid: int | None = None) -> None:
        """Fault in a range for writing, at array speed; contents stay, or become `keys`.

        Parameters
        ----------
        addr, length : int
            Bytes, page aligned.
        keys : array of uint64, optional
            Content of each page. Without it new pages are empty and old ones stay as they are.
        nid : int, optional
            NUMA node for new pages, instead of the address space's.

        Raises
        ------
        OSError, ArenaFullError
            As `write`.

        Models: MAP_POPULATE and MADV_POPULATE_WRITE of Linux 6.18. Differs: nothing known.
        """
        start, end = self._range(addr, length, "populate")
        n = (end - start) // PAGE_SIZE
        if keys is not None:
            keys = as_array(keys, "keys")
            if len(keys) != n:
                raise ValueError(f"{len(keys)} keys for {n} pages")
        if nid is None:
            self._store(start, n, keys, 0 if keys is not None else _KEEP)
            return
        with self._on_node(nid):
            self._store(start, n, keys, 0 if keys is not None else _KEEP)

    def read(self, addr: int, n: int | None = None):
        """Load from a page or from `n` consecutive pages, with the faults that takes.

        Returns
        -------
        int, or ndarray of uint64 of shape (n,)
            Contents.

        Models: loads and their faults in Linux 6.18. Differs: nothing known.
        """
        if n is None:
            addr, count = as_int(addr, "addr") & -PAGE_SIZE, 1
            at = self._at()
        else:
            addr, count = self._run(addr, n)
            at = self.index
            if addr + count * PAGE_SIZE > self.task_size:
                raise _refuse(errno.EFAULT, f"read of {count} pages from {addr:#x} on: beyond user memory")
        out = np.empty(count, np.uint64)
        done, code = _doors.read(self._world, at, addr, count, out, 0)
        if code < 0:
            self._check(code, f"read at {addr + done * PAGE_SIZE:#x} ({done} of {count} pages done)")
        return int(out[0]) if n is None else out

    def write_at(self, addrs: ArrayLike, keys: ArrayLike) -> None:
        """Store contents into pages anywhere, in the order given, at array speed, with all faults that takes.

        Parameters
        ----------
        addrs : array of int, shape (n,)
            Bytes, page aligned; an address may come again.
        keys : int, or array of uint64 of shape (n,)
            Content of all of the pages, or of each.

        Raises
        ------
        OSError, ArenaFullError
            As `write`, with the index and the address at which it stopped; the pages before it are written.
        ValueError, TypeError
            An address that is not page aligned, with its index; no integers; another number of keys. Nothing is
            written.

        Models: stores and their faults in Linux 6.18. Differs: a store replaces the whole content of a page.
        """
        at = as_array(addrs, "addrs")
        odd = np.flatnonzero(at % np.uint64(PAGE_SIZE))
        if len(odd):
            raise ValueError(f"addrs[{odd[0]}] {int(at[odd[0]]):#x}: must be page aligned")
        new, one = as_row(keys, "keys")
        if not one and len(new) != len(at):
            raise ValueError(f"{len(new)} keys for {len(at)} addresses")
        self._at_once("write_at", at, lambda part: _doors.write_at(
            self._world, self._at(), at[part], new if one else new[part]
        ))  # fmt: skip

    def read_at(self, addrs: ArrayLike) -> np.ndarray:
        """Load from pages anywhere, in the order given, at array speed, with the faults that takes.

        Parameters
        ----------
        addrs : array of int, shape (n,)
            Bytes; each stands for the page it lies in.

        Returns
        -------
        ndarray of uint64, shape (n,)
            Contents.

        Raises
        ------
        OSError, ArenaFullError
            As `read`, with the index and the address at which it stopped.
        ValueError, TypeError
            No integers, or negative ones, with the index.

        Models: loads and their faults in Linux 6.18. Differs: nothing known.
        """
        at = as_array(addrs, "addrs")
        out = np.empty(len(at), np.uint64)
        self._at_once("read_at", at, lambda part: _doors.read_at(self._world, self._at(), at[part], out[part]))
        return out

    def _at_once(self, what: str, addrs: np.ndarray, call: Callable[[slice], tuple[int, int]]) -> None:
        """Part after part of many addresses, and where it stopped."""
        self._at()
        with self._world:
            for i in range(0, len(addrs), _AT_ONCE):
                done, code = call(slice(i, i + _AT_ONCE))
                if code < 0:
                    at = i + done
                    self._check(code, f"{what} at addrs[{at}] {int(addrs[at]):#x} ({at} of {len(addrs)} pages done)")

    def _run(self, addr: int, n: int) -> tuple[int, int]:
        """A run of pages within what page tables can map."""
        addr = self._pages(addr)
        if type(n) is not int or n < 0 or addr + n * PAGE_SIZE > 1 << 57:
            n = as_int(n, "n", 0, max(0, ((1 << 57) - addr) // PAGE_SIZE))
        return addr, n

    def read_keys(self, addr: int, n: int) -> np.ndarray:
        """Look at the contents of `n` pages without touching them: uint64, 0 where nothing is present.

        Models: nothing of Linux, it only looks. Differs: nothing known.
        """
        addr, n = self._run(addr, n)
        out = np.empty(n, np.uint64)
        _doors.look(self._world, self.index, addr, n, out, None)
        return out

    def read_pfns(self, addr: int, n: int) -> np.ndarray:
        """Look up the frames of `n` pages without touching them: int64, -1 where nothing is present.

        Models: frame numbers of /proc/PID/pagemap of Linux 6.18. Differs: nothing known.
        """
        addr, n = self._run(addr, n)
        out = np.empty(n, np.int64)
        _doors.look(self._world, self.index, addr, n, None, out)
        return out

    def __repr__(self) -> str:
        return f"<Mm {self.index}, {'exited' if self._life.gone else f'{len(self.vmas)} areas'}>"
