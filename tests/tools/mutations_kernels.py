"""Mutations of what tells one kernel from another; recordings of those kernels catch them. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("guests",)

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "an old kernel compares the checksum first": (
        "cdef bint stable_first = w.ctl.kernel & SWITCH_STABLE_FIRST != 0",
        "cdef bint stable_first = False",
    ),
    "an old kernel passes new pages without a search": (
        "if link == 0 or w.ctl.kernel & SWITCH_STABLE_FIRST:",
        "if link == 0:",
    ),
    "an old kernel counts zero pages": (
        "if kpfn == 0 and w.ctl.kernel & SWITCH_ZERO_UNTRACKED:",
        "if False:",
    ),
    "an old kernel maps empty parts of a split huge page to the zero page": (
        " or w.ctl.kernel & SWITCH_SPLIT_KEEPS_EMPTY:",
        ":",
    ),
    "an old chain of one dup turns back when it is passed": (
        " and (not w.ctl.kernel & SWITCH_OLD_CHAINS or prune and found):",
        ":",
    ),
    "a child never starts with its parent's counts": (
        "    if w.ctl.kernel & SWITCH_FORK_INHERITS:\n        w.mms[child].nr_rmap_items",
        "    if False:\n        w.mms[child].nr_rmap_items",
    ),
    "a merge forgets nothing": (
        "    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORGETS):\n        q.flags",
        "    if False:\n        q.flags",
    ),
    "a merge forgets the age but not when the item leaves": (
        "    if KW_UNLIKELY(w.ctl.kernel & SWITCH_FORGETS):\n        q.age",
        "    if False:\n        q.age",
    ),
    "a page that was to become KSM's and was undone is remembered": (
        "    forget(w, item)\n    err = merge_one",
        "    err = merge_one",
    ),
    "a PROT_NONE page is a partner everywhere": (
        "    if not leaf[0] & PTE_P and w.ctl.kernel & SWITCH_NONE_NO_PARTNER:",
        "    if False:",
    ),
    "protected KSM pages are unmerged everywhere": (
        "return e & PTE_UFFD_WP != 0 and w.ctl.kernel & SWITCH_KEEPS_PROTECTED != 0",
        "return False",
    ),
    "a debugger stores into PROT_NONE memory everywhere": (
        "if mode & FAULT_FORCE and not v.flags & VM_ACCESS and w.ctl.kernel & SWITCH_POKE_FAILS:",
        "if False:",
    ),
    "several areas move everywhere": (
        "if old_len == new_len > p.end - addr and w.ctl.kernel & SWITCH_MOVE_ONE_AREA:",
        "if False:",
    ),
    "PR_SET_MEMORY_MERGE is everywhere": (
        "    if w.ctl.kernel & SWITCH_NO_MERGE_ANY:",
        "    if False:",
    ),
    "MADV_COLLAPSE is everywhere": (
        "if a == NULL or a.do == collapse_all and w.ctl.kernel & SWITCH_NO_COLLAPSE:",
        "if a == NULL:",
    ),
    "unmerging walks ranges everywhere": (
        "if w.cursor.strategy == STRATEGY_RANGE and w.ctl.kernel & SWITCH_UNMERGE_RANGE else",
        "if w.cursor.strategy == STRATEGY_RANGE else",
    ),
}
