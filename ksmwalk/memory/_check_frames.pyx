"""Frames that came from outside, held against the page tables before the engine works on them.

The contract stands in `_check.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t

from ksmwalk.memory._frames cimport HUGE_ORDER, folio_head
from ksmwalk.memory._check cimport SEEN_LISTED, Check, counted, refuse, within
from ksmwalk.layout._layout cimport *


cdef extern from * nogil:
    int popcount "__builtin_popcountll"(unsigned long long) noexcept

cdef enum:
    EXCLUSIVE_BITS = FRAME_EXCLUSIVE | FRAME_ANON | FRAME_KSM | FRAME_ZERO
    MOST_REFS = 1 << 30                  # of a folio: far from where a count would wrap
    NO_SMALL_PAGE = FRAME_USED | FRAME_HEAD | FRAME_TAIL | FRAME_ZERO


cdef int one_frame(Check *c, int64_t pfn) noexcept nogil:
    cdef kw_world *w = c.w
    cdef uint16_t f = w.f_flags[pfn]
    cdef int64_t head = folio_head(w, pfn)
    cdef bint unused = (w.b_free[pfn >> 6] >> (pfn & 63)) & 1
    if unused == (f & FRAME_USED != 0):
        return refuse(c, b"f_flags", NULL, pfn, f, b"not what b_free says")
    if w.f_mapcount[pfn] < 0:
        return refuse(c, b"f_mapcount", NULL, pfn, w.f_mapcount[pfn], b"negative")
    if not 0 <= w.f_extra[pfn] < MOST_REFS:
        return refuse(c, b"f_extra", NULL, pfn, w.f_extra[pfn], b"negative, or too many")
    if unused:
        if f or w.f_head[pfn] or w.f_mapcount[pfn] or w.f_extra[pfn] or w.f_node[pfn]:
            return refuse(c, b"f_flags", NULL, pfn, f, b"a free frame with flags, a head, mappings, references or a node")
        return 0
    if not f & FRAME_ZERO and counted(c, b"f_mapcount", NULL, pfn, w.f_mapcount[pfn], c.mapped[pfn], b"entries that map it"):
        return -1
    if f & FRAME_EXCLUSIVE and (f & EXCLUSIVE_BITS != FRAME_EXCLUSIVE | FRAME_ANON or w.f_mapcount[pfn] > 1):
        return refuse(c, b"f_flags", NULL, pfn, f, b"exclusive, but no anonymous page of one mapping")
    if f & FRAME_ZERO and f & (FRAME_ANON | FRAME_KSM):
        return refuse(c, b"f_flags", NULL, pfn, f, b"a zero page, and anonymous")
    if f & FRAME_TAIL:
        if f & FRAME_HEAD or head >= pfn or not w.f_flags[head] & FRAME_HEAD or w.f_extra[pfn]:
            return refuse(c, b"f_flags", NULL, pfn, f, b"part of a folio without a head, or with references of its own")
        if (f ^ w.f_flags[head]) & FRAME_ZERO:
            return refuse(c, b"f_flags", NULL, pfn, f, b"not of a huge zero page like its folio, or the other way round")
    elif w.f_head[pfn] != (pfn if f & FRAME_HEAD else 0):
        return refuse(c, b"f_head", NULL, pfn, w.f_head[pfn], b"not the head of its folio, or of a small page")
    elif f & FRAME_HEAD and one_folio(c, pfn):
        return -1
    return 0


cdef int one_folio(Check *c, int64_t head) noexcept nogil:
    """A folio of several pages: as many frames as its order says, in their place, all its own."""
    cdef kw_world *w = c.w
    cdef int order = w.owners[head >> 2].order
    cdef int64_t n, i
    if not 2 <= order <= HUGE_ORDER:
        return refuse(c, b"owners", b"order", head >> 2, order, b"no order of a folio")
    n = <int64_t>1 << order
    if head & (n - 1) or head + n > c.known:
        return refuse(c, b"f_flags", NULL, head, w.f_flags[head], b"no place for the head of a folio")
    for i in range(head + 1, head + n):
        if not w.f_flags[i] & FRAME_TAIL or folio_head(w, i) != head:
            return refuse(c, b"f_flags", NULL, i, w.f_flags[i], b"in the midst of a folio, but not part of it")
    c.tails += n - 1
    return 0


cdef int one_owners(Check *c, int64_t at) noexcept nogil:
    """Who maps a folio: address spaces that there are, with numbers that come to no more than all its mappings."""
    cdef kw_owners *o = &c.w.owners[at]
    cdef uint16_t f = c.w.f_flags[at * 4]
    cdef int64_t sum = 0
    cdef int i
    if counted(c, b"owners", b"total", at, o.total, c.owned[at], b"entries that map the folio"):
        return -1
    if f & (FRAME_HEAD | FRAME_ANON) != FRAME_HEAD | FRAME_ANON and (o.mm[0] or o.mm[1] or o.shared):
        return refuse(c, b"owners", NULL, at, o.mm[0], b"owners of no anonymous folio")
    if o.order and not f & FRAME_HEAD:
        return refuse(c, b"owners", b"order", at, o.order, b"the order of no folio")
    for i in range(2):
        if (o.nr[i] > 0) != (o.mm[i] != 0) or o.nr[i] < 0:
            return refuse(c, b"owners", b"nr", at, o.nr[i], b"no number of mappings of an owner")
        if not 0 <= o.mm[i] < c.w.ctl.mms_used or o.mm[i] and (c.mms[o.mm[i]] or c.w.mms[o.mm[i]].flags & MM_BACKING):
            return refuse(c, b"owners", b"mm", at, o.mm[i], b"no address space")
        sum += o.nr[i]
    if sum > o.total or (o.mm[0] == o.mm[1] and o.mm[0]):
        return refuse(c, b"owners", b"nr", at, sum, b"more mappings than there are, or an owner that is there twice")
    if f & FRAME_ANON == 0:
        return 0
    if o.shared > FOLIO_SHARED + FOLIO_PARTED + FOLIO_ACTIVE + FOLIO_CACHED + FOLIO_LOOKED or (
        not o.shared & FOLIO_SHARED and o.nr[0] != o.total and o.nr[1] != o.total
    ):
        return refuse(c, b"owners", b"shared", at, o.shared, b"not whether others than one owner have mappings")
    return 0


cdef int all_owners(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t i, tails = 0
    for i in range(c.known):
        tails += w.f_flags[i] & FRAME_TAIL != 0
    if counted(c, b"f_flags", NULL, 0, tails, c.tails, b"parts of folios that have a head"):
        return -1
    for i in range((c.known + 3) // 4):
        if one_owners(c, i):
            return -1
    return 0


cdef int one_block(Check *c, int64_t b) noexcept nogil:
    """A block of 512 frames: its count of free ones, nothing free beyond the end of memory, one NUMA node."""
    cdef kw_world *w = c.w
    cdef int64_t n = 0, pfn, end = min((b + 1) * 512, w.ctl.nr_frames)
    cdef int i
    for i in range(8):
        n += popcount(w.b_free[b * 8 + i])
    if counted(c, b"b_count", NULL, b, w.b_count[b], n, b"bits set in b_free"):
        return -1
    for i in range(<int>(end - b * 512), 512):
        if (w.b_free[b * 8 + (i >> 6)] >> (i & 63)) & 1:
            return refuse(c, b"b_free", NULL, b, i, b"a free frame beyond the end of memory")
    if b * 512 >= c.known:
        return counted(c, b"b_count", NULL, b, w.b_count[b], end - b * 512, b"frames, of which none is used")
    for pfn in range(b * 512, end):
        if w.f_nid[pfn] >= w.ctl.nr_nodes or w.f_nid[pfn] != w.f_nid[b * 512]:
            return refuse(c, b"f_nid", NULL, pfn, w.f_nid[pfn], b"no NUMA node of this Host, or not that of its block")
    return 0


cdef int block_list(Check *c, int kind, int64_t nid) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t at = kind * w.ctl.nr_nodes + nid
    cdef int32_t b = w.b_heads[at], before = -1
    while b != -1:
        if not 0 <= b < w.ctl.nr_blocks or c.blocks[b]:
            if before < 0:
                return refuse(c, b"b_heads", NULL, at, b, b"no block, or one that is on a list already")
            return refuse(c, b"b_next", NULL, before, b, b"no block, or one that is on a list already")
        c.blocks[b] = SEEN_LISTED
        if w.b_prev[b] != before:
            return refuse(c, b"b_prev", NULL, b, w.b_prev[b], b"not the block before it")
        if (w.b_count[b] == 512) != kind or w.b_count[b] == 0 or w.f_nid[b * <int64_t>512] != nid:
            return refuse(c, b"b_count", NULL, b, w.b_count[b], b"on the list of another NUMA node, or of fuller blocks")
        before = b
        b = w.b_next[b]
    return 0


cdef bint waits_before(Check *c, int64_t cpu, int64_t at) noexcept nogil:
    """Is entry `at` of this CPU's batch in a batch before it, too?"""
    cdef int64_t pfn = c.w.batches[cpu].lru[at], other, i
    for other in range(cpu + 1):
        for i in range(at if other == cpu else c.w.batches[other].nr_lru):
            if c.w.batches[other].lru[i] == pfn:
                return True
    return False


