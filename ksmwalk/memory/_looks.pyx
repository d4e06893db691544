"""Looks at pages that change nothing: no faults, no accessed bits.

The contract of every function stands in `_looks.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport entry_pfn, leaf_find, level_size, pte_find, pte_present
from ksmwalk.memory._swap cimport swap_slot
from ksmwalk.layout._layout cimport *


cdef int64_t look_range(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys,
                        int64_t *pfns) noexcept nogil:
    """Contents and frames without a fault: key 0 and frame -1 where nothing is present."""
    cdef int64_t i, pfn
    cdef int32_t slot
    cdef int level = 0
    cdef uint64_t *p = NULL
    for i in range(n):
        # One descent a table of ptes.
        if i == 0 or addr & (KW_PMD_SIZE - 1) == 0 or level != 1:
            p = leaf_find(w, w.mms[mm].root, addr, &level)
            if p == NULL:
                p = pte_find(w, w.mms[mm].root, addr)
                level = 1 if p != NULL else 0
        pfn = KW_NONE
        slot = 0
        if p != NULL and (level > 1 or pte_present(p[0])):
            pfn = <int64_t>entry_pfn(p[0], level) + <int64_t>((addr & (level_size(level) - 1)) >> 12)
        elif p != NULL and p[0]:
            slot = swap_slot(w, p[0])
        if keys != NULL:
            keys[i] = w.f_key[pfn] if 0 <= pfn < w.ctl.nr_frames else w.slots[slot].key if slot else 0
        if pfns != NULL:
            pfns[i] = pfn
        addr += KW_PAGE_SIZE
        if level == 1:
            p += 1
    return n
