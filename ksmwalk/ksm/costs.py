"""What ksmd's work costs in CPU time: nanoseconds by kind of work, measured on this machine or stored ones."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import KsmwalkError
from ..gate import shown
from ..layout.whole import write_whole
from ..signatures import RecordArray

__all__ = ["FIELDS", "WORK_DTYPE", "BadCosts", "Costs", "default_path", "design", "ksmd_seconds", "nanoseconds"]

VERSION = 3
MEASURED, STORED = "measured here", "stored"
_MOST_FILE = 1 << 16
_MOST_NS = 1e12

#: Work of one full scan of ksmd, a row a scan. All are counts within that scan, of pages unless said otherwise.
WORK_DTYPE = np.dtype(
    [
        # pages looked at: what the scan adds to pages_scanned
        ("visits", np.int64),
        # pages that smart scan passed over: what it adds to pages_skipped
        ("skipped", np.int64),
        # pages among these two that were found in huge pages
        ("huge", np.int64),
        # visits of pages that are KSM's already; nothing is done about them
        ("merged", np.int64),
        # rmap_items allocated: pages never seen before
        ("first", np.int64),
        # rmap_items freed: pages that are no longer there, or became the zero page
        ("freed", np.int64),
        # visits that ended with noting a checksum that was another one; first visits are among them
        ("changed", np.int64),
        # searches of the stable tree, those of them that found the content, and contents in the tree, mean of the scan
        ("stable_searches", np.int64),
        ("stable_hits", np.int64),
        ("stable_nodes", np.int64),
        # KSM pages, mean of the scan: more than contents where some have chains
        ("stable_pages", np.int64),
        # searches of the unstable tree, and items put into it by the end of the scan (it is empty at its beginning)
        ("unstable_searches", np.int64),
        ("unstable_items", np.int64),
        # pages that became KSM pages together with the one found in the unstable tree: pairs
        ("merges", np.int64),
        # pages mapped to the shared zero page
        ("zeroed", np.int64),
        # huge pages split
        ("splits", np.int64),
        # on the way to the next page: ptes passed, empty entries above them jumped, and tables of ptes entered for them
        ("ptes", np.int64),
        ("holes", np.int64),
        ("tables", np.int64),
        # times that ksmd woke up
        ("batches", np.int64),
        # bytes, on average, that two pages compared in a search have in common at their front; 0 where it is not known
        ("prefix", np.float64),
    ]
)


class BadCosts(KsmwalkError, ValueError):
    """A file of costs that can't be used; the text names the file and the place in it."""


