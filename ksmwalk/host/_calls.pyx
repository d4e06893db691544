"""Address spaces, compiled: the vma lists with their splitting and merging, and the system calls on them.

The contract of every function stands in `_vma.pxd`; what Python calls is in `_host.pyx`.
"""
from libc.string cimport memset

from ksmwalk._core cimport *
from ksmwalk.memory._fault cimport *
from ksmwalk.memory._frames cimport *
from ksmwalk.memory._leaves cimport *
from ksmwalk.ksm._cursor cimport slot_exit, slot_insert

cdef enum:
    MAX_MAP_COUNT = 65530    # sysctl vm.max_map_count
    VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
    VM_ACCESS = VM_READ | VM_WRITE | VM_EXEC
    COPIED = VM_PFNMAP | VM_MIXEDMAP | VM_UFFD_WP | VM_MAYBE_GUARD   # by fork, pages or none


# ------------------------------------------------------------------ records

cdef inline int64_t rows_left(kw_world *w) noexcept nogil:
    return w.ctl.rows_cap - 1 - w.ctl.rows_live


cdef int32_t mm_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int32_t mm = w.mms[0].vma_first, next, prev = 0
    cdef kw_mm *m
    # Those that have exited wait on a list of their own until ksmd has cleaned their slots.
    while mm:
        next = w.mms[mm].vma_first
        if w.mms[mm].flags & MM_HAS_SLOT:
            prev = mm
        else:
            w.mms[prev].vma_first = next
            mm_free(w, mm)
        mm = next
    if rows_left(w) < 1:
        return KW_ENOROWS
    if c.mms_free:
        mm = <int32_t>c.mms_free
        c.mms_free = w.mms[mm].vma_first
    else:
        if c.mms_used >= c.mms_cap:
            return KW_NONE
        mm = <int32_t>c.mms_used
        c.mms_used += 1
    m = &w.mms[mm]
    # The epoch goes on where the last user of the record left it: nobody may take the one for the other.
    mm_changed(w, mm, 1)
    m.flags = MM_USED
    m.vma_first = m.slot_next = m.slot_prev = m.rmap_list = m.nr_vmas = 0
    m.nr_rmap_items = m.nr_merging = m.nr_zero = m.reserved = m.length = 0
    m.root = row_alloc(w)
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


cdef void backing_put(kw_world *w, int32_t backing) noexcept nogil:
    """One vma less maps the object; an unnamed one goes with its last."""
    if backing == 0:
        return
    w.mms[backing].reserved -= 1
    if w.mms[backing].reserved == 0:
        backing_clear(w, backing, w.mms[backing].root, <int>w.ctl.levels)
        drop_tables(w, backing)
        mm_free(w, backing)


cdef void backing_clear(kw_world *w, int32_t backing, int64_t row, int level) noexcept nogil:
    cdef uint64_t e
    cdef int i
    for i in range(512):
        e = w.rows[row * 512 + i]
        if e == 0:
            continue
        if level == 1 or entry_leaf(e, level):
            w.rows[row * 512 + i] = 0
            folio_put(w, <int64_t>entry_pfn(e, level))
        else:
            backing_clear(w, backing, <int64_t>entry_pfn(e, level), level - 1)


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
    memset(&w.vmas[v], 0, sizeof(kw_vma))
    c.vma_serial += 1
    w.vmas[v].reserved = c.vma_serial << 1
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
    mm_changed(w, mm, 1)
    if w.cursor.vma == v:
        w.cursor.vma = 0
    memset(&w.vmas[v], 0, sizeof(kw_vma))
    w.vmas[v].next = <int32_t>w.ctl.vmas_free
    w.ctl.vmas_free = v
    backing_put(w, backing)


cdef int vmas_left(kw_world *w, int n) noexcept nogil:
    """Are n records to be had? The free list is only looked along as far as needed."""
    cdef int64_t v = w.ctl.vmas_free
    n -= <int>min(n, w.ctl.vmas_cap - w.ctl.vmas_used)
    while n > 0 and v:
        n -= 1
        v = w.vmas[v].next
    return n <= 0


