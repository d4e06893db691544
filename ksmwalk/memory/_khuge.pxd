# The contract of collapsing, for those who `cimport ksmwalk.memory._khuge`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int collapse(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil
    # MADV_COLLAPSE of the 2 MiB at addr, inside v: KW_OK, -EAGAIN (something is busy), -EINVAL, -ENOMEM (no huge frame).
cdef int64_t khuge_mm(kw_world *w, int32_t mm) noexcept nogil
    # What khugepaged does with one address space in a pass: the number of huge pages it made, or KW_EINTR.
cdef bint underused(kw_world *w, int64_t head, bint locked) noexcept nogil
    # Does reclaim split this anonymous folio of several pages? If some of its pages are mapped by nobody any more (and are
    # not in the swap cache), or if it is a huge page, not locked, with more than max_ptes_none empty ones (511: never).
