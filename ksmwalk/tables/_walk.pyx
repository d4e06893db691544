"""The general walk of page tables with callbacks: one walker (`descend`) over C function pointers.

The Python face (`_callbacks.pyx`) gives it callbacks that call Python; a C caller gives its own. The contract stands in
`_walk.pxd` and, for Python, in `pagewalk.py`.
"""
from libc.errno cimport EINVAL
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport (
    entry_find, entry_leaf, entry_none, entry_present, level_index, level_size,
)
from ksmwalk.tables._read cimport Tables, honest_range, note_bad, own_table, row_of_frame
from ksmwalk.memory._frames cimport leaf_split
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ the walker

cdef inline entry_fn callback_of(const walk_ops *ops, int level) noexcept nogil:
    if level == 1:
        return ops.pte_entry
    if level == 2:
        return ops.pmd_entry
    if level == 3:
        return ops.pud_entry
    if level == 4:
        return ops.p4d_entry
    return ops.pgd_entry


cdef inline int hole(walk_state *s, uint64_t addr, uint64_t next, int depth) noexcept nogil:
    if s.ops.pte_hole == NULL:
        return 0
    s.tables.work.callbacks += 1
    return s.ops.pte_hole(addr, next, depth, s)


cdef inline int call(walk_state *s, entry_fn fn, uint64_t *p, uint64_t addr, uint64_t next, int level) noexcept nogil:
    if fn == NULL:
        return 0
    s.level = level
    s.tables.work.callbacks += 1
    return fn(p, addr, next, s)


cdef int64_t follow(walk_state *s, uint64_t e, uint64_t addr, int level) noexcept nogil:
    """Row of the table an entry points to, or KW_NONE with the entry noted as bad."""
    cdef int64_t row
    cdef int lv, kind
    if level > 3 and e & PTE_PS:
        kind = BAD_LEAF
    elif not (e & PTE_P):
        kind = BAD_NONPRESENT
    else:
        row = row_of_frame(s.tables, (e & PTE_PFN_MASK) >> 12)
        kind = BAD_FRAME if row < 0 else 0
        if not kind:
            for lv in range(level, <int>s.tables.levels + 1):
                if s.rows[lv] == row:
                    kind = BAD_LOOP
        if not kind and not own_table(s.tables, row, level - 1):
            kind = BAD_FRAME
        if not kind and s.tables.budget <= 0:
            kind = BAD_BUDGET
        if not kind:
            s.tables.budget -= 1
            return row
    note_bad(s.tables, addr, level, e, kind)
    return KW_NONE


cdef int one_entry(walk_state *s, uint64_t *p, int level, uint64_t addr, uint64_t next) noexcept nogil:
    """One entry of a table above pte level: its hole or callbacks, then what is below it."""
    cdef int top = <int>s.tables.levels, code
    cdef int64_t row
    while True:
        s.tables.work.entries[level] += 1
        if entry_none(p[0]):
            # The depth names the real level: a missing top entry is a pgd hole with 4 levels too.
            return hole(s, addr, next, 0 if level == top else 5 - level)
        if level > 3:
            if level == top:
                code = call(s, s.ops.pgd_entry, p, addr, next, level)
                if code == 0 and level == 4:
                    code = call(s, s.ops.p4d_entry, p, addr, next, level)
            else:
                code = call(s, s.ops.p4d_entry, p, addr, next, level)
            if code:
                return code
            break
        s.action = ACTION_SUBTREE
        code = call(s, s.ops.pud_entry if level == 3 else s.ops.pmd_entry, p, addr, next, level)
        if code:
            return code
        if s.action == ACTION_CONTINUE:
            return 0
        if s.action != ACTION_AGAIN:
            break
    if s.lowest >= level:
        return 0
    # Read again: a callback may have changed it.
    if entry_none(p[0]) or (level <= 3 and not entry_present(p[0], level)):
        return 0
    if entry_leaf(p[0], level):
        if s.vma == 0:
            return 0
        if leaf_split(s.world, s.mm, p, level) != KW_OK:
            return WALK_NOROWS
        s.tables.nrows = s.world.ctl.rows_used
    row = follow(s, p[0], addr, level)
    if row < 0:
        return WALK_BAD if s.stop_on_bad else 0
    return descend(s, row, level - 1, addr, next)


cdef int descend(walk_state *s, int64_t row, int level, uint64_t a, uint64_t end) noexcept nogil:
    """All entries of one table that [a, end) reaches."""
    cdef uint64_t *p = s.tables.rows + row * 512 + level_index(a, level)
    cdef uint64_t size = level_size(level), next
    cdef int code = 0
    s.rows[level] = row
    while a < end:
        next = (a & ~(size - 1)) + size
        if next > end or next < a:
            next = end
        if level == 1:
            s.tables.work.ptes += 1
            code = call(s, s.ops.pte_entry, p, a, next, 1)
        else:
            code = one_entry(s, p, level, a, next)
        if code:
            break
        a = next
        p += 1
    s.rows[level] = -1
    return code


cdef int walk_hugetlb(walk_state *s, uint64_t a, uint64_t end) noexcept nogil:
    cdef int level = 2 if s.world.vmas[s.vma].page_shift == 21 else 3
    cdef uint64_t size = level_size(level), next
    cdef uint64_t *p
    cdef int code
    if s.ops.hugetlb_entry == NULL:
        return 0
    while a < end:
        next = min((a & ~(size - 1)) + size, end)
        p = entry_find(s.world, s.tables.root, a, level)
        if p == NULL:
            code = hole(s, a, next, -1)
        else:
            s.tables.work.entries[level] += 1
            code = call(s, s.ops.hugetlb_entry, p, a, next, level)
        if code:
            return code
        a = next
    return 0


