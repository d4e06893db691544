"""Leaves of page tables, compiled: cleared, split, copied by fork, moved, protected, marked.

The contract of every function stands in `_leaves.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    below, child_row, entry_decode, entry_leaf, entry_none, entry_pfn, entry_present, interrupted_at,
    level_index, level_size, make_entry, make_leaf, no_entry, pmd_find, pmd_make, pte_find, pte_make,
    pte_present, row_alloc, row_owner, table_empty, table_entry, table_free,
)
from ksmwalk.memory._areas cimport node_of
from ksmwalk.memory._frames cimport (
    dma_pinned, frame_alloc, frame_map, frame_unmap, huge_map, huge_unmap, leaf_split, mlock_add, new_page, normal_pfn,
)
from ksmwalk.memory._swap cimport SWAP_EXCLUSIVE, SWAP_UFFD_WP, mm_copied, slot_put, slot_share, swap_slot
from ksmwalk.layout._layout cimport *


cdef void zap_pte(kw_world *w, int32_t mm, uint64_t *entry) noexcept nogil:
    cdef uint64_t e = entry[0]
    cdef int64_t pfn
    cdef int32_t slot
    entry[0] = 0
    if not pte_present(e):
        slot = swap_slot(w, e)
        if slot:
            slot_put(w, slot)
        return
    if e & PTE_SPECIAL:
        if pte_ksm_zero(e):
            ksm_zero_gone(w, mm)
        return
    pfn = normal_pfn(w, e, 1)
    if pfn >= 0:
        if KW_UNLIKELY(w.f_flags[pfn] & FRAME_FILE) and e & PTE_D:
            w.f_flags[pfn] |= FRAME_DIRTY
        frame_unmap(w, mm, pfn)


cdef void zap_leaf(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int level) noexcept nogil:
    cdef uint64_t e = entry[0]
    cdef int64_t pfn
    if e == 0:
        return
    touched(w, mm)
    if level == 1:
        zap_pte(w, mm, entry)
        return
    entry[0] = 0
    if not entry_present(e, level):
        return
    pfn = normal_pfn(w, e, level)
    if pfn >= 0:
        huge_unmap(w, mm, pfn)


cdef int pmd_split(kw_world *w, int32_t mm, uint64_t addr, uint64_t *pmd) noexcept nogil:
    cdef uint64_t e = pmd[0], flags
    cdef int64_t row
    cdef int i
    if not entry_leaf(e, 2) or entry_none(e):
        return KW_OK
    touched(w, mm)
    if normal_pfn(w, e, 2) >= 0 or entry_pfn(e, 2) != <uint64_t>w.ctl.huge_zero:
        return leaf_split(w, mm, pmd, 2)
    row = row_alloc(w, row_owner(mm, 1))
    if row < 0:
        return KW_ENOROWS
    flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_PS | PTE_RW | PTE_D)) | PTE_SPECIAL
    for i in range(512):
        w.rows[row * 512 + i] = make_entry(0, flags)
    pmd[0] = table_entry(row)
    w.mms[mm].nr_tables += 1
    return KW_OK


# ------------------------------------------------------------------ one walk for all operations
# Each operation is a small record of what to do with ptes and with leaf pmds; the walk splits pmds that stick out.

cdef int walk_leaves(kw_world *w, LeafOp *op, int64_t row, int level, uint64_t addr, uint64_t end) noexcept nogil:
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef int64_t child
    cdef int rc
    while addr < end:
        next = min((addr & ~(size - 1)) + size, end)
        e = p[0]
        if e != 0:
            if level == 1:
                rc = op.pte(w, op, addr, p)
                if rc:
                    return rc
            else:
                if entry_leaf(e, level):
                    if level == 2 and whole_pmd(addr, next):
                        rc = op.pmd(w, op, addr, p)
                        if rc < 0:
                            return rc
                    else:
                        rc = pmd_split(w, op.mm, addr, p) if level == 2 else leaf_split(w, op.mm, p, level)
                        if rc < 0:
                            return rc
                if not entry_none(p[0]) and not entry_leaf(p[0], level):
                    child = below(w, p, level, addr)
                    if child == KW_EBADENTRY:
                        return KW_EBADENTRY
                    if child >= 0:
                        rc = walk_leaves(w, op, child, level - 1, addr, next)
                        if rc:
                            return rc
        addr = next
        p += 1
    return KW_OK


cdef int over_leaves(kw_world *w, LeafOp *op, uint64_t start, uint64_t end) noexcept nogil:
    if start >= end:
        return KW_OK
    touched(w, op.mm)
    return walk_leaves(w, op, w.mms[op.mm].root, <int>w.ctl.levels, start, end)


# ------------------------------------------------------------------ clearing

cdef int op_zap_pte(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    zap_pte(w, op.mm, entry)
    return 0


cdef int op_zap_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    zap_leaf(w, op.mm, addr, entry, 2)
    return 0


cdef int zap_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    op.pte = op_zap_pte
    op.pmd = op_zap_pmd
    op.mm = mm
    return over_leaves(w, &op, start, end)


cdef int op_mlock_pte(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 1) if pte_present(entry[0]) else KW_NONE
    if pfn >= 0:
        mlock_add(w, w.mms[op.mm].cpu, pfn)
    return 0


cdef int op_mlock_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef int64_t pfn = normal_pfn(w, entry[0], 2) if entry_present(entry[0], 2) else KW_NONE
    if pfn >= 0:
        mlock_add(w, w.mms[op.mm].cpu, pfn)
    return 0


cdef int mlock_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    op.pte = op_mlock_pte
    op.pmd = op_mlock_pmd
    op.mm = mm
    return over_leaves(w, &op, start, end)


cdef int op_discard_pte(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    cdef uint64_t e = entry[0]
    if pte_present(e) or swap_slot(w, e):
        zap_pte(w, op.mm, entry)
        if op.v.backing and op.v.flags & VM_UFFD_WP and e & (PTE_UFFD_WP if pte_present(e) else SWAP_UFFD_WP):
            entry[0] = wp_marker()
    elif e == wp_marker() and op.v.backing == 0:
        entry[0] = 0      # one of a file stays, whether anybody is registered or not
    return 0


cdef void free_pte_tables(kw_world *w, int32_t mm, int64_t row, int level, uint64_t addr, uint64_t end) noexcept nogil:
    """Free the empty pte tables that lie wholly in [addr, end)."""
    cdef uint64_t size = level_size(level), next
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef int64_t child
    while addr < end:
        next = min((addr & ~(size - 1)) + size, end)
        child = child_row(w, p)
        if child >= 0:
            if level > 2:
                free_pte_tables(w, mm, child, level - 1, addr, next)
            elif whole_pmd(addr, next) and table_empty(w, child):
                table_free(w, mm, p, child)
        addr = next
        p += 1


cdef int discard_range(kw_world *w, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    cdef int rc
    op.pte = op_discard_pte
    op.pmd = op_zap_pmd
    op.mm = v.mm
    op.v = v
    rc = over_leaves(w, &op, start, end)
    if rc == KW_OK and start < end and not w.ctl.kernel & SWITCH_TABLES_KEPT:
        free_pte_tables(w, v.mm, w.mms[v.mm].root, <int>w.ctl.levels, start, end)
    return rc


cdef void free_below(kw_world *w, int32_t mm, int64_t row, int level, uint64_t addr, uint64_t end, uint64_t floor,
                     uint64_t ceiling) noexcept nogil:
    cdef uint64_t size = level_size(level), base
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef int64_t child
    while addr < end:
        base = addr & ~(size - 1)
        child = child_row(w, p)
        if child >= 0:
            if level > 2:
                free_below(w, mm, child, level - 1, addr, min(base + size, end), floor, ceiling)
            if base >= floor and base + size <= ceiling:
                table_free(w, mm, p, child)
        addr = base + size
        p += 1


cdef void free_tables(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t floor,
                      uint64_t ceiling) noexcept nogil:
    if start < end:
        free_below(w, mm, w.mms[mm].root, <int>w.ctl.levels, start, end, floor, ceiling)


# ------------------------------------------------------------------ fork

cdef int copy_pinned(kw_world *w, kw_vma *v, uint64_t *to, int64_t pfn) noexcept nogil:
    """The child's own copy of a page that a device may write to."""
    cdef int64_t new = frame_alloc(w, node_of(w, v), w.f_key[pfn], FRAME_ANON | FRAME_EXCLUSIVE)
    if new < 0:
        return KW_ENOFRAMES
    to[0] = make_entry(<uint64_t>new, prot_bits(v.flags) | PTE_D | (PTE_RW if v.flags & VM_WRITE else 0))
    frame_map(w, v.mm, new)
    new_page(w, w.mms[v.mm].cpu, v.flags, new)
    return KW_OK


