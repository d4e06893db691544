"""Full scans of the model as rows of work counts, which `costs.ksmd_seconds` turns into time."""

from __future__ import annotations

import numpy as np

from ..host import Host
from ..layout import Frame, ItemFlag, Vm
from ..signatures import AnyArray, RecordArray, U8Array
from .costs import WORK_DTYPE

__all__ = ["count_full_scan", "mean_prefix"]

_STABLE, _HAS_CHECKSUM, _USED = (np.uint8(bit) for bit in (ItemFlag.STABLE, ItemFlag.HAS_CHECKSUM, ItemFlag.USED))


class _Moment:
    """What is to be compared of a Host between the beginning and the end of a scan."""

    def __init__(self, host: Host):
        ksm, arrays = host.ksm, host.world.arrays
        used = int(arrays["ctl"]["items_used"][0])
        items = arrays["items"][:used]
        self.flags, self.checksum, self.node = items["flags"].copy(), items["checksum"].copy(), items["node"].copy()
        self.scanned, self.skipped = ksm.pages_scanned, ksm.pages_skipped
        self.zero, self.unshared = ksm.ksm_zero_pages, ksm.pages_unshared
        # what a search of the stable tree meets: a chain once, a content that has no chain once
        self.contents = ksm.pages_shared - ksm.stable_node_dups + ksm.stable_node_chains
        self.changes = int(arrays["ctl"]["changes"][0])
        self.heads = int(np.count_nonzero(arrays["f_flags"] & np.uint16(Frame.HEAD)))

    def stable(self) -> AnyArray:
        """Which items are on a stable node: bool[items]."""
        on_node: AnyArray = self.flags & _STABLE != 0
        return on_node


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
    batch = host.ksm.pages_to_scan if pages_to_scan is None else pages_to_scan
    if batch < 1:
        raise ValueError(f"pages_to_scan {batch}: must be at least 1 for a scan to end")
    before = _Moment(host)
    host.ksm.scan.reset_work()
    host.ksm.full_scan()
    row = _row(before, _Moment(host))
    _add_walk(row, host)
    row["batches"] = row["visits"] // batch + 1
    row["prefix"] = prefix
    return row


def _row(before: _Moment, after: _Moment) -> RecordArray:
    row = np.zeros((), WORK_DTYPE)
    # records used for the first time in this scan were none of these before
    new = len(after.flags) - len(before.flags)
    flags = np.append(before.flags, np.zeros(new, before.flags.dtype))
    checksum = np.append(before.checksum, np.zeros(new, before.checksum.dtype))
    node = np.append(before.node, np.zeros(new, before.node.dtype))
    noted = after.flags & _HAS_CHECKSUM != 0
    changed = noted & ((flags & _HAS_CHECKSUM == 0) | (checksum != after.checksum))
    on_node, was_on_node = after.stable(), flags & _STABLE != 0
    stayed = on_node & was_on_node & (node == after.node)
    come = on_node & ~stayed
    nodes = np.zeros(1 + int(max(node.max(initial=0), after.node.max(initial=0))), bool)
    nodes[node[was_on_node]] = True
    made = np.zeros_like(nodes)
    # pages that fork mapped to a KSM page are only noted: they have no checksum and made no node
    made[after.node[come & noted]] = True
    merges = int(np.count_nonzero(made & ~nodes))
    row["visits"] = after.scanned - before.scanned
    row["skipped"] = after.skipped - before.skipped
    used, was_used = after.flags & _USED != 0, flags & _USED != 0
    row["first"], row["freed"] = np.count_nonzero(used & ~was_used), np.count_nonzero(was_used & ~used)
    row["changed"] = np.count_nonzero(changed)
    row["zeroed"] = max(0, after.zero - before.zero)
    row["merges"] = merges
    row["splits"] = max(0, before.heads - after.heads)
    # each page that a mapping was taken from counts as a change: a merge two, of what fork shared with a KSM page none
    joined = np.count_nonzero(come) - 2 * merges
    row["stable_hits"] = min(max(0, after.changes - before.changes - 2 * merges - row["zeroed"]), max(0, joined))
    row["merged"] = np.count_nonzero(stayed) + max(0, joined - row["stable_hits"])
    searches = row["visits"] - row["merged"] - row["changed"] - row["zeroed"]
    row["stable_searches"] = max(0, searches)
    row["stable_nodes"] = (before.contents + after.contents) // 2
    row["unstable_searches"] = max(0, row["stable_searches"] - row["stable_hits"])
    row["unstable_items"] = after.unshared + merges
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


def mean_prefix(pages: U8Array, sample: int = 256) -> float:
    """How many bytes two different pages that a search compares have in common at their front, on average.

    Parameters
    ----------
    pages : ndarray of uint8, shape (n, 4096)
        Different contents, in byte order.
    sample : int
        Contents that are searched for, evenly spread over all.

    Returns
    -------
    float
        For `count_full_scan`; 0 where there are fewer than two contents.

    Models: searches of a balanced tree of all contents. Differs: the tree of a scan is smaller while it grows.
    """
    n, total, compared = len(pages), 0, 0
    for wanted in np.unique(np.linspace(0, max(n - 1, 0), min(sample, n)).astype(np.int64)).tolist():
        low, high = 0, n
        while low < high:
            middle = (low + high) // 2
            if middle == wanted:
                break
            unlike = pages[middle] != pages[wanted]
            total += int(unlike.argmax())
            compared += 1
            low, high = (middle + 1, high) if middle < wanted else (low, middle)
    return total / compared if compared else 0.0
