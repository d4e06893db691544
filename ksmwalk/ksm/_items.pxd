# The contract of rmap_items, mm slots and trace events. As in `_core.pxd`: pointers in, integers out, no state.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from ksmwalk._core cimport World
from ksmwalk.ksm._find cimport forget_table
from ksmwalk.layout._layout cimport *


cdef void slot_insert(kw_world *w, int32_t mm) noexcept nogil
    # Put mm on the list: just behind the cursor, at the end while run == 2.
cdef void slot_remove(kw_world *w, int32_t mm) noexcept nogil
cdef void slot_exit(kw_world *w, int32_t mm) noexcept nogil
    # The mm exits: its slot stays where the cursor is in it; else it goes at once if it has no rmap_items, and moves to right
    # after the cursor if it has.
cdef int32_t item_alloc(kw_world *w) noexcept nogil
cdef void item_free(kw_world *w, int32_t item) noexcept nogil
cdef void items_drop(kw_world *w, int32_t mm) noexcept nogil
    # All items of the mm leave their trees and are freed.
cdef void event(kw_world *w, int kind, int32_t mm, int64_t a, int64_t b, int32_t node, int err) noexcept nogil
    # Records a trace event if events_on.
cdef void items_drop_after(kw_world *w, int32_t mm, int32_t link) noexcept nogil
    # The same of those behind `link`, 0: all.
cdef int32_t item_at(kw_world *w, int32_t mm, int32_t link, uint64_t addr) noexcept nogil
    # The rmap_item of addr: those below it are dropped; one at addr is used, else a new one goes in front.

cdef int32_t items_drop_below(kw_world *w, int32_t mm, int32_t link, uint64_t addr) noexcept nogil
    # Those behind `link` and below addr are dropped; the next one, 0: there is none.

cdef inline int32_t next_item(kw_world *w, int32_t mm, int32_t link) noexcept nogil:
    # The item behind `link` in the list of mm, 0: the first.
    return w.items[link].next if link else w.mms[mm].rmap_list

cdef inline void age_item(kw_item *q) noexcept nogil:
    # Smart scan meets the page of an item that is not to be skipped now: how often it will be.
    cdef uint8_t age = q.age
    if age < 255:
        q.age = age + 1
    if age >= 3:
        q.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8

cdef inline void cursor_reset(kw_world *w, int32_t slot) noexcept nogil:
    # The cursor stands at the beginning of an mm; 0: between scans.
    w.cursor.slot = slot
    w.cursor.address = 0
    w.cursor.link = 0
    w.cursor.vma = 0
    forget_table(w)


cdef class RmapItem:
    cdef World world
    cdef readonly int32_t index
    cdef int32_t _mm
    cdef uint64_t _addr
    cdef int made(self) except -1
    cdef kw_item *at(self) except NULL

cdef RmapItem item_door(World world, int32_t item)
    # The door to a used item.
