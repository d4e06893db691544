# System calls on address spaces, for those who `cimport ksmwalk.host._calls`. Functions named sys_* answer like system
# calls: 0 or an index, or -errno (-1 to -4095); what no errno stands for, as a full arena of the Host, is a KW_E* code
# (-5001 and below).
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int32_t sys_mmap(kw_world *w, int32_t mm, uint64_t start, uint64_t length, uint64_t flags, int32_t backing,
                      uint64_t pgoff, int shift) noexcept nogil
    # Map [start, start + length), where nothing is mapped; the vma that holds it.
cdef int sys_munmap(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
cdef int sys_mprotect(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t prot) noexcept nogil
cdef int64_t sys_mremap(kw_world *w, int32_t mm, uint64_t addr, uint64_t old_len, uint64_t new_len, bint maymove,
                        bint fixed, uint64_t to, bint keep) noexcept nogil
    # The address of the memory now. fixed: at `to`, else wherever there is room. Lengths are whole pages. keep: what was
    # mapped stays, empty (MREMAP_DONTUNMAP).
cdef int32_t sys_fork(kw_world *w, int32_t parent) noexcept nogil
cdef int32_t sys_exec(kw_world *w, int32_t mm) noexcept nogil
    # The number of the fresh mm, for one of its tasks; of the old one a task has exited.
cdef int sys_exit(kw_world *w, int32_t mm) noexcept nogil
    # One of its tasks ends; with the last of them all that it maps goes, and KSM cleans up.
cdef int sys_prctl_merge(kw_world *w, int32_t mm, bint on) noexcept nogil
