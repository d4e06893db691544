"""Memory that changes while ksmd works: how fast each page does, and what that leaves merged at any moment.

Two readings tell which pages changed between them, not whether the others will. Either those that did are the only ones
that do (hot), or every page of the mapping changes as often as its pages did on average (spread). With three readings or
more the two are told apart by how often the same page changed; with two both are run, and the band spans them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..host import Mm
from ..signatures import I64Array, U64Array
from ..sources.contents import MemoryCapture, readable
from ..sources.memory import LoadedMemory
from ..sources.reading import ProcessCapture
from .steady import ROW_DTYPE, WATCHED, state

F64Array = NDArray[np.float64]

#: looks at the counters in a pass, and passes before and while they are looked at
LOOKS, WARM_UP, PASSES = 8, 6, 10
#: the band between which nine of ten moments lie
LOW, HIGH = 5, 95
#: how much longer a scan may take than its work and sleep, for the band: ksmd is nice, and waits for its turn and its timer
SLOWER = 2.0
#: a row a look: the counters, and how many stores since the one before had to copy a page
LOOK_DTYPE = np.dtype([*ROW_DTYPE.descr, ("copies", np.int64)])
# new contents that nobody else has
_FRESH = 1 << 62


@dataclass(slots=True)
class Writers:
    """Pages that change, of one process.

    Attributes
    ----------
    addr : uint64[n]
        Bytes, ascending.
    rate : float64[n]
        Changes a second.
    new : uint64[n]
        A content each was seen with, that may come again; `UNKNOWN` and others that nobody shares are not.
    vma : int64[n]
        In which mapping: contents come again within it.
    """

    addr: U64Array
    rate: F64Array
    new: U64Array
    vma: I64Array


def write_rates(capture: MemoryCapture, spread: bool, seed: int = 0) -> list[Writers]:
    """How often the pages of each process change.

    Parameters
    ----------
    capture : MemoryCapture
        Of two readings or more.
    spread : bool
        With two readings: take the changes to be spread over each mapping; else over the pages that changed.
    seed : int
        For the choice of pages that are thought to change though they did not, yet.

    Returns
    -------
    list of Writers
        For each process.
    """
    comparisons = capture.samples - 1
    if comparisons < 1 or capture.seconds_between <= 0:
        return [Writers(one.addr[:0], np.empty(0), one.addr[:0], np.empty(0, np.int64)) for one in capture.processes]
    apart = capture.seconds_between / comparisons
    random = np.random.default_rng(seed)
    shared = _shared_keys(capture)
    return [_of_process(one, comparisons, apart, spread, random, shared) for one in capture.processes]


def _of_process(
    one: ProcessCapture, comparisons: int, apart: float, spread: bool, random: np.random.Generator, shared: U64Array
) -> Writers:
    """Those of one process."""
    if one.key is None or one.changes is None:
        return Writers(one.addr[:0], np.empty(0), one.addr[:0], np.empty(0, np.int64))
    looked_at = readable(one)
    addr, rate, new, where = [one.addr[:0]], [np.empty(0)], [one.addr[:0]], [np.empty(0, np.int64)]
    for number, (vma, (first, last)) in enumerate(zip(one.vmas, one.vma_slices(), strict=True)):
        if "wr" not in vma.flags or not one.changes[first:last].any():
            continue
        here = first + np.flatnonzero(looked_at[first:last])
        changed = np.minimum(one.changes[here], comparisons)
        mine, chance = _who(changed.astype(np.int64), comparisons, spread, random)
        moved = one.key[here[changed > 0]]
        addr.append(one.addr[here[mine]])
        rate.append(-np.log1p(-np.full(len(mine), chance)) / apart)
        moved = np.where(np.isin(moved, shared), moved, np.uint64(_FRESH))
        # what has not been seen to change yet gets what others of its mapping got
        new.append(moved[random.integers(0, len(moved), len(mine))])
        where.append(np.full(len(mine), number))
    return Writers(np.concatenate(addr), np.concatenate(rate), np.concatenate(new), np.concatenate(where))


def _who(changed: I64Array, comparisons: int, spread: bool, random: np.random.Generator) -> tuple[I64Array, float]:
    """Which pages of a mapping change, and with what chance in the time of one comparison."""
    pages, seen, total = len(changed), np.flatnonzero(changed), int(changed.sum())
    most = 1 - 0.5 / (comparisons + 1)  # what changed every time may do so more often than it was looked at
    if comparisons == 1:
        if spread:
            return np.arange(pages), min(total / pages, most)
        return seen, min(most, 0.75)
    # of a share of the pages each changes with one chance: the first two moments say which
    again = int((changed * (changed - 1)).sum())
    chance = max(again / ((comparisons - 1) * total), total / (comparisons * pages))
    wanted = min(max(round(total / (comparisons * chance)), len(seen)), pages)
    still = np.flatnonzero(changed == 0)
    more = random.choice(still, min(wanted - len(seen), len(still)), replace=False) if wanted > len(seen) else still[:0]
    return np.sort(np.concatenate((seen, more))), min(chance, most)


def _shared_keys(capture: MemoryCapture) -> U64Array:
    """Contents that more than one page has, ascending."""
    keys, count = np.unique(
        np.concatenate([one.key for one in capture.processes if one.key is not None]), return_counts=True
    )
    found: U64Array = keys[count > 1]
    return found


def run_changing(
    loaded: LoadedMemory,
    writers: list[Writers],
    seconds_per_scan: float,
    *,
    seed: int = 0,
    each: Callable[[int], object] = lambda scans: None,
) -> np.ndarray:
    """Let ksmd go on while pages are written to, and look at the counters again and again.

    Parameters
    ----------
    loaded : LoadedMemory
        In its steady state without writes.
    writers : list of Writers
        For each process.
    seconds_per_scan : float
    seed : int
        Of the moments of the writes.
    each : callable of int
        Told the number of scans made.

    Returns
    -------
    ndarray of LOOK_DTYPE
        A row a look, `LOOKS` of them a pass, over `PASSES` passes.

    Models: ksmd of Linux 6.18 on memory that changes. Differs: writes come at random moments, and between batches only.
    """
    host, random = loaded.host, np.random.default_rng(seed)
    fresh = fresh_keys()
    pages = sum(mm._ksm_counts()["ksm_rmap_items"] for mm in loaded.mms) or 1
    # the end of a scan is noticed by looking for one page more
    part = pages // LOOKS + 1
    rows = []
    for number in range(WARM_UP + PASSES):
        end = host.ksm.full_scans + 1
        while host.ksm.full_scans < end and host.ksm.registered:
            frames = host.frames_used
            for mm, some in zip(loaded.mms, writers, strict=True):
                write_now(mm, some, seconds_per_scan / LOOKS, random, fresh)
            copies = host.frames_used - frames  # a store to a merged page takes a frame
            host.ksm.do_scan(part)
            if number >= WARM_UP:
                now = state(host)
                rows.append((*(now[name] for name in (*WATCHED, "general_profit")), host.ksm.pages_skipped, host.frames_used,
                             copies))  # fmt: skip
        each(number + 1)
    return np.array(rows, LOOK_DTYPE)


def fresh_keys() -> Iterator[int]:
    """Contents that nobody else has."""
    at = _FRESH
    while True:
        at += 1
        yield at


def write_now(mm: Mm, some: Writers, seconds: float, random: np.random.Generator, fresh: Iterator[int]) -> None:
    """Write to those pages that change within so many seconds."""
    now = np.flatnonzero(random.random(len(some.addr)) < -np.expm1(-some.rate * seconds))
    if not len(now):
        return
    # in another order, but each mapping's among themselves: they stand in the order of their mappings
    keys = some.new[now][np.lexsort((random.random(len(now)), some.vma[now]))]
    own = np.flatnonzero(keys == np.uint64(_FRESH))
    keys[own] = [next(fresh) for _ in own]
    mm.write_at(some.addr[now], keys)


def band(rows: np.ndarray, frames_before: int, page_size: int) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """The counters that nine of ten moments lie between, and their mean: (lower, mean, upper), with freed_bytes."""
    names = [*WATCHED, "general_profit"]
    freed = (frames_before - rows["frames_used"]) * page_size
    columns = {**{name: rows[name] for name in names}, "freed_bytes": freed}
    low = {name: int(np.floor(np.percentile(column, LOW))) for name, column in columns.items()}
    mean = {name: int(np.rint(column.mean())) for name, column in columns.items()}
    high = {name: int(np.ceil(np.percentile(column, HIGH))) for name, column in columns.items()}
    return low, mean, high
