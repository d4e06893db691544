"""Mappings into the page tables of a Host's arena, and out again; large leaves split by hand."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    World, entry_leaf, entry_make, entry_none, leaf_find, level_index, level_size, make_leaf, row_alloc,
    row_free, split_leaf,
)
from ksmwalk.tables._read cimport honest_range
from ksmwalk.layout._layout cimport *


def map_pages(World world not None, int32_t mm, uint64_t addr, const uint64_t[::1] pfns, uint64_t flags, int level):
    """Map pfns[i] at addr + i * the size of a leaf; (0 or a KW_* code, entries written).

    Nothing is written if any of the places is taken. Tables made on the way to a full arena stay, empty.
    """
    cdef int64_t n = pfns.shape[0], i
    cdef uint64_t size = level_size(level), a
    cdef uint64_t *p
    cdef uint64_t e
    with nogil:
        a = addr
        i = 0
        while i < n:
            p = entry_make(&world.w, mm, a, level)
            if p == NULL:
                with gil:
                    return (KW_ENOROWS if world.w.ctl.rows_used >= world.w.ctl.rows_cap and not world.w.ctl.rows_free
                            else KW_EBUSYENTRY), a
            while True:
                if not entry_none(p[0]):
                    with gil:
                        return KW_EBUSYENTRY, a
                i += 1
                a += size
                p += 1
                if i == n or level_index(a, level) == 0:
                    break
        a = addr
        i = 0
        while i < n:
            p = entry_make(&world.w, mm, a, level)
            while True:
                e = pfns[i]
                p[0] = make_leaf(e, flags, level)
                i += 1
                a += size
                p += 1
                if i == n or level_index(a, level) == 0:
                    break
        world.w.mms[mm].epoch += 1
    return 0, a


cdef int64_t clear_level(kw_world *w, int32_t mm, int64_t row, int level, uint64_t a, uint64_t end,
                         int64_t *cleared) noexcept nogil:
    """Clear the leaves of [a, end) below one table, splitting those that stick out; free tables left empty."""
    cdef uint64_t *p = w.rows + row * 512
    cdef uint64_t size = level_size(level), next
    cdef int i = level_index(a, level)
    cdef int64_t below, code
    cdef int j
    while a < end:
        next = (a & ~(size - 1)) + size
        if next > end or next == 0:
            next = end
        if not entry_none(p[i]):
            if entry_leaf(p[i], level) or (level <= 3 and not (p[i] & PTE_P)):
                if level > 1 and next - a != size and entry_leaf(p[i], level):
                    code = split_leaf(w, mm, &p[i], level)
                    if code != KW_OK:
                        return code
                    continue
                p[i] = 0
                cleared[0] += 1
            else:
                below = <int64_t>((p[i] & PTE_PFN_MASK) >> 12)
                if not (p[i] & PTE_P) or below <= 0 or below >= w.ctl.rows_used:
                    return KW_EBADENTRY
                code = clear_level(w, mm, below, level - 1, a, next, cleared)
                if code != KW_OK:
                    return code
                for j in range(512):
                    if w.rows[below * 512 + j]:
                        break
                else:
                    row_free(w, below)
                    w.mms[mm].nr_tables -= 1
                    p[i] = 0
        a = next
        i += 1
    return KW_OK


def clear_range(World world not None, int32_t mm, uint64_t start, uint64_t end):
    """Clear [start, end): (0 or a KW_* code, entries cleared)."""
    cdef int64_t cleared = 0, code
    if not honest_range(world.w.ctl.levels, start, end) or (start | end) & 4095:
        raise ValueError(f"range {start:#x}-{end:#x}: not page aligned, or beyond {world.w.ctl.levels} levels")
    with nogil:
        code = clear_level(&world.w, mm, world.w.mms[mm].root, <int>world.w.ctl.levels, start, end, &cleared)
        world.w.mms[mm].epoch += 1
    return code, cleared


def new_root(World world not None, int32_t mm):
    """Give an mm record a top table; its row, or KW_ENOROWS."""
    cdef int64_t row = row_alloc(&world.w)
    if row >= 0:
        world.w.mms[mm].root = row
        world.w.mms[mm].nr_tables = 1
    return row


def split_at(World world not None, int32_t mm, uint64_t addr):
    """Split the large leaf that maps addr into 512 of the next size: its former level, or KW_NONE, KW_ENOROWS."""
    cdef int level = 0
    cdef uint64_t *p = leaf_find(&world.w, world.w.mms[mm].root, addr, &level)
    if p == NULL or level == 1:
        return KW_NONE
    if split_leaf(&world.w, mm, p, level) != KW_OK:
        return KW_ENOROWS
    world.w.mms[mm].epoch += 1
    return level
