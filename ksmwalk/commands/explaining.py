"""What the machine's KSM comes to: its pace and place in the pass, what is saved and what the counters hide.

Arithmetic on what `proc.ksmstate` read, for `explain` and whoever else shows the machine's KSM; plain data for JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..ksm.costs import BadCosts, Costs
from ..ksm.sysfs import RMAP_ITEM_SIZE, STABLE_NODE_SIZE
from ..layout import PAGE_SIZE
from ..proc.ksmstate import KsmProcess, KsmState, Moment, read_moment
from .report import printable

# KSM pages beyond pages_shared are those that no process but an unvisited fork maps: never so many
_TOO_MANY = 10
_MOST_ESTIMATE = 1 << 28
# more bytes than any machine can have; neither infinite nor no number
_MOST_FIGURE = 1 << 100
#: of a prediction: what the counters show beside it as they stand
PREDICTED_COUNTERS = (
    "general_profit", "pages_sharing", "pages_shared", "pages_unshared", "pages_volatile", "ksm_zero_pages",
    "stable_node_chains", "stable_node_dups", "rmap_items", "full_scans",
)  # fmt: skip
# pages that are searched and not merged, and what they are called in sum
_UNMERGED = ("pages_unshared", "pages_volatile")
_IN_SUM = " + ".join(_UNMERGED)


def moments(root: Path, seconds: float, ksmd: int | None, steps: Sequence[int], shown: Iterable[int]) -> list[Moment]:
    """Look at ksmd's counters again and again for some seconds.

    Parameters
    ----------
    root : Path
    seconds : float
    ksmd : int or None
    steps : sequence of int
        0, 1, 2, ... as many as looks are wanted after the first.
    shown : iterable of int
        The same numbers, through what shows how far it has come.
    """
    found = [read_moment(root, ksmd)]
    for number in shown:
        time.sleep(max(0.0, found[0].at + seconds * (number + 1) / len(steps) - time.monotonic()))
        found.append(read_moment(root, ksmd))
    return found


# ---------------------------------------------------------------- pace and place


def pace(seen: Sequence[Moment]) -> dict[str, Any]:
    """How fast ksmd was from the first to the last of some moments, and which ends of passes were among them.

    Returns
    -------
    dict
        seconds; visits_per_second, met_per_second (visited or skipped), skipped_share, cpu_share: float or None;
        passes: how many ended, None if that can't be known; pass_seconds, pass_pages: between the last two ends seen;
        since_end: pages met since the last one.
    """
    first, last = seen[0], seen[-1]
    out: dict[str, Any] = {
        "seconds": last.at - first.at, "visits_per_second": None, "met_per_second": None, "skipped_share": None,
        "cpu_share": None, "passes": None, "pass_seconds": None, "pass_pages": None, "since_end": None,
    }  # fmt: skip
    if out["seconds"] <= 0:
        return out
    if first.cpu_ns is not None and last.cpu_ns is not None:
        out["cpu_share"] = max(0, last.cpu_ns - first.cpu_ns) / 1e9 / out["seconds"]
    if first.full_scans is not None and last.full_scans is not None:
        out["passes"] = max(0, last.full_scans - first.full_scans)
    if first.met is None or last.met is None or first.pages_scanned is None or last.pages_scanned is None:
        return out
    met = max(0, last.met - first.met)
    out["visits_per_second"] = (last.pages_scanned - first.pages_scanned) / out["seconds"]
    out["met_per_second"] = met / out["seconds"]
    out["skipped_share"] = 1 - (last.pages_scanned - first.pages_scanned) / met if met > 0 else None
    # the first moments after an end; unmerging (run = 2) counts from 0 again and is no end
    ends: list[Moment] = []
    for before, after in zip(seen, seen[1:], strict=False):
        if before.full_scans is None or after.full_scans is None or after.full_scans == before.full_scans:
            continue
        ends = [*ends, after] if after.full_scans > before.full_scans else []
    if ends:
        assert ends[-1].met is not None
        out["since_end"] = last.met - ends[-1].met
    if len(ends) > 1:
        begin, end = ends[-2], ends[-1]
        assert begin.full_scans is not None and end.full_scans is not None and begin.met is not None and end.met is not None
        passes = end.full_scans - begin.full_scans
        out["pass_seconds"] = (end.at - begin.at) / passes
        out["pass_pages"] = (end.met - begin.met) // passes
    return out


def limit(state: KsmState, costs: Costs | None = None) -> float | None:
    """Pages a second that the tunables let ksmd visit at most, and its CPU: None if they set no limit or can't be read."""
    pages, sleep = state.number("pages_to_scan"), state.number("sleep_millisecs")
    if pages is None or not sleep:
        return None
    visit = _visit_seconds(state, costs)
    return min(pages * 1000 / sleep, 1 / visit) if visit else pages * 1000 / sleep


