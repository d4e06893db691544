# The contract of pages that userfaultfd puts in place, for those who `cimport ksmwalk.memory._watched`. Same rules as
# _frames.pxd; addresses are page aligned, areas are not of huge pages (hugetlb).
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int mark_absent(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # Markers of write protection where nothing is mapped: stores will be told of. KW_ENOROWS.
cdef int place_page(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t key, bint protect) noexcept nogil
    # UFFDIO_COPY: a page with this content where none is (markers don't count). -EEXIST; -EFAULT: beyond the end of a file.
cdef int place_zero(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil
    # UFFDIO_ZEROPAGE: the zero page, or an empty page of shared memory, where nothing is, no marker either.
cdef int move_page(kw_world *w, int32_t mm, kw_vma *v, uint64_t to, uint64_t start) noexcept nogil
    # UFFDIO_MOVE of one page to area v: -EEXIST: something is there; -ENOENT: nothing to move; -EBUSY: it is a KSM page, or
    # not exclusive, or of a huge page that can't be split; -EFAULT: a marker.
cdef int move_huge(kw_world *w, int32_t mm, kw_vma *v, uint64_t to, uint64_t start) noexcept nogil
    # The same of 2 MiB, both places aligned: 1 where a huge page was there and there was no table at `to`; 0: nothing is
    # done, page by page it may be.
