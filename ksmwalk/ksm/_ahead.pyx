"""What the cursor comes to next: pages with which nothing special is are visited in tight loops, what searches will touch
is fetched.

The contract stands in `_ahead.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport child_row, eligible, entry_pfn, leaf_find, pmd_find
from ksmwalk.ksm._items cimport age_item, item_alloc, next_item
from ksmwalk.ksm._late cimport (
    Late, items_keyed, kw_keyed, kw_slots_find, kw_slots_guess, kw_slots_hash, kw_slots_prefetch, late, late_add_at,
    nodes_keyed, stable_quiet,
)
from ksmwalk.ksm._pairs cimport easy, join_node, pair_up
from ksmwalk.ksm._stable cimport stable_root, unstable_root
from ksmwalk.layout._layout cimport *
from ksmwalk.layout._poison cimport kw_peek_entry, kw_peek_index


cdef extern from * nogil:
    """
    /* A function that does nothing but prefetch does nothing in the compiler's eyes, and its calls are left out. */
    #define kw_fetch(p) do { __builtin_prefetch(p); __asm__ volatile(""); } while (0)
    """
    void prefetch "kw_fetch"(const void *p) noexcept

cdef enum:
    AHEAD = 16         # searches prepared side by side
    STRIDE = 6         # pages from one look at what comes to the next
    LONG = 32          # merged pages in a row that `pass_merged` is quicker with


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
    cdef uint64_t addr = cur.address, ahead
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
        if done + AHEAD < reach:
            ahead = min((pte[done + AHEAD] & PTE_PFN_MASK) >> 12, <uint64_t>w.ctl.nr_frames - 1)
            prefetch(&w.f_flags[ahead])
            prefetch(&w.f_node[ahead])
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
        w.done.merged += done
        passed(w, addr, link, done)
    return done


cdef int64_t pass_new(kw_world *w, int64_t n) noexcept nogil:
    """Visit up to n pages that have no item yet: what the cursor and `examine` would do.

    The first of them gets its item where the cursor stands; behind it there is no item of this table's addresses.
    """
    cdef kw_cursor *cur = w.cursor
    cdef int reach = 0
    cdef int64_t done = 0, pfn
    cdef uint64_t *pte = table_ahead(w, &reach)
    cdef uint64_t addr = cur.address
    cdef int32_t link = cur.link, following, new
    cdef uint8_t age = 1 if w.ksm.smart_scan else 0
    cdef kw_item *q
    if link == 0 or w.ctl.kernel & SWITCH_STABLE_FIRST:
        return 0            # the latter: a first visit is more than noting the content
    following = w.items[link].next
    n = min(n, <int64_t>reach)
    if following and w.items[following].addr < addr + (<uint64_t>n << 12):
        n = 0 if w.items[following].addr <= addr else <int64_t>((w.items[following].addr - addr) >> 12)
    while done < n:
        if (pte[done] & (PTE_P | PTE_SPECIAL)) != PTE_P:
            break
        pfn = <int64_t>((pte[done] & PTE_PFN_MASK) >> 12)
        if pfn >= w.ctl.nr_frames or not eligible(w.f_flags[pfn]) or w.f_flags[pfn] & FRAME_KSM:
            break
        new = item_alloc(w)
        if new < 0:
            break           # the cursor will say so
        w.items[link].next = new
        q = &w.items[new]
        q.addr = addr
        q.checksum = w.f_key[pfn]
        q.next = following
        q.mm = cur.slot
        q.node = 0
        q.flags = ITEM_USED | ITEM_HAS_CHECKSUM
        q.seq = q.skips = 0
        q.age = age
        link = new
        addr += KW_PAGE_SIZE
        done += 1
    if done:
        w.mms[cur.slot].nr_rmap_items += done
        w.done.changed += done
        passed(w, addr, link, done)
    return done


cdef inline void passed(kw_world *w, uint64_t addr, int32_t link, int64_t n) noexcept nogil:
    w.cursor.address = addr
    w.cursor.link = link
    w.ksm.pages_scanned += n
    w.work.cached += n
    w.work.ptes += n
    w.work.found += n


# ------------------------------------------------------------------ what searches will touch

cdef inline void warm_frame(kw_world *w, int64_t pfn) noexcept nogil:
    if not 0 <= pfn < w.ctl.nr_frames:
        return
    prefetch(&w.f_flags[pfn])
    prefetch(&w.f_mapcount[pfn])
    prefetch(&w.f_extra[pfn])
    prefetch(&w.f_key[pfn])
    prefetch(&w.f_node[pfn])
    prefetch(&w.b_free[pfn >> 6])
    prefetch(&w.b_count[pfn >> 9])


cdef inline int keys_ahead(kw_world *w, uint64_t *keys, int *reach) noexcept nogil:
    """Contents of the pages that come next, behind `keys[0]`, as far as they will be searched for; how many."""
    cdef uint64_t *pte = table_ahead(w, reach)
    cdef int i, n = 1
    cdef int64_t pfn
    reach[0] = min(reach[0], AHEAD - 1)
    for i in range(reach[0]):
        if (pte[i] & (PTE_P | PTE_SPECIAL)) == PTE_P:
            pfn = <int64_t>((pte[i] & PTE_PFN_MASK) >> 12)
            if pfn < w.ctl.nr_frames and not w.f_flags[pfn] & FRAME_KSM:
                keys[n] = w.f_key[pfn]
                n += 1
    return n


cdef inline void fetch_key(kw_world *w, uint64_t entry) noexcept nogil:
    cdef uint64_t pfn = min((entry & PTE_PFN_MASK) >> 12, <uint64_t>w.ctl.nr_frames - 1)
    prefetch(&w.f_flags[pfn])
    prefetch(&w.f_key[pfn])


cdef inline void fetch_slots(kw_world *w, Ahead *a, int i, uint64_t entry, int tree) noexcept nogil:
    cdef uint64_t pfn = (entry & PTE_PFN_MASK) >> 12
    a.there[i & RING] = 0
    a.entry[i & RING] = NULL     # until the fourth look, which the cursor may leave out
    if (entry & (PTE_P | PTE_SPECIAL)) != PTE_P or pfn >= <uint64_t>w.ctl.nr_frames:
        return
    if w.f_flags[pfn] & FRAME_KSM:
        prefetch(&w.f_node[pfn])
        return
    a.there[i & RING] = 1
    a.hash[i & RING] = kw_slots_hash(w.f_key[pfn], tree)
    kw_slots_prefetch(&late(w).stable, a.hash[i & RING])
    kw_slots_prefetch(&late(w).unstable, a.hash[i & RING])


cdef inline void fetch_records(kw_world *w, Ahead *a, int i, uint64_t entry) noexcept nogil:
    cdef int64_t pfn = <int64_t>((entry & PTE_PFN_MASK) >> 12)
    cdef int32_t found
    if a.there[i & RING] == 0:
        return
    found = kw_slots_guess(&late(w).stable, a.hash[i & RING]) if late(w).stable.filled else 0
    if found:
        a.there[i & RING] = -found
        prefetch(&w.nodes[found])
        prefetch(<char *>&w.nodes[found] + sizeof(kw_node) - 1)
        warm_frame(w, pfn)
        return
    found = kw_slots_guess(&late(w).unstable, a.hash[i & RING])
    a.there[i & RING] = found
    if found:
        prefetch(&w.f_mapcount[pfn])
        prefetch(&w.f_extra[pfn])
        prefetch(&w.f_node[pfn])
        prefetch(&w.items[found])
        prefetch(&w.links[found])


cdef inline void fetch_places(kw_world *w, Ahead *a, int i) noexcept nogil:
    """The entry of a twin, the frame of a KSM page; the record that was found may be free by now."""
    cdef int32_t found = a.there[i & RING]
    cdef uint64_t addr
    cdef uint64_t *pmd
    cdef int64_t row
    if found > 0:
        addr = kw_peek_entry(&w.items[found].addr)
        pmd = pmd_find(w, w.mms[w.items[found].mm].root, addr)
        row = KW_NONE if pmd == NULL else child_row(w, pmd)
        if row > 0:
            a.entry[i & RING] = w.rows + row * 512 + ((addr >> 12) & 511)
            prefetch(a.entry[i & RING])
    elif found < 0:
        warm_frame(w, kw_peek_index(&w.nodes[-found].pfn))
        prefetch(&w.links[kw_peek_index(&w.nodes[-found].items)])


cdef inline void fetch_frames(kw_world *w, Ahead *a, int i) noexcept nogil:
    cdef uint64_t *entry = a.entry[i & RING]
    if a.there[i & RING] > 0 and entry != NULL:
        warm_frame(w, <int64_t>((kw_peek_entry(entry) & PTE_PFN_MASK) >> 12))


cdef void look(kw_world *w, Ahead *a, const uint64_t *p, int here, int end) noexcept nogil:
    cdef int i, tree = w.mms[w.cursor.slot].domain * <int>w.ctl.nr_nodes
    for i in range(max(a.upto[0], here), min(here + 5 * STRIDE, end)):
        fetch_key(w, p[i])
        a.upto[0] = i + 1
    for i in range(max(a.upto[1], here), min(here + 4 * STRIDE, end)):
        fetch_slots(w, a, i, p[i], tree)
        a.upto[1] = i + 1
    for i in range(max(a.upto[2], here), min(here + 3 * STRIDE, a.upto[1])):
        fetch_records(w, a, i, p[i])
        a.upto[2] = i + 1
    for i in range(max(a.upto[3], here), min(here + 2 * STRIDE, a.upto[2])):
        fetch_places(w, a, i)
        a.upto[3] = i + 1
    for i in range(max(a.upto[4], here), min(here + STRIDE, a.upto[3])):
        fetch_frames(w, a, i)
        a.upto[4] = i + 1


cdef inline void look_on(kw_world *w, Ahead *a, const uint64_t *p, int here, int end, int tree) noexcept nogil:
    """`look`, where the page before was looked from as well."""
    if here + 5 * STRIDE > end or a.upto[0] != here + 5 * STRIDE - 1 or a.upto[4] != here + STRIDE - 1:
        look(w, a, p, here, end)
        return
    fetch_key(w, p[here + 5 * STRIDE - 1])
    fetch_slots(w, a, here + 4 * STRIDE - 1, p[here + 4 * STRIDE - 1], tree)
    fetch_records(w, a, here + 3 * STRIDE - 1, p[here + 3 * STRIDE - 1])
    fetch_places(w, a, here + 2 * STRIDE - 1)
    fetch_frames(w, a, here + STRIDE - 1)
    a.upto[0] = here + 5 * STRIDE
    a.upto[1] = here + 4 * STRIDE
    a.upto[2] = here + 3 * STRIDE
    a.upto[3] = here + 2 * STRIDE
    a.upto[4] = here + STRIDE


cdef inline bint look_here(kw_world *w, Ahead *a, int *here, int *end) noexcept nogil:
    """Where in the table at hand the cursor is, and where that ends; False: there is none."""
    cdef kw_cursor *cur = w.cursor
    cdef int step
    if cur.strategy != STRATEGY_RANGE or cur.address >= cur.cache_end or cur.address < cur.cache_base:
        return False
    here[0] = <int>((cur.address >> 12) & 511)
    end[0] = <int>((cur.cache_end - cur.cache_base + KW_PAGE_SIZE - 1) >> 12)
    if cur.cache_base != a.base or here[0] < a.here:
        a.base = cur.cache_base
        for step in range(STEPS):
            a.upto[step] = here[0]
        memset(a.there, 0, sizeof(a.there))
    a.here = here[0]
    return True


cdef void warm_known(kw_world *w, Ahead *a) noexcept nogil:
    """Each page to come is looked at five times, each time a bit nearer: every look fetches what the next one reads.

    So a few lines of many pages are on their way at any time, and not all of a few pages.
    """
    cdef int here = 0, end = 0
    if look_here(w, a, &here, &end):
        look_on(w, a, w.rows + w.cursor.cache_row * 512, here, end, w.mms[w.cursor.slot].domain * <int>w.ctl.nr_nodes)


# ------------------------------------------------------------------ pages whose searches the index answers

cdef inline bint let_alone(kw_world *w, int32_t item, uint64_t hash) noexcept nogil:
    """It comes into the unstable tree. False: there is no room."""
    cdef kw_item *q = &w.items[item]
    if not late_add_at(w, item, hash):
        return False
    if not q.flags & ITEM_UNSTABLE:     # else one of an earlier scan leaves, and one of this scan comes
        w.ksm.pages_unshared += 1
    q.flags |= ITEM_UNSTABLE
    q.node = 0
    q.seq = <uint8_t>w.cursor.seqnr
    w.done.inserted += 1
    return True


cdef inline bint known_search(kw_world *w, kw_item *q, int64_t pfn, uint64_t addr) noexcept nogil:
    """Whether a visit of the page, which is not KSM's, is a search: it is unchanged, and not for the zero page."""
    cdef uint64_t key = w.f_key[pfn]
    if not eligible(w.f_flags[pfn]) or q.addr != addr or q.checksum != key or key == 0 and w.ksm.use_zero_pages:
        return False
    if q.flags & (ITEM_STABLE | ITEM_HAS_CHECKSUM) != ITEM_HAS_CHECKSUM or w.ksm.smart_scan and q.age >= 3 and q.skips:
        return False
    return not (q.flags & ITEM_UNSTABLE and q.seq == <uint8_t>w.cursor.seqnr)


