"""Reclaim, compiled: what becomes cold, what goes out to swap, what is freed.

The contract of every function stands in `_reclaim.pxd`.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ksmwalk._core cimport child_row, entry_leaf, entry_none, interrupted_at, level_index, pmd_find, pte_find, pte_present
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._folio cimport split_folio, split_folio_at, split_parts, whole_folio
from ksmwalk.memory._frames cimport (
    LARGE, dma_pinned, folio_extra_refs, folio_mappings, folio_pages, frame_unmap, lru_drain, lru_drain_cpu,
    maybe_shared, normal_pfn,
)
from ksmwalk.memory._khuge cimport underused
from ksmwalk.memory._leaves cimport LeafOp, pmd_split, touched, whole_pmd, zap_leaf, zap_pte
from ksmwalk.memory._ptes cimport over_ptes
from ksmwalk.memory._swap cimport (
    SWAP_EXCLUSIVE, SWAP_UFFD_WP, cache_drop, cached_slot, slot_new, slot_share, slots_left, swap_entry,
    swap_slot,
)
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ one page

cdef bint can_go(kw_world *w, int64_t pfn) noexcept nogil:
    """Is it a page that reclaim looks at? One with a DMA pin, or in somebody's work, is not."""
    cdef int64_t head = w.f_head[pfn]
    if w.f_flags[pfn] & (FRAME_HUGETLB | FRAME_DEVICE) or w.f_flags[head] & (FRAME_LOCKED | FRAME_LRU):
        return False
    return not dma_pinned(w, pfn)


cdef bint reached(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn) noexcept nogil:
    """Does the way from a KSM page back to its mappings lead here? It goes by its items: to their places, and to these
    places in relatives by fork."""
    cdef int32_t node = w.f_node[pfn], v = vma_find(w, mm, addr), u, item
    item = w.nodes[node].items if node else 0
    while item:
        if w.items[item].addr == addr:
            if w.items[item].mm == mm:
                return True
            # An item whose area is gone still knows its relatives.
            u = vma_find(w, w.items[item].mm, addr) if w.mms[w.items[item].mm].root else 0
            if v and (u == 0 or w.vmas[u].anon_root == w.vmas[v].anon_root):
                return True
        item = w.links[item].left
    return False


cdef bint swap_out(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte, int64_t pfn) noexcept nogil:
    """A small page's mapping becomes an entry of a slot, the page's or a new one. The page is in the swap cache then."""
    cdef uint64_t e = pte[0], bits = 0
    cdef int32_t slot = cached_slot(w, pfn), v
    if w.f_flags[pfn] & FRAME_KSM and not reached(w, mm, addr, pfn):
        return False
    if slot == 0:
        slot = slot_new(w, pfn)
        if slot < 0:
            return False
        v = vma_find(w, mm, addr)
        if v:
            w.slots[slot].root = w.vmas[v].anon_root
            w.slots[slot].addr = (w.vmas[v].pgoff << 12) + (addr - w.vmas[v].start)
    if w.f_flags[pfn] & FRAME_EXCLUSIVE:
        bits |= SWAP_EXCLUSIVE
        w.f_flags[pfn] &= ~FRAME_EXCLUSIVE
    if e & PTE_UFFD_WP:
        bits |= SWAP_UFFD_WP
    pte[0] = swap_entry(slot, bits)
    slot_share(w, slot)
    frame_unmap(w, mm, pfn)
    touched(w, mm)
    return True


cdef void leave_cache(kw_world *w, int64_t pfn) noexcept nogil:
    """A page that nobody but the swap cache holds on to any more is freed."""
    cdef int32_t slot = cached_slot(w, pfn)
    if slot and w.f_mapcount[pfn] == 0 and folio_extra_refs(w, pfn) == 0:
        cache_drop(w, slot)


cdef inline bint lazy(kw_world *w, int64_t pfn) noexcept nogil:
    """Was it marked by MADV_FREE, and nothing found since that keeps it?"""
    return w.f_flags[pfn] & FRAME_LAZY != 0


cdef inline void keep(kw_world *w, int64_t pfn) noexcept nogil:
    """A page that was marked, and found to be stored to since: it stays for now, and is one like others from now on."""
    w.f_flags[pfn] = (w.f_flags[pfn] | FRAME_DIRTY) & ~FRAME_LAZY


cdef void unmap_file(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte) noexcept nogil:
    """A page of shared memory is unmapped. With swap it is out, too: its object keeps the frame, but without PTE_A."""
    cdef int32_t v = vma_find(w, mm, addr)
    cdef uint64_t *p = NULL
    zap_pte(w, mm, pte)
    if v and w.vmas[v].backing and slots_left(w):
        p = pte_find(w, w.mms[w.vmas[v].backing].root, (w.vmas[v].pgoff << 12) + (addr - w.vmas[v].start))
    if p != NULL:
        p[0] &= ~PTE_A


