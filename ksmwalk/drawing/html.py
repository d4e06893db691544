"""Pieces of HTML for notebooks: they stand by themselves, fetch nothing, run nothing, and take on the colours around them.

Text and lines are in `currentColor`, so they are read on any ground; styles are on the elements, because where notebooks
are shown a style sheet is often taken away. Every word goes through `text`, whatever it holds.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import numpy as np

from .spaces import (
    KINDS,
    PAGE,
    Area,
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
)  # fmt: skip
from .words import printable, size

#: a colour a kind, seen on white and on black
COLOURS = ("#3b7dd8", "#8a63d2", "#2a9d5c", "#d9a406", "#8c8c8c", "#2aa3b8")
_COLUMNS, _HEIGHT = 240, 20
# A column with anything present shows at least so much of its height: one page in a thousand is still a page.
_LEAST = 3
_GROUNDS = (
    (COLOURS[KINDS.index("KSM")], 0.3, "mapped, marked mergeable"),
    ("currentColor", 0.16, "mapped, could be marked"),
    ("currentColor", 0.06, "mapped, can't be marked"),
)
_SVG = '<svg xmlns="http://www.w3.org/2000/svg" preserveAspectRatio="none" shape-rendering="crispEdges" role="img"'
_FAINT = "opacity:.7"


def text(words: object) -> str:
    """Words from anywhere as HTML."""
    return html.escape(printable(words))


def card(title: str, parts: Iterable[str]) -> str:
    """A title with HTML below it."""
    return f'<div style="max-width:70em;font-size:.9em"><strong>{text(title)}</strong>{"".join(parts)}</div>'


def line(words: str) -> str:
    """A line of text, of less weight."""
    return f'<div style="{_FAINT};margin:.3em 0">{text(words)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], words: Iterable[int] = ()) -> str:
    """A table; numbers flush right with their thousands apart, the columns `words` flush left."""
    left = set(words)

    def cell(tag: str, column: int, value: object) -> str:
        shown = f"{value:,}" if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
        side = "left" if column in left else "right"
        style = f"text-align:{side};padding:.1em .9em .1em 0;border:0;background:none;color:inherit"
        return f'<{tag} style="{style}">{text(shown)}</{tag}>'

    lines = ["".join(cell("td", at, value) for at, value in enumerate(row)) for row in rows]
    head = "".join(cell("th", at, name) for at, name in enumerate(heads))
    body = "".join(f'<tr style="background:none">{cells}</tr>' for cells in lines)
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:.4em 0;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def legend(marks: Iterable[tuple[str, float, str]]) -> str:
    """Colours with their opacity and what they stand for."""
    swatch = "display:inline-block;width:.8em;height:.8em;vertical-align:-.05em;margin-right:.4em;outline:1px solid #88888899"
    fill = "display:block;width:100%;height:100%"
    parts = [
        f'<span style="white-space:nowrap;margin-right:1.2em"><span style="{swatch}">'
        f'<span style="{fill};background:{colour};opacity:{opacity:g}"></span></span>{text(words)}</span>'
        for colour, opacity, words in marks
    ]
    return f'<div style="margin:.4em 0">{" ".join(parts)}</div>'


def parts(shares: Sequence[tuple[str, float, str, int]], label: str) -> str:
    """One bar of parts that lie side by side, with what each is beneath: (colour, opacity, words, how much)."""
    whole = max(sum(share for *_, share in shares), 1)
    at, drawn = 0.0, []
    for colour, opacity, words, share in shares:
        width = 1000 * share / whole
        if share:
            drawn.append(
                f'<rect x="{at:.6g}" width="{max(width, 2):.6g}" height="10" fill="{colour}" fill-opacity="{opacity:g}">'
                f"<title>{text(words)}</title></rect>"
            )
        at += width
    bar = f'{_SVG} aria-label="{text(label)}" viewBox="0 0 1000 10" style="width:100%;height:1.2em;display:block;margin:.4em 0">'
    return f"{bar}{''.join(drawn)}</svg>{legend([share[:3] for share in shares if share[3]])}"


# ---------------------------------------------------------- address spaces


def address_space(drawn: Picture) -> str:
    """A picture of an address space: a bar a row, what was cut out between them, and what the colours stand for."""
    whole = total(drawn)
    if not drawn.vmas:
        return card(heading(drawn), ())
    largest = max((row.each.size for row in drawn.rows), default=PAGE)
    pieces = [_gap(piece) if isinstance(piece, Gap) else _row(drawn, piece, largest) for piece in drawn.pieces()]
    grid = (
        "display:grid;grid-template-columns:max-content minmax(6em,28em) minmax(9em,1fr);gap:.3em .9em;align-items:center;"
        "margin:.5em 0"
    )
    grounds = [ground for ground, seen in zip(_GROUNDS, _grounds(drawn.vmas), strict=True) if seen]
    colours = [(COLOURS[kind], 1.0, drawn.kinds[kind]) for kind in np.flatnonzero(whole).tolist()]
    foot = [line(f"{size(int(whole.sum()) * PAGE)} present: {kinds_label(whole, drawn.kinds)}")] if whole.any() else []
    notes = [line(note) for note in drawn.notes]
    return card(heading(drawn), [f'<div style="{grid}">', *pieces, "</div>", *foot, legend([*colours, *grounds]), *notes])


def _grounds(vmas: Iterable[Area]) -> list[bool]:
    """Which of the grounds there are."""
    kinds = {_ground(vma) for vma in vmas}
    return [ground in kinds for ground in range(len(_GROUNDS))]


def _ground(vma: Area) -> int:
    return 0 if vma.mergeable else 2 if vma.not_compatible else 1


def _gap(gap: Gap) -> str:
    return f'<span></span><span style="grid-column:2/4;{_FAINT}">⋯ {text(gap_label(gap))}</span>'


def _row(drawn: Picture, row: Row, largest: int) -> str:
    one = row.each
    # longer rows get longer bars, by the logarithm of their size
    width = 100 * (0.1 + 0.9 * math.log2(one.size / PAGE + 1) / math.log2(largest / PAGE + 1))
    label, names = row_label(row, drawn.kinds) + marks(row), ", ".join(row_names(row))
    pile = ";border-right:.25em double;border-bottom:.25em double" if row.times > 1 else ""
    beside = text(label) + (f'<br/><span style="{_FAINT};overflow-wrap:anywhere">{text(names)}</span>' if names else "")
    return (
        f'<code style="background:none;color:inherit">{row.start:x}</code>'
        f'<span>{_bar(drawn, one, label, f"width:{width:.3g}%;height:1.5em;display:block;box-sizing:content-box{pile}")}</span>'
        f"<span>{beside}</span>"
    )


def _bar(drawn: Picture, row: Row, label: str, style: str) -> str:
    """A row as one svg element: what is mapped as its ground, what is present upon it by kind, as high as its share."""
    width = int(min(_COLUMNS, row.size // PAGE))
    share, vma = columns(drawn, row, width)
    kinds = np.array([_ground(area) for area in row.vmas] or [0])
    ground = np.where(vma < 0, -1, kinds[np.maximum(vma, 0)])
    paths = []
    for at, (colour, opacity, _) in enumerate(_GROUNDS):
        if (ground == at).any():
            paths.append(f'<path fill="{colour}" fill-opacity="{opacity:g}" d="{_blocks(0 * ground, _HEIGHT * (ground == at))}"/>')
    filled = share.sum(axis=1)
    # thin columns are stretched to the least height, all kinds of them alike
    stretch = np.where(filled > 0, np.maximum(filled, _LEAST / _HEIGHT) / np.where(filled > 0, filled, 1), 0)
    top = np.rint(np.cumsum(share * stretch[:, None], axis=1) * _HEIGHT).astype(np.int64)
    below = np.zeros(width, np.int64)
    for kind, colour in enumerate(COLOURS):
        if (top[:, kind] > below).any():
            paths.append(f'<path fill="{colour}" d="{_blocks(below, top[:, kind])}"/>')
        below = top[:, kind]
    frame = f'<path fill="none" stroke="currentColor" stroke-opacity=".35" d="M0 0h{width}v{_HEIGHT}h-{width}z" '
    return (
        f'{_SVG} aria-label="{text(label)}" viewBox="0 0 {width} {_HEIGHT}" style="{style}">{"".join(paths)}'
        f'{frame}vector-effect="non-scaling-stroke"/></svg>'
    )


def _blocks(low: np.ndarray, high: np.ndarray) -> str:
    """A path of blocks from `low` to `high`, from below, a column each; equal neighbours are one."""
    there = high > low
    change = np.ones(len(low), bool)
    change[1:] = (np.diff(low) != 0) | (np.diff(high) != 0)
    at = np.flatnonzero(change)
    wide = np.diff(np.append(at, len(low)))
    return "".join(
        f"M{x} {_HEIGHT - int(high[x])}h{n}v{int(high[x] - low[x])}h-{n}z"
        for x, n in zip(at.tolist(), wide.tolist(), strict=True)
        if there[x]
    )
