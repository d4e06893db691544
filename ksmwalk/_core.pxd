# The contract of the compiled core, for those who `cimport ksmwalk._core`.
#
# Everything here reads and writes arrays through pointers and answers with integers; nothing keeps state between calls
# and nothing calls Python, except the callbacks of a user's MmWalkOps. Functions return KW_OK, an index or a count, or
# one of the negative KW_* codes of _layout.h; a pointer is NULL where there is nothing. None of them checks the
# caller's pointers: lengths and bounds are checked by the Python door in front. Table entries are never trusted: every
# row number read from a table is checked before it is followed.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ predicates on one packed entry
# level: 1 pte, 2 pmd, 3 pud, 4 p4d (pgd with 4 levels), 5 pgd.

cdef inline int level_shift(int level) noexcept nogil:
    return 3 + 9 * level

cdef inline uint64_t level_size(int level) noexcept nogil:
    return (<uint64_t>1) << (3 + 9 * level)

cdef inline int level_index(uint64_t addr, int level) noexcept nogil:
    return <int>((addr >> (3 + 9 * level)) & 511)

cdef inline bint entry_none(uint64_t e) noexcept nogil:
    # A and D may be left over by the hardware in an entry that was cleared.
    return (e & ~(PTE_A | PTE_D)) == 0

cdef inline bint pte_present(uint64_t e) noexcept nogil:
    return (e & (PTE_P | PTE_PROTNONE)) != 0

cdef inline bint pmd_present(uint64_t e) noexcept nogil:
    # PS alone: a huge page being split is still present.
    return (e & (PTE_P | PTE_PROTNONE | PTE_PS)) != 0

cdef inline bint entry_present(uint64_t e, int level) noexcept nogil:
    if level == 2:
        return pmd_present(e)
    if level >= 4:
        return (e & PTE_P) != 0
    return pte_present(e)

cdef inline bint entry_leaf(uint64_t e, int level) noexcept nogil:
    # Meaningful for an entry that is present. A pte is always a leaf, p4d and pgd never are.
    if level == 1:
        return True
    return (level == 2 or level == 3) and (e & PTE_PS) != 0

cdef inline uint64_t entry_decode(uint64_t e) noexcept nogil:
    # Undo the inversion of the frame bits of an entry that is not zero and has P clear.
    if e != 0 and not (e & PTE_P):
        return e ^ PTE_PFN_MASK
    return e

cdef inline uint64_t entry_frame_mask(int level, bint leaf) noexcept nogil:
    # In a large leaf the bits below its size are not frame bits (bit 12 is PAT).
    if leaf and level > 1:
        return PTE_PFN_MASK & ~(level_size(level) - 1)
    return PTE_PFN_MASK

cdef inline uint64_t entry_pfn(uint64_t e, int level) noexcept nogil:
    return (entry_decode(e) & entry_frame_mask(level, entry_leaf(e, level))) >> 12

cdef inline uint64_t make_entry(uint64_t pfn, uint64_t flags) noexcept nogil:
    # flags: everything but the frame bits; the frame bits are inverted where P is clear.
    cdef uint64_t e = flags | (pfn << 12)
    if not (flags & PTE_P) and e != 0:
        e ^= PTE_PFN_MASK
    return e

cdef inline uint64_t make_leaf(uint64_t pfn, uint64_t flags, int level) noexcept nogil:
    # A leaf of a level. Of a large one fewer bits are frame bits: those below (bit 12, PAT) are never inverted.
    cdef uint64_t e = flags | (pfn << 12)
    if not (flags & PTE_P) and e != 0:
        e ^= entry_frame_mask(level, level == 1 or (flags & PTE_PS) != 0)
    return e

cdef inline bint eligible(uint16_t flags) noexcept nogil:
    # A page KSM looks at: anonymous (KSM pages are) and not zone-device. flags: FRAME_* bits.
    return (flags & FRAME_ELIGIBLE_MASK) == FRAME_ANON


# ------------------------------------------------------------------ the binding to a Host's arrays

cdef class World:
    cdef kw_world w
    cdef readonly dict arrays      # keeps what the pointers point into alive
    cdef public object owner       # weak reference to the Host, for doors that name its objects; None: no Host


# ------------------------------------------------------------------ table pages of a Host

cdef int64_t row_alloc(kw_world *w) noexcept nogil
    # A zeroed row, or KW_ENOROWS. Freed rows are used again, the last freed first.
cdef void row_free(kw_world *w, int64_t row) noexcept nogil
cdef uint64_t *entry_make(kw_world *w, int32_t mm, uint64_t addr, int level) noexcept nogil
    # The entry of addr at any level, tables above it made where missing. NULL as for pte_make.
cdef uint64_t *pmd_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil
    # The pmd entry of addr, NULL if a table above it is missing.
cdef uint64_t *pmd_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The pmd entry of addr, tables above it made where missing; NULL: no rows left. Raises the mm's nr_tables.
cdef uint64_t *pte_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil
    # The pte of addr, NULL if there is no pte table (none or leaf above).
cdef uint64_t *pte_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The pte of addr, its table made where missing. NULL: no rows left, or a leaf pmd stands there (split it first).
cdef uint64_t *leaf_find(kw_world *w, int64_t root, uint64_t addr, int *level) noexcept nogil
    # The present leaf that maps addr (kernel's view) and its level; NULL if there is none.
cdef int split_leaf(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil
    # A leaf pmd or pud becomes a table of 512 leaves: same frames, same flags. The folio stays whole.
    # KW_ENOROWS: unchanged.

cdef inline int64_t child_row(kw_world *w, uint64_t e) noexcept nogil:
    # Row of the table an entry points to; KW_NONE if it points to none, whatever its bits say.
    cdef int64_t row = <int64_t>((e & PTE_PFN_MASK) >> 12)
    if (e & (PTE_P | PTE_PS)) != PTE_P or row <= 0 or row >= w.ctl.rows_used:
        return KW_NONE
    return row


# ------------------------------------------------------------------ the finder

cdef inline void forget_table(kw_world *w) noexcept nogil:
    w.cursor.cache_base = 1  # no address of a region starts there
    w.cursor.cache_end = 0

cdef int64_t find_page(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil
    # The mergeable-page search: the first page of [*addr, end) that KSM would look at. Its pfn, with *addr its address;
    # KW_NONE; KW_EBADENTRY with *addr the entry's; KW_ENOROWS (a leaf pud could not be split). Counts into w.work.
