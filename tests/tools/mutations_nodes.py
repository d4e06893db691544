"""Mutations of what two NUMA nodes have to do with merging; recordings of two nodes catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("numa",)

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "a full page that moved keeps all its items": (
        "return node if has_room(w, node, 0) else 0", "return node",
    ),
    "a newcomer joins a KSM page that has moved to another node": (
        "    if found and misplaced(w, found):", "    if False:",
    ),
    "a KSM page is merged into another one": (
        "w.f_flags[w.f_head[pfn]] & FRAME_LOCKED or w.f_flags[pfn] & FRAME_KSM:",
        "w.f_flags[w.f_head[pfn]] & FRAME_LOCKED:",
    ),
    "a moved page that is mapped once becomes a dup": (
        "    if entry and w.f_mapcount[w.nodes[node].pfn] <= 1:", "    if False:",
    ),
    "pages of two nodes meet in the unstable tree": (
        "                if not w.ksm.merge_across_nodes and tree_of(w, w.items[t].mm, page) != tree:",
        "                if False:",
    ),
}
