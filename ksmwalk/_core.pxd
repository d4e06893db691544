# The contract of the compiled core, for those who `cimport ksmwalk._core`.
#
# Everything here reads and writes arrays through pointers and answers with integers; nothing keeps state between calls
# and nothing calls Python, except the callbacks of a user's MmWalkOps. Functions return KW_OK, an index or a count, or
# one of the negative KW_* codes of _layout.h; a pointer is NULL where there is nothing. None of them checks the
# caller's pointers: lengths and bounds are checked by the Python door in front. Table entries are never trusted: every
# row number read from a table is checked before it is followed.
from cpython.pythread cimport PyThread_get_thread_ident
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

cdef inline uint64_t entry_stored(uint64_t e) noexcept nogil:
    # The entry of a page after a store.
    return (e | PTE_A | PTE_D) & ~PTE_CLEAN

cdef inline bint eligible(uint16_t flags) noexcept nogil:
    # A page KSM looks at: anonymous (KSM pages are) and not zone-device. flags: FRAME_* bits.
    return (flags & FRAME_ELIGIBLE_MASK) == FRAME_ANON


# ------------------------------------------------------------------ the binding to a Host's arrays

cdef void *pointer(object array, bint writable) except? NULL
    # Of the first byte of a C-contiguous array; the caller keeps the array alive.
cdef void *records(object array, bint writable, int64_t itemsize, int64_t size, int64_t *n) except? NULL
    # The same of one that holds whole records of `size` bytes, made of numbers of `itemsize` bytes, and how many; else
    # ValueError. A typed memoryview would do as well, at 100 KB of code a module.

cdef class World:
    cdef kw_world w
    cdef dict held                 # the arrays by name: keeps what the pointers point into alive
    cdef public object owner       # weak reference to the Host, for doors that name its objects; None: no Host
    cdef readonly bint gone        # the Host was dropped: its doors are of no use any more
    cdef unsigned long thread      # the thread at work on the arrays, while depth > 0
    cdef int depth                 # calls of that thread that are under way, one inside the other (callbacks)

cdef class Life:
    # Whether an address space is still there: one object that all doors to it share.
    cdef readonly str what         # for messages
    cdef readonly bint gone

cdef bint looked_at(World world) except -1
    # Whether somebody holds an array, or a view of one, whose links may be built late.

cdef int refuse(World world) except -1
    # Raises: ReferenceError where the Host is gone, else RuntimeError naming the thread that is at work.

cdef str busy(unsigned long thread)
    # What a second thread is told.

# One thread at a time works on a World. A function that Python sees and that lets go of the GIL, or calls Python, holds
# the mark from enter to leave; one that keeps the GIL throughout asks once whether it is alone. Both need the GIL, so
# that looking at the mark and taking it are one step. A callback that calls its own Host enters again.
cdef inline int alone(World world) except -1:
    if world.gone or (world.depth and world.thread != <unsigned long>PyThread_get_thread_ident()):
        refuse(world)
    return 0

cdef inline int enter(World world) except -1:
    alone(world)
    world.thread = <unsigned long>PyThread_get_thread_ident()
    world.depth += 1
    return 0

cdef inline void leave(World world) noexcept:
    world.depth -= 1


# ------------------------------------------------------------------ table pages of a Host

cdef int64_t row_alloc(kw_world *w, int32_t owner) noexcept nogil
    # A zeroed row for the table that r_owner will say, or KW_ENOROWS. Freed rows are used again, the last freed first.
cdef void row_free(kw_world *w, int64_t row) noexcept nogil
    # Nothing where the row is free already.

cdef inline int32_t row_owner(int32_t mm, int level) noexcept nogil:
    return mm * 8 + level

cdef inline int64_t rows_left(kw_world *w) noexcept nogil:
    return w.ctl.rows_cap - 1 - w.ctl.rows_live

cdef inline int64_t row_of(kw_world *w, const uint64_t *entry) noexcept nogil:
    # The row that an entry stands in.
    return (entry - w.rows) >> 9

