# What the engine knows of the trees without building them, for those who `cimport ksmwalk.ksm._late`. Same rules as
# _core.pxd.
#
# The outcome of a search is a look-up by content while nothing in the tree has changed, and the order of insertions is
# enough to build the very same tree when it is needed after all. So `kw_world.trees`, `kw_world.links` and the links of
# stable nodes (left, right, parent, colour) may be behind. WHOEVER READS THEM CALLS `settle` FIRST, or `w.settle(w)`
# where it is not NULL. Reading `World.arrays` from Python, saving and pickling do so by themselves.
#
# All of it is scratch: not part of a Host's state, made where it is not there, forgotten with the World.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t

from ksmwalk.layout._layout cimport *


cdef extern from "_slots.h" nogil:
    ctypedef struct kw_slots:
        uint32_t *slots
        uint64_t lines
        int64_t filled
        int64_t limit
    ctypedef struct kw_keyed:
        const char *keys
        const char *trees
        int64_t stride
    uint64_t kw_slots_hash(uint64_t key, int tree) noexcept
    void kw_slots_prefetch(const kw_slots *s, uint64_t hash) noexcept
    int32_t kw_slots_find(const kw_slots *s, uint64_t hash, const kw_keyed *of, uint64_t key, int tree) noexcept
    int32_t kw_slots_guess(const kw_slots *s, uint64_t hash) noexcept
    bint kw_slots_add(kw_slots *s, uint64_t hash, int32_t i) noexcept
    bint kw_slots_put(kw_slots *s, uint64_t hash, int32_t i, int32_t to) noexcept
    bint kw_slots_make(kw_slots *s, int64_t n, int64_t records) noexcept
    void kw_slots_free(kw_slots *s) noexcept


cdef struct Log:
    int32_t *at         # what was done, in order
    int64_t n, room

cdef struct Late:
    bint trees_only     # nothing may be built late: somebody looks at the arrays,
    bint forced         # or asked for it
    # the unstable tree of this scan
    bint on             # the index and the log stand for it, the links are not built
    bint spoiled        # it had to be built, because something changed
    int wait, waits     # scans that keep to the trees, because the last ones were spoiled
    int32_t zero        # the item in it whose content is 0: a split may take its page, 0: there is none
    kw_slots unstable
    Log log             # item, n: it and the n - 1 with the next numbers inserted;
                        # -item, two words of its content, its tree: taken out
    int64_t run         # where the n of the last insertion stands, 0: something was taken out since
    # the stable trees
    bint known          # the index holds every entry of them
    kw_slots stable
    Log todo            # node: inserted; -node and another: that one took its place
    int64_t restless    # chains that a search would change that passes them (NODE_RESTLESS)
    int64_t pruned      # no chain was pruned before
    int64_t credit      # searches since that was counted


cdef inline Late *late(kw_world *w) noexcept nogil:
    return <Late *>w.late

cdef inline bint indexed(kw_world *w) noexcept nogil:
    # Whether the index stands for the unstable tree.
    return w.late != NULL and late(w).on

cdef inline int domain_tree(kw_world *w, int32_t item) noexcept nogil:
    # Number of the tree of an item that stands in the index: of its domain, and of the first NUMA node where these have
    # trees of their own.
    return w.mms[w.items[item].mm].domain * <int>w.ctl.nr_nodes

cdef inline kw_keyed items_keyed(kw_world *w) noexcept nogil:
    cdef kw_keyed of
    of.keys = <const char *>&w.items[0].checksum
    of.trees = NULL
    of.stride = sizeof(kw_item)
    return of

cdef inline kw_keyed nodes_keyed(kw_world *w) noexcept nogil:
    cdef kw_keyed of
    of.keys = <const char *>&w.nodes[0].key
    of.trees = <const char *>&w.nodes[0].tree if w.ctl.trees_used > 1 else NULL
    of.stride = sizeof(kw_node)
    return of


cdef void late_bind(kw_world *w) noexcept nogil
    # Scratch for this World; where there is no memory for it, everything is built at once.
cdef void settle(kw_world *w) noexcept nogil
    # Build what is late. Links of items that are in no tree now and on no node's list are 0 afterwards.

cdef void late_watch(kw_world *w, bint looked_at) noexcept nogil
    # A batch begins, while somebody holds the arrays or nobody does.
cdef void late_force(kw_world *w, bint only) noexcept nogil
    # Build everything at once, or no longer.

# ------------------------------------------------------------------ the unstable tree

cdef void late_scan(kw_world *w) noexcept nogil
    # A full scan begins, with empty trees.
cdef void late_build(kw_world *w) noexcept nogil
    # The links of the unstable tree are needed: build them, and go on without the index for the rest of the scan.
cdef inline bint late_add_at(kw_world *w, int32_t item, uint64_t hash) noexcept nogil:
    # The same of an item that is not empty, with the hash of its content.
    cdef Late *s = late(w)
    if s.log.n + 2 > s.log.room or not kw_slots_add(&s.unstable, hash, item):
        return False
    if s.run and s.log.at[s.run - 1] + s.log.at[s.run] == item:
        s.log.at[s.run] += 1
        return True
    s.log.at[s.log.n] = item
    s.log.at[s.log.n + 1] = 1
    s.run = s.log.n + 1
    s.log.n += 2
    return True

cdef bint late_add(kw_world *w, int32_t item) noexcept nogil
    # The item, whose checksum is its content, comes into the tree. False: there is no room, nothing was done.
cdef void late_erase(kw_world *w, int32_t item) noexcept nogil
    # It leaves the tree.

# ------------------------------------------------------------------ the stable trees

cdef void stable_ready(kw_world *w) noexcept nogil
    # Read the nodes where that was not done yet. Not while there is a node that belongs in a tree and is not in it.
cdef bint stable_quiet(kw_world *w) noexcept nogil
    # Whether a search changes nothing it passes: its outcome is that of `stable_find`.
cdef int32_t stable_find(kw_world *w, uint64_t key, int tree) noexcept nogil
    # The entry of the tree with this content, 0: none.
cdef void stable_todo(kw_world *w, int32_t node) noexcept nogil
    # The node is to come into its tree; nothing in it has this content.
cdef void stable_swap(kw_world *w, int32_t old, int32_t new) noexcept nogil
    # The new node takes the place of the old one.
cdef void stable_build(kw_world *w) noexcept nogil
    # The links of the stable trees are needed.
cdef void stable_placed(kw_world *w, int32_t node) noexcept nogil
cdef void stable_erased(kw_world *w, int32_t node) noexcept nogil
    # The node was put into its tree, or is about to leave it, by links: the index follows.
cdef void chain_look(kw_world *w, int32_t chain, bint walk) noexcept nogil
    # Something happened to a chain: would a search change it that passes it? Without `walk` the first dup alone is
    # looked at, and a doubt counts as yes.
