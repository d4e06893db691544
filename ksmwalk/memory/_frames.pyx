"""Frames of a Host, compiled: the allocator, the counts of mappings and references, the batches of CPUs.

The contract of every function stands in `_frames.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ksmwalk.layout._layout cimport *


cdef extern from * nogil:
    int ctz "__builtin_ctzll"(unsigned long long) noexcept


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


cdef inline int64_t take_frame(kw_world *w, int nid) noexcept nogil:
    """A free frame of this node or the next one that has any, taken out of its block."""
    cdef int n = <int>w.ctl.nr_nodes, i, node, word
    cdef int32_t b
    cdef uint64_t bits
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
    cdef int32_t b = <int32_t>(pfn >> 9)
    cdef int nid = w.f_nid[pfn]
    cdef uint64_t bit = <uint64_t>1 << (pfn & 63)
    if not w.b_free[pfn >> 6] & bit:
        return False
    w.b_free[pfn >> 6] &= ~bit
    w.b_count[b] -= 1
    w.ctl.frames_used += 1
    if w.b_count[b] == 511:
        block_unlink(w, 1, nid, b)
        block_push(w, 0, nid, b)
    elif w.b_count[b] == 0:
        block_unlink(w, 0, nid, b)
    return True


cdef inline void frame_init(kw_world *w, int64_t pfn, uint64_t key, int flags, int mapcount) noexcept nogil:
    kw_check(0 < pfn < w.ctl.nr_frames and w.f_flags[pfn] == 0)
    w.f_flags[pfn] = <uint16_t>(flags | FRAME_USED)
    w.f_head[pfn] = <uint32_t>pfn
    w.f_mapcount[pfn] = mapcount
    w.f_refs[pfn] = mapcount
    w.f_key[pfn] = key
    # f_node stays as `clear_frame` left it: where no page was ever merged, it is never written.


cdef int64_t frame_alloc(kw_world *w, int nid, uint64_t key, uint16_t flags) noexcept nogil:
    cdef int64_t pfn = take_frame(w, nid)
    if pfn >= 0:
        frame_init(w, pfn, key, flags, 0)
    return pfn


cdef int64_t frame_new(kw_world *w, int nid, uint64_t key) noexcept nogil:
    cdef int64_t pfn = take_frame(w, nid)
    if pfn >= 0:
        frame_init(w, pfn, key, FRAME_ANON, 1)
    return pfn


cdef int64_t huge_alloc(kw_world *w, int nid) noexcept nogil:
    cdef int n = <int>w.ctl.nr_nodes, i, nearest, node
    cdef int32_t b
    cdef int64_t pfn
    for nearest in range(n):
        node = (nid + nearest) % n
        b = w.b_heads[n + node]
        if b < 0:
            continue
        block_unlink(w, 1, node, b)
        w.b_count[b] = 0
        memset(&w.b_free[b * <int64_t>8], 0, 64)
        w.ctl.frames_used += 512
        pfn = b * <int64_t>512
        for i in range(512):
            frame_init(w, pfn + i, 0, FRAME_ANON | FRAME_TAIL, 0)
            w.f_head[pfn + i] = <uint32_t>pfn
        w.f_flags[pfn] = FRAME_ANON | FRAME_HEAD | FRAME_USED
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
    if w.f_node[pfn]:
        w.nodes[w.f_node[pfn]].pfn = -1
        w.nodes_gone += 1
        w.f_node[pfn] = 0
    w.f_flags[pfn] = 0
    w.f_mapcount[pfn] = 0
    w.f_refs[pfn] = 0
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
    cdef int32_t n = b.nr_lru
    cdef int64_t pfn
    cdef int i
    b.nr_lru = 0
    for i in range(n):
        pfn = b.lru[i]
        w.f_flags[pfn] &= ~FRAME_LRU
        put_refs(w, pfn, 1)


cdef void mlock_empty(kw_world *w, int cpu) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    cdef int32_t n = b.nr_mlock
    cdef int i
    b.nr_mlock = 0
    for i in range(n):
        put_refs(w, w.f_head[b.mlock[i]], 1)


cdef void lru_drain_cpu(kw_world *w, int cpu) noexcept nogil:
    mlock_empty(w, cpu)
    lru_empty(w, cpu)


cdef void lru_drain(kw_world *w) noexcept nogil:
    cdef int cpu
    for cpu in range(w.ctl.nr_cpus):
        lru_drain_cpu(w, cpu)


cdef void lru_wait(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    if w.ctl.lru_batch == 0:
        return
    w.f_flags[pfn] |= FRAME_LRU
    w.f_refs[pfn] += 1
    b.lru[b.nr_lru] = pfn
    b.nr_lru += 1
    # A huge folio doesn't wait: it drains the batch at once, as the kernel's does.
    if b.nr_lru >= w.ctl.lru_batch or w.f_flags[pfn] & FRAME_HEAD:
        lru_empty(w, cpu)


cdef void lru_add(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    lru_wait(w, w.mms[mm].cpu, pfn)


cdef void mlock_add(kw_world *w, int cpu, int64_t pfn) noexcept nogil:
    cdef kw_batch *b = &w.batches[cpu]
    if w.f_flags[pfn] & (FRAME_HEAD | FRAME_TAIL):
        mlock_empty(w, cpu)
        return
    w.f_refs[pfn] += 1
    b.mlock[b.nr_mlock] = pfn
    b.nr_mlock += 1
    if b.nr_mlock >= MLOCK_BATCH:
        mlock_empty(w, cpu)


cdef void new_page(kw_world *w, int cpu, uint64_t flags, int64_t pfn) noexcept nogil:
    if KW_UNLIKELY(flags & VM_LOCKED):
        mlock_add(w, cpu, pfn)
    else:
        lru_wait(w, cpu, pfn)


# ------------------------------------------------------------------ counts

cdef void frame_free(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = w.f_head[pfn]
    cdef int32_t b = <int32_t>(head >> 9)
    cdef int nid = 0 if w.ctl.nr_nodes == 1 else w.f_nid[head], i
    kw_check(w.f_flags[head] & FRAME_USED != 0)
    if w.f_flags[head] & FRAME_LRU:
        lru_forget(w, head)
    if w.f_flags[head] & FRAME_HEAD:
        for i in range(512):
            clear_frame(w, head + i)
        memset(&w.b_free[b * <int64_t>8], 0xff, 64)
        w.b_count[b] = 512
        block_push(w, 1, nid, b)
        w.ctl.frames_used -= 512
        return
    clear_frame(w, head)
    w.b_free[head >> 6] |= <uint64_t>1 << (head & 63)
    w.b_count[b] += 1
    w.ctl.frames_used -= 1
    if w.b_count[b] == 1:
        block_push(w, 0, nid, b)
    elif w.b_count[b] == 512:
        block_unlink(w, 0, nid, b)
        block_push(w, 1, nid, b)


cdef void huge_map(kw_world *w, int64_t head) noexcept nogil:
    cdef int i
    kw_check(0 <= head and head + 511 < w.ctl.nr_frames)
    if not w.f_flags[head] & FRAME_HEAD:
        for i in range(512):
            if w.f_flags[head + i] & FRAME_USED:
                frame_map(w, head + i)
        return
    for i in range(512):
        w.f_mapcount[head + i] += 1
    w.f_refs[head] += 512


cdef void huge_unmap(kw_world *w, int64_t head) noexcept nogil:
    cdef int i
    kw_check(0 <= head and head + 511 < w.ctl.nr_frames)
    if not w.f_flags[head] & FRAME_HEAD or w.f_mapcount[head] <= 0:
        for i in range(512):
            frame_unmap(w, head + i)
        return
    for i in range(512):
        w.f_mapcount[head + i] -= 1
    put_refs(w, head, 512)


cdef void folio_get(kw_world *w, int64_t pfn) noexcept nogil:
    w.f_refs[w.f_head[pfn]] += 1


cdef void folio_put(kw_world *w, int64_t pfn) noexcept nogil:
    put_refs(w, w.f_head[pfn], 1)


cdef int64_t folio_mappings(kw_world *w, int64_t head) noexcept nogil:
    cdef int64_t n = 0
    cdef int i
    if not w.f_flags[head] & FRAME_HEAD:
        return w.f_mapcount[head]
    for i in range(512):
        n += w.f_mapcount[head + i]
    return n


cdef int64_t folio_extra_refs(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = w.f_head[pfn]
    return w.f_refs[head] - folio_mappings(w, head)