cdef int inside_vma(walk_state *s, uint64_t start, uint64_t end) noexcept nogil:
    """pre_vma, the walk itself, post_vma."""
    cdef int code = 0
    if s.ops.pre_vma != NULL:
        code = s.ops.pre_vma(start, end, s)
        if code:
            return code
    if s.world.vmas[s.vma].flags & VM_HUGETLB:
        code = walk_hugetlb(s, start, end)
    else:
        code = descend(s, s.tables.root, <int>s.tables.levels, start, end)
    if s.ops.post_vma != NULL:
        s.ops.post_vma(s)
    return s.failed if code == 0 else code


cdef inline int32_t vma_above(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """The lowest vma that ends above addr. Looked up anew each time: a callback may have changed the list."""
    cdef int32_t v = w.mms[mm].vma_first
    while v and w.vmas[v].end <= addr:
        v = w.vmas[v].next
    return v


cdef int over_vmas(walk_state *s, uint64_t a, uint64_t end) noexcept nogil:
    cdef kw_world *w = s.world
    cdef int32_t v
    cdef uint64_t next
    cdef int code
    while a < end:
        v = vma_above(w, s.mm, a)
        code = 0
        if v == 0 or w.vmas[v].start > a:
            next = end if v == 0 else min(end, w.vmas[v].start)
            s.vma = 0
            code = hole(s, a, next, -1)
        else:
            next = min(end, w.vmas[v].end)
            s.vma = v
            if s.ops.test_walk != NULL:
                code = s.ops.test_walk(a, next, s)
                if code == 0:
                    code = inside_vma(s, a, next)
                elif code > 0:
                    code = 0
            elif w.vmas[v].flags & VM_PFNMAP:
                code = hole(s, a, next, -1)
            else:
                code = inside_vma(s, a, next)
        if code:
            return code
        a = next
    return 0


cdef void begin(walk_state *s, kw_tables *t, kw_world *w, int32_t mm, int32_t vma, const walk_ops *ops,
                void *user) noexcept nogil:
    cdef int lv
    memset(s, 0, sizeof(walk_state))
    s.ops = ops
    s.user = user
    s.tables = t
    s.world = w
    s.freed = w.rows_freed if w != NULL else 0
    s.mm = mm
    s.vma = vma
    # Honest tables are visited once; see PageTables.mappings.
    t.budget = 16 * t.nrows + (1 << 20)
    for lv in range(6):
        s.rows[lv] = -1
    s.lowest = 99
    for lv in range(5, 0, -1):
        if callback_of(ops, lv) != NULL:
            # With 4 levels the top entry is pgd and p4d in one.
            s.lowest = min(lv, <int>t.levels)


cdef void prepare(walk_state *s, Tables tables, int32_t mm, int32_t vma, const walk_ops *ops, void *user) noexcept:
    tables.sync()
    begin(s, &tables.t, &tables.world.w if tables.world is not None else NULL, mm, vma, ops, user)


cdef int walk_tables(Tables tables, uint64_t start, uint64_t end, const walk_ops *ops, void *user) noexcept:
    cdef walk_state s
    if start >= end:
        return -EINVAL
    prepare(&s, tables, 0, 0, ops, user)
    return descend(&s, s.tables.root, <int>s.tables.levels, start, end)


cdef int walk_vma(Tables tables, int32_t mm, int32_t vma, uint64_t start, uint64_t end, const walk_ops *ops,
                  void *user) noexcept:
    cdef walk_state s
    cdef kw_vma *v = &tables.world.w.vmas[vma]
    if start >= end or start < v.start or end > v.end:
        return -EINVAL
    prepare(&s, tables, mm, vma, ops, user)
    return inside_vma(&s, start, end)


cdef int walk_mm(Tables tables, int32_t mm, uint64_t start, uint64_t end, const walk_ops *ops, void *user) noexcept:
    cdef walk_state s
    if start >= end:
        return -EINVAL
    prepare(&s, tables, mm, 0, ops, user)
    return over_vmas(&s, start, end)


cdef int walk_world(kw_world *w, int32_t mm, uint64_t start, uint64_t end, const walk_ops *ops, void *user, bint vmas,
                    kw_work *work) noexcept nogil:
    cdef walk_state s
    cdef kw_tables t
    cdef kw_work unseen
    cdef int code
    memset(&t, 0, sizeof(kw_tables))
    memset(&unseen, 0, sizeof(kw_work))
    t.rows = w.rows
    t.nrows = w.ctl.rows_used
    t.owner = w.r_owner
    t.root = w.mms[mm].root
    t.levels = w.ctl.levels
    t.bad = w.bad
    t.bad_cap = 1
    t.work = work if work != NULL else &unseen
    if start >= end or not honest_range(t.levels, start, end):
        return -EINVAL
    begin(&s, &t, w, mm, 0, ops, user)
    s.stop_on_bad = 1
    code = over_vmas(&s, start, end) if vmas else descend(&s, t.root, <int>t.levels, start, end)
    if code == WALK_BAD:
        return KW_EBADENTRY
    return KW_ENOROWS if code == WALK_NOROWS else code
