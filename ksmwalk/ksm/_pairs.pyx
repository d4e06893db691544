"""Merging where nothing is in the way: what `_engine.pyx` does, for the many pages of which nothing special is to be said.

The contract stands in `_pairs.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from ksmwalk._core cimport eligible, pte_find
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._frames cimport LARGE
from ksmwalk.ksm._items cimport event
from ksmwalk.ksm._late cimport domain_tree
from ksmwalk.ksm._remap cimport become_ksm, held, map_ksm, protected, unmapped
from ksmwalk.ksm._stable cimport append_item, has_room, stable_insert
from ksmwalk.ksm._unstable cimport unstable_erase
from ksmwalk.layout._layout cimport *


cdef inline bint in_hand(kw_world *w, uint64_t e, int64_t pfn) noexcept nogil:
    """Whether merging this eligible page, which e maps, takes more than a look at it: large, locked, held by somebody."""
    return (w.f_flags[pfn] & (FRAME_KSM | FRAME_LOCKED | LARGE) != 0
            or w.f_extra[pfn] != 0 and held(w, e, pfn))


cdef inline void out_of_tree(kw_world *w, kw_item *q) noexcept nogil:
    """The item is in no unstable tree; it may have been in one of an earlier scan, or of this one until now."""
    if q.flags & ITEM_UNSTABLE:
        w.ksm.pages_unshared -= 1
        q.flags &= <uint8_t>~ITEM_UNSTABLE


cdef bint join_node(kw_world *w, int32_t item, uint64_t *pte, int64_t pfn, int32_t node) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    cdef kw_node *p = &w.nodes[node]
    if p.flags == NODE_USED | NODE_CHAIN:
        node = p.dups           # no search would change the chain, or its first has no room
        p = &w.nodes[node]
        if p.dup_next == 0:
            return False
    elif p.flags != NODE_USED:
        return False
    if p.pfn < 0 or p.pfn == pfn or not has_room(w, node, 0) or in_hand(w, pte[0], pfn):
        return False
    if w.vmas[w.cursor.vma].flags & VM_LOCKED:
        return False
    out_of_tree(w, q)
    protected(w, pte[0], pfn)
    map_ksm(w, q.mm, pte, p.pfn)
    unmapped(w, q.mm, pfn)
    event(w, EV_ADD, q.mm, p.pfn, item, node, 0)
    append_item(w, item, node)
    w.done.hits += 1
    return True


cdef bint pair_up(kw_world *w, int32_t item, uint64_t *pte, int64_t pfn, int32_t other, uint64_t *entry, int tree) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    cdef kw_item *b = &w.items[other]
    cdef int64_t twin
    cdef int32_t v, node
    if domain_tree(w, other) != tree or w.mms[b.mm].flags & MM_EXITING or in_hand(w, pte[0], pfn):
        return False
    kw_check(entry == NULL or entry == pte_find(w, w.mms[b.mm].root, b.addr))
    if entry == NULL:
        entry = pte_find(w, w.mms[b.mm].root, b.addr)
    if entry == NULL or (entry[0] & (PTE_P | PTE_SPECIAL)) != PTE_P:
        return False
    twin = <int64_t>((entry[0] & PTE_PFN_MASK) >> 12)
    if twin >= w.ctl.nr_frames or twin == pfn or not eligible(w.f_flags[twin]) or in_hand(w, entry[0], twin):
        return False
    if w.f_key[twin] != w.f_key[pfn] or not w.ctl.stable_free and w.ctl.stable_used >= w.ctl.stable_cap:
        return False
    v = vma_find(w, b.mm, b.addr)
    if v <= 0 or (w.vmas[v].flags & (VM_MERGEABLE | VM_LOCKED)) != VM_MERGEABLE or w.vmas[v].anon_vma == 0:
        return False
    out_of_tree(w, q)
    become_ksm(w, q.mm, pte, pfn)
    event(w, EV_NEW, q.mm, pfn, item, 0, 0)
    protected(w, entry[0], twin)
    map_ksm(w, b.mm, entry, pfn)
    unmapped(w, b.mm, twin)
    event(w, EV_ADD, b.mm, pfn, other, 0, 0)
    unstable_erase(w, other)
    out_of_tree(w, b)
    node = stable_insert(w, pfn, w.f_key[pfn], tree)
    kw_check(node > 0)
    append_item(w, other, node)
    append_item(w, item, node)
    w.done.merges += 1
    return True
