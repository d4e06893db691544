"""Charts of estimates and sweeps, with matplotlib (the extra `plot`): readable on white and on black."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import KsmwalkError
from . import report

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as _error:
    raise KsmwalkError(f"drawing needs matplotlib ({_error}): pip install 'ksmwalk[plot]'") from _error

#: colours that have another one on a dark ground; each is used for one thing only
INK, FAINT, GRID, GROUND = "#24292f", "#656d76", "#d8dee5", "#fffffe"
DARK = {INK: "#e6edf3", FAINT: "#9aa4af", GRID: "#363d46", GROUND: "#0d1117"}
#: and those that are seen on both
MAIN, REST, WARM = "#2f81d7", "#9aa5b1", "#d9822b"
_DASHES = ("-", "--", ":", "-.")
_LINES = [
    (MAIN, "-", "o"), (WARM, "-", "s"), ("#2da06b", "-", "^"), ("#a45bc4", "--", "D"), ("#cf4f5f", "--", "v"),
    ("#8c6d3f", "--", "P"), (REST, ":", "X"),
]  # fmt: skip

DPI = 130
_LONGEST_NAME = 24
# times that a scale of them shows, seconds
_MOMENTS = {
    1: "1 s", 10: "10 s", 60: "1 minute", 600: "10 minutes", 3600: "1 hour", 21600: "6 hours", 86400: "1 day",
    604800: "1 week", 2592000: "30 days", 31557600: "1 year",
}  # fmt: skip
_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86400), ("years", 365.25 * 86400))
# so that the same chart is the same file
_NO_DATE = {"Date": None, "Creator": None}
# Of a cell of the map that has anything present so much is seen at least.
_LEAST = 0.3

_STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "text.color": INK, "axes.labelcolor": FAINT, "axes.titlecolor": INK, "xtick.color": GRID, "ytick.color": GRID,
    "xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT, "axes.edgecolor": GRID, "grid.color": GRID,
    "axes.facecolor": "none", "figure.facecolor": GROUND, "savefig.facecolor": GROUND, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.linewidth": 0.8,
    # names may hold dollars, which are no formulas
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "ksmwalk", "legend.fontsize": 8.5,
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in our colours; letters that the font has not got are boxes, and nothing is said about them."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made


def rendered(drawn: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file: png, svg or pdf. An SVG turns dark where its reader asks for that."""
    done = io.BytesIO()
    if kind != "svg":
        drawn.savefig(done, format=kind)
        return done.getvalue()
    drawn.savefig(done, format=kind, metadata=_NO_DATE)
    text = done.getvalue().decode()
    return text.replace("<defs>", f"<style>{dark_rules()}</style>\n <defs>", 1).encode()


def inline(drawn: Figure, name: str) -> str:
    """A figure as an svg element for a page, its ids beginning with `name`, without ground; `dark_rules` go with it."""
    done = io.BytesIO()
    drawn.savefig(done, format="svg", transparent=True, metadata=_NO_DATE)
    text = done.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)


def dark_rules() -> str:
    """The style sheet by which colours are others on a dark ground; where it is not understood, they stay."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}' for light, dark in DARK.items() for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme:dark){{{rules}}}"


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name from outside as a label: printable, and cut in its middle."""
    text = report.printable(name)
    if text.startswith("_"):
        text = f" {text}"  # matplotlib leaves others out of legends
    if len(text) <= longest:
        return text
    front = (longest - 1) // 2
    return f"{text[:front]}…{text[front + 1 - longest:]}"


# ---------------------------------------------------------- charts


