"""Which folio a fault in anonymous memory takes, compiled: a huge page, or one of 16 KiB to 1 MiB, which is mapped here.

The contract of every function stands in `_mthp.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport make_entry
from ksmwalk.memory._areas cimport node_of
from ksmwalk.memory._frames cimport folio_alloc, new_page, owners_add
from ksmwalk.memory._leaves cimport prot_bits, touched
from ksmwalk.layout._layout cimport *


cdef enum:
    # Areas without folios of several pages.
    WITHOUT = VM_NOHUGEPAGE | VM_PFNMAP | VM_IO | VM_MIXEDMAP | VM_DONTEXPAND
    # And without those smaller than a huge page: userfaultfd is told of each page.
    WITHOUT_SMALL = WITHOUT | VM_UFFD_MISSING | VM_UFFD_WP


cdef bint thp_fits(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil:
    cdef uint64_t base = addr & ~(KW_PMD_SIZE - 1)
    if v.backing or w.ctl.thp == THP_NEVER or v.flags & WITHOUT or w.mms[mm].flags & MM_THP_DISABLED:
        return False
    if w.ctl.thp == THP_MADVISE and not v.flags & VM_HUGEPAGE:
        return False
    return base >= v.start and base + KW_PMD_SIZE <= v.end


cdef int orders_of(kw_world *w, int32_t mm, kw_vma *v) noexcept nogil:
    cdef int order, orders = 0
    if v.backing or v.flags & WITHOUT_SMALL or w.mms[mm].flags & MM_THP_DISABLED:
        return 0
    for order in range(2, 9):
        if w.ctl.mthp[order] == THP_ALWAYS or w.ctl.mthp[order] == THP_MADVISE and v.flags & VM_HUGEPAGE:
            orders |= 1 << order
    return orders


cdef bint all_empty(const uint64_t *pte, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        if pte[i]:
            return False
    return True


cdef void map_folio(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pte, int64_t pfn, int64_t n) noexcept nogil:
    cdef uint64_t flags = prot_bits(v.flags) | PTE_D | (PTE_RW if v.flags & VM_WRITE else 0)
    cdef int64_t i
    for i in range(n):
        pte[i] = make_entry(<uint64_t>(pfn + i), flags)
        w.f_mapcount[pfn + i] = 1
        w.f_flags[pfn + i] |= FRAME_EXCLUSIVE
    owners_add(w, mm, pfn, <int32_t>n)
    new_page(w, w.mms[mm].cpu, v.flags, pfn)
    touched(w, mm)


cdef int64_t folio_fault(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte, int orders) noexcept nogil:
    cdef uint64_t base
    cdef uint64_t *first
    cdef int64_t pfn, n
    cdef int order
    for order in range(8, 1, -1):
        n = 1 << order
        base = addr & ~((<uint64_t>n << 12) - 1)
        if not orders >> order & 1 or base < v.start or base + (<uint64_t>n << 12) > v.end:
            continue
        first = pte - ((addr - base) >> 12)
        if not all_empty(first, n):
            continue
        pfn = folio_alloc(w, node_of(w, v), order)
        if pfn < 0:
            continue
        map_folio(w, mm, v, first, pfn, n)
        return pfn + <int64_t>((addr - base) >> 12)
    return KW_NONE
