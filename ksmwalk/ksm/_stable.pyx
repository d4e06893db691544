"""Stable nodes, their chains and the stable tree, over a Host's arrays.

The contract of every function stands in `_stable.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t, uint8_t
from libc.string cimport memset

from ksmwalk.memory._areas cimport vma_find
from ksmwalk.ksm._trees cimport rb_erase, rb_insert
from ksmwalk.ksm._items cimport event
from ksmwalk.ksm._late cimport (
    chain_look, late, stable_build, stable_erased, stable_find, stable_placed, stable_quiet, stable_ready, stable_swap,
    stable_todo,
)
from ksmwalk.layout._layout cimport *


from ksmwalk.layout._poison cimport kw_poison, kw_unpoison


cdef enum:
    AGAIN = -100       # a node was removed under the search: start again at the root


cdef inline char *node_rb(kw_world *w) noexcept nogil:
    return <char *> &w.nodes[0].left


# ------------------------------------------------------------------ stable nodes

cdef int32_t node_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int64_t i = c.stable_free
    if i:
        c.stable_free = w.nodes[i].left
    else:
        if c.stable_used >= c.stable_cap:
            return KW_ENONODES
        i = c.stable_used
        c.stable_used += 1
    kw_unpoison(&w.nodes[i], sizeof(kw_node))
    memset(&w.nodes[i], 0, sizeof(kw_node))
    w.nodes[i].flags = NODE_USED
    w.nodes[i].pfn = -1
    c.stable_live += 1
    return <int32_t>i


cdef void node_free(kw_world *w, int32_t node) noexcept nogil:
    kw_check(node > 0 and w.nodes[node].flags & NODE_USED)
    if w.nodes[node].flags & NODE_RESTLESS and w.late != NULL:
        late(w).restless -= 1
    memset(&w.nodes[node], 0, sizeof(kw_node))
    w.nodes[node].left = <int32_t>w.ctl.stable_free
    w.ctl.stable_free = node
    w.ctl.stable_live -= 1
    # Not the words of `left`, the link of the free list, and of `flags`, by which who sweeps over all passes it by.
    kw_poison(&w.nodes[node], 24)
    kw_poison(<char *>&w.nodes[node] + 40, sizeof(kw_node) - 40)


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
    cdef int32_t chain = p.chain
    stable_build(w)
    if p.flags & NODE_MIGRATE:
        wait_no_more(w, node)
    elif p.flags & NODE_DUP:
        dup_unlink(w, node)     # the chain stays, even if this was its last
        w.ksm.dups -= 1
        chain_look(w, chain, False)
    else:
        stable_erased(w, node)
        rb_erase(node_rb(w), sizeof(kw_node), stable_root(w, p.tree), node)


cdef inline void off_node(kw_world *w, kw_item *q) noexcept nogil:
    """An item is on its node's list no more."""
    w.mms[q.mm].nr_merging -= 1
    q.flags &= <uint8_t>~ITEM_STABLE
    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORGETS):
        q.age = q.skips = 0


cdef void node_remove(kw_world *w, int32_t node) noexcept nogil:
    """A node goes as a whole: its items, newest first, then itself. They name it until they are on another's list or in an
    unstable tree (see `compare_and_merge`)."""
    cdef kw_node *p = &w.nodes[node]
    cdef kw_item *q
    cdef int32_t item = p.items, following
    cdef int64_t pfn = p.last_pfn
    while item:
        following = w.links[item].left
        q = &w.items[item]
        if following:
            w.ksm.pages_sharing -= 1
            event(w, EV_RMI, q.mm, pfn, item, node, 0)
        else:
            w.ksm.pages_shared -= 1
        off_node(w, q)
        item = following
    event(w, EV_RMK, 0, pfn, 0, node, 0)
    node_unlink(w, node)
    if p.pfn >= 0:
        w.f_node[p.pfn] = 0
    else:
        w.nodes_gone -= 1
    node_free(w, node)


cdef inline bint node_stale(kw_world *w, int32_t node) noexcept nogil:
    return w.nodes[node].pfn < 0


cdef int32_t anon_number(kw_world *w, const kw_item *q) noexcept nogil:
    """By what reclaim finds the mappings that descend from the item's, also once its area is gone."""
    return w.anons[w.vmas[vma_find(w, q.mm, q.addr)].anon_vma].number


