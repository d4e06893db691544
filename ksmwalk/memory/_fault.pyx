"""Faults of a Host, compiled: what a load or a store does to page tables and frames, singly and at array speed.

The contract of every function stands in `_fault.pxd`.
"""
from libc.errno cimport EFAULT
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    bad_entry, entry_leaf, entry_none, entry_pfn, entry_stored, interrupted, interrupted_at, make_entry, make_leaf, mm_changed,
    no_entry, pmd_make, pmd_present, pte_find, pte_make, pte_present,
)
from ksmwalk.memory._frames cimport (
    folio_get, folio_mappings, frame_alloc, frame_map, frame_new, frame_unmap, huge_alloc, huge_map, huge_unmap,
    hugetlb_alloc, mlock_page, new_page, normal_pfn,
)
from ksmwalk.memory._leaves cimport huge_flags, ksm_zero_gone, pmd_split, prot_bits, pte_ksm_zero, touched, wp_marker
from ksmwalk.memory._areas cimport VM_ACCESS, anon_vma_prepare, khuge_prepare, node_of, vma_find_from, vma_for, waits
from ksmwalk.memory._mthp cimport folio_fault, folio_orders, thp_fits
from ksmwalk.memory._folio cimport huge_ours, make_huge_zero, map_huge, page_ours
from ksmwalk.memory._swapin cimport swap_in
from ksmwalk.layout._layout cimport *


cdef int64_t backing_page(kw_world *w, kw_vma *v, uint64_t pgoff, bint huge) noexcept nogil:
    """The frame of the file or shared object an area maps at this offset, made (empty) where missing."""
    cdef int32_t backing = v.backing
    cdef uint64_t *p
    cdef int64_t pfn
    if pgoff >= <uint64_t>w.mms[backing].nr_pages:
        return -EFAULT
    p = pmd_make(w, backing, pgoff << 12) if huge else pte_make(w, backing, pgoff << 12)
    if p == NULL:
        return no_entry(w, backing, pgoff << 12)
    if p[0]:
        # Small pages of a file stand where a huge one would.
        if huge and not entry_leaf(p[0], 2):
            return -EFAULT
        pfn = normal_pfn(w, p[0], 2 if huge else 1)
        p[0] |= PTE_A
        return pfn if pfn >= 0 else bad_entry(w, pgoff << 12, 2 if huge else 1, p[0], BAD_PFN)
    pfn = hugetlb_alloc(w, node_of(w, v)) if huge else frame_alloc(
        w, node_of(w, v), 0, FRAME_DEVICE if w.mms[backing].flags & MM_DEVICE else FRAME_FILE)
    if pfn < 0:
        return pfn
    folio_get(w, pfn)   # the object's own reference
    p[0] = make_entry(<uint64_t>pfn, PTE_P | PTE_A | (PTE_PS if huge else 0))
    return pfn


cdef inline void store(kw_world *w, int32_t mm, int64_t pfn, uint64_t key, int mode) noexcept nogil:
    if not mode & FAULT_KEEP:
        w.f_key[pfn] = key
        touched(w, mm)


cdef int write_huge(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t key, int mode,
                    uint64_t *pmd) noexcept nogil:
    """A store into a leaf pmd: 1 done; 0: it has become ptes, go on there."""
    cdef uint64_t e = pmd[0]
    cdef int64_t pfn = normal_pfn(w, e, 2), huge
    cdef int64_t sub = <int64_t>((addr & (KW_PMD_SIZE - 1)) >> 12)
    if not pmd_present(e):
        return -EFAULT
    if e & PTE_UFFD_WP:
        if v.flags & VM_UFFD_WP:
            return pmd_split(w, mm, addr, pmd) if v.flags & VM_UFFD_ASYNC else -EFAULT
        e &= ~PTE_UFFD_WP       # left from when the area was watched for stores
    if pfn < 0:
        if entry_pfn(e, 2) != <uint64_t>w.ctl.huge_zero:
            return -EFAULT
        huge = KW_NONE if w.ctl.kernel & SWITCH_HUGE_ZERO_SPLIT else huge_alloc(w, node_of(w, v))
        if huge < 0:
            return pmd_split(w, mm, addr, pmd)
        map_huge(w, mm, v, pmd, huge)
        store(w, mm, huge + sub, key, mode)
        return 1
    if not e & PTE_RW:
        if not v.flags & VM_SHARED:
            if not huge_ours(w, pfn):
                return pmd_split(w, mm, addr, pmd)
            w.f_flags[pfn] |= FRAME_EXCLUSIVE
        if v.flags & VM_WRITE:
            pmd[0] = e | PTE_RW
    pmd[0] = entry_stored(pmd[0])
    store(w, mm, pfn + sub, key, mode)
    return 1


