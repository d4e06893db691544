"""Reclaim of everything, compiled: which pages go, in which order, and out of which mapping first.

The contract of every function stands in `_shrink.pxd`.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, llabs, malloc, qsort
from libc.string cimport memset

from ksmwalk._core cimport child_row, entry_leaf, interrupted, pmd_find, pte_find, pte_present
from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._folio cimport split_folio, whole_folio
from ksmwalk.memory._frames cimport (
    LARGE, came_unlocked, folio_extra_refs, folio_head, folio_pages, in_swap_cache, lru_drain, normal_pfn, note_unlocked,
)
from ksmwalk.memory._khuge cimport underused
from ksmwalk.memory._leaves cimport LeafOp, pmd_split, touched, zap_pte
from ksmwalk.memory._ptes cimport each_pte_of_objects, over_ptes, ptes_left
from ksmwalk.memory._reclaim cimport (
    can_go, item_reaches, keep, large_leave, lazy, leave_cache, not_accessed, not_referenced, object_out, reached, stored_to,
    swap_out, unmap_file,
)
from ksmwalk.memory._swap cimport slots_left
from ksmwalk.memory._turns cimport Folio, by_age, late_from
from ksmwalk.layout._grow cimport kw_grow
from ksmwalk.layout._layout cimport *


cdef enum:
    STAYS = 1      # locked, or held on to
    LOCKED = 2     # mapped as a whole in a locked area, or locked whatever its areas say (FRAME_MLOCKED)

# A mapping of a page that may go, noted while the page tables are looked through.
ctypedef struct Mapping:
    uint64_t addr
    int64_t next   # another one of the folio's, 0: none
    int32_t mm

# The same with what its turn depends on.
ctypedef struct Place:
    uint64_t begins     # first page of its area
    int64_t linked      # kw_vma.linked of it
    uint64_t addr
    int32_t mm, v

ctypedef struct Reclaim:
    LeafOp op      # the first member: what an operation gets stands for the whole
    uint8_t *marks  # by head of the folio
    int64_t *first  # first mapping noted, likewise
    Mapping *at
    int64_t n, room
    int64_t folios  # that mappings were noted of
    Place *places   # of the folio at hand
    int64_t places_room
    int64_t waiting  # pages that MADV_FREE marked and that were in batches when it began
    bint again     # there is something that goes when it is looked at once more


# ------------------------------------------------------------------ all page tables

cdef int over_all(kw_world *w, Reclaim *r) noexcept nogil:
    """The operation for all areas of all address spaces, but those of other page sizes and raw frames."""
    cdef int32_t mm, v
    cdef int rc
    for mm in range(1, <int32_t>w.ctl.mms_used):
        if w.mms[mm].root == 0 or w.mms[mm].flags & MM_BACKING:
            continue
        r.op.mm = mm
        v = w.mms[mm].vma_first
        while v:
            if not w.vmas[v].flags & (VM_HUGETLB | VM_PFNMAP | VM_IO | VM_MIXEDMAP):
                r.op.v = &w.vmas[v]
                rc = over_ptes(w, &r.op, w.vmas[v].start, w.vmas[v].end)
                if rc < 0:
                    return rc
            v = w.vmas[v].next
    return KW_OK


# ------------------------------------------------------------------ what stays

cdef inline bint as_a_whole(kw_world *w, const kw_vma *v, uint64_t addr, uint64_t *entry, int64_t pfn, bint pmd) noexcept nogil:
    """Does the area map all of the folio, by one table? Of several pages this is asked where the first of them is mapped."""
    cdef int64_t room = ptes_left(addr, v.end)
    return pmd or not w.f_flags[pfn] & LARGE or whole_folio(w, entry, room) != 0


cdef inline bint locked_here(kw_world *w, const kw_vma *v, int32_t mm, uint64_t addr, int64_t pfn) noexcept nogil:
    """Is a page of a locked area locked? One that came_unlocked is from now on, if reclaim finds this mapping of it."""
    if w.f_flags[pfn] & LARGE or not came_unlocked(w, pfn):
        return True
    # whose use says nothing of what is needed is not asked (MADV_SEQUENTIAL, MADV_RANDOM)
    if v.flags & (VM_SEQ_READ | VM_RAND_READ) or w.f_flags[pfn] & FRAME_KSM and not reached(w, mm, addr, pfn):
        return False
    note_unlocked(w, pfn, False)
    return True


cdef int op_mark(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    """A pte or leaf pmd: what it says of its page."""
    cdef Reclaim *r = <Reclaim *>op
    cdef int level = 2 if op.on else 1
    cdef int64_t pfn = normal_pfn(w, entry[0], level) if pte_present(entry[0]) else KW_NONE
    if pte_present(entry[0]):
        not_accessed(entry)
    if pfn < 0:
        return 0
    not_referenced(w, pfn)
    if w.f_flags[folio_head(w, pfn)] & FRAME_MLOCKED or (
        op.v.flags & VM_LOCKED and as_a_whole(w, op.v, addr, entry, pfn, op.on) and locked_here(w, op.v, op.mm, addr, pfn)
    ):
        r.marks[folio_head(w, pfn)] |= STAYS | LOCKED
    if not can_go(w, pfn):
        r.marks[folio_head(w, pfn)] |= STAYS
    return 0


cdef int op_mark_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int rc
    op.on = True
    rc = op_mark(w, op, addr, entry)
    op.on = False
    return rc


cdef int decide(kw_world *w, Reclaim *r) noexcept nogil:
    """What stays besides, frame by frame; folios of several pages that can't go as a whole are split."""
    cdef int64_t pfn, i, room = slots_left(w)
    cdef bint whole
    cdef uint16_t f
    for pfn in range(1, w.ctl.nr_frames):
        f = w.f_flags[pfn]
        if not f & FRAME_USED or f & FRAME_TAIL or r.marks[pfn] & STAYS:
            continue
        if f & FRAME_LAZY:
            continue
        if w.ctl.slots_most == 0:
            r.marks[pfn] |= STAYS
        elif f & FRAME_HEAD and f & FRAME_ANON:
            if folio_extra_refs(w, pfn):
                r.marks[pfn] |= STAYS
                continue
            whole = room >= folio_pages(w, pfn)
            for i in range(pfn, pfn + folio_pages(w, pfn)):
                whole = whole and w.f_mapcount[i] > 0
            if whole:
                room -= folio_pages(w, pfn)
            elif not in_swap_cache(w, pfn) and split_folio(w, pfn) == KW_ENOROWS:
                return KW_ENOROWS
    return KW_OK


