"""Full scans of the model as rows of work counts, which `costs.ksmd_seconds` turns into time."""

from __future__ import annotations

import numpy as np

from ..host import Host
from ..ksm.costs import WORK_DTYPE
from ..ksm.work import Stretch
from ..signatures import RecordArray
from ..sources.prefix import mean_prefix

__all__ = ["count_full_scan", "mean_prefix"]


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
