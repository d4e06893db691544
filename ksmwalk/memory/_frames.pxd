# The contract of frames, for those who `cimport ksmwalk.memory._frames`.
#
# Same rules as _core.pxd: pointers in, integers out, KW_* codes (always negative) for failures, no Python. A failure
# changes nothing unless it says so.
#
# Counting. f_mapcount[pfn] = entries that map this very frame; a leaf pmd counts once for each of its 512 frames.
# f_extra[head] = references to the folio that are no mappings: pins + 1 while on the LRU batch + 1 for each entry of the
# mlock batches + 1 for each of its pages in the swap cache + what files hold. "Nobody but the mappings holds a reference"
# is folio_extra_refs() == 0. Of most pages it is 0, and was never written: so it takes no memory. A folio is freed as a
# whole when the last mapping of any of its frames and the last reference are gone: a huge page that lost some of its
# mappings stays a folio and keeps all of its 512 frames. The shared zero page (frame 0) and the huge zero page
# (ctl.huge_zero) are not counted and never freed.
#
# Owners. Of a folio of several pages `owners[head >> 2]` has the order and the number of mappings; of an anonymous one
# also who maps it, as the kernel knows it. FRAME_EXCLUSIVE is a page's, but where a leaf pmd maps a folio its
# head's, for all of it. Whoever maps or unmaps says for which mm.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from ksmwalk._core cimport entry_pfn
from ksmwalk.layout._layout cimport *


cdef enum:
    LARGE = FRAME_HEAD | FRAME_TAIL     # of a folio of several pages
    HUGE_ORDER = 9

# ------------------------------------------------------------------ folios

cdef inline int64_t folio_head(kw_world *w, int64_t pfn) noexcept nogil:
    # First frame of the folio that pfn belongs to.
    return w.f_head[pfn] if KW_UNLIKELY(w.f_flags[pfn] & LARGE) else pfn

cdef inline int64_t folio_pages(kw_world *w, int64_t head) noexcept nogil:
    # How many frames a folio has, by its head.
    return <int64_t>1 << w.owners[head >> 2].order if w.f_flags[head] & FRAME_HEAD else 1

cdef inline bint is_huge(kw_world *w, int64_t head) noexcept nogil:
    # The head of a folio that one leaf pmd maps whole.
    return w.f_flags[head] & FRAME_HEAD and w.owners[head >> 2].order == HUGE_ORDER

cdef void folio_make(kw_world *w, int64_t pfn, int order) noexcept nogil
    # 1 << order free frames, taken out of the allocator, become an anonymous folio that nobody maps yet: keys 0, not
    # exclusive. pfn is a multiple of their number; order: 2 to 9.
cdef void folio_unmake(kw_world *w, int64_t head) noexcept nogil
    # Its frames are small pages from now on, each with its own references.
cdef void owners_add(kw_world *w, int32_t mm, int64_t pfn, int32_t n) noexcept nogil
cdef void owners_drop(kw_world *w, int32_t mm, int64_t pfn, int32_t n) noexcept nogil
    # n mappings more (fewer) by this mm of any pages of the folio of pfn.