cdef int32_t vma_split(kw_world *w, int32_t v, uint64_t addr) noexcept nogil:
    """Cut v at addr: the upper part is a new record, whose index is returned. No huge leaf lies across the cut."""
    cdef uint64_t *pmd = pmd_find(w, w.mms[w.vmas[v].mm].root, addr) if addr & (KW_PMD_SIZE - 1) else NULL
    cdef int32_t new
    cdef int64_t serial
    if pmd != NULL and pmd_split(w, w.vmas[v].mm, addr, pmd) < 0:
        return KW_ENOROWS
    new = vma_alloc(w, w.vmas[v].mm)
    if new < 0:
        return new
    serial = w.vmas[new].reserved
    w.vmas[new] = w.vmas[v]
    w.vmas[new].reserved = serial | (w.vmas[v].reserved & 1)
    w.vmas[new].start = addr
    w.vmas[new].pgoff += (addr - w.vmas[v].start) >> 12
    w.vmas[v].end = addr
    if w.vmas[v].backing:
        w.mms[w.vmas[v].backing].reserved += 1
    vma_link(w, new, v)
    return new


cdef bint vma_join(kw_world *w, int32_t a, int32_t b) noexcept nogil:
    """Make one of two neighbours if they are alike in all but place: b goes into a."""
    cdef kw_vma *p = &w.vmas[a]
    cdef kw_vma *q = &w.vmas[b]
    if a == 0 or b == 0 or p.end != q.start or (p.flags ^ q.flags) & ~<uint64_t>VM_MAYBE_GUARD or p.flags & VM_SPECIAL:
        return False
    if p.backing != q.backing or q.pgoff != p.pgoff + ((p.end - p.start) >> 12):
        return False
    if p.anon_vma != q.anon_vma:
        # One without anonymous pages may join one that has some, unless those may still be shared with a parent.
        if p.anon_vma and q.anon_vma or (p if p.anon_vma else q).reserved & 1:
            return False
        if q.anon_vma:
            p.anon_vma = q.anon_vma
    p.end = q.end
    p.flags |= q.flags & VM_MAYBE_GUARD
    vma_free(w, b)
    return True


cdef int32_t join_around(kw_world *w, int32_t v) noexcept nogil:
    """Join v with its neighbours where they allow it; the record that holds its range now."""
    cdef int32_t prev = w.vmas[v].prev
    if vma_join(w, prev, v):
        v = prev
    vma_join(w, v, w.vmas[v].next)
    return v


cdef int32_t set_flags(kw_world *w, int32_t v, uint64_t start, uint64_t end, uint64_t flags) noexcept nogil:
    """Give [start, end) of v other flags: cut at its ends, joined with what is alike. The record that holds it."""
    cdef int need = (start > w.vmas[v].start) + (end < w.vmas[v].end)
    if w.vmas[v].flags == flags:
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
    touched(w, w.vmas[v].mm)    # pages may have become, or ceased to be, mergeable
    return join_around(w, v)


# ------------------------------------------------------------------ mmap, munmap

cdef int32_t sys_mmap(kw_world *w, int32_t mm, uint64_t start, uint64_t length, uint64_t flags, int32_t backing,
                      uint64_t pgoff, int shift) noexcept nogil:
    """Map [start, start + length), where nothing is mapped."""
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
    w.vmas[v].end = start + length
    w.vmas[v].flags = flags
    w.vmas[v].backing = backing
    w.vmas[v].pgoff = pgoff
    w.vmas[v].page_shift = shift
    if backing:
        w.mms[backing].reserved += 1
    vma_link(w, v, prev)
    mm_changed(w, mm, 1)
    return join_around(w, v)


cdef int32_t last_vma(kw_world *w, int32_t mm) noexcept nogil:
    cdef int32_t v = <int32_t>w.mms[mm].length
    if v <= 0 or v >= w.ctl.vmas_used or w.vmas[v].mm != mm:
        v = w.mms[mm].vma_first
    while v and w.vmas[v].next:
        v = w.vmas[v].next
    return v


