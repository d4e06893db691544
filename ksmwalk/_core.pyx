"""The compiled core: the binding to a Host's arrays, and table pages.

The contract of every function stands in `_core.pxd`.
"""
from cpython.buffer cimport PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_REFCNT
cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from collections.abc import ItemsView, KeysView, Mapping, ValuesView

from ksmwalk.layout._layout cimport *


from ksmwalk.layout._poison cimport kw_poison, kw_unpoison


cdef extern from "_wide.h" nogil:
    int kw_choose(int most) noexcept

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

#: arrays with links that may be built late
cdef tuple LATE = ("links", "nodes", "trees")


# ------------------------------------------------------------------ the binding

cdef void *pointer(object array, bint writable) except? NULL:
    cdef Py_buffer view
    cdef void *p
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    p = view.buf
    PyBuffer_Release(&view)
    return p


cdef void *records(object array, bint writable, int64_t itemsize, int64_t size, int64_t *n) except? NULL:
    cdef Py_buffer view
    cdef void *p
    PyObject_GetBuffer(array, &view, PyBUF_ND | (PyBUF_WRITABLE if writable else 0))
    p = view.buf
    n[0] = view.len // size
    itemsize -= view.itemsize
    size = view.len - n[0] * size
    PyBuffer_Release(&view)
    if itemsize or size:
        raise ValueError("an array of the wrong type or shape")
    return p


@cython.final
@cython.no_gc
@cython.freelist(8)
@cython.auto_pickle(False)
cdef class Arrays:
    """A Host's arrays by name: `World.arrays`.

    Links of trees are built late. Whoever fetches an array that holds some has them built first, and as long as he keeps
    it (or a view of it) `Ksm.do_scan` builds them at once.
    """

    cdef World world

    def __init__(self, *_, **__):
        raise TypeError("the arrays of a Host are made by it: host.world.arrays")

    def __getitem__(self, name):
        cdef object array = self.world.held[name]
        if self.world.w.settle != NULL and name in LATE:
            alone(self.world)
            self.world.w.settle(&self.world.w)
        return array

    def __iter__(self):
        return iter(self.world.held)

    def __len__(self):
        return len(self.world.held)

    def __contains__(self, name):
        return name in self.world.held

    def get(self, name, default=None):
        return self[name] if name in self.world.held else default

    def keys(self):
        return KeysView(self)

    def values(self):
        return ValuesView(self)

    def items(self):
        return ItemsView(self)

    def __reduce__(self):
        raise TypeError("the arrays of a Host are a door into it: pickle the Host")


Mapping.register(Arrays)


cdef bint looked_at(World world) except -1:
    for name in LATE:
        array = world.held.get(name)
        # A Host holds it twice, `array` once; where it is a view of the whole, views of it hold on to what it is a view of.
        if array is not None and (Py_REFCNT(array) > 3 or array.base is not None and base_count(array) > 1):
            return True
    return False


cdef Py_ssize_t base_count(object array) except -1:
    """References to the array that this one is a view of, this one's included."""
    cdef object base = array.base
    return Py_REFCNT(base) - 1 if type(base) is type(array) else 0


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
        self.held = dict(arrays)
        memset(&self.w, 0, sizeof(kw_world))
        cdef dict at = {}
        for name, array in arrays.items():
            if name not in RECORD_SIZES:
                raise TypeError(f"array {name!r}: not a field of kw_world")
            if array.dtype.itemsize != RECORD_SIZES[name]:
                need = RECORD_SIZES[name]
                raise TypeError(f"array {name!r}: records of {array.dtype.itemsize} bytes ({array.dtype}), needed {need}")
            at[name] = <size_t>pointer(array, True)
        bind_arrays(&self.w, at)

    def __dealloc__(self):
        if self.w.forget != NULL:
            self.w.forget(&self.w)

    @property
    def arrays(self):
        """The arrays by name, a read-only mapping. What the engine builds late is built when it is fetched here."""
        cdef Arrays arrays = Arrays.__new__(Arrays)
        arrays.world = self
        return arrays

    def close(self):
        """Say that the Host is gone: whatever is called with this World from now on raises ReferenceError."""
        self.gone = True

    def live(self):
        """The Host, or None where none was ever attached.

        Raises
        ------
        ReferenceError
            The Host was dropped.
        """
        if self.gone:
            refuse(self)
        if self.owner is None:
            return None
        host = self.owner()
        if host is None:
            self.gone = True
            refuse(self)
        return host

    def __enter__(self):
        # For what takes several compiled calls and must not be interleaved with another thread's.
        enter(self)
        return self

    def __exit__(self, *unused):
        leave(self)

    def __reduce__(self):
        raise TypeError("a World is pointers: pickle the Host that owns the arrays")