# ------------------------------------------------------------------ one mapping goes

cdef void stay_lazy(kw_world *w, Reclaim *r, int64_t head) noexcept nogil:
    """A folio that MADV_FREE marked, and in which something was stored since."""
    keep(w, head)
    r.marks[head] |= STAYS
    r.again = True


cdef void unmap_lazy(kw_world *w, Reclaim *r, uint64_t *pte, int64_t head) noexcept nogil:
    """A mapping of a page that MADV_FREE marked. With the first that was stored to since, the page stays for it and those
    after it; the others are gone. What somebody holds stays as it is from the first that was not stored to."""
    if stored_to(w, head, pte[0]):
        stay_lazy(w, r, head)
    elif folio_extra_refs(w, head):
        r.marks[head] |= STAYS
    else:
        zap_pte(w, r.op.mm, pte)


cdef void go_pte(kw_world *w, Reclaim *r, uint64_t addr, uint64_t *pte) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, pte[0], 1) if pte_present(pte[0]) else KW_NONE
    if pfn < 0 or r.marks[folio_head(w, pfn)] & STAYS:
        return
    if lazy(w, folio_head(w, pfn)):
        unmap_lazy(w, r, pte, folio_head(w, pfn))
    elif not w.f_flags[pfn] & FRAME_ANON:
        unmap_file(w, r.op.mm, addr, pte)
    else:
        swap_out(w, r.op.mm, addr, pte, pfn)


cdef int go_pmd(kw_world *w, Reclaim *r, uint64_t addr, uint64_t *pmd) noexcept nogil:
    """A mapping of a whole huge page goes pte by pte; their table stays."""
    cdef uint64_t *ptes
    cdef int rc
    cdef int i
    rc = pmd_split(w, r.op.mm, addr, pmd)
    if rc < 0:
        return rc
    ptes = w.rows + child_row(w, pmd) * 512
    for i in range(512):
        go_pte(w, r, addr + <uint64_t>i * KW_PAGE_SIZE, ptes + i)
    return KW_OK


