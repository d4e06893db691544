"""Memory of a Host, compiled: the frame allocator and leaves (zap, split a folio, break KSM pages).

The contract of every function stands in `_mm.pxd`.
"""
from libc.string cimport memset

from ksmwalk._core cimport *

cdef extern from * nogil:
    int ctz "__builtin_ctzll"(unsigned long long) noexcept

# ------------------------------------------------------------------ the frame allocator
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


cdef inline void frame_init(kw_world *w, int64_t pfn, uint64_t key, int flags, int mapcount) noexcept nogil:
    kw_check(0 < pfn < w.ctl.nr_frames and w.f_flags[pfn] == 0)
    w.f_flags[pfn] = <uint16_t>(flags | FRAME_USED)
    w.f_head[pfn] = <uint32_t>pfn
    w.f_mapcount[pfn] = mapcount
    w.f_refs[pfn] = mapcount
    w.f_key[pfn] = key
    w.f_node[pfn] = 0


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
        w.f_node[pfn] = 0
    w.f_flags[pfn] = 0
    w.f_mapcount[pfn] = 0
    w.f_refs[pfn] = 0
    w.f_key[pfn] = 0


cdef void lru_forget(kw_world *w, int64_t head) noexcept nogil:
    """Take a folio that is being freed out of the LRU batch."""
    cdef int i, n = 0
    for i in range(w.ctl.lru_pending):
        if w.ctl.lru[i] != head:
            w.ctl.lru[n] = w.ctl.lru[i]
            n += 1
    w.ctl.lru_pending = n


