"""rmap_items, mm slots and the scan cursor, over a Host's arrays.

The contract of every function stands in `_cursor.pxd`.
"""
cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from ksmwalk._core cimport (
    World, alone, child_row, eligible, enter, entry_leaf, entry_none, leave, level_index,
)
from ksmwalk.ksm._find cimport find_page, forget_table
from ksmwalk.layout._layout cimport *

from ksmwalk.layout._poison cimport kw_poison, kw_unpoison


cdef extern from "_wide.h" nogil:
    void kw_prefetch(const void *p) noexcept

cdef enum:
    LOOK_AHEAD = 16  # pages: how far ahead of the cursor a frame's flags are fetched


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
    kw_unpoison(&w.items[i], sizeof(kw_item))
    kw_unpoison(&w.links[i], sizeof(kw_link))
    c.items_live += 1
    return <int32_t>i


cdef void item_free(kw_world *w, int32_t item) noexcept nogil:
    kw_check(item > 0 and item < w.ctl.items_used and w.items[item].flags & ITEM_USED)
    w.mms[w.items[item].mm].nr_rmap_items -= 1
    memset(&w.items[item], 0, sizeof(kw_item))
    w.items[item].next = <int32_t>w.ctl.items_free
    w.ctl.items_free = item
    w.ctl.items_live -= 1
    kw_poison(&w.items[item], 16)  # not `next`, nor what an RmapItem looks at
    kw_poison(&w.links[item], sizeof(kw_link))


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
    e = &w.events[w.event_pos[0] % KW_RING]
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

# No cycle can go through it, and the cursor makes one a page.
@cython.no_gc
@cython.freelist(64)
@cython.final
@cython.auto_pickle(False)
@cython.embedsignature(False)
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

    def __init__(self, *_, **__):
        raise TypeError("an RmapItem is made by the cursor: host.ksm.scan, mm.rmap_items")

    def __reduce__(self):
        raise TypeError("an RmapItem is a door into a Host: keep its mm and address, or pickle the Host")

    cdef int made(self) except -1:
        if self.world is None:
            raise ReferenceError("an RmapItem that no cursor made")
        return 0

    cdef kw_item *at(self) except NULL:
        cdef kw_item *p
        self.made()
        alone(self.world)
        p = &self.world.w.items[self.index]
        if not p.flags & ITEM_USED or p.mm != self._mm or p.addr != self._addr:
            raise ReferenceError(f"rmap_item of mm {self._mm} at {self._addr:#x} has been freed")
        return p

    @property
    def address(self):
        """Virtual address, bytes."""
        self.made()
        return self._addr

    @property
    def mm(self):
        """The address space (its number where no Host is attached)."""
        self.made()
        host = self.world.live()
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
        if self.world is None:
            return "<RmapItem that no cursor made>"
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
    alone(world)
    if not 0 < item < world.w.ctl.items_used or not world.w.items[item].flags & ITEM_USED:
        raise IndexError(f"rmap_item {item}: not in use")
    return item_door(world, <int32_t>item)


@cython.auto_pickle(False)
cdef class Cursor:
    """What of `KsmScan` is called once a page: the rest of it is Python."""

    cdef World world

    def __cinit__(self, World world not None):
        cdef kw_world *w = &world.w
        if w.cursor == NULL or w.ksm == NULL or w.ctl == NULL or w.mms == NULL or w.items == NULL or w.rows == NULL:
            raise TypeError("this World has not got the arrays of a Host: host.ksm.scan is a cursor")
        self.world = world

    def __reduce__(self):
        raise TypeError("a cursor is a door into a Host: pickle the Host")

    @property
    def _world(self):
        """The binding, if the Host is still there."""
        self.world.live()
        return self.world

    def scan_get_next_rmap_item(self):
        """Hand out the next page of the scan, without merging it.

        Returns
        -------
        (RmapItem, int) or None
            The item and the page's frame number; None at the end of a full scan, and where no mm is on the list.

        Raises
        ------
        BadEntryError
            An entry points beyond the frames; the cursor stays at it.
        ArenaFullError
            No rmap_item left; the cursor stays where it is.

        Models: scan_get_next_rmap_item() of Linux 6.18. Differs: nothing known.
        """
        cdef int64_t pfn = 0
        cdef int32_t item
        alone(self.world)
        scan_begin(&self.world.w)
        item = scan_next(&self.world.w, &pfn)
        if item > 0:
            return item_door(self.world, item), pfn
        if item < 0:
            self._fail(item)
        return None


def py_scan_batch(World world not None, int64_t n):
    """(pages handed out, 0 or a negative KW_* code) of one batch of at most n."""
    cdef int64_t failed = 0, done
    enter(world)
    with nogil:
        done = scan_batch(&world.w, n, &failed)
    leave(world)
    return done, failed


def py_entry_at(World world not None, int32_t mm, uint64_t addr):
    """(level, raw entry) of the lowest entry of addr that can be reached; for error messages."""
    alone(world)
    cdef int level = <int>world.w.ctl.levels
    cdef int64_t row = world.w.mms[mm].root
    cdef uint64_t *p
    while True:
        p = world.w.rows + row * 512 + level_index(addr, level)
        if level == 1 or entry_none(p[0]) or entry_leaf(p[0], level):
            return level, p[0]
        row = child_row(&world.w, p)
        if row < 0:
            return level, p[0]
        level -= 1
