"""Full scans of the model as rows of work counts, which `costs.ksmd_seconds` turns into time."""

from __future__ import annotations

import numpy as np

from ..host import Host
from ..ksm.costs import WORK_DTYPE
from ..ksm.work import Stretch
from ..layout import Frame
from ..signatures import RecordArray
from ..sources.prefix import mean_prefix

__all__ = ["count_full_scan", "counted_scan", "mean_prefix", "passed_over"]


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

    Models: the work of one full scan of ksmd of Linux 6.18. Differs: an item that is freed and allocated again in it
    counts as there all the time.
    """
    return counted_scan(host, prefix=prefix, pages_to_scan=pages_to_scan)[0]


def counted_scan(host: Host, *, prefix: float = 0.0, pages_to_scan: int | None = None) -> tuple[RecordArray, bool]:
    """The same, and whether the scan has changed nothing that decides what the next one does, but for ages.

    That is so where it skipped no page, made and freed no item, visited every one, and found each either on its stable
    node or came to put it into the unstable tree, where it met nobody; and where the counters, chains, nodes and page
    tables are as before: so none of the latter was on a node. A scan that visits all or some of the same pages finds the
    same. With smart_scan all of these pages must age: none may be a page of KSM's that has no node.
    """
    batch = host.ksm.pages_to_scan if pages_to_scan is None else pages_to_scan
    if batch < 1:
        raise ValueError(f"pages_to_scan {batch}: must be at least 1 for a scan to end")
    host.ksm.scan.reset_work()
    stretch, before = Stretch(host.world), _standing(host)
    host.ksm.full_scan()
    counts = stretch.row()
    row = np.zeros((), WORK_DTYPE)
    for name, value in counts.items():
        if name in (WORK_DTYPE.names or ()):
            row[name] = value
    row["batches"] = counts["visits"] // batch + 1
    row["prefix"] = prefix
    return row, _unchanged(counts) and _standing(host) == before and counts["visits"] == before["items"] and (
        not host.ksm.skips_pages or not _without_node(host)
    )


def passed_over(row: RecordArray, skipped: int, pages_to_scan: int) -> RecordArray:
    """The row of a scan that would skip some pages, after one that skipped none and changed nothing, whose row is given."""
    row = row.copy()
    for name in ("visits", "stable_searches", "unstable_searches", "unstable_items"):
        row[name] -= skipped
    row["skipped"] = skipped
    row["batches"] = row["visits"] // pages_to_scan + 1
    return row


def _standing(host: Host) -> dict[str, int]:
    """What a scan that changes nothing leaves as it is."""
    ksm, ctl = host.ksm, host.world.arrays["ctl"]
    names = (
        "ksm_zero_pages", "pages_unshared", "pages_shared", "pages_sharing", "pages_volatile", "stable_node_dups",
        "stable_node_chains",
    )  # fmt: skip
    return {name: getattr(ksm, name) for name in names} | {
        "items": int(ctl["items_live"][0]),
        "nodes": int(ctl["stable_live"][0]),
        "changes": int(ctl["changes"][0]),
    }


def _unchanged(counts: dict[str, int]) -> bool:
    """Whether every visit found a page on its node, or put it into the unstable tree, where it stayed."""
    done = ("skipped", "first", "freed", "changed", "stable_hits", "merges", "joined", "zeroed", "splits")
    return not any(counts[name] for name in done) and counts["visits"] == counts["merged"] + counts["unstable_items"]


def _without_node(host: Host) -> bool:
    """Whether a page of KSM's has no stable node."""
    arrays = host.world.arrays
    return bool((arrays["f_node"][arrays["f_flags"] & np.uint16(Frame.KSM) != 0] == 0).any())