cdef inline uint64_t not_inherited(kw_world *w) noexcept nogil:
    """The bit that a child's entries do not have: it has accessed nothing yet."""
    return 0 if w.ctl.kernel & SWITCH_CHILD_ACCESSED else PTE_A


cdef int copy_ptes(kw_world *w, int32_t src, kw_vma *v, uint64_t *from_, uint64_t addr, uint64_t end,
                   bint cow) noexcept nogil:
    cdef uint64_t old = not_inherited(w)
    cdef int32_t dst = v.mm
    cdef uint64_t *to = pte_make(w, dst, addr)
    cdef uint64_t e
    cdef int64_t pfn
    cdef int32_t slot
    if to == NULL:
        return no_entry(w, dst, addr)
    while addr < end:
        e = from_[0]
        if e != 0:
            if not pte_present(e):
                slot = swap_slot(w, e)
                if slot:
                    slot_share(w, slot)
                    mm_copied(w, dst, src)
                    e &= ~<uint64_t>SWAP_EXCLUSIVE
                    from_[0] = e
                    e &= ~<uint64_t>SWAP_UFFD_WP
                if e != wp_marker():     # the child is not registered with the parent's userfaultfd
                    to[0] = e
            elif cow and dma_pinned(w, normal_pfn(w, e, 1)):
                if copy_pinned(w, v, to, normal_pfn(w, e, 1)) < 0:
                    return KW_ENOFRAMES
            else:
                if cow and e & PTE_RW:
                    e &= ~PTE_RW
                    from_[0] = e
                to[0] = e & ~(PTE_UFFD_WP | old)
                pfn = normal_pfn(w, e, 1)
                if pfn >= 0:
                    w.f_flags[pfn] &= ~FRAME_EXCLUSIVE
                    frame_map(w, dst, pfn)
        from_ += 1
        to += 1
        addr += KW_PAGE_SIZE
    return KW_OK