cdef int lru(Check *c) noexcept nogil:
    """The batches of new pages: what is in one has its mark, and is in no other."""
    cdef kw_ctl *ctl = c.w.ctl
    cdef kw_batch *b
    cdef int64_t cpu, i, marked = 0, waiting = 0
    if within(c, b"ctl", b"lru_batch", 0, ctl.lru_batch, 0, BATCH_MOST, b"no size of a batch"):
        return -1
    for cpu in range(ctl.nr_cpus):
        b = &c.w.batches[cpu]
        if within(c, b"batches", b"nr_lru", cpu, b.nr_lru, 0, max(<int64_t>1, ctl.lru_batch), b"more than a batch takes"):
            return -1
        for i in range(b.nr_lru):
            if not 0 < b.lru[i] < c.known or folio_head(c.w, b.lru[i]) != b.lru[i] or not c.w.f_flags[b.lru[i]] & FRAME_LRU:
                return refuse(c, b"batches", b"lru", cpu, b.lru[i], b"no frame that waits in a batch")
            if waits_before(c, cpu, i):
                return refuse(c, b"batches", b"lru", cpu, b.lru[i], b"in a batch twice")
            c.held[b.lru[i]] += 1
            waiting += 1
    if mlock(c, &waiting) or lazies(c):
        return -1
    for i in range(c.known):
        marked += c.w.f_flags[i] & FRAME_LRU != 0
    return counted(c, b"batches", b"nr_lru", 0, waiting, marked, b"frames that wait in all batches")