cdef int go(kw_world *w, Reclaim *r, int32_t mm, uint64_t addr, int64_t head) noexcept nogil:
    """What is mapped there, if it is this folio still."""
    cdef uint64_t *pmd = pmd_find(w, w.mms[mm].root, addr)
    cdef uint64_t *pte
    r.op.mm = mm
    touched(w, mm)
    if pmd != NULL and entry_leaf(pmd[0], 2):
        if normal_pfn(w, pmd[0], 2) == head and not r.marks[head] & STAYS:
            return go_pmd(w, r, addr, pmd)
        return KW_OK
    pte = pte_find(w, w.mms[mm].root, addr)
    if pte != NULL and maps(w, pte, head):
        go_pte(w, r, addr, pte)
    return KW_OK


# ------------------------------------------------------------------ one folio: whose turn it is

cdef inline bint maps(kw_world *w, const uint64_t *pte, int64_t head) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, pte[0], 1) if pte_present(pte[0]) else KW_NONE
    return pfn >= 0 and folio_head(w, pfn) == head


cdef int by_turn(const void *a, const void *b) noexcept nogil:
    """Relatives by the page at which they begin, and then by when they came to be where they are."""
    cdef const Place *p = <const Place *>a
    cdef const Place *q = <const Place *>b
    if p.begins != q.begins:
        return -1 if p.begins < q.begins else 1
    if p.linked != q.linked:
        return -1 if p.linked < q.linked else 1
    if p.mm != q.mm:
        return -1 if p.mm < q.mm else 1
    return (p.addr > q.addr) - (p.addr < q.addr)


cdef int64_t gather(kw_world *w, Reclaim *r, int64_t head) noexcept nogil:
    """r.places: the mappings noted of a folio that are still there, in turn. How many; -ENOMEM."""
    cdef int64_t i = r.first[head], n = 0
    cdef Place *p
    cdef uint64_t *pmd
    cdef uint64_t *pte
    while i:
        if not kw_grow(&r.places, &r.places_room, n + 1, sizeof(Place)):
            return -ENOMEM
        p = &r.places[n]
        p.addr = r.at[i].addr
        p.mm = r.at[i].mm
        i = r.at[i].next
        pmd = pmd_find(w, w.mms[p.mm].root, p.addr)
        if pmd == NULL:
            continue
        if not entry_leaf(pmd[0], 2):
            pte = pte_find(w, w.mms[p.mm].root, p.addr)
            if pte == NULL or not maps(w, pte, head):
                continue
        p.v = vma_find(w, p.mm, p.addr)
        p.begins = w.vmas[p.v].pgoff
        p.linked = w.vmas[p.v].linked
        n += 1
    qsort(r.places, n, sizeof(Place), by_turn)
    return n


cdef int ksm_goes(kw_world *w, Reclaim *r, int64_t pfn) noexcept nogil:
    """A KSM page: item by item, the newest first, each out of its own place; then the relatives of each."""
    cdef int32_t node = w.f_node[pfn], item = w.nodes[node].items if node else 0
    cdef int64_t i, n
    cdef int rc
    while item:
        if w.mms[w.items[item].mm].root:
            rc = go(w, r, w.items[item].mm, w.items[item].addr, pfn)
            if rc < 0:
                return rc
        item = w.links[item].left
    n = gather(w, r, pfn)
    if n < 0:
        return <int>n
    item = w.nodes[node].items if node and n else 0
    while item:
        for i in range(n):
            if r.places[i].addr == w.items[item].addr and item_reaches(w, item, r.places[i].v):
                rc = go(w, r, r.places[i].mm, r.places[i].addr, pfn)
                if rc < 0:
                    return rc
        item = w.links[item].left
    return KW_OK