cdef inline void not_accessed(uint64_t *entry) noexcept nogil:
    entry[0] &= ~PTE_A


# ------------------------------------------------------------------ folios of several pages

cdef void large_leave(kw_world *w, int64_t head) noexcept nogil:
    """leave_cache of a folio of several pages: it is freed as a whole."""
    cdef int64_t i, n = 0, end = head + folio_pages(w, head)
    for i in range(head, end):
        n += cached_slot(w, i) != 0
    if n == 0 or folio_mappings(w, head) or w.f_refs[head] != n:
        return
    for i in range(head, end):
        if cached_slot(w, i):
            cache_drop(w, cached_slot(w, i))


cdef int pageout_large(kw_world *w, int32_t mm, uint64_t addr, uint64_t *ptes, int64_t head, int64_t n) noexcept nogil:
    """A folio that these ptes alone map: it goes as a whole, or it is split (1: its parts are to be looked at)."""
    cdef bint soiled = False
    cdef int64_t i
    cdef int rc
    if folio_extra_refs(w, head) or not can_go(w, head):
        return 0
    if lazy(w, head):
        for i in range(n):
            soiled = soiled or ptes[i] & PTE_D
        if soiled:
            keep(w, head)
        for i in range(0 if soiled else n):
            zap_leaf(w, mm, addr + <uint64_t>i * KW_PAGE_SIZE, ptes + i, 1)
        return 0
    if slots_left(w) >= n:
        for i in range(n):
            swap_out(w, mm, addr + <uint64_t>i * KW_PAGE_SIZE, ptes + i, head + i)
        large_leave(w, head)
        return 0
    rc = split_folio_at(w, head, addr)
    return 1 if rc == KW_OK else KW_ENOROWS if rc == KW_ENOROWS else 0


# ------------------------------------------------------------------ advice

cdef enum:
    COLD, PAGEOUT, LAZY    # what a range is to be


cdef int use_pmd(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pmd, int use) noexcept nogil:
    """A leaf pmd that the range covers whole: done, or ptes from now on that are to be looked at."""
    cdef int64_t head = normal_pfn(w, pmd[0], 2)
    if head < 0 or not w.f_flags[head] & FRAME_ANON or maybe_shared(w, head):
        return KW_OK
    not_accessed(pmd)
    if use == LAZY:
        pmd[0] &= ~PTE_D
        w.f_flags[head] = (w.f_flags[head] | FRAME_LAZY) & ~FRAME_DIRTY
    if use != PAGEOUT or folio_extra_refs(w, head) or not can_go(w, head):
        return KW_OK
    if not lazy(w, head):
        return pmd_split(w, mm, addr, pmd)
    if pmd[0] & PTE_D:
        keep(w, head)
    else:
        zap_leaf(w, mm, addr, pmd, 2)
    return KW_OK


cdef void free_ptes(kw_world *w, int32_t mm, uint64_t *ptes, int64_t n) noexcept nogil:
    """MADV_FREE of a small page, or of a whole folio."""
    cdef int64_t pfn = normal_pfn(w, ptes[0], 1), i
    cdef uint16_t f
    if pfn < 0 or not w.f_flags[pfn] & FRAME_ANON or n == 1 and w.f_flags[pfn] & LARGE:
        return
    f = w.f_flags[pfn]
    if f & FRAME_DIRTY or f & (FRAME_KSM | FRAME_LAZY) == FRAME_KSM or cached_slot(w, pfn):
        # Its content is nowhere else: only he who alone has it may give it up.
        if folio_mappings(w, pfn) != n or cached_slot(w, pfn):
            return
        w.f_flags[pfn] &= ~FRAME_DIRTY
    for i in range(n):
        ptes[i] &= ~(PTE_A | PTE_D)
    w.f_flags[pfn] |= FRAME_LAZY


cdef void pageout_pte(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte, bint out) noexcept nogil:
    """One small page: it is cold from now on, and out of memory where it may."""
    cdef int64_t pfn = normal_pfn(w, pte[0], 1)
    if pfn < 0 or w.f_flags[pfn] & LARGE or w.f_mapcount[pfn] != 1:
        return
    not_accessed(pte)
    if not out or not can_go(w, pfn):
        return
    if not w.f_flags[pfn] & FRAME_ANON:
        unmap_file(w, mm, addr, pte)
        return
    if lazy(w, pfn):
        if pte[0] & PTE_D:
            keep(w, pfn)
        elif folio_extra_refs(w, pfn) == 0:
            zap_pte(w, mm, pte)
        return
    if swap_out(w, mm, addr, pte, pfn):
        leave_cache(w, pfn)


