"""Mutations made by hand of who owns a page, and of pins: see `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("owner", "dma", "pin", "cow", "fork")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "a store goes into a page that others map": (
        "    if v.flags & VM_SHARED or page_ours(w, mm, pfn):\n",
        "    if True:\n",
        "W10",
    ),
    "a store goes into a huge page that others map": (
        "            if not huge_ours(w, pfn):\n                return pmd_split",
        "            if False:\n                return pmd_split",
        "W11",
    ),
    "mprotect lets stores into pages that others map": (
        "        if w.f_flags[pfn] & FRAME_EXCLUSIVE and (d & PTE_D or",
        "        if True and (d & PTE_D or",
        "W10",
    ),
    "a page that a fork shares stays exclusive": (
        "                    w.f_flags[pfn] &= ~FRAME_EXCLUSIVE\n                    frame_map(w, dst, pfn)",
        "                    frame_map(w, dst, pfn)",
        "W10",
    ),
    "a huge page that a fork shares stays exclusive": (
        "                w.f_flags[pfn] &= ~FRAME_EXCLUSIVE\n                huge_map(w, dst, pfn)",
        "                huge_map(w, dst, pfn)",
        "W11",
    ),
    "pages of a huge page being split are exclusive no more": (
        "    if exclusive:\n        for i in range(head, head + 512):",
        "    if False:\n        for i in range(head, head + 512):",
        "W11", "W12",
    ),
    "a page stored to in place is not exclusive again": (
        "        if not v.flags & VM_SHARED:\n            w.f_flags[pfn] |= FRAME_EXCLUSIVE\n        pte[0] =",
        "        pte[0] =",
        "W10",
    ),
    "a small page is stored to in place though somebody else refers to it": (
        "    return w.f_mapcount[pfn] == 1 and w.f_extra[pfn] == 0\n",
        "    return w.f_mapcount[pfn] == 1\n",
        "W10", "W14",
    ),
    "a part of a folio is stored to in place though the folio is pinned": (
        "        if w.f_extra[head] or maybe_shared(w, pfn):\n",
        "        if maybe_shared(w, pfn):\n",
        "W12", "W14",
    ),
    "a folio is not shared as long as its page has one mapping": (
        "        if w.f_extra[head] or maybe_shared(w, pfn):\n",
        "        if w.f_extra[head] or w.f_mapcount[pfn] > 1:\n",
        "W12", "W13",
    ),
    "the last page of a folio is stored to in place": (
        "        return not w.ctl.kernel & SWITCH_PARTS_COPIED if n > 1 else w.ctl.kernel & SWITCH_LAST_PART_STAYS != 0\n",
        "        return not w.ctl.kernel & SWITCH_PARTS_COPIED\n",
        "W12",
    ),
    "parts of huge pages are stored to in place everywhere": (
        "        return not w.ctl.kernel & SWITCH_PARTS_COPIED if n > 1 else w.ctl.kernel & SWITCH_LAST_PART_STAYS != 0\n",
        "        return n > 1 or w.ctl.kernel & SWITCH_LAST_PART_STAYS != 0\n",
    ),
    "the last part of a huge page is copied everywhere": (
        "        return not w.ctl.kernel & SWITCH_PARTS_COPIED if n > 1 else w.ctl.kernel & SWITCH_LAST_PART_STAYS != 0\n",
        "        return n > 1 and not w.ctl.kernel & SWITCH_PARTS_COPIED\n",
    ),
    "a DMA pin makes every page dirty": (
        "    if entry == NULL:\n        looked_for[0] = True\n",
        "    if True:\n        looked_for[0] = True\n",
        "W15", "W19",
    ),
    "a folio that was shared once stays so": (
        "o.mm[1] and o.nr[1] == o.total:\n        o.shared &= ~FOLIO_SHARED",
        "o.mm[1] and o.nr[1] == o.total:\n        pass",
        "W13",
    ),
    "the split of a pmd counts one mapping too many": (
        "    owners_add(w, mm, head, 511)",
        "    owners_add(w, mm, head, 512)",
        "W13",
    ),
    "another owner does not make a folio shared": (
        "    if n != o.total:\n        o.shared |=",
        "    if False:\n        o.shared |=",
        "W13",
    ),
    "a pin does not keep a store from a huge page": (
        "    return w.owners[head >> 2].total == 1 and w.f_extra[head] == 0\n",
        "    return w.owners[head >> 2].total == 1\n",
        "W11", "W14",
    ),
    "the batch of the CPU at hand keeps a store from a page": (
        "        lru_drain_cpu(w, w.mms[mm].cpu)\n    return w.f_mapcount",
        "        pass\n    return w.f_mapcount",
        "W10",
    ),
    "a fork shares what a device has": (
        "            elif cow and dma_pinned(w, normal_pfn(w, e, 1)):",
        "            elif False:",
        "W15",
    ),
    "a fork shares a huge page that a device has": (
        "        if level == 2 and cow and entry_leaf(e, 2) and dma_pinned(w, normal_pfn(w, e, 2)):",
        "        if False:",
        "W15",
    ),
    "the child's copy of what a device has is not written": (
        "frame_alloc(w, node_of(w, v), w.f_key[pfn], FRAME_ANON | FRAME_EXCLUSIVE)\n    if new < 0:\n        return",
        "frame_alloc(w, node_of(w, v), 0, FRAME_ANON | FRAME_EXCLUSIVE)\n    if new < 0:\n        return",
        "W15",
    ),
    "an exclusive page that is pinned is copied": (
        "    if flags & FRAME_EXCLUSIVE and not w.ctl.kernel & SWITCH_OLD_CALLS:\n",
        "    if flags & FRAME_EXCLUSIVE and w.f_extra[pfn] == 0:\n",
        "W10",
    ),
    "a stack grows for a pin by a device": (
        "    if vma_find(w, mm, addr) == 0 and not w.ctl.kernel & SWITCH_OLD_CALLS:",
        "    if False:",
        "W14", "W39",
    ),
    "a stack grows for a pin": (
        "        if mm.find_vma(vpn * PAGE) is None and not",
        "        if False and not",
        "W14", "W39",
    ),
    "a pin by vmsplice is a device's": (
        "    alone(world)\n    folio_get(&world.w, pfn)\n",
        "    alone(world)\n    dma_get(&world.w, pfn)\n",
        "W14",
    ),
    "a device's pin soils nothing that it finds after a hole": (
        "    elif looked_for[0]:\n        soil(w, entry, level)", "    elif False:\n        soil(w, entry, level)",
    ),
    "a device's pin soils what it finds before a hole": (
        "    elif looked_for[0]:\n        soil(w, entry, level)", "    elif True:\n        soil(w, entry, level)",
    ),
    "a folio used twice at once is in use": (
        "FRAME_REFERENCED and not w.owners[head >> 2].shared & FOLIO_ACTIVE:\n        w.owners",
        "FRAME_REFERENCED and False:\n        w.owners",
    ),
    "a folio used for the third time is not in use": (
        "FRAME_REFERENCED and not w.owners[head >> 2].shared & FOLIO_ACTIVE:\n        w.owners",
        "FRAME_REFERENCED:\n        w.owners",
    ),
}