cdef int64_t lazy_run(kw_world *w, Reclaim *r, int64_t head, int64_t i, int64_t n) noexcept nogil:
    """The end of the run of places from i on that go together: small ptes of one area and one table that differ in nothing but
    the page and in whether it was used. Of a folio that stays because something was stored to one of them: n, and it is noted."""
    cdef Place *first = &r.places[i]
    cdef uint64_t *pte = pte_find(w, w.mms[first.mm].root, first.addr)
    cdef uint64_t entry, on
    cdef int64_t end = i
    if pte == NULL:
        return i + 1      # a leaf pmd
    entry = pte[0] & ~(PTE_A | PTE_D)
    while end < n and r.places[end].mm == first.mm and r.places[end].v == first.v:
        on = <uint64_t>(end - i) * KW_PAGE_SIZE
        if r.places[end].addr != first.addr + on or end > i and not r.places[end].addr % KW_PMD_SIZE:
            break
        if pte[end - i] & ~(PTE_A | PTE_D) != entry + on:
            break
        if stored_to(w, head, pte[end - i]):
            stay_lazy(w, r, head)
            return n
        end += 1
    return end


cdef int folio_goes(kw_world *w, Reclaim *r, int64_t head) noexcept nogil:
    cdef int64_t i, n, run = 0
    cdef int rc
    if w.f_flags[head] & FRAME_KSM:
        return ksm_goes(w, r, head)
    n = gather(w, r, head)
    for i in range(n if not w.f_flags[head] & LARGE and not came_unlocked(w, head) else 0):
        if w.vmas[r.places[i].v].flags & VM_LOCKED:
            return KW_OK      # it was a part of a huge page until now, and is a locked page as such
    for i in range(n):
        if w.vmas[r.places[i].v].flags & VM_LOCKED:
            # Locked in part: the rest stays with it. A folio of several pages counts as locked from now on where it is met
            # here first; where some of it has gone before, that goes again when it has come back.
            if not w.f_flags[head] & LARGE:
                note_unlocked(w, head, False)
            elif i == 0:
                w.f_flags[head] |= FRAME_MLOCKED
                w.owners[head >> 2].shared |= FOLIO_CACHED
            break
        if i == run and w.f_flags[head] & LARGE and lazy(w, head) and not w.ctl.kernel & SWITCH_LAZY_EACH:
            run = lazy_run(w, r, head, i, n)
        rc = go(w, r, r.places[i].mm, r.places[i].addr, head)
        if rc < 0:
            return rc
    return <int>min(n, <int64_t>0)


# ------------------------------------------------------------------ all folios

cdef int note(kw_world *w, Reclaim *r, uint64_t addr, int64_t head) noexcept nogil:
    if not kw_grow(&r.at, &r.room, r.n + 1, sizeof(Mapping)):
        return -ENOMEM
    r.at[r.n].addr = addr
    r.at[r.n].mm = r.op.mm
    r.at[r.n].next = r.first[head]
    r.folios += r.first[head] == 0
    r.first[head] = r.n
    r.n += 1
    return KW_OK


