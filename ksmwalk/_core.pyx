"""The compiled core: table pages, the finder of mergeable pages and the scan cursor, all over a Host's arrays.

The contract of every function stands in `_core.pxd`.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memset

from ksmwalk._core cimport *

cdef extern from "_wide.h" nogil:
    int kw_first(const uint64_t *row, int lo, int hi, uint64_t mask) noexcept
    int kw_choose(int wide) noexcept
    void kw_prefetch_row(const uint64_t *row) noexcept
    void kw_prefetch(const void *p) noexcept

cdef extern from * nogil:
    """
    #ifndef KSMWALK_PROFILE
    #define KSMWALK_PROFILE "unknown"
    #endif
    static const char *kw_profile(void) { return KSMWALK_PROFILE; }
    static const char *kw_compiler(void) { return __VERSION__; }
    """
    const char *kw_profile() noexcept
    const char *kw_compiler() noexcept

cdef bint WIDE = kw_choose(1)
cdef uint64_t PRESENT = PTE_P | PTE_PROTNONE

cdef enum:
    LOOK_AHEAD = 16  # pages: how far ahead of the cursor a frame's flags are fetched


# ------------------------------------------------------------------ the binding

cdef void *address_of(object array, str name, Py_ssize_t itemsize, bint writable) except? NULL:
    """Pointer to the first byte of a C-contiguous array; the caller keeps the array alive."""
    cdef Py_buffer view
    cdef void *p
    if array.dtype.itemsize != itemsize:
        raise TypeError(f"array {name!r}: records of {array.dtype.itemsize} bytes ({array.dtype}), needed {itemsize}")
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    p = view.buf
    PyBuffer_Release(&view)
    return p


cdef class World:
    """Pointers into the arrays of a Host, taken once (the arenas never move).

    Parameters
    ----------
    arrays : dict of str to ndarray
        C-contiguous arrays under the field names of `kw_world` (see `_layout.h`). Missing ones are NULL: functions that
        need them must not be called.

    Raises
    ------
    TypeError
        An array whose records have the wrong size, with its name.
    """

    def __cinit__(self, dict arrays):
        self.arrays = dict(arrays)
        memset(&self.w, 0, sizeof(kw_world))
        known = {
            "rows": 8, "ctl": sizeof(kw_ctl), "vmas": sizeof(kw_vma), "mms": sizeof(kw_mm), "items": sizeof(kw_item),
            "links": sizeof(kw_link), "nodes": sizeof(kw_node), "ksm": sizeof(kw_ksm), "cursor": sizeof(kw_cursor),
            "work": sizeof(kw_work), "trees": 4, "f_flags": 2, "f_nid": 1, "f_head": 4, "f_mapcount": 4, "f_refs": 4,
            "f_key": 8, "f_node": 4, "b_free": 8, "b_count": 2, "b_next": 4, "b_prev": 4, "b_heads": 4,
            "events": sizeof(kw_event), "event_pos": 8,
        }
        cdef dict at = {}
        for name, array in arrays.items():
            if name not in known:
                raise TypeError(f"array {name!r}: not a field of kw_world")
            at[name] = <size_t>address_of(array, name, known[name], True)
        get = at.get
        self.w.rows = <uint64_t *><size_t>get("rows", 0)
        self.w.ctl = <kw_ctl *><size_t>get("ctl", 0)
        self.w.vmas = <kw_vma *><size_t>get("vmas", 0)
        self.w.mms = <kw_mm *><size_t>get("mms", 0)
        self.w.items = <kw_item *><size_t>get("items", 0)
        self.w.links = <kw_link *><size_t>get("links", 0)
        self.w.nodes = <kw_node *><size_t>get("nodes", 0)
        self.w.ksm = <kw_ksm *><size_t>get("ksm", 0)
        self.w.cursor = <kw_cursor *><size_t>get("cursor", 0)
        self.w.work = <kw_work *><size_t>get("work", 0)
        self.w.trees = <int32_t *><size_t>get("trees", 0)
        self.w.f_flags = <uint16_t *><size_t>get("f_flags", 0)
        self.w.f_nid = <uint8_t *><size_t>get("f_nid", 0)
        self.w.f_head = <uint32_t *><size_t>get("f_head", 0)
        self.w.f_mapcount = <int32_t *><size_t>get("f_mapcount", 0)
        self.w.f_refs = <int32_t *><size_t>get("f_refs", 0)
        self.w.f_key = <uint64_t *><size_t>get("f_key", 0)
        self.w.f_node = <int32_t *><size_t>get("f_node", 0)
        self.w.b_free = <uint64_t *><size_t>get("b_free", 0)
        self.w.b_count = <uint16_t *><size_t>get("b_count", 0)
        self.w.b_next = <int32_t *><size_t>get("b_next", 0)
        self.w.b_prev = <int32_t *><size_t>get("b_prev", 0)
        self.w.b_heads = <int32_t *><size_t>get("b_heads", 0)
        self.w.events = <kw_event *><size_t>get("events", 0)
        self.w.event_pos = <int64_t *><size_t>get("event_pos", 0)

    def __reduce__(self):
        raise TypeError("a World is pointers: pickle the Host that owns the arrays")


# ------------------------------------------------------------------ table pages

cdef int64_t row_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int64_t row
    cdef uint64_t *p
    if c.rows_free:
        row = c.rows_free
        p = w.rows + row * 512
        c.rows_free = <int64_t>p[0]
        p[0] = 0
    else:
        if c.rows_used >= c.rows_cap:
            return KW_ENOROWS
        row = c.rows_used
        c.rows_used += 1
    c.rows_live += 1
    return row


cdef void row_free(kw_world *w, int64_t row) noexcept nogil:
    cdef uint64_t *p = w.rows + row * 512
    kw_check(row > 0 and row < w.ctl.rows_used)
    memset(p, 0, 4096)
    # The free list is threaded through the first word of the free rows.
    p[0] = <uint64_t>w.ctl.rows_free
    w.ctl.rows_free = row
    w.ctl.rows_live -= 1


cdef inline int64_t child_row(kw_world *w, uint64_t e) noexcept nogil:
    """Row of the table an entry points to; KW_NONE if it points to none, whatever its bits say."""
    cdef int64_t row = <int64_t>((e & PTE_PFN_MASK) >> 12)
    if not (e & PTE_P) or row <= 0 or row >= w.ctl.rows_used:
        return KW_NONE
    return row


cdef uint64_t *entry_find(kw_world *w, int64_t root, uint64_t addr, int level) noexcept nogil:
    """The entry of addr at a level, NULL if a table above it is missing or a leaf stands there."""
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = root
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if lv == level:
            return p
        if entry_leaf(p[0], lv):
            return NULL
        row = child_row(w, p[0])
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t *pmd_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil:
    return entry_find(w, root, addr, 2)


cdef uint64_t *pte_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil:
    return entry_find(w, root, addr, 1)


cdef uint64_t *entry_make(kw_world *w, int32_t mm, uint64_t addr, int level) noexcept nogil:
    """The entry of addr at a level, with the tables above it made where missing.

    NULL: no rows left (tables made on the way stay, empty), or something that is not a table stands in the way.
    """
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = w.mms[mm].root, child
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if lv == level:
            return p
        if entry_none(p[0]):
            child = row_alloc(w)
            if child < 0:
                return NULL
            w.mms[mm].nr_tables += 1
            p[0] = make_entry(<uint64_t>child, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
        elif entry_leaf(p[0], lv):
            return NULL
        row = child_row(w, p[0])
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t *pmd_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return entry_make(w, mm, addr, 2)


cdef uint64_t *pte_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return entry_make(w, mm, addr, 1)


cdef uint64_t *leaf_find(kw_world *w, int64_t root, uint64_t addr, int *level) noexcept nogil:
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = root
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if entry_none(p[0]) or not entry_present(p[0], lv):
            return NULL
        if entry_leaf(p[0], lv):
            level[0] = lv
            return p
        row = child_row(w, p[0])
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t split_flags(uint64_t e, int level) noexcept nogil:
    """Flags of the leaves one level down: PAT moves between bit 12 (large) and bit 7 (pte)."""
    cdef uint64_t d = entry_decode(e)
    cdef uint64_t flags = d & ~PTE_PFN_MASK
    if level == 2:
        flags &= ~PTE_PS
        if d & PTE_PAT_LARGE:
            flags |= PTE_PAT
    return flags


cdef int split_leaf(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil:
    cdef int64_t row = row_alloc(w)
    cdef uint64_t e = entry[0], flags, pfn, step
    cdef uint64_t *p
    cdef int i
    if row < 0:
        return KW_ENOROWS
    flags = split_flags(e, level)
    pfn = entry_pfn(e, level)
    step = level_size(level - 1) >> 12
    if level == 3 and entry_decode(e) & PTE_PAT_LARGE:
        pfn |= 1  # still a large leaf: bit 12 stays its PAT bit
    p = w.rows + row * 512
    for i in range(512):
        p[i] = make_entry(pfn, flags)
        pfn += step
    entry[0] = make_entry(<uint64_t>row, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
    if w.mms != NULL:
        w.mms[mm].nr_tables += 1
    return KW_OK


# ------------------------------------------------------------------ the finder

cdef inline void count_pass(kw_work *work, int levels, int level, int64_t n, bint per_address) noexcept nogil:
    """n addresses (per-address) or n entries (range) passed at a level without a page being found there."""
    cdef int lv
    if per_address:
        work.lookups += n
        work.lookup_misses += n
        work.resched += n
        for lv in range(level, levels + 1):
            if lv > 1:
                work.entries[lv] += n
        if level <= 1:
            work.ptes += n
    elif level > 1:
        work.entries[level] += n
    else:
        work.ptes += n


cdef inline bint eligible(uint16_t flags) noexcept nogil:
    # Anonymous (KSM pages are) and not zone-device.
    return (flags & FRAME_ELIGIBLE_MASK) == FRAME_ANON


cdef int64_t find_in_ptes(kw_world *w, uint64_t *row, uint64_t *addr, uint64_t end, bint per_address) noexcept nogil:
    """The search within one pte table, [*addr, end) inside it."""
    cdef int first = level_index(addr[0], 1)
    cdef int stop = first + <int>((end - addr[0]) >> 12)
    cdef int i = first
    cdef uint64_t base = addr[0] - (<uint64_t>first << 12), e, pfn
    cdef int64_t nr_frames = w.ctl.nr_frames
    while i < stop:
        e = row[i]
        if not (e & PRESENT):
            i = kw_first(row, i, stop, PRESENT)
            continue
        if not (e & PTE_SPECIAL):
            pfn = (entry_decode(e) & PTE_PFN_MASK) >> 12
            if <int64_t>pfn >= nr_frames:
                addr[0] = base + (<uint64_t>i << 12)
                return KW_EBADENTRY
            if eligible(w.f_flags[pfn]):
                addr[0] = base + (<uint64_t>i << 12)
                if per_address:
                    count_pass(w.work, <int>w.ctl.levels, 1, i - first, True)
                else:
                    w.work.ptes += i - first + 1
                return <int64_t>pfn
        i += 1
    count_pass(w.work, <int>w.ctl.levels, 1, stop - first, per_address)
    addr[0] = base + (<uint64_t>stop << 12)
    return KW_NONE


cdef inline void count_hit(kw_work *work, int levels, int level, bint per_address) noexcept nogil:
    cdef int lv
    if per_address:
        work.lookups += 1
        work.resched += 1
        for lv in range(level, levels + 1):
            if lv > 1:
                work.entries[lv] += 1
        if level == 1:
            work.ptes += 1


cdef inline void forget_table(kw_world *w) noexcept nogil:
    w.cursor.cache_base = 1  # no address of a region starts there
    w.cursor.cache_end = 0


cdef inline int64_t steps_so_far(kw_work *work, bint per_address) noexcept nogil:
    if per_address:
        return work.lookups
    return work.entries[2] + work.entries[3] + work.entries[4] + work.entries[5] + work.ptes


cdef int64_t find_page(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    cdef bint per = w.cursor.strategy == STRATEGY_PER_ADDRESS
    cdef kw_work *work = w.work
    cdef int64_t before, pfn
    cdef uint64_t a = addr[0]
    if a >= end:
        return KW_NONE
    before = steps_so_far(work, per)
    pfn = find_from(w, mm, addr, end)
    before = steps_so_far(work, per) - before
    if before > work.longest:
        work.longest = before
    return pfn


cdef int64_t find_from(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    cdef kw_work *work = w.work
    cdef kw_cursor *cur = w.cursor
    cdef int levels = <int>w.ctl.levels, level, i, stop
    cdef bint per = cur.strategy == STRATEGY_PER_ADDRESS
    cdef int64_t rows[6]
    cdef int64_t pfn, found
    cdef uint64_t a = addr[0], e = 0, next, size, sub
    cdef uint64_t *row
    if per and cur.real_lookups:
        return find_really(w, mm, addr, end)
    # The table of the last search again, instead of a fresh descent.
    if (a & ~(KW_PMD_SIZE - 1)) == cur.cache_base:
        next = min(cur.cache_base + KW_PMD_SIZE, end)
        pfn = find_in_ptes(w, w.rows + cur.cache_row * 512, &a, next, per)
        if not per:
            work.cached += 1
        if pfn != KW_NONE:
            if pfn >= 0:
                count_hit(work, levels, 1, per)
            addr[0] = a
            return pfn
        forget_table(w)
    elif not per:
        work.searches += 1
    level = levels
    rows[level] = w.mms[mm].root
    while a < end:
        size = level_size(level)
        row = w.rows + rows[level] * 512
        i = level_index(a, level)
        # Entries of this table that the range reaches.
        if ((a ^ (end - 1)) >> level_shift(level + 1)) == 0:
            stop = level_index(end - 1, level) + 1
        else:
            stop = 512
        while i < stop:
            e = row[i]
            if entry_none(e):
                # A hole: on to the end of the entry, nothing below it is touched.
                next = min((a & ~(size - 1)) + size, end)
                count_pass(work, levels, level, <int64_t>((next - a) >> 12) if per else 1, per)
                work.holes += 1
                a = next
                i += 1
                continue
            break
        if i == stop:
            if level == levels or a >= end:
                break
            # The table is done: go on in the one above.
            level += 1
            while level < levels and level_index(a, level) == 0:
                level += 1
            continue
        next = min((a & ~(size - 1)) + size, end)
        if not per:
            work.entries[level] += 1
        if level == 2:
            if not per:
                work.resched += 1
                work.callbacks += 1
            if not pmd_present(e):
                if per:
                    count_pass(work, levels, 2, <int64_t>((next - a) >> 12), True)
                a = next
            elif entry_leaf(e, 2):
                pfn = <int64_t>entry_pfn(e, 2)
                if not (e & PTE_SPECIAL):
                    if pfn + 512 > w.ctl.nr_frames:
                        addr[0] = a
                        return KW_EBADENTRY
                    if eligible(w.f_flags[pfn]):
                        sub = (a & (KW_PMD_SIZE - 1)) >> 12
                        count_hit(work, levels, 2, per)
                        addr[0] = a
                        return pfn + <int64_t>sub
                if per:
                    count_pass(work, levels, 2, <int64_t>((next - a) >> 12), True)
                a = next
            else:
                pfn = child_row(w, e)
                if pfn < 0:
                    addr[0] = a
                    return KW_EBADENTRY
                # While this table is searched the next one is on its way.
                if i + 1 < stop and not entry_leaf(row[i + 1], 2):
                    found = child_row(w, row[i + 1])
                    if found >= 0:
                        kw_prefetch_row(w.rows + found * 512)
                cur.cache_base = a & ~(KW_PMD_SIZE - 1)
                cur.cache_row = pfn
                cur.cache_end = next
                pfn = find_in_ptes(w, w.rows + pfn * 512, &a, next, per)
                if pfn != KW_NONE:
                    if pfn >= 0:
                        count_hit(work, levels, 1, per)
                    addr[0] = a
                    return pfn
                forget_table(w)
                a = next
        elif entry_leaf(e, level):
            # Within a vma a leaf is split before the walk goes below it.
            if split_leaf(w, mm, &row[i], level) != KW_OK:
                addr[0] = a
                return KW_ENOROWS
            if not per:
                work.entries[level] -= 1
            continue
        elif level == 3 and not pte_present(e):
            if per:
                count_pass(work, levels, 3, <int64_t>((next - a) >> 12), True)
            a = next
        else:
            pfn = child_row(w, e)
            if pfn < 0:
                addr[0] = a
                return KW_EBADENTRY
            level -= 1
            rows[level] = pfn
            continue
        # Left an entry of this table: up if it was the last.
        while level < levels and level_index(a, level) == 0:
            level += 1
    addr[0] = end
    return KW_NONE


cdef int64_t find_really(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    """The scan before the patch, performed: one full descent for every address."""
    cdef kw_work *work = w.work
    cdef int levels = <int>w.ctl.levels, level
    cdef int64_t row, pfn
    cdef uint64_t a = addr[0], e
    cdef int64_t root = w.mms[mm].root
    while a < end:
        work.lookups += 1
        work.resched += 1
        row = root
        level = levels
        pfn = KW_NONE
        while True:
            e = w.rows[row * 512 + level_index(a, level)]
            if level > 1:
                work.entries[level] += 1
            else:
                work.ptes += 1
            if entry_none(e) or not entry_present(e, level):
                break
            if entry_leaf(e, level):
                if not (e & PTE_SPECIAL):
                    pfn = <int64_t>(entry_pfn(e, level) + ((a & (level_size(level) - 1)) >> 12))
                    if pfn >= w.ctl.nr_frames:
                        addr[0] = a
                        return KW_EBADENTRY
                    if not eligible(w.f_flags[pfn]):
                        pfn = KW_NONE
                break
            row = child_row(w, e)
            if row < 0:
                addr[0] = a
                return KW_EBADENTRY
            level -= 1
        if pfn >= 0:
            addr[0] = a
            return pfn
        work.lookup_misses += 1
        a += KW_PAGE_SIZE
    addr[0] = end
    return KW_NONE


# ------------------------------------------------------------------ rmap_items

cdef int32_t item_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int64_t i
    if c.items_free:
        i = c.items_free
        c.items_free = w.items[i].next
    else:
        if c.items_used >= c.items_cap:
            return KW_ENOITEMS
        i = c.items_used
        c.items_used += 1
    c.items_live += 1
    return <int32_t>i


cdef void item_free(kw_world *w, int32_t item) noexcept nogil:
    kw_check(item > 0 and item < w.ctl.items_used and w.items[item].flags & ITEM_USED)
    w.mms[w.items[item].mm].nr_rmap_items -= 1
    memset(&w.items[item], 0, sizeof(kw_item))
    w.items[item].next = <int32_t>w.ctl.items_free
    w.ctl.items_free = item
    w.ctl.items_live -= 1


cdef inline void item_drop(kw_world *w, int32_t item) noexcept nogil:
    """Out of its tree, then freed."""
    if w.items[item].flags & (ITEM_STABLE | ITEM_UNSTABLE) and w.leave_tree != NULL:
        w.leave_tree(w, item)
    item_free(w, item)


cdef inline int32_t next_item(kw_world *w, int32_t mm, int32_t link) noexcept nogil:
    return w.items[link].next if link else w.mms[mm].rmap_list


cdef inline void set_next_item(kw_world *w, int32_t mm, int32_t link, int32_t item) noexcept nogil:
    if link:
        w.items[link].next = item
    else:
        w.mms[mm].rmap_list = item


cdef void items_drop_after(kw_world *w, int32_t mm, int32_t link) noexcept nogil:
    cdef int32_t item
    while True:
        item = next_item(w, mm, link)
        if item == 0:
            return
        set_next_item(w, mm, link, w.items[item].next)
        item_drop(w, item)


cdef void items_drop(kw_world *w, int32_t mm) noexcept nogil:
    items_drop_after(w, mm, 0)


cdef inline int32_t item_at(kw_world *w, int32_t mm, int32_t link, uint64_t addr) noexcept nogil:
    """The rmap_item of addr: those below it are dropped; one at addr is used, else a new one goes in front."""
    cdef int32_t item = next_item(w, mm, link), new
    cdef kw_item *p
    while item:
        p = &w.items[item]
        if p.addr == addr:
            return item
        if p.addr > addr:
            break
        set_next_item(w, mm, link, p.next)
        item_drop(w, item)
        item = next_item(w, mm, link)
    new = item_alloc(w)
    if new < 0:
        return new
    p = &w.items[new]
    p.addr = addr
    p.checksum = 0
    p.mm = mm
    p.node = 0
    p.flags = ITEM_USED
    p.seq = p.age = p.skips = 0
    p.next = item
    set_next_item(w, mm, link, new)
    w.mms[mm].nr_rmap_items += 1
    return new


# ------------------------------------------------------------------ mm slots

cdef void event(kw_world *w, int kind, int32_t mm, int64_t a, int64_t b, int32_t node, int err) noexcept nogil:
    cdef kw_event *e
    if not w.ksm.events_on:
        return
    e = &w.events[w.event_pos[0] % w.event_pos[1]]
    w.event_pos[0] += 1
    e.kind = kind
    e.mm = mm
    e.a = a
    e.b = b
    e.node = node
    e.err = err


cdef inline void list_add_before(kw_world *w, int32_t mm, int32_t at) noexcept nogil:
    cdef int32_t prev = w.mms[at].slot_prev
    w.mms[mm].slot_prev = prev
    w.mms[mm].slot_next = at
    w.mms[prev].slot_next = mm
    w.mms[at].slot_prev = mm


cdef inline void list_del(kw_world *w, int32_t mm) noexcept nogil:
    w.mms[w.mms[mm].slot_prev].slot_next = w.mms[mm].slot_next
    w.mms[w.mms[mm].slot_next].slot_prev = w.mms[mm].slot_prev


cdef void slot_insert(kw_world *w, int32_t mm) noexcept nogil:
    if w.mms[mm].flags & MM_HAS_SLOT:
        return
    w.mms[mm].flags |= MM_HAS_SLOT
    # Just behind the cursor: the scan under way won't reach it. Between scans, and while unmerging, that is the end.
    list_add_before(w, mm, 0 if w.ksm.run == 2 else w.cursor.slot)
    event(w, EV_ENTER, mm, 0, 0, 0, 0)


cdef void slot_remove(kw_world *w, int32_t mm) noexcept nogil:
    if not w.mms[mm].flags & MM_HAS_SLOT:
        return
    if w.cursor.slot == mm:
        w.cursor.slot = w.mms[mm].slot_next
        w.cursor.address = 0
        w.cursor.link = 0
        w.cursor.vma = 0
    list_del(w, mm)
    w.mms[mm].slot_next = w.mms[mm].slot_prev = 0
    w.mms[mm].flags &= ~<uint32_t>(MM_HAS_SLOT | MM_MERGE_ANY)


cdef void slot_exit(kw_world *w, int32_t mm) noexcept nogil:
    cdef int32_t after
    w.mms[mm].flags |= MM_EXITING
    if not w.mms[mm].flags & MM_HAS_SLOT:
        return
    event(w, EV_EXIT, mm, 0, 0, 0, 0)
    if w.cursor.slot == mm:
        return
    if w.mms[mm].rmap_list == 0:
        slot_remove(w, mm)
        return
    list_del(w, mm)
    after = w.mms[w.cursor.slot].slot_next
    list_add_before(w, mm, after)


# ------------------------------------------------------------------ the cursor

cdef void scan_begin(kw_world *w) noexcept nogil:
    forget_table(w)
    w.cursor.vma = 0


cdef inline bint smart_skip(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    """Whether smart scan skips this page now; ages the item."""
    cdef kw_item *p
    cdef uint8_t age
    if not w.ksm.smart_scan or w.f_flags[pfn] & FRAME_KSM:
        return False
    p = &w.items[item]
    age = p.age
    if age < 255:
        p.age = age + 1
    if age < 3:
        return False
    if p.skips == 0:
        p.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
        return False
    p.skips -= 1
    w.ksm.pages_skipped += 1
    if p.flags & (ITEM_STABLE | ITEM_UNSTABLE) and w.leave_tree != NULL:
        w.leave_tree(w, item)
    return True


cdef inline int32_t vma_from(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """The lowest vma of mm that ends above addr, 0: none."""
    cdef int32_t v = w.cursor.vma
    if v == 0 or w.vmas[v].mm != mm or w.vmas[v].start > addr:
        v = w.mms[mm].vma_first
    while v and w.vmas[v].end <= addr:
        v = w.vmas[v].next
    return v


cdef inline int64_t next_in_table(kw_world *w) noexcept nogil:
    """The page at the cursor's very address if it is in the table of the last search, else KW_NONE.

    The common case of a dense table. The table is known within a batch only, so vma and mm are those it was found in.
    """
    cdef kw_cursor *cur = w.cursor
    cdef uint64_t a = cur.address, e
    cdef uint64_t *p
    if a >= cur.cache_end or a < cur.cache_base:
        return KW_NONE
    p = w.rows + cur.cache_row * 512 + level_index(a, 1)
    e = p[0]
    if (e & (PTE_P | PTE_SPECIAL)) != PTE_P:
        return KW_NONE
    e = (e & PTE_PFN_MASK) >> 12
    if <int64_t>e >= w.ctl.nr_frames or not eligible(w.f_flags[e]):
        return KW_NONE
    if a + LOOK_AHEAD * KW_PAGE_SIZE < cur.cache_end:
        kw_prefetch(&w.f_flags[min((p[LOOK_AHEAD] & PTE_PFN_MASK) >> 12, <uint64_t>w.ctl.nr_frames)])
    return <int64_t>e


cdef int32_t scan_next(kw_world *w, int64_t *pfn) noexcept nogil:
    cdef kw_cursor *cur = w.cursor
    cdef int32_t mm, v, item
    cdef int64_t found
    cdef uint64_t end
    cdef kw_vma *vma
    cdef int i
    while cur.strategy == STRATEGY_RANGE:
        found = next_in_table(w)
        if found < 0:
            break
        item = next_item(w, cur.slot, cur.link)
        if item == 0 or w.items[item].addr != cur.address:
            item = item_at(w, cur.slot, cur.link, cur.address)
            if item < 0:
                return item
        cur.link = item
        cur.address += KW_PAGE_SIZE
        w.work.cached += 1
        w.work.ptes += 1
        w.work.found += 1
        if smart_skip(w, item, found):
            continue
        pfn[0] = found
        return item
    if cur.slot == 0:
        if w.mms[0].slot_next == 0:
            return 0
        event(w, EV_START, 0, <int64_t>cur.seqnr, w.ctl.items_live, 0, 0)
        if w.start_scan != NULL:
            w.start_scan(w)
        for i in range(w.ctl.nr_nodes):
            w.trees[w.ctl.nr_nodes + i] = 0
        cur.slot = w.mms[0].slot_next
        cur.address = 0
        cur.link = 0
        cur.vma = 0
        forget_table(w)
    while True:
        mm = cur.slot
        v = 0
        if not w.mms[mm].flags & MM_EXITING:
            v = vma_from(w, mm, cur.address)
        while v:
            vma = &w.vmas[v]
            if vma.flags & VM_MERGEABLE:
                if cur.address < vma.start:
                    cur.address = vma.start
                end = vma.end
                if vma.anon_vma == 0:
                    cur.address = end
                cur.vma = v
                while cur.address < end:
                    found = find_page(w, mm, &cur.address, end)
                    if found < 0:
                        if found == KW_NONE:
                            break
                        return <int32_t>found
                    item = item_at(w, mm, cur.link, cur.address)
                    if item < 0:
                        return item
                    cur.link = item
                    cur.address += KW_PAGE_SIZE
                    w.work.found += 1
                    if smart_skip(w, item, found):
                        continue
                    pfn[0] = found
                    return item
            v = vma.next
        # An exiting mm loses all its items, those the cursor passed in this scan too.
        items_drop_after(w, mm, 0 if w.mms[mm].flags & MM_EXITING else cur.link)
        cur.slot = w.mms[mm].slot_next
        if w.mms[mm].flags & MM_EXITING or cur.address == 0:
            list_del(w, mm)
            w.mms[mm].slot_next = w.mms[mm].slot_prev = 0
            w.mms[mm].flags &= ~<uint32_t>(MM_HAS_SLOT | MM_MERGE_ANY)
        cur.address = 0
        cur.link = 0
        cur.vma = 0
        forget_table(w)
        if cur.slot == 0:
            event(w, EV_STOP, 0, <int64_t>cur.seqnr, w.ctl.items_live, 0, 0)
            cur.seqnr += 1
            return 0


cdef int64_t scan_batch(kw_world *w, int64_t n, int64_t *failed) noexcept nogil:
    """Hand out up to n pages without looking at them; how many there were. Stops at the end of a full scan."""
    cdef int64_t done = 0, pfn
    cdef int32_t item
    failed[0] = 0
    scan_begin(w)
    while done < n:
        item = scan_next(w, &pfn)
        if item <= 0:
            failed[0] = item
            break
        done += 1
    return done


# ------------------------------------------------------------------ what Python sees

def choose_wide(bint wide):
    """Use the wide (AVX2) inner loops where the processor has them, or the plain ones; whether wide ones are in use.

    For tests and benchmarks; the choice made on import is the fast one. Each compiled module has its own switch.
    """
    global WIDE
    WIDE = kw_choose(wide)
    return WIDE


def build_facts():
    """(profile, compiler version, wide loops in use) of the compiled core."""
    return kw_profile().decode(), kw_compiler().decode(), WIDE


cdef class RmapItem:
    """Door to one rmap_item: a record of the Host's `items` array.

    Made by the cursor (`KsmScan.scan_get_next_rmap_item`) and by `mm.rmap_items`. When the item is freed the door says
    so at the next use instead of showing whatever took its place.

    Models: struct ksm_rmap_item of Linux 6.18. Differs: the checksum is the page's content key; 56 bytes instead of 64.
    """

    cdef World world
    cdef readonly int32_t index
    cdef int32_t _mm
    cdef uint64_t _addr

    cdef kw_item *at(self) except NULL:
        cdef kw_item *p = &self.world.w.items[self.index]
        if not p.flags & ITEM_USED or p.mm != self._mm or p.addr != self._addr:
            raise ReferenceError(f"rmap_item of mm {self._mm} at {self._addr:#x} has been freed")
        return p

    @property
    def address(self):
        """Virtual address, bytes."""
        return self._addr

    @property
    def mm(self):
        """The address space (its number where no Host is attached)."""
        host = self.world.owner() if self.world.owner is not None else None
        return self._mm if host is None else host.mm_by_number(self._mm)

    @property
    def stable(self):
        """Whether it is on the list of a stable node."""
        return self.at().flags & ITEM_STABLE != 0

    @property
    def unstable(self):
        """Whether it is marked as inserted into the unstable tree (of this scan or an earlier one)."""
        return self.at().flags & ITEM_UNSTABLE != 0

    @property
    def checksum(self):
        """Content key at the last visit, None before the first."""
        cdef kw_item *p = self.at()
        return p.checksum if p.flags & ITEM_HAS_CHECKSUM else None

    @property
    def age(self):
        """Encounters by smart scan, saturating at 255."""
        return self.at().age

    @property
    def remaining_skips(self):
        """Encounters to be skipped yet."""
        return self.at().skips

    @property
    def node(self):
        """Number of the stable node it is listed on, 0: none."""
        return self.at().node if self.at().flags & ITEM_STABLE else 0

    def __eq__(self, other):
        cdef RmapItem o
        if type(other) is not RmapItem:
            return NotImplemented
        o = other
        return self.world is o.world and self.index == o.index and self._addr == o._addr and self._mm == o._mm

    def __hash__(self):
        return hash((self.index, self._addr))

    def __repr__(self):
        return f"<RmapItem mm {self._mm} address {self._addr:#x}>"


cdef RmapItem item_door(World world, int32_t item):
    cdef RmapItem door = RmapItem.__new__(RmapItem)
    door.world = world
    door.index = item
    door._mm = world.w.items[item].mm
    door._addr = world.w.items[item].addr
    return door


def py_rmap_item(World world not None, int64_t item):
    """The door to a used item."""
    if not 0 < item < world.w.ctl.items_used or not world.w.items[item].flags & ITEM_USED:
        raise IndexError(f"rmap_item {item}: not in use")
    return item_door(world, <int32_t>item)


def py_scan_next(World world not None):
    """(RmapItem, pfn) of the next page; None at the end of a full scan; a negative KW_* code."""
    cdef int64_t pfn = 0
    cdef int32_t item
    scan_begin(&world.w)
    item = scan_next(&world.w, &pfn)
    if item > 0:
        return item_door(world, item), pfn
    return None if item == 0 else item


def py_scan_batch(World world not None, int64_t n):
    """(pages handed out, 0 or a negative KW_* code) of one batch of at most n."""
    cdef int64_t failed = 0, done
    with nogil:
        done = scan_batch(&world.w, n, &failed)
    return done, failed


cdef extern from "_layout_table.h" nogil:
    ctypedef struct kw_fact:
        const char *record
        const char *field
        int64_t value
    const kw_fact *kw_fields
    const kw_fact *kw_constants


def layout_offsets():
    """{record: (size, {field: offset})} as the C compiler has it; a test holds layout.py to it."""
    out = {}
    cdef const kw_fact *p = kw_fields
    while p.record != NULL:
        record, field = p.record.decode(), p.field.decode()
        if field:
            out[record][1][field] = p.value
        else:
            out[record] = (p.value, {})
        p += 1
    return out


def constants():
    """{name: value} of the named bits and codes as the C compiler has them; a test holds layout.py to it."""
    out = {}
    cdef const kw_fact *p = kw_constants
    while p.field != NULL:
        out[p.field.decode()] = p.value
        p += 1
    return out


def py_entry_at(World world not None, int32_t mm, uint64_t addr):
    """(level, raw entry) of the lowest entry of addr that can be reached; for error messages."""
    cdef int level = <int>world.w.ctl.levels
    cdef int64_t row = world.w.mms[mm].root
    cdef uint64_t e
    while True:
        e = world.w.rows[row * 512 + level_index(addr, level)]
        if level == 1 or entry_none(e) or entry_leaf(e, level):
            return level, e
        row = child_row(&world.w, e)
        if row < 0:
            return level, e
        level -= 1
