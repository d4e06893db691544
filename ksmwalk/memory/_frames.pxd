# The contract of memory (frames and leaves), for the merge engine and for those who `cimport ksmwalk._mm`.
#
# Same rules as _core.pxd: pointers in, integers out, KW_* codes (always negative) for failures, no Python. A failure
# changes nothing unless it says so.
#
# Counting. f_mapcount[pfn] = entries that map this very frame; a leaf pmd counts once for each of its 512 frames.
# f_refs[head] = sum of f_mapcount over the folio's frames (so splitting a pmd does not change it) + pins + 1 while on
# the
# LRU batch. "Nobody but the mappings holds a reference" is folio_extra_refs() == 0. A folio is freed as a whole when
# its refs drop to 0: a huge page that lost some of its mappings stays a folio and keeps all of its 512 frames. The
# shared zero page (frame 0) and the huge zero page (ctl.huge_zero) are not counted and never freed.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ksmwalk._core cimport World, entry_pfn, mm_changed
from ksmwalk.layout._layout cimport *

# What a KSM-placed zero page is: special, frame 0, dirty. A zero page of a read fault is not dirty.
cdef inline bint pte_ksm_zero(uint64_t e) noexcept nogil:
    return (e & (PTE_SPECIAL | PTE_D)) == (PTE_SPECIAL | PTE_D) and (e & (PTE_P | PTE_PROTNONE)) != 0 and (
        ((e if (e & PTE_P) else (e ^ PTE_PFN_MASK)) & PTE_PFN_MASK) == 0)


# ------------------------------------------------------------------ frames

cdef int64_t frame_alloc(kw_world *w, int nid, uint64_t key, uint16_t flags) noexcept nogil
    # One frame with this content, flags | FRAME_USED, mapcount 0, refs 0, head itself, node 0: map it or free it. From
    # node `nid`, else from the next one that has a frame; lowest frame of a partly free block first. KW_ENOFRAMES.
cdef int64_t huge_alloc(kw_world *w, int nid) noexcept nogil
    # The first pfn of 512 aligned frames, flags ANON|USED|HEAD or TAIL, keys 0, head set, mapcount and refs 0.
    # KW_ENOFRAMES: no wholly free block on any node.
cdef void frame_free(kw_world *w, int64_t pfn) noexcept nogil
    # Free the folio that pfn belongs to, whatever its counts. A KSM frame makes its node stale (node.pfn = -1).
cdef void frame_map(kw_world *w, int64_t pfn) noexcept nogil
    # One pte more maps pfn.
cdef void frame_unmap(kw_world *w, int64_t pfn) noexcept nogil
    # One pte less; the last reference of the folio frees it.
cdef void folio_get(kw_world *w, int64_t pfn) noexcept nogil
cdef void folio_put(kw_world *w, int64_t pfn) noexcept nogil
    # A reference of the folio that is not a mapping (pin); the last one frees it.
cdef int64_t folio_extra_refs(kw_world *w, int64_t pfn) noexcept nogil
    # References of pfn's folio besides its mappings: pins and the LRU batch.
cdef void lru_add(kw_world *w, int64_t pfn) noexcept nogil
    # A new anonymous page goes on the LRU batch (nothing where ctl.lru_batch is 0); a full batch is drained.
cdef void lru_drain(kw_world *w) noexcept nogil


# ------------------------------------------------------------------ vmas

