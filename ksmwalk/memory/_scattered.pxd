# The contract of loads and stores at scattered addresses, for those who `cimport ksmwalk.memory._scattered`. Same rules
# as _frames.pxd. What is done is what write_fault and read_fault would do one address after the other; memory is fetched
# ahead of the address at hand, because at random addresses waiting for it is nearly all there is to do.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int64_t write_scattered(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, const uint64_t *keys,
                             int64_t stride, int *code) noexcept nogil
    # Store keys[0], keys[stride], ... into the pages at addrs[0], addrs[1], ... in this order; addresses are page
    # aligned. The number done; *code: KW_OK, or why it stopped there, as write_fault.
cdef int64_t read_scattered(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, uint64_t *keys,
                            int *code) noexcept nogil
    # The contents that loads at these addresses, aligned or not, see. The number done; *code as read_fault.