cdef class Life:
    """Whether something that several doors stand for is still there; once gone it stays gone."""

    def __cinit__(self, str what):
        self.what = what

    def end(self):
        """It is gone from now on."""
        self.gone = True

    def check(self):
        """Raise ReferenceError if it is gone."""
        if self.gone:
            raise ReferenceError(f"{self.what} is gone")


cdef int refuse(World world) except -1:
    if world.gone or not world.depth:
        raise ReferenceError("the Host is gone: keep it as long as its doors are in use")
    raise RuntimeError(busy(world.thread))


cdef str busy(unsigned long thread):
    """What a second thread is told."""
    import threading

    name = next((repr(t.name) for t in threading.enumerate() if t.ident == thread), str(thread))
    return f"in use by thread {name}: one thread at a time per Host (or PageTables)"


# ------------------------------------------------------------------ table pages

cdef int64_t row_alloc(kw_world *w, int32_t owner) noexcept nogil:
    cdef kw_ctl *c = w.ctl
    cdef int64_t row = c.rows_free
    cdef uint64_t *p
    # The link in a free row may have been written over by hand: what is no free row ends the list.
    if 0 < row < c.rows_used and w.r_owner[row] == 0:
        p = w.rows + row * 512
        kw_unpoison(p, 4096)
        c.rows_free = <int64_t>p[0]
        # It was zeroed when it was freed; a view of it that somebody kept may have been written to since.
        memset(p, 0, 4096)
    else:
        c.rows_free = 0
        if c.rows_used >= c.rows_cap:
            return KW_ENOROWS
        row = c.rows_used
        c.rows_used += 1
    w.r_owner[row] = owner
    c.rows_live += 1
    return row


cdef void row_free(kw_world *w, int64_t row) noexcept nogil:
    cdef uint64_t *p = w.rows + row * 512
    kw_check(row > 0 and row < w.ctl.rows_used)
    if w.r_owner[row] == 0:
        return
    memset(p, 0, 4096)
    # The free list is threaded through the first word of the free rows.
    p[0] = <uint64_t>w.ctl.rows_free
    w.r_owner[row] = 0
    w.ctl.rows_free = row
    kw_poison(p + 1, 4096 - 8)
    w.ctl.rows_live -= 1
    w.rows_freed += 1


cdef void table_free(kw_world *w, int32_t mm, uint64_t *entry, int64_t row) noexcept nogil:
    entry[0] = 0
    row_free(w, row)
    w.mms[mm].nr_tables -= 1


cdef bint table_empty(kw_world *w, int64_t row) noexcept nogil:
    cdef int i
    for i in range(512):
        if w.rows[row * 512 + i]:
            return False
    return True


cdef int bad_entry(kw_world *w, uint64_t addr, int level, uint64_t e, int kind) noexcept nogil:
    w.bad.addr = addr
    w.bad.level = level
    w.bad.raw = e
    w.bad.kind = kind
    return KW_EBADENTRY


