# The contract of advice about use, and of reclaim, for those who `cimport ksmwalk.memory._reclaim`. Same rules as
# _frames.pxd; ranges are page aligned, half-open and inside one vma.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int cold_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_COLD: huge pages that stick out of the range are split where they are not shared; pages of one mapping count as
    # not accessed. KW_ENOROWS.
cdef int pageout_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_PAGEOUT: the same, and pages of one mapping go: freed where MADV_FREE marked them and nothing was stored since,
    # else out to swap, whole huge pages in one; a huge page that can't is split. KW_ENOROWS.
cdef int free_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_FREE: huge pages that stick out are split as by MADV_COLD; anonymous pages lose dirty and accessed and are marked
    # (those that are dirty themselves only where nobody else maps them); what is swapped out is gone. KW_ENOROWS.
cdef int reclaim_all(kw_world *w) noexcept nogil
    # Everything goes that can, of all address spaces, in as many passes as it takes: nothing counts as accessed, pages marked
    # by MADV_FREE are freed, all other anonymous pages and shared memory go out to swap, if there is some. Pages of locked
    # areas stay, as do those that somebody holds on to. KW_ENOROWS; -ENOMEM: no memory for the marks; KW_EINTR.