cdef int write_hugetlb(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t key, int mode) noexcept nogil:
    cdef uint64_t *pmd = pmd_make(w, mm, addr)
    cdef uint64_t base = addr & ~(KW_PMD_SIZE - 1)
    cdef int64_t old = KW_NONE, pfn, sub = <int64_t>((addr - base) >> 12)
    cdef int i
    if pmd == NULL:
        return no_entry(w, mm, addr)
    if not entry_none(pmd[0]):
        old = normal_pfn(w, pmd[0], 2)
        if old < 0:
            return -EFAULT
        if pmd[0] & PTE_RW or v.flags & VM_SHARED or folio_mappings(w, old) == 512 and not w.f_extra[old]:
            pmd[0] = entry_stored(pmd[0] | PTE_RW)
            store(w, mm, old + sub, key, mode)
            return KW_OK
    elif v.flags & VM_SHARED:
        old = backing_page(w, v, v.pgoff + ((base - v.start) >> 12), True)
        if old < 0:
            return <int>old
        pmd[0] = make_leaf(<uint64_t>old, prot_bits(v.flags) | PTE_PS | PTE_D, 2)
        huge_map(w, mm, old)
        store(w, mm, old + sub, key, mode)
        touched(w, mm)
        return KW_OK
    anon_vma_prepare(w, v)
    pfn = hugetlb_alloc(w, node_of(w, v))
    if pfn < 0:
        return KW_ENOFRAMES
    pmd[0] = make_leaf(<uint64_t>pfn, huge_flags(v.flags), 2)
    huge_map(w, mm, pfn)
    if old >= 0:
        for i in range(512):
            w.f_key[pfn + i] = w.f_key[old + i]
        huge_unmap(w, mm, old)
    store(w, mm, pfn + sub, key, mode)
    touched(w, mm)
    return KW_OK


cdef int new_anon(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pte, uint64_t key) noexcept nogil:
    """A new anonymous page with this content at an empty or replaced pte."""
    cdef int64_t pfn = frame_alloc(w, node_of(w, v), key, FRAME_ANON | FRAME_EXCLUSIVE)
    cdef uint64_t flags
    if pfn < 0:
        return KW_ENOFRAMES
    flags = prot_bits(v.flags) | PTE_D
    if v.flags & VM_WRITE:
        flags |= PTE_RW
    pte[0] = make_entry(<uint64_t>pfn, flags)
    frame_map(w, mm, pfn)
    new_page(w, w.mms[mm].cpu, v.flags, pfn)
    touched(w, mm)
    return KW_OK