def pass_least(state: KsmState, pages: int, costs: Costs | None = None) -> float | None:
    """Seconds that the tunables and ksmd's CPU leave a pass of so many pages at least; None as for `limit`.

    Its end ends a batch, after which ksmd sleeps.
    """
    batch, sleep = state.number("pages_to_scan"), state.number("sleep_millisecs")
    if not batch or not sleep:
        return None
    return max(1.0, pages / batch) * sleep / 1000 + pages * _visit_seconds(state, costs)


def _visit_seconds(state: KsmState, costs: Costs | None) -> float:
    """CPU that a visit takes at least: less where a page is merged already."""
    costs = costs or _costs()
    merged = sum(state.counters.get(name, 0) for name in ("pages_shared", "pages_sharing"))
    part = min(1.0, merged / state.rmap_items) if state.rmap_items else 0.0
    return (costs.page_ns + part * costs.merged_ns + (1 - part) * costs.checksum_ns) / 1e9


@functools.cache
def _costs() -> Costs:
    """This machine's, or stored ones: nothing here depends on them so much that it should fail without."""
    try:
        return Costs.load()
    except (BadCosts, OSError):
        return Costs()


def pass_pages(state: KsmState) -> tuple[int | None, str]:
    """How many pages a pass comes across, and what that rests on: `mappings`, `rmap_items` or `nothing`."""
    items = state.rmap_items
    looked = [one for one in state.processes if one.marked_pages is not None]
    if not looked:
        if not state.processes and not state.refused:
            return 0, "mappings"
        return (items, "rmap_items") if items is not None else (None, "nothing")
    pages = sum(one.marked_pages or 0 for one in looked)
    if items is not None and (state.refused or len(looked) < len(state.processes)):
        # what cannot be looked into has at least these
        pages += max(0, items - sum(one.rmap_items or 0 for one in looked))
    return pages, "mappings"


def scan_pass(state: KsmState, seen: dict[str, Any]) -> dict[str, Any]:
    """Which pass ksmd is in, how far it has come and when the pass ends, as far as that can be known.

    Parameters
    ----------
    state : KsmState
    seen : dict
        From `pace`.

    Returns
    -------
    dict
        number: of the pass; idle: None, or why nothing is scanned; pages and pages_from; complete: whether `pages`
        covers every process; done: pages met in this pass, None if that can't be known; rate: pages met a second, and
        rate_from (`measured`, `tunables`); seconds: of a whole pass; left: seconds to its end, None if unknown.

    Models: ksmd of Linux 6.18.
    Differs: the cursor is not shown by any kernel. What is done is known in the first pass, by its rmap_items, and once
    an end of a pass was seen; memory that comes and goes during the pass, and skips that come in waves, move its end.
    """
    pages, source = pass_pages(state)
    full = state.counters.get("full_scans")
    out: dict[str, Any] = {
        "number": None if full is None else full + 1, "idle": _idle(state, seen), "pages": pages, "pages_from": source,
        "complete": not state.refused, "done": None, "rate": None, "rate_from": None, "seconds": None, "left": None,
    }  # fmt: skip
    if seen["pass_pages"] and (source != "mappings" or state.refused):
        out.update(pages=seen["pass_pages"], pages_from="last pass", complete=True)
    if full == 0:
        out["done"] = state.rmap_items
    if seen["since_end"] is not None:
        out["done"] = seen["since_end"]
    if out["idle"] is None or out["idle"] == "between batches":
        if seen["met_per_second"]:
            out.update(rate=seen["met_per_second"], rate_from="measured")
        elif limit(state):
            least = pass_least(state, out["pages"]) if out["pages"] else None
            out.update(rate=out["pages"] / least if least else limit(state), rate_from="tunables")
    if seen["pass_seconds"] is not None:
        out["seconds"] = seen["pass_seconds"]
    elif out["rate"] and out["pages"]:
        out["seconds"] = out["pages"] / out["rate"]
    if out["done"] is not None and out["pages"] is not None:
        out["done"] = min(out["done"], out["pages"])
        if out["rate"]:
            out["left"] = (out["pages"] - out["done"]) / out["rate"]
    return out


