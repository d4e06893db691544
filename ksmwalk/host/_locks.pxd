# Locked memory, for those who `cimport ksmwalk.host._locks`. Functions named sys_* answer like system calls, see
# _calls.pxd.
#
# What waits on the CPU of the caller (its LRU and mlock batch) is let go when an area comes to be locked or unlocked, and
# when pages of one were brought in, or were there.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef enum:
    VM_LOCKS = VM_LOCKED | VM_LOCKONFAULT

cdef int sys_mlock(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t locks) noexcept nogil
    # mlock, mlock2 and (locks: 0) munlock; locks: the bits of VM_LOCKS that the areas get.
cdef int sys_mlockall(kw_world *w, int32_t mm, int flags) noexcept nogil
    # MCL_* bits as in C; 0: munlockall.
cdef int sys_populate(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint write) noexcept nogil
    # MADV_POPULATE_READ, _WRITE.
cdef int bring_in(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint all) noexcept nogil
    # The faults that MAP_POPULATE and locking take: stores where private memory may be stored to, else loads; nothing in
    # areas that are locked page by page only. -ENOMEM: some pages can't be had (the first of them ends it, unless `all`);
    # KW_* codes.
cdef void soil(kw_world *w, uint64_t *entry, int level) noexcept nogil
    # What is looked for to be stored to, and is there, becomes dirty itself where its pte is not; a leaf pmd is dirty then.
cdef void pages_stay_locked(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # What is mapped there stays locked, though its area will not be any more.
