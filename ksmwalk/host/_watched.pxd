# userfaultfd on address spaces, for those who `cimport ksmwalk.host._watched`. `watcher` is the number
# of the userfaultfd that asks; ranges are page aligned and not empty. They answer like system calls, see _calls.pxd.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int sys_watch(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, uint16_t watcher) noexcept nogil
    # UFFDIO_REGISTER: flags of VM_WATCHED for all areas in the range; what is watched for all of them already stays so. None
    # may be another userfaultfd's.
cdef int sys_unwatch(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint16_t watcher) noexcept nogil
    # UFFDIO_UNREGISTER: protection and markers go as well. None may be another userfaultfd's.
cdef int sys_protect(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil
    # UFFDIO_WRITEPROTECT, markers where nothing is mapped included.
cdef int sys_place(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, bint protect) noexcept nogil
    # UFFDIO_COPY of n pages with these contents; NULL: UFFDIO_ZEROPAGE. The first that fails ends it.
cdef int sys_move(kw_world *w, int32_t mm, uint64_t to, uint64_t start, int64_t n, uint16_t watcher) noexcept nogil
    # UFFDIO_MOVE of n pages. The first that fails ends it.
