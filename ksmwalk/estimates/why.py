"""Why each page of captured memory is, or is not, merged: the first reason that applies, from what was seen and the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from ..gate import counted
from ..host.vma import INCOMPATIBLE
from ..ksm.costs import WORK_DTYPE, Costs, ksmd_seconds
from ..layout import PAGE_SIZE, Frame
from ..proc.frames import LYING, Kpf
from ..proc.maps import VM_BITS, VmaRecord
from ..signatures import BoolArray, I64Array, RecordArray, U8Array
from ..sources.contents import MemoryCapture
from ..sources.keys import UNKNOWN
from ..sources.memory import load_memory
from ..sources.reading import ProcessCapture
from ..sources.second_look import SecondLook
from .equals import Equals
from .estimate import NothingToMerge, tunables_of
from .shares import Shares, frames_of, shares
from .steady import Steady, run_to_steady
from .work import count_full_scan


class Reason(IntEnum):
    """Why a page is, or is not, merged. The first that applies counts, in the order of their numbers.

    MERGED: a KSM page, by the second look if there is one. ZERO_PLACED: KSM put the zero page there. EMPTY: the zero page,
    as reading an untouched page maps it. NOT_ELIGIBLE: a flag of its mapping keeps KSM away. NOT_ANONYMOUS: a page of a
    file. NOT_MARKED: its mapping did not ask. UNREAD: its content is not known. CHANGING: it changed between two readings.
    OFF, UNMERGING: it would merge, but `run` is 0, or 2. REFUSED: it would merge, and ksmd passed it often enough without
    merging it. KHUGEPAGED: it would merge, and is part of a huge page though ksmd has passed. NOT_SCANNED: ksmd has not
    been there. SECOND_PASS: ksmd has been there, and merges it when it comes again. SMART_SCAN: the same, but smart scan
    passes it over for a while.
    LIMIT: left over, its equals are at max_page_sharing. FORK_SHARED: its only equals are on the same frame.
    UNMARKED_EQUAL: its only equals are in memory that is not marked. UNSETTLED: it has equals, but the model does not merge
    it. UNIQUE: no equal was read.

    Of addresses without a page: SWAPPED, NEVER_WRITTEN: in a mapping without any anonymous page, NOT_PRESENT.
    """

    MERGED = 0
    ZERO_PLACED = 1
    EMPTY = 2
    NOT_ELIGIBLE = 3
    NOT_ANONYMOUS = 4
    NOT_MARKED = 5
    UNREAD = 6
    CHANGING = 7
    OFF = 8
    UNMERGING = 9
    REFUSED = 10
    KHUGEPAGED = 11
    NOT_SCANNED = 12
    SECOND_PASS = 13
    SMART_SCAN = 14
    LIMIT = 15
    FORK_SHARED = 16
    UNMARKED_EQUAL = 17
    UNSETTLED = 18
    UNIQUE = 19
    SWAPPED = 20
    NEVER_WRITTEN = 21
    NOT_PRESENT = 22


#: reasons of addresses without a page
ABSENT = (Reason.SWAPPED, Reason.NEVER_WRITTEN, Reason.NOT_PRESENT)
#: a row a mapping: pages by reason; `letter` is the VmFlags letter that keeps KSM away, `would_merge` how many pages that
#: are not marked would merge if all that was read were
MAPPING_DTYPE = np.dtype(
    [("pid", np.int64), ("process", np.int64), ("start", np.uint64), ("end", np.uint64), ("name", object),
     ("marked", bool), ("letter", "U2"), ("present", np.int64)]
    + [(reason.name.lower(), np.int64) for reason in Reason]
    + [("would_merge", np.int64)]
)  # fmt: skip
#: visits after which smart scan begins to pass a page over, and (visits up to which, passes that are left out then)
SMART_FROM = 4
SMART_SKIPS = ((6, 1), (9, 2), (14, 4))
_MOST_SKIPS = 8
#: passes without a merge after which one counts as refused, without smart scan; with it the longest skip comes on top
_REFUSED_AFTER = 2


@dataclass(slots=True)
class Why:
    """What `explain_pages` found.

    Attributes
    ----------
    capture : MemoryCapture
    about : list of int
        Indices of the processes in question in `capture`.
    reasons : list of uint8[nr_pages]
        A `Reason` a page, for each of them.
    mappings : ndarray of MAPPING_DTYPE
        Their mappings, process by process, in ascending order.
    figures : dict
        What the reasons rest on: see `estimates.answers`.
    notes : list of str

    Models: see `explain_pages`. Differs: see `explain_pages`.
    """

    capture: MemoryCapture
    about: list[int]
    reasons: list[U8Array]
    mappings: RecordArray
    figures: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        reasons = ", ".join(f"{reason.name.lower()} {pages:,}" for reason, pages in self.totals.items())
        return f"<Why of {counted(len(self.about), 'process')}: {reasons or 'no pages'}>"

    @property
    def totals(self) -> dict[Reason, int]:
        """Pages by reason, of all the processes in question; those without any left out."""
        sums = {reason: int(self.mappings[reason.name.lower()].sum()) for reason in Reason}
        return {reason: pages for reason, pages in sums.items() if pages}


def explain_pages(
    capture: MemoryCapture,
    *,
    about: Iterable[int] | None = None,
    second: SecondLook | None = None,
    costs: Costs | None = None,
    potential: bool = True,
    each: Callable[[int], object] = lambda scans: None,
) -> Why:
    """Say of each page why it is, or is not, merged.

    Parameters
    ----------
    capture : MemoryCapture
        With everything that a page could be equal to: only what was read counts.
    about : iterable of int, optional
        Process numbers in question; by default all of the capture.
    second : SecondLook, optional
        What was seen later: it tells whether ksmd refuses a page, and how fast it is.
    costs : Costs, optional
        What ksmd's work costs, for times.
    potential : bool
        Also find out how much of what is not marked would merge.
    each : callable of int
        Told the number of full scans made in the model.

    Returns
    -------
    Why

    Raises
    ------
    NothingToMerge
        A capture without contents, or none of the processes in question is in it.
    NeverSteady
        The model did not come to rest.

    Models: ksmd of Linux 6.18 in its steady state, for what would merge; the machine's own counters for what has.
    Differs: references that a device or a system call holds on a frame can't be seen, nor the ages of smart scan, nor
    when memory was marked: what depends on them rests on figures of the whole process, and on its age at ksmd's present
    speed; the answers name them.
    """
    indices = [i for i, one in enumerate(capture.processes) if about is None or one.pid in set(about)]
    if not indices or all(one.key is None for one in capture.processes):
        raise NothingToMerge("nothing is known of the contents of these processes: nothing can be said about merging")
    notes: list[str] = []
    capture = _believed(capture, notes)
    tunables = tunables_of(capture, {})
    model = _Model(capture, tunables, costs or Costs.load(), each)
    figures = _figures(capture, second, model)
    equals = Equals(capture)
    reasons = [_reasons(capture, i, model, equals, figures, second) for i in indices]
    would = _potential(capture, indices, reasons, model, tunables, figures, each) if potential else None
    rows = [_mappings(capture, i, reasons[at], None if would is None else would[at]) for at, i in enumerate(indices)]
    result = Why(capture, indices, reasons, np.concatenate(rows), figures, [*capture.notes, *notes])
    result.notes += [note for note in model.notes if note not in result.notes]
    for one in (capture.processes[i] for i in indices):
        figures["processes"].setdefault(one.pid, {})["pages"] = one.nr_pages
    if any(capture.processes[i].ksm is None and capture.processes[i].nr_pages for i in indices):
        result.notes.append("Which pages are KSM's can't be seen by this user: only how many of each mapping are.")
    return result


def _believed(capture: MemoryCapture, notes: list[str]) -> MemoryCapture:
    """The same without KSM's flag where a kernel has it on every anonymous page, as some of 6.12 to 7.0 do."""
    some = []
    for one in capture.processes:
        anonymous = int(np.count_nonzero(one.anon))
        flagged = 0 if one.ksm is None else int(np.count_nonzero(one.ksm))
        told = sum(vma.ksm for vma in one.vmas) // PAGE_SIZE
        if one.frame_flags is not None and flagged == anonymous > 2 * told and flagged > one.ksm_stat.get("ksm_merging_pages", 0):
            one = dataclasses.replace(one, frame_flags=one.frame_flags & ~np.uint64(Kpf.KSM))
        some.append(one)
    if all(old is new for old, new in zip(capture.processes, some, strict=True)):
        return capture
    notes.append(LYING)
    return dataclasses.replace(capture, processes=some)


