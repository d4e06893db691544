"""ksmd let run until nothing changes any more: the state that an estimate is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import KsmwalkError
from ..gate import counted, shown
from ..host import Host
from ..layout import ItemFlag
from ..signatures import RecordArray

#: scans without a change after which a state counts as steady
SCANS = 3
#: what has to stand still, by the names of /sys/kernel/mm/ksm; rmap_items are the sum over all processes
WATCHED = (
    "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages", "stable_node_chains",
    "stable_node_dups", "rmap_items",
)  # fmt: skip
#: a row a full scan: the counters after it, frames in use
ROW_DTYPE = np.dtype([(name, np.int64) for name in (*WATCHED, "general_profit", "pages_skipped", "frames_used")])
_SKIPPED = (ROW_DTYPE.names or ()).index("pages_skipped")
#: up to which age a visit of smart scan is followed by how many skips, and by how many of older pages
SKIPS, MOST_SKIPS = ((3, 1), (5, 2), (8, 4)), 8


class NeverSteady(KsmwalkError, RuntimeError):
    """The counters went on changing for as many scans as were allowed."""


@dataclass(slots=True)
class Steady:
    """A Host in its steady state.

    Attributes
    ----------
    counters : dict of str to int
        `WATCHED`, general_profit (bytes) and full_scans (those of this run). With smart_scan, pages_unshared and
        pages_volatile are those of a scan that skips nothing.
    rows : ndarray of ROW_DTYPE, shape (full_scans + 1,)
        The state before, and after each scan.
    settled : int
        Scans after which nothing changed any more: full_scans less `SCANS`.
    """

    counters: dict[str, int]
    rows: RecordArray
    settled: int

    def __repr__(self) -> str:
        return f"<Steady, settled after {counted(self.settled, 'full scan')}: pages_sharing {self.counters['pages_sharing']:,}>"


def state(host: Host) -> dict[str, int]:
    """The counters of a Host now: those of `WATCHED`, and general_profit in bytes.

    Parameters
    ----------
    host : Host

    Returns
    -------
    dict of str to int

    Models: /sys/kernel/mm/ksm of Linux 6.18. Differs: nothing known.
    """
    counters = dict(host.ksm._counted())
    counters["rmap_items"] = int(host.world.arrays["ctl"]["items_live"][0])
    return {name: counters[name] for name in (*WATCHED, "general_profit")}


def _row(host: Host) -> tuple[int, ...]:
    return (*state(host).values(), host.ksm.pages_skipped, host.frames_used)


def _skipped_nothing(rows: list[tuple[int, ...]]) -> dict[str, int] | None:
    """pages_unshared and pages_volatile as scans leave them that skip nothing, if two of those of the steady state were
    such and found what was there before; None where that has to be tried."""
    some = np.array(rows[-1 - SCANS :], ROW_DTYPE)
    still = np.ones(SCANS, bool)
    for name in (*WATCHED, "pages_skipped", "frames_used"):
        still &= some[name][1:] == some[name][:-1]
    if np.count_nonzero(still[:2]) < 2:
        return None
    return {name: int(some[name][1]) for name in ("pages_unshared", "pages_volatile")}


class Ages:
    """How often smart scan skips the pages that are not merged, scan after scan, while these stay as they are.

    Parameters
    ----------
    host : Host
        After a scan that changed nothing, as `work.counted_scan` tells it.

    Models: smart_scan of Linux 6.18: a page that is not KSM's ages with each scan, its first three visits are not followed
    by skips, later ones by 1, 2, 4 or 8. Differs: nothing known.
    """

    def __init__(self, host: Host):
        ctl, items = host.world.arrays["ctl"], host.world.arrays["items"]
        items = items[: int(ctl["items_used"][0])]
        mine = items["flags"] & np.uint8(ItemFlag.USED | ItemFlag.STABLE) == ItemFlag.USED
        ages = items["age"][mine].astype(np.int64) << 8 | items["skips"][mine]
        values, counts = np.unique(ages, return_counts=True)
        self.pages = [(value >> 8, value & 255, count) for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
        self.smart = host.ksm.skips_pages

    def scan(self) -> int:
        """How many pages one more scan skips."""
        if not self.smart:
            return 0
        skipped, after = 0, []
        for age, skips, count in self.pages:
            if age >= 3 and skips:
                skipped += count
                skips -= 1
            elif age >= 3:
                skips = next((n for until, n in SKIPS if age <= until), MOST_SKIPS)
            after.append((min(age + 1, 255), skips, count))
        self.pages = after
        return skipped


def run_to_steady(
    host: Host,
    *,
    limit: int = 2000,
    scan: Callable[[Host], object] = lambda host: host.ksm.full_scan(),
    each: Callable[[int], object] = lambda scans: None,
    nothing: Callable[[], bool] = lambda: False,
    passed: Callable[[int], object] = lambda skipped: None,
) -> Steady:
    """Let ksmd scan until nothing has changed over three full scans.

    Parameters
    ----------
    host : Host
        With the cursor between two full scans.
    limit : int
        Scans at most.
    scan : callable of Host
        Makes one full scan.
    each : callable of int
        Told how many scans there have been.
    nothing : callable
        Whether the last scan changed nothing, as `work.counted_scan` tells it: the scans after it are not made, what they
        would find is known. The Host is left as it is then, with ages and counts of scans as of the last one made.
    passed : callable of int
        Told for each scan that is not made how many pages it would skip.

    Returns
    -------
    Steady

    Raises
    ------
    NeverSteady
        The limit was reached.
    BadEntryError, ArenaFullError
        As `Ksm.full_scan`.

    Models: ksmd of Linux 6.18 on memory that stands still. Differs: nothing known.
    """
    rows = [_row(host)]
    if not host.ksm.registered:
        return Steady({**state(host), "full_scans": 0}, np.array(rows, ROW_DTYPE), 0)
    last, since = None, 0
    smart = host.ksm.skips_pages
    known: dict[str, int] | None = None
    while since < SCANS:
        if len(rows) > limit:
            raise NeverSteady(f"not steady after {limit} full scans: {shown(dict(zip(WATCHED, rows[-1], strict=False)))}")
        scan(host)
        rows.append(_row(host))
        each(len(rows) - 1)
        now = state(host)
        if smart:  # a page that was skipped counts as volatile: only the sum stands still
            now["pages_unshared"] += now.pop("pages_volatile")
        now.pop("general_profit")
        since = since + 1 if now == last else 0
        last = now
        if since and len(rows) + SCANS - since <= limit + 1 and nothing():
            known = {name: rows[-1][WATCHED.index(name)] for name in ("pages_unshared", "pages_volatile")}
            _pass_over(host, SCANS - since, rows, each, passed)
            break
    final = dict(zip((*WATCHED, "general_profit"), rows[-1], strict=False))
    counters = {**final, "full_scans": len(rows) - 1}
    if smart and (known := known or _skipped_nothing(rows)) is not None:
        counters |= known
    elif smart:
        host.ksm.smart_scan = 0
        host.ksm.full_scan()
        host.ksm.smart_scan = 1
        after = state(host)
        for name in ("pages_unshared", "pages_volatile"):
            counters[name] = after[name]
    return Steady(counters, np.array(rows, ROW_DTYPE), len(rows) - 1 - SCANS)


def _pass_over(
    host: Host, scans: int, rows: list[tuple[int, ...]], each: Callable[[int], object], passed: Callable[[int], object]
) -> None:
    """Add the rows of scans after one that changed nothing, without making them."""
    ages, still = Ages(host), dict(zip(ROW_DTYPE.names or (), rows[-1], strict=True))
    for _ in range(scans):
        skipped = ages.scan()
        row = {**still, "pages_unshared": still["pages_unshared"] - skipped, "pages_volatile": skipped}
        row["pages_skipped"] = rows[-1][_SKIPPED] + skipped
        rows.append(tuple(row.values()))
        passed(skipped)
        each(len(rows) - 1)
