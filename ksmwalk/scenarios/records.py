"""Records: what could be seen after each operation of a scenario.

The model and the real kernel both hand the *full* state after an operation to one :class:`Recorder`, which writes the
record: only what changed since the one before, pages as runs of codes. So the conventions stand here once.

Page codes
----------
``-`` not present (the code of every page not listed), ``a`` anonymous, ``kN`` KSM page number N, ``h`` part of a huge
page, ``z`` the shared zero page, ``f`` anything else, ``s`` a swap entry or a marker; ``k?`` is a KSM page that was
undone as soon as it was made, where somebody else still has it.
``a``, ``h`` and ``f`` pages whose frame is mapped at an earlier
place too (processes by name, then by page number) carry ``@P:vpn`` with the first such place. A trailing ``'`` says
that the page was present at the record before and now has another frame; never on ``z``, of which there is one.
A page is listed when its code or its frame changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import kernels
from ..ksm import sysfs
from .nodes import Nodes
from .ops import MOVING, REMAPPING

#: counters of /sys/kernel/mm/ksm that a record holds
COUNTERS = tuple(sysfs.COUNTERS)
#: what a record holds of a process, in this order
STATS = kernels.STATS

ANON, KSM, HUGE, ZERO, OTHER, SWAP = range(1, 7)
_LETTER = {ANON: "a", KSM: "k", HUGE: "h", ZERO: "z", OTHER: "f", SWAP: "s"}

#: what a page's frame is told by where it is first mapped: process * 2^48 + vpn + 1; 0 where that is the page itself
_PROCESS = 1 << 48
#: what stands for the frame of a swap entry, which has none
_NO_FRAME = -2
#: in the place of the number of a KSM page that was made, and undone, and is there still
_NAMELESS = -1

Record = dict[str, Any]
Pages = tuple[np.ndarray, np.ndarray, np.ndarray]
#: its kind, and what that kind says
Event = tuple[Any, ...]


# ---------------------------------------------------------------- how they are built


def _empty() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass
class _View:
    """The pages of one process as last recorded: four columns, ascending in vpn."""

    vpn: np.ndarray
    frame: np.ndarray
    kind: np.ndarray
    tag: np.ndarray

    @staticmethod
    def nothing() -> _View:
        return _View(_empty(), _empty(), _empty(), _empty())

    def holds(self, vpn: np.ndarray, frame: np.ndarray, kind: int | None = None) -> np.ndarray:
        """Which of these pages, in these frames, are here in the same frames, of a kind."""
        place = np.minimum(np.searchsorted(self.vpn, vpn), max(len(self.vpn) - 1, 0))
        if not len(self.vpn):
            return np.zeros(len(vpn), np.bool_)
        found: np.ndarray = (self.vpn[place] == vpn) & (self.frame[place] == frame)
        return found if kind is None else found & (self.kind[place] == kind)

    def same(self, other: _View) -> bool:
        mine, yours = (self.vpn, self.frame, self.kind, self.tag), (other.vpn, other.frame, other.kind, other.tag)
        return all(map(np.array_equal, mine, yours))


def _became_ksm(told: Iterable[Event]) -> tuple[set[int], set[int]]:
    """The frames of pages that became KSM's by these events, and of those that did so for nothing."""
    alone: set[int] = set()  # made, and nobody has joined
    joined: set[int] = set()
    undone: set[int] = set()
    for what, *rest in told:
        if what not in ("new", "add"):
            continue
        frame, failed = rest[0], rest[2] != 0
        if failed and frame in alone:
            joined.discard(frame)
            undone.add(frame)
        if not failed:
            (alone.add if what == "new" else alone.discard)(frame)
            joined.add(frame)
            undone.discard(frame)
    return joined, undone


