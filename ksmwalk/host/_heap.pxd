# Memory that is asked for, for those who `cimport ksmwalk.host._heap`. Functions answer like system calls, see
# _calls.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int map_at(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, int32_t backing, uint64_t pgoff,
                int shift, bint populate) noexcept nogil
    # mmap at a place, over what is there. To `flags`, of which kind and access are told, come what an area may do, what it
    # counts as, and what mlockall(MCL_FUTURE) asks for; what is locked is brought in, as with `populate`.
cdef int map_private(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags) noexcept nogil
    # The same of private memory.
cdef int64_t sys_brk(kw_world *w, int32_t mm, uint64_t to) noexcept nogil
    # Where the heap ends now: at `to`, or where it ended before where that can't be had. KW_* codes.
