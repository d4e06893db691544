"""Reasons in words: each answer with the figure that it rests on, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout import PAGE_SIZE
from .why import Reason, Why, longest_skip, refused_after

#: what to do about the flags that keep KSM away, by their letter in VmFlags
LETTERS = {
    "sh": "shared memory", "ms": "shared memory", "pf": "raw frames of a device or of the kernel", "io": "device memory",
    "de": "a device's or the kernel's mapping that must not grow", "ht": "hugetlb", "mm": "frames of several kinds (mixedmap)",
    "dp": "droppable", "?": "flags not known",
}  # fmt: skip
_SHARED = ("sh", "ms")


@dataclass(frozen=True, slots=True)
class Answer:
    """One reason in words.

    Attributes
    ----------
    reason : Reason
    pages : int
    title : str
        In a few words, for the head of a row.
    figure : str
        What it rests on.
    todo : str
        What to do; "" where nothing is to be done.
    """

    reason: Reason
    pages: int
    title: str
    figure: str
    todo: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "reason": self.reason.name.lower(), "pages": self.pages, "bytes": self.pages * PAGE_SIZE,
            "title": self.title, "figure": self.figure, "todo": self.todo,
        }  # fmt: skip


TITLES = {
    Reason.MERGED: "merged",
    Reason.ZERO_PLACED: "merged, zero page",
    Reason.EMPTY: "zero page already",
    Reason.NOT_ELIGIBLE: "not eligible",
    Reason.NOT_ANONYMOUS: "pages of files",
    Reason.NOT_MARKED: "not marked",
    Reason.UNREAD: "could not be read",
    Reason.CHANGING: "changing",
    Reason.OFF: "KSM is off",
    Reason.UNMERGING: "KSM unmerges",
    Reason.REFUSED: "ksmd can't (pinned?)",
    Reason.KHUGEPAGED: "undone (khugepaged)",
    Reason.NOT_SCANNED: "not scanned yet",
    Reason.SECOND_PASS: "waits for next pass",
    Reason.SMART_SCAN: "smart scan skips",
    Reason.LIMIT: "at sharing limit",
    Reason.FORK_SHARED: "shared by fork",
    Reason.UNMARKED_EQUAL: "equal not marked",
    Reason.UNSETTLED: "equal, not merged",
    Reason.UNIQUE: "unique",
    Reason.SWAPPED: "swapped out",
    Reason.NEVER_WRITTEN: "never written",
    Reason.NOT_PRESENT: "not present",
}


def answers(why: Why) -> list[Answer]:
    """All reasons that pages have, those of the most pages first.

    Parameters
    ----------
    why : Why

    Returns
    -------
    list of Answer

    Models: see `why.explain_pages`. Differs: see `why.explain_pages`.
    """
    order = sorted(why.totals.items(), key=lambda one: -one[1])
    return [Answer(reason, pages, TITLES[reason], *_WORDS[reason](why, pages)) for reason, pages in order]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never (pages_to_scan is 0)"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _size(nbytes: int) -> str:
    return f"{nbytes >> 10:,} KiB"


def _pass(why: Why) -> str:
    """How long a pass takes, and from what that follows."""
    figures = why.figures
    if figures["pass_measured"]:
        from_what = "at the speed that pages_scanned shows now"
    else:
        from_what = f"pages_to_scan {figures['pages_to_scan']:,}, sleep_millisecs {figures['sleep_millisecs']:,}"
    return f"a pass of {figures['pass_pages']:,} pages takes {_time(figures['pass_seconds'])} ({from_what})"


def _mine(why: Why) -> list[dict[str, Any]]:
    """The figures of the processes in question."""
    return [why.figures["processes"][why.capture.processes[i].pid] for i in why.about]


def _sum(why: Why, name: str) -> int:
    return sum(one[name] or 0 for one in _mine(why))


def _faster(why: Why) -> str:
    return f"A larger pages_to_scan (now {why.figures['pages_to_scan']:,}), or the advisor (advisor_mode scan-time), is quicker."


def _merged(why: Why, pages: int) -> tuple[str, str]:
    merging, figures = _sum(why, "merging_pages"), why.figures
    words = f"frames that /proc/kpageflags calls KSM's (ksm_merging_pages {merging:,})"
    if any(why.capture.processes[i].ksm is None for i in why.about):
        words = f"the KSM lines of smaps (ksm_merging_pages {merging:,})"
    if since := sum(one.get("merged_since", 0) for one in _mine(why)):
        words += f", {since:,} of them since the first look"
    alone = 0
    for i in why.about:
        one = why.capture.processes[i]
        if one.ksm is not None and one.frame_counts is not None:
            alone += int(np.count_nonzero(one.ksm & (one.frame_counts <= 1)))
    if alone:
        words += f"; {alone:,} have no partner left and save nothing"
    if figures["stable_node_dups"]:
        words += (f"; max_page_sharing {figures['max_page_sharing']:,} keeps several frames of the same content: "
                  f"{figures['stable_node_dups']:,} in {figures['stable_node_chains']:,} chains, machine-wide")  # fmt: skip
    return words, ""


def _not_eligible(why: Why, pages: int) -> tuple[str, str]:
    rows = why.mappings[why.mappings["not_eligible"] > 0]
    by: dict[str, int] = {}
    for row in rows:
        by[str(row["letter"])] = by.get(str(row["letter"]), 0) + int(row["not_eligible"])
    words = [f"{letter} ({LETTERS.get(letter, 'not mergeable')}) {n:,}" for letter, n in sorted(by.items(), key=lambda x: -x[1])]
    todo = "KSM takes private anonymous memory only."
    if any(letter in by for letter in _SHARED):
        todo += " Shared memory of one content can be one mapping of one file instead."
    if "ht" in by:
        todo += " What is to be merged can't be in hugetlb pages: use transparent huge pages."
    return f"VmFlags in smaps: {', '.join(words)}", todo


def _not_marked(why: Why, pages: int) -> tuple[str, str]:
    would = int(why.mappings["would_merge"].sum())
    how = "madvise(MADV_MERGEABLE), or the whole process by prctl(PR_SET_MEMORY_MERGE) (systemd: MemoryKSM=yes)"
    if not would:
        return "no mg in VmFlags; the model merges none of them if it were there", "Nothing: marking them would only cost scans."
    share = f"{would:,} of them ({would / pages:.0%}) would merge if it were there"
    if (others := would - why.figures["would_merge_alone"]) > 0:
        share += f", {others:,} of these only if it were there in other processes too"
    if not (freed := why.figures["would_free"]):
        return (
            f"no mg in VmFlags; {share}, but nothing would come free: fork shares their frames with others already",
            "Nothing: marking them would free no memory.",
        )
    return f"no mg in VmFlags; {share}, and free {_size(freed)}", f"Mark them: {how}."


def _changing(why: Why, pages: int) -> tuple[str, str]:
    comparisons = max(1, why.figures["samples"] - 1)
    seconds = why.figures["seconds_between"]
    changes = 0
    for at, i in enumerate(why.about):
        one = why.capture.processes[i]
        if one.changes is not None:
            changes += int(one.changes[why.reasons[at] == Reason.CHANGING].sum(dtype=np.int64))
    rate = f", at least {changes / seconds:,.3g} stores to pages a second" if seconds else ""
    return (
        f"another content in {changes:,} of {pages * comparisons:,} comparisons within {seconds:.3g} s{rate}",
        "Leave them out (MADV_UNMERGEABLE, or mark only what rests): each visit takes a checksum for nothing.",
    )


def _off(why: Why, pages: int) -> tuple[str, str]:
    if why.figures["run"] == 2:
        return "/sys/kernel/mm/ksm/run is 2: everything is being unmerged", "echo 1 > /sys/kernel/mm/ksm/run"
    return "/sys/kernel/mm/ksm/run is 0; the model merges these", "echo 1 > /sys/kernel/mm/ksm/run"


def _refused(why: Why, pages: int) -> tuple[str, str]:
    elsewhere = _mapped_elsewhere(why)
    pinned = _sum(why, "pinned_bytes")
    enough = refused_after(bool(why.figures["smart_scan"]))
    moved = sum(one.get("refused_moved", 0) for one in _mine(why))
    if moved:
        elsewhere = f"{moved:,} were merged and undone: copies, what they met holds out. {elsewhere}"
    words = (
        f"not merged in {why.figures['second_look_passes']} passes, {enough} are enough. {elsewhere}VmPin of these processes: "
        f"{pinned >> 10:,} KiB. What else holds a frame (O_DIRECT, vmsplice, a batch of mlock) is in no file"
    )
    return words, "Look for direct I/O, io_uring buffers, RDMA or VFIO on this memory: a pinned page never merges."


def _mapped_elsewhere(why: Why) -> str:
    """How many of the pages that are refused have mappings in processes that were not read."""
    some = [one.pfn[one.anon] for one in why.capture.processes if one.pfn is not None]
    if not some:
        return ""
    frames, seen = np.unique(np.concatenate(some), return_counts=True)
    more = known = 0
    for at, i in enumerate(why.about):
        one = why.capture.processes[i]
        if one.frame_counts is not None and one.pfn is not None:
            which = np.flatnonzero(why.reasons[at] == Reason.REFUSED)
            known += len(which)
            more += int(np.count_nonzero(one.frame_counts[which] > seen[np.searchsorted(frames, one.pfn[which])]))
    return f"/proc/kpagecount: {more:,} of {known:,} have mappings beyond those read. " if known else ""


def _khugepaged(why: Why, pages: int) -> tuple[str, str]:
    collapsed = why.figures["khugepaged"].get("pages_collapsed")
    return (
        "parts of huge pages, though ksmd has passed"
        + (f"; khugepaged has made {collapsed:,} huge pages since the machine's start" if collapsed is not None else ""),
        "Take MADV_HUGEPAGE from this memory (MADV_NOHUGEPAGE), or lower khugepaged/max_ptes_shared: what KSM splits it rebuilds.",
    )


def _not_scanned(why: Why, pages: int) -> tuple[str, str]:
    items, searched = _sum(why, "rmap_items"), _sum(why, "searched_pages")
    seconds = why.figures["pass_seconds"]
    until = "never" if seconds is None else f"{_time(seconds)} at most, merged a pass later"
    return f"ksm_rmap_items {items:,} of {searched:,} pages to visit; there in {until}: {_pass(why)}", _faster(why)


def _second(why: Why, pages: int) -> tuple[str, str]:
    seconds = why.figures["pass_seconds"]
    until = "never" if seconds is None else f"within {_time(2 * seconds)}"
    items = _sum(why, "rmap_items")
    words = f"visited (ksm_rmap_items {items:,}); it merges when a second visit finds it unchanged, {until}: {_pass(why)}"
    return words + _pins(why), _faster(why)


def _smart(why: Why, pages: int) -> tuple[str, str]:
    skips = max(longest_skip(one["passes_likely"]) for one in _mine(why))
    seconds = why.figures["pass_seconds"]
    until = "" if seconds is None else f" = {_time((skips + 1) * seconds)}"
    words = (f"smart_scan is 1 (pages_skipped {why.figures['pages_skipped']:,}): a page that did not merge before is passed over, "
             f"up to {skips} passes at a time{until}, two equal ones of different age for longer; {_pass(why)}")  # fmt: skip
    return words + _pins(why), "echo 0 > /sys/kernel/mm/ksm/smart_scan until they are merged."


def _pins(why: Why) -> str:
    pinned = _sum(why, "pinned_bytes")
    return f". VmPin {pinned >> 10:,} KiB: pages that are pinned never merge; --passes tells" if pinned else ""


def _limit(why: Why, pages: int) -> tuple[str, str]:
    limit = why.figures["max_page_sharing"]
    return (
        f"max_page_sharing {limit:,}: all KSM pages of their content are full, and one left over needs a partner of its own",
        "A larger max_page_sharing (can be set while nothing is merged, after run=2).",
    )


def _fork(why: Why, pages: int) -> tuple[str, str]:
    return "all equal pages that were read are one frame already", "Nothing: there is nothing to save."


def _unmarked_equal(why: Why, pages: int) -> tuple[str, str]:
    return (
        f"{pages:,} have equals among what was read, none of them in marked memory",
        "Mark the other memory too: both sides have to ask.",
    )


def _unique(why: Why, pages: int) -> tuple[str, str]:
    others = len(why.capture.processes)
    return (
        f"no equal among {why.capture.nr_pages:,} pages of {others:,} process{'es' if others != 1 else ''} that were read",
        "--near shows those that differ by a few bytes only; --with or --all looks at more processes.",
    )


def _placed(why: Why, pages: int) -> tuple[str, str]:
    return f"ksm_zero_pages {_sum(why, 'zero_pages'):,}; which of the zero pages these are can't be seen", ""


def _never(why: Why, pages: int) -> tuple[str, str]:
    return f"no anonymous memory in the mapping (smaps: Anonymous 0 kB); {_of_mappings(why)}", ""


def _absent(why: Why, pages: int) -> tuple[str, str]:
    return f"not touched, or given back; {_of_mappings(why)}", ""


def _swapped(why: Why, pages: int) -> tuple[str, str]:
    return "Swap lines of smaps", "ksmd does not visit them; they come back apart, and merge again after two visits."


def _of_mappings(why: Why) -> str:
    """How much of the mappings is there."""
    size = int((why.mappings["end"] - why.mappings["start"]).sum()) // PAGE_SIZE
    return f"{int(why.mappings['present'].sum()):,} of {size:,} pages of the mappings are present"


def _said(figure: str, todo: str = "") -> Callable[[Why, int], tuple[str, str]]:
    return lambda why, pages: (figure, todo)


_WORDS: dict[Reason, Callable[[Why, int], tuple[str, str]]] = {
    Reason.MERGED: _merged,
    Reason.ZERO_PLACED: _placed,
    Reason.EMPTY: _said("PAGE_IS_PFNZERO: read and never written, no memory of their own"),
    Reason.NOT_ELIGIBLE: _not_eligible,
    Reason.NOT_ANONYMOUS: _said("pages of the page cache, which all who map the file share anyway"),
    Reason.NOT_MARKED: _not_marked,
    Reason.UNREAD: _said("went, or the kernel refused, while they were read", "Read again, with --stop if they keep going."),
    Reason.CHANGING: _changing,
    Reason.OFF: _off,
    Reason.UNMERGING: _off,
    Reason.REFUSED: _refused,
    Reason.KHUGEPAGED: _khugepaged,
    Reason.NOT_SCANNED: _not_scanned,
    Reason.SECOND_PASS: _second,
    Reason.SMART_SCAN: _smart,
    Reason.LIMIT: _limit,
    Reason.FORK_SHARED: _fork,
    Reason.UNMARKED_EQUAL: _unmarked_equal,
    Reason.UNSETTLED: _said("equal to another marked page, but the model's search does not find it in its steady state"),
    Reason.UNIQUE: _unique,
    Reason.SWAPPED: _swapped,
    Reason.NEVER_WRITTEN: _never,
    Reason.NOT_PRESENT: _absent,
}
