"""The merge engine: what ksmd does with a page once the cursor has found it, over a Host's arrays.

The contract of every function stands in `_ksmd.pxd`; the rules are those of `docs/model.md`. Three things are worth
knowing before reading on:

* A stable node is *stale* when its page is gone (pfn -1). Nothing happens to it until it is met.
* The unstable tree is searched by the present contents of the pages in it. Looking each page up would cost a descent
  through the page tables per comparison, so the tree compares the key that was looked up last, and looks again only
  where something may have happened since: see `unstable_search`.
* Merging replaces mappings, never contents, so it cannot falsify a key in the unstable tree. The one exception, empty
  subpages that become the zero page when a huge page is split, is met by always looking up key 0.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from ksmwalk._core cimport World, entry_decode, entry_pfn, leaf_find, make_entry, pte_find, pte_present
from ksmwalk._ksmd cimport *
from ksmwalk._mm cimport break_ksm, folio_extra_refs, frame_map, frame_unmap, lru_drain, split_folio_at, unmerge_mm, vma_find
from ksmwalk._scan cimport event, items_drop, scan_begin, scan_next, slot_remove
from ksmwalk._trees cimport rb_erase, rb_insert, rb_replace

cdef extern from * nogil:
    void prefetch "__builtin_prefetch"(const void *p) noexcept

cdef enum:
    EFAULT = 14
    GAVE_UP = -1       # a search that met a page which is gone: neither found nor inserted
    AGAIN = -2         # a node was removed under the search: start again at the root
    GENERATION_BITS = 0x7FFFFFFF
    BECOME_KSM = -1    # instead of a frame to merge with
    AHEAD = 16         # searches prepared side by side
    LARGE = FRAME_HEAD | FRAME_TAIL


# ------------------------------------------------------------------ the two kinds of trees

cdef inline char *link_rb(kw_world *w) noexcept nogil:
    return <char *> &w.links[0].left


cdef inline char *node_rb(kw_world *w) noexcept nogil:
    return <char *> &w.nodes[0].left


cdef inline int tree_nid(kw_world *w, int64_t pfn) noexcept nogil:
    """Number of the NUMA tree a page belongs to: one for all while merging across nodes."""
    return 0 if w.ksm.merge_across_nodes else w.f_nid[pfn]


cdef inline int32_t *stable_root(kw_world *w, int nid) noexcept nogil:
    return &w.trees[nid]


cdef inline int32_t *unstable_root(kw_world *w, int nid) noexcept nogil:
    return &w.trees[w.ctl.nr_nodes + nid]


# ------------------------------------------------------------------ stable nodes

cdef int32_t node_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int64_t i = c.nodes_free
    if i:
        c.nodes_free = w.nodes[i].left
    else:
        if c.nodes_used >= c.nodes_cap:
            return KW_ENONODES
        i = c.nodes_used
        c.nodes_used += 1
    memset(&w.nodes[i], 0, sizeof(kw_node))
    w.nodes[i].flags = NODE_USED
    w.nodes[i].pfn = -1
    c.nodes_live += 1
    return <int32_t>i


cdef void node_free(kw_world *w, int32_t node) noexcept nogil:
    kw_check(node > 0 and w.nodes[node].flags & NODE_USED)
    memset(&w.nodes[node], 0, sizeof(kw_node))
    w.nodes[node].left = <int32_t>w.ctl.nodes_free
    w.ctl.nodes_free = node
    w.ctl.nodes_live -= 1


cdef inline bint has_room(kw_world *w, int32_t node, int32_t more) noexcept nogil:
    """Whether the node takes a newcomer, and `more` after it. One without items takes none."""
    cdef int32_t count = w.nodes[node].count
    return count > 0 and count + more < w.ksm.max_page_sharing


cdef void dup_add(kw_world *w, int32_t chain, int32_t dup) noexcept nogil:
    """Put a node at the head of a chain."""
    cdef int32_t first = w.nodes[chain].dups
    w.nodes[dup].flags |= NODE_DUP
    w.nodes[dup].chain = chain
    w.nodes[dup].dup_prev = 0
    w.nodes[dup].dup_next = first
    if first:
        w.nodes[first].dup_prev = dup
    w.nodes[chain].dups = dup


cdef void dup_unlink(kw_world *w, int32_t dup) noexcept nogil:
    cdef kw_node *p = &w.nodes[dup]
    if p.dup_prev:
        w.nodes[p.dup_prev].dup_next = p.dup_next
    else:
        w.nodes[p.chain].dups = p.dup_next
    if p.dup_next:
        w.nodes[p.dup_next].dup_prev = p.dup_prev
    p.dup_prev = p.dup_next = p.chain = 0
    p.flags &= <uint8_t>~NODE_DUP


cdef void node_unlink(kw_world *w, int32_t node) noexcept nogil:
    """Take a page's node out of its chain, its tree or the list of those that wait to change trees."""
    cdef kw_node *p = &w.nodes[node]
    if p.flags & NODE_MIGRATE:
        if p.right:
            w.nodes[p.right].left = p.left
        else:
            w.ksm.migrate = p.left
        if p.left:
            w.nodes[p.left].right = p.right
        p.flags &= <uint8_t>~NODE_MIGRATE
    elif p.flags & NODE_DUP:
        dup_unlink(w, node)     # the chain stays, even if this was its last
        w.ksm.dups -= 1
    else:
        rb_erase(node_rb(w), sizeof(kw_node), stable_root(w, p.nid), node)


