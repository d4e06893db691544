"""Trees that are built when somebody needs them: until then an index by content and the order of what was done.

The contract stands in `_late.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

from ksmwalk.ksm._trees cimport rb_erase, rb_insert, rb_replace
from ksmwalk.layout._grow cimport kw_grow
from ksmwalk.layout._layout cimport *


cdef extern from * nogil:
    """
    /* A function that does nothing but prefetch does nothing in the compiler's eyes, and its calls are left out. */
    #define kw_fetch(p) do { __builtin_prefetch(p); __asm__ volatile(""); } while (0)

    /* The tree is owed to whoever asks for it, and its shape can't be had without this room. */
    static void *kw_room(size_t n)
    {
        void *p = calloc(n, 1);
        if (p == NULL) {
            fprintf(stderr, "ksmwalk: no memory (%zu bytes) to build the unstable trees\\n", n);
            abort();
        }
        return p;
    }
    """
    void *kw_room(size_t n) noexcept
    void prefetch "kw_fetch"(const void *p) noexcept

cdef enum:
    GENERATION_BITS = 0x7FFFFFFF
    AHEAD = 16          # insertions prepared side by side
    CREDIT = 16         # nodes that one search may pay for, to find out which chain was pruned first
    LONGEST_WAIT = 8    # scans
    TAKEN_OUT = 4       # words of a log

# One insertion of the log while the tree is built: what kw_link holds, by place in the log.
ctypedef struct Place:
    kw_link link
    int32_t item        # its item, negative once it was taken out
    int32_t tree


cdef bint log_room(Log *log, int64_t words) noexcept nogil:
    return kw_grow(&log.at, &log.room, log.n + words, sizeof(int32_t))


cdef inline void log_put(Log *log, int32_t word) noexcept nogil:
    log.at[log.n] = word
    log.n += 1


cdef void late_bind(kw_world *w) noexcept nogil:
    if w.late == NULL:
        w.late = calloc(1, sizeof(Late))
        w.settle = settle
        w.forget = late_forget


cdef void late_forget(kw_world *w) noexcept nogil:
    cdef Late *s = late(w)
    if s != NULL:
        kw_slots_free(&s.unstable)
        kw_slots_free(&s.stable)
        free(s.log.at)
        free(s.todo.at)
        free(s)
        w.late = NULL


cdef void settle(kw_world *w) noexcept nogil:
    cdef Late *s = late(w)
    cdef int64_t i
    cdef kw_item *q
    cdef kw_link *link
    cdef uint8_t now = <uint8_t>w.cursor.seqnr
    if s == NULL:
        return
    if s.on and w.cursor.slot:
        late_build(w)
    stable_build(w)
    for i in range(1, w.ctl.items_used):
        q = &w.items[i]
        if not q.flags & ITEM_USED:
            continue            # `item_free` left it empty
        link = &w.links[i]
        if q.flags & ITEM_UNSTABLE and w.cursor.slot and q.seq == now:
            continue
        if not q.flags & ITEM_STABLE and (link.left | link.right):
            link.left = link.right = 0
        if link.key or link.aux or link.parent and not q.flags & ITEM_STABLE:
            link.key = 0
            link.aux = 0
            if not q.flags & ITEM_STABLE:
                link.parent = 0


cdef void late_watch(kw_world *w, bint looked_at) noexcept nogil:
    cdef Late *s = late(w)
    if s == NULL:
        return
    s.trees_only = looked_at or s.forced
    if s.trees_only and (s.on or s.todo.n):
        settle(w)


cdef void late_force(kw_world *w, bint only) noexcept nogil:
    if w.late != NULL:
        late(w).forced = only
        late_watch(w, False)


# ------------------------------------------------------------------ the unstable tree

cdef void late_scan(kw_world *w) noexcept nogil:
    cdef Late *s = late(w)
    if s == NULL:
        return
    s.on = False
    s.zero = 0
    s.log.n = s.run = 0
    if s.spoiled:
        s.waits = min(max(2 * s.waits, 1), LONGEST_WAIT)
        s.wait = s.waits
    elif s.wait == 0:
        s.waits = 0
    s.spoiled = False
    if s.wait:
        s.wait -= 1
        return
    # Where NUMA nodes have trees of their own, they stay trees.
    if s.trees_only or w.ctl.nr_nodes > 1 and not w.ksm.merge_across_nodes:
        return
    # Items that are met for the first time in this scan come into no tree.
    s.on = kw_slots_make(&s.unstable, w.ctl.items_live - w.ksm.pages_shared - w.ksm.pages_sharing,
                         w.ctl.items_used + w.ctl.items_used // 8 + 1024)


cdef bint late_add(kw_world *w, int32_t item) noexcept nogil:
    cdef Late *s = late(w)
    cdef uint64_t key = w.items[item].checksum
    if not log_room(&s.log, 2) or not late_add_at(w, item, kw_slots_hash(key, domain_tree(w, item))):
        return False
    if key == 0:
        s.zero = item
    return True


cdef void late_erase(kw_world *w, int32_t item) noexcept nogil:
    cdef Late *s = late(w)
    cdef uint64_t key = w.items[item].checksum
    cdef int tree = domain_tree(w, item)
    if not log_room(&s.log, TAKEN_OUT):
        late_build(w)
        return          # the caller erases it there
    kw_slots_put(&s.unstable, kw_slots_hash(key, tree), item, 0)
    s.run = 0
    log_put(&s.log, -item)
    # The item may be gone, or have another content or domain, when the tree is built.
    log_put(&s.log, <int32_t><uint32_t>key)
    log_put(&s.log, <int32_t><uint32_t>(key >> 32))
    log_put(&s.log, tree)
    if item == s.zero:
        s.zero = 0


cdef int64_t insertions(const Log *log) noexcept nogil:
    cdef int64_t i = 0, n = 0
    while i < log.n:
        if log.at[i] > 0:
            n += log.at[i + 1]
        i += 2 if log.at[i] > 0 else TAKEN_OUT
    return n


cdef int64_t read_log(kw_world *w, Place *places, int32_t *where) noexcept nogil:
    """Fill in items and contents of all insertions, from 1 on; how many."""
    cdef Log *log = &late(w).log
    cdef int64_t i = 0, n = 0, at
    cdef int32_t item
    while i < log.n:
        if log.at[i] > 0:
            for item in range(log.at[i], log.at[i] + log.at[i + 1]):
                n += 1
                places[n].item = item
                where[item] = <int32_t>n
            i += 2
        else:
            at = where[-log.at[i]]
            places[at].item = log.at[i]
            places[at].link.key = <uint32_t>log.at[i + 1] | <uint64_t><uint32_t>log.at[i + 2] << 32
            places[at].tree = log.at[i + 3]
            i += TAKEN_OUT
    for at in range(1, n + 1):
        if places[at].item > 0:
            places[at].link.key = w.items[places[at].item].checksum
            places[at].tree = domain_tree(w, places[at].item)
    return n


cdef void warm_places(Place *places, const int32_t *roots, int64_t first, int64_t last) noexcept nogil:
    """Follow the paths of several insertions side by side, so that they wait for memory together."""
    cdef int32_t at[AHEAD]
    cdef int64_t i, n = last - first
    cdef int32_t more = 1
    cdef Place *p
    for i in range(n):
        at[i] = roots[places[first + i].tree]
    while more:
        more = 0
        for i in range(n):
            p = &places[at[i]]
            at[i] = p.link.right if places[first + i].link.key > p.link.key else p.link.left
            prefetch(&places[at[i]])
            more |= at[i]


cdef inline void hang_place(Place *places, int32_t *root, int32_t at) noexcept nogil:
    cdef int32_t t = root[0], parent = 0
    cdef uint64_t key = places[at].link.key
    cdef bint right = False
    while t:
        parent = t
        right = key > places[t].link.key
        t = places[t].link.right if right else places[t].link.left
    rb_insert(<char *>&places[0].link.left, sizeof(Place), root, parent, right, at)


cdef void replay(kw_world *w, Place *places, int32_t *where, int32_t *roots, int64_t n) noexcept nogil:
    """Do to the places, in order, what was done to the trees."""
    cdef Log *log = &late(w).log
    cdef char *base = <char *>&places[0].link.left
    cdef int64_t i = 0, at = 0, warm = 1
    cdef int32_t t, item
    while i < log.n:
        if log.at[i] < 0:
            t = where[-log.at[i]]
            rb_erase(base, sizeof(Place), &roots[places[t].tree], t)
            i += TAKEN_OUT
            continue
        for item in range(log.at[i], log.at[i] + log.at[i + 1]):
            at += 1
            if at == warm:
                warm = min(at + AHEAD, n + 1)
                warm_places(places, roots, at, warm)
            where[item] = <int32_t>at
            hang_place(places, &roots[places[at].tree], <int32_t>at)
        i += 2


cdef void late_build(kw_world *w) noexcept nogil:
    cdef Late *s = late(w)
    cdef uint32_t generation = <uint32_t>(w.ksm.tree_generation & GENERATION_BITS)
    cdef int64_t n, at
    cdef Place *places
    cdef kw_link *link
    cdef int32_t *where
    cdef int32_t *roots
    if not s.on:
        return
    s.on = False
    if s.log.n == 0:
        return
    where = <int32_t *>kw_room(w.ctl.items_used * sizeof(int32_t))
    places = <Place *>kw_room((insertions(&s.log) + 1) * sizeof(Place))
    roots = <int32_t *>kw_room(w.ctl.trees_used * sizeof(int32_t))
    n = read_log(w, places, where)
    replay(w, places, where, roots, n)
    for at in range(1, n + 1):
        if places[at].item > 0:
            link = &w.links[places[at].item]
            link[0] = places[at].link
            link.left = places[link.left].item
            link.right = places[link.right].item
            link.parent = places[link.parent].item
            link.aux = (link.aux & 1) | (generation << 1)
    for at in range(w.ctl.trees_used):
        w.trees[2 * at + 1] = places[roots[at]].item
    s.log.n = s.run = 0
    free(roots)
    free(where)
    free(places)


# ------------------------------------------------------------------ the stable trees

cdef inline bint in_tree(kw_node *p) noexcept nogil:
    return p.flags & NODE_USED and not p.flags & (NODE_DUP | NODE_MIGRATE)


cdef void stable_learn(kw_world *w) noexcept nogil:
    """Read the index, and what it goes by, from the nodes, those that are to come into the trees among them."""
    cdef Late *s = late(w)
    cdef int64_t i, n = 2 * w.ctl.stable_live + 1024
    cdef kw_node *p
    s.restless = 0
    s.pruned = w.ksm.now_ms
    w.nodes_gone = 0
    s.known = kw_slots_make(&s.stable, n, w.ctl.stable_used + n)
    if not s.known:
        return
    for i in range(1, w.ctl.stable_used):
        p = &w.nodes[min(i + AHEAD, w.ctl.stable_used - 1)]
        if p.flags & NODE_USED:
            kw_slots_prefetch(&s.stable, kw_slots_hash(p.key, p.tree))
        p = &w.nodes[i]
        if not p.flags & NODE_USED:
            continue
        if p.flags & NODE_CHAIN:
            # A doubt that was noted stays noted: that nodes are read again must not show.
            if p.flags & NODE_RESTLESS:
                s.restless += 1
            else:
                chain_look(w, <int32_t>i, True)
            s.pruned = min(s.pruned, <int64_t>p.prune_time)
        elif p.pfn < 0:
            w.nodes_gone += 1
        if in_tree(p):
            kw_slots_add(&s.stable, kw_slots_hash(p.key, p.tree), <int32_t>i)


cdef bint chain_due(kw_world *w) noexcept nogil:
    """Whether any chain may be due for pruning."""
    cdef Late *s = late(w)
    cdef int64_t i
    if w.ksm.now_ms < s.pruned + w.ksm.prune_millisecs:
        return False
    s.credit += CREDIT
    if s.credit < w.ctl.stable_used:
        return True
    s.credit = 0
    s.pruned = w.ksm.now_ms
    for i in range(1, w.ctl.stable_used):
        if w.nodes[i].flags & NODE_CHAIN:
            s.pruned = min(s.pruned, <int64_t>w.nodes[i].prune_time)
    return w.ksm.now_ms >= s.pruned + w.ksm.prune_millisecs


cdef void stable_ready(kw_world *w) noexcept nogil:
    if w.late != NULL and not late(w).known:
        stable_learn(w)


cdef bint stable_quiet(kw_world *w) noexcept nogil:
    cdef Late *s = late(w)
    if s == NULL or not s.known or s.trees_only or w.nodes_gone or s.restless:
        return False
    return w.ksm.chains == 0 or not chain_due(w)


cdef int32_t stable_find(kw_world *w, uint64_t key, int tree) noexcept nogil:
    cdef kw_keyed of = nodes_keyed(w)
    return kw_slots_find(&late(w).stable, kw_slots_hash(key, tree), &of, key, tree)


cdef void stable_placed(kw_world *w, int32_t node) noexcept nogil:
    cdef Late *s = late(w)
    if s == NULL or not s.known:
        return
    if not kw_slots_add(&s.stable, kw_slots_hash(w.nodes[node].key, w.nodes[node].tree), node):
        stable_learn(w)


cdef void stable_erased(kw_world *w, int32_t node) noexcept nogil:
    cdef Late *s = late(w)
    if s != NULL and s.known:
        kw_slots_put(&s.stable, kw_slots_hash(w.nodes[node].key, w.nodes[node].tree), node, 0)


cdef void stable_todo(kw_world *w, int32_t node) noexcept nogil:
    cdef Late *s = late(w)
    stable_placed(w, node)
    if s != NULL and s.known and not s.trees_only and log_room(&s.todo, 1):
        log_put(&s.todo, node)
    else:
        stable_build(w)
        stable_hang(w, node)


cdef void stable_swap(kw_world *w, int32_t old, int32_t new) noexcept nogil:
    cdef Late *s = late(w)
    if s != NULL and s.known and not kw_slots_put(
            &s.stable, kw_slots_hash(w.nodes[old].key, w.nodes[old].tree), old, new):
        s.known = False     # its numbers have become too large
    if s != NULL and s.todo.n and log_room(&s.todo, 2):
        log_put(&s.todo, -old)
        log_put(&s.todo, new)
        return
    stable_build(w)
    rb_replace(<char *>&w.nodes[0].left, sizeof(kw_node), &w.trees[2 * w.nodes[old].tree], old, new)


cdef void stable_hang(kw_world *w, int32_t node) noexcept nogil:
    """Put a node where its content belongs in its tree."""
    cdef int32_t *root = &w.trees[2 * w.nodes[node].tree]
    cdef int32_t t = root[0], parent = 0
    cdef uint64_t key = w.nodes[node].key
    cdef bint right = False
    while t:
        parent = t
        right = key > w.nodes[t].key
        t = w.nodes[t].right if right else w.nodes[t].left
    rb_insert(<char *>&w.nodes[0].left, sizeof(kw_node), root, parent, right, node)


cdef void stable_build(kw_world *w) noexcept nogil:
    cdef Late *s = late(w)
    cdef int64_t i = 0
    cdef int32_t node
    if s == NULL or s.todo.n == 0:
        return
    while i < s.todo.n:
        node = s.todo.at[i]
        if node > 0:
            stable_hang(w, node)
            i += 1
        else:
            rb_replace(<char *>&w.nodes[0].left, sizeof(kw_node), &w.trees[2 * w.nodes[-node].tree], -node, s.todo.at[i + 1])
            i += 2
    s.todo.n = 0


cdef inline bint roomy(kw_world *w, int32_t node, int32_t more) noexcept nogil:
    return w.nodes[node].count > 0 and w.nodes[node].count + more < w.ksm.max_page_sharing


cdef bint would_change(kw_world *w, int32_t chain, bint walk) noexcept nogil:
    cdef int32_t first = w.nodes[chain].dups, dup
    if first == 0 or w.nodes[first].dup_next == 0 and not w.ctl.kernel & SWITCH_OLD_CHAINS:
        return True         # it ends, or turns back into a plain node
    if roomy(w, first, 0):
        return False
    if not walk:
        return True
    dup = w.nodes[first].dup_next
    while dup and not roomy(w, dup, 0):
        dup = w.nodes[dup].dup_next
    return dup != 0 and roomy(w, dup, 1)


cdef void chain_look(kw_world *w, int32_t chain, bint walk) noexcept nogil:
    cdef bint now = would_change(w, chain, walk)
    if now != (w.nodes[chain].flags & NODE_RESTLESS != 0):
        w.nodes[chain].flags ^= NODE_RESTLESS
        if w.late != NULL:
            late(w).restless += 1 if now else -1
