# Domains, for those who `cimport ksmwalk.ksm._domains`. Same rules as _core.pxd.
#
# Pages are merged within a domain only: each has trees of its own, one pair a NUMA node (kw_node.tree, kw_world.trees).
from libc.stdint cimport int32_t

from ksmwalk.layout._layout cimport *


cdef int set_domain(kw_world *w, int32_t mm, int32_t domain) noexcept nogil
    # Put an mm into another domain: its merged pages become private copies, its rmap_items leave their trees and stay.
    # KW_OK or KW_ENOFRAMES (some pages are broken, the mm is where it was). domain < TREES / nr_nodes. Afterwards
    # scan_begin comes before the next scan_next.
