"""Mutations made by hand of locked memory and of what waits in the batches of CPUs: see `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("lock", "lru")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "the mlock batch takes one entry more": (
        "SWITCH_NO_SMART_SCAN else BATCH_SIZE)\n",
        "SWITCH_NO_SMART_SCAN else BATCH_SIZE + 1)\n",
        "W1",
    ),
    "huge pages wait in the mlock batch": (
        "&= ~FRAME_MLOCKED\n        mlock_drain(w, cpu)\n",
        "&= ~FRAME_MLOCKED\n",
        "W5",
    ),
    "MADV_FREE marks what others have locked": (
        "    if locked_elsewhere(w, mm, addr, pfn):\n", "    if False:\n",
    ),
    "the parts of a huge page that 5.10 splits are not locked": (
        "            w.f_flags[head + i] |= FRAME_MLOCKED      #", "            pass      #",
    ),
    "mlock2 of 5.10 locks what is there already": (
        "FRAME_MLOCKED or not (w.ctl.kernel & SWITCH_OLD_CALLS and w.vmas[v].flags & VM_LOCKONFAULT):\n",
        "FRAME_MLOCKED or True:\n",
    ),
    "what was locked or unlocked keeps its place on its list": (
        "            made_young(w, pfn)\n            put_ref", "            put_ref",
    ),
    "a full scan begins with what waits on ksmd's CPU alone": (
        "    for cpu in range(w.ctl.nr_cpus):\n        lru_drain_cpu(w, cpu)",
        "    for cpu in range(1):\n        lru_drain_cpu(w, cpu)",
        "W4",
    ),
    "new pages of locked areas wait in the LRU batch": (
        "        mlock_wait(w, cpu, pfn, -pfn)\n    else:",
        "        lru_wait(w, cpu, pfn)\n    else:",
        "W2",
    ),
    "a page that is copied leaves a locked area without an entry": (
        "        mlock_page(w, w.mms[mm].cpu, v.flags, pfn)\n        w.done.cow_ksm",
        "        w.done.cow_ksm",
        "W2",
    ),
    "a page of shared memory that somebody holds goes out": (
        "    if pfn >= 0 and w.f_extra[pfn] > 1:\n        return\n    entry[0] &= ~PTE_A\n", "    entry[0] &= ~PTE_A\n",
    ),
    "the KSM page mapped in a locked area has no entry": (
        "            mlock_add(w, <int>w.ksm.cpu, kpfn)\n",
        "            pass\n",
        "W2",
    ),
    "the page that ksmd replaces in a locked area has no entry": (
        "        mlock_add(w, <int>w.ksm.cpu, pfn)",
        "        pass",
        "W2",
    ),
    "the page that ksmd replaces waits on another CPU": (
        "        mlock_add(w, <int>w.ksm.cpu, pfn)",
        "        mlock_add(w, w.mms[mm].cpu, pfn)",
        "W2",
    ),
    "unmerged pages of locked areas have no entry": (
        "        mlock_page(w, cpu, v.flags, pfn)",
        "        pass",
        "W2", "W9",
    ),
    "munmap of locked memory leaves no entries": (
        "    if w.vmas[v].flags & VM_LOCKED:\n        mlock_range(w, mm, w.vmas[v].start, w.vmas[v].end)",
        "    if False:\n        mlock_range(w, mm, w.vmas[v].start, w.vmas[v].end)",
        "W2",
    ),
    "an exit lets go of nothing": (
        "    lru_drain_cpu(w, w.mms[mm].cpu)\n    mm_clear(w, mm)",
        "    mm_clear(w, mm)",
        "W4",
    ),
    "locking memory that is locked already lets go": (
        "    if flags & NEVER_LOCKED or flags == now:",
        "    drain_here(w, mm)\n    if flags & NEVER_LOCKED or flags == now:",
        "W4",
    ),
    "memory that comes to be locked lets go of nothing": (
        "    if v > 0 and (flags ^ now) & VM_LOCKED:",
        "    if False:",
        "W4",
    ),
    "what was brought in lets go of nothing": (
        "    drain_here(w, mm)\n    looked_up(w, mm, start, end)\n    return -ENOMEM",
        "    looked_up(w, mm, start, end)\n    return -ENOMEM",
        "W4",
    ),
    "memory locked on fault is brought in": (
        "    if flags & VM_LOCKONFAULT:\n        return 0",
        "    if False:\n        return 0",
        "W7",
    ),
    "MADV_POPULATE of a hole lets go of nothing": (
        "    drain_here(w, mm)\n    while start < end:",
        "    while start < end:",
        "W4",
    ),
    "MADV_COLD lets go of nothing": (
        "        if for_reclaim(advice) and not w.vmas[v].flags & a.refused:",
        "        if False:",
        "W4",
    ),
    "MADV_COLD that is refused lets go": (
        "        if for_reclaim(advice) and not w.vmas[v].flags & a.refused:",
        "        if for_reclaim(advice):",
        "W4", "W8",
    ),
    "a child inherits the lock": (
        "~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT | VM_WATCHED)",
        "~<uint64_t>VM_WATCHED",
        "W6",
    ),
    "a Host with memory locked on fault can't be saved": (
        "VM_GROWSDOWN | VM_LOCKONFAULT |",
        "VM_GROWSDOWN |",
    ),
    "a Host that locks what is to come can't be saved": (
        "    MM_BITS = 0x1ff",
        "    MM_BITS = 0x7f",
    ),
    "a cut takes the lock from a huge page": (
        "        w.f_flags[head] |= FRAME_MLOCKED    # as long",
        "        pass    # as long",
        "W5",
    ),
    "unlocking a part leaves a huge page locked": (
        "            each_pte(w, mm, start, end, op_unlocked)\n",
        "            pass\n",
        "W5",
    ),
    "unmapping a part leaves a huge page locked": (
        "        w.f_flags[folio_head(w, pfn)] &= ~FRAME_MLOCKED\n        mlock_drain(w, cpu)",
        "        mlock_drain(w, cpu)",
        "W5",
    ),
    "small pages of a huge page that one area locks are not locked as a whole": (
        "        r.marks[folio_head(w, pfn)] |= STAYS | LOCKED\n",
        "        r.marks[folio_head(w, pfn)] |= STAYS | (LOCKED if op.on else 0)\n",
        "W5",
    ),
    "empty parts of what stays locked become zero pages": (
        " or w.f_flags[s.head] & FRAME_MLOCKED and not s.any_locked:\n",
        ":\n",
        "W5", "W40",
    ),
    "a lock that outlived its area stays for a split": (
        " or w.f_flags[s.head] & FRAME_MLOCKED and not s.any_locked:\n",
        " or w.f_flags[s.head] & FRAME_MLOCKED:\n",
        "W5", "W40",
    ),
    "a huge page does not stay locked with what DONTUNMAP leaves": (
        "    op.pmd = op_stays_locked_pmd\n",
        "    op.pmd = NULL\n",
        "W5", "W40",
    ),
    "a store counts what waits on its own CPU": (
        "    if flags & FRAME_LRU and w.f_mapcount[pfn] + w.f_extra[pfn] <= 3 and not w.ctl.kernel & SWITCH_OLD_CALLS:",
        "    if False:",
        "W10",
    ),
    "empty parts of a locked huge page go for all whose area is not locked": (
        "    if s.any_locked and s.locked[pfn - s.head] and visited_before(w, s.locked[pfn - s.head], v):",
        "    if False:",
        "W5",
    ),
    "empty parts of a locked huge page stay for all": (
        "    if s.any_locked and s.locked[pfn - s.head] and visited_before(w, s.locked[pfn - s.head], v):",
        "    if s.any_locked and s.locked[pfn - s.head]:",
        "W5",
    ),
    "a split of a locked huge page lets go of nothing": (
        "    if s.any_locked and not w.ctl.kernel & SWITCH_OLD_CALLS:",
        "    if False:",
        "W4", "W5",
    ),
    "what somebody refers to merges": (
        "    if held(w, e, pfn):",
        "    if False:",
        "W3", "W16",
    ),
    "a KSM page that nobody maps is stale whoever refers to it": (
        "    return w.nodes[node].pfn < 0\n",
        "    return w.nodes[node].pfn < 0 or w.f_mapcount[w.nodes[node].pfn] == 0\n",
        "W3", "W16",
    ),
    "mlock loads where it could store": (
        "    if (flags & (VM_WRITE | VM_SHARED)) == VM_WRITE:\n",
        "    if False:\n",
        "W7",
    ),
    "locked areas take MADV_COLD": (
        'b"cold", 20, cold, 0, 0, VM_LOCKED | VM_PFNMAP',
        'b"cold", 20, cold, 0, 0, VM_PFNMAP',
        "W8",
    ),
    "locked areas take MADV_DONTNEED": (
        'b"dontneed", 4, dont_need, 0, 0, VM_PFNMAP | VM_LOCKED',
        'b"dontneed", 4, dont_need, 0, 0, VM_PFNMAP',
        "W8",
    ),
    "run=2 works on ksmd's CPU": (
        "unmerge_mm(w, mm, unmerging(w), w.mms[0].cpu)",
        "unmerge_mm(w, mm, unmerging(w), <int>w.ksm.cpu)",
        "W9",
    ),
    "the page that ksmd replaces waits before the KSM page": (
        "            mlock_add(w, <int>w.ksm.cpu, kpfn)\n        # mlock2 of",
        "            mlock_add(w, <int>w.ksm.cpu, pfn)\n            pfn = kpfn\n        # mlock2 of",
        "W2",
    ),
    "a child locks what is to come as its parent does": (
        "w.mms[parent].flags & (MM_MERGE_ANY | MM_THP_DISABLED)\n    w.mms[child].nid",
        "w.mms[parent].flags & (MM_MERGE_ANY | MM_THP_DISABLED | MM_LOCK_FUTURE)\n    w.mms[child].nid",
        "W6",
    ),
    "mlockall of what is to come lets go": (
        "    if flags and not flags & MCL_CURRENT:\n        return 0",
        "    if flags and not flags & MCL_CURRENT:\n        drain_here(w, mm)\n        return 0",
        "W4",
    ),
    "what comes from swap into a locked area is locked": (
        "        note_unlocked(w, pfn, v.flags & VM_LOCKED != 0)", "        note_unlocked(w, pfn, False)",
    ),
    "reclaim does not lock what it finds in a locked area": (
        "        return False\n    note_unlocked(w, pfn, False)\n    return True", "        return False\n    return True",
    ),
    "reclaim finds every mapping of a KSM page": (
        "VM_RAND_READ) or w.f_flags[pfn] & FRAME_KSM and not reached(w, mm, addr, pfn):", "VM_RAND_READ):",
    ),
    "locking again does not lock what came from swap": (
        "        elif w.ctl.born:\n            each_pte(w, mm, start, end, op_locked)", "        elif False:\n            pass",
    ),
    "munlock takes the lock that a small page kept": (
        "    if pfn >= 0 and w.f_flags[pfn] & LARGE:\n        w.f_flags[folio_head(w, pfn)] &= ~FRAME_MLOCKED",
        "    if pfn >= 0:\n        w.f_flags[folio_head(w, pfn)] &= ~FRAME_MLOCKED",
    ),
    "a part of a folio in a locked area was locked": (
        "whole_folio(w, entry, room) != 0 if w.f_flags[pfn] & LARGE else", "True if w.f_flags[pfn] & LARGE else",
    ),
    "mlock soils the pte of what it finds": (
        "            if not mode & FAULT_KEEP:      # else there is no fault to take, as there is none for a debugger\n",
        "            if True:\n",
    ),
    "what is brought from swap to be stored to has a clean pte": (
        "entry_stored(pte[0]) if rc == KW_OK and pte[0] & PTE_RW else", "entry_stored(pte[0]) if False else",
    ),
}
