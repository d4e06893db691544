"""A scan that asks a policy where designs differ, over a Host's arrays.

The contract of every function stands in `_policy.pxd`. The pieces are the cursor's and the engine's own: where a policy
answers what Linux does, the same happens to the bit.
"""
cimport cython

from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ksmwalk._core cimport eligible, entry_decode, entry_pfn, interrupted, leaf_find, level_index, pte_present
from ksmwalk.memory._areas cimport vma_find_from
from ksmwalk.ksm._ahead cimport Ahead, pass_known, pass_merged, pass_new, warm_known, warm_trees
from ksmwalk.ksm._cursor cimport (
    begin_full_scan, empty_trees, hand_out, leave_mm, next_in_table, scan_begin, skip_run,
)
from ksmwalk.ksm._domains cimport set_domain
from ksmwalk.ksm._engine cimport examine, leave_tree
from ksmwalk.ksm._find cimport find_page
from ksmwalk.ksm._items cimport cursor_reset, event, items_drop_below, next_item
from ksmwalk.ksm._late cimport indexed
from ksmwalk.layout._layout cimport *


cdef int choosing_init(kw_choosing *c, kw_world *w) noexcept nogil:
    memset(c, 0, sizeof(kw_choosing))
    c.table_base = 1
    c.left_out = <uint64_t *>calloc(w.ctl.mms_cap, sizeof(uint64_t))
    c.rested = <uint64_t *>calloc(w.ctl.mms_cap, sizeof(uint64_t))
    if c.left_out == NULL or c.rested == NULL:
        choosing_done(c)
        return -ENOMEM
    return KW_OK


cdef void choosing_done(kw_choosing *c) noexcept nogil:
    free(c.left_out)
    free(c.rested)
    c.left_out = c.rested = NULL


# ------------------------------------------------------------------ what is passed over

cdef inline void rest(kw_world *w, int32_t item) noexcept nogil:
    """An item that is not visited in this scan leaves the unstable tree; what is merged stays so."""
    if w.items[item].flags & ITEM_UNSTABLE:
        leave_tree(w, item)


cdef void pass_page(kw_world *w, int32_t mm) noexcept nogil:
    """The cursor goes past the page it stands at."""
    cdef kw_cursor *cur = w.cursor
    cdef int32_t item = items_drop_below(w, mm, cur.link, cur.address)
    if item and w.items[item].addr == cur.address:
        rest(w, item)
        cur.link = item
    cur.address += KW_PAGE_SIZE


cdef void pass_area(kw_world *w, int32_t mm, uint64_t end) noexcept nogil:
    """The cursor goes past the rest of an area; its items are kept."""
    cdef kw_cursor *cur = w.cursor
    cdef int32_t item = items_drop_below(w, mm, cur.link, cur.address)
    while item and w.items[item].addr < end:
        rest(w, item)
        cur.link = item
        item = w.items[item].next
    cur.address = end


cdef void pass_mm(kw_world *w, kw_choosing *c, int32_t mm) noexcept nogil:
    """The cursor goes past an mm that was left out of this scan."""
    cdef uint64_t scan = w.cursor.seqnr + 1
    cdef int32_t item
    # One that was left out of the scan before, too, has nothing in the trees.
    if c.rested[mm] + 1 != scan or scan == 1:
        item = w.mms[mm].rmap_list
        while item:
            rest(w, item)
            item = w.items[item].next
    c.rested[mm] = scan
    cursor_reset(w, w.mms[mm].slot_next)


# ------------------------------------------------------------------ asking

cdef int relink(kw_world *w, kw_choosing *c, const int32_t *mms, int32_t n, int32_t visited) noexcept nogil:
    """The list of slots in this order; KW_EPOLICY where that is not what was on it."""
    cdef uint64_t scan = w.cursor.seqnr + 1
    cdef int32_t i, mm = w.mms[0].slot_next, before = 0
    while mm:
        c.left_out[mm] = scan
        mm = w.mms[mm].slot_next
    if not 0 <= visited <= n:
        return KW_EPOLICY
    for i in range(n):
        if not 0 < mms[i] < w.ctl.mms_used or c.left_out[mms[i]] != scan:
            return KW_EPOLICY
        c.left_out[mms[i]] = 0
    for i in range(n):
        mm = mms[i]
        w.mms[before].slot_next = mm
        w.mms[mm].slot_prev = before
        before = mm
        if i >= visited:
            c.left_out[mm] = scan
    w.mms[before].slot_next = 0
    w.mms[0].slot_prev = before
    return KW_OK