cdef int sys_munmap(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, start), next, prev
    cdef int need
    cdef uint64_t floor, ceiling
    if v == 0 or w.vmas[v].start >= end:
        return 0
    need = w.vmas[v].start < start
    if need and w.vmas[v].end > end and w.mms[mm].nr_vmas >= MAX_MAP_COUNT:
        return -ENOMEM
    if not vmas_left(w, 2):
        return KW_ENOVMAS
    if rows_left(w) < 2:
        return KW_ENOROWS     # a huge page that sticks out needs a table at either end
    next = vma_find_from(w, mm, end - 1)
    if next and w.vmas[next].start < end and w.vmas[next].page_shift > 12 and end & (KW_PMD_SIZE - 1):
        return -EINVAL
    if need:
        if w.vmas[v].page_shift > 12 and start & (KW_PMD_SIZE - 1):
            return -EINVAL
        v = vma_split(w, v, start)
    prev = w.vmas[v].prev
    while v and w.vmas[v].start < end:
        if w.vmas[v].end > end:
            vma_split(w, v, end)
        next = w.vmas[v].next
        zap_range(w, mm, w.vmas[v].start, w.vmas[v].end)
        vma_free(w, v)
        v = next
    floor = w.vmas[prev].end if prev else 0
    ceiling = w.vmas[v].start if v else ~<uint64_t>0
    free_tables(w, mm, start, end, floor, ceiling)
    return 0


# ------------------------------------------------------------------ mprotect, madvise, mlock, userfaultfd

cdef int sys_mprotect(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t prot) noexcept nogil:
    cdef int32_t v = vma_find(w, mm, start)
    cdef uint64_t flags, stop
    cdef int rc, code = 0
    cdef bint fill
    while start < end:
        if v == 0 or w.vmas[v].start > start:
            return -ENOMEM
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].page_shift > 12 and (start | stop) & (KW_PMD_SIZE - 1):
            return -EINVAL
        flags = (w.vmas[v].flags & ~<uint64_t>VM_ACCESS) | prot
        # A private area that may be written to counts against the memory that can be promised; once it has
        # pages it goes on doing so when it may not be written to any more.
        if flags != w.vmas[v].flags:
            if not prot & VM_WRITE:
                if not w.vmas[v].backing and not w.vmas[v].anon_vma:
                    flags &= ~<uint64_t>VM_ACCOUNT
            elif not flags & (VM_ACCOUNT | VM_HUGETLB | VM_SHARED | VM_NORESERVE) and not w.vmas[v].flags & VM_WRITE:
                flags |= VM_ACCOUNT
            # Locked memory that could not be written to before gets its private pages now.
            fill = (w.vmas[v].flags & (VM_WRITE | VM_SHARED | VM_LOCKED)) == VM_LOCKED and flags & VM_WRITE
            v = set_flags(w, v, start, stop, flags)
            if v < 0:
                return v
            rc = protect_range(w, mm, &w.vmas[v], start, stop)
            if rc < 0:
                return rc
            if fill:
                write_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, FAULT_KEEP, &code)
                if code < 0 and code != KW_EFAULT:
                    return code
        start = stop
        v = vma_find_from(w, mm, start)
    return 0


cdef enum:
    MADV_NORMAL = 0
    MADV_RANDOM = 1
    MADV_SEQUENTIAL = 2
    MADV_WILLNEED = 3
    MADV_DONTNEED = 4
    MADV_FREE = 8
    MADV_DONTFORK = 10
    MADV_DOFORK = 11
    MADV_MERGEABLE = 12
    MADV_UNMERGEABLE = 13
    MADV_HUGEPAGE = 14
    MADV_NOHUGEPAGE = 15
    MADV_DONTDUMP = 16
    MADV_DODUMP = 17
    MADV_WIPEONFORK = 18
    MADV_KEEPONFORK = 19
    MADV_COLD = 20
    MADV_PAGEOUT = 21
    MADV_POPULATE_READ = 22
    MADV_POPULATE_WRITE = 23
    MADV_DONTNEED_LOCKED = 24
    MADV_COLLAPSE = 25
    MADV_GUARD_INSTALL = 102
    MADV_GUARD_REMOVE = 103


