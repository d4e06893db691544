# The contract of a walk over ptes, for those who `cimport ksmwalk.memory._ptes`. Same rules as _leaves.pxd.
from libc.stdint cimport uint64_t

from ksmwalk.memory._leaves cimport LeafOp
from ksmwalk.layout._layout cimport *


cdef int over_ptes(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil
    # op.pte for each pte that is not 0, in ascending order; op.pmd, unless NULL, for each leaf pmd that lies wholly in the
    # range, and op.pte for its parts if it has split it. Others are passed by as they are.
cdef int look_at_ptes(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil
    # The same for an op that changes nothing: the mm's epoch stays.
