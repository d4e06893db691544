"""Pages that are unique by a few bytes only: which they are, and at which offsets they differ.

Each page is sixteen blocks of 256 bytes. Blocks are hashed to find pages that share most of them, the bytes of such pairs
are compared, and only the offsets that differ are kept, with what the words there look like.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..gate import as_int
from ..layout import PAGE_SIZE
from ..proc.memory import LivePages, OpenFiles
from ..signatures import AnyArray, BoolArray, I64Array, RecordArray, U8Array, U64Array
from .contents import MemoryCapture, readable
from .keys import BATCH, UNKNOWN, Progress

BLOCKS = 16
#: blocks that two pages have to share
SHARED = 12
#: bytes in which two pages may differ and still be near
FEW = 64
#: contents that are looked at, at most: 128 bytes of memory for each
MOST = 1 << 20
_WORDS = PAGE_SIZE // BLOCKS // 8
#: pairs compared at a time: 8 MiB
_TOGETHER = 1024
#: a page that is near the page of zeros
ZERO = -1
KINDS = ("pointer", "time", "malloc", "counter", "data")
#: a row a pair: the page, by process and number in the capture, the one it is near to (process -1: a page of zeros), bytes
#: and words in which they differ, offset of the first and the end of the last of them, what the first word looks like
NEAR_DTYPE = np.dtype(
    [("process", np.int64), ("page", np.int64), ("addr", np.uint64), ("other_process", np.int64), ("other_page", np.int64),
     ("bytes", np.int64), ("words", np.int64), ("first", np.int64), ("last", np.int64), ("kind", np.uint8)]
)  # fmt: skip


@dataclass(slots=True)
class Near:
    """What `find_near` found.

    Attributes
    ----------
    pairs : ndarray of NEAR_DTYPE
        A row for each page that is near another, ascending; `kind` is an index into `KINDS`.
    offsets : ndarray of int64, shape (pairs, 4)
        Offsets of the first four words that differ, multiples of 8; -1: fewer do.
    histogram : ndarray of int64, shape (4096,)
        How many pairs differ at each offset.
    looked_at : int
        Unique pages that were looked at.
    notes : list of str

    Models: nothing; this is the real machine's own view.
    Differs: see `find_near`.
    """

    pairs: RecordArray
    offsets: I64Array
    histogram: I64Array
    looked_at: int
    notes: list[str] = field(default_factory=list)


def find_near(
    what: MemoryCapture,
    *,
    about: Iterable[int] | None = None,
    few: int = FEW,
    most: int = MOST,
    progress: Progress = lambda what, done, total: None,
) -> Near:
    """Find unique pages that differ from another page in a few bytes; the processes are read again.

    Parameters
    ----------
    what : MemoryCapture
        Of live processes, with contents.
    about : iterable of int, optional
        Numbers of the processes whose pages are looked at; others are only what they may be near to. By default all.
    few : int
        Bytes in which two pages may differ at most.
    most : int
        Contents that are looked at; of more, every second, third and so on.
    progress : callable of (str, int, int)
        What is done, pages done, pages in all.

    Returns
    -------
    Near

    Raises
    ------
    ValueError
        `few` or `most` is out of range; a capture that is not of live processes.

    Models: nothing. Differs: of the pages that share 12 of 16 blocks with a page only a few are compared with it, the
    nearest of them is named; a page that has changed since it was captured is compared as it is now. No byte is kept.
    """
    few, most = as_int(few, "few", 1, PAGE_SIZE // 4), as_int(most, "most", 2, 1 << 24)
    if what.machine.get("kind") != "live":
        raise ValueError("near pages need their bytes: only live processes can be read again")
    notes: list[str] = []
    chosen = _Contents(what, None if about is None else set(about), most, notes)
    try:
        blocks = chosen.hash_blocks(progress)
        first, second = _candidates(blocks, chosen)
        pairs, offsets, histogram = _compare(chosen, first, second, few, progress)
    finally:
        chosen.files.close()
    return Near(pairs, offsets, histogram, int(np.count_nonzero(chosen.mine)), notes)


class _Contents:
    """One page of each content, all processes one after the other, and which of them are unique pages in question."""

    def __init__(self, what: MemoryCapture, about: set[int] | None, most: int, notes: list[str]):
        self.what, self.files = what, OpenFiles()
        keys, owners, pages = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for index, one in enumerate(what.processes):
            if one.key is None:
                continue
            which = np.flatnonzero(readable(one) & (one.key != np.uint64(UNKNOWN)) & (one.key != 0))
            keys.append(one.key[which])
            owners.append(np.full(len(which), index))
            pages.append(which)
        key, owner, page = np.concatenate(keys), np.concatenate(owners), np.concatenate(pages)
        _, first, count = np.unique(key, return_index=True, return_counts=True)
        order = np.argsort(first)
        first, count = first[order], count[order]
        step = -(-len(first) // most)
        if step > 1:
            notes.append(f"Of {len(first):,} contents only every {step}th was looked at.")
            first, count = first[::step], count[::step]
        self.owner, self.page = owner[first], page[first]
        asked = np.array([about is None or one.pid in about for one in what.processes], bool)
        self.mine: BoolArray = (count == 1) & asked[self.owner]
        self.addr = np.zeros(len(first), np.uint64)
        self.sources: list[LivePages | None] = []
        self.start: I64Array = np.searchsorted(self.owner, np.arange(len(what.processes) + 1))
        for index, one in enumerate(what.processes):
            part = slice(int(self.start[index]), int(self.start[index + 1]))
            self.addr[part] = one.addr[self.page[part]]
            pfn = None if one.pfn is None else one.pfn[self.page[part]]
            self.sources.append(LivePages(one.pid, self.addr[part], pfn, self.files))

    def read(self, numbers: I64Array, into: U8Array) -> BoolArray:
        """The bytes of some contents, in any order: which could be read."""
        wanted, place = np.unique(numbers, return_inverse=True)
        buffer = np.zeros((len(wanted), PAGE_SIZE), np.uint8)
        ok = np.zeros(len(wanted), bool)
        cuts = np.searchsorted(wanted, self.start)
        for index in np.flatnonzero(np.diff(cuts)).tolist():
            part = slice(int(cuts[index]), int(cuts[index + 1]))
            source = self.sources[index]
            if source is not None:
                for at in range(part.start, part.stop, BATCH):
                    some = slice(at, min(at + BATCH, part.stop))
                    ok[some] = source.read(wanted[some] - self.start[index], buffer[some])
        into[:] = buffer[place]
        return ok[place]

    def hash_blocks(self, progress: Progress) -> U64Array:
        """uint64[contents, 16]: a hash of each block, 0 for one of zeros; a row of zeros where nothing could be read."""
        n = len(self.page)
        # odd numbers: two blocks that differ in one word never agree, others by a chance of about 2**-60
        factors = np.frombuffer(secrets.token_bytes(8 * _WORDS), np.uint64) | np.uint64(1)
        out = np.zeros((n, BLOCKS), np.uint64)
        for at in range(0, n, BATCH):
            stop = min(at + BATCH, n)
            buffer = np.empty((stop - at, PAGE_SIZE), np.uint8)
            ok = self.read(np.arange(at, stop), buffer)
            words = buffer.view(np.uint64).reshape(-1, BLOCKS, _WORDS)
            out[at:stop] = np.where(ok[:, None], (words * factors).sum(axis=2, dtype=np.uint64), np.uint64(0))
            progress("hashing blocks", stop, n)
        return out


def _candidates(blocks: U64Array, chosen: _Contents) -> tuple[I64Array, I64Array]:
    """Pairs to be compared: a page in question each, and the one that shares the most blocks with it, or `ZERO`."""
    n = len(blocks)
    best, partner = np.zeros(n, np.int64), np.full(n, ZERO)
    read = blocks.any(axis=1)
    for position in range(BLOCKS):
        column = blocks[:, position]
        # equal blocks side by side, and of these pages those whose next block is equal too
        order = np.lexsort((blocks[:, (position + 1) % BLOCKS], column))
        order = order[column[order] != 0]
        for step in (1, 2):
            _pair(blocks, column, order[:-step], order[step:], best, partner)
        head = np.ones(len(order), bool)
        head[1:] = column[order[1:]] != column[order[:-1]]
        leader = order[np.maximum.accumulate(np.where(head, np.arange(len(order)), 0))] if len(order) else order
        _pair(blocks, column, order[~head], leader[~head], best, partner)
    nothing = (BLOCKS - (blocks != 0).sum(axis=1)).astype(np.int64)
    empty = nothing > best
    best[empty], partner[empty] = nothing[empty], ZERO
    found = np.flatnonzero(chosen.mine & read & (best >= SHARED))
    return found, partner[found]


def _pair(blocks: U64Array, column: U64Array, one: I64Array, other: I64Array, best: I64Array, partner: I64Array) -> None:
    """Note of each of some pairs with an equal block how many they share, where that is more than before."""
    for at in range(0, len(one), 1 << 16):
        a, b = one[at : at + (1 << 16)], other[at : at + (1 << 16)]
        equal = column[a] == column[b]
        a, b = a[equal], b[equal]
        shared = (blocks[a] == blocks[b]).sum(axis=1)
        for mine, its in ((a, b), (b, a)):
            # of a page that comes several times the best stays: sorted, the last written counts
            by = np.argsort(shared, kind="stable")
            better = by[shared[by] > best[mine[by]]]
            best[mine[better]], partner[mine[better]] = shared[better], its[better]


def _compare(
    chosen: _Contents, first: I64Array, second: I64Array, few: int, progress: Progress
) -> tuple[RecordArray, I64Array, I64Array]:
    """Read pairs and compare their bytes: those that are near, by page, the words in which they differ, and how often each byte."""
    rows: list[RecordArray] = [np.empty(0, NEAR_DTYPE)]
    offsets: list[I64Array] = [np.empty((0, 4), np.int64)]
    histogram = np.zeros(PAGE_SIZE, np.int64)
    guess = _Guess(chosen.what)
    for at in range(0, len(first), _TOGETHER):
        a, b = first[at : at + _TOGETHER], second[at : at + _TOGETHER]
        mine, its = np.empty((len(a), PAGE_SIZE), np.uint8), np.zeros((len(a), PAGE_SIZE), np.uint8)
        ok = chosen.read(a, mine)
        some = b != ZERO
        if some.any():
            buffer = np.empty((int(some.sum()), PAGE_SIZE), np.uint8)
            ok[some] &= chosen.read(b[some], buffer)
            its[some] = buffer
        differ = mine != its
        count = differ.sum(axis=1)
        near = np.flatnonzero(ok & (count > 0) & (count <= few))
        histogram += differ[near].sum(axis=0)
        part, words = _rows(chosen, a[near], b[near], differ[near])
        for row, where in enumerate(near.tolist()):
            word = int(words[row, 0]) // 8
            values = (int(mine[where].view(np.uint64)[word]), int(its[where].view(np.uint64)[word]))
            part["kind"][row] = guess.kind(values, int(words[row, 0]), int(a[near][row]), int(b[near][row]), chosen)
        rows.append(part)
        offsets.append(words)
        progress("comparing near pages", at + len(a), len(first))
    return np.concatenate(rows), np.concatenate(offsets), histogram


def _rows(chosen: _Contents, a: I64Array, b: I64Array, differ: AnyArray) -> tuple[RecordArray, I64Array]:
    out = np.zeros(len(a), NEAR_DTYPE)
    out["process"], out["page"], out["addr"] = chosen.owner[a], chosen.page[a], chosen.addr[a]
    zero = b == ZERO
    out["other_process"] = np.where(zero, ZERO, chosen.owner[b])
    out["other_page"] = np.where(zero, ZERO, chosen.page[b])
    out["bytes"] = differ.sum(axis=1)
    words = differ.reshape(len(a), PAGE_SIZE // 8, 8).any(axis=2)
    out["words"] = words.sum(axis=1)
    offsets = np.full((len(a), 4), -1, np.int64)
    if len(a):
        out["first"] = differ.argmax(axis=1)
        out["last"] = PAGE_SIZE - differ[:, ::-1].argmax(axis=1)
        order = np.argsort(~words, axis=1, kind="stable")[:, :4]
        offsets = np.where(np.take_along_axis(words, order, axis=1), order * 8, -1)
    return out, offsets


class _Guess:
    """What a word looks like, by its value in both pages; values are not kept."""

    def __init__(self, what: MemoryCapture):
        self.starts = [np.array([vma.start for vma in one.vmas], np.uint64) for one in what.processes]
        self.ends = [np.array([vma.end for vma in one.vmas], np.uint64) for one in what.processes]
        self.now = int(time.time())

    def kind(self, values: tuple[int, int], offset: int, a: int, b: int, chosen: _Contents) -> int:
        """Index into `KINDS`."""
        mine, its = values
        if self.points(mine, int(chosen.owner[a])) and (b == ZERO or self.points(its, int(chosen.owner[b])) or not its):
            return KINDS.index("pointer")
        if self.is_time(mine) and (b == ZERO or self.is_time(its)):
            return KINDS.index("time")
        # glibc: the size of a chunk stands 8 bytes before what it hands out, its low bits are flags
        if offset % 16 == 8 and mine & 1 and its & 1 and max(mine, its) < 1 << 27 and not (mine | its) & 8:
            return KINDS.index("malloc")
        return KINDS.index("counter" if max(mine, its) < 1 << 32 else "data")

    def points(self, value: int, process: int) -> bool:
        """Whether this is an address in one of the process's mappings."""
        if not PAGE_SIZE <= value < 1 << 57:
            return False
        at = int(np.searchsorted(self.starts[process], np.uint64(value), "right")) - 1
        return at >= 0 and value < int(self.ends[process][at])

    def is_time(self, value: int) -> bool:
        """Whether this is a moment of the last ten years, in seconds, milli-, micro- or nanoseconds since 1970."""
        ten_years = 10 * 366 * 86400
        return any(0 <= self.now + 60 - value // scale <= ten_years for scale in (1, 10**3, 10**6, 10**9))
