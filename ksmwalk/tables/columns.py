"""What `mappings(columns=True)` gives: two columns, and the level of each leaf."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..entries import LEVELS, Pte
from ..signatures import I64Array, U8Array, U64Array


class Columns:
    """The leaf mappings of a range as packed columns, 16 bytes a mapping where a record has 32.

    Attributes
    ----------
    addr : ndarray of uint64
        Bytes, canonical: the upper half sign-extended.
    entry : ndarray of uint64
        The packed entry as it stands in its table; `entries` says what is in it.
    level : ndarray of uint8
        1 pte, 2 pmd, 3 pud; made when it is asked for.

    Examples
    --------
    >>> from ksmwalk import PageTables, entries
    >>> tables = PageTables()
    >>> tables.map_range(1 << 30, [7, 8])
    >>> addr, entry = tables.mappings(columns=True)
    >>> addr.tolist(), entries.pfn(entry).tolist()
    ([1073741824, 1073745920], [7, 8])
    """

    __slots__ = ("_odd", "addr", "entry")

    addr: U64Array
    entry: U64Array

    def __init__(self, addr: U64Array, entry: U64Array, odd: I64Array):
        # odd: of leaves whose level does not show, index * 4 + level.
        self.addr, self.entry, self._odd = addr, entry, odd

    def __iter__(self) -> Iterator[U64Array]:
        return iter((self.addr, self.entry))

    def __repr__(self) -> str:
        return f"<Columns addr, entry of {len(self.addr):,} mappings>"

    @property
    def level(self) -> U8Array:
        # Bit 7 says so of a pmd and is PAT in a pte; a pte where both could be is noted, and so is a pud.
        large = (self.entry & np.uint64(Pte.PS) != 0) & (self.addr & np.uint64(LEVELS[2].size - 1) == 0)
        level: U8Array = large.astype(np.uint8) + np.uint8(1)
        level[self._odd >> 2] = self._odd & 3
        return level