cdef int64_t advised_flags(kw_world *w, kw_vma *v, int advice, uint64_t *flags) noexcept nogil:
    """The flags that an advice about the future leaves; -EINVAL where it makes no sense."""
    cdef uint64_t f = v.flags
    if advice == MADV_NORMAL:
        f &= ~<uint64_t>(VM_RAND_READ | VM_SEQ_READ)
    elif advice == MADV_RANDOM:
        f = (f & ~<uint64_t>VM_SEQ_READ) | VM_RAND_READ
    elif advice == MADV_SEQUENTIAL:
        f = (f & ~<uint64_t>VM_RAND_READ) | VM_SEQ_READ
    elif advice == MADV_DONTFORK:
        f |= VM_DONTCOPY
    elif advice == MADV_DOFORK:
        if f & VM_SPECIAL:
            return -EINVAL
        f &= ~<uint64_t>VM_DONTCOPY
    elif advice == MADV_DONTDUMP:
        f |= VM_DONTDUMP
    elif advice == MADV_DODUMP:
        if (f & VM_SPECIAL and not f & VM_HUGETLB) or f & VM_DROPPABLE:
            return -EINVAL
        f &= ~<uint64_t>VM_DONTDUMP
    elif advice == MADV_WIPEONFORK:
        if v.backing or f & VM_SHARED:
            return -EINVAL
        f |= VM_WIPEONFORK
    elif advice == MADV_KEEPONFORK:
        if f & VM_DROPPABLE:
            return -EINVAL
        f &= ~<uint64_t>VM_WIPEONFORK
    elif advice == MADV_HUGEPAGE or advice == MADV_NOHUGEPAGE:
        if f & (VM_SPECIAL | VM_HUGETLB):
            return -EINVAL
        f &= ~<uint64_t>(VM_HUGEPAGE | VM_NOHUGEPAGE)
        f |= VM_HUGEPAGE if advice == MADV_HUGEPAGE else VM_NOHUGEPAGE
    else:
        return -EINVAL
    flags[0] = f
    return 0


cdef int advise_vma(kw_world *w, int32_t mm, int32_t v, uint64_t start, uint64_t end, int advice) noexcept nogil:
    cdef kw_vma *p = &w.vmas[v]
    cdef uint64_t flags = p.flags
    cdef int rc
    if p.page_shift > 12 and (start | end) & (KW_PMD_SIZE - 1):
        return -EINVAL
    if advice == MADV_MERGEABLE:
        if flags & VM_MERGEABLE or not vma_compatible(flags):
            return 0
        slot_insert(w, mm)
        return min(0, set_flags(w, v, start, end, flags | VM_MERGEABLE))
    if advice == MADV_UNMERGEABLE:
        if not flags & VM_MERGEABLE:
            return 0
        if p.anon_vma:
            rc = unmerge_range(w, mm, start, end, w.cursor.strategy)
            if rc < 0:
                return rc
        return min(0, set_flags(w, v, start, end, flags & ~VM_MERGEABLE))
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED:
        if flags & VM_PFNMAP or flags & VM_LOCKED and advice == MADV_DONTNEED:
            return -EINVAL
        return discard_range(w, mm, start, end)
    if advice == MADV_FREE:
        if p.backing or flags & (VM_SPECIAL | VM_HUGETLB | VM_LOCKED):
            return -EINVAL
        return clean_range(w, mm, start, end)
    if advice == MADV_WILLNEED:
        return 0
    if advice == MADV_COLD or advice == MADV_PAGEOUT:
        return -EINVAL if flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB) else 0
    if advice == MADV_GUARD_INSTALL or advice == MADV_GUARD_REMOVE:
        if flags & (VM_SPECIAL | VM_HUGETLB) or flags & VM_LOCKED and advice == MADV_GUARD_INSTALL:
            return -EINVAL
        if advice == MADV_GUARD_INSTALL:
            p.flags |= VM_MAYBE_GUARD
            if not p.backing:
                anon_vma_prepare(w, p)
        return guard_range(w, mm, start, end, advice == MADV_GUARD_INSTALL)
    rc = <int>advised_flags(w, p, advice, &flags)
    if rc < 0:
        return rc
    return min(0, set_flags(w, v, start, end, flags))