cdef int leaf_split(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil
    # split_leaf, and where it was the leaf pmd of a folio its owners hear of it; each page is as exclusive as the whole
    # was. KW_ENOROWS.
cdef bint maybe_shared(kw_world *w, int64_t pfn) noexcept nogil
    # Does the kernel think that others may map this anonymous folio, too?

# ------------------------------------------------------------------ the allocator

cdef int64_t frame_alloc(kw_world *w, int nid, uint64_t key, uint16_t flags) noexcept nogil
    # One frame with this content, flags | FRAME_USED, of a folio of its own, mapped nowhere: map it or free it. From
    # node `nid`, else from the next one that has a frame; lowest frame of a partly free block first. KW_ENOFRAMES.
cdef int64_t frame_new(kw_world *w, int nid, uint64_t key) noexcept nogil
    # frame_alloc of an anonymous page that one pte maps already, exclusive.
cdef int64_t huge_alloc(kw_world *w, int nid) noexcept nogil
    # The first pfn of 512 aligned frames after folio_make. KW_ENOFRAMES: no wholly free block on any node.
cdef int64_t folio_alloc(kw_world *w, int nid, int order) noexcept nogil
    # The first pfn of 1 << order (4 to 256) aligned frames after folio_make, of partly free blocks before a wholly free
    # one. KW_ENOFRAMES: no such run on any node.
cdef int64_t hugetlb_alloc(kw_world *w, int nid) noexcept nogil
    # The same with pages of hugetlbfs: not anonymous.
cdef bint frame_take(kw_world *w, int64_t pfn) noexcept nogil
    # Take this very frame out of the allocator; False: somebody has it. Its fields are the caller's to fill.
cdef void frame_free(kw_world *w, int64_t pfn) noexcept nogil
    # Free the folio that pfn belongs to, whatever its counts. A KSM frame makes its node stale (node.pfn = -1).

# ------------------------------------------------------------------ counts

cdef inline bint folio_mapped(kw_world *w, int64_t head) noexcept nogil:
    # Does any entry map any frame of the folio?
    return w.owners[head >> 2].total != 0 if KW_UNLIKELY(w.f_flags[head] & FRAME_HEAD) else w.f_mapcount[head] != 0

cdef inline void free_unused(kw_world *w, int64_t head) noexcept nogil:
    # A mapping or a reference of the folio went; it goes with the last.
    if w.f_extra[head] <= 0 and not folio_mapped(w, head) and w.f_flags[head] & FRAME_USED:
        frame_free(w, head)

cdef inline void put_ref(kw_world *w, int64_t head) noexcept nogil:
    # One reference less that is no mapping.
    w.f_extra[head] -= 1
    free_unused(w, head)

cdef inline void frame_map(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    # One pte more of this mm maps pfn.
    kw_check(0 <= pfn < w.ctl.nr_frames and w.f_flags[pfn] & FRAME_USED)
    w.f_mapcount[pfn] += 1
    if KW_UNLIKELY(w.f_flags[pfn] & LARGE):
        owners_add(w, mm, pfn, 1)

cdef inline void frame_unmap(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    # One pte of this mm less; the last reference of the folio frees it.
    # An entry written by hand (PageTables.map) maps what was never counted: nothing to take back.
    kw_check(0 <= pfn < w.ctl.nr_frames)
    if w.f_mapcount[pfn] <= 0 or not w.f_flags[pfn] & FRAME_USED:
        return
    w.f_mapcount[pfn] -= 1
    if KW_UNLIKELY(w.f_flags[pfn] & LARGE):
        owners_drop(w, mm, pfn, 1)
    free_unused(w, folio_head(w, pfn))

cdef void huge_map(kw_world *w, int32_t mm, int64_t head) noexcept nogil
cdef void huge_unmap(kw_world *w, int32_t mm, int64_t head) noexcept nogil
    # One leaf pmd more (or less) of this mm maps the 512 frames from head on.
cdef inline void mark_referenced(kw_world *w, int64_t pfn) noexcept nogil:
    # A page was looked up to be used (FOLL_TOUCH), not through an entry.
    w.f_flags[folio_head(w, pfn)] |= FRAME_REFERENCED
cdef inline void folio_get(kw_world *w, int64_t pfn) noexcept nogil:
    w.f_extra[folio_head(w, pfn)] += 1
cdef inline void folio_put(kw_world *w, int64_t pfn) noexcept nogil:
    # A reference of the folio that is not a mapping (pin); the last one frees it.
    put_ref(w, folio_head(w, pfn))
cdef void dma_get(kw_world *w, int64_t pfn) noexcept nogil
cdef bint dma_put(kw_world *w, int64_t pfn) noexcept nogil
    # The same for a device that reads and writes it, on its own count as well. False: there is no such pin.
cdef inline bint dma_pinned(kw_world *w, int64_t pfn) noexcept nogil:
    # Must a fork copy this page at once? pfn: a page that is mapped, or KW_NONE.
    return (KW_UNLIKELY(w.ctl.dma_pins > 0) and pfn >= 0 and w.f_flags[pfn] & FRAME_EXCLUSIVE
            and w.pins_of[folio_head(w, pfn)] > 0)
cdef int64_t folio_mappings(kw_world *w, int64_t head) noexcept nogil
    # Entries that map any frame of the folio.
cdef inline int64_t folio_cached(kw_world *w, int64_t head) noexcept nogil:
    # Pages of it that are in the swap cache, which holds a reference to each.
    cdef int64_t n = 0, i
    for i in range(head, head + folio_pages(w, head) if w.ctl.slots_used > 1 else head):
        n += w.slot_of[i] != 0
    return n
cdef inline bint in_swap_cache(kw_world *w, int64_t head) noexcept nogil:
    # Is any of it, or was it put there in vain? What is unmapped of it then does not make it one that is to be split.
    return folio_cached(w, head) != 0 or w.owners[head >> 2].shared & FOLIO_CACHED != 0
cdef inline int64_t folio_extra_refs(kw_world *w, int64_t pfn) noexcept nogil:
    # References of pfn's folio besides its mappings and the swap cache's: pins and what waits in batches.
    cdef int64_t head = folio_head(w, pfn)
    return w.f_extra[head] - folio_cached(w, head)
cdef inline void cache_forget(kw_world *w, int64_t pfn) noexcept nogil:
    # The frame, which is in the swap cache, leaves it; the reference is the caller's.
    cdef kw_slot *s = &w.slots[w.slot_of[pfn]]
    s.pfn = s.root = 0
    s.addr = 0
    w.slot_of[pfn] = 0
cdef inline bint came_unlocked(kw_world *w, int64_t pfn) noexcept nogil:
    # Did this small page come back from swap straight into a locked area, which locks no such page, and nobody has
    # locked it since?
    return KW_UNLIKELY(w.ctl.born != 0) and w.born_of[pfn] < 0
cdef inline void note_unlocked(kw_world *w, int64_t pfn, bint unlocked) noexcept nogil:
    # It is such a page from now on, or none any more.
    if KW_UNLIKELY(w.ctl.born != 0) and (w.born_of[pfn] < 0) != unlocked:
        w.born_of[pfn] = -w.born_of[pfn]
cdef inline void made_young(kw_world *w, int64_t pfn) noexcept nogil:
    # A page that was locked or unlocked is the last on its LRU list now.
    if KW_UNLIKELY(w.ctl.born != 0):
        w.ctl.born += KW_BORN
        w.born_of[pfn] = -w.ctl.born if w.born_of[pfn] < 0 else w.ctl.born


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

# ------------------------------------------------------------------ what waits on a CPU

cdef inline int32_t batch_size(kw_world *w) noexcept nogil:
    # Pages that a batch takes: the one that fills it drains it.
    return <int32_t>(BATCH_OLD if w.ctl.kernel & SWITCH_NO_SMART_SCAN else BATCH_SIZE)
cdef inline void onto_batch(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    # A page goes on the LRU batch of a CPU, which has room and is not looked at: who calls empties it where it is full.
    cdef kw_batch *b = &w.batches[cpu]
    w.f_flags[pfn] |= FRAME_LRU
    w.f_extra[pfn] += 1
    b.lru[b.nr_lru] = pfn
    b.nr_lru += 1
cdef void lru_wait(kw_world *w, int cpu, int64_t pfn) noexcept nogil
    # A new anonymous page goes on the LRU batch of a CPU (nothing where ctl.lru_batch is 0); a full batch is drained. Linux
    # 5.10 has one batch for those and for locked pages: there it goes among these, as entry 0 where ctl.lru_batch is 0.
cdef inline void lru_add(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    # On that of the CPU that mm runs on.
    lru_wait(w, w.mms[mm].cpu, pfn)

cdef void mlock_wait(kw_world *w, int cpu, int64_t pfn, int64_t entry) noexcept nogil
    # One entry more of the mlock batch of a CPU, a reference to the page; the one that fills it drains the
    # batch, a page of a folio of several does so at once. The entry is pfn, that of a new page -pfn: it has the mark of
    # those in LRU batches so long.
cdef inline void mlock_add(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    # A page was mapped in a locked area, or is about to be unmapped from one, by who runs on this CPU.
    mlock_wait(w, cpu, pfn, pfn)
cdef inline void mlock_page(kw_world *w, int cpu, uint64_t flags, int64_t pfn) noexcept nogil:
    # The same for an area with these VM_* bits, locked or not.
    if KW_UNLIKELY(flags & VM_LOCKED):
        mlock_wait(w, cpu, pfn, pfn)
cdef inline void new_page(kw_world *w, int cpu, uint64_t flags, int64_t pfn) noexcept nogil:
    # A new anonymous page was mapped, by who runs on this CPU, in an area with these VM_* bits: onto the one batch or
    # the other.
    if KW_UNLIKELY(flags & VM_LOCKED):
        mlock_wait(w, cpu, pfn, -pfn)
    else:
        lru_wait(w, cpu, pfn)

cdef void freed_in_bundles(kw_world *w) noexcept nogil
    # The frames that the call at hand freed come in another order: of its first 8, and of the others, the last was freed first.
cdef void lru_empty(kw_world *w, int cpu) noexcept nogil
cdef void mlock_drain(kw_world *w, int cpu) noexcept nogil
    # The LRU batch of one CPU; its mlock batch.
cdef inline void lazy_drain(kw_world *w, int cpu) noexcept nogil:
    # The batch of a CPU of pages that MADV_FREE marked.
    cdef kw_batch *b = &w.batches[cpu]
    cdef int64_t n = b.nr_lazy, i
    b.nr_lazy = 0
    for i in range(n):
        put_ref(w, b.lazy[i])
cdef inline void lazy_wait(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    # A page that MADV_FREE marks goes on it (nothing where ctl.lru_batch is 0); the one that fills it drains it, a page of a
    # folio of several does so at once.
    cdef kw_batch *b = &w.batches[cpu]
    if w.ctl.lru_batch and not w.f_flags[pfn] & LARGE:
        w.f_extra[pfn] += 1
        b.lazy[b.nr_lazy] = pfn
        b.nr_lazy += 1
    if b.nr_lazy >= batch_size(w) or w.f_flags[pfn] & LARGE:
        lazy_drain(w, cpu)
cdef inline void lru_drain_cpu(kw_world *w, int cpu) noexcept nogil:
    # All three.
    mlock_drain(w, cpu)
    lru_empty(w, cpu)
    lazy_drain(w, cpu)
cdef void lru_drain(kw_world *w) noexcept nogil
    # Those of all CPUs.
