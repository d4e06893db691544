"""An estimate of memory too large to be run whole: a part of its contents, with bounds for what that leaves open.

What is drawn is contents, not pages: of a content that is drawn every page is kept, so that sharing is seen as it is.
Contents that many pages have are few and weigh much: these are kept all, and only the others drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..gate import shown
from ..ksm import sysfs
from ..layout import PAGE_SIZE
from ..proc import pagemap
from ..signatures import BoolArray, I64Array, RecordArray, U64Array
from ..sources.contents import MemoryCapture, readable
from ..sources.keys import UNKNOWN
from ..sources.loading import leaf_pages
from ..sources.reading import PAGE_ARRAYS, ProcessCapture
from .before import unmerged
from .domains import in_domains
from .estimate import Estimate, Outcome, check_contents, cost_of, estimate
from .steady import WATCHED

#: a content with so many pages is kept in any case
MANY = 64
#: what is the least part of the contents that can be drawn
LEAST = 1e-9
#: standard deviations to either side: 95 of 100 samples hold the truth between the bounds
_SIGMAS = 1.96
_SCALED = (*WATCHED, "freed_bytes", "freed_more_bytes", "broken_bytes", "general_profit")


def estimate_sample(
    capture: MemoryCapture,
    part: float,
    *,
    seed: int = 0,
    each: Callable[[int], object] = lambda scans: None,
    **options: Any,
) -> Estimate:
    """Estimate from a part of the contents.

    Parameters
    ----------
    capture : MemoryCapture
    part : float
        Of the contents that fewer than `MANY` pages have, above 0, at most 1.
    seed : int
        Of the draw.
    each : callable of int
        Told the number of full scans made.
    options
        As for `estimate`.

    Returns
    -------
    Estimate
        `lower` and `upper` bound freed_bytes, pages_shared, pages_sharing and general_profit: 95 of 100 draws hold the
        truth between them. full_scans is the larger of the parts'. huge_pages_split is counted over all pages.

    Raises
    ------
    ValueError, NothingToMerge
        `part` is not between 0 and 1; as `estimate`.

    Models: see `estimate`. Differs: see `estimate`; figures are scaled up, and no pages of huge leaves stand together.
    """
    if not isinstance(part, (int, float)) or isinstance(part, bool) or not 0 < part <= 1:
        raise ValueError(f"part {shown(part)}: must be above 0 and at most 1")
    if part < LEAST:
        raise ValueError(f"part {shown(part)}: must be {LEAST:g} or more for anything to be drawn")
    check_contents(capture)
    keys, count = _counts(capture)
    many, drawn = _drawn(keys, count, part, seed)
    options |= {"changing": False, "each": each}
    heavy = estimate(_kept(capture, many), **options)
    light = estimate(_kept(capture, drawn), **options)
    scale = 1 / part
    counters = {
        name: heavy.expected.counters[name] + round(light.expected.counters[name] * scale) for name in _SCALED
    }
    counters["full_scans"] = max(heavy.expected.counters["full_scans"], light.expected.counters["full_scans"])
    what = capture if options.get("take_over", True) else unmerged(capture)
    what = in_domains(what, heavy.domain, [])
    counters["huge_pages_split"] = _would_split(what, heavy.mark, bool(heavy.knobs["use_zero_pages"]))
    whole = _added(capture, heavy, light, scale, counters)
    notes = list(dict.fromkeys(heavy.notes + light.notes)) + [
        f"From {part:.3g} of the contents that fewer than {MANY} pages have, and all others: the bounds hold for 95 of 100 draws.",
        "Huge pages count as small ones here, but for how many would be split: of that all pages tell.",
    ]
    lower, upper = dict(counters), dict(counters)
    for name, deviation in _spread(keys, count, part).items():
        more = round(_SIGMAS * deviation)
        least = counters[name] - more
        lower[name], upper[name] = least if name == "general_profit" else max(0, least), counters[name] + more
    cost = cost_of(whole, heavy.costs, heavy.knobs)
    result = Estimate(whole, lower, upper, {}, heavy.mark, heavy.domain, heavy.knobs, cost, capture, notes)
    result.seconds = heavy.seconds + light.seconds
    result.costs, result.knobs_given = heavy.costs, heavy.knobs_given
    return result


def _counts(capture: MemoryCapture) -> tuple[U64Array, I64Array]:
    """Contents that were read, ascending, and how many pages have each."""
    keys = np.concatenate([one.key for one in capture.processes if one.key is not None])
    found, count = np.unique(keys[keys != np.uint64(UNKNOWN)], return_counts=True)
    return found, count


def _drawn(keys: U64Array, count: I64Array, part: float, seed: int) -> tuple[U64Array, U64Array]:
    """Contents that many pages have, and those drawn of the others; both ascending."""
    # zeros are one content whatever their number
    many = (count >= MANY) | (keys == 0)
    draw = np.random.default_rng(seed).random(len(keys)) < part
    return keys[many], keys[~many & draw]


def _kept(capture: MemoryCapture, keys: U64Array) -> MemoryCapture:
    """The same with the pages of these contents only, none of them part of a huge page."""
    return dataclasses.replace(capture, processes=[_pages_of(one, keys) for one in capture.processes])


def _pages_of(one: ProcessCapture, keys: U64Array) -> ProcessCapture:
    at = np.searchsorted(keys, one.key) if one.key is not None and len(keys) else np.zeros(one.nr_pages, np.int64)
    at = np.minimum(at, max(len(keys) - 1, 0))
    keep: BoolArray = (keys[at] == one.key) & ~one.zero if len(keys) and one.key is not None else np.zeros(one.nr_pages, bool)
    arrays = {name: getattr(one, name)[keep] for name in PAGE_ARRAYS if getattr(one, name) is not None}
    arrays["categories"] = arrays["categories"] & ~np.uint64(pagemap.PAGE_IS_HUGE)
    return dataclasses.replace(one, folios=one.folios[:0], **arrays)


def _would_split(capture: MemoryCapture, mark: str, zero_pages: bool) -> int:
    """Huge pages of which some page merges: with another frame of its content, or with the page of zeros."""
    keys, frames, blocks = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    unseen = 0  # numbers for frames and blocks that can't be seen: each page has a frame of its own
    for one in capture.processes:
        if one.key is None:
            continue
        searched = readable(one) & (one.key != np.uint64(UNKNOWN))
        for vma, (first, last) in zip(one.vmas, one.vma_slices(), strict=True):
            searched[first:last] &= mark == "all" or vma.mergeable
        if one.ksm is not None:  # a page of KSM's is there for all, wherever it is mapped
            searched |= one.ksm & (one.key != np.uint64(UNKNOWN))
        huge = leaf_pages(one)
        if one.pfn is not None:
            frame = one.pfn
            block = (frame >> np.uint64(9)).view(np.int64)
            huge |= np.isin(block, one.folios >> 9) & ~(one.ksm if one.ksm is not None else np.zeros(one.nr_pages, bool))
        else:
            frame = np.arange(one.nr_pages, dtype=np.uint64) | np.uint64(1 << 62) | np.uint64(unseen << 40)
            block = (one.addr >> np.uint64(21)).view(np.int64) | 1 << 62 | unseen << 44
            unseen += 1
        keys.append(one.key[searched])
        frames.append(frame[searched])
        blocks.append(np.where(huge, block, -1)[searched])
    key, frame, block = np.concatenate(keys), np.concatenate(frames), np.concatenate(blocks)
    _, once = np.unique(frame, return_index=True)
    key, block = key[once], block[once]
    _, content, count = np.unique(key, return_inverse=True, return_counts=True)
    merges = (count[content] > 1) | ((key == 0) & zero_pages)
    if not zero_pages and not (block[key == 0] < 0).any():
        # splitting a huge page maps its zeros to the page of zeros: of those that hold some one finds no other left
        merges[np.flatnonzero(key == 0)[:1]] = False
    return len(np.unique(block[merges & (block >= 0)]))


def _spread(keys: U64Array, count: I64Array, part: float) -> dict[str, float]:
    """Standard deviations of what is scaled up: contents are drawn one by one, each with the chance `part`.

    Of all that could be drawn, not of what was: how many pages have a content is known of each.
    """
    n = count[(count < MANY) & (keys != 0)].astype(float)
    merged = np.maximum(n - 1, 0)
    weights = {
        "freed_bytes": merged * PAGE_SIZE,
        "pages_sharing": merged,
        "pages_shared": np.minimum(merged, 1),
        "general_profit": merged * PAGE_SIZE - n * sysfs.RMAP_ITEM_SIZE,
    }
    factor = (1 - part) / part
    return {name: float(np.sqrt(factor * (each**2).sum())) for name, each in weights.items()}


def _added(capture: MemoryCapture, heavy: Estimate, light: Estimate, scale: float, counters: dict[str, int]) -> Outcome:
    """Both parts as one outcome."""
    rows = []
    for of, one, other in zip(capture.processes, heavy.expected.by_process, light.expected.by_process, strict=True):
        row = dict(one)
        for name, value in other.items():
            if isinstance(value, int) and name not in ("pid", "uid"):
                row[name] = one[name] + round(value * scale)
        row |= {"pages": of.nr_pages, "anonymous_pages": int(np.count_nonzero(of.anon & ~of.zero))}
        rows.append(row)
    first, second = heavy.expected.steady.rows, light.expected.steady.rows
    length = max(len(first), len(second))
    over_time = np.zeros(length, first.dtype)
    for name in first.dtype.names or ():
        # a part that had settled stays as it was
        a, b = (np.append(column, np.repeat(column[-1:], length - len(column))) for column in (first[name], second[name]))
        over_time[name] = a + np.rint(b * scale).astype(np.int64)
    steady = dataclasses.replace(heavy.expected.steady, counters=counters, rows=over_time)
    steady.settled = max(heavy.expected.steady.settled, light.expected.steady.settled)
    return Outcome(counters, steady, _work(heavy.expected.work, light.expected.work, scale), rows)


def _work(heavy: RecordArray, light: RecordArray, scale: float) -> RecordArray:
    """The work of each scan of both parts, that of the one scaled up; one that had settled goes on as in its last scan."""
    length = max(len(heavy), len(light))
    work = np.zeros(length, heavy.dtype)
    for name in heavy.dtype.names or ():
        a, b = (np.append(part[name], np.repeat(part[name][-1:], length - len(part))) if len(part) else 0
                for part in (heavy, light))  # fmt: skip
        work[name] = np.maximum(a, b) if name == "prefix" else a + np.rint(b * scale)
    return work