class Recorder:
    """Builds the records of one run out of full states.

    Parameters
    ----------
    events : bool
        Whether there is an event stream. Without one KSM pages are numbered as they are first seen
        (:func:`ksmwalk.scenarios.compare.without_events` brings records made with events to that form).

    Models: the record half of the scenario and record format.
    Differs: nothing known.
    """

    def __init__(self, events: bool = True):
        self._events = events
        self._counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._stats: dict[str, list[int | None]] = {}
        self._views: dict[str, _View] = {}
        self._ended: dict[str, _View] = {}  # as last seen
        self._nodes = Nodes()
        self._moving = False  # the operation at hand moves pages between NUMA nodes
        self._index: dict[str, int] = {}  # process name -> its number in a tag
        self._names: list[str] = []
        self._numbers = 0
        # A frame can be given out again while the node that remembers it is still to be found stale: so a frame has a
        # list of the numbers in use, oldest first. Its last one is what the page is now.
        self._of_frame: dict[int, list[int]] = {}
        self._of_item: dict[object, int] = {}
        self._members: dict[int, int] = {}  # number -> successful merges into it
        self._leaving: tuple[int | None, int] = None, -1  # frame and number of the last rmi: the rmk after it is its

    def sift_ksm(self, seen: Mapping[str, Pages], told: Iterable[Event], op: str, like: Mapping[str, str]) -> None:
        """Correct which pages are KSM's, where a kernel calls every anonymous page so.

        They are those that events told of, wherever they moved. One that MADV_FREE marked does not look like one any more,
        and still is one where it is mapped as it was. One that was made for a merge that then failed is gone, and its frame
        may be another page's, but for who had it mapped before and has it still. So is one that all have left, unless the
        operation moves mappings.

        Parameters
        ----------
        seen : mapping of str to (vpn, frame, kind)
            As for `record`; the kinds are corrected in place.
        told : iterable of tuple
            The events since the last record.
        op : str
            The operation. Where it moves pages between NUMA nodes, what KSM has is told by where it is mapped.
        like : mapping of str to str
            Of processes that were not there before: the one whose pages they have.
        """
        nothing = _View.nothing()
        joined, undone = (np.fromiter(frames, np.int64) for frames in _became_ksm(told))
        # a stale node's frame may be another page's by now, so the numbers in use say nothing of that
        named = np.concatenate([_empty(), *self._ksm_frames(None if op in REMAPPING else seen), joined])
        for name, (vpns, frames, kinds) in seen.items():
            view = self._views.get(name, nothing)
            known = np.isin(vpns, view.vpn[view.kind == KSM]) if op in MOVING else np.isin(frames, named)
            known |= np.isin(frames, undone) & view.holds(vpns, frames)
            kinds[(kinds == KSM) & ~known] = ANON
            as_seen = like.get(name, name)
            stays = (self._views.get(as_seen) or self._ended.get(as_seen, nothing)).holds(vpns, frames, KSM)
            kinds[(kinds == ANON) & (stays | np.isin(frames, joined))] = KSM

    def _ksm_frames(self, seen: Mapping[str, Pages] | None) -> Iterator[np.ndarray]:
        """The frames of KSM pages as last recorded; of those that are mapped there still, where it is known what is seen."""
        for name, view in self._views.items():
            ksm = view.kind == KSM
            if seen is not None:
                vpn, frame, kind = seen.get(name, (_empty(), _empty(), _empty()))
                ksm = ksm & _View(vpn, frame, kind, kind).holds(view.vpn, view.frame)
            yield view.frame[ksm]

    def moves(self, pages: Mapping[str, Pages]) -> dict[int, int]:
        """Where the frames of KSM pages went that are mapped where they were: old frame to new frame."""
        gone: dict[int, int] = {}
        for name, (vpn, frame, kind) in pages.items():
            view = self._views.get(name) or _View.nothing()
            _, here, before = np.intersect1d(vpn[kind == KSM], view.vpn[view.kind == KSM], return_indices=True)
            old, new = view.frame[view.kind == KSM][before], frame[kind == KSM][here]
            gone.update(zip(old[old != new].tolist(), new[old != new].tolist(), strict=True))
        return gone

    # ------------------------------------------------------------ the one door

    def record(
        self,
        op: list[Any],
        ret: int | list[Any],
        counters: Mapping[str, int],
        stats: Mapping[str, Sequence[int | None]],
        pages: Mapping[str, Pages],
        events: Iterable[Event] = (),
        vmstat: Mapping[str, int] | None = None,
        nodes: Mapping[str, np.ndarray] | None = None,
    ) -> Record:
        """Return the record of one operation.

        Parameters
        ----------
        op : list
            The operation, ``["step"]`` for each batch of a longer step.
        ret : int, or list of an int and a list of int
            What the call returned, or -errno; with what it said of each page, where that is not what was asked for.
        counters : mapping of str to int
            All counters now, `pages_scanned` and `pages_skipped` since the scenario's start. Names that are missing
            are left out of the record.
        stats : mapping of str to sequence of int
            For each live process the six numbers of `STATS`, None for one that the kernel does not show.
        pages : mapping of str to (vpn, frame, kind)
            For each live process three integer arrays of one length: its *present* pages, ascending in vpn; an
            identity of the physical frame; `ANON`, `KSM`, `HUGE`, `ZERO`, `OTHER`, or `SWAP` for a swap entry or a
            marker, whose frame means nothing.
        events : iterable of tuple
            In order: ``("start", seq, items)``, ``("stop", seq, items)``, ``("enter", P)``, ``("exit", P)``,
            ``("new", frame, P, err[, item])``, ``("add", frame, P, err[, item])``, ``("zero", P, err)``,
            ``("rmi", frame, P[, item])``, ``("rmk", frame)``. `frame` is the identity as in `pages`. Where a frame's
            identity can come back while a stale node still names its earlier life, `item` (anything hashable that
            stands for the rmap_item) tells them apart; unique identities need none. ``("moved", {frame:
            frame})``: these KSM pages are in other frames now, which is no event of a record.
        vmstat : mapping of str to int, optional
            By what counters of /proc/vmstat changed with the operation.
        nodes : mapping of str to array of int, optional
            For each live process the NUMA nodes of its pages, one for each of `pages`, -1 of what
            is not to be said; None: there is one.

        Returns
        -------
        dict
            Holds ``op`` and of ``ret``, ``c``, ``s``, ``p``, ``t``, ``v`` what changed.

        Raises
        ------
        ValueError
            Page arrays are of different lengths or not ascending in vpn.
        """
        arrays = self._check(pages)
        self._moving = op[0] in MOVING
        told = [self._event(event, arrays) for event in events if not self._moved(event)]
        record: Record = {"op": op}
        if ret:
            record["ret"] = ret if isinstance(ret, list) else int(ret)
        changed = {name: int(value) for name, value in counters.items() if self._counters.get(name) != value}
        self._counters.update(changed)
        if changed:
            record["c"] = changed
        rows = {name: [None if value is None else int(value) for value in stats[name]] for name in sorted(stats)}
        if new := {name: row for name, row in rows.items() if self._stats.get(name) != row}:
            record["s"] = new
        self._stats = rows
        if runs := self._pages(arrays):
            record["p"] = runs
        if nodes is not None and (runs := self._nodes.changes({name: arrays[name][0] for name in arrays}, nodes)):
            record["n"] = runs
        if told:
            # who registers when is raced against the scan that this wakes
            record["t"] = sorted(told, key=lambda text: not text.startswith(("enter ", "exit ")))
        if grown := {name: int(by) for name, by in (vmstat or {}).items() if by}:
            record["v"] = grown
        return record

    # ------------------------------------------------------------ pages

    def _check(self, pages: Mapping[str, Pages]) -> dict[str, Pages]:
        arrays = {}
        for name in sorted(pages):
            vpn, frame, kind = (np.asarray(column).astype(np.int64, copy=False) for column in pages[name])
            if not len(vpn) == len(frame) == len(kind):
                raise ValueError(f"pages of {name}: {len(vpn)} vpns, {len(frame)} frames, {len(kind)} kinds")
            if len(vpn) and (np.diff(vpn) <= 0).any():
                raise ValueError(f"pages of {name}: vpns are not ascending")
            arrays[name] = vpn, np.where(kind == SWAP, _NO_FRAME, frame), kind
            if name not in self._index:
                self._index[name] = len(self._names)
                self._names.append(name)
        return arrays

    def _pages(self, arrays: dict[str, Pages]) -> dict[str, list[list[Any]]]:
        if not self._events:
            # nothing tells when a KSM page is gone: a frame that comes back later is taken for another page
            mapped = {int(frame) for _, frames, kinds in arrays.values() for frame in frames[kinds == KSM]}
            self._of_frame = {frame: numbers for frame, numbers in self._of_frame.items() if frame in mapped}
        views = {name: self._view(name, *arrays[name]) for name in arrays}
        if len(views) > 1:
            self._share(views)
        runs = {}
        for name, view in views.items():
            before = self._views.get(name) or _View.nothing()
            if not view.same(before) and (changed := self._changes(before, view)):
                runs[name] = changed
        self._ended |= {name: view for name, view in self._views.items() if name not in views}
        self._views = views
        return runs

    def _view(self, name: str, vpn: np.ndarray, frame: np.ndarray, kind: np.ndarray) -> _View:
        tag = np.zeros(len(vpn), np.int64)
        for place in np.flatnonzero(kind == KSM):
            numbers = self._of_frame.get(int(frame[place]))
            tag[place] = numbers[-1] if numbers else self._unannounced(int(frame[place]), name, int(vpn[place]))
        return _View(vpn, frame, kind, tag)

    def _unannounced(self, frame: int, name: str, vpn: int) -> int:
        """Number a KSM page of which no event told: one that compaction moved keeps its number."""
        before = self._views.get(name)
        if self._events and before is not None:
            place = int(np.searchsorted(before.vpn, vpn))
            if place < len(before.vpn) and before.vpn[place] == vpn and before.kind[place] == KSM:
                number = int(before.tag[place])
                if number != _NAMELESS:
                    self._retire(int(before.frame[place]), number)
                    self._of_frame.setdefault(frame, []).append(number)
                return number
        return _NAMELESS if self._events else self._new_number(frame)

    def _new_number(self, frame: int) -> int:
        number = self._numbers
        self._numbers += 1
        self._of_frame.setdefault(frame, []).append(number)
        return number

    def _share(self, views: dict[str, _View]) -> None:
        """Tag each page whose frame is mapped at an earlier place with that place."""
        frame = np.concatenate([view.frame for view in views.values()])
        own = np.concatenate([self._index[name] * _PROCESS + view.vpn + 1 for name, view in views.items()])
        kind = np.concatenate([view.kind for view in views.values()])
        _, first, back = np.unique(frame, return_index=True, return_inverse=True)
        place = own[first[back]]
        tag = np.where((place != own) & (kind != KSM) & (kind != ZERO) & (kind != SWAP), place, 0)
        start = 0
        for view in views.values():
            stop = start + len(view.vpn)
            view.tag = np.where(view.kind == KSM, view.tag, tag[start:stop])
            start = stop

    def _changes(self, before: _View, now: _View) -> list[list[Any]]:
        place = np.searchsorted(before.vpn, now.vpn)
        if len(before.vpn):
            place[place == len(before.vpn)] = 0
            was = before.vpn[place] == now.vpn
            old_kind, old_tag, old_frame = (
                np.where(was, column[place], -1) for column in (before.kind, before.tag, before.frame)
            )
        else:
            was = np.zeros(len(now.vpn), bool)
            old_kind = old_tag = old_frame = np.full(len(now.vpn), -1)
        # moved by compaction, if at all, where nobody asked for it
        still = (now.kind == KSM) & (old_kind == KSM) & (old_tag == now.tag) & (not self._moving)
        moved = was & (old_frame != now.frame) & (now.kind != ZERO) & ~still
        changed = ~was | (now.kind != old_kind) | (now.tag != old_tag) | moved
        gone = np.setdiff1d(before.vpn, now.vpn, assume_unique=True)
        none = np.zeros(len(gone), np.int64)
        vpn = np.concatenate([now.vpn[changed], gone])
        order = np.argsort(vpn)
        vpn = vpn[order]
        kind, tag, moved = (np.concatenate([column[changed], none])[order] for column in (now.kind, now.tag, moved))
        if not len(vpn):
            return []
        breaks = (
            (np.diff(vpn) != 1) | np.diff(kind).astype(bool) | np.diff(tag).astype(bool) | np.diff(moved).astype(bool)
        )
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        lengths = np.diff(np.concatenate([starts, [len(vpn)]]))
        return [
            [int(vpn[i]), int(n), self._code(int(kind[i]), int(tag[i])) + ("'" if moved[i] else "")]
            for i, n in zip(starts, lengths, strict=True)
        ]

    def _code(self, kind: int, tag: int) -> str:
        if kind == 0:
            return "-"
        if kind == KSM:
            return f"k{tag if tag != _NAMELESS else '?'}"
        if tag:
            index, vpn = divmod(tag - 1, _PROCESS)
            return f"{_LETTER[kind]}@{self._names[index]}:{vpn}"
        return _LETTER[kind]

    # ------------------------------------------------------------ events

    def _moved(self, event: Event) -> bool:
        """Whether that is all an event says: KSM pages are in other frames, and keep their numbers."""
        if event[0] != "moved":
            return False
        # all at once: where one is now another one may have been
        number = {new: self._of_frame[old][-1] for old, new in event[1].items() if old in self._of_frame}
        for old, new in event[1].items():
            if new in number:
                self._retire(old, number[new])
        for new, its in number.items():
            self._of_frame.setdefault(new, []).append(its)
        return True

    def _event(self, event: Event, arrays: dict[str, Pages]) -> str:
        what, *rest = event
        if what == "new":
            frame, name, err, *item = rest
            where = self._where(frame, arrays)
            if err:
                return f"new - {name} {err} {where}"
            number = self._new_number(frame)
            if item:  # the page visited is on the node's list too, without an event of its own
                self._of_item[item[0]] = number
            return f"new k{number} {name} {err} {where}"
        if what == "add":
            frame, name, err, *item = rest
            numbers = self._of_frame.get(frame)
            number = numbers[-1] if numbers else self._new_number(frame)
            if err == 0:
                self._members[number] = self._members.get(number, 0) + 1
                if item:
                    self._of_item[item[0]] = number
            elif not self._members.get(number):
                self._retire(frame, number)  # made for this merge alone and undone with it
            return f"add k{number} {name} {err}"
        if what == "rmi":
            frame, name, *item = rest
            known = self._of_item.pop(item[0], None) if item else None
            number = self._oldest(frame) if known is None else known
            self._leaving = frame, number
            return f"rmi k{number} {name}"
        if what == "rmk":
            (frame,) = rest
            number = self._leaving[1] if self._leaving[0] == frame else self._oldest(frame)
            self._leaving = None, -1
            self._retire(frame, number)
            return f"rmk k{number}"
        return " ".join(map(str, event))

    def _oldest(self, frame: int) -> int:
        numbers = self._of_frame.get(frame)
        return numbers[0] if numbers else self._new_number(frame)

    def _retire(self, frame: int, number: int) -> None:
        numbers = self._of_frame.get(frame, [])
        if number in numbers:
            numbers.remove(number)
        if not numbers:
            self._of_frame.pop(frame, None)

    def _where(self, frame: int, arrays: dict[str, Pages]) -> str:
        """The first place that has this frame, at the record before, else now."""
        before = ((name, view.vpn, view.frame) for name, view in sorted(self._views.items()))
        now = ((name, vpn, frames) for name, (vpn, frames, _) in arrays.items())
        for group in (before, now):
            for name, vpn, frames in group:
                place = np.flatnonzero(frames == frame)
                if len(place):
                    return f"{name}:{vpn[place[0]]}"
        return "?"
