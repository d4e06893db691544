"""Policies side by side: what each frees of the same memory, and what that takes, full scan by full scan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..host import Host
from ..layout import Frame
from ..policies import Policy
from ..signatures import RecordArray
from .costs import Costs, ksmd_seconds
from .work import count_full_scan

__all__ = ["SCAN_DTYPE", "follow"]

#: What a policy has come to at the end of each full scan.
SCAN_DTYPE = np.dtype(
    [
        # pages freed then
        ("freed", np.int64),
        # pages looked at and skipped by smart scan, so far
        ("examined", np.int64),
        ("skipped", np.int64),
        # merges broken by writes, so far
        ("broken", np.int64),
        # CPU time of ksmd, and time with its sleep, so far
        ("cpu_seconds", np.float64),
        ("seconds", np.float64),
    ]
)


def _merged(host: Host) -> int:
    """Mappings of KSM pages and of zero pages that KSM placed."""
    arrays = host.world.arrays
    merged = arrays["f_flags"] & np.uint16(Frame.KSM) != 0
    return int(arrays["f_mapcount"][merged].sum(dtype=np.int64)) + host.ksm.ksm_zero_pages


def follow(
    host: Host,
    policy: Policy | None,
    *,
    scans: int,
    costs: Costs | None = None,
    write: Callable[[Host, int], None] = lambda host, scan: None,
) -> RecordArray:
    """Let a policy work for some full scans, and see what it comes to.

    Parameters
    ----------
    host : Host
        Between two full scans. The policy stays plugged in.
    policy : Policy, optional
        None: Linux 6.18.
    scans : int
    costs : Costs, optional
        What work costs; by default the stored ones.
    write : callable of (Host, int)
        What happens before each full scan, which are numbered from 0 on.

    Returns
    -------
    ndarray of SCAN_DTYPE, shape (scans,)
        All counted from the beginning; `freed` as it is at the end of each.

    Raises
    ------
    BadEntryError, ArenaFullError
        As `Ksm.full_scan`; what a method of the policy raises.

    Models: nothing of Linux, it only calls what does. Differs: nothing known.
    """
    costs = Costs() if costs is None else costs
    ksm = host.ksm
    ksm.policy = policy
    rows = np.zeros(scans, SCAN_DTYPE)
    so_far = np.zeros((), SCAN_DTYPE)
    for scan in range(scans):
        before = _merged(host)
        write(host, scan)
        so_far["broken"] += max(0, before - _merged(host))
        pages, sleep = ksm.pace()
        at_once = ksm.compared_at_once
        work = count_full_scan(host, pages_to_scan=max(1, pages))
        # what is compared at once is counted as noted only
        work["stable_searches"] += ksm.compared_at_once - at_once
        work["unstable_searches"] = max(0, work["stable_searches"] - work["stable_hits"])
        seconds = float(ksmd_seconds(work, costs))
        so_far["examined"] += work["visits"]
        so_far["skipped"] += work["skipped"]
        so_far["cpu_seconds"] += seconds
        so_far["seconds"] += seconds + int(work["batches"]) * sleep / 1e3
        so_far["freed"] = ksm.pages_sharing + ksm.ksm_zero_pages
        rows[scan] = so_far
    return rows
