"""The scan-time advisor: how many pages a batch the next full scan is given, from how long the last one took."""

from __future__ import annotations

#: percent of a CPU that the advisor leaves ksmd however little it may use; no knob of the kernel's
LEAST_CPU = 10


def advise(
    pages: int, change: int, last_s: int, scan_ms: int, cpu_ms: int, knobs: dict[str, int]
) -> tuple[int, int, int]:
    """Work out pages_to_scan for the next scan from how long the last one took.

    A scan that took twice the target asks for twice the pages in a batch. That is weighted with how scan times have
    been changing (in percent, 3 parts in 10 the newest: a scan twice as long as the one before counts 200), kept below
    what advisor_max_cpu allows at the CPU time just seen, above what 10 percent of a CPU would do, and below the
    advisor's maximum. Its minimum is only where it starts. All of it in integers that are cut off, not rounded.

    Parameters
    ----------
    pages : int
        pages_to_scan in force during the scan.
    change : int
        The weighted change so far, percent; 0 after the advisor was switched on.
    last_s : int
        Seconds the scan before took, 0 if there was none.
    scan_ms, cpu_ms : int
        Milliseconds since the scan began, and CPU milliseconds that ksmd has used since the scan before it ended, or
        since it was started if none has ended with the advisor on.
    knobs : dict
        `max_cpu` (percent), `max_pages`, `target` (seconds).

    Returns
    -------
    (int, int, int)
        pages_to_scan for the next scan; the weighted change; the scan's time in seconds.

    Examples
    --------
    The first scan after switching it on, where all of ksmd's CPU time since it was started counts, and the two after:

    >>> knobs = {"target": 200, "max_cpu": 70, "max_pages": 30000}
    >>> advise(500, 0, 0, 1500, 92_920, knobs)
    (10, 30, 1)
    >>> advise(10, 30, 1, 1500, 60, knobs)
    (10, 51, 1)
    >>> advise(10, 51, 1, 1500, 0, knobs)
    (100, 65, 1)

    Models: the scan-time advisor of Linux 6.18. Differs: nothing known.
    """
    scan_s = max(1, scan_ms // 1000)
    cpu_percent = max(1, 100 * cpu_ms // (1000 * scan_s))
    of_target = max(1, 100 * knobs["target"] // scan_s)
    newest = max(1, 100 * scan_s // last_s) if last_s else 100
    change = (70 * change + 30 * newest) // 100
    new = pages * 100 // of_target * change // 100
    per_percent = max(1, pages // cpu_percent)
    new = max(min(new, per_percent * knobs["max_cpu"]), per_percent * LEAST_CPU)
    return min(new, knobs["max_pages"]), change, scan_s
