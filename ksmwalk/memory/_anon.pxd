# The contract of families of areas, for those who `cimport ksmwalk.memory._anon`. Same rules as _frames.pxd.
#
# An area whose pages are anonymous has an anon_vma; areas that came from it by fork have one of their own each, and the
# chain of all those above. By it all areas are found that may map a page: those in whose chain the page's anon_vma stands.
from libc.stdint cimport int32_t

from ksmwalk.layout._layout cimport *


cdef void anon_new(kw_world *w, kw_vma *v) noexcept nogil
    # The area, which has none, gets an anon_vma of its own that is no relative of any.
cdef void anon_share(kw_world *w, kw_vma *v, const kw_vma *of) noexcept nogil
    # The area, which has none, gets all that another one of the same mm has: a part of it, its new place, a neighbour.
cdef void anon_fork(kw_world *w, const kw_vma *parent, kw_vma *child) noexcept nogil
    # The copy of an area that has one gets one below it: a new one or, where nobody uses it for new pages any more and at
    # most one other descends from it, the oldest of the chain.
cdef void anon_leave(kw_world *w, kw_vma *v) noexcept nogil
    # The area has none any more; what nobody uses then is free.
cdef void anon_relink(kw_world *w, kw_vma *v) noexcept nogil
    # Its range has changed: among relatives that begin at the same page it is the last from now on.
cdef int32_t anon_family(kw_world *w, const kw_vma *v) noexcept nogil
    # Number of the family, 0: it has no anon_vma.

cdef inline bint anon_forked(kw_world *w, const kw_vma *v) noexcept nogil:
    # Did its chain come through a fork, so that its pages may be shared with a parent?
    return w.anons[v.anon_chain].above != 0

cdef inline bint anon_reaches(kw_world *w, int32_t anon, const kw_vma *v) noexcept nogil:
    # Does this anon_vma stand in the chain of the area?
    cdef int32_t at = v.anon_chain
    while at and at != anon:
        at = w.anons[at].above
    return at != 0 and anon != 0

cdef inline bint anon_descends(kw_world *w, int32_t number, const kw_vma *v) noexcept nogil:
    # The same of the one of this number, which may be gone.
    cdef int32_t at = v.anon_chain
    while at and w.anons[at].number != number:
        at = w.anons[at].above
    return at != 0