cdef int copy_level(kw_world *w, int32_t src, kw_vma *v, int64_t row, int level, uint64_t addr, uint64_t end,
                    bint cow) noexcept nogil:
    cdef int32_t dst = v.mm
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *p = w.rows + row * 512 + level_index(addr, level)
    cdef uint64_t *to
    cdef int64_t child, pfn
    cdef int rc
    while addr < end:
        next = min((addr & ~(size - 1)) + size, end)
        e = p[0]
        child = KW_NONE
        if level == 2 and cow and entry_leaf(e, 2) and dma_pinned(w, normal_pfn(w, e, 2)):
            if pmd_split(w, src, addr, p) < 0:
                return KW_ENOROWS
            e = p[0]
        if not entry_none(e) and not entry_leaf(e, level):
            child = below(w, p, level, addr)
            if child == KW_EBADENTRY:
                return KW_EBADENTRY
        if child >= 0:
            if level == 2:
                if interrupted_at(addr):
                    return KW_EINTR
                rc = copy_ptes(w, src, v, w.rows + child * 512 + level_index(addr, 1), addr, next, cow)
            else:
                rc = copy_level(w, src, v, child, level - 1, addr, next, cow)
            if rc < 0:
                return rc
        elif level == 2 and entry_leaf(e, 2) and not entry_none(e):
            to = pmd_make(w, dst, addr)
            if to == NULL:
                return no_entry(w, dst, addr)
            if cow:
                e &= ~PTE_RW
                p[0] = e
            to[0] = e & ~(PTE_UFFD_WP | not_inherited(w))
            pfn = normal_pfn(w, e, 2)
            if pfn >= 0:
                w.f_flags[pfn] &= ~FRAME_EXCLUSIVE
                huge_map(w, dst, pfn)
        addr = next
        p += 1
    return KW_OK


cdef int copy_range(kw_world *w, int32_t src, kw_vma *v, uint64_t start, uint64_t end, bint cow) noexcept nogil:
    touched(w, src)
    touched(w, v.mm)
    return copy_level(w, src, v, w.mms[src].root, <int>w.ctl.levels, start, end, cow)


# ------------------------------------------------------------------ mremap

