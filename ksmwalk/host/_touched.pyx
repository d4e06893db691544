"""What of an address space was touched: the accessed and dirty bits of its entries, asked and cleared.

Bits of a present leaf: PTE_A since it was made or cleared last; PTE_D without PTE_CLEAN: stored to since then. D itself
stays as it is, because KSM and mprotect decide by it; special entries (zero pages, raw frames) count as never stored to.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport World, below, enter, entry_leaf, entry_none, entry_present, leave, level_size, records
from ksmwalk.memory._frames cimport normal_pfn
from ksmwalk.memory._reclaim cimport not_referenced
from ksmwalk.layout._layout cimport *


cdef struct Sweep:
    uint64_t start, end     # bytes; only leaves that touch it are looked at
    uint64_t mask, bits     # the leaves that count: those whose bits under the mask are these
    uint64_t clears, sets   # what becomes of leaves, where `writes`
    bint writes
    uint64_t *out           # addresses of their pages; NULL: they are only counted
    int64_t room
    int64_t n


cdef void one_leaf(kw_world *w, Sweep *s, uint64_t addr, int level, uint64_t *p) noexcept nogil:
    cdef uint64_t e = p[0], end
    cdef int64_t pfn
    if s.writes:
        pfn = normal_pfn(w, e, level)
        if pfn >= 0 and level < 3:
            not_referenced(w, pfn)
        e &= ~s.clears
        if not e & PTE_SPECIAL:
            e |= s.sets
        if e != p[0]:
            p[0] = e
        return
    if e & s.mask != s.bits:
        return
    end = min(addr + level_size(level), s.end)
    addr = max(addr, s.start)
    if s.out == NULL:
        s.n += <int64_t>((end - addr) >> 12)
        return
    while addr < end and s.n < s.room:
        s.out[s.n] = addr
        s.n += 1
        addr += KW_PAGE_SIZE


cdef int sweep(kw_world *w, Sweep *s, int64_t row, int level, uint64_t base) noexcept nogil:
    """All leaves below a table; KW_OK or KW_EBADENTRY."""
    cdef uint64_t size = level_size(level), addr
    cdef uint64_t *p = w.rows + row * 512
    cdef int64_t child
    cdef int first = <int>((s.start - base) // size) if s.start > base else 0, i, rc
    for i in range(first, 512):
        addr = base + size * <uint64_t>i
        if addr >= s.end:
            break
        if entry_none(p[i]):
            continue
        if entry_leaf(p[i], level):
            if entry_present(p[i], level):
                one_leaf(w, s, addr, level, p + i)
            continue
        child = below(w, p + i, level, addr)
        if child == KW_NONE:
            continue
        rc = sweep(w, s, child, level - 1, addr) if child > 0 else <int>child
        if rc < 0:
            return rc
    return KW_OK


cdef int whole(kw_world *w, Sweep *s, int32_t mm) noexcept nogil:
    cdef int levels = <int>w.ctl.levels
    cdef uint64_t top = level_size(levels) << 9
    s.end = min(s.end, top)
    return sweep(w, s, w.mms[mm].root, levels, 0) if s.start < s.end else KW_OK


def touched(World world not None, int32_t mm, uint64_t start, uint64_t end, bint written, out):
    """How many pages in [start, end) were accessed (or written to), their addresses into `out` (None: only counted)."""
    cdef Sweep s
    cdef int rc
    s.start, s.end, s.writes, s.n, s.room, s.out = start, end, False, 0, 0, NULL
    s.mask = PTE_D | PTE_CLEAN | PTE_SPECIAL if written else PTE_A
    s.bits = PTE_D if written else PTE_A
    if out is not None:
        s.out = <uint64_t *>records(out, True, 8, 8, &s.room)
        if s.room == 0:
            return 0
    enter(world)
    with nogil:
        rc = whole(&world.w, &s, mm)
    leave(world)
    return rc if rc < 0 else s.n


def clear(World world not None, int32_t mm, uint64_t start, uint64_t end):
    """Nothing in [start, end) counts as touched any more: 0 or a code."""
    cdef Sweep s
    cdef int rc
    s.start, s.end, s.writes, s.n, s.room, s.out = start, end, True, 0, 0, NULL
    s.clears, s.sets = PTE_A, PTE_CLEAN
    enter(world)
    with nogil:
        rc = whole(&world.w, &s, mm)
    leave(world)
    return rc
