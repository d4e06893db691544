"""Mappings out of page tables and into them, at array speed.

Reads any `kw_tables`, a Host's arena or a read-only image in which entries may be anything at all: every row number is
checked before it is followed, and what can't be followed is noted and walked around.
"""
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EINVAL
from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.string cimport memset

from ksmwalk._core cimport (
    alone, busy, enter, entry_none, entry_pfn, entry_present, interrupted, leave, level_index, level_shift,
    level_size, pointer,
)
from ksmwalk.layout._layout cimport *


cdef extern from "_wide.h" nogil:
    ctypedef struct kw_emit:
        uint64_t addr
        uint64_t present
        uint8_t perms
    int kw_choose(int wide) noexcept
    void kw_prefetch_row(const uint64_t *row) noexcept
    int64_t kw_emit_row(const uint64_t *row, int lo, int hi, const kw_emit *c, kw_mapping *out) noexcept

kw_choose(1)


def choose_wide(bint wide):
    """As `_core.choose_wide`, for this module."""
    return kw_choose(wide)


# ------------------------------------------------------------------ reading

cdef inline uint64_t canonical(uint64_t addr, int64_t levels) noexcept nogil:
    """The address as the processor has it: the upper half sign-extended."""
    cdef int unused = <int>(64 - 12 - 9 * levels)
    return <uint64_t>(<int64_t>(addr << unused) >> unused)


cdef void note_bad(kw_tables *t, uint64_t addr, int level, uint64_t raw, int kind) noexcept nogil:
    cdef kw_bad *b
    if t.bad_count < t.bad_cap:
        b = &t.bad[t.bad_count]
        b.addr = canonical(addr, t.levels)
        b.level = level
        b.raw = raw
        b.kind = kind
    t.bad_count += 1


cdef int64_t row_of_frame(const kw_tables *t, uint64_t frame) noexcept nogil:
    cdef int64_t lo = 0, hi, mid
    if t.frames == NULL:
        return <int64_t>frame if frame < <uint64_t>t.nrows else KW_NONE
    hi = t.nrows
    while lo < hi:
        mid = (lo + hi) >> 1
        if t.frames[mid] < frame:
            lo = mid + 1
        else:
            hi = mid
    return t.order[lo] if lo < t.nrows and t.frames[lo] == frame else KW_NONE


cdef inline uint8_t entry_perms(uint64_t e) noexcept nogil:
    cdef uint8_t p = PERM_R
    if e & PTE_RW:
        p |= PERM_W
    if e & PTE_US:
        p |= PERM_U
    if not (e & PTE_NX):
        p |= PERM_X
    return p


cdef inline bint joins(const kw_mapping *a, const kw_mapping *b) noexcept nogil:
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


ctypedef struct Walk:
    kw_tables *t
    kw_mapping *out
    int64_t n
    int64_t cap
    bint hardware
    bint runs
    uint64_t present
    int64_t rows[6]


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


cdef int emit_leaf(Walk *k, uint64_t e, uint64_t addr, int level, uint8_t above) noexcept nogil:
    cdef kw_mapping *o
    cdef uint64_t pfn = entry_pfn(e, level)
    if k.t.max_pfn and pfn + (level_size(level) >> 12) > <uint64_t>k.t.max_pfn:
        note_bad(k.t, addr, level, e, BAD_PFN)
        return KW_OK
    if k.n >= k.cap:
        return KW_EFULL
    o = &k.out[k.n]
    o.addr = canonical(addr, k.t.levels)
    o.pfn = pfn
    o.flags = (e & ~PTE_PFN_MASK) | (e & PTE_PAT_LARGE)
    o.level = <uint8_t>level
    o.perms = above & entry_perms(e)
    o.unused = 0
    o.nr = 1
    k.n += 1
    if k.runs and k.n > 1 and joins(&k.out[k.n - 2], o):
        k.out[k.n - 2].nr += 1
        k.n -= 1
    return KW_OK


