"""The scan cursor, over a Host's arrays.

The contract of every function stands in `_cursor.pxd`.
"""
cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t

from ksmwalk._core cimport World, alone, eligible, enter, interrupted, leave, level_index
from ksmwalk.memory._areas cimport vma_find_from
from ksmwalk.ksm._find cimport find_page, forget_table
from ksmwalk.ksm._items cimport (
    age_item, cursor_reset, event, item_at, item_door, items_drop_after, next_item, slot_remove,
)
from ksmwalk.ksm._stable cimport unstable_root
from ksmwalk.layout._layout cimport *

from ksmwalk.gate import as_int


cdef extern from "_wide.h" nogil:
    void kw_prefetch(const void *p) noexcept

#: most visits that may be asked for at once
MOST = (1 << 63) - 1

cdef enum:
    LOOK_AHEAD = 16  # pages: how far ahead of the cursor a frame's flags are fetched


cdef void scan_begin(kw_world *w) noexcept nogil:
    forget_table(w)
    w.cursor.vma = 0


cdef inline bint smart_skip(kw_world *w, int32_t item, int64_t pfn) noexcept nogil:
    """Whether smart scan skips this page now; ages the item."""
    cdef kw_item *p
    if not w.ksm.smart_scan or w.f_flags[pfn] & FRAME_KSM:
        return False
    p = &w.items[item]
    if p.age < 3 or p.skips == 0:
        age_item(p)
        return False
    if p.age < 255:
        p.age += 1
    p.skips -= 1
    w.ksm.pages_skipped += 1
    if p.flags & (ITEM_STABLE | ITEM_UNSTABLE) and w.leave_tree != NULL:
        w.leave_tree(w, item)
    return True


cdef void skip_run(kw_world *w) noexcept nogil:
    """Pages at the cursor that smart scan skips, in the table of the last search: a tight loop over it and the items."""
    cdef kw_cursor *cur = w.cursor
    cdef int64_t i = 0, n = 0, pfn
    cdef uint64_t *p
    cdef uint64_t e, a = cur.address
    cdef uint8_t now = <uint8_t>cur.seqnr
    cdef int32_t item = next_item(w, cur.slot, cur.link), link = cur.link
    cdef kw_item *q
    if not w.ksm.smart_scan or a >= cur.cache_end or a < cur.cache_base:
        return
    p = w.rows + cur.cache_row * 512 + level_index(a, 1)
    n = <int64_t>((cur.cache_end - a) >> 12)
    while i < n and item:
        e = p[i]
        pfn = <int64_t>((e & PTE_PFN_MASK) >> 12)
        if (e & (PTE_P | PTE_SPECIAL)) != PTE_P or pfn >= w.ctl.nr_frames:
            break
        if i + LOOK_AHEAD < n:
            kw_prefetch(&w.f_flags[min((p[i + LOOK_AHEAD] & PTE_PFN_MASK) >> 12, <uint64_t>w.ctl.nr_frames - 1)])
        q = &w.items[item]
        if not eligible(w.f_flags[pfn]) or w.f_flags[pfn] & FRAME_KSM or q.addr != a:
            break
        if q.age < 3 or q.skips == 0 or q.flags & ITEM_STABLE or q.flags & ITEM_UNSTABLE and q.seq == now:
            break
        q.age += q.age < 255
        q.skips -= 1
        if q.flags & ITEM_UNSTABLE:     # of an earlier scan: in no tree any more
            w.ksm.pages_unshared -= 1
            q.flags &= <uint8_t>~ITEM_UNSTABLE
        link = item
        item = q.next
        a += KW_PAGE_SIZE
        i += 1
    w.ksm.pages_skipped += i
    w.work.cached += i
    w.work.ptes += i
    w.work.found += i
    cur.address = a
    cur.link = link


cdef int64_t next_in_table(kw_world *w) noexcept nogil:
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


