"""Pages that userfaultfd puts in place, compiled: markers in absent pages, pages placed, pages moved.

The contract of every function stands in `_watched.pxd`.
"""
from libc.errno cimport EBUSY, EEXIST, EFAULT, ENOENT
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    entry_leaf, entry_none, interrupted_at, make_entry, make_leaf, no_entry, pmd_find, pmd_make, pte_find, pte_make,
    pte_present,
)
from ksmwalk.memory._anon cimport anon_family
from ksmwalk.memory._frames cimport LARGE, folio_head, frame_map, normal_pfn
from ksmwalk.memory._leaves cimport huge_flags, pmd_split, prot_bits, touched, wp_marker
from ksmwalk.memory._areas cimport anon_vma_prepare
from ksmwalk.memory._fault cimport backing_page, new_anon
from ksmwalk.memory._folio cimport split_folio_at
from ksmwalk.memory._swap cimport SWAP_EXCLUSIVE, SWAP_UFFD_WP, swap_slot
from ksmwalk.layout._layout cimport *


cdef inline bint leaf_pmd(const uint64_t *pmd) noexcept nogil:
    return pmd != NULL and not entry_none(pmd[0]) and entry_leaf(pmd[0], 2)


cdef int mark_absent(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t next
    cdef uint64_t *pmd
    cdef uint64_t *pte
    touched(w, mm)
    while start < end:
        if interrupted_at(start):
            return KW_EINTR
        next = min((start & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE, end)
        pmd = pmd_make(w, mm, start)
        if pmd == NULL:
            return no_entry(w, mm, start)
        if not leaf_pmd(pmd):
            pte = pte_make(w, mm, start)
            if pte == NULL:
                return no_entry(w, mm, start)
            while start < next:
                if entry_none(pte[0]):
                    pte[0] = wp_marker()
                pte += 1
                start += KW_PAGE_SIZE
        start = next
    return KW_OK


# ------------------------------------------------------------------ placed

cdef int empty_pte(kw_world *w, int32_t mm, uint64_t addr, uint64_t **pte) noexcept nogil:
    """The pte of addr, made where missing: none, or a marker."""
    if leaf_pmd(pmd_find(w, w.mms[mm].root, addr)):
        return -EEXIST
    pte[0] = pte_make(w, mm, addr)
    if pte[0] == NULL:
        return no_entry(w, mm, addr)
    if not entry_none(pte[0][0]) and not is_marker(pte[0][0]):
        return -EEXIST
    return KW_OK


cdef inline bint is_marker(uint64_t e) noexcept nogil:
    """Of userfaultfd or a guard: a swap entry of device 31, which there is not."""
    return not pte_present(e) and e >> 59 == 31


cdef int place_page(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t key, bint protect) noexcept nogil:
    cdef uint64_t pgoff = v.pgoff + ((addr - v.start) >> 12)
    cdef uint64_t *pte = NULL
    cdef uint64_t *there
    cdef int64_t pfn
    cdef int rc
    if v.backing and pgoff >= <uint64_t>w.mms[v.backing].nr_pages:
        return -EFAULT
    if not v.flags & VM_SHARED:
        anon_vma_prepare(w, v)
    rc = empty_pte(w, mm, addr, &pte)
    if rc < 0:
        return rc
    if v.flags & VM_SHARED:
        there = pte_find(w, w.mms[v.backing].root, pgoff << 12)
        if there != NULL and there[0]:
            return -EEXIST
        pfn = backing_page(w, v, pgoff, False)
        if pfn < 0:
            return <int>pfn
        w.f_key[pfn] = key
        pte[0] = make_entry(<uint64_t>pfn, prot_bits(v.flags) | PTE_D)
        frame_map(w, mm, pfn)
        touched(w, mm)
    else:
        rc = new_anon(w, mm, v, pte, key)
    if rc == KW_OK and protect:
        pte[0] = (pte[0] & ~PTE_RW) | PTE_UFFD_WP
    return rc


cdef int place_zero(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil:
    cdef uint64_t *pte = NULL
    cdef int rc
    if v.flags & VM_SHARED:
        return place_page(w, mm, v, addr, 0, False)
    if v.backing and v.pgoff + ((addr - v.start) >> 12) >= <uint64_t>w.mms[v.backing].nr_pages:
        return -EFAULT
    anon_vma_prepare(w, v)
    rc = empty_pte(w, mm, addr, &pte)
    if rc < 0:
        return rc
    if not entry_none(pte[0]):
        return -EEXIST
    pte[0] = make_entry(0, prot_bits(v.flags) | PTE_SPECIAL)
    touched(w, mm)
    return KW_OK


# ------------------------------------------------------------------ moved

cdef int split_leaf(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """A huge page at addr is mapped by ptes: KW_OK, or why none of it can be moved."""
    cdef uint64_t *pmd = pmd_find(w, w.mms[mm].root, addr)
    cdef int64_t pfn
    if not leaf_pmd(pmd):
        return KW_OK
    pfn = normal_pfn(w, pmd[0], 2)
    if pfn >= 0 and not w.f_flags[pfn] & FRAME_EXCLUSIVE:
        return -EBUSY          # a pin is found later, page by page
    return pmd_split(w, mm, addr, pmd)


cdef int take_apart(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """What ptes map at addr becomes a small page, or stays one: KW_OK, or why it can't be moved."""
    cdef uint64_t *pte = pte_find(w, w.mms[mm].root, addr)
    cdef int64_t pfn
    cdef int rc
    if pte == NULL or not pte_present(pte[0]):
        return KW_OK
    pfn = normal_pfn(w, pte[0], 1)
    if pfn < 0:
        return KW_OK
    # Of a folio of several pages the first is asked: it may be exclusive though this one is not, or the other way round.
    if not movable(w, folio_head(w, pfn)):
        return -EBUSY
    rc = split_folio_at(w, pfn, addr)
    if rc < 0:
        return -EBUSY if rc == KW_EBUSYENTRY else rc
    pfn = normal_pfn(w, pte[0], 1) if pte_present(pte[0]) else -1      # an empty one has become the zero page
    return -EBUSY if pfn >= 0 and not movable(w, pfn) else KW_OK


cdef inline bint movable(kw_world *w, int64_t pfn) noexcept nogil:
    """Nobody else has it (which KSM pages never are), and no device writes into it."""
    return w.f_flags[pfn] & FRAME_EXCLUSIVE != 0 and not (w.ctl.dma_pins and w.pins_of[folio_head(w, pfn)])


cdef int move_entry(kw_world *w, const kw_vma *v, uint64_t to, uint64_t e) noexcept nogil:
    """May this entry move? A swap slot that nobody shares, whose page, if there is one, belongs to the new place; none whose
    page is in the swap cache as a part of a folio of several."""
    cdef int32_t slot = swap_slot(w, e)
    if slot == 0:
        return -EFAULT
    if not e & SWAP_EXCLUSIVE or w.slots[slot].pfn and w.f_flags[w.slots[slot].pfn] & LARGE:
        return -EBUSY
    if w.slots[slot].pfn:
        w.slots[slot].addr, w.slots[slot].root = to, anon_family(w, v)
    return KW_OK


cdef int move_page(kw_world *w, int32_t mm, kw_vma *v, uint64_t to, uint64_t start) noexcept nogil:
    cdef uint64_t *pte = NULL
    cdef uint64_t *old
    cdef uint64_t e
    cdef int64_t pfn
    cdef int rc
    # The order in which the kernel looks: a table of pmds at the source, a huge page here, a table of ptes there. A huge
    # page there is mapped by ptes whatever is here, and stays so.
    if pmd_find(w, w.mms[mm].root, start) == NULL:
        return -ENOENT
    if leaf_pmd(pmd_find(w, w.mms[mm].root, to)):
        return -EEXIST
    if entry_none(pmd_find(w, w.mms[mm].root, start)[0]):
        return -ENOENT
    rc = split_leaf(w, mm, start)
    if rc < 0:
        return rc
    anon_vma_prepare(w, v)
    rc = empty_pte(w, mm, to, &pte)
    if rc < 0:
        return rc
    if not entry_none(pte[0]):
        return -EEXIST
    rc = take_apart(w, mm, start)
    if rc < 0:
        return rc
    old = pte_find(w, w.mms[mm].root, start)
    if old == NULL or entry_none(old[0]):
        return -ENOENT
    e = old[0]
    if not pte_present(e):
        rc = move_entry(w, v, to, e)
        if rc < 0:
            return rc
        pte[0] = e & ~<uint64_t>SWAP_UFFD_WP
    elif e & PTE_SPECIAL:
        pte[0] = make_entry(0, prot_bits(v.flags) | PTE_SPECIAL)
    else:
        pfn = normal_pfn(w, e, 1)
        if pfn < 0:
            return -EBUSY
        pte[0] = make_entry(<uint64_t>pfn, prot_bits(v.flags) | e & PTE_D | (PTE_RW if v.flags & VM_WRITE else 0))
    old[0] = 0
    touched(w, mm)
    return KW_OK


cdef int move_huge(kw_world *w, int32_t mm, kw_vma *v, uint64_t to, uint64_t start) noexcept nogil:
    cdef uint64_t *old = pmd_find(w, w.mms[mm].root, start)
    cdef uint64_t *new
    cdef int64_t pfn
    if not leaf_pmd(old):
        return 0
    pfn = normal_pfn(w, old[0], 2)
    if pfn < 0:
        return 0
    new = pmd_make(w, mm, to)
    if new == NULL:
        return no_entry(w, mm, to)
    if not entry_none(new[0]):
        return -EEXIST if leaf_pmd(new) else 0
    if not movable(w, pfn):
        return -EBUSY
    anon_vma_prepare(w, v)
    new[0] = make_leaf(<uint64_t>pfn, huge_flags(v.flags), 2)
    old[0] = 0
    touched(w, mm)
    return 1
