"""Locked memory, compiled: mlock, mlock2, munlock, mlockall, munlockall, and what brings pages in beforehand.

The contract of every function stands in `_locks.pxd`; what Python calls is in `_doors.pyx`.
"""
from libc.errno cimport EFAULT, EINVAL, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ksmwalk._core cimport pte_find, pte_present
from ksmwalk.memory._frames cimport LARGE, came_unlocked, folio_head, lru_drain_cpu, mlock_add, normal_pfn, note_unlocked
from ksmwalk.memory._folio cimport whole_folio
from ksmwalk.memory._leaves cimport LeafOp
from ksmwalk.memory._ptes cimport each_pte, look_at_ptes, looked_up, ptes_left
from ksmwalk.memory._areas cimport VM_ACCESS, VM_SPECIAL, set_flags, vma_find, vma_find_from
from ksmwalk.memory._fault cimport FAULT_KEEP, read_range, write_range
from ksmwalk.layout._layout cimport *


cdef enum:
    NEVER_LOCKED = VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE
    MCL_CURRENT = 1
    MCL_FUTURE = 2
    MCL_ONFAULT = 4


cdef inline void drain_here(kw_world *w, int32_t mm) noexcept nogil:
    lru_drain_cpu(w, w.mms[mm].cpu)


# ------------------------------------------------------------------ bringing pages in

cdef void soil(kw_world *w, uint64_t *entry, int level) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], level)
    if entry[0] & (PTE_P | PTE_RW | PTE_D | PTE_SPECIAL) != PTE_P | PTE_RW or pfn < 0:
        return
    if level > 1:
        entry[0] |= PTE_A | PTE_D
    elif w.f_flags[pfn] & (FRAME_ANON | FRAME_FILE):
        w.f_flags[folio_head(w, pfn)] |= FRAME_DIRTY


cdef int op_soil(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    soil(w, entry, 1)
    return 0


cdef int bring_in_area(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t flags = w.vmas[v].flags
    cdef int code = 0
    if flags & VM_LOCKONFAULT:
        return 0
    if not flags & VM_ACCESS:
        return -ENOMEM
    if (flags & (VM_WRITE | VM_SHARED)) == VM_WRITE:
        each_pte(w, mm, start, end, op_soil)
        write_range(w, mm, start, <int64_t>((end - start) >> 12), NULL, 0, FAULT_KEEP, &code)
    else:
        read_range(w, mm, start, <int64_t>((end - start) >> 12), NULL, 0, &code)
    drain_here(w, mm)
    looked_up(w, mm, start, end)
    return -ENOMEM if code == -EFAULT else code


cdef int bring_in(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint all) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, start)
    cdef int rc, missed = 0
    while v and w.vmas[v].start < end:
        if not w.vmas[v].flags & (VM_PFNMAP | VM_IO):
            rc = bring_in_area(w, mm, v, max(start, w.vmas[v].start), min(end, w.vmas[v].end))
            if rc < 0 and (rc != -ENOMEM or not all):
                return rc
            if rc < 0:
                missed = rc
        v = w.vmas[v].next
    return missed


cdef int sys_populate(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint write) noexcept nogil:
    cdef int code = 0
    cdef int32_t v = vma_find(w, mm, start)
    cdef uint64_t stop
    drain_here(w, mm)
    while start < end:
        if v == 0 or w.vmas[v].start > start:
            return -ENOMEM
        if w.vmas[v].flags & (VM_PFNMAP | VM_IO):
            return -EINVAL
        if not w.vmas[v].flags & (VM_WRITE if write else VM_READ):
            return -EINVAL
        stop = min(end, w.vmas[v].end)
        if write:
            each_pte(w, mm, start, stop, op_soil)
            write_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, FAULT_KEEP, &code)
        else:
            read_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, &code)
        drain_here(w, mm)
        looked_up(w, mm, start, stop)
        if code < 0:
            return code
        start = stop
        v = vma_find_from(w, mm, start)
    return 0


# ------------------------------------------------------------------ mlock

