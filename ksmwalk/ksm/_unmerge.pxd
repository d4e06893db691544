# The contract of unmerging, for those who `cimport ksmwalk.ksm._unmerge`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int break_ksm(kw_world *w, int32_t mm, uint64_t addr, int cpu) noexcept nogil
    # A KSM page or KSM-placed zero page mapped at addr becomes a private anonymous copy (a new frame, not
    # write-enabled, uffd-wp and PROT_NONE kept). 1: done; 0: nothing of that kind there; KW_ENOFRAMES. Counters of items
    # and nodes stay: only zero_pages and nr_zero move. cpu: whose batches the new page and, in a locked area, the old one
    # wait in.
cdef inline int unmerging(kw_world *w) noexcept nogil:
    # The strategy of unmerging: by ranges where scans are, and the kernel does it.
    return STRATEGY_RANGE if w.cursor.strategy == STRATEGY_RANGE and w.ctl.kernel & SWITCH_UNMERGE_RANGE else STRATEGY_PER_ADDRESS
cdef int unmerge_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int strategy, int cpu) noexcept nogil
    # break_ksm over [start, end), inside one vma. STRATEGY_PER_ADDRESS: one lookup per address (holes counted in closed
    # form in work.lookups / lookup_misses, never walked); STRATEGY_RANGE: one walk that acts only on KSM pages
    # (work.entries, ptes, holes). Both: work.found counts pages broken, work.resched scheduling points. KW_OK,
    # KW_ENOFRAMES, KW_EBADENTRY or KW_EINTR (what is broken stays broken).
cdef int unmerge_mm(kw_world *w, int32_t mm, int strategy, int cpu) noexcept nogil
    # unmerge_range over every marked vma with an anon_vma, marks kept (run=2).
