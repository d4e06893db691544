# The contract of rmap_items, mm slots and the cursor. As in `_core.pxd`: pointers in, integers out, no state.
from libc.stdint cimport int32_t, int64_t

from ksmwalk.layout._layout cimport *


cdef int32_t scan_next(kw_world *w, int64_t *pfn) noexcept nogil
    # The next (rmap_item, page) of the scan: the item's index; 0 at the end of a full scan (or an empty list).
    # KW_ENOITEMS: arena full, cursor unmoved. KW_EBADENTRY: a pfn beyond the frames, cursor at it.
cdef void scan_begin(kw_world *w) noexcept nogil
    # To be called before a run of scan_next, and again after anything but scan_next and `examine` has changed the Host:
    # forgets the table and the area of the last search, which others may have freed. May be called at any time.
cdef void slot_insert(kw_world *w, int32_t mm) noexcept nogil
    # Put mm on the list: just behind the cursor, at the end while run == 2.
cdef void slot_remove(kw_world *w, int32_t mm) noexcept nogil
cdef void slot_exit(kw_world *w, int32_t mm) noexcept nogil
    # The mm exits: its slot goes at once, moves to right after the cursor, or stays (at the cursor), as ksm.md says.
cdef int32_t item_alloc(kw_world *w) noexcept nogil
cdef void item_free(kw_world *w, int32_t item) noexcept nogil
cdef void items_drop(kw_world *w, int32_t mm) noexcept nogil
    # All items of the mm leave their trees and are freed.
cdef void event(kw_world *w, int kind, int32_t mm, int64_t a, int64_t b, int32_t node, int err) noexcept nogil
    # Records a trace event if events_on.