cdef void node_remove(kw_world *w, int32_t node) noexcept nogil:
    """A node goes as a whole: its items, newest first, then itself."""
    cdef kw_node *p = &w.nodes[node]
    cdef kw_item *q
    cdef int32_t item = p.items, following
    cdef int64_t pfn = <int64_t>p.prune_time
    while item:
        following = w.links[item].left
        q = &w.items[item]
        if following:
            w.ksm.pages_sharing -= 1
            event(w, EV_RMI, q.mm, pfn, item, node, 0)
        else:
            w.ksm.pages_shared -= 1
        w.mms[q.mm].nr_merging -= 1
        q.flags &= <uint8_t>~ITEM_STABLE
        q.node = 0
        item = following
    event(w, EV_RMK, 0, pfn, 0, node, 0)
    node_unlink(w, node)
    if p.pfn >= 0:
        w.f_node[p.pfn] = 0
    node_free(w, node)


cdef inline bint node_stale(kw_world *w, int32_t node) noexcept nogil:
    return w.nodes[node].pfn < 0


cdef void append_item(kw_world *w, int32_t item, int32_t node) noexcept nogil:
    """Put an item on its node's list, newest first."""
    cdef kw_node *p = &w.nodes[node]
    cdef kw_item *q = &w.items[item]
    cdef int32_t first = p.items
    w.links[item].left = first
    w.links[item].right = 0
    if first:
        w.links[first].right = item
        w.ksm.pages_sharing += 1
    else:
        w.ksm.pages_shared += 1
    p.items = item
    p.count += 1
    q.flags |= ITEM_STABLE
    q.node = node
    w.mms[q.mm].nr_merging += 1


cdef void leave_tree(kw_world *w, int32_t item) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    cdef kw_link *l = &w.links[item]
    cdef kw_node *p
    if q.flags & ITEM_STABLE:
        p = &w.nodes[q.node]
        if node_stale(w, q.node):
            node_remove(w, q.node)
            return
        if l.right:
            w.links[l.right].left = l.left
        else:
            p.items = l.left
        if l.left:
            w.links[l.left].right = l.right
        p.count -= 1
        if p.items:
            w.ksm.pages_sharing -= 1
        else:
            w.ksm.pages_shared -= 1
        w.mms[q.mm].nr_merging -= 1
        q.flags &= <uint8_t>~ITEM_STABLE
        q.node = 0
    elif q.flags & ITEM_UNSTABLE:
        # One of an earlier scan is in no tree any more: the trees were emptied when this scan began.
        if <uint8_t>w.cursor.seqnr == q.seq:
            rb_erase(link_rb(w), sizeof(kw_link), unstable_root(w, unstable_nid(w, item)), item)
        w.ksm.pages_unshared -= 1
        q.flags &= <uint8_t>~ITEM_UNSTABLE


