"""What the cursor comes to next: pages merged already are passed in one go, what searches will touch is fetched.

The contract stands in `_ahead.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport entry_pfn, leaf_find
from ksmwalk.ksm._stable cimport stable_root, unstable_root
from ksmwalk.layout._layout cimport *


cdef extern from * nogil:
    void prefetch "__builtin_prefetch"(const void *p) noexcept

cdef enum:
    AHEAD = 16         # searches prepared side by side


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
    cdef int tree = w.mms[w.cursor.slot].domain * <int>w.ctl.nr_nodes
    cdef uint64_t *pte = table_ahead(w, &reach)
    cdef uint64_t *leaf
    cdef int64_t pfn
    cdef kw_link *link
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
    for i in range(found):
        q = &w.items[twins[i]]
        leaf = leaf_find(w, w.mms[q.mm].root, q.addr, &level)
        if leaf != NULL and not leaf[0] & PTE_SPECIAL:
            pfn = <int64_t>entry_pfn(leaf[0], level)
            if pfn < w.ctl.nr_frames:
                warm_frame(w, pfn)
    return addr + (<uint64_t>(reach + 1) << 12)
