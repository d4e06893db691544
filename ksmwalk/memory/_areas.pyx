"""Areas of a Host, compiled: records of address spaces and of their vmas, the lists and the look-up, objects mapped.

The contract of every function stands in `_areas.pxd`.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport (
    child_row, entry_leaf, entry_none, level_size, pmd_find, pte_find, row_alloc, row_free, row_owner, rows_left,
)
from ksmwalk.memory._anon cimport anon_forked, anon_leave, anon_new, anon_relink, anon_share
from ksmwalk.memory._frames cimport folio_head, folio_put, normal_pfn
from ksmwalk.memory._leaves cimport free_tables, pmd_split, touched
from ksmwalk.layout._layout cimport *


from ksmwalk.layout._poison cimport kw_poison, kw_unpoison


cdef uint64_t LOWEST = 0x10000            # vm.mmap_min_addr
cdef uint64_t HIGHEST = 0x7ffff7fff000    # where mmap begins, below a stack


# ------------------------------------------------------------------ address spaces

cdef int32_t mm_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int32_t mm = <int32_t>c.mms_exited, next, prev = 0
    cdef kw_mm *m
    # Those that have exited wait on a list of their own until ksmd has cleaned their slots.
    while mm:
        next = w.mms[mm].vma_first
        if w.mms[mm].flags & MM_HAS_SLOT:
            prev = mm
        else:
            if prev:
                w.mms[prev].vma_first = next
            else:
                c.mms_exited = next
            mm_free(w, mm)
        mm = next
    if rows_left(w) < 1:
        return KW_ENOROWS
    if c.mms_free:
        mm = <int32_t>c.mms_free
        c.mms_free = w.mms[mm].vma_first
    else:
        if c.mms_used >= c.mms_cap:
            return KW_ENOMMS
        mm = <int32_t>c.mms_used
        c.mms_used += 1
    m = &w.mms[mm]
    # The epoch goes on where the last user of the record left it: nobody may take the one for the other.
    touched(w, mm)
    m.flags = MM_USED
    m.vma_first = m.slot_next = m.slot_prev = m.rmap_list = m.nr_vmas = 0
    m.nr_rmap_items = m.nr_merging = m.nr_zero = m.users = m.nr_pages = 0
    m.nid = m.vma_hint = m.domain = m.cpu = m.tasks = m.khuge = m.swap_next = m.swap_prev = 0
    m.start_brk = m.brk = 0
    c.mm_serial += 1
    m.serial = c.mm_serial
    m.root = row_alloc(w, row_owner(mm, <int>c.levels))
    m.nr_tables = 1
    return mm


cdef void mm_free(kw_world *w, int32_t mm) noexcept nogil:
    w.mms[mm].flags = 0
    w.mms[mm].vma_first = <int32_t>w.ctl.mms_free
    w.ctl.mms_free = mm


cdef void drop_tables(kw_world *w, int32_t mm) noexcept nogil:
    """All tables of an mm whose leaves are gone, the top one included."""
    free_tables(w, mm, 0, level_size(<int>w.ctl.levels) * 512, 0, ~<uint64_t>0)
    row_free(w, w.mms[mm].root)
    w.mms[mm].root = 0
    w.mms[mm].nr_tables = 0


# ------------------------------------------------------------------ objects

cdef void backing_put(kw_world *w, int32_t backing) noexcept nogil:
    """One vma less maps the object; an unnamed one goes with its last."""
    if backing == 0:
        return
    w.mms[backing].users -= 1
    if w.mms[backing].users == 0:
        backing_clear(w, backing, w.mms[backing].root, <int>w.ctl.levels)
        drop_tables(w, backing)
        mm_free(w, backing)


cdef void backing_clear(kw_world *w, int32_t backing, int64_t row, int level) noexcept nogil:
    cdef uint64_t *p = w.rows + row * 512
    cdef int64_t child, pfn
    cdef int i
    for i in range(512):
        if p[i] == 0:
            continue
        if entry_leaf(p[i], level):
            pfn = normal_pfn(w, p[i], level)
            p[i] = 0
            # A folio is held once, at its head.
            if pfn >= 0 and folio_head(w, pfn) == pfn:
                folio_put(w, pfn)
            continue
        child = child_row(w, p + i)
        if child >= 0:
            backing_clear(w, backing, child, level - 1)


# ------------------------------------------------------------------ the look-up

cdef int32_t vma_find_from(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    # From the one found last, where that is not beyond addr: accesses come in clusters.
    cdef int32_t v = w.mms[mm].vma_hint
    if v <= 0 or v >= w.ctl.vmas_used or w.vmas[v].mm != mm or w.vmas[v].start > addr:
        v = w.mms[mm].vma_first
    while v and w.vmas[v].end <= addr:
        w.mms[mm].vma_hint = v
        v = w.vmas[v].next
    if v:
        w.mms[mm].vma_hint = v
    return v


cdef int32_t vma_find(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, addr)
    return v if v and w.vmas[v].start <= addr else 0


cdef bint waits(kw_world *w, const kw_vma *v, uint64_t addr) noexcept nogil:
    cdef uint64_t *there
    if not v.flags & (VM_UFFD_MISSING | VM_UFFD_MINOR):
        return False
    if not v.backing:
        return v.flags & VM_UFFD_MISSING != 0
    there = pte_find(w, w.mms[v.backing].root, (v.pgoff << 12) + (addr - v.start))
    return v.flags & (VM_UFFD_MINOR if there != NULL and there[0] else VM_UFFD_MISSING) != 0


cdef inline uint64_t room_below(const kw_vma *v) noexcept nogil:
    """Where the memory ends that others may be mapped into: a stack keeps a gap."""
    if not v.flags & VM_GROWSDOWN:
        return v.start
    return v.start - STACK_GAP if v.start > STACK_GAP else 0


cdef int32_t vma_for(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    cdef int32_t at = vma_find_from(w, mm, addr), before
    cdef kw_vma *v = &w.vmas[at]
    cdef kw_vma *p
    cdef uint64_t start = addr & ~(KW_PAGE_SIZE - 1), more
    if at == 0 or v.start <= addr:
        return at
    if not v.flags & VM_GROWSDOWN:
        return 0
    more = (v.start - start) >> 12
    before = v.prev
    p = &w.vmas[before]
    if before and not p.flags & VM_GROWSDOWN and p.flags & VM_ACCESS and start - p.end < STACK_GAP:
        return 0
    if v.end - start > STACK_MOST or start < LOWEST or v.pgoff < more:
        return 0
    if not v.backing:
        anon_vma_prepare(w, v)
    v.start = start
    v.pgoff -= more
    anon_relink(w, v)
    touched(w, mm)
    return at


cdef uint64_t gap_end(kw_world *w, int32_t mm, uint64_t length, uint64_t high) noexcept nogil:
    """End of the highest gap of at least `length` bytes below `high`, 0: none."""
    cdef uint64_t best = 0, at = LOWEST, end
    cdef int32_t v = w.mms[mm].vma_first
    while True:
        end = min(room_below(&w.vmas[v]), high) if v else high
        if end > at and end - at >= length:
            best = end
        if v == 0:
            return best
        at = max(at, w.vmas[v].end)
        v = w.vmas[v].next


cdef uint64_t find_place(kw_world *w, int32_t mm, uint64_t length, uint64_t align) noexcept nogil:
    cdef uint64_t high = min(user_end(w), HIGHEST), end
    if align > KW_PAGE_SIZE:
        end = gap_end(w, mm, length + align, high)
        if end:
            return (end - length) & ~(align - 1)
    end = gap_end(w, mm, length, high)
    return end - length if end else 0


cdef int32_t last_vma(kw_world *w, int32_t mm) noexcept nogil:
    cdef int32_t v = w.mms[mm].vma_hint
    if v <= 0 or v >= w.ctl.vmas_used or w.vmas[v].mm != mm:
        v = w.mms[mm].vma_first
    while v and w.vmas[v].next:
        v = w.vmas[v].next
    return v


# ------------------------------------------------------------------ records of vmas

cdef int32_t vma_alloc(kw_world *w, int32_t mm) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int32_t v
    if c.vmas_free:
        v = <int32_t>c.vmas_free
        c.vmas_free = w.vmas[v].next
    else:
        if c.vmas_used >= c.vmas_cap:
            return KW_ENOVMAS
        v = <int32_t>c.vmas_used
        c.vmas_used += 1
    kw_unpoison(&w.vmas[v], sizeof(kw_vma))
    memset(&w.vmas[v], 0, sizeof(kw_vma))
    c.vma_serial += 1
    w.vmas[v].serial = c.vma_serial
    w.vmas[v].mm = mm
    w.vmas[v].page_shift = 12
    w.mms[mm].nr_vmas += 1
    return v


cdef void vma_link(kw_world *w, int32_t v, int32_t prev) noexcept nogil:
    """Put v behind prev, 0: first."""
    cdef int32_t mm = w.vmas[v].mm
    cdef int32_t next = w.vmas[prev].next if prev else w.mms[mm].vma_first
    w.vmas[v].prev = prev
    w.vmas[v].next = next
    if prev:
        w.vmas[prev].next = v
    else:
        w.mms[mm].vma_first = v
    if next:
        w.vmas[next].prev = v


cdef int32_t vma_make(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, uint64_t pgoff) noexcept nogil:
    """A new area where nothing is mapped, not joined with its neighbours yet: its record or -ENOMEM."""
    cdef int32_t next = vma_find_from(w, mm, start), prev, v
    if w.mms[mm].nr_vmas >= MAX_MAP_COUNT:
        return -ENOMEM
    if w.mms[mm].flags & MM_MERGE_ANY and vma_compatible(flags):
        flags |= VM_MERGEABLE
    prev = w.vmas[next].prev if next else last_vma(w, mm)
    v = vma_alloc(w, mm)
    if v < 0:
        return v
    w.vmas[v].start = start
    w.vmas[v].end = end
    w.vmas[v].flags = flags
    w.vmas[v].pgoff = pgoff
    vma_link(w, v, prev)
    touched(w, mm)
    return v


cdef void vma_free(kw_world *w, int32_t v) noexcept nogil:
    cdef int32_t mm = w.vmas[v].mm, prev = w.vmas[v].prev, next = w.vmas[v].next, backing = w.vmas[v].backing
    kw_check(0 < v < w.ctl.vmas_used and mm > 0)
    if prev:
        w.vmas[prev].next = next
    else:
        w.mms[mm].vma_first = next
    if next:
        w.vmas[next].prev = prev
    w.mms[mm].nr_vmas -= 1
    touched(w, mm)
    if w.cursor.vma == v:
        w.cursor.vma = 0
    anon_leave(w, &w.vmas[v])
    memset(&w.vmas[v], 0, sizeof(kw_vma))
    w.vmas[v].next = <int32_t>w.ctl.vmas_free
    w.ctl.vmas_free = v
    kw_poison(&w.vmas[v], 32)  # not the links, nor `mm`, which tells that a hint is stale
    kw_poison(<char *>&w.vmas[v] + 48, sizeof(kw_vma) - 48)
    backing_put(w, backing)


cdef int vmas_left(kw_world *w, int n) noexcept nogil:
    """Are n records to be had? The free list is only looked along as far as needed."""
    cdef int64_t v = w.ctl.vmas_free
    n -= <int>min(n, w.ctl.vmas_cap - w.ctl.vmas_used)
    while n > 0 and v:
        n -= 1
        v = w.vmas[v].next
    return n <= 0


cdef int leaf_split_at(kw_world *w, int32_t v, uint64_t addr) noexcept nogil:
    cdef uint64_t *pmd = pmd_find(w, w.mms[w.vmas[v].mm].root, addr) if addr & (KW_PMD_SIZE - 1) else NULL
    cdef int64_t head
    head = normal_pfn(w, pmd[0], 2) if pmd != NULL and entry_leaf(pmd[0], 2) and not entry_none(pmd[0]) else KW_NONE
    if pmd != NULL and pmd_split(w, w.vmas[v].mm, addr, pmd) < 0:
        return KW_ENOROWS
    if head >= 0 and w.vmas[v].flags & VM_LOCKED:
        w.f_flags[head] |= FRAME_MLOCKED    # as long as nobody unlocks or unmaps any of it
    return KW_OK


cdef int32_t vma_split(kw_world *w, int32_t v, uint64_t addr) noexcept nogil:
    """Cut v at addr: the upper part is a new record, whose index is returned. No huge leaf lies across the cut."""
    cdef int32_t new
    cdef int64_t serial
    if leaf_split_at(w, v, addr) < 0:
        return KW_ENOROWS
    new = vma_alloc(w, w.vmas[v].mm)
    if new < 0:
        return new
    serial = w.vmas[new].serial
    w.vmas[new] = w.vmas[v]
    w.vmas[new].serial = serial
    w.vmas[new].anon_vma = w.vmas[new].anon_chain = 0
    anon_share(w, &w.vmas[new], &w.vmas[v])
    anon_relink(w, &w.vmas[v])
    w.vmas[new].start = addr
    w.vmas[new].pgoff += (addr - w.vmas[v].start) >> 12
    w.vmas[v].end = addr
    if w.vmas[v].backing:
        w.mms[w.vmas[v].backing].users += 1
    vma_link(w, new, v)
    return new


cdef bint vma_join(kw_world *w, int32_t a, int32_t b) noexcept nogil:
    """Make one of two neighbours if they are alike in all but place: b goes into a."""
    cdef kw_vma *p = &w.vmas[a]
    cdef kw_vma *q = &w.vmas[b]
    if a == 0 or b == 0 or p.end != q.start or (p.flags ^ q.flags) & ~<uint64_t>VM_MAYBE_GUARD or p.flags & VM_SPECIAL:
        return False
    if p.backing != q.backing or q.pgoff != p.pgoff + ((p.end - p.start) >> 12) or p.policy != q.policy or p.watcher != q.watcher:
        return False
    if p.anon_vma != q.anon_vma:
        # One without anonymous pages may join one that has some, unless those may still be shared with a parent.
        if p.anon_vma and q.anon_vma or anon_forked(w, p if p.anon_vma else q):
            return False
        if q.anon_vma:
            anon_share(w, p, q)
    anon_relink(w, p)
    p.end = q.end
    p.flags |= q.flags & VM_MAYBE_GUARD
    vma_free(w, b)
    khuge_know(w, p, p.flags)
    return True


cdef int32_t join_around(kw_world *w, int32_t v) noexcept nogil:
    """Join v with its neighbours where they allow it; the record that holds its range now."""
    cdef bint apart = w.ctl.kernel & SWITCH_EMPTY_NOT_JOINED and w.vmas[v].anon_vma
    cdef int32_t prev = w.vmas[v].prev, next = w.vmas[v].next
    if not (apart and w.vmas[prev].anon_vma == 0) and vma_join(w, prev, v):
        v = prev
    if not (apart and w.vmas[next].anon_vma == 0):
        vma_join(w, v, next)
    return v


cdef int32_t set_flags(kw_world *w, int32_t v, uint64_t start, uint64_t end, uint64_t flags) noexcept nogil:
    return set_area(w, v, start, end, flags, w.vmas[v].policy, w.vmas[v].watcher)


cdef int32_t set_policy(kw_world *w, int32_t v, uint64_t start, uint64_t end, int32_t policy) noexcept nogil:
    return set_area(w, v, start, end, w.vmas[v].flags, policy, w.vmas[v].watcher)


cdef int32_t set_watched(kw_world *w, int32_t v, uint64_t start, uint64_t end, uint64_t how, uint16_t watcher) noexcept nogil:
    return set_area(w, v, start, end, (w.vmas[v].flags & ~<uint64_t>VM_WATCHED) | how, w.vmas[v].policy,
                    watcher if how else 0)


cdef int32_t set_area(kw_world *w, int32_t v, uint64_t start, uint64_t end, uint64_t flags, int32_t policy,
                      uint16_t watcher) noexcept nogil:
    """Change [start, end) of v: cut at its ends, joined with what is alike. The record that holds it."""
    cdef int need = (start > w.vmas[v].start) + (end < w.vmas[v].end)
    if w.vmas[v].flags == flags and w.vmas[v].policy == policy and w.vmas[v].watcher == watcher:
        return v
    if w.mms[w.vmas[v].mm].nr_vmas + need > MAX_MAP_COUNT:
        return -ENOMEM
    if not vmas_left(w, need):
        return KW_ENOVMAS
    if rows_left(w) < need:
        return KW_ENOROWS
    if start > w.vmas[v].start:
        v = vma_split(w, v, start)
    if end < w.vmas[v].end:
        vma_split(w, v, end)
    w.vmas[v].flags = flags
    w.vmas[v].policy = policy
    w.vmas[v].watcher = watcher
    touched(w, w.vmas[v].mm)    # pages may have become, or ceased to be, mergeable
    return join_around(w, v)


cdef inline bint anon_vma_near(kw_vma *a, kw_vma *b) noexcept nogil:
    """Could a and b, b right after a, become one vma by mprotect? Then they had better share their anon_vma."""
    return (a.end == b.start and a.backing == b.backing and a.policy == b.policy and b.pgoff == a.pgoff + ((a.end - a.start) >> 12)
            and ((a.flags ^ b.flags) & ~<uint64_t>(VM_READ | VM_WRITE | VM_EXEC)) == 0)


cdef void anon_vma_prepare(kw_world *w, kw_vma *v) noexcept nogil:
    cdef kw_vma *n
    if v.anon_vma:
        return
    if v.next:
        n = &w.vmas[v.next]
        if n.anon_vma and not anon_forked(w, n) and anon_vma_near(v, n):
            anon_share(w, v, n)
            return
    if v.prev:
        n = &w.vmas[v.prev]
        if n.anon_vma and not anon_forked(w, n) and anon_vma_near(n, v):
            anon_share(w, v, n)
            return
    anon_new(w, v)


# ------------------------------------------------------------------ khugepaged

cdef bint for_khugepaged(kw_world *w, const kw_vma *v, uint64_t flags) noexcept nogil:
    if v.backing or v.anon_vma == 0 or flags & (VM_NOHUGEPAGE | VM_PFNMAP | VM_IO | VM_MIXEDMAP | VM_DONTEXPAND):
        return False
    return w.ctl.thp == THP_ALWAYS or w.ctl.thp == THP_MADVISE and flags & VM_HUGEPAGE


cdef void khuge_know(kw_world *w, const kw_vma *v, uint64_t flags) noexcept nogil:
    cdef kw_mm *m = &w.mms[v.mm]
    if m.khuge or m.flags & MM_THP_DISABLED or not for_khugepaged(w, v, flags):
        return
    if ((v.start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE > v.end:
        return
    w.ctl.khuges += 1
    m.khuge = <int32_t>w.ctl.khuges


cdef void khuge_prepare(kw_world *w, kw_vma *v) noexcept nogil:
    anon_vma_prepare(w, v)
    khuge_know(w, v, v.flags)
