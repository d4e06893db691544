"""Every leaf of a range of page tables, in ascending order, at array speed: as records or as packed columns.

The contract stands in `_leaves.pxd`. What can't be followed is noted and walked around. The loops over the 512 entries
of one table are those of `layout/_wide.h`.
"""
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from ksmwalk._core cimport entry_none, entry_pfn, entry_present, interrupted, level_index, level_shift, level_size
from ksmwalk.layout._grow cimport kw_grow
from ksmwalk.layout._layout cimport *
from ksmwalk.tables._read cimport canonical, honest_range, note_bad, own_table, row_of_frame


cdef extern from "_wide.h" nogil:
    ctypedef struct kw_emit:
        uint64_t addr
        uint64_t present
        const uint64_t *next
        uint8_t perms
    int kw_choose(int most) noexcept
    int64_t kw_emit_row(const uint64_t *row, int lo, int hi, const kw_emit *c, kw_mapping *out) noexcept
    int64_t kw_pack_row(const uint64_t *row, int lo, int hi, const kw_emit *c, uint64_t *addr, uint64_t *entry) noexcept

kw_choose(1)


def choose_wide(int most):
    """Use the widest inner loops of this processor (True), at most those of AVX2 (256), or the plain ones (False).

    For tests and benchmarks; the choice made on import is the fast one. Each compiled module has its own switch.

    Returns
    -------
    int
        Bits of the widest in use: 512, 256; 0: plain ones.
    """
    return kw_choose(most)


# ------------------------------------------------------------------ one leaf, the leaves of one table

cdef inline uint8_t entry_perms(uint64_t e) noexcept nogil:
    cdef uint8_t p = PERM_R
    if e & PTE_RW:
        p |= PERM_W
    if e & PTE_US:
        p |= PERM_U
    if not (e & PTE_NX):
        p |= PERM_X
    return p


cdef bint joins(const kw_mapping *a, const kw_mapping *b) noexcept nogil:
    """Whether b goes on where the run a ends."""
    cdef uint64_t size = level_size(a.level)
    return (
        a.addr + a.nr * size == b.addr and a.pfn + a.nr * (size >> 12) == b.pfn and a.flags == b.flags
        and a.level == b.level and a.perms == b.perms and a.nr != 0xffffffffu
    )


cdef int64_t fold_runs(kw_mapping *out, int64_t n, int64_t start) noexcept nogil:
    """Join the records from start on with each other and with the one before; the new number of records."""
    cdef int64_t i, last = start - 1
    for i in range(start, n):
        if last >= 0 and joins(&out[last], &out[i]):
            out[last].nr += 1
        else:
            last += 1
            if last != i:
                out[last] = out[i]
    return last + 1


cdef int room_for_odd(Walk *k, int64_t n) noexcept nogil:
    return KW_OK if kw_grow(&k.odd, &k.odd_cap, k.nr_odd + n, sizeof(int64_t)) else -ENOMEM


cdef int emit_leaf(Walk *k, uint64_t e, uint64_t addr, int level, uint8_t above) noexcept nogil:
    """The record of one leaf above the ptes."""
    cdef kw_mapping m
    m.addr = canonical(addr, k.t.levels)
    m.pfn = entry_pfn(e, level)
    m.flags = (e & ~PTE_PFN_MASK) | (e & PTE_PAT_LARGE)
    m.level = <uint8_t>level
    m.perms = above & entry_perms(e)
    m.unused = 0
    m.nr = 1
    if k.runs and k.n > 0 and joins(&k.out[k.n - 1], &m):
        k.out[k.n - 1].nr += 1
        return KW_OK
    if k.n >= k.cap:
        return KW_EFULL
    k.out[k.n] = m
    k.n += 1
    return KW_OK


cdef inline bint seen(const Walk *k, uint64_t e, int level) noexcept nogil:
    """Is an entry with PS set a leaf that the walk gives?"""
    return e & PTE_P != 0 if k.hardware else entry_present(e, level)


cdef int pack_leaves(Walk *k, const uint64_t *p, int most, int level, uint64_t addr) noexcept nogil:
    """The columns of large leaves that stand side by side from p on, the first at addr; how many, or a code."""
    cdef uint64_t size = level_size(level)
    cdef int i, code
    for i in range(most):
        if not (p[i] & PTE_PS and seen(k, p[i], level)):
            return i
        if k.n >= k.cap:
            return KW_EFULL
        if level == 3:
            code = note_odd(k, 3)
            if code != KW_OK:
                return code
        k.addr[k.n] = addr
        k.entry[k.n] = p[i]
        k.n += 1
        addr += size
    return most


