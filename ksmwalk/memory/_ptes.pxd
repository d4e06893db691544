# The contract of a walk over ptes, for those who `cimport ksmwalk.memory._ptes`. Same rules as _leaves.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport level_index
from ksmwalk.memory._leaves cimport LeafOp, leaf_op
from ksmwalk.layout._layout cimport *


cdef inline int64_t ptes_left(uint64_t addr, uint64_t end) noexcept nogil:
    # From addr on to the end of its table, or of what ends at `end`.
    return min(<int64_t>((end - addr) >> 12), <int64_t>(512 - level_index(addr, 1)))
cdef int over_ptes(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil
    # op.pte for each pte that is not 0, in ascending order; op.pmd, unless NULL, for each leaf pmd that lies wholly in the
    # range, and op.pte for its parts if it has split it. Others are passed by as they are.
cdef int look_at_ptes(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil
    # The same for an op that changes nothing: the mm's epoch stays.
cdef int each_pte(kw_world *w, int32_t mm, uint64_t start, uint64_t end, leaf_op pte) noexcept nogil
    # The same for an operation on ptes that needs no more than the mm.
cdef int looked_up(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # What ptes map there was looked up to be used (FRAME_REFERENCED).
cdef void each_pte_of_objects(kw_world *w, leaf_op pte) noexcept nogil
    # The same for all pages of all objects (MM_BACKING); it can't fail.
