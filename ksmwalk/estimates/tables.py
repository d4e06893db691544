"""An estimate as structured arrays, which go into a DataFrame as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..gate import shown
from ..ksm.costs import ksmd_seconds
from ..layout import PAGE_SIZE
from ..signatures import RecordArray

if TYPE_CHECKING:
    from .estimate import Estimate

__all__ = ["BY", "FREED_DTYPE", "over_time", "scan_seconds", "table"]

# texts are objects: the longest command line would else set the size of all rows
_TEXT = np.dtype(object)
_COUNTS = [(name, np.int64) for name in ("freed_bytes", "ksm_merging_pages", "ksm_rmap_items", "ksm_zero_pages")]
_DTYPES = {
    "process": np.dtype([
        ("pid", np.int64), ("name", _TEXT), ("command", _TEXT), ("uid", np.int64), ("cgroup", _TEXT), ("container", _TEXT),
        ("anonymous_bytes", np.int64), *_COUNTS, ("ksm_process_profit", np.int64),
    ]),
    "mapping": np.dtype([
        ("pid", np.int64), ("process", np.int64), ("start", np.uint64), ("end", np.uint64), ("name", _TEXT),
        ("anonymous_bytes", np.int64), ("merged_bytes", np.int64), ("freed_bytes", np.int64),
    ]),
    **{
        by: np.dtype([(name, kind), ("processes", np.int64), ("anonymous_bytes", np.int64), *_COUNTS])
        for by, name, kind in (
            ("user", "uid", np.dtype(np.int64)), ("cgroup", "cgroup", _TEXT), ("container", "container", _TEXT)
        )
    },
}  # fmt: skip
#: what a table can have rows of
BY = tuple(_DTYPES)
#: a row a full scan, the first before any: seconds from the beginning, ksmd's CPU seconds of them, and what is free by then
FREED_DTYPE = np.dtype([
    ("scan", np.int64), ("seconds", np.float64), ("cpu_seconds", np.float64), ("freed_bytes", np.int64),
    ("lower_bytes", np.int64), ("upper_bytes", np.int64), ("merged_pages", np.int64),
])  # fmt: skip


def table(estimate: Estimate, by: str = "process") -> RecordArray:
    """What is freed, a row for each process, mapping, user, cgroup or container; the largest first.

    Parameters
    ----------
    estimate : Estimate
    by : {"process", "mapping", "user", "cgroup", "container"}

    Returns
    -------
    structured ndarray
        Sizes in bytes (`*_bytes`), pages as in /proc/PID/ksm_stat; texts are objects. Columns: its `dtype.names`.

    Raises
    ------
    ValueError
        No such table.

    Examples
    --------
    `pandas.DataFrame(estimate.table("mapping"))`.

    Models: see Estimate. Differs: see Estimate.
    """
    if by not in _DTYPES:
        raise ValueError(f"by {shown(by)}: not one of {', '.join(BY)}")
    rows = _rows(estimate, by)
    found = np.zeros(len(rows), _DTYPES[by])
    for name in found.dtype.names or ():
        found[name] = [row[name] for row in rows]
    order = np.argsort(-found["freed_bytes"], kind="stable")
    sorted_rows: RecordArray = found[order]
    return sorted_rows


def _rows(estimate: Estimate, by: str) -> list[dict[str, Any]]:
    if by == "process":
        rows = [{**row, "command": " ".join(row["command"])} for row in estimate.expected.by_process]
    elif by == "mapping":
        rows = [{**row, "merged_bytes": row["merged_pages"] * PAGE_SIZE} for row in estimate.expected.by_mapping]
    else:
        rows = estimate.grouped("uid" if by == "user" else by)
    return [{**row, "anonymous_bytes": row["anonymous_pages"] * PAGE_SIZE} for row in rows]


def scan_seconds(
    estimate: Estimate, pages_to_scan: int | None = None, sleep_millisecs: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How long each full scan takes, and ksmd's CPU time of it.

    Parameters
    ----------
    estimate : Estimate
    pages_to_scan, sleep_millisecs : int, optional
        Other tunables than the estimate was made for.

    Returns
    -------
    (float64[full_scans], float64[full_scans])
        Seconds; seconds of CPU.

    Models: ksmd of Linux 6.18, which sleeps after each batch. Differs: see `Costs`.
    """
    work = estimate.expected.work
    if not len(work):
        return np.zeros(0), np.zeros(0)
    pages = max(1, estimate.knobs["pages_to_scan"] if pages_to_scan is None else pages_to_scan)
    sleep = estimate.knobs["sleep_millisecs"] if sleep_millisecs is None else sleep_millisecs
    work = work.copy()
    # as in `cost_of`: the end is noticed by looking for one page more
    work["batches"] = work["visits"] // pages + 1
    cpu = ksmd_seconds(work, estimate.costs)
    return cpu + work["batches"] * (sleep / 1000), cpu


def over_time(estimate: Estimate) -> RecordArray:
    """What is freed after each full scan, and when that ends under the tunables of the estimate.

    Parameters
    ----------
    estimate : Estimate

    Returns
    -------
    ndarray of FREED_DTYPE, shape (full_scans + 1,)
        Its first row is the state before. lower and upper as in Estimate, on the way there in proportion.

    Models: see Estimate. Differs: see Estimate.
    """
    expected = estimate.expected
    rows = expected.steady.rows
    found = np.zeros(len(rows), FREED_DTYPE)
    found["scan"] = np.arange(len(rows))
    seconds, cpu = scan_seconds(estimate)
    found["seconds"][1 : len(seconds) + 1] = np.cumsum(seconds)
    found["cpu_seconds"][1 : len(cpu) + 1] = np.cumsum(cpu)
    counters = expected.counters
    already = counters["freed_bytes"] - counters["freed_more_bytes"]
    found["freed_bytes"] = (rows["frames_used"][0] - rows["frames_used"]) * PAGE_SIZE + already
    # what nine of ten moments lie between is known of the end; on the way there it is in proportion
    part = (found["freed_bytes"] - already) / max(counters["freed_more_bytes"], 1)
    for name, end in (("lower_bytes", estimate.lower), ("upper_bytes", estimate.upper)):
        found[name] = found["freed_bytes"] + np.rint(part * (end["freed_bytes"] - counters["freed_bytes"])).astype(np.int64)
    found["merged_pages"] = rows["pages_shared"] + rows["pages_sharing"] + rows["ksm_zero_pages"]
    return found
