"""Mutations of folios and of khugepaged; recordings catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("khuge", "mthp", "thp", "shrink")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "the smallest folio that fits is taken": ("for order in range(8, 1, -1):", "for order in range(2, 9):", "W30"),
    "a folio may stick out of its area": ("or base < v.start or base + (<uint64_t>n << 12) > v.end:", "or base < v.start:", "W30"),
    "a folio is put over pages that are there": ("        if not all_empty(first, n):\n            continue\n", "", "W30"),
    "folios come where userfaultfd is told of pages": ("WITHOUT | VM_UFFD_MISSING | VM_UFFD_WP", "WITHOUT", "W30"),
    "folios come without advice": (
        "w.ctl.mthp[order] == THP_MADVISE and v.flags & VM_HUGEPAGE:", "w.ctl.mthp[order] == THP_MADVISE:",
        "W30", "W32",
    ),
    "pages of a new folio are not exclusive": ("            w.f_flags[pfn + i] |= FRAME_EXCLUSIVE\n", "", "W12", "W31"),
    "khugepaged counts no absent pages": ("            absent += 1\n", "", "W28"),
    "khugepaged takes one absent page more": ("if absent > w.ctl.khuge_none or", "if absent > w.ctl.khuge_none + 1 or", "W28"),
    "khugepaged fills holes that userfaultfd watches": (
        "w.ctl.khuge_none or v.flags & VM_WATCHED:", "w.ctl.khuge_none:",
        "W28",
    ),
    "khugepaged takes one shared page more": ("if shared > w.ctl.khuge_shared:", "if shared > w.ctl.khuge_shared + 1:", "W28"),
    "khugepaged takes one shared page less": ("if shared > w.ctl.khuge_shared:", "if shared >= w.ctl.khuge_shared:", "W28"),
    "khugepaged works on memory nobody accessed": ("return accessed >= 256 if out else accessed > 0", "return True", "W28"),
    "KSM pages are accessed by those who do": (
        "if e & PTE_A or pfn >= 0 and w.f_flags[pfn] & FRAME_KSM:", "if e & PTE_A:",
        "W28",
    ),
    "a child has accessed what its parent had": (
        "to[0] = e & ~(PTE_UFFD_WP | PTE_A)    # the child", "to[0] = e & ~PTE_UFFD_WP    # the child",
        "W28",
    ),
    "khugepaged needs no advice": (
        "w.ctl.thp == THP_MADVISE and v.flags & VM_HUGEPAGE\n\n", "w.ctl.thp == THP_MADVISE\n\n",
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
        "return rc if rc < 0 else split_in_parts(w, mm, start, end)",
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
        "                if pte_present(row[j]) and normal_pfn(w, row[j], 1) == pfn:\n                    return -EAGAIN",
        "                if False:\n                    return -EAGAIN",
        "W28",
    ),
}