cdef void append_item(kw_world *w, int32_t item, int32_t node) noexcept nogil:
    """Put an item on its node's list, newest first."""
    cdef kw_node *p = &w.nodes[node]
    cdef kw_item *q = &w.items[item]
    cdef int32_t first = p.items
    w.links[item].left = first
    w.links[item].right = 0
    w.links[item].parent = 0 if KW_LIKELY(w.ctl.slots_most == 0) else anon_number(w, q)
    if first:
        w.links[first].right = item
        w.ksm.pages_sharing += 1
    else:
        w.ksm.pages_shared += 1
    p.items = item
    p.count += 1
    w.done.joined += 1
    q.flags |= ITEM_STABLE
    q.node = node
    w.mms[q.mm].nr_merging += 1
    if p.flags & NODE_DUP:
        chain_look(w, p.chain, not has_room(w, node, 0))


cdef void node_leave(kw_world *w, int32_t item) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    cdef kw_link *link = &w.links[item]
    cdef kw_node *p = &w.nodes[q.node]
    if node_stale(w, q.node):
        node_remove(w, q.node)
        return
    if link.right:
        w.links[link.right].left = link.left
    else:
        p.items = link.left
    if link.left:
        w.links[link.left].right = link.right
    p.count -= 1
    if p.items:
        w.ksm.pages_sharing -= 1
    else:
        w.ksm.pages_shared -= 1
    off_node(w, q)
    q.node = 0
    if p.flags & NODE_DUP:
        chain_look(w, p.chain, False)


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
    if w.nodes[dup].dup_next == 0 and (not w.ctl.kernel & SWITCH_OLD_CHAINS or prune and found):
        # The only one left: the chain turns back into a plain node.
        dup_unlink(w, dup)
        stable_swap(w, chain, dup)
        w.nodes[dup].tree = c.tree
        w.ksm.chains -= 1
        w.ksm.dups -= 1
        node_free(w, chain)
        entry[0] = dup
    elif c.flags & NODE_RESTLESS or prune:
        chain_look(w, chain, True)
    return found if found else dup


cdef void chain_free(kw_world *w, int32_t chain) noexcept nogil:
    stable_build(w)
    stable_erased(w, chain)
    rb_erase(node_rb(w), sizeof(kw_node), stable_root(w, w.nodes[chain].tree), chain)
    w.ksm.chains -= 1
    node_free(w, chain)


cdef int32_t stable_entry(kw_world *w, uint64_t key, int tree, int32_t *roomy) noexcept nogil:
    """The entry of the tree with this content, 0: none; `roomy`: the node in it that a page of this content joins, 0 if
    there is none with room."""
    cdef int32_t entry, page
    roomy[0] = 0
    stable_ready(w)
    if KW_LIKELY(stable_quiet(w)):
        entry = stable_find(w, key, tree)
        if entry:
            pick_dup(w, &entry, True, roomy)
        return entry
    stable_build(w)
    while True:
        entry = stable_root(w, tree)[0]
        while entry:
            page = pick_dup(w, &entry, True, roomy)
            if page == AGAIN:
                break
            if key == w.nodes[page].key:
                return entry
            entry = w.nodes[entry].right if key > w.nodes[page].key else w.nodes[entry].left
        if entry == 0:
            roomy[0] = 0
            return 0


cdef int32_t stable_search(kw_world *w, uint64_t key, int tree) noexcept nogil:
    """The node that a page of this content joins, 0 if there is none with room."""
    cdef int32_t found
    stable_entry(w, key, tree, &found)
    if found and misplaced(w, found):
        migrate_add(w, found)
        return 0
    return found


cdef int32_t chain_make(kw_world *w, int32_t node) noexcept nogil:
    """A plain node becomes the first dup of a new chain, which takes its place in the tree."""
    cdef int32_t chain = node_alloc(w)
    if chain < 0:
        return chain
    w.nodes[chain].key = w.nodes[node].key
    w.nodes[chain].flags |= NODE_CHAIN
    w.nodes[chain].tree = w.nodes[node].tree
    w.nodes[chain].prune_time = <uint64_t>w.ksm.now_ms
    stable_swap(w, node, chain)
    dup_add(w, chain, node)
    w.ksm.chains += 1
    w.ksm.dups += 1
    return chain


cdef int stable_place(kw_world *w, int32_t node, int tree) noexcept nogil:
    """Put a page's node into the tree, or into the chain of its content: KW_OK or KW_ENONODES."""
    cdef uint64_t key = w.nodes[node].key
    cdef int32_t entry, page, roomy, parent
    cdef bint right = False, quiet = stable_quiet(w)
    w.nodes[node].tree = <uint16_t>tree
    if not quiet:
        stable_build(w)
    while True:
        if quiet:
            entry = stable_find(w, key, tree)
            break
        parent = 0
        right = False
        entry = stable_root(w, tree)[0]
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
    if entry == 0 and quiet:
        stable_todo(w, node)
        return KW_OK
    if entry == 0:
        rb_insert(node_rb(w), sizeof(kw_node), stable_root(w, tree), parent, right, node)
        stable_placed(w, node)
        return KW_OK
    if not w.nodes[entry].flags & NODE_CHAIN:
        entry = chain_make(w, entry)
        if entry < 0:
            return entry
    dup_add(w, entry, node)
    w.ksm.dups += 1
    chain_look(w, entry, False)
    return KW_OK


