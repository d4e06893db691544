"""rmap_items, mm slots and trace events, over a Host's arrays.

The contract of every function stands in `_items.pxd`.
"""
cimport cython

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport World, alone
from ksmwalk.layout._layout cimport *


from ksmwalk.layout._poison cimport kw_poison, kw_unpoison


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
    w.done.first += 1
    return <int32_t>i


cdef void item_free(kw_world *w, int32_t item) noexcept nogil:
    kw_check(item > 0 and item < w.ctl.items_used and w.items[item].flags & ITEM_USED)
    w.mms[w.items[item].mm].nr_rmap_items -= 1
    memset(&w.items[item], 0, sizeof(kw_item))
    if w.links[item].key or w.links[item].left or w.links[item].right or w.links[item].parent or w.links[item].aux:
        memset(&w.links[item], 0, sizeof(kw_link))  # else it may never have been written, and stays so
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


cdef int32_t items_drop_below(kw_world *w, int32_t mm, int32_t link, uint64_t addr) noexcept nogil:
    cdef int32_t item = next_item(w, mm, link)
    while item and w.items[item].addr < addr:
        set_next_item(w, mm, link, w.items[item].next)
        item_drop(w, item)
        item = next_item(w, mm, link)
    return item


cdef int32_t item_at(kw_world *w, int32_t mm, int32_t link, uint64_t addr) noexcept nogil:
    cdef int32_t item = items_drop_below(w, mm, link, addr), new
    cdef kw_item *p
    if item and w.items[item].addr == addr:
        return item
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
        cursor_reset(w, w.mms[mm].slot_next)
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
