"""madvise on address spaces, and `uffd_wp`, which registers and protects in one; compiled.

The contract of every function stands in `_advice.pxd`; what Python calls is in `_doors.pyx`.
"""
from libc.errno cimport EACCES, EAGAIN, EINVAL, ENOMEM
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.memory._frames cimport lru_drain_cpu
from ksmwalk.memory._guards cimport guard_install_range, guard_remove_range
from ksmwalk.memory._leaves cimport discard_range, mlock_range, wp_range
from ksmwalk.memory._areas cimport (
    VM_SPECIAL, VM_WATCHED, anon_vma_prepare, khuge_know, set_flags, set_watched, vma_compatible, vma_find, vma_find_from,
)
from ksmwalk.memory._khuge cimport collapse
from ksmwalk.memory._reclaim cimport cold_range, free_range, pageout_range
from ksmwalk.memory._remove cimport punch_range
from ksmwalk.memory._swapin cimport read_ahead
from ksmwalk.ksm._items cimport slot_insert
from ksmwalk.ksm._unmerge cimport unmerge_range, unmerging
from ksmwalk.host._locks cimport sys_populate
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ the advice there is
# An advice is one row of TABLE: its name and number, what it does to (a part of) an area, and for those that only change
# vm_flags which they set and clear, and which they can't be given with; and which kernels do not have it.

ctypedef int (*advice_fn)(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end,
                          const Advice *a) noexcept nogil

cdef struct Advice:
    const char *name
    int number
    advice_fn do
    uint64_t sets, clears, refused
    int64_t lacking


cdef int change_flags(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end,
                      const Advice *a) noexcept nogil:
    cdef uint64_t flags = w.vmas[v].flags
    if flags & a.refused:
        return -EINVAL
    return min(0, set_flags(w, v, start, end, (flags & ~a.clears) | a.sets))


