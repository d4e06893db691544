"""Where pages of address spaces are, compiled: mbind, move_pages, migrate_pages.

A page that a call is to move waits until all that the call takes at once are known, and is taken once: who names it a
second time is told that it is busy. What Python sees answers like system calls, see `_calls.pxd`.
"""
from libc.errno cimport EACCES, EBUSY, EFAULT, ENOENT, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from ksmwalk._core cimport World, enter, entry_pfn, leaf_find, leave, level_size, pte_present, records
from ksmwalk.memory._areas cimport set_policy, vma_find, vma_find_from
from ksmwalk.memory._folio cimport split_folio_at
from ksmwalk.memory._frames cimport LARGE, folio_head, folio_pages, lru_drain, maybe_shared, normal_pfn
from ksmwalk.memory._leaves cimport LeafOp, over_leaves
from ksmwalk.memory._moving cimport move_folio
from ksmwalk.layout._layout cimport *


cdef enum:
    MOVE_OWN = 2       # MPOL_MF_MOVE: what nobody else maps
    MOVE_ALL = 4       # MPOL_MF_MOVE_ALL
    UNMOVABLE = VM_IO | VM_PFNMAP


# ------------------------------------------------------------------ one page

cdef int64_t page_at(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """The page that is mapped at addr, -ENOENT: nothing; -EFAULT: a zero page, or no page of the allocator."""
    cdef int level = 0
    cdef uint64_t *leaf = leaf_find(w, w.mms[mm].root, addr, &level)
    cdef int64_t pfn
    if leaf == NULL:
        return -ENOENT
    pfn = normal_pfn(w, leaf[0], level)
    if pfn < 0:
        return -EFAULT
    return pfn + <int64_t>((addr & (level_size(level) - 1)) >> 12)


cdef bint shared(kw_world *w, int64_t pfn) noexcept nogil:
    """Is a page mapped more than once, or its folio by others, as far as the kernel knows?"""
    return maybe_shared(w, pfn) if w.f_flags[pfn] & LARGE and w.f_flags[pfn] & FRAME_ANON else w.f_mapcount[pfn] > 1


cdef bint partly_mapped(kw_world *w, int64_t pfn) noexcept nogil:
    """Is any page of a folio of several mapped by nobody?"""
    cdef int64_t i, head = folio_head(w, pfn)
    if w.f_flags[head] & (FRAME_HEAD | FRAME_ANON | FRAME_HUGETLB) != FRAME_HEAD | FRAME_ANON:
        return False
    for i in range(head, head + folio_pages(w, head)):
        if w.f_mapcount[i] == 0:
            return True
    return False


cdef int split_and_go(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int nid) noexcept nogil:
    """Split a folio first, then move all that is left of it."""
    cdef int64_t head = folio_head(w, pfn), pages = folio_pages(w, head), i
    cdef int rc = split_folio_at(w, pfn, addr), part
    if rc < 0:
        return rc
    for i in range(head, head + pages):
        # empty ones are the zero page by now
        if w.f_mapcount[i] == 0:
            continue
        part = move_folio(w, mm, addr + (<uint64_t>(i - pfn) << 12), i, nid)
        rc = part if i == pfn else rc
    return rc


cdef int go(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int nid) noexcept nogil:
    """Move the folio of a page: 0, -EBUSY or -ENOMEM."""
    cdef int rc
    # Kernels as old as those without smart scan move it as it is.
    if not w.ctl.kernel & SWITCH_NO_SMART_SCAN and partly_mapped(w, pfn):
        rc = split_and_go(w, mm, addr, pfn, nid)
    else:
        rc = move_folio(w, mm, addr, pfn, nid)
    if rc == KW_ENOFRAMES:
        return -ENOMEM
    return -EBUSY if rc < 0 else 0


# ------------------------------------------------------------------ areas

cdef struct Area:
    LeafOp op          # the walk's part, first
    int source, nid    # from this node (-1: from all others) to that one
    bint every         # what is mapped more than once too
    uint8_t *taken     # [pfn] this call moved a page there; NULL: nobody asks
    int64_t stuck      # mappings of pages that could not be moved, or that the call had in hand already


cdef int move_leaf(kw_world *w, Area *a, uint64_t addr, uint64_t *entry, int level) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], level) if level == 2 or pte_present(entry[0]) else KW_NONE
    if pfn < 0:
        return 0
    if w.f_nid[pfn] == a.nid or a.source >= 0 and w.f_nid[pfn] != a.source:
        if a.taken != NULL and a.taken[folio_head(w, pfn)]:
            a.stuck += 1
        return 0
    if not a.every and shared(w, pfn):
        return 0
    if go(w, a.op.mm, addr, pfn, a.nid) < 0:
        a.stuck += 1
    elif a.taken != NULL:
        # Parts of a large folio are met one by one, but it is one mapping of the call.
        pfn = <int64_t>entry_pfn(entry[0], level)
        a.taken[folio_head(w, pfn)] = w.f_mapcount[pfn] > 1 and not w.f_flags[pfn] & (FRAME_HEAD | FRAME_TAIL)
    return 0


