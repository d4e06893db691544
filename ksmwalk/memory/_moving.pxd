# The contract of moving pages between NUMA nodes, for those who `cimport ksmwalk.memory._moving`. Same rules as
# _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int move_folio(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int nid) noexcept nogil
    # The folio of pfn, which mm maps at addr, goes to a node with all its mappings: what it is, its content, its counts
    # and its stable node go along, its frames are free again; the object that it is of has it there. KW_OK: it is there
    # now; KW_EBUSYENTRY: somebody besides the mappings and that object holds a reference, or the items of a KSM page do not
    # lead to all its mappings; KW_ENOFRAMES: the node has none. Neither of them moves anything.