cdef inline int unstable_nid(kw_world *w, int32_t item) noexcept nogil:
    """Number of the unstable tree an item is in: that of its root (merge_across_nodes may have changed in mid-scan)."""
    cdef int nid
    cdef int32_t parent
    if w.ctl.nr_nodes == 1:
        return 0
    while True:
        parent = w.links[item].parent
        if parent == 0:
            break
        item = parent
    for nid in range(w.ctl.nr_nodes):
        if unstable_root(w, nid)[0] == item:
            return nid
    return 0


# ------------------------------------------------------------------ the stable tree

cdef int32_t pick_dup(kw_world *w, int32_t *entry, bint may_prune, int32_t *roomy) noexcept nogil:
    """The page to compare with at a tree entry: its node, or AGAIN after something stale was removed.

    `roomy` gets the node that takes a newcomer if the content is equal, 0 if all are full. `entry` follows when a chain
    turns back into a plain node.
    """
    cdef int32_t chain = entry[0], dup, following, found = 0
    cdef bint prune = False
    cdef kw_node *c = &w.nodes[chain]
    roomy[0] = 0
    if not c.flags & NODE_CHAIN:
        if node_stale(w, chain):
            node_remove(w, chain)
            return AGAIN
        if has_room(w, chain, 0):
            roomy[0] = chain
        return chain
    if may_prune and w.ksm.now_ms >= <int64_t>c.prune_time + w.ksm.prune_millisecs:
        c.prune_time = <uint64_t>w.ksm.now_ms
        prune = True
    dup = c.dups
    while dup:
        following = w.nodes[dup].dup_next
        if node_stale(w, dup):
            node_remove(w, dup)
        elif has_room(w, dup, 0) and (found == 0 or w.nodes[dup].count > w.nodes[found].count):
            found = dup
            if not prune:
                break
        dup = following
    if c.dups == 0:
        chain_free(w, chain)
        return AGAIN
    if found and c.dups != found and has_room(w, found, 1):
        dup_unlink(w, found)
        dup_add(w, chain, found)
    roomy[0] = found
    dup = c.dups
    if w.nodes[dup].dup_next == 0:
        # The only one left: the chain turns back into a plain node.
        dup_unlink(w, dup)
        rb_replace(node_rb(w), sizeof(kw_node), stable_root(w, c.nid), chain, dup)
        w.nodes[dup].nid = c.nid
        w.ksm.chains -= 1
        w.ksm.dups -= 1
        node_free(w, chain)
        entry[0] = dup
    return found if found else dup


cdef void chain_free(kw_world *w, int32_t chain) noexcept nogil:
    rb_erase(node_rb(w), sizeof(kw_node), stable_root(w, w.nodes[chain].nid), chain)
    w.ksm.chains -= 1
    node_free(w, chain)


cdef int32_t stable_search(kw_world *w, uint64_t key, int nid) noexcept nogil:
    """The node that a page of this content joins, 0 if there is none with room."""
    cdef int32_t entry, page, roomy
    while True:
        entry = stable_root(w, nid)[0]
        while entry:
            page = pick_dup(w, &entry, True, &roomy)
            if page == AGAIN:
                break
            if key == w.nodes[page].key:
                return roomy
            entry = w.nodes[entry].right if key > w.nodes[page].key else w.nodes[entry].left
        if entry == 0:
            return 0


cdef int32_t chain_make(kw_world *w, int32_t node) noexcept nogil:
    """A plain node becomes the first dup of a new chain, which takes its place in the tree."""
    cdef int32_t chain = node_alloc(w)
    if chain < 0:
        return chain
    w.nodes[chain].key = w.nodes[node].key
    w.nodes[chain].flags |= NODE_CHAIN
    w.nodes[chain].nid = w.nodes[node].nid
    w.nodes[chain].prune_time = <uint64_t>w.ksm.now_ms
    rb_replace(node_rb(w), sizeof(kw_node), stable_root(w, w.nodes[node].nid), node, chain)
    dup_add(w, chain, node)
    w.ksm.chains += 1
    w.ksm.dups += 1
    return chain


