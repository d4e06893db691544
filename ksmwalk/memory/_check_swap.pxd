# The contract of the check of swap slots that came from outside. See `_check.pxd`.
from ksmwalk.memory._check cimport Check


cdef int swap(Check *c) noexcept nogil
    # Slots, their free list, the swap cache; after the tables, whose entries of each slot `c.swapped` has counted. Adds the
    # references of the swap cache to `c.held`.
cdef int families(Check *c) noexcept nogil
    # After areas: records of families are what areas and other records say.
