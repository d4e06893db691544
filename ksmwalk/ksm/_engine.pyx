"""The merge engine: what ksmd does with a page once the cursor has found it, over a Host's arrays.

The contract of every function stands in `_engine.pxd`, those of the trees in `_stable.pxd` and
`_unstable.pxd`.

Merging replaces mappings, never contents, so it cannot falsify a key in the unstable tree. The one exception, empty
subpages that become the zero page when a huge page is split, is met by always looking up key 0.
"""
from libc.errno cimport EFAULT
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t

from ksmwalk._core cimport (
    World, alone, enter, entry_pfn, interrupted, leave, looked_at, make_entry, pte_find,
    pte_present,
)
from ksmwalk.memory._frames cimport LARGE, folio_head, lru_drain
from ksmwalk.memory._folio cimport split_folio_at
from ksmwalk.ksm._items cimport cursor_reset, event, items_drop, slot_remove
from ksmwalk.ksm._cursor cimport scan_begin, scan_next
from ksmwalk.ksm._late cimport indexed, late, late_bind, late_force, late_scan, late_watch
from ksmwalk.ksm._unstable cimport page_eligible, spoil, unstable_erase, unstable_search
from ksmwalk.ksm._unmerge cimport break_ksm, unmerge_mm, unmerging
from ksmwalk.ksm._locked cimport mlock_merged
from ksmwalk.ksm._remap cimport become_ksm, held, map_ksm, protected, unmapped
from ksmwalk.ksm._stable cimport (
    append_item, drop_stable_nodes, migrate_add, migrate_drop_stale, migrate_search, node_leave,
    stable_insert, stable_search, tree_of,
)
from ksmwalk.ksm._ahead cimport Ahead, pass_known, pass_merged, pass_new, warm_known, warm_trees
from ksmwalk.layout._layout cimport *


cdef enum:
    BECOME_KSM = -1    # instead of a frame to merge with


# ------------------------------------------------------------------ which tree

cdef inline bint same_domain(kw_world *w, int32_t node, int32_t mm) noexcept nogil:
    return w.nodes[node].tree // <int>w.ctl.nr_nodes == w.mms[mm].domain


# ------------------------------------------------------------------ leaving a tree

cdef void leave_tree(kw_world *w, int32_t item) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    if q.flags & ITEM_STABLE:
        node_leave(w, item)
    elif q.flags & ITEM_UNSTABLE:
        # One of an earlier scan is in no tree any more: the trees were emptied when this scan began.
        if <uint8_t>w.cursor.seqnr == q.seq:
            unstable_erase(w, item)
        w.ksm.pages_unshared -= 1
        q.flags &= <uint8_t>~ITEM_UNSTABLE


cdef void start_scan(kw_world *w) noexcept nogil:
    """What a new full scan begins with, beside the cursor's own part: the unstable trees are empty from here on."""
    lru_drain(w)
    # An empty tree holds no key that a change before now could have falsified.
    w.ksm.tree_generation = w.ksm.generation
    w.ksm.changes_seen = w.ctl.changes
    late_scan(w)
    if not w.ksm.merge_across_nodes:
        migrate_drop_stale(w)


# ------------------------------------------------------------------ merging

