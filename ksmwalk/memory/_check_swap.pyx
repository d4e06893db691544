"""Swap slots and families of areas that came from outside, held against areas, page tables and frames.

The contract stands in `_check_swap.pxd`.
"""
from libc.stdint cimport int64_t

from ksmwalk.memory._anon cimport anon_reaches
from ksmwalk.memory._check cimport SEEN_FREE, Check, counted, free_list, refuse, within
from ksmwalk.memory._frames cimport folio_head
from ksmwalk.layout._layout cimport *


cdef enum:
    SLOT_BITS = SLOT_USED | SLOT_KSM | SLOT_EXCLUSIVE


cdef int one_slot(Check *c, int64_t i) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_slot *s = &w.slots[i]
    cdef int64_t pfn = s.pfn
    if s.flags & ~SLOT_BITS or not s.flags & SLOT_USED:
        return refuse(c, b"slots", b"flags", i, s.flags, b"neither in use nor on the list of free slots")
    if s.count < 1 or counted(c, b"slots", b"count", i, s.count, c.swapped[i], b"entries that mean it"):
        return counted(c, b"slots", b"count", i, s.count, c.swapped[i], b"entries that mean it, one at least")
    if within(c, b"slots", b"root", i, s.root, 0, w.ctl.anon_vmas + 1, b"not given out yet"):
        return -1
    if pfn == 0:
        if s.root or s.addr:
            return refuse(c, b"slots", b"root", i, s.root, b"of a page that is not in the swap cache")
        return 0
    if not 0 < pfn < c.known or w.f_flags[pfn] & (FRAME_USED | FRAME_ANON) != (FRAME_USED | FRAME_ANON):
        return refuse(c, b"slots", b"pfn", i, pfn, b"no anonymous page")
    if w.slot_of[pfn] != i or w.f_flags[pfn] & FRAME_ZERO or w.f_key[pfn] != s.key or folio_head(w, pfn) >= c.known:
        return refuse(c, b"slots", b"pfn", i, pfn, b"not a page of this slot and content")
    c.held[folio_head(w, pfn)] += 1      # also a part of a huge page that goes out in part
    return 0


cdef int swap_list(Check *c) noexcept nogil:
    """The address spaces that swapoff goes through."""
    cdef kw_world *w = c.w
    cdef int64_t at = w.ctl.swap_first, before = 0, n = 0, i
    while at:
        if not 0 < at < w.ctl.mms_used or c.mms[at] or w.mms[at].flags & MM_BACKING or w.mms[at].swap_prev != before:
            if before == 0:
                return refuse(c, b"ctl", b"swap_first", 0, at, b"not the first that swapoff goes through")
            return refuse(c, b"mms", b"swap_next", before, at, b"not the next that swapoff goes through")
        n += 1
        before = at
        at = w.mms[at].swap_next
    for i in range(1, w.ctl.mms_used):
        n -= w.mms[i].swap_prev != 0 or i == w.ctl.swap_first
        if w.mms[i].swap_next and not w.mms[i].swap_prev and i != w.ctl.swap_first:
            return refuse(c, b"mms", b"swap_next", i, w.mms[i].swap_next, b"on no list")
    if n:
        return refuse(c, b"ctl", b"swap_first", 0, w.ctl.swap_first, b"some say that they are on its list and are not")
    return 0


