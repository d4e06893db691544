"""The unstable tree: items of pages that were alone when the scan came by, over a Host's arrays.

The contract of every function stands in `_unstable.pxd`. The tree is searched by the present contents of the pages in
it. Looking each page up would cost a descent through the page tables per comparison, so the tree compares the key that
was looked up last, and looks again only where something may have happened since: see `unstable_search`.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t

from ksmwalk._core cimport entry_pfn, leaf_find
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.ksm._trees cimport rb_erase, rb_insert
from ksmwalk.ksm._late cimport (
    domain_tree, indexed, items_keyed, kw_keyed, kw_slots_find, kw_slots_hash, late, late_add, late_build, late_erase,
)
from ksmwalk.ksm._stable cimport tree_of, unstable_root
from ksmwalk.layout._layout cimport *


cdef enum:
    GENERATION_BITS = 0x7FFFFFFF
    NO_INDEX = -2      # a search that can't be answered by look-up


cdef inline char *link_rb(kw_world *w) noexcept nogil:
    return <char *> &w.links[0].left


cdef void spoil(kw_world *w) noexcept nogil:
    """What the index goes by holds no longer: on with the tree."""
    if indexed(w):
        late(w).spoiled = True
        late_build(w)


cdef inline int unstable_tree(kw_world *w, int32_t item) noexcept nogil:
    """Number of the unstable tree an item is in: that of its root (merge_across_nodes may have changed in mid-scan)."""
    cdef int nid, first = w.mms[w.items[item].mm].domain * <int>w.ctl.nr_nodes
    cdef int32_t parent
    if w.ctl.nr_nodes == 1:
        return first
    while True:
        parent = w.links[item].parent
        if parent == 0:
            break
        item = parent
    for nid in range(w.ctl.nr_nodes):
        if unstable_root(w, first + nid)[0] == item:
            return first + nid
    return first


cdef void unstable_erase(kw_world *w, int32_t item) noexcept nogil:
    if indexed(w):
        late_erase(w, item)
    if not indexed(w):
        rb_erase(link_rb(w), sizeof(kw_link), unstable_root(w, unstable_tree(w, item)), item)


cdef int64_t item_page(kw_world *w, int32_t item) noexcept nogil:
    """The page at an item's address now, or KW_NONE: gone, a zero page, no longer mergeable, the process dead."""
    cdef int32_t mm = w.items[item].mm
    cdef uint64_t addr = w.items[item].addr
    cdef int32_t vma
    cdef uint64_t *leaf
    cdef int level = 1
    cdef int64_t pfn
    if w.mms[mm].flags & MM_EXITING:
        return KW_NONE
    vma = vma_find(w, mm, addr)
    if vma <= 0 or not w.vmas[vma].flags & VM_MERGEABLE or w.vmas[vma].anon_vma == 0:
        return KW_NONE
    leaf = leaf_find(w, w.mms[mm].root, addr, &level)
    if leaf == NULL or leaf[0] & PTE_SPECIAL:
        return KW_NONE
    if not leaf[0] & PTE_P and w.ctl.kernel & SWITCH_NONE_NO_PARTNER:
        return KW_NONE
    pfn = <int64_t>entry_pfn(leaf[0], level)
    if level == 2:
        pfn += <int64_t>((addr >> 12) & 511)
    return pfn if page_eligible(w, pfn) else KW_NONE


cdef inline bint no_partner(kw_world *w, int32_t item) noexcept nogil:
    """Whether whoever meets the page of this item in the tree gives up."""
    return KW_UNLIKELY(w.ctl.kernel & SWITCH_NONE_NO_PARTNER != 0) and item_page(w, item) < 0


cdef inline void mark_unstable(kw_world *w, int32_t item) noexcept nogil:
    w.items[item].flags |= ITEM_UNSTABLE
    w.items[item].node = 0
    w.items[item].seq = <uint8_t>w.cursor.seqnr
    w.ksm.pages_unshared += 1
    w.done.inserted += 1


cdef int32_t indexed_search(kw_world *w, int32_t item, int64_t pfn, uint64_t key, int64_t *twin) noexcept nogil:
    """`unstable_search` of a tree in which nothing has changed; NO_INDEX: the tree itself is needed."""
    cdef kw_keyed of = items_keyed(w)
    cdef int tree = domain_tree(w, item)
    cdef int32_t t = kw_slots_find(&late(w).unstable, kw_slots_hash(key, tree), &of, key, 0)
    cdef int64_t page
    if t == 0:
        # An empty page may have gone in this very visit, with the split for the zero page that was to take its place.
        if key == 0 and item_page(w, item) != pfn or not late_add(w, item):
            return NO_INDEX
        mark_unstable(w, item)
        return 0
    if domain_tree(w, t) != tree:
        return NO_INDEX     # its hash is the same
    page = item_page(w, t)
    if page < 0 or page == pfn:
        return GAVE_UP
    if w.f_key[page] != key:
        return NO_INDEX
    if not w.ksm.merge_across_nodes and w.f_nid[page] != 0:
        return GAVE_UP
    twin[0] = page
    return t


cdef int32_t unstable_search(kw_world *w, int32_t item, int64_t pfn, uint64_t key, int tree,
                             int64_t *twin) noexcept nogil:
    """An item whose page has the same content now (`twin`: its page), 0 after inserting this one, or GAVE_UP.

    The key in a link was the page's content when it was looked up last. It still is, if no address space changed since:
    `generation` counts how often others had changed one since the engine looked last. Where it may have changed, and
    where the outcome depends on which page it is (equal contents), the page is looked up.
    """
    cdef int32_t *root
    cdef int32_t t, parent = 0
    cdef uint32_t generation = <uint32_t>(w.ksm.generation & GENERATION_BITS)
    cdef bint trusted = w.ksm.generation == w.ksm.tree_generation
    cdef bint right = False
    cdef kw_link *link
    cdef uint64_t other
    cdef int64_t page
    cdef bint alone = no_partner(w, item)
    if indexed(w):
        t = NO_INDEX
        if trusted and tree == domain_tree(w, item) and not alone:
            t = indexed_search(w, item, pfn, key, twin)
        if t != NO_INDEX:
            return t
        spoil(w)
    root = unstable_root(w, tree)
    t = root[0]
    while t:
        link = &w.links[t]
        other = link.key
        if KW_UNLIKELY(other == key or other == 0 or (not trusted and link.aux >> 1 != generation)):
            page = item_page(w, t)
            if page < 0 or page == pfn:
                return GAVE_UP
            other = w.f_key[page]
            link.key = other
            link.aux = (link.aux & 1) | (generation << 1)
            if other == key:
                if not w.ksm.merge_across_nodes and tree_of(w, w.items[t].mm, page) != tree:
                    return GAVE_UP      # it moved to another NUMA node: its own visit will sort that out
                twin[0] = page
                return t
        parent = t
        right = key > other
        t = link.right if right else link.left
    link = &w.links[item]
    link.key = 0 if alone else key      # 0: whoever meets it looks
    link.aux = generation << 1
    mark_unstable(w, item)
    rb_insert(link_rb(w), sizeof(kw_link), root, parent, right, item)
    return 0
