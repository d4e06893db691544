"""Who shares with whom, in words: which sources belong on one host."""

from __future__ import annotations

import numpy as np

from ..layout import PAGE_SIZE
from ..sources.matrix import SharingMatrix
from . import report
from .estimate_text import percent
from .screen import Column, Screen

_MOST_ROWS = 10
# Below this part of what both have, together or apart makes no difference.
_LEAST = 0.01
_MOST_PAIRS = 3


def pairs(matrix: SharingMatrix) -> list[tuple[int, str, str]]:
    """Two and two, those first that gain the most from one host: bytes freed beyond what each frees alone, both names.

    Parameters
    ----------
    matrix : SharingMatrix
    """
    return [(gain, matrix.names[i], matrix.names[j]) for gain, i, j in _ordered(matrix)]


def _ordered(matrix: SharingMatrix) -> list[tuple[int, int, int]]:
    rows, columns = np.triu_indices(len(matrix.names), 1)
    gain = matrix.gain_bytes[rows, columns]
    order = np.argsort(-gain, kind="stable")
    return [(int(gain[at]), int(rows[at]), int(columns[at])) for at in order if gain[at] > 0]


def advice(matrix: SharingMatrix) -> str:
    """Which sources belong on one host, in a sentence or two.

    Parameters
    ----------
    matrix : SharingMatrix
    """
    names = [report.printable(name) for name in matrix.names]
    good = [one for one in _ordered(matrix) if one[0] >= _LEAST * _bytes(matrix, *one[1:])]
    if not good:
        return "Which of them share a host makes no difference: hardly any page of one occurs in another."
    if len(names) == 2:
        gain, i, j = good[0]
        return f"Put {names[i]} and {names[j]} on one host: together they free {report.size(gain)} more than apart."
    # each goes to the one that it gains the most from, the largest gains first
    taken: set[int] = set()
    chosen = []
    for gain, i, j in good:
        if not taken & {i, j}:
            taken |= {i, j}
            chosen.append(f"{names[i]} and {names[j]} ({report.size(gain)} more freed than apart)")
    more = len(chosen) - _MOST_PAIRS
    words = "; ".join(chosen[:_MOST_PAIRS]) + (f"; and {more} pairs more" if more > 0 else "")
    return f"Put on one host, where two and two have room: {words}."


def _bytes(matrix: SharingMatrix, i: int, j: int) -> int:
    return int(matrix.nr_pages[i] + matrix.nr_pages[j]) * PAGE_SIZE


def show(screen: Screen, matrix: SharingMatrix) -> None:
    """Write the pairs that share the most, and the advice.

    Parameters
    ----------
    screen : Screen
    matrix : SharingMatrix
    """
    screen.line(("Who shares with whom", "bold"))
    found = _ordered(matrix)
    if found:
        columns = (
            Column("freed together", style="green"), Column("of both", rank=1), Column("alone", rank=2),
            Column("on one host", right=False, elastic=True),
        )  # fmt: skip
        screen.table(columns, [
            (
                f"+{report.size(gain)}", percent(gain / max(_bytes(matrix, i, j), 1)),
                report.size(int(matrix.freed_bytes[i, i] + matrix.freed_bytes[j, j])),
                report.printable(f"{matrix.names[i]} and {matrix.names[j]}"),
            )
            for gain, i, j in found[:_MOST_ROWS]
        ])  # fmt: skip
        if (more := len(found) - _MOST_ROWS) > 0:
            screen.line((f"and {more:,} pairs more", "dim"))
    screen.paragraph(advice(matrix), "bold")
    screen.line()