cdef int32_t hand_out(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    """The item of the page that the cursor stands at, the cursor behind it; 0: smart scan skips it; or a code."""
    cdef kw_cursor *cur = w.cursor
    cdef int32_t item = next_item(w, mm, cur.link)
    if item == 0 or w.items[item].addr != cur.address:
        item = item_at(w, mm, cur.link, cur.address)
        if item < 0:
            return item
    cur.link = item
    cur.address += KW_PAGE_SIZE
    w.work.found += 1
    return 0 if smart_skip(w, item, pfn) else item


cdef void empty_trees(kw_world *w) noexcept nogil:
    """The unstable trees; links and marks of what was in them stay behind."""
    cdef int64_t i
    for i in range(w.ctl.trees_used):
        unstable_root(w, <int>i)[0] = 0


cdef void begin_full_scan(kw_world *w) noexcept nogil:
    event(w, EV_START, 0, <int64_t>w.cursor.seqnr, w.ctl.items_live, 0, 0)
    if w.start_scan != NULL:
        w.start_scan(w)
    empty_trees(w)
    cursor_reset(w, w.mms[0].slot_next)


cdef int32_t next_of_mm(kw_world *w, int32_t mm, int64_t *pfn) noexcept nogil:
    """The next item of the mm the cursor is in, area by area; 0: there is none."""
    cdef kw_cursor *cur = w.cursor
    cdef int32_t v = 0, item
    cdef int64_t found
    cdef kw_vma *vma
    if not w.mms[mm].flags & MM_EXITING:
        v = vma_find_from(w, mm, cur.address)
    while v:
        vma = &w.vmas[v]
        if vma.flags & VM_MERGEABLE:
            cur.address = max(cur.address, vma.start if vma.anon_vma else vma.end)
            cur.vma = v
            while cur.address < vma.end:
                found = find_page(w, mm, &cur.address, vma.end)
                if found == KW_NONE:
                    break
                if found < 0:
                    return <int32_t>found
                if cur.strategy == STRATEGY_RANGE and (cur.address & ~(KW_PMD_SIZE - 1)) != cur.cache_base:
                    w.done.huge += 1    # it stands in no table of ptes
                item = hand_out(w, mm, found)
                if item:
                    pfn[0] = found
                    return item
                if cur.strategy == STRATEGY_RANGE:
                    skip_run(w)
        v = vma.next
    return 0


cdef void leave_mm(kw_world *w, int32_t mm) noexcept nogil:
    """The scan is through with an mm: items behind the cursor go, and its slot if nothing is left to scan in it."""
    cdef bint exiting = w.mms[mm].flags & MM_EXITING != 0
    cdef int32_t next = w.mms[mm].slot_next
    # An exiting mm loses all its items, those the cursor passed in this scan too.
    items_drop_after(w, mm, 0 if exiting else w.cursor.link)
    if exiting or w.cursor.address == 0:
        slot_remove(w, mm)
    cursor_reset(w, next)


cdef int32_t scan_next(kw_world *w, int64_t *pfn) noexcept nogil:
    cdef kw_cursor *cur = w.cursor
    cdef int32_t item
    cdef int64_t found
    while cur.strategy == STRATEGY_RANGE:
        found = next_in_table(w)
        if found < 0:
            break
        item = hand_out(w, cur.slot, found)
        if item < 0:
            return item
        w.work.cached += 1
        w.work.ptes += 1
        if item:
            pfn[0] = found
            return item
        skip_run(w)
    if cur.slot == 0:
        if w.mms[0].slot_next == 0:
            return 0
        begin_full_scan(w)
    while True:
        item = next_of_mm(w, cur.slot, pfn)
        if item:
            return item
        leave_mm(w, cur.slot)
        if cur.slot == 0:
            event(w, EV_STOP, 0, <int64_t>cur.seqnr, w.ctl.items_live, 0, 0)
            cur.seqnr += 1
            empty_trees(w)      # now, and not when the next scan starts: nobody needs them in between
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
        if done & 0xffff == 0 and interrupted():
            failed[0] = KW_EINTR
            break
    return done


# ------------------------------------------------------------------ what Python sees

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

    def scan(self, n):
        """Hand out up to `n` pages at full speed in compiled code, without looking at them.

        A batch ends at the end of a full scan and never goes on into the next one.

        Parameters
        ----------
        n : int
            Pages at most.

        Returns
        -------
        int
            Pages handed out (those skipped by smart scan are not among them).

        Raises
        ------
        ValueError, TypeError
            `n` is negative, or no integer.
        BadEntryError, ArenaFullError
            As `scan_get_next_rmap_item`; pages handed out before stay handed out.

        Models: the loop of ksm_do_scan() of Linux 6.18 without its merging. Differs: nothing known.
        """
        cdef int over = 0
        cdef int64_t most = -1, failed = 0, done
        # The gate of all integers costs as much as a scan of a sparse Host: it is for those that are no plain ones.
        if type(n) is int:
            most = PyLong_AsLongLongAndOverflow(n, &over)
        if most < 0:
            most = as_int(n, "n", 0, MOST)
        enter(self.world)
        with nogil:
            done = scan_batch(&self.world.w, most, &failed)
        leave(self.world)
        if failed:
            self._fail(failed)
        return done


def py_counts(World world not None):
    """What was counted so far, a number each of `work.COUNTS`."""
    cdef kw_ksm *k = world.w.ksm
    cdef kw_work *s = world.w.work
    cdef kw_done *d = &world.w.done
    alone(world)
    return (
        k.pages_scanned, k.pages_skipped, d.huge, d.merged, d.first, d.changed, d.hits, d.inserted, d.merges, d.zeroed,
        d.splits, d.joined, s.found, s.ptes, s.holes, s.callbacks + s.cached,
        world.w.ctl.items_live, k.pages_shared - k.dups + k.chains, k.pages_shared, k.pages_unshared,
        <int64_t>world.w.cursor.seqnr,
    )
