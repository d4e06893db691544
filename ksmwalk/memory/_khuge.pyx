"""Small pages collapsed into huge ones, compiled: by MADV_COLLAPSE, and by khugepaged within its limits.

The contract of every function stands in `_khuge.pxd`.
"""
from libc.errno cimport EAGAIN, EBUSY, EINVAL, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport (
    child_row, entry_leaf, entry_none, entry_pfn, interrupted_at, pmd_find, pte_present, table_free,
)
from ksmwalk.memory._areas cimport VM_WATCHED, for_khugepaged, node_of
from ksmwalk.memory._frames cimport (
    LARGE, batch_size, folio_alloc, folio_extra_refs, folio_head, folio_pages, huge_alloc, in_swap_cache, is_huge, lru_drain,
    lru_empty, maybe_shared, normal_pfn, onto_batch,
)
from ksmwalk.memory._folio cimport map_huge
from ksmwalk.memory._leaves cimport wp_marker, zap_pte
from ksmwalk.memory._mthp cimport folio_orders, map_folio
from ksmwalk.memory._swap cimport SWAP_UFFD_WP, swap_slot
from ksmwalk.memory._swapin cimport swap_in
from ksmwalk.layout._layout cimport *


cdef inline bint no_page(uint64_t e) noexcept nogil:
    """Is there nothing but zeros?"""
    return entry_none(e) or pte_present(e) and e & PTE_SPECIAL and entry_pfn(e, 1) == 0


cdef int worth_while(kw_world *w, const kw_vma *v, const uint64_t *row, bint asked, int64_t most_absent,
                     int64_t *nr_absent) noexcept nogil:
    """Why this table can't be collapsed, as a first look finds it, or KW_OK and how many pages are missing. Unless it is
    asked for: only within khugepaged's limits, and where one of its pages was accessed lately."""
    cdef int64_t absent = 0, shared = 0, out = 0, accessed = 0, writable = 0, pfn
    cdef uint64_t e
    cdef int i
    for i in range(512):
        e = row[i]
        if no_page(e):
            absent += 1
            if v.flags & VM_WATCHED or absent > most_absent:
                return -EBUSY    # it waits to be told of what is missing
            continue
        if not pte_present(e):
            out += 1
            if not asked and out > w.ctl.khuge_swap or e == wp_marker() or swap_slot(w, e) and e & SWAP_UFFD_WP:
                return -EINVAL
            continue
        pfn = normal_pfn(w, e, 1)
        if pfn < 0 or e & PTE_UFFD_WP or not w.f_flags[pfn] & FRAME_ANON:
            return -EINVAL
        writable += e & PTE_RW != 0
        shared += maybe_shared(w, pfn)
        if not asked and shared > w.ctl.khuge_shared:
            return -EINVAL
        if w.ctl.kernel & SWITCH_LAZY_NOT_COLLAPSED and not asked and w.f_flags[folio_head(w, pfn)] & FRAME_LAZY and not e & PTE_D:
            return -EINVAL
        if folio_extra_refs(w, pfn) or w.f_flags[pfn] & FRAME_LOCKED:
            return -EAGAIN
        if e & PTE_A or w.f_flags[folio_head(w, pfn)] & FRAME_REFERENCED:
            accessed += 1
    if writable == 0 and w.ctl.kernel & SWITCH_READ_ONLY_STAYS:
        return -EINVAL
    nr_absent[0] = absent
    # What is swapped out is read in again only where most of the rest is in use.
    return KW_OK if asked or accessed >= (256 if out else 1) else -EINVAL


cdef int bring_back(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *row) noexcept nogil:
    """What of a table is swapped out comes back, up to the first guard (-EINVAL)."""
    cdef int i, rc
    cdef bint came = False
    for i in range(512):
        if pte_present(row[i]) or entry_none(row[i]):
            continue
        if swap_slot(w, row[i]) == 0:
            return -EINVAL
        rc = swap_in(w, mm, v, addr + <uint64_t>i * KW_PAGE_SIZE, row + i)
        if rc < 0:
            return -ENOMEM
        came = True
    if came:
        lru_drain(w)
    return KW_OK


cdef int fullest_node(kw_world *w, const kw_vma *v, const uint64_t *row) noexcept nogil:
    """The NUMA node that most pages of this table are on, the first of several."""
    cdef int64_t[255] pages
    cdef int64_t pfn
    cdef int i, most = 0
    if w.ctl.nr_nodes == 1:
        return 0
    memset(pages, 0, sizeof(pages))
    for i in range(512):
        pfn = normal_pfn(w, row[i], 1) if pte_present(row[i]) else KW_NONE
        if pfn >= 0:
            pages[w.f_nid[pfn]] += 1
    for i in range(1, <int>w.ctl.nr_nodes):
        if pages[i] > pages[most]:
            most = i
    return most if pages[most] else node_of(w, v)