cdef int use_ptes(kw_world *w, int32_t mm, uint64_t addr, uint64_t end, uint64_t *p, int use) noexcept nogil:
    """The ptes of one table from p on."""
    cdef int64_t n, i
    cdef int rc
    while addr < end:
        n = whole_folio(w, p, <int64_t>((end - addr) >> 12))
        if n and use != LAZY:
            rc = 0
            if folio_mappings(w, normal_pfn(w, p[0], 1)) == n:
                for i in range(n):
                    not_accessed(p + i)
                if use == PAGEOUT:
                    rc = pageout_large(w, mm, addr, p, normal_pfn(w, p[0], 1), n)
            if rc < 0:
                return rc
            if rc:
                n = 0      # split: page by page
        elif use == LAZY and pte_present(p[0]):
            free_ptes(w, mm, p, max(n, 1))
        elif use == LAZY and swap_slot(w, p[0]):
            zap_pte(w, mm, p)
        if n == 0:
            n = 1
            if use != LAZY and pte_present(p[0]):
                pageout_pte(w, mm, addr, p, use == PAGEOUT)
        p += n
        addr += <uint64_t>n * KW_PAGE_SIZE
    return KW_OK


cdef int use_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int use) noexcept nogil:
    cdef uint64_t next
    cdef uint64_t *pmd
    cdef int64_t row
    cdef int rc
    lru_drain_cpu(w, w.mms[mm].cpu)
    rc = split_parts(w, mm, start, end)
    touched(w, mm)
    while rc == KW_OK and start < end:
        pmd = pmd_find(w, w.mms[mm].root, start)
        next = KW_PUD_SIZE if pmd == NULL else KW_PMD_SIZE
        next = min((start & ~(next - 1)) + next, end)
        if pmd != NULL and not entry_none(pmd[0]):
            if interrupted_at(start):
                return KW_EINTR
            if entry_leaf(pmd[0], 2) and whole_pmd(start, next):
                rc = use_pmd(w, mm, start, pmd, use)
            row = child_row(w, pmd)
            if rc == KW_OK and row >= 0:
                rc = use_ptes(w, mm, start, next, w.rows + row * 512 + level_index(start, 1), use)
        start = next
    return rc


cdef int cold_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return use_range(w, mm, start, end, COLD)


cdef int pageout_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return use_range(w, mm, start, end, PAGEOUT)


cdef int free_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return use_range(w, mm, start, end, LAZY)


# ------------------------------------------------------------------ everything there is

cdef enum:
    STAYS = 1      # mapped in a locked area, or held on to
    LOCKED = 2     # a leaf pmd maps it in a locked area

ctypedef struct Reclaim:
    LeafOp op      # the first member: what an operation gets stands for the whole
    uint8_t *marks  # by head of the folio
    bint again     # there is something that goes when it is looked at once more