cdef int mlock(Check *c, int64_t *fresh) noexcept nogil:
    """The batches of pages of locked areas: small pages in use, each as often as it may be, but new only once."""
    cdef kw_world *w = c.w
    cdef kw_batch *b
    cdef int64_t cpu, i, pfn
    for cpu in range(w.ctl.nr_cpus):
        b = &w.batches[cpu]
        if within(c, b"batches", b"nr_mlock", cpu, b.nr_mlock, 0, BATCH_SIZE, b"more than a batch takes"):
            return -1
        for i in range(b.nr_mlock):
            pfn = b.mlock[i] if b.mlock[i] > 0 else -b.mlock[i]
            if pfn == 0 and w.ctl.kernel & SWITCH_OLD_CALLS:
                continue
            if not 0 < pfn < c.known or (w.f_flags[pfn] & NO_SMALL_PAGE) != FRAME_USED:
                return refuse(c, b"batches", b"mlock", cpu, b.mlock[i], b"no small page in use")
            c.held[pfn] += 1
            if b.mlock[i] < 0:
                if not w.f_flags[pfn] & FRAME_LRU or waits_new(c, cpu, i):
                    return refuse(c, b"batches", b"mlock", cpu, b.mlock[i], b"new, but without its mark, or twice")
                fresh[0] += 1
    return 0