cdef inline bint will_search(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    """Whether a visit gets as far as the trees: not KSM, and unchanged since the last visit."""
    return (not w.f_flags[pfn] & FRAME_KSM and w.items[item].flags & ITEM_HAS_CHECKSUM
            and w.items[item].checksum == w.f_key[pfn])


cdef inline int split(kw_world *w, int64_t pfn, uint64_t addr) noexcept nogil:
    """split_folio_at; empty pages of the folio may go with it, and the unstable tree may hold the item of one."""
    cdef int err
    if indexed(w) and late(w).zero:
        spoil(w)
    err = split_folio_at(w, pfn, addr)
    w.done.splits += err == KW_OK
    return err


cdef int merge_one(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int64_t kpfn) noexcept nogil:
    """Replace the mapping of pfn at addr by one of kpfn (0: the zero page; BECOME_KSM: pfn itself): 0 or -EFAULT."""
    cdef uint64_t *pte
    cdef uint64_t e
    if pfn == kpfn:
        return 0                # shared by fork: the page is there already
    if not page_eligible(w, pfn) or w.f_flags[folio_head(w, pfn)] & FRAME_LOCKED or w.f_flags[pfn] & FRAME_KSM:
        return -EFAULT
    if w.f_flags[pfn] & LARGE and split(w, pfn, addr) != KW_OK:
        return -EFAULT
    pte = pte_find(w, w.mms[mm].root, addr)
    if pte == NULL or not pte_present(pte[0]) or pte[0] & PTE_SPECIAL or entry_pfn(pte[0], 1) != <uint64_t>pfn:
        return -EFAULT          # the split took it: it was empty
    e = pte[0]
    if held(w, e, pfn):
        return -EFAULT
    if kpfn == BECOME_KSM:
        become_ksm(w, mm, pte, pfn)
        return 0
    if w.f_key[pfn] != w.f_key[kpfn]:
        return -EFAULT
    protected(w, e, pfn)
    if kpfn:
        map_ksm(w, mm, pte, kpfn)
    else:
        pte[0] = make_entry(0, e & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_UFFD_WP | PTE_SOFT_DIRTY) | PTE_SPECIAL)
        if not w.ctl.kernel & SWITCH_ZERO_UNTRACKED:
            pte[0] |= PTE_D
            w.ksm.zero_pages += 1
            w.mms[mm].nr_zero += 1
    mlock_merged(w, mm, addr, pfn, kpfn)
    unmapped(w, mm, pfn)
    return 0


cdef inline void forget(kw_world *w, int32_t item) noexcept nogil:
    """The page of an item was merged: what was noted of it."""
    cdef kw_item *q = &w.items[item]
    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORGETS):
        q.flags &= <uint8_t>~ITEM_HAS_CHECKSUM
        q.checksum = 0
        q.age = q.skips = 0


cdef int merge_two(kw_world *w, int32_t item, int64_t pfn, int32_t other, int64_t twin, int tree) noexcept nogil:
    """Make pfn, the page visited, a KSM page and map it at the other item's address as well."""
    cdef kw_item *a = &w.items[item]
    cdef kw_item *b = &w.items[other]
    cdef uint64_t key = w.f_key[pfn]
    cdef bint within = w.f_flags[pfn] & LARGE and w.f_flags[twin] & LARGE and folio_head(w, pfn) == folio_head(w, twin)
    cdef int err
    cdef int32_t node
    # Parts of one huge page: holding on to the one keeps the other from being split out.
    err = -EFAULT if within else merge_one(w, a.mm, a.addr, pfn, BECOME_KSM)
    event(w, EV_NEW, a.mm, pfn, item, 0, err)
    if err:
        if within:
            split(w, pfn, a.addr)
        return KW_OK
    forget(w, item)
    err = merge_one(w, b.mm, b.addr, twin, pfn)
    event(w, EV_ADD, b.mm, pfn, other, 0, err)
    if err:
        err = break_ksm(w, a.mm, a.addr, <int>w.ksm.cpu)
        return err if err < 0 else KW_OK
    leave_tree(w, other)
    forget(w, other)
    node = stable_insert(w, pfn, key, tree)
    if node < 0:
        err = break_ksm(w, b.mm, b.addr, <int>w.ksm.cpu)
        if err >= 0:
            err = break_ksm(w, a.mm, a.addr, <int>w.ksm.cpu)
        return node
    append_item(w, other, node)
    append_item(w, item, node)
    w.done.merges += 1
    return KW_OK