cdef void frame_free(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int64_t head = w.f_head[pfn]
    cdef int32_t b = <int32_t>(head >> 9)
    cdef int nid = w.f_nid[head], i
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


cdef inline void put_refs(kw_world *w, int64_t head, int n) noexcept nogil:
    w.f_refs[head] -= n
    kw_check(w.f_refs[head] >= 0)
    if w.f_refs[head] == 0:
        frame_free(w, head)


cdef void frame_map(kw_world *w, int64_t pfn) noexcept nogil:
    kw_check(0 <= pfn < w.ctl.nr_frames and w.f_flags[pfn] & FRAME_USED)
    w.f_mapcount[pfn] += 1
    w.f_refs[w.f_head[pfn]] += 1


cdef void frame_unmap(kw_world *w, int64_t pfn) noexcept nogil:
    # An entry written by hand (PageTables.map) maps what was never counted: nothing to take back.
    kw_check(0 <= pfn < w.ctl.nr_frames)
    if w.f_mapcount[pfn] <= 0 or not w.f_flags[pfn] & FRAME_USED:
        return
    w.f_mapcount[pfn] -= 1
    put_refs(w, w.f_head[pfn], 1)


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


cdef void lru_drain(kw_world *w) noexcept nogil:
    cdef int64_t n = w.ctl.lru_pending, pfn
    cdef int i
    w.ctl.lru_pending = 0
    for i in range(n):
        pfn = w.ctl.lru[i]
        w.f_flags[pfn] &= ~FRAME_LRU
        put_refs(w, pfn, 1)


cdef void lru_add(kw_world *w, int64_t pfn) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    if c.lru_batch == 0:
        return
    w.f_flags[pfn] |= FRAME_LRU
    w.f_refs[pfn] += 1
    c.lru[c.lru_pending] = pfn
    c.lru_pending += 1
    # A huge folio doesn't wait: it drains the batch at once, as the kernel's does.
    if c.lru_pending >= c.lru_batch or w.f_flags[pfn] & FRAME_HEAD:
        lru_drain(w)


# ------------------------------------------------------------------ vmas

cdef int32_t vma_find_from(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    # From the one found last, where that is not beyond addr: accesses come in clusters.
    cdef int32_t v = <int32_t>w.mms[mm].length
    if v <= 0 or v >= w.ctl.vmas_used or w.vmas[v].mm != mm or w.vmas[v].start > addr:
        v = w.mms[mm].vma_first
    while v and w.vmas[v].end <= addr:
        w.mms[mm].length = v
        v = w.vmas[v].next
    if v:
        w.mms[mm].length = v
    return v


cdef int32_t vma_find(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, addr)
    return v if v and w.vmas[v].start <= addr else 0


# ------------------------------------------------------------------ leaves

cdef void zap_pte(kw_world *w, int32_t mm, uint64_t *entry) noexcept nogil:
    cdef uint64_t e = entry[0]
    cdef int64_t pfn
    entry[0] = 0
    if not pte_present(e):
        return
    if e & PTE_SPECIAL:
        if pte_ksm_zero(e):
            ksm_zero_gone(w, mm)
        return
    pfn = normal_pfn(w, e, 1)
    if pfn >= 0:
        frame_unmap(w, pfn)


cdef void zap_leaf(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int level) noexcept nogil:
    cdef uint64_t e = entry[0]
    cdef int64_t pfn
    if e == 0:
        return
    touched(w, mm)
    if level == 1:
        zap_pte(w, mm, entry)
        return
    entry[0] = 0
    if not entry_present(e, level):
        return
    pfn = normal_pfn(w, e, level)
    if pfn >= 0:
        huge_unmap(w, pfn)


cdef int pmd_split(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pmd) noexcept nogil:
    cdef uint64_t e = pmd[0], flags
    cdef int64_t row
    cdef int i
    if not entry_leaf(e, 2) or entry_none(e):
        return KW_OK
    touched(w, mm)
    if normal_pfn(w, e, 2) >= 0 or entry_pfn(e, 2) != <uint64_t>w.ctl.huge_zero:
        return split_leaf(w, mm, pmd, 2)
    row = row_alloc(w)
    if row < 0:
        return KW_ENOROWS
    flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_PS | PTE_RW | PTE_D)) | PTE_SPECIAL
    for i in range(512):
        w.rows[row * 512 + i] = make_entry(0, flags)
    pmd[0] = make_entry(<uint64_t>row, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
    w.mms[mm].nr_tables += 1
    return KW_OK


# ------------------------------------------------------------------ splitting a folio

cdef void zero_if_empty(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pte, int64_t pfn) noexcept nogil:
    """Map the zero page instead of an empty subpage of a folio being split."""
    cdef uint64_t flags
    cdef int32_t v
    if w.f_key[pfn] != 0:
        return
    v = vma_find(w, mm, addr)
    if v and w.vmas[v].flags & VM_LOCKED:
        return
    flags = entry_decode(pte[0]) & ~(PTE_PFN_MASK | PTE_RW | PTE_D)
    pte[0] = make_entry(0, flags | PTE_SPECIAL)
    w.f_mapcount[pfn] -= 1
    w.f_refs[w.f_head[pfn]] -= 1
    touched(w, mm)


cdef int64_t folio_at(kw_world *w, int32_t mm, uint64_t addr, uint64_t end, int64_t head, bint replace) noexcept nogil:
    """Mappings of a folio in [addr, end) of one pmd: its leaf is split, or (replace) empty pages leave its ptes."""
    cdef uint64_t *pmd = pmd_find(w, w.mms[mm].root, addr)
    cdef uint64_t *pte
    cdef int64_t n = 0, pfn
    cdef int rc
    if pmd == NULL or entry_none(pmd[0]):
        return 0
    if entry_leaf(pmd[0], 2):
        if normal_pfn(w, pmd[0], 2) != head:
            return 0
        rc = pmd_split(w, mm, addr, pmd)
        if rc < 0:
            return rc
    pte = pte_find(w, w.mms[mm].root, addr)
    while pte != NULL and addr < end:
        if pte_present(pte[0]):
            pfn = normal_pfn(w, pte[0], 1)
            if pfn >= 0 and <int64_t>w.f_head[pfn] == head:
                n += 1
                if replace:
                    zero_if_empty(w, mm, addr, pte, pfn)
        addr += KW_PAGE_SIZE
        pte += 1
    return n


cdef int64_t folio_everywhere(kw_world *w, int32_t mm, int64_t row, int level, uint64_t base, int64_t head,
                              bint replace) noexcept nogil:
    """folio_at over all tables of an mm from this row on."""
    cdef int64_t n = 0, got, child
    cdef uint64_t e, addr
    cdef int i
    for i in range(512):
        e = w.rows[row * 512 + i]
        if entry_none(e):
            continue
        addr = base + (<uint64_t>i << level_shift(level))
        if level == 2:
            got = folio_at(w, mm, addr, addr + KW_PMD_SIZE, head, replace)
        elif entry_leaf(e, level):
            continue
        else:
            child = <int64_t>entry_pfn(e, level)
            got = folio_everywhere(w, mm, child, level - 1, addr, head, replace)
        if got < 0:
            return got
        n += got
    return n


cdef int64_t folio_visit(kw_world *w, int64_t head, uint64_t addr, bint replace, int64_t expected) noexcept nogil:
    """Visit all mappings of a folio whose first page would be at addr (1: unknown); how many, or a code."""
    cdef int32_t mm
    cdef int64_t n = 0, got, used = w.ctl.mms_used
    cdef uint64_t border = (addr + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1), end = addr + KW_PMD_SIZE
    if addr & (KW_PAGE_SIZE - 1) == 0:
        for mm in range(1, <int32_t>used):
            if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
                continue
            if border > addr:
                got = folio_at(w, mm, addr, border, head, replace)
                if got < 0:
                    return got
                n += got
            if end > border:
                got = folio_at(w, mm, border, end, head, replace)
                if got < 0:
                    return got
                n += got
            if n == expected:
                return n
        if replace:
            # Some have gone already: the rest is found below, so count from here.
            expected -= n
    n = 0
    for mm in range(1, <int32_t>used):
        if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
            continue
        got = folio_everywhere(w, mm, w.mms[mm].root, <int>w.ctl.levels, 0, head, replace)
        if got < 0:
            return got
        n += got
    return n


cdef int split_folio_at(kw_world *w, int64_t pfn, uint64_t addr) noexcept nogil:
    cdef int64_t head = w.f_head[pfn], expected, got, p
    cdef int i
    if w.f_flags[head] & (FRAME_HEAD | FRAME_HUGETLB) != FRAME_HEAD:
        return KW_OK
    expected = folio_mappings(w, head)
    if w.f_refs[head] != expected:
        return KW_EBUSYENTRY
    if addr != 1:
        addr -= <uint64_t>(pfn - head) << 12
    got = folio_visit(w, head, addr, False, expected)
    if got < 0:
        return <int>got
    folio_visit(w, head, addr, True, expected)
    for i in range(512):
        p = head + i
        w.f_head[p] = <uint32_t>p
        w.f_flags[p] = (w.f_flags[p] & ~(FRAME_HEAD | FRAME_TAIL)) | FRAME_ANON | FRAME_USED
        w.f_refs[p] = w.f_mapcount[p]
    for i in range(512):
        if w.f_refs[head + i] == 0:
            frame_free(w, head + i)
    return KW_OK


cdef int split_folio(kw_world *w, int64_t pfn) noexcept nogil:
    return split_folio_at(w, pfn, 1)


# ------------------------------------------------------------------ breaking KSM pages

cdef int break_pte(kw_world *w, int32_t mm, uint64_t *pte) noexcept nogil:
    cdef uint64_t e = pte[0], flags
    cdef int64_t pfn = KW_NONE, new
    if not pte_present(e):
        return 0
    if not pte_ksm_zero(e):
        pfn = normal_pfn(w, e, 1)
        if pfn < 0 or not w.f_flags[pfn] & FRAME_KSM:
            return 0
    new = frame_alloc(w, <int>w.mms[mm].reserved, 0 if pfn < 0 else w.f_key[pfn], FRAME_ANON)
    if new < 0:
        return KW_ENOFRAMES
    flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_SPECIAL)) | PTE_A
    pte[0] = make_entry(<uint64_t>new, flags)
    frame_map(w, new)
    lru_add(w, new)
    if pfn < 0:
        ksm_zero_gone(w, mm)
    else:
        frame_unmap(w, pfn)
    touched(w, mm)
    return 1