cdef inline bint listed(kw_world *w, kw_item *q, int64_t pfn, uint64_t addr) noexcept nogil:
    """Whether a KSM page's item is on the list of its node already, which is all that a visit asks."""
    return q.addr == addr and q.flags & ITEM_STABLE != 0 and q.node == w.f_node[pfn] and w.ksm.merge_across_nodes != 0


cdef inline int visit_known(kw_world *w, Ahead *a, int32_t item, uint64_t *pte, int64_t pfn, int i, int tree) noexcept nogil:
    """Search for the page of an item, in the i-th place of its table, and do what follows; 1: merged, -1: not done."""
    cdef Late *s = late(w)
    cdef kw_keyed items = items_keyed(w), nodes = nodes_keyed(w)
    cdef uint64_t key = w.f_key[pfn], hash = kw_slots_hash(key, tree)
    cdef int32_t found = kw_slots_find(&s.stable, hash, &nodes, key, tree) if s.stable.filled else 0
    if found:
        return 1 if easy(w) and join_node(w, item, pte, pfn, found) else -1
    if key == 0:
        return -1           # `late(w).zero` is noted of it
    found = kw_slots_find(&s.unstable, hash, &items, key, 0)
    if found == 0:
        return 0 if let_alone(w, item, hash) else -1
    if easy(w) and pair_up(w, item, pte, pfn, found, a.entry[i & RING] if a.there[i & RING] == found else NULL, tree):
        return 1
    return -1


