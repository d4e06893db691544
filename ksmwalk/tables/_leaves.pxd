# The contract of the walk over leaves. As in `_core.pxd`: pointers in, integers out.
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t

from ksmwalk.layout._layout cimport *


cdef struct Walk:
    kw_tables *t           # bad entries are noted in it, what is read is counted in its `work`
    kw_mapping *out        # [cap] records; NULL: columns
    uint64_t *addr         # [cap]
    uint64_t *entry        # [cap]
    int64_t n              # written so far
    int64_t cap
    int64_t *odd           # columns: see note_odd; index * 4 + level; from malloc, the caller frees it
    int64_t nr_odd
    int64_t odd_cap
    uint64_t present       # a pte with one of these bits is a mapping
    bint hardware          # what an MMU sees
    bint runs              # records that go on join
    bint alone             # a signal may end the walk; not asked in a thread that is none of Python's
    int64_t rows[6]        # by level: the tables from the top one to the one at hand, or -1

cdef bint joins(const kw_mapping *a, const kw_mapping *b) noexcept nogil
    # Whether b goes on where the run a ends.
cdef int room_for_odd(Walk *k, int64_t n) noexcept nogil
    # Room for n more of `odd`. KW_OK or -ENOMEM.

cdef inline int note_odd(Walk *k, int level) noexcept nogil:
    # Columns: the leaf that comes next is of this level, and not of the one that it looks like: 2 where bit 7 is set (PS,
    # or PAT of a pte) and the address is a multiple of 2 MiB, else 1. KW_OK or -ENOMEM.
    if k.nr_odd == k.odd_cap and room_for_odd(k, 1) != KW_OK:
        return -ENOMEM
    k.odd[k.nr_odd] = k.n * 4 + level
    k.nr_odd += 1
    return KW_OK

cdef int64_t child(Walk *k, uint64_t e, uint64_t addr, int level) noexcept nogil
    # Row of the table an entry points to, or KW_NONE with the entry noted if that can't be.
cdef int read_level(Walk *k, int64_t row, int level, uint64_t a, uint64_t end, uint8_t above) noexcept nogil
    # All mappings of [a, end) lower one table, whose `perms` so far are `above`. KW_OK; KW_EFULL: there are more than
    # cap; KW_EINTR; -ENOMEM; KW_NONE: more tables than t.budget.

cdef int64_t world_mappings(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint runs, kw_mapping *out,
                            int64_t cap) noexcept nogil
    # What read_mappings of an mm's tables does, without a Tables or Python: the records written, KW_EFULL, KW_EINTR,
    # -EINVAL, or KW_EBADENTRY with the first entry that can't be followed noted in w.bad.