cdef int32_t stable_insert(kw_world *w, int64_t pfn, uint64_t key, int tree) noexcept nogil:
    """A node for the new KSM page pfn: its index or KW_ENONODES."""
    cdef int32_t node
    cdef int err
    stable_ready(w)
    node = node_alloc(w)
    if node < 0:
        return node
    w.nodes[node].key = key
    w.nodes[node].pfn = <int32_t>pfn
    w.nodes[node].last_pfn = <int32_t>pfn
    err = stable_place(w, node, tree)
    if err < 0:
        node_free(w, node)
        return err
    w.f_node[pfn] = node
    return node


# ------------------------------------------------------------------ NUMA: nodes that wait to change trees

cdef inline bint misplaced(kw_world *w, int32_t node) noexcept nogil:
    """Is the page of a node in a tree on another NUMA node than that is for?"""
    return not w.ksm.merge_across_nodes and w.nodes[node].tree % <int>w.ctl.nr_nodes != w.f_nid[w.nodes[node].pfn]


cdef void migrate_add(kw_world *w, int32_t node) noexcept nogil:
    """The page is on another NUMA node than its tree: out of it, and on the list."""
    node_unlink(w, node)
    wait(w, node)


cdef void wait(kw_world *w, int32_t node) noexcept nogil:
    """On the list, as its first."""
    cdef kw_node *p = &w.nodes[node]
    p.flags |= NODE_MIGRATE
    p.right = 0
    p.left = <int32_t>w.ksm.migrate
    if p.left:
        w.nodes[p.left].right = node
    w.ksm.migrate = node


cdef void wait_no_more(kw_world *w, int32_t node) noexcept nogil:
    """Off the list of those that wait."""
    cdef kw_node *p = &w.nodes[node]
    if p.right:
        w.nodes[p.right].left = p.left
    else:
        w.ksm.migrate = p.left
    if p.left:
        w.nodes[p.left].right = p.right
    p.left = p.right = 0
    p.flags &= <uint8_t>~NODE_MIGRATE


cdef int replace_dup(kw_world *w, int32_t entry, int32_t old, int32_t node, int tree) noexcept nogil:
    """A node takes the place of one whose page is on another NUMA node: that one waits now."""
    if old != entry:
        migrate_add(w, old)
        dup_add(w, entry, node)
        w.ksm.dups += 1
        chain_look(w, entry, False)
    else:
        stable_build(w)
        stable_swap(w, old, node)
        wait(w, old)
    w.nodes[node].tree = <uint16_t>tree
    return KW_OK


cdef int32_t migrate_search(kw_world *w, int32_t node, int tree) noexcept nogil:
    """Where the items of a page that waits belong: itself, now in its tree, or a node of its content; 0: nowhere."""
    cdef int32_t found, entry = stable_entry(w, w.nodes[node].key, tree, &found)
    cdef int err = KW_OK
    if entry and w.f_mapcount[w.nodes[node].pfn] <= 1:
        # Mapped once: it might as well join another one that has room.
        if found == 0 or not misplaced(w, found):
            return found
        wait_no_more(w, node)
        replace_dup(w, entry, found, node, tree)
    else:
        wait_no_more(w, node)
        err = stable_place(w, node, tree)
        if err < 0:
            wait(w, node)
            return err
    return node if has_room(w, node, 0) else 0


cdef void migrate_drop_stale(kw_world *w) noexcept nogil:
    cdef int32_t node = <int32_t>w.ksm.migrate, following
    while node:
        following = w.nodes[node].left
        if node_stale(w, node):
            node_remove(w, node)
        node = following


# ------------------------------------------------------------------ removing what nobody maps

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
    cdef int64_t tree
    cdef int32_t node, following
    stable_build(w)
    for tree in range(w.ctl.trees_used):
        while stable_root(w, <int>tree)[0]:
            if drop_entry(w, stable_root(w, <int>tree)[0]) != KW_OK:
                err = KW_EBUSYENTRY
                break
    node = <int32_t>w.ksm.migrate
    while node:
        following = w.nodes[node].left
        if drop_node(w, node) != KW_OK:
            err = KW_EBUSYENTRY
        node = following
    return err