cdef int64_t below(kw_world *w, const uint64_t *entry, int level, uint64_t addr) noexcept nogil:
    cdef int64_t row = child_row(w, entry)
    if row >= 0:
        return row
    if level <= 3 and not entry_present(entry[0], level):
        return KW_NONE      # swapped out, or a marker
    return bad_entry(w, addr, level, entry[0], BAD_LEAF if level > 3 and entry[0] & PTE_PS else BAD_FRAME)


cdef uint64_t *entry_find(kw_world *w, int64_t root, uint64_t addr, int level) noexcept nogil:
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = root
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if lv == level:
            return p
        row = child_row(w, p)
        if row < 0:
            return NULL
        lv -= 1


cdef uint64_t *entry_make(kw_world *w, int32_t mm, uint64_t addr, int level) noexcept nogil:
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = w.mms[mm].root
    cdef uint64_t *p
    while True:
        p = w.rows + row * 512 + level_index(addr, lv)
        if lv == level:
            return p
        lv -= 1
        if entry_none(p[0]):
            row = row_alloc(w, row_owner(mm, lv))
            if row < 0:
                return NULL
            w.mms[mm].nr_tables += 1
            p[0] = table_entry(row)
        else:
            row = child_row(w, p)
            if row < 0:
                return NULL


cdef int no_entry(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    cdef int lv = <int>w.ctl.levels
    cdef int64_t row = w.mms[mm].root
    cdef uint64_t *p
    while lv > 1:
        p = w.rows + row * 512 + level_index(addr, lv)
        if entry_none(p[0]):
            break
        row = child_row(w, p)
        if row < 0:
            return bad_entry(w, addr, lv, p[0], BAD_FRAME)
        lv -= 1
    return KW_ENOROWS


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
        row = child_row(w, p)
        if row < 0:
            return NULL
        lv -= 1


cdef int sound_below(kw_world *w, int64_t row, int level, uint64_t addr, uint64_t end) noexcept nogil:
    cdef uint64_t size = level_size(level)
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef int64_t child
    cdef int rc
    while addr < end:
        if not entry_none(p[0]) and not entry_leaf(p[0], level):
            child = below(w, p, level, addr)
            if child == KW_EBADENTRY:
                return KW_EBADENTRY
            if child >= 0 and level > 2:
                rc = sound_below(w, child, level - 1, addr, min((addr & ~(size - 1)) + size, end))
                if rc < 0:
                    return rc
        addr = (addr & ~(size - 1)) + size
        p += 1
    return KW_OK


cdef int tables_sound(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    if start >= end:
        return KW_OK
    return sound_below(w, w.mms[mm].root, <int>w.ctl.levels, start, end)


cdef uint64_t split_flags(uint64_t e, int level) noexcept nogil:
    """Flags of the leaves one level down: PAT moves between bit 12 (large) and bit 7 (pte)."""
    cdef uint64_t flags = e & ~PTE_PFN_MASK
    if level == 2:
        flags &= ~PTE_PS
        if e & PTE_PAT_LARGE:
            flags |= PTE_PAT
    return flags


cdef int split_leaf(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil:
    cdef int64_t row = row_alloc(w, w.r_owner[row_of(w, entry)] - 1)
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
    entry[0] = table_entry(row)
    w.mms[mm].nr_tables += 1
    return KW_OK


# ------------------------------------------------------------------ signals

cdef object PENDING = None   # the exception that a signal's handler raised, until the door raises it


cdef int interrupted() noexcept nogil:
    global PENDING
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            PENDING = error
            return True
    return False


def take_pending():
    """What the handler of the signal that ended a run raised; None: nothing."""
    global PENDING
    pending, PENDING = PENDING, None
    return pending


# ------------------------------------------------------------------ what Python sees

def build_facts():
    """(profile, compiler version, wide loops in use) of the compiled core."""
    return kw_profile().decode(), kw_compiler().decode(), bool(kw_choose(1))


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
