"""Tables, sizes, times, JSON and progress for the commands: what a person reads, and what a program does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

import numpy as np

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_YEAR = 365.25 * 86400

T = TypeVar("T")


def size(nbytes: int) -> str:
    """A size in bytes in the largest unit that leaves at least 1: `32 TiB`, `1.5 MiB`."""
    value, unit = float(nbytes), 0
    while abs(value) >= 1024 and unit < len(_SIZES) - 1:
        value /= 1024
        unit += 1
    text = f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    return f"{text} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """A time with three digits and its unit; hours and days where seconds say nothing."""
    if seconds >= 2 * _YEAR:
        return f"{seconds / _YEAR:.3g} years"
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.3g} days"
    if seconds >= 7200:
        return f"{seconds / 3600:.3g} hours"
    if seconds >= 300:
        return f"{seconds / 60:.3g} minutes"
    for scale, unit in _TIMES:
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"


def count(number: int) -> str:
    """A count with its thousands apart."""
    return f"{number:,}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> str:
    """Columns in line, as wide as their longest entry.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequences, as long as `head`
    right : iterable of int
        Columns to be set flush right.
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    flush = set(right)
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in flush else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def print_json(value: object, out: TextIO | None = None) -> None:
    """Write a value as JSON, numpy's numbers and arrays included."""
    json.dump(value, out or sys.stdout, indent=2, default=_plain)
    print(file=out or sys.stdout)


def progress(items: Sequence[T], what: str, out: TextIO | None = None) -> Iterator[T]:
    """Hand out the items; where the output is a terminal and it takes longer, say how far it has come."""
    out = out or sys.stderr
    show = out.isatty()
    begin = last = time.monotonic()
    written = False
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if show and now - begin > 0.5 and now - last > 0.1:
                print(f"\r{what}: {done} of {len(items)}", end="", file=out, flush=True)
                last, written = now, True
            yield item
    finally:
        if written:
            print("\r\x1b[K", end="", file=out, flush=True)
