"""Mutations of folios and of khugepaged; recordings catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("khuge", "mthp", "thp", "shrink")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "the smallest folio that fits is taken": ("for order in range(8, 1, -1):", "for order in range(2, 9):"),
    "a folio may stick out of its area": ("or base < v.start or base + (<uint64_t>n << 12) > v.end:", "or base < v.start:"),
    "a folio is put over pages that are there": ("        if not all_empty(first, n):\n            continue\n", ""),
    "folios come where userfaultfd is told of pages": ("WITHOUT | VM_UFFD_MISSING | VM_UFFD_WP", "WITHOUT"),
    "folios come without advice": (
        "w.ctl.mthp[order] == THP_MADVISE and v.flags & VM_HUGEPAGE:", "w.ctl.mthp[order] == THP_MADVISE:",
    ),
    "pages of a new folio are not exclusive": ("            w.f_flags[pfn + i] |= FRAME_EXCLUSIVE\n", ""),
    "khugepaged counts no absent pages": ("            absent += 1\n", ""),
    "khugepaged takes one absent page more": ("if absent > w.ctl.khuge_none or", "if absent > w.ctl.khuge_none + 1 or"),
    "khugepaged fills holes that userfaultfd watches": (
        "w.ctl.khuge_none or v.flags & VM_WATCHED:", "w.ctl.khuge_none:",
    ),
    "khugepaged takes one shared page more": ("if shared > w.ctl.khuge_shared:", "if shared > w.ctl.khuge_shared + 1:"),
    "khugepaged takes one shared page less": ("if shared > w.ctl.khuge_shared:", "if shared >= w.ctl.khuge_shared:"),
    "khugepaged works on memory nobody accessed": ("return accessed >= 256 if out else accessed > 0", "return True"),
    "KSM pages are accessed by those who do": (
        "if e & PTE_A or pfn >= 0 and w.f_flags[pfn] & FRAME_KSM:", "if e & PTE_A:",
    ),
    "a child has accessed what its parent had": (
        "to[0] = e & ~(PTE_UFFD_WP | PTE_A)    # the child", "to[0] = e & ~PTE_UFFD_WP    # the child",
    ),
    "khugepaged needs no advice": ("w.ctl.thp == THP_MADVISE and v.flags & VM_HUGEPAGE\n\n", "w.ctl.thp == THP_MADVISE\n\n"),
}