cdef int sys_collapse(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil:
    """The huge pages that lie wholly in [start, end) of v. One that can't be had at all ends it; one whose pages are
    busy just now is passed over."""
    cdef uint64_t addr = (start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
    cdef uint64_t first = (v.start + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
    cdef int rc, last = 0
    end &= ~(KW_PMD_SIZE - 1)
    if first + KW_PMD_SIZE > v.end or v.flags & VM_NOHUGEPAGE or w.mms[mm].flags & MM_THP_DISABLED:
        return -EINVAL
    if not v.backing and v.anon_vma == 0 or addr > end:
        return -EINVAL
    while addr < end:
        rc = collapse(w, mm, v, addr)
        if rc < 0 and rc != -EAGAIN:
            return rc
        if rc < 0:
            last = rc
        addr += KW_PMD_SIZE
    return last


cdef int sys_populate(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint write) noexcept nogil:
    cdef int code = 0
    cdef int32_t v = vma_find(w, mm, start)
    cdef uint64_t stop
    while start < end:
        if v == 0 or w.vmas[v].start > start:
            return -ENOMEM
        if w.vmas[v].flags & (VM_PFNMAP | VM_IO):
            return -EINVAL
        if not w.vmas[v].flags & (VM_WRITE if write else VM_ACCESS):
            return -EINVAL
        stop = min(end, w.vmas[v].end)
        if write:
            write_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, FAULT_KEEP, &code)
        else:
            read_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, &code)
        if code < 0:
            return code
        start = stop
        v = vma_find_from(w, mm, start)
    return 0


cdef int sys_madvise(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int advice) noexcept nogil:
    """Holes are passed over, what is there is done, and the holes are told of at the end."""
    cdef int hole = 0, rc
    cdef int32_t v
    cdef uint64_t stop
    if advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE:
        return sys_populate(w, mm, start, end, advice == MADV_POPULATE_WRITE)
    while start < end:
        v = vma_find_from(w, mm, start)
        if v == 0 or w.vmas[v].start >= end:
            return -ENOMEM
        if start < w.vmas[v].start:
            hole = -ENOMEM
            start = w.vmas[v].start
        stop = min(end, w.vmas[v].end)
        if advice == MADV_COLLAPSE:
            rc = sys_collapse(w, mm, &w.vmas[v], start, stop)
        else:
            rc = advise_vma(w, mm, v, start, stop, advice)
        if rc < 0:
            return rc
        start = stop
    return hole


cdef int sys_mlock(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    cdef int32_t v
    cdef uint64_t at = start, stop, flags
    cdef int code = 0
    while at < end:
        v = vma_find(w, mm, at)
        if v == 0:
            return -ENOMEM
        stop = min(end, w.vmas[v].end)
        flags = w.vmas[v].flags
        if not flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE):
            v = set_flags(w, v, at, stop, flags | VM_LOCKED if on else flags & ~<uint64_t>VM_LOCKED)
            if v < 0:
                return v
        at = stop
    # Locking brings everything in that can be had; what can't is told of like a hole.
    while on and start < end:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].flags & VM_LOCKED:
            if not w.vmas[v].flags & VM_ACCESS:
                return -ENOMEM
            if (w.vmas[v].flags & (VM_WRITE | VM_SHARED)) == VM_WRITE:
                write_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, FAULT_KEEP, &code)
            else:
                read_range(w, mm, start, <int64_t>((stop - start) >> 12), NULL, 0, &code)
            if code < 0:
                return -ENOMEM if code == KW_EFAULT else code
        start = stop
    return 0


