"""Guards, compiled: markers where pages were, which no access gets past.

The contract of every function stands in `_guards.pxd`.
"""
from libc.stdint cimport int32_t, uint64_t

from ksmwalk._core cimport no_entry, pte_make, pte_present
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._leaves cimport LeafOp, guard_marker, wp_marker, zap_range
from ksmwalk.memory._ptes cimport each_pte, over_ptes
from ksmwalk.layout._layout cimport *


cdef extern from "<errno.h>" nogil:
    enum:
        EDEADLK

cdef int op_unguard(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    if entry[0] == guard_marker():
        entry[0] = 0
    return 0


cdef int guard_remove_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    op.pte = op_unguard
    op.pmd = NULL
    op.mm = mm
    return over_ptes(w, &op, start, end)


cdef int op_protected(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    return -EDEADLK if entry[0] == wp_marker() or pte_present(entry[0]) and entry[0] & PTE_UFFD_WP else 0


cdef int guard_install_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t *pte
    cdef int32_t v = vma_find(w, mm, start)
    cdef int rc = KW_OK
    if w.vmas[v].backing and w.vmas[v].flags & VM_UFFD_WP:
        rc = each_pte(w, mm, start, end, op_protected)      # their protection would stay where they were
    if rc == KW_OK:
        rc = zap_range(w, mm, start, end)
    while rc == KW_OK and start < end:
        pte = pte_make(w, mm, start)
        if pte == NULL:
            return no_entry(w, mm, start)
        while True:
            pte[0] = guard_marker()
            pte += 1
            start += KW_PAGE_SIZE
            if start >= end or start & (KW_PMD_SIZE - 1) == 0:
                break
    return rc