cdef void put_back(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    """A small page that was taken off the LRU list goes onto the batch of a CPU, also where new ones do not (lru_batch 0)."""
    cdef kw_batch *b = &w.batches[cpu]
    if w.f_flags[pfn] & (FRAME_USED | FRAME_LRU) == FRAME_USED:
        onto_batch(w, cpu, pfn)
    else:
        w.put_back += 1
    if b.nr_lru + w.put_back >= (w.ctl.lru_batch if w.ctl.lru_batch else batch_size(w)):
        lru_empty(w, cpu)


cdef void put_all_back(kw_world *w, int cpu, const int64_t *pages, int n, bint forward) noexcept nogil:
    """These pages, of which those of several pages come last and empty the batch."""
    cdef bint large = False
    cdef int i
    cdef int64_t pfn
    for i in range(n):
        pfn = pages[i if forward else n - 1 - i]
        if pfn > 0:
            put_back(w, cpu, pfn)
        large = large or pfn < 0
    if large:
        lru_empty(w, cpu)


cdef void replaced(kw_world *w, kw_vma *v, int cpu, const int64_t *pages, int n) noexcept nogil:
    """These pages have become a folio, which empties the batch that it goes onto: that of locked pages where it is one."""
    put_all_back(w, cpu, pages, n, True)
    if not v.flags & VM_LOCKED:
        lru_empty(w, cpu)


cdef int into_huge(
    kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pmd, int64_t table, int cpu,
) noexcept nogil:
    """One huge page instead of this table of small pages, made on a CPU."""
    cdef int64_t[512] pages    # that were taken off the LRU list, those of several pages negative, 0: none
    cdef uint64_t *row = w.rows + table * 512
    cdef uint64_t e
    cdef int64_t pfn, huge
    cdef int i, j, rc, node = fullest_node(w, v, row)
    rc = bring_back(w, mm, v, addr, row)
    if rc < 0:
        return rc
    for i in range(512):
        e = row[i]
        pages[i] = 0
        if no_page(e):
            continue
        pfn = normal_pfn(w, e, 1) if pte_present(e) else KW_NONE
        if pfn < 0:
            return -EINVAL
        if folio_extra_refs(w, pfn) or w.f_flags[pfn] & FRAME_LOCKED:     # of those that came back
            put_all_back(w, cpu, pages, i, False)
            return -EAGAIN
        # Every page must come off the LRU list, and one that is here twice can do so only once.
        if w.f_mapcount[pfn] > 1:
            for j in range(i):
                if pte_present(row[j]) and normal_pfn(w, row[j], 1) == pfn:
                    put_all_back(w, cpu, pages, i, False)
                    return -EAGAIN
        pages[i] = -pfn if w.f_flags[pfn] & LARGE else pfn
    huge = huge_alloc(w, node)
    if huge < 0:
        return -ENOMEM
    for i in range(512):
        e = row[i]
        if pte_present(e):
            pfn = normal_pfn(w, e, 1)
            if pfn >= 0:
                w.f_key[huge + i] = w.f_key[pfn]
            zap_pte(w, mm, &row[i])
    table_free(w, mm, pmd, table)
    map_huge(w, mm, v, pmd, huge)
    replaced(w, v, cpu, pages, 512)
    return KW_OK


cdef int collapse(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil:
    cdef uint64_t *pmd = pmd_find(w, w.mms[mm].root, addr)
    cdef int64_t table, absent
    cdef int rc
    if v.backing or v.anon_vma == 0 or v.flags & VM_NOHUGEPAGE or w.mms[mm].flags & MM_THP_DISABLED:
        return -EINVAL
    if pmd == NULL or entry_none(pmd[0]):
        return -EINVAL
    if entry_leaf(pmd[0], 2):
        return KW_OK
    table = child_row(w, pmd)
    if table < 0:
        return -EINVAL
    lru_drain(w)
    rc = worth_while(w, v, w.rows + table * 512, True, 512, &absent)
    if rc == KW_OK:
        rc = into_huge(w, mm, v, addr & ~(KW_PMD_SIZE - 1), pmd, table, w.mms[mm].cpu)
    if w.ctl.lru_batch == 0:
        lru_empty(w, w.mms[mm].cpu)
    return rc


# ------------------------------------------------------------------ folios smaller than a huge page

cdef int into_folio(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pte, int order, int cpu) noexcept nogil:
    """One folio instead of the pages of 1 << order ptes, of which nobody else has any, and one at least was accessed lately."""
    cdef int64_t[256] pages    # as for a huge page
    cdef int64_t pfn, folio
    cdef int i, n = 1 << order
    cdef bint accessed = False
    for i in range(n):
        pages[i] = 0
        if no_page(pte[i]):
            continue
        pfn = normal_pfn(w, pte[i], 1) if pte_present(pte[i]) else KW_NONE
        if pfn < 0 or maybe_shared(w, pfn) or w.f_flags[pfn] & FRAME_LRU or folio_pages(w, folio_head(w, pfn)) >= n:
            put_all_back(w, cpu, pages, i, False)
            return -EAGAIN
        pages[i] = -pfn if w.f_flags[pfn] & LARGE else pfn
        accessed = accessed or pte[i] & PTE_A or w.f_flags[folio_head(w, pfn)] & FRAME_REFERENCED
    folio = folio_alloc(w, node_of(w, v), order) if accessed else KW_NONE
    if folio < 0:
        put_all_back(w, cpu, pages, n, False)
        return -ENOMEM
    for i in range(n):
        if pages[i]:
            w.f_key[folio + i] = w.f_key[pages[i] if pages[i] > 0 else -pages[i]]
        zap_pte(w, mm, &pte[i])
    map_folio(w, mm, v, pte, folio, n)
    replaced(w, v, cpu, pages, n)
    return KW_OK


cdef int64_t into_folios(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pte, int order, int orders, int cpu) noexcept nogil:
    """Folios of these orders (bits) instead of the pages of 1 << order ptes, the largest first; their number. None may be
    missing of those, unless any number may (khugepaged's limit 511)."""
    cdef int i, have = 0, n = 1 << order
    for i in range(n):
        have += not no_page(pte[i])
    if have == 0 or order < 2:
        return 0
    if orders >> order & 1 and (have == n or w.ctl.khuge_none == 511) and into_folio(w, mm, v, pte, order, cpu) == KW_OK:
        return 1
    return (into_folios(w, mm, v, pte, order - 1, orders, cpu)
            + into_folios(w, mm, v, pte + n // 2, order - 1, orders, cpu))


# ------------------------------------------------------------------ khugepaged

cdef int64_t khuge_table(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pmd, int64_t table) noexcept nogil:
    """What khugepaged makes of one table: the number of huge pages or folios."""
    cdef uint64_t *row = w.rows + table * 512
    cdef int orders = folio_orders(w, mm, v) if w.ctl.kernel & SWITCH_SMALL_COLLAPSED else 0
    cdef int cpu = <int>w.ksm.cpu
    cdef int64_t absent
    if worth_while(w, v, row, False, 512 if orders else w.ctl.khuge_none, &absent) != KW_OK:
        return 0
    if absent <= w.ctl.khuge_none and into_huge(w, mm, v, addr, pmd, table, cpu) == KW_OK:
        return 1
    return into_folios(w, mm, v, row, 9, orders, cpu) if orders else 0


cdef int64_t khuge_mm(kw_world *w, int32_t mm) noexcept nogil:
    cdef int32_t at = w.mms[mm].vma_first
    cdef uint64_t addr
    cdef uint64_t *pmd
    cdef int64_t table, made = 0
    if w.mms[mm].flags & (MM_THP_DISABLED | MM_BACKING | MM_EXITING):
        return 0
    while at:
        addr = (w.vmas[at].start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
        if for_khugepaged(w, &w.vmas[at], w.vmas[at].flags):
            while addr + KW_PMD_SIZE <= w.vmas[at].end:
                if interrupted_at(addr):
                    return KW_EINTR
                pmd = pmd_find(w, w.mms[mm].root, addr)
                if pmd == NULL:
                    # Nothing for a gigabyte at least: on to its end.
                    addr = (addr & ~(KW_PUD_SIZE - 1)) + KW_PUD_SIZE
                    continue
                table = child_row(w, pmd) if not entry_none(pmd[0]) and not entry_leaf(pmd[0], 2) else KW_NONE
                if table >= 0:
                    made += khuge_table(w, mm, &w.vmas[at], addr, pmd, table)
                addr += KW_PMD_SIZE
        at = w.vmas[at].next
    return made


# ------------------------------------------------------------------ reclaim

cdef bint underused(kw_world *w, int64_t head, bint locked) noexcept nogil:
    cdef int64_t i, empty = 0
    cdef bint going = in_swap_cache(w, head)
    for i in range(head, head + folio_pages(w, head)):
        if w.f_mapcount[i] == 0 and not going:
            return True
        empty += w.f_key[i] == 0
    if locked or not is_huge(w, head) or w.owners[head >> 2].shared & FOLIO_LOOKED:
        return False
    return w.ctl.khuge_none < 511 and empty > w.ctl.khuge_none
