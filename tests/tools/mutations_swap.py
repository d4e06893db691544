"""Mutations of swap, reclaim and advice about use; recordings catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("swap", "free", "cold", "pageout", "shrink", "collapse", "remove", "shared")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "swapped KSM pages come back together": (
        "    return s.root == 0 or s.root == v.anon_root and s.addr == index\n",
        "    return True\n",
    ),
    "relatives by fork get copies": (
        "    return s.root == 0 or s.root == v.anon_root and s.addr == index\n",
        "    return s.root == 0\n",
    ),
    "a KSM page of the swap cache that KSM gave up is mapped": (
        "        return w.f_node[s.pfn] != 0 and w.ksm.run != 2\n",
        "        return True\n",
    ),
    "what comes back alone is not exclusive": (
        "    if (own or e & SWAP_EXCLUSIVE) and not w.f_flags[pfn] & FRAME_KSM:\n",
        "    if False:\n",
    ),
    "protection by userfaultfd is lost in swap": (
        "    if e & SWAP_UFFD_WP:\n        flags |= PTE_UFFD_WP\n",
        "",
    ),
    "a page leaves the swap cache with its first mapping": (
        "    if s.count > 0:\n        return\n",
        "    if s.count > 0:\n        cache_drop(w, slot)\n        return\n",
    ),
    "fork copies entries of exclusive pages as they are": (
        "                    e &= ~<uint64_t>SWAP_EXCLUSIVE\n",
        "",
    ),
    "swapoff goes by the youngest": (
        "w.mms[mm].serial < w.mms[found].serial",
        "w.mms[mm].serial > w.mms[found].serial",
    ),
    "items of the dead lead nowhere": (
        "if v and (u == 0 or w.vmas[u].anon_root == w.vmas[v].anon_root):",
        "if v and u and w.vmas[u].anon_root == w.vmas[v].anon_root:",
    ),
    "locked pages go": (
        "    if op.v.flags & VM_LOCKED or not can_go(w, pfn):\n",
        "    if not can_go(w, pfn):\n",
    ),
    "pages with DMA pins go": (
        "    return not dma_pinned(w, pfn)\n",
        "    return True\n",
    ),
    "MADV_PAGEOUT takes what others map, too": (
        "    if pfn < 0 or w.f_flags[pfn] & LARGE or w.f_mapcount[pfn] != 1:\n",
        "    if pfn < 0 or w.f_flags[pfn] & LARGE:\n",
    ),
    "MADV_FREE marks dirty pages that others map": (
        "        if folio_mappings(w, pfn) != n or cached_slot(w, pfn):\n            return\n",
        "",
    ),
    "MADV_FREE keeps what is swapped out": (
        "        elif use == LAZY and swap_slot(w, p[0]):\n            zap_pte(w, mm, p)\n",
        "",
    ),
    "a store after MADV_FREE is lost": (
        "        if pte[0] & PTE_D:\n            w.f_flags[pfn] |= FRAME_DIRTY\n        elif",
        "        if",
    ),
    "a page stored to after MADV_FREE goes out at once": (
        "    return w.f_flags[pfn] & (FRAME_LAZY | FRAME_DIRTY) == FRAME_LAZY\n",
        "    return w.f_flags[pfn] & FRAME_LAZY != 0\n",
    ),
    "parts of a split huge page are not dirty themselves": (
        "    w.f_flags[head] |= dirty\n",
        "",
    ),
    "MADV_COLD splits whole folios": (
        "                n = whole_folio(w, pte, <int64_t>((next - addr) >> 12))\n",
        "                n = 0\n",
    ),
    "shared folios are split by advice": (
        "                if n == 0 and not maybe_shared(w, pfn):\n",
        "                if n == 0:\n",
    ),
    "a huge page mapped in part goes out whole": (
        "                whole = whole and w.f_mapcount[i] > 0\n",
        "                pass\n",
    ),
    "copies from the swap cache are not counted": (
        "        w.done.ksm_swpin_copy += pfn != 0\n",
        "",
    ),
    "MADV_REMOVE leaves mappings": (
        "        zap_leaf(w, op.mm, addr, entry, level)\n    return 0\n\n\ncdef int op_empty(",
        "        pass\n    return 0\n\n\ncdef int op_empty(",
    ),
    "shared memory that is out is mapped around a fault": (
        "if have != NULL and have[0] & PTE_A else KW_NONE",
        "if have != NULL and have[0] else KW_NONE",
    ),
}
