"""Pages that go, compiled: what becomes cold, what goes out to swap, what is freed; advice about it.

The contract of every function stands in `_reclaim.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from ksmwalk._core cimport child_row, entry_leaf, entry_none, interrupted_at, level_index, pmd_find, pte_find, pte_present
from ksmwalk.memory._anon cimport anon_descends, anon_family, anon_reaches
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._folio cimport split_folio_at, split_parts, whole_batch
from ksmwalk.memory._frames cimport (
    LARGE, came_unlocked, dma_pinned, folio_cached, folio_extra_refs, folio_head, folio_mappings, folio_pages, folio_put,
    frame_unmap, lazy_wait, lru_drain_cpu, maybe_shared, normal_pfn,
)
from ksmwalk.memory._leaves cimport pmd_split, touched, whole_pmd, wp_marker, zap_pte
from ksmwalk.memory._swap cimport (
    SWAP_EXCLUSIVE, SWAP_UFFD_WP, cache_drop, cached_slot, mm_goes_out, slot_new, slot_share, slots_left, swap_entry,
    swap_slot,
)
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ one page

cdef bint can_go(kw_world *w, int64_t pfn) noexcept nogil:
    """Is it a page that reclaim looks at? One with a DMA pin, or in somebody's work, is not."""
    cdef int64_t head = folio_head(w, pfn)
    if w.f_flags[pfn] & (FRAME_HUGETLB | FRAME_DEVICE | FRAME_MLOCKED):
        return False
    if w.f_flags[head] & (FRAME_LOCKED | FRAME_LRU | FRAME_MLOCKED):
        return False
    return not dma_pinned(w, pfn)


cdef bint item_reaches(kw_world *w, int32_t item, int32_t v) noexcept nogil:
    cdef int32_t mm = w.items[item].mm, number = w.links[item].parent, u
    if v == 0 or w.vmas[v].mm == mm:
        return v != 0
    if number:
        return anon_descends(w, number, &w.vmas[v])
    # It was merged before there was swap. Where its area is gone it is not known whose relatives it would find.
    u = vma_find(w, mm, w.items[item].addr) if w.mms[mm].root else 0
    return u == 0 or anon_reaches(w, w.vmas[u].anon_vma, &w.vmas[v])


cdef bint reached(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn) noexcept nogil:
    """Does the way from a KSM page back to its mappings lead here? It goes by its items: to their places, and to these
    places in areas that descend by fork from theirs."""
    cdef int32_t node = w.f_node[pfn], v = vma_find(w, mm, addr), item
    item = w.nodes[node].items if node else 0
    while item:
        if w.items[item].addr == addr and item_reaches(w, item, v):
            return True
        item = w.links[item].left
    return False


cdef bint swap_out(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte, int64_t pfn) noexcept nogil:
    """A small page's mapping becomes an entry of a slot, the page's or a new one. The page is in the swap cache then."""
    cdef uint64_t e = pte[0], bits = 0
    cdef int32_t slot = cached_slot(w, pfn), v
    if slot == 0:
        slot = slot_new(w, pfn)
        if slot < 0:
            return False
        v = vma_find(w, mm, addr)
        if v:
            w.slots[slot].root = anon_family(w, &w.vmas[v])
            w.slots[slot].addr = (w.vmas[v].pgoff << 12) + (addr - w.vmas[v].start)
    if w.f_flags[pfn] & FRAME_EXCLUSIVE:
        bits |= SWAP_EXCLUSIVE
        w.f_flags[pfn] &= ~FRAME_EXCLUSIVE
    if e & PTE_UFFD_WP:
        bits |= SWAP_UFFD_WP
    pte[0] = swap_entry(slot, bits)
    slot_share(w, slot)
    mm_goes_out(w, mm)
    frame_unmap(w, mm, pfn)
    touched(w, mm)
    return True


