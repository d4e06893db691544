"""Traces that people have, as arrays of events: .npy, CSV, valgrind's lackey, ChampSim; whole or piece by piece."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, cast

import numpy as np

from ..errors import KsmwalkError
from ..gate import as_flag, as_int, shown
from ..host.traces import MAX_IDS, as_pieces, trace_events
from ..layout import PAGE_SIZE, TRACE_EVENT, Operation
from ..layout.whole import write_whole
from ..proc.processes import printable
from ..signatures import RecordArray
from . import _lackey
from .csv_traces import COLUMNS, as_csv, read_csv

_PIECE = 1 << 20  # bytes of a file read at once
_LINE = 4096  # bytes of a line at most
_OPENERS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: cast("IO[bytes]", gzip.open(file)),
    b"\xfd7zXZ\0": lambda file: cast("IO[bytes]", lzma.open(file)),
    b"BZh": lambda file: cast("IO[bytes]", bz2.open(file)),
}
#: what reading a packed file raises that is damaged
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, OSError)
#: ChampSim's input_instr, 64 bytes
CHAMPSIM = np.dtype([
    ("ip", "<u8"), ("is_branch", "u1"), ("branch_taken", "u1"), ("destination_registers", "u1", (2,)),
    ("source_registers", "u1", (4,)), ("destination_memory", "<u8", (2,)), ("source_memory", "<u8", (4,)),
])  # fmt: skip
#: what can be read
KINDS = ("npy", "csv", "lackey", "champsim")


class BadTrace(KsmwalkError, ValueError):
    """A file that is no trace of its kind, or a damaged one.

    Attributes
    ----------
    path : str
    why : str
        What is wrong, and in which line or at which byte.
    """

    path: str
    why: str

    def __init__(self, path: str, why: str):
        super().__init__(f"{printable(path)}: {why}")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[type[BadTrace], tuple[str, str]]:
        return type(self), (self.path, self.why)


class _How(NamedTuple):
    """How accesses become events, where a file tells of nothing else."""

    mm: int
    fetches: bool
    ns: float

    def done(self, events: RecordArray) -> RecordArray:
        """With instructions as times turned into nanoseconds."""
        if self.ns != 1.0:
            events["time"] = (events["time"] * self.ns).astype(np.int64)
        return events


def iter_trace(
    path: str | os.PathLike[str],
    kind: str | None = None,
    *,
    mm: int = 0,
    fetches: bool = False,
    ns_per_instruction: float = 1.0,
) -> Iterator[RecordArray]:
    """Read a trace piece by piece, in memory that doesn't depend on its length: `host.apply(iter_trace(path))`.

    Parameters
    ----------
    path : path
        A regular file; compressed by gzip, xz or bzip2 it is unpacked while it is read.
    kind : {"npy", "csv", "lackey", "champsim"}, optional
        What it is; by default its name and its first bytes say it (see the guide).
    mm : int
        Number of the process whose accesses lackey's and ChampSim's are.
    fetches : bool
        Fetches of instructions count as loads (lackey, ChampSim).
    ns_per_instruction : float
        Nanoseconds of an instruction: the time of lackey's and ChampSim's events.

    Yields
    ------
    ndarray of layout.TRACE_EVENT, shape (n,)
        An access that crosses pages is one event a page. A store of which only the address is known leaves a content
        that no other has.

    Raises
    ------
    BadTrace
        The file can't be understood; line or byte are named. Pieces before it have been given.
    OSError
        It can't be opened.
    ValueError, TypeError
        An argument that there is not.
    """
    mm, fetches = as_int(mm, "mm", 0, MAX_IDS - 1), as_flag(fetches, "fetches")
    number = isinstance(ns_per_instruction, (int, float)) and not isinstance(ns_per_instruction, bool)
    if not number or not 0 <= ns_per_instruction <= 1e9:
        raise ValueError(f"ns_per_instruction {shown(ns_per_instruction)}: must be from 0 to 1e9")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind {shown(kind)}: must be one of {', '.join(KINDS)}")
    return _pieces(os.fsdecode(path), kind, _How(mm, fetches, float(ns_per_instruction)))


def read_trace(path: str | os.PathLike[str], kind: str | None = None, **how: Any) -> RecordArray:
    """Read a whole trace: the arrays of `iter_trace`, which has the same arguments, in one.

    Returns
    -------
    ndarray of layout.TRACE_EVENT, shape (n,)
    """
    return np.concatenate([np.zeros(0, TRACE_EVENT), *iter_trace(path, kind, **how)])


def save_trace(path: str | os.PathLike[str], events: RecordArray | Iterable[RecordArray]) -> int:
    """Write events to a new file, as its name ends: .npy, or .csv with names of columns in the first line.

    The file is there when all of it is written, and not before.

    Returns
    -------
    int
        Events written.

    Raises
    ------
    FileExistsError
        There is one already.
    ValueError
        Another ending.
    TypeError
        No array of layout.TRACE_EVENT.
    OSError
        It can't be written. After any error, of what is to be written too, no file is left.
    """
    name = os.fsdecode(path)
    ending = os.path.splitext(name)[1].lower()
    if ending not in (".npy", ".csv"):
        raise ValueError(f"path {shown(name)}: must end in .npy or .csv")
    counts: list[int] = []
    write_whole(name, (_as_npy if ending == ".npy" else as_csv)(as_pieces(events), counts), new=True)
    return sum(counts)


def _as_npy(pieces: Iterable[RecordArray], counts: list[int]) -> Iterator[bytes]:
    """The bytes of a .npy; how many events there are is appended to `counts`."""
    whole = np.concatenate([np.zeros(0, TRACE_EVENT), *pieces])
    counts.append(len(whole))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(whole))
    yield head.getvalue()
    for at in range(0, len(whole), _PIECE):
        yield whole[at : at + _PIECE].tobytes()


# ------------------------------------------------------------------ files


def unpacked(file: io.BufferedReader) -> IO[bytes]:
    """A file that is at its beginning, or what is packed in it."""
    head = file.peek(6)[:6]
    return next((opener(file) for magic, opener in _OPENERS.items() if head.startswith(magic)), file)


class _File:
    """A regular file read from its beginning, unpacked where it is packed; `offset`: bytes given so far."""

    def __init__(self, path: str):
        self.path, self.offset = path, 0
        self._regular(os.stat(path))
        raw = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
        self._regular(os.fstat(raw.fileno()))
        self._closing = [raw]
        self._file = unpacked(raw)
        self._closing.insert(0, cast(Any, self._file))
        self._ahead = b""

    def _regular(self, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode):
            raise self.bad("is no regular file; copy what it gives into one")

    def bad(self, why: str) -> BadTrace:
        return BadTrace(self.path, why)

    def close(self) -> None:
        for file in self._closing:
            file.close()

    def peek(self) -> bytes:
        """The first bytes, which are read again."""
        if not self._ahead:
            self._ahead = self._read(_LINE)
        return self._ahead

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end only."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data += self._read(size - len(data)) if len(data) < size else b""
        self.offset += len(data)
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except DAMAGED as error:
            raise self.bad(f"damaged after {self.offset:,} unpacked bytes: {error}") from None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, whole lines), piece by piece."""
        rest, number = b"", 1
        while piece := self.read(_PIECE):
            whole, end, rest = (rest + piece).rpartition(b"\n")
            if len(rest) > _LINE:
                number += whole.count(b"\n") + len(end)
                raise self.bad(f"line {number}: longer than {_LINE} bytes")
            if end:
                yield number, whole + end
                number += whole.count(b"\n") + 1
        if rest:
            yield number, rest


