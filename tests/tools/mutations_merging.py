"""Mutations of merging: trees, chains, items, ages, the list of processes. See `mutations.py`."""

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "a node without items takes newcomers": (
        "return count > 0 and count + more <",
        "return count + more <",
        "W54",
    ),
    "one sharer more than max_page_sharing": (
        "return count > 0 and count + more <",
        "return count > 0 and count + more <=",
    ),
    "a dup with room does not move to the head": (
        "if found and c.dups != found and has_room(w, found, 1):",
        "if False:",
    ),
    "a dup moves to the head with room for this one alone": (
        "if found and c.dups != found and has_room(w, found, 1):",
        "if found and c.dups != found and has_room(w, found, 0):",
    ),
    "pruning takes the emptiest dup": (
        "w.nodes[dup].count > w.nodes[found].count):",
        "w.nodes[dup].count < w.nodes[found].count):",
        "W46",
    ),
    "a chain of one dup stays a chain": (
        "if w.nodes[dup].dup_next == 0 and (",
        "if False and (",
    ),
    "a chain of one dup turns back only when pruned": (
        "if w.nodes[dup].dup_next == 0 and (",
        "if prune and w.nodes[dup].dup_next == 0 and (",
    ),
    "without pruning the fullest dup is taken too": (
        "if not prune:",
        "if False:",
        "W46",
    ),
    "a search gives up where a node was stale": (
        "            if page == AGAIN:\n"
        "                break\n"
        "            if key == w.nodes[page].key:\n"
        "                return",
        "            if page == AGAIN:\n"
        "                return 0\n"
        "            if key == w.nodes[page].key:\n"
        "                return",
    ),
    "stale nodes are not noticed by a search": (
        "        if node_stale(w, chain):",
        "        if False:",
    ),
    "a stale node leaves only the item that met it": (
        "    if node_stale(w, q.node):\n",
        "    if False:\n",
    ),
    "the first node of a chain is no dup": (
        "    w.ksm.chains += 1\n    w.ksm.dups += 1\n",
        "    w.ksm.chains += 1\n",
    ),
    "a new dup goes behind the first": (
        "    dup_add(w, entry, node)\n    w.ksm.dups += 1\n",
        "    dup_add(w, entry, node)\n"
        "    following = w.nodes[node].dup_next\n"
        "    dup_unlink(w, following)\n"
        "    dup_add(w, entry, following)\n"
        "    w.ksm.dups += 1\n",
    ),
    "the page visited is listed first": (
        "    append_item(w, other, node)\n    append_item(w, item, node)\n    w.done.merges += 1\n    return True",
        "    append_item(w, item, node)\n    append_item(w, other, node)\n    w.done.merges += 1\n    return True",
    ),
    "every item of a stale node is told of": (
        "            w.ksm.pages_shared -= 1\n        off_node(w, q)",
        "            w.ksm.pages_shared -= 1\n            event(w, EV_RMI, q.mm, pfn, item, node, 0)\n        off_node(w, q)",
    ),
    "the last item that leaves was a sharer": (
        "        w.ksm.pages_shared -= 1\n    off_node(w, q)",
        "        w.ksm.pages_sharing -= 1\n    off_node(w, q)",
    ),
    "a node inserted in this scan is only forgotten": (
        "    if not indexed(w):\n        rb_erase(link_rb(w)",
        "    if False:\n        rb_erase(link_rb(w)",
    ),
    "no checksum is kept": (
        "    if q.flags & ITEM_HAS_CHECKSUM and q.checksum == key:\n        return False\n",
        "    if True:\n        return False\n",
    ),
    "a changed checksum is kept but does not stop the visit": (
        "    w.done.changed += 1\n    return True\n",
        "    w.done.changed += 1\n    return False\n",
    ),
    "use_zero_pages does nothing": (
        "    if not w.ksm.use_zero_pages:\n        return False\n",
        "    if True:\n        return False\n",
    ),
    "empty pages go to the zero page always": (
        "    if not w.ksm.use_zero_pages:\n        return False\n",
        "",
    ),
    "a search goes on past the very page it has": (
        "            if page < 0 or page == pfn:",
        "            if page < 0:",
    ),
    "the unstable tree trusts old contents": (
        "cdef bint trusted = w.ksm.generation == w.ksm.tree_generation",
        "cdef bint trusted = True",
    ),
    "the unstable tree compares what was inserted": (
        "            other = w.f_key[page]\n            link.key = other",
        "            other = link.key if other != 0 else w.f_key[page]",
    ),
    "a search goes past a page that is gone": (
        "            if page < 0 or page == pfn:\n                return GAVE_UP",
        "            if page < 0:\n"
        "                parent = t\n"
        "                right = key > other\n"
        "                t = link.right if right else link.left\n"
        "                continue\n"
        "            if page == pfn:\n"
        "                return GAVE_UP",
    ),
    "the index is trusted whatever changes": (
        "        if trusted and tree == domain_tree(w, item)",
        "        if tree == domain_tree(w, item)",
    ),
    "an empty page that is gone already comes into the index": (
        "if key == 0 and item_page(w, item) != pfn or not late_add(w, item):",
        "if not late_add(w, item):",
    ),
    "the index outlives the split of an empty page": (
        "    if indexed(w) and late(w).zero:\n        spoil(w)",
        "    pass",
    ),
    "what is taken out of the index is not in the log": (
        "    log_put(&s.log, -item)\n",
        "    return\n",
    ),
    "a page taken out of the index is found there": (
        "    kw_slots_put(&s.unstable, kw_slots_hash(key, tree), item, 0)\n",
        "    pass\n",
    ),
    "a tree built late has the contents of now": (
        "<uint32_t>log.at[i + 1] | <uint64_t><uint32_t>log.at[i + 2] << 32",
        "w.items[-log.at[i]].checksum",
    ),
    "links are read before they are built": (
        "        if self.world.w.settle != NULL and name in LATE:",
        "        if False:",
    ),
    "who keeps an array is not asked": (
        "    late_watch(&world.w, looked_at(world))",
        "    late_watch(&world.w, False)",
    ),
    "stale nodes are looked for no longer": (
        "s.trees_only or w.nodes_gone or s.restless:",
        "s.trees_only or s.restless:",
    ),
    "chains that would change are passed by": (
        "s.trees_only or w.nodes_gone or s.restless:",
        "s.trees_only or w.nodes_gone:",
    ),
    "a chain that is due for pruning is passed by": (
        "    return w.ksm.chains == 0 or not chain_due(w)",
        "    return True",
        "W46",
    ),
    "a node is not in the index of the stable tree": (
        "    if not kw_slots_add(&s.stable, kw_slots_hash(w.nodes[node].key, w.nodes[node].tree), node):\n"
        "        stable_learn(w)",
        "    pass",
    ),
    "a run of skipped pages leaves no tree": (
        "            q.flags &= <uint8_t>~ITEM_UNSTABLE\n        link = item\n",
        "            pass\n        link = item\n",
    ),
    "parts of one huge page merge": (
        "cdef bint within = w.f_flags[pfn] & LARGE and",
        "cdef bint within = False and w.f_flags[pfn] & LARGE and",
        "W31",
    ),
    "a huge page is not split when its parts meet": (
        "            split(w, pfn, a.addr)\n        return KW_OK",
        "            pass\n        return KW_OK",
        "W29", "W31",
    ),
    "half a merge is not undone": (
        "        err = break_ksm(w, a.mm, a.addr, <int>w.ksm.cpu)\n        return err if err < 0 else KW_OK",
        "        return KW_OK",
    ),
    "a page shared by fork needs room": (
        "        target = node\n",
        "        if not 0 < w.nodes[node].count < w.ksm.max_page_sharing:\n            return KW_OK\n        target = node\n",
    ),
    "a page shared by fork is taken for listed": (
        "            elif q.node == node:",
        "            elif True:",
    ),
    "an item whose node went stale forgets it": (
        "        q = &w.items[item]\n        if following:\n            w.ksm.pages_sharing -= 1",
        "        q = &w.items[item]\n        q.node = 0\n        if following:\n            w.ksm.pages_sharing -= 1",
    ),
    "run=2 starts with the last process": (
        "    cdef int32_t mm = w.mms[0].slot_next, following\n"
        "    cdef int err\n"
        "    while mm:\n"
        "        following = w.mms[mm].slot_next",
        "    cdef int32_t mm = w.mms[0].slot_prev, following\n"
        "    cdef int err\n"
        "    while mm:\n"
        "        following = w.mms[mm].slot_prev",
    ),
    "run=2 keeps full_scans": (
        "    w.cursor.seqnr = 0\n",
        "    pass\n",
    ),
    "insertion recolours where it should rotate": (
        "            rb_rotate(base, stride, root, z, side)\n"
        "            parent = rb_at(base, stride, z).parent\n",
        "            pass\n",
    ),
    "deletion does not restore the colours": (
        "    if removed == RB_RED:\n        return",
        "    return",
    ),
    "skips begin one encounter late": (
        "    if age >= 3:\n        q.skips =",
        "    if age >= 4:\n        q.skips =",
    ),
    "the first skip is two long": (
        "q.skips = 1 if age <= 3 else 2",
        "q.skips = 2 if age <= 3 else 2",
    ),
    "the longest skip is four": (
        "else 4 if age <= 8 else 8",
        "else 4 if age <= 8 else 4",
    ),
    "a skipped page stays in its tree": (
        "    if p.flags & (ITEM_STABLE | ITEM_UNSTABLE) and w.leave_tree != NULL:\n"
        "        w.leave_tree(w, item)\n"
        "    return True",
        "    return True",
    ),
    "a new process goes to the end of the list": (
        "list_add_before(w, mm, 0 if w.ksm.run == 2 else w.cursor.slot)",
        "list_add_before(w, mm, 0)",
    ),
    "an exiting process keeps its place": (
        "    list_del(w, mm)\n    after = w.mms[w.cursor.slot].slot_next\n    list_add_before(w, mm, after)",
        "    return",
    ),
    "a process without mergeable memory stays": (
        "if exiting or w.cursor.address == 0:",
        "if exiting:",
    ),
    "an exiting process keeps items the cursor passed": (
        "items_drop_after(w, mm, 0 if exiting else w.cursor.link)",
        "items_drop_after(w, mm, w.cursor.link)",
    ),
    "what ksmd maps was as little used as what it replaces": (
        "PTE_UFFD_WP | PTE_SOFT_DIRTY) | PTE_A)\n    frame_map", "PTE_UFFD_WP | PTE_SOFT_DIRTY))\n    frame_map",
    ),
}