cdef int move_pte(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    return move_leaf(w, <Area *>op, addr, entry, 1)


cdef int move_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    return move_leaf(w, <Area *>op, addr, entry, 2)


cdef int move_area(kw_world *w, Area *a, int32_t v, uint64_t start, uint64_t end) noexcept nogil:
    """Move the pages of [start, end), inside area v."""
    if w.vmas[v].flags & UNMOVABLE:
        return KW_OK
    a.op.pte = move_pte
    a.op.pmd = move_pmd
    a.op.mm = w.vmas[v].mm
    a.op.on = False
    return over_leaves(w, &a.op, start, end)


cdef int sys_mbind(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int32_t policy, int mode) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, start)
    cdef uint64_t at = start, stop
    cdef int32_t rc
    cdef Area a
    if start < end and (v == 0 or w.vmas[v].start >= end):
        return -EFAULT
    # With a hole in it nothing is done at all, but for taking a policy away.
    while policy and at < end:
        if v == 0 or w.vmas[v].start > at:
            return -EFAULT
        at = w.vmas[v].end
        v = w.vmas[v].next
    if mode:
        lru_drain(w)
    at = start
    while at < end:
        v = vma_find_from(w, mm, at)
        if v == 0 or w.vmas[v].start >= end:
            break
        at = max(at, w.vmas[v].start)
        stop = min(end, w.vmas[v].end)
        rc = set_policy(w, v, at, stop, policy)
        if rc < 0:
            return rc
        at = stop
    a.source = -1
    a.nid = policy - 1
    a.every = mode & MOVE_ALL != 0
    a.taken = NULL
    a.stuck = 0
    while mode & (MOVE_OWN | MOVE_ALL) and policy and start < end:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        rc = move_area(w, &a, v, start, stop)
        if rc < 0:
            return rc
        start = stop
    return 0


# ------------------------------------------------------------------ what Python sees

cdef uint8_t *marks(World world, taken) except NULL:
    """A mark for each frame."""
    cdef int64_t n = 0
    cdef uint8_t *p = <uint8_t *>records(taken, True, 1, 1, &n)
    if n < world.w.ctl.nr_frames:
        raise ValueError(f"{n} marks for {world.w.ctl.nr_frames} frames")
    return p


def mbind(World world not None, int32_t mm, uint64_t start, uint64_t end, object node, int mode):
    """The node that new pages of [start, end) go to from now on, None: no one in particular."""
    cdef int32_t policy = 0 if node is None else <int32_t>node + 1
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_mbind(&world.w, mm, start, end, policy, mode)
    leave(world)
    return rc


def move_pages(World world not None, int32_t mm, addrs, nodes, bint every, status, taken):
    """Where each page is in the end, or -errno, into `status`; `taken`: a zero for each frame, and so again at the end."""
    cdef kw_world *w = &world.w
    cdef int64_t i, first = 0, n = 0, room = 0
    cdef const uint64_t *at = <const uint64_t *>records(addrs, False, 8, 8, &n)
    cdef const int64_t *to = <const int64_t *>records(nodes, False, 8, 8, &room)
    cdef int64_t *answer
    cdef uint8_t *mine
    if room != n:
        raise ValueError(f"{room} nodes for {n} pages")
    answer = <int64_t *>records(status, True, 8, 8, &room)
    if room != n:
        raise ValueError(f"{room} answers for {n} pages")
    mine = marks(world, taken)
    if n == 0:
        return
    enter(world)
    with nogil:
        lru_drain(w)
        for i in range(n):
            answer[i] = take(w, mm, at[i], to[i], every, mine)
            # One that does not wait lets those that do go first; so does one that is to go elsewhere.
            if answer[i] != WAITS or i + 1 == n or to[i + 1] != to[i]:
                flush(w, mm, at + first, to + first, answer + first, i + 1 - first, mine)
                first = i + 1
    leave(world)


cdef enum:
    WAITS = 10000      # no node and no errno
    VERSION_SHIFT = 24     # as kernels.Profile.bits has it
    SINCE_6_12 = (6 * 256 + 12) << 10


cdef int64_t take(kw_world *w, int32_t mm, uint64_t addr, int64_t nid, bint every, uint8_t *taken) noexcept nogil:
    """What becomes of one page: it waits to be moved, stays where it is, or can't be had."""
    cdef int32_t v = vma_find(w, mm, addr)
    cdef int64_t pfn
    if v == 0 or w.vmas[v].flags & UNMOVABLE:
        return -EFAULT
    pfn = page_at(w, mm, addr)
    if pfn == -ENOENT and w.vmas[v].backing == 0 and w.ctl.kernel >> VERSION_SHIFT < SINCE_6_12:
        return -EFAULT
    if pfn < 0:
        return pfn
    if w.f_nid[pfn] == nid:
        return nid
    if shared(w, pfn) and not every:
        return -EACCES
    if taken[folio_head(w, pfn)]:
        return -EBUSY
    taken[folio_head(w, pfn)] = 1
    return WAITS


cdef void flush(kw_world *w, int32_t mm, const uint64_t *addrs, const int64_t *nodes, int64_t *status, int64_t n,
                uint8_t *taken) noexcept nogil:
    cdef int64_t i, pfn, rc
    for i in range(n):
        if status[i] == WAITS:
            pfn = page_at(w, mm, addrs[i])
            taken[folio_head(w, pfn)] = 0
            rc = go(w, mm, addrs[i], pfn, <int>nodes[i])
            status[i] = nodes[i] if rc == 0 else rc


def migrate(World world not None, int32_t mm, int source, int target, taken):
    """How many mappings were of pages that could not be moved, or were in hand already; or a code."""
    cdef kw_world *w = &world.w
    cdef int32_t v
    cdef int rc = 0
    cdef Area a
    a.source = source
    a.nid = target
    a.every = True
    a.stuck = 0
    # Kernels as old as those without smart scan say nothing of what they have in hand already.
    a.taken = NULL if w.ctl.kernel & SWITCH_NO_SMART_SCAN else marks(world, taken)
    enter(world)
    with nogil:
        lru_drain(w)
        v = w.mms[mm].vma_first
        while v and rc >= 0:
            rc = move_area(w, &a, v, w.vmas[v].start, w.vmas[v].end)
            v = w.vmas[v].next
    leave(world)
    return rc if rc < 0 else a.stuck