cdef int move_range(kw_world *w, int32_t mm, uint64_t old, uint64_t new, uint64_t length, bint tables,
                    bint down) noexcept nogil:
    cdef uint64_t end = old + length, next
    cdef uint64_t *src
    cdef uint64_t *dst
    cdef uint64_t *pmd
    cdef int64_t row
    cdef int rc
    touched(w, mm)
    while old < end:
        # A step stays within one pmd of the old and of the new place.
        next = min(end, min((old & ~(KW_PMD_SIZE - 1)) + KW_PMD_SIZE, old + (KW_PMD_SIZE - (new & (KW_PMD_SIZE - 1)))))
        pmd = pmd_find(w, w.mms[mm].root, old)
        if pmd == NULL:
            # Nothing for a gigabyte at least: on to its end.
            next = min(end, (old & ~(KW_PUD_SIZE - 1)) + KW_PUD_SIZE)
            new += next - old
            old = next
            continue
        if not entry_none(pmd[0]):
            if entry_leaf(pmd[0], 2):
                if whole_pmd(old, next) and new & (KW_PMD_SIZE - 1) == 0:
                    dst = pmd_make(w, mm, new)
                    if dst == NULL:
                        return no_entry(w, mm, new)
                    if entry_none(dst[0]):
                        dst[0] = pmd[0]
                        pmd[0] = 0
                        new += next - old
                        old = next
                        continue
                    row = child_row(w, dst)
                    if row >= 0 and table_empty(w, row):
                        table_free(w, mm, dst, row)
                        dst[0] = pmd[0]
                        pmd[0] = 0
                        new += next - old
                        old = next
                        continue
                rc = pmd_split(w, mm, old, pmd)
                if rc < 0:
                    return rc
            if tables and (next | new - old) & (KW_PMD_SIZE - 1) == 0 and (down or old & (KW_PMD_SIZE - 1) == 0):
                # All of a table moves as such, to where there is none.
                dst = pmd_make(w, mm, new)
                if dst != NULL and entry_none(dst[0]):
                    dst[0] = pmd[0]
                    pmd[0] = 0
                    new += next - old
                    old = next
                    continue
            src = pte_find(w, w.mms[mm].root, old)
            dst = pte_make(w, mm, new)
            if dst == NULL or src == NULL:
                return no_entry(w, mm, new if dst == NULL else old)
            while old < next:
                dst[0] = src[0]
                src[0] = 0
                src += 1
                dst += 1
                old += KW_PAGE_SIZE
                new += KW_PAGE_SIZE
            continue
        new += next - old
        old = next
    return KW_OK


# ------------------------------------------------------------------ mprotect, userfaultfd

cdef inline uint64_t new_prot(kw_world *w, LeafOp *op, uint64_t e, int level) noexcept nogil:
    """The entry with the vma's permissions: write-enabled at once where a store would find nothing to copy. 6.1 asks for more:
    that it was stored to; 5.10 leaves it to the store."""
    cdef uint64_t d = entry_decode(e), flags
    cdef uint64_t keep = PTE_A | PTE_D | PTE_SPECIAL | PTE_UFFD_WP | PTE_SOFT_DIRTY | PTE_PWT | PTE_PCD | PTE_PS | PTE_CLEAN
    cdef int64_t pfn = normal_pfn(w, e, level)
    flags = (d & keep) | (op.prot & ~PTE_A)
    if flags & PTE_UFFD_WP:
        flags &= ~PTE_RW
    elif op.v.flags & VM_WRITE and pfn >= 0 and not op.v.flags & VM_SHARED and not w.ctl.kernel & SWITCH_OLD_CALLS:
        if w.f_flags[pfn] & FRAME_EXCLUSIVE and (d & PTE_D or not w.ctl.kernel & SWITCH_NO_SMART_SCAN):
            flags |= PTE_RW
    return make_leaf(entry_pfn(e, level), flags, level)


cdef int op_protect_pte(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    if pte_present(entry[0]):
        entry[0] = new_prot(w, op, entry[0], 1)
    return 0


cdef int op_protect_pmd(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    entry[0] = new_prot(w, op, entry[0], 2)
    return 0


cdef int protect_range(kw_world *w, int32_t mm, kw_vma *v, uint64_t start, uint64_t end) noexcept nogil:
    cdef LeafOp op
    op.pte = op_protect_pte
    op.pmd = op_protect_pmd
    op.mm = mm
    op.v = v
    op.prot = prot_bits(v.flags)
    return over_leaves(w, &op, start, end)


cdef int op_wp(kw_world *w, LeafOp *op, uint64_t addr, uint64_t *entry) noexcept nogil:
    if not pte_present(entry[0]):
        if entry[0] == wp_marker() and not op.on:
            entry[0] = 0
        elif swap_slot(w, entry[0]):
            entry[0] = entry[0] | SWAP_UFFD_WP if op.on else entry[0] & ~<uint64_t>SWAP_UFFD_WP
        return 0
    if op.on:
        entry[0] = (entry[0] & ~PTE_RW) | PTE_UFFD_WP
    else:
        entry[0] &= ~PTE_UFFD_WP
    return 0


cdef int wp_range(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint on) noexcept nogil:
    cdef LeafOp op
    op.pte = op_wp
    op.pmd = op_wp
    op.mm = mm
    op.on = on
    return over_leaves(w, &op, start, end)
