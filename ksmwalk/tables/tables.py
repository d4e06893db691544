"""Page tables: an arena of table pages that is a physical image of itself, or an image of someone else's."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _core, entries, layout
from ..entries import Pte
from ..errors import ArenaFullError, BadEntryError, check
from ..gate import MAX_U64, as_array, as_int, shown
from ..layout import Code
from ..layout.arena import reserve
from ..signatures import Integers, U64Array
from . import _map, saved
from .reading import Readable

USER_RW = Pte.P | Pte.RW | Pte.US | Pte.A | Pte.D | Pte.NX
#: table pages an arena may reserve: what 47 bits of address space hold
_MOST_TABLES = 1 << 34
#: frames that an entry can name
_MOST_PFN = (1 << 40) - 1


def _image_rows(rows: object) -> U64Array:
    try:
        a = np.asarray(rows)
    except Exception:
        raise TypeError(f"rows {shown(rows)}: must be uint64 of shape (n, 512)") from None
    if a.dtype != np.uint64 or a.ndim != 2 or a.shape[1] != 512:
        raise TypeError(f"rows of dtype {a.dtype} and shape {a.shape}: must be uint64 of shape (n, 512)")
    if not len(a):
        raise ValueError("rows: no table page at all")
    return np.ascontiguousarray(a)


class PageTables(Readable):
    """One set of page tables.

    Those of an address space (`mm.tables`) are its own for its life: after its exit or exec every use raises
    ReferenceError. One thread at a time may use them, and all that belongs to one Host; a second one gets RuntimeError.

    Parameters
    ----------
    levels : int
        4 (48-bit addresses) or 5 (57-bit).
    capacity : int
        Table pages the arena may grow to; address space is reserved, memory comes as it is used.
    on_bad : {"raise", "report"}
        What a walk does with an entry that can't be followed: raise `BadEntryError`, or note it in `bad` and go on.

    Attributes
    ----------
    rows : ndarray of uint64, shape (n, 512)
        The table pages, no copy, read-only. In an arena the row number is the frame number of the table page; row 0 is
        never used.
    root : int
        Row of the top table.

    Models: x86-64 page tables as Linux 6.18 keeps them. Differs: table pages have a frame numbering of their own.
    """

    def __init__(self, levels: int = 4, capacity: int = 1 << 20, on_bad: str = "raise"):
        levels = as_int(levels, "levels", 4, 5)
        capacity = as_int(capacity, "capacity", 1, _MOST_TABLES)
        rows = reserve(capacity + 1, np.uint64, shape=(512,))
        ctl = np.zeros(1, layout.CTL)
        ctl["levels"] = levels
        ctl["rows_used"] = 1
        ctl["rows_cap"] = capacity + 1
        ctl["mms_used"] = 2
        world = saved.world_of(rows, ctl, np.zeros(2, layout.MM))
        check(_map.new_root(world, 1))
        self._bind(world, 1, levels, on_bad)

    @classmethod
    def of_world(
        cls, world: _core.World, mm: int, levels: int, on_bad: str = "raise", life: _core.Life | None = None
    ) -> PageTables:
        """The page tables of an mm of a Host, in the Host's arena (`mm.tables`)."""
        if not isinstance(world, _core.World):
            raise TypeError(f"world {shown(world)}: must be a World")
        self = cls.__new__(cls)
        mm = as_int(mm, "mm", 1, int(world.arrays["ctl"]["mms_used"][0]) - 1)
        self._bind(world, mm, as_int(levels, "levels", 4, 5), on_bad, life)
        self._host = world.live()  # kept as long as its tables are in use
        return self

    @classmethod
    def from_image(
        cls, rows: ArrayLike, root: int, levels: int = 4, frames: Integers | None = None,
        *, max_pfn: int = 0, on_bad: str = "report",
    ) -> PageTables:  # fmt: skip
        """Page tables read from an existing physical image, in which entries may be anything at all.

        Parameters
        ----------
        rows : array of uint64, shape (n, 512)
            Content of table pages. Only read; not copied where it is contiguous.
        root : int
            Frame number of the top table (CR3 >> 12).
        levels : int
            4 or 5.
        frames : array of int, shape (n,), optional
            Frame number of each row where the image is not whole. Without it row i is frame i.
        max_pfn : int
            First frame beyond the end of memory: leaves at or above it are bad. 0: any frame may be mapped.
        on_bad : {"report", "raise"}
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype or shape, frames not unique, a root that is not in the image; each named.
        """
        rows = _image_rows(rows)
        order = ascending = None
        at = as_int(root, "root", 0, MAX_U64)
        max_pfn = as_int(max_pfn, "max_pfn", 0, _MOST_PFN + 1)
        if frames is not None:
            given = as_array(frames, "frames", np.uint64)
            if len(given) != len(rows):
                raise ValueError(f"{len(given)} frames for {len(rows)} rows: must be one a row")
            order = np.argsort(given, kind="stable").astype(np.int64)
            ascending = np.ascontiguousarray(given[order])
            twice = np.flatnonzero(ascending[1:] == ascending[:-1])
            if twice.size:
                raise ValueError(f"frame {int(ascending[twice[0]]):#x}: given by more than one row")
            i = int(np.searchsorted(ascending, np.uint64(at)))
            if i == len(ascending) or int(ascending[i]) != at:
                raise ValueError(f"root {at:#x}: no row has that frame number")
            at = int(order[i])
        elif at >= len(rows):
            raise ValueError(f"root {shown(at)}: must be a row from 0 to {len(rows) - 1}")
        self = cls.__new__(cls)
        self._set(None, 0, rows, at, as_int(levels, "levels", 4, 5), ascending, order, max_pfn, on_bad)
        return self

    # ---------------------------------------------------------- changing

    def _writable(self) -> _core.World:
        if self._world is None:
            raise ValueError("page tables of an image are read-only")
        self._tables.check()
        return self._world

    def map(self, addr: int, pfn: int, flags: int = USER_RW, level: int = 1) -> None:
        """Map one page (or large page) at an address where nothing is mapped yet; see `map_range`.

        Models: set_pte_at(), set_pmd_at(), set_pud_at() of Linux 6.18. Differs: nothing known.
        """
        self.map_range(addr, np.array([as_int(pfn, "pfn", 0, _MOST_PFN)], np.uint64), flags, level)

    def map_range(self, addr: int, pfns: Integers, flags: int = USER_RW, level: int = 1) -> None:
        """Map consecutive pages, tables made where missing.

        Parameters
        ----------
        addr : int
            Bytes, aligned to the leaf's size.
        pfns : array of int, shape (n,)
            Frame of each page; for a large leaf a multiple of its size in frames.
        flags : int
            `Pte` bits of all of them. PS is added at level 2 and 3.
        level : int
            1 pte, 2 pmd, 3 pud.

        Raises
        ------
        ValueError
            A bad address, frame or flag, or a place that is taken (nothing is mapped then).
        ArenaFullError
            No table page left.

        Models: set_pte_at(), set_pmd_at(), set_pud_at() of Linux 6.18. Differs: nothing known.
        """
        world = self._writable()
        level = as_int(level, "level", 1, 3)
        p = as_array(pfns, "pfns", np.uint64, 0, _MOST_PFN)
        size = entries.LEVELS[level].size
        addr = as_int(addr, "addr")
        if addr % size or not addr <= self.end - size * len(p):
            raise ValueError(f"address {addr:#x}: must be a multiple of {size:#x}, with {len(p)} leaves below {self.end:#x}")
        flags = as_int(flags, "flags")
        if level > 1:
            flags |= Pte.PS
        for i in range(0, len(p), 1 << 20):
            entries.pack(p[i : i + (1 << 20)], flags, level)  # complains about what does not fit
        code, at = _map.map_pages(world, self._mm, addr, p, flags, level)
        check(code, f"address {at:#x}", world.arrays["bad"])

    def unmap(self, start: int, end: int) -> int:
        """Clear every entry of a range, splitting large leaves that stick out; empty tables are freed.

        Returns
        -------
        int
            Leaf (and swap-like) entries cleared.

        Models: unmap_page_range() and free_pgtables() of Linux 6.18. Differs: tables go as soon as they are empty.
        """
        world = self._writable()
        start, end = as_int(start, "start"), as_int(end, "end")
        if not 0 <= start <= end <= self.end or (start | end) & 4095:
            raise ValueError(f"range {start:#x}-{end:#x}: must be page aligned and within 0-{self.end:#x}")
        if start == end:
            return 0
        code, cleared = _map.clear_range(world, self._mm, start, end)
        check(code, f"{start:#x}-{end:#x}", world.arrays["bad"])
        return cleared

    def split(self, addr: int) -> int:
        """Split the large leaf that maps an address into 512 of the next smaller size: same frames, same flags.

        Returns
        -------
        int
            Level of the leaf that was split.

        Raises
        ------
        ValueError
            No large leaf there.

        Models: __split_huge_pmd(), as the walk does before it descends. Differs: nothing known.
        """
        addr = as_int(addr, "addr", 0, self.end - 1)
        world = self._writable()
        code = _map.split_at(world, self._mm, addr)
        if code == Code.NONE:
            raise ValueError(f"address {addr:#x}: no large leaf to split")
        return check(code, f"address {addr:#x}", world.arrays["bad"])

    # ---------------------------------------------------------- keeping

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the tables to a directory of .npy files (no pickles), for `load`.

        They are written beside the place and put there when they are whole.

        Parameters
        ----------
        path : path
            A directory that is not there yet, or an empty one.
        overwrite : bool
            Replace what ksmwalk saved there before.

        Raises
        ------
        FileExistsError
            Something is there already.
        ValueError
            `load` would refuse them: somebody wrote into the rows of an arena.
        OSError
            A symbolic link, no room, no permission. What was there is still there.
        """
        saved.save(self, path, overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PageTables:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
            The directory. The files in it must be regular ones, no links.

        Raises
        ------
        FileNotFoundError, ValueError, OSError
            Something is missing, can't be read, is of a newer version, or does not fit; named.
        """
        self = cls.__new__(cls)
        arrays = saved.load(path)
        try:
            saved.rebuild(self, arrays)
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return saved.state_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved.rebuild(self, saved.from_state(state))

    def __repr__(self) -> str:
        kind = "image" if self.readonly else "arena"
        return f"<PageTables {self.levels} levels, {kind}, {self.nr_tables} tables>"


__all__ = ["ArenaFullError", "BadEntryError", "PageTables", "USER_RW"]