cdef inline int64_t child_row(kw_world *w, const uint64_t *entry) noexcept nogil:
    # Row of the table an entry points to; KW_NONE if it points to none, whatever its bits say: table entries are never
    # trusted. A table belongs to one mm and one level, so none can be reached by a loop, from another mm or once freed.
    cdef uint64_t e = entry[0]
    cdef int64_t row = <int64_t>((e & PTE_PFN_MASK) >> 12)
    if (e & (PTE_P | PTE_PS)) != PTE_P or row <= 0 or row >= w.ctl.rows_used:
        return KW_NONE
    if w.r_owner[row] != w.r_owner[row_of(w, entry)] - 1:
        return KW_NONE
    return row

cdef inline uint64_t table_entry(int64_t row) noexcept nogil:
    # An entry that points to a table.
    return (<uint64_t>row << 12) | PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D

cdef int64_t below(kw_world *w, const uint64_t *entry, int level, uint64_t addr) noexcept nogil
    # Row of the table below an entry that is not none and no leaf; KW_NONE: nothing present; KW_EBADENTRY, noted in
    # w.bad: it can't be followed.
cdef int bad_entry(kw_world *w, uint64_t addr, int level, uint64_t e, int kind) noexcept nogil
    # Notes an entry that can't be followed in w.bad: KW_EBADENTRY.
cdef int no_entry(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # Why entry_make, pmd_make or pte_make gave NULL: KW_ENOROWS or KW_EBADENTRY.
cdef int tables_sound(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil
    # Can every table that [start, end) reaches be followed? KW_OK or KW_EBADENTRY. Asked before what could not be
    # taken back.
cdef void table_free(kw_world *w, int32_t mm, uint64_t *entry, int64_t row) noexcept nogil
    # The table below an entry goes: the entry is none.
cdef bint table_empty(kw_world *w, int64_t row) noexcept nogil
cdef uint64_t *entry_find(kw_world *w, int64_t root, uint64_t addr, int level) noexcept nogil
    # The entry of addr at a level, NULL if a table above it is missing or a leaf stands there.
cdef uint64_t *entry_make(kw_world *w, int32_t mm, uint64_t addr, int level) noexcept nogil
    # The entry of addr at a level, with the tables above it made where missing (the mm's nr_tables rises). NULL: see
    # no_entry; or a leaf stands in the way (split it first). Tables made on the way stay, empty.

cdef inline uint64_t *pmd_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil:
    return entry_find(w, root, addr, 2)

cdef inline uint64_t *pte_find(kw_world *w, int64_t root, uint64_t addr) noexcept nogil:
    return entry_find(w, root, addr, 1)

cdef inline uint64_t *pmd_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return entry_make(w, mm, addr, 2)

cdef inline uint64_t *pte_make(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return entry_make(w, mm, addr, 1)

cdef uint64_t *leaf_find(kw_world *w, int64_t root, uint64_t addr, int *level) noexcept nogil
    # The present leaf that maps addr (kernel's view) and its level; NULL if there is none.
cdef int split_leaf(kw_world *w, int32_t mm, uint64_t *entry, int level) noexcept nogil
    # A leaf pmd or pud becomes a table of 512 leaves: same frames, same flags. The folio stays whole.
    # KW_ENOROWS: unchanged.

cdef inline void mm_changed(kw_world *w, int32_t mm, uint64_t times) noexcept nogil:
    # Whatever changes a mapping or a content of an mm says so here.
    w.mms[mm].epoch += times
    w.ctl.changes += <int64_t>times

# ------------------------------------------------------------------ signals

cdef int interrupted() noexcept nogil
    # Has a signal come whose handler wants the run to end? Loops that may be long ask now and then; they answer KW_EINTR.

cdef inline bint interrupted_at(uint64_t addr) noexcept nogil:
    # The same for a loop over the pmds of a range: asked once a gigabyte.
    return (addr >> 21) & 511 == 511 and interrupted()
