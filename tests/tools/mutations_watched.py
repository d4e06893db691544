"""Mutations of userfaultfd, of stacks, of mremap and of tasks. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("uffd", "protect", "stack", "grow", "dontunmap", "vfork", "clone", "tasks", "remap", "move")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "a child is watched as its parent is": (
        "q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT | VM_WATCHED)",
        "q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT)",
    ),
    "markers of userfaultfd go along with a fork": (
        "                if e != wp_marker():     # the child",
        "                if True:     # the child",
    ),
    "absent pages get no markers": (
        "                    pte[0] = wp_marker()\n",
        "                    pass\n",
    ),
    "un-protecting leaves markers": (
        "if entry[0] == wp_marker() and not op.on:",
        "if False:",
    ),
    "what comes over a marker is not protected": (
        "marked = PTE_UFFD_WP if e == wp_marker() else 0",
        "marked = 0",
    ),
    "nothing missing waits": (
        "return v.flags & VM_UFFD_MISSING != 0",
        "return False",
    ),
    "a page of shared memory that is there is missing": (
        "return v.flags & (VM_UFFD_MINOR if there != NULL and there[0] else VM_UFFD_MISSING) != 0",
        "return v.flags & (VM_UFFD_MISSING | VM_UFFD_MINOR) != 0",
    ),
    "a moved area is watched on": (
        "w.vmas[moved].flags = flags & ~<uint64_t>VM_WATCHED ",
        "w.vmas[moved].flags = flags ",
    ),
    "a moved area stays protected": (
        "    if flags & VM_UFFD_WP:\n        rc = wp_range(w, mm, new, new + old_len, False)",
        "    if False:\n        rc = wp_range(w, mm, new, new + old_len, False)",
    ),
    "a page that is swapped out does not move": (
        "    if slot == 0:\n        return -EFAULT\n    if not e & SWAP_EXCLUSIVE",
        "    if True:\n        return -EFAULT\n    if not e & SWAP_EXCLUSIVE",
    ),
    "what is shared by fork moves": (
        "return w.f_flags[pfn] & FRAME_EXCLUSIVE != 0 and not",
        "return not w.f_flags[pfn] & FRAME_KSM and not",
    ),
    "a watched area with holes is collapsed": (
        "            if v.flags & VM_WATCHED:\n                return -EBUSY",
        "            if False:\n                return -EBUSY",
    ),
    "memory goes with the first task that ends": (
        "    if w.mms[mm].tasks > 0:\n",
        "    if False:\n",
    ),
    "nothing grows a stack": (
        "    if not v.flags & VM_GROWSDOWN:\n        return 0\n",
        "    if True:\n        return 0\n",
    ),
    "a stack grows right up to what lies below it": (
        "p.flags & VM_ACCESS and start - p.end < STACK_GAP:",
        "p.flags & VM_ACCESS and start < p.end:",
    ),
    "MREMAP_DONTUNMAP unmaps": (
        "    if not keep:\n        return sys_munmap",
        "    if True:\n        return sys_munmap",
    ),
    "an area that all pages left keeps its anon_vma": (
        "        v.anon_vma = v.anon_root = v.forked = 0",
        "pass",
    ),
    "several areas move, watched ones too": (
        "if several and w.vmas[v].flags & VM_WATCHED:",
        "if False:",
    ),
}
