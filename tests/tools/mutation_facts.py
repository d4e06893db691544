"""The facts about the kernel that the model follows, and which mutation breaks which; `mutate.py --facts` prints them.

W are facts of the world around KSM, K facts of other kernels and of two nodes. What noticed a mutation when it was last
run with `--save` stands in `mutations_caught.json`: those recordings are shown to it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mutations import MUTATIONS, UNRECORDED

CAUGHT = Path(__file__).with_name("mutations_caught.json")

#: number of a fact: what it says, in a few words
FACTS: dict[str, str] = {
    "W1": "the batch of locked pages of each CPU, of 31 entries",
    "W2": "what adds an entry to it, on which CPU, in which order",
    "W3": "an entry is a reference: no merge, and a node is not stale",
    "W4": "what empties a batch, and of which CPUs",
    "W5": "folios of several pages do not wait in a batch",
    "W6": "fork passes on neither VM_LOCKED nor MCL_FUTURE",
    "W7": "mlock is a store to each page; on fault it brings nothing in",
    "W8": "locked pages merge; advice that locked areas refuse",
    "W9": "run=2 works on the CPU of whoever writes it",
    "W10": "a small page is stored to in place if it is exclusive or has one reference",
    "W11": "a huge page is stored to in place if it is exclusive or mapped once and not pinned",
    "W12": "a page of a folio is stored to in place if the folio is not shared and not held",
    "W13": "two owner slots of a folio say whether it may be shared",
    "W14": "vmsplice pins: no copy when taken, copies after a fork",
    "W15": "DMA pins: taking one is a store, fork copies what is pinned",
    "W16": "a pinned page neither merges nor is split, a pinned KSM page is not stale",
    "W17": "MADV_COLD splits huge pages that it covers in part",
    "W18": "MADV_PAGEOUT without swap splits, and takes what is lazily freed",
    "W19": "MADV_FREE marks what is shared by fork, not what is dirty itself and mapped twice",
    "W20": "MADV_WILLNEED, MADV_REMOVE, and MADV_COLLAPSE of shared memory",
    "W21": "MADV_PAGEOUT takes pages of one mapping, reclaim all that was not accessed",
    "W22": "what is swapped out is absent for ksmd, a KSM page leaves a stale node",
    "W23": "swapped KSM pages come back apart, but for relatives at the same address",
    "W24": "a page of the swap cache merges, and may become the KSM page",
    "W25": "swapoff, run=2, UNMERGEABLE and fork with pages out",
    "W26": "empty pages come back as private ones, huge ones as small ones",
    "W27": "MADV_WILLNEED reads into the swap cache, mlock brings back",
    "W28": "what one pass of khugepaged collapses",
    "W29": "what ksmd sees of what was collapsed",
    "W30": "the size of a new folio",
    "W31": "folios mapped by ptes: split by advice of a part, by the first merge",
    "W32": "the modes of transparent huge pages",
    "W33": "UFFDIO_COPY and ZEROPAGE",
    "W34": "UFFDIO_MOVE moves exclusive pages only, not their items",
    "W35": "protected pages merge, protection goes with the remapping",
    "W36": "a child is not watched, its pages are not protected",
    "W37": "mremap of what is watched",
    "W38": "markers of protected absent pages",
    "W39": "stacks grow",
    "W40": "MREMAP_DONTUNMAP",
    "W41": "an mm lives until its last task is gone",
    "W42": "what process_madvise does to others",
    "W43": "advisor_mode sets pages_to_scan; the minimum is a start",
    "W44": "the step of the advisor",
    "W45": "when the advisor steps, of which times",
    "W46": "the clock of pruning",
    "W47": "a heap grows and shrinks at its end",
    "W50": "what can be seen of memory that is merged already",
    "W51": "what a process owes: merging pages without a mapping",
    "W52": "taking over: nodes, items, chains of what is merged",
    "W53": "with smart scan, unshared and volatile count as one in the steady state",
    "W54": "a node of forked mappings alone takes no newcomer",
    "K1": "which kernels scan address by address",
    "K2": "which kernels unmerge by ranges",
    "K3": "5.10, 6.1: the stable tree is searched before checksums are compared",
    "K4": "5.10, 6.1: an empty page joins a KSM page of zeros first",
    "K5": "5.10, 6.1: zero pages are not tracked",
    "K6": "5.10, 6.1: empty parts of a split huge page stay",
    "K7": "5.10, 6.1: chains of one dup stay, a search takes the first with room",
    "K8": "5.10, 6.1: no smart scan",
    "K9": "6.1 to 6.16: a child starts with its parent's counts",
    "K10": "6.16 to 6.18.15: the first merge of a forked huge page fails",
    "K11": "7.3: a merge forgets checksum and age",
    "K12": "6.1: a PROT_NONE page is no partner",
    "K13": "5.10, 6.1: protected KSM pages are not unmerged",
    "K14": "7.1 and later: a debugger's store into PROT_NONE memory fails",
    "K15": "before 6.17: mremap of several areas is refused",
    "K16": "5.10, 6.1: no PR_SET_MEMORY_MERGE; 5.10: no MADV_COLLAPSE",
    "K17": "which kernels show the KSM bit of every anonymous page",
    "K18": "the time of a scan by addresses grows with the span",
    "K19": "the time of unmerging by addresses grows with the span",
    "K20": "merge_across_nodes=1: nodes play no part",
    "K21": "merge_across_nodes=0: trees of each node",
    "K22": "where a KSM page and a copy of it sit",
    "K23": "a page of the unstable tree that moved is found in its old tree",
    "K24": "a KSM page that moved: waits, finds its place, meets another, is full",
    "K25": "waiting nodes that went stale are dropped at the start of a scan",
    "K26": "writing merge_across_nodes",
    "K27": "what moves pages, and what it refuses",
    "K28": "how placement and moves are given in scenarios",
}


def caught() -> dict[str, str]:
    """What noticed each mutation when it was last run: the name of a recording, or a test with its file."""
    saved: dict[str, str] = json.loads(CAUGHT.read_text())
    return saved


def save(found: dict[str, str]) -> None:
    """Add what noticed mutations to what is kept."""
    known = {name: what for name, what in (caught() | found).items() if name in MUTATIONS}
    # whole at any time: others read it meanwhile
    new = CAUGHT.with_suffix(".new")
    new.write_text(json.dumps(dict(sorted(known.items())), indent=0, ensure_ascii=False) + "\n")
    new.replace(CAUGHT)


def broken_by(fact: str) -> list[str]:
    """The mutations that break a fact."""
    return [name for name, (_, _, *facts) in MUTATIONS.items() if fact in facts]


def table(names: Iterable[str] = tuple(FACTS)) -> str:
    """Facts, the mutations of each, and what noticed them."""
    noticed, lines = caught(), []
    for fact in names:
        lines.append(f"{fact:4} {FACTS[fact]}")
        for name in broken_by(fact):
            why = f" ({UNRECORDED[name]})" if name in UNRECORDED else ""
            lines.append(f"       {name:74}  {noticed.get(name, 'not run')}{why}")
    return "\n".join(lines)
