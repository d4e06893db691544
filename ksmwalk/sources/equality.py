"""Which pages are equal: by hashes first, then by their bytes, read again and compared.

No page is kept: what has to be looked at again is read again, and a page that holds something else by then is one that
changes.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..layout import PAGE_SIZE
from ..signatures import BoolArray, I64Array, U8Array, U64Array
from . import _bytes
from .hashing import Hasher
from .ordering import about_sorted
from .pages import BATCH, AllPages, Progress

_WORKERS = 4
_ROUNDS = 64
#: batches that a thread takes at a time
_BATCHES = 4
#: how often a page may turn to something else while bytes are compared, before it is taken to be equal to nobody
_TURNS = 3


@dataclass(slots=True)
class Groups:
    """Pages by content.

    Attributes
    ----------
    page : int64[n]
        Sorted by content, those of one ascending.
    first : int64[contents + 1]
        Where each content begins.
    leader : int64[contents]
        The first page of each.
    """

    page: I64Array
    first: I64Array
    leader: I64Array = field(init=False)

    def __post_init__(self) -> None:
        self.leader = self.page[self.first[:-1]]


class Equality:
    """What is known of pages, as arrays with an element each, and how they are read and compared.

    Parameters
    ----------
    pages : AllPages
    hasher : Hasher
    progress : callable of (str, int, int)

    Attributes
    ----------
    hash : uint64[numbers, n]
    begins : uint64[n, 4]
        How each begins, as `_bytes.beginnings` says it.
    read : bool[n]
        Which could be read each time.
    changes : uint16[n]
        In how many samples another hash was found than before.
    turned : uint8[n]
        How often each got another content while bytes were compared.
    alone : bool[n]
        Which are equal to nobody because they never stand still.
    """

    pages: AllPages
    hasher: Hasher
    progress: Progress
    hash: NDArray[np.uint64]
    begins: NDArray[np.uint64]
    read: NDArray[np.bool_]
    changes: NDArray[np.uint16]
    turned: NDArray[np.uint8]
    alone: NDArray[np.bool_]
    apart: NDArray[np.uint16]
    local: threading.local
    workers: int
    pool: ThreadPoolExecutor

    def __init__(self, pages: AllPages, hasher: Hasher, progress: Progress):
        self.pages, self.hasher, self.progress = pages, hasher, progress
        n = pages.nr_pages
        self.hash = np.zeros((hasher.numbers, n), np.uint64)
        self.begins = np.zeros((n, 4), np.uint64)
        self.read = np.zeros(n, bool)
        self.changes = np.zeros(n, np.uint16)
        self.turned = np.zeros(n, np.uint8)
        self.alone = np.zeros(n, bool)
        #: tells contents apart that share a hash
        self.apart = np.zeros(n, np.uint16)
        self.local = threading.local()
        self.workers = min(len(os.sched_getaffinity(0)), _WORKERS)
        self.pool = ThreadPoolExecutor(self.workers)

    def close(self) -> None:
        """Let the threads go."""
        self.pool.shutdown(cancel_futures=True)

    def buffer(self, pages: int) -> U8Array:
        """Memory for some pages, the same one again for each thread."""
        have: U8Array | None = getattr(self.local, "buffer", None)
        if have is None or len(have) < pages:
            have = self.local.buffer = np.empty((max(pages, BATCH), PAGE_SIZE), np.uint8)
        return have[:pages]

    def _lanes(self, tasks: Sequence[Sequence[slice]]) -> list[Sequence[slice]]:
        """The same from as many places in turn as there are threads, which would wait for one process's lock else."""
        size = -(-len(tasks) // self.workers)
        lanes = [tasks[at : at + size] for at in range(0, len(tasks), max(1, size))]
        return [task for some in itertools.zip_longest(*lanes) for task in some if task is not None]

    def each(self, what: str, batches: Sequence[slice], do: Callable[[slice], None], total: int) -> None:
        """Do batches on all processors, a few at a time."""
        tasks = self._lanes([batches[at : at + _BATCHES] for at in range(0, len(batches), _BATCHES)])

        def some(task: Sequence[slice]) -> None:
            for batch in task:
                do(batch)

        done = 0
        self.progress(what, 0, total)
        for task, _ in zip(tasks, self.pool.map(some, tasks), strict=True):
            done += task[-1].stop - task[0].start
            self.progress(what, done, total)

    def read_all(self, sample: int) -> None:
        """Read every page of every source once."""

        def batch(part: slice) -> None:
            buffer = self.buffer(part.stop - part.start)
            found = np.empty((self.hasher.numbers, len(buffer)), np.uint64)
            ok = self.pages.read_hashed(np.arange(part.start, part.stop), buffer, self.hasher, found)
            if sample:
                old = self.hash[:, part]
                self.changes[part] += (ok & self.read[part] & (old != found).any(axis=0)).astype(np.uint16)
            self.hash[:, part] = found
            _bytes.beginnings(buffer.view(np.uint64), self.begins[part])
            # what was there once and is not now has gone
            self.read[part] = ok & self.read[part] if sample else ok

        batches = [
            slice(at, min(at + BATCH, part.stop)) for part in self.pages.parts() for at in range(part.start, part.stop, BATCH)
        ]
        self.each(f"reading {sample + 1}", batches, batch, self.pages.nr_pages)

    def groups(self, which: I64Array) -> Groups:
        """Pages, ascending, by what is thought to be their content."""
        order, tied = about_sorted(self.hash[0, which])
        page = which[order]
        new = np.ones(len(which) + 1, bool)
        # those that may share a hash: by it, by all else that is known of them, and one after the other
        place = np.flatnonzero(tied)
        mine = page[place]
        # a page alone is told apart by its number; that one holds nothing but zeros is known without a hash
        keys = [np.where(self.alone[mine], mine + 1, 0), self.apart[mine], self.begins[:, 0][mine] == 0, *self.hash[:, mine][::-1]]
        hashes, differs = keys[-1], [key[1:] != key[:-1] for key in keys]
        # most often they stand as they should, since who shares a hash is equal in all of it
        if (hashes[1:] < hashes[:-1]).any() or any((some & ~differs[-1]).any() for some in differs[:-1]):
            by = np.lexsort((mine, *keys))
            page[place] = mine[by]
            differs = [key[by[1:]] != key[by[:-1]] for key in keys]
        if len(place):
            new[place[1:]] = np.any(differs, axis=0)
        return Groups(page, np.flatnonzero(new) if len(which) else np.zeros(1, np.int64))

    def confirm(self) -> Groups:
        """Compare the bytes of pages whose hashes agree, until no two pages are thought equal that are not."""
        which = np.flatnonzero(self.read)
        groups = doubtful = self.groups(which)
        for _ in range(_ROUNDS):
            size = np.diff(doubtful.first)
            # zeros are known for what they are
            order = np.flatnonzero(size > 1)
            order = order[self.begins[doubtful.leader[order], 0] != 0]
            if not len(order):
                break
            # by where the first of each stands: so neighbours are read in one go
            order = order[np.argsort(doubtful.leader[order])]
            size = size[order]
            member = np.repeat(doubtful.first[order] - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
            wrong = self.compare(doubtful.page[member], np.repeat(doubtful.leader[order], size))
            if not len(wrong):
                break
            doubtful = self.groups(self.with_equals(wrong))
        if doubtful is groups and np.count_nonzero(self.read) == len(which):
            return groups  # nobody has turned, none is gone
        return self.groups(np.flatnonzero(self.read))

    def with_equals(self, wrong: I64Array) -> I64Array:
        """Pages to be looked at once more, and of what one of them has turned to another page that is thought to hold it."""
        turned = wrong[self.turned[wrong] > 0]
        if not len(turned):
            return wrong
        equal: BoolArray = np.isin(self.hash[0], self.hash[0, turned]) & self.read & ~self.alone
        equal[wrong] = False
        others = np.flatnonzero(equal)
        # one of each content will do: what stands still need not be read again and again
        _, first = np.unique(np.vstack((self.hash[:, others], self.apart[others])), axis=1, return_index=True)
        return np.union1d(wrong, others[first])

    def compare(self, page: I64Array, leader: I64Array) -> I64Array:
        """Read pages again, each group with its leader: those that are to be looked at once more."""
        again: list[I64Array] = []
        new: list[tuple[I64Array, U64Array, U64Array]] = []

        def batch(part: slice) -> None:
            mine, first = page[part], leader[part]
            # only a group too long for one batch has its leader in another
            wanted = np.sort(mine) if mine[0] == first[0] else np.union1d(mine, first[:1])
            buffer = self.buffer(len(wanted))
            ok = self.pages.read(wanted, buffer)
            row, lead = np.searchsorted(wanted, mine), np.searchsorted(wanted, first)
            other = np.arange(len(wanted))
            other[row] = lead
            same = np.empty(len(wanted), np.uint8)
            _bytes.equal(buffer.view(np.uint64), other, same)
            if same.all() and ok.all():
                return
            # who is not what it was?
            found = self.hasher.hash(buffer)
            moved = (found != self.hash[:, wanted]).any(axis=0)
            self.read[wanted[~ok]] = False
            begins = np.empty((len(wanted), 4), np.uint64)
            _bytes.beginnings(buffer.view(np.uint64), begins)
            # not before all have been compared: a leader is that of others too
            new.append((wanted[ok & moved], found[:, ok & moved], begins[ok & moved]))
            differs = (same[row] == 0) & ok[row] & ~moved[row] & ok[lead] & ~moved[lead]
            self.apart[mine[differs]] += 1
            # a group without its leader is compared anew, and so are those who share a hash but not their bytes
            left = differs | (ok[row] & ~moved[row] & (~ok[lead] | moved[lead]))
            again.append(mine[left])

        self.each("comparing", list(_batches(leader)), batch, len(page))
        for turned, found, begins in new:
            self.hash[:, turned], self.begins[turned], self.apart[turned] = found, begins, 0
        if new:
            turned = np.unique(np.concatenate([some for some, _, _ in new]))
            self.turned[turned] += 1
            self.alone[turned] = self.turned[turned] > _TURNS
            again.append(turned)
        return np.unique(np.concatenate(again)) if again else np.empty(0, np.int64)


def _batches(leader: I64Array) -> Iterator[slice]:
    """Parts of pages sorted by their leaders, whole groups where they are small enough."""
    n = len(leader)
    at = 0
    while at < n:
        stop = min(at + BATCH, n)
        if stop < n and leader[stop] == leader[stop - 1]:
            others = np.flatnonzero(leader[at:stop] != leader[stop])
            if len(others):
                stop = at + int(others[-1]) + 1
        yield slice(at, stop)
        at = stop
