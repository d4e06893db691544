# The contract of guards, for those who `cimport ksmwalk.memory._guards`. Same rules as _leaves.pxd.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int guard_install_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_GUARD_INSTALL: markers instead of pages. -EDEADLK: over a page of a file that userfaultfd write-protected the
    # kernel's call tries for ever.
cdef int guard_remove_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_GUARD_REMOVE: no markers any more. Pages stay as they are, huge ones whole.
