# Operations on the leaves of an address range, for those who `cimport ksmwalk._range`. Same rules as _mm.pxd; ranges
# are page aligned, half-open and (but for zap_range and free_tables) inside one vma. Leaves that stick out of a
# range are split first: KW_ENOROWS where that fails, with the range done up to there.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *

cdef int zap_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
cdef int discard_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_DONTNEED: the same, but markers stay, and empty pte tables that lie wholly in the range go: a huge page fits
    # there again.
cdef void free_tables(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t floor,
                      uint64_t ceiling) noexcept nogil
    # Free the tables that [start, end) reaches and that cover nothing outside [floor, ceiling); all leaves there are
    # gone.
cdef int copy_range(kw_world *w, int32_t src, int32_t dst, uint64_t start, uint64_t end, bint cow) noexcept nogil
    # fork: map in dst what src maps, write-protected in both where cow.
cdef int move_range(kw_world *w, int32_t mm, uint64_t old, uint64_t new, uint64_t length) noexcept nogil
cdef int protect_range(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil
    # Give the leaves the permissions of the (already changed) vma.
cdef int wp_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil
    # userfaultfd write protection of present leaves.
cdef int clean_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # MADV_FREE: anonymous pages lose dirty and accessed, huge ones that stick out are split.
cdef int guard_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint install) noexcept nogil
    # MADV_GUARD_INSTALL, _REMOVE: markers instead of pages.
cdef int collapse(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil
    # MADV_COLLAPSE of the 2 MiB at addr: KW_OK, -EAGAIN, -EINVAL, -ENOMEM (no huge frame).

cdef enum:
    EAGAIN = 11
    ENOMEM = 12
    EFAULT = 14
    EEXIST = 17
    EINVAL = 22

cdef inline uint64_t guard_marker() noexcept nogil:
    return 0xfffffffffffff600   # as Linux 6.13 to 6.18 on x86-64 shows it
