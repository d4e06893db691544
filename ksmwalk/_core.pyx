"""The compiled core: the binding to a Host's arrays, table pages, and the finder of mergeable pages.

The contract of every function stands in `_core.pxd`.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memset


cdef extern from "_wide.h" nogil:
    int kw_first(const uint64_t *row, int lo, int hi, uint64_t mask) noexcept
    int kw_choose(int wide) noexcept
    void kw_prefetch_row(const uint64_t *row) noexcept

cdef extern from * nogil:
    """
    #ifndef KSMWALK_PROFILE
    #define KSMWALK_PROFILE "unknown"
    #endif
    static const char *kw_profile(void) { return KSMWALK_PROFILE; }
    static const char *kw_compiler(void) { return __VERSION__; }
    """
    const char *kw_profile() noexcept
    const char *kw_compiler() noexcept

include "layout/_arrays.pxi"

cdef bint WIDE = kw_choose(1)
cdef uint64_t PRESENT = PTE_P | PTE_PROTNONE


# ------------------------------------------------------------------ the binding

cdef void *address_of(object array, str name, Py_ssize_t itemsize, bint writable) except? NULL:
    """Pointer to the first byte of a C-contiguous array; the caller keeps the array alive."""
    cdef Py_buffer view
    cdef void *p
    if array.dtype.itemsize != itemsize:
        raise TypeError(f"array {name!r}: records of {array.dtype.itemsize} bytes ({array.dtype}), needed {itemsize}")
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    p = view.buf
    PyBuffer_Release(&view)
    return p


cdef class World:
    """Pointers into the arrays of a Host, taken once (the arenas never move).

    Parameters
    ----------
    arrays : dict of str to ndarray
        C-contiguous arrays under the field names of `kw_world` (see `_layout.h`). Missing ones are NULL: functions that
        need them must not be called.

    Raises
    ------
    TypeError
        An array whose records have the wrong size, with its name.
    """

    def __cinit__(self, dict arrays):
        self.arrays = dict(arrays)
        memset(&self.w, 0, sizeof(kw_world))
        cdef dict at = {}
        for name, array in arrays.items():
            if name not in RECORD_SIZES:
                raise TypeError(f"array {name!r}: not a field of kw_world")
            at[name] = <size_t>address_of(array, name, RECORD_SIZES[name], True)
        bind_arrays(&self.w, at)

    def __reduce__(self):
        raise TypeError("a World is pointers: pickle the Host that owns the arrays")


# ------------------------------------------------------------------ table pages

cdef int64_t row_alloc(kw_world *w) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int64_t row
    cdef uint64_t *p
    if c.rows_free:
        row = c.rows_free
        p = w.rows + row * 512
        c.rows_free = <int64_t>p[0]
        p[0] = 0
    else:
        if c.rows_used >= c.rows_cap:
            return KW_ENOROWS
        row = c.rows_used
        c.rows_used += 1
    c.rows_live += 1
    return row


cdef void row_free(kw_world *w, int64_t row) noexcept nogil:
    cdef uint64_t *p = w.rows + row * 512
    kw_check(row > 0 and row < w.ctl.rows_used)
    memset(p, 0, 4096)
    # The free list is threaded through the first word of the free rows.
    p[0] = <uint64_t>w.ctl.rows_free
    w.ctl.rows_free = row
    w.ctl.rows_live -= 1


cdef uint64_t *entry_find(kw_world *w, int64_t root, uint64_t addr, int level) noexcept nogil:
    """The entry of addr at a level, NULL if a table above it is missing or a leaf stands there."""
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = root
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if lv == level:
            return p
        if entry_leaf(p[0], lv):
            return NULL
        row = child_row(w, p[0])
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t *pmd_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil:
    return entry_find(w, root, addr, 2)


cdef uint64_t *pte_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil:
    return entry_find(w, root, addr, 1)


cdef uint64_t *entry_make(kw_world *w, int32_t mm, uint64_t addr, int level) noexcept nogil:
    """The entry of addr at a level, with the tables above it made where missing.

    NULL: no rows left (tables made on the way stay, empty), or something that is not a table stands in the way.
    """
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = w.mms[mm].root, child
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if lv == level:
            return p
        if entry_none(p[0]):
            child = row_alloc(w)
            if child < 0:
                return NULL
            w.mms[mm].nr_tables += 1
            p[0] = make_entry(<uint64_t>child, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
        elif entry_leaf(p[0], lv):
            return NULL
        row = child_row(w, p[0])
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t *pmd_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return entry_make(w, mm, addr, 2)


cdef uint64_t *pte_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return entry_make(w, mm, addr, 1)


cdef uint64_t *leaf_find(kw_world *w, int64_t root, uint64_t addr, int *level) noexcept nogil:
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = root
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if entry_none(p[0]) or not entry_present(p[0], lv):
            return NULL
        if entry_leaf(p[0], lv):
            level[0] = lv
            return p
        row = child_row(w, p[0])
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t split_flags(uint64_t e, int level) noexcept nogil:
    """Flags of the leaves one level down: PAT moves between bit 12 (large) and bit 7 (pte)."""
    cdef uint64_t flags = e & ~PTE_PFN_MASK
    if level == 2:
        flags &= ~PTE_PS
        if e & PTE_PAT_LARGE:
            flags |= PTE_PAT
    return flags


cdef int split_leaf(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil:
    cdef int64_t row = row_alloc(w)
    cdef uint64_t e = entry[0], flags, pfn, step
    cdef uint64_t *p
    cdef int i
    if row < 0:
        return KW_ENOROWS
    flags = split_flags(e, level)
    pfn = entry_pfn(e, level)
    step = level_size(level - 1) >> 12
    if level == 3:
        flags |= e & PTE_PAT_LARGE  # still a large leaf: bit 12 stays its PAT bit
    p = w.rows + row * 512
    for i in range(512):
        p[i] = make_leaf(pfn, flags, level - 1)
        pfn += step
    entry[0] = make_entry(<uint64_t>row, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
    if w.mms != NULL:
        w.mms[mm].nr_tables += 1
    return KW_OK


# ------------------------------------------------------------------ the finder

cdef inline void count_pass(kw_work *work, int levels, int level, int64_t n, bint per_address) noexcept nogil:
    """n addresses (per-address) or n entries (range) passed at a level without a page being found there."""
    cdef int lv
    if per_address:
        work.lookups += n
        work.lookup_misses += n
        work.resched += n
        for lv in range(level, levels + 1):
            if lv > 1:
                work.entries[lv] += n
        if level <= 1:
            work.ptes += n
    elif level > 1:
        work.entries[level] += n
    else:
        work.ptes += n


cdef int64_t find_in_ptes(kw_world *w, uint64_t *row, uint64_t *addr, uint64_t end, bint per_address) noexcept nogil:
    """The search within one pte table, [*addr, end) inside it."""
    cdef int first = level_index(addr[0], 1)
    cdef int stop = first + <int>((end - addr[0]) >> 12)
    cdef int i = first
    cdef uint64_t base = addr[0] - (<uint64_t>first << 12), e, pfn
    cdef int64_t nr_frames = w.ctl.nr_frames
    while i < stop:
        e = row[i]
        if not (e & PRESENT):
            i = kw_first(row, i, stop, PRESENT)
            continue
        if not (e & PTE_SPECIAL):
            pfn = (entry_decode(e) & PTE_PFN_MASK) >> 12
            if <int64_t>pfn >= nr_frames:
                addr[0] = base + (<uint64_t>i << 12)
                return KW_EBADENTRY
            if eligible(w.f_flags[pfn]):
                addr[0] = base + (<uint64_t>i << 12)
                if per_address:
                    count_pass(w.work, <int>w.ctl.levels, 1, i - first, True)
                else:
                    w.work.ptes += i - first + 1
                return <int64_t>pfn
        i += 1
    count_pass(w.work, <int>w.ctl.levels, 1, stop - first, per_address)
    addr[0] = base + (<uint64_t>stop << 12)
    return KW_NONE


cdef inline void count_hit(kw_work *work, int levels, int level, bint per_address) noexcept nogil:
    cdef int lv
    if per_address:
        work.lookups += 1
        work.resched += 1
        for lv in range(level, levels + 1):
            if lv > 1:
                work.entries[lv] += 1
        if level == 1:
            work.ptes += 1


cdef inline int64_t steps_so_far(kw_work *work, bint per_address) noexcept nogil:
    if per_address:
        return work.lookups
    return work.entries[2] + work.entries[3] + work.entries[4] + work.entries[5] + work.ptes


cdef int64_t find_page(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    cdef bint per = w.cursor.strategy == STRATEGY_PER_ADDRESS
    cdef kw_work *work = w.work
    cdef int64_t before, pfn
    cdef uint64_t a = addr[0]
    if a >= end:
        return KW_NONE
    before = steps_so_far(work, per)
    pfn = find_from(w, mm, addr, end)
    before = steps_so_far(work, per) - before
    if before > work.longest:
        work.longest = before
    return pfn


cdef int64_t find_from(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    cdef kw_work *work = w.work
    cdef kw_cursor *cur = w.cursor
    cdef int levels = <int>w.ctl.levels, level, i, stop
    cdef bint per = cur.strategy == STRATEGY_PER_ADDRESS
    cdef int64_t rows[6]
    cdef int64_t pfn, found
    cdef uint64_t a = addr[0], e = 0, next, size, sub
    cdef uint64_t *row
    if per and cur.real_lookups:
        return find_really(w, mm, addr, end)
    # The table of the last search again, instead of a fresh descent.
    if (a & ~(KW_PMD_SIZE - 1)) == cur.cache_base:
        next = min(cur.cache_base + KW_PMD_SIZE, end)
        pfn = find_in_ptes(w, w.rows + cur.cache_row * 512, &a, next, per)
        if not per:
            work.cached += 1
        if pfn != KW_NONE:
            if pfn >= 0:
                count_hit(work, levels, 1, per)
            addr[0] = a
            return pfn
        forget_table(w)
    elif not per:
        work.searches += 1
    level = levels
    rows[level] = w.mms[mm].root
    while a < end:
        size = level_size(level)
        row = w.rows + rows[level] * 512
        i = level_index(a, level)
        # Entries of this table that the range reaches.
        if ((a ^ (end - 1)) >> level_shift(level + 1)) == 0:
            stop = level_index(end - 1, level) + 1
        else:
            stop = 512
        while i < stop:
            e = row[i]
            if entry_none(e):
                # A hole: on to the end of the entry, nothing below it is touched.
                next = min((a & ~(size - 1)) + size, end)
                count_pass(work, levels, level, <int64_t>((next - a) >> 12) if per else 1, per)
                work.holes += 1
                a = next
                i += 1
                continue
            break
        if i == stop:
            if level == levels or a >= end:
                break
            # The table is done: go on in the one above.
            level += 1
            while level < levels and level_index(a, level) == 0:
                level += 1
            continue
        next = min((a & ~(size - 1)) + size, end)
        if not per:
            work.entries[level] += 1
        if level == 2:
            if not per:
                work.resched += 1
                work.callbacks += 1
            if not pmd_present(e):
                if per:
                    count_pass(work, levels, 2, <int64_t>((next - a) >> 12), True)
                a = next
            elif entry_leaf(e, 2):
                pfn = <int64_t>entry_pfn(e, 2)
                if not (e & PTE_SPECIAL):
                    if pfn + 512 > w.ctl.nr_frames:
                        addr[0] = a
                        return KW_EBADENTRY
                    if eligible(w.f_flags[pfn]):
                        sub = (a & (KW_PMD_SIZE - 1)) >> 12
                        count_hit(work, levels, 2, per)
                        addr[0] = a
                        return pfn + <int64_t>sub
                if per:
                    count_pass(work, levels, 2, <int64_t>((next - a) >> 12), True)
                a = next
            else:
                pfn = child_row(w, e)
                if pfn < 0:
                    addr[0] = a
                    return KW_EBADENTRY
                # While this table is searched the next one is on its way.
                if i + 1 < stop and not entry_leaf(row[i + 1], 2):
                    found = child_row(w, row[i + 1])
                    if found >= 0:
                        kw_prefetch_row(w.rows + found * 512)
                cur.cache_base = a & ~(KW_PMD_SIZE - 1)
                cur.cache_row = pfn
                cur.cache_end = next
                pfn = find_in_ptes(w, w.rows + pfn * 512, &a, next, per)
                if pfn != KW_NONE:
                    if pfn >= 0:
                        count_hit(work, levels, 1, per)
                    addr[0] = a
                    return pfn
                forget_table(w)
                a = next
        elif entry_leaf(e, level):
            # Within a vma a leaf is split before the walk goes below it.
            if split_leaf(w, mm, &row[i], level) != KW_OK:
                addr[0] = a
                return KW_ENOROWS
            if not per:
                work.entries[level] -= 1
            continue
        elif level == 3 and not pte_present(e):
            if per:
                count_pass(work, levels, 3, <int64_t>((next - a) >> 12), True)
            a = next
        else:
            pfn = child_row(w, e)
            if pfn < 0:
                addr[0] = a
                return KW_EBADENTRY
            level -= 1
            rows[level] = pfn
            continue
        # Left an entry of this table: up if it was the last.
        while level < levels and level_index(a, level) == 0:
            level += 1
    addr[0] = end
    return KW_NONE


cdef int64_t find_really(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    """The scan before the patch, performed: one full descent for every address."""
    cdef kw_work *work = w.work
    cdef int levels = <int>w.ctl.levels, level
    cdef int64_t row, pfn
    cdef uint64_t a = addr[0], e
    cdef int64_t root = w.mms[mm].root
    while a < end:
        work.lookups += 1
        work.resched += 1
        row = root
        level = levels
        pfn = KW_NONE
        while True:
            e = w.rows[row * 512 + level_index(a, level)]
            if level > 1:
                work.entries[level] += 1
            else:
                work.ptes += 1
            if entry_none(e) or not entry_present(e, level):
                break
            if entry_leaf(e, level):
                if not (e & PTE_SPECIAL):
                    pfn = <int64_t>(entry_pfn(e, level) + ((a & (level_size(level) - 1)) >> 12))
                    if pfn >= w.ctl.nr_frames:
                        addr[0] = a
                        return KW_EBADENTRY
                    if not eligible(w.f_flags[pfn]):
                        pfn = KW_NONE
                break
            row = child_row(w, e)
            if row < 0:
                addr[0] = a
                return KW_EBADENTRY
            level -= 1
        if pfn >= 0:
            addr[0] = a
            return pfn
        work.lookup_misses += 1
        a += KW_PAGE_SIZE
    addr[0] = end
    return KW_NONE


# ------------------------------------------------------------------ what Python sees

def choose_wide(bint wide):
    """Use the wide (AVX2) inner loops where the processor has them, or the plain ones; whether wide ones are in use.

    For tests and benchmarks; the choice made on import is the fast one. Each compiled module has its own switch.
    """
    global WIDE
    WIDE = kw_choose(wide)
    return WIDE


def build_facts():
    """(profile, compiler version, wide loops in use) of the compiled core."""
    return kw_profile().decode(), kw_compiler().decode(), WIDE


cdef extern from "_layout_table.h" nogil:
    ctypedef struct kw_fact:
        const char *record
        const char *field
        int64_t value
    const kw_fact *kw_fields
    const kw_fact *kw_constants


def layout_offsets():
    """{record: (size, {field: offset})} as the C compiler has it; a test holds layout.py to it."""
    out = {}
    cdef const kw_fact *p = kw_fields
    while p.record != NULL:
        record, field = p.record.decode(), p.field.decode()
        if field:
            out[record][1][field] = p.value
        else:
            out[record] = (p.value, {})
        p += 1
    return out


def constants():
    """{name: value} of the named bits and codes as the C compiler has them; a test holds layout.py to it."""
    out = {}
    cdef const kw_fact *p = kw_constants
    while p.field != NULL:
        name = p.field.decode()
        # Bits are unsigned, codes are not.
        out[name] = <uint64_t>p.value if name.startswith(("PTE_", "VM_")) else p.value
        p += 1
    return out