cdef int write_absent(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte, uint64_t key, int mode) noexcept nogil:
    """A store where no page is present."""
    cdef int64_t pfn = KW_NONE
    cdef int rc
    cdef bint marked = False
    if not entry_none(pte[0]):
        if pte[0] != wp_marker():
            rc = swap_in(w, mm, v, addr, pte)     # -EFAULT: a guard marker, say
            pte[0] = entry_stored(pte[0]) if rc == KW_OK and pte[0] & PTE_RW else pte[0]
            return rc if rc < 0 else write_pte(w, mm, v, addr, pte, key, mode)
        # The page comes, protected; then the store is told of. A marker that is left from before means nothing.
        marked = v.flags & (VM_UFFD_WP | VM_UFFD_ASYNC) == VM_UFFD_WP
        mode |= FAULT_KEEP if marked else 0
        pte[0] = pte[0] if v.flags & VM_UFFD_WP else 0
    if waits(w, v, addr):
        return -EFAULT
    if v.backing:
        pfn = backing_page(w, v, v.pgoff + ((addr - v.start) >> 12), False)
        if pfn < 0:
            return <int>pfn
    if v.flags & VM_SHARED and pfn >= 0:
        pte[0] = make_entry(<uint64_t>pfn, prot_bits(v.flags) | PTE_D)
        frame_map(w, mm, pfn)
        mlock_page(w, w.mms[mm].cpu, v.flags, pfn)
        store(w, mm, pfn, key, mode)
        touched(w, mm)
        rc = KW_OK
    else:
        if mode & FAULT_KEEP:
            key = w.f_key[pfn] if pfn >= 0 else 0
        anon_vma_prepare(w, v)
        rc = new_anon(w, mm, v, pte, key)
    if not marked or rc < 0:
        return rc
    # A store that now waits for a handler.
    pte[0] = (pte[0] & ~PTE_RW) | PTE_UFFD_WP
    return -EFAULT


cdef int write_pte(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte, uint64_t key, int mode) noexcept nogil:
    cdef uint64_t e = pte[0]
    cdef int64_t pfn
    cdef int rc
    if e & PTE_RW and pte_present(e):
        pfn = normal_pfn(w, e, 1)
        if pfn >= 0:
            if not mode & FAULT_KEEP:      # else there is no fault to take, as there is none for a debugger
                pte[0] = entry_stored(e) if not mode & FAULT_FORCE or e & PTE_CLEAN else e
                store(w, mm, pfn, key, mode)
            return KW_OK
    if not pte_present(e):
        return write_absent(w, mm, v, addr, pte, key, mode)
    if e & PTE_UFFD_WP:
        if v.flags & (VM_UFFD_WP | VM_UFFD_ASYNC) == VM_UFFD_WP:
            return -EFAULT       # a userfaultfd handler would have to answer
        pte[0] = e = e & ~PTE_UFFD_WP
    if e & PTE_SPECIAL:
        if entry_pfn(e, 1) != 0:
            return -EFAULT
        anon_vma_prepare(w, v)
        rc = new_anon(w, mm, v, pte, 0 if mode & FAULT_KEEP else key)
        if rc == KW_OK and pte_ksm_zero(e):
            ksm_zero_gone(w, mm)
        return rc
    pfn = normal_pfn(w, e, 1)
    if pfn < 0:
        return -EFAULT
    if v.flags & VM_SHARED or page_ours(w, mm, pfn):
        if not v.flags & VM_SHARED:
            w.f_flags[pfn] |= FRAME_EXCLUSIVE
        pte[0] = entry_stored(e) | (PTE_RW if v.flags & VM_WRITE else 0)
        store(w, mm, pfn, key, mode)
        return KW_OK
    anon_vma_prepare(w, v)
    rc = new_anon(w, mm, v, pte, w.f_key[pfn] if mode & FAULT_KEEP else key)
    if rc == KW_OK:
        mlock_page(w, w.mms[mm].cpu, v.flags, pfn)
        w.done.cow_ksm += w.f_flags[pfn] & FRAME_KSM != 0
        frame_unmap(w, mm, pfn)
    return rc


