"""How a range of page tables is cut into units of work for several threads.

The contract stands in `_plan.pxd`.
"""
from libc.stdint cimport int64_t, uint64_t

from ksmwalk._core cimport interrupted, level_index, level_size
from ksmwalk.layout._grow cimport kw_grow
from ksmwalk.layout._layout cimport *
from ksmwalk.tables._leaves cimport Walk, child


cdef int cut(Plan *p, uint64_t addr) noexcept nogil:
    """The next unit begins at an address."""
    if not kw_grow(&p.units, &p.cap, p.nr + 1, sizeof(Unit)):
        return ALONE
    p.units[p.nr].start = addr
    p.units[p.nr].before = p.leaves
    p.nr += 1
    p.at = 0
    return KW_OK


cdef inline int weigh(Plan *p, uint64_t addr, int64_t cost, int64_t leaves) noexcept nogil:
    """Something at an address belongs to the last unit, or begins the next one."""
    cdef int code = KW_OK
    if p.at + cost > p.size:
        code = cut(p, addr)
    p.at += cost
    p.leaves += leaves
    return code


cdef int plan_pmds(Plan *p, const uint64_t *entries, uint64_t a, uint64_t end) noexcept nogil:
    """The pmds of [a, end) of one table."""
    cdef int first = level_index(a, 2), i, code = KW_OK
    cdef uint64_t base = a & ~(level_size(3) - 1), e, at
    for i in range(first, level_index(end - 1, 2) + 1):
        e = entries[i]
        if e & (PTE_P | PTE_PS) == 0:
            continue
        at = max(a, base + (<uint64_t>i << 21))
        if e & PTE_PS:
            code = weigh(p, at, 1, 1)
        else:
            p.tables += 1
            code = weigh(p, at, A_TABLE, <int64_t>((min(end, base + (<uint64_t>(i + 1) << 21)) - at) >> 12))
        if code != KW_OK:
            return code
    p.middle += 1
    if p.tables > p.budget:
        return ALONE
    return KW_EINTR if p.middle & 63 == 0 and interrupted() else KW_OK


cdef int plan_level(Plan *p, Walk *k, int64_t row, int level, uint64_t a, uint64_t end) noexcept nogil:
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *entries = k.t.rows + row * 512
    cdef int64_t lower, known
    cdef int code = KW_OK
    if level == 2:
        return plan_pmds(p, entries, a, end)
    k.rows[level] = row
    while a < end:
        e = entries[level_index(a, level)]
        next = min((a & ~(size - 1)) + size, end)
        if e & PTE_PS:
            if level == 3:
                code = weigh(p, a, 1, 1)
        elif e & PTE_P:
            known = k.t.bad_count
            lower = child(k, e, a, level)
            k.t.bad_count = known      # the walk itself will note it
            if lower >= 0:
                p.tables += 1
                code = weigh(p, a, A_MIDDLE_TABLE, 0)
                if code == KW_OK:
                    code = plan_level(p, k, lower, level - 1, a, next)
        if code != KW_OK:
            return code
        a = next
    k.rows[level] = -1
    return KW_OK
