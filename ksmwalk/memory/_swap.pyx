"""Swap slots of a Host and the swap cache, compiled.

The contract of every function stands in `_swap.pxd`.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from ksmwalk.memory._frames cimport cache_forget, folio_head, put_ref
from ksmwalk.layout._layout cimport *


cdef int32_t slot_new(kw_world *w, int64_t pfn) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int32_t slot
    cdef kw_slot *s
    if c.slots_live >= c.slots_most:
        return KW_NONE
    if c.slots_free:
        slot = <int32_t>c.slots_free
        c.slots_free = w.slots[slot].count
    elif c.slots_used < c.slots_cap:
        slot = <int32_t>c.slots_used
        c.slots_used += 1
    else:
        return KW_NONE
    c.slots_live += 1
    s = &w.slots[slot]
    memset(s, 0, sizeof(kw_slot))
    s.key = w.f_key[pfn]
    s.flags = SLOT_USED | (SLOT_KSM if w.f_flags[pfn] & FRAME_KSM else 0)
    cache_add(w, slot, pfn)
    return slot


# ------------------------------------------------------------------ whom swapoff goes through

cdef inline bint on_list(kw_world *w, int32_t mm) noexcept nogil:
    return w.mms[mm].swap_prev != 0 or w.ctl.swap_first == mm


cdef void put_after(kw_world *w, int32_t mm, int32_t prev) noexcept nogil:
    """prev 0: at the head."""
    cdef int32_t next = w.mms[prev].swap_next if prev else <int32_t>w.ctl.swap_first
    w.mms[mm].swap_prev = prev
    w.mms[mm].swap_next = next
    if prev:
        w.mms[prev].swap_next = mm
    else:
        w.ctl.swap_first = mm
    if next:
        w.mms[next].swap_prev = mm


cdef void mm_goes_out(kw_world *w, int32_t mm) noexcept nogil:
    if not on_list(w, mm):
        put_after(w, mm, 0)


cdef void mm_copied(kw_world *w, int32_t child, int32_t parent) noexcept nogil:
    if not on_list(w, child):
        put_after(w, child, parent if on_list(w, parent) else 0)


cdef void mm_off_list(kw_world *w, int32_t mm) noexcept nogil:
    cdef kw_mm *m = &w.mms[mm]
    if not on_list(w, mm):
        return
    if m.swap_prev:
        w.mms[m.swap_prev].swap_next = m.swap_next
    else:
        w.ctl.swap_first = m.swap_next
    if m.swap_next:
        w.mms[m.swap_next].swap_prev = m.swap_prev
    m.swap_next = m.swap_prev = 0


# ------------------------------------------------------------------ references to slots, and the swap cache

cdef void slot_share(kw_world *w, int32_t slot) noexcept nogil:
    kw_check(0 < slot < w.ctl.slots_used)
    w.slots[slot].count += 1


cdef void slot_put(kw_world *w, int32_t slot) noexcept nogil:
    cdef kw_slot *s = &w.slots[slot]
    kw_check(0 < slot < w.ctl.slots_used and s.flags & SLOT_USED)
    s.count -= 1
    if s.count > 0:
        return
    cache_drop(w, slot)
    memset(s, 0, sizeof(kw_slot))
    s.count = <int32_t>w.ctl.slots_free
    w.ctl.slots_free = slot
    w.ctl.slots_live -= 1


cdef void cache_add(kw_world *w, int32_t slot, int64_t pfn) noexcept nogil:
    kw_check(0 < pfn < w.ctl.nr_frames and w.slot_of[pfn] == 0 and w.slots[slot].pfn == 0)
    w.slots[slot].pfn = <int32_t>pfn
    w.slot_of[pfn] = slot
    w.f_extra[folio_head(w, pfn)] += 1


cdef void cache_drop(kw_world *w, int32_t slot) noexcept nogil:
    cdef int64_t pfn = w.slots[slot].pfn
    if pfn == 0:
        return
    cache_forget(w, pfn)
    w.f_flags[pfn] |= FRAME_DIRTY
    put_ref(w, folio_head(w, pfn))