cdef int fault_write(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t key, int mode) noexcept nogil:
    cdef uint64_t *pmd
    cdef uint64_t *pte
    cdef int64_t huge, pfn
    cdef int rc, orders
    if v.flags & (VM_PFNMAP | VM_IO) or not v.flags & VM_WRITE and not mode & FAULT_FORCE:
        return -EFAULT
    if mode & FAULT_FORCE and not v.flags & VM_WRITE and (
            v.flags & VM_SHARED or not v.flags & VM_MAYWRITE or w.ctl.kernel & SWITCH_POKE_FAILS):
        return -EFAULT
    if v.flags & VM_HUGETLB:
        return write_hugetlb(w, mm, v, addr, key, mode)
    pmd = pmd_make(w, mm, addr)
    if pmd == NULL:
        return no_entry(w, mm, addr)
    if entry_none(pmd[0]):
        if thp_fits(w, mm, v, addr):
            khuge_prepare(w, v)
            if v.flags & VM_UFFD_MISSING:
                return -EFAULT
            huge = huge_alloc(w, node_of(w, v))
            if huge >= 0:
                map_huge(w, mm, v, pmd, huge)
                store(w, mm, huge + ((addr & (KW_PMD_SIZE - 1)) >> 12), key, mode)
                return KW_OK
    elif entry_leaf(pmd[0], 2):
        rc = write_huge(w, mm, v, addr, key, mode, pmd)
        if rc:
            return rc if rc < 0 else KW_OK
    pte = pte_make(w, mm, addr)
    if pte == NULL:
        return no_entry(w, mm, addr)
    if pte[0] == 0:
        orders = folio_orders(w, mm, v)
        if KW_UNLIKELY(orders):
            anon_vma_prepare(w, v)
            pfn = folio_fault(w, mm, v, addr, pte, orders)
            if pfn >= 0:
                store(w, mm, pfn, key, mode)
                return KW_OK
    return write_pte(w, mm, v, addr, pte, key, mode)


cdef int write_fault(kw_world *w, int32_t mm, uint64_t addr, uint64_t key) noexcept nogil:
    cdef int32_t v = vma_for(w, mm, addr)
    if v == 0:
        return -EFAULT
    return fault_write(w, mm, &w.vmas[v], addr, key, 0)


cdef int64_t read_absent(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte) noexcept nogil:
    """A load where no page is present."""
    cdef uint64_t e = pte[0], marked
    cdef int64_t pfn
    if not entry_none(e) and e != wp_marker():
        pfn = swap_in(w, mm, v, addr, pte)            # -EFAULT: a guard marker, say
        return pfn if pfn < 0 else <int64_t>entry_pfn(pte[0], 1)
    if e and not v.flags & VM_UFFD_WP:
        e = pte[0] = 0      # the marker is left from when the area was watched for stores
    touched(w, mm)
    if v.backing and not v.flags & (VM_UFFD_WP | VM_UFFD_MINOR):
        map_around(w, mm, v, addr, pte)      # also where the page itself is missing, and somebody waits for it
        if pte[0]:
            return <int64_t>entry_pfn(pte[0], 1)
    if waits(w, v, addr):
        return -EFAULT
    # Over a marker comes a page that is protected.
    marked = PTE_UFFD_WP if e else 0
    if v.backing == 0:
        pte[0] = make_entry(0, prot_bits(v.flags) | PTE_SPECIAL | marked)
        return 0
    pfn = backing_page(w, v, v.pgoff + ((addr - v.start) >> 12), False)
    if pfn < 0:
        return pfn
    pte[0] = make_entry(<uint64_t>pfn, (prot_bits(v.flags) & ~(PTE_RW if marked else 0)) | marked)
    frame_map(w, mm, pfn)
    mlock_page(w, w.mms[mm].cpu, v.flags, pfn)
    return pfn


