# What the merge engine does in advance, for those who `cimport ksmwalk.ksm._ahead`. Same rules as _core.pxd.
from libc.stdint cimport int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int64_t pass_merged(kw_world *w, int64_t n) noexcept nogil
    # Visit up to n pages that are merged already and listed on their nodes, from the cursor on; how many there were.
cdef int64_t pass_new(kw_world *w, int64_t n) noexcept nogil
    # The same for pages that have no item yet, where the visit before was to such a page.
cdef enum:
    STEPS = 5
    RING = 63           # places for pages to come, less one

cdef struct Ahead:
    uint64_t base       # region of the table looked at, 1: none yet
    int here            # where the cursor was in it
    int upto[STEPS]     # how far each look has come
    uint64_t hash[RING + 1]
    int32_t there[RING + 1]    # item of a twin, or less a stable node; 0: nothing
    uint64_t *entry[RING + 1]  # of the twin
    int64_t merged      # of the pages that pass_known visited last: they are merged now, or were before

cdef int64_t pass_known(kw_world *w, Ahead *a, int64_t n) noexcept nogil
    # Visit up to n pages, from the cursor on, whose searches the index answers: they come into the unstable tree, or are
    # merged where nothing is in the way of that; and those between them that are merged already. Only where the index
    # stands for the unstable tree.
cdef void warm_known(kw_world *w, Ahead *a) noexcept nogil
    # The same where the index stands for the trees: one page more at each call. `a` is good for one batch.
cdef uint64_t warm_trees(kw_world *w, uint64_t addr, uint64_t key) noexcept nogil
    # Bring into the cache what the searches for `key`, of the page at addr, and for the next ones will touch; the
    # address up to which that holds. Decides nothing.