cdef inline bint beyond(const kw_tables *t, uint64_t e, int level) noexcept nogil:
    """Does a leaf end beyond the end of memory?"""
    return t.max_pfn and entry_pfn(e, level) + (level_size(level) >> 12) > <uint64_t>t.max_pfn


cdef int64_t drop_beyond(Walk *k, const uint64_t *row, kw_mapping *out, int64_t n) noexcept nogil:
    """Leaves of one table beyond the end of memory are noted and taken out again; how many are left."""
    cdef int64_t i, kept = 0
    for i in range(n):
        if out[i].pfn >= <uint64_t>k.t.max_pfn:
            note_bad(k.t, out[i].addr, 1, row[level_index(out[i].addr, 1)], BAD_PFN)
        else:
            if kept != i:
                out[kept] = out[i]
            kept += 1
    return kept


cdef int64_t drop_packed_beyond(Walk *k, uint64_t *addr, uint64_t *entry, int64_t n) noexcept nogil:
    """The same of columns."""
    cdef int64_t i, kept = 0
    for i in range(n):
        if entry_pfn(entry[i], 1) >= <uint64_t>k.t.max_pfn:
            note_bad(k.t, addr[i], 1, entry[i], BAD_PFN)
        else:
            addr[kept] = addr[i]
            entry[kept] = entry[i]
            kept += 1
    return kept


cdef int emit_row(Walk *k, const uint64_t *row, int lo, int hi, const kw_emit *c) noexcept nogil:
    """The records of one table."""
    cdef kw_mapping spare[512]
    cdef int64_t i, n
    if k.n + (hi - lo) <= k.cap:
        n = kw_emit_row(row, lo, hi, c, k.out + k.n)
        if k.t.max_pfn:
            n = drop_beyond(k, row, k.out + k.n, n)
        k.n = fold_runs(k.out, k.n + n, k.n) if k.runs else k.n + n
        return KW_OK
    # The output may not have room for all that there could be.
    n = kw_emit_row(row, lo, hi, c, spare)
    if k.t.max_pfn:
        n = drop_beyond(k, row, spare, n)
    for i in range(n):
        if k.runs and k.n > 0 and joins(&k.out[k.n - 1], &spare[i]):
            k.out[k.n - 1].nr += 1
        elif k.n < k.cap:
            k.out[k.n] = spare[i]
            k.n += 1
        else:
            return KW_EFULL
    return KW_OK


cdef int pack_row(Walk *k, const uint64_t *row, int lo, int hi, const kw_emit *c) noexcept nogil:
    """The columns of one table."""
    cdef int code = KW_OK
    cdef uint64_t spare[1024]
    cdef bint room = k.n + (hi - lo) <= k.cap
    cdef uint64_t *addr = k.addr + k.n if room else spare
    cdef uint64_t *entry = k.entry + k.n if room else spare + 512
    cdef int64_t n = kw_pack_row(row, lo, hi, c, addr, entry)
    if k.t.max_pfn:
        n = drop_packed_beyond(k, addr, entry, n)
    if not room:
        if k.n + n > k.cap:
            return KW_EFULL
        memcpy(k.addr + k.n, addr, n * 8)
        memcpy(k.entry + k.n, entry, n * 8)
    if lo == 0 and n > 0 and entry[0] & PTE_PAT and addr[0] == c.addr:
        code = note_odd(k, 1)
    k.n += n
    return code


cdef inline const uint64_t *following(const kw_tables *t, const uint64_t *p, int i, int last) noexcept nogil:
    """The table that is likely to be read after the one below p[i]; NULL: not known."""
    cdef int ahead
    cdef uint64_t f
    if t.frames == NULL:
        for ahead in range(i + 1, min(i + 9, last + 1)):
            f = p[ahead]
            if (f & (PTE_P | PTE_PS)) == PTE_P:
                f = (f & PTE_PFN_MASK) >> 12
                return t.rows + f * 512 if f < <uint64_t>t.nrows else NULL
    return NULL


cdef int emit_ptes(
    Walk *k, int64_t row, uint64_t a, uint64_t end, uint8_t above, const uint64_t *next
) noexcept nogil:
    """The ptes of one table for [a, end) inside it; `next` is fetched meanwhile."""
    cdef kw_emit c
    cdef int lo = level_index(a, 1)
    cdef int hi = lo + <int>((end - a) >> 12)
    c.addr = canonical(a - (<uint64_t>lo << 12), k.t.levels)
    c.present = k.present
    c.perms = above
    c.next = next
    k.t.work.ptes += hi - lo
    if k.out == NULL:
        return pack_row(k, k.t.rows + row * 512, lo, hi, &c)
    return emit_row(k, k.t.rows + row * 512, lo, hi, &c)


