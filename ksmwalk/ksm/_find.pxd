# The search for mergeable pages, for those who `cimport ksmwalk.ksm._find`. Same rules as _core.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef inline void forget_table(kw_world *w) noexcept nogil:
    w.cursor.cache_base = 1  # no address of a region starts there
    w.cursor.cache_end = 0

cdef int64_t find_page(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil
    # The mergeable-page search: the first page of [*addr, end) that KSM would look at. Its pfn, with *addr its address;
    # KW_NONE; KW_EBADENTRY with *addr the entry's; KW_ENOROWS (a leaf pud could not be split); KW_EINTR with *addr where
    # it goes on. Counts into w.work.
