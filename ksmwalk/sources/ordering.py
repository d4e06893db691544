"""The byte order of contents: by how each begins, and where several begin alike by their bytes, which are read again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..layout import PAGE_SIZE
from ..signatures import BoolArray, I64Array, U64Array
from . import _bytes
from .pages import BATCH, Pages, Progress

#: pages looked at together where their order is decided: 16 MiB
_TOGETHER = 4096
_ROUNDS = 64


def byte_order(pages: Pages, page: I64Array, begins: U64Array, progress: Progress) -> I64Array:
    """Put contents into byte order.

    Parameters
    ----------
    pages : Pages
    page : int64[n]
        A page of each content.
    begins : uint64[n, 4]
        How each begins, as `_bytes.beginnings` says it.
    progress : callable of (str, int, int)

    Returns
    -------
    int64[n]
        Indices into `page`, in the order of the contents. A page that has changed meanwhile stands anywhere: it is equal to
        nobody.
    """
    return _Ordering(pages, page, begins, progress).order


class _Ordering:
    def __init__(self, pages: Pages, page: I64Array, begins: U64Array, progress: Progress):
        self.pages, self.page = pages, page
        # of how it begins what fits one number: how many words of zeros, and most of the first other word
        coarse = begins[:, 0] << np.uint64(54) | begins[:, 1] >> np.uint64(10)
        order, tied = about_sorted(coarse)
        self.order = order
        place = np.flatnonzero(tied)
        some = order[place]
        begins = begins.take(some, axis=0)
        by = np.lexsort(begins.T[::-1])
        order[place] = some[by]
        ties = [(place[a], place[b - 1] + 1) for a, b in _ties(begins[by])]
        total = sum(b - a for a, b in ties)
        done = 0
        for part in _together(ties):
            progress("ordering", done, total)
            self.settle(part)
            done += sum(b - a for a, b in part)
        if total:
            progress("ordering", total, total)

    def settle(self, ties: list[tuple[int, int]]) -> None:
        """Put runs of contents that begin alike into order, by their bytes; runs are ranges of `order`."""
        if len(ties) == 1 and ties[0][1] - ties[0][0] > _TOGETHER:
            self.split(*ties[0])
            return
        place = np.concatenate([np.arange(a, b) for a, b in ties])
        mine = self.order[place]
        pages = self.page[mine]
        ascending = np.argsort(pages)
        buffer = np.empty((len(pages), PAGE_SIZE), np.uint8)
        self.pages.read(pages[ascending], buffer)
        row = np.empty(len(pages), np.int64)
        row[ascending] = np.arange(len(pages))
        # where one has changed meanwhile its place does not matter: it is equal to nobody
        _bytes.sort_runs(buffer.view(np.uint64), row, np.cumsum([0, *(b - a for a, b in ties)], dtype=np.int64))
        self.order[place] = mine[ascending][row]

    def split(self, start: int, stop: int, depth: int = 0) -> None:
        """A run too long to be held in memory: in parts, by where its pages first differ from one of them."""
        mine = self.order[start:stop].copy()
        reference, buffer = np.empty((1, PAGE_SIZE), np.uint8), np.empty((BATCH, PAGE_SIZE), np.uint8)
        self.pages.read(self.page[mine[len(mine) // 2 :][:1]], reference)
        differs = np.empty((len(mine), 2), np.uint64)
        sequence = np.argsort(self.page[mine])
        for at in range(0, len(mine), BATCH):
            some = sequence[at : at + BATCH]
            self.pages.read(self.page[mine[some]], buffer[: len(some)])
            answer = np.empty((len(some), 2), np.uint64)
            _bytes.against(buffer[: len(some)].view(np.uint64), reference.view(np.uint64)[0], answer)
            differs[some] = answer
        by = np.lexsort(differs.T[::-1])
        self.order[start:stop] = mine[by]
        for part in _together([(start + a, start + b) for a, b in _ties(differs[by])]):
            [(a, b), *more] = part
            if not more and b - a > _TOGETHER:
                # pages that are all equal now have changed: any order does
                if depth < _ROUNDS and b - a < stop - start:
                    self.split(a, b, depth + 1)
            else:
                self.settle(part)


def about_sorted(numbers: U64Array) -> tuple[I64Array, BoolArray]:
    """Sort numbers by their upper bits, and by their place where these are equal.

    Parameters
    ----------
    numbers : uint64[n]

    Returns
    -------
    (int64[n], bool[n])
        Indices; which of them, in this order, have upper bits that another has too, so that it may have to stand elsewhere.
    """
    # a number and its place in one word, by digits: a fifth of the time of argsort()
    bits = np.uint64(max(len(numbers) - 1, 1).bit_length())
    words = numbers >> bits << bits
    words |= np.arange(len(numbers), dtype=np.uint64)
    _bytes.sort_words(words, int(bits))
    order = (words & (np.uint64(1) << bits) - np.uint64(1)).view(np.int64)
    words >>= bits
    tied = np.zeros(len(numbers), bool)
    np.equal(words[1:], words[:-1], out=tied[1:])
    tied[:-1] |= tied[1:]
    return order, tied


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