# ------------------------------------------------------------------ the walk

cdef int64_t child(Walk *k, uint64_t e, uint64_t addr, int level) noexcept nogil:
    """Row of the table an entry points to, or KW_NONE with the entry noted if that can't be."""
    cdef kw_tables *t = k.t
    cdef int64_t row
    cdef int lv
    if not (e & PTE_P):
        note_bad(t, addr, level, e, BAD_NONPRESENT)
        return KW_NONE
    row = row_of_frame(t, (e & PTE_PFN_MASK) >> 12)
    if row < 0:
        note_bad(t, addr, level, e, BAD_FRAME)
        return KW_NONE
    for lv in range(level, <int>t.levels + 1):
        if k.rows[lv] == row:
            note_bad(t, addr, level, e, BAD_LOOP)
            return KW_NONE
    if not own_table(t, row, level - 1):
        note_bad(t, addr, level, e, BAD_FRAME)
        return KW_NONE
    return row


cdef int read_level(Walk *k, int64_t row, int level, uint64_t a, uint64_t end, uint8_t above) noexcept nogil:
    cdef kw_tables *t = k.t
    cdef uint64_t *p = t.rows + row * 512
    cdef uint64_t size = level_size(level), next, e
    cdef int i = level_index(a, level), code
    cdef int last = i + <int>((end - 1 - (a & ~(size - 1))) >> level_shift(level))
    cdef int64_t lower
    kw_check(last < 512)
    k.rows[level] = row
    t.work.entries[level] += last - i + 1
    while i <= last:
        e = p[i]
        next = (a & ~(size - 1)) + size
        if next > end or next == 0:
            next = end
        if entry_none(e) or (k.hardware and not (e & PTE_P)):
            pass
        elif (level == 2 or level == 3) and e & PTE_PS:
            if seen(k, e, level):
                code = KW_OK
                if beyond(t, e, level):
                    note_bad(t, a & ~(size - 1), level, e, BAD_PFN)
                elif k.out == NULL:
                    code = pack_leaves(k, p + i, 1 if t.max_pfn else last - i + 1, level, canonical(a & ~(size - 1), t.levels))
                    if code > 0:
                        # On to the last of them.
                        i += code - 1
                        next = min((a & ~(size - 1)) + code * size, end)
                        code = KW_OK
                else:
                    code = emit_leaf(k, e, a & ~(size - 1), level, above)
                if code != KW_OK:
                    return code
        elif level <= 3 and not entry_present(e, level):
            pass  # swap and migration entries, markers
        elif e & PTE_PS and level > 3:
            note_bad(t, a, level, e, BAD_LEAF)
        else:
            lower = child(k, e, a, level)
            if lower >= 0:
                if t.budget <= 0:
                    note_bad(t, a, level, e, BAD_BUDGET)
                    return KW_NONE  # ends the whole walk
                t.budget -= 1
                if t.budget & 1023 == 0 and k.alone and interrupted():
                    return KW_EINTR
                if level > 2:
                    code = read_level(k, lower, level - 1, a, next, above & entry_perms(e))
                else:
                    code = emit_ptes(k, lower, a, next, above & entry_perms(e), following(t, p, i, last))
                if code != KW_OK:
                    return code
        a = next
        i += 1
    k.rows[level] = -1
    return KW_OK


cdef int64_t world_mappings(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint runs, kw_mapping *out,
                            int64_t cap) noexcept nogil:
    cdef Walk k
    cdef kw_tables t
    cdef kw_work unseen
    cdef int code = KW_OK, lv
    if not honest_range(w.ctl.levels, start, end) or (start | end) & 4095 or cap < 0:
        return -EINVAL
    memset(&t, 0, sizeof(kw_tables))
    memset(&unseen, 0, sizeof(kw_work))
    t.rows = w.rows
    t.nrows = w.ctl.rows_used
    t.owner = w.r_owner
    t.root = w.mms[mm].root
    t.levels = w.ctl.levels
    t.budget = 16 * t.nrows + (1 << 20)
    t.bad = w.bad
    t.bad_cap = 1
    t.work = &unseen
    memset(&k, 0, sizeof(Walk))
    k.t = &t
    k.out = out
    k.cap = cap
    k.runs = runs
    k.present = PTE_P | PTE_PROTNONE
    k.alone = True
    for lv in range(6):
        k.rows[lv] = -1
    if start != end:
        code = read_level(&k, t.root, <int>t.levels, start, end, PERM_R | PERM_W | PERM_X | PERM_U)
    if code == KW_OK and t.bad_count:
        return KW_EBADENTRY
    return k.n if code == KW_OK or code == KW_NONE else code
