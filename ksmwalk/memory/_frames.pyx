"""Frames of a Host, compiled: the allocator, mappings and references, owners of folios, the batches of CPUs.

The contract of every function stands in `_frames.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport split_leaf
from ksmwalk.layout._layout cimport *


cdef extern from * nogil:
    int ctz "__builtin_ctzll"(unsigned long long) noexcept


cdef enum:
    BLOCKS_TRIED = 8   # partly free blocks that are searched for a run of frames before a whole block is taken

# By order: bit set = a multiple of so many.
cdef uint64_t ALIGNED[6]
ALIGNED[:] = [~<uint64_t>0, 0x5555555555555555, 0x1111111111111111, 0x0101010101010101, 0x0001000100010001, 0x0000000100000001]


# Blocks of 512 frames; a node's blocks with free frames are on one of two lists: partly free (0), wholly free (1).

cdef inline void block_unlink(kw_world *w, int kind, int nid, int32_t b) noexcept nogil:
    cdef int32_t next = w.b_next[b], prev = w.b_prev[b]
    if prev >= 0:
        w.b_next[prev] = next
    else:
        w.b_heads[kind * w.ctl.nr_nodes + nid] = next
    if next >= 0:
        w.b_prev[next] = prev


cdef inline void block_push(kw_world *w, int kind, int nid, int32_t b) noexcept nogil:
    cdef int32_t *head = &w.b_heads[kind * w.ctl.nr_nodes + nid]
    w.b_next[b] = head[0]
    w.b_prev[b] = -1
    if head[0] >= 0:
        w.b_prev[head[0]] = b
    head[0] = b


cdef bint run_take(kw_world *w, int64_t pfn, int order) noexcept nogil:
    """Take 1 << order aligned frames out of the allocator; False: somebody has one of them."""
    cdef int32_t b = <int32_t>(pfn >> 9)
    cdef int64_t i
    for i in range(pfn, pfn + (1 << order)):
        if not w.b_free[i >> 6] >> (i & 63) & 1:
            return False
    if w.b_count[b] == 512:
        block_unlink(w, 1, w.f_nid[pfn], b)
        block_push(w, 0, w.f_nid[pfn], b)
    for i in range(pfn, pfn + (1 << order)):
        w.b_free[i >> 6] &= ~(<uint64_t>1 << (i & 63))
    w.b_count[b] -= <uint16_t>(1 << order)
    if w.b_count[b] == 0:
        block_unlink(w, 0, w.f_nid[pfn], b)
    w.ctl.frames_used += 1 << order
    return True


cdef void freed_in_bundles(kw_world *w) noexcept nogil:
    cdef int64_t first = min(w.nr_freed, <int64_t>8), i
    for i in range(first // 2):
        w.freed[i], w.freed[first - 1 - i] = w.freed[first - 1 - i], w.freed[i]
    for i in range((w.nr_freed - first) // 2):
        w.freed[first + i], w.freed[w.nr_freed - 1 - i] = w.freed[w.nr_freed - 1 - i], w.freed[first + i]


cdef int64_t freed_before(kw_world *w, int nid, int order) noexcept nogil:
    """What the call at hand freed last of this size, if it is free still; KW_NONE. It is on that list no more."""
    cdef int64_t i = w.nr_freed, j, pfn
    if w.freed_again >= 2 and w.freed_again - 2 != nid:
        return KW_NONE
    while i > 0:
        i -= 1
        if w.freed[i] & 15 != order:
            continue
        pfn = w.freed[i] >> 4
        w.nr_freed -= 1
        for j in range(i, w.nr_freed):
            w.freed[j] = w.freed[j + 1]
        if w.f_nid[pfn] == nid and run_take(w, pfn, order):
            return pfn
    return KW_NONE


cdef inline int64_t take_frame(kw_world *w, int nid) noexcept nogil:
    """A free frame of this node or the next one that has any, taken out of its block."""
    cdef int n = <int>w.ctl.nr_nodes, i, node, word
    cdef int32_t b
    cdef uint64_t bits
    cdef int64_t pfn = freed_before(w, nid, 0) if KW_UNLIKELY(w.nr_freed > 0) else KW_NONE
    if pfn >= 0:
        return pfn
    for i in range(n):
        node = nid + i
        if node >= n:
            node -= n
        b = w.b_heads[node]
        if b < 0:
            b = w.b_heads[n + node]
            if b < 0:
                continue
            block_unlink(w, 1, node, b)
            block_push(w, 0, node, b)
        for word in range(8):
            bits = w.b_free[b * <int64_t>8 + word]
            if bits:
                break
        w.b_free[b * <int64_t>8 + word] = bits & (bits - 1)
        w.b_count[b] -= 1
        if w.b_count[b] == 0:
            block_unlink(w, 0, node, b)
        w.ctl.frames_used += 1
        return b * <int64_t>512 + word * 64 + ctz(bits)
    return KW_ENOFRAMES


cdef bint frame_take(kw_world *w, int64_t pfn) noexcept nogil:
    return run_take(w, pfn, 0)


cdef inline void frame_init(kw_world *w, int64_t pfn, uint64_t key, int flags, int mapcount) noexcept nogil:
    kw_check(0 < pfn < w.ctl.nr_frames and w.f_flags[pfn] == 0)
    w.f_flags[pfn] = <uint16_t>(flags | FRAME_USED)
    w.f_mapcount[pfn] = mapcount
    w.f_key[pfn] = key
    if KW_UNLIKELY(w.ctl.born != 0):
        w.ctl.born += KW_BORN
        w.born_of[pfn] = w.ctl.born
    # f_head, f_extra and f_node stay as `clear_frame` left them: what most pages do not need is never written.


cdef int64_t frame_alloc(kw_world *w, int nid, uint64_t key, uint16_t flags) noexcept nogil:
    cdef int64_t pfn = take_frame(w, nid)
    if pfn >= 0:
        frame_init(w, pfn, key, flags, 0)
    return pfn


cdef int64_t frame_new(kw_world *w, int nid, uint64_t key) noexcept nogil:
    cdef int64_t pfn = take_frame(w, nid)
    if pfn >= 0:
        frame_init(w, pfn, key, FRAME_ANON | FRAME_EXCLUSIVE, 1)
    return pfn


cdef int64_t huge_alloc(kw_world *w, int nid) noexcept nogil:
    cdef int n = <int>w.ctl.nr_nodes, nearest, node
    cdef int32_t b
    for nearest in range(n):
        node = (nid + nearest) % n
        b = w.b_heads[n + node]
        if b < 0:
            continue
        block_unlink(w, 1, node, b)
        w.b_count[b] = 0
        memset(&w.b_free[b * <int64_t>8], 0, 64)
        w.ctl.frames_used += 512
        folio_make(w, b * <int64_t>512, HUGE_ORDER)
        return b * <int64_t>512
    return KW_ENOFRAMES


cdef inline int64_t free_run(const uint64_t *words, int order) noexcept nogil:
    """The lowest aligned 1 << order free frames of a block, -1: none."""
    cdef uint64_t bits
    cdef int word, k, step
    if order >= 6:
        step = 1 << (order - 6)
        for word in range(8 >> (order - 6)):
            bits = words[word * step]
            for k in range(1, step):
                bits &= words[word * step + k]
            if bits == ~<uint64_t>0:
                return word * step * 64
        return -1
    for word in range(8):
        bits = words[word]
        for k in range(order):
            bits &= bits >> (1 << k)
        bits &= ALIGNED[order]
        if bits:
            return word * 64 + ctz(bits)
    return -1


cdef int64_t run_of_node(kw_world *w, int node, int order) noexcept nogil:
    """Where 1 << order aligned frames of this node are free, in a block on the list of those partly free; -1."""
    cdef int32_t b = w.b_heads[node], whole = w.b_heads[w.ctl.nr_nodes + node]
    cdef int64_t at
    cdef int tried = 0
    while b >= 0 and (tried < BLOCKS_TRIED or whole < 0):
        at = free_run(&w.b_free[b * <int64_t>8], order)
        if at >= 0:
            return b * <int64_t>512 + at
        b = w.b_next[b]
        tried += 1
    return whole * <int64_t>512 if whole >= 0 else -1


cdef int64_t folio_alloc(kw_world *w, int nid, int order) noexcept nogil:
    cdef int n = <int>w.ctl.nr_nodes, nearest, node
    cdef int64_t pfn = freed_before(w, nid, order) if KW_UNLIKELY(w.nr_freed > 0) else KW_NONE
    kw_check(2 <= order < HUGE_ORDER)
    if pfn >= 0:
        folio_make(w, pfn, order)
        return pfn
    for nearest in range(n):
        node = (nid + nearest) % n
        pfn = run_of_node(w, node, order)
        if pfn < 0 or not run_take(w, pfn, order):
            continue
        folio_make(w, pfn, order)
        return pfn
    return KW_ENOFRAMES


cdef int64_t hugetlb_alloc(kw_world *w, int nid) noexcept nogil:
    cdef int64_t pfn = huge_alloc(w, nid)
    cdef int i
    if pfn >= 0:
        for i in range(512):
            w.f_flags[pfn + i] = (w.f_flags[pfn + i] & ~FRAME_ANON) | FRAME_HUGETLB
    return pfn


cdef inline void clear_frame(kw_world *w, int64_t pfn) noexcept nogil:
    if KW_UNLIKELY(w.ctl.slots_used > 1) and w.slot_of[pfn]:
        cache_forget(w, pfn)
    if w.f_node[pfn]:
        w.nodes[w.f_node[pfn]].pfn = -1
        w.nodes_gone += 1
        w.f_node[pfn] = 0
    if KW_UNLIKELY(w.f_flags[pfn] & LARGE):
        w.f_head[pfn] = 0
    if KW_UNLIKELY(w.f_extra[pfn] != 0):
        w.f_extra[pfn] = 0
    w.f_flags[pfn] = 0
    w.f_mapcount[pfn] = 0
    w.f_key[pfn] = 0


# ------------------------------------------------------------------ what waits on a CPU

cdef void lru_forget(kw_world *w, int64_t head) noexcept nogil:
    """Take a folio that is being freed out of the LRU batch it is in."""
    cdef kw_batch *b
    cdef int cpu, i, n
    for cpu in range(w.ctl.nr_cpus):
        b = &w.batches[cpu]
        n = 0
        for i in range(b.nr_lru):
            if b.lru[i] != head:
                b.lru[n] = b.lru[i]
                n += 1
        b.nr_lru = n


cdef void lru_empty(kw_world *w, int cpu) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    cdef int32_t n = b.nr_lru, i
    cdef int64_t pfn
    b.nr_lru = w.put_back = 0
    for i in range(n):
        pfn = b.lru[i]
        w.f_flags[pfn] &= ~FRAME_LRU
        put_ref(w, pfn)


cdef void mlock_drain(kw_world *w, int cpu) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    cdef int32_t n = b.nr_mlock, i
    cdef int64_t pfn
    b.nr_mlock = 0
    for i in range(n):
        pfn = b.mlock[i]
        if pfn < 0:
            pfn = -pfn
            w.f_flags[pfn] &= ~FRAME_LRU
        if pfn:
            made_young(w, pfn)
            put_ref(w, folio_head(w, pfn))


cdef void lru_drain(kw_world *w) noexcept nogil:
    cdef int cpu
    for cpu in range(w.ctl.nr_cpus):
        lru_drain_cpu(w, cpu)


cdef void onto_mlock(kw_world *w, int cpu, int64_t entry, bint last) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    b.mlock[b.nr_mlock] = entry
    b.nr_mlock += 1
    if last or b.nr_mlock >= batch_size(w):
        mlock_drain(w, cpu)


cdef void lru_wait(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    if KW_UNLIKELY(w.ctl.kernel & SWITCH_OLD_CALLS):
        if w.ctl.lru_batch and not w.f_flags[pfn] & FRAME_HEAD:
            mlock_wait(w, cpu, pfn, -pfn)
        else:
            onto_mlock(w, cpu, 0, w.f_flags[pfn] & FRAME_HEAD != 0)
        return
    if w.ctl.lru_batch == 0:
        return
    onto_batch(w, cpu, pfn)
    # A huge folio doesn't wait: it drains the batch at once, as the kernel's does.
    if b.nr_lru >= w.ctl.lru_batch or w.f_flags[pfn] & FRAME_HEAD:
        lru_empty(w, cpu)


cdef void mlock_wait(kw_world *w, int cpu, int64_t pfn, int64_t entry) noexcept nogil:
    if w.f_flags[pfn] & LARGE:
        w.f_flags[folio_head(w, pfn)] &= ~FRAME_MLOCKED
        mlock_drain(w, cpu)
        made_young(w, folio_head(w, pfn))
        return
    note_unlocked(w, pfn, False)
    if entry < 0:
        w.f_flags[pfn] |= FRAME_LRU
    w.f_extra[pfn] += 1
    onto_mlock(w, cpu, entry, False)


# ------------------------------------------------------------------ counts

cdef void frame_free(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = folio_head(w, pfn), n, i
    cdef int32_t b = <int32_t>(head >> 9)
    cdef int nid = 0 if w.ctl.nr_nodes == 1 else w.f_nid[head]
    cdef uint16_t before = w.b_count[b]
    kw_check(w.f_flags[head] & FRAME_USED != 0)
    if w.f_flags[head] & FRAME_LRU:
        lru_forget(w, head)
    if KW_UNLIKELY(w.ctl.dma_pins > 0):
        # Whoever pins it holds it; only entries written by hand come here.
        w.ctl.dma_pins -= w.pins_of[head]
        w.pins_of[head] = 0
    n = 1
    if KW_UNLIKELY(w.f_flags[head] & FRAME_HEAD):
        n = folio_pages(w, head)
        memset(&w.owners[head >> 2], 0, sizeof(kw_owners))
    for i in range(head, head + n):
        clear_frame(w, i)
        w.b_free[i >> 6] |= <uint64_t>1 << (i & 63)
    if KW_UNLIKELY(w.freed_again) and w.nr_freed < 1024 and (w.freed_again < 2 or n == 1 and w.freed_again - 2 == w.f_nid[head]):
        w.freed[w.nr_freed] = head << 4 | ctz(<uint64_t>n)
        w.nr_freed += 1
    w.b_count[b] += <uint16_t>n
    w.ctl.frames_used -= n
    if before == 0:
        block_push(w, w.b_count[b] == 512, nid, b)
    elif w.b_count[b] == 512:
        block_unlink(w, 0, nid, b)
        block_push(w, 1, nid, b)


cdef void huge_map(kw_world *w, int32_t mm, int64_t head) noexcept nogil:
    cdef int i
    kw_check(0 <= head and head + 511 < w.ctl.nr_frames)
    if not is_huge(w, head):
        for i in range(512):
            if w.f_flags[head + i] & FRAME_USED:
                frame_map(w, mm, head + i)
        return
    for i in range(512):
        w.f_mapcount[head + i] += 1
    owners_add(w, mm, head, 1)


cdef void huge_unmap(kw_world *w, int32_t mm, int64_t head) noexcept nogil:
    cdef int i
    kw_check(0 <= head and head + 511 < w.ctl.nr_frames)
    if not is_huge(w, head) or w.f_mapcount[head] <= 0:
        for i in range(512):
            frame_unmap(w, mm, head + i)
        return
    for i in range(512):
        w.f_mapcount[head + i] -= 1
    owners_drop(w, mm, head, 1)
    free_unused(w, head)


cdef void dma_get(kw_world *w, int64_t pfn) noexcept nogil:
    folio_get(w, pfn)
    w.pins_of[folio_head(w, pfn)] += 1
    w.ctl.dma_pins += 1


cdef bint dma_put(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = folio_head(w, pfn)
    if not w.f_flags[pfn] & FRAME_USED or w.ctl.dma_pins < 1 or w.pins_of[head] < 1:
        return False
    w.pins_of[head] -= 1
    w.ctl.dma_pins -= 1
    folio_put(w, pfn)
    return True


cdef int64_t folio_mappings(kw_world *w, int64_t head) noexcept nogil:
    cdef int64_t n = 0, i
    for i in range(head, head + folio_pages(w, head)):
        n += w.f_mapcount[i]
    return n


# ------------------------------------------------------------------ folios and their owners

cdef void folio_make(kw_world *w, int64_t pfn, int order) noexcept nogil:
    cdef int64_t i
    kw_check(2 <= order <= HUGE_ORDER and pfn & ((1 << order) - 1) == 0)
    for i in range(pfn, pfn + (1 << order)):
        frame_init(w, i, 0, FRAME_ANON | FRAME_TAIL, 0)
        w.f_head[i] = <uint32_t>pfn
    w.f_flags[pfn] = FRAME_ANON | FRAME_HEAD | FRAME_USED
    memset(&w.owners[pfn >> 2], 0, sizeof(kw_owners))
    w.owners[pfn >> 2].order = <uint16_t>order
    w.ctl.folios += 1


cdef void folio_unmake(kw_world *w, int64_t head) noexcept nogil:
    cdef int64_t i, n = folio_pages(w, head)
    # What the head says of all is each one's now.
    cdef uint16_t of_all = w.f_flags[head] & (FRAME_LAZY | FRAME_DIRTY | FRAME_REFERENCED) | FRAME_ANON | FRAME_USED
    w.f_flags[head] &= ~FRAME_MLOCKED
    for i in range(head, head + n):
        w.f_head[i] = 0
        if KW_UNLIKELY(w.ctl.born != 0) and i > head:
            w.born_of[i] = w.born_of[head] + n - (i - head)     # the list has the first one first, and then the last
        w.f_flags[i] = (w.f_flags[i] & ~LARGE) | of_all
        w.f_extra[i] = w.ctl.slots_used > 1 and w.slot_of[i] != 0
    memset(&w.owners[head >> 2], 0, sizeof(kw_owners))


cdef inline int slot_of_owner(kw_owners *o, int32_t mm) noexcept nogil:
    return 0 if o.mm[0] == mm else 1 if o.mm[1] == mm else -1


cdef void owners_add(kw_world *w, int32_t mm, int64_t pfn, int32_t n) noexcept nogil:
    cdef kw_owners *o = &w.owners[folio_head(w, pfn) >> 2]
    cdef int slot = slot_of_owner(o, mm)
    kw_check(mm > 0)
    o.total += n
    if not w.f_flags[pfn] & FRAME_ANON:
        return
    if slot >= 0:
        o.nr[slot] += n
        return
    slot = slot_of_owner(o, 0)
    if slot >= 0:
        o.mm[slot] = mm
        o.nr[slot] = n
    # Whoever finds no slot is not known of from then on; others have mappings then.
    if n != o.total:
        o.shared |= FOLIO_SHARED


cdef void owners_drop(kw_world *w, int32_t mm, int64_t pfn, int32_t n) noexcept nogil:
    cdef kw_owners *o = &w.owners[folio_head(w, pfn) >> 2]
    cdef int slot = slot_of_owner(o, mm)
    o.total = max(o.total - n, 0)
    if not w.f_flags[pfn] & FRAME_ANON:
        return
    if slot >= 0:
        o.nr[slot] -= n
        if o.nr[slot] > 0:
            return
        o.mm[slot] = o.nr[slot] = 0
    if o.total == 0 or o.mm[0] and o.nr[0] == o.total or o.mm[1] and o.nr[1] == o.total:
        o.shared &= ~FOLIO_SHARED


cdef int leaf_split(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil:
    cdef int64_t head = normal_pfn(w, entry[0], level), i
    cdef uint16_t exclusive, dirty = FRAME_DIRTY if entry[0] & PTE_D else 0
    if split_leaf(w, mm, entry, level) < 0:
        return KW_ENOROWS
    if level != 2 or head < 0 or not is_huge(w, head):
        return KW_OK
    exclusive = w.f_flags[head] & FRAME_EXCLUSIVE
    w.f_flags[head] |= dirty
    # 512 mappings more and one less: an owner that had found no slot may find one here, with a number short by one.
    owners_add(w, mm, head, 511)
    if exclusive:
        for i in range(head, head + 512):
            w.f_flags[i] |= FRAME_EXCLUSIVE
    return KW_OK


cdef bint maybe_shared(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = folio_head(w, pfn)
    return w.owners[head >> 2].shared & FOLIO_SHARED != 0 if w.f_flags[head] & FRAME_HEAD else w.f_mapcount[head] > 1
