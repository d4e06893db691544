# Binding of one set of page tables, for the modules that walk them.
from ksmwalk._core cimport *


cdef class Tables:
    cdef kw_tables t
    cdef readonly tuple arrays
    cdef readonly World world      # None: an image, read-only
    cdef void sync(self) noexcept

cdef void note_bad(kw_tables *t, uint64_t addr, int level, uint64_t raw, int kind) noexcept nogil
cdef int64_t row_of_frame(const kw_tables *t, uint64_t frame) noexcept nogil