cdef int ask_order(kw_world *w, kw_choosing *c) noexcept nogil:
    cdef int32_t n = 0, mm = w.mms[0].slot_next, visited
    cdef int32_t *mms
    cdef int err
    while mm:
        n += 1
        mm = w.mms[mm].slot_next
    mms = <int32_t *>malloc(n * sizeof(int32_t))
    if mms == NULL:
        return -ENOMEM
    n = 0
    mm = w.mms[0].slot_next
    while mm:
        mms[n] = mm
        n += 1
        mm = w.mms[mm].slot_next
    visited = c.policy.order(w, c.policy.data, mms, n)
    err = visited if visited < 0 else relink(w, c, mms, n, visited)
    free(mms)
    return err


cdef int start(kw_world *w, kw_choosing *c) noexcept nogil:
    """A full scan begins."""
    cdef int err
    c.area_serial = 0
    c.area_open = 0
    if c.policy.begin != NULL:
        err = c.policy.begin(w, c.policy.data)
        if err < 0:
            return err
    if c.policy.order != NULL:
        err = ask_order(w, c)
        if err < 0:
            return err
    begin_full_scan(w)
    return KW_OK


cdef int close_area(kw_world *w, kw_choosing *c) noexcept nogil:
    """The area that was scanned is done with, unless it is not there any more."""
    if not c.area_open:
        return KW_OK
    c.area_open = 0
    if c.policy.after == NULL or w.vmas[c.area_vma].serial != c.area_serial:
        return KW_OK
    return c.policy.after(w, c.policy.data, c.area_mm, c.area_vma, &c.tally)


cdef int ask_area(kw_world *w, kw_choosing *c, int32_t mm, int32_t v) noexcept nogil:
    """What to do with an area: KW_SCAN, KW_PAUSE, KW_LEAVE or a code."""
    cdef int answer
    if c.area_serial == w.vmas[v].serial:
        return c.area_answer
    answer = close_area(w, c)
    if answer < 0:
        return answer
    answer = KW_SCAN if c.policy.area == NULL else c.policy.area(w, c.policy.data, mm, v)
    if answer < 0:
        return answer
    c.area_serial = w.vmas[v].serial
    c.area_mm = mm
    c.area_vma = v
    c.area_answer = answer
    c.area_open = answer == KW_SCAN
    c.table_base = 1
    memset(&c.tally, 0, sizeof(kw_tally))
    return answer