def _pieces(path: str, kind: str | None, how: _How) -> Iterator[RecordArray]:
    file = _File(path)
    try:
        reader = _READERS[kind or _kind_of(file)]
        yield from reader(file, how)
    finally:
        file.close()


def _kind_of(file: _File) -> str:
    """By its name, then by its first bytes."""
    name = os.path.basename(file.path).lower()
    for packed in (".gz", ".xz", ".bz2"):
        name = name.removesuffix(packed)
    head = file.peek().removeprefix(codecs.BOM_UTF8)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if name.endswith((".champsimtrace", ".champsim")):
        return "champsim"
    first = b"".join(head.splitlines()[:1])
    if head.startswith((b"==", b"--", b"I  ", b" L ", b" S ", b" M ")):
        return "lackey"
    if name.endswith(".csv") or {b"operation", b"addr"} <= {word.strip() for word in first.split(b",")}:
        return "csv"
    raise file.bad(f"neither name nor beginning say what it is; name its kind: one of {', '.join(KINDS)}")


# ------------------------------------------------------------------ kinds


def _champsim(file: _File, how: _How) -> Iterator[RecordArray]:
    number = 0
    size = CHAMPSIM.itemsize
    while data := file.read(_PIECE):
        if odd := len(data) % size:
            raise file.bad(f"ends within the record at byte {file.offset - odd:,}: records are of {size} bytes")
        records = np.frombuffer(data, CHAMPSIM)
        # In the order of an instruction: fetched, loads, stores; 0 is none.
        addr = np.concatenate([records["ip"][:, None], records["source_memory"], records["destination_memory"]], axis=1)
        there = addr != 0
        there[:, 0] &= how.fetches
        which, column = np.nonzero(there)
        events = np.zeros(len(which), TRACE_EVENT)
        events["time"], events["addr"], events["mm"] = which + number, addr[there], how.mm
        store = column >= 5
        events["operation"] = np.where(store, Operation.WRITE, Operation.READ)
        # No other store leaves the same: two of an instruction can be, its number does for both.
        content = (which + number) * 2 + (column - 5)
        events["key"][store] = _unseen(how.mm) | content[store].astype(np.uint64)
        number += len(records)
        yield how.done(events)