cdef int64_t fault_read(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, int mode) noexcept nogil:
    cdef uint64_t *pmd
    cdef uint64_t *pte
    cdef uint64_t e
    cdef int64_t pfn, sub = <int64_t>((addr & (KW_PMD_SIZE - 1)) >> 12)
    cdef bint huge = v.flags & VM_HUGETLB != 0
    if not v.flags & (VM_READ | VM_WRITE | VM_EXEC) and not mode & FAULT_FORCE:
        return -EFAULT
    if v.flags & (VM_PFNMAP | VM_IO):
        return -EFAULT
    pmd = pmd_make(w, mm, addr)
    if pmd == NULL:
        return no_entry(w, mm, addr)
    if entry_none(pmd[0]):
        if huge:
            if v.backing == 0:
                # A private huge page of its own right away: hugetlb has no zero page.
                pfn = write_hugetlb(w, mm, v, addr, 0, FAULT_KEEP)
                return pfn if pfn < 0 else <int64_t>entry_pfn(pmd[0], 2) + sub
            pfn = backing_page(w, v, v.pgoff + (((addr & ~(KW_PMD_SIZE - 1)) - v.start) >> 12), True)
            if pfn < 0:
                return pfn
            pmd[0] = make_leaf(<uint64_t>pfn, prot_bits(v.flags) | PTE_PS, 2)
            huge_map(w, mm, pfn)
            touched(w, mm)
            return pfn + sub
        if thp_fits(w, mm, v, addr):
            khuge_prepare(w, v)
            if v.flags & VM_UFFD_MISSING:
                return -EFAULT
            if w.ctl.huge_zero < 0:
                pfn = huge_alloc(w, 0)
                if pfn >= 0:
                    make_huge_zero(w, pfn)
            if w.ctl.huge_zero >= 0:
                pmd[0] = make_leaf(<uint64_t>w.ctl.huge_zero, prot_bits(v.flags) | PTE_PS | PTE_SPECIAL, 2)
                touched(w, mm)
                return w.ctl.huge_zero + sub
    elif entry_leaf(pmd[0], 2):
        pfn = <int64_t>entry_pfn(pmd[0], 2) + sub
        if not pmd_present(pmd[0]) or pfn >= w.ctl.nr_frames:
            return -EFAULT
        pmd[0] |= PTE_A
        return pfn
    pte = pte_make(w, mm, addr)
    if pte == NULL:
        return no_entry(w, mm, addr)
    e = pte[0]
    if pte_present(e):
        pfn = <int64_t>entry_pfn(e, 1)
        if pfn >= w.ctl.nr_frames:
            return -EFAULT
        pte[0] = e | PTE_A
        return pfn
    return read_absent(w, mm, v, addr, pte)


