"""Mutations of the engine made by hand, those argued to be equivalent, and the dozen that a pull request runs.

A hand-made mutation names a piece of text that occurs exactly once in the whole engine, whatever file it stands in.
"""

import mutations_folios
import mutations_kernels
import mutations_locks
import mutations_nodes
import mutations_owners
import mutations_swap

#: name: (text as it stands, text as it is broken)
MUTATIONS: dict[str, tuple[str, str]] = {
    "what was merged before gets a node for every mapping": (
        "    if w.f_node[pfn]:\n        return w.f_node[pfn]\n    return stable_insert(",
        "    return stable_insert(",
    ),
    "what was merged before gets no items": (
        "                    append_item(w, item, node)\n                else:",
        "                    pass\n                else:",
    ),
    "zero pages that KSM has placed are loaded as others": (
        "            if page & LOADED_WRITABLE:      # one of KSM's",
        "            if False:",
    ),
    "a folio mapped in part is loaded without its other frames": (
        "                if not frame_take(w, pfn):\n                    continue",
        "                if True:\n                    continue",
    ),
    "contents are not loaded": (
        "w.f_key[pfn] = 0 if flags & FRAME_ZERO else key",
        "w.f_key[pfn] = 0 if flags & FRAME_ZERO else pfn",
    ),
    "what begins with zeros stands above what does not": (
        "answer[0] = <uint64_t>(WORDS - k)",
        "answer[0] = <uint64_t>k",
    ),
    "above a reference the earlier difference stands lower": (
        "else <uint64_t>(2 * WORDS - k)",
        "else <uint64_t>(WORDS + 1 + k)",
    ),
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
    "a node without items takes newcomers": (
        "return count > 0 and count + more <",
        "return count + more <",
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
        "    append_item(w, other, node)\n    append_item(w, item, node)\n",
        "    append_item(w, item, node)\n    append_item(w, other, node)\n",
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
        "if not q.flags & ITEM_HAS_CHECKSUM or q.checksum != key:",
        "if False:",
    ),
    "a changed checksum is kept but does not stop the visit": (
        "        w.done.changed += 1\n        return KW_OK",
        "        q.flags |= ITEM_HAS_CHECKSUM",
    ),
    "use_zero_pages does nothing": (
        "if key == 0 and w.ksm.use_zero_pages:",
        "if False:",
    ),
    "empty pages go to the zero page always": (
        "if key == 0 and w.ksm.use_zero_pages:",
        "if key == 0:",
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
    ),
    "a huge page is not split when its parts meet": (
        "            split(w, pfn, a.addr)\n        return KW_OK",
        "            pass\n        return KW_OK",
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
        "            elif q.flags & ITEM_STABLE and q.node == node:",
        "            elif True:",
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
    # ---------------------------------------------------------------- ages, areas, faults, folios, ranges
    "an age wraps at 256 instead of staying at 255": (
        "    if age < 255:\n",
        "    if True:\n",
    ),
    "areas are joined although a parent may share the anon_vma": (
        "if p.anon_vma and q.anon_vma or (p if p.anon_vma else q).forked:",
        "if p.anon_vma and q.anon_vma:",
    ),
    "mprotect drops VM_ACCOUNT although there are pages": (
        "if not w.vmas[v].backing and not w.vmas[v].anon_vma:",
        "if not w.vmas[v].backing:",
    ),
    "areas of different flags are joined": (
        "(p.flags ^ q.flags) & ~<uint64_t>VM_MAYBE_GUARD or",
        "(p.flags ^ q.flags) & VM_ACCESS or",
    ),
    "a new area is not joined with its neighbours": (
        "    touched(w, mm)\n    return join_around(w, v)",
        "    touched(w, mm)\n    return v",
    ),
    "an anon_vma shared with a parent is given to a neighbour": (
        "if n.anon_vma and not n.forked and anon_vma_near(v, n):",
        "if n.anon_vma and anon_vma_near(v, n):",
    ),
    "fork leaves the parent's pages writable": (
        "                    e &= ~PTE_RW\n                    from_[0] = e\n",
        "                    e &= ~PTE_RW\n",
    ),
    "fork keeps memory locked": (
        "q.flags &= ~<uint64_t>(VM_LOCKED | VM_LOCKONFAULT | VM_WATCHED)",
        "q.flags &= ~<uint64_t>VM_WATCHED",
    ),
    "the child has no count of zero pages": (
        "    w.mms[child].nr_zero = w.mms[parent].nr_zero\n",
        "",
    ),
    "a child whose parent merges everything does not": (
        "w.mms[child].flags |= w.mms[parent].flags & (MM_MERGE_ANY | MM_THP_DISABLED)",
        "w.mms[child].flags |= w.mms[parent].flags & MM_THP_DISABLED",
    ),
    "a huge page is taken where the area ends within it": (
        "return base >= v.start and base + KW_PMD_SIZE <= v.end",
        "return base >= v.start",
    ),
    "a KSM-placed zero page that is stored to is still counted": (
        "        if rc == KW_OK and pte_ksm_zero(e):\n",
        "        if False:\n",
    ),
    "a KSM-placed zero page that is unmapped is still counted": (
        "        if pte_ksm_zero(e):\n            ksm_zero_gone(w, mm)\n        return\n",
        "        return\n",
    ),
    "a broken KSM page may be stored to at once": (
        "flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_RW | PTE_D | PTE_SPECIAL)) | PTE_A",
        "flags = (entry_decode(e) & ~(PTE_PFN_MASK | PTE_SPECIAL)) | PTE_RW | PTE_A",
    ),
    "empty parts of a huge page being split stay": (
        "    if w.f_key[pfn] != 0 or w.ctl.kernel & SWITCH_SPLIT",
        "    if True or w.ctl.kernel & SWITCH_SPLIT",
    ),
    "a huge page is split although somebody holds it": (
        "    if w.f_refs[head] != expected:\n        return KW_EBUSYENTRY\n",
        "",
    ),
    "MADV_DONTNEED keeps empty tables": (
        "    if rc == KW_OK and start < end:\n        free_pte_tables",
        "    if False:\n        free_pte_tables",
    ),
    "MADV_DONTNEED takes markers as well": (
        "    if pte_present(e) or swap_slot(w, e):\n        zap_pte(w, op.mm, entry)",
        "    if True:\n        zap_pte(w, op.mm, entry)",
    ),
    "MADV_FREE leaves a huge page whole that sticks out": (
        "    cdef int rc = split_sticking_out(w, mm, start)\n",
        "    cdef int rc = KW_OK\n",
    ),
    "mremap moves KSM pages": (
        "    if flags & VM_MERGEABLE and anon:\n",
        "    if False:\n",
    ),
    "MADV_UNMERGEABLE leaves KSM pages": (
        "    if w.vmas[v].anon_vma:\n        rc = unmerge_range(w, mm, start, end,",
        "    if False:\n        rc = unmerge_range(w, mm, start, end,",
    ),
    "MADV_COLLAPSE takes a page that somebody holds": (
        "if folio_extra_refs(w, pfn) or w.f_flags[pfn] & FRAME_LOCKED:\n            return -EAGAIN",
        "if w.f_flags[pfn] & FRAME_LOCKED:\n            return -EAGAIN",
    ),
    "MADV_COLLAPSE loses what the pages held": (
        "                w.f_key[huge + i] = w.f_key[pfn]\n            zap_pte",
        "                pass\n            zap_pte",
    ),
}
MUTATIONS |= (
    mutations_kernels.MUTATIONS | mutations_nodes.MUTATIONS | mutations_owners.MUTATIONS | mutations_folios.MUTATIONS
    | mutations_swap.MUTATIONS
)

#: name of a mutation: why nothing can tell it from the engine as it stands
EQUIVALENT: dict[str, str] = {
    "child_row: if (e & (PTE_P | PTE_PS)) != PTE_P or row <= 0 or row [>= -> >] w.ctl.rows_used:":
        "the first row never used has no owner yet, so the comparison of owners turns it away",
    "vma_find_from: if v <= [0 -> 1] or v >= w.ctl.vmas_used or w.vmas[v].mm != mm or w.vmas[v].start > addr:":
        "where the area found last is record 1 the search starts at the first area instead, and finds the same",
    "sys_munmap: if w.vmas[v].page_shift > [12 -> 13] and start & (KW_PMD_SIZE - 1):":
        "pages of an area are of 12 or of 21 bits",
    "table_ahead: [dropped] n[0] = 0":
        "its callers have set their counts to 0 already",
    "start: [dropped] c.items = c.nodes = NULL":
        "the checks of memory look at neither, and those of KSM set both themselves",
    "read_level: if t.budget & 1023 [== -> !=] 0 and k.alone and interrupted():":
        "signals are looked for at other entries, and more often",
    "examine: [dropped] w.ksm.changes_seen = w.ctl.changes":
        "keys in the unstable tree are looked up more often, and what a visit itself changes never changes such a key",
}

#: a dozen that build and are caught quickly, over all rooms
CI: tuple[str, ...] = (
    "pruning takes the emptiest dup",
    "no checksum is kept",
    "the page visited is listed first",
    "an age wraps at 256 instead of staying at 255",
    "a skipped page stays in its tree",
    "areas are joined although a parent may share the anon_vma",
    "mprotect drops VM_ACCOUNT although there are pages",
    "an anon_vma shared with a parent is given to a neighbour",
    "the child has no count of zero pages",
    "fork leaves the parent's pages writable",
    "a store goes into a page that others map",
    "empty parts of a huge page being split stay",
)

MUTATIONS |= mutations_locks.MUTATIONS