def _unseen(mm: int) -> np.uint64:
    """The contents that stores of a process leave where only their addresses are known begin here."""
    return np.uint64(1 << 63 | mm << 40)


def _lackeys(file: _File, how: _How) -> Iterator[RecordArray]:
    instructions = stores = 0
    for number, text in file.lines():
        while text:
            out = np.empty((len(text) // 6 * 2 + 40, 4), np.uint64)
            found, taken, lines, wrong, instructions, stores = _lackey.parse(
                text, how.fetches, how.mm, instructions, stores, out
            )
            yield how.done(out[:found].view(TRACE_EVENT).reshape(-1))
            number += lines
            if wrong:
                raise file.bad(f"line {number}: none of lackey's (`valgrind --tool=lackey --trace-mem=yes --log-file=FILE`)")
            text = text[taken:]


def _npy(file: _File, how: _How) -> Iterator[RecordArray]:
    count, dtype = _npy_header(file)
    events_at_once = max(1, _PIECE // max(1, dtype.itemsize))
    done = 0
    while done < count:
        want = min(count - done, events_at_once)
        data = file.read(want * dtype.itemsize)
        if len(data) < want * dtype.itemsize:
            raise file.bad(f"truncated: {count:,} events were written, it ends in event {done + len(data) // dtype.itemsize:,}")
        part = np.frombuffer(data, dtype)
        if dtype == TRACE_EVENT:
            operation = part["operation"]
            if len(none := np.flatnonzero((operation < 1) | (operation > max(Operation)))):
                at = int(none[0])
                raise file.bad(f"event {done + at:,}: operation {operation[at]}: must be from 1 to {max(Operation)}")
            yield part
        else:
            yield _converted(file, part, done)
        done += want
    if file.read(1):
        raise file.bad(f"goes on behind its {count:,} events")


def _npy_header(file: _File) -> tuple[int, np.dtype[Any]]:
    try:
        # numpy asks a file for what it needs, no more
        major = np.lib.format.read_magic(file)  # type: ignore[arg-type] # a _File reads
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[major]
        shape, _, dtype = read(file)  # type: ignore[arg-type] # as above
    except BadTrace:
        raise
    except Exception as error:  # numpy takes a header apart with the interpreter's own tools
        words = str(error)
        raise file.bad(f"no .npy file: {words[:100]}{'...' if len(words) > 100 else ''}") from None
    names = dtype.names or ()
    whole = all(dtype[name].kind in "iu" for name in names)
    if len(shape) != 1 or dtype.itemsize > _LINE or not {"operation", "addr"} <= set(names) <= set(COLUMNS) or not whole:
        raise file.bad(f"dtype {dtype}, shape {shape}: must be a row of layout.TRACE_EVENT, or of some of its fields")
    return int(shape[0]), dtype


def _converted(file: _File, part: RecordArray, done: int) -> RecordArray:
    """Records with some of the fields, of whatever integers."""
    try:
        columns = {name: part[name] for name in part.dtype.names or ()}
        return trace_events(**columns)
    except ValueError as error:
        raise file.bad(f"in the {len(part):,} events from event {done:,} on: {error}") from None


_READERS: dict[str, Callable[[_File, _How], Iterator[RecordArray]]] = {
    "npy": _npy, "csv": read_csv, "lackey": _lackeys, "champsim": _champsim,
}  # fmt: skip


# ------------------------------------------------------------------ what is in a trace


class TraceSummary:
    """What is in a trace, counted while its pieces go by.

    Attributes
    ----------
    events : int
    operations : dict of str to int
        Events of each operation that there are.
    processes : int
        Numbers that name a process.
    seconds : float
        From the earliest to the latest time.
    pages, written : int
        Pages of 4 KiB that were accessed, and of these those stored to.
    footprint : list of (float, int)
        Seconds that the events so far span, and pages that they accessed, a pair a piece.
    """

    def __init__(self) -> None:
        self.events: int = 0
        self.operations: dict[str, int] = {}
        self.footprint: list[tuple[float, int]] = []
        self._pages: dict[int, np.ndarray[Any, Any]] = {}
        self._written: dict[int, np.ndarray[Any, Any]] = {}
        self._span: tuple[int, int] | None = None
        self._numbers: set[int] = set()

    def add(self, events: RecordArray) -> None:
        """Count one piece more."""
        if not len(events):
            return
        self.events += len(events)
        for number, n in zip(*np.unique(events["operation"], return_counts=True), strict=True):
            name = Operation(number).name.lower() if number in list(Operation) else f"operation {number}"
            self.operations[name] = self.operations.get(name, 0) + int(n)
        first, last = int(events["time"].min()), int(events["time"].max())
        self._span = (min(first, self._span[0]), max(last, self._span[1])) if self._span else (first, last)
        numbers = np.unique(events["mm"]).tolist()
        self._numbers.update(numbers)
        for number in numbers:
            mine = events[events["mm"] == number]
            mine = mine[mine["operation"] <= Operation.WRITE]
            for kept, part in ((self._pages, mine), (self._written, mine[mine["operation"] == Operation.WRITE])):
                pages = np.unique(part["addr"] // PAGE_SIZE)
                kept[number] = np.union1d(kept[number], pages) if number in kept else pages
        self.footprint.append((self.seconds, self.pages))

    @property
    def processes(self) -> int:
        return len(self._numbers)

    @property
    def seconds(self) -> float:
        return (self._span[1] - self._span[0]) / 1e9 if self._span else 0.0

    @property
    def pages(self) -> int:
        return sum(map(len, self._pages.values()))

    @property
    def written(self) -> int:
        return sum(map(len, self._written.values()))


def watched(events: Iterable[RecordArray], summary: TraceSummary) -> Iterator[RecordArray]:
    """The same pieces, counted as they go by."""
    for piece in events:
        summary.add(piece)
        yield piece
