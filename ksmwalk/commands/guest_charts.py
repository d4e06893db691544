"""A chart of full scans by the span that they go over, with matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, NullFormatter

from . import charts, report
from .charts import FAINT, INK, MAIN, REST, WARM

if TYPE_CHECKING:
    from .demo_guest import Judged

_LINES = ((WARM, "s"), (MAIN, "o"), (REST, "^"), (INK, "v"))


def scans_by_span(axes: Any, found: Sequence[Judged]) -> None:
    """How long a full scan takes by the span: what was measured as points, what the model says as lines.

    Parameters
    ----------
    axes : matplotlib Axes
    found : sequence of demo_guest.Judged
    """
    pages = found[0].rows[0].giant.pages
    words = "one page" if pages == 1 else f"{report.count(pages)} pages"
    axes.set_title(f"A full scan of {words}, by the address space around")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for number, one in enumerate(found):
        colour, marker = _LINES[number % len(_LINES)]
        how = "one address after the other" if one.by_address else "page table walk"
        axes.plot(
            [row.giant.span for row in one.rows], [row.predicted for row in one.rows], color=colour, lw=1.6, ls="--",
            label=f"Linux {one.version}, {how}: the model",
        )  # fmt: skip
        measured = [(row.giant.span, row.measured.median) for row in one.rows if row.measured]
        axes.plot(*zip(*measured, strict=True), color=colour, ls="", marker=marker, ms=7, label="ksmd's CPU time, measured")
        span, seconds = measured[-1]
        axes.annotate(
            report.duration(seconds), (span, seconds), xytext=(9, 0), textcoords="offset points", color=FAINT, fontsize=8.5,
            va="center",
        )  # fmt: skip
    shown = [row.giant.span for row in found[0].rows]
    axes.set_xticks(shown, [report.size(span) for span in shown])
    axes.set_xlim(shown[0] / 2, shown[-1] * 6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: report.duration(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("address space, marked mergeable")
    axes.grid()
    axes.legend(loc="upper left")


def picture(found: Sequence[Judged], kind: str) -> bytes:
    """The chart as the bytes of a file: png, svg or pdf."""
    with charts.style():
        drawn = charts.figure(8.2, 4.8)
        scans_by_span(drawn.subplots(), found)
        return charts.rendered(drawn, kind)