cdef int64_t pass_known(kw_world *w, Ahead *a, int64_t n) noexcept nogil:
    cdef kw_cursor *cur = w.cursor
    cdef Late *s = late(w)
    cdef int64_t done = 0, pfn
    cdef int here = 0, end = 0, tree = w.mms[cur.slot].domain * <int>w.ctl.nr_nodes, merged, row = 0
    cdef uint64_t addr = cur.address
    cdef uint64_t *p
    cdef int32_t link = cur.link, item = next_item(w, cur.slot, link)
    cdef kw_item *q
    a.merged = 0
    if not look_here(w, a, &here, &end) or w.ctl.changes != w.ksm.changes_seen or not stable_quiet(w):
        return 0
    if w.ksm.generation != w.ksm.tree_generation:
        return 0
    p = w.rows + cur.cache_row * 512
    while done < n and here < end and item and s.on and s.known and s.restless == 0:
        pfn = <int64_t>((p[here] & PTE_PFN_MASK) >> 12)
        q = &w.items[item]
        if (p[here] & (PTE_P | PTE_SPECIAL)) != PTE_P or pfn >= w.ctl.nr_frames:
            break
        look_on(w, a, p, here + 1, end, tree)
        prefetch(q + AHEAD)     # mostly they were made one after the other
        if w.f_flags[pfn] & FRAME_KSM:
            if row == LONG or not listed(w, q, pfn, addr):
                break
            row += 1
            a.merged += 1
            w.done.merged += 1
        else:
            row = 0
            merged = visit_known(w, a, item, &p[here], pfn, here, tree) if known_search(w, q, pfn, addr) else -1
            if merged < 0:
                break
            a.merged += merged
            w.ksm.changes_seen = w.ctl.changes
            if w.ksm.smart_scan:
                age_item(q)
        link = item
        item = q.next
        addr += KW_PAGE_SIZE
        here += 1
        done += 1
    if done:
        a.here = here
        passed(w, addr, link, done)
    return done


