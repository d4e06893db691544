"""Traces as rows of text: a line an event, the names of its columns in the first."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Protocol

import numpy as np

from ..gate import shown
from ..host.tasks import ADVICE
from ..host.traces import MAX_IDS
from ..layout import TRACE_EVENT, Operation
from ..signatures import RecordArray

#: names of columns, in the order of the fields
COLUMNS = tuple(TRACE_EVENT.names or ())
_ROWS = 1 << 15  # read at once


class CsvFile(Protocol):
    """What is read of a file."""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, whole lines), piece by piece."""

    def bad(self, why: str) -> Exception:
        """The error that names the file."""


def as_csv(pieces: Iterable[RecordArray], counts: list[int]) -> Iterator[bytes]:
    """The lines of a file, some at a time; how many events there are in each piece is appended to `counts`."""
    names = {int(operation): operation.name.lower() for operation in Operation}
    at = COLUMNS.index("operation")
    yield (",".join(COLUMNS) + "\n").encode()
    for piece in pieces:
        counts.append(len(piece))
        for row in piece.tolist():
            words = [str(value) for value in row]
            words[at] = names.get(row[at], words[at])
            yield (",".join(words) + "\n").encode()


def read_csv(file: CsvFile, how: object) -> Iterator[RecordArray]:
    """The events of a file, some at a time; a row that can't be understood is refused with its line."""
    names: list[str] | None = None
    empty = 0  # line from which on there are empty ones only, as far as they were read
    for number, rows in _rows(file):
        if names is None:
            names = _header(file, rows[0])
            continue
        width = len(names)
        odd = next((i for i, row in enumerate(rows) if len(row) != width), len(rows))
        good, rest = rows[:odd], rows[odd:]
        line = empty or number + _lines_of(good)
        if good and not empty:
            events = np.zeros(len(good), TRACE_EVENT)
            for at, name in enumerate(names):
                _column(file, events, name, [row[at].strip() for row in good], good, number)
            yield events
        if rest and not empty and not _empty(rest[0]):
            raise file.bad(f"line {line}: {len(rest[0])} columns, and {width} names in the first line")
        if (good and empty) or not all(map(_empty, rest)):
            raise file.bad(f"line {line}: is empty, and others follow")
        empty = line if rest else 0
    if names is None:
        raise file.bad("line 1: no names of columns")


def _rows(file: CsvFile) -> Iterator[tuple[int, list[list[str]]]]:
    """(line of the first, rows): the first one, then many at a time; an error comes behind what stands before it."""
    reader = csv.reader(chain.from_iterable(_lines(file)), skipinitialspace=True, strict=True)
    number, most = 1, 1
    while True:
        rows: list[list[str]] = []
        error: Exception | None = None
        try:
            rows.extend(islice(reader, most))
        except (csv.Error, ValueError) as raised:
            error = raised
        if rows:
            yield number, rows
        if isinstance(error, csv.Error):
            raise file.bad(f"line {number + _lines_of(rows)}: no row of CSV: {error}")
        if error:
            raise error
        if len(rows) < most:
            return
        number, most = reader.line_num + 1, _ROWS


def _lines(file: CsvFile) -> Iterator[Iterable[str]]:
    """The lines of a file, piece by piece; only what ends a line in a file of text does."""
    for number, text in file.lines():
        if number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        try:
            yield io.StringIO(text.decode("ascii"), newline=None)
        except UnicodeDecodeError as error:
            line = number + text[: error.start].count(b"\n")
            raise file.bad(f"line {line}: byte {text[error.start]:#04x}, which is no text of numbers") from None


def _empty(row: list[str]) -> bool:
    return len(row) <= 1 and not "".join(row).strip()


def _lines_of(rows: list[list[str]]) -> int:
    """How many lines they took: a quoted word may go on in the next."""
    return len(rows) + sum(word.count("\n") for row in rows for word in row)


def _header(file: CsvFile, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    strange = [name for name in names if name not in COLUMNS]
    if strange or len(set(names)) < len(names) or not {"operation", "addr"} <= set(names):
        what = f"column {shown(strange[0])}" if strange else "columns"
        raise file.bad(f"line 1: {what}: must be operation, addr, and of the others {', '.join(COLUMNS)}, each once")
    return names


def _column(
    file: CsvFile, events: RecordArray, name: str, words: list[str], rows: list[list[str]], number: int
) -> None:
    """Numbers, decimal or 0x...; operations and advice by name too."""
    known = {"operation": {o.name.lower(): int(o) for o in Operation}, "arg": ADVICE}.get(name, {})
    info = np.iinfo(TRACE_EVENT[name])
    low, high = int(info.min), int(info.max)
    if name == "mm":
        low, high = 0, MAX_IDS - 1
    elif name == "operation":
        low, high = 1, max(Operation)
    named = f", or one of {', '.join(known)}" if known else ""
    values: list[int] = []
    for word in words:
        try:
            value = known[word.lower()] if word.lower() in known else int(word, 0)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            line = number + _lines_of(rows[: len(values)])
            raise file.bad(f"line {line}: {name} {shown(word)}: must be from {low} to {high}{named}") from None
        values.append(value)
    events[name] = values
