"""mremap: which of its many cases a call is."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ..errors import check
from ..layout import PAGE_SIZE, PMD_SIZE, Vm
from . import _doors

if TYPE_CHECKING:
    from .mm import Mm


def _fail(code: int, mm: Mm, addr: int, why: str) -> OSError:
    return OSError(code, f"{os.strerror(code)}: mremap of {addr:#x}: {why}")


def mremap(mm: Mm, addr: int, old: int, new: int, new_addr: int | None, maymove: bool) -> int:
    """See Mm.mremap."""
    from .mm import _up

    at = mm._at()
    old_len, new_len = _up(int(old)), _up(int(new))
    if addr % PAGE_SIZE or addr < 0 or old < 0 or new <= 0:
        raise _fail(errno.EINVAL, mm, addr, f"from {old:#x} to {new:#x} bytes")
    if new_addr is not None:
        if not maymove or new_addr % PAGE_SIZE or new_addr < 0 or new_addr + new_len > mm.task_size:
            raise _fail(errno.EINVAL, mm, addr, f"to {new_addr:#x}")
        if addr < new_addr + new_len and new_addr < addr + old_len:
            raise _fail(errno.EINVAL, mm, addr, f"{new_addr:#x} overlaps")
    if new_len > mm.task_size:
        raise _fail(errno.EINVAL, mm, addr, f"{new_len:#x} bytes")
    vma = mm.find_vma(addr)
    if vma is None:
        raise _fail(errno.EFAULT, mm, addr, "no area there")
    if vma.page_size > PAGE_SIZE:
        old_len, new_len = _up(old, PMD_SIZE), _up(new, PMD_SIZE)
        if addr % PMD_SIZE or (new_addr or 0) % PMD_SIZE or new_len > old_len:
            raise _fail(errno.EINVAL, mm, addr, "hugetlb memory, not aligned or to grow")

    world, what = mm._world, f"mremap of {addr:#x}"
    inside = addr + old_len <= vma.vm_end
    if old_len == 0 and not vma.vm_flags & Vm.SHARED:
        raise _fail(errno.EINVAL, mm, addr, "only shared memory can be mapped a second time")
    if (old_len == 0 or new_len > old_len) and vma.vm_flags & (Vm.DONTEXPAND | Vm.PFNMAP):
        raise _fail(errno.EINVAL if old_len == 0 else errno.EFAULT, mm, addr, "may not grow")
    if new_addr is None:
        if 0 < new_len <= old_len:
            if new_len < old_len:
                check(_doors.munmap(world, at, addr + new_len, addr + old_len), what)
            return addr
        if not inside:
            raise _fail(errno.EFAULT, mm, addr, f"{old_len:#x} bytes are not in one area")
        if old_len and addr + old_len == vma.vm_end and _free(mm, vma.vm_end, new_len - old_len):
            check(_doors.expand(world, vma.index, new_len - old_len), what)
            return addr
        if not maymove:
            raise _fail(errno.ENOMEM, mm, addr, f"no room for {new_len:#x} bytes")
        private = not vma.vm_flags & Vm.SHARED and vma.backing is None
        new_addr = mm._gap(new_len, PMD_SIZE if new_len % PMD_SIZE == 0 and private else PAGE_SIZE)
        if not new_addr:
            raise _fail(errno.ENOMEM, mm, addr, f"no place for {new_len:#x} bytes")
    else:
        if not inside and new_len > old_len or not inside and new_len < old_len and addr + new_len > vma.vm_end:
            raise _fail(errno.EFAULT, mm, addr, f"{old_len:#x} bytes are not in one area")
        if new_len != old_len:
            check(_doors.munmap(world, at, new_addr, new_addr + new_len), what)
        if new_len < old_len:
            check(_doors.munmap(world, at, addr + new_len, addr + old_len), what)
            old_len = new_len
    if old_len == 0:
        vma = mm.find_vma(addr)
        pgoff = vma.vm_pgoff + (addr - vma.vm_start) // PAGE_SIZE
        shift = vma.page_size.bit_length() - 1
        check(_doors.mmap(world, at, new_addr, new_len, vma.vm_flags, vma.backing or 0, pgoff, shift), what)
        return new_addr
    return _move(mm, addr, old_len, new_addr, new_len, what)


def _free(mm: Mm, start: int, length: int) -> bool:
    """Is nothing mapped in [start, start + length)?"""
    if start + length > mm.task_size:
        return False
    v = _doors.find_vma(mm._world, mm.index, start)
    return v == 0 or int(mm._world.arrays["vmas"]["start"][v]) >= start + length


def _move(mm: Mm, addr: int, old_len: int, new_addr: int, new_len: int, what: str) -> int:
    """Move what lies in [addr, addr + old_len), area by area; only a single area may grow. Gaps stay: where there is
    nothing to move, what is mapped at the new place stays too."""
    end = addr + old_len
    parts = [
        (max(v.vm_start, addr), min(v.vm_end, end)) for v in mm.vmas if v.vm_start < end and addr < v.vm_end
    ]
    for start, stop in parts:
        to = new_addr + (start - addr)
        length = new_len if new_len != old_len else stop - start
        check(_doors.munmap(mm._world, mm.index, to, to + length), what)
        check(_doors.move(mm._world, mm.index, start, stop - start, to, length), what)
        if new_len > old_len and int(mm.find_vma(to).vm_flags) & Vm.LOCKED:
            mm.mlock(to, length)
    return new_addr
