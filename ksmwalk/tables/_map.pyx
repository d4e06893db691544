"""Mappings into the page tables of a Host's arena, and out again; large leaves split by hand."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    World, alone, bad_entry, below, enter, entry_leaf, entry_make, entry_none, entry_present, interrupted,
    leaf_find, leave, level_index, level_shift, level_size, make_leaf, mm_changed, no_entry, records, row_alloc,
    row_owner, table_empty, table_free,
)
from ksmwalk.memory._frames cimport leaf_split
from ksmwalk.tables._read cimport honest_range
from ksmwalk.layout._layout cimport *


cdef int map_into(kw_world *w, int32_t mm, uint64_t *addr, const uint64_t *pfns, int64_t n, uint64_t flags,
                  int level) noexcept nogil:
    """All leaves or none; *addr: the one that stood in the way, or the end."""
    cdef int64_t i = 0
    cdef int above = 0
    cdef uint64_t size = level_size(level), first = addr[0]
    cdef uint64_t *p
    while i < n:
        if (i >> 9) & 511 == 511 and interrupted():
            return KW_EINTR
        p = entry_make(w, mm, addr[0], level)
        if p == NULL:
            if leaf_find(w, w.mms[mm].root, addr[0], &above) != NULL:
                return KW_EBUSYENTRY
            return no_entry(w, mm, addr[0])
        while True:
            if not entry_none(p[0]):
                return KW_EBUSYENTRY
            i += 1
            addr[0] += size
            p += 1
            if i == n or level_index(addr[0], level) == 0:
                break
    addr[0] = first
    i = 0
    while i < n:
        p = entry_make(w, mm, addr[0], level)
        while True:
            p[0] = make_leaf(pfns[i], flags, level)
            i += 1
            addr[0] += size
            p += 1
            if i == n or level_index(addr[0], level) == 0:
                break
    mm_changed(w, mm, 1)
    return KW_OK


def map_pages(World world not None, int32_t mm, uint64_t addr, pfns, uint64_t flags, int level):
    """Map pfns[i] at addr + i * the size of a leaf; (0 or a KW_* code, entries written).

    Nothing is written if any of the places is taken. Tables made on the way to a full arena stay, empty.
    """
    cdef int code = KW_OK
    cdef int64_t n
    cdef const uint64_t *frames = <const uint64_t *>records(pfns, False, 8, 8, &n)
    if not n:
        return 0, addr
    enter(world)
    with nogil:
        code = map_into(&world.w, mm, &addr, frames, n, flags, level)
    leave(world)
    return code, addr


cdef int64_t clear_level(kw_world *w, int32_t mm, int64_t row, int level, uint64_t a, uint64_t end,
                         int64_t *cleared) noexcept nogil:
    """Clear the leaves of [a, end) below one table, splitting those that stick out; free tables left empty."""
    cdef uint64_t *p = w.rows + row * 512
    cdef uint64_t size = level_size(level), next
    cdef int i = level_index(a, level)
    cdef int64_t child, code
    while a < end:
        next = (a & ~(size - 1)) + size
        if next > end or next == 0:
            next = end
        if not entry_none(p[i]):
            if entry_leaf(p[i], level) or (level <= 3 and not (p[i] & PTE_P)):
                if level > 1 and next - a != size and entry_leaf(p[i], level):
                    code = leaf_split(w, mm, &p[i], level)
                    if code != KW_OK:
                        return code
                    continue
                p[i] = 0
                cleared[0] += 1
            else:
                child = below(w, &p[i], level, a)
                if child < 0:
                    return child
                code = clear_level(w, mm, child, level - 1, a, next, cleared)
                if code != KW_OK:
                    return code
                if table_empty(w, child):
                    table_free(w, mm, &p[i], child)
        a = next
        i += 1
    return KW_OK


def clear_range(World world not None, int32_t mm, uint64_t start, uint64_t end):
    """Clear [start, end): (0 or a KW_* code, entries cleared)."""
    cdef int64_t cleared = 0, code
    if not honest_range(world.w.ctl.levels, start, end) or (start | end) & 4095:
        raise ValueError(f"range {start:#x}-{end:#x}: not page aligned, or beyond {world.w.ctl.levels} levels")
    enter(world)
    with nogil:
        code = clear_level(&world.w, mm, world.w.mms[mm].root, <int>world.w.ctl.levels, start, end, &cleared)
        mm_changed(&world.w, mm, 1)
    leave(world)
    return code, cleared


def new_root(World world not None, int32_t mm):
    """Give an mm record a top table; its row, or KW_ENOROWS."""
    alone(world)
    cdef int64_t row = row_alloc(&world.w, row_owner(mm, <int>world.w.ctl.levels))
    if row >= 0:
        world.w.mms[mm].root = row
        world.w.mms[mm].nr_tables = 1
    return row


cdef int64_t claim_below(kw_world *w, int64_t row, int32_t owner, uint64_t addr) noexcept nogil:
    cdef uint64_t *p = w.rows + row * 512
    cdef int level = owner & 7, i
    cdef int64_t n = 1, child, got
    w.r_owner[row] = owner
    if level == 1:
        return n
    for i in range(512):
        if entry_none(p[i]) or entry_leaf(p[i], level) or (level <= 3 and not entry_present(p[i], level)):
            continue
        child = <int64_t>((p[i] & PTE_PFN_MASK) >> 12)
        if not p[i] & PTE_P or child <= 0 or child >= w.ctl.rows_used or w.r_owner[child] != 0:
            return bad_entry(w, addr, level, p[i], BAD_FRAME)
        got = claim_below(w, child, owner - 1, addr + (<uint64_t>i << level_shift(level)))
        if got < 0:
            return got
        n += got
    return n


def claim_tables(World world not None, int32_t mm):
    """Write down in r_owner whose the tables below an mm's root are; how many.

    KW_EBADENTRY, noted in the `bad` array: an entry leads out of the rows, or to a table that has an owner already.
    """
    alone(world)
    cdef int64_t root = world.w.mms[mm].root
    if root <= 0 or root >= world.w.ctl.rows_used or world.w.r_owner[root] != 0:
        return bad_entry(&world.w, 0, <int>world.w.ctl.levels + 1, root, BAD_FRAME)
    return claim_below(&world.w, root, row_owner(mm, <int>world.w.ctl.levels), 0)


def split_at(World world not None, int32_t mm, uint64_t addr):
    """Split the large leaf that maps addr into 512 of the next size: its former level, or KW_NONE, KW_ENOROWS."""
    alone(world)
    cdef int level = 0
    cdef uint64_t *p = leaf_find(&world.w, world.w.mms[mm].root, addr, &level)
    if p == NULL or level == 1:
        return KW_NONE
    if leaf_split(&world.w, mm, p, level) != KW_OK:
        return KW_ENOROWS
    mm_changed(&world.w, mm, 1)
    return level
