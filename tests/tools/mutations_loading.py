"""Mutations of what is loaded in the middle, and of how contents compare. See `mutations.py`."""

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "what was merged before gets a node for every mapping": (
        "    if w.f_node[pfn]:\n        return w.f_node[pfn]\n    return stable_insert(",
        "    return stable_insert(",
        "W52",
    ),
    "what was merged before gets no items": (
        "                    append_item(w, item, node)\n                else:",
        "                    pass\n                else:",
        "W52",
    ),
    "zero pages that KSM has placed are loaded as others": (
        "            if page & LOADED_WRITABLE:      # one of KSM's",
        "            if False:",
        "W50", "W52",
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
    "the bit of KSM frames is that of huge pages": (
        "    KSM = 1 << 21",
        "    KSM = 1 << 22",
        "W50",
    ),
    "what a process owes is never less than nothing": (
        "        owed = max(0, low - ksm_pages) or min(0, high - ksm_pages)",
        "        owed = max(0, low - ksm_pages)",
        "W51",
    ),
    "what was not merged before has no checksum": (
        "                    w.items[item].checksum = w.f_key[pfns[i]]\n"
        "                    w.items[item].flags |= ITEM_HAS_CHECKSUM",
        "                    pass",
        "W52",
    ),
    "pages that are skipped keep a state from being steady": (
        '            now["pages_unshared"] += now.pop("pages_volatile")\n',
        "            pass\n",
        "W53",
    ),
}

#: those of memory that is merged already
MIDDLE = tuple(name for name, (_, _, *facts) in MUTATIONS.items() if facts)
