"""Looking into page tables: what they are, the mappings in them, and what in them can't be followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, overload

import numpy as np

from .. import _core, layout
from ..errors import BadEntryError, Settled, check
from ..gate import MAX_U64, as_flag, as_int, shown
from ..layout import Code
from ..layout.arena import reserve
from ..signatures import AnyArray, I64Array, Owner, RecordArray, U64Array
from . import _mappings, _read
from .columns import Columns

_BAD_KEPT = 1024  # bad entries kept with their details; all are counted
_GROW = 1 << 16  # bytes: smaller results are copied out of the reserved array
_MOST_THREADS = 256


_Room: TypeAlias = Sequence[AnyArray]  # what a walk writes into: one array of records, or two columns


#: what a walk is asked for: start and end as the tables index them, hardware, runs, columns, budget, threads
_Ask: TypeAlias = tuple[int, int, bool, bool, bool, int, int]


def _as_records(out: object) -> _Room:
    if not isinstance(out, np.ndarray) or out.dtype != layout.MAPPING or out.ndim != 1:
        raise TypeError(f"out {shown(out)}: must be an array of layout.MAPPING, of one dimension")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise TypeError(f"out {shown(out)}: must be contiguous and writable")
    return [out]


def _as_pair(out: object) -> _Room:
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise TypeError(f"out {shown(out)}: must be two arrays of uint64 where columns are asked for")
    for array in out:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint64 or array.ndim != 1:
            raise TypeError(f"out {shown(array)}: must be an array of uint64, of one dimension")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise TypeError(f"out {shown(array)}: must be contiguous and writable")
    if len(out[0]) != len(out[1]):
        raise ValueError(f"out of {len(out[0])} addresses and {len(out[1])} entries: must be of one length")
    return out


def _result(parts: list[AnyArray], odd: I64Array | None) -> RecordArray | Columns:
    if odd is None:
        return parts[0]
    return Columns(parts[0], parts[1], odd)


class Readable(Settled):
    """What a PageTables can be asked, whether it is an arena or an image."""

    def _bind(self, world: _core.World, mm: int, levels: int, on_bad: str, life: _core.Life | None = None) -> None:
        rows = world.arrays["rows"]
        self._set(world, mm, rows, int(world.arrays["mms"]["root"][mm]), levels, None, None, 0, on_bad, life)

    def _set(
        self, world: _core.World | None, mm: int, rows: U64Array, root: int, levels: int, frames: U64Array | None,
        order: I64Array | None, max_pfn: int, on_bad: str, life: _core.Life | None = None,
    ) -> None:  # fmt: skip
        self._world, self._mm, self._rows, self._root = world, mm, rows, root
        self._host: Owner | None = None
        self._frames, self._order, self._max_pfn = frames, order, max_pfn
        self._levels = levels
        self.on_bad = on_bad
        self._bad = np.zeros(_BAD_KEPT, layout.BAD)
        self._work = np.zeros(1, layout.WORK)
        self._tables = _read.Tables(rows, root, levels, frames, order, max_pfn, self._bad, self._work, world, mm, life)

    # ---------------------------------------------------------- looking

    @property
    def rows(self) -> U64Array:
        self._tables.check()
        used = len(self._rows) if self._world is None else int(self._world.arrays["ctl"]["rows_used"][0])
        view = self._rows[:used]
        view.flags.writeable = False
        return view

    @property
    def levels(self) -> int:
        """4 or 5."""
        return self._levels

    @property
    def max_pfn(self) -> int:
        """First frame beyond the end of memory, 0: any frame may be mapped."""
        return self._max_pfn

    @property
    def on_bad(self) -> str:
        """What is done with an entry that can't be followed: "raise" or "report"; may be set."""
        return self._on_bad

    @on_bad.setter
    def on_bad(self, value: str) -> None:
        if not isinstance(value, str) or value not in ("raise", "report"):
            raise ValueError(f"on_bad {shown(value)}: must be 'raise' or 'report'")
        self._on_bad = value

    @property
    def root(self) -> int:
        self._tables.check()
        return self._root

    @property
    def readonly(self) -> bool:
        """Whether this is an image."""
        return self._world is None

    @property
    def nr_tables(self) -> int:
        """Table pages, the top one included (of an image: its rows)."""
        self._tables.check()
        return len(self._rows) if self._world is None else int(self._world.arrays["mms"]["nr_tables"][self._mm])

    @property
    def end(self) -> int:
        """Bytes that the tables can map, in both halves of the address space together."""
        return 1 << (12 + 9 * self._levels)

    @property
    def _high(self) -> int:
        """What turns an index address of the upper half into a canonical one."""
        return (1 << 64) - self.end

    def _index(self, addr: int) -> int:
        """A canonical address as the tables index it: the upper half follows the lower one."""
        return addr - self._high if addr >= self._high + self.end // 2 else addr

    def _range(self, start: int, end: int | None) -> tuple[int, int]:
        """A range that a caller gave, as the tables index it."""
        whole = self.end
        if end is None and type(start) is int and not start:
            return 0, whole
        first = as_int(start, "start", 0, 1 << 64)
        last = whole if end is None else as_int(end, "end", 0, 1 << 64)
        start, end = self._index(first), self._index(last)
        if not 0 <= start <= end <= whole or (start | end) & 4095:
            raise ValueError(f"range {first:#x}-{last:#x}: must be page aligned, canonical and of {self.levels} levels")
        return start, end

    @property
    def bad(self) -> RecordArray:
        """The first bad entries met since `forget_bad` (dtype layout.BAD: addr, raw, level, kind)."""
        return self._bad[: min(self.bad_count, len(self._bad))]

    @property
    def bad_count(self) -> int:
        """Bad entries met since `forget_bad`, kept ones and others."""
        return self._tables.bad_count

    def forget_bad(self) -> None:
        """Start counting bad entries anew."""
        self._tables.forget_bad()

    @overload
    def mappings(
        self, start: int = ..., end: int | None = ..., view: str = ..., runs: bool = ..., limit: int | None = ...,
        out: RecordArray | None = ..., *, columns: Literal[False] = ..., threads: int = ...,
    ) -> RecordArray: ...  # fmt: skip
    @overload
    def mappings(
        self, start: int = ..., end: int | None = ..., view: str = ..., runs: bool = ..., limit: int | None = ...,
        out: tuple[U64Array, U64Array] | None = ..., *, columns: Literal[True], threads: int = ...,
    ) -> Columns: ...  # fmt: skip
    def mappings(
        self,
        start: int = 0,
        end: int | None = None,
        view: str = "kernel",
        runs: bool = False,
        limit: int | None = None,
        out: RecordArray | tuple[U64Array, U64Array] | None = None,
        *,
        columns: bool = False,
        threads: int = 1,
    ) -> RecordArray | Columns:
        """All leaf mappings of a range in ascending order.

        Parameters
        ----------
        start, end : int
            Bytes, half-open, page aligned; default: everything the tables can map. Canonical addresses of the upper half
            (the very end is 2**64) are taken as well as their low 48 (57) bits. A large leaf that the range cuts is given
            whole.
        view : {"kernel", "hardware"}
            What the kernel's predicates say (PROT_NONE pages are present), or what an MMU sees (P only).
        runs : bool
            Merge neighbours that go on in address and frame with equal flags into one record (`nr` entries).
        limit : int, optional
            Most records to give; more is a ValueError. Default: what memory holds.
        out : ndarray of layout.MAPPING, optional
            Filled instead of a new array, and must be long enough; the result is a part of it. With `columns` two arrays
            of uint64 of one length, for addresses and for entries. What it holds beyond the result is not said.
        columns : bool
            Give two packed columns, address and raw entry, instead of records; not with `runs`.
        threads : int
            Threads that may share the work of a large range; the result, and what is noted in `bad`, is that of one.

        Returns
        -------
        ndarray of layout.MAPPING, or Columns
            addr (bytes, canonical: the upper half sign-extended), pfn, flags (entry without frame bits), level, perms
            (`Perm` bits effective over all levels), nr.

        Raises
        ------
        BadEntryError
            With on_bad="raise": the first entry that can't be followed.
        ValueError
            A bad range or view, or more than `limit` records.

        Models: what walk_page_range() reaches on Linux 6.18; the x86-64 MMU. Differs: nothing known.
        """
        if not isinstance(view, str) or view not in ("kernel", "hardware"):
            raise ValueError(f"view {shown(view)}: must be 'kernel' or 'hardware'")
        runs, columns = as_flag(runs, "runs"), as_flag(columns, "columns")
        if runs and columns:
            raise ValueError("columns: have no room for runs, which are records")
        if type(threads) is not int or threads != 1:
            threads = as_int(threads, "threads", 1, _MOST_THREADS)
        if limit is not None:
            limit = as_int(limit, "limit", 0, MAX_U64)
        self._tables.check()
        start, end = self._range(start, end)
        room = None if out is None else _as_pair(out) if columns else _as_records(out)
        before = self.bad_count
        if self.on_bad == "raise":
            before = 0
            self.forget_bad()
        # Honest tables are visited once; an image whose tables are shared a lot deserves some patience, not eternity.
        rows = len(self._rows) if self._world is None else int(self._world.arrays["ctl"]["rows_used"][0])
        budget = 16 * rows + (1 << 14)
        ask = start, end, view == "hardware", runs, columns, budget, threads
        result = self._collect(ask, limit) if room is None else self._into(ask, room)
        if self.on_bad == "raise" and self.bad_count > before:
            b = self._bad[0]
            raise BadEntryError(b["addr"], b["level"], b["raw"], b["kind"])
        return result

    def _into(self, ask: _Ask, room: _Room) -> RecordArray | Columns:
        n, odd = self._read(ask, room)
        if n < 0:
            raise ValueError(f"out of {len(room[0])} records: too short")
        return _result([array[:n] for array in room], odd)

    def _collect(self, ask: _Ask, limit: int | None) -> RecordArray | Columns:
        # Address space for the longest possible answer; only what is written becomes memory. A full table may need
        # 512 records before they are joined, hence the slack.
        start, end = ask[:2]
        most = min((end - start >> 12) + 512, 1 << 33)
        if limit is not None:
            most = min(most, limit + 512)
        dtypes = [np.dtype(np.uint64)] * 2 if ask[4] else [layout.MAPPING]
        while True:
            try:
                room = [reserve(max(most, 1), dtype, huge=most > 1 << 20) for dtype in dtypes]
                break
            except MemoryError:
                if most < 1 << 12:
                    raise
                most >>= 2
        n, odd = self._read(ask, room)
        if n < 0 or (limit is not None and n > limit):
            most = limit if limit is not None else most - 512
            raise ValueError(f"more than {most} mappings in {start:#x}-{end:#x}")
        parts = [array[:n] for array in room]
        return _result([part.copy() if part.nbytes < _GROW else part for part in parts], odd)

    def _read(self, ask: _Ask, room: _Room) -> tuple[int, I64Array | None]:
        """Records written, negative: the room is too short; and leaves of a level that they do not look like. A signal ends it."""
        start, end, hardware, runs, columns, budget, threads = ask
        odd: I64Array | None = None
        if columns:
            n, odd = _mappings.read_columns(self._tables, start, end, hardware, room[0], room[1], budget, threads)
        else:
            n = _mappings.read_mappings(self._tables, start, end, hardware, runs, room[0], budget, threads)
        return n if n == Code.FULL else check(n, f"mappings of {start:#x}-{end:#x}"), odd

    def lookup(self, addr: int, view: str = "kernel") -> np.void | None:
        """The mapping (a layout.MAPPING record) that holds an address, None where there is none.

        Models: a one-address walk, as folio_walk_start() or an MMU does. Differs: nothing known.
        """
        addr = self._index(as_int(addr, "addr"))
        if not addr < self.end:
            raise ValueError(f"address {addr:#x}: beyond {self.levels} levels (0-{self.end:#x})")
        page = addr & ~4095
        found = self.mappings(page, page + 4096, view)
        return found[0] if len(found) else None
