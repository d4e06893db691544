"""Swap slots that came from outside, held against page tables and frames before the engine works on them.

The contract stands in `_check_swap.pxd`.
"""
from libc.stdint cimport int64_t

from ksmwalk.memory._check cimport Check, counted, free_list, refuse, within
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
    if w.slot_of[pfn] != i or w.f_flags[pfn] & (FRAME_HEAD | FRAME_TAIL | FRAME_ZERO) or w.f_key[pfn] != s.key:
        return refuse(c, b"slots", b"pfn", i, pfn, b"not a small page of this slot and content")
    c.held[pfn] += 1
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
    if counted(c, b"ctl", b"slots_live", 0, ctl.slots_live, live, b"slots in use"):
        return -1
    if live > ctl.slots_most:
        return refuse(c, b"ctl", b"slots_most", 0, ctl.slots_most, b"fewer pages than are swapped out")
    for i in range(c.known if ctl.slots_used > 1 else 0):
        if w.slot_of[i] and (not 0 < w.slot_of[i] < ctl.slots_used or w.slots[w.slot_of[i]].pfn != i):
            return refuse(c, b"slot_of", NULL, i, w.slot_of[i], b"not the slot of this frame")
    return 0
