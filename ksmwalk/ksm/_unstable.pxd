# The contract of the unstable tree, for those who `cimport ksmwalk.ksm._unstable`. Same rules as _core.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef enum:
    GAVE_UP = -1       # a search that met a page which is gone: neither found nor inserted

cdef inline bint page_eligible(kw_world *w, int64_t pfn) noexcept nogil:
    return pfn > 0 and pfn < w.ctl.nr_frames and (w.f_flags[pfn] & FRAME_ELIGIBLE_MASK) == FRAME_ANON

cdef void spoil(kw_world *w) noexcept nogil
    # What the index goes by holds no longer: on with the tree.
cdef void unstable_erase(kw_world *w, int32_t item) noexcept nogil
    # An item of this scan leaves the tree; its marks stay.
cdef int64_t item_page(kw_world *w, int32_t item) noexcept nogil
    # The page at an item's address now, or KW_NONE: gone, a zero page, no longer mergeable, the process dead.
cdef int32_t unstable_search(kw_world *w, int32_t item, int64_t pfn, uint64_t key, int tree, int64_t *twin) noexcept nogil
    # An item whose page has the same content now (`twin`: its page), 0 after inserting this one, or GAVE_UP.