class _Model:
    """The capture run to its steady state: which pages end on a KSM page, or on the zero page."""

    def __init__(self, capture: MemoryCapture, tunables: dict[str, object], costs: Costs, each: Callable[[int], object]):
        loaded = load_memory(capture, mark="as-is", knobs=tunables)
        work: list[RecordArray] = []
        batch = max(1, loaded.host.ksm.pages_to_scan)
        self._before = shares(loaded)
        self.steady = run_to_steady(
            loaded.host, scan=lambda host: work.append(count_full_scan(host, pages_to_scan=batch)), each=each
        )
        self.notes = loaded.notes
        self._after = shares(loaded)
        self.merges = _merged_pages(loaded, range(len(capture.processes)))
        self.limit = int(loaded.host.ksm.max_page_sharing)
        self.smart = loaded.host.ksm.skips_pages
        self.visits = int(work[-1]["visits"]) if work else 0
        self.cpu = float(ksmd_seconds(np.array(work[-1:], WORK_DTYPE), costs).sum()) if work else 0.0
    def freed(self, indices: Iterable[int]) -> int:
        """Frames that come free of some processes."""
        return _freed_of(self._before, self._after, self.steady, indices)


def _merged_pages(loaded: Any, indices: Iterable[int]) -> list[BoolArray]:
    """Of each process which pages lie on a KSM page, or on a zero page that was none, in the model now."""
    flags = loaded.host.frames.flags
    found = []
    for i in indices:
        here = flags[frames_of(loaded, i)]
        zero = (here & np.uint16(Frame.ZERO) != 0) & ~loaded.capture.processes[i].zero
        found.append((here & np.uint16(Frame.KSM) != 0) | zero)
    return found


