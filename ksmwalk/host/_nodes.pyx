"""Where pages of address spaces are, compiled: mbind, move_pages, migrate_pages.

A page that a call is to move waits until all that the call takes at once are known, and is taken once: who names it a
second time is told that it is busy. What Python sees answers like system calls, see `_calls.pxd`.
"""
from libc.errno cimport EACCES, EBUSY, EFAULT, ENOENT, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from ksmwalk._core cimport World, enter, leaf_find, leave, level_size, pte_present, records
from ksmwalk.memory._areas cimport set_policy, vma_find, vma_find_from
from ksmwalk.memory._folio cimport split_folio_at
from ksmwalk.memory._frames cimport LARGE, folio_head, folio_pages, lru_drain, maybe_shared, normal_pfn
from ksmwalk.memory._leaves cimport LeafOp, over_leaves
from ksmwalk.memory._moving cimport move_folio
from ksmwalk.memory._ptes cimport ptes_left
from ksmwalk.layout._grow cimport kw_grow
from ksmwalk.layout._layout cimport *


cdef enum:
    MOVE_OWN = 2       # MPOL_MF_MOVE: what nobody else maps
    MOVE_ALL = 4       # MPOL_MF_MOVE_ALL
    UNMOVABLE = VM_IO | VM_PFNMAP


# ------------------------------------------------------------------ one page

cdef int64_t page_at(kw_world *w, int32_t mm, uint64_t addr, bint *unseen) noexcept nogil:
    """The page that is mapped at addr, -ENOENT: nothing; -EFAULT: a zero page, or no page of the allocator. Old kernels
    find nothing where a PROT_NONE pte maps a page: unseen is set there."""
    cdef int level = 0
    cdef uint64_t *leaf = leaf_find(w, w.mms[mm].root, addr, &level)
    cdef int64_t pfn
    unseen[0] = False
    if leaf == NULL:
        return -ENOENT
    pfn = normal_pfn(w, leaf[0], level)
    if w.ctl.kernel & SWITCH_NONE_NO_PARTNER and not leaf[0] & PTE_P:
        unseen[0] = level == 1 and pfn >= 0
        return -ENOENT
    if pfn < 0:
        return -EFAULT
    return pfn + <int64_t>((addr & (level_size(level) - 1)) >> 12)


cdef bint shared(kw_world *w, int64_t pfn) noexcept nogil:
    """Is a page mapped more than once, or its folio by others, as far as the kernel knows? Old ones look at that page."""
    if w.ctl.kernel & SWITCH_NO_SMART_SCAN:
        return w.f_mapcount[pfn] > 1
    return maybe_shared(w, pfn) if w.f_flags[pfn] & LARGE and w.f_flags[pfn] & FRAME_ANON else w.f_mapcount[pfn] > 1


cdef bint partly_mapped(kw_world *w, int64_t pfn) noexcept nogil:
    """Is any page of a folio of several mapped by nobody, which old kernels do not ask, or was it so for a moment?"""
    cdef int64_t i, head = folio_head(w, pfn)
    if w.f_flags[head] & (FRAME_HEAD | FRAME_ANON | FRAME_HUGETLB) != FRAME_HEAD | FRAME_ANON:
        return False
    if w.owners[head >> 2].shared & FOLIO_PARTED or w.ctl.kernel & SWITCH_NO_SMART_SCAN:
        return w.owners[head >> 2].shared & FOLIO_PARTED != 0
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
    if partly_mapped(w, pfn):
        rc = split_and_go(w, mm, addr, pfn, nid)
    else:
        rc = move_folio(w, mm, addr, pfn, nid)
    if rc == KW_ENOFRAMES:
        return -ENOMEM
    return -EBUSY if rc < 0 else 0


# ------------------------------------------------------------------ areas

cdef struct Waiting:
    uint64_t addr      # where the call met it first
    int64_t pfn


cdef struct Area:
    LeafOp op          # the walk's part, first
    int source, nid    # from this node (-1: from all others) to that one
    bint every         # what is mapped more than once too
    uint8_t *taken     # [pfn of the head] this call has the folio in hand
    int64_t large      # head of the folio of several pages that a pte was met of last
    uint64_t end       # of the part of the area that is walked
    int64_t stuck      # mappings of pages that the call had in hand already; with those that could not be moved
    Waiting *queue
    int64_t nr, room


