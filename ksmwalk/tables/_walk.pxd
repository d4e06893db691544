# The general walk for those who `cimport` it: function pointers instead of Python callbacks, the same walk underneath.
#
#     from libc.stdint cimport uint64_t
#     from ksmwalk.tables._read cimport Tables
#     from ksmwalk.tables._walk cimport walk_ops, walk_state, walk_tables
#
#     cdef struct my_struct:
#         uint64_t pmds
#
#     cdef int my_pmd(uint64_t *entry, uint64_t addr, uint64_t next, walk_state *walk) noexcept nogil:
#         (<my_struct *>walk.user).pmds += 1
#         return 0
#
#     def count_pmds(Tables tables not None, uint64_t start, uint64_t end):
#         cdef walk_ops ops = walk_ops(NULL, NULL, NULL, my_pmd, NULL, NULL, NULL, NULL, NULL, NULL)
#         cdef my_struct mine = my_struct(0)
#         cdef int result = walk_tables(tables, start, end, &ops, <void *>&mine)
#         return result, mine.pmds
#
# A callback returns 0 to go on; any other value ends the walk and is its result. It may change the entry, set
# walk.action before it returns, and must not free the tables that are being walked. The GIL is held throughout, and no
# other thread may be at work on the same World (see enter in _core.pxd; Python's own doors see to it).
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.tables._read cimport Tables
from ksmwalk.layout._layout cimport *


cdef extern from "_walk.h":
    enum:
        ACTION_SUBTREE "KW_ACTION_SUBTREE"
        ACTION_CONTINUE "KW_ACTION_CONTINUE"
        ACTION_AGAIN "KW_ACTION_AGAIN"
    ctypedef struct walk_state "kw_walk_state"
    ctypedef int (*entry_fn "kw_entry_fn")(uint64_t *entry, uint64_t addr, uint64_t next, walk_state *walk) noexcept nogil
    ctypedef int (*range_fn "kw_range_fn")(uint64_t start, uint64_t end, walk_state *walk) noexcept nogil
    ctypedef void (*done_fn "kw_done_fn")(walk_state *walk) noexcept nogil
    ctypedef int (*hole_fn "kw_hole_fn")(uint64_t addr, uint64_t next, int depth, walk_state *walk) noexcept nogil
    ctypedef struct walk_ops "kw_walk_ops":
        entry_fn pgd_entry
        entry_fn p4d_entry
        entry_fn pud_entry
        entry_fn pmd_entry
        entry_fn pte_entry
        entry_fn hugetlb_entry
        hole_fn pte_hole
        range_fn test_walk
        range_fn pre_vma
        done_fn post_vma
    ctypedef struct walk_state "kw_walk_state":
        const walk_ops *ops
        void *user
        kw_tables *tables
        kw_world *world
        int32_t mm
        int32_t vma
        int action
        int level
        int lowest
        int stop_on_bad
        int failed
        int64_t rows[6]
        int64_t freed

cdef enum:
    WALK_BAD = -1000001    # result of a walk that met a bad entry and was told to stop there
    WALK_NOROWS = -1000002  # result of a walk that found no table page left to split a leaf

cdef void prepare(walk_state *s, Tables tables, int32_t mm, int32_t vma, const walk_ops *ops, void *user) noexcept
cdef int descend(walk_state *s, int64_t row, int level, uint64_t a, uint64_t end) noexcept nogil
cdef int inside_vma(walk_state *s, uint64_t start, uint64_t end) noexcept nogil
cdef int over_vmas(walk_state *s, uint64_t a, uint64_t end) noexcept nogil
# The walk by its parts, for `_callbacks`: all entries of one table; pre_vma, one vma, post_vma; vma by vma.

# A walk without vmas over [start, end): addresses as the tables index them, the upper half right behind the lower one
# (from 1 << 47 with 4 levels), not sign-extended. 0, or what a callback returned. -22: start >= end.
cdef int walk_tables(Tables tables, uint64_t start, uint64_t end, const walk_ops *ops, void *user) noexcept
# The part [start, end) of one vma. -22: empty range, or one that leaves the vma.
cdef int walk_vma(Tables tables, int32_t mm, int32_t vma, uint64_t start, uint64_t end, const walk_ops *ops,
                  void *user) noexcept
# Vma by vma over [start, end) of an mm.
cdef int walk_mm(Tables tables, int32_t mm, uint64_t start, uint64_t end, const walk_ops *ops, void *user) noexcept

# The tables of an mm without a Tables at hand, the GIL or Python: vma by vma as walk_mm, or (vmas false) as walk_tables.
# It stops at an entry that can't be followed: KW_EBADENTRY, noted in w.bad; KW_ENOROWS: no table left to split a leaf.
# work: where the walk counts, NULL: nowhere.
cdef int walk_world(kw_world *w, int32_t mm, uint64_t start, uint64_t end, const walk_ops *ops, void *user, bint vmas,
                    kw_work *work) noexcept nogil
