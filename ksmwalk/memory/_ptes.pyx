"""One walk over ptes that splits nothing, compiled.

The contract stands in `_ptes.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport child_row, entry_leaf, entry_none, level_index, pmd_find, pte_present
from ksmwalk.memory._frames cimport LARGE, folio_head, mark_referenced, normal_pfn
from ksmwalk.memory._leaves cimport LeafOp, leaf_op, touched, whole_pmd
from ksmwalk.layout._layout cimport *


cdef int over_ptes(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil:
    touched(w, op.mm)
    return look_at_ptes(w, op, start, end)


cdef int look_at_ptes(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t next
    cdef uint64_t *pmd
    cdef uint64_t *p
    cdef int64_t row
    cdef int rc
    while start < end:
        pmd = pmd_find(w, w.mms[op.mm].root, start)
        # Nothing for a gigabyte at least: on to its end.
        next = KW_PUD_SIZE if pmd == NULL else KW_PMD_SIZE
        next = min((start & ~(next - 1)) + next, end)
        if pmd != NULL and op.pmd != NULL and whole_pmd(start, next) and entry_leaf(pmd[0], 2) and not entry_none(pmd[0]):
            rc = op.pmd(w, op, start, pmd)
            if rc:
                return rc
        row = KW_NONE if pmd == NULL else child_row(w, pmd)
        p = w.rows + row * 512 + level_index(start, 1)
        while row >= 0 and start < next:
            rc = op.pte(w, op, start, p) if p[0] else 0
            if rc:
                return rc
            p += 1
            start += KW_PAGE_SIZE
        start = next
    return KW_OK


cdef int each_pte(kw_world *w, int32_t mm, uint64_t start, uint64_t end, leaf_op pte) noexcept nogil:
    cdef LeafOp op
    op.pte = pte
    op.pmd = NULL
    op.mm = mm
    return look_at_ptes(w, &op, start, end)


cdef int op_referenced(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    cdef int64_t head
    if pfn < 0 or not w.f_flags[pfn] & FRAME_ANON:
        return 0
    # A folio of several pages that is used a second time is an active one, and not referenced until the third time.
    head = folio_head(w, pfn)
    if w.f_flags[pfn] & LARGE and w.f_flags[head] & FRAME_REFERENCED and not w.owners[head >> 2].shared & FOLIO_ACTIVE:
        w.owners[head >> 2].shared |= FOLIO_ACTIVE
        w.f_flags[head] &= ~FRAME_REFERENCED
    else:
        mark_referenced(w, pfn)
    return 0


cdef int looked_up(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    return each_pte(w, mm, start, end, op_referenced)


cdef void each_pte_of_objects(kw_world *w, leaf_op pte) noexcept nogil:
    cdef int32_t mm
    for mm in range(1, <int32_t>w.ctl.mms_used):
        if w.mms[mm].flags & MM_BACKING and w.mms[mm].root:
            each_pte(w, mm, 0, <uint64_t>w.mms[mm].nr_pages << 12, pte)