cdef int lazies(Check *c) noexcept nogil:
    """The batches of pages that MADV_FREE marked: small pages in use."""
    cdef kw_world *w = c.w
    cdef kw_batch *b
    cdef int64_t cpu, i
    for cpu in range(w.ctl.nr_cpus):
        b = &w.batches[cpu]
        if within(c, b"batches", b"nr_lazy", cpu, b.nr_lazy, 0, BATCH_SIZE, b"more than a batch takes"):
            return -1
        for i in range(b.nr_lazy):
            if not 0 < b.lazy[i] < c.known or (w.f_flags[b.lazy[i]] & NO_SMALL_PAGE) != FRAME_USED:
                return refuse(c, b"batches", b"lazy", cpu, b.lazy[i], b"no small page in use")
            c.held[b.lazy[i]] += 1
    return 0


cdef bint waits_new(Check *c, int64_t cpu, int64_t at) noexcept nogil:
    """Is the new page of entry `at` of this CPU's batch also in an LRU batch, or new in a batch before it?"""
    cdef int64_t entry = c.w.batches[cpu].mlock[at], other, i
    for other in range(c.w.ctl.nr_cpus):
        for i in range(c.w.batches[other].nr_lru):
            if c.w.batches[other].lru[i] == -entry:
                return True
    for other in range(cpu + 1):
        for i in range(at if other == cpu else c.w.batches[other].nr_mlock):
            if c.w.batches[other].mlock[i] == entry:
                return True
    return False


cdef int dma(Check *c) noexcept nogil:
    """Pins for DMA: at heads of frames in use, as many as ctl says."""
    cdef kw_world *w = c.w
    cdef int64_t i, pins = 0
    if w.ctl.dma_pins == 0:
        return 0
    for i in range(c.known):
        if w.pins_of[i] == 0:
            continue
        if not 0 < w.pins_of[i] < MOST_REFS or folio_head(w, i) != i or w.f_flags[i] & (FRAME_USED | FRAME_ZERO) != FRAME_USED:
            return refuse(c, b"pins_of", NULL, i, w.pins_of[i], b"no number of pins, or of no page that can be pinned")
        if within(c, b"pins_of", NULL, i, w.pins_of[i] + <int64_t>c.held[i], 0, MOST_REFS, b"with others too many"):
            return -1
        c.held[i] += w.pins_of[i]
        pins += w.pins_of[i]
    return counted(c, b"ctl", b"dma_pins", 0, w.ctl.dma_pins, pins, b"pins in pins_of")


cdef int frames(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t i, used = 0
    cdef int64_t zero = w.ctl.huge_zero
    if w.f_flags[0] != (FRAME_ZERO | FRAME_USED):
        return refuse(c, b"f_flags", NULL, 0, w.f_flags[0], b"frame 0 is the shared zero page")
    for i in range(w.ctl.nr_blocks):
        if one_block(c, i):
            return -1
        used += min(<int64_t>512, w.ctl.nr_frames - i * 512) - w.b_count[i]
    if counted(c, b"ctl", b"frames_used", 0, w.ctl.frames_used, used, b"frames in use"):
        return -1
    for i in range(c.known):
        if one_frame(c, i):
            return -1
    if lru(c) or dma(c) or all_owners(c):
        return -1
    for i in range(c.known):
        if w.f_extra[i] < c.held[i] and not w.f_flags[i] & FRAME_ZERO:
            return counted(c, b"f_extra", NULL, i, w.f_extra[i], c.held[i], b"references at least")
    for i in range(2 * w.ctl.nr_nodes):
        if block_list(c, i >= w.ctl.nr_nodes, i % w.ctl.nr_nodes):
            return -1
    for i in range(w.ctl.nr_blocks):
        if not c.blocks[i] and w.b_count[i]:
            return refuse(c, b"b_count", NULL, i, w.b_count[i], b"free frames in a block that is on no list")
    if zero != -1 and (zero & 511 or not 0 < zero < c.known - 511 or not w.f_flags[zero] & FRAME_ZERO):
        return refuse(c, b"ctl", b"huge_zero", 0, zero, b"not the huge zero page")
    return 0