def _idle(state: KsmState, seen: dict[str, Any]) -> str | None:
    """Why nothing is scanned: None if it is, or nobody looked."""
    run = state.number("run")
    if run != 1:
        return {0: "stopped", 2: "unmerged"}.get(-1 if run is None else run, "unknown")
    if state.number("pages_to_scan") == 0:
        return "pages_to_scan"
    if seen["met_per_second"] or seen["passes"]:
        return None
    if not any(one.marked for one in state.processes) and not state.refused:
        return "nothing marked"
    if seen["met_per_second"] is None:
        return None
    if (state.number("sleep_millisecs") or 0) / 1000 >= seen["seconds"]:
        return "between batches"
    return "asleep"


# ---------------------------------------------------------------- what is saved, and what is not said


def saved(state: KsmState) -> dict[str, Any]:
    """What is saved and what that costs, in bytes; None where a counter is missing."""
    counters = state.counters
    items = state.rmap_items
    out: dict[str, Any] = {"sharing": None, "kept": None, "zero": None, "rmap_items": None, "nodes": None, "profit": None}
    if "pages_sharing" in counters:
        out["sharing"] = counters["pages_sharing"] * PAGE_SIZE
    if "pages_shared" in counters:
        out["kept"] = counters["pages_shared"] * PAGE_SIZE
        out["nodes"] = (counters["pages_shared"] + counters.get("stable_node_chains", 0)) * STABLE_NODE_SIZE
    if "ksm_zero_pages" in counters:
        out["zero"] = counters["ksm_zero_pages"] * PAGE_SIZE
    if items is not None:
        out["rmap_items"] = items * RMAP_ITEM_SIZE
    out["profit"] = counters.get("general_profit")
    if out["profit"] is None and items is not None:
        out["profit"] = out["sharing"] + (out["zero"] or 0) - out["rmap_items"]
    return out


def hidden(state: KsmState) -> dict[str, Any]:
    """What the counters do not say, as far as it can be bounded from outside.

    Returns
    -------
    dict
        forked: processes that fork made of one another; fork_bytes: so much of what counts as saved at most was shared
        by fork before; broken: pages that are counted as merged and are not any more; unvisited: mappings of KSM pages
        that fork made and no counter has yet, both None if nobody's mappings were looked at; frames, frame_mappings: KSM
        pages that there are and their mappings, and stale: those in pages_shared that are gone, all None if frames were
        not looked at or the kernel calls others KSM's; extra_pages: KSM pages
        spent again on contents that have one, for the sharing limit; sharers: mappings per KSM page on average.

    Models: Linux 6.18. Differs: kernels that let a child begin with its parent's ksm_merging_pages (6.1 to 6.16) show
    more as broken than is.
    """
    families: dict[tuple[int, ...], list[KsmProcess]] = defaultdict(list)
    for one in state.processes:
        if one.family:
            families[one.family].append(one)
    several = [members for members in families.values() if len(members) > 1]
    over = 0
    for members in several:
        mapped = [(one.merging_pages or 0) + (one.zero_pages or 0) for one in members]
        # pages of one process were apart before: its own at least is saved
        over += sum(mapped) - max(mapped)
    counters = state.counters
    over = min(over, counters.get("pages_sharing", 0) + counters.get("ksm_zero_pages", 0))
    owed = [one.owed for one in state.processes if one.owed is not None]
    shared, sharing = counters.get("pages_shared", 0), counters.get("pages_sharing")
    frames, mappings = state.frames or (None, None)
    if frames is not None and frames > _TOO_MANY * max(shared, _TOO_MANY):
        frames = mappings = None
    return {
        "forked": sum(map(len, several)),
        "fork_bytes": over * PAGE_SIZE,
        "broken": sum(max(0, pages) for pages in owed) if owed else None,
        "unvisited": sum(max(0, -pages) for pages in owed) if owed else None,
        "frames": frames,
        "frame_mappings": mappings,
        "stale": None if frames is None else max(0, shared - frames),
        "extra_pages": max(0, counters.get("stable_node_dups", 0) - counters.get("stable_node_chains", 0)),
        "sharers": (shared + sharing) / shared if shared and sharing is not None else None,
    }


# ---------------------------------------------------------------- predicted against achieved


def read_prediction(path: str) -> dict[str, dict[str, float]]:
    """Read what `ksmwalk estimate --json` printed: `expected`, and `lower` and `upper` where they are there.

    Raises
    ------
    ValueError
        It is no such thing; names the file and the field.
    OSError
        It can't be read.
    """
    return prediction_of(read_estimate(path), printable(path))


