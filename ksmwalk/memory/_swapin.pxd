# The contract of coming back from swap, for those who `cimport ksmwalk.memory._swapin`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int swap_in(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte) noexcept nogil
    # The page of a swap entry is present again, as after a load; whether a store may go into it is asked afterwards.
    # Of several mappings of one slot the first gets the page, relatives by fork at the same address share it, each
    # other one gets a copy. -EFAULT: no swap entry; KW_ENOFRAMES.
cdef int read_ahead(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil
    # MADV_WILLNEED: what is swapped out in the range is read into the swap cache; nothing becomes present.
cdef int swap_off(kw_world *w) noexcept nogil
    # Every page comes back, address space by address space, in ascending order; then the device is gone. First comes the one
    # whose first page went out last; a child that was born with pages out comes right after its parent. KW_ENOFRAMES,
    # KW_EINTR: with the device still there, some pages back.
