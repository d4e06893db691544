"""KSM's records that came from outside, held against each other before the engine works on them.

The contract stands in `ksmwalk/memory/_check.pxd`; `check_memory` has passed the rest of the Host before.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free

from ksmwalk._core cimport World, enter, leave
from ksmwalk.memory._check cimport (
    SEEN_DUP, SEEN_FREE, SEEN_LISTED, SEEN_MIGRATE, SEEN_NODE, SEEN_TREE, Check, answer, counted, free_list, refuse, within,
)
from ksmwalk.layout._layout cimport *


cdef enum:
    ITEM_BITS = ITEM_STABLE | ITEM_UNSTABLE | ITEM_HAS_CHECKSUM | ITEM_USED
    NODE_BITS = NODE_USED | NODE_CHAIN | NODE_DUP | NODE_MIGRATE
    DEEPEST = 64        # of a red-black tree: twice the logarithm of its records
    OLDEST = 200        # scans: every item is met once a scan, long before its 8 bits come round

ctypedef struct Tree:
    const char *array   # of the records
    char *base          # the kw_rb of record 0
    int64_t stride
    int64_t used
    uint8_t *marks


# ------------------------------------------------------------------ trees

cdef int down(Check *c, Tree *t, int32_t at, int32_t above, int depth) noexcept nogil:
    """Number of black records on each way down from here, or -1."""
    cdef kw_rb *p
    cdef int left, right
    if at == 0:
        return 1
    if not 0 < at < t.used:
        return refuse(c, t.array, b"left or right", above, at, b"no record that was ever used")
    p = <kw_rb *>(t.base + t.stride * at)
    if t.marks[at] != SEEN_LISTED:
        return refuse(c, t.array, b"left or right", above, at, b"a record that is free, or in a tree already")
    t.marks[at] |= SEEN_TREE
    c.counted += 1
    if p.parent != above:
        return refuse(c, t.array, b"parent", at, p.parent, b"not the record above it in the tree")
    if not p.colour & 1 and (above == 0 or not (<kw_rb *>(t.base + t.stride * above)).colour & 1):
        return refuse(c, t.array, b"colour", at, p.colour & 1, b"red below red, or at the root")
    if depth > DEEPEST:
        return refuse(c, t.array, b"parent", at, above, b"deeper than a balanced tree")
    left = down(c, t, p.left, at, depth + 1)
    if left < 0 or c.ordered and in_order(c, at):
        return -1
    right = down(c, t, p.right, at, depth + 1)
    if right < 0:
        return -1
    if left != right:
        return refuse(c, t.array, b"colour", at, p.colour & 1, b"more black records on one way down than on the other")
    return left + (p.colour & 1)


cdef int in_order(Check *c, int32_t node) noexcept nogil:
    """A record of the stable tree: contents ascend."""
    cdef kw_node *p = &c.w.nodes[node]
    if c.counted > 1 and c.area and p.key <= c.key:
        return refuse(c, b"nodes", b"key", node, <int64_t>p.key, b"not above the content before it in the tree")
    c.area = 1
    c.key = p.key
    return 0


cdef int stable_trees(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef Tree t
    cdef int64_t tree, i
    t.array = b"nodes"
    t.base = <char *>&w.nodes[0].left
    t.stride = sizeof(kw_node)
    t.used = w.ctl.stable_used
    t.marks = c.nodes
    for tree in range(w.ctl.trees_used):
        if within(c, b"trees", NULL, tree, w.trees[2 * tree], 0, t.used, b"no stable node"):
            return -1
        c.ordered = True
        c.area = 0
        c.counted = 0
        if down(c, &t, w.trees[2 * tree], 0, 0) < 0:
            return -1
        c.ordered = False
        # Those of this tree are marked now, those of the ones before were looked at then.
        if c.counted and all_of_tree(c, w.trees[2 * tree], tree):
            return -1
    for i in range(1, w.ctl.stable_used):
        if c.nodes[i] & SEEN_TREE and w.nodes[i].flags & (NODE_DUP | NODE_MIGRATE):
            return refuse(c, b"nodes", b"flags", i, w.nodes[i].flags, b"in a tree, but not marked so")
    return 0


cdef int all_of_tree(Check *c, int32_t node, int64_t tree) noexcept nogil:
    """All below a node say that they are in this tree."""
    if node == 0:
        return 0
    if c.w.nodes[node].tree != tree:
        return refuse(c, b"nodes", b"tree", node, c.w.nodes[node].tree, b"in another tree")
    return all_of_tree(c, c.w.nodes[node].left, tree) or all_of_tree(c, c.w.nodes[node].right, tree)


cdef int of_domain(Check *c, int32_t item, int64_t domain) noexcept nogil:
    """All below an item of an unstable tree are of address spaces of its domain."""
    cdef kw_world *w = c.w
    if item == 0:
        return 0
    if w.mms[w.items[item].mm].domain != domain:
        return refuse(c, b"mms", b"domain", w.items[item].mm, w.mms[w.items[item].mm].domain, b"not that of its rmap_items")
    return of_domain(c, w.links[item].left, domain) or of_domain(c, w.links[item].right, domain)


cdef int unstable_trees(Check *c) noexcept nogil:
    """During a scan: those inserted in it, no others. Between scans the trees are left over and never looked at."""
    cdef kw_world *w = c.w
    cdef Tree t
    cdef int64_t tree, i, root, n = 0
    cdef uint8_t age
    t.array = b"links"
    t.base = <char *>&w.links[0].left
    t.stride = sizeof(kw_link)
    t.used = w.ctl.items_used
    t.marks = c.items
    for tree in range(w.ctl.trees_used):
        root = w.trees[2 * tree + 1]
        if within(c, b"trees", NULL, tree, root, 0, t.used, b"no rmap_item"):
            return -1
        if w.cursor.slot and (down(c, &t, <int32_t>root, 0, 0) < 0 or of_domain(c, <int32_t>root, tree // w.ctl.nr_nodes)):
            return -1
    for i in range(1, t.used):
        if not w.items[i].flags & ITEM_UNSTABLE:
            if c.items[i] & SEEN_TREE:
                return refuse(c, b"items", b"flags", i, w.items[i].flags, b"in an unstable tree, but not marked so")
            continue
        n += 1
        age = <uint8_t>(<uint8_t>w.cursor.seqnr - w.items[i].seq)
        if (age == 0) != (c.items[i] & SEEN_TREE != 0) or age > OLDEST:
            return refuse(c, b"items", b"seq", i, w.items[i].seq, b"not the scan in which it came into its tree")
    return counted(c, b"ksm", b"pages_unshared", 0, w.ksm.pages_unshared, n, b"items marked as unstable")


# ------------------------------------------------------------------ slots and their items

cdef int slots(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int32_t at = w.mms[0].slot_next, before = 0
    cdef int64_t i
    while at:
        if not 0 < at < w.ctl.mms_used or c.mms[at] or not w.mms[at].flags & MM_HAS_SLOT:
            return refuse(c, b"mms", b"slot_next", before, at, b"no address space with a slot, or one met already")
        c.mms[at] = SEEN_LISTED
        if w.mms[at].slot_prev != before:
            return refuse(c, b"mms", b"slot_prev", at, w.mms[at].slot_prev, b"not the slot before it")
        before = at
        at = w.mms[at].slot_next
    if w.mms[0].slot_prev != before:
        return refuse(c, b"mms", b"slot_prev", 0, w.mms[0].slot_prev, b"not the last slot")
    for i in range(1, w.ctl.mms_used):
        if c.mms[i]:
            continue
        if w.mms[i].flags & MM_HAS_SLOT:
            return refuse(c, b"mms", b"flags", i, w.mms[i].flags, b"has a slot, but is not on their list")
        if w.mms[i].flags & MM_USED and (w.mms[i].slot_next or w.mms[i].slot_prev):
            return refuse(c, b"mms", b"slot_next", i, w.mms[i].slot_next, b"has no slot, but neighbours")
        if w.mms[i].flags & MM_USED and w.mms[i].rmap_list:
            return refuse(c, b"mms", b"rmap_list", i, w.mms[i].rmap_list, b"has no slot, but rmap_items")
    return 0


cdef int one_item(Check *c, int32_t mm, int32_t i, int32_t before) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_item *q = &w.items[i]
    if q.mm != mm:
        return refuse(c, b"items", b"mm", i, q.mm, b"on the list of another address space")
    if q.addr & (KW_PAGE_SIZE - 1) or q.addr >> 57 or before and q.addr <= w.items[before].addr:
        return refuse(c, b"items", b"addr", i, <int64_t>q.addr, b"no page address, or not above the item before")
    if not q.flags & ITEM_USED or q.flags & ~ITEM_BITS or q.flags & ITEM_STABLE and q.flags & ITEM_UNSTABLE:
        return refuse(c, b"items", b"flags", i, q.flags, b"not the flags of an rmap_item in use")
    if not q.flags & ITEM_STABLE and q.node and (q.flags & ITEM_UNSTABLE or not 0 < q.node < w.ctl.stable_used):
        return refuse(c, b"items", b"node", i, q.node, b"on no node's list, but names one")
    return 0


cdef inline int shown(Check *c, const char *field, int64_t mm, int64_t kept, int64_t n, const char *what) noexcept nogil:
    """A count that a process shows: a child may have begun with that of its parent."""
    if c.w.ctl.kernel & SWITCH_FORK_INHERITS and n <= kept and kept >> 48 == 0:
        return 0
    return counted(c, b"mms", field, mm, kept, n, what)


cdef int list_of_items(Check *c, int32_t mm, int64_t *merging, int64_t *live) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int32_t at = w.mms[mm].rmap_list, before = 0
    cdef int64_t n = 0
    merging[0] = 0
    while at:
        if not 0 < at < w.ctl.items_used or c.items[at]:
            if before == 0:
                return refuse(c, b"mms", b"rmap_list", mm, at, b"no rmap_item, or one that is free or on a list already")
            return refuse(c, b"items", b"next", before, at, b"no rmap_item, or one that is free or on a list already")
        c.items[at] = SEEN_LISTED
        if one_item(c, mm, at, before):
            return -1
        n += 1
        merging[0] += w.items[at].flags & ITEM_STABLE != 0
        before = at
        at = w.items[at].next
    live[0] += n
    return shown(c, b"nr_rmap_items", mm, w.mms[mm].nr_rmap_items, n, b"rmap_items on the list")


cdef int items(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_ctl *ctl = w.ctl
    cdef int64_t i, live = 0, merging
    cdef char *none = <char *>&w.items[0]
    cdef char *no_link = <char *>&w.links[0]
    for i in range(<int64_t>sizeof(kw_item)):
        if none[i]:
            return refuse(c, b"items", NULL, 0, none[i], b"record 0 stands for none and must be empty")
    for i in range(<int64_t>sizeof(kw_link)):
        if no_link[i]:
            return refuse(c, b"links", NULL, 0, no_link[i], b"record 0 stands for none and must be empty")
    if free_list(c, b"items", b"items_free", b"next", <char *>w.items, sizeof(kw_item),
                 <char *>&w.items[0].next - <char *>w.items, ctl.items_used, ctl.items_free, c.items):
        return -1
    for i in range(1, ctl.mms_used):
        if not w.mms[i].flags & MM_USED:
            continue
        if list_of_items(c, <int32_t>i, &merging, &live):
            return -1
        if shown(c, b"nr_merging", i, w.mms[i].nr_merging, merging, b"rmap_items marked as stable"):
            return -1
    for i in range(1, ctl.items_used):
        if c.items[i] == 0:
            return refuse(c, b"items", NULL, i, w.items[i].mm, b"on no list, neither of an address space nor of free ones")
    return counted(c, b"ctl", b"items_live", 0, ctl.items_live, live, b"rmap_items in use")


cdef int cursor(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_cursor *p = w.cursor
    if not 0 <= p.slot < w.ctl.mms_used or p.slot and c.mms[p.slot] != SEEN_LISTED:
        return refuse(c, b"cursor", b"slot", 0, p.slot, b"no address space with a slot")
    if not 0 <= p.link < w.ctl.items_used:
        return refuse(c, b"cursor", b"link", 0, p.link, b"no rmap_item")
    if p.link and (p.slot == 0 or not c.items[p.link] & SEEN_LISTED or w.items[p.link].mm != p.slot):
        return refuse(c, b"cursor", b"link", 0, p.link, b"no rmap_item of the address space at hand")
    if p.address & (KW_PAGE_SIZE - 1) or p.address >> 57 or p.link and w.items[p.link].addr >= p.address:
        return refuse(c, b"cursor", b"address", 0, <int64_t>p.address, b"no page address, or not beyond the last rmap_item")
    if within(c, b"ksm", b"cpu", 0, w.ksm.cpu, 0, w.ctl.nr_cpus, b"no CPU of this Host"):
        return -1
    if within(c, b"cursor", b"vma", 0, p.vma, 0, w.ctl.vmas_used, b"no area"):
        return -1
    if within(c, b"cursor", b"strategy", 0, p.strategy, 0, 2, b"no strategy"):
        return -1
    if within(c, b"cursor", b"real_lookups", 0, p.real_lookups, 0, 2, b"must be 0 or 1"):
        return -1
    if p.seqnr >> 62:
        return refuse(c, b"cursor", b"seqnr", 0, <int64_t>p.seqnr, b"more scans than can be")
    if p.cache_base != 1 and (p.cache_base & (KW_PMD_SIZE - 1) or not 0 < p.cache_row < w.ctl.rows_used):
        return refuse(c, b"cursor", b"cache_row", 0, p.cache_row, b"no table page")
    return 0


# ------------------------------------------------------------------ stable nodes

cdef int mark_nodes(Check *c) noexcept nogil:
    """The free ones, and what each of the others says of itself."""
    cdef kw_world *w = c.w
    cdef kw_node *p
    cdef int64_t i, live = 0
    cdef int kind
    cdef char *none = <char *>&w.nodes[0]
    for i in range(<int64_t>sizeof(kw_node)):
        if none[i]:
            return refuse(c, b"nodes", NULL, 0, none[i], b"record 0 stands for none and must be empty")
    if free_list(c, b"nodes", b"stable_free", b"left", <char *>w.nodes, sizeof(kw_node),
                 <char *>&w.nodes[0].left - <char *>w.nodes, w.ctl.stable_used, w.ctl.stable_free, c.nodes):
        return -1
    for i in range(1, w.ctl.stable_used):
        if c.nodes[i]:
            continue
        c.nodes[i] = SEEN_LISTED
        live += 1
        p = &w.nodes[i]
        kind = p.flags & ~(NODE_USED | NODE_RESTLESS)
        if not p.flags & NODE_USED or kind & ~NODE_BITS or kind & (kind - 1):
            return refuse(c, b"nodes", b"flags", i, p.flags, b"not the flags of a stable node in use")
        if within(c, b"nodes", b"tree", i, p.tree, 0, w.ctl.trees_used, b"no tree of this Host"):
            return -1
        if within(c, b"nodes", b"pfn", i, p.pfn, -1, c.known, b"no frame"):
            return -1
        if within(c, b"nodes", b"last_pfn", i, p.last_pfn, 0, w.ctl.nr_frames, b"no frame"):
            return -1
        if p.prune_time >> 62:
            return refuse(c, b"nodes", b"prune_time", i, <int64_t>p.prune_time, b"later than can be")
        if p.flags & NODE_RESTLESS and kind != NODE_CHAIN:
            return refuse(c, b"nodes", b"flags", i, p.flags, b"restless, but not the head of a chain")
        if kind == NODE_CHAIN:
            if p.pfn != -1 or p.items or p.count:
                return refuse(c, b"nodes", b"pfn", i, p.pfn, b"the head of a chain has no page of its own")
        elif p.dups:
            return refuse(c, b"nodes", b"dups", i, p.dups, b"no chain")
        if p.pfn >= 0 and (w.f_node[p.pfn] != i or not w.f_flags[p.pfn] & FRAME_KSM or w.f_key[p.pfn] != p.key):
            return refuse(c, b"nodes", b"pfn", i, p.pfn, b"a frame that is not its KSM page, or of another content")
    return counted(c, b"ctl", b"stable_live", 0, w.ctl.stable_live, live, b"stable nodes in use")


cdef int chain(Check *c, int32_t head, int64_t *n) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int32_t at = w.nodes[head].dups, before = 0
    while at:
        if not 0 < at < w.ctl.stable_used or c.nodes[at] != SEEN_LISTED or not w.nodes[at].flags & NODE_DUP:
            if before == 0:
                return refuse(c, b"nodes", b"dups", head, at, b"no dup, or one met already")
            return refuse(c, b"nodes", b"dup_next", before, at, b"no dup, or one met already")
        c.nodes[at] |= SEEN_DUP
        n[0] += 1
        if w.nodes[at].dup_prev != before:
            return refuse(c, b"nodes", b"dup_prev", at, w.nodes[at].dup_prev, b"not the dup before it")
        if w.nodes[at].chain != head or w.nodes[at].key != w.nodes[head].key:
            return refuse(c, b"nodes", b"chain", at, w.nodes[at].chain, b"another chain's, or of another content")
        before = at
        at = w.nodes[at].dup_next
    return 0


cdef int chains_and_waiting(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t i, dups = 0, chains = 0, at = w.ksm.migrate, before = 0
    for i in range(1, w.ctl.stable_used):
        if c.nodes[i] & SEEN_TREE and w.nodes[i].flags & NODE_CHAIN:
            chains += 1
            if chain(c, <int32_t>i, &dups):
                return -1
    while at:
        if not 0 < at < w.ctl.stable_used or c.nodes[at] != SEEN_LISTED or not w.nodes[at].flags & NODE_MIGRATE:
            if before == 0:
                return refuse(c, b"ksm", b"migrate", 0, at, b"no node that waits to change trees")
            return refuse(c, b"nodes", b"left", before, at, b"no node that waits to change trees, or one met already")
        c.nodes[at] |= SEEN_MIGRATE
        if w.nodes[at].right != before:
            return refuse(c, b"nodes", b"right", at, w.nodes[at].right, b"not the node that waits before it")
        before = at
        at = w.nodes[at].left
    for i in range(1, w.ctl.stable_used):
        if c.nodes[i] == SEEN_LISTED:
            return refuse(c, b"nodes", b"flags", i, w.nodes[i].flags, b"in no tree, in no chain, and waits for none")
    return (counted(c, b"ksm", b"chains", 0, w.ksm.chains, chains, b"chains")
            or counted(c, b"ksm", b"dups", 0, w.ksm.dups, dups, b"dups in chains"))


cdef int node_items(Check *c, int32_t node) noexcept nogil:
    """The list of a node's items; what is on it is marked."""
    cdef kw_world *w = c.w
    cdef int32_t at = w.nodes[node].items, before = 0
    cdef int64_t n = 0
    while at:
        if not 0 < at < w.ctl.items_used or not c.items[at] & SEEN_LISTED or c.items[at] & SEEN_NODE:
            if before == 0:
                return refuse(c, b"nodes", b"items", node, at, b"no rmap_item, or one met already")
            return refuse(c, b"links", b"left", before, at, b"no rmap_item, or one met already")
        c.items[at] |= SEEN_NODE
        if not w.items[at].flags & ITEM_STABLE or w.items[at].node != node:
            return refuse(c, b"items", b"node", at, w.items[at].node, b"not the node on whose list it is")
        if w.mms[w.items[at].mm].domain != w.nodes[node].tree // w.ctl.nr_nodes:
            return refuse(c, b"nodes", b"tree", node, w.nodes[node].tree, b"not of the domain of its rmap_items")
        if w.links[at].right != before:
            return refuse(c, b"links", b"right", at, w.links[at].right, b"not the rmap_item before it on the node's list")
        n += 1
        before = at
        at = w.links[at].left
    return counted(c, b"nodes", b"count", node, w.nodes[node].count, n, b"rmap_items on the list")


