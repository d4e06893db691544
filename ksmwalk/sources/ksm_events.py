"""Events of KSM that were traced elsewhere: read from the text of trace-cmd, tracefs or perf, held against a scenario.

The lines that ``trace-cmd report``, ``/sys/kernel/tracing/trace`` and ``perf script`` print of ``ksm:*`` events are read into
one array. Other events among them are passed over and counted, headers too; any other line is refused with its number.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from ..errors import KsmwalkError
from ..gate import shown
from ..scenarios.records import Record
from ..signatures import RecordArray
from .traces import DAMAGED, unpacked

__all__ = ["KINDS", "KSM_EVENT", "EventsCompared", "KsmEvents", "compare_events", "read_ksm_events"]

#: what `kind` counts: the events of a record, and ``advised``, which is in none
KINDS = ("start", "stop", "enter", "exit", "new", "add", "zero", "rmi", "rmk", "advised")
#: one event. `time` in seconds of the trace's clock; `pid` of who was running; `mm` and `item` number the kernel's pointers in
#: the order in which they first appear, -1 where there is none; `a` and `b` are seq and items of start and stop, seconds and
#: percent of advised; `frame` is a page frame number, pages_to_scan of advised, else -1; `error` is 0 or -errno
KSM_EVENT = np.dtype([
    ("time", np.float64), ("cpu", np.int32), ("pid", np.int32), ("kind", np.uint8), ("error", np.int32), ("mm", np.int64),
    ("item", np.int64), ("frame", np.int64), ("a", np.int64), ("b", np.int64), ("line", np.int64),
])  # fmt: skip

_MOST_LETTERS, _MOST_EVENTS, _MOST_BYTES = 4096, 1 << 24, 1 << 32
# comm-pid or comm pid, perhaps (tgid), [cpu], perhaps flags, time
_LINE = re.compile(
    r"\s*(?P<comm>\S.{0,63}?)[-\s]\s*(?P<pid>\d{1,10})(?:/\d{1,10})?\s+(?:\(\s*[\d-]{1,10}\)\s+)?\[(?P<cpu>\d{1,5})\]\s+"
    r"(?:[^\s:\[]{1,12}\s+)?(?P<time>\d{1,15}(?:\.\d{1,9})?):\s+(?:(?P<system>[\w-]{1,64}):)?(?P<name>\w{1,64}):?\s*(?P<fields>.*)"
)
_HEADER = re.compile(r"#.*|\s*|cpus=\d{1,5}|version = \d{1,5}|trace-cmd version .*|CPU \d{1,5} is empty")
_LOST = re.compile(
    r"\s*(?:CPU:\d{1,5} \[(?:LOST|\d{1,20}) .*EVENTS.*\]|.*\bLOST (\d{1,20}) EVENTS.*|.*\bPERF_RECORD_LOST(?:_SAMPLES)?\b.*)",
    re.IGNORECASE,
)
# of a ring buffer that went over its beginning there are fewer events than were written
_KEPT = re.compile(r"# entries-in-buffer/entries-written: (\d{1,20})/(\d{1,20})\b.*")
_N, _P = r"(\d{1,20})", r"((?:0x)?[0-9a-fA-F]{1,16})"
_ERR = r"(-?\d{1,5})"
_FIELDS = {
    "ksm_start_scan": re.compile(rf"seq (-?\d{{1,20}}) rmap size {_N}"),
    "ksm_stop_scan": re.compile(rf"seq (-?\d{{1,20}}) rmap size {_N}"),
    "ksm_enter": re.compile(rf"mm {_P}"),
    "ksm_exit": re.compile(rf"mm {_P}"),
    "ksm_merge_one_page": re.compile(rf"ksm pfn {_N} rmap_item {_P} mm {_P} error {_ERR}"),
    "ksm_merge_with_ksm_page": re.compile(rf"(ksm )?pfn {_N} rmap_item {_P} mm {_P} error {_ERR}"),
    "ksm_remove_rmap_item": re.compile(rf"pfn {_N} rmap_item {_P} mm {_P}"),
    "ksm_remove_ksm_page": re.compile(rf"pfn {_N}"),
    "ksm_advisor": re.compile(rf"ksm scan time {_N} pages_to_scan {_N} cpu percent {_N}"),
}


@dataclass(slots=True)
class KsmEvents:
    """Events of a trace.

    Attributes
    ----------
    events : ndarray of KSM_EVENT
        In the order of the text.
    others : int
        Events that are not KSM's.
    lost : int
        Places where the tracer says that events were lost.

    Models: the ``ksm`` trace events of Linux 6.18. Differs: nothing known.
    """

    events: RecordArray
    others: int = 0
    lost: int = 0

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        numbers = np.bincount(self.events["kind"], minlength=len(KINDS)).tolist()
        return {kind: n for kind, n in zip(KINDS, numbers, strict=True) if n}


def read_ksm_events(path: str | os.PathLike[str]) -> KsmEvents:
    """Read the text of a trace with ``ksm:*`` events.

    Parameters
    ----------
    path : path
        Text of ``trace-cmd report``, ``/sys/kernel/tracing/trace`` or ``perf script``; a regular file or a pipe, packed by
        gzip, xz or bzip2 or not.

    Returns
    -------
    KsmEvents

    Raises
    ------
    KsmwalkError
        A line that is none of a trace, or an event of KSM whose fields can't be read: file and line are named.
    OSError
        It can't be opened.

    Models: nothing. Differs: hashed pointers of the kernel are numbered as they come.
    """
    rows: list[tuple[float, int, int, int, int, int, int, int, int, int, int]] = []
    others = lost = size = 0
    numbers: tuple[dict[str, int], dict[str, int]] = {}, {}
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISFIFO(mode)):
        os.close(fd)
        raise KsmwalkError(f"{shown(os.fspath(path))}: a file of text is wanted")
    with open(fd, "rb") as there, unpacked(there) as file:
        for number in range(1, 1 << 62):
            try:
                raw = file.readline(_MOST_LETTERS + 1)
            except DAMAGED as error:
                raise KsmwalkError(f"{shown(os.fspath(path))}: damaged at line {number}: {error}") from None
            if not raw:
                break
            size += len(raw)
            where = _Where(path, number, raw)
            if len(raw) > _MOST_LETTERS or size > _MOST_BYTES or len(rows) > _MOST_EVENTS:
                where.refuse("longer than a trace of KSM is")
            try:
                text = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                where.refuse("no text")
            if _HEADER.fullmatch(text):
                kept = _KEPT.fullmatch(text)
                lost += kept is not None and int(kept[1]) < int(kept[2])
                continue
            if _LOST.fullmatch(text):
                lost += 1
                continue
            match = _LINE.fullmatch(text)
            if match is None:
                where.refuse("no line of trace-cmd report, tracefs or perf script")
            if match["system"] not in (None, "ksm") or match["name"] not in _FIELDS:
                if match["system"] == "ksm" or match["name"].startswith("ksm_"):
                    where.refuse("no event of KSM that is known")
                others += 1
                continue
            rows.append(_row(match, number, numbers, where))
    return KsmEvents(np.array(rows, KSM_EVENT), others, lost)


@dataclass(slots=True)
class _Where:
    """A line, to be named."""

    path: str | os.PathLike[str]
    number: int
    raw: bytes

    def refuse(self, why: str) -> NoReturn:
        raise KsmwalkError(f"{shown(os.fspath(self.path))}: line {self.number}: {why}: {shown(self.raw[:80])}")


def _row(
    match: re.Match[str], line: int, numbers: tuple[dict[str, int], dict[str, int]], where: _Where
) -> tuple[float, int, int, int, int, int, int, int, int, int, int]:
    found = _FIELDS[match["name"]].fullmatch(match["fields"].strip())
    pid = int(match["pid"])
    if found is None:
        where.refuse("fields that can't be read")
    kind, error, mm, item, frame, a, b = _fields(match["name"], found)
    seen = zip((mm, item), numbers, strict=True)
    known_mm, known_item = (-1 if one is None else known.setdefault(_pointer(one), len(known)) for one, known in seen)
    if pid >= 1 << 31 or max(abs(frame), abs(a), abs(b)) >= 1 << 63:
        where.refuse("a number that is too large")
    return float(match["time"]), int(match["cpu"]), pid, KINDS.index(kind), error, known_mm, known_item, frame, a, b, line


def _pointer(text: str) -> str:
    return text.lower().removeprefix("0x").lstrip("0")


def _fields(name: str, found: re.Match[str]) -> tuple[str, int, str | None, str | None, int, int, int]:
    """Kind, error, mm, item, frame, a and b of an event."""
    if name in ("ksm_start_scan", "ksm_stop_scan"):
        return name[4:-5], 0, None, None, -1, int(found[1]), int(found[2])
    if name in ("ksm_enter", "ksm_exit"):
        return name[4:], 0, found[1], None, -1, 0, 0
    if name == "ksm_merge_one_page":
        return "zero", int(found[4]), found[3], found[2], int(found[1]), 0, 0
    if name == "ksm_merge_with_ksm_page":
        return ("add" if found[1] else "new"), int(found[5]), found[4], found[3], int(found[2]), 0, 0
    if name == "ksm_remove_rmap_item":
        return "rmi", 0, found[3], found[2], int(found[1]), 0, 0
    if name == "ksm_remove_ksm_page":
        return "rmk", 0, None, None, int(found[1]), 0, 0
    return "advised", 0, None, None, int(found[2]), int(found[1]), int(found[3])


# ---------------------------------------------------------------- against a scenario


@dataclass(slots=True)
class EventsCompared:
    """How a trace compares with the events of a scenario.

    Attributes
    ----------
    equal : int
        Events that are as expected, up to the first that is not.
    expected : int
        Events of the scenario.
    behind : int
        Events of the trace behind the scenario's last, which are of what came later.
    difference : str
        The first event that is not as expected, in words; empty where all are.
    processes : dict of str to int
        Process of the scenario to number in `mm` of the events, as they last were.

    Models: nothing. Differs: what registers and what is no longer registered is compared in an order of its own, as who comes
    first is raced against the scan that this wakes.
    """

    equal: int = 0
    expected: int = 0
    behind: int = 0
    difference: str = ""
    processes: dict[str, int] = field(default_factory=dict)


def compare_events(read: KsmEvents, records: Iterable[Record]) -> EventsCompared:
    """Hold a trace against the events that a scenario is expected to give, one by one.

    Parameters
    ----------
    read : KsmEvents
        From before the scenario's first event on.
    records : iterable of dict
        Of the scenario: a recording's, or the model's.

    Returns
    -------
    EventsCompared

    Raises
    ------
    KsmwalkError
        Events were lost; the scenario has none.

    Models: the events of a record. Differs: scans are counted from the first of either side; processes and KSM pages are
    told by the order in which they first appear, and must be the same ones from there on.
    """
    if read.lost:
        raise KsmwalkError(f"events were lost at {read.lost} places of the trace: it can't be held against anything")
    told = [text.split() for record in records for text in record.get("t", ())]
    if not told:
        raise KsmwalkError("the scenario gives no event of KSM (older kernels have none): there is nothing to hold it against")
    listed = [[one for one in told if (one[0] in ("enter", "exit")) == lists] for lists in (False, True)]
    out, names = EventsCompared(expected=len(told)), _Names()
    place = [0, 0]
    for event in read.events[read.events["kind"] != KINDS.index("advised")]:
        if out.equal == len(told):
            out.behind += 1
            continue
        kind = KINDS[event["kind"]]
        side = int(kind in ("enter", "exit"))
        wanted = listed[side][place[side]] if place[side] < len(listed[side]) else None
        why = "the scenario has no more of these" if wanted is None else names.differs(wanted, kind, event)
        if why:
            out.difference = f"line {event['line']}: {_said(kind, event)}; expected: {' '.join(wanted or ['nothing'])} ({why})"
            break
        place[side] += 1
        out.equal += 1
    if not out.difference and out.equal < len(told):
        missing = next(group[at] for group, at in zip(listed, place, strict=True) if at < len(group))
        out.difference = f"the trace ends, and the scenario goes on: {' '.join(missing)}"
    out.processes = names.processes
    return out


class _Names:
    """Which number of the trace is which process, and which frame which KSM page."""

    def __init__(self) -> None:
        self.processes: dict[str, int] = {}
        self._pages: dict[str, int] = {}
        self._first: tuple[int, int] | None = None  # seq here and there

    def differs(self, wanted: list[str], kind: str, event: np.void) -> str:
        """Why an event is not the one that is expected; empty where it is."""
        if wanted[0] != kind:
            return "another event"
        rest = wanted[1:]
        if kind in ("start", "stop"):
            self._first = self._first or (int(rest[0]), int(event["a"]))
            same = int(rest[0]) - self._first[0] == event["a"] - self._first[1]
            return "" if same and int(rest[1]) == event["b"] else "another scan, or other rmap_items"
        if kind in ("new", "add") and int(rest[2]) != event["error"]:
            return "another result"
        if kind == "zero" and int(rest[1]) != event["error"]:
            return "another result"
        if kind in ("new", "add", "rmi", "rmk") and not self._same_page(kind, rest[0], event):
            return "another KSM page"
        name = rest[1] if kind in ("new", "add", "rmi") else rest[0]
        if kind != "rmk" and not self._same_process(kind, name, int(event["mm"])):
            return "another process"
        if kind == "rmk":
            self._pages.pop(rest[0], None)
        elif kind == "exit":
            self.processes.pop(name, None)
        return ""

    def _same_page(self, kind: str, name: str, event: np.void) -> bool:
        """Whether a KSM page is in the frame in which it was made; a frame can be another's before all have left it."""
        if name == "-":
            return True
        if kind == "new":
            self._pages[name] = int(event["frame"])
        if kind == "add" and event["error"] and name not in self._pages:
            return True  # made for this merge, and undone with it
        return self._pages.setdefault(name, int(event["frame"])) == int(event["frame"])

    def _same_process(self, kind: str, name: str, number: int) -> bool:
        """Whether a name is this number, and no other one is."""
        if kind == "enter":  # the kernel gives an address that is free to the next process
            self.processes = {one: its for one, its in self.processes.items() if its != number and one != name}
        if name not in self.processes and number in self.processes.values():
            return False
        return self.processes.setdefault(name, number) == number


def _said(kind: str, event: np.void) -> str:
    """An event of the trace in words."""
    if kind in ("start", "stop"):
        return f"{kind} {event['a']} {event['b']}"
    parts = {"pfn": event["frame"], "mm": event["mm"]}
    said = [f"{what} {number}" for what, number in parts.items() if number >= 0]
    return " ".join([kind, *said, *([f"error {event['error']}"] if event["error"] else [])])
