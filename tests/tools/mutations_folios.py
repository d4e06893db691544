"""Mutations of folios and of khugepaged; recordings catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("khuge", "mthp", "thp", "shrink")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "what is swapped out comes back for a huge page that can't be": (
        "        if folio_extra_refs(w, pfn) or w.f_flags[pfn] & FRAME_LOCKED:\n            return -EAGAIN\n        if e & PTE_A",
        "        if e & PTE_A", "W28",
    ),
    "what came back for a huge page is collapsed though it is held": (
        "        if folio_extra_refs(w, pfn) or w.f_flags[pfn] & FRAME_LOCKED:     # of those that came back\n",
        "        if False:\n", "W28",
    ),
    "khugepaged counts no page that was used without a pte": (
        "        if e & PTE_A or w.f_flags[folio_head(w, pfn)] & FRAME_REFERENCED:\n",
        "        if e & PTE_A or w.f_flags[pfn] & FRAME_KSM:\n",
        "W28",
    ),
    "the mark of a used page is a part's": (
        "        if e & PTE_A or w.f_flags[folio_head(w, pfn)] & FRAME_REFERENCED:\n",
        "        if e & PTE_A or w.f_flags[pfn] & FRAME_REFERENCED:\n",
        "W28",
    ),
    "a pin does not mark the page as used": (
        "    folio_get(&world.w, pfn)\n    mark_referenced(&world.w, pfn)\n",
        "    folio_get(&world.w, pfn)\n",
        "W28",
    ),
    "a device's pin does not mark the page as used": (
        "    mark_referenced(w, pfn[0])\n",
        "",
        "W28",
    ),
    "a debugger's store does not mark the page as used": (
        "    looked_up(w, mm, addr, addr + <uint64_t>n * KW_PAGE_SIZE)\n",
        "    pass\n",
        "W28",
    ),
    "bringing in does not mark pages as used": (
        "    looked_up(w, mm, start, end)\n    return -ENOMEM",
        "    return -ENOMEM",
        "W28",
    ),
    "MADV_POPULATE does not mark pages as used": (
        "        looked_up(w, mm, start, stop)\n",
        "",
        "W28",
    ),
    "merging does not mark the page as used": (
        "FRAME_DIRTY | FRAME_REFERENCED) & ~FRAME_EXCLUSIVE",
        "FRAME_DIRTY) & ~FRAME_EXCLUSIVE",
        "W28",
    ),
    "advice leaves the mark of a used page": (
        "    not_referenced(w, pfn)\n    if not out or",
        "    if not out or",
        "W28", "W17",
    ),
    "MADV_FREE leaves the mark of a used page": (
        "    w.f_flags[pfn] = (w.f_flags[pfn] | FRAME_LAZY) & ~FRAME_REFERENCED\n",
        "    w.f_flags[pfn] |= FRAME_LAZY\n",
        "W28", "W17",
    ),
    "the clearing of accessed bits leaves the mark of a used page": (
        "    not_referenced(w, pfn)\n    if w.f_flags[folio_head(w, pfn)] & FRAME_MLOCKED or (",
        "    if w.f_flags[folio_head(w, pfn)] & FRAME_MLOCKED or (",
        "W28",
    ),
    "parts of a split huge page lose the mark of a used page": (
        "(FRAME_LAZY | FRAME_DIRTY | FRAME_REFERENCED)",
        "(FRAME_LAZY | FRAME_DIRTY)",
        "W28",
    ),
    "the smallest folio that fits is taken": ("for order in range(8, 1, -1):", "for order in range(2, 9):", "W30"),
    "a folio may stick out of its area": ("or base < v.start or base + (<uint64_t>n << 12) > v.end:", "or base < v.start:", "W30"),
    "a folio is put over pages that are there": ("        if not all_empty(first, n):\n            continue\n", "", "W30"),
    "folios come where userfaultfd is told of pages": ("WITHOUT | VM_UFFD_MISSING | VM_UFFD_WP", "WITHOUT", "W30"),
    "folios come without advice": (
        "w.ctl.mthp[order] == THP_MADVISE and v.flags & VM_HUGEPAGE:", "w.ctl.mthp[order] == THP_MADVISE:",
        "W30", "W32",
    ),
    "pages of a new folio are not exclusive": (
        "        w.f_mapcount[pfn + i] = 1\n        w.f_flags[pfn + i] |= FRAME_EXCLUSIVE\n",
        "        w.f_mapcount[pfn + i] = 1\n", "W12", "W31",
    ),
    "khugepaged counts no absent pages": ("            absent += 1\n", "", "W28"),
    "khugepaged takes one absent page more": (
        "    if absent <= w.ctl.khuge_none and into_huge(", "    if absent <= w.ctl.khuge_none + 1 and into_huge(", "W28",
    ),
    "khugepaged fills holes that userfaultfd watches": (
        "            if v.flags & VM_WATCHED or absent > most_absent:\n", "            if absent > most_absent:\n", "W28",
    ),
    "khugepaged takes one shared page more": ("shared > w.ctl.khuge_shared:", "shared > w.ctl.khuge_shared + 1:", "W28"),
    "khugepaged takes one shared page less": ("shared > w.ctl.khuge_shared:", "shared >= w.ctl.khuge_shared:", "W28"),
    "khugepaged works on memory nobody accessed": ("if asked or accessed >= (256 if out else 1) else", "if True else", "W28"),
    "khugepaged knows everybody by a fault": (
        "m.khuge or m.flags & MM_THP_DISABLED or not for_khugepaged(w, v, flags):", "m.khuge:", "W28",
    ),
    "a child is not known to khugepaged": ("        w.mms[child].khuge = <int32_t>w.ctl.khuges\n", "", "W28"),
    "areas that are joined tell khugepaged nothing": (
        "    vma_free(w, b)\n    khuge_know(w, p, p.flags)\n", "    vma_free(w, b)\n", "W28",
    ),
    "advice tells khugepaged nothing": (
        "        khuge_know(w, &w.vmas[v], w.vmas[v].flags & ~a.clears | a.sets)", "        pass", "W28",
    ),
    "no table moves as such": ("if tables and (next | new - old)", "if False and (next | new - old)", "W40"),
    "tables move from under userfaultfd": ("tables = not flags & VM_WATCHED", "tables = True", "W40"),
    "a table moves where only all of it is in the area": (
        "(down or old & (KW_PMD_SIZE - 1) == 0)", "(old & (KW_PMD_SIZE - 1) == 0)", "W40",
    ),
    "removing guards takes pages along": (
        "    op.pte = op_unguard\n    op.pmd = NULL\n    op.mm = mm\n    return over_ptes(w, &op, start, end)",
        "    return zap_range(w, mm, start, end)",
    ),
    "a child has accessed what its parent had": (
        "    return 0 if w.ctl.kernel & SWITCH_CHILD_ACCESSED else PTE_A\n", "    return 0\n",
        "W28",
    ),
    "khugepaged needs no advice": (
        "w.ctl.thp == THP_MADVISE and flags & VM_HUGEPAGE\n\n", "w.ctl.thp == THP_MADVISE\n\n",
        "W28", "W32",
    ),
    "the zero page that a split maps is one of KSM's": (
        "    pte[0] = make_entry(0, flags | PTE_SPECIAL)\n    w.f_mapcount",
        "    pte[0] = make_entry(0, flags | PTE_SPECIAL | PTE_D)\n    w.f_mapcount",
        "W29",
    ),
    "a folio stays whole when a page of it merges": (
        "    if w.f_flags[pfn] & LARGE and split(w, pfn, addr) != KW_OK:",
        "    if False:",
        "W29", "W31",
    ),
    "advice for a part leaves folios whole that ptes map": (
        "return rc if rc < 0 else split_in_parts(w, mm, start, end, lazily)",
        "return rc",
        "W17", "W31",
    ),
    "huge pages come though there are to be none": (
        "if v.backing or w.ctl.thp == THP_NEVER or v.flags",
        "if v.backing or v.flags",
        "W32",
    ),
    "huge pages need advice in every mode": (
        "    if w.ctl.thp == THP_MADVISE and not v.flags & VM_HUGEPAGE:",
        "    if not v.flags & VM_HUGEPAGE:",
        "W32",
    ),
    "a folio is put over the zero page": (
        "        if pte[i]:\n            return False",
        "        if pte[i] and not pte[i] & PTE_SPECIAL:\n            return False",
        "W30",
    ),
    "a KSM page that is there twice is collapsed": (
        "                if pte_present(row[j]) and normal_pfn(w, row[j], 1) == pfn:\n                    put_all_back",
        "                if False:\n                    put_all_back",
        "W28",
    ),
    "a collapse passes a guard by": (
        "        if swap_slot(w, row[i]) == 0:\n            return -EINVAL\n        rc = swap_in",
        "        if swap_slot(w, row[i]) == 0:\n            continue\n        rc = swap_in",
    ),
    "a lock that a huge page kept is that of its first page alone": (
        "    if w.vmas[v].flags & VM_LOCKED or w.f_flags[s.head] & FRAME_MLOCKED",
        "    if w.vmas[v].flags & VM_LOCKED or w.f_flags[pfn] & FRAME_MLOCKED",
    ),
    "pages of which a huge one was made wait nowhere": (
        "    replaced(w, v, cpu, pages, 512)\n", "    pass\n",
    ),
    "folios of several pages that a call frees come again in any order": (
        "    cdef int64_t pfn = freed_before(w, nid, order) if KW_UNLIKELY(w.nr_freed > 0) else KW_NONE\n",
        "    cdef int64_t pfn = KW_NONE\n",
    ),
    "pages that are free by now take no slot of the batch": (
        "    else:\n        w.put_back += 1\n", "    else:\n        pass\n",
    ),
    "pages of which a huge one was made wait though it is not locked": (
        "    if not v.flags & VM_LOCKED:\n        lru_empty(w, cpu)\n\n\n", "\n\n",
    ),
    "khugepaged empties the batches before each huge page": (
        "    if came:\n        lru_drain(w)\n", "    lru_drain(w)\n",
    ),
    "of a folio that is split the parts that were stored to alone are dirty": (
        "                    if pte[0] & PTE_D:\n                        w.f_flags[s.head] |= FRAME_DIRTY ",
        "                    if pte[0] & PTE_D:\n                        w.f_flags[pfn] |= FRAME_DIRTY ",
    ),
    "a debugger's store makes no page dirty itself": (
        "        if pfn >= 0:\n            w.f_flags[folio_head(w, pfn)] |= FRAME_DIRTY\n\n\ndef write(",
        "        if pfn >= 0:\n            pass\n\n\ndef write(",
    ),
    "a debugger's store makes the pte dirty": (
        "                pte[0] = entry_stored(e) if not mode & FAULT_FORCE or e & PTE_CLEAN else e\n",
        "                pte[0] = entry_stored(e)\n",
    ),
}