cdef int nodes(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t i, node, shared = 0, sharing = 0
    if mark_nodes(c) or stable_trees(c) or chains_and_waiting(c):
        return -1
    for i in range(1, w.ctl.stable_used):
        if c.nodes[i] != SEEN_FREE:
            if node_items(c, <int32_t>i):
                return -1
            shared += w.nodes[i].count > 0
            sharing += max(w.nodes[i].count - 1, 0)
    for i in range(1, w.ctl.items_used):
        if w.items[i].flags & ITEM_STABLE and not c.items[i] & SEEN_NODE:
            return refuse(c, b"items", b"node", i, w.items[i].node, b"marked as stable, but on no node's list")
    for i in range(c.known):
        node = w.f_node[i]
        if node and (not 0 < node < w.ctl.stable_used or c.nodes[node] == SEEN_FREE or w.nodes[node].pfn != i):
            return refuse(c, b"f_node", NULL, i, node, b"no stable node, or that of another page")
    return (counted(c, b"ksm", b"pages_shared", 0, w.ksm.pages_shared, shared, b"nodes with rmap_items")
            or counted(c, b"ksm", b"pages_sharing", 0, w.ksm.pages_sharing, sharing, b"rmap_items beyond the first of a node"))


# ------------------------------------------------------------------ what Python sees

def check_ksm(World world not None, int64_t known):
    """None if slots, rmap_items, nodes and trees agree, else what `memory._check.check_memory` answers."""
    cdef Check c
    cdef kw_ctl *ctl = world.w.ctl
    cdef int code
    enter(world)
    c.w = &world.w
    c.known = known
    c.entry = -1
    c.counts = c.ordered = False
    c.array = c.field = c.why = NULL
    c.record = c.value = c.wanted = c.counted = 0
    c.mms = <uint8_t *>calloc(ctl.mms_used, 1)
    c.items = <uint8_t *>calloc(ctl.items_used, 1)
    c.nodes = <uint8_t *>calloc(ctl.stable_used, 1)
    try:
        if not (c.mms and c.items and c.nodes):
            raise MemoryError("no memory to check a Host in")
        with nogil:
            code = slots(&c) or items(&c) or cursor(&c) or nodes(&c) or unstable_trees(&c)
    finally:
        leave(world)
        free(c.mms)
        free(c.items)
        free(c.nodes)
    return answer(&c) if code else None
