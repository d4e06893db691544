"""Pages of a Host moved from one NUMA node to another, compiled: all mappings of a folio follow it.

The contract of every function stands in `_moving.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    child_row, entry_decode, entry_leaf, entry_none, leaf_find, level_shift, make_entry, make_leaf, pte_present,
)
from ksmwalk.memory._frames cimport (
    folio_alloc, folio_extra_refs, folio_head, folio_mappings, folio_pages, frame_alloc, frame_free, huge_alloc, is_huge,
    lru_add, normal_pfn,
)
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._folio cimport visited_before
from ksmwalk.memory._leaves cimport touched
from ksmwalk.memory._reclaim cimport item_reaches
from ksmwalk.layout._layout cimport *


cdef struct Move:
    int64_t old, new   # heads of the folios
    int64_t pages
    int64_t left       # mappings that still have to follow
    int32_t last       # the area that the kernel comes by last, of those that did
    bint by_ptes       # small ptes map the folio there


cdef inline void follow(kw_world *w, Move *m, int32_t mm, uint64_t addr, uint64_t *entry, int level) noexcept nogil:
    """A leaf that maps the folio maps it where it is now."""
    cdef int64_t pfn
    cdef int32_t v
    if level == 1 and not pte_present(entry[0]):
        return
    pfn = normal_pfn(w, entry[0], level)
    if pfn < m.old or pfn >= m.old + m.pages:
        return
    if m.pages > 1:
        v = vma_find(w, mm, addr)
        if v and (m.last == 0 or not visited_before(w, v, m.last)):
            m.last = v
            m.by_ptes = level == 1
    pfn += m.new - m.old
    if level == 1:
        entry[0] = make_entry(<uint64_t>pfn, entry_decode(entry[0]) & ~PTE_PFN_MASK)
    else:
        entry[0] = make_leaf(<uint64_t>pfn, entry_decode(entry[0]) & ~PTE_PFN_MASK, level)
    m.left -= 1 if level == 1 else 512
    touched(w, mm)


cdef void follow_at(kw_world *w, Move *m, int32_t mm, uint64_t addr) noexcept nogil:
    """Where one page of the folio is mapped most likely."""
    cdef int level
    cdef uint64_t *entry
    if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
        return
    entry = leaf_find(w, w.mms[mm].root, addr, &level)
    if entry != NULL and level <= 2:
        follow(w, m, mm, addr, entry, level)


cdef void follow_below(kw_world *w, Move *m, int32_t mm, int64_t row, int level, uint64_t base) noexcept nogil:
    """Wherever else it is mapped, in all tables from this row on."""
    cdef uint64_t *p = w.rows + row * 512
    cdef int64_t child
    cdef int i
    for i in range(512):
        if entry_none(p[i]):
            continue
        if level <= 2 and entry_leaf(p[i], level):
            follow(w, m, mm, base + (<uint64_t>i << level_shift(level)), &p[i], level)
        elif not entry_leaf(p[i], level):
            child = child_row(w, &p[i])
            if child >= 0:
                follow_below(w, m, mm, child, level - 1, base + (<uint64_t>i << level_shift(level)))


cdef void follow_items(kw_world *w, Move *m, int32_t node) noexcept nogil:
    """The mappings of a KSM page that its items lead to: where they are, and there in areas that descend from theirs."""
    cdef int32_t mm, item = w.nodes[node].items
    while item and m.left > 0:
        for mm in range(1, <int32_t>w.ctl.mms_used):
            if w.mms[mm].root and item_reaches(w, item, vma_find(w, mm, w.items[item].addr)):
                follow_at(w, m, mm, w.items[item].addr)
        item = w.links[item].left


cdef void follow_all(kw_world *w, Move *m, uint64_t addr) noexcept nogil:
    """All mappings: relatives by fork have it at the same address."""
    cdef int32_t mm, used = <int32_t>w.ctl.mms_used
    if m.pages == 1:
        for mm in range(1, used):
            if m.left > 0:
                follow_at(w, m, mm, addr)
    for mm in range(1, used):
        if m.left > 0 and w.mms[mm].root and not w.mms[mm].flags & MM_BACKING:
            follow_below(w, m, mm, w.mms[mm].root, <int>w.ctl.levels, 0)


cdef void follow_object(kw_world *w, Move *m) noexcept nogil:
    """The file or shared object that a page is of has it where it is now."""
    cdef int32_t mm
    m.left = 1
    for mm in range(1, <int32_t>w.ctl.mms_used):
        if m.left > 0 and w.mms[mm].root and w.mms[mm].flags & MM_BACKING:
            follow_below(w, m, mm, w.mms[mm].root, <int>w.ctl.levels, 0)


cdef void take_over(kw_world *w, Move *m) noexcept nogil:
    """The new frames are what the old ones were, and those are free."""
    cdef int64_t i, old, new
    cdef int32_t node
    for i in range(m.pages):
        old = m.old + i
        new = m.new + i
        w.f_flags[new] = w.f_flags[old]
        w.f_mapcount[new] = w.f_mapcount[old]
        w.f_key[new] = w.f_key[old]
        node = w.f_node[old]
        if node:
            w.f_node[new] = node
            w.f_node[old] = 0
            w.nodes[node].pfn = w.nodes[node].last_pfn = <int32_t>new
        w.f_mapcount[old] = 0
    w.f_extra[m.new] = w.f_extra[m.old]
    w.f_extra[m.old] = 0
    if w.ctl.folios and m.pages > 1:
        w.owners[m.new >> 2] = w.owners[m.old >> 2]
        if m.by_ptes and not w.ctl.kernel & SWITCH_MOVE_FORGETS:
            w.owners[m.new >> 2].shared |= FOLIO_PARTED
    frame_free(w, m.old)


cdef bint piece_by_piece(kw_world *w, Move *m, uint64_t addr) noexcept nogil:
    """Are the mappings of a folio taken away one by one? So it is where the last one is by ptes; the folio is to be split then."""
    cdef Move look = m[0]
    if m.pages == 1 or not w.f_flags[m.old] & FRAME_ANON or m.pages == 512 and <int64_t>w.owners[m.old >> 2].total * 512 == m.left:
        return False
    look.new = look.old
    follow_all(w, &look, addr)
    return look.by_ptes


cdef int follow_ksm(kw_world *w, Move *m, int32_t node) noexcept nogil:
    """All mappings of a KSM page, or none where its items do not lead to all."""
    cdef Move back
    follow_items(w, m, node)
    if m.left <= 0:
        return KW_OK
    back = m[0]
    back.old, back.new = m.new, m.old
    back.left = folio_mappings(w, m.old) - m.left
    follow_items(w, &back, node)
    return KW_EBUSYENTRY


cdef int move_folio(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int nid) noexcept nogil:
    cdef Move m
    cdef bint file = w.f_flags[pfn] & FRAME_FILE != 0, apart
    m.old = folio_head(w, pfn)
    m.pages = folio_pages(w, m.old)
    m.left = folio_mappings(w, m.old)
    m.last = 0
    m.by_ptes = False
    if w.f_flags[m.old] & (FRAME_LOCKED | FRAME_LRU):
        return KW_EBUSYENTRY
    apart = piece_by_piece(w, &m, addr)
    if folio_extra_refs(w, m.old) != file:
        # they are taken away before that is looked at
        if apart and not w.ctl.kernel & SWITCH_NO_SMART_SCAN:
            w.owners[m.old >> 2].shared |= FOLIO_PARTED
        return KW_EBUSYENTRY
    if m.pages == 1:
        m.new = frame_alloc(w, nid, 0, FRAME_ANON)
    elif is_huge(w, m.old):
        m.new = huge_alloc(w, nid)
    else:
        m.new = folio_alloc(w, nid, w.owners[m.old >> 2].order)
    if m.new < 0:
        return KW_ENOFRAMES
    if w.f_nid[m.new] != nid:
        frame_free(w, m.new)
        return KW_ENOFRAMES
    if not w.f_node[m.old]:
        follow_all(w, &m, addr)
    elif follow_ksm(w, &m, w.f_node[m.old]) != KW_OK:
        frame_free(w, m.new)
        return KW_EBUSYENTRY
    if file:
        follow_object(w, &m)
    m.by_ptes = apart
    take_over(w, &m)
    if not file:
        lru_add(w, mm, m.new)
    return KW_OK
