"""Mutations of swap, reclaim and advice about use; recordings catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("swap", "reclaim", "anon", "free", "missing_around", "cold", "pageout", "shrink", "collapse", "remove", "shared")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "swapped KSM pages come back together": (
        "    return s.root == 0 or s.addr == index and s.root == anon_family(w, v)\n",
        "    return True\n",
        "W23",
    ),
    "relatives by fork get copies": (
        "    return s.root == 0 or s.addr == index and s.root == anon_family(w, v)\n",
        "    return s.root == 0\n",
        "W23",
    ),
    "a KSM page of the swap cache that KSM gave up is mapped": (
        "        return w.f_node[s.pfn] != 0 and w.ksm.run != 2\n",
        "        return True\n",
        "W24", "W25",
    ),
    "what comes back alone is not exclusive": (
        "    if (own or e & SWAP_EXCLUSIVE) and not w.f_flags[pfn] & FRAME_KSM:\n",
        "    if False:\n",
        "W10", "W23",
    ),
    "protection by userfaultfd is lost in swap": (
        "    if e & SWAP_UFFD_WP:\n        flags |= PTE_UFFD_WP\n",
        "",
        "W35",
    ),
    "a page leaves the swap cache with its first mapping": (
        "    if s.count > 0:\n        return\n",
        "    if s.count > 0:\n        cache_drop(w, slot)\n        return\n",
        "W23",
    ),
    "fork copies entries of exclusive pages as they are": (
        "                    e &= ~<uint64_t>SWAP_EXCLUSIVE\n",
        "",
        "W25",
    ),
    "swapoff begins with whose page went out first": (
        "    if not on_list(w, mm):\n        put_after(w, mm, 0)\n",
        "    cdef int32_t at = <int32_t>w.ctl.swap_first\n    while at and w.mms[at].swap_next:\n"
        "        at = w.mms[at].swap_next\n    if not on_list(w, mm):\n        put_after(w, mm, at)\n",
        "W25",
    ),
    "swapoff keeps its list": (
        "        mm_off_list(w, <int32_t>w.ctl.swap_first)      # nobody has anything out any more\n",
        "        break\n",
        "W25",
    ),
    "swapoff begins with children": (
        "put_after(w, child, parent if on_list(w, parent) else 0)",
        "put_after(w, child, 0)",
        "W25",
    ),
    "what swapoff brought back counts as accessed": (
        "        entry[0] &= ~PTE_A      # nobody asked for it\n",
        "        pass\n",
        "W25", "W28",
    ),
    "what swapoff brought back is in a slot still": (
        "        w.f_flags[pfn] |= FRAME_DIRTY    # and no slot",
        "        pass",
        "W25", "W28",
    ),
    "reclaim leaves shared memory that nobody maps": (
        "        each_pte_of_objects(w, op_object_out)\n",
        "        pass\n",
        "W21",
    ),
    "swapoff leaves shared memory out": ("    each_pte_of_objects(w, op_in_memory)\n", "", "W25"),
    "items of the dead lead nowhere": (
        "        return anon_descends(w, number, &w.vmas[v])\n",
        "        return w.mms[mm].root != 0 and anon_descends(w, number, &w.vmas[v])\n",
        "W21",
    ),
    "items lead to parents by fork as well": (
        "        return anon_descends(w, number, &w.vmas[v])\n",
        "        return True\n",
        "W21",
    ),
    "locked pages go": (
        "        op.v.flags & VM_LOCKED and as_a_whole(", "        False and as_a_whole(",
        "W21",
    ),
    "a huge page locked in part stays whole": (
        "VM_LOCKED and as_a_whole(w, op.v, addr, entry, pfn, op.on) and",
        "VM_LOCKED and",
        "W21",
    ),
    "swapoff sees whose alone a page is": (
        "        if not e & SWAP_EXCLUSIVE:       # that nobody", "        if False:       # that nobody", "W25",
    ),
    "a huge page of which a part is locked is not locked as a whole": (
        "            elif i == 0:\n                w.f_flags[head] |= FRAME_MLOCKED\n", "", "W21",
    ),
    "a huge page locked in part stays locked though some of it has gone": (
        "            elif i == 0:\n                w.f_flags[head] |=",
        "            else:\n                w.f_flags[head] |=", "W21",
    ),
    "a huge page locked in part goes on going": (
        "                w.owners[head >> 2].shared |= FOLIO_CACHED\n            break\n",
        "                w.owners[head >> 2].shared |= FOLIO_CACHED\n            continue\n",
        "W21",
    ),
    "parts of a huge page split by reclaim go though somebody locks them": (
        "            return KW_OK      # it was a part of a huge page until now, and is a locked page as such\n",
        "            pass\n",
        "W21",
    ),
    "parts of a huge page go out in ascending order": (
        "w.born_of[head] + n - (i - head)",
        "w.born_of[head] + (i - head)",
        "W25",
    ),
    "locking a part of a marked folio leaves it clean": (
        "    soil(w, entry, 1)\n    return 0\n",
        "    return 0\n",
        "W19",
    ),
    "the newer pages go first": (
        "        return -1 if p.born < q.born else 1\n",
        "        return 1 if p.born < q.born else -1\n",
        "W25",
    ),
    "relatives stand in the order in which they begin to be": (
        "    if p.linked != q.linked:\n        return -1 if p.linked < q.linked else 1\n",
        "",
        "W19", "W25",
    ),
    "relatives stand in order whatever page they begin at": (
        "    if p.begins != q.begins:\n        return -1 if p.begins < q.begins else 1\n",
        "",
        "W19", "W25",
    ),
    "what MREMAP_DONTUNMAP cuts in two is locked no more": (
        "    if keep and (leaf_split_at(w, v, old) < 0", "    if False and (leaf_split_at(w, v, old) < 0",
    ),
    "a locked huge page of which some went is not split": (
        "        if w.f_mapcount[i] == 0 and not going:\n            return True",
        "        if w.f_mapcount[i] == 0 and not going:\n            return not locked",
    ),
    "a huge page that waits in the swap cache in vain is split": (
        " or w.owners[head >> 2].shared & FOLIO_CACHED != 0\n", "\n",
    ),
    "a KSM page that MADV_FREE marked before is freed": (
        "    return entry & PTE_D or w.f_flags[folio_head(w, pfn)] & FRAME_DIRTY",
        "    return entry & PTE_D",
        "W19",
    ),
    "reclaim takes the protection of shared memory away": (
        "    if protected:\n        pte[0] = wp_marker()\n",
        "",
        "W35",
    ),
    "MADV_PAGEOUT makes a page count as not accessed": (
        "    if not out or w.ctl.kernel & SWITCH_NO_SMART_SCAN:\n        not_accessed(pte)\n",
        "    not_accessed(pte)\n",
        "W28",
    ),
    "where a page is missing those around it stay away": (
        "    if v.backing and not v.flags & (VM_UFFD_WP | VM_UFFD_MINOR):\n        map_around",
        "    if v.backing and not v.flags & (VM_UFFD_WP | VM_UFFD_MINOR) and not waits(w, v, addr):\n        map_around",
        "W33",
    ),
    "pages with DMA pins go": (
        "    return not dma_pinned(w, pfn)\n",
        "    return True\n",
        "W16", "W21",
    ),
    "MADV_PAGEOUT takes what others map, too": (
        "    if pfn < 0 or w.f_flags[pfn] & LARGE or w.f_mapcount[pfn] != 1:\n",
        "    if pfn < 0 or w.f_flags[pfn] & LARGE:\n",
        "W18", "W21",
    ),
    "MADV_FREE marks dirty pages that others map": (
        "        if folio_mappings(w, pfn) != n or cached_slot(w, pfn):\n            return\n",
        "",
        "W19",
    ),
    "MADV_FREE keeps what is swapped out": (
        "        elif use == LAZY and swap_slot(w, p[0]):\n            zap_pte(w, mm, p)\n",
        "",
        "W19",
    ),
    "a store after MADV_FREE is lost": (
        "        if stored_to(w, pfn, pte[0]):\n            keep(w, pfn)\n        elif",
        "        if",
        "W18", "W19",
    ),
    "a page stored to after MADV_FREE stays for ever": (
        "    w.f_flags[pfn] = (w.f_flags[pfn] | FRAME_DIRTY) & ~FRAME_LAZY\n",
        "    w.f_flags[pfn] |= FRAME_DIRTY\n",
        "W18",
    ),
    "reclaim frees what MADV_FREE marked and somebody holds": (
        "    elif folio_extra_refs(w, head):\n        r.marks[head] |= STAYS\n",
        "    elif False:\n        pass\n",
        "W19", "W21",
    ),
    "MADV_PAGEOUT keeps no page that was stored to and is held": (
        "    if use != PAGEOUT or not can_go(w, head):\n",
        "    if use != PAGEOUT or folio_extra_refs(w, head) or not can_go(w, head):\n",
        "W18",
    ),
    "huge pages that are hardly used go in their turn": (
        "    late = late_from(folios, n, r.waiting)\n",
        "    late = 1 << 62\n",
        "W21",
    ),
    "what MADV_FREE marked is not asked for before other pages go": (
        "5 if left >= 16 else 10 if left >= 8 else 23",
        "3",
        "W21",
    ),
    "the shrinker's turn does not come later where more pages were marked": (
        " + (left < 64 or left < 128 and stay >= 16) ",
        " ",
    ),
    "what MADV_FREE marked goes at once although a relative stored to it": (
        "gone += max(folio[at].marked, <int64_t>0)",
        "gone += llabs(folio[at].marked)",
    ),
    "no more of other pages goes in place of many marked ones that stay": (
        " + (ASKED if left > ASKED else 0)", "",
    ),
    "what MADV_FREE marked counts for the shrinker's turn while it waits": (
        "others = 0 if left - waiting >= 128 else", "others = 0 if left >= 128 else",
    ),
    "a huge page is looked at by the shrinker each time": (
        "            w.owners[pfn >> 2].shared |= FOLIO_LOOKED\n",
        "",
    ),
    "a huge page that was looked at is no more, when a part of it has gone": (
        "        if w.f_mapcount[i] == 0 and not going:\n            return True\n",
        "        if w.f_mapcount[i] == 0 and not going and not w.owners[head >> 2].shared & FOLIO_LOOKED:\n"
        "            return True\n",
    ),
    "what MADV_FREE marked waits nowhere": (
        "        if not f & FRAME_LAZY:\n            lazy_wait(w, w.mms[mm].cpu, pfn)\n",
        "",
    ),
    "what MADV_FREE marked waits until other batches are drained, however much it is": (
        "    if b.nr_lazy >= batch_size(w) or w.f_flags[pfn] & LARGE:\n",
        "    if b.nr_lazy >= 32 or w.f_flags[pfn] & LARGE:\n",
    ),
    "what MADV_FREE marked waits on when other pages of the CPU do not": (
        "    lru_empty(w, cpu)\n    lazy_drain(w, cpu)\n",
        "    lru_empty(w, cpu)\n",
    ),
    "what MADV_FREE marked of a huge page goes page by page": (
        " and lazy(w, head) and not w.ctl.kernel & SWITCH_LAZY_EACH:\n",
        " and False:\n",
    ),
    "a run of marked pages goes on in the next area": (
        "r.places[end].mm == first.mm and r.places[end].v == first.v:\n",
        "r.places[end].mm == first.mm:\n",
    ),
    "a run of marked pages goes on over pages that are mapped otherwise": (
        "        if pte[end - i] & ~(PTE_A | PTE_D) != entry + on:\n            break\n",
        "",
    ),
    "old kernels take out runs of what MADV_FREE marked": (
        "                goes = i if w.ctl.kernel & SWITCH_LAZY_EACH else 0\n",
        "                goes = 0\n",
    ),
    "mprotect enables stores only to what was stored to": (
        "FRAME_EXCLUSIVE and (d & PTE_D or not w.ctl.kernel & SWITCH_NO_SMART_SCAN):\n",
        "FRAME_EXCLUSIVE and d & PTE_D:\n",
    ),
    "6.1 enables stores also to what was not stored to": (
        "FRAME_EXCLUSIVE and (d & PTE_D or not w.ctl.kernel & SWITCH_NO_SMART_SCAN):\n",
        "FRAME_EXCLUSIVE:\n",
    ),
    "a mapping that is merged away was never stored to": (
        "    if e & PTE_D and w.f_mapcount[pfn] > 1:\n",
        "    if False:\n",
        "W19",
    ),
    "advice takes folios of which a part is protected whole": (
        "        if (ptes[i] ^ ptes[0]) & PTE_UFFD_WP:\n",
        "        if False:\n",
        "W31", "W35",
    ),
    "reclaim is one pass": (
        "    r.marks[head] |= STAYS\n    r.again = True\n",
        "    r.marks[head] |= STAYS\n",
        "W19",
    ),
    "a full batch lets go of a page before it is mapped": (
        "    frame_map(w, mm, pfn)\n    pte[0] = make_entry(<uint64_t>pfn, flags)\n    if batch in (NOWHERE, READ):\n"
        "        note_unlocked(w, pfn, v.flags & VM_LOCKED != 0)\n    if batch == NEW:\n"
        "        new_page(w, w.mms[mm].cpu, v.flags, pfn)\n",
        "    if batch == NEW:\n        new_page(w, w.mms[mm].cpu, v.flags, pfn)\n"
        "    frame_map(w, mm, pfn)\n    pte[0] = make_entry(<uint64_t>pfn, flags)\n    if batch == NEW:\n        pass\n",
        "W2", "W27",
    ),
    "parts of a split huge page are not dirty themselves": (
        "    w.f_flags[head] |= dirty\n",
        "",
        "W19",
    ),
    "MADV_COLD splits whole folios": (
        "                n = whole_batch(w, pte, <int64_t>((next - addr) >> 12))\n",
        "                n = 0\n",
        "W17",
    ),
    "shared folios are split by advice": (
        "                if n == 0 and not maybe_shared(w, pfn):\n",
        "                if n == 0:\n",
        "W17",
    ),
    "a huge page mapped in part goes out whole": (
        "                whole = whole and w.f_mapcount[i] > 0\n",
        "                pass\n",
        "W26",
    ),
    "copies from the swap cache are not counted": (
        "        w.done.ksm_swpin_copy += pfn != 0\n",
        "",
        "W23",
    ),
    "MADV_REMOVE leaves mappings": (
        "        zap_leaf(w, op.mm, addr, entry, level)\n        if protected:",
        "        pass\n        if protected:",
        "W20",
    ),
    "shared memory that is out is mapped around a fault": (
        "if have != NULL and have[0] & PTE_A else KW_NONE",
        "if have != NULL and have[0] else KW_NONE",
        "W21",
    ),
    "MADV_PAGEOUT leaves huge pages whole": (
        "    if not lazy(w, head) and folio_extra_refs(w, head):\n        return KW_OK\n    return pmd_split(w, mm, addr, pmd)",
        "    return KW_OK",
        "W18", "W26",
    ),
    "MADV_COLD sends out": (
        "return use_range(w, mm, start, end, COLD)",
        "return use_range(w, mm, start, end, PAGEOUT)",
        "W17",
    ),
    "MADV_COLD leaves a huge page whole that begins in it": (
        "        rc = split_sticking_out(w, mm, end)\n",
        "        rc = KW_OK\n",
        "W17", "W18",
    ),
    "MADV_REMOVE of private memory does nothing": (
        "    if p.flags & a.refused or not p.backing:\n        return -EINVAL\n    if p.flags & (VM_SHARED",
        "    if p.flags & a.refused:\n"
        "        return -EINVAL\n"
        "    if not p.backing:\n"
        "        return 0\n"
        "    if p.flags & (VM_SHARED",
        "W20",
    ),
    "MADV_COLLAPSE takes shared memory that lies askew": (
        "    if v.backing and ((v.start >> 12) - v.pgoff) & 511:\n        return -EINVAL",
        "    if False:\n        return -EINVAL",
        "W20",
    ),
    "what went out stays in the swap cache": (
        "    if slot and w.f_mapcount[pfn] == 0 and folio_extra_refs(w, pfn) == 0:\n",
        "    if False:\n",
        "W22",
    ),
    "a page of the swap cache does not merge": (
        "return w.f_extra[head] - folio_cached(w, head)",
        "return w.f_extra[head]",
        "W24",
    ),
    "MADV_WILLNEED reads nothing": (
        "    if slot == 0 or w.slots[slot].pfn:\n        return 0\n    pfn = frame_alloc(",
        "    if True:\n        return 0\n    pfn = frame_alloc(",
        "W27",
    ),
    "huge pages go out in parts": (
        "            whole = room >= folio_pages(w, pfn)\n",
        "            whole = False\n",
        "W26",
    ),
    "an empty page comes back as the zero page": (
        "    frame_map(w, mm, pfn)\n    pte[0] = make_entry(<uint64_t>pfn, flags)\n    if batch in (NOWHERE, READ):\n"
        "        note_unlocked(w, pfn, v.flags & VM_LOCKED != 0)\n    if batch == NEW:\n",
        "    if own and w.f_key[pfn] == 0:\n"
        "        pte[0] = make_entry(0, (flags & ~PTE_RW) | PTE_SPECIAL)\n"
        "    else:\n"
        "        frame_map(w, mm, pfn)\n"
        "        pte[0] = make_entry(<uint64_t>pfn, flags)\n"
        "    if pte[0] & PTE_SPECIAL:\n        pass\n    elif batch == NEW:\n",
        "W26",
    ),
    "a huge page that reclaim frees leaves no table": (
        "    cdef int rc\n    cdef int i\n    rc = pmd_split(w, r.op.mm, addr, pmd)",
        "    cdef int rc\n    cdef int i\n    if lazy(w, normal_pfn(w, pmd[0], 2)):\n"
        "        unmap_lazy(w, r, pmd, normal_pfn(w, pmd[0], 2))\n        return KW_OK\n    rc = pmd_split(w, r.op.mm, addr, pmd)",
    ),
    "what MADV_FREE marked, and was stored to, is left as it is by MADV_PAGEOUT while it is held": (
        "    if not can_go(w, head):\n        return 0\n    if lazy(w, head):",
        "    if held or not can_go(w, head):\n        return 0\n    if lazy(w, head):",
    ),
    "what swapoff brought back waits": (
        "    lru_drain(w)      # as closing the device does\n", "",
    ),
    "shared memory that nobody stored to comes back": (
        "w.f_key[pfn] == 0 and not w.f_flags[pfn] & FRAME_DIRTY:\n        entry[0] = 0", "False:\n        entry[0] = 0",
    ),
    "shared memory that has zeros is gone": (
        "w.f_key[pfn] == 0 and not w.f_flags[pfn] & FRAME_DIRTY:\n        entry[0] = 0", "w.f_key[pfn] == 0:\n        entry[0] = 0",
    ),
    "reclaim finds a page that came from swap in a locked area that is read in sequence": (
        "    if v.flags & (VM_SEQ_READ | VM_RAND_READ) or w.f_flags[pfn]", "    if w.f_flags[pfn]",
    ),
}
