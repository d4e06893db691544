# The contract of MADV_REMOVE, for those who `cimport ksmwalk.memory._remove`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int punch_range(kw_world *w, int32_t backing, uint64_t pgoff, uint64_t pages) noexcept nogil
    # MADV_REMOVE: pages of an object are gone, wherever they are mapped; what was copied from them stays.
