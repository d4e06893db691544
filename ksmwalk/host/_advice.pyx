"""madvise, mlock, populate and userfaultfd on address spaces, compiled.

The contract of every function stands in `_advice.pxd`; what Python calls is in `_doors.pyx`.
"""
from libc.errno cimport EAGAIN, EFAULT, EINVAL, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.memory._leaves cimport discard_range, guard_range, wp_range
from ksmwalk.memory._areas cimport (
    VM_ACCESS, VM_SPECIAL, anon_vma_prepare, set_flags, vma_compatible, vma_find, vma_find_from,
)
from ksmwalk.memory._folio cimport clean_range, collapse
from ksmwalk.memory._fault cimport FAULT_KEEP, read_range, write_range
from ksmwalk.ksm._items cimport slot_insert
from ksmwalk.ksm._unmerge cimport unmerge_range
from ksmwalk.layout._layout cimport *


cdef enum:
    MADV_NORMAL = 0
    MADV_RANDOM = 1
    MADV_SEQUENTIAL = 2
    MADV_WILLNEED = 3
    MADV_DONTNEED = 4
    MADV_FREE = 8
    MADV_DONTFORK = 10
    MADV_DOFORK = 11
    MADV_MERGEABLE = 12
    MADV_UNMERGEABLE = 13
    MADV_HUGEPAGE = 14
    MADV_NOHUGEPAGE = 15
    MADV_DONTDUMP = 16
    MADV_DODUMP = 17
    MADV_WIPEONFORK = 18
    MADV_KEEPONFORK = 19
    MADV_COLD = 20
    MADV_PAGEOUT = 21
    MADV_POPULATE_READ = 22
    MADV_POPULATE_WRITE = 23
    MADV_DONTNEED_LOCKED = 24
    MADV_COLLAPSE = 25
    MADV_GUARD_INSTALL = 102
    MADV_GUARD_REMOVE = 103


cdef int64_t advised_flags(kw_world *w, kw_vma *v, int advice, uint64_t *flags) noexcept nogil:
    """The flags that an advice about the future leaves; -EINVAL where it makes no sense."""
    cdef uint64_t f = v.flags
    if advice == MADV_NORMAL:
        f &= ~<uint64_t>(VM_RAND_READ | VM_SEQ_READ)
    elif advice == MADV_RANDOM:
        f = (f & ~<uint64_t>VM_SEQ_READ) | VM_RAND_READ
    elif advice == MADV_SEQUENTIAL:
        f = (f & ~<uint64_t>VM_RAND_READ) | VM_SEQ_READ
    elif advice == MADV_DONTFORK:
        f |= VM_DONTCOPY
    elif advice == MADV_DOFORK:
        if f & VM_SPECIAL:
            return -EINVAL
        f &= ~<uint64_t>VM_DONTCOPY
    elif advice == MADV_DONTDUMP:
        f |= VM_DONTDUMP
    elif advice == MADV_DODUMP:
        if (f & VM_SPECIAL and not f & VM_HUGETLB) or f & VM_DROPPABLE:
            return -EINVAL
        f &= ~<uint64_t>VM_DONTDUMP
    elif advice == MADV_WIPEONFORK:
        if v.backing or f & VM_SHARED:
            return -EINVAL
        f |= VM_WIPEONFORK
    elif advice == MADV_KEEPONFORK:
        if f & VM_DROPPABLE:
            return -EINVAL
        f &= ~<uint64_t>VM_WIPEONFORK
    elif advice == MADV_HUGEPAGE or advice == MADV_NOHUGEPAGE:
        if f & (VM_SPECIAL | VM_HUGETLB):
            return -EINVAL
        f &= ~<uint64_t>(VM_HUGEPAGE | VM_NOHUGEPAGE)
        f |= VM_HUGEPAGE if advice == MADV_HUGEPAGE else VM_NOHUGEPAGE
    else:
        return -EINVAL
    flags[0] = f
    return 0


cdef int advise_vma(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, int advice) noexcept nogil:
    cdef kw_vma *p = &w.vmas[v]
    cdef uint64_t flags = p.flags
    cdef int rc
    if p.page_shift > 12 and (start | end) & (KW_PMD_SIZE - 1):
        return -EINVAL
    if advice == MADV_MERGEABLE:
        if flags & VM_MERGEABLE or not vma_compatible(flags):
            return 0
        slot_insert(w, mm)
        return min(0, set_flags(w, v, start, end, flags | VM_MERGEABLE))
    if advice == MADV_UNMERGEABLE:
        if not flags & VM_MERGEABLE:
            return 0
        if p.anon_vma:
            rc = unmerge_range(w, mm, start, end, w.cursor.strategy)
            if rc < 0:
                return rc
        return min(0, set_flags(w, v, start, end, flags & ~VM_MERGEABLE))
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED:
        if flags & VM_PFNMAP or flags & VM_LOCKED and advice == MADV_DONTNEED:
            return -EINVAL
        return discard_range(w, mm, start, end)
    if advice == MADV_FREE:
        if p.backing or flags & (VM_SPECIAL | VM_HUGETLB | VM_LOCKED):
            return -EINVAL
        return clean_range(w, mm, start, end)
    if advice == MADV_WILLNEED:
        return 0
    if advice == MADV_COLD or advice == MADV_PAGEOUT:
        return -EINVAL if flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB) else 0
    if advice == MADV_GUARD_INSTALL or advice == MADV_GUARD_REMOVE:
        if flags & (VM_SPECIAL | VM_HUGETLB) or flags & VM_LOCKED and advice == MADV_GUARD_INSTALL:
            return -EINVAL
        if advice == MADV_GUARD_INSTALL:
            p.flags |= VM_MAYBE_GUARD
            if not p.backing:
                anon_vma_prepare(w, p)
        return guard_range(w, mm, start, end, advice == MADV_GUARD_INSTALL)
    rc = <int>advised_flags(w, p, advice, &flags)
    if rc < 0:
        return rc
    return min(0, set_flags(w, v, start, end, flags))