cdef Area begin(int32_t mm, int source, int nid, bint every, uint8_t *taken) noexcept nogil:
    cdef Area a
    memset(&a, 0, sizeof(Area))
    a.op.pte = meet_pte
    a.op.pmd = meet_pmd
    a.op.mm = mm
    a.source = source
    a.nid = nid
    a.every = every
    a.taken = taken
    a.large = KW_NONE
    return a


cdef int wait(Area *a, uint64_t addr, int64_t pfn) noexcept nogil:
    """The folio of a page is in hand now. -ENOMEM: of this machine."""
    if not kw_grow(&a.queue, &a.room, a.nr + 1, sizeof(Waiting)):
        return -ENOMEM
    a.queue[a.nr].addr = addr
    a.queue[a.nr].pfn = pfn
    a.nr += 1
    return KW_OK


cdef int64_t together(kw_world *w, const Area *a, uint64_t addr, const uint64_t *ptes, int64_t pfn) noexcept nogil:
    """How many of these ptes map the pages of pfn's folio from pfn on, one after the other. 6.12 counts only the first."""
    cdef int64_t n = 1, room = ptes_left(addr, a.end)
    if w.ctl.kernel & SWITCH_NO_GUARD:
        return 1
    room = min(room, folio_head(w, pfn) + folio_pages(w, folio_head(w, pfn)) - pfn)
    while n < room and pte_present(ptes[n]) and normal_pfn(w, ptes[n], 1) == pfn + n:
        n += 1
    return n


cdef int meet(kw_world *w, Area *a, uint64_t addr, uint64_t *entry, int level) noexcept nogil:
    """Take a page or a folio of several in hand, once: ptes that map one more of its pages right after that are passed
    over, those of it that are met later are mappings that could not be moved."""
    cdef int64_t pfn = normal_pfn(w, entry[0], level) if level == 2 or pte_present(entry[0]) else KW_NONE
    cdef int64_t head
    cdef bint large
    if pfn < 0:
        return 0
    head = folio_head(w, pfn)
    large = level == 1 and w.f_flags[pfn] & LARGE != 0
    if large and head == a.large:
        return 0
    if w.f_nid[pfn] == a.nid or a.source >= 0 and w.f_nid[pfn] != a.source:
        return 0
    # old kernels look at the first page of a huge one, whichever they have met
    if not a.every and shared(w, head if w.ctl.kernel & SWITCH_NO_SMART_SCAN else pfn):
        return 0
    a.large = head if large else a.large
    if a.taken[head]:
        a.stuck += together(w, a, addr, entry, pfn) if large else 1
        return 0
    a.taken[head] = 1
    return wait(a, addr, pfn)


