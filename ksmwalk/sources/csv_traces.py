"""Traces as rows of text: a line an event, the names of its columns in the first."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from ..gate import shown
from ..host.tasks import ADVICE
from ..host.traces import MAX_IDS
from ..layout import TRACE_EVENT, Operation
from ..signatures import RecordArray

#: names of columns, in the order of the fields
COLUMNS = tuple(TRACE_EVENT.names or ())


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
    names: list[str] | None = None
    for number, text in file.lines():
        try:
            lines = text.decode("ascii").splitlines()
        except UnicodeDecodeError as error:
            line = number + text[: error.start].count(b"\n")
            raise file.bad(f"line {line}: byte {text[error.start]:#04x}, which is no text of numbers") from None
        rows = list(csv.reader(lines))
        if names is None:
            names, rows, number = _header(file, rows[0]), rows[1:], number + 1
        events = np.zeros(len(rows), TRACE_EVENT)
        wide = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
        if wide is not None:
            raise file.bad(f"line {number + wide}: {len(rows[wide])} columns, and {len(names)} names in the first line")
        for at, name in enumerate(names):
            _column(file, events, name, [row[at] for row in rows], number)
        yield events
    if names is None:
        raise file.bad("line 1: no names of columns")


def _header(file: CsvFile, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    strange = [name for name in names if name not in COLUMNS]
    if strange or len(set(names)) < len(names) or not {"operation", "addr"} <= set(names):
        what = f"column {shown(strange[0])}" if strange else "columns"
        raise file.bad(f"line 1: {what}: must be operation, addr, and of the others {', '.join(COLUMNS)}, each once")
    return names


def _column(file: CsvFile, events: RecordArray, name: str, words: list[str], number: int) -> None:
    """Numbers, decimal or 0x...; operations and advice by name too."""
    known = {"operation": {o.name.lower(): int(o) for o in Operation}, "arg": ADVICE}.get(name, {})
    info = np.iinfo(TRACE_EVENT[name])
    low, high = int(info.min), int(info.max)
    if name == "mm":
        low, high = 0, MAX_IDS - 1
    values: list[int] = []
    for word in words:
        try:
            value = known[word] if word in known else int(word, 0)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            raise file.bad(f"line {number + len(values)}: {name} {shown(word)}: must be from {low} to {high}") from None
        values.append(value)
    events[name] = values