cdef int tree_twins(kw_world *w, const uint64_t *keys, int n, int32_t *twins) noexcept nogil:
    """The items with these contents: their paths are followed side by side, so that they wait for memory together."""
    cdef int32_t at[AHEAD]
    cdef int32_t stable[AHEAD]
    cdef int i, more = 1, found = 0
    cdef int tree = w.mms[w.cursor.slot].domain * <int>w.ctl.nr_nodes
    cdef kw_link *link
    cdef kw_node *p
    for i in range(n):
        at[i] = unstable_root(w, tree)[0]
        stable[i] = stable_root(w, tree)[0]
    while more:
        more = 0
        for i in range(n):
            link = &w.links[at[i]]
            if KW_UNLIKELY(link.key == keys[i] and at[i] != 0):
                twins[found] = at[i]
                found += 1
                prefetch(&w.items[at[i]])
                at[i] = 0
            else:
                at[i] = link.right if keys[i] > link.key else link.left
            p = &w.nodes[stable[i]]
            stable[i] = p.right if keys[i] > p.key else p.left
            more |= at[i] | stable[i]
    return found


cdef uint64_t warm_trees(kw_world *w, uint64_t addr, uint64_t key) noexcept nogil:
    """Bring into the cache what the next searches will touch; the address up to which that holds.

    A search waits for memory, in a large tree at each level. The contents of the pages that come next are known, so what
    several will touch is fetched side by side, and on to the page tables and frames of those that will merge. That
    decides nothing: the searches come after it.
    """
    cdef uint64_t keys[AHEAD]
    cdef int32_t twins[AHEAD]
    cdef uint64_t *leaves[AHEAD]
    cdef int reach = 0, n, found, i, level = 1
    cdef kw_item *q
    keys[0] = key
    n = keys_ahead(w, keys, &reach)
    found = tree_twins(w, keys, n, twins)
    for i in range(found):
        q = &w.items[twins[i]]
        leaves[i] = leaf_find(w, w.mms[q.mm].root, q.addr, &level)
        if leaves[i] != NULL:
            prefetch(leaves[i])
    for i in range(found):
        if leaves[i] != NULL and not leaves[i][0] & (PTE_SPECIAL | PTE_PS):
            warm_frame(w, <int64_t>entry_pfn(leaves[i][0], 1))
    return addr + (<uint64_t>(reach + 1) << 12)
