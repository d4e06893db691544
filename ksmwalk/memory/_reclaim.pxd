# The contract of pages that go, and of advice about use, for those who `cimport ksmwalk.memory._reclaim`. Same rules as
# _frames.pxd; ranges are page aligned, half-open and inside one vma.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.memory._frames cimport folio_head
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ one page

cdef bint can_go(kw_world *w, int64_t pfn) noexcept nogil
    # Is it a page that reclaim looks at? One with a DMA pin, or in somebody's work, is not.
cdef bint item_reaches(kw_world *w, int32_t item, int32_t v) noexcept nogil
    # Does the way back from a KSM page by this item lead to its address in this area: its own, or one that descends from
    # it by fork?
cdef bint reached(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn) noexcept nogil
    # Does the way back from a KSM page, by one of its items or another, lead here?
cdef bint swap_out(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte, int64_t pfn) noexcept nogil
    # A small page's mapping becomes an entry of a slot, the page's or a new one. The page is in the swap cache then.
cdef void leave_cache(kw_world *w, int64_t pfn) noexcept nogil
    # A page that nobody but the swap cache holds on to any more is freed.
cdef void large_leave(kw_world *w, int64_t head) noexcept nogil
    # The same of a folio of several pages: it is freed as a whole.
cdef void unmap_file(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte) noexcept nogil
    # A page of shared memory is unmapped. With swap it is out, too, see object_out.
cdef void object_out(kw_world *w, uint64_t *entry) noexcept nogil
    # A page of shared memory goes out, by the entry that its object has for it: the object keeps the frame, but without
    # PTE_A. One that nobody maps any more, and that nobody ever stored to, is gone.

cdef inline bint lazy(kw_world *w, int64_t pfn) noexcept nogil:
    # Was it marked by MADV_FREE, and nothing found since that keeps it?
    return w.f_flags[pfn] & FRAME_LAZY != 0
cdef inline bint stored_to(kw_world *w, int64_t pfn, uint64_t entry) noexcept nogil:
    # Has a marked page got a content that is nowhere else: through this mapping, or by becoming KSM's?
    return entry & PTE_D or w.f_flags[folio_head(w, pfn)] & FRAME_DIRTY
cdef inline void keep(kw_world *w, int64_t pfn) noexcept nogil:
    # A page that was marked, and found to be stored to since: it stays for now, and is one like others from now on.
    w.f_flags[pfn] = (w.f_flags[pfn] | FRAME_DIRTY) & ~FRAME_LAZY
cdef inline void not_accessed(uint64_t *entry) noexcept nogil:
    entry[0] &= ~PTE_A
cdef inline void not_referenced(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = folio_head(w, pfn)
    w.f_flags[head] &= ~FRAME_REFERENCED
    if w.f_flags[head] & FRAME_HEAD:
        w.owners[head >> 2].shared &= ~FOLIO_ACTIVE

# ------------------------------------------------------------------ advice

cdef int cold_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_COLD: huge pages that stick out of the range are split where they are not shared; pages of one mapping count as
    # not accessed. KW_ENOROWS.
cdef int pageout_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_PAGEOUT: the same, and pages of one mapping go: freed where MADV_FREE marked them and nothing was stored since,
    # else out to swap, whole huge pages in one; a huge page that can't is split. KW_ENOROWS.
cdef int free_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_FREE: huge pages that stick out are split as by MADV_COLD; anonymous pages lose dirty and accessed and are marked
    # (those that are dirty themselves only where nobody else maps them); what is swapped out is gone. KW_ENOROWS.
