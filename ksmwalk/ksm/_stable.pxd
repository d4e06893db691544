# Stable nodes, their chains and the stable tree, for the merge engine and for those who `cimport ksmwalk.ksm._stable`.
#
# Same rules as _core.pxd: pointers in, integers out, KW_* codes (always negative) for failures, no Python.
#
# A node stands for one KSM page and lists the rmap_items that share it, newest first. It is stale when its page is gone
# (pfn -1): nothing happens to it until it is met. Nodes of one content hang together in a chain, whose head has no page
# and stands in the tree in their place.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


# The links of the trees are built late: see _late.pxd.

cdef inline int32_t *stable_root(kw_world *w, int tree) noexcept nogil:
    return &w.trees[2 * tree]

cdef inline int32_t *unstable_root(kw_world *w, int tree) noexcept nogil:
    return &w.trees[2 * tree + 1]

cdef inline int tree_of(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    # Number of the pair of trees that a page of an mm belongs to: its domain's, one for all NUMA nodes while merging
    # across them.
    return w.mms[mm].domain * <int>w.ctl.nr_nodes + (0 if w.ksm.merge_across_nodes else w.f_nid[pfn])

cdef inline bint has_room(kw_world *w, int32_t node, int32_t more) noexcept nogil:
    # Whether the node takes a newcomer, and `more` after it. One without items takes none.
    cdef int32_t count = w.nodes[node].count
    return count > 0 and count + more < w.ksm.max_page_sharing


cdef void append_item(kw_world *w, int32_t item, int32_t node) noexcept nogil
    # Put an item on its node's list.
cdef void node_leave(kw_world *w, int32_t item) noexcept nogil
    # Take an item off its node's list. If the node is stale, it goes as a whole, with all its items.
cdef int32_t stable_search(kw_world *w, uint64_t key, int tree) noexcept nogil
    # The node that a page of this content joins, 0 if there is none with room. Drops stale nodes on the way, prunes
    # chains that are due.
cdef int32_t stable_insert(kw_world *w, int64_t pfn, uint64_t key, int tree) noexcept nogil
    # A node for the new KSM page pfn: its index or KW_ENONODES.
cdef int drop_stable_nodes(kw_world *w) noexcept nogil
    # Remove the nodes whose page nobody maps. KW_OK if none is left, KW_EBUSYENTRY otherwise.

# merge_across_nodes = 0: pages whose node stands in another NUMA node's tree
cdef void migrate_add(kw_world *w, int32_t node) noexcept nogil
    # Out of its tree, on the list of those that wait (ksm.migrate, NODE_MIGRATE).
cdef int32_t migrate_search(kw_world *w, int32_t node, int tree) noexcept nogil
    # Where the items of a node that waits belong: itself, now in its tree, or another node of its content, if it is
    # mapped once (which then fails, and it goes on waiting); 0: all of them are full. KW_ENONODES: it goes on waiting.
cdef void migrate_drop_stale(kw_world *w) noexcept nogil