cdef int huge_page(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    if not w.vmas[v].flags & a.refused and not (w.vmas[v].flags & VM_HUGEPAGE and w.ctl.kernel & SWITCH_ADVISED_ONCE):
        khuge_know(w, &w.vmas[v], w.vmas[v].flags & ~a.clears | a.sets)     # the whole area, before it is cut
    return change_flags(w, mm, v, start, end, a)


cdef int do_dump(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    if w.vmas[v].flags & VM_SPECIAL and not w.vmas[v].flags & VM_HUGETLB:
        return -EINVAL
    return change_flags(w, mm, v, start, end, a)


cdef int wipe_on_fork(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end,
                      const Advice *a) noexcept nogil:
    return -EINVAL if w.vmas[v].backing else change_flags(w, mm, v, start, end, a)


cdef int mergeable(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    if w.vmas[v].flags & VM_MERGEABLE or not vma_compatible(w.vmas[v].flags):
        return 0
    slot_insert(w, mm)
    return change_flags(w, mm, v, start, end, a)


cdef int unmergeable(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    cdef int rc
    if not w.vmas[v].flags & VM_MERGEABLE:
        return 0
    if w.vmas[v].anon_vma:
        rc = unmerge_range(w, mm, start, end, unmerging(w), w.mms[mm].cpu)
        if rc < 0:
            return rc
    return change_flags(w, mm, v, start, end, a)


cdef int dont_need(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    cdef int rc
    if w.vmas[v].flags & a.refused:
        return -EINVAL
    if w.ctl.kernel & SWITCH_OLD_CALLS:
        lru_drain_cpu(w, w.mms[mm].cpu)
    if w.vmas[v].flags & VM_LOCKED:
        rc = mlock_range(w, mm, start, end)
        if rc < 0:
            return rc
    return discard_range(w, &w.vmas[v], start, end)


cdef int free_lazily(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    if w.vmas[v].backing or w.vmas[v].flags & a.refused:
        return -EINVAL
    return free_range(w, mm, start, end)


cdef int cold(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    return -EINVAL if w.vmas[v].flags & a.refused else cold_range(w, mm, start, end)


cdef int page_out(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    return -EINVAL if w.vmas[v].flags & a.refused else pageout_range(w, mm, start, end)


cdef int will_need(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    return read_ahead(w, mm, &w.vmas[v], start, end)


cdef int remove(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, const Advice *a) noexcept nogil:
    cdef kw_vma *p = &w.vmas[v]
    if p.flags & a.refused or not p.backing:
        return -EINVAL
    if p.flags & (VM_SHARED | VM_MAYWRITE) != (VM_SHARED | VM_MAYWRITE):
        return -EACCES
    return punch_range(w, p.backing, p.pgoff + ((start - p.start) >> 12), (end - start) >> 12)


cdef int guard_install(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end,
                       const Advice *a) noexcept nogil:
    cdef kw_vma *p = &w.vmas[v]
    if p.flags & a.refused:
        return -EINVAL
    p.flags |= VM_MAYBE_GUARD
    if not p.backing:
        anon_vma_prepare(w, p)
    return guard_install_range(w, mm, start, end)


cdef int guard_remove(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end,
                      const Advice *a) noexcept nogil:
    return -EINVAL if w.vmas[v].flags & a.refused else guard_remove_range(w, mm, start, end)


cdef int collapse_all(kw_world *w, int32_t mm, int32_t at, uint64_t start, uint64_t end,
                      const Advice *a) noexcept nogil:
    """The huge pages that lie wholly in [start, end) of v. One that can't be had at all ends it; one whose pages are
    busy just now is passed over."""
    cdef kw_vma *v = &w.vmas[at]
    cdef uint64_t addr = (start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
    cdef uint64_t first = (v.start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
    cdef int rc, last = 0
    end &= ~(KW_PMD_SIZE - 1)
    if first + KW_PMD_SIZE > v.end or v.flags & VM_NOHUGEPAGE or w.mms[mm].flags & MM_THP_DISABLED:
        return -EINVAL
    if v.backing and ((v.start >> 12) - v.pgoff) & 511:
        return -EINVAL      # no huge page of the object lies right for one here
    if not v.backing and v.anon_vma == 0 or addr > end and not w.ctl.kernel & SWITCH_COLLAPSES_NOTHING:
        return -EINVAL
    while addr < end:
        rc = collapse(w, mm, v, addr)
        if rc < 0 and rc != -EAGAIN:
            return rc
        if rc < 0:
            last = rc
        addr += KW_PMD_SIZE
    return last


cdef inline bint for_reclaim(int advice) noexcept nogil:
    """Advice that begins by looking which pages wait on this CPU."""
    return advice == MADV_FREE or advice == MADV_COLD or advice == MADV_PAGEOUT or advice == MADV_WILLNEED


cdef int sys_madvise(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int advice) noexcept nogil:
    """Holes are passed over, what is there is done, and the holes are told of at the end."""
    cdef const Advice *a = advice_of(advice)
    cdef int hole = 0, rc
    cdef int32_t v
    cdef uint64_t stop
    if a == NULL or w.ctl.kernel & a.lacking:
        return -EINVAL
    if a.do == NULL:     # of a whole range, not area by area
        return sys_populate(w, mm, start, end, advice == MADV_POPULATE_WRITE)
    while start < end:
        v = vma_find_from(w, mm, start)
        if v == 0 or w.vmas[v].start >= end:
            return -ENOMEM
        if start < w.vmas[v].start:
            hole = -ENOMEM
            start = w.vmas[v].start
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].page_shift > 12 and (start | stop) & (KW_PMD_SIZE - 1) and a.do != collapse_all:
            return -EINVAL
        if for_reclaim(advice) and not w.vmas[v].flags & a.refused:
            lru_drain_cpu(w, w.mms[mm].cpu)
        rc = a.do(w, mm, v, start, stop, a)
        if rc < 0:
            return rc
        start = stop
    return hole


cdef int sys_uffd_wp(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    """Register [start, end) with one userfaultfd of the mm (flag) and write-protect what is present."""
    cdef int32_t v
    cdef uint64_t at = start, stop, how
    cdef int rc
    while at < end:
        v = vma_find(w, mm, at)
        if v == 0:
            return -EINVAL
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].page_shift > 12 and (at | stop) & (KW_PMD_SIZE - 1):
            return -EINVAL
        at = stop
    while start < end:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        how = w.vmas[v].flags & VM_WATCHED & ~<uint64_t>VM_UFFD_WP
        v = set_watched(w, v, start, stop, how | VM_UFFD_WP if on else how, w.vmas[v].watcher)
        if v < 0:
            return v
        rc = wp_range(w, mm, start, stop, on)
        if rc < 0:
            return rc
        start = stop
    return 0


# ------------------------------------------------------------------ the table

cdef enum:
    MADV_WILLNEED = 3
    MADV_FREE = 8
    MADV_COLD = 20
    MADV_PAGEOUT = 21
    MADV_POPULATE_WRITE = 23

cdef enum:
    NR_ADVICE = 25   # rows of TABLE: with another number of them it does not compile

cdef Advice TABLE[NR_ADVICE]
TABLE[:] = [
    # name, number, what it does, vm_flags it sets, clears, is refused with, switches of kernels that do not have it
    Advice(b"normal", 0, change_flags, 0, VM_RAND_READ | VM_SEQ_READ, 0, 0),
    Advice(b"random", 1, change_flags, VM_RAND_READ, VM_SEQ_READ, 0, 0),
    Advice(b"sequential", 2, change_flags, VM_SEQ_READ, VM_RAND_READ, 0, 0),
    Advice(b"willneed", 3, will_need, 0, 0, 0, 0),
    Advice(b"dontneed", 4, dont_need, 0, 0, VM_PFNMAP | VM_LOCKED, 0),
    Advice(b"free", 8, free_lazily, 0, 0, VM_SPECIAL | VM_HUGETLB | VM_LOCKED, 0),
    Advice(b"remove", 9, remove, 0, 0, VM_LOCKED, 0),
    Advice(b"dontfork", 10, change_flags, VM_DONTCOPY, 0, 0, 0),
    Advice(b"dofork", 11, change_flags, 0, VM_DONTCOPY, VM_SPECIAL, 0),
    Advice(b"mergeable", 12, mergeable, VM_MERGEABLE, 0, 0, 0),
    Advice(b"unmergeable", 13, unmergeable, 0, VM_MERGEABLE, 0, 0),
    Advice(b"hugepage", 14, huge_page, VM_HUGEPAGE, VM_NOHUGEPAGE, VM_SPECIAL | VM_HUGETLB, 0),
    Advice(b"nohugepage", 15, change_flags, VM_NOHUGEPAGE, VM_HUGEPAGE, VM_SPECIAL | VM_HUGETLB, 0),
    Advice(b"dontdump", 16, change_flags, VM_DONTDUMP, 0, 0, 0),
    Advice(b"dodump", 17, do_dump, 0, VM_DONTDUMP, VM_DROPPABLE, 0),
    Advice(b"wipeonfork", 18, wipe_on_fork, VM_WIPEONFORK, 0, VM_SHARED, 0),
    Advice(b"keeponfork", 19, change_flags, 0, VM_WIPEONFORK, VM_DROPPABLE, 0),
    Advice(b"cold", 20, cold, 0, 0, VM_LOCKED | VM_PFNMAP | VM_HUGETLB, 0),
    Advice(b"pageout", 21, page_out, 0, 0, VM_LOCKED | VM_PFNMAP | VM_HUGETLB, 0),
    Advice(b"populate_read", 22, NULL, 0, 0, 0, SWITCH_OLD_CALLS),
    Advice(b"populate_write", 23, NULL, 0, 0, 0, SWITCH_OLD_CALLS),
    Advice(b"dontneed_locked", 24, dont_need, 0, 0, VM_PFNMAP, SWITCH_OLD_CALLS),
    Advice(b"collapse", 25, collapse_all, 0, 0, 0, SWITCH_NO_COLLAPSE),
    Advice(b"guard_install", 102, guard_install, 0, 0, VM_SPECIAL | VM_HUGETLB | VM_LOCKED, SWITCH_NO_GUARD),
    Advice(b"guard_remove", 103, guard_remove, 0, 0, VM_SPECIAL | VM_HUGETLB, SWITCH_NO_GUARD),
]


cdef const Advice *advice_of(int number) noexcept nogil:
    """The row of a number, NULL: there is none."""
    cdef int i
    for i in range(NR_ADVICE):
        if TABLE[i].number == number:
            return &TABLE[i]
    return NULL


def advice_numbers():
    """{name: number} of madvise's advice, in the order of the numbers."""
    return {TABLE[i].name.decode(): TABLE[i].number for i in range(NR_ADVICE)}
