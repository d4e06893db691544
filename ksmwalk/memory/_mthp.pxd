# The contract of folios that faults make, for those who `cimport ksmwalk.memory._mthp`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef bint thp_fits(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil
    # Would a fault at addr, in an empty pmd, take a huge page?
cdef int orders_of(kw_world *w, int32_t mm, kw_vma *v) noexcept nogil
    # The sizes of folios between a page and a huge page that a store in this area may take: bit set = its order.
cdef inline int folio_orders(kw_world *w, int32_t mm, kw_vma *v) noexcept nogil:
    # The same. ctl.mthp[0] is not THP_NEVER where one of the sizes is not.
    return 0 if KW_LIKELY(w.ctl.mthp[0] == THP_NEVER) else orders_of(w, mm, v)
cdef void map_folio(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pte, int64_t pfn, int64_t n) noexcept nogil
    # A new folio of n pages at as many empty ptes of this area, its first one at pfn.
cdef int64_t folio_fault(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte, int orders) noexcept nogil
    # A folio of the largest of these orders that lies wholly in v around addr, whose pte is empty, and finds no entry
    # there: allocated, mapped by ptes, empty. The frame at addr; KW_NONE: none fits.