cdef int merge_unstable(kw_world *w, int32_t item, int64_t pfn, int tree) noexcept nogil:
    """No stable node will have it: merge it with an equal page of the unstable tree, or put it there."""
    cdef int64_t twin = 0
    cdef int32_t other = unstable_search(w, item, pfn, w.f_key[pfn], tree, &twin)
    return merge_two(w, item, pfn, other, twin, tree) if other > 0 else KW_OK


cdef inline bint changed(kw_world *w, kw_item *q, uint64_t key) noexcept nogil:
    """Was it another content at the last visit? This one is noted then."""
    if q.flags & ITEM_HAS_CHECKSUM and q.checksum == key:
        return False
    q.checksum = key
    q.flags |= ITEM_HAS_CHECKSUM
    w.done.changed += 1
    return True


cdef inline bint zeroed(kw_world *w, kw_item *q, int64_t pfn) noexcept nogil:
    """Map the zero page in place of this empty one, where that is asked for."""
    cdef int err
    if not w.ksm.use_zero_pages:
        return False
    err = merge_one(w, q.mm, q.addr, pfn, 0)
    event(w, EV_ZERO, q.mm, pfn, <int64_t>q.addr, 0, err)
    w.done.zeroed += err == 0
    return err == 0


cdef int seek(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    """What a page that is not KSM's yet joins: its node; 0: the visit is over; or a code."""
    cdef kw_item *q = &w.items[item]
    cdef uint64_t key = w.f_key[pfn]
    cdef int tree = tree_of(w, q.mm, pfn)
    cdef bint stable_first = w.ctl.kernel & SWITCH_STABLE_FIRST != 0
    cdef int32_t target = stable_search(w, key, tree) if KW_UNLIKELY(stable_first) else 0
    leave_tree(w, item)
    if target:
        return target
    if changed(w, q, key) or key == 0 and zeroed(w, q, pfn):
        return KW_OK
    if not stable_first:
        target = stable_search(w, key, tree)
    return target if target else merge_unstable(w, item, pfn, tree)


cdef int compare_and_merge(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    cdef kw_item *q = &w.items[item]
    cdef int32_t node = 0, target
    cdef int err, tree
    if w.f_flags[pfn] & FRAME_KSM:
        node = w.f_node[pfn]
    if node:
        w.done.merged += 1
        # The kernel asks for the address alone: an item whose node went stale takes for its own the one that has its memory.
        if KW_LIKELY(q.node == node and w.ksm.merge_across_nodes):
            return KW_OK
        if KW_UNLIKELY(not same_domain(w, node, q.mm)):
            leave_tree(w, item)     # shared by fork before the domains were told apart: it stays as it is
            return KW_OK
        tree = tree_of(w, q.mm, pfn)
        if not w.nodes[node].flags & NODE_MIGRATE:
            if w.nodes[node].tree != tree:
                migrate_add(w, node)
            elif q.node == node:
                return KW_OK
        # A page shared by fork finds itself, however many share it already.
        target = node
        if w.nodes[node].flags & NODE_MIGRATE:
            target = migrate_search(w, node, tree)
            if target < 0:
                return target
            if target == node and q.node == node:
                return KW_OK
        leave_tree(w, item)
        if target == 0:
            # A kernel that searches the stable tree first looks at the content of a KSM page only now, too.
            if w.ctl.kernel & SWITCH_STABLE_FIRST and (
                    changed(w, q, w.f_key[pfn]) or w.f_key[pfn] == 0 and zeroed(w, q, pfn)):
                return KW_OK
            spoil(w)    # a KSM page among those that are none
            return merge_unstable(w, item, pfn, tree)
    else:
        target = seek(w, item, pfn)
        if target <= 0:
            return target
        w.done.hits += 1
    err = merge_one(w, q.mm, q.addr, pfn, w.nodes[target].pfn)
    event(w, EV_ADD, q.mm, w.nodes[target].pfn, item, target, err)
    if err == 0:
        forget(w, item)
        append_item(w, item, target)
    return KW_OK


cdef int examine(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    cdef int err
    if KW_UNLIKELY(w.ctl.changes != w.ksm.changes_seen):
        w.ksm.generation += 1
    err = compare_and_merge(w, item, pfn)
    w.ksm.changes_seen = w.ctl.changes
    w.ksm.pages_scanned += 1
    return err


# ------------------------------------------------------------------ batches

cdef int64_t scan_and_merge(kw_world *w, int64_t n, int *failed) noexcept nogil:
    cdef int64_t done = 0, asked = 0, pfn = 0, items = w.ctl.items_used + w.ctl.items_free
    cdef uint64_t warm = 0
    cdef Ahead ahead
    cdef int32_t item, mm = 0
    cdef int err
    failed[0] = KW_OK
    ahead.base = 1
    ahead.here = 0
    scan_begin(w)
    while done < n:
        item = scan_next(w, &pfn)
        if item <= 0:
            failed[0] = item
            break
        if w.items[item].mm != mm:
            mm = w.items[item].mm
            warm = 0
            ahead.base = 1
        if indexed(w):
            if will_search(w, item, pfn):
                warm_known(w, &ahead)
        elif w.items[item].addr >= warm and will_search(w, item, pfn):
            warm = warm_trees(w, w.items[item].addr, w.f_key[pfn])
        err = examine(w, item, pfn)
        done += 1
        if err < 0:
            failed[0] = err
            break
        if w.f_flags[pfn] & FRAME_KSM:
            done += pass_merged(w, n - done)
        elif w.ctl.items_used + w.ctl.items_free != items:
            items = w.ctl.items_used + w.ctl.items_free
            done += pass_new(w, n - done)
        if indexed(w) and w.items[item].flags & (ITEM_STABLE | ITEM_UNSTABLE):
            done += pass_known(w, &ahead, n - done)
        if done >= asked + 4096:
            asked = done
            if interrupted():
                failed[0] = KW_EINTR
                break
    return done


# ------------------------------------------------------------------ run = 2

cdef int unmerge_all(kw_world *w) noexcept nogil:
    cdef int32_t mm = w.mms[0].slot_next, following
    cdef int err
    while mm:
        following = w.mms[mm].slot_next
        cursor_reset(w, mm)
        if not w.mms[mm].flags & MM_EXITING:
            err = unmerge_mm(w, mm, unmerging(w), w.mms[0].cpu)
            if err < 0:
                return err
        items_drop(w, mm)
        cursor_reset(w, following)
        if w.mms[mm].flags & MM_EXITING:
            slot_remove(w, mm)
        mm = following
    drop_stable_nodes(w)
    cursor_reset(w, 0)
    w.cursor.seqnr = 0
    return KW_OK


cdef void bind(kw_world *w) noexcept nogil:
    late_bind(w)
    w.leave_tree = leave_tree
    w.start_scan = start_scan


# ------------------------------------------------------------------ what Python sees

def py_bind(World world not None):
    """Give the cursor of this world its doors into the engine."""
    alone(world)
    bind(&world.w)


def py_scan(World world not None, int64_t n):
    """(visits, 0 or a negative KW_* code) of one batch of at most n visits."""
    cdef int failed = 0
    cdef int64_t done
    enter(world)
    late_watch(&world.w, looked_at(world))
    with nogil:
        done = scan_and_merge(&world.w, n, &failed)
    leave(world)
    return done, failed


def py_trees(World world not None, bint only):
    """Build all trees at once from now on, or late again from the next scan on: for tests, nothing else can tell."""
    enter(world)
    late_force(&world.w, only)
    leave(world)


def py_unmerge_all(World world not None):
    """run = 2: 0 or a negative KW_* code."""
    cdef int err
    enter(world)
    with nogil:
        err = unmerge_all(&world.w)
    leave(world)
    return err


def py_drop_stable_nodes(World world not None):
    """Whether no stable node is left after the stale ones were removed."""
    cdef int err
    enter(world)
    with nogil:
        err = drop_stable_nodes(&world.w)
    leave(world)
    return err == KW_OK
