# The contract of cutting a range into units. As in `_core.pxd`: pointers in, integers out, no state.
from libc.stdint cimport int64_t, uint64_t

from ksmwalk.layout._layout cimport *
from ksmwalk.tables._leaves cimport Walk


cdef enum:
    A_TABLE = 512          # leaves that a table of ptes has at most; also about what it costs to read
    A_MIDDLE_TABLE = 64    # what a table above costs
    ALONE = 1              # no code of _layout.h: one thread has to do it

cdef struct Unit:
    uint64_t start         # its address; it ends where the next one begins
    int64_t before         # leaves of the units before it, if all their tables are full

cdef struct Plan:
    int64_t size           # leaves of a unit at most
    Unit *units            # [nr]
    int64_t nr
    int64_t cap
    int64_t at             # what the last unit costs so far; no less than its leaves
    int64_t leaves         # of all so far, if tables are full
    int64_t tables         # that the walk will visit, at most
    int64_t budget         # that it may visit
    int64_t middle         # tables of pmds looked into

cdef int plan_level(Plan *p, Walk *k, int64_t row, int level, uint64_t a, uint64_t end) noexcept nogil
    # Cut [a, end) lower one table into units, tables that can be followed looked into as `read_level` does. A unit costs
    # `size` at most, and none begins where an entry above it can't be followed. KW_OK; ALONE: better not (more tables
    # than the budget, no memory); KW_EINTR. The caller frees p.units.