cdef int swap(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_ctl *ctl = w.ctl
    cdef int64_t i, live = 0
    cdef kw_slot *none = &w.slots[0]
    if none.key or none.addr or none.pfn or none.count or none.root or none.flags:
        return refuse(c, b"slots", NULL, 0, none.count, b"record 0 stands for none and must be empty")
    if free_list(c, b"slots", b"slots_free", b"count", <char *>w.slots, sizeof(kw_slot), <char *>&none.count - <char *>none,
                 ctl.slots_used, ctl.slots_free, c.slots):
        return -1
    for i in range(1, ctl.slots_used):
        if c.slots[i] == 0:
            live += 1
            if one_slot(c, i):
                return -1
    if swap_list(c):
        return -1
    if counted(c, b"ctl", b"slots_live", 0, ctl.slots_live, live, b"slots in use"):
        return -1
    if live > ctl.slots_most:
        return refuse(c, b"ctl", b"slots_most", 0, ctl.slots_most, b"fewer pages than are swapped out")
    for i in range(c.known if ctl.slots_used > 1 else 0):
        if w.slot_of[i] and (not 0 < w.slot_of[i] < ctl.slots_used or w.slots[w.slot_of[i]].pfn != i):
            return refuse(c, b"slot_of", NULL, i, w.slot_of[i], b"not the slot of this frame")
    return 0


# ------------------------------------------------------------------ families

cdef int counted_of(Check *c) noexcept nogil:
    """What of each record of a family areas and other records say."""
    cdef kw_world *w = c.w
    cdef kw_anon *a
    cdef kw_vma *v
    cdef int64_t i
    for i in range(1, w.ctl.anons_used):
        a = &w.anons[i]
        if c.anon_marks[i]:
            continue
        if within(c, b"anons", b"above", i, a.above, 0, w.ctl.anons_used, b"no record") or a.above and c.anon_marks[a.above]:
            return refuse(c, b"anons", b"above", i, a.above, b"no record in use")
        if within(c, b"anons", b"parent", i, a.parent, 0, w.ctl.anons_used, b"no record") or a.parent and c.anon_marks[a.parent]:
            return refuse(c, b"anons", b"parent", i, a.parent, b"no record in use")
        if within(c, b"anons", b"number", i, a.number, 1, w.ctl.anon_vmas + 1, b"not given out yet"):
            return -1
        # Those above were made before: a chain ends.
        if a.above and w.anons[a.above].number >= a.number or a.parent and w.anons[a.parent].number >= a.number:
            return refuse(c, b"anons", b"number", i, a.number, b"made before what it descends from")
        if (a.above == 0) != (a.parent == 0):
            return refuse(c, b"anons", b"parent", i, a.parent, b"a root has neither, all others have both")
        c.anons[a.above].users += 1
        c.anons[a.parent].children += 1
    for i in range(1, w.ctl.vmas_used):
        v = &w.vmas[i]
        if c.vmas[i] == SEEN_FREE:
            continue
        if within(c, b"vmas", b"anon_vma", i, v.anon_vma, 0, w.ctl.anons_used, b"no record"):
            return -1
        if within(c, b"vmas", b"anon_chain", i, v.anon_chain, 0, w.ctl.anons_used, b"no record"):
            return -1
        if c.anon_marks[v.anon_vma] or c.anon_marks[v.anon_chain] or (v.anon_chain == 0) != (v.anon_vma == 0):
            return refuse(c, b"vmas", b"anon_chain", i, v.anon_chain, b"a chain and an anon_vma come together, both in use")
        if v.anon_chain and not anon_reaches(w, v.anon_vma, v):
            return refuse(c, b"vmas", b"anon_vma", i, v.anon_vma, b"does not stand in its chain")
        c.anons[v.anon_vma].areas += 1
        c.anons[v.anon_chain].users += 1
    return 0


cdef int families(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_anon *none = &w.anons[0]
    cdef kw_anon *a
    cdef int64_t i
    if none.above or none.parent or none.number or none.areas or none.children or none.users:
        return refuse(c, b"anons", NULL, 0, none.number, b"record 0 stands for none and must be empty")
    if free_list(c, b"anons", b"anons_free", b"above", <char *>w.anons, sizeof(kw_anon), <char *>&none.above - <char *>none,
                 w.ctl.anons_used, w.ctl.anons_free, c.anon_marks):
        return -1
    if counted_of(c):
        return -1
    for i in range(1, w.ctl.anons_used):
        a = &w.anons[i]
        if c.anon_marks[i]:
            continue
        if counted(c, b"anons", b"areas", i, a.areas, c.anons[i].areas, b"areas whose new pages get it"):
            return -1
        if counted(c, b"anons", b"children", i, a.children, c.anons[i].children, b"records whose parent it is"):
            return -1
        if counted(c, b"anons", b"users", i, a.users, c.anons[i].users, b"areas and records that refer to it"):
            return -1
        if a.users == 0:
            return refuse(c, b"anons", b"users", i, a.users, b"in use, but nobody refers to it")
    return 0