cdef void leave_cache(kw_world *w, int64_t pfn) noexcept nogil:
    """A page that nobody but the swap cache holds on to any more is freed."""
    cdef int32_t slot = cached_slot(w, pfn)
    if slot and w.f_mapcount[pfn] == 0 and folio_extra_refs(w, pfn) == 0:
        cache_drop(w, slot)


cdef void object_out(kw_world *w, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 1)
    if pfn >= 0 and w.f_extra[pfn] > 1:
        return
    entry[0] &= ~PTE_A
    if pfn >= 0 and w.f_mapcount[pfn] == 0 and w.f_key[pfn] == 0 and not w.f_flags[pfn] & FRAME_DIRTY:
        entry[0] = 0
        folio_put(w, pfn)


cdef void unmap_file(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte) noexcept nogil:
    cdef int32_t v = vma_find(w, mm, addr)
    cdef uint64_t *p = NULL
    cdef uint64_t protected = pte[0] & PTE_UFFD_WP
    zap_pte(w, mm, pte)
    if protected:
        pte[0] = wp_marker()
    if v and w.vmas[v].backing and slots_left(w):
        p = pte_find(w, w.mms[w.vmas[v].backing].root, (w.vmas[v].pgoff << 12) + (addr - w.vmas[v].start))
    if p != NULL:
        object_out(w, p)


# ------------------------------------------------------------------ folios of several pages

cdef void large_leave(kw_world *w, int64_t head) noexcept nogil:
    """leave_cache of a folio of several pages: it is freed as a whole."""
    cdef int64_t i
    if folio_cached(w, head) == 0 or folio_mappings(w, head) or folio_extra_refs(w, head):
        return
    for i in range(head, head + folio_pages(w, head)):
        if cached_slot(w, i):
            cache_drop(w, cached_slot(w, i))


cdef int pageout_large(kw_world *w, int32_t mm, uint64_t addr, uint64_t *ptes, int64_t head, int64_t n) noexcept nogil:
    """A folio that these ptes alone map: it goes as a whole, or it is split (1: its parts are to be looked at)."""
    cdef int64_t i, goes = n
    cdef int rc
    cdef bint held = folio_extra_refs(w, head) != 0
    if not can_go(w, head):
        return 0
    if lazy(w, head):
        for i in range(n):
            if stored_to(w, head, ptes[i]):
                keep(w, head)
                goes = i if w.ctl.kernel & SWITCH_LAZY_EACH else 0
                break
        for i in range(0 if held else goes):
            zap_pte(w, mm, ptes + i)
        return 0
    if held:
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
    if use != PAGEOUT:
        not_accessed(pmd)
    not_referenced(w, head)
    if use == LAZY:
        if not lazy(w, head):
            lazy_wait(w, w.mms[mm].cpu, head)
        pmd[0] &= ~PTE_D
        w.f_flags[head] = (w.f_flags[head] | FRAME_LAZY) & ~FRAME_DIRTY
    if use != PAGEOUT or not can_go(w, head):
        return KW_OK
    if not lazy(w, head) and folio_extra_refs(w, head):
        return KW_OK
    return pmd_split(w, mm, addr, pmd)


cdef bint locked_elsewhere(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn) noexcept nogil:
    """Does a relative by fork map this small page in a locked area? It is on the list of those that do not go then."""
    cdef int32_t other, v
    cdef uint64_t *pte
    if w.f_mapcount[pfn] < 2 or w.f_flags[pfn] & LARGE or came_unlocked(w, pfn):
        return False
    for other in range(1, <int32_t>w.ctl.mms_used):
        v = vma_find(w, other, addr) if other != mm and w.mms[other].root else 0
        if v and w.vmas[v].flags & VM_LOCKED:
            pte = pte_find(w, w.mms[other].root, addr)
            if pte != NULL and pte_present(pte[0]) and normal_pfn(w, pte[0], 1) == pfn:
                return True
    return False


