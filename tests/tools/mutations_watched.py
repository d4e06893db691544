"""Mutations of userfaultfd, of stacks, of mremap and of tasks. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("uffd", "process", "protect", "stack", "grow", "dontunmap", "vfork", "clone", "tasks", "remap", "move")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "MADV_REMOVE takes protection with the page": (
        "        if protected:\n            entry[0] = wp_marker()\n",
        "",
        "W38", "W20",
    ),
    "a child is watched as its parent is": (
        "q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT | VM_WATCHED)",
        "q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT)",
        "W36",
    ),
    "markers of userfaultfd go along with a fork": (
        "                if e != wp_marker():     # the child",
        "                if True:     # the child",
        "W36",
    ),
    "absent pages get no markers": (
        "                    pte[0] = wp_marker()\n",
        "                    pass\n",
        "W38",
    ),
    "un-protecting leaves markers": (
        "if entry[0] == wp_marker() and not op.on:",
        "if False:",
        "W38",
    ),
    "what comes over a marker is not protected": (
        "marked = PTE_UFFD_WP if e else 0",
        "marked = 0",
        "W38",
    ),
    "nothing missing waits": (
        "return v.flags & VM_UFFD_MISSING != 0",
        "return False",
        "W33",
    ),
    "a page of shared memory that is there is missing": (
        "return v.flags & (VM_UFFD_MINOR if there != NULL and there[0] else VM_UFFD_MISSING) != 0",
        "return v.flags & (VM_UFFD_MISSING | VM_UFFD_MINOR) != 0",
        "W33",
    ),
    "a moved area is watched on": (
        "w.vmas[moved].flags = flags & ~<uint64_t>VM_WATCHED ",
        "w.vmas[moved].flags = flags ",
        "W37",
    ),
    "a moved area stays protected": (
        "    if flags & VM_UFFD_WP:\n        rc = wp_range(w, mm, new, new + old_len, False)",
        "    if False:\n        rc = wp_range(w, mm, new, new + old_len, False)",
        "W37",
    ),
    "a page that is swapped out does not move": (
        "    if slot == 0:\n        return -EFAULT\n    if not e & SWAP_EXCLUSIVE",
        "    if True:\n        return -EFAULT\n    if not e & SWAP_EXCLUSIVE",
        "W34",
    ),
    "what is shared by fork moves": (
        "return w.f_flags[pfn] & FRAME_EXCLUSIVE != 0 and not",
        "return not w.f_flags[pfn] & FRAME_KSM and not",
        "W34",
    ),
    "areas of two userfaultfds become one": (" or p.watcher != q.watcher:\n", ":\n", "W35"),
    "a watched area with holes is collapsed": (
        "            if v.flags & VM_WATCHED or absent > most_absent:\n",
        "            if not asked and v.flags & VM_WATCHED or absent > most_absent:\n",
        "W28",
    ),
    "memory goes with the first task that ends": (
        "    if w.mms[mm].tasks > 0:\n",
        "    if False:\n",
        "W41",
    ),
    "nothing grows a stack": (
        "    if not v.flags & VM_GROWSDOWN:\n        return 0\n",
        "    if True:\n        return 0\n",
        "W39",
    ),
    "a stack grows right up to what lies below it": (
        "p.flags & VM_ACCESS and start - p.end < STACK_GAP:",
        "p.flags & VM_ACCESS and start < p.end:",
        "W39",
    ),
    "MREMAP_DONTUNMAP unmaps": (
        "    if not keep:\n        return sys_munmap",
        "    if True:\n        return sys_munmap",
        "W40",
    ),
    "an area that all pages left keeps its anon_vma": (
        "        anon_leave(w, &w.vmas[v])\n    return 0\n",
        "        pass\n    return 0\n",
        "W40",
    ),
    "several areas move, watched ones too": (
        "if several and w.vmas[v].flags & VM_WATCHED:",
        "if False:",
        "W37",
    ),
    "UFFDIO_COPY goes over a page that is there": (
        "    if not entry_none(pte[0][0]) and not is_marker(pte[0][0]):\n        return -EEXIST\n",
        "",
        "W33",
    ),
    "protection stays when a page is merged": (
        "make_entry(<uint64_t>kpfn, pte[0] & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_UFFD_WP | PTE_SOFT_DIRTY) | PTE_A)",
        "make_entry(<uint64_t>kpfn, pte[0] & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_SOFT_DIRTY) | PTE_A)",
        "W35",
    ),
    "protected pages do not merge": (
        "    if pte == NULL or not pte_present(pte[0]) or pte[0] & PTE_SPECIAL or entry_pfn",
        "    if pte == NULL or not pte_present(pte[0]) or pte[0] & (PTE_SPECIAL | PTE_UFFD_WP) or entry_pfn",
        "W35",
    ),
    "a child's pages are protected": (
        "                to[0] = e & ~(PTE_UFFD_WP | old)\n",
        "                to[0] = e & ~old\n",
        "W36",
    ),
    "the area that MREMAP_DONTUNMAP leaves stays locked": (
        "        w.vmas[v].flags = unlocked\n",
        "        pass\n",
        "W40",
    ),
    "process_madvise gives others any advice": (
        "        if not free and number not in (",
        "        if False and number not in (",
        "W42",
    ),
    "a heap grows up to what is mapped next": (
        "    cdef uint64_t free = KW_PAGE_SIZE + (", "    cdef uint64_t free = (", "W47",
    ),
    "a heap leaves no gap below a stack": ("(STACK_GAP if v.flags & VM_GROWSDOWN else 0)", "0", "W47"),
    "a heap shrinks over nothing": (
        "        if v == 0 or w.vmas[v].start >= old:\n            return <int64_t>m.brk ",
        "        if False:\n            return <int64_t>m.brk ", "W47",
    ),
    "a heap that grows is not marked for the process": (
        "    if w.mms[mm].flags & MM_MERGE_ANY and vma_compatible(flags):\n        flags |= VM_MERGEABLE\n    prev =",
        "    prev =", "W47",
    ),
    "a child has no heap": ("    w.mms[child].brk = w.mms[parent].brk\n", "", "W47"),
    "protection outlives the registration for it": (
        "        if v.flags & (VM_UFFD_WP | VM_UFFD_ASYNC) == VM_UFFD_WP:\n            return -EFAULT       # a userfaultfd",
        "        if not v.flags & VM_UFFD_ASYNC:\n            return -EFAULT       # a userfaultfd", "W38",
    ),
    "UFFDIO_MOVE takes what is in the swap cache as a part": (
        "    if not e & SWAP_EXCLUSIVE or w.slots[slot].pfn and w.f_flags[w.slots[slot].pfn] & LARGE:\n",
        "    if not e & SWAP_EXCLUSIVE:\n", "W34",
    ),
    "UFFDIO_MOVE stores to the page": (
        "prot_bits(v.flags) | e & PTE_D | (PTE_RW if v.flags & VM_WRITE else 0))\n    old[0] = 0",
        "prot_bits(v.flags) | PTE_D | (PTE_RW if v.flags & VM_WRITE else 0))\n    old[0] = 0", "W34",
    ),
    "a marker goes where nobody is registered any more": (
        "    elif e == wp_marker() and op.v.backing == 0:\n",
        "    elif e == wp_marker() and not (op.v.backing and op.v.flags & VM_UFFD_WP):\n", "W38",
    ),
    "a marker that means nothing any more stays": (
        "        pte[0] = pte[0] if v.flags & VM_UFFD_WP else 0\n", "", "W38",
    ),
    "a marker that means nothing any more stays at a load": (
        "        e = pte[0] = 0      # the marker is left", "        e = 0      # the marker is left", "W38",
    ),
    "UFFDIO_MOVE sees the page that is there before the huge page": (
        "    if leaf_pmd(pmd_find(w, w.mms[mm].root, to)):\n        return -EEXIST\n    if entry_none", "    if entry_none", "W34",
    ),
    "UFFDIO_MOVE does not miss a table of ptes": (
        "    if entry_none(pmd_find(w, w.mms[mm].root, start)[0]):\n        return -ENOENT\n", "", "W34",
    ),
    "a clean protected page merges though it is pinned": (
        "(e & (PTE_RW | PTE_D) != 0 or w.f_flags[pfn] & FRAME_EXCLUSIVE != 0) and folio",
        "e & (PTE_RW | PTE_D) != 0 and folio", "W16",
    ),
    "MADV_POPULATE_READ takes what may be stored to": ("VM_WRITE if write else VM_READ", "VM_WRITE if write else VM_ACCESS", "W7"),
    "UFFDIO_MOVE asks the page, not the folio": ("if not movable(w, folio_head(w, pfn)):", "if not movable(w, pfn):", "W34"),
}