cdef void map_around(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t *pte) noexcept nogil:
    """A load of a file page maps those of the 16 around it that the file has in memory (fault_around_bytes).

    The 16 begin at a multiple of 16, or where the area does, and end with the area or the table at the latest.
    """
    cdef uint64_t a = max(addr & ~<uint64_t>0xffff, v.start)
    cdef uint64_t end = min(a + 0x10000, min(v.end, (addr & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE))
    cdef uint64_t *p = pte - ((addr - a) >> 12)
    cdef uint64_t *have
    cdef uint64_t pgoff
    cdef int64_t pfn
    while a < end:
        pgoff = v.pgoff + ((a - v.start) >> 12)
        if p[0] == 0 and pgoff < <uint64_t>w.mms[v.backing].nr_pages:
            have = pte_find(w, w.mms[v.backing].root, pgoff << 12)
            pfn = normal_pfn(w, have[0], 1) if have != NULL and have[0] & PTE_A else KW_NONE
            if pfn >= 0:
                p[0] = make_entry(<uint64_t>pfn, prot_bits(v.flags))
                frame_map(w, mm, pfn)
                mlock_page(w, w.mms[mm].cpu, v.flags, pfn)
        p += 1
        a += KW_PAGE_SIZE


cdef int64_t read_fault(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    cdef int32_t v = vma_for(w, mm, addr)
    if v == 0:
        return -EFAULT
    return fault_read(w, mm, &w.vmas[v], addr, 0)


# ------------------------------------------------------------------ ranges at array speed

cdef int64_t write_range(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, int64_t stride,
                         int mode, int *code) noexcept nogil:
    cdef int64_t done = 0, pfn
    cdef uint64_t end = addr + (<uint64_t>n << 12), stop, flags
    cdef uint64_t *pmd
    cdef uint64_t *pte
    cdef kw_vma *v
    cdef int32_t at
    cdef int nid
    cdef bint batched   # new pages wait in a batch
    code[0] = KW_OK
    at = vma_find_from(w, mm, addr)
    while addr < end:
        while at and w.vmas[at].end <= addr:
            at = w.vmas[at].next
        if at == 0 or w.vmas[at].start > addr and vma_for(w, mm, addr) == 0:
            code[0] = -EFAULT
            return done
        if interrupted_at(addr):
            code[0] = KW_EINTR
            return done
        v = &w.vmas[at]
        stop = min(end, min(v.end, (addr & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE))
        if (not v.backing and v.flags & VM_WRITE and not v.flags & (VM_PFNMAP | VM_IO | VM_HUGETLB | VM_UFFD_MISSING)
                and not folio_orders(w, mm, v)):
            # Private memory: into its pte table, without a fault's detour for new and for writable pages.
            pmd = pmd_make(w, mm, addr)
            if pmd == NULL:
                code[0] = no_entry(w, mm, addr)
                return done
            if not entry_leaf(pmd[0], 2) and (not entry_none(pmd[0]) or not thp_fits(w, mm, v, addr)):
                pte = pte_make(w, mm, addr)
                if pte == NULL:
                    code[0] = no_entry(w, mm, addr)
                    return done
                anon_vma_prepare(w, v)
                batched = w.ctl.lru_batch != 0 or v.flags & VM_LOCKED or w.ctl.kernel & SWITCH_OLD_CALLS
                flags = prot_bits(v.flags) | PTE_D | PTE_RW
                nid = node_of(w, v)
                mm_changed(w, mm, (stop - addr) >> 12)
                while addr < stop:
                    if pte[0] == 0 and not batched:
                        pfn = frame_new(w, nid, keys[done * stride] if keys != NULL else 0)
                        if pfn < 0:
                            code[0] = KW_ENOFRAMES
                            return done
                        pte[0] = (<uint64_t>pfn << 12) | flags
                    else:
                        code[0] = write_pte(w, mm, v, addr, pte, keys[done * stride] if keys != NULL else 0, mode)
                        if code[0] < 0:
                            return done
                    pte += 1
                    done += 1
                    addr += KW_PAGE_SIZE
                continue
        while addr < stop:
            code[0] = fault_write(w, mm, v, addr, keys[done * stride] if keys != NULL else 0, mode)
            if code[0] < 0:
                return done
            done += 1
            addr += KW_PAGE_SIZE
    return done


cdef inline uint64_t *ptes_at(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr) noexcept nogil:
    """The pte of addr if pages of the area are there for the taking; NULL: a fault has to see to it."""
    if not v.flags & VM_ACCESS or v.flags & (VM_PFNMAP | VM_IO | VM_HUGETLB):
        return NULL
    return pte_find(w, w.mms[mm].root, addr)


cdef int64_t read_range(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys, int mode,
                        int *code) noexcept nogil:
    cdef int64_t i, pfn
    cdef uint64_t *pte = NULL
    cdef uint64_t stop = 0      # up to where the ptes in hand go
    cdef int32_t at = vma_find_from(w, mm, addr)
    code[0] = KW_OK
    for i in range(n):
        while at and w.vmas[at].end <= addr:
            at = w.vmas[at].next
        if at == 0 or w.vmas[at].start > addr and vma_for(w, mm, addr) == 0:
            code[0] = -EFAULT
            return i
        if i & 0xffff == 0xffff and interrupted():
            code[0] = KW_EINTR
            return i
        if addr >= stop:
            pte = ptes_at(w, mm, &w.vmas[at], addr)
            stop = min(w.vmas[at].end, (addr & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE)
        pfn = <int64_t>entry_pfn(pte[0], 1) if pte != NULL and pte_present(pte[0]) else w.ctl.nr_frames
        if pfn < w.ctl.nr_frames:
            pte[0] |= PTE_A
        else:
            pfn = fault_read(w, mm, &w.vmas[at], addr, mode)
            stop = 0            # tables may have come
            if pfn < 0:
                code[0] = <int>pfn
                return i
        if keys != NULL:
            keys[i] = w.f_key[pfn]
        addr += KW_PAGE_SIZE
        if pte != NULL:
            pte += 1
    return n