cdef int break_ksm(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    cdef uint64_t *pte = pte_find(w, w.mms[mm].root, addr)
    if pte == NULL:
        return 0
    return break_pte(w, mm, pte)


cdef int64_t unmerge_level(kw_world *w, int32_t mm, int64_t row, int level, uint64_t addr, uint64_t end,
                           bint count) noexcept nogil:
    """Break the KSM pages below one table; how many, or KW_ENOFRAMES."""
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef int64_t n = 0, got
    while addr < end:
        next = min((addr & ~(size - 1)) + size, end)
        e = p[0]
        if level == 1:
            if count:
                w.work.ptes += 1
            # Only what can be a KSM page is looked at further: present, and not write-enabled.
            if pte_present(e) and not e & PTE_RW:
                got = break_pte(w, mm, p)
                if got < 0:
                    return got
                n += got
        else:
            if count:
                w.work.entries[level] += 1
            if entry_none(e):
                if count:
                    w.work.holes += 1
            else:
                if count and level == 2:
                    w.work.resched += 1
                if not entry_leaf(e, level) and entry_present(e, level):
                    got = unmerge_level(w, mm, <int64_t>entry_pfn(e, level), level - 1, addr, next, count)
                    if got < 0:
                        return got
                    n += got
        addr = next
        p += 1
    return n


cdef int unmerge_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int strategy) noexcept nogil:
    cdef int64_t n = 0, pages = <int64_t>((end - start) >> 12)
    cdef int rc
    cdef uint64_t addr = start
    if start >= end:
        return KW_OK
    if strategy == STRATEGY_PER_ADDRESS and w.cursor.real_lookups:
        while addr < end:
            rc = break_ksm(w, mm, addr)
            if rc < 0:
                return rc
            n += rc
            addr += KW_PAGE_SIZE
    else:
        n = unmerge_level(w, mm, w.mms[mm].root, <int>w.ctl.levels, start, end, strategy == STRATEGY_RANGE)
        if n < 0:
            return <int>n
    w.work.found += n
    if strategy == STRATEGY_RANGE:
        w.work.searches += 1
    else:
        # One lookup an address, and one more after each page broken to see that it is.
        w.work.lookups += pages + n
        w.work.lookup_misses += pages
        w.work.resched += pages + n
    return KW_OK


cdef int unmerge_mm(kw_world *w, int32_t mm, int strategy) noexcept nogil:
    cdef int32_t v = w.mms[mm].vma_first
    cdef int rc
    while v:
        if vma_mergeable(&w.vmas[v]) and w.vmas[v].anon_vma:
            rc = unmerge_range(w, mm, w.vmas[v].start, w.vmas[v].end, strategy)
            if rc < 0:
                return rc
        v = w.vmas[v].next
    return KW_OK
