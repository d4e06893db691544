# The part of the check that looks at frames: see _check.pxd.
from ksmwalk.memory._check cimport Check


cdef int frames(Check *c) noexcept nogil
    # Flags, counts against c.mapped and c.held, folios, the allocator's blocks and lists, the LRU batch.