cdef int stable_place(kw_world *w, int32_t node, int nid) noexcept nogil:
    """Put a page's node into the tree, or into the chain of its content: KW_OK or KW_ENONODES."""
    cdef uint64_t key = w.nodes[node].key
    cdef int32_t entry, page, roomy, parent
    cdef bint right
    while True:
        parent = 0
        right = False
        entry = stable_root(w, nid)[0]
        page = 0
        while entry:
            page = pick_dup(w, &entry, False, &roomy)
            if page == AGAIN:
                break
            if key == w.nodes[page].key:
                break
            parent = entry
            right = key > w.nodes[page].key
            entry = w.nodes[entry].right if right else w.nodes[entry].left
        if entry == 0 or page != AGAIN:
            break
    w.nodes[node].nid = <uint8_t>nid
    if entry == 0:
        rb_insert(node_rb(w), sizeof(kw_node), stable_root(w, nid), parent, right, node)
        return KW_OK
    if not w.nodes[entry].flags & NODE_CHAIN:
        entry = chain_make(w, entry)
        if entry < 0:
            return entry
    dup_add(w, entry, node)
    w.ksm.dups += 1
    return KW_OK


cdef int32_t stable_insert(kw_world *w, int64_t pfn, uint64_t key, int nid) noexcept nogil:
    """A node for the new KSM page pfn: its index or KW_ENONODES."""
    cdef int32_t node = node_alloc(w)
    cdef int err
    if node < 0:
        return node
    w.nodes[node].key = key
    w.nodes[node].pfn = pfn
    w.nodes[node].prune_time = <uint64_t>pfn
    err = stable_place(w, node, nid)
    if err < 0:
        node_free(w, node)
        return err
    w.f_node[pfn] = node
    return node


# ------------------------------------------------------------------ NUMA: nodes that wait to change trees

cdef void migrate_add(kw_world *w, int32_t node) noexcept nogil:
    """The page is on another NUMA node than its tree: out of it, and on the list."""
    cdef kw_node *p = &w.nodes[node]
    node_unlink(w, node)
    p.flags |= NODE_MIGRATE
    p.right = 0
    p.left = <int32_t>w.ksm.migrate
    if p.left:
        w.nodes[p.left].right = node
    w.ksm.migrate = node


cdef int32_t migrate_search(kw_world *w, int32_t node, int nid) noexcept nogil:
    """Where the items of a page that waits belong: a node of its content with room, else itself, now in its tree."""
    cdef int32_t found = stable_search(w, w.nodes[node].key, nid)
    cdef int err
    if found:
        return found
    node_unlink(w, node)
    err = stable_place(w, node, nid)
    if err < 0:
        w.nodes[node].flags |= NODE_MIGRATE
        w.nodes[node].right = 0
        w.nodes[node].left = <int32_t>w.ksm.migrate
        if w.nodes[node].left:
            w.nodes[w.nodes[node].left].right = node
        w.ksm.migrate = node
        return err
    return node


cdef void start_scan(kw_world *w) noexcept nogil:
    """What a new full scan begins with, beside the cursor's own part: the unstable trees are empty from here on."""
    cdef int32_t node, following
    lru_drain(w)
    w.ksm.tree_generation = w.ksm.generation
    if w.ksm.merge_across_nodes:
        return
    node = <int32_t>w.ksm.migrate
    while node:
        following = w.nodes[node].left
        if node_stale(w, node):
            node_remove(w, node)
        node = following


# ------------------------------------------------------------------ the unstable tree

