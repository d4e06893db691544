"""Pictures, with matplotlib (the extra `plot`): nothing else in ksmwalk imports it."""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..drawing.spaces import (
    KINDS,
    PAGE,
    Gap,
    Picture,
    Row,
    columns,
    gap_label,
    heading,
    kinds_label,
    marks,
    row_label,
    row_names,
    total,
)
from ..errors import KsmwalkError
from . import report

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Patch, Rectangle
except ImportError as _error:
    raise KsmwalkError(f"drawing needs matplotlib ({_error}): pip install 'ksmwalk[plot]'") from _error

# One colour a kind, told apart by lightness as well as by hue.
COLOURS = ("#3b7dd8", "#1b2a6b", "#2a9d5c", "#f2b705", "#a8a8a8", "#35b5c9")
MARKED, COULD, CANNOT = "#cfeedd", "#e3ecf9", "#eeeeee"
GROUNDS = (
    (MARKED, "mapped, marked mergeable"),
    (COULD, "mapped, could be marked"),
    (CANNOT, "mapped, can't be marked"),
)
# Bare page tables know of no marks.
TABLE_GROUNDS = ((COULD, "mapped"),)

COLUMNS = 1200
# A column with anything present shows at least this part of its height: one page in a thousand is still a page.
LEAST = 0.12
ROW, GAP = 0.62, 0.26  # inches
THICK, PILE = 0.42, 0.035  # of a bar, and how far those behind it stand out; inches
LINE, LABEL = 0.135, 7.5  # of the labels: inches from line to line, points
DPI = 130
FORMATS = (".png", ".svg", ".pdf")
LEFT, BAR, RIGHT = 1.55, 6.6, 3.6  # inches


