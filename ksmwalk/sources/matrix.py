"""Who shares contents with whom: pages that two processes, containers, users or machines have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gate import shown
from ..layout import PAGE_SIZE
from ..signatures import AnyArray, BoolArray, I64Array, U64Array
from .contents import MemoryCapture, readable
from .joining import join
from .keys import UNKNOWN
from .reading import ProcessCapture

BY = ("process", "source", "container", "user")
# Numbers looked at together, over all groups: bounds the memory that it takes.
_TOGETHER = 1 << 22
# What part of the groups may have a content that is counted pair by pair; others are counted as rows of bits.
_FEW = 0.03
# Contents in a row of bits.
_WIDTH = 1 << 14

_I64Matrix = NDArray[np.int64]


@dataclass(slots=True)
class SharingMatrix:
    """What groups of processes have in common.

    Attributes
    ----------
    names : list of str
    pages : int64[n, n]
        Pages of i whose content occurs in j; on the diagonal those whose content i has more than once. A frame counts
        once for a group, however often it is mapped.
    freed_bytes : int64[n, n]
        What merging frees if i and j are put together and nothing is merged yet; on the diagonal: i alone.
    nr_pages : int64[n]
        Pages of each that were looked at.

    Models: ksmd on memory that stands still, max_page_sharing without limit. Differs: see `sharing_matrix`.
    """

    names: list[str]
    pages: _I64Matrix
    freed_bytes: _I64Matrix
    nr_pages: I64Array

    @property
    def gain_bytes(self) -> _I64Matrix:
        """What is freed by putting i and j together beyond what each frees alone: int64[n, n], 0 on the diagonal.

        Below 0 where i and j share frames by fork that each frees alone: freed once, they were counted twice.
        """
        own = self.freed_bytes.diagonal()
        gain: _I64Matrix = self.freed_bytes - own[:, None] - own[None, :]
        np.fill_diagonal(gain, 0)
        return gain

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "names": self.names,
            "nr_pages": self.nr_pages.tolist(),
            "pages": self.pages.tolist(),
            "freed_bytes": self.freed_bytes.tolist(),
            "gain_bytes": self.gain_bytes.tolist(),
        }


def sharing_matrix(captures: MemoryCapture | Sequence[MemoryCapture], by: str = "source") -> SharingMatrix:
    """Count the pages that groups of processes have in common.

    Parameters
    ----------
    captures : MemoryCapture or sequence of MemoryCapture
        Several are joined: see `joining.join`.
    by : {"process", "source", "container", "user"}
        What a row is. A source is a machine, file or capture.

    Returns
    -------
    SharingMatrix
        In the order in which the groups come.

    Raises
    ------
    ValueError
        No such `by`.
    NotComparable
        Captures whose contents can't be compared.

    Models: ksmd of Linux 6.18 on memory that stands still. Differs: pages that change count as if they did not; pages of
    zeros count as one content; what is merged already counts as if it were not yet; max_page_sharing has no limit.
    """
    if by not in BY:
        raise ValueError(f"by {shown(by)}: not one of {', '.join(BY)}")
    capture = captures if isinstance(captures, MemoryCapture) else join(captures)
    groups: dict[str, list[ProcessCapture]] = {}
    for number, one in enumerate(capture.processes):
        groups.setdefault(_name(capture, number, by), []).append(one)
    frames, keys = [], []
    made_up = 1 << 62  # of pages whose frames aren't known, each one of its own
    for parts in groups.values():
        frame, key = _contents(parts, made_up)
        made_up += len(frame)
        frames.append(frame if capture.frames_seen else frame[:0])
        keys.append(key)
    n = len(groups)
    nr_pages = np.array([len(some) for some in keys], np.int64)
    pages, common = _common(keys, n)
    both = _common(frames, n)[1] if capture.frames_seen else np.zeros((n, n), np.int64)
    distinct = common.diagonal()
    alone = nr_pages - distinct
    # frames of either, less contents of either
    freed = nr_pages[:, None] + nr_pages[None, :] - both - (distinct[:, None] + distinct[None, :] - common)
    np.fill_diagonal(freed, alone)
    return SharingMatrix(list(groups), pages, freed * PAGE_SIZE, nr_pages)


def _name(capture: MemoryCapture, number: int, by: str) -> str:
    one = capture.processes[number]
    source = capture.sources[number] if capture.sources else ""
    if by == "source":
        return source or str(capture.machine.get("hostname") or "capture")
    if by == "container":
        # a container's id is the same nowhere else
        return one.identity.container or f"outside containers{f' of {source}' if source else ''}"
    called = f"user {one.identity.uid}" if by == "user" else f"{one.pid} {one.name}"
    if by == "process" and not one.pid:
        called = f"{number} {one.name}"  # virtual machines have no process number
    return f"{called} of {source}" if capture.sources and len(set(capture.sources)) > 1 else called


def _contents(parts: Iterable[ProcessCapture], made_up: int) -> tuple[U64Array, U64Array]:
    """Frame and key of each page of some processes, those of one frame once."""
    frames, keys = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    unknown = False
    for one in parts:
        if one.key is None:
            continue
        there = np.flatnonzero(readable(one) & (one.key != np.uint64(UNKNOWN)))
        keys.append(one.key[there])
        if one.pfn is None:
            unknown = True
            frames.append(np.arange(made_up, made_up + len(there), dtype=np.uint64))
            made_up += len(there)
        else:
            frames.append(one.pfn[there])
    frame, key = np.concatenate(frames), np.concatenate(keys)
    if unknown and len(frames) == 2:
        return frame, key
    frame, first = np.unique(frame, return_index=True)
    return frame, key[first]


def _common(numbers: Sequence[U64Array], n: int) -> tuple[_I64Matrix, _I64Matrix]:
    """Of groups of numbers: how many of i occur in j (on the diagonal: more than once in i), and different ones in both."""
    size = max((int(some.max()) + 1 for some in numbers if len(some)), default=0)
    if size > 4 * sum(map(len, numbers)) + _TOGETHER:
        every = np.unique(np.concatenate(numbers))
        numbers, size = [np.searchsorted(every, some).astype(np.uint64) for some in numbers], len(every)
    once, twice = np.zeros(size, bool), np.zeros(size, bool)
    for some in numbers:
        twice[some] |= once[some]
        once[some] = True
    pages, both = np.zeros((n, n), np.int64), np.zeros((n, n), np.int64)
    found, counts = [], []
    for i, some in enumerate(numbers):
        ordered = np.sort(some)
        first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(some) else np.empty(0, np.int64)
        count = np.diff(np.append(first, len(some)))
        pages[i, i] = int(count[count > 1].sum())
        both[i, i] = len(first)
        mine = twice[ordered[first]]
        found.append(ordered[first][mine])
        counts.append(count[mine])
    _add_shared(found, counts, twice, pages, both)
    return pages, both


def _add_shared(
    found: Sequence[U64Array], counts: Sequence[I64Array], twice: BoolArray, pages: _I64Matrix, both: _I64Matrix
) -> None:
    """Count what occurs in two groups and more, part by part of the numbers."""
    shared = np.flatnonzero(twice)
    total = sum(map(len, found))
    parts = max(1, -(-total // _TOGETHER))
    edges = [*shared[np.arange(parts) * len(shared) // parts].tolist(), len(twice)] if len(shared) else []
    at = [np.searchsorted(some, np.array(edges, np.uint64)) for some in found]
    for part in range(len(edges) - 1):
        cuts = [slice(int(places[part]), int(places[part + 1])) for places in at]
        number = np.concatenate([some[cut] for some, cut in zip(found, cuts, strict=True)])
        count = np.concatenate([some[cut] for some, cut in zip(counts, cuts, strict=True)])
        group = np.repeat(np.arange(len(found)), [cut.stop - cut.start for cut in cuts])
        order = np.argsort(number, kind="stable")
        number, count, group = number[order], count[order], group[order]
        first = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
        of = np.diff(np.append(first, len(number)))
        few = of <= max(2, int(_FEW * len(found)))
        for k in np.unique(of[few]).tolist():
            _pairs(first[of == k], k, group, count, pages, both)
        for some in _split(np.flatnonzero(~few), _WIDTH):
            _rows(first[some], of[some], group, count, pages, both)


def _split(what: I64Array, width: int) -> Iterable[I64Array]:
    return (what[at : at + width] for at in range(0, len(what), width))


def _pairs(first: I64Array, k: int, group: I64Array, count: I64Array, pages: _I64Matrix, both: _I64Matrix) -> None:
    """Contents of exactly k groups each: every pair of these."""
    n = len(pages)
    for some in _split(first, max(1, _TOGETHER // (k * k))):
        places = some[:, None] + np.arange(k)
        mine = group[places]
        a, b = np.nonzero(~np.eye(k, dtype=bool))
        pair: AnyArray = (mine[:, a] * n + mine[:, b]).reshape(-1)
        weight = count[places][:, a].reshape(-1)
        both += np.bincount(pair, minlength=n * n).reshape(n, n)
        pages += np.bincount(pair, weight, n * n).astype(np.int64).reshape(n, n)


def _rows(first: I64Array, of: I64Array, group: I64Array, count: I64Array, pages: _I64Matrix, both: _I64Matrix) -> None:
    """Contents of many groups: a row of bits for each group, and one for each binary digit of its counts."""
    column = np.repeat(np.arange(len(first)), of)
    place = np.repeat(first - (np.cumsum(of) - of), of) + np.arange(len(column))
    mine, times = group[place], count[place]
    there = _bits(mine, column, len(pages))
    for i in range(len(pages)):
        both[i, i + 1 :] += (some := _ones(there[i] & there[i + 1 :]))
        both[i + 1 :, i] += some
    for digit in range(int(times.max()).bit_length()):
        has = times >> digit & 1 != 0
        digits = _bits(mine[has], column[has], len(pages))
        for i in np.unique(mine[has]).tolist():
            some = _ones(digits[i] & there) << digit
            some[i] = 0
            pages[i] += some


def _bits(row: I64Array, column: I64Array, n: int) -> U64Array:
    bits = np.zeros((n, _WIDTH), bool)
    bits[row, column] = True
    return np.packbits(bits, axis=1).view(np.uint64)


_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


def _ones(rows: U64Array) -> I64Array:
    """How many bits are set in each row."""
    counted: AnyArray = np.bitwise_count(rows) if hasattr(np, "bitwise_count") else _ONES[rows.view(np.uint16)]
    total: I64Array = counted.sum(axis=1, dtype=np.int64)
    return total
