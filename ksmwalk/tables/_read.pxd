# Binding of one set of page tables, for the modules that walk them.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport Life, World
from ksmwalk.layout._layout cimport *


cdef class Tables:
    cdef kw_tables t
    cdef readonly tuple arrays
    cdef readonly World world      # None: an image, read-only
    cdef unsigned long thread      # as in World, for an image
    cdef int depth
    cdef readonly int32_t mm       # whose tables they are in the World
    cdef readonly Life life        # of that mm; None: they are nobody's and stay
    cdef void sync(self) noexcept
    cdef int take_mark(self) except -1
    cdef void drop_mark(self) noexcept

cdef inline uint64_t canonical(uint64_t addr, int64_t levels) noexcept nogil:
    # The address as the processor has it: the upper half sign-extended.
    cdef int unused = <int>(64 - 12 - 9 * levels)
    return <uint64_t>(<int64_t>(addr << unused) >> unused)

cdef void note_bad(kw_tables *t, uint64_t addr, int level, uint64_t raw, int kind) noexcept nogil
cdef int64_t row_among_frames(const kw_tables *t, uint64_t frame) noexcept nogil

cdef inline int64_t row_of_frame(const kw_tables *t, uint64_t frame) noexcept nogil:
    # The row that holds a frame, KW_NONE: none does.
    if t.frames == NULL:
        return <int64_t>frame if frame < <uint64_t>t.nrows else KW_NONE
    return row_among_frames(t, frame)

cdef inline bint own_table(const kw_tables *t, int64_t row, int level) noexcept nogil:
    # May an entry lead to this row as a table of `level`? In an arena as child_row says; of an image nobody knows more.
    return t.owner == NULL or t.owner[row] == t.owner[t.root] - (t.levels - level)

cdef inline bint honest_range(int64_t levels, uint64_t start, uint64_t end) noexcept nogil:
    # Does a walk's range lie within what so many levels can map?
    return start <= end and end <= (<uint64_t>1) << (12 + 9 * levels)
