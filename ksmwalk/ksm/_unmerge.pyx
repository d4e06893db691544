"""Unmerging: KSM pages and zero pages placed by KSM broken into private copies, one by one or over ranges.

The contract of every function stands in `_unmerge.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    below, entry_decode, entry_leaf, entry_none, interrupted, interrupted_at, level_index, level_size,
    make_entry, pte_find, pte_present,
)
from ksmwalk.memory._frames cimport frame_alloc, frame_map, frame_unmap, mlock_page, new_page, normal_pfn
from ksmwalk.memory._leaves cimport ksm_zero_gone, pte_ksm_zero, touched
from ksmwalk.memory._areas cimport node_of, vma_find, vma_mergeable
from ksmwalk.layout._layout cimport *


cdef int break_pte(kw_world *w, int32_t mm, const kw_vma *v, int cpu, uint64_t *pte) noexcept nogil:
    """The same at a pte of an area: the copy goes where the area's pages go, not where the KSM page was."""
    cdef uint64_t e = pte[0], flags
    cdef int64_t pfn = KW_NONE, new
    if not pte_present(e):
        return 0
    if not pte_ksm_zero(e):
        pfn = normal_pfn(w, e, 1)
        if pfn < 0 or not w.f_flags[pfn] & FRAME_KSM:
            return 0
    new = frame_alloc(w, node_of(w, v), 0 if pfn < 0 else w.f_key[pfn], FRAME_ANON | FRAME_EXCLUSIVE)
    if new < 0:
        return KW_ENOFRAMES
    flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_SPECIAL)) | PTE_A
    if w.ctl.kernel & SWITCH_NO_SMART_SCAN:
        # old kernels break by a store, later ones without leave to write
        flags |= PTE_D | (PTE_RW if v.flags & VM_WRITE else 0)
    pte[0] = make_entry(<uint64_t>new, flags)
    frame_map(w, mm, new)
    new_page(w, cpu, v.flags, new)
    if pfn < 0:
        ksm_zero_gone(w, mm)
    else:
        mlock_page(w, cpu, v.flags, pfn)
        w.done.cow_ksm += 1
        frame_unmap(w, mm, pfn)
    touched(w, mm)
    return 1


cdef int break_ksm(kw_world *w, int32_t mm, uint64_t addr, int cpu) noexcept nogil:
    cdef uint64_t *pte = pte_find(w, w.mms[mm].root, addr)
    if pte == NULL:
        return 0
    return break_pte(w, mm, &w.vmas[vma_find(w, mm, addr)], cpu, pte)


cdef inline bint passed_over(kw_world *w, uint64_t e) noexcept nogil:
    """Whether unmerging leaves what userfaultfd write-protects, or what is mapped without any rights."""
    if w.ctl.kernel & SWITCH_NONE_NO_PARTNER and not e & PTE_P:
        return True
    return e & PTE_UFFD_WP != 0 and w.ctl.kernel & SWITCH_KEEPS_PROTECTED != 0


cdef int unmerge_at(kw_world *w, int32_t mm, uint64_t addr, int cpu) noexcept nogil:
    cdef uint64_t *pte = pte_find(w, w.mms[mm].root, addr)
    return 0 if pte == NULL or passed_over(w, pte[0]) else break_ksm(w, mm, addr, cpu)


cdef int64_t unmerge_level(kw_world *w, int32_t mm, const kw_vma *v, int cpu, int64_t row, int level, uint64_t addr,
                           uint64_t end, bint count) noexcept nogil:
    """Break the KSM pages below one table; how many, or KW_ENOFRAMES."""
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef int64_t n = 0, got
    while addr < end:
        next = min((addr & ~(size - 1)) + size, end)
        e = p[0]
        if level == 1:
            if count:
                w.work.ptes += 1
            # Only what can be a KSM page is looked at further: present, and not write-enabled.
            if pte_present(e) and not e & PTE_RW and not passed_over(w, e):
                got = break_pte(w, mm, v, cpu, p)
                if got < 0:
                    return got
                n += got
        else:
            if count:
                w.work.entries[level] += 1
            if entry_none(e):
                if count:
                    w.work.holes += 1
            else:
                if count and level == 2:
                    w.work.resched += 1
                if not entry_leaf(e, level):
                    if level == 2 and interrupted_at(addr):
                        return KW_EINTR
                    got = below(w, p, level, addr)
                    if got >= 0:
                        got = unmerge_level(w, mm, v, cpu, got, level - 1, addr, next, count)
                    if got >= 0:
                        n += got
                    elif got != KW_NONE:
                        return got
        addr = next
        p += 1
    return n


cdef int unmerge_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int strategy, int cpu) noexcept nogil:
    cdef kw_vma *v
    cdef int64_t n = 0, pages = <int64_t>((end - start) >> 12)
    cdef int rc
    cdef uint64_t addr = start
    if start >= end:
        return KW_OK
    if strategy == STRATEGY_PER_ADDRESS and w.cursor.real_lookups:
        while addr < end:
            rc = unmerge_at(w, mm, addr, cpu)
            if rc < 0:
                return rc
            n += rc
            addr += KW_PAGE_SIZE
            if addr & 0xfffffff == 0 and interrupted():
                return KW_EINTR
    else:
        v = &w.vmas[vma_find(w, mm, start)]
        n = unmerge_level(w, mm, v, cpu, w.mms[mm].root, <int>w.ctl.levels, start, end, strategy == STRATEGY_RANGE)
        if n < 0:
            return <int>n
    w.work.found += n
    if strategy == STRATEGY_RANGE:
        w.work.searches += 1
    else:
        # One lookup an address, and one more after each page broken to see that it is.
        w.work.lookups += pages + n
        w.work.lookup_misses += pages
        w.work.resched += pages + n
    return KW_OK


cdef int unmerge_mm(kw_world *w, int32_t mm, int strategy, int cpu) noexcept nogil:
    cdef int32_t v = w.mms[mm].vma_first
    cdef int rc
    while v:
        if vma_mergeable(&w.vmas[v]) and w.vmas[v].anon_vma:
            rc = unmerge_range(w, mm, w.vmas[v].start, w.vmas[v].end, strategy, cpu)
            if rc < 0:
                return rc
        v = w.vmas[v].next
    return KW_OK
