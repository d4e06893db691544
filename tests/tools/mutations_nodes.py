"""Mutations of what two NUMA nodes have to do with merging; recordings of two nodes catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("numa",)

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "khugepaged takes the node of the area": (
        "    return most if pages[most] else node_of(w, v)\n",
        "    return node_of(w, v)\n",
        "W28",
    ),
    "of nodes with as many pages khugepaged takes the last": (
        "        if pages[i] > pages[most]:\n",
        "        if pages[i] >= pages[most]:\n",
        "W28",
    ),
    "pages of shared memory are busy": (
        "    if folio_extra_refs(w, m.old) != file:",
        "    if folio_extra_refs(w, m.old) != 0:",
    ),
    "a moved page of shared memory is where it was for those who map it later": (
        "    if file:\n        follow_object(w, &m)\n",
        "",
    ),
    "a full page that moved keeps all its items": (
        "return node if has_room(w, node, 0) else 0", "return node",
        "K24",
    ),
    "a newcomer joins a KSM page that has moved to another node": (
        "    if found and misplaced(w, found):", "    if False:",
        "K24",
    ),
    "a KSM page is merged into another one": (
        "w.f_flags[folio_head(w, pfn)] & FRAME_LOCKED or w.f_flags[pfn] & FRAME_KSM:",
        "w.f_flags[folio_head(w, pfn)] & FRAME_LOCKED:",
        "K24",
    ),
    "a moved page that is mapped once becomes a dup": (
        "    if entry and w.f_mapcount[w.nodes[node].pfn] <= 1:", "    if False:",
        "K24",
    ),
    "pages of two nodes meet in the unstable tree": (
        "                if not w.ksm.merge_across_nodes and tree_of(w, w.items[t].mm, page) != tree:",
        "                if False:",
        "K23",
    ),
    "pages of two nodes have trees of their own when merged across": (
        "(0 if w.ksm.merge_across_nodes else w.f_nid[pfn])",
        "w.f_nid[pfn]",
        "K20",
    ),
    "pages of two nodes share their trees": (
        "(0 if w.ksm.merge_across_nodes else w.f_nid[pfn])",
        "0",
        "K21",
    ),
    "a copy goes where the KSM page was": (
        "    new = frame_alloc(w, node_of(w, v), 0 if pfn < 0 else",
        "    new = frame_alloc(w, w.f_nid[max(pfn, 0)], 0 if pfn < 0 else",
        "K22",
    ),
    "a copy that a store makes goes where the KSM page was": (
        "    rc = new_anon(w, mm, v, pte, w.f_key[pfn] if mode & FAULT_KEEP else key)\n    if rc == KW_OK:\n        mlock",
        "    rc = new_anon(w, mm, v, pte, w.f_key[pfn] if mode & FAULT_KEEP else key)\n"
        "    if rc == KW_OK:\n"
        "        w.f_nid[entry_pfn(pte[0], 1)] = w.f_nid[pfn]\n"
        "        mlock",
        "K22",
    ),
    "nodes that went stale wait on": (
        "    if not w.ksm.merge_across_nodes:\n        migrate_drop_stale(w)",
        "    if False:\n        migrate_drop_stale(w)",
        "K25",
    ),
    "merge_across_nodes changes whatever is shared": (
        '        if name in ("max_page_sharing", "merge_across_nodes") and number != old:',
        '        if name == "max_page_sharing" and number != old:',
        "K26",
    ),
    "move_pages moves what others map": (
        "    if shared(w, pfn) and not every:\n        return -EACCES",
        "    if False:\n        return -EACCES",
        "K27",
    ),
    "mbind moves what others map": (
        "    if not a.every and shared(w, head if", "    if False and shared(w, head if",
        "K27",
    ),
    "mbind of 6.1 asks whether the page at hand is shared": (
        "shared(w, head if w.ctl.kernel & SWITCH_NO_SMART_SCAN else pfn)", "shared(w, pfn)",
    ),
    "the zero page is told as absent": (
        "    if pfn < 0:\n        return -EFAULT\n    return pfn + <int64_t>((addr",
        "    if pfn < 0:\n        return -ENOENT\n    return pfn + <int64_t>((addr",
        "K27",
    ),
    "placing with a move takes all sharers along": (
        "_MOVE, _MOVE_ALL = 2, 4\n_ACCESS",
        "_MOVE, _MOVE_ALL = 2, 2\n_ACCESS",
        "K28",
    ),
    "a folio that is partly unmapped moves whole": (
        "    if partly_mapped(w, pfn):", "    if False:",
    ),
    "of a folio that is split to be moved one part moves": (
        "        if w.f_mapcount[i] == 0:\n            continue\n        part = move_folio",
        "        if i != pfn:\n            continue\n        part = move_folio",
    ),
    "a folio that moved piece by piece moves so again": (
        "    return look.by_ptes", "    return False",
    ),
    "no kernel forgets that a folio moved piece by piece": (
        "        if m.by_ptes and not w.ctl.kernel & SWITCH_MOVE_FORGETS:", "        if m.by_ptes:",
    ),
    "every kernel forgets that a folio moved piece by piece": (
        "        if m.by_ptes and not w.ctl.kernel & SWITCH_MOVE_FORGETS:", "        if False:",
    ),
    "move_pages tells of a page that is held, and goes on": (
        "            status[i] = 0 if held else nodes[i]\n    return not held",
        "            status[i] = -EBUSY if held else nodes[i]\n    return True",
    ),
    "move_pages goes on behind a page that is held": (
        "            status[i] = 0 if held else nodes[i]\n    return not held",
        "            status[i] = 0 if held else nodes[i]\n    return True",
    ),
    "old kernels find the area of a KSM page that mbind moves": (
        "    if a.source < 0 and w.f_flags[pfn] & FRAME_KSM and w.ctl.kernel & SWITCH_NO_SMART_SCAN:", "    if False:",
    ),
    "a KSM page moves though its items lead to a part of its mappings": (
        "    elif follow_ksm(w, &m, w.f_node[m.old]) != KW_OK:\n        frame_free(w, m.new)\n        return KW_EBUSYENTRY\n",
        "    else:\n        follow_all(w, &m, addr)\n",
    ),
    "the mapping that is met first says whether a folio moves piece by piece": (
        "        if v and (m.last == 0 or not visited_before(w, v, m.last)):",
        "        if v and (m.last == 0 or visited_before(w, v, m.last)):",
    ),
    "parts of a folio that are met again one by one count one": (
        "        a.stuck += together(w, a, addr, entry, pfn) if large else 1",
        "        a.stuck += 1",
    ),
    "a folio that could not be moved is tried for each of its ptes": (
        "    if large and head == a.large:\n        return 0", "    if False:\n        return 0",
    ),
    "move_pages of 6.1 finds PROT_NONE memory": (
        "    if w.ctl.kernel & SWITCH_NONE_NO_PARTNER and not leaf[0] & PTE_P:", "    if False:",
    ),
    "move_pages of 6.1 says of PROT_NONE memory what it says of absent pages": (
        " and w.ctl.kernel & SWITCH_NO_SMART_SCAN and not unseen:", " and w.ctl.kernel & SWITCH_NO_SMART_SCAN:",
    ),
    "migrate_pages moves what it meets at once": (
        "    a.taken[head] = 1\n    return wait(a, addr, pfn)\n",
        "    a.taken[head] = 1\n    a.stuck += go(w, a.op.mm, addr, pfn, a.nid) < 0\n    return 0\n",
    ),
}
