"""Mutations of ages, areas, faults, folios and ranges. See `mutations.py`."""

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "an age wraps at 256 instead of staying at 255": (
        "    if age < 255:\n",
        "    if True:\n",
    ),
    "areas are joined although a parent may share the anon_vma": (
        "if p.anon_vma and q.anon_vma or anon_forked(w, p if p.anon_vma else q):",
        "if p.anon_vma and q.anon_vma:",
    ),
    "mprotect drops VM_ACCOUNT although there are pages": (
        "if not w.vmas[v].backing and not w.vmas[v].anon_vma:",
        "if not w.vmas[v].backing:",
    ),
    "areas of different flags are joined": (
        "(p.flags ^ q.flags) & ~<uint64_t>VM_MAYBE_GUARD or",
        "(p.flags ^ q.flags) & VM_ACCESS or",
    ),
    "a new area is not joined with its neighbours": (
        "        w.mms[backing].users += 1\n    return join_around(w, v)",
        "        w.mms[backing].users += 1\n    return v",
    ),
    "frames that mmap frees are taken again in any order": (
        "        w.freed_again = True\n",
        "        w.freed_again = False\n",
    ),
    "an anon_vma shared with a parent is given to a neighbour": (
        "if n.anon_vma and not anon_forked(w, n) and anon_vma_near(v, n):",
        "if n.anon_vma and anon_vma_near(v, n):",
    ),
    "a new address space has the heap of the last one with its number": (
        "    m.start_brk = m.brk = 0\n", "    pass\n",
    ),
    "fork leaves the parent's pages writable": (
        "                    e &= ~PTE_RW\n                    from_[0] = e\n",
        "                    e &= ~PTE_RW\n",
    ),
    "fork keeps memory locked": (
        "q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT | VM_WATCHED)",
        "q.flags &= ~<uint64_t>VM_WATCHED",
        "W6",
    ),
    "the child has no count of zero pages": (
        "    w.mms[child].nr_zero = w.mms[parent].nr_zero\n",
        "",
    ),
    "a child whose parent merges everything does not": (
        "w.mms[child].flags |= w.mms[parent].flags & (MM_MERGE_ANY | MM_THP_DISABLED)",
        "w.mms[child].flags |= w.mms[parent].flags & MM_THP_DISABLED",
    ),
    "a huge page is taken where the area ends within it": (
        "return base >= v.start and base + KW_PMD_SIZE <= v.end",
        "return base >= v.start",
    ),
    "a KSM-placed zero page that is stored to is still counted": (
        "        if rc == KW_OK and pte_ksm_zero(e):\n",
        "        if False:\n",
    ),
    "a KSM-placed zero page that is unmapped is still counted": (
        "        if pte_ksm_zero(e):\n            ksm_zero_gone(w, mm)\n        return\n",
        "        return\n",
    ),
    "a broken KSM page may be stored to at once": (
        "flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_SPECIAL)) | PTE_A",
        "flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_SPECIAL)) | PTE_RW | PTE_A",
    ),
    "empty parts of a huge page being split stay": (
        "    if w.f_key[pfn] != 0 or w.ctl.kernel & SWITCH_SPLIT",
        "    if True or w.ctl.kernel & SWITCH_SPLIT",
        "K6",
    ),
    "a huge page is split although somebody holds it": (
        "    if folio_extra_refs(w, head):\n        return KW_EBUSYENTRY\n",
        "",
        "W16",
    ),
    "MADV_DONTNEED keeps empty tables": (
        "    if rc == KW_OK and start < end and not w.ctl",
        "    if False and not w.ctl",
    ),
    "MADV_DONTNEED takes markers as well": (
        "    if pte_present(e) or swap_slot(w, e):\n        zap_pte(w, op.mm, entry)",
        "    if True:\n        zap_pte(w, op.mm, entry)",
    ),
    "MADV_FREE leaves a huge page whole that sticks out": (
        "    cdef int rc = split_sticking_out(w, mm, start)\n",
        "    cdef int rc = KW_OK\n",
        "W17",
    ),
    "mremap moves KSM pages": (
        "    if flags & VM_MERGEABLE and anon:\n",
        "    if False:\n",
    ),
    "MADV_UNMERGEABLE leaves KSM pages": (
        "    if w.vmas[v].anon_vma:\n        rc = unmerge_range(w, mm, start, end,",
        "    if False:\n        rc = unmerge_range(w, mm, start, end,",
    ),
    "MADV_COLLAPSE takes a page that somebody holds": (
        "if folio_extra_refs(w, pfn) or w.f_flags[pfn] & FRAME_LOCKED:\n            return -EAGAIN",
        "if w.f_flags[pfn] & FRAME_LOCKED:\n            return -EAGAIN",
    ),
    "MADV_COLLAPSE loses what the pages held": (
        "                w.f_key[huge + i] = w.f_key[pfn]\n            zap_pte",
        "                pass\n            zap_pte",
    ),
}