def _image(drawn: Picture, row: Row, height: int) -> np.ndarray:
    """A row as RGB, uint8[height, columns, 3], bottom line first."""
    width = int(min(COLUMNS, row.size // PAGE))
    share, vma = columns(drawn, row, width)
    ground = np.full((width, 3), 255, np.uint8)
    colours = [_rgb(MARKED if v.mergeable else CANNOT if v.not_compatible else COULD) for v in row.vmas]
    mapped = vma >= 0
    ground[mapped] = np.array(colours, np.uint8)[vma[mapped]]
    image = np.repeat(ground[None], height, axis=0)
    filled = share.sum(axis=1)
    # Stretch thin columns to the least height, all kinds of it alike.
    stretch = np.where(filled > 0, np.maximum(filled, LEAST) / np.where(filled > 0, filled, 1), 0)
    top = np.cumsum(share * stretch[:, None], axis=1) * height
    line = np.arange(height)[:, None] + 0.5
    below = np.zeros(width)
    for kind, colour in enumerate(COLOURS):
        image[(line >= below) & (line < top[:, kind])] = _rgb(colour)
        below = top[:, kind]
    return image


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def _bar_width(row: Row, largest: int) -> float:
    """Inches: longer rows get longer bars, by the logarithm of their size."""
    return BAR * (0.1 + 0.9 * math.log2(row.size / PAGE + 1) / math.log2(largest / PAGE + 1))


def check(path: str) -> str:
    """The format that a file's ending asks for.

    Raises KsmwalkError, before anything is read or drawn, where the file can't be written as it is called.
    """
    ending = os.path.splitext(path)[1]
    if ending.lower() not in FORMATS:
        raise KsmwalkError(f"--plot {report.printable(path)}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if os.path.isdir(path):
        raise KsmwalkError(f"--plot {report.printable(path)}: is a directory")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise KsmwalkError(f"--plot {report.printable(path)}: there is no directory {report.printable(folder)}")
    return ending[1:].lower()


def address_space(drawn: Picture, path: str) -> None:
    """Draw an address space into a file: exactly this one, in the format of its ending.

    Parameters
    ----------
    drawn : Picture
    path : str
        Ending in .png, .svg or .pdf.
    """
    kind = check(path)
    figure = _figure(drawn)
    done = io.BytesIO()
    with _missing_letters_as_boxes():
        figure.savefig(done, format=kind)
    # All of it is there before the file is touched.
    with open(path, "wb") as file:
        file.write(done.getbuffer())


def _figure(drawn: Picture) -> Figure:
    pieces = drawn.pieces()
    width = LEFT + BAR + RIGHT
    largest = max((row.each.size for row in drawn.rows), default=PAGE)
    layout = [_labels(piece, drawn.kinds, width - _beside(piece, largest)) for piece in pieces]
    heights = [
        GAP if isinstance(piece, Gap) else max(ROW, LINE * sum(map(len, labels)) + 0.2)
        for piece, labels in zip(pieces, layout, strict=True)
    ]
    whole = total(drawn)
    whole_lines = _wrap(f"{report.size(int(whole.sum()) * PAGE)} present: {kinds_label(whole, drawn.kinds)}", RIGHT - 0.12)
    foot = max(ROW, LINE * len(whole_lines) + 0.2) if whole.any() else 0
    height = sum(heights) + foot + 1.85
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    _write(axes, 0.2, height - 0.3, heading(drawn), fontsize=12, weight="bold")
    y = height - 0.6
    for piece, labels, tall in zip(pieces, layout, heights, strict=True):
        y -= tall
        if isinstance(piece, Gap):
            _draw_gap(axes, piece, y + tall / 2)
        else:
            _draw_row(axes, drawn, piece, labels, y + tall / 2, largest)
    if whole.any():
        _draw_total(axes, whole, whole_lines, y - foot / 2 - 0.05)
    _legend(axes, drawn.kinds, width, height)
    # imshow narrows the limits to its picture
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return figure


def _write(axes: Axes, x: float, y: float, words: str, **how: Any) -> None:
    # a name may hold dollars, which are no formulas
    axes.text(x, y, words, va="center", parse_math=False, **how)


def _draw_gap(axes: Axes, gap: Gap, middle: float) -> None:
    # a torn edge: something was cut out here
    x = LEFT + np.arange(9) * 0.035
    axes.plot(x, middle + np.where(np.arange(9) % 2, 0.04, -0.04), color="#999999", lw=0.9)
    _write(axes, LEFT + 0.4, middle, gap_label(gap), fontsize=LABEL, color="#777777", style="italic")


def _draw_row(axes: Axes, drawn: Picture, row: Row, labels: list[list[str]], middle: float, largest: int) -> None:
    bar = _bar_width(row.each, largest)
    low, high = middle - THICK / 2, middle + THICK / 2
    for behind in (2, 1) if row.times > 1 else ():
        # a pile: the row stands for several
        _frame(axes, LEFT + behind * PILE, low + behind * PILE, bar, THICK, "#aaaaaa", "white")
    axes.imshow(
        _image(drawn, row.each, 60),
        extent=(LEFT, LEFT + bar, low, high),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        zorder=2,
    )
    _frame(axes, LEFT, low, bar, THICK, "#555555", "none")
    _write(axes, LEFT - 0.1, middle, f"{row.start:x}", fontsize=8, family="monospace", ha="right")
    y = middle + LINE * (sum(map(len, labels)) - 1) / 2
    for lines, colour in zip(labels, ("black", "#777777"), strict=True):
        for line in lines:
            _write(axes, _beside(row, largest), y, line, fontsize=LABEL, color=colour)
            y -= LINE


def _draw_total(axes: Axes, pages: np.ndarray, lines: list[str], middle: float) -> None:
    x = LEFT
    for kind, n in enumerate(pages.tolist()):
        part = BAR * n / int(pages.sum())
        axes.add_patch(Rectangle((x, middle - THICK / 2), part, THICK, facecolor=COLOURS[kind], zorder=2))
        x += part
    _frame(axes, LEFT, middle - THICK / 2, BAR, THICK, "#555555", "none")
    _write(axes, LEFT - 0.1, middle, "total", fontsize=8, weight="bold", ha="right")
    for number, line in enumerate(lines):
        _write(axes, LEFT + BAR + 0.12, middle + LINE * ((len(lines) - 1) / 2 - number), line, fontsize=LABEL)


def _frame(axes: Axes, x: float, y: float, width: float, height: float, edge: str, face: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, edgecolor=edge, facecolor=face, lw=0.6, zorder=3 if face == "none" else 1))


def _legend(axes: Axes, kinds: tuple[str, ...], width: float, height: float) -> None:
    words = (
        "Inside a bar the scale is linear, and its height is the share of pages that are present, drawn at least "
        f"{LEAST:.0%} high; its length goes with the logarithm of its size."
    )
    _write(axes, 0.25, 0.78, words, fontsize=LABEL, color="#777777")
    handles = [Patch(facecolor=c, label=kind) for c, kind in zip(COLOURS, kinds, strict=False)]
    grounds = GROUNDS if kinds == KINDS else TABLE_GROUNDS
    handles += [Patch(facecolor=c, edgecolor="#bbbbbb", label=label) for c, label in grounds]
    corner = (0.15 / width, 0.1 / height)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=corner, ncols=5, fontsize=8, frameon=False)


def _beside(piece: Row | Gap, largest: int) -> float:
    """Inches from the left edge to the labels beside a row."""
    if isinstance(piece, Gap):
        return LEFT + 0.4
    return LEFT + _bar_width(piece.each, largest) + 0.12 + (2 * PILE if piece.times > 1 else 0)


def _labels(piece: Row | Gap, kinds: tuple[str, ...], room: float) -> list[list[str]]:
    """What stands beside a row, in lines of at most `room` inches: what is present, and the names."""
    if isinstance(piece, Gap):
        return []
    return [_wrap(row_label(piece, kinds) + marks(piece), room), _wrap(", ".join(row_names(piece)), room)]


def _wrap(words: str, room: float) -> list[str]:
    """A label in lines of at most `room` inches, by the letters' own widths."""
    untyped: Any = RendererAgg
    renderer, font = untyped(1, 1, DPI), FontProperties(size=LABEL)

    def inches(text: str) -> float:
        return float(renderer.get_text_width_height_descent(text, font, False)[0]) / DPI

    with _missing_letters_as_boxes():
        return report.wrap(words, room - 0.1, inches)


@contextlib.contextmanager
def _missing_letters_as_boxes() -> Iterator[None]:
    """Keep quiet about letters that the font has not got: they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