cdef int sys_uffd_wp(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    """Register [start, end) with one userfaultfd of the mm (flag) and write-protect what is present."""
    cdef int32_t v
    cdef uint64_t at = start, stop, flags
    cdef int rc
    while at < end:
        v = vma_find(w, mm, at)
        if v == 0:
            return -EINVAL
        at = w.vmas[v].end
    while start < end:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        flags = w.vmas[v].flags & ~<uint64_t>VM_UFFD_WP
        v = set_flags(w, v, start, stop, flags | VM_UFFD_WP if on else flags)
        if v < 0:
            return v
        rc = wp_range(w, mm, start, stop, on)
        if rc < 0:
            return rc
        start = stop
    return 0


# ------------------------------------------------------------------ mremap

cdef int move_vma(kw_world *w, int32_t mm, uint64_t old, uint64_t old_len, uint64_t new,
                  uint64_t new_len) noexcept nogil:
    """Move [old, old + old_len), inside one vma, to the free place at new, there new_len long."""
    cdef int32_t v = vma_find(w, mm, old), moved, prev
    cdef uint64_t flags = w.vmas[v].flags, pgoff = w.vmas[v].pgoff + ((old - w.vmas[v].start) >> 12)
    cdef int32_t backing = w.vmas[v].backing, anon = w.vmas[v].anon_vma
    cdef int64_t forked = w.vmas[v].reserved & 1
    cdef int rc
    if w.mms[mm].nr_vmas >= MAX_MAP_COUNT - 3:
        return -ENOMEM
    if not vmas_left(w, 3):
        return KW_ENOVMAS
    # KSM pages don't move: they are broken first, whatever becomes of their rmap_items.
    if flags & VM_MERGEABLE and anon:
        rc = unmerge_range(w, mm, old, old + old_len, w.cursor.strategy)
        if rc < 0:
            return rc
    if backing == 0 and anon == 0:
        pgoff = new >> 12     # an area without pages yet is as if newly mapped there
    prev = vma_find_from(w, mm, new)
    prev = w.vmas[prev].prev if prev else last_vma(w, mm)
    moved = vma_alloc(w, mm)
    w.vmas[moved].start = new
    w.vmas[moved].end = new + new_len
    w.vmas[moved].flags = flags
    w.vmas[moved].backing = backing
    w.vmas[moved].pgoff = pgoff
    w.vmas[moved].anon_vma = anon
    w.vmas[moved].page_shift = w.vmas[v].page_shift
    w.vmas[moved].reserved |= forked
    if backing:
        w.mms[backing].reserved += 1
    vma_link(w, moved, prev)
    rc = move_range(w, mm, old, new, old_len)
    if rc < 0:
        move_range(w, mm, new, old, old_len)
        sys_munmap(w, mm, new, new + new_len)
        return rc
    join_around(w, moved)
    return sys_munmap(w, mm, old, old + old_len)


cdef int vma_expand(kw_world *w, int32_t v, uint64_t length) noexcept nogil:
    """Grow v at its end, where nothing is mapped."""
    cdef uint64_t start = w.vmas[v].end
    w.vmas[v].end += length
    mm_changed(w, w.vmas[v].mm, 1)
    if w.vmas[v].next:
        vma_join(w, v, w.vmas[v].next)
    if w.vmas[v].flags & VM_LOCKED:
        return sys_mlock(w, w.vmas[v].mm, start, start + length, True)
    return 0


# ------------------------------------------------------------------ fork, exit, prctl

cdef void mm_clear(kw_world *w, int32_t mm) noexcept nogil:
    """Everything an mm maps goes, and all of its tables."""
    cdef int32_t v = w.mms[mm].vma_first
    while v:
        zap_range(w, mm, w.vmas[v].start, w.vmas[v].end)
        vma_free(w, v)
        v = w.mms[mm].vma_first
    drop_tables(w, mm)


cdef int32_t sys_fork(kw_world *w, int32_t parent) noexcept nogil:
    cdef int32_t child, v, c, last = 0
    cdef kw_vma *p
    cdef kw_vma *q
    cdef int64_t serial
    cdef int rc
    if not vmas_left(w, w.mms[parent].nr_vmas):
        return KW_ENOVMAS
    child = mm_alloc(w)
    if child < 0:
        return child
    w.mms[child].flags |= w.mms[parent].flags & (MM_MERGE_ANY | MM_THP_DISABLED)
    w.mms[child].reserved = w.mms[parent].reserved
    v = w.mms[parent].vma_first
    while v:
        p = &w.vmas[v]
        if not p.flags & VM_DONTCOPY:
            c = vma_alloc(w, child)
            q = &w.vmas[c]
            serial = q.reserved
            q[0] = p[0]
            q.reserved = serial
            q.mm = child
            q.flags &= ~<uint64_t>(VM_LOCKED | VM_UFFD_WP)
            q.anon_vma = 0
            if q.backing:
                w.mms[q.backing].reserved += 1
            vma_link(w, c, last)
            last = c
            if p.anon_vma and not p.flags & VM_WIPEONFORK:
                w.ctl.anon_vmas += 1
                q.anon_vma = <int32_t>w.ctl.anon_vmas
                q.reserved |= 1
            # Tables are copied only where a fault could not bring the pages back.
            if q.anon_vma or p.flags & COPIED and not p.flags & VM_WIPEONFORK:
                rc = copy_range(w, parent, child, p.start, p.end, not p.flags & VM_SHARED)
                if rc < 0:
                    mm_clear(w, child)
                    mm_free(w, child)
                    return rc
        v = p.next
    w.mms[child].nr_zero = w.mms[parent].nr_zero
    if w.mms[parent].flags & MM_HAS_SLOT:
        # The parent's count, whatever of it was copied (fact 37).
        w.ksm.zero_pages += w.mms[parent].nr_zero
        slot_insert(w, child)
    return child


cdef void sys_exit(kw_world *w, int32_t mm) noexcept nogil:
    slot_exit(w, mm)
    mm_clear(w, mm)
    mm_changed(w, mm, 1)
    if w.mms[mm].flags & MM_HAS_SLOT:
        w.mms[mm].vma_first = w.mms[0].vma_first
        w.mms[0].vma_first = mm
    else:
        mm_free(w, mm)


cdef int32_t sys_exec(kw_world *w, int32_t mm) noexcept nogil:
    cdef int32_t new = mm_alloc(w)
    if new < 0:
        return new
    w.mms[new].reserved = w.mms[mm].reserved
    w.mms[new].flags |= w.mms[mm].flags & (MM_MERGE_ANY | MM_THP_DISABLED)
    if w.mms[mm].flags & MM_MERGE_ANY:
        slot_insert(w, new)     # the new one enters first, then the old one exits
    sys_exit(w, mm)
    return new


cdef int sys_prctl_merge(kw_world *w, int32_t mm, bint on) noexcept nogil:
    cdef int32_t v = w.mms[mm].vma_first
    cdef int rc
    if on == (w.mms[mm].flags & MM_MERGE_ANY != 0):
        return 0
    if on:
        slot_insert(w, mm)
        w.mms[mm].flags |= MM_MERGE_ANY
        while v:
            if vma_compatible(w.vmas[v].flags):
                w.vmas[v].flags |= VM_MERGEABLE
            v = w.vmas[v].next
        return 0
    # Areas that madvise marked are unmerged as well. None are joined here, as none were.
    rc = unmerge_mm(w, mm, w.cursor.strategy)
    if rc < 0:
        return rc
    while v:
        w.vmas[v].flags &= ~VM_MERGEABLE
        v = w.vmas[v].next
    touched(w, mm)
    w.mms[mm].flags &= ~<uint32_t>MM_MERGE_ANY
    return 0