cdef int drop_beyond(Walk *k, const uint64_t *row, int64_t first) noexcept nogil:
    """Leaves of one table beyond the end of memory: noted and taken out again."""
    cdef int64_t i, n = first
    for i in range(first, k.n):
        if k.out[i].pfn >= <uint64_t>k.t.max_pfn:
            note_bad(k.t, k.out[i].addr, 1, row[level_index(k.out[i].addr, 1)], BAD_PFN)
        else:
            if n != i:
                k.out[n] = k.out[i]
            n += 1
    k.n = n
    return 0


cdef int emit_carefully(Walk *k, const uint64_t *row, int lo, int hi, const kw_emit *c) noexcept nogil:
    """The ptes of one table where the output may not have room for all that there could be."""
    cdef kw_mapping spare[512]
    cdef int64_t found = kw_emit_row(row, lo, hi, c, spare), i
    for i in range(found):
        if k.t.max_pfn and spare[i].pfn >= <uint64_t>k.t.max_pfn:
            note_bad(k.t, spare[i].addr, 1, row[level_index(spare[i].addr, 1)], BAD_PFN)
        elif k.runs and k.n > 0 and joins(&k.out[k.n - 1], &spare[i]):
            k.out[k.n - 1].nr += 1
        elif k.n < k.cap:
            k.out[k.n] = spare[i]
            k.n += 1
        else:
            return KW_EFULL
    return KW_OK


cdef int emit_ptes(Walk *k, int64_t row, uint64_t a, uint64_t end, uint8_t above) noexcept nogil:
    """The ptes of one table for [a, end) inside it."""
    cdef kw_emit c
    cdef int lo = level_index(a, 1)
    cdef int hi = lo + <int>((end - a) >> 12)
    cdef int64_t before = k.n
    c.addr = canonical(a - (<uint64_t>lo << 12), k.t.levels)
    c.present = k.present
    c.perms = above
    k.t.work.ptes += hi - lo
    if k.n + (hi - lo) > k.cap:
        return emit_carefully(k, k.t.rows + row * 512, lo, hi, &c)
    k.n += kw_emit_row(k.t.rows + row * 512, lo, hi, &c, k.out + k.n)
    if k.t.max_pfn:
        drop_beyond(k, k.t.rows + row * 512, before)
    if k.runs:
        k.n = fold_runs(k.out, k.n, before)
    return KW_OK


cdef int read_level(Walk *k, int64_t row, int level, uint64_t a, uint64_t end, uint8_t above) noexcept nogil:
    """All mappings of [a, end) lower one table; KW_EFULL: the output is full; KW_EINTR."""
    cdef kw_tables *t = k.t
    cdef uint64_t *p = t.rows + row * 512
    cdef uint64_t size = level_size(level), next, e
    cdef int i = level_index(a, level), ahead, code
    cdef int last = i + <int>((end - 1 - (a & ~(size - 1))) >> level_shift(level))
    cdef int64_t lower
    cdef uint64_t f
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
            if k.hardware or entry_present(e, level):
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
                if t.budget & 1023 == 0 and interrupted():
                    return KW_EINTR
                if level > 2:
                    code = read_level(k, lower, level - 1, a, next, above & entry_perms(e))
                else:
                    # While this table is read the next one is on its way.
                    for ahead in range(i + 1, min(i + 3, last + 1)):
                        f = p[ahead]
                        if f & PTE_P and not (f & PTE_PS) and t.frames == NULL:
                            f = (f & PTE_PFN_MASK) >> 12
                            if f < <uint64_t>t.nrows:
                                kw_prefetch_row(t.rows + f * 512)
                            break
                    code = emit_ptes(k, lower, a, next, above & entry_perms(e))
                if code != KW_OK:
                    return code
        a = next
        i += 1
    k.rows[level] = -1
    return KW_OK


