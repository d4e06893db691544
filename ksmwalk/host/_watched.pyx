"""userfaultfd on address spaces, compiled: areas watched, pages protected, placed and moved; and the doors to it.

The contract of every function stands in `_watched.pxd`.
"""
from libc.errno cimport EBUSY, EINVAL, ENOENT
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from ksmwalk._core cimport (
    World, child_row, enter, entry_none, interrupted_at, leave, level_shift, pointer, pte_present,
)
from ksmwalk.memory._leaves cimport wp_range
from ksmwalk.memory._areas cimport VM_ACCESS, VM_SPECIAL, VM_WATCHED, set_watched, vma_find, vma_find_from
from ksmwalk.memory._watched cimport mark_absent, move_huge, move_page, place_page, place_zero
from ksmwalk.layout._layout cimport *


cdef bint may_watch(kw_world *w, const kw_vma *v, uint64_t flags) noexcept nogil:
    """Private anonymous memory, shared memory, memory of files (which the model takes for memfds'), hugetlb."""
    if v.flags & (VM_PFNMAP | VM_IO | VM_MIXEDMAP | VM_DROPPABLE | VM_DAX):
        return False
    if flags & VM_UFFD_MINOR:
        return v.backing != 0 and not w.ctl.kernel & SWITCH_OLD_CALLS
    return not (flags & VM_UFFD_WP and v.backing and w.ctl.kernel & SWITCH_OLD_CALLS)


cdef int may_watch_all(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, uint16_t watcher) noexcept nogil:
    """Is there an area in the range, and may each be watched so by this userfaultfd? Holes between them don't matter."""
    cdef int32_t v = vma_find_from(w, mm, start)
    if v == 0 or w.vmas[v].start >= end:
        return -EINVAL
    while v and w.vmas[v].start < end:
        if not may_watch(w, &w.vmas[v], flags):
            return -EINVAL
        if w.vmas[v].page_shift > 12 and (max(start, w.vmas[v].start) | min(end, w.vmas[v].end)) & (KW_PMD_SIZE - 1):
            return -EINVAL
        if flags and not flags & VM_UFFD_WP and w.vmas[v].flags & VM_UFFD_WP and w.ctl.kernel & SWITCH_STAYS_PROTECTED:
            return -EBUSY
        if w.vmas[v].flags & VM_WATCHED and w.vmas[v].watcher != watcher:
            return -EBUSY if flags else -EINVAL
        v = w.vmas[v].next
    return 0


cdef int sys_watch(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, uint16_t watcher) noexcept nogil:
    cdef int32_t v
    cdef uint64_t stop
    cdef int rc = may_watch_all(w, mm, start, end, flags, watcher)
    if rc < 0:
        return rc
    while start < end:
        v = vma_find_from(w, mm, start)
        if v == 0 or w.vmas[v].start >= end:
            break
        start = max(start, w.vmas[v].start)
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].flags & flags != flags:
            v = set_watched(w, v, start, stop, flags, watcher)
            if v < 0:
                return v
        start = stop
    return 0


cdef int sys_unwatch(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint16_t watcher) noexcept nogil:
    cdef int32_t v
    cdef uint64_t stop
    cdef int rc = may_watch_all(w, mm, start, end, 0, watcher)
    if rc < 0:
        return rc
    while start < end:
        v = vma_find_from(w, mm, start)
        if v == 0 or w.vmas[v].start >= end:
            break
        start = max(start, w.vmas[v].start)
        stop = min(end, w.vmas[v].end)
        if w.vmas[v].flags & VM_UFFD_WP:
            rc = wp_range(w, mm, start, stop, False)
            if rc < 0:
                return rc
        v = set_watched(w, v, start, stop, 0, 0)
        if v < 0:
            return v
        start = stop
    return 0


cdef int sys_protect(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, start)
    cdef uint64_t first, stop
    cdef int rc = -ENOENT
    if w.ctl.kernel & SWITCH_OLD_UFFD and v and (w.vmas[v].start > start or w.vmas[v].end < end):
        return -ENOENT
    while v and w.vmas[v].start < end:
        if not w.vmas[v].flags & VM_UFFD_WP:
            return -ENOENT
        first, stop = max(start, w.vmas[v].start), min(end, w.vmas[v].end)
        rc = wp_range(w, mm, first, stop, on)
        if rc == 0 and on and w.vmas[v].page_shift == 12 and (w.vmas[v].backing or not w.ctl.kernel & SWITCH_OLD_UFFD):
            rc = mark_absent(w, mm, first, stop)
        if rc < 0:
            return rc
        v = w.vmas[v].next
    return rc


