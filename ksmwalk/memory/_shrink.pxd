# The contract of reclaim, for those who `cimport ksmwalk.memory._shrink`. Same rules as _frames.pxd.
from ksmwalk.layout._layout cimport *


cdef int reclaim_all(kw_world *w) noexcept nogil
    # Everything goes that can, of all address spaces, in as many passes as it takes: nothing counts as accessed, pages marked
    # by MADV_FREE are freed, all other anonymous pages and shared memory go out to swap, if there is some: older ones first,
    # out of the mappings of each in the order in which the kernel finds them. Pages of locked areas stay, as do those that
    # somebody holds on to, KSM pages where no item leads to the mapping, and of huge pages locked in part what comes after.
    # KW_ENOROWS; -ENOMEM: no memory to note the mappings; KW_EINTR.