def read_estimate(path: str) -> dict[str, Any]:
    """Read what `ksmwalk estimate --json` printed, as it stands there; raises as `read_prediction`."""
    with open(path, "rb") as file:
        text = file.read(_MOST_ESTIMATE + 1)
    name = printable(path)
    if len(text) > _MOST_ESTIMATE:
        raise ValueError(f"{name}: larger than an estimate can be")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {printable(error)[:200]}") from None
    if not isinstance(data, dict) or not isinstance(data.get("expected"), dict):
        raise ValueError(f'{name}: no estimate of `ksmwalk estimate --json`: "expected" is missing')
    return data


def prediction_of(data: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
    """What an estimate predicts, as `read_prediction` has it; `name` says in errors where it was read from."""
    out: dict[str, dict[str, float]] = {}
    for band in ("expected", "lower", "upper"):
        if band not in data or (band != "expected" and data[band] is None):
            continue
        if not isinstance(data[band], dict):
            raise ValueError(f'{name}: "{band}" is no object')
        out[band] = {}
        for key in ("freed_bytes", *PREDICTED_COUNTERS):
            value = data[band].get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MOST_FIGURE:
                raise ValueError(f'{name}: "{band}"."{key}" is no number: {printable(repr(value))[:60]}')
            out[band][key] = value
    if not out["expected"]:
        raise ValueError(f'{name}: "expected" has none of the figures of an estimate')
    return out


def against(prediction: dict[str, dict[str, float]], state: KsmState, *, apart: bool = False) -> list[dict[str, Any]]:
    """Each predicted figure with what it has come to; `achieved` None for what no counter shows (freed_bytes).

    With smart_scan pages that are not merged are one figure, unless they are wanted apart, under their names.
    """
    now: dict[str, int | None] = {name: state.counters.get(name) for name in PREDICTED_COUNTERS}
    now["rmap_items"] = state.rmap_items
    now["general_profit"] = saved(state)["profit"]
    if state.number("smart_scan") and not apart:
        # what a scan skips is volatile, and unshared in the next that does not: only the sum stands still
        prediction = {band: _summed(values) for band, values in prediction.items()}
        parts = [now[name] for name in _UNMERGED]
        now[_IN_SUM] = None if None in parts else sum(part or 0 for part in parts)
    return [
        {
            "name": name,
            "predicted": value,
            "lower": prediction.get("lower", {}).get(name),
            "upper": prediction.get("upper", {}).get(name),
            "achieved": now.get(name),
        }
        for name, value in prediction["expected"].items()
    ]


def _summed(values: dict[str, float]) -> dict[str, float]:
    """Figures with the pages that are not merged in sum, where the first of these stood."""
    if not all(name in values for name in _UNMERGED):
        return values
    total = sum(values[name] for name in _UNMERGED)
    return {
        _IN_SUM if name == _UNMERGED[0] else name: total if name == _UNMERGED[0] else value
        for name, value in values.items() if name != _UNMERGED[1]
    }  # fmt: skip


def merged_share(rows: Iterable[dict[str, Any]]) -> float | None:
    """How much of the predicted merging is done: pages_sharing and ksm_zero_pages against what they are to be.

    What is more than predicted counts no more: it may be somebody else's, or left over (some ways out of a KSM-placed zero
    page leave that counter too high for ever).
    """
    want = have = 0.0
    for row in rows:
        if row["name"] in ("pages_sharing", "ksm_zero_pages") and row["achieved"] is not None:
            want += row["predicted"]
            have += min(row["achieved"], row["predicted"])
    return have / want if want > 0 else None


def as_json(
    state: KsmState, seen: dict[str, Any], prediction: dict[str, dict[str, float]] | None = None
) -> dict[str, Any]:
    """Everything as plain data; sizes in bytes, names as text that can be printed."""
    return {
        "knobs": state.knobs,
        "changed_knobs": {name: {"value": value, "default": default} for name, (value, default) in state.changed_knobs().items()},
        "counters": state.counters,
        "rmap_items": state.rmap_items,
        "limit_pages_per_second": limit(state),
        "pace": seen,
        "pass": scan_pass(state, seen),
        "saved": saved(state),
        "hidden": hidden(state),
        "processes": [
            {**dataclasses.asdict(one), "name": printable(one.name), "cgroup": printable(one.cgroup), "costs_more": costs_more(one)}
            for one in state.processes
        ],
        "refused": state.refused,
        "odd": state.odd,
        "predicted": None if prediction is None else against(prediction, state),
    }


def costs_more(one: KsmProcess) -> bool:
    """Whether its rmap_items take more memory than its merged pages save."""
    return one.profit is not None and one.profit < 0
