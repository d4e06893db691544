# Anonymous memory that is asked for, for those who `cimport ksmwalk.host._heap`. Functions answer like system calls, see
# _calls.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int map_private(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags) noexcept nogil
    # mmap of private memory at a place, over what is there; locked and brought in where mlockall(MCL_FUTURE) was called.
cdef void freed_again(kw_world *w, int32_t mm, bint on) noexcept nogil
    # From here to the switching off, frames that are freed are the first to be taken again, the last one of a size first.
cdef void freed_all(kw_world *w, int32_t mm) noexcept nogil
    # What the call has unmapped so far is free by now on old kernels, locked pages too: more than those that waited when
    # `freed_again` was switched on.
cdef int64_t sys_brk(kw_world *w, int32_t mm, uint64_t to) noexcept nogil
    # Where the heap ends now: at `to`, or where it ended before where that can't be had. KW_* codes.
