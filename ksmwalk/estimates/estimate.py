"""What merging would free and cost: captured memory, run in the model to its steady state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..drawing.words import size
from ..errors import KsmwalkError
from ..gate import counted, shown
from ..host import Host
from ..ksm import sysfs
from ..ksm.costs import WORK_DTYPE, Costs, ksmd_seconds
from ..layout import PAGE_SIZE, Frame
from ..signatures import BoolArray, I64Array, RecordArray
from ..sources.contents import MemoryCapture
from ..sources.memory import LoadedMemory, load_memory
from .before import unmerged
from .bounds import changing_pages, lower_of, while_changing
from .domains import DOMAINS, in_domains
from .hidden import shared_already
from .shares import apart, freed_by_vma, merged_pages, shares
from .steady import SCANS, Steady, run_to_steady
from .tables import over_time, table
from .work import counted_scan, passed_over

MARKS = ("auto", "marked", "all")
# shares of what is freed, by which the time to it is asked
_MILESTONES = (50, 90, 99)


class NothingToMerge(KsmwalkError, ValueError):
    """There is no memory in the capture that an estimate could be about."""


def check_contents(capture: MemoryCapture) -> None:
    """Raise NothingToMerge for a capture without contents, or of no process."""
    if all(one.key is None for one in capture.processes):
        raise NothingToMerge("the capture has no contents: nothing can be said about merging")


@dataclass(slots=True)
class Outcome:
    """One steady state.

    Attributes
    ----------
    counters : dict of str to int
        By the names of sysfs; rmap_items; freed_bytes, what merging frees, against the same memory without KSM;
        freed_more_bytes, what of it is still to come (all of it, but where KSM has run already); broken_bytes, what would
        have to be found if all sharing broke at once.
    steady : Steady
    work : ndarray of costs.WORK_DTYPE
        A row a full scan.
    by_process : list of dict
    by_mapping : list of dict
    merged : list of bool[nr_pages]
        For each process of the capture which of its pages end as KSM's or as zero pages of KSM's.

    Models: ksmd of Linux 6.18. Differs: see `estimate`.
    """

    counters: dict[str, int]
    steady: Steady
    work: RecordArray
    by_process: list[dict[str, Any]] = field(default_factory=list)
    by_mapping: list[dict[str, Any]] = field(default_factory=list)
    merged: list[BoolArray] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Outcome: {size(self.counters['freed_bytes'])} freed, {counted(len(self.work), 'full scan')}>"


@dataclass(slots=True)
class Estimate:
    """What `estimate` found.

    Attributes
    ----------
    expected : Outcome
        With the pages as they were read, as if they stood still from then on.
    lower, upper : dict of str to int
        Counters. Of memory that stands still those of `expected`; where pages change, what nine of ten moments lie
        between, while they go on changing as they did (`changing`). Where frames could not be seen, lower also takes what
        may be shared by fork as shared already: see `hidden.shared_already`.
    moving : dict of str to int
        Mean of the counters while pages change; empty where none does.
    mark : str
        "marked" or "all": what was taken to have asked for merging.
    domain : str
        Merging within what: "all", "user", "container", "process".
    knobs : dict
        Tunables.
    cost : dict
        cpu_seconds, scans, seconds (all full_scans, the last three of which change nothing), scans_to_settle,
        seconds_to_settle (without these), seconds_per_scan, rmap_items_bytes, nodes_bytes, huge_pages_split,
        copies_per_second (stores that find their page merged, while pages change), and time to 50, 90 and 99 % of what is
        freed; costs.
    costs : Costs
        By which the work of ksmd was turned into time.
    knobs_given : dict
        Those of `knobs` that the caller asked for.
    notes : list of str

    Models: see `estimate`. Differs: see `estimate`.
    """

    expected: Outcome
    lower: dict[str, int]
    upper: dict[str, int]
    moving: dict[str, int]
    mark: str
    domain: str
    knobs: dict[str, Any]
    cost: dict[str, Any]
    capture: MemoryCapture
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    costs: Costs = field(default_factory=Costs)
    knobs_given: dict[str, object] = field(default_factory=dict)

    def __repr__(self) -> str:
        low, high = (size(some["freed_bytes"]) for some in (self.lower, self.upper))
        between = "" if low == high else f", {low} to {high}"
        freed = size(self.expected.counters["freed_bytes"])
        return f"<Estimate of {counted(self.capture.nr_pages, 'page')}: {freed} freed{between}>"

    def table(self, by: str = "process") -> RecordArray:
        """What is freed, row by row: see `tables.table`."""
        return table(self, by)

    def over_time(self) -> RecordArray:
        """What is freed after each full scan, and when that ends: see `tables.over_time`."""
        return over_time(self)

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain data, named as the files of sysfs where these show the same."""
        return {
            "as": self.mark,
            "domain": self.domain,
            "expected": self.expected.counters,
            "lower": self.lower,
            "upper": self.upper,
            "moving": self.moving,
            "by_process": self.expected.by_process,
            "by_mapping": self.expected.by_mapping,
            "by_user": self.grouped("uid"),
            "by_cgroup": self.grouped("cgroup"),
            "by_container": self.grouped("container"),
            "cost": self.cost,
            "knobs": self.knobs,
            "source": {
                "machine": self.capture.machine,
                "processes": len(self.capture.processes),
                "pages": self.capture.nr_pages,
                "samples": self.capture.samples,
                "seconds_between": round(self.capture.seconds_between, 3),
                "changing_pages": changing_pages(self.capture),
            },
            "over_time": [dict(zip(self.expected.steady.rows.dtype.names or (), row.tolist(), strict=True))
                          for row in self.expected.steady.rows],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip

    def grouped(self, by: str) -> list[dict[str, Any]]:
        """What is freed by user, cgroup or container: the sums of `by_process`, the largest first.

        Parameters
        ----------
        by : {"uid", "cgroup", "container"}

        Returns
        -------
        list of dict
            `by`, processes, anonymous_pages, freed_bytes, ksm_merging_pages, ksm_rmap_items, ksm_zero_pages.
        """
        groups: dict[Any, dict[str, Any]] = {}
        for row in self.expected.by_process:
            group = groups.setdefault(row[by], {by: row[by], "processes": 0})
            group["processes"] += 1
            for name in ("anonymous_pages", "freed_bytes", "ksm_merging_pages", "ksm_rmap_items", "ksm_zero_pages"):
                group[name] = group.get(name, 0) + row[name]
        return sorted(groups.values(), key=lambda group: -group["freed_bytes"])


def estimate(
    capture: MemoryCapture,
    *,
    mark: str = "auto",
    knobs: Mapping[str, object] | None = None,
    domain: str = "all",
    costs: Costs | None = None,
    take_over: bool = True,
    changing: bool = True,
    each: Callable[[int], object] = lambda scans: None,
) -> Estimate:
    """Estimate what merging captured memory would free, and what it would cost.

    Parameters
    ----------
    capture : MemoryCapture
        From `sources.contents.capture_memory`, a saved one, cores or guests.
    mark : {"auto", "marked", "all"}
        As if ksmd searched what is marked now, or everything that could be marked; "auto": what is marked if anything is.
    knobs : mapping, optional
        Tunables that differ from those of the machine that was captured, by name.
    domain : {"all", "user", "container", "process"}
        Merge within these only.
    costs : Costs, optional
        What ksmd's work costs; by default what was measured on this machine, else stored ones.
    take_over : bool
        Go on from what KSM has merged already; else as if it had not run.
    changing : bool
        Look for the lower and upper figures of pages that change, which takes some twenty scans more.
    each : callable of int
        Told the number of full scans made, for progress.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        No such mark or domain; a tunable's value the kernel refuses (`OSError`), one it has not got.
    NothingToMerge
        A capture without contents, or of no process.
    NeverSteady
        The model did not come to rest.

    Models: ksmd of Linux 6.18, exactly, on memory that stands still.
    Differs: pages that change are taken to stand still (expected, upper) or never to merge (lower); the machine's other
    processes are not there; ages, and some checksums, of a KSM that has run already are
    unknown: see `load_memory`.
    """
    start = time.perf_counter()
    mark = which_mark(capture, mark)
    if domain not in DOMAINS:
        raise ValueError(f"domain {shown(domain)}: not one of {', '.join(DOMAINS)}")
    check_contents(capture)
    notes = list(capture.notes)
    tunables = tunables_of(capture, knobs or {})
    what = in_domains(capture if take_over else unmerged(capture), domain, notes)
    costs = costs or Costs.load()

    # with pages that change the same Host goes on, at its true ages
    goes_on = changing and capture.samples > 1 and changing_pages(capture) > 0

    def run(memory: MemoryCapture, counted: bool = False) -> tuple[Outcome, LoadedMemory]:
        loaded = load_memory(memory, mark="as-is" if mark == "marked" else "all", knobs=tunables, take_over=take_over)
        return outcome(loaded, counted, each, passing=counted and not goes_on), loaded

    expected, loaded = run(what, counted=True)
    notes += loaded.notes
    result = Estimate(expected, expected.counters, expected.counters, {}, mark, domain, numbers_of(tunables), {}, capture, notes)
    result.costs, result.knobs_given = costs, dict(knobs or {})
    result.cost = cost_of(expected, costs, result.knobs)
    if capture.samples == 1 and changing_pages(capture):
        notes.append(
            f"{changing_pages(capture):,} pages changed while they were read: each counts as a page of its own. Two samples "
            f"or more would tell how fast pages change."
        )
    elif changing and changing_pages(capture):
        already = expected.counters["freed_bytes"] - expected.counters["freed_more_bytes"]
        frames = int(expected.steady.rows["frames_used"][0]) + already // PAGE_SIZE
        result.lower, result.moving, result.upper, result.cost["copies_per_second"] = while_changing(
            what, loaded, expected.counters, frames, result.cost["seconds_per_scan"], again=lambda: run(what)[1], each=each
        )
        notes.append(
            f"{changing_pages(capture):,} pages changed between two readings {capture.seconds_between:.3g} s apart: the "
            f"lower and upper figures are with them changing on."
        )
    if not capture.frames_seen:
        worst, note = shared_already(what)
        result.lower = lower_of(run(worst)[0].counters, result.lower)
        notes.append(note)
    result.seconds = time.perf_counter() - start
    return result


def tunables_of(capture: MemoryCapture, knobs: Mapping[str, object]) -> dict[str, object]:
    """The tunables of the machine that was captured, with some changed.

    Parameters
    ----------
    capture : MemoryCapture
    knobs : mapping
        Those that differ, by name.

    Returns
    -------
    dict
        Whatever has a bearing on what is merged, by name.

    Raises
    ------
    ValueError
        There is no such tunable.
    """
    for name in knobs:
        if name not in sysfs.KNOBS:
            raise ValueError(f"{shown(name)}: KSM has no such tunable; it has {', '.join(sysfs.KNOBS)}")
    kept = {
        name: text
        for name, text in capture.machine.get("ksm", {}).items()
        if name in sysfs.KNOBS and name not in ("run", "advisor_mode")
    }
    # the advisor sets pages_to_scan itself: what it had come to holds
    return {**kept, **{name: value for name, value in knobs.items() if name != "run"}}


def numbers_of(tunables: Mapping[str, object]) -> dict[str, Any]:
    """All tunables as numbers (advisor_mode: text), the kernel's defaults where nothing else is said."""
    host = Host(1024)
    for name, value in tunables.items():
        setattr(host.ksm, name, value)
    return {name: getattr(host.ksm, name) for name in sysfs.KNOBS if host.ksm.has(name)}


def which_mark(capture: MemoryCapture, mark: str) -> str:
    """What "auto" comes to: "marked" if anything is, else "all"; ValueError for what is no mark."""
    if mark not in MARKS:
        raise ValueError(f"mark {shown(mark)}: not one of {', '.join(MARKS)}")
    if mark != "auto":
        return mark
    return "marked" if any(vma.mergeable for one in capture.processes for vma in one.vmas) else "all"


def outcome(
    loaded: LoadedMemory,
    counted: bool = False,
    each: Callable[[int], object] = lambda scans: None,
    *,
    passing: bool = False,
) -> Outcome:
    """Run loaded memory to its steady state, in which it is left; `each` is told the number of full scans made.

    Parameters
    ----------
    loaded : LoadedMemory
    counted : bool
        Whether the work of each full scan is counted.
    each : callable of int
    passing : bool
        Pass over the scans after one that changed nothing, with `counted`: the Host is left with the ages of that one.

    Returns
    -------
    Outcome

    Models: see Outcome. Differs: see Outcome.
    """
    host = loaded.host
    work: list[RecordArray] = []
    before = apart(loaded, shares(loaded))
    placed = [mm._ksm_counts()["ksm_zero_pages"] for mm in loaded.mms]
    leaves = _leaves(host)
    already = _saved(host)
    steady = _counted(loaded, work, each, passing) if counted else run_to_steady(host, each=each)
    after = shares(loaded)
    counters = dict(steady.counters)
    more = (int(steady.rows["frames_used"][0]) - int(steady.rows["frames_used"][-1])) * PAGE_SIZE
    counters |= {
        "freed_bytes": more + already,
        "freed_more_bytes": more,
        "broken_bytes": _saved(host),
        "huge_pages_split": leaves - _leaves(host),
    }
    result = Outcome(counters, steady, np.array(work, WORK_DTYPE) if work else np.empty(0, WORK_DTYPE))
    for number, one in enumerate(loaded.capture.processes):
        mine = freed_by_vma(loaded, before, after, number)
        freed = int(mine.sum()) + placed[number] * PAGE_SIZE
        stat = loaded.mms[number]._ksm_counts()
        result.by_process.append({
            "pid": one.pid, "name": one.name, "command": list(one.identity.command), "freed_bytes": freed,
            **{name: stat[name] for name in ("ksm_merging_pages", "ksm_rmap_items", "ksm_zero_pages", "ksm_process_profit")},
            "pages": one.nr_pages, "anonymous_pages": int(np.count_nonzero(one.anon & ~one.zero)),
            "uid": one.identity.uid, "cgroup": one.identity.cgroup, "container": one.identity.container,
        })  # fmt: skip
        result.merged.append(merged_pages(loaded, number, after.frames[number]))
        result.by_mapping += _by_mapping(one, number, mine, result.merged[-1])
    return result


def _counted(loaded: LoadedMemory, work: list[RecordArray], each: Callable[[int], object], passing: bool) -> Steady:
    """Run to the steady state and add a row of work for each full scan."""
    nothing = False

    def scan(host: Host) -> None:
        nonlocal nothing
        row, nothing = counted_scan(host, prefix=loaded.capture.prefix)
        work.append(row)

    def passed(skipped: int) -> None:
        work.append(passed_over(last(), skipped, loaded.host.ksm.pages_to_scan))

    def last() -> RecordArray:
        return next(row for row in reversed(work) if not row["skipped"])

    return run_to_steady(loaded.host, scan=scan, each=each, nothing=lambda: passing and nothing, passed=passed)


def _by_mapping(one: Any, number: int, freed: I64Array, merged: BoolArray) -> list[dict[str, Any]]:
    anon = np.concatenate(([0], np.cumsum(one.anon & ~one.zero)))
    ksm = np.concatenate(([0], np.cumsum(merged)))
    return [
        {
            "pid": one.pid, "process": number, "start": vma.start, "end": vma.end, "name": vma.name,
            "anonymous_pages": int(anon[last] - anon[first]), "merged_pages": int(ksm[last] - ksm[first]),
            "freed_bytes": int(bytes_freed),
        }
        for vma, (first, last), bytes_freed in zip(one.vmas, one.vma_slices(), freed.tolist(), strict=True)
        if anon[last] > anon[first]
    ]  # fmt: skip


def _leaves(host: Host) -> int:
    """Huge pages of anonymous memory in a Host."""
    wanted = np.uint16(Frame.HEAD | Frame.ANON)
    return int(np.count_nonzero(host.frames.flags & wanted == wanted))


def _saved(host: Host) -> int:
    """Bytes that merging saves in a Host now, to be found if all of it were stored to: mappings of KSM's pages beyond their
    frames, and zero pages of KSM's."""
    frames = host.frames
    merged = np.flatnonzero(frames.flags & np.uint16(Frame.KSM))
    return max(0, int(frames.mapcount[merged].sum()) - len(merged) + host.ksm.ksm_zero_pages) * PAGE_SIZE


def cost_of(outcome: Outcome, costs: Costs, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Passes, time and memory that it takes to get there.

    Parameters
    ----------
    outcome : Outcome
        With its `work`.
    costs : Costs
    knobs : mapping
        pages_to_scan and sleep_millisecs have a bearing.

    Returns
    -------
    dict
        As `Estimate.cost`.
    """
    work, pages = outcome.work.copy(), max(1, knobs["pages_to_scan"])
    # the run was counted in batches of its own tunables; the end is noticed by looking for one page more
    work["batches"] = work["visits"] // pages + 1
    cpu = ksmd_seconds(work, costs) if len(work) else np.zeros(0)
    seconds = cpu + work["batches"] * knobs["sleep_millisecs"] / 1000
    settled = outcome.steady.settled
    rows = outcome.steady.rows
    freed = rows["frames_used"][0] - rows["frames_used"]
    nodes = outcome.counters["pages_shared"] + outcome.counters["stable_node_chains"]
    times = {}
    for percent in _MILESTONES:
        enough = np.flatnonzero(freed[1:] * 100 >= int(freed[-1]) * percent)
        times[f"seconds_to_{percent}"] = float(seconds[: enough[0] + 1].sum()) if len(enough) and freed[-1] > 0 else 0.0
    return {
        "cpu_seconds": float(cpu.sum()),
        "scans": outcome.counters["full_scans"],
        "seconds": float(seconds.sum()),
        "scans_to_settle": settled,
        "seconds_to_settle": float(seconds[:settled].sum()),
        # with smart_scan one scan is not like the next
        "seconds_per_scan": float(seconds[-SCANS:].mean()) if len(seconds) else 0.0,
        "cpu_seconds_per_scan": float(cpu[-SCANS:].mean()) if len(cpu) else 0.0,
        **times,
        "rmap_items_bytes": outcome.counters["rmap_items"] * sysfs.RMAP_ITEM_SIZE,
        "nodes_bytes": nodes * sysfs.STABLE_NODE_SIZE,
        "huge_pages_split": outcome.counters["huge_pages_split"],
        "copies_per_second": 0.0,
        "broken_bytes": outcome.counters["broken_bytes"],
        "costs": costs.source,
    }
