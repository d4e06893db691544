# The contract of leaves, one by one and over ranges, for those who `cimport ksmwalk.memory._leaves`. Same rules as
# _frames.pxd; ranges are page aligned, half-open and (but for zap_range and free_tables) inside one vma. Leaves that
# stick out of a range are split first: KW_ENOROWS where that fails, with the range done up to there. Whatever changes a
# mapping raises the epoch of its mm.
from libc.stdint cimport int32_t, uint64_t

from ksmwalk._core cimport mm_changed
from ksmwalk.layout._layout cimport *


# ------------------------------------------------------------------ one entry

# What a KSM-placed zero page is: special, frame 0, dirty. A zero page of a read fault is not dirty.
cdef inline bint pte_ksm_zero(uint64_t e) noexcept nogil:
    return (e & (PTE_SPECIAL | PTE_D)) == (PTE_SPECIAL | PTE_D) and (e & (PTE_P | PTE_PROTNONE)) != 0 and (
        ((e if (e & PTE_P) else (e ^ PTE_PFN_MASK)) & PTE_PFN_MASK) == 0)

cdef inline void touched(kw_world *w, int32_t mm) noexcept nogil:
    mm_changed(w, mm, 1)

cdef inline void ksm_zero_gone(kw_world *w, int32_t mm) noexcept nogil:
    w.ksm.zero_pages -= 1
    w.mms[mm].nr_zero -= 1

cdef inline bint whole_pmd(uint64_t addr, uint64_t next) noexcept nogil:
    return next - addr == KW_PMD_SIZE

cdef inline uint64_t prot_bits(uint64_t flags) noexcept nogil:
    # What a pte of such a vma has besides frame, dirty and (private) write permission.
    cdef uint64_t bits
    if not flags & (VM_READ | VM_WRITE | VM_EXEC):
        return PTE_PROTNONE | PTE_A
    bits = PTE_P | PTE_US | PTE_A
    if not flags & VM_EXEC:
        bits |= PTE_NX
    if (flags & (VM_SHARED | VM_WRITE)) == (VM_SHARED | VM_WRITE):
        bits |= PTE_RW
    return bits

cdef inline uint64_t huge_flags(uint64_t flags) noexcept nogil:
    # What a leaf pmd of a private page of such a vma has besides the frame: dirty, and writable if the vma is.
    return prot_bits(flags) | PTE_PS | PTE_D | (PTE_RW if flags & VM_WRITE else 0)

cdef void zap_pte(kw_world *w, int32_t mm, uint64_t *entry) noexcept nogil
cdef void zap_leaf(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int level) noexcept nogil
    # Clear one present or non-present leaf (level 1 or 2), whatever it is: its mapping goes, a KSM-placed zero page
    # lowers ksm.zero_pages and mms[mm].nr_zero at once. Raises the mm's epoch. A none entry: nothing.
cdef int pmd_split(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pmd) noexcept nogil
    # A leaf pmd becomes a table of ptes: same frames, the folio stays whole. Of the huge zero page: 512 zero ptes.
    # KW_ENOROWS. Raises the mm's epoch (as everything here that changes a mapping or a content).

# ------------------------------------------------------------------ ranges

# Each operation is a small record of what to do with ptes and with leaf pmds; the walk splits pmds that stick out.

ctypedef int (*leaf_op)(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil

cdef struct LeafOp:
    leaf_op pte
    leaf_op pmd
    int32_t mm
    kw_vma *v
    uint64_t prot
    bint on

cdef int over_leaves(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil
    # op.pte for each pte that is not 0, op.pmd for each leaf pmd that lies wholly in the range; the first code that is
    # not 0 ends it (of op.pmd: a negative one).
cdef int zap_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
cdef int mlock_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # Before the pages of a locked area go: each that is mapped goes onto the mlock batch of the CPU that mm runs on.
cdef int discard_range(kw_world *w, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil
    # MADV_DONTNEED: the same, but guards stay, and empty pte tables that lie wholly in the range go: a huge page fits
    # there again. v: whose pages they are; of a file, what userfaultfd protects stays so by markers, as pages may come back.
cdef void free_tables(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t floor,
                      uint64_t ceiling) noexcept nogil
    # Free the tables that [start, end) reaches and that cover nothing outside [floor, ceiling); all leaves there are
    # gone.
cdef int copy_range(kw_world *w, int32_t src, kw_vma *v, uint64_t start, uint64_t end, bint cow) noexcept nogil
    # fork: map in v's mm what src maps, write-protected in both where cow; there v gets copies of pages pinned for DMA.
cdef int move_range(kw_world *w, int32_t mm, uint64_t old, uint64_t new, uint64_t length, bint tables,
                    bint down) noexcept nogil
    # tables: those whose 2 MiB move to a place for 2 MiB move as such; down: what lies before the range in its first 2 MiB
    # is empty, here and there, and may count as moving along.
cdef int protect_range(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil
    # Give the leaves the permissions of the (already changed) vma.
cdef int wp_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil
    # userfaultfd write protection of present leaves; off: markers go as well.
cdef inline uint64_t wp_marker() noexcept nogil:
    return 0xfffffffffffffc00   # of userfaultfd, where nothing is mapped
cdef inline uint64_t guard_marker() noexcept nogil:
    return 0xfffffffffffff600   # as Linux 6.13 to 6.18 on x86-64 shows it