cdef int op_unlocked(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    """What the lock that a small page kept counts once more than those that areas have: it stays."""
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    if pfn >= 0 and w.f_flags[pfn] & LARGE:
        w.f_flags[folio_head(w, pfn)] &= ~FRAME_MLOCKED
    return 0


cdef int op_locked(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    if pfn >= 0:
        note_unlocked(w, pfn, False)
    return 0


cdef int op_stays_locked(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    cdef int64_t room = ptes_left(addr, op.v.end)
    if pfn < 0:
        return 0
    # of several pages only a folio that lies in the area as a whole was locked
    if whole_folio(w, entry, room) != 0 if w.f_flags[pfn] & LARGE else came_unlocked(w, pfn) == 0:
        w.f_flags[pfn] |= FRAME_MLOCKED
    return 0


cdef int op_stays_locked_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t head = normal_pfn(w, entry[0], 2)
    if head >= 0:
        w.f_flags[head] |= FRAME_MLOCKED
    return 0


cdef void pages_stay_locked(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    op.pte = op_stays_locked
    op.pmd = op_stays_locked_pmd
    op.mm = mm
    op.v = &w.vmas[vma_find(w, mm, start)]
    look_at_ptes(w, &op, start, end)


cdef int32_t lock_area(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, uint64_t locks) noexcept nogil:
    """Give a part of an area these locks; the record that holds it."""
    cdef uint64_t flags = w.vmas[v].flags
    cdef uint64_t now = (flags & ~<uint64_t>VM_LOCKS) | locks
    if flags & NEVER_LOCKED or flags == now:
        return v
    v = set_flags(w, v, start, end, now)
    if v > 0 and (flags ^ now) & VM_LOCKED:
        if not now & VM_LOCKED:
            each_pte(w, mm, start, end, op_unlocked)
        elif w.ctl.born:
            each_pte(w, mm, start, end, op_locked)
        drain_here(w, mm)
    return v


cdef int64_t small_page(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """The small page that is mapped there; KW_NONE."""
    cdef uint64_t *pte = pte_find(w, w.mms[mm].root, addr)
    cdef int64_t pfn = normal_pfn(w, pte[0], 1) if pte != NULL and pte_present(pte[0]) else KW_NONE
    return KW_NONE if pfn < 0 or w.f_flags[pfn] & LARGE else pfn


cdef int64_t last_not_locked(kw_world *w, int32_t mm, uint64_t end) noexcept nogil:
    """The last page of a range, if it is there and not locked; KW_NONE."""
    cdef int32_t v = vma_find(w, mm, end - KW_PAGE_SIZE)
    return KW_NONE if v == 0 or w.vmas[v].flags & VM_LOCKED else small_page(w, mm, end - KW_PAGE_SIZE)


cdef int sys_mlock(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t locks) noexcept nogil:
    cdef int64_t last = last_not_locked(w, mm, end) if w.ctl.kernel & SWITCH_OLD_CALLS and locks else KW_NONE
    cdef int32_t v
    cdef int rc
    cdef uint64_t at = start, stop
    while at < end:
        v = vma_find(w, mm, at)
        if v == 0:
            return -ENOMEM
        stop = min(end, w.vmas[v].end)
        v = lock_area(w, mm, v, at, stop, locks)
        if v < 0:
            return v
        at = stop
    # Locking brings everything in that can be had; what can't is told of like a hole.
    rc = bring_in(w, mm, start, end, False) if locks else 0
    if rc == 0 and last >= 0 and small_page(w, mm, end - KW_PAGE_SIZE) == last:
        # Pages that were there come to wait one by one, and before each the batch is drained: the last one stays.
        mlock_add(w, w.mms[mm].cpu, last)
    return rc


cdef int sys_mlockall(kw_world *w, int32_t mm, int flags) noexcept nogil:
    cdef uint32_t future = 0
    cdef uint64_t locks = 0
    cdef int32_t v
    cdef int rc
    if flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -EINVAL
    if flags & MCL_FUTURE:
        future = MM_LOCK_FUTURE | (MM_LOCK_ONFAULT if flags & MCL_ONFAULT else 0)
    w.mms[mm].flags = (w.mms[mm].flags & ~<uint32_t>(MM_LOCK_FUTURE | MM_LOCK_ONFAULT)) | future
    if flags and not flags & MCL_CURRENT:
        return 0
    if flags:
        locks = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
    v = w.mms[mm].vma_first
    while v:
        v = lock_area(w, mm, v, w.vmas[v].start, w.vmas[v].end, locks)
        if v < 0:
            return v
        v = w.vmas[v].next
    if not flags:
        return 0
    rc = bring_in(w, mm, 0, ~<uint64_t>0, True)
    return 0 if rc == -ENOMEM else rc
