"""Pages that come back from swap, compiled: at faults, ahead of them, and all at once.

The contract of every function stands in `_swapin.pxd`.
"""
from libc.errno cimport EFAULT
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport interrupted_at, make_entry
from ksmwalk.memory._anon cimport anon_family
from ksmwalk.memory._areas cimport anon_vma_prepare, node_of
from ksmwalk.memory._frames cimport frame_alloc, frame_map, lru_add, lru_drain, mlock_page, new_page, normal_pfn, note_unlocked
from ksmwalk.memory._leaves cimport LeafOp, prot_bits, touched
from ksmwalk.memory._ptes cimport each_pte_of_objects, over_ptes
from ksmwalk.memory._swap cimport SWAP_EXCLUSIVE, SWAP_UFFD_WP, cache_add, mm_off_list, slot_put, swap_slot
from ksmwalk.layout._layout cimport *


cdef inline bint belongs(kw_world *w, kw_slot *s, kw_vma *v, uint64_t index) noexcept nogil:
    """May the page of the swap cache be mapped here as it is? What is KSM's may be mapped anywhere, while KSM has it;
    another page is of the place that had it first, once one had it."""
    if w.f_flags[s.pfn] & FRAME_KSM:
        return w.f_node[s.pfn] != 0 and w.ksm.run != 2
    return s.root == 0 or s.addr == index and s.root == anon_family(w, v)


cdef enum:
    NOWHERE, NEW, READ, LOCKED      # whose batch a page waits in, once it is mapped: the one that is full lets go of it


cdef int64_t page_for(
    kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, kw_slot *s, int32_t slot, bint *own, int *batch,
) noexcept nogil:
    """The frame to be mapped for a slot; own: nobody else has it, or can get it; batch: where it is to wait."""
    cdef uint64_t index = (v.pgoff << 12) + (addr - v.start)
    cdef int64_t pfn = s.pfn
    cdef bint copy
    if pfn == 0 or not belongs(w, s, v, index):
        w.done.ksm_swpin_copy += pfn != 0
        own[0] = pfn != 0 or s.count == 1
        copy = pfn != 0
        pfn = frame_alloc(w, node_of(w, v), s.key, FRAME_ANON)
        if pfn < 0:
            return KW_ENOFRAMES
        if not own[0]:
            cache_add(w, slot, pfn)
        batch[0] = NEW if copy else READ
    elif w.f_mapcount[pfn] or s.root:
        batch[0] = LOCKED
    if not own[0] and s.root == 0:
        s.root = anon_family(w, v)
        s.addr = index
    return pfn


cdef int swap_in(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte) noexcept nogil:
    cdef uint64_t e = pte[0], flags
    cdef int32_t slot = swap_slot(w, e)
    cdef bint own = False
    cdef int batch = NOWHERE
    cdef int64_t pfn
    if slot == 0:
        return -EFAULT
    anon_vma_prepare(w, v)
    pfn = page_for(w, mm, v, addr, &w.slots[slot], slot, &own, &batch)
    if pfn < 0:
        return <int>pfn
    flags = prot_bits(v.flags)
    if e & SWAP_UFFD_WP:
        flags |= PTE_UFFD_WP
    if (own or e & SWAP_EXCLUSIVE) and not w.f_flags[pfn] & FRAME_KSM:
        w.f_flags[pfn] |= FRAME_EXCLUSIVE
        if v.flags & VM_WRITE and not e & SWAP_UFFD_WP:
            flags |= PTE_RW
    frame_map(w, mm, pfn)
    pte[0] = make_entry(<uint64_t>pfn, flags)
    if batch in (NOWHERE, READ):
        note_unlocked(w, pfn, v.flags & VM_LOCKED != 0)
    if batch == NEW:
        new_page(w, w.mms[mm].cpu, v.flags, pfn)
    elif batch == READ:
        lru_add(w, mm, pfn)
    elif batch == LOCKED:
        mlock_page(w, w.mms[mm].cpu, v.flags, pfn)
    slot_put(w, slot)
    touched(w, mm)
    return KW_OK


# ------------------------------------------------------------------ ahead of faults, and all at once

cdef int op_read(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int32_t slot = swap_slot(w, entry[0])
    cdef int64_t pfn
    if slot == 0 or w.slots[slot].pfn:
        return 0
    pfn = frame_alloc(w, node_of(w, op.v), w.slots[slot].key, FRAME_ANON)
    if pfn < 0:
        return KW_ENOFRAMES
    cache_add(w, slot, pfn)
    lru_add(w, op.mm, pfn)
    return 0


cdef int op_bring_back(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef uint64_t e = entry[0]
    cdef int64_t pfn
    cdef int rc
    if swap_slot(w, e) == 0:
        return 0
    if interrupted_at(addr):
        return KW_EINTR
    rc = swap_in(w, op.mm, op.v, addr, entry)
    if rc == KW_OK:
        pfn = normal_pfn(w, entry[0], 1)
        entry[0] &= ~PTE_A      # nobody asked for it
        w.f_flags[pfn] |= FRAME_DIRTY    # and no slot has its content any more
        if not e & SWAP_EXCLUSIVE:       # that nobody else has it any more is not looked at
            entry[0] &= ~PTE_RW
            w.f_flags[pfn] &= ~FRAME_EXCLUSIVE
    return rc


cdef int read_ahead(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    if w.ctl.slots_live == 0:
        return KW_OK
    op.pte = op_read
    op.pmd = NULL
    op.mm = mm
    op.v = v
    return over_ptes(w, &op, start, end)


cdef int op_in_memory(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    """A page of shared memory is in memory again, for whoever maps those around a page."""
    entry[0] |= PTE_A
    return 0


cdef int swap_off(kw_world *w) noexcept nogil:
    cdef LeafOp op
    cdef int32_t mm = <int32_t>w.ctl.swap_first, v
    cdef int rc
    each_pte_of_objects(w, op_in_memory)
    op.pte = op_bring_back
    op.pmd = NULL
    while w.ctl.slots_live and mm:
        op.mm = mm
        v = w.mms[mm].vma_first
        while v:
            if not w.vmas[v].flags & VM_HUGETLB:
                op.v = &w.vmas[v]
                rc = over_ptes(w, &op, w.vmas[v].start, w.vmas[v].end)
                if rc < 0:
                    return rc
            v = w.vmas[v].next
        mm = w.mms[mm].swap_next
    while w.ctl.swap_first:
        mm_off_list(w, <int32_t>w.ctl.swap_first)      # nobody has anything out any more
    w.ctl.slots_most = 0
    lru_drain(w)      # as closing the device does
    return KW_OK
