"""Full scans of the model as rows of work counts, which `costs.ksmd_seconds` turns into time."""

from __future__ import annotations

import numpy as np

from ..host import Host
from ..ksm.ksmd import Ksm
from ..layout import Frame, ItemFlag
from ..signatures import AnyArray, RecordArray
from .costs import WORK_DTYPE

__all__ = ["count_full_scan"]

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
    return _row(before, _Moment(host), host.ksm, prefix, batch)


def _row(before: _Moment, after: _Moment, ksm: Ksm, prefix: float, batch: int) -> RecordArray:
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
    row["merged"] = np.count_nonzero(stayed) + np.count_nonzero(come & ~noted)
    row["zeroed"] = max(0, after.zero - before.zero)
    searches = row["visits"] - row["merged"] - row["changed"] - row["zeroed"]
    row["stable_searches"] = max(0, searches)
    row["merges"] = merges
    row["stable_hits"] = max(0, np.count_nonzero(come & noted) - 2 * merges)
    row["stable_nodes"] = (before.contents + after.contents) // 2
    row["unstable_searches"] = max(0, row["stable_searches"] - row["stable_hits"])
    row["unstable_items"] = after.unshared + merges
    row["splits"] = max(0, before.heads - after.heads)
    _add_walk(row, ksm)
    row["batches"] = row["visits"] // batch + 1
    row["prefix"] = prefix
    return row


def _add_walk(row: RecordArray, ksm: Ksm) -> None:
    """What the search for pages met on its way beside them."""
    work = ksm.scan.work
    row["ptes"] = max(0, work["pte"] - work["found"])
    row["holes"] = work["holes"]
    row["tables"] = max(0, work["callbacks"] - work["found"])
