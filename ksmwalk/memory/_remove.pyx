"""MADV_REMOVE, compiled: pages of an object are gone for everybody.

The contract of every function stands in `_remove.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport pte_present
from ksmwalk.memory._frames cimport folio_put, normal_pfn
from ksmwalk.memory._leaves cimport LeafOp, wp_marker, zap_leaf
from ksmwalk.memory._ptes cimport over_ptes
from ksmwalk.layout._layout cimport *


cdef int op_unmap(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int level = 2 if entry[0] & PTE_PS and op.on else 1
    cdef int64_t pfn = normal_pfn(w, entry[0], level) if pte_present(entry[0]) else KW_NONE
    cdef bint protected = level == 1 and op.v.flags & VM_UFFD_WP and entry[0] & PTE_UFFD_WP
    if pfn >= 0 and not w.f_flags[pfn] & FRAME_ANON:
        zap_leaf(w, op.mm, addr, entry, level)
        if protected:
            entry[0] = wp_marker()
    return 0


cdef int op_empty(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 2 if op.on else 1)
    entry[0] = 0
    if pfn >= 0:
        folio_put(w, pfn)
    return 0


cdef int op_nothing(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    return 0


cdef int punch_range(kw_world *w, int32_t backing, uint64_t pgoff, uint64_t pages) noexcept nogil:
    cdef LeafOp op
    cdef int32_t mm, v
    cdef uint64_t first, last, base
    cdef int rc
    op.pte = op.pmd = op_unmap
    for mm in range(1, <int32_t>w.ctl.mms_used):
        op.mm = mm
        v = 0 if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING else w.mms[mm].vma_first
        while v:
            base = w.vmas[v].start - (w.vmas[v].pgoff << 12)     # where the object would begin
            op.on = w.vmas[v].page_shift > 12
            op.v = &w.vmas[v]
            first = max(pgoff, w.vmas[v].pgoff)
            last = min(pgoff + pages, w.vmas[v].pgoff + ((w.vmas[v].end - w.vmas[v].start) >> 12))
            if w.vmas[v].backing == backing and first < last:
                rc = over_ptes(w, &op, base + (first << 12), base + (last << 12))
                if rc < 0:
                    return rc
            v = w.vmas[v].next
    op.pte = op_empty
    op.pmd = NULL
    op.mm = backing
    op.on = False
    rc = over_ptes(w, &op, pgoff << 12, (pgoff + pages) << 12)
    if rc == KW_OK:
        op.pmd = op_empty
        op.on = True
        op.pte = op_nothing
        rc = over_ptes(w, &op, pgoff << 12, (pgoff + pages) << 12)
    return rc
