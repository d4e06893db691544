"""Folios of a Host, compiled: huge pages split, as a whole or for a part of them; the huge zero page.

The contract of every function stands in `_folio.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport (
    child_row, entry_decode, entry_leaf, entry_none, level_shift, make_entry, make_leaf, pmd_find, pte_find,
    pte_present,
)
from ksmwalk.memory._frames cimport (
    LARGE, folio_extra_refs, folio_head, folio_mappings, folio_pages, folio_unmake, free_unused, huge_map,
    lru_drain_cpu, maybe_shared, mlock_add, mlock_drain, new_page, normal_pfn,
)
from ksmwalk.memory._leaves cimport huge_flags, pmd_split, touched
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ splitting

cdef struct Splitting:
    int64_t head
    bint replace            # empty pages leave their ptes; before that mappings are only counted
    bint any_locked         # some mapping is in a locked area
    int32_t locked[512]     # by page, where any are: the area of the first such mapping of it, 0: none


cdef bint visited_before(kw_world *w, int32_t u, int32_t v) noexcept nogil:
    if w.vmas[u].pgoff != w.vmas[v].pgoff:
        return w.vmas[u].pgoff < w.vmas[v].pgoff
    return w.vmas[u].linked < w.vmas[v].linked


cdef void note_locked(kw_world *w, Splitting *s, int32_t v, int64_t pfn) noexcept nogil:
    cdef int32_t *first = &s.locked[pfn - s.head]
    if not s.any_locked:
        s.any_locked = True
        memset(s.locked, 0, sizeof(s.locked))
    if first[0] == 0 or visited_before(w, v, first[0]):
        first[0] = v


cdef void zero_if_empty(kw_world *w, Splitting *s, int32_t mm, uint64_t addr, uint64_t *pte,
                        int64_t pfn) noexcept nogil:
    """Map the zero page instead of an empty subpage of a folio being split."""
    cdef uint64_t flags
    cdef int32_t v
    if w.f_key[pfn] != 0 or w.ctl.kernel & SWITCH_SPLIT_KEEPS_EMPTY:
        return
    v = vma_find(w, mm, addr)
    # A lock that outlived its area goes with the first mapping in a locked one that is taken away for the split.
    if w.vmas[v].flags & VM_LOCKED or w.f_flags[s.head] & FRAME_MLOCKED and not s.any_locked:
        return
    # Once the kernel has come by a locked mapping of it, it is a locked page for those that follow as well.
    if s.any_locked and s.locked[pfn - s.head] and visited_before(w, s.locked[pfn - s.head], v):
        return
    flags = entry_decode(pte[0]) & ~(PTE_PFN_MASK | PTE_RW | PTE_D)
    pte[0] = make_entry(0, flags | PTE_SPECIAL)
    w.f_mapcount[pfn] -= 1
    touched(w, mm)


cdef int64_t folio_at(kw_world *w, Splitting *s, int32_t mm, uint64_t addr, uint64_t end) noexcept nogil:
    """Mappings of a folio in [addr, end) of one pmd: its leaf is split, or (replace) empty pages leave its ptes."""
    cdef uint64_t *pmd = pmd_find(w, w.mms[mm].root, addr)
    cdef uint64_t *pte
    cdef int64_t n = 0, pfn
    cdef int32_t v = 0
    cdef int rc
    if pmd == NULL or entry_none(pmd[0]):
        return 0
    if entry_leaf(pmd[0], 2):
        if normal_pfn(w, pmd[0], 2) != s.head:
            return 0
        rc = pmd_split(w, mm, addr, pmd)
        if rc < 0:
            return rc
    pte = pte_find(w, w.mms[mm].root, addr)
    while pte != NULL and addr < end:
        if pte_present(pte[0]):
            pfn = normal_pfn(w, pte[0], 1)
            if pfn >= 0 and <int64_t>folio_head(w, pfn) == s.head:
                n += 1
                if s.replace:
                    zero_if_empty(w, s, mm, addr, pte, pfn)
                    if w.ctl.kernel & SWITCH_OLD_CALLS:
                        pte[0] &= ~(PTE_A | PTE_D)    # what waited for the split is as if it had not been used; the page is dirty
                else:
                    if pte[0] & PTE_D:
                        w.f_flags[s.head] |= FRAME_DIRTY      # so are all its parts then
                    if addr >= w.vmas[v].end:
                        v = vma_find(w, mm, addr)
                    if KW_UNLIKELY(w.vmas[v].flags & VM_LOCKED):
                        note_locked(w, s, v, pfn)
        addr += KW_PAGE_SIZE
        pte += 1
    return n


cdef int64_t folio_everywhere(kw_world *w, Splitting *s, int32_t mm, int64_t row, int level,
                              uint64_t base) noexcept nogil:
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
            got = folio_at(w, s, mm, addr, addr + KW_PMD_SIZE)
        elif entry_leaf(e, level):
            continue
        else:
            child = child_row(w, &w.rows[row * 512 + i])
            if child < 0:
                continue
            got = folio_everywhere(w, s, mm, child, level - 1, addr)
        if got < 0:
            return got
        n += got
    return n


cdef int64_t folio_visit(kw_world *w, Splitting *s, uint64_t addr, int64_t expected) noexcept nogil:
    """Visit all mappings of a folio whose first page would be at addr (1: unknown); how many, or a code."""
    cdef int32_t mm
    cdef int64_t n = 0, got, used = w.ctl.mms_used
    cdef uint64_t end = addr + (<uint64_t>folio_pages(w, s.head) << 12)
    cdef uint64_t border = min((addr + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1), end)
    if addr & (KW_PAGE_SIZE - 1) == 0:
        for mm in range(1, <int32_t>used):
            if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
                continue
            if border > addr:
                got = folio_at(w, s, mm, addr, border)
                if got < 0:
                    return got
                n += got
            if end > border:
                got = folio_at(w, s, mm, border, end)
                if got < 0:
                    return got
                n += got
            if n == expected:
                return n
        if s.replace:
            # Some have gone already: the rest is found below, so count from here.
            expected -= n
    n = 0
    for mm in range(1, <int32_t>used):
        if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
            continue
        got = folio_everywhere(w, s, mm, w.mms[mm].root, <int>w.ctl.levels, 0)
        if got < 0:
            return got
        n += got
    return n


cdef bint maps_whole(kw_world *w, int32_t mm, uint64_t addr, int64_t head) noexcept nogil:
    """Does this mm map a huge page by a pmd at this address?"""
    cdef uint64_t *pmd
    if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
        return False
    pmd = pmd_find(w, w.mms[mm].root, addr)
    return pmd != NULL and not entry_none(pmd[0]) and entry_leaf(pmd[0], 2) and normal_pfn(w, pmd[0], 2) == head


cdef int64_t mapped_before(kw_world *w, int32_t mm, uint64_t addr, int64_t head, int32_t area) noexcept nogil:
    """Small mappings of a huge page in areas that the kernel comes by before this one."""
    cdef uint64_t *pmd
    cdef uint64_t *pte
    cdef int64_t n = 0, pfn
    cdef int i
    if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
        return 0
    pmd = pmd_find(w, w.mms[mm].root, addr)
    if pmd == NULL or entry_none(pmd[0]) or entry_leaf(pmd[0], 2):
        return 0
    pte = pte_find(w, w.mms[mm].root, addr)
    for i in range(512):
        pfn = normal_pfn(w, pte[i], 1) if pte_present(pte[i]) else KW_NONE
        if pfn >= 0 and <int64_t>folio_head(w, pfn) == head:
            n += visited_before(w, vma_find(w, mm, addr + (<uint64_t>i << 12)), area)
    return n


cdef int given_up(kw_world *w, int64_t head, uint64_t addr, int64_t expected) noexcept nogil:
    """Some kernels go no further than to the first area that maps a huge page by a pmd, if others map it after that one:
    it maps small pages from then on, and the page stays whole (KW_EBUSYENTRY)."""
    cdef int32_t mm, v, first = 0
    cdef int64_t before = 0
    cdef int rc
    for mm in range(1, <int32_t>w.ctl.mms_used):
        if maps_whole(w, mm, addr, head):
            v = vma_find(w, mm, addr)
            if first == 0 or visited_before(w, v, first):
                first = v
    if first == 0:
        return KW_OK
    for mm in range(1, <int32_t>w.ctl.mms_used):
        before += mapped_before(w, mm, addr, head, first)
    if before + 512 == expected:
        return KW_OK
    mm = w.vmas[first].mm
    rc = pmd_split(w, mm, addr, pmd_find(w, w.mms[mm].root, addr))
    return rc if rc < 0 else KW_EBUSYENTRY


cdef int split_folio_at(kw_world *w, int64_t pfn, uint64_t addr) noexcept nogil:
    cdef int64_t head = folio_head(w, pfn), expected, got, i, n
    cdef Splitting s
    if w.f_flags[head] & (FRAME_HEAD | FRAME_HUGETLB) != FRAME_HEAD:
        return KW_OK
    expected = folio_mappings(w, head)
    if folio_extra_refs(w, head):
        return KW_EBUSYENTRY
    if addr != 1:
        addr -= <uint64_t>(pfn - head) << 12
    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORKED_HUGE_FAILS) and addr & (KW_PMD_SIZE - 1) == 0:
        got = given_up(w, head, addr, expected)
        if got < 0:
            return <int>got
    s.head = head
    s.replace = s.any_locked = False
    got = folio_visit(w, &s, addr, expected)
    if got < 0:
        return <int>got
    s.replace = True
    folio_visit(w, &s, addr, expected)
    n = folio_pages(w, head)
    folio_unmake(w, head)
    for i in range(head, head + n):
        free_unused(w, i)
    if s.any_locked and not w.ctl.kernel & SWITCH_OLD_CALLS:
        mlock_drain(w, <int>w.ksm.cpu)
    for i in range(n if s.any_locked and w.ctl.kernel & SWITCH_OLD_CALLS else 0):
        if s.locked[i] and w.f_mapcount[head + i]:
            w.f_flags[head + i] |= FRAME_MLOCKED      # each page by itself now
            mlock_add(w, <int>w.ksm.cpu, head + i)
    return KW_OK


cdef int split_folio(kw_world *w, int64_t pfn) noexcept nogil:
    return split_folio_at(w, pfn, 1)


# ------------------------------------------------------------------ parts of huge pages

cdef int split_sticking_out(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """Advice for a part of a huge page of this mm alone splits the page itself, where it can."""
    cdef uint64_t *pmd
    cdef int64_t pfn
    if addr & (KW_PMD_SIZE - 1) == 0:
        return KW_OK
    pmd = pmd_find(w, w.mms[mm].root, addr)
    if pmd == NULL or not entry_leaf(pmd[0], 2) or entry_none(pmd[0]):
        return KW_OK
    pfn = normal_pfn(w, pmd[0], 2)
    if pfn < 0 or maybe_shared(w, pfn):
        return KW_OK
    if split_folio_at(w, pfn, addr & ~(KW_PMD_SIZE - 1)) == KW_ENOROWS:
        return KW_ENOROWS
    return KW_OK


cdef int64_t whole_folio(kw_world *w, const uint64_t *ptes, int64_t room) noexcept nogil:
    cdef int64_t head = normal_pfn(w, ptes[0], 1) if pte_present(ptes[0]) else KW_NONE, n, i
    if head < 0 or not w.f_flags[head] & FRAME_HEAD or w.f_flags[head] & FRAME_HUGETLB:
        return 0
    n = folio_pages(w, head)
    if n > room:
        return 0
    for i in range(1, n):
        if not pte_present(ptes[i]) or normal_pfn(w, ptes[i], 1) != head + i:
            return 0
    return n


cdef int64_t whole_batch(kw_world *w, const uint64_t *ptes, int64_t room) noexcept nogil:
    cdef int64_t n = whole_folio(w, ptes, room), i
    for i in range(1, n):
        if (ptes[i] ^ ptes[0]) & PTE_UFFD_WP:
            return 0
    return n


cdef int split_in_parts(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint lazily) noexcept nogil:
    """So are split folios of this mm alone that small ptes map, unless the whole is taken at once."""
    cdef uint64_t addr = start, next
    cdef uint64_t *pmd
    cdef uint64_t *pte
    cdef int64_t pfn, asked, n, passed = KW_NONE
    cdef int rc
    while addr < end:
        pmd = pmd_find(w, w.mms[mm].root, addr)
        next = KW_PUD_SIZE if pmd == NULL else KW_PMD_SIZE
        next = min((addr & ~(next - 1)) + next, end)
        pte = pte_find(w, w.mms[mm].root, addr) if pmd != NULL else NULL
        if pte == NULL:
            addr = next
            continue
        while addr < next:
            n = 1
            pfn = normal_pfn(w, pte[0], 1) if pte_present(pte[0]) else KW_NONE
            if pfn >= 0 and w.f_flags[pfn] & LARGE and w.ctl.kernel & SWITCH_NO_SMART_SCAN:
                # Old kernels ask who maps one page of it, and go no further in this table where it does not split.
                asked = folio_head(w, pfn) if lazily and not w.ctl.kernel & SWITCH_OLD_CALLS else pfn
                rc = split_folio_at(w, pfn, addr) if w.f_mapcount[asked] == 1 else KW_EBUSYENTRY
                if rc == KW_ENOROWS:
                    return rc
                if rc < 0:
                    addr = next
                    break
            elif pfn >= 0 and w.f_flags[folio_head(w, pfn)] & FRAME_HEAD and folio_head(w, pfn) != passed:
                n = whole_batch(w, pte, <int64_t>((next - addr) >> 12))
                if n == 0 and not maybe_shared(w, pfn):
                    rc = split_folio_at(w, pfn, addr)
                    if rc == KW_ENOROWS:
                        return rc
                if n == 0:
                    passed = folio_head(w, pfn)
                    n = 1
            pte += n
            addr += <uint64_t>n * KW_PAGE_SIZE
    return KW_OK


cdef int split_parts(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint lazily) noexcept nogil:
    cdef int rc = split_sticking_out(w, mm, start)
    if rc == KW_OK:
        rc = split_sticking_out(w, mm, end)
    return rc if rc < 0 else split_in_parts(w, mm, start, end, lazily)


# ------------------------------------------------------------------ whose it is

cdef bint page_ours(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    cdef uint16_t flags = w.f_flags[pfn]
    cdef int64_t head, n
    if flags & (FRAME_ANON | FRAME_KSM) != FRAME_ANON:
        return False
    if flags & FRAME_EXCLUSIVE and not w.ctl.kernel & SWITCH_OLD_CALLS:
        return True
    if flags & LARGE:
        head = folio_head(w, pfn)
        if w.f_extra[head] or maybe_shared(w, pfn):
            return False
        n = folio_mappings(w, head)
        # With one page left the folio had better go.
        return not w.ctl.kernel & SWITCH_PARTS_COPIED if n > 1 else w.ctl.kernel & SWITCH_LAST_PART_STAYS != 0
    if flags & FRAME_LRU and w.f_mapcount[pfn] + w.f_extra[pfn] <= 3 and not w.ctl.kernel & SWITCH_OLD_CALLS:
        # The kernel drains the batches of the CPU at hand before it counts, where that may change what it finds; 5.10 does not.
        lru_drain_cpu(w, w.mms[mm].cpu)
    return w.f_mapcount[pfn] == 1 and w.f_extra[pfn] == 0


cdef bint huge_ours(kw_world *w, int64_t head) noexcept nogil:
    if w.f_flags[head] & FRAME_EXCLUSIVE:
        return True
    return w.owners[head >> 2].total == 1 and w.f_extra[head] == 0


# ------------------------------------------------------------------ huge pages

cdef void map_huge(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pmd, int64_t pfn) noexcept nogil:
    pmd[0] = make_leaf(<uint64_t>pfn, huge_flags(v.flags), 2)
    huge_map(w, mm, pfn)
    w.f_flags[pfn] |= FRAME_EXCLUSIVE
    new_page(w, w.mms[mm].cpu, v.flags, pfn)
    touched(w, mm)


cdef void make_huge_zero(kw_world *w, int64_t pfn) noexcept nogil:
    cdef int i
    for i in range(512):
        w.f_flags[pfn + i] = (w.f_flags[pfn + i] & ~FRAME_ANON) | FRAME_ZERO
    w.ctl.huge_zero = pfn