cdef void free_ptes(kw_world *w, int32_t mm, uint64_t addr, uint64_t *ptes, int64_t n) noexcept nogil:
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
    if locked_elsewhere(w, mm, addr, pfn):
        w.f_flags[pfn] &= ~FRAME_REFERENCED
    else:
        if not f & FRAME_LAZY:
            lazy_wait(w, w.mms[mm].cpu, pfn)
        w.f_flags[pfn] = (w.f_flags[pfn] | FRAME_LAZY) & ~FRAME_REFERENCED


cdef void pageout_pte(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte, bint out) noexcept nogil:
    """One small page: it is cold from now on, and out of memory where it may."""
    cdef int64_t pfn = normal_pfn(w, pte[0], 1)
    if pfn < 0 or w.f_flags[pfn] & LARGE or w.f_mapcount[pfn] != 1:
        return
    if not out or w.ctl.kernel & SWITCH_NO_SMART_SCAN:
        not_accessed(pte)
    not_referenced(w, pfn)
    if not out or not can_go(w, pfn) or w.f_flags[pfn] & FRAME_KSM and not reached(w, mm, addr, pfn):
        return
    if not w.f_flags[pfn] & FRAME_ANON:
        unmap_file(w, mm, addr, pte)
        return
    if lazy(w, pfn):
        if stored_to(w, pfn, pte[0]):
            keep(w, pfn)
        elif folio_extra_refs(w, pfn) == 0:
            zap_pte(w, mm, pte)
        return
    if swap_out(w, mm, addr, pte, pfn):
        leave_cache(w, pfn)


cdef bint unsplit(kw_world *w, uint64_t entry) noexcept nogil:
    """A page of a folio of several, which `split_parts` could not split?"""
    cdef int64_t pfn = normal_pfn(w, entry, 1) if pte_present(entry) else KW_NONE
    return pfn >= 0 and w.f_flags[pfn] & LARGE


cdef int use_ptes(kw_world *w, int32_t mm, uint64_t addr, uint64_t end, uint64_t *p, int use, bint whole) noexcept nogil:
    """The ptes of one table from p on; whole: it was one leaf until now."""
    cdef int64_t n, i
    cdef int rc
    while addr < end:
        if w.ctl.kernel & SWITCH_NO_SMART_SCAN and not whole and unsplit(w, p[0]):
            return KW_OK
        n = whole_batch(w, p, <int64_t>((end - addr) >> 12))
        if n and use != LAZY:
            rc = 0
            if folio_mappings(w, normal_pfn(w, p[0], 1)) == n:
                not_referenced(w, normal_pfn(w, p[0], 1))
                for i in range(n if use == COLD else 0):
                    not_accessed(p + i)
                if use == PAGEOUT:
                    rc = pageout_large(w, mm, addr, p, normal_pfn(w, p[0], 1), n)
            if rc < 0:
                return rc
            if rc:
                n = 0      # split: page by page
        elif use == LAZY and pte_present(p[0]):
            free_ptes(w, mm, addr, p, max(n, 1))
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
    cdef bint whole
    cdef int rc
    lru_drain_cpu(w, w.mms[mm].cpu)
    rc = split_parts(w, mm, start, end, use == LAZY)
    touched(w, mm)
    while rc == KW_OK and start < end:
        pmd = pmd_find(w, w.mms[mm].root, start)
        next = KW_PUD_SIZE if pmd == NULL else KW_PMD_SIZE
        next = min((start & ~(next - 1)) + next, end)
        if pmd != NULL and not entry_none(pmd[0]):
            if interrupted_at(start):
                return KW_EINTR
            whole = entry_leaf(pmd[0], 2) and whole_pmd(start, next)
            if whole:
                rc = use_pmd(w, mm, start, pmd, use)
            row = child_row(w, pmd)
            if rc == KW_OK and row >= 0:
                rc = use_ptes(w, mm, start, next, w.rows + row * 512 + level_index(start, 1), use, whole)
        start = next
    return rc


cdef int cold_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return use_range(w, mm, start, end, COLD)


cdef int pageout_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return use_range(w, mm, start, end, PAGEOUT)


cdef int free_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return use_range(w, mm, start, end, LAZY)