cdef int sys_place(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, bint protect) noexcept nogil:
    cdef int64_t i
    cdef int32_t v
    cdef int rc
    for i in range(n):
        v = vma_find(w, mm, addr)
        if v == 0 or not w.vmas[v].flags & VM_WATCHED:
            return -ENOENT
        if protect and not w.vmas[v].flags & VM_UFFD_WP or w.vmas[v].page_shift > 12:
            return -EINVAL
        if interrupted_at(addr):
            return KW_EINTR
        if keys == NULL:
            rc = place_zero(w, mm, &w.vmas[v], addr)
        else:
            rc = place_page(w, mm, &w.vmas[v], addr, keys[i], protect)
        if rc < 0:
            return rc
        addr += KW_PAGE_SIZE
    return 0


cdef int sys_move(kw_world *w, int32_t mm, uint64_t to, uint64_t start, int64_t n, uint16_t watcher) noexcept nogil:
    cdef int32_t s = vma_find(w, mm, start), d = vma_find(w, mm, to)
    cdef kw_vma *v = &w.vmas[d]
    cdef uint64_t length = <uint64_t>n << 12, end = start + length, step
    cdef int rc
    if s == 0 or d == 0:
        return -ENOENT
    if length > w.vmas[s].end - start or length > v.end - to or w.vmas[s].backing or v.backing:
        return -EINVAL
    if not v.flags & VM_WATCHED or v.watcher != watcher or not v.flags & VM_WRITE:
        return -EINVAL
    if (v.flags | w.vmas[s].flags) & (VM_SPECIAL | VM_HUGETLB):
        return -EINVAL
    if (v.flags ^ w.vmas[s].flags) & (VM_ACCESS | VM_LOCKED):
        return -EINVAL
    while start < end:
        if interrupted_at(start):
            return KW_EINTR
        step = KW_PMD_SIZE if not (to | start) & (KW_PMD_SIZE - 1) and end - start >= KW_PMD_SIZE else KW_PAGE_SIZE
        rc = move_huge(w, mm, v, to, start) if step == KW_PMD_SIZE else 0
        if rc == 0:
            step = KW_PAGE_SIZE
            rc = move_page(w, mm, v, to, start)
        if rc < 0:
            return rc
        to += step
        start += step
    return 0


cdef int64_t absent_below(kw_world *w, int64_t row, int level, uint64_t base, uint64_t *out) noexcept nogil:
    """Count the ptes below a table that are neither none nor present, and tell where they are (NULL: not wanted)."""
    cdef int64_t n = 0, child
    cdef uint64_t *p = w.rows + row * 512
    cdef uint64_t addr
    cdef int i
    for i in range(512):
        if entry_none(p[i]):
            continue
        addr = base + (<uint64_t>i << level_shift(level))
        if level > 1:
            child = child_row(w, p + i)
            if child >= 0:
                n += absent_below(w, child, level - 1, addr, out + n if out != NULL else NULL)
        elif not pte_present(p[i]):
            if out != NULL:
                out[n] = addr
            n += 1
    return n


# ------------------------------------------------------------------ what Python calls, arguments checked

def watch(World world not None, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, uint16_t watcher):
    cdef int rc
    enter(world)
    with nogil:
        if flags:
            rc = sys_watch(&world.w, mm, start, end, flags, watcher)
        else:
            rc = sys_unwatch(&world.w, mm, start, end, watcher)
    leave(world)
    return rc


def protect(World world not None, int32_t mm, uint64_t start, uint64_t end, bint on):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_protect(&world.w, mm, start, end, on)
    leave(world)
    return rc


def place(World world not None, int32_t mm, uint64_t addr, int64_t n, object keys, bint protect):
    """keys: an array of n uint64, or None for zero pages."""
    cdef const uint64_t *p = NULL
    cdef int rc
    if keys is not None:
        if len(keys) < n:
            raise ValueError(f"{len(keys)} keys for {n} pages")
        p = <const uint64_t *>pointer(keys, False)
    enter(world)
    with nogil:
        rc = sys_place(&world.w, mm, addr, n, p, protect)
    leave(world)
    return rc


def move(World world not None, int32_t mm, uint64_t to, uint64_t start, int64_t n, uint16_t watcher):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_move(&world.w, mm, to, start, n, watcher)
    leave(world)
    return rc


def absent_entries(World world not None, int32_t mm, object out):
    """Number of ptes that are neither none nor present; where they are into out, an array of so many uint64, or None."""
    cdef uint64_t *p = NULL
    cdef int64_t n
    if out is not None and len(out):
        p = <uint64_t *>pointer(out, True)
    enter(world)
    with nogil:
        n = absent_below(&world.w, world.w.mms[mm].root, <int>world.w.ctl.levels, 0, p)
    leave(world)
    return n
