"""All mutations made by hand, those argued to be equivalent, those no recording can show, and the dozen of a pull request.

A hand-made mutation names a piece of text that occurs exactly once in the whole engine, whatever file it stands in, what
it is broken to, and the facts about the kernel that do not hold any more (`mutation_facts.py`).
"""

import mutations_folios
import mutations_kernels
import mutations_loading
import mutations_locks
import mutations_memory
import mutations_merging
import mutations_nodes
import mutations_owners
import mutations_swap
import mutations_time
import mutations_watched

LISTS = (
    mutations_loading, mutations_watched, mutations_merging, mutations_memory, mutations_kernels, mutations_nodes,
    mutations_owners, mutations_folios, mutations_swap, mutations_locks,
    mutations_time,
)  # fmt: skip

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {name: texts for one in LISTS for name, texts in one.MUTATIONS.items()}

#: name: words in the names of the recordings that are to be tried first
FIRST: dict[str, tuple[str, ...]] = {name: getattr(one, "FIRST", ()) for one in LISTS for name in one.MUTATIONS}

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

#: name of a mutation: why no recording of this machine's kernel can show it; a test does
UNRECORDED: dict[str, str] = {
    "an exit lets go of nothing":
        "the stack of a recorded process is shared memory, and its end lets go of the same",
    "what MADV_FREE marked counts for the shrinker's turn while it waits":
        "where that shows the kernel itself does not repeat",
    "run=2 works on ksmd's CPU": "the CPU on which the recorder writes is nobody's to choose",
    **dict.fromkeys(mutations_kernels.TIMED, "the answers are the same, and a recording has no times"),
    "the bits of 7.0.13 do not lie": "a recording shows which pages are KSM's, not the bits",
    "a Host with memory locked on fault can't be saved": "the kernel keeps no Hosts",
    "a Host that locks what is to come can't be saved": "the kernel keeps no Hosts",
    **dict.fromkeys(mutations_loading.MIDDLE, "a recording begins with nothing merged"),
    **dict.fromkeys(mutations_time.ADVISOR, "a recording steps: its scans take no time; recorded are runs of the advisor"),
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
