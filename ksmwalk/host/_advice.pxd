# madvise and userfaultfd, for those who `cimport ksmwalk.host._advice`. They answer like system calls, see _calls.pxd.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int sys_madvise(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int advice) noexcept nogil
cdef int sys_uffd_wp(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil
