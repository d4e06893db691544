"""System calls on address spaces, compiled: mmap, munmap, mprotect, mremap, fork, exec, exit, prctl.

The contract of every function stands in `_calls.pxd`; what Python calls is in `_doors.pyx`.
"""
from libc.errno cimport EFAULT, EINVAL, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ksmwalk._core cimport level_size, rows_left, tables_sound
from ksmwalk.memory._frames cimport lru_drain_cpu
from ksmwalk.memory._leaves cimport (
    copy_range, free_tables, mlock_range, move_range, protect_range, touched, wp_range, zap_range,
)
from ksmwalk.memory._anon cimport anon_fork, anon_leave, anon_relink, anon_share
from ksmwalk.memory._areas cimport (
    MAX_MAP_COUNT, VM_ACCESS, VM_WATCHED, drop_tables, find_place, join_around, khuge_know, last_vma, leaf_split_at,
    mm_alloc, mm_free, set_flags, user_end, vma_alloc, vma_compatible, vma_find, vma_find_from, vma_free, vma_link, vma_make,
    vma_split, vmas_left,
)
from ksmwalk.memory._swap cimport mm_off_list
from ksmwalk.ksm._items cimport slot_exit, slot_insert
from ksmwalk.ksm._unmerge cimport unmerge_mm, unmerge_range, unmerging
from ksmwalk.host._locks cimport bring_in, pages_stay_locked
from ksmwalk.layout._layout cimport *


cdef enum:
    COPIED = VM_PFNMAP | VM_MIXEDMAP | VM_MAYBE_GUARD    # by fork, pages or none


# ------------------------------------------------------------------ mmap, munmap, mprotect

cdef int32_t sys_mmap(kw_world *w, int32_t mm, uint64_t start, uint64_t length, uint64_t flags, int32_t backing,
                      uint64_t pgoff, int shift) noexcept nogil:
    """Map [start, start + length), where nothing is mapped."""
    cdef int32_t v = vma_make(w, mm, start, start + length, flags, pgoff)
    if v < 0:
        return v
    w.vmas[v].backing = backing
    w.vmas[v].page_shift = shift
    if backing:
        w.mms[backing].users += 1
    return join_around(w, v)


cdef void zap_area(kw_world *w, int32_t mm, int32_t v) noexcept nogil:
    """All pages of an area go."""
    if w.vmas[v].flags & VM_LOCKED:
        mlock_range(w, mm, w.vmas[v].start, w.vmas[v].end)
    zap_range(w, mm, w.vmas[v].start, w.vmas[v].end)


cdef int sys_munmap(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, start), next, prev
    cdef int need, rc
    cdef uint64_t floor, ceiling
    if v == 0 or w.vmas[v].start >= end:
        return 0
    rc = tables_sound(w, mm, start, end)
    if rc < 0:
        return rc
    need = w.vmas[v].start < start
    if need and w.vmas[v].end > end and w.mms[mm].nr_vmas >= MAX_MAP_COUNT:
        return -ENOMEM
    next = vma_find_from(w, mm, end - 1)
    if need or (next and w.vmas[next].start < end and w.vmas[next].end > end):
        # Whole areas can go from a full Host; one that is cut needs a record, its huge pages a table at either end.
        if not vmas_left(w, 2):
            return KW_ENOVMAS
        if rows_left(w) < 2:
            return KW_ENOROWS
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
        zap_area(w, mm, v)
        vma_free(w, v)
        v = next
    floor = w.vmas[prev].end if prev else 0
    ceiling = w.vmas[v].start if v else ~<uint64_t>0
    free_tables(w, mm, start, end, floor, ceiling)
    return 0


cdef int sys_mprotect(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t prot) noexcept nogil:
    cdef int32_t v = vma_find(w, mm, start)
    cdef uint64_t flags, stop
    cdef int rc
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
                rc = bring_in(w, mm, start, stop, True)
                if rc < 0 and rc != -ENOMEM:
                    return rc
        start = stop
        v = vma_find_from(w, mm, start)
    return 0


# ------------------------------------------------------------------ mremap

cdef int leave_empty(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    """What MREMAP_DONTUNMAP leaves: the area with its marks, no more locked, also what stays of it (but its pages are), and
    as if it never had pages where all of it went."""
    cdef int32_t v = vma_find(w, mm, start)
    cdef uint64_t unlocked = w.vmas[v].flags & ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT)
    if w.ctl.kernel & SWITCH_REST_STAYS_LOCKED:
        v = set_flags(w, v, start, end, unlocked)
        if v < 0:
            return v
    elif w.vmas[v].flags & VM_LOCKED:
        pages_stay_locked(w, mm, w.vmas[v].start, w.vmas[v].end)
        w.vmas[v].flags = unlocked
    if w.vmas[v].start == start and w.vmas[v].end == end and not w.ctl.kernel & SWITCH_OLD_CALLS:
        anon_leave(w, &w.vmas[v])
    return 0


cdef inline bint free_before(kw_world *w, int32_t v) noexcept nogil:
    """Is nothing mapped between the multiple of 2 MiB below an area and the area?"""
    return w.vmas[v].prev == 0 or w.vmas[w.vmas[v].prev].end <= w.vmas[v].start & ~(KW_PMD_SIZE - 1)


cdef int move_vma(kw_world *w, int32_t mm, uint64_t old, uint64_t old_len, uint64_t new, uint64_t new_len,
                  bint keep) noexcept nogil:
    """Move [old, old + old_len), inside one vma, to the free place at new, there new_len long; keep: the area stays."""
    cdef int32_t v = vma_find(w, mm, old), moved, prev
    cdef uint64_t flags = w.vmas[v].flags, pgoff = w.vmas[v].pgoff + ((old - w.vmas[v].start) >> 12)
    cdef int32_t backing = w.vmas[v].backing, anon = w.vmas[v].anon_vma
    cdef int rc
    cdef bint tables, down
    if w.mms[mm].nr_vmas >= MAX_MAP_COUNT - 3:
        return -ENOMEM
    if not vmas_left(w, 5):
        return KW_ENOVMAS
    if keep and (leaf_split_at(w, v, old) < 0 or leaf_split_at(w, v, old + old_len) < 0):
        return KW_ENOROWS
    # KSM pages don't move: they are broken first, whatever becomes of their rmap_items.
    if flags & VM_MERGEABLE and anon:
        rc = unmerge_range(w, mm, old, old + old_len, unmerging(w), w.mms[mm].cpu)
        if rc < 0:
            return rc
    if backing == 0 and anon == 0:
        pgoff = new >> 12     # an area without pages yet is as if newly mapped there
    prev = vma_find_from(w, mm, new)
    prev = w.vmas[prev].prev if prev else last_vma(w, mm)
    moved = vma_alloc(w, mm)
    w.vmas[moved].policy = w.vmas[v].policy
    w.vmas[moved].start = new
    w.vmas[moved].end = new + new_len
    w.vmas[moved].flags = flags & ~<uint64_t>VM_WATCHED     # no userfaultfd watches the new place
    w.vmas[moved].backing = backing
    w.vmas[moved].pgoff = pgoff
    anon_share(w, &w.vmas[moved], &w.vmas[v])
    w.vmas[moved].page_shift = w.vmas[v].page_shift
    if backing:
        w.mms[backing].users += 1
    vma_link(w, moved, prev)
    tables = not flags & VM_WATCHED
    down = w.vmas[v].start == old and free_before(w, v) and free_before(w, moved)
    rc = move_range(w, mm, old, new, old_len, tables, down)
    if rc < 0:
        move_range(w, mm, new, old, old_len, tables, down)
        sys_munmap(w, mm, new, new + new_len)
        return rc
    if flags & VM_UFFD_WP:
        rc = wp_range(w, mm, new, new + old_len, False)
        if rc < 0:
            return rc
    join_around(w, moved)
    if not keep:
        return sys_munmap(w, mm, old, old + old_len)
    return leave_empty(w, mm, old, old + old_len)


cdef int locked_more(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    """A locked area has grown by this: what can be had of it is brought in."""
    cdef int rc = bring_in(w, mm, start, end, True)
    return 0 if rc == -ENOMEM else rc


cdef int vma_expand(kw_world *w, int32_t v, uint64_t length) noexcept nogil:
    """Grow v at its end, where nothing is mapped."""
    cdef uint64_t start = w.vmas[v].end
    w.vmas[v].end += length
    anon_relink(w, &w.vmas[v])
    touched(w, w.vmas[v].mm)
    v = join_around(w, v)
    khuge_know(w, &w.vmas[v], w.vmas[v].flags)
    if w.vmas[v].flags & VM_LOCKED:
        return locked_more(w, w.vmas[v].mm, start, start + length)
    return 0


cdef int64_t second_mapping(kw_world *w, int32_t mm, uint64_t addr, uint64_t new_len, uint64_t to) noexcept nogil:
    """Of shared memory, for old_len 0."""
    cdef kw_vma *v = &w.vmas[vma_find(w, mm, addr)]
    cdef int32_t made = sys_mmap(w, mm, to, new_len, v.flags, v.backing, v.pgoff + ((addr - v.start) >> 12), v.page_shift)
    return made if made < 0 else <int64_t>to


cdef inline uint64_t vma_end(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """End of the vma that contains addr, 0: there is none."""
    return w.vmas[vma_find(w, mm, addr)].end


cdef int64_t move_areas(kw_world *w, int32_t mm, uint64_t addr, uint64_t old_len, uint64_t to, uint64_t new_len,
                        bint keep) noexcept nogil:
    """Move what lies in [addr, addr + old_len), area by area; only a single area may grow. Gaps stay: where there is
    nothing to move, what is mapped at the new place stays too. One that userfaultfd watches moves by itself only."""
    cdef uint64_t at = addr, stop, length
    cdef bint several = vma_end(w, mm, addr) < addr + old_len
    cdef int32_t v
    cdef int rc
    while at < addr + old_len:
        v = vma_find_from(w, mm, at)
        if v == 0 or w.vmas[v].start >= addr + old_len:
            break
        if several and w.vmas[v].flags & VM_WATCHED:
            return -EFAULT
        at = max(at, w.vmas[v].start)
        stop = min(w.vmas[v].end, addr + old_len)
        length = new_len if new_len != old_len else stop - at
        rc = sys_munmap(w, mm, to + (at - addr), to + (at - addr) + length)
        if rc == 0:
            rc = move_vma(w, mm, at, stop - at, to + (at - addr), length, keep)
        if rc == 0 and new_len > old_len and w.vmas[vma_find(w, mm, to)].flags & VM_LOCKED:
            rc = locked_more(w, mm, to + old_len, to + new_len)
        if rc < 0:
            return rc
        at = stop
    return <int64_t>to


cdef uint64_t place_for(kw_world *w, int32_t mm, const kw_vma *v, uint64_t length) noexcept nogil:
    """Where mremap moves such an area if nobody says where; 0: there is no room."""
    return find_place(w, mm, length, KW_PMD_SIZE if not length & (KW_PMD_SIZE - 1) and not v.flags & VM_SHARED
                      and not v.backing else KW_PAGE_SIZE)


cdef int64_t resize(kw_world *w, int32_t mm, int32_t v, uint64_t addr, uint64_t old_len, uint64_t new_len, bint maymove,
                    uint64_t *to) noexcept nogil:
    """mremap without MREMAP_FIXED: done in place (the address), refused (-errno), or KW_NONE with the place to move to."""
    cdef kw_vma *p = &w.vmas[v]
    cdef bint inside = old_len <= p.end - addr
    cdef uint64_t more = new_len - old_len
    cdef int32_t next = p.next
    cdef int rc
    if 0 < new_len <= old_len:
        rc = sys_munmap(w, mm, addr + new_len, addr + old_len) if new_len < old_len else 0
        return rc if rc < 0 else <int64_t>addr
    if not inside:
        return -EFAULT
    if old_len and addr + old_len == p.end and more <= user_end(w) - p.end:
        if next == 0 or w.vmas[next].start >= p.end + more:
            rc = vma_expand(w, v, more)
            return rc if rc < 0 else <int64_t>addr
    if not maymove:
        return -ENOMEM
    to[0] = place_for(w, mm, p, new_len)
    return KW_NONE if to[0] else -ENOMEM


cdef int64_t sys_mremap(kw_world *w, int32_t mm, uint64_t addr, uint64_t old_len, uint64_t new_len, bint maymove,
                        bint fixed, uint64_t to, bint keep) noexcept nogil:
    cdef uint64_t top = user_end(w)
    cdef int32_t v
    cdef kw_vma *p
    cdef int64_t done
    cdef int rc = 0
    cdef bint one_only
    if addr & (KW_PAGE_SIZE - 1) or new_len == 0 or new_len > top:
        return -EINVAL
    if fixed:
        if not maymove or to & (KW_PAGE_SIZE - 1) or to > top - new_len:
            return -EINVAL
        if addr < to + new_len and (to < addr or to - addr < old_len):
            return -EINVAL
    if keep and (not maymove or old_len != new_len):
        return -EINVAL
    v = vma_find(w, mm, addr)
    if v == 0:
        if fixed and w.ctl.kernel & SWITCH_OLD_CALLS:
            rc = sys_munmap(w, mm, to, to + new_len)
        return rc if rc < 0 else -EFAULT
    p = &w.vmas[v]
    if keep and (p.flags & (VM_DONTEXPAND | VM_PFNMAP) or p.backing and w.ctl.kernel & SWITCH_OLD_CALLS):
        return -EINVAL
    if p.page_shift > 12:
        old_len = (old_len + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
        new_len = (new_len + KW_PMD_SIZE - 1) & ~(KW_PMD_SIZE - 1)
        if addr & (KW_PMD_SIZE - 1) or fixed and to & (KW_PMD_SIZE - 1) or new_len > old_len:
            return -EINVAL
    if old_len > top - addr and new_len < old_len:
        return -EINVAL
    if old_len == 0 and not p.flags & VM_SHARED:
        return -EINVAL
    if (old_len == 0 or new_len > old_len) and p.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EINVAL if old_len == 0 else -EFAULT
    if keep and not fixed:
        if old_len > p.end - addr:
            return -EFAULT
        to = place_for(w, mm, p, new_len)
        if to == 0:
            return -ENOMEM
    elif not fixed:
        done = resize(w, mm, v, addr, old_len, new_len, maymove, &to)
        if done != KW_NONE:
            return done
    else:
        one_only = w.ctl.kernel & SWITCH_MOVE_ONE_AREA != 0
        if old_len > p.end - addr and (new_len > old_len or new_len < old_len and new_len > p.end - addr) and not one_only:
            return -EFAULT
        if new_len != old_len or one_only:
            rc = sys_munmap(w, mm, to, to + new_len)
        if rc == 0 and new_len < old_len:
            rc = sys_munmap(w, mm, addr + new_len, addr + old_len)
            old_len = new_len
        if rc == 0 and one_only and old_len > vma_end(w, mm, addr) - addr:
            rc = -EFAULT     # what was to make room has gone by then
        if rc < 0:
            return rc
    if old_len == 0:
        return second_mapping(w, mm, addr, new_len, to)
    return move_areas(w, mm, addr, old_len, to, new_len, keep)


# ------------------------------------------------------------------ fork, exec, exit, prctl

cdef void mm_clear(kw_world *w, int32_t mm) noexcept nogil:
    """Everything an mm maps goes, and all of its tables."""
    cdef int32_t v = w.mms[mm].vma_first
    while v:
        zap_area(w, mm, v)
        vma_free(w, v)
        v = w.mms[mm].vma_first
    mm_off_list(w, mm)
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
    w.mms[child].nid = w.mms[parent].nid
    w.mms[child].domain = w.mms[parent].domain
    w.mms[child].cpu = w.mms[parent].cpu
    if w.mms[parent].khuge:
        w.ctl.khuges += 1
        w.mms[child].khuge = <int32_t>w.ctl.khuges
    w.mms[child].start_brk = w.mms[parent].start_brk
    w.mms[child].brk = w.mms[parent].brk
    v = w.mms[parent].vma_first
    while v:
        p = &w.vmas[v]
        if not p.flags & VM_DONTCOPY:
            c = vma_alloc(w, child)
            q = &w.vmas[c]
            serial = q.serial
            q[0] = p[0]
            q.serial = serial
            q.mm = child
            q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT | VM_WATCHED)
            q.watcher = 0
            q.anon_vma = q.anon_chain = 0
            q.linked = 0
            if q.backing:
                w.mms[q.backing].users += 1
            vma_link(w, c, last)
            last = c
            if p.anon_vma and not p.flags & VM_WIPEONFORK:
                anon_fork(w, p, q)
            # Tables are copied only where a fault could not bring the pages back.
            if q.anon_vma or p.flags & COPIED and not p.flags & VM_WIPEONFORK:
                rc = copy_range(w, parent, q, p.start, p.end, not p.flags & VM_SHARED)
                if rc < 0:
                    mm_clear(w, child)
                    mm_free(w, child)
                    return rc
        v = p.next
    w.mms[child].nr_zero = w.mms[parent].nr_zero
    if w.ctl.kernel & SWITCH_FORK_INHERITS:
        w.mms[child].nr_rmap_items = w.mms[parent].nr_rmap_items
        w.mms[child].nr_merging = w.mms[parent].nr_merging
    if w.mms[parent].flags & MM_HAS_SLOT:
        # The parent's count, whatever of it was copied.
        if not w.ctl.kernel & SWITCH_FORK_INHERITS:
            w.ksm.zero_pages += w.mms[parent].nr_zero
        slot_insert(w, child)
    return child


cdef int mm_sound(kw_world *w, int32_t mm) noexcept nogil:
    """Can all of its tables be followed? Asked before they go."""
    return tables_sound(w, mm, 0, level_size(<int>w.ctl.levels) * 512)


cdef int sys_exit(kw_world *w, int32_t mm) noexcept nogil:
    cdef int rc
    if w.mms[mm].tasks > 0:
        w.mms[mm].tasks -= 1     # its memory is the others' still
        return KW_OK
    rc = mm_sound(w, mm)
    if rc < 0:
        return rc
    slot_exit(w, mm)
    lru_drain_cpu(w, w.mms[mm].cpu)
    mm_clear(w, mm)
    touched(w, mm)
    if w.mms[mm].flags & MM_HAS_SLOT:
        w.mms[mm].vma_first = <int32_t>w.ctl.mms_exited
        w.ctl.mms_exited = mm
    else:
        mm_free(w, mm)
    return KW_OK


cdef int32_t sys_exec(kw_world *w, int32_t mm) noexcept nogil:
    cdef int rc = mm_sound(w, mm)
    cdef int32_t new
    if rc < 0:
        return rc
    new = mm_alloc(w)
    if new < 0:
        return new
    w.mms[new].nid = w.mms[mm].nid
    w.mms[new].domain = w.mms[mm].domain
    w.mms[new].cpu = w.mms[mm].cpu
    w.mms[new].flags |= w.mms[mm].flags & (MM_MERGE_ANY | MM_THP_DISABLED)
    if w.mms[mm].flags & MM_MERGE_ANY:
        slot_insert(w, new)     # the new one enters first, then the old one exits
    sys_exit(w, mm)
    return new


cdef int sys_prctl_merge(kw_world *w, int32_t mm, bint on) noexcept nogil:
    cdef int32_t v = w.mms[mm].vma_first
    cdef int rc
    if w.ctl.kernel & SWITCH_NO_MERGE_ANY:
        return -EINVAL
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
    rc = unmerge_mm(w, mm, unmerging(w), w.mms[mm].cpu)
    if rc < 0:
        return rc
    while v:
        w.vmas[v].flags &= ~VM_MERGEABLE
        v = w.vmas[v].next
    touched(w, mm)
    w.mms[mm].flags &= ~<uint32_t>MM_MERGE_ANY
    return 0
