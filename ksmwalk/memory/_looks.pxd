# The contract of looks at pages, for those who `cimport ksmwalk.memory._looks`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int64_t look_range(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys, int64_t *pfns) noexcept nogil
    # read_range without a fault: key 0 and frame -1 where nothing is mapped, the content and -1 where it is swapped out.
    # Either pointer may be NULL.