def _number(files: dict[str, str], name: str, default: int = 0) -> int:
    text = files.get(name, "")
    return int(text) if text.lstrip("-").isdigit() else default


def _figures(capture: MemoryCapture, second: SecondLook | None, model: _Model) -> dict[str, Any]:
    """What is known of KSM as a whole, and of each process: what the reasons rest on."""
    files = second.ksm if second is not None and second.ksm else capture.machine.get("ksm", {})
    names = ("run", "full_scans", "pages_to_scan", "sleep_millisecs", "smart_scan", "max_page_sharing", "use_zero_pages",
             "pages_shared", "pages_sharing", "pages_skipped", "stable_node_chains", "stable_node_dups")  # fmt: skip
    figures: dict[str, Any] = {name: _number(files, name) for name in names}
    items = sum(max(0, _number(files, f"pages_{kind}")) for kind in ("shared", "sharing", "unshared", "volatile"))
    scannable = [int(np.count_nonzero(searched(one))) for one in capture.processes]
    figures["pass_pages"] = pages = max(items, sum(scannable))
    batch, sleep = figures["pages_to_scan"], figures["sleep_millisecs"] / 1000
    figures["pass_measured"] = bool(second is not None and second.scanned_per_second > 0)
    if figures["pass_measured"] and second is not None:
        figures["pass_seconds"] = pages / second.scanned_per_second
    elif batch:
        figures["pass_seconds"] = -(-pages // batch) * sleep + model.cpu * pages / max(1, model.visits)
    else:
        figures["pass_seconds"] = None
    figures["samples"], figures["seconds_between"] = capture.samples, capture.seconds_between
    figures["second_look_passes"] = second.passes if second is not None else 0
    figures["khugepaged"] = dict(second.khugepaged) if second is not None else {}
    figures["steady"] = model.steady.counters
    figures["processes"] = {
        one.pid: _of_process(one, count, figures, second) for one, count in zip(capture.processes, scannable, strict=True)
    }
    return figures


def _of_process(one: ProcessCapture, scannable: int, figures: dict[str, Any], second: SecondLook | None) -> dict[str, Any]:
    items = one.ksm_stat.get("ksm_rmap_items", 0)
    passes = figures["full_scans"]
    age = second.ages.get(one.pid) if second is not None else None
    if age is not None and figures["pass_seconds"]:
        passes = min(passes, int(age / figures["pass_seconds"]))
    return {
        "searched_pages": scannable, "rmap_items": items, "to_go": max(0, scannable - items), "passes_likely": passes,
        "age_seconds": age, "pinned_bytes": None if second is None else second.pinned.get(one.pid),
        "merging_pages": one.ksm_stat.get("ksm_merging_pages"), "zero_pages": one.ksm_stat.get("ksm_zero_pages"),
    }  # fmt: skip


def in_mappings(one: ProcessCapture, wanted: Callable[[VmaRecord], bool]) -> BoolArray:
    """Which pages lie in mappings of a kind: bool[nr_pages]."""
    inside = np.zeros(one.nr_pages, bool)
    for vma, (first, last) in zip(one.vmas, one.vma_slices(), strict=True):
        if last > first and wanted(vma):
            inside[first:last] = True
    return inside


def searched(one: ProcessCapture) -> BoolArray:
    """Which pages ksmd visits: anonymous ones in marked mappings, the zero page left out."""
    return one.anon & ~one.zero & in_mappings(one, lambda vma: vma.why_not is None)


def _reasons(
    capture: MemoryCapture, index: int, model: _Model, equals: Equals, figures: dict[str, Any], second: SecondLook | None
) -> U8Array:
    """The reason of each page of a process: written from the last to the first, so that the first that applies stays."""
    one = capture.processes[index]
    merges = model.merges[index]
    marked = searched(one)
    out = np.full(one.nr_pages, Reason.UNIQUE, np.uint8)
    known = marked & (_keys(one) != np.uint64(UNKNOWN))
    counts = equals.of(index)
    out[known & (counts.marked_frames > 1)] = Reason.UNSETTLED
    out[known & (counts.marked_frames <= 1) & (counts.frames > 1)] = Reason.UNMARKED_EQUAL
    out[known & (counts.frames == 1) & (counts.pages > 1)] = Reason.FORK_SHARED
    out[known & (counts.marked_frames > 1) & (counts.marked_pages > model.limit)] = Reason.LIMIT
    _when(out, known & merges, one, figures, model, None if second is None else second.of(index))
    if one.changes is not None:
        out[marked & (one.changes > 0)] = Reason.CHANGING
    out[marked & ~known] = Reason.UNREAD
    out[~marked] = Reason.NOT_MARKED
    out[~one.anon] = Reason.NOT_ANONYMOUS
    out[in_mappings(one, lambda vma: vma.not_compatible is not None)] = Reason.NOT_ELIGIBLE
    out[one.zero] = Reason.EMPTY
    placed = np.flatnonzero(one.zero & in_mappings(one, lambda vma: vma.mergeable))
    out[placed[: one.ksm_stat.get("ksm_zero_pages", 0)]] = Reason.ZERO_PLACED
    out[_merged_now(one, merges, out)] = Reason.MERGED
    later = None if second is None else second.of(index)
    if later is not None:
        since = later.merged & (out != Reason.MERGED)
        figures["processes"][one.pid]["merged_since"] = int(np.count_nonzero(since))
        out[since] = Reason.MERGED
    return out


def _keys(one: ProcessCapture) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.full(one.nr_pages, UNKNOWN, np.uint64) if one.key is None else one.key


def _merged_now(one: ProcessCapture, merges: BoolArray, out: U8Array) -> I64Array:
    """Pages that are KSM's: where that can't be seen as many of each mapping as smaps says, those that would merge first."""
    if one.ksm is not None and (one.ksm.any() or not any(vma.ksm for vma in one.vmas)):
        return np.flatnonzero(one.ksm)
    found = [np.empty(0, np.int64)]
    for vma, (first, last) in zip(one.vmas, one.vma_slices(), strict=True):
        if vma.ksm and last > first:
            order = np.argsort(~(merges[first:last] & (out[first:last] != Reason.CHANGING)), kind="stable")
            found.append(first + order[: vma.ksm // PAGE_SIZE])
    return np.concatenate(found)


def _when(out: U8Array, merges: BoolArray, one: ProcessCapture, figures: dict[str, Any], model: _Model, later: Any) -> None:
    """Of the pages that would merge, why they have not yet."""
    if figures["run"] != 1:
        out[merges] = Reason.UNMERGING if figures["run"] == 2 else Reason.OFF
        return
    mine = figures["processes"][one.pid]
    passes = mine["passes_likely"]
    smart = model.smart and passes > SMART_FROM and figures["pages_skipped"] > 0
    out[merges] = Reason.SMART_SCAN if smart else Reason.SECOND_PASS
    # ksmd goes through a process in ascending order: what it has no item of lies at the end, in its first pass
    place = np.cumsum(searched(one))
    out[merges & (place > mine["rmap_items"])] = Reason.NOT_SCANNED
    if passes > _REFUSED_AFTER and not mine["to_go"] and figures["khugepaged"].get("pages_collapsed"):
        out[merges & one.huge] = Reason.KHUGEPAGED
    if later is not None and figures["second_look_passes"] >= _REFUSED_AFTER:
        out[merges & later.collapsed] = Reason.KHUGEPAGED
        if figures["second_look_passes"] >= refused_after(model.smart):
            out[merges & later.still] = Reason.REFUSED
            mine["refused_moved"] = int(np.count_nonzero(merges & later.moved))


def refused_after(smart: bool) -> int:
    """Whole passes after which a page that would merge, and has not, is one that ksmd can't merge.

    Parameters
    ----------
    smart : bool
        Whether smart scan is on: the longest skip comes on top.

    Returns
    -------
    int
    """
    return _REFUSED_AFTER + (_MOST_SKIPS if smart else 0)


def longest_skip(passes: int) -> int:
    """How many passes smart scan leaves a page out at a time, that has been met in this many.

    Parameters
    ----------
    passes : int

    Returns
    -------
    int

    Models: ages of smart scan of Linux 6.18. Differs: nothing known.
    """
    if passes <= SMART_FROM:
        return 0
    return next((skips for until, skips in SMART_SKIPS if passes < until), _MOST_SKIPS)


def _potential(
    capture: MemoryCapture, indices: list[int], reasons: list[U8Array], model: _Model, tunables: dict[str, object],
    figures: dict[str, Any], each: Callable[[int], object],
) -> list[BoolArray] | None:
    """Which pages would merge if all that was read were marked; None: all of the processes in question is.

    Figures: would_merge_alone, pages that would if no others were marked; would_free, bytes that come free of them.
    """
    everybody = range(len(capture.processes))
    if not any(_open_to(capture.processes[i]) for i in indices):
        return None
    merged, freed = _would_merge(capture, indices, everybody, tunables, each)
    alone = merged
    if any(_open_to(capture.processes[i]) for i in everybody if i not in indices):
        alone, _ = _would_merge(capture, indices, indices, tunables, each)
    figures["would_free"] = max(0, freed - model.freed(indices)) * PAGE_SIZE
    figures["would_merge_alone"] = sum(
        int(np.count_nonzero(some & (mine == Reason.NOT_MARKED))) for some, mine in zip(alone, reasons, strict=True)
    )
    return merged


def _open_to(one: ProcessCapture) -> set[VmaRecord]:
    """Mappings that could be marked, and are not."""
    return {vma for vma in one.vmas if not vma.mergeable and vma.not_compatible is None and vma.anonymous}


def _would_merge(
    capture: MemoryCapture, indices: list[int], marked: Iterable[int], tunables: dict[str, object],
    each: Callable[[int], object],
) -> tuple[list[BoolArray], int]:
    """Which pages of the processes in question would merge if some were marked, and how many frames come free of theirs."""
    some: list[ProcessCapture] = list(capture.processes)
    for i in marked:
        open_to = _open_to(some[i])
        vmas = [dataclasses.replace(vma, flags=(*vma.flags, "mg")) if vma in open_to else vma for vma in some[i].vmas]
        some[i] = dataclasses.replace(some[i], vmas=vmas)
    loaded = load_memory(dataclasses.replace(capture, processes=some), mark="as-is", knobs=tunables)
    before = shares(loaded)
    steady = run_to_steady(loaded.host, each=each)
    return _merged_pages(loaded, indices), _freed_of(before, shares(loaded), steady, indices)


def _freed_of(before: Shares, after: Shares, steady: Steady, indices: Iterable[int]) -> int:
    """Frames that come free of some processes: their parts of them, if these come free and nobody else holds them."""
    own = sum(float((before.by_page(i) - after.by_page(i)).sum()) for i in indices)
    return round(min(own, int(steady.rows["frames_used"][0]) - int(steady.rows["frames_used"][-1])))


def letter_of(vma: VmaRecord) -> str:
    """The VmFlags letter that keeps KSM away from a mapping: "" if none does, "?" where the flags are not known."""
    if vma.not_compatible is None:
        return ""
    return next((letters for letters in vma.flags if VM_BITS.get(letters, 0) & INCOMPATIBLE), "?")


def _mappings(capture: MemoryCapture, index: int, reasons: U8Array, would: BoolArray | None) -> RecordArray:
    """Rows of MAPPING_DTYPE of a process."""
    one = capture.processes[index]
    rows = np.zeros(len(one.vmas), MAPPING_DTYPE)
    for row, vma, (first, last) in zip(rows, one.vmas, one.vma_slices(), strict=True):
        row["pid"], row["process"], row["start"], row["end"], row["name"] = one.pid, index, vma.start, vma.end, vma.name
        row["marked"], row["letter"], row["present"] = vma.mergeable, letter_of(vma), last - first
        here = reasons[first:last]
        for reason, pages in enumerate(np.bincount(here, minlength=len(Reason)).tolist()):
            row[Reason(reason).name.lower()] = pages
        if would is not None:
            row["would_merge"] = np.count_nonzero(would[first:last] & (here == Reason.NOT_MARKED))
        absent = max(0, vma.size // PAGE_SIZE - (last - first))
        row["swapped"] = min(vma.swap // PAGE_SIZE, absent)
        anonymous = bool(one.anon[first:last].any()) or not vma.never_written
        row["not_present" if anonymous else "never_written"] = absent - int(row["swapped"])
    return rows
