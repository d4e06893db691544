"""Pictures, with matplotlib (the extra `plot`): nothing else in ksmwalk imports it."""

from __future__ import annotations

import math
import os

import numpy as np

from ..errors import KsmwalkError
from .picture import KINDS, Gap, Picture, Row, columns, gap_label, heading, marks, row_label, row_names

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError as error:
    raise KsmwalkError(f"drawing needs matplotlib ({error}): pip install 'ksmwalk[plot]'") from error

# One colour a kind, told apart by lightness as well as by hue.
COLOURS = ("#3b7dd8", "#1b2a6b", "#2a9d5c", "#f2b705", "#a8a8a8")
MARKED, COULD, CANNOT = "#cfeedd", "#e3ecf9", "#eeeeee"
GROUNDS = (
    (MARKED, "mapped, marked mergeable"),
    (COULD, "mapped, could be marked"),
    (CANNOT, "mapped, can't be marked"),
)

COLUMNS = 1200
# A column with anything present shows at least this part of its height: one page in a thousand is still a page.
LEAST = 0.12
ROW, GAP = 0.62, 0.26  # inches
LEFT, BAR, RIGHT = 1.55, 6.6, 3.6  # inches


def _image(drawn: Picture, row: Row, height: int) -> np.ndarray:
    """A row as RGB, uint8[height, columns, 3], bottom line first."""
    width = int(min(COLUMNS, row.size // 4096))
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
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def _bar_width(row: Row, largest: int) -> float:
    """Inches: longer rows get longer bars, by the logarithm of their size."""
    return BAR * (0.1 + 0.9 * math.log2(row.size / 4096 + 1) / math.log2(largest / 4096 + 1))


def address_space(drawn: Picture, path: str | os.PathLike) -> None:
    """Draw an address space into a file, the format by its name.

    Parameters
    ----------
    drawn : Picture
    path : str or path
    """
    pieces = drawn.pieces()
    height = sum(GAP if isinstance(piece, Gap) else ROW for piece in pieces) + 1.75
    width = LEFT + BAR + RIGHT
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    axes.text(0.2, height - 0.3, heading(drawn), fontsize=12, weight="bold", va="center")
    largest = max((row.size for row in drawn.rows), default=4096)
    y = height - 0.6
    for piece in pieces:
        if isinstance(piece, Gap):
            y -= GAP
            middle = y + GAP / 2
            # a torn edge: something was cut out here
            x = LEFT + np.arange(9) * 0.035
            axes.plot(x, middle + np.where(np.arange(9) % 2, 0.04, -0.04), color="#999999", lw=0.9)
            axes.text(LEFT + 0.4, middle, gap_label(piece), fontsize=7.5, color="#777777", va="center", style="italic")
            continue
        y -= ROW
        bar = _bar_width(piece, largest)
        low, high = y + 0.14, y + ROW - 0.06
        axes.imshow(
            _image(drawn, piece, 60),
            extent=(LEFT, LEFT + bar, low, high),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
        )
        axes.plot(
            [LEFT, LEFT + bar, LEFT + bar, LEFT, LEFT], [low, low, high, high, low], color="#555555", lw=0.6
        )
        axes.text(
            LEFT - 0.1, (low + high) / 2, f"{piece.start:x}", fontsize=8, family="monospace", ha="right", va="center"
        )
        beside = LEFT + bar + 0.12
        names = ", ".join(row_names(piece))
        room = int((width - beside) / 0.062)
        label = row_label(piece) + marks(piece)
        middle = (low + high) / 2
        axes.text(beside, middle + (0.09 if names else 0), _cut(label, room), fontsize=7.5, va="center")
        axes.text(beside, middle - 0.09, _cut(names, room), fontsize=7, va="center", color="#777777")
    axes.text(
        LEFT,
        0.75,
        "Inside a bar the scale is linear; its length goes with the logarithm of its size. "
        f"Thin memory is drawn at least {LEAST:.0%} high.",
        fontsize=7.5,
        color="#777777",
    )
    handles = [Patch(facecolor=c, label=kind) for c, kind in zip(COLOURS, KINDS, strict=True)]
    handles += [Patch(facecolor=c, edgecolor="#bbbbbb", label=label) for c, label in GROUNDS]
    corner = (0.15 / width, 0.12 / height)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=corner, ncols=4, fontsize=8, frameon=False)
    # imshow narrows the limits to its picture
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise KsmwalkError(f"{path}: {error}") from None


def _cut(label: str, room: int) -> str:
    return label if len(label) <= room else label[: max(room - 3, 0)] + "..."


