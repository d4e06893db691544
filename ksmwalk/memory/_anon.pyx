"""Families of areas, compiled: what areas have that came from one another by fork.

The contract of every function stands in `_anon.pxd`.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from ksmwalk.layout._layout cimport *


cdef inline bint leads_on(kw_world *w, const kw_anon *a, const kw_anon *up) noexcept nogil:
    """Is the one above, `up`, there for this one alone?"""
    return up.users == 1 and up.above != 0 and up.areas == 0 and up.children == (&w.anons[a.parent] == up)


cdef void shorten(kw_world *w) noexcept nogil:
    """Take records that only lead on out of their chains: long ones come from forks of forks whose parents have ended.

    Those that are left are less than five to an area, which is what there is room for.
    """
    cdef kw_anon *a
    cdef kw_anon *up
    cdef int64_t i
    cdef int32_t above
    for i in range(1, w.ctl.anons_used):
        a = &w.anons[i]
        while a.users and leads_on(w, a, &w.anons[a.above]):
            above = a.above
            up = &w.anons[above]
            a.above = up.above
            if a.parent == above:
                a.parent = up.parent
            elif up.parent:
                w.anons[up.parent].children -= 1
            anon_free(w, above)


cdef void anon_free(kw_world *w, int32_t anon) noexcept nogil:
    memset(&w.anons[anon], 0, sizeof(kw_anon))
    w.anons[anon].above = <int32_t>w.ctl.anons_free
    w.ctl.anons_free = anon


cdef int32_t anon_make(kw_world *w, int32_t above, int32_t parent) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int32_t anon
    if c.anons_free == 0 and c.anons_used >= c.anons_cap:
        shorten(w)
    if c.anons_free:
        anon = <int32_t>c.anons_free
        c.anons_free = w.anons[anon].above
    else:
        if c.anons_used >= c.anons_cap:
            return 0      # with 400 million areas, more than memory was ever had for
        anon = <int32_t>c.anons_used
        c.anons_used += 1
    c.anon_vmas += 1
    memset(&w.anons[anon], 0, sizeof(kw_anon))
    w.anons[anon].above = above
    w.anons[anon].parent = parent
    w.anons[anon].number = <int32_t>c.anon_vmas
    w.anons[above].users += above != 0
    w.anons[parent].children += parent != 0
    return anon


cdef inline void take(kw_world *w, kw_vma *v, int32_t anon, int32_t chain) noexcept nogil:
    kw_check(v.anon_vma == 0 and 0 <= anon < w.ctl.anons_used and 0 <= chain < w.ctl.anons_used)
    if anon == 0:
        return
    v.anon_vma = anon
    v.anon_chain = chain
    w.anons[anon].areas += 1
    w.anons[chain].users += 1
    anon_relink(w, v)


cdef void anon_relink(kw_world *w, kw_vma *v) noexcept nogil:
    if v.anon_vma:
        w.ctl.anon_links += 1
        v.linked = w.ctl.anon_links


cdef void anon_new(kw_world *w, kw_vma *v) noexcept nogil:
    cdef int32_t anon = anon_make(w, 0, 0)
    take(w, v, anon, anon)


cdef void anon_share(kw_world *w, kw_vma *v, const kw_vma *of) noexcept nogil:
    if of.anon_vma:
        take(w, v, of.anon_vma, of.anon_chain)


cdef void anon_fork(kw_world *w, const kw_vma *parent, kw_vma *child) noexcept nogil:
    cdef int32_t at = parent.anon_chain, unused = 0
    while w.anons[at].above:     # the root counts itself among its children
        if w.anons[at].areas == 0 and w.anons[at].children < 2:
            unused = at
        at = w.anons[at].above
    if unused:
        take(w, child, unused, parent.anon_chain)
        return
    at = anon_make(w, parent.anon_chain, parent.anon_vma)
    take(w, child, at, at)


cdef void anon_leave(kw_world *w, kw_vma *v) noexcept nogil:
    cdef int32_t at = v.anon_chain, above
    if v.anon_vma == 0:
        return
    w.anons[v.anon_vma].areas -= 1
    v.anon_vma = v.anon_chain = 0
    v.linked = 0
    while at:
        w.anons[at].users -= 1
        if w.anons[at].users:
            return
        above = w.anons[at].above
        if w.anons[at].parent:
            w.anons[w.anons[at].parent].children -= 1
        anon_free(w, at)
        at = above


cdef int32_t anon_family(kw_world *w, const kw_vma *v) noexcept nogil:
    cdef int32_t at = v.anon_chain
    while w.anons[at].above:
        at = w.anons[at].above
    return w.anons[at].number
