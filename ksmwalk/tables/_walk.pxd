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


cdef enum:
    ACTION_SUBTREE = 0     # descend
    ACTION_CONTINUE = 1    # don't descend below this entry
    ACTION_AGAIN = 2       # read the entry again and call again
    WALK_BAD = -1000001    # result of a walk that met a bad entry and was told to stop there
    WALK_NOROWS = -1000002  # result of a walk that found no table page left to split a leaf

ctypedef int (*entry_fn)(uint64_t *entry, uint64_t addr, uint64_t next, walk_state *walk) noexcept nogil
ctypedef int (*range_fn)(uint64_t start, uint64_t end, walk_state *walk) noexcept nogil
ctypedef void (*done_fn)(walk_state *walk) noexcept nogil
ctypedef int (*hole_fn)(uint64_t addr, uint64_t next, int depth, walk_state *walk) noexcept nogil

cdef struct walk_ops:
    entry_fn pgd_entry
    entry_fn p4d_entry
    entry_fn pud_entry
    entry_fn pmd_entry
    entry_fn pte_entry
    entry_fn hugetlb_entry
    hole_fn pte_hole
    # NULL: not set. Asked by walk_mm for every vma: 0 walk it, > 0 skip it, < 0 end the walk with that.
    range_fn test_walk
    range_fn pre_vma
    done_fn post_vma

cdef struct walk_state:
    const walk_ops *ops
    void *user             # the caller's own
    kw_tables *tables
    kw_world *world        # NULL: an image
    int32_t mm             # 0: none
    int32_t vma            # 0: none (outside every vma, or a walk without vmas)
    int action
    int level              # of the entry a callback is called for
    int lowest             # lowest level that has a callback
    int stop_on_bad
    int failed             # what the walk ends with after a post_vma that failed; else 0
    int64_t rows[6]        # of the tables the walk stands on, by level; -1: none
    int64_t freed          # world.rows_freed when they were last known to be there

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
