"""Pages whose bytes can be read again and again: what contents are made into keys from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ..proc.memory import LivePages
from ..signatures import BoolArray, I64Array, U8Array, U64Array
from .hashing import Folded, Hasher

#: pages asked for in one call, so that what Python does around it counts little; they are hashed 64 at a time, in the cache
BATCH = 1024

#: what is done, pages done, pages in all
Progress = Callable[[str, int, int], None]


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


class AllPages:
    """The pages of several sources, one after the other, by one number.

    Parameters
    ----------
    sources : sequence of Pages

    Attributes
    ----------
    nr_pages : int
    offset : int64[sources + 1]
        The number of each source's first page.

    Models: nothing of Linux. Differs: has no counterpart there.
    """

    def __init__(self, sources: Sequence[Pages]):
        self._sources = sources
        self.offset: I64Array = np.cumsum([0, *(source.nr_pages for source in sources)], dtype=np.int64)
        self.nr_pages = int(self.offset[-1])

    def read(self, which: I64Array, into: U8Array) -> BoolArray:
        """Read pages by number, ascending, into uint8[n, 4096]: which could be read, as `Pages.read`."""
        if not len(which):
            return np.zeros(0, bool)
        if (source := self._of(which)) is not None:
            return self._sources[source].read(which - self.offset[source], into)
        ok = np.zeros(len(which), bool)
        cuts = np.searchsorted(which, self.offset)
        for source in np.flatnonzero(np.diff(cuts)).tolist():
            part = slice(int(cuts[source]), int(cuts[source + 1]))
            ok[part] = self._sources[source].read(which[part] - self.offset[source], into[part])
        return ok

    def read_hashed(self, which: I64Array, into: U8Array, hasher: Hasher, hashes: U64Array) -> BoolArray:
        """The same, and hash what was read into uint64[numbers, n]; of other pages the hash means nothing."""
        if isinstance(hasher, Folded) and len(which) and (number := self._of(which)) is not None:
            source = self._sources[number]
            if isinstance(source, LivePages):
                return source.read_folded(which - self.offset[number], into, hasher.seeds, hashes[0])
        ok = self.read(which, into)
        hashes[:] = hasher.hash(into)
        return ok

    def _of(self, which: I64Array) -> int | None:
        """The one source that some pages are all of."""
        first, last = np.searchsorted(self.offset, (which[0], which[-1]), "right").tolist()
        return first - 1 if first == last else None

    def parts(self) -> list[slice]:
        """For each source the range of its pages."""
        return [slice(a, b) for a, b in zip(self.offset[:-1].tolist(), self.offset[1:].tolist(), strict=True)]
