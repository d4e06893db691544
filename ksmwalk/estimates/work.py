"""Full scans of the model as rows of work counts, which `costs.ksmd_seconds` turns into time."""

from __future__ import annotations

import numpy as np

from ..host import Host
from ..layout import Frame, ItemFlag, Vm
from ..signatures import RecordArray
from ..sources.prefix import mean_prefix
from .costs import WORK_DTYPE

__all__ = ["count_full_scan", "mean_prefix"]

_STABLE, _HAS_CHECKSUM, _USED = (np.uint8(bit) for bit in (ItemFlag.STABLE, ItemFlag.HAS_CHECKSUM, ItemFlag.USED))


# an age that grows no more
_OLDEST = np.uint8(255)

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
        self.changes = int(arrays["ctl"]["changes"][0])
        self.standing = (
            self.zero, self.unshared, ksm.pages_shared, ksm.pages_sharing, ksm.pages_volatile, ksm.stable_node_dups,
            ksm.stable_node_chains, self.changes, int(arrays["ctl"]["items_live"][0]), int(arrays["ctl"]["stable_live"][0]),
        )  # fmt: skip
        self.items, self.volatile = int(arrays["ctl"]["items_live"][0]), ksm.pages_volatile
        self.heads = int(np.count_nonzero(arrays["f_flags"] & np.uint16(Frame.HEAD)))


class _Items:
    """The rmap_items as they are at the beginning of a scan, and what has become of them."""

    def __init__(self, host: Host):
        self._ctl, self._items = host.world.arrays["ctl"], host.world.arrays["items"]
        nr = self._nr_used()
        self._flags, self._node, self._checksum = np.empty(nr, np.uint8), np.empty(nr, np.int32), np.empty(nr, np.uint64)
        self._age = np.empty(nr, np.uint8)
        self._nodes_before = np.zeros(len(host.world.arrays["nodes"]), bool)
        for start in range(0, nr, _AT_ONCE):
            part, chunk = self._items[start : min(start + _AT_ONCE, nr)], slice(start, min(start + _AT_ONCE, nr))
            self._flags[chunk], self._node[chunk], self._checksum[chunk] = part["flags"], part["node"], part["checksum"]
            self._age[chunk] = part["age"]
            self._nodes_before[self._node[chunk][self._flags[chunk] & _STABLE != 0]] = True

    def _nr_used(self) -> int:
        return int(self._ctl["items_used"][0])

    def compare(self) -> dict[str, int]:
        """Items by what happened to them since: `first`, `freed`, `changed`, `stayed` on a node, `come` to one, `left` one,
        `aged` by one; and `merges`, nodes that were made."""
        counts = dict.fromkeys(("first", "freed", "changed", "stayed", "come", "left", "aged"), 0)
        made = np.zeros_like(self._nodes_before)
        nr = self._nr_used()
        # records used for the first time since were none of these before
        grown = max(0, nr - len(self._flags))
        flags_before, node_before, checksum_before, age_before = (
            np.concatenate([old, np.zeros(grown, old.dtype)]) if grown else old
            for old in (self._flags, self._node, self._checksum, self._age)
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
            counts["left"] += int(np.count_nonzero(was & _STABLE)) - int(np.count_nonzero(stayed))
            aged = part["age"] == np.minimum(age_before[chunk], _OLDEST - 1) + np.uint8(1)
            counts["aged"] += int(np.count_nonzero(aged & (flags & (_USED | _STABLE) == _USED)))
            if come.any():
                counts["come"] += int(np.count_nonzero(come))
                # pages that fork mapped to a KSM page are only noted: they have no checksum and made no node
                made[node[come & noted]] = True
        return counts | {"merges": int(np.count_nonzero(made & ~self._nodes_before))}


def count_full_scan(host: Host, *, prefix: float = 0.0, pages_to_scan: int | None = None) -> RecordArray:
    """Let ksmd make one full scan, and count what it had to do.

    Parameters
    ----------
    host : Host
        With the cursor between two full scans; `host.ksm.scan`'s work counts are set to zero.
    prefix : float
        Bytes, on average, that two different pages that are compared have in common at their front, as far as known.
    pages_to_scan : int, optional
        Visits in a batch, from which `batches` follows; by default the tunable's value.

    Returns
    -------
    ndarray of costs.WORK_DTYPE, shape ()
        One row.

    Raises
    ------
    BadEntryError, ArenaFullError
        As `Ksm.full_scan`.
    ValueError
        `pages_to_scan` is not positive.

    Models: the work of one full scan of ksmd of Linux 6.18. Differs: an item that leaves a KSM page and joins the same
    one again in one scan counts as merged already; one that is freed and allocated again in it, as there all the time.
    """
    return counted_scan(host, prefix=prefix, pages_to_scan=pages_to_scan)[0]


def counted_scan(host: Host, *, prefix: float = 0.0, pages_to_scan: int | None = None) -> tuple[RecordArray, bool]:
    """The same, and whether the scan has changed nothing that decides what the next one does, but for ages.

    That is so where it skipped no page, visited every item, and neither made nor freed one, found no other checksum, no
    item came to a stable node or left one, nodes, chains and page tables are as before, and each page that is not merged was
    put into the unstable tree: it found nobody there. A scan that visits all or some of the same pages finds the same.
    With smart_scan all of these pages must have aged: then none is a page of KSM's that is not on its node.
    """
    batch = host.ksm.pages_to_scan if pages_to_scan is None else pages_to_scan
    if batch < 1:
        raise ValueError(f"pages_to_scan {batch}: must be at least 1 for a scan to end")
    items, before = _Items(host), _Counters(host)
    host.ksm.scan.reset_work()
    host.ksm.full_scan()
    after, found = _Counters(host), items.compare()
    row = _row(before, after, found)
    _add_walk(row, host)
    row["batches"] = row["visits"] // batch + 1
    row["prefix"] = prefix
    nothing = (
        before.standing == after.standing
        and before.heads == after.heads
        and not any(found[name] for name in ("first", "freed", "changed", "come", "left", "merges"))
        and after.skipped == before.skipped
        and after.scanned - before.scanned == after.items
        and after.volatile == 0
        and (not host.ksm.smart_scan or found["aged"] == after.unshared)
    )
    return row, nothing


def passed_over(row: RecordArray, skipped: int, pages_to_scan: int) -> RecordArray:
    """The row of a scan that would skip some pages, after one that skipped none and changed nothing, whose row is given."""
    row = row.copy()
    for name in ("visits", "stable_searches", "unstable_searches", "unstable_items"):
        row[name] -= skipped
    row["skipped"] = skipped
    row["batches"] = row["visits"] // pages_to_scan + 1
    return row


def _row(before: _Counters, after: _Counters, items: dict[str, int]) -> RecordArray:
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


def _add_walk(row: RecordArray, host: Host) -> None:
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
