"""What a full scan had to do, from what it left behind: items before and after it compared, counters subtracted.

Slow, and with two gaps: an item that leaves a KSM page and joins the same one again in one scan counts as merged already;
one that is freed and allocated again in it, as there all the time.
"""

from __future__ import annotations

import numpy as np

from ksmwalk import Host
from ksmwalk.ksm.costs import WORK_DTYPE
from ksmwalk.layout import Frame, ItemFlag, Vm

_STABLE, _HAS_CHECKSUM, _USED = (np.uint8(bit) for bit in (ItemFlag.STABLE, ItemFlag.HAS_CHECKSUM, ItemFlag.USED))


# Items looked at together: few enough for what is made of them to stay in the processor's cache.
_AT_ONCE = 1 << 15


class _Counters:
    """What of a Host's counters is compared between the beginning and the end of a scan."""

    def __init__(self, host: Host):
        ksm, arrays = host.ksm, host.world.arrays
        self.scanned, self.skipped = ksm.pages_scanned, ksm.pages_skipped
        self.zero, self.unshared = ksm.ksm_zero_pages, ksm.pages_unshared
        # what a search of the stable tree meets: a chain once, a content that has no chain once; nodes of pages that
        # nobody maps in marked memory are in chains, and not in pages_shared
        self.contents = max(0, ksm.pages_shared - ksm.stable_node_dups + ksm.stable_node_chains)
        self.pages = ksm.pages_shared
        self.changes = int(arrays["ctl"]["changes"][0])
        self.heads = int(np.count_nonzero(arrays["f_flags"] & np.uint16(Frame.HEAD)))


class _Items:
    """The rmap_items as they are at the beginning of a scan, and what has become of them."""

    def __init__(self, host: Host):
        self._ctl, self._items = host.world.arrays["ctl"], host.world.arrays["items"]
        nr = self._nr_used()
        self._flags, self._node, self._checksum = np.empty(nr, np.uint8), np.empty(nr, np.int32), np.empty(nr, np.uint64)
        self._nodes_before = np.zeros(len(host.world.arrays["nodes"]), bool)
        for start in range(0, nr, _AT_ONCE):
            part, chunk = self._items[start : min(start + _AT_ONCE, nr)], slice(start, min(start + _AT_ONCE, nr))
            self._flags[chunk], self._node[chunk], self._checksum[chunk] = part["flags"], part["node"], part["checksum"]
            self._nodes_before[self._node[chunk][self._flags[chunk] & _STABLE != 0]] = True

    def _nr_used(self) -> int:
        return int(self._ctl["items_used"][0])

    def compare(self) -> dict[str, int]:
        """Items by what happened to them since: `first`, `freed`, `changed`, `stayed` on a node, `come` to one; and
        `merges`, nodes that were made."""
        counts = dict.fromkeys(("first", "freed", "changed", "stayed", "come"), 0)
        made = np.zeros_like(self._nodes_before)
        nr = self._nr_used()
        # records used for the first time since were none of these before
        grown = max(0, nr - len(self._flags))
        flags_before, node_before, checksum_before = (
            np.concatenate([old, np.zeros(grown, old.dtype)]) if grown else old
            for old in (self._flags, self._node, self._checksum)
        )
        for start in range(0, nr, _AT_ONCE):
            chunk = slice(start, min(start + _AT_ONCE, nr))
            part = self._items[chunk]
            flags, node, was = part["flags"].copy(), part["node"].copy(), flags_before[chunk]
            noted = flags & _HAS_CHECKSUM != 0
            other = (was & _HAS_CHECKSUM == 0) | (part["checksum"] != checksum_before[chunk])
            stayed = (flags & was & _STABLE != 0) & (node == node_before[chunk])
            come = (flags & _STABLE != 0) & ~stayed
            counts["changed"] += int(np.count_nonzero(noted & other))
            counts["stayed"] += int(np.count_nonzero(stayed))
            counts["first"] += int(np.count_nonzero(flags & ~was & _USED))
            counts["freed"] += int(np.count_nonzero(was & ~flags & _USED))
            if come.any():
                counts["come"] += int(np.count_nonzero(come))
                # pages that fork mapped to a KSM page are only noted: they have no checksum and made no node
                made[node[come & noted]] = True
        return counts | {"merges": int(np.count_nonzero(made & ~self._nodes_before))}


def count_full_scan(host: Host, batch: int = 100) -> np.ndarray:
    """One full scan, and a row of WORK_DTYPE."""
    items, before = _Items(host), _Counters(host)
    host.ksm.scan.reset_work()
    host.ksm.full_scan()
    row = _row(before, _Counters(host), items.compare())
    _add_walk(row, host)
    row["batches"] = row["visits"] // batch + 1
    return row


def _row(before: _Counters, after: _Counters, items: dict[str, int]) -> np.ndarray:
    merges, changed = items["merges"], items["changed"]
    visits, zeroed = after.scanned - before.scanned, max(0, after.zero - before.zero)
    # each page that a mapping was taken from counts as a change: a merge two, of what fork shared with a KSM page none
    joined = max(0, items["come"] - 2 * merges)
    hits = min(max(0, after.changes - before.changes - 2 * merges - zeroed), joined)
    merged = items["stayed"] + joined - hits
    searches = max(0, visits - merged - changed - zeroed)
    counts = {
        "visits": visits,
        "skipped": after.skipped - before.skipped,
        "merged": merged,
        "first": items["first"],
        "freed": items["freed"],
        "changed": changed,
        "stable_searches": searches,
        "stable_hits": hits,
        "stable_nodes": (before.contents + after.contents) // 2,
        "stable_pages": (before.pages + after.pages) // 2,
        "unstable_searches": max(0, searches - hits),
        "unstable_items": after.unshared + merges,
        "merges": merges,
        "zeroed": zeroed,
        "splits": max(0, before.heads - after.heads),
    }
    row = np.zeros((), WORK_DTYPE)
    for name, value in counts.items():
        row[name] = value
    return row


def _add_walk(row: np.ndarray, host: Host) -> None:
    """Where the pages were found, and what the search for them met on its way."""
    work, arrays = host.ksm.scan.work, host.world.arrays
    areas = int(np.count_nonzero(arrays["vmas"]["flags"][: int(arrays["ctl"]["vmas_used"][0])] & np.uint64(Vm.MERGEABLE)))
    # a page in a table of ptes is found from the one before; one in a huge page by a descent of its own, as the first
    # of an area is
    found, descents = work["found"], int(arrays["work"]["searches"][0])
    row["huge"] = min(max(0, descents - areas), found)
    row["ptes"] = max(0, work["pte"] - (found - int(row["huge"])))
    row["holes"] = work["holes"]
    row["tables"] = max(0, work["callbacks"] - found)
