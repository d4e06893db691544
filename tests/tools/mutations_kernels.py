"""Mutations of what tells one kernel from another; recordings of those kernels catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("guests",)

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "MADV_DONTNEED frees tables everywhere": (
        "    if rc == KW_OK and start < end and not w.ctl.kernel & SWITCH_TABLES_KEPT:\n",
        "    if rc == KW_OK and start < end:\n",
    ),
    "move_pages tells of absent pages alike everywhere": (
        "    if pfn == -ENOENT and w.vmas[v].backing == 0 and w.ctl.kernel & SWITCH_NO_SMART_SCAN and not unseen:\n",
        "    if False:\n",
    ),
    "what MREMAP_DONTUNMAP leaves is as new on 5.10": (
        "    if w.vmas[v].start == start and w.vmas[v].end == end and not w.ctl.kernel & SWITCH_OLD_CALLS:\n",
        "    if w.vmas[v].start == start and w.vmas[v].end == end:\n",
        "W40",
    ),
    "no stack grows for a pin on 5.10": (
        " is None and not self.host.kernel.switches & Switch.OLD_CALLS:\n            raise OSError(errno.EFAULT, \"no area,",
        " is None:\n            raise OSError(errno.EFAULT, \"no area,",
        "W39",
    ),
    "an old kernel compares the checksum first": (
        "cdef bint stable_first = w.ctl.kernel & SWITCH_STABLE_FIRST != 0",
        "cdef bint stable_first = False",
        "K3",
    ),
    "an old kernel passes new pages without a search": (
        "if link == 0 or w.ctl.kernel & SWITCH_STABLE_FIRST:",
        "if link == 0:",
        "K3",
    ),
    "an old kernel counts zero pages": (
        "if not w.ctl.kernel & SWITCH_ZERO_UNTRACKED:",
        "if True:",
        "K5",
    ),
    "an old kernel maps empty parts of a split huge page to the zero page": (
        " or w.ctl.kernel & SWITCH_SPLIT_KEEPS_EMPTY:",
        ":",
        "K6",
    ),
    "an old chain of one dup turns back when it is passed": (
        " and (not w.ctl.kernel & SWITCH_OLD_CHAINS or prune and found):",
        ":",
        "K7",
    ),
    "a child never starts with its parent's counts": (
        "    if w.ctl.kernel & SWITCH_FORK_INHERITS:\n        w.mms[child].nr_rmap_items",
        "    if False:\n        w.mms[child].nr_rmap_items",
        "K9",
    ),
    "a merge forgets nothing": (
        "    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORGETS):\n        q.flags",
        "    if False:\n        q.flags",
        "K11",
    ),
    "a merge forgets the age but not when the item leaves": (
        "    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORGETS):\n        q.age",
        "    if False:\n        q.age",
        "K11",
    ),
    "a page that was to become KSM's and was undone is remembered": (
        "    forget(w, item)\n    err = merge_one",
        "    err = merge_one",
        "K11",
    ),
    "a PROT_NONE page is a partner everywhere": (
        "    if not leaf[0] & PTE_P and w.ctl.kernel & SWITCH_NONE_NO_PARTNER:",
        "    if False:",
        "K12",
    ),
    "protected KSM pages are unmerged everywhere": (
        "return e & PTE_UFFD_WP != 0 and w.ctl.kernel & SWITCH_KEEPS_PROTECTED != 0",
        "return False",
        "K13",
    ),
    "a debugger stores into what may not be stored to everywhere": (
        " or w.ctl.kernel & SWITCH_POKE_FAILS):", "):",
        "K14",
    ),
    "a debugger is kept from PROT_NONE memory alone": (
        " or w.ctl.kernel & SWITCH_POKE_FAILS):", " or w.ctl.kernel & SWITCH_POKE_FAILS and not v.flags & VM_ACCESS):",
    ),
    "MREMAP_DONTUNMAP unlocks the whole area everywhere": (
        "    if w.ctl.kernel & SWITCH_REST_STAYS_LOCKED:\n        v = set_flags", "    if False:\n        v = set_flags",
    ),
    "no kernel unlocks all of an area that MREMAP_DONTUNMAP leaves": (
        "    if w.ctl.kernel & SWITCH_REST_STAYS_LOCKED:\n        v = set_flags", "    if True:\n        v = set_flags",
    ),
    "areas with pages join empty ones everywhere": (
        "    cdef bint apart = w.ctl.kernel & SWITCH_EMPTY_NOT_JOINED and w.vmas[v].anon_vma\n", "    cdef bint apart = False\n",
    ),
    "areas with pages join empty ones nowhere": (
        "    cdef bint apart = w.ctl.kernel & SWITCH_EMPTY_NOT_JOINED and w.vmas[v].anon_vma\n",
        "    cdef bint apart = w.vmas[v].anon_vma != 0\n",
    ),
    "on old kernels an empty area joins none with pages either": (
        "    cdef bint apart = w.ctl.kernel & SWITCH_EMPTY_NOT_JOINED and w.vmas[v].anon_vma\n",
        "    cdef bint apart = w.ctl.kernel & SWITCH_EMPTY_NOT_JOINED\n",
    ),
    "the huge zero page becomes a huge page everywhere": (
        "        huge = KW_NONE if w.ctl.kernel & SWITCH_HUGE_ZERO_SPLIT else huge_alloc(w, node_of(w, v))\n",
        "        huge = huge_alloc(w, node_of(w, v))\n",
    ),
    "the huge zero page becomes small ones everywhere": (
        "        huge = KW_NONE if w.ctl.kernel & SWITCH_HUGE_ZERO_SPLIT else huge_alloc(w, node_of(w, v))\n",
        "        huge = KW_NONE\n",
    ),
    "a child has accessed nothing on any kernel": (
        "    return 0 if w.ctl.kernel & SWITCH_CHILD_ACCESSED else PTE_A\n", "    return PTE_A\n",
    ),
    "a child's huge page is never accessed": (
        "            to[0] = e & ~(PTE_UFFD_WP | not_inherited(w))\n", "            to[0] = e & ~(PTE_UFFD_WP | PTE_A)\n",
    ),
    "advice for huge pages is heeded each time": (
        " and not (w.vmas[v].flags & VM_HUGEPAGE and w.ctl.kernel & SWITCH_ADVISED_ONCE):\n", ":\n",
    ),
    "no kernel makes folios smaller than a huge page": (
        " if w.ctl.kernel & SWITCH_SMALL_COLLAPSED else 0\n", " if False else 0\n",
    ),
    "every kernel makes folios smaller than a huge page": (
        " if w.ctl.kernel & SWITCH_SMALL_COLLAPSED else 0\n", "\n",
    ),
    "a smaller folio takes what somebody else has too": (
        "        if pfn < 0 or maybe_shared(w, pfn) or w.f_flags[pfn] & FRAME_LRU or",
        "        if pfn < 0 or w.f_flags[pfn] & FRAME_LRU or",
    ),
    "a smaller folio takes what waits in a batch": (
        " or maybe_shared(w, pfn) or w.f_flags[pfn] & FRAME_LRU or folio_pages", " or maybe_shared(w, pfn) or folio_pages",
    ),
    "a smaller folio takes parts of larger ones": (
        " or w.f_flags[pfn] & FRAME_LRU or folio_pages(w, folio_head(w, pfn)) >= n:", " or w.f_flags[pfn] & FRAME_LRU:",
    ),
    "a smaller folio needs no use of its pages": (
        "    folio = folio_alloc(w, node_of(w, v), order) if accessed else KW_NONE\n",
        "    folio = folio_alloc(w, node_of(w, v), order)\n",
    ),
    "a smaller folio may lack pages": (
        "(have == n or w.ctl.khuge_none == 511) and into_folio(", "(have == n or w.ctl.khuge_none) and into_folio(",
    ),
    "a smaller folio may never lack pages": (
        "(have == n or w.ctl.khuge_none == 511) and into_folio(", "have == n and into_folio(",
    ),
    "what fails for smaller folios is not put back": (
        " >= n:\n            put_all_back(w, cpu, pages, i, False)\n", " >= n:\n",
    ),
    "a store on 5.10 drains the batches before it counts who has a page": (
        "w.f_mapcount[pfn] + w.f_extra[pfn] <= 3 and not w.ctl.kernel & SWITCH_OLD_CALLS:",
        "w.f_mapcount[pfn] + w.f_extra[pfn] <= 3:",
    ),
    "5.10 knows which pages are exclusive": (
        "    if flags & FRAME_EXCLUSIVE and not w.ctl.kernel & SWITCH_OLD_CALLS:\n        return True\n    if flags & LARGE:",
        "    if flags & FRAME_EXCLUSIVE:\n        return True\n    if flags & LARGE:",
    ),
    "mprotect on 5.10 spares a store its fault": (
        "pfn >= 0 and not op.v.flags & VM_SHARED and not w.ctl.kernel & SWITCH_OLD_CALLS:",
        "pfn >= 0 and not op.v.flags & VM_SHARED:",
    ),
    "MADV_DONTNEED on 5.10 drains nothing": (
        "    if w.ctl.kernel & SWITCH_OLD_CALLS:\n        lru_drain_cpu(w, w.mms[mm].cpu)\n", "",
    ),
    "unmerging takes PROT_NONE pages along on 6.1": (
        "    if w.ctl.kernel & SWITCH_NONE_NO_PARTNER and not e & PTE_P:\n        return True\n", "",
    ),
    "locked pages that mmap unmaps wait on old kernels too": (
        "        if w.batches[cpu].nr_mlock > w.nr_waited:\n            mlock_drain(w, cpu)\n", "",
    ),
    "the batches of 6.1 take as many pages as those of later kernels": (
        "SWITCH_NO_SMART_SCAN else BATCH_SIZE)\n", "SWITCH_OLD_CALLS else BATCH_SIZE)\n",
    ),
    "new pages of 5.10 do not wait among those of locked areas": (
        "    if KW_UNLIKELY(w.ctl.kernel & SWITCH_OLD_CALLS):\n        if w.ctl.lru_batch and",
        "    if False:\n        if w.ctl.lru_batch and",
    ),
    "old kernels break KSM pages without leave to write": (
        "    if w.ctl.kernel & SWITCH_NO_SMART_SCAN:\n        # old kernels break by a store",
        "    if False:\n        # old kernels break by a store",
    ),
    "no page waits after mlock on 5.10": ("    if rc == 0 and last >= 0 and", "    if rc == 0 and last >= 0 and False and"),
    "a page that is locked again waits on 5.10": (
        "KW_NONE if v == 0 or w.vmas[v].flags & VM_LOCKED else", "KW_NONE if v == 0 else",
    ),
    "the frames that mmap frees on old kernels come last first": (
        "            freed_in_bundles(w)\n", "            pass\n",
    ),
    "a bundle of frames that old kernels free is of any size": (
        "    cdef int64_t first = min(w.nr_freed, <int64_t>8), i\n", "    cdef int64_t first = w.nr_freed, i\n",
    ),
    "old kernels do not look at the content of a KSM page that no tree has": (
        "            if w.ctl.kernel & SWITCH_STABLE_FIRST and (\n                    changed(",
        "            if False and (\n                    changed(",
    ),
    "what old kernels page out in vain counts as used": (
        "    if not out or w.ctl.kernel & SWITCH_NO_SMART_SCAN:\n", "    if not out:\n",
    ),
    "a KSM page that is locked already waits on 5.10 too": (
        "        if kpfn and not (w.ctl.kernel & SWITCH_OLD_CALLS and locked_before(w, mm, addr, kpfn)):", "        if kpfn:",
    ),
    "several areas move everywhere": (
        "if rc == 0 and one_only and old_len > vma_end(w, mm, addr) - addr:",
        "if False:",
        "K15",
    ),
    "PR_SET_MEMORY_MERGE is everywhere": (
        "    if w.ctl.kernel & SWITCH_NO_MERGE_ANY:",
        "    if False:",
        "K16",
    ),
    "MADV_COLLAPSE is everywhere": (
        "Advice(b\"collapse\", 25, collapse_all, 0, 0, 0, SWITCH_NO_COLLAPSE)",
        "Advice(b\"collapse\", 25, collapse_all, 0, 0, 0, 0)",
        "K16",
    ),
    "MADV_POPULATE_READ is everywhere": (
        "Advice(b\"populate_read\", 22, NULL, 0, 0, 0, SWITCH_OLD_CALLS)",
        "Advice(b\"populate_read\", 22, NULL, 0, 0, 0, 0)",
    ),
    "MADV_DONTNEED_LOCKED is everywhere": (
        "Advice(b\"dontneed_locked\", 24, dont_need, 0, 0, VM_PFNMAP, SWITCH_OLD_CALLS)",
        "Advice(b\"dontneed_locked\", 24, dont_need, 0, 0, VM_PFNMAP, 0)",
    ),
    "MREMAP_DONTUNMAP takes shared memory everywhere": (
        " or p.backing and w.ctl.kernel & SWITCH_OLD_CALLS):",
        "):",
    ),
    "MADV_COLLAPSE of nothing is an error everywhere": (
        " or addr > end and not w.ctl.kernel & SWITCH_COLLAPSES_NOTHING:",
        " or addr > end:",
    ),
    "UFFDIO_MOVE is everywhere": (
        "        if self.host.kernel.switches & Switch.OLD_UFFD:",
        "        if False:",
    ),
    "absent pages are protected by markers everywhere": (
        " and (w.vmas[v].backing or not w.ctl.kernel & SWITCH_OLD_UFFD):",
        ":",
    ),
    "a store takes userfaultfd's protection away everywhere": (
        "        asynchronous = not mm.host.kernel.switches & Switch.OLD_UFFD",
        "        asynchronous = True",
    ),
    "a huge page is split only where all map small pages of it": (
        "    if before + 512 == expected:\n        return KW_OK\n",
        "",
    ),
    "guard pages are everywhere": (
        "VM_SPECIAL | VM_HUGETLB | VM_LOCKED, SWITCH_NO_GUARD)",
        "VM_SPECIAL | VM_HUGETLB | VM_LOCKED, 0)",
    ),
    "process_madvise takes any advice for oneself everywhere": (
        "        free = other._at() == at and not switches & Switch.NO_GUARD",
        "        free = other._at() == at",
    ),
    "process_madvise takes MADV_WILLNEED everywhere": (
        "(_OF_OLD if switches & Switch.OLD_CALLS else _FOR_OTHERS)",
        "_FOR_OTHERS",
    ),
    "unmerging walks ranges everywhere": (
        "if w.cursor.strategy == STRATEGY_RANGE and w.ctl.kernel & SWITCH_UNMERGE_RANGE else",
        "if w.cursor.strategy == STRATEGY_RANGE else",
        "K2", "K19",
    ),
    "6.16.12 scans by page tables": (
        'Profile("6.16.12", _12_16 | _MOVES | Switch.SCAN_EACH | Switch',
        'Profile("6.16.12", _12_16 | _MOVES | Switch',
        "K1",
    ),
    "no kernel scans address by address": (
        "        if found.profile.switches & Switch.SCAN_EACH:\n",
        "        if False:\n",
        "K1", "K18",
    ),
    "6.19.14 unmerges address by address": (
        'Profile("6.19.14", _LIE | Switch.UNMERGE_RANGE, _ALL)',
        'Profile("6.19.14", _LIE, _ALL)',
        "K2",
    ),
    "an old kernel takes no KSM page of zeros first": (
        "    if target:\n        return target\n    if changed(",
        "    if target and (key or not w.ksm.use_zero_pages):\n        return target\n    if changed(",
        "K4",
    ),
    "an old chain is left by its fullest dup": (
        "            if not prune:\n                break",
        "            if not prune and not w.ctl.kernel & SWITCH_OLD_CHAINS:\n                break",
        "K7",
    ),
    "smart scan is everywhere": (
        'ksm[knob.field][0] = knob.default if knob.name != "smart_scan" or self.has(knob.name) else 0',
        "ksm[knob.field][0] = knob.default",
        "K8",
    ),
    "a fork counts its zero pages in all kernels": (
        "        if not w.ctl.kernel & SWITCH_FORK_INHERITS:\n            w.ksm.zero_pages",
        "        if True:\n            w.ksm.zero_pages",
        "K9",
    ),
    "the first merge of a forked huge page succeeds everywhere": (
        "    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORKED_HUGE_FAILS) and addr",
        "    if False and addr",
        "K10",
    ),
    "the bits of 7.0.13 do not lie": (
        'Profile("7.0.13", _LIE | Switch',
        'Profile("7.0.13", Switch',
        "K17",
    ),
    "an mremap of several areas is refused before anything goes": (
        "        if new_len != old_len or one_only:",
        "        if one_only and old_len > p.end - addr:\n            return -EFAULT\n        if new_len != old_len or one_only:",
    ),
    "an mremap from nowhere leaves 5.10's new place alone": (
        "        if fixed and w.ctl.kernel & SWITCH_OLD_CALLS:\n            rc = sys_munmap",
        "        if False:\n            rc = sys_munmap",
    ),
    "old kernels ask for a whole folio who maps it": (
        "                rc = split_folio_at(w, pfn, addr) if w.f_mapcount[asked] == 1 else KW_EBUSYENTRY",
        "                rc = split_folio_at(w, pfn, addr) if not maybe_shared(w, pfn) else KW_EBUSYENTRY",
    ),
    "6.1 asks for the page at hand when it frees": (
        "folio_head(w, pfn) if lazily and not w.ctl.kernel & SWITCH_OLD_CALLS else pfn", "pfn",
    ),
    "old kernels go on behind a folio that does not split": (
        "        if w.ctl.kernel & SWITCH_NO_SMART_SCAN and not whole and unsplit(w, p[0]):", "        if False:",
    ),
    "an area that is protected is registered without that": (
        "        if flags and not flags & VM_UFFD_WP and w.vmas[v].flags & VM_UFFD_WP and w.ctl.kernel & SWITCH_STAYS_PROTECTED:",
        "        if False:",
    ),
    "5.10 lets the locked parts of a split huge page wait for nothing": (
        "            mlock_add(w, <int>w.ksm.cpu, head + i)\n", "            pass\n",
    ),
    "5.10 remembers over a split that pages were used": (
        "                        pte[0] &= ~(PTE_A | PTE_D)    # what waited",
        "                        pte[0] &= ~PTE_D    # what waited",
    ),
    "5.10 remembers over a split that pages were stored to": (
        "                        pte[0] &= ~(PTE_A | PTE_D)    # what waited",
        "                        pte[0] &= ~PTE_A    # what waited",
    ),
    "small pages that may not be stored to become huge everywhere": (
        "    if writable == 0 and w.ctl.kernel & SWITCH_READ_ONLY_STAYS:", "    if False:",
    ),
    "6.12 counts all ptes of a folio that is in hand already": (
        "    if w.ctl.kernel & SWITCH_NO_GUARD:\n        return 1\n    room = min(", "    room = min(",
    ),
}

#: those that change nothing but times
TIMED = tuple(name for name, (_, _, *facts) in MUTATIONS.items() if {"K1", "K2"} & set(facts))