def _cost(doc: str, stored: float) -> Any:
    return field(default=stored, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class Costs:
    """What each kind of work costs ksmd, in nanoseconds of CPU.

    Without arguments: the stored ones, measured on another machine. Each attribute that ends in `_ns` has its
    documentation in `FIELDS`. One cost that never comes without another may be 0 and the other so much higher.

    Attributes
    ----------
    source : str
        "measured here", or "stored".
    machine, release, date : str
        Processor, kernel and day (ISO 8601) of the measurement.
    near_levels : float
        Levels of a tree, from its root, that `*_near_ns` is the cost of; the deeper ones, which the processor's
        caches don't hold, cost `*_far_ns` besides.
    residual : float
        Largest relative difference between a scan that was measured and what these costs say of it; 0 if not known.

    Models: the CPU time of ksmd of Linux 6.18. Differs: a sum over counts; caches are known by the size of the trees
    only, other load on the machine not at all.
    """

    scan_ns: float = _cost("a full scan, whatever is in it", 25_000)
    batch_ns: float = _cost("a time that ksmd wakes up", 15_000)
    page_ns: float = _cost("finding a page, whether it is then visited or skipped", 233)
    small_ns: float = _cost("the same, added where the page is not part of a huge page", 17)
    merged_ns: float = _cost("seeing that a page is KSM's already", 0)
    merged_level_ns: float = _cost("the same, added for each level of the stable tree", 6.9)
    checksum_ns: float = _cost("the checksum of a page, and what else each visit of one that is not KSM's takes", 669)
    checksum_small_ns: float = _cost("the same, added where the page is not part of a huge page", 0)
    item_ns: float = _cost("allocating an rmap_item", 0)
    freed_ns: float = _cost("freeing an rmap_item", 76)
    stable_near_ns: float = _cost("a level of the stable tree", 158)
    stable_far_ns: float = _cost("a level of the stable tree beyond the caches, added", 133)
    unstable_near_ns: float = _cost("a level of the unstable tree", 157)
    unstable_far_ns: float = _cost("a level of the unstable tree beyond the caches, added", 413)
    unstable_small_ns: float = _cost("a level of the unstable tree, added where pages are not parts of huge ones", 118)
    dup_ns: float = _cost("a further node of a chain looked at, at each level of the stable tree", 60)
    cold_ns: float = _cost("a level of either tree that was pushed out of the caches between two batches, added", 190)
    read_start_ns: float = _cost("a batch that reads many pages: what is slow at its beginning", 95_000)
    search_start_ns: float = _cost("a batch that searches trees: what is slow at its beginning", 20_000)
    merge_start_ns: float = _cost("a batch that merges many pages: what is slow at its beginning", 0)
    byte_ns: float = _cost("a byte compared in vain at a level", 0.111)
    hit_ns: float = _cost("merging a page with a KSM page", 1_970)
    merge_ns: float = _cost("merging two pages into a new KSM page", 695)
    zero_ns: float = _cost("merging an empty page with the zero page", 1_730)
    split_ns: float = _cost("splitting a huge page", 226_000)
    pte_ns: float = _cost("a pte passed on the way to the next page", 2.2)
    hole_ns: float = _cost("an empty entry above the ptes jumped on the way", 4.5)
    table_ns: float = _cost("a table of ptes entered on the way", 0)
    near_levels: float = 12.5
    source: str = STORED
    machine: str = "AMD EPYC of 2017, 2 processors of a virtual machine; how batches begin: Xeon of 2024"
    release: str = "6.18.44"
    date: str = "2026-11-29"
    residual: float = 0.0

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name in _TEXTS:
                if not isinstance(value, str):
                    raise ValueError(f"{one.name} {shown(value)}: must be a text")
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{one.name} {shown(value)}: must be a number")
            if not 0 <= value <= _MOST_NS:
                raise ValueError(f"{one.name} {shown(value)}: must be from 0 to {_MOST_NS:g}")
        if self.source not in (MEASURED, STORED):
            raise ValueError(f"source {shown(self.source)}: must be {MEASURED!r} or {STORED!r}")

    def vector(self) -> NDArray[np.float64]:
        """The costs in the order of the columns of `design`: float64[len(FIELDS)], nanoseconds."""
        return np.array([getattr(self, name) for name in FIELDS], np.float64)

    def scaled(self, factor: float) -> Self:
        """The costs of a machine that takes so many times as long for everything."""
        return dataclasses.replace(self, **{name: getattr(self, name) * factor for name in FIELDS})

    # ---------------------------------------------------------- on disk

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the costs as JSON, whole or not at all.

        Parameters
        ----------
        path : path, optional
            `default_path()` by default, whose directory is made.

        Returns
        -------
        Path
            Where they are.

        Raises
        ------
        OSError
            It can't be written there; what was there before is as it was.
        """
        target = default_path() if path is None else Path(path)
        if path is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": "ksmwalk costs", "version": VERSION, **dataclasses.asdict(self)}, indent=1)
        write_whole(target, (text + "\n").encode())
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Read costs that were saved; without a path those of this machine, or the stored ones where there are none.

        Parameters
        ----------
        path : path, optional
            `default_path()` by default, which need not be there.

        Raises
        ------
        BadCosts
            The file is damaged, of another kind or of a newer ksmwalk.
        OSError
            It can't be read; without a path: it is there and can't be read.
        """
        place = default_path() if path is None else Path(path)
        try:
            with open(place, "rb") as file:
                raw = file.read(_MOST_FILE + 1)
        except FileNotFoundError:
            if path is None:
                return cls()
            raise
        return cls(**_checked(raw, place))


_TEXTS = ("source", "machine", "release", "date")
#: how many pages read, searches and merges of a batch are half of what is slow at its beginning: of Linux 6.18 on Xeons of
#: 2024 under a hypervisor, batches of 3 to 6,400 pages
HALF_STARTED = {"read_start_ns": 20, "search_start_ns": 2, "merge_start_ns": 20}
#: levels of a tree that so many searches meet once only, more than the logarithm of their number: on its way down each
#: leaves what others have met bit by bit
ONCE_MORE = 1.4
#: levels that a tree that grows from nothing is lower, on average over its searches, than it is at the end
LOWER_WHILE_GROWING = 1 / math.log(2)
#: what each cost is of, by name, in the order of the columns of `design`
FIELDS: dict[str, str] = {one.name: one.metadata["doc"] for one in dataclasses.fields(Costs) if "doc" in one.metadata}


def _checked(raw: bytes, place: Path) -> dict[str, Any]:
    """The arguments of Costs that a file has."""

    def bad(what: str) -> BadCosts:
        return BadCosts(f"{place}: {what}; `ksmwalk calibrate` makes a new one")

    if len(raw) > _MOST_FILE:
        raise bad("too long to be a file of costs")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad(f"no JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != "ksmwalk costs":
        raise bad("no file of costs")
    version = data.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        raise bad(f"version {shown(version)}: this ksmwalk reads {VERSION}")
    known = {one.name for one in dataclasses.fields(Costs)}
    if strange := sorted(data.keys() - known):
        raise bad(f"unknown field {shown(strange[0])}")
    if missing := sorted(known - data.keys()):
        raise bad(f"field {missing[0]} is missing")
    try:
        Costs(**data)
    except ValueError as error:
        raise bad(str(error)) from None
    return data


def default_path() -> Path:
    """Where the costs of this machine are kept: `ksmwalk/costs.json` in $XDG_CACHE_HOME, or in ~/.cache."""
    above = os.environ.get("XDG_CACHE_HOME", "")
    # by the specification of these directories a relative one is not heeded
    cache = Path(above) if os.path.isabs(above) else Path(os.path.expanduser("~/.cache"))
    return cache / "ksmwalk" / "costs.json"


# ---------------------------------------------------------- counts times costs


def _terms(work: Mapping[str, Any], near_levels: float, log2: Callable[[Any], Any], most: Callable[..., Any]) -> dict[str, Any]:
    """How often each cost arises, of single numbers or of arrays of them, with the functions for such ones."""
    levels_stable = log2(1.0 + work["stable_nodes"])
    # on its way from empty to full a tree is on average so much lower than at the end
    levels_unstable = most(log2(1.0 + work["unstable_items"]) - LOWER_WHILE_GROWING, 0.0)
    stable, unstable = work["stable_searches"], work["unstable_searches"]
    pages = work["visits"] + work["skipped"]
    small = 1 - work["huge"] / most(pages, 1)
    batches = work["batches"] + (work["batches"] <= 0)
    # a batch begins with cold caches, and warms what it can of the levels that they would hold
    warm = log2(1.0 + work["visits"] / batches) - ONCE_MORE
    cold_stable = most(-most(-levels_stable, -near_levels) - warm, 0.0)
    cold_unstable = most(-most(-levels_unstable, -near_levels) - warm, 0.0)

    def begun(times: Any, cost: str) -> Any:
        """Batches that do something so often in sum, each as far as it is from its slow beginning."""
        return work["batches"] * times / (times + batches * HALF_STARTED[cost])

    merging = work["stable_hits"] + work["merges"] + work["zeroed"]
    return {
        "scan_ns": work["scans"],
        "batch_ns": work["batches"],
        "page_ns": pages,
        "small_ns": pages - work["huge"],
        "merged_ns": work["merged"],
        "merged_level_ns": work["merged"] * levels_stable,
        "checksum_ns": work["visits"] - work["merged"],
        "checksum_small_ns": small * (work["visits"] - work["merged"]),
        "item_ns": work["first"],
        "freed_ns": work["freed"],
        "stable_near_ns": stable * levels_stable,
        "stable_far_ns": stable * most(levels_stable - near_levels, 0.0),
        "unstable_near_ns": unstable * levels_unstable,
        "unstable_far_ns": unstable * most(levels_unstable - near_levels, 0.0),
        "unstable_small_ns": small * unstable * levels_unstable,
        # a chain on the way is gone through until there is a node with room: most often, to its end
        "dup_ns": stable * levels_stable * most(work["stable_pages"] / most(work["stable_nodes"], 1) - 1.0, 0.0),
        "cold_ns": stable * cold_stable + unstable * cold_unstable,
        "read_start_ns": begun(work["visits"] - work["merged"], "read_start_ns"),
        "search_start_ns": begun(stable + unstable, "search_start_ns"),
        "merge_start_ns": begun(merging, "merge_start_ns"),
        "byte_ns": work["prefix"] * (stable * levels_stable + unstable * levels_unstable),
        "hit_ns": work["stable_hits"],
        "merge_ns": work["merges"],
        "zero_ns": work["zeroed"],
        "split_ns": work["splits"],
        "pte_ns": work["ptes"],
        "hole_ns": work["holes"],
        "table_ns": work["tables"],
    }


def design(work: RecordArray, near_levels: float) -> NDArray[np.float64]:
    """How often each cost arises in each scan.

    Parameters
    ----------
    work : ndarray of WORK_DTYPE, shape (n,)
    near_levels : float
        As in `Costs`.

    Returns
    -------
    ndarray of float64, shape (n, len(FIELDS))
        A column a cost; levels of trees are the binary logarithm of what is in them.
    """
    columns = {name: work[name] for name in WORK_DTYPE.names or ()} | {"scans": np.ones(len(work))}
    terms = _terms(columns, near_levels, np.log2, np.maximum)
    return np.stack([np.asarray(terms[name], np.float64) for name in FIELDS], axis=1)


def nanoseconds(work: Mapping[str, float], costs: Costs) -> float:
    """CPU time that ksmd takes for some work, as `ksmd_seconds` has it, of one row and quickly.

    Parameters
    ----------
    work : dict of str to float
        The fields of WORK_DTYPE, and `scans`: full scans that ended with it. Of part of a batch, `batches` is that part.
    costs : Costs

    Returns
    -------
    float

    Models: the CPU time of ksmd of Linux 6.18. Differs: see `Costs`.
    """
    terms = _terms(work, costs.near_levels, math.log2, max)
    return sum(getattr(costs, name) * times for name, times in terms.items() if times)  # type: ignore[no-any-return]


def ksmd_seconds(work: RecordArray, costs: Costs) -> NDArray[np.float64]:
    """CPU time that ksmd takes for full scans.

    Parameters
    ----------
    work : ndarray of WORK_DTYPE, shape (n,) or ()
        A row a full scan: `work.count_full_scan` makes them.
    costs : Costs

    Returns
    -------
    ndarray of float64, shape (n,)
        Seconds a scan; of a single row shape (1,).

    Raises
    ------
    TypeError
        `work` has another dtype.

    Examples
    --------
    >>> work = np.zeros(2, WORK_DTYPE)
    >>> work["visits"], work["changed"] = 1000, 1000
    >>> len(ksmd_seconds(work, Costs()))
    2

    Models: the CPU time of ksmd of Linux 6.18, in sum over a scan. Differs: see `Costs`.
    """
    work = np.atleast_1d(np.asarray(work))
    if work.dtype != WORK_DTYPE:
        raise TypeError(f"work of dtype {work.dtype}: must be of WORK_DTYPE")
    seconds: NDArray[np.float64] = design(work, costs.near_levels) @ costs.vector() / 1e9
    return seconds
