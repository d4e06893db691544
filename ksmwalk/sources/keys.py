"""From bytes to keys: which pages are equal, and in which order their contents stand.

Contents are hashed to find candidates, compared byte by byte to be sure, and numbered in byte order. No page is kept:
what has to be looked at again is read again, and a page that holds something else by then is one that changes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..layout import PAGE_SIZE
from ..signatures import BoolArray, I64Array, U8Array, U16Array, U64Array
from . import _bytes
from .prefix import mean_prefix

#: key of a page whose content is not known
UNKNOWN = (1 << 64) - 1
#: pages read at a time: the buffer stays in the processor's cache
BATCH = 256
#: pages looked at together where their order is decided: 16 MiB
_TOGETHER = 4096
_WORKERS = 4
_ROUNDS = 64
#: contents from which their mean common front is taken
_FOR_PREFIX = 512
#: how often a page may turn to something else while bytes are compared, before it is taken to be equal to nobody
_TURNS = 3

Progress = Callable[[str, int, int], None]
Hash = Callable[[memoryview], int]


class Pages(Protocol):
    """Pages whose bytes can be read again and again.

    Attributes
    ----------
    nr_pages : int
    """

    @property
    def nr_pages(self) -> int: ...
    def read(self, which: I64Array, into: U8Array) -> BoolArray:
        """Read pages by number.

        Parameters
        ----------
        which : int64[n]
            Numbers of pages, ascending.
        into : uint8[n, 4096]

        Returns
        -------
        bool[n]
            Which of them could be read and held still for it.
        """
        ...


@dataclass(slots=True)
class Interned:
    """What `intern` found, a row for each source.

    Attributes
    ----------
    keys : list of uint64[nr_pages]
        0: a page of zeros; equal keys: equal bytes; in byte order, unless there are digests; `UNKNOWN`: not read.
    changes : list of uint16[nr_pages]
        In how many of the comparisons of a page with itself, later, it had another content.
    nr_contents : int
        One more than the highest key.
    digests : uint64[nr_contents, 2] or None
        Keyed hash of each content: its keys are in this order, but for 0: that of a page of zeros, were there any or not,
        by which one secret is told from another.
    comparisons : int
        Of each page with itself.
    prefix : float
        Bytes that two contents have in common at their front, on average, where a search compares them.
    """

    keys: list[U64Array]
    changes: list[U16Array]
    nr_contents: int
    digests: U64Array | None = None
    comparisons: int = 0
    prefix: float = 0.0


def intern(
    sources: Sequence[Pages],
    *,
    samples: int = 1,
    before: Callable[[int], None] = lambda sample: None,
    secret: bytes | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Interned:
    """Give each page a key: equal keys mean equal bytes, the order of keys is that of the bytes.

    Parameters
    ----------
    sources : sequence of Pages
    samples : int
        How often every page is read; the last reading is the one that counts.
    before : callable of int
        Called before each sample: to wait, or to stop those who write.
    secret : bytes, optional
        Number contents by a keyed hash of 128 bits instead (BLAKE2b), which other machines with the secret find as well.
    progress : callable of (str, int, int)
        What is done, pages done, pages in all.

    Returns
    -------
    Interned

    Models: memcmp() of pages, by which ksmd orders and compares them. Differs: nothing known.
    """
    work = _Interning(sources, secret, progress)
    try:
        for sample in range(samples):
            before(sample)
            work.read_all(sample)
        return work.number(work.confirm(), samples - 1)
    finally:
        work.pool.shutdown(cancel_futures=True)


def _hasher(secret: bytes | None) -> Callable[[memoryview], list[int]]:
    """Hashes of the pages in a buffer, one or two numbers each; without a secret by a seed of this run."""
    if secret is not None:
        def keyed(view: memoryview) -> list[int]:
            digest = b"".join(
                hashlib.blake2b(view[at : at + PAGE_SIZE], digest_size=16, key=secret).digest()
                for at in range(0, len(view), PAGE_SIZE)
            )
            numbers: list[int] = np.frombuffer(digest, ">u8").astype(np.uint64).tolist()
            return numbers

        return keyed
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError:
        key = secrets.token_bytes(16)

        def slow(view: memoryview) -> list[int]:
            return [
                int.from_bytes(hashlib.blake2b(view[at : at + PAGE_SIZE], digest_size=8, key=key).digest(), "big")
                for at in range(0, len(view), PAGE_SIZE)
            ]

        return slow
    seed = secrets.randbits(64)

    def fast(view: memoryview) -> list[int]:
        return [xxh3_64_intdigest(view[at : at + PAGE_SIZE], seed) for at in range(0, len(view), PAGE_SIZE)]

    return fast


@dataclass(slots=True)
class _Groups:
    """Pages by content: `page` int64[n] sorted by content, `first` int64[contents + 1] where each begins."""

    page: I64Array
    first: I64Array
    leader: I64Array = field(init=False)

    def __post_init__(self) -> None:
        self.leader = self.page[self.first[:-1]]


class _Interning:
    """The arrays of one `intern`: all pages of all sources, one after the other."""

    def __init__(self, sources: Sequence[Pages], secret: bytes | None, progress: Progress):
        self.sources = sources
        self.progress = progress
        self.offset = np.concatenate(([0], np.cumsum([source.nr_pages for source in sources]))).astype(np.int64)
        n = self.n = int(self.offset[-1])
        self.hash = np.zeros((2 if secret is not None else 1, n), np.uint64)
        self.begins = np.zeros((n, 4), np.uint64)
        self.read = np.zeros(n, bool)
        self.changes = np.zeros(n, np.uint16)
        #: pages that got another content while their bytes were compared: how often; equal to nobody if that goes on
        self.turned = np.zeros(n, np.uint8)
        self.alone = np.zeros(n, bool)
        #: tells contents apart that share a hash
        self.apart = np.zeros(n, np.uint16)
        self.hash_pages = _hasher(secret)
        self.keyed = secret is not None
        self.local = threading.local()
        self.pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _WORKERS))

    # ---------------------------------------------------------- reading

    def buffer(self, pages: int) -> U8Array:
        """Memory for some pages, the same one again for each thread."""
        have: U8Array | None = getattr(self.local, "buffer", None)
        if have is None or len(have) < pages:
            have = self.local.buffer = np.empty((max(pages, BATCH), PAGE_SIZE), np.uint8)
        return have[:pages]

    def fetch(self, page: I64Array, into: U8Array) -> BoolArray:
        """The bytes of pages of any sources, ascending: which could be read."""
        ok = np.zeros(len(page), bool)
        cuts = np.searchsorted(page, self.offset)
        for source in np.flatnonzero(np.diff(cuts)).tolist():
            part = slice(int(cuts[source]), int(cuts[source + 1]))
            ok[part] = self.sources[source].read(page[part] - self.offset[source], into[part])
        return ok

    def hashes(self, pages: U8Array) -> U64Array:
        """uint64[1 or 2, n] of n pages."""
        numbers = self.hash_pages(pages.reshape(-1).data)
        return np.array(numbers, np.uint64).reshape(len(pages), -1).T

    def each(self, what: str, tasks: Sequence[slice], do: Callable[[slice], None], total: int) -> None:
        """Do tasks on all processors."""
        done = 0
        self.progress(what, 0, total)
        for task, _ in zip(tasks, self.pool.map(do, tasks), strict=True):
            done += task.stop - task.start
            self.progress(what, done, total)

    def read_all(self, sample: int) -> None:
        """Read every page of every source once."""
        tasks = [
            slice(at, min(at + BATCH, int(self.offset[source + 1])))
            for source in range(len(self.sources))
            for at in range(int(self.offset[source]), int(self.offset[source + 1]), BATCH)
        ]

        def batch(part: slice) -> None:
            buffer = self.buffer(part.stop - part.start)
            ok = self.fetch(np.arange(part.start, part.stop), buffer)
            found = self.hashes(buffer)
            if sample:
                old = self.hash[:, part]
                self.changes[part] += (ok & self.read[part] & (old != found).any(axis=0)).astype(np.uint16)
            self.hash[:, part] = found
            _bytes.beginnings(buffer.view(np.uint64), self.begins[part])
            # what was there once and is not now has gone
            self.read[part] = ok & self.read[part] if sample else ok

        self.each(f"reading {sample + 1}", tasks, batch, self.n)

    # ---------------------------------------------------------- equal by bytes

    def groups(self, which: I64Array) -> _Groups:
        """Pages by what is thought to be their content."""
        if not len(which):
            return _Groups(which, np.zeros(1, np.int64))
        # a page alone is told apart by its number; that one holds nothing but zeros is known without a hash
        others = (np.where(self.alone[which], which + 1, 0), self.apart[which], self.begins[which, 0] == 0)
        hashes = list(self.hash[:, which])
        order = np.argsort(hashes[0], kind="stable")
        same = np.diff(hashes[0][order]) == 0
        if any((same & (key[order][1:] != key[order][:-1])).any() for key in (*others, *hashes[1:])):
            order = np.lexsort((which, *others, *hashes[::-1]))
        new = np.ones(len(which) + 1, bool)
        new[1:-1] = False
        for key in (*others, *hashes):
            new[1:-1] |= key[order][1:] != key[order][:-1]
        return _Groups(which[order], np.flatnonzero(new))

    def confirm(self) -> _Groups:
        """Compare the bytes of pages whose hashes agree, until no two pages are thought equal that are not."""
        which = np.flatnonzero(self.read)
        groups = doubtful = self.groups(which)
        for _ in range(_ROUNDS):
            size = np.diff(doubtful.first)
            # zeros are known for what they are
            many = (size > 1) & (self.begins[doubtful.leader, 0] != 0)
            if not many.any():
                break
            # by where the first of each stands: so neighbours are read in one go
            order = np.flatnonzero(many)
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
        tasks = list(_batches(leader))
        again: list[I64Array] = []
        new: list[tuple[I64Array, U64Array, U64Array]] = []

        def batch(part: slice) -> None:
            wanted, place = np.unique(np.concatenate((page[part], leader[part])), return_inverse=True)
            buffer = self.buffer(len(wanted))
            ok = self.fetch(wanted, buffer)
            mine, lead = np.split(place, 2)
            other = np.arange(len(wanted))
            other[mine] = lead
            same = np.empty(len(wanted), np.uint8)
            _bytes.equal(buffer.view(np.uint64), other, same)
            if same.all() and ok.all():
                return
            # who is not what it was?
            found = self.hashes(buffer)
            moved = (found != self.hash[:, wanted]).any(axis=0)
            gone = wanted[~ok]
            self.read[gone] = False
            turned = wanted[ok & moved]
            begins = np.empty((len(wanted), 4), np.uint64)
            _bytes.beginnings(buffer.view(np.uint64), begins)
            # not before all have been compared: a leader is that of others too
            new.append((turned, found[:, ok & moved], begins[ok & moved]))
            differs = (same[mine] == 0) & ok[mine] & ~moved[mine] & ok[lead] & ~moved[lead]
            self.apart[page[part][differs]] += 1
            # a group without its leader is compared anew, and so are those who share a hash but not their bytes
            left = differs | (ok[mine] & ~moved[mine] & (~ok[lead] | moved[lead]))
            again.append(page[part][left])

        self.each("comparing", tasks, batch, len(page))
        for turned, found, begins in new:
            self.hash[:, turned], self.begins[turned], self.apart[turned] = found, begins, 0
        if new:
            turned = np.unique(np.concatenate([some for some, _, _ in new]))
            self.turned[turned] += 1
            self.alone[turned] = self.turned[turned] > _TURNS
            again.append(turned)
        return np.unique(np.concatenate(again)) if again else np.empty(0, np.int64)

    # ---------------------------------------------------------- in byte order

    def number(self, groups: _Groups, comparisons: int) -> Interned:
        """Keys of all pages."""
        leader = groups.leader
        order = np.arange(len(leader)) if self.keyed else self.in_order(leader)
        zero = self.begins[leader[order], 0] == 0
        rank = np.empty(len(leader), np.uint64)
        rank[order] = np.cumsum(~zero).astype(np.uint64)
        rank[order[zero]] = 0
        keys = np.full(self.n, UNKNOWN, np.uint64)
        keys[groups.page] = np.repeat(rank, np.diff(groups.first))
        nr = int(rank.max()) + 1 if len(rank) else 1
        digests = None
        if self.keyed:
            digests = np.zeros((nr, 2), np.uint64)
            digests[rank] = self.hash[:, leader].T
            digests[0] = self.hashes(np.zeros((1, PAGE_SIZE), np.uint8))[:, 0]
        # who has turned since the last reading may do so any time: that tells no rate
        self.changes = np.maximum(self.changes, self.alone if comparisons else self.turned > 0)
        prefix = 0.0 if self.keyed else self.prefix(leader[order])
        return Interned(
            [keys[a:b] for a, b in self.parts()], [self.changes[a:b] for a, b in self.parts()], nr, digests, comparisons,
            prefix,
        )  # fmt: skip

    def prefix(self, ordered: I64Array) -> float:
        """Mean common front of contents, from some of them; these are given in byte order, a page each."""
        if not len(ordered):
            return 0.0
        pick = ordered[np.unique(np.linspace(0, len(ordered) - 1, _FOR_PREFIX).astype(np.int64))]
        ascending = np.argsort(pick)
        buffer = self.buffer(len(pick))
        ok, row = np.empty(len(pick), bool), np.empty(len(pick), np.int64)
        ok[ascending] = self.fetch(pick[ascending], buffer)
        row[ascending] = np.arange(len(pick))
        return mean_prefix(buffer[row[ok]])

    def parts(self) -> Iterator[tuple[int, int]]:
        return zip(self.offset[:-1].tolist(), self.offset[1:].tolist(), strict=True)

    def in_order(self, leader: I64Array) -> I64Array:
        """The order of contents, one page of each given: indices into `leader`."""
        begins = self.begins[leader]
        order = np.lexsort(begins.T[::-1])
        ties = list(_ties(begins[order]))
        total = sum(b - a for a, b in ties)
        done = 0
        for part in _together(ties):
            self.progress("ordering", done, total)
            self.settle(leader, order, part)
            done += sum(b - a for a, b in part)
        if total:
            self.progress("ordering", total, total)
        return order

    def settle(self, leader: I64Array, order: I64Array, ties: list[tuple[int, int]]) -> None:
        """Put runs of contents that begin alike into order, by their bytes; runs are ranges of `order`."""
        if len(ties) == 1 and ties[0][1] - ties[0][0] > _TOGETHER:
            self.split(leader, order, *ties[0])
            return
        place = np.concatenate([np.arange(a, b) for a, b in ties])
        pages = leader[order[place]]
        ascending = np.argsort(pages)
        buffer = self.buffer(len(pages))
        self.fetch(pages[ascending], buffer)
        row = np.empty(len(pages), np.int64)
        row[ascending] = np.arange(len(pages))
        at = 0
        for a, b in ties:
            rows = row[at : at + b - a].tolist()
            # where one has changed meanwhile its place does not matter: it is equal to nobody
            sequence = sorted(range(b - a), key=[buffer[r].tobytes() for r in rows].__getitem__)
            order[a:b] = order[a:b][sequence]
            at += b - a

    def split(self, leader: I64Array, order: I64Array, start: int, stop: int, depth: int = 0) -> None:
        """A run too long to be held in memory: in parts, by where its pages first differ from one of them."""
        mine = order[start:stop].copy()
        reference = np.empty((1, PAGE_SIZE), np.uint8)
        self.fetch(leader[mine[len(mine) // 2 :][:1]], reference)
        differs = np.empty((len(mine), 2), np.uint64)
        sequence = np.argsort(leader[mine])
        for at in range(0, len(mine), BATCH):
            some = sequence[at : at + BATCH]
            buffer = self.buffer(len(some))
            self.fetch(leader[mine[some]], buffer)
            answer = np.empty((len(some), 2), np.uint64)
            _bytes.against(buffer.view(np.uint64), reference.view(np.uint64)[0], answer)
            differs[some] = answer
        by = np.lexsort(differs.T[::-1])
        order[start:stop] = mine[by]
        for part in _together([(start + a, start + b) for a, b in _ties(differs[by])]):
            [(a, b), *more] = part
            if not more and b - a > _TOGETHER:
                # pages that are all equal now have changed: any order does
                if depth < _ROUNDS and b - a < stop - start:
                    self.split(leader, order, a, b, depth + 1)
            else:
                self.settle(leader, order, part)


def _ties(rows: U64Array) -> Iterator[tuple[int, int]]:
    """Runs of two or more equal rows."""
    if len(rows) < 2:
        return
    new = np.flatnonzero(np.concatenate(([True], (rows[1:] != rows[:-1]).any(axis=1), [True])))
    long = np.flatnonzero(np.diff(new) > 1)
    yield from zip(new[long].tolist(), new[long + 1].tolist(), strict=True)


def _together(ties: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Runs that can be looked at together; one that is too long comes alone."""
    some: list[tuple[int, int]] = []
    pages = 0
    for a, b in ties:
        if some and pages + b - a > _TOGETHER:
            yield some
            some, pages = [], 0
        some.append((a, b))
        pages += b - a
    if some:
        yield some


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