cdef int op_mark(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    """A pte or leaf pmd: what it says of its page."""
    cdef Reclaim *r = <Reclaim *>op
    cdef int level = 2 if op.on else 1
    cdef int64_t pfn = normal_pfn(w, entry[0], level) if pte_present(entry[0]) else KW_NONE
    if pte_present(entry[0]):
        not_accessed(entry)
    if pfn < 0:
        return 0
    if op.v.flags & VM_LOCKED or not can_go(w, pfn):
        r.marks[w.f_head[pfn]] |= STAYS
    return 0


cdef int op_mark_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int rc
    cdef int64_t pfn = normal_pfn(w, entry[0], 2)
    op.on = True
    rc = op_mark(w, op, addr, entry)
    op.on = False
    if pfn >= 0 and op.v.flags & VM_LOCKED:
        (<Reclaim *>op).marks[pfn] |= LOCKED
    return rc


cdef void unmap_lazy(kw_world *w, Reclaim *r, uint64_t addr, uint64_t *entry, int level, int64_t head) noexcept nogil:
    """A mapping of a page that MADV_FREE marked. With the first that was stored to since, the page stays for it and those
    after it; the others are gone."""
    if entry[0] & PTE_D:
        keep(w, head)
        r.marks[head] |= STAYS
        r.again = True
    else:
        zap_leaf(w, r.op.mm, addr, entry, level)


cdef int op_go_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef Reclaim *r = <Reclaim *>op
    cdef int64_t pfn = normal_pfn(w, entry[0], 2)
    if pfn < 0 or r.marks[pfn] & STAYS or not w.f_flags[pfn] & FRAME_ANON:
        return 0
    if lazy(w, pfn):
        unmap_lazy(w, r, addr, entry, 2, pfn)
        return 0
    return pmd_split(w, op.mm, addr, entry)


cdef int op_go(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef Reclaim *r = <Reclaim *>op
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    if pfn < 0 or r.marks[w.f_head[pfn]] & STAYS:
        return 0
    if lazy(w, w.f_head[pfn]):
        unmap_lazy(w, r, addr, entry, 1, w.f_head[pfn])
    elif not w.f_flags[pfn] & FRAME_ANON:
        unmap_file(w, op.mm, addr, entry)
    else:
        swap_out(w, op.mm, addr, entry, pfn)
    return 0


cdef int over_all(kw_world *w, Reclaim *r) noexcept nogil:
    """The operation for all areas of all address spaces, but those of other page sizes and raw frames."""
    cdef int32_t mm, v
    cdef int rc
    for mm in range(1, <int32_t>w.ctl.mms_used):
        if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
            continue
        r.op.mm = mm
        v = w.mms[mm].vma_first
        while v:
            if not w.vmas[v].flags & (VM_HUGETLB | VM_PFNMAP | VM_IO | VM_MIXEDMAP):
                r.op.v = &w.vmas[v]
                rc = over_ptes(w, &r.op, w.vmas[v].start, w.vmas[v].end)
                if rc < 0:
                    return rc
            v = w.vmas[v].next
    return KW_OK


cdef int decide(kw_world *w, Reclaim *r) noexcept nogil:
    """What stays besides, frame by frame; folios of several pages that can't go as a whole are split."""
    cdef int64_t pfn, i, room = slots_left(w)
    cdef bint whole
    cdef uint16_t f
    for pfn in range(1, w.ctl.nr_frames):
        f = w.f_flags[pfn]
        if not f & FRAME_USED or f & FRAME_TAIL or r.marks[pfn] & STAYS:
            continue
        if f & FRAME_LAZY:
            if folio_extra_refs(w, pfn):
                r.marks[pfn] |= STAYS
            continue
        if w.ctl.slots_most == 0:
            r.marks[pfn] |= STAYS
        elif f & FRAME_HEAD and f & FRAME_ANON:
            if folio_extra_refs(w, pfn):
                r.marks[pfn] |= STAYS
                continue
            whole = room >= folio_pages(w, pfn)
            for i in range(pfn, pfn + folio_pages(w, pfn)):
                whole = whole and w.f_mapcount[i] > 0
            if whole:
                room -= folio_pages(w, pfn)
            elif split_folio(w, pfn) == KW_ENOROWS:
                return KW_ENOROWS
    return KW_OK


cdef int split_underused(kw_world *w, Reclaim *r) noexcept nogil:
    """Folios that are still there and not worth their frames are split, where nobody holds them."""
    cdef int64_t pfn
    cdef int rc
    for pfn in range(1, w.ctl.nr_frames if w.ctl.folios else 1):
        if w.f_flags[pfn] & (FRAME_HEAD | FRAME_ANON) == FRAME_HEAD | FRAME_ANON and not r.marks[pfn] & LOCKED:
            if not underused(w, pfn):
                continue
            rc = split_folio(w, pfn)
            if rc == KW_ENOROWS:
                return rc
            r.again = r.again or rc == KW_OK
    return KW_OK


cdef int reclaim_once(kw_world *w, Reclaim *r) noexcept nogil:
    cdef int rc
    r.again = r.op.on = False
    memset(r.marks, 0, w.ctl.nr_frames)
    r.op.pte = op_mark
    r.op.pmd = op_mark_pmd
    rc = over_all(w, r)
    if rc == KW_OK:
        rc = decide(w, r)
    if rc == KW_OK:
        r.op.pte = op_go
        r.op.pmd = op_go_pmd
        rc = over_all(w, r)
    if rc == KW_OK:
        rc = split_underused(w, r)
    return rc


cdef int reclaim_all(kw_world *w) noexcept nogil:
    cdef Reclaim r
    cdef int64_t pfn
    cdef int rc = KW_OK
    lru_drain(w)
    r.marks = <uint8_t *>calloc(w.ctl.nr_frames, 1)
    if r.marks == NULL:
        return -ENOMEM
    r.again = True
    while rc == KW_OK and r.again:
        rc = reclaim_once(w, &r)
    free(r.marks)
    for pfn in range(1, w.ctl.nr_frames if w.ctl.slots_used > 1 else 1):
        if w.f_flags[pfn] & FRAME_HEAD:
            large_leave(w, pfn)
        elif not w.f_flags[pfn] & FRAME_TAIL:
            leave_cache(w, pfn)
    return rc
