# The contract of the cursor. As in `_core.pxd`: pointers in, integers out, no state.
from libc.stdint cimport int32_t, int64_t

from ksmwalk.layout._layout cimport *


cdef int32_t scan_next(kw_world *w, int64_t *pfn) noexcept nogil
    # The next (rmap_item, page) of the scan: the item's index; 0 at the end of a full scan (or an empty list).
    # KW_ENOITEMS: arena full, cursor unmoved. KW_EBADENTRY: a pfn beyond the frames, cursor at it.
cdef void scan_begin(kw_world *w) noexcept nogil
    # To be called before a run of scan_next, and again after anything but scan_next and `examine` has changed the Host:
    # forgets the table and the area of the last search, which others may have freed. May be called at any time.
