# The contract of the cursor. As in `_core.pxd`: pointers in, integers out, no state.
from libc.stdint cimport int32_t, int64_t

from ksmwalk.layout._layout cimport *


cdef int32_t scan_next(kw_world *w, int64_t *pfn) noexcept nogil
    # The next (rmap_item, page) of the scan: the item's index; 0 at the end of a full scan (or an empty list).
    # KW_ENOITEMS: arena full, cursor unmoved. KW_EBADENTRY: a pfn beyond the frames, cursor at it.

# The pieces it is made of, for a scan of another kind (_policy.pyx):
cdef int64_t next_in_table(kw_world *w) noexcept nogil
    # The page at the cursor's very address if it is in the table of the last search, else KW_NONE.
cdef int32_t hand_out(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil
    # The item of the page that the cursor stands at, the cursor behind it; 0: smart scan skips it; or a code.
cdef void begin_full_scan(kw_world *w) noexcept nogil
    # The cursor goes from between two scans to the first mm.
cdef void skip_run(kw_world *w) noexcept nogil
    # Pass the pages at the cursor that smart scan skips, as far as the table of the last search goes.
cdef void empty_trees(kw_world *w) noexcept nogil
    # A full scan has ended: its unstable trees are done with.
cdef void leave_mm(kw_world *w, int32_t mm) noexcept nogil
    # The scan is through with an mm: items behind the cursor go, and its slot if nothing is left to scan in it.

cdef void scan_begin(kw_world *w) noexcept nogil
    # To be called before a run of scan_next, and again after anything but scan_next and `examine` has changed the Host:
    # forgets the table and the area of the last search, which others may have freed. May be called at any time.
