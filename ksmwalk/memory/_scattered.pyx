"""Loads and stores at scattered addresses at array speed.

The contract of every function stands in `_scattered.pxd`. Both loops have three stages, each some addresses behind the
one before: find the pte and fetch it, fetch the frame it maps, do the load or store. A pte found ahead is used later,
unless a fault has changed tables in between. Only the common case is done here; everything else is left to `_fault`.
"""
from libc.errno cimport EFAULT
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport entry_pfn, entry_stored, mm_changed, pte_find
from ksmwalk.memory._frames cimport normal_pfn
from ksmwalk.memory._areas cimport vma_for
from ksmwalk.memory._fault cimport fault_read, fault_write
from ksmwalk.layout._layout cimport *


cdef extern from "_wide.h" nogil:
    void kw_prefetch(const void *p) noexcept

cdef enum:
    RING = 32           # a power of two
    FAR = 24            # addresses from the search for a pte to its use
    NEAR = 10           # addresses from the fetching of a frame to its use
    ODD_VMA = VM_PFNMAP | VM_IO | VM_HUGETLB

cdef struct way:
    # The ptes of the addresses that come next, and up to which index they were found before the last fault.
    uint64_t *ptes[RING]
    int64_t stale


cdef inline void look_ahead(kw_world *w, int64_t root, const uint64_t *addrs, int64_t i, int64_t n,
                            way *ahead) noexcept nogil:
    cdef uint64_t *p
    cdef uint64_t pfn
    if i + FAR < n:
        p = pte_find(w, root, addrs[i + FAR])
        ahead.ptes[(i + FAR) & (RING - 1)] = p
        if p != NULL:
            kw_prefetch(p)
    if i + NEAR < n and i + NEAR >= 0:
        p = ahead.ptes[(i + NEAR) & (RING - 1)]
        if p != NULL:
            # Only fetched: whatever the entry holds by the time it is used is looked at then.
            pfn = (p[0] & PTE_PFN_MASK) >> 12
            if pfn < <uint64_t>w.ctl.nr_frames:
                kw_prefetch(&w.f_key[pfn])
                kw_prefetch(&w.f_flags[pfn])


cdef inline uint64_t *pte_at(kw_world *w, int64_t root, uint64_t addr, int64_t i, way *ahead) noexcept nogil:
    return ahead.ptes[i & (RING - 1)] if i > ahead.stale else pte_find(w, root, addr)


cdef void set_out(kw_world *w, int64_t root, const uint64_t *addrs, int64_t n, way *ahead) noexcept nogil:
    cdef int64_t i
    ahead.stale = -1
    for i in range(-FAR, 0):
        look_ahead(w, root, addrs, i, n, ahead)


cdef int64_t write_scattered(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, const uint64_t *keys,
                             int64_t stride, int *code) noexcept nogil:
    cdef int64_t i, pfn, root = w.mms[mm].root
    cdef uint64_t addr, e, stored = 0
    cdef uint64_t *p
    cdef kw_vma *v = &w.vmas[0]
    cdef int32_t at
    cdef way ahead
    code[0] = KW_OK
    set_out(w, root, addrs, n, &ahead)
    for i in range(n):
        look_ahead(w, root, addrs, i, n, &ahead)
        addr = addrs[i]
        if not v.start <= addr < v.end:
            at = vma_for(w, mm, addr)
            if at == 0:
                code[0] = -EFAULT
                break
            v = &w.vmas[at]
        p = pte_at(w, root, addr, i, &ahead)
        if KW_LIKELY(p != NULL and v.flags & VM_WRITE and not v.flags & ODD_VMA):
            e = p[0]
            if KW_LIKELY((e & (PTE_P | PTE_RW)) == (PTE_P | PTE_RW)):
                pfn = normal_pfn(w, e, 1)
                if KW_LIKELY(pfn >= 0):
                    p[0] = entry_stored(e)
                    w.f_key[pfn] = keys[i * stride]
                    stored += 1
                    continue
        code[0] = fault_write(w, mm, v, addr, keys[i * stride], 0)
        if code[0] < 0:
            break
        ahead.stale = i + FAR
    else:
        i = n
    mm_changed(w, mm, stored)
    return i


cdef int64_t read_scattered(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, uint64_t *keys,
                            int *code) noexcept nogil:
    cdef int64_t i, pfn, root = w.mms[mm].root
    cdef uint64_t addr, e
    cdef uint64_t *p
    cdef kw_vma *v = &w.vmas[0]
    cdef int32_t at
    cdef way ahead
    code[0] = KW_OK
    set_out(w, root, addrs, n, &ahead)
    for i in range(n):
        look_ahead(w, root, addrs, i, n, &ahead)
        addr = addrs[i] & ~(KW_PAGE_SIZE - 1)
        if not v.start <= addr < v.end:
            at = vma_for(w, mm, addr)
            if at == 0:
                code[0] = -EFAULT
                return i
            v = &w.vmas[at]
        p = pte_at(w, root, addr, i, &ahead)
        if KW_LIKELY(p != NULL and v.flags & (VM_READ | VM_WRITE | VM_EXEC) and not v.flags & ODD_VMA):
            e = p[0]
            pfn = <int64_t>entry_pfn(e, 1)
            if KW_LIKELY(e & PTE_P and pfn < w.ctl.nr_frames):
                p[0] = e | PTE_A
                keys[i] = w.f_key[pfn]
                continue
        pfn = fault_read(w, mm, v, addr, 0)
        if pfn < 0:
            code[0] = <int>pfn
            return i
        keys[i] = w.f_key[pfn]
        ahead.stale = i + FAR
    return n
