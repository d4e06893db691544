"""Working arrays of C that grow as they are filled (see _grow.h)."""
from libc.stdint cimport int64_t


cdef extern from "_grow.h" nogil:
    # array: where the pointer to the elements stands, of `size` bytes each. Room for `need` of them afterwards; False: no
    # memory, and nothing changed.
    bint kw_grow(void *array, int64_t *room, int64_t need, size_t size) noexcept