cdef int sys_collapse(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil:
    """The huge pages that lie wholly in [start, end) of v. One that can't be had at all ends it; one whose pages are
    busy just now is passed over."""
    cdef uint64_t addr = (start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
    cdef uint64_t first = (v.start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
    cdef int rc, last = 0
    end &= ~(KW_PMD_SIZE - 1)
    if first + KW_PMD_SIZE > v.end or v.flags & VM_NOHUGEPAGE or w.mms[mm].flags & MM_THP_DISABLED:
        return -EINVAL
    if not v.backing and v.anon_vma == 0 or addr > end:
        return -EINVAL
    while addr < end:
        rc = collapse(w, mm, v, addr)
        if rc < 0 and rc != -EAGAIN:
            return rc
        if rc < 0:
            last = rc
        addr += KW_PMD_SIZE
    return last


cdef int sys_populate(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint write) noexcept nogil:
    cdef int code = 0
    cdef int32_t v = vma_find(w, mm, start)
    cdef uint64_t stop
    while start < end:
        if v == 0 or w.vmas[v].start > start:
            return -ENOMEM
        if w.vmas[v].flags & (VM_PFNMAP | VM_IO):
            return -EINVAL
        if not w.vmas[v].flags & (VM_WRITE if write else VM_ACCESS):
            return -EINVAL
        stop = min(end, w.vmas[v].end)
        if write:
            write_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, FAULT_KEEP, &code)
        else:
            read_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, &code)
        if code < 0:
            return code
        start = stop
        v = vma_find_from(w, mm, start)
    return 0


cdef int sys_madvise(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int advice) noexcept nogil:
    """Holes are passed over, what is there is done, and the holes are told of at the end."""
    cdef int hole = 0, rc
    cdef int32_t v
    cdef uint64_t stop
    if advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE:
        return sys_populate(w, mm, start, end, advice == MADV_POPULATE_WRITE)
    while start < end:
        v = vma_find_from(w, mm, start)
        if v == 0 or w.vmas[v].start >= end:
            return -ENOMEM
        if start < w.vmas[v].start:
            hole = -ENOMEM
            start = w.vmas[v].start
        stop = min(end, w.vmas[v].end)
        if advice == MADV_COLLAPSE:
            rc = sys_collapse(w, mm, &w.vmas[v], start, stop)
        else:
            rc = advise_vma(w, mm, v, start, stop, advice)
        if rc < 0:
            return rc
        start = stop
    return hole


cdef int sys_mlock(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    cdef int32_t v
    cdef uint64_t at = start, stop, flags
    cdef int code = 0
    while at < end:
        v = vma_find(w, mm, at)
        if v == 0:
            return -ENOMEM
        stop = min(end, w.vmas[v].end)
        flags = w.vmas[v].flags
        if not flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE):
            v = set_flags(w, v, at, stop, flags | VM_LOCKED if on else flags & ~<uint64_t>VM_LOCKED)
            if v < 0:
                return v
        at = stop
    # Locking brings everything in that can be had; what can't is told of like a hole.
    while on and start < end:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].flags & VM_LOCKED:
            if not w.vmas[v].flags & VM_ACCESS:
                return -ENOMEM
            if (w.vmas[v].flags & (VM_WRITE | VM_SHARED)) == VM_WRITE:
                write_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, FAULT_KEEP, &code)
            else:
                read_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, &code)
            if code < 0:
                return -ENOMEM if code == -EFAULT else code
        start = stop
    return 0


cdef int sys_uffd_wp(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    """Register [start, end) with one userfaultfd of the mm (flag) and write-protect what is present."""
    cdef int32_t v
    cdef uint64_t at = start, stop, flags
    cdef int rc
    while at < end:
        v = vma_find(w, mm, at)
        if v == 0:
            return -EINVAL
        at = w.vmas[v].end
    while start < end:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        flags = w.vmas[v].flags & ~<uint64_t>VM_UFFD_WP
        v = set_flags(w, v, start, stop, flags | VM_UFFD_WP if on else flags)
        if v < 0:
            return v
        rc = wp_range(w, mm, start, stop, on)
        if rc < 0:
            return rc
        start = stop
    return 0