cdef int meet_pte(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    return meet(w, <Area *>op, addr, entry, 1)


cdef int meet_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    return meet(w, <Area *>op, addr, entry, 2)


cdef int look_over(kw_world *w, Area *a, int32_t v, uint64_t start, uint64_t end) noexcept nogil:
    """Take the pages of [start, end) in hand, inside area v."""
    if w.vmas[v].flags & UNMOVABLE:
        return KW_OK
    a.end = end
    return over_leaves(w, &a.op, start, end)


cdef void move_all(kw_world *w, Area *a) noexcept nogil:
    """Move what the call has in hand."""
    cdef int32_t mm = a.op.mm
    cdef int64_t i, pfn
    cdef int nid
    for i in range(a.nr):
        pfn = a.queue[i].pfn
        nid = a.nid
        if a.source < 0 and w.f_flags[pfn] & FRAME_KSM and w.ctl.kernel & SWITCH_NO_SMART_SCAN:
            # Old kernels find no area of a KSM page: its new one comes from where the caller runs.
            nid = w.mms[mm].nid
        if go(w, mm, a.queue[i].addr, pfn, nid) < 0:
            a.stuck += 1


cdef int sys_mbind(
    kw_world *w, int32_t mm, uint64_t start, uint64_t end, int32_t policy, int mode, uint8_t *taken,
) noexcept nogil:
    cdef int32_t v = vma_find_from(w, mm, start)
    cdef uint64_t at = start, stop
    cdef int32_t rc
    cdef Area a = begin(mm, -1, policy - 1, mode & MOVE_ALL != 0, taken)
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
    rc = 0
    while mode & (MOVE_OWN | MOVE_ALL) and policy and start < end and rc == 0:
        v = vma_find(w, mm, start)
        stop = min(end, w.vmas[v].end)
        rc = look_over(w, &a, v, start, stop)
        start = stop
    if rc == 0:
        move_all(w, &a)
    free(a.queue)
    return rc


# ------------------------------------------------------------------ what Python sees

cdef uint8_t *marks(World world, taken) except NULL:
    """A mark for each frame."""
    cdef int64_t n = 0
    cdef uint8_t *p = <uint8_t *>records(taken, True, 1, 1, &n)
    if n < world.w.ctl.nr_frames:
        raise ValueError(f"{n} marks for {world.w.ctl.nr_frames} frames")
    return p


def mbind(World world not None, int32_t mm, uint64_t start, uint64_t end, object node, int mode, taken):
    """The node that new pages of [start, end) go to from now on, None: no one in particular. taken: where pages are to move
    a zero for each frame."""
    cdef uint8_t *mine = marks(world, taken) if mode else NULL
    cdef int32_t policy = 0 if node is None else <int32_t>node + 1
    cdef int rc
    enter(world)
    with nogil:
        if world.w.ctl.kernel & SWITCH_NO_SMART_SCAN:
            world.w.freed_again = 2 + world.w.mms[mm].nid     # pages move one by one, each into the frame that was freed last
            world.w.nr_freed = 0
        rc = sys_mbind(&world.w, mm, start, end, policy, mode, mine)
        world.w.freed_again = world.w.nr_freed = 0
    leave(world)
    return rc


def move_pages(World world not None, int32_t mm, addrs, nodes, bint every, status, taken):
    """Where each page is in the end, or -errno, into `status`, which holds zeros; `taken`: a zero for each frame, too."""
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
                if not flush(w, mm, at + first, to + first, answer + first, i + 1 - first, mine):
                    break
                first = i + 1
    leave(world)


cdef enum:
    WAITS = 10000      # no node and no errno


cdef int64_t take(kw_world *w, int32_t mm, uint64_t addr, int64_t nid, bint every, uint8_t *taken) noexcept nogil:
    """What becomes of one page: it waits to be moved, stays where it is, or can't be had."""
    cdef int32_t v = vma_find(w, mm, addr)
    cdef int64_t pfn
    cdef bint unseen = False
    if v == 0 or w.vmas[v].flags & UNMOVABLE:
        return -EFAULT
    pfn = page_at(w, mm, addr, &unseen)
    if pfn == -ENOENT and w.vmas[v].backing == 0 and w.ctl.kernel & SWITCH_NO_SMART_SCAN and not unseen:
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


cdef bint flush(kw_world *w, int32_t mm, const uint64_t *addrs, const int64_t *nodes, int64_t *status, int64_t n,
                uint8_t *taken) noexcept nogil:
    """Move those that wait. False: one can't be moved; the call ends there, and says of none of these where it is."""
    cdef int64_t i, pfn, rc
    cdef bint held = False, unseen = False
    for i in range(n):
        if status[i] == WAITS:
            pfn = page_at(w, mm, addrs[i], &unseen)
            taken[folio_head(w, pfn)] = 0
            rc = go(w, mm, addrs[i], pfn, <int>nodes[i])
            held = held or rc == -EBUSY
            status[i] = rc if rc == -ENOMEM else WAITS
    for i in range(n):
        if status[i] == WAITS:
            status[i] = 0 if held else nodes[i]
    return not held


def migrate(World world not None, int32_t mm, int source, int target, taken):
    """How many mappings were of pages that could not be moved, or were in hand already; or a code."""
    cdef kw_world *w = &world.w
    cdef int32_t v
    cdef int rc = 0
    cdef Area a = begin(mm, source, target, True, marks(world, taken))
    enter(world)
    with nogil:
        lru_drain(w)
        v = w.mms[mm].vma_first
        while v and rc >= 0:
            rc = look_over(w, &a, v, w.vmas[v].start, w.vmas[v].end)
            v = w.vmas[v].next
        if w.ctl.kernel & SWITCH_NO_SMART_SCAN:
            a.stuck = 0       # so old ones say nothing of what they had in hand already
        if rc == 0:
            move_all(w, &a)
        free(a.queue)
    leave(world)
    return rc if rc < 0 else a.stuck