cdef inline bint will_search(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    """Whether a visit gets as far as the trees: not KSM, and unchanged since the last visit."""
    return (not w.f_flags[pfn] & FRAME_KSM and w.items[item].flags & ITEM_HAS_CHECKSUM
            and w.items[item].checksum == w.f_key[pfn])


cdef inline bint page_eligible(kw_world *w, int64_t pfn) noexcept nogil:
    return pfn > 0 and pfn < w.ctl.nr_frames and (w.f_flags[pfn] & FRAME_ELIGIBLE_MASK) == FRAME_ANON


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
    pfn = <int64_t>entry_pfn(leaf[0], level)
    if level == 2:
        pfn += <int64_t>((addr >> 12) & 511)
    return pfn if page_eligible(w, pfn) else KW_NONE


cdef int32_t unstable_search(kw_world *w, int32_t item, int64_t pfn, uint64_t key, int nid, int64_t *twin) noexcept nogil:
    """An item whose page has the same content now (`twin`: its page), 0 after inserting this one, or GAVE_UP.

    The key in a link was the page's content when it was looked up last. It still is, if no address space changed since:
    `generation` counts the batches before which some epoch had moved. Where it may have changed, and where the outcome
    depends on which page it is (equal contents), the page is looked up.
    """
    cdef int32_t *root = unstable_root(w, nid)
    cdef int32_t t = root[0], parent = 0
    cdef uint32_t generation = <uint32_t>(w.ksm.generation & GENERATION_BITS)
    cdef bint trusted = w.ksm.generation == w.ksm.tree_generation
    cdef bint right = False
    cdef kw_link *l
    cdef uint64_t other
    cdef int64_t page
    while t:
        l = &w.links[t]
        other = l.key
        if KW_UNLIKELY(other == key or other == 0 or (not trusted and l.aux >> 1 != generation)):
            page = item_page(w, t)
            if page < 0 or page == pfn:
                return GAVE_UP
            if not w.ksm.merge_across_nodes and w.f_nid[page] != nid:
                return GAVE_UP      # it moved to another NUMA node: its own visit will sort that out
            other = w.f_key[page]
            l.key = other
            l.aux = (l.aux & 1) | (generation << 1)
            if other == key:
                twin[0] = page
                return t
        parent = t
        right = key > other
        t = l.right if right else l.left
    l = &w.links[item]
    l.key = key
    l.aux = generation << 1
    w.items[item].flags |= ITEM_UNSTABLE
    w.items[item].seq = <uint8_t>w.cursor.seqnr
    w.ksm.pages_unshared += 1
    rb_insert(link_rb(w), sizeof(kw_link), root, parent, right, item)
    return 0


# ------------------------------------------------------------------ merging

cdef int merge_one(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int64_t kpfn) noexcept nogil:
    """Replace the mapping of pfn at addr by one of kpfn (0: the zero page; BECOME_KSM: pfn itself): 0 or -EFAULT."""
    cdef uint64_t *pte
    cdef uint64_t e, flags
    if pfn == kpfn:
        return 0                # shared by fork: the page is there already
    if not page_eligible(w, pfn) or w.f_flags[w.f_head[pfn]] & FRAME_LOCKED:
        return -EFAULT
    if w.f_flags[pfn] & LARGE and split_folio_at(w, pfn, addr) != KW_OK:
        return -EFAULT
    pte = pte_find(w, w.mms[mm].root, addr)
    if pte == NULL or not pte_present(pte[0]) or pte[0] & PTE_SPECIAL or entry_pfn(pte[0], 1) != <uint64_t>pfn:
        return -EFAULT          # the split took it: it was empty
    e = pte[0]
    # To be write-protected, the page must not be in anybody else's hands.
    if e & (PTE_RW | PTE_D) and folio_extra_refs(w, pfn) != 0:
        return -EFAULT
    flags = e & ~(PTE_PFN_MASK | PTE_RW | PTE_D)
    if kpfn == BECOME_KSM:
        w.f_flags[pfn] |= FRAME_KSM
        pte[0] = make_entry(<uint64_t>pfn, flags)
    else:
        if w.f_key[pfn] != w.f_key[kpfn]:
            return -EFAULT
        flags &= ~(PTE_UFFD_WP | PTE_SOFT_DIRTY)
        if kpfn == 0:
            pte[0] = make_entry(0, flags | PTE_SPECIAL | PTE_D)
            w.ksm.zero_pages += 1
            w.mms[mm].nr_zero += 1
        else:
            pte[0] = make_entry(<uint64_t>kpfn, flags)
            frame_map(w, kpfn)
        frame_unmap(w, pfn)
    w.mms[mm].epoch += 1
    return 0


cdef int merge_two(kw_world *w, int32_t item, int64_t pfn, int32_t other, int64_t twin, int nid) noexcept nogil:
    """Make pfn, the page visited, a KSM page and map it at the other item's address as well."""
    cdef kw_item *a = &w.items[item]
    cdef kw_item *b = &w.items[other]
    cdef uint64_t key = w.f_key[pfn]
    cdef bint within = w.f_flags[pfn] & LARGE and w.f_flags[twin] & LARGE and w.f_head[pfn] == w.f_head[twin]
    cdef int err
    cdef int32_t node
    # Parts of one huge page: holding on to the one keeps the other from being split out.
    err = -EFAULT if within else merge_one(w, a.mm, a.addr, pfn, BECOME_KSM)
    event(w, EV_NEW, a.mm, pfn, item, 0, err)
    if err:
        if within:
            split_folio_at(w, pfn, a.addr)
        return KW_OK
    err = merge_one(w, b.mm, b.addr, twin, pfn)
    event(w, EV_ADD, b.mm, pfn, other, 0, err)
    if err:
        err = break_ksm(w, a.mm, a.addr)
        return err if err < 0 else KW_OK
    leave_tree(w, other)
    node = stable_insert(w, pfn, key, nid)
    if node < 0:
        err = break_ksm(w, b.mm, b.addr)
        if err >= 0:
            err = break_ksm(w, a.mm, a.addr)
        return node
    append_item(w, other, node)
    append_item(w, item, node)
    return KW_OK


cdef int examine(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    cdef int32_t node = 0, target, other
    cdef uint64_t key
    cdef int64_t twin = 0
    cdef int err, nid
    if w.f_flags[pfn] & FRAME_KSM:
        node = w.f_node[pfn]
    if node:
        if KW_LIKELY(q.flags & ITEM_STABLE and q.node == node and w.ksm.merge_across_nodes):
            return KW_OK
        nid = tree_nid(w, pfn)
        if not w.nodes[node].flags & NODE_MIGRATE:
            if w.nodes[node].nid != nid:
                migrate_add(w, node)
            elif q.flags & ITEM_STABLE and q.node == node:
                return KW_OK
        # A page shared by fork finds itself, however many share it already.
        target = node
        if w.nodes[node].flags & NODE_MIGRATE:
            target = migrate_search(w, node, nid)
            if target < 0:
                return target
            if target == node and q.flags & ITEM_STABLE and q.node == node:
                return KW_OK
        leave_tree(w, item)
    else:
        leave_tree(w, item)
        key = w.f_key[pfn]
        if not q.flags & ITEM_HAS_CHECKSUM or q.checksum != key:
            q.checksum = key
            q.flags |= ITEM_HAS_CHECKSUM
            return KW_OK
        nid = tree_nid(w, pfn)
        if key == 0 and w.ksm.use_zero_pages:
            err = merge_one(w, q.mm, q.addr, pfn, 0)
            event(w, EV_ZERO, q.mm, pfn, <int64_t>q.addr, 0, err)
            if err == 0:
                return KW_OK
        target = stable_search(w, key, nid)
        if target == 0:
            other = unstable_search(w, item, pfn, key, nid, &twin)
            if other <= 0:
                return KW_OK
            return merge_two(w, item, pfn, other, twin, nid)
    err = merge_one(w, q.mm, q.addr, pfn, w.nodes[target].pfn)
    event(w, EV_ADD, q.mm, w.nodes[target].pfn, item, target, err)
    if err == 0:
        append_item(w, item, target)
    return KW_OK


# ------------------------------------------------------------------ batches

cdef int64_t epoch_sum(kw_world *w) noexcept nogil:
    """Epochs only grow, so their sum moves when one of them does."""
    cdef int64_t total = 0
    cdef int64_t i
    for i in range(w.ctl.mms_used):
        total += <int64_t>w.mms[i].epoch
    return total


cdef inline uint64_t *table_ahead(kw_world *w, int *n) noexcept nogil:
    """The ptes of the `n` addresses the cursor comes to next, as far as the table and the area at hand reach."""
    cdef kw_cursor *cur = w.cursor
    cdef uint64_t end
    n[0] = 0
    if cur.strategy != STRATEGY_RANGE or (cur.address & ~(KW_PMD_SIZE - 1)) != cur.cache_base or cur.vma == 0:
        return NULL
    end = min(w.vmas[cur.vma].end, cur.cache_base + KW_PMD_SIZE)
    if cur.address < end:
        n[0] = <int>((end - cur.address) >> 12)
    return w.rows + cur.cache_row * 512 + ((cur.address >> 12) & 511)


cdef int64_t pass_merged(kw_world *w, int64_t n) noexcept nogil:
    """Visit up to n pages that are merged already and listed on their nodes: what the cursor and `examine` would do.

    Most pages of a host in its steady state are such: a tight loop over one table, its frames' flags and the items.
    """
    cdef kw_cursor *cur = w.cursor
    cdef int reach = 0
    cdef int64_t done = 0, pfn
    cdef uint64_t *pte = table_ahead(w, &reach)
    cdef uint64_t addr = cur.address
    cdef int32_t link = cur.link, item
    cdef kw_item *q
    if not w.ksm.merge_across_nodes:
        return 0
    item = w.items[link].next if link else w.mms[cur.slot].rmap_list
    n = min(n, <int64_t>reach)
    while done < n and item:
        if (pte[done] & (PTE_P | PTE_SPECIAL)) != PTE_P:
            break
        pfn = <int64_t>((pte[done] & PTE_PFN_MASK) >> 12)
        q = &w.items[item]
        if pfn >= w.ctl.nr_frames or not w.f_flags[pfn] & FRAME_KSM:
            break
        if q.addr != addr or not q.flags & ITEM_STABLE or q.node != w.f_node[pfn]:
            break
        link = item
        item = q.next
        addr += KW_PAGE_SIZE
        done += 1
    if done:
        cur.address = addr
        cur.link = link
        w.ksm.pages_scanned += done
        w.work.cached += done
        w.work.ptes += done
        w.work.found += done
    return done


cdef inline void warm_frame(kw_world *w, int64_t pfn) noexcept nogil:
    prefetch(&w.f_flags[pfn])
    prefetch(&w.f_head[pfn])
    prefetch(&w.f_mapcount[pfn])
    prefetch(&w.f_refs[pfn])
    prefetch(&w.f_key[pfn])


cdef uint64_t warm_trees(kw_world *w, uint64_t addr, uint64_t key) noexcept nogil:
    """Bring into the cache what the next searches will touch; the address up to which that holds.

    A search in a large tree waits for memory at each level. The contents of the pages that come next are known, so the
    paths of several are followed side by side, and on to the page tables and frames of those that will merge. That
    decides nothing: the searches come after it.
    """
    cdef uint64_t keys[AHEAD]
    cdef int32_t at[AHEAD]
    cdef int32_t stable[AHEAD]
    cdef int32_t twins[AHEAD]
    cdef int reach = 0, n = 1, found = 0, i, more = 1, level = 1
    cdef uint64_t *pte = table_ahead(w, &reach)
    cdef uint64_t *leaf
    cdef int64_t pfn
    cdef kw_link *l
    cdef kw_node *p
    cdef kw_item *q
    keys[0] = key
    reach = min(reach, AHEAD - 1)
    for i in range(reach):
        if (pte[i] & (PTE_P | PTE_SPECIAL)) == PTE_P:
            pfn = <int64_t>((pte[i] & PTE_PFN_MASK) >> 12)
            if pfn < w.ctl.nr_frames and not w.f_flags[pfn] & FRAME_KSM:
                keys[n] = w.f_key[pfn]
                n += 1
    for i in range(n):
        at[i] = unstable_root(w, 0)[0]
        stable[i] = stable_root(w, 0)[0]
    while more:
        more = 0
        for i in range(n):
            l = &w.links[at[i]]
            if KW_UNLIKELY(l.key == keys[i] and at[i] != 0):
                twins[found] = at[i]
                found += 1
                prefetch(&w.items[at[i]])
                at[i] = 0
            else:
                at[i] = l.right if keys[i] > l.key else l.left
            p = &w.nodes[stable[i]]
            stable[i] = p.right if keys[i] > p.key else p.left
            more |= at[i] | stable[i]
    for i in range(found):
        q = &w.items[twins[i]]
        leaf = leaf_find(w, w.mms[q.mm].root, q.addr, &level)
        if leaf != NULL and not leaf[0] & PTE_SPECIAL:
            pfn = <int64_t>entry_pfn(leaf[0], level)
            if pfn < w.ctl.nr_frames:
                warm_frame(w, pfn)
    return addr + (<uint64_t>(reach + 1) << 12)


cdef int64_t scan_and_merge(kw_world *w, int64_t n, int *failed) noexcept nogil:
    cdef int64_t done = 0, pfn = 0
    cdef uint64_t warm = 0
    cdef int32_t item, mm = 0
    cdef int err
    failed[0] = KW_OK
    if epoch_sum(w) != w.ksm.epoch_sum:
        w.ksm.generation += 1
    scan_begin(w)
    while done < n:
        item = scan_next(w, &pfn)
        if item <= 0:
            failed[0] = item
            break
        if w.items[item].mm != mm:
            mm = w.items[item].mm
            warm = 0
        if w.items[item].addr >= warm and will_search(w, item, pfn):
            warm = warm_trees(w, w.items[item].addr, w.f_key[pfn])
        err = examine(w, item, pfn)
        w.ksm.pages_scanned += 1
        done += 1
        if err < 0:
            failed[0] = err
            break
        if w.f_flags[pfn] & FRAME_KSM:
            done += pass_merged(w, n - done)
    w.ksm.epoch_sum = epoch_sum(w)
    return done


# ------------------------------------------------------------------ run = 2

cdef int drop_node(kw_world *w, int32_t node) noexcept nogil:
    """Remove the node of a page that nobody maps."""
    if w.nodes[node].pfn >= 0 and w.f_mapcount[w.nodes[node].pfn] > 0:
        return KW_EBUSYENTRY
    node_remove(w, node)
    return KW_OK


cdef int drop_entry(kw_world *w, int32_t entry) noexcept nogil:
    """The same for whatever stands at an entry of the tree; a chain goes with its last dup."""
    if not w.nodes[entry].flags & NODE_CHAIN:
        return drop_node(w, entry)
    while w.nodes[entry].dups:
        if drop_node(w, w.nodes[entry].dups) != KW_OK:
            return KW_EBUSYENTRY
    chain_free(w, entry)
    return KW_OK


cdef int drop_stable_nodes(kw_world *w) noexcept nogil:
    cdef int err = KW_OK
    cdef int64_t nid
    cdef int32_t node, following
    for nid in range(w.ctl.nr_nodes):
        while stable_root(w, <int>nid)[0]:
            if drop_entry(w, stable_root(w, <int>nid)[0]) != KW_OK:
                err = KW_EBUSYENTRY
                break
    node = <int32_t>w.ksm.migrate
    while node:
        following = w.nodes[node].left
        if drop_node(w, node) != KW_OK:
            err = KW_EBUSYENTRY
        node = following
    return err


cdef int unmerge_all(kw_world *w) noexcept nogil:
    cdef int32_t mm = w.mms[0].slot_next, following
    cdef int err
    while mm:
        following = w.mms[mm].slot_next
        w.cursor.slot = mm
        if not w.mms[mm].flags & MM_EXITING:
            err = unmerge_mm(w, mm, w.cursor.strategy)
            if err < 0:
                return err
        items_drop(w, mm)
        w.cursor.link = 0
        w.cursor.slot = following
        if w.mms[mm].flags & MM_EXITING:
            slot_remove(w, mm)
        mm = following
    drop_stable_nodes(w)
    w.cursor.slot = 0
    w.cursor.address = 0
    w.cursor.link = 0
    w.cursor.seqnr = 0
    scan_begin(w)
    return KW_OK


cdef void bind(kw_world *w) noexcept nogil:
    w.leave_tree = leave_tree
    w.start_scan = start_scan


# ------------------------------------------------------------------ what Python sees

def py_bind(World world not None):
    """Give the cursor of this world its doors into the engine."""
    bind(&world.w)


def py_scan(World world not None, int64_t n):
    """(visits, 0 or a negative KW_* code) of one batch of at most n visits."""
    cdef int failed = 0
    cdef int64_t done
    with nogil:
        done = scan_and_merge(&world.w, n, &failed)
    return done, failed


def py_unmerge_all(World world not None):
    """run = 2: 0 or a negative KW_* code."""
    cdef int err
    with nogil:
        err = unmerge_all(&world.w)
    return err


def py_drop_stable_nodes(World world not None):
    """Whether no stable node is left after the stale ones were removed."""
    cdef int err
    with nogil:
        err = drop_stable_nodes(&world.w)
    return err == KW_OK
