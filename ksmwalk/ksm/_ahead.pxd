# What the merge engine does in advance, for those who `cimport ksmwalk.ksm._ahead`. Same rules as _core.pxd.
from libc.stdint cimport int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int64_t pass_merged(kw_world *w, int64_t n) noexcept nogil
    # Visit up to n pages that are merged already and listed on their nodes, from the cursor on; how many there were.
cdef uint64_t warm_trees(kw_world *w, uint64_t addr, uint64_t key) noexcept nogil
    # Bring into the cache what the searches for `key`, of the page at addr, and for the next ones will touch; the
    # address up to which that holds. Decides nothing.
