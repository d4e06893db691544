"""The binding of one set of page tables, a Host's arena or a read-only image in which entries may be anything at all.

Every row number is checked before it is followed, and what can't be followed is noted.
"""
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from ksmwalk._core cimport alone, busy, enter, leave, pointer
from ksmwalk.layout._layout cimport *


cdef void note_bad(kw_tables *t, uint64_t addr, int level, uint64_t raw, int kind) noexcept nogil:
    cdef kw_bad *b
    if t.bad_count < t.bad_cap:
        b = &t.bad[t.bad_count]
        b.addr = canonical(addr, t.levels)
        b.level = level
        b.raw = raw
        b.kind = kind
    t.bad_count += 1


cdef int64_t row_among_frames(const kw_tables *t, uint64_t frame) noexcept nogil:
    cdef int64_t lo = 0, hi = t.nrows, mid
    while lo < hi:
        mid = (lo + hi) >> 1
        if t.frames[mid] < frame:
            lo = mid + 1
        else:
            hi = mid
    return t.order[lo] if lo < t.nrows and t.frames[lo] == frame else KW_NONE


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
