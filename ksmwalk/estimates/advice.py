"""What to do about an estimate: whether to switch merging on, for which processes, and at which settings."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..gate import counted
from ..ksm import sysfs
from ..layout import PAGE_SIZE
from ..sources.contents import MemoryCapture, readable
from ..sources.memory import load_memory
from ..sources.reading import ProcessCapture
from .before import unmerged
from .domains import DOMAINS, domain_of, in_domains
from .estimate import Estimate, estimate, outcome, tunables_of
from .steady import SCANS
from .tables import scan_seconds

__all__ = [
    "MOST_CPU", "SOON", "YOUNG", "Advice", "Setting", "advise", "by_domain", "likely", "overhead", "present_value",
    "setting_for", "settings", "too_little",
]  # fmt: skip

# Worth it: so much comes free, so large a part of the memory that is searched, and of the machine's or so many bytes; and
# what KSM itself needs is no more than this part of it.
_LEAST_BYTES, _LEAST_PART, _LEAST_OF_MACHINE, _ENOUGH_BYTES, _MOST_OVERHEAD = 4 << 20, 0.01, 0.005, 64 << 20, 0.5
#: seconds; younger processes may not live long enough to be worth marking
YOUNG = 120.0
# Processes of one name are worth marking that give so large a part of their memory, and of all that is freed; those that
# give the most are marked until that much of it is reached.
_LEAST_OWN, _LEAST_OF_ALL, _MOST = 0.03, 0.01, 0.95
# Of what all of them would give the chosen ones must give so much together, else all are marked.
_KEPT = 0.9
# Seconds that a pass may take: the first that needs no more than so much of a processor is taken. What is set already is
# good enough if its passes take no longer than this.
_TARGETS = (60, 300, 1200, 3600)
#: part of a processor that ksmd may take; seconds that are soon enough for what is set already
MOST_CPU, SOON = 0.05, 300
_PACE = ("pages_to_scan", "sleep_millisecs")
_USUAL_SLEEP, _LONGEST_SLEEP, _LEAST_PAGES, _MOST_PAGES = 20, 1000, 100, (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Setting:
    """How ksmd goes at some tunables.

    Attributes
    ----------
    pages_to_scan, sleep_millisecs : int
    pass_seconds : float
        Of the longest full scan, which visits every page.
    seconds_to_settle : float
        Until nothing more is merged.
    cpu_while_merging, cpu_after : float
        ksmd's part of one processor until then, and in the scans that follow.
    """

    pages_to_scan: int
    sleep_millisecs: int
    pass_seconds: float
    seconds_to_settle: float
    cpu_while_merging: float
    cpu_after: float


@dataclass(slots=True)
class Advice:
    """What to do about an estimate.

    Attributes
    ----------
    worth : bool
        Whether enough comes free.
    why : str
        Why not, in a sentence without a full stop; "" where it is worth it.
    chosen : list of int
        Indices of the processes, in the capture, that are worth marking; those that are marked, for an estimate of these.
    estimate : Estimate
        With these marked and no others.
    anonymous_bytes : int
        Anonymous memory of them, what they share by fork once for each.
    settings : list of Setting
        The present tunables first, then those that were asked about, those at which a pass takes 1, 5, 20, 60 minutes.
    best : Setting
    now : Setting or None
        With the tunables of the machine that was captured (the kernel's by default, where it does not say).
    asked : Setting or None
        With those that were asked about, where they are others.
    young : int
        Processes that were left out as too young to tell whether they will last.

    Models: see `estimate`. Differs: the limits of what is worth it are ours.
    """

    worth: bool
    why: str
    chosen: list[int]
    estimate: Estimate
    anonymous_bytes: int
    settings: list[Setting] = field(default_factory=list)
    best: Setting | None = None
    now: Setting | None = None
    asked: Setting | None = None
    young: int = 0

    def __repr__(self) -> str:
        what = f"{counted(len(self.chosen), 'process')} worth marking" if self.worth else f"not worth it, {self.why}"
        return f"<Advice: {what}, {self.estimate!r}>"

    @property
    def names(self) -> list[tuple[str, int]]:
        """Names of the chosen processes and how many have each, those that give the most first."""
        rows = self.estimate.expected.by_process
        freed: Counter[str] = Counter()
        number: Counter[str] = Counter()
        for at in self.chosen:
            freed[rows[at]["name"]] += max(rows[at]["freed_bytes"], 0)
            number[rows[at]["name"]] += 1
        return sorted(number.items(), key=lambda item: -freed[item[0]])

    def to_json(self) -> dict[str, Any]:
        """Return the advice as plain data."""
        rows = self.estimate.expected.by_process
        return {
            "worth": self.worth,
            "why": self.why,
            "processes": [{"pid": rows[at]["pid"], "name": rows[at]["name"]} for at in self.chosen],
            "freed_bytes": likely(self.estimate),
            "anonymous_bytes": self.anonymous_bytes,
            "settings": [dataclasses.asdict(one) for one in self.settings],
            **{
                name: None if one is None else dataclasses.asdict(one)
                for name, one in (("best", self.best), ("now", self.now), ("asked", self.asked))
            },
            "young_processes": self.young,
        }


def likely(of: Estimate) -> int:
    """What is free on average while pages go on changing; where none does, all that is expected. Bytes.

    Parameters
    ----------
    of : Estimate

    Returns
    -------
    int

    Models: see Estimate. Differs: see Estimate.
    """
    return int((of.moving or of.expected.counters)["freed_bytes"])


def overhead(of: Estimate) -> int:
    """Bytes that KSM itself takes in the steady state: rmap_items and nodes.

    Parameters
    ----------
    of : Estimate

    Returns
    -------
    int

    Models: rmap_items of 64 bytes, as general_profit takes them off. Differs: slabs that are not full are not counted.
    """
    return int(of.cost["rmap_items_bytes"] + of.cost["nodes_bytes"])


def present_value(capture: MemoryCapture, name: str) -> Any:
    """What a tunable is set to on the machine that was captured; the kernel's default where it does not say.

    Parameters
    ----------
    capture : MemoryCapture
    name : str

    Returns
    -------
    int or str

    Models: see `ksm.sysfs`. Differs: nothing known.
    """
    knob, text = sysfs.KNOBS[name], capture.machine.get("ksm", {}).get(name)
    return knob.default if text is None else knob.read(text)


def setting_for(of: Estimate, pages_to_scan: int, sleep_millisecs: int) -> Setting:
    """How ksmd goes at these tunables.

    Parameters
    ----------
    of : Estimate
    pages_to_scan, sleep_millisecs : int

    Returns
    -------
    Setting

    Models: see `tables.scan_seconds`. Differs: see `tables.scan_seconds`.
    """
    seconds, cpu = scan_seconds(of, pages_to_scan, sleep_millisecs)
    settled = of.expected.steady.settled
    first, last = slice(0, settled), slice(-SCANS, None)

    def part(some: slice) -> float:
        return float(cpu[some].sum() / seconds[some].sum()) if len(seconds[some]) and seconds[some].sum() else 0.0

    longest = float(seconds.max()) if len(seconds) else 0.0
    return Setting(pages_to_scan, sleep_millisecs, longest, float(seconds[first].sum()), part(first) or part(last), part(last))


def settings(of: Estimate) -> tuple[list[Setting], Setting | None]:
    """The present tunables, those asked about, and those for passes of 1, 5, 20, 60 minutes; and which of these is best.

    Parameters
    ----------
    of : Estimate

    Returns
    -------
    (list of Setting, Setting or None)
        The best is what was asked about, else the present one, if ksmd takes no more than 5 % of a processor and 5 minutes
        for a pass; else the quickest of no more than 5 %. None where nothing is searched.

    Models: see Setting. Differs: pages_to_scan is a number of two digits, rounded up.
    """
    work = of.expected.work
    knobs = of.knobs
    asked = setting_for(of, *(knobs[name] for name in _PACE))
    found = list(dict.fromkeys([setting_for(of, *(present_value(of.capture, name) for name in _PACE)), asked]))
    if not len(work) or not work["visits"].max():
        return found, None
    sleep = knobs["sleep_millisecs"] if 0 < knobs["sleep_millisecs"] <= _LONGEST_SLEEP else _USUAL_SLEEP
    some = list(dict.fromkeys(_pages_for(of, seconds, sleep) for seconds in _TARGETS))
    # of little memory every pass is a short one
    quick = [setting_for(of, pages, sleep) for pages in (some if len(some) > 1 else [*some, some[0] * 10])]
    good = [one for one in reversed(found) if one.pass_seconds <= SOON] + quick
    best = next((one for one in good if max(one.cpu_while_merging, one.cpu_after) <= MOST_CPU), quick[-1])
    return [*found, *(one for one in quick if one not in found)], best


def _pages_for(of: Estimate, seconds: float, sleep: int) -> int:
    """pages_to_scan so that the longest scan takes no longer than this, if the processor is quick enough for it."""
    visits = int(of.expected.work["visits"].max())
    _, cpu = scan_seconds(of, visits, sleep)
    asleep = max(seconds - float(cpu.max()), seconds / 10)
    pages = min(max(visits * (sleep / 1000) / asleep, _LEAST_PAGES), _MOST_PAGES)
    step = 10 ** max(len(str(int(pages))) - 2, 0)
    return int(min(np.ceil(pages / step) * step, _MOST_PAGES))


def advise(
    of: Estimate, *, take_over: bool = True, young: float = 0.0, each: Callable[[int], object] = lambda scans: None
) -> Advice:
    """Say what to do about an estimate.

    Parameters
    ----------
    of : Estimate
    take_over : bool
        As for `estimate`.
    young : float
        Processes that were younger, seconds, when they were captured, are not advised to be marked.
    each : callable of int
        Told the number of full scans made; of processes that are chosen an estimate of their own is made.

    Returns
    -------
    Advice

    Raises
    ------
    NeverSteady
        See `estimate`.

    Models: see Advice. Differs: see Advice.
    """
    def marking(some: Sequence[int]) -> Estimate:
        return estimate(
            _marked_only(of.capture, some), mark="marked", knobs=of.knobs_given, domain=of.domain, costs=of.costs,
            take_over=take_over, each=each,
        )  # fmt: skip

    mark = of.mark
    fresh = _younger(of.capture, young) if mark == "all" else set()
    if len(fresh) == len(of.capture.processes):
        # then that is how it is on this machine
        fresh = set()
    if fresh:
        of = marking([at for at in range(len(of.capture.processes)) if at not in fresh])
    rows = of.expected.by_process
    chosen = _chosen(of, mark)
    best = of
    if mark == "all" and chosen and len(chosen) < len(rows) - len(fresh):
        alone = marking(chosen)
        if alone.expected.counters["freed_bytes"] >= _KEPT * of.expected.counters["freed_bytes"]:
            best = alone
        else:
            chosen = [at for at, row in enumerate(rows) if row["ksm_merging_pages"] or row["ksm_zero_pages"]]
    anonymous = sum(rows[at]["anonymous_pages"] for at in chosen) * PAGE_SIZE
    why = _why_not(of, best, chosen, anonymous)
    options, quickest = settings(best)
    asked = options[1] if options[1:] and _is(options[1], [best.knobs[name] for name in _PACE]) else None
    return Advice(not why, why, chosen, best, anonymous, options, quickest, options[0], asked, len(fresh))


def _is(one: Setting, pace: Sequence[int]) -> bool:
    return [one.pages_to_scan, one.sleep_millisecs] == pace


def _younger(capture: MemoryCapture, seconds: float) -> set[int]:
    """Indices of the processes that were younger when they were captured; those of which it is not known are not."""
    now = capture.machine.get("uptime", 0)
    return {
        at for at, one in enumerate(capture.processes)
        if one.identity.started and now and now - one.identity.started / os.sysconf("SC_CLK_TCK") < seconds
    }  # fmt: skip


def _chosen(of: Estimate, mark: str) -> list[int]:
    rows = of.expected.by_process
    if mark == "marked":
        return [at for at, row in enumerate(rows) if row["ksm_rmap_items"] or row["ksm_zero_pages"]]
    groups: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(row["name"], []).append(at)
    total = sum(max(row["freed_bytes"], 0) for row in rows)

    def given(name: str) -> int:
        return sum(rows[at]["freed_bytes"] for at in groups[name])

    chosen: list[int] = []
    reached = 0
    for name in sorted(groups, key=lambda name: -given(name)):
        freed = given(name)
        if reached >= _MOST * total or freed < _LEAST_OF_ALL * total:
            break
        if freed > _LEAST_OWN * PAGE_SIZE * sum(rows[at]["anonymous_pages"] for at in groups[name]):
            chosen += groups[name]
            reached += freed
    return sorted(chosen)


def _marked_only(capture: MemoryCapture, chosen: Sequence[int]) -> MemoryCapture:
    """The same with everything of some processes marked that could be, and nothing of the others."""
    wanted = set(chosen)

    def marked(one: ProcessCapture, yes: bool) -> ProcessCapture:
        vmas = [
            dataclasses.replace(
                vma,
                flags=tuple(letters for letters in vma.flags if letters != "mg") + ("mg",) * (yes and not vma.not_compatible),
            )
            for vma in one.vmas
        ]
        return dataclasses.replace(one, vmas=vmas)

    return dataclasses.replace(capture, processes=[marked(one, at in wanted) for at, one in enumerate(capture.processes)])


def _why_not(of: Estimate, best: Estimate, chosen: Sequence[int], anonymous: int) -> str:
    """Why it is not worth it; "" if it is."""
    counters = of.expected.counters
    if not counters["rmap_items"] and not counters["ksm_zero_pages"]:
        if of.mark == "marked":
            return "nothing that is present is marked for merging"
        if not any(readable(one).any() for one in of.capture.processes):
            return "none of the memory that is present is anonymous, private and of a mapping that may be marked"
        return "no memory can be marked"
    freed = likely(best)
    if not counters["pages_sharing"] and not counters["ksm_zero_pages"]:
        return f"of {counters['rmap_items']:,} pages no two are equal but for those that fork shares already"
    if best.expected.counters["freed_bytes"] <= 0:
        return "equal pages are shared by fork already"
    if freed - overhead(best) <= 0:
        return "KSM itself would need more than comes free" + (", while pages change" if best.moving else "")
    if not chosen:
        return "that is too little"
    return too_little(freed, overhead(best), int(of.capture.machine.get("mem_total", 0)), anonymous)


def too_little(freed: int, needed: int, mem_total: int, searched: int = 0) -> str:
    """Why so much memory is not worth it on a machine; "" if it is.

    Parameters
    ----------
    freed, needed : int
        Bytes that come free, and that KSM itself takes.
    mem_total : int
        Bytes of the machine; 0: not known.
    searched : int
        Bytes that ksmd has to go through for it.

    Returns
    -------
    str

    Models: nothing of Linux. Differs: the limits are ours.
    """
    if freed < _LEAST_BYTES or freed < _LEAST_PART * searched:
        return "that is too little"
    if freed < min(_LEAST_OF_MACHINE * mem_total, _ENOUGH_BYTES):
        return f"that is too little for a machine of {mem_total / (1 << 30):,.3g} GiB"
    if needed > _MOST_OVERHEAD * freed:
        return f"KSM itself would need {needed / freed:.0%} of that"
    return ""


def by_domain(of: Estimate, *, take_over: bool = True) -> dict[str, int | None]:
    """What would come free if merging were confined to a process, a container, a user.

    Parameters
    ----------
    of : Estimate
        Of the domain "all".
    take_over : bool
        As for `estimate`.

    Returns
    -------
    dict of str to int
        Bytes by domain, the widest first.

    Raises
    ------
    NeverSteady
        See `estimate`.

    Models: see `in_domains`. Differs: see `in_domains`.
    """
    capture = of.capture
    found: dict[str, int | None] = {of.domain: of.expected.counters["freed_bytes"]}
    known: dict[tuple[int, ...], int] = {}
    for domain in DOMAINS:
        numbers: dict[object, int] = {}
        parts = tuple(
            numbers.setdefault(domain_of(one, at, domain), len(numbers)) for at, one in enumerate(capture.processes)
        )
        if domain == of.domain:
            known[parts] = of.expected.counters["freed_bytes"]
        elif parts not in known:
            loaded = load_memory(
                in_domains(capture if take_over else unmerged(capture), domain, []),
                mark="as-is" if of.mark == "marked" else "all", knobs=tunables_of(capture, of.knobs_given), take_over=take_over,
            )  # fmt: skip
            known[parts] = outcome(loaded).counters["freed_bytes"]
        found[domain] = known[parts]
    return {domain: found[domain] for domain in DOMAINS}
