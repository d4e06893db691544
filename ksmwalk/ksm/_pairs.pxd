# Merging where nothing is in the way, for the merge engine. Same rules as _core.pxd.
#
# The page visited, pfn, is mapped by `pte`, the entry that the cursor stands at in an area it knows. It is eligible, no
# KSM page, its content that of the visit before, its item on no node's list and not in the tree of this scan. False:
# nothing is done, it takes a visit by `_engine.pyx`.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef inline bint easy(kw_world *w) noexcept nogil:
    # Whether merging asks for no more, in this batch, than the two look at.
    return (w.ctl.slots_used <= 1 and not w.ctl.kernel & SWITCH_FORGETS
            and (w.ksm.merge_across_nodes or w.ctl.nr_nodes == 1))

cdef bint join_node(kw_world *w, int32_t item, uint64_t *pte, int64_t pfn, int32_t node) noexcept nogil
    # It joins what stands for its content in the stable tree: a node, or the first of a chain. The tree is quiet.
cdef bint pair_up(kw_world *w, int32_t item, uint64_t *pte, int64_t pfn, int32_t other, uint64_t *entry, int tree) noexcept nogil
    # It joins another item, that the index of the unstable tree has for its content; `entry`: the pte at that item's
    # address, NULL: not known. No stable node of this tree has that content.
