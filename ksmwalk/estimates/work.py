"""Full scans of the model as rows of work counts, which `costs.ksmd_seconds` turns into time."""

from __future__ import annotations

import numpy as np

from ..host import Host
from ..ksm.costs import WORK_DTYPE
from ..ksm.work import Stretch
from ..layout import ItemFlag
from ..signatures import RecordArray
from ..sources.prefix import mean_prefix

__all__ = ["count_full_scan", "mean_prefix"]

_STABLE, _USED = np.uint8(ItemFlag.STABLE), np.uint8(ItemFlag.USED)
# an age that grows no more
_OLDEST = np.uint8(255)


class _Items:
    """What of the rmap_items at the beginning of a scan tells whether anything has become of them."""

    def __init__(self, host: Host):
        self._ctl, self._items = host.world.arrays["ctl"], host.world.arrays["items"]
        items = self._items[: int(self._ctl["items_used"][0])]
        self._flags, self._node, self._age = items["flags"].copy(), items["node"].copy(), items["age"].copy()

    def stand(self, aged: int | None) -> bool:
        """Whether each is on the stable node that it was on, or on none; and so many others have become one scan older."""
        items = self._items[: len(self._flags)]
        flags, stable = items["flags"], self._flags & _STABLE != 0
        if not np.array_equal(stable, flags & _STABLE != 0) or np.any(stable & (items["node"] != self._node)):
            return False
        older = items["age"] == np.minimum(self._age, _OLDEST - 1) + np.uint8(1)
        return aged is None or int(np.count_nonzero(older & (flags & (_USED | _STABLE) == _USED))) == aged


def _standing(host: Host) -> tuple[int, ...]:
    """Counters that stand still where nothing changes."""
    ksm, ctl = host.ksm, host.world.arrays["ctl"]
    return (
        ksm.ksm_zero_pages, ksm.pages_unshared, ksm.pages_shared, ksm.pages_sharing, ksm.pages_volatile, ksm.stable_node_dups,
        ksm.stable_node_chains, *(int(ctl[name][0]) for name in ("changes", "items_live", "stable_live")),
    )  # fmt: skip


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
    batch = host.ksm.pages_to_scan if pages_to_scan is None else pages_to_scan
    if batch < 1:
        raise ValueError(f"pages_to_scan {batch}: must be at least 1 for a scan to end")
    host.ksm.scan.reset_work()
    stretch = Stretch(host.world)
    host.ksm.full_scan()
    counts = stretch.row()
    row = np.zeros((), WORK_DTYPE)
    for name, value in counts.items():
        if name != "scans":
            row[name] = value
    row["batches"] = counts["visits"] // batch + 1
    row["prefix"] = prefix
    return row


def counted_scan(host: Host, *, prefix: float = 0.0, pages_to_scan: int | None = None) -> tuple[RecordArray, bool]:
    """The same, and whether the scan has changed nothing that decides what the next one does, but for ages.

    That is so where it skipped no page, visited every item, and neither made nor freed one, found no other checksum, no
    item came to a stable node or left one, nodes, chains and page tables are as before, and each page that is not merged was
    put into the unstable tree: it found nobody there. A scan that visits all or some of the same pages finds the same.
    With smart_scan all of these pages must have aged: then none is a page of KSM's that is not on its node.
    """
    items, before = _Items(host), _standing(host)
    row = count_full_scan(host, prefix=prefix, pages_to_scan=pages_to_scan)
    ksm = host.ksm
    nothing = (
        before == _standing(host)
        and not any(row[name] for name in ("first", "freed", "changed", "merges", "splits", "skipped"))
        and int(row["visits"]) == int(host.world.arrays["ctl"]["items_live"][0])
        and ksm.pages_volatile == 0
        and items.stand(ksm.pages_unshared if ksm.smart_scan else None)
    )
    return row, bool(nothing)


def passed_over(row: RecordArray, skipped: int, pages_to_scan: int) -> RecordArray:
    """The row of a scan that would skip some pages, after one that skipped none and changed nothing, whose row is given."""
    row = row.copy()
    for name in ("visits", "stable_searches", "unstable_searches", "unstable_items"):
        row[name] -= skipped
    row["skipped"] = skipped
    row["batches"] = row["visits"] // pages_to_scan + 1
    return row