cdef class Tables:
    """Binding of one set of page tables: pointers and bounds. `PageTables` is the door people use.

    Parameters
    ----------
    rows : ndarray of uint64, shape (n, 512)
        The table pages; only read unless a World goes with them.
    root : int
        Row of the top table.
    levels : int
        4 or 5.
    frames, order : ndarray or None
        Ascending frame numbers of an image that is not whole, and the row of each.
    max_pfn : int
        Leaves at or beyond it are bad; 0: any frame may be mapped.
    bad : ndarray of layout.BAD
        Where the first bad entries are noted.
    work : ndarray of layout.WORK, shape (1,)
        Work counts.
    world, mm, life
        Of an arena: the World it belongs to, whose tables they are, and whether that mm is still there.
    """

    def __cinit__(self, rows, root, levels, frames, order, max_pfn, bad, work, world=None, mm=0, life=None):
        self.arrays = (rows, frames, order, bad, work)
        memset(&self.t, 0, sizeof(kw_tables))
        self.t.rows = <uint64_t *>pointer(rows, False)
        self.t.nrows = len(rows)
        self.t.root = root
        self.t.levels = levels
        if frames is not None:
            self.t.frames = <const uint64_t *>pointer(frames, False)
            self.t.order = <const int64_t *>pointer(order, False)
        if world is not None:
            self.t.owner = (<World>world).w.r_owner
        self.t.max_pfn = max_pfn
        self.t.bad = <kw_bad *>pointer(bad, True)
        self.t.bad_cap = len(bad)
        self.t.work = <kw_work *>pointer(work, True)
        self.world = world
        self.mm = mm
        self.life = life
        self.t.readonly = world is None

    def __reduce__(self):
        raise TypeError("a Tables is pointers: pickle the PageTables that owns the arrays")

    @property
    def bad_count(self):
        """Bad entries met so far; the first ones are in the `bad` array."""
        return self.t.bad_count

    def forget_bad(self):
        """Set the count of bad entries to zero."""
        self.t.bad_count = 0

    def check(self):
        """Raise ReferenceError if they are page tables of an address space, or a Host, that is gone."""
        if self.life is not None:
            self.life.check()
        if self.world is not None:
            alone(self.world)

    cdef void sync(self) noexcept:
        # In an arena the rows used so far are the image.
        if self.world is not None:
            self.t.nrows = self.world.w.ctl.rows_used

    cdef int take_mark(self) except -1:
        """Take the mark of the World, or of an image its own, and look how many rows there are."""
        cdef unsigned long me = <unsigned long>PyThread_get_thread_ident()
        if self.life is not None and self.life.gone:
            self.life.check()
        if self.world is not None:
            enter(self.world)
            self.sync()
            return 0
        if self.depth and self.thread != me:
            raise RuntimeError(busy(self.thread))
        self.thread = me
        self.depth += 1
        return 0

    cdef void drop_mark(self) noexcept:
        if self.world is not None:
            leave(self.world)
        else:
            self.depth -= 1


def read_mappings(Tables tables not None, uint64_t start, uint64_t end, bint hardware, bint runs, out, int64_t budget):
    """Fill `out` (layout.MAPPING) with the mappings of [start, end), in ascending order.

    The range is as the tables index it, from 0 to 2**48 or 2**57: the upper half follows the lower one.

    Returns
    -------
    int
        Records written, or KW_EFULL if `out` is too short. Bad entries are noted in the Tables.
    """
    cdef Walk k
    cdef int code, lv
    if not honest_range(tables.t.levels, start, end) or (start | end) & 4095:
        raise ValueError(f"range {start:#x}-{end:#x}: not page aligned, or beyond {tables.t.levels} levels")
    k.out = <kw_mapping *>pointer(out, True)
    k.n = 0
    k.cap = len(out)
    k.hardware = hardware
    k.runs = runs
    k.present = PTE_P if hardware else PTE_P | PTE_PROTNONE
    for lv in range(6):
        k.rows[lv] = -1
    tables.take_mark()
    k.t = &tables.t
    code = KW_OK
    if start != end and 0 <= tables.t.root < tables.t.nrows:
        tables.t.budget = budget
        with nogil:
            code = read_level(&k, tables.t.root, <int>tables.t.levels, start, end, PERM_R | PERM_W | PERM_X | PERM_U)
    tables.drop_mark()
    return k.n if code == KW_OK or code == KW_NONE else code


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
    for lv in range(6):
        k.rows[lv] = -1
    if start != end:
        code = read_level(&k, t.root, <int>t.levels, start, end, PERM_R | PERM_W | PERM_X | PERM_U)
    if code == KW_OK and t.bad_count:
        return KW_EBADENTRY
    return k.n if code == KW_OK or code == KW_NONE else code
