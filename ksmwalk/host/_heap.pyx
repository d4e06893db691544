"""Memory that is asked for, compiled: at a place (mmap), or at the end of the heap (brk).

The contract of every function stands in `_heap.pxd`.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ksmwalk._core cimport World, enter, leave
from ksmwalk.host._calls cimport sys_mmap, sys_munmap
from ksmwalk.host._locks cimport VM_LOCKS, bring_in
from ksmwalk.layout._layout cimport *
from ksmwalk.memory._areas cimport STACK_GAP, user_end, vma_find_from, vma_join, vma_make
from ksmwalk.memory._frames cimport freed_in_bundles, mlock_drain


cdef enum:
    VM_MAY = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    VM_HEAP = VM_READ | VM_WRITE | VM_MAY | VM_ACCOUNT
    VM_NOT_ACCOUNTED = VM_NORESERVE | VM_SHARED | VM_HUGETLB
    # what would lock these brings them in, no more
    VM_NEVER_LOCKED = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP | VM_HUGETLB | VM_DAX


cdef inline uint64_t page_up(uint64_t addr) noexcept nogil:
    return (addr + KW_PAGE_SIZE - 1) & ~<uint64_t>(KW_PAGE_SIZE - 1)


cdef inline uint64_t future_locks(kw_world *w, int32_t mm) noexcept nogil:
    """The vm_flags that a new area has from mlockall(2)."""
    cdef uint32_t flags = w.mms[mm].flags
    return (VM_LOCKED if flags & MM_LOCK_FUTURE else 0) | (VM_LOCKONFAULT if flags & MM_LOCK_ONFAULT else 0)


# ------------------------------------------------------------------ mmap

cdef void freed_by_now(kw_world *w, int cpu) noexcept nogil:
    """What the call has unmapped is free on old kernels, locked pages too: more than those that waited before it."""
    if w.ctl.kernel & SWITCH_NO_GUARD:
        if w.batches[cpu].nr_mlock > w.nr_waited:
            mlock_drain(w, cpu)
        if w.ctl.kernel & SWITCH_NO_SMART_SCAN:
            freed_in_bundles(w)


cdef int map_at(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, int32_t backing, uint64_t pgoff,
                int shift, bint populate) noexcept nogil:
    cdef int cpu = w.mms[mm].cpu, rc
    flags |= VM_MAY | future_locks(w, mm)
    if flags & VM_WRITE and not flags & VM_NOT_ACCOUNTED:
        flags |= VM_ACCOUNT
    populate = populate or flags & VM_LOCKED != 0
    if flags & VM_NEVER_LOCKED:
        flags &= ~<uint64_t>(VM_LOCKS)
    if populate:
        # frames that are freed from here on are the first to be taken again, the last one of a size first
        w.freed_again = True
        w.nr_freed = 0
        w.nr_waited = w.batches[cpu].nr_mlock
    rc = sys_munmap(w, mm, start, end)
    if rc == 0:
        rc = min(0, sys_mmap(w, mm, start, end - start, flags, backing, pgoff, shift))
    if rc == 0 and populate:
        freed_by_now(w, cpu)
        rc = bring_in(w, mm, start, end, True)
        rc = 0 if rc == -ENOMEM else rc      # what can't be brought in is passed over
    if populate:
        w.freed_again = False
    return rc


cdef int map_private(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags) noexcept nogil:
    return map_at(w, mm, start, end, flags, 0, start >> 12, 12, False)


def mmap(World world not None, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, int32_t backing, uint64_t pgoff,
         int shift, bint populate):
    cdef int rc
    enter(world)
    with nogil:
        rc = map_at(&world.w, mm, start, end, flags, backing, pgoff, shift, populate)
    leave(world)
    return rc


# ------------------------------------------------------------------ brk

cdef bint has_room(kw_world *w, int32_t next, uint64_t start, uint64_t end) noexcept nogil:
    """May [start, end) be the heap's, `next` being what is mapped next? A page stays free before it."""
    cdef kw_vma *v = &w.vmas[next]
    cdef uint64_t free = KW_PAGE_SIZE + (STACK_GAP if v.flags & VM_GROWSDOWN else 0)
    return next == 0 or v.start >= start and v.start - start >= end - start + free


cdef int heap_grow(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    """Map [start, end): a part of the last area of the heap where that may be, never of what lies below the heap."""
    cdef kw_mm *m = &w.mms[mm]
    cdef int32_t v = vma_make(w, mm, start, end, VM_HEAP | future_locks(w, mm), start >> 12), prev
    if v < 0:
        return v
    prev = w.vmas[v].prev
    if prev and w.vmas[prev].start >= m.start_brk:
        vma_join(w, prev, v)
    return KW_OK


cdef int64_t sys_brk(kw_world *w, int32_t mm, uint64_t to) noexcept nogil:
    cdef kw_mm *m = &w.mms[mm]
    cdef uint64_t old = page_up(m.brk), new
    cdef int32_t v
    cdef int rc = KW_OK
    if m.start_brk == 0 or to < m.start_brk or to > user_end(w):
        return <int64_t>m.brk
    new = page_up(to)
    v = vma_find_from(w, mm, min(old, new))
    if new < old:
        if v == 0 or w.vmas[v].start >= old:
            return <int64_t>m.brk     # nothing of it is there
        rc = sys_munmap(w, mm, new, old)
    elif new > old:
        if not has_room(w, v, old, new):
            return <int64_t>m.brk
        rc = heap_grow(w, mm, old, new)
    if rc < 0:
        return rc if rc <= KW_EBADENTRY else <int64_t>m.brk
    m.brk = to
    if new > old and m.flags & MM_LOCK_FUTURE:
        rc = bring_in(w, mm, old, new, True)
        if rc <= KW_EBADENTRY:
            return rc
    return <int64_t>to


def brk(World world not None, int32_t mm, uint64_t to):
    cdef int64_t at
    enter(world)
    with nogil:
        at = sys_brk(&world.w, mm, to)
    leave(world)
    return at
