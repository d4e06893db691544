"""What host.py and the scenarios call: reclaim, the end of swapping, what is swapped out, what the kernel counts.

Functions answer with integers like those of `_doors.pyx`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

import numpy as np

from ksmwalk._core cimport World, alone, enter, leave, pointer
from ksmwalk.memory._leaves cimport LeafOp
from ksmwalk.memory._ptes cimport look_at_ptes
from ksmwalk.memory._shrink cimport reclaim_all
from ksmwalk.memory._swap cimport swap_slot
from ksmwalk.memory._swapin cimport swap_off
from ksmwalk.layout._layout cimport *


def reclaim(World world not None):
    cdef int rc
    enter(world)
    with nogil:
        rc = reclaim_all(&world.w)
    leave(world)
    return rc


def swapoff(World world not None):
    cdef int rc
    enter(world)
    with nogil:
        rc = swap_off(&world.w)
    leave(world)
    return rc


ctypedef struct Out:
    LeafOp op
    uint64_t *addr     # NULL: only counted
    int32_t *slot
    int64_t n


cdef int op_out(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef Out *a = <Out *>op
    cdef int32_t slot = swap_slot(w, entry[0])
    if slot == 0:
        return 0
    if a.addr != NULL:
        a.addr[a.n] = addr
        a.slot[a.n] = slot
    a.n += 1
    return 0


cdef void over_areas(kw_world *w, Out *a) noexcept nogil:
    cdef int32_t v = w.mms[a.op.mm].vma_first
    a.n = 0
    while v:
        if not w.vmas[v].flags & VM_HUGETLB:
            look_at_ptes(w, &a.op, w.vmas[v].start, w.vmas[v].end)
        v = w.vmas[v].next


def swapped(World world not None, int32_t mm):
    """(addresses, slots) of what of an address space is swapped out."""
    cdef Out a
    alone(world)
    a.op.pte = op_out
    a.op.pmd = NULL
    a.op.mm = mm
    a.addr = NULL
    a.slot = NULL
    over_areas(&world.w, &a)
    addrs, slots = np.empty(a.n, np.uint64), np.empty(a.n, np.int32)
    if a.n:
        a.addr = <uint64_t *>pointer(addrs, True)
        a.slot = <int32_t *>pointer(slots, True)
        over_areas(&world.w, &a)
    return addrs, slots


def vmstat(World world not None):
    """{name: count} of the counters of /proc/vmstat that are kept, since the arrays were bound."""
    alone(world)
    return {"ksm_swpin_copy": world.w.done.ksm_swpin_copy, "cow_ksm": world.w.done.cow_ksm}
