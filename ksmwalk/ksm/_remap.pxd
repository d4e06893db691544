# What merging does to a pte, and to who maps the page. Header only.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport make_entry, mm_changed
from ksmwalk.memory._frames cimport folio_extra_refs, frame_map, frame_unmap
from ksmwalk.layout._layout cimport *


cdef inline bint held(kw_world *w, uint64_t e, int64_t pfn) noexcept nogil:
    # Whether the page that e maps is in somebody else's hands: it can't be write-protected then, if it isn't yet.
    return (e & (PTE_RW | PTE_D) != 0 or w.f_flags[pfn] & FRAME_EXCLUSIVE != 0) and folio_extra_refs(w, pfn) != 0

cdef inline void become_ksm(kw_world *w, int32_t mm, uint64_t *pte, int64_t pfn) noexcept nogil:
    # The page that a pte of mm maps is a KSM page from now on.
    w.f_flags[pfn] = (w.f_flags[pfn] | FRAME_KSM | FRAME_DIRTY | FRAME_REFERENCED) & ~FRAME_EXCLUSIVE
    pte[0] = make_entry(<uint64_t>pfn, pte[0] & ~(PTE_PFN_MASK | PTE_RW | PTE_D))
    mm_changed(w, mm, 1)

cdef inline void protected(kw_world *w, uint64_t e, int64_t pfn) noexcept nogil:
    # The entry by which a page is mapped goes, or is made clean: that it was stored to by this the page says itself.
    if e & PTE_D and w.f_mapcount[pfn] > 1:
        w.f_flags[pfn] |= FRAME_DIRTY

cdef inline void map_ksm(kw_world *w, int32_t mm, uint64_t *pte, int64_t kpfn) noexcept nogil:
    # A pte of mm maps this KSM page in place of another page, which is the caller's to unmap. It is new, and so accessed.
    pte[0] = make_entry(<uint64_t>kpfn, pte[0] & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_UFFD_WP | PTE_SOFT_DIRTY) | PTE_A)
    frame_map(w, mm, kpfn)

cdef inline void unmapped(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    # In its place: that page has lost the mapping.
    frame_unmap(w, mm, pfn)
    mm_changed(w, mm, 1)