cdef void gather(kw_world *w, kw_pages *p, int32_t mm, uint64_t end) noexcept nogil:
    """The pages that KSM would look at from the cursor on to the end of its table, or of the area."""
    cdef uint64_t a = w.cursor.address, e
    cdef int32_t item = next_item(w, mm, w.cursor.link)
    cdef int level = 1, i
    cdef uint64_t *leaf = leaf_find(w, w.mms[mm].root, a, &level)
    cdef int64_t pfn
    end = min(end, (a & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE)
    p.n = 0
    if leaf == NULL:
        return
    i = 0
    while a < end:
        e = leaf[i if level == 1 else 0]
        if pte_present(e) and not e & PTE_SPECIAL:
            pfn = <int64_t>entry_pfn(e, level)
            if level != 1:
                pfn += level_index(a, 1)
            if pfn < w.ctl.nr_frames and eligible(w.f_flags[pfn]):
                while item and w.items[item].addr < a:
                    item = w.items[item].next
                p.addr[p.n] = a
                p.pfn[p.n] = pfn
                p.entry[p.n] = entry_decode(e)
                p.item[p.n] = item if item and w.items[item].addr == a else 0
                p.n += 1
        a += KW_PAGE_SIZE
        i += 1


cdef int ask_pages(kw_world *w, kw_choosing *c, int32_t mm) noexcept nogil:
    """What to do with the pages of the table that the cursor has come to, into c.act."""
    cdef kw_pages *p = &c.pages
    cdef int32_t i
    cdef int err
    p.mm = mm
    p.vma = w.cursor.vma
    gather(w, p, mm, w.vmas[w.cursor.vma].end)
    memset(p.act, KW_PAGE_COMPARE, 512)
    err = c.policy.pages(w, c.policy.data, p)
    if err < 0:
        return err
    memset(c.act, KW_PAGE_COMPARE, 512)
    for i in range(p.n):
        c.act[level_index(p.addr[i], 1)] = p.act[i]
    c.table_base = w.cursor.address & ~(KW_PMD_SIZE - 1)
    return KW_OK


# ------------------------------------------------------------------ the next page

cdef inline bint all_alike(const kw_choosing *c) noexcept nogil:
    """Whether nobody is asked about single pages: what they have in common is done in one go."""
    return c.policy.pages == NULL and c.policy.page == NULL


cdef inline int32_t offer(kw_world *w, kw_choosing *c, int32_t mm, int64_t pfn, int *act) noexcept nogil:
    """The item of the page that the cursor stands at, the cursor behind it; 0: left out, or smart scan skips it."""
    cdef int err
    if c.policy.pages != NULL:
        if (w.cursor.address & ~(KW_PMD_SIZE - 1)) != c.table_base:
            err = ask_pages(w, c, mm)
            if err < 0:
                return err
        act[0] = c.act[level_index(w.cursor.address, 1)]
        if act[0] == KW_PAGE_OUT:
            pass_page(w, mm)
            return 0
    return hand_out(w, mm, pfn)


cdef int32_t next_of_mm(kw_world *w, kw_choosing *c, int32_t mm, int64_t *pfn, int *act) noexcept nogil:
    """The next item of the mm the cursor is in, area by area; 0: there is none."""
    cdef kw_cursor *cur = w.cursor
    cdef int32_t v = 0, item
    cdef int64_t found
    cdef kw_vma *vma
    cdef int answer
    if not w.mms[mm].flags & MM_EXITING:
        v = vma_find_from(w, mm, cur.address)
    while v:
        vma = &w.vmas[v]
        if vma.flags & VM_MERGEABLE:
            cur.address = max(cur.address, vma.start if vma.anon_vma else vma.end)
            cur.vma = v
            if cur.address < vma.end:
                answer = ask_area(w, c, mm, v)
                if answer < 0:
                    return answer
                if answer == KW_PAUSE:
                    pass_area(w, mm, vma.end)
                elif answer == KW_LEAVE:
                    cur.address = vma.end
            while cur.address < vma.end:
                found = find_page(w, mm, &cur.address, vma.end)
                if found == KW_NONE:
                    break
                if found < 0:
                    return <int32_t>found
                if cur.strategy == STRATEGY_RANGE and (cur.address & ~(KW_PMD_SIZE - 1)) != cur.cache_base:
                    w.done.huge += 1    # it stands in no table of ptes
                item = offer(w, c, mm, found, act)
                if item:
                    pfn[0] = found
                    return item
                if cur.strategy == STRATEGY_RANGE and all_alike(c):
                    skip_run(w)
        v = vma.next
    return 0


cdef int enter_mm(kw_world *w, kw_choosing *c, int32_t mm) noexcept nogil:
    cdef int domain
    if c.policy.domain == NULL or w.cursor.address or w.mms[mm].flags & MM_EXITING:
        return KW_OK
    domain = c.policy.domain(w, c.policy.data, mm)
    if domain < 0:
        return domain
    if not domain < (1 << 16) // w.ctl.nr_nodes:
        return KW_EPOLICY
    return set_domain(w, mm, domain)


cdef int32_t next_asking(kw_world *w, kw_choosing *c, int64_t *pfn, int *act) noexcept nogil:
    """scan_next of _cursor.pxd, with what is to happen to the page."""
    cdef kw_cursor *cur = w.cursor
    cdef int32_t item, mm
    cdef int64_t found
    cdef int err
    while cur.strategy == STRATEGY_RANGE:
        found = next_in_table(w)
        if found < 0:
            break
        item = offer(w, c, cur.slot, found, act)
        if item < 0:
            return item
        w.work.cached += 1
        w.work.ptes += 1
        if item:
            pfn[0] = found
            return item
        if all_alike(c):
            skip_run(w)
    if cur.slot == 0:
        if w.mms[0].slot_next == 0:
            return 0
        err = start(w, c)
        if err < 0:
            return err
    while True:
        mm = cur.slot
        if c.left_out[mm] == cur.seqnr + 1 and not w.mms[mm].flags & MM_EXITING:
            pass_mm(w, c, mm)
        else:
            err = enter_mm(w, c, mm)
            if err < 0:
                return err
            item = next_of_mm(w, c, mm, pfn, act)
            if item:
                return item
            err = close_area(w, c)
            if err < 0:
                return err
            leave_mm(w, mm)
        if cur.slot == 0:
            event(w, EV_STOP, 0, <int64_t>cur.seqnr, w.ctl.items_live, 0, 0)
            cur.seqnr += 1
            empty_trees(w)
            return 0


# ------------------------------------------------------------------ visits

cdef int visit(kw_world *w, kw_choosing *c, int32_t item, int64_t pfn, int act) noexcept nogil:
    """Look at a page as the policy says, and keep the area's account."""
    cdef kw_item *q = &w.items[item]
    cdef bint ksm = w.f_flags[pfn] & FRAME_KSM != 0
    cdef bint empty = act == KW_PAGE_ZERO and not ksm and w.f_key[pfn] == 0
    cdef int64_t zeros = w.ksm.zero_pages, use_zero_pages
    cdef int err = KW_OK
    if c.policy.after != NULL:
        c.tally.visited += 1
        c.tally.broken += q.flags & ITEM_STABLE != 0 and not ksm
        c.tally.changed += not ksm and q.flags & ITEM_HAS_CHECKSUM != 0 and q.checksum != w.f_key[pfn]
    if KW_LIKELY(act == KW_PAGE_COMPARE and c.policy.after == NULL):
        return examine(w, item, pfn)
    if act == KW_PAGE_LEAVE:
        if not ksm and q.flags & (ITEM_STABLE | ITEM_UNSTABLE):
            leave_tree(w, item)
        w.ksm.pages_scanned += 1
        w.done.merged += 1      # it costs what a page merged already does: nothing is looked up
        c.tally.merged += q.flags & ITEM_STABLE != 0
        return KW_OK
    if not ksm and (empty or act == KW_PAGE_NOW):
        q.checksum = w.f_key[pfn]
        q.flags |= ITEM_HAS_CHECKSUM
    if empty:
        use_zero_pages = w.ksm.use_zero_pages
        w.ksm.use_zero_pages = 1
        err = examine(w, item, pfn)
        w.ksm.use_zero_pages = use_zero_pages
    else:
        err = examine(w, item, pfn)
    c.tally.merged += q.flags & ITEM_STABLE != 0 or w.ksm.zero_pages > zeros
    return err


cdef inline bint will_search(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    return (not w.f_flags[pfn] & FRAME_KSM and w.items[item].flags & ITEM_HAS_CHECKSUM
            and w.items[item].checksum == w.f_key[pfn])


cdef int64_t scan_asking(kw_world *w, kw_choosing *c, int64_t n, int *failed) noexcept nogil:
    cdef int64_t done = 0, asked = 0, pfn = 0, passed, items = w.ctl.items_used + w.ctl.items_free
    cdef uint64_t warm = 0
    cdef Ahead ahead
    cdef int32_t item, mm = 0
    cdef int err, act
    failed[0] = KW_OK
    ahead.base = 1
    ahead.here = 0
    scan_begin(w)
    while done < n:
        act = KW_PAGE_COMPARE
        item = next_asking(w, c, &pfn, &act)
        if item > 0 and c.policy.page != NULL:
            act = c.policy.page(w, c.policy.data, item, pfn)
            item = act if act < 0 else item
        if item <= 0:
            failed[0] = item
            break
        if w.items[item].mm != mm:
            mm = w.items[item].mm
            warm = 0
            ahead.base = 1
        if act == KW_PAGE_COMPARE and will_search(w, item, pfn):
            if indexed(w):
                warm_known(w, &ahead)
            elif w.items[item].addr >= warm:
                warm = warm_trees(w, w.items[item].addr, w.f_key[pfn])
        err = visit(w, c, item, pfn, act)
        done += 1
        if err < 0:
            failed[0] = err
            break
        passed = 0
        if all_alike(c):
            if w.f_flags[pfn] & FRAME_KSM:
                passed = pass_merged(w, n - done)
                c.tally.merged += passed
            elif w.ctl.items_used + w.ctl.items_free != items:
                items = w.ctl.items_used + w.ctl.items_free
                passed = pass_new(w, n - done)
            if indexed(w) and w.items[item].flags & (ITEM_STABLE | ITEM_UNSTABLE):
                passed += pass_known(w, &ahead, n - done - passed)
                c.tally.merged += ahead.merged
        c.tally.visited += passed
        done += passed
        if done >= asked + 4096:
            asked = done
            if interrupted():
                failed[0] = KW_EINTR
                break
    return done


@cython.auto_pickle(False)
cdef class CPolicy:
    """A policy of C functions: filled in by who cimports `ksmwalk.ksm._policy`, plugged in as `host.ksm.policy`."""
