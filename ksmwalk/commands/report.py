"""Tables, sizes, times, names and JSON for the commands: what a person reads, and what a program does.

Whatever comes from outside (names of processes, of files, command lines) goes through `printable` before it is printed.
"""

from __future__ import annotations

import bisect
import errno
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

import numpy as np

from ..drawing.words import count, duration, printable, size

__all__ = [
    "cells", "count", "cut", "duration", "encodable", "output", "pad", "plain", "print_json", "printable", "rule", "size", "table",
    "wrap",
]  # fmt: skip

_LONGEST_RULE = 60


def cells(text: str) -> int:
    """How many columns of a terminal a text takes: two for wide letters, none for marks on others."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def cut(text: str, room: int, ellipsis: str = "…") -> str:
    """A text of at most `room` columns: what is too long ends in an ellipsis."""
    if cells(text) <= room:
        return text
    room -= len(ellipsis)
    if room <= 0:
        return ellipsis[: room + len(ellipsis)]
    kept = []
    for letter in text:
        room -= cells(letter)
        if room < 0:
            break
        kept.append(letter)
    return "".join(kept) + ellipsis


def wrap(text: str, room: float, measure: Callable[[str], float] | None = None) -> list[str]:
    """A text in lines of at most `room`, broken between words, or inside one that is longer than a line.

    Parameters
    ----------
    text : str
    room : float
    measure : callable of str, optional
        How long a text is: columns of a terminal by default.
    """
    measure = measure or cells
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if measure(longer) <= room:
            line = longer
            continue
        if line:
            lines.append(line)
        while len(word) > 1 and measure(word) > room:
            fits = _fits(word, room, measure)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def _fits(word: str, room: float, measure: Callable[[str], float]) -> int:
    """How many letters of a word have room; one at least."""
    return max(1, bisect.bisect_right(range(len(word)), room, key=lambda letters: measure(word[:letters])) - 1)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> str:
    """Columns in line, as wide as their longest entry.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequences, as long as `head`
    right : iterable of int
        Columns to be set flush right.
    """
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(cells(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, [rule(width) for width in widths])
    flush = set(right)
    return "\n".join(
        "  ".join(pad(cell, width, column in flush) for column, (cell, width) in enumerate(zip(line, widths, strict=True)))
        .rstrip()
        for line in lines
    )


def rule(width: int) -> str:
    """The line under a head; a column of long texts needs none across the whole screen."""
    return "-" * min(width, _LONGEST_RULE)


def pad(text: str, width: int, right: bool = False) -> str:
    """A text filled up to `width` columns."""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def output() -> TextIO:
    """Standard output; an error where the caller has closed it."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
    return sys.stdout


def encodable(text: str, out: TextIO) -> str:
    """A text as `out` can write it: letters that its encoding has not got as escapes."""
    encoding = getattr(out, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def plain(value: object) -> object:
    """What json can write in place of numpy's numbers and arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def print_json(value: object, out: TextIO | None = None) -> None:
    """Write a value as JSON, numpy's numbers and arrays included."""
    out = out or output()
    json.dump(value, out, indent=2, default=plain)
    print(file=out)