def sizes(axis: Any) -> None:
    """Round numbers of bytes along an axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: report.size(int(value))))
    low, high = axis.get_view_interval()
    # ticks at round numbers of the unit, not of bytes
    unit = 1 << 10 * max(0, (int(max(abs(high), 1)).bit_length() - 1) // 10)
    places = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low / unit, high / unit), float) * unit
    axis.set_ticks(places[(places >= low) & (places <= high)])


def _unit(seconds: float) -> tuple[str, float]:
    return next(((name, each) for name, each in reversed(_UNITS) if seconds >= 2 * each), _UNITS[0])


def line_of(number: int, of: int) -> tuple[str, str, str, float]:
    """Colour, dashes, marker and width of a line among so many: all are told apart without colours too.

    Those that come first are wider, so that they are seen below others that go the same way.
    """
    colour, dashes, marker = _LINES[number % len(_LINES)]
    dashes = _DASHES[(_DASHES.index(dashes) + number // len(_LINES)) % len(_DASHES)]
    return colour, dashes, marker, 1.4 + 0.9 * (of - 1 - number)


def freed_over_time(axes: Axes, rows: np.ndarray) -> None:
    """Memory freed over time, a point a full scan, with the band from lower to upper.

    Parameters
    ----------
    axes : matplotlib Axes
    rows : ndarray of estimates.tables.FREED_DTYPE
    """
    axes.set_title("Memory freed over time")
    name, each = _unit(float(rows["seconds"][-1]))
    x = rows["seconds"] / each
    label = "expected, after each full scan"
    if (rows["lower_bytes"] != rows["upper_bytes"]).any():
        label = "as read, if nothing changed any more"
        axes.fill_between(
            x, rows["lower_bytes"], rows["upper_bytes"], color=MAIN, alpha=0.28, lw=0,
            label="nine of ten moments while pages change"
        )
    axes.plot(x, rows["freed_bytes"], color=MAIN, lw=2, marker="o", ms=4, label=label)
    axes.set_xlabel(name)
    axes.set_xlim(0, max(float(x[-1]), 1e-9) * 1.02)
    high = max(int(rows["upper_bytes"].max()), int(rows["freed_bytes"].max()), 4096)
    axes.set_ylim(min(0, int(rows["lower_bytes"].min())), high * 1.08)
    sizes(axes.yaxis)
    axes.grid(axis="y")
    axes.legend(loc="lower right")


def memory_over_time(axes: Axes, runs: Sequence[tuple[str, np.ndarray]]) -> None:
    """Memory in use over time, a line a run.

    Parameters
    ----------
    axes : matplotlib Axes
    runs : sequence of (str, ndarray of host.running.RUN_DTYPE)
        What each is called, and its rows.
    """
    axes.set_title("Memory in use over time")
    name, each = _unit(max(float(rows["time"][-1]) for _, rows in runs))
    for number, (label, rows) in enumerate(runs):
        colour, dashes, _, width = line_of(number, len(runs))
        axes.plot(rows["time"] / each, rows["frames_used"] * 4096, color=colour, lw=width, ls=dashes, label=label)
    axes.set_xlabel(name)
    axes.set_xlim(0, None)
    axes.set_ylim(0, max(int(rows["frames_used"].max()) for _, rows in runs) * 4096 * 1.08)
    sizes(axes.yaxis)
    axes.grid(axis="y")
    axes.legend(loc="lower left")


def merge_ratio_by_mapping(axes: Axes, names: Sequence[str], anonymous: np.ndarray, merged: np.ndarray) -> None:
    """What part of each mapping ends merged.

    Parameters
    ----------
    axes : matplotlib Axes
    names : sequence of str
        The first is drawn on top.
    anonymous, merged : int64[len(names)]
        Bytes present, and merged.
    """
    axes.set_title("Merged, by mapping")
    y = np.arange(len(names))[::-1]
    axes.barh(y, anonymous, color=REST, alpha=0.45, height=0.66, label="not merged")
    axes.barh(y, merged, color=MAIN, height=0.66, label="merged")
    most = max(int(anonymous.max(initial=0)), 1)
    for place, whole, part in zip(y.tolist(), anonymous.tolist(), merged.tolist(), strict=True):
        axes.text(whole + most * 0.015, place, f"{part / max(whole, 1):.0%}", va="center", color=FAINT, fontsize=8.5)
    axes.set_yticks(y, [short(name) for name in names])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlim(0, most * 1.13)
    sizes(axes.xaxis)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower right")


def passes_until_merged(axes: Axes, merged_pages: np.ndarray, searched: int, most: int = 12) -> None:
    """How many pages are merged in which pass.

    Parameters
    ----------
    axes : matplotlib Axes
    merged_pages : int64[full scans + 1]
        Pages merged by the end of each scan, before the first one first.
    searched : int
        Pages that are looked at in all; those that are left are never merged.
    most : int
        Passes that get a bar of their own.
    """
    axes.set_title("Passes until pages are merged")
    each = np.maximum(np.diff(merged_pages), 0)
    last = int(np.flatnonzero(each)[-1]) + 1 if each.any() else 1
    bars, labels = list(each[:last].tolist()), [str(at + 1) for at in range(last)]
    if last > most:
        bars, labels = [*bars[:most], sum(bars[most:])], [*labels[:most], "later"]
    before = int(merged_pages[0])
    if before:
        bars, labels = [before, *bars], ["already", *labels]
    bars, labels = [*bars, max(searched - int(merged_pages[-1]), 0)], [*labels, "never"]
    x = np.arange(len(bars))
    axes.set_xlim(-0.6, max(len(bars), 6) - 0.4)
    axes.bar(x, bars, width=0.7, color=[MAIN] * (len(bars) - 1) + [REST])
    for place, value in enumerate(bars):
        axes.text(place, value, report.count(value), ha="center", va="bottom", color=FAINT, fontsize=8.5)
    axes.set_xticks(x, labels)
    axes.set_xlabel("merged in pass")
    axes.set_ylabel("pages")
    axes.set_ylim(0, max(max(bars), 1) * 1.12)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: report.count(int(value))))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")


@dataclass(frozen=True, slots=True)
class Strip:
    """A mapping of the map: columns from its start to its end.

    Parameters
    ----------
    label, words : str
        What stands on its left and on its right.
    present, merged : float64[columns]
        The share of a column's pages that are present; that of these that are merged.
    """

    label: str
    words: str
    present: np.ndarray
    merged: np.ndarray


def merge_map(axes: Axes, strips: Sequence[Strip], title: str) -> None:
    """An address space by merge ratio, a strip a mapping.

    Parameters
    ----------
    axes : matplotlib Axes
    strips : sequence of Strip
        The first is drawn on top.
    title : str
    """
    axes.set_title(title)
    unmerged, merged = (np.array(matplotlib.colors.to_rgb(colour)) for colour in (WARM, MAIN))
    for place, strip in enumerate(reversed(strips)):
        cells = np.zeros((1, len(strip.present), 4))
        cells[0, :, :3] = unmerged + (merged - unmerged) * strip.merged[:, None]
        cells[0, :, 3] = np.where(strip.present > 0, np.maximum(strip.present, _LEAST), 0)
        low, high = place - 0.31, place + 0.31
        axes.add_patch(matplotlib.patches.Rectangle((0, low), 1, high - low, facecolor=GRID, alpha=0.6, lw=0))
        axes.imshow(cells, extent=(0, 1, low, high), aspect="auto", interpolation="nearest", zorder=2)
        axes.text(1.012, place, strip.words, va="center", color=FAINT, fontsize=8.5)
    axes.set_xlim(0, 1.36)
    axes.set_ylim(-0.6, len(strips) - 0.4)
    axes.set_yticks(np.arange(len(strips)), [short(strip.label, 22) for strip in reversed(strips)])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    handles = [
        matplotlib.patches.Patch(color=colour, label=label)
        for colour, label in ((MAIN, "merged"), (WARM, "not merged"), (GRID, "not present"))
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.03, 0.0), ncols=3, handlelength=1, columnspacing=1)


def sharing_matrix(axes: Axes, names: Sequence[str], shared: np.ndarray, title: str = "Who shares with whom") -> None:
    """How many bytes each has in common with each.

    Parameters
    ----------
    axes : matplotlib Axes
    names : sequence of str
    shared : int64[n, n]
        Bytes; on the diagonal what one shares within itself.
    title : str
    """
    axes.set_title(title)
    many = len(names)
    most = max(int(shared.max(initial=0)), 1)
    cells = np.zeros((many, many, 4))
    cells[..., :3] = matplotlib.colors.to_rgb(MAIN)
    cells[..., 3] = np.sqrt(np.maximum(shared, 0) / most)
    axes.imshow(cells, aspect="equal", interpolation="nearest")
    ticks = np.arange(many)
    axes.set_xticks(ticks, [short(name, 16) for name in names], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [short(name, 16) for name in names])
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xticks(ticks[1:] - 0.5, minor=True)
    axes.set_yticks(ticks[1:] - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", linewidth=1)
    if many <= 12:
        for row in range(many):
            for column in range(many):
                value = int(shared[row, column])
                # on a full cell white is read in either mode, on a faint one the mode's own colour
                colour = "white" if value > most * 0.55 else INK
                axes.text(
                    column, row, report.size(value).replace(" ", "\n") if value else "–", ha="center", va="center",
                    fontsize=8 if many <= 8 else 6.5, color=colour,
                )  # fmt: skip


def sweep_front(axes: Axes, cpu: np.ndarray, freed: np.ndarray, seconds: np.ndarray) -> None:
    """Settings against each other: what they cost, what they free, how long that takes; the best of them in a line.

    Parameters
    ----------
    axes : matplotlib Axes
    cpu : float64[n]
        ksmd's part of one processor.
    freed : int64[n]
        Bytes.
    seconds : float64[n]
        Until nothing more is merged.
    """
    axes.set_title("Settings: cost, gain and time")
    cpu = np.maximum(np.asarray(cpu, float) * 100, 1e-4)
    time = np.log10(np.maximum(np.asarray(seconds, float), 1e-3))
    low, high = (float(time.min()), float(time.max())) if len(time) else (0.0, 1.0)
    dots = axes.scatter(
        cpu, freed, c=time, cmap="plasma", vmin=low, vmax=max(high, low + 1e-9), s=34, linewidths=0.5, edgecolors=FAINT, zorder=3
    )
    on_front = front(cpu, freed)
    if len(on_front) > 1:  # one point is no line
        axes.plot(cpu[on_front], np.asarray(freed)[on_front], color=FAINT, lw=1.2, ls="--", drawstyle="steps-post", zorder=2,
                  label="none is both cheaper and better")  # fmt: skip
        axes.legend(loc="upper left")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set_xlabel("ksmd's CPU, of one processor")
    axes.set_ylim(0, max(float(np.max(freed, initial=0)), 1) * 1.16)
    sizes(axes.yaxis)
    axes.set_ylabel("freed")
    axes.grid()
    bar = axes.figure.colorbar(dots, ax=axes, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.set_ticks([at for at in np.log10(list(_MOMENTS)) if low <= at <= high] or [low])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _MOMENTS.get(round(10**value), report.duration(10**value))))
    bar.set_label("until all is merged", color=FAINT)


def front(cpu: np.ndarray, freed: np.ndarray) -> np.ndarray:
    """Which of some settings no other one beats, in the order of their cost: int64[at most n].

    Parameters
    ----------
    cpu, freed : ndarray, shape (n,)
    """
    order = np.lexsort((-np.asarray(freed), np.asarray(cpu)))
    best = np.maximum.accumulate(np.asarray(freed)[order])
    better = np.ones(len(order), bool)
    better[1:] = np.diff(best) > 0
    return order[better]