cdef int op_note(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef Reclaim *r = <Reclaim *>op
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    if pfn < 0 or r.marks[folio_head(w, pfn)] & STAYS:
        return 0
    return note(w, r, addr, folio_head(w, pfn))


cdef int op_note_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef Reclaim *r = <Reclaim *>op
    cdef int64_t pfn = normal_pfn(w, entry[0], 2)
    if pfn < 0 or r.marks[pfn] & STAYS or not w.f_flags[pfn] & FRAME_ANON:
        return 0
    return note(w, r, addr, pfn)


cdef int split_underused(kw_world *w, Reclaim *r) noexcept nogil:
    """Folios that are still there and not worth their frames are split, where nobody holds them. As long as all of a huge page
    is mapped it is looked at once."""
    cdef int64_t pfn
    cdef bint locked, goes
    cdef int rc
    for pfn in range(1, w.ctl.nr_frames if w.ctl.folios else 1):
        if w.f_flags[pfn] & (FRAME_HEAD | FRAME_ANON) == FRAME_HEAD | FRAME_ANON:
            locked = r.marks[pfn] & LOCKED != 0
            goes = underused(w, pfn, locked) or not locked and w.owners[pfn >> 2].shared & FOLIO_PARTED
            w.owners[pfn >> 2].shared |= FOLIO_LOOKED
            if not goes:
                continue
            rc = split_folio(w, pfn)
            if rc == KW_ENOROWS:
                return rc
            r.again = r.again or rc == KW_OK
    return KW_OK


cdef int64_t marked_pages(kw_world *w, Reclaim *r, int64_t head) noexcept nogil:
    """Of a folio that mappings were noted of: see `Folio.marked`."""
    cdef int64_t n = folio_pages(w, head), i = r.first[head]
    cdef uint64_t *entry
    while lazy(w, head) and i:
        entry = pmd_find(w, w.mms[r.at[i].mm].root, r.at[i].addr)
        if not entry_leaf(entry[0], 2):
            entry = pte_find(w, w.mms[r.at[i].mm].root, r.at[i].addr)
        if stored_to(w, head, entry[0]):
            return -n
        i = r.at[i].next
    return n if lazy(w, head) else 0


cdef int all_go(kw_world *w, Reclaim *r) noexcept nogil:
    """What mappings were noted of. Those that are hardly used are split before their turn where that comes late."""
    cdef Folio *folios = <Folio *>malloc((r.folios + 1) * sizeof(Folio))
    cdef int64_t pfn, n = 0, went = 0, late
    cdef int rc = KW_OK
    if folios == NULL:
        return -ENOMEM
    for pfn in range(1, w.ctl.nr_frames if r.folios else 1):
        if r.first[pfn]:
            folios[n].head = pfn
            folios[n].born = llabs(w.born_of[pfn]) if w.ctl.born else 0
            folios[n].marked = marked_pages(w, r, pfn)
            n += 1
    qsort(folios, n, sizeof(Folio), by_age)
    late = late_from(folios, n, r.waiting)
    for pfn in range(n):
        if pfn & 4095 == 4095 and interrupted():
            rc = KW_EINTR
        if rc == KW_OK and went >= late and w.f_flags[folios[pfn].head] & FRAME_HEAD:
            late = n * 512
            rc = split_underused(w, r)
        went += 0 if lazy(w, folios[pfn].head) else folio_pages(w, folios[pfn].head)
        if rc == KW_OK:
            rc = folio_goes(w, r, folios[pfn].head)
        r.first[folios[pfn].head] = 0
    free(folios)
    return rc


cdef int reclaim_once(kw_world *w, Reclaim *r) noexcept nogil:
    cdef int rc
    r.again = r.op.on = False
    memset(r.marks, 0, w.ctl.nr_frames)
    r.n = 1      # 0: none
    r.folios = 0
    r.op.pte = op_mark
    r.op.pmd = op_mark_pmd
    rc = over_all(w, r)
    if rc == KW_OK:
        rc = decide(w, r)
    if rc == KW_OK:
        r.op.pte = op_note
        r.op.pmd = op_note_pmd
        rc = over_all(w, r)
    if rc == KW_OK:
        rc = all_go(w, r)
    if rc == KW_OK:
        rc = split_underused(w, r)
    return rc


cdef int op_object_out(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    """A page of shared memory that nobody maps goes as well (see `unmap_file`)."""
    cdef int64_t pfn = normal_pfn(w, entry[0], 1)
    if pfn >= 0 and w.f_mapcount[pfn] == 0 and w.f_extra[pfn] == 1 and can_go(w, pfn):
        object_out(w, entry)
    return 0


cdef int reclaim_all(kw_world *w) noexcept nogil:
    cdef Reclaim r
    cdef int64_t pfn
    cdef int rc = KW_OK
    memset(&r, 0, sizeof(r))
    for pfn in range(w.ctl.nr_cpus):
        r.waiting += w.batches[pfn].nr_lazy
    lru_drain(w)
    r.marks = <uint8_t *>calloc(w.ctl.nr_frames, 1)
    r.first = <int64_t *>calloc(w.ctl.nr_frames, sizeof(int64_t))
    if r.marks == NULL or r.first == NULL:
        rc = -ENOMEM
    r.again = True
    while rc == KW_OK and r.again:
        rc = reclaim_once(w, &r)
    free(r.marks)
    free(r.first)
    free(r.at)
    free(r.places)
    if rc == KW_OK and slots_left(w):
        each_pte_of_objects(w, op_object_out)
    for pfn in range(1, w.ctl.nr_frames if w.ctl.slots_used > 1 else 1):
        if w.f_flags[pfn] & FRAME_HEAD:
            large_leave(w, pfn)
        elif not w.f_flags[pfn] & FRAME_TAIL:
            leave_cache(w, pfn)
    return rc