cdef int32_t vma_find(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The vma that contains addr, 0: none.
cdef int32_t vma_find_from(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The lowest vma that ends above addr (the kernel's find_vma), 0: none.
cdef inline bint vma_compatible(uint64_t flags) noexcept nogil:
    # May it be marked as mergeable at all?
    return (flags & (VM_SHARED | VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_HUGETLB | VM_MIXEDMAP | VM_DROPPABLE
                     | VM_DAX | VM_MAYSHARE)) == 0

cdef inline bint vma_mergeable(const kw_vma *v) noexcept nogil:
    # Marked, and nothing about it forbids it.
    return (v.flags & VM_MERGEABLE) != 0 and vma_compatible(v.flags)


# ------------------------------------------------------------------ leaves

cdef void zap_leaf(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int level) noexcept nogil
    # Clear one present or non-present leaf (level 1 or 2), whatever it is: its mapping goes, a KSM-placed zero page
    # lowers ksm.zero_pages and mms[mm].nr_zero at once. Raises the mm's epoch. A none entry: nothing.
cdef int pmd_split(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pmd) noexcept nogil
    # A leaf pmd becomes a table of ptes: same frames, the folio stays whole. Of the huge zero page: 512 zero ptes.
    # KW_ENOROWS. Raises the mm's epoch (as everything here that changes a mapping or a content).
cdef int split_folio(kw_world *w, int64_t pfn) noexcept nogil
    # Split the huge folio of pfn into small pages (facts 48-50): every mapping of it in every mm goes to ptes, its
    # frames
    # become plain small pages (mapcounts kept, refs = mapcount), and every EMPTY (key 0) frame's mappings become the
    # shared zero page (not dirty, counted nowhere; not in VM_LOCKED areas), its frame is freed, as are frames that
    # nobody
    # maps. KW_OK also where pfn is no huge folio; KW_EBUSYENTRY: somebody else holds a reference (pin, LRU), nothing
    # done; KW_ENOROWS: some mappings may have gone to ptes, the folio is still whole.
cdef int split_folio_at(kw_world *w, int64_t pfn, uint64_t addr) noexcept nogil
    # The same, told an address where pfn is mapped: looks there first in every mm (where forks have it), and everywhere
    # only if that does not account for all mappings. Prefer it: split_folio has to search all tables.
cdef int break_ksm(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # A KSM page or KSM-placed zero page mapped at addr becomes a private anonymous copy (a new frame, not
    # write-enabled,
    # uffd-wp and PROT_NONE kept). 1: done; 0: nothing of that kind there; KW_ENOFRAMES. Counters of items and nodes
    # stay (facts 28, 35: only zero_pages and nr_zero move).
cdef int unmerge_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int strategy) noexcept nogil
    # break_ksm over [start, end), inside one vma. STRATEGY_PER_ADDRESS: one lookup per address (holes counted in closed
    # form in work.lookups / lookup_misses, never walked); STRATEGY_RANGE: one walk that acts only on KSM pages
    # (work.entries, ptes, holes). Both: work.found counts pages broken, work.resched scheduling points. KW_OK or
    # KW_ENOFRAMES (what is broken stays broken).
cdef int unmerge_mm(kw_world *w, int32_t mm, int strategy) noexcept nogil
    # unmerge_range over every marked vma with an anon_vma, marks kept (run=2).


# ------------------------------------------------------------------ shared with faults and ranges

cdef int64_t frame_new(kw_world *w, int nid, uint64_t key) noexcept nogil
    # frame_alloc of an anonymous page that one pte maps already.

cdef inline void touched(kw_world *w, int32_t mm) noexcept nogil:
    mm_changed(w, mm, 1)

cdef inline void ksm_zero_gone(kw_world *w, int32_t mm) noexcept nogil:
    w.ksm.zero_pages -= 1
    w.mms[mm].nr_zero -= 1

cdef inline int64_t normal_pfn(kw_world *w, uint64_t e, int level) noexcept nogil:
    # Frame of a present leaf that maps a counted page; KW_NONE for zero pages, raw, unallocated and impossible frames
    # (an entry written by hand may hold anything).
    cdef uint64_t pfn
    if e & PTE_SPECIAL:
        return KW_NONE
    pfn = entry_pfn(e, level)
    if <int64_t>(pfn + ((<uint64_t>1 << (9 * (level - 1))) - 1)) >= w.ctl.nr_frames:
        return KW_NONE
    if (w.f_flags[pfn] & (FRAME_ZERO | FRAME_USED)) != FRAME_USED:
        return KW_NONE
    return <int64_t>pfn

cdef void zap_pte(kw_world *w, int32_t mm, uint64_t *entry) noexcept nogil
cdef void huge_map(kw_world *w, int64_t head) noexcept nogil
cdef void huge_unmap(kw_world *w, int64_t head) noexcept nogil
cdef int64_t hugetlb_alloc(kw_world *w, int nid) noexcept nogil
cdef int64_t folio_mappings(kw_world *w, int64_t head) noexcept nogil
