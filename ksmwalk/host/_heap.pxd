# The heap of an address space, for those who `cimport ksmwalk.host._heap`.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int64_t sys_brk(kw_world *w, int32_t mm, uint64_t to) noexcept nogil
    # Where the heap ends now: at `to`, or where it ended before where that can't be had. KW_* codes.
