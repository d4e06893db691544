"""A sweep as charts and as one page."""

from __future__ import annotations

from .. import __version__
from ..estimates.sweep import front
from . import charts, estimate_plots, page, report, sweep_text
from .estimate_text import percent
from .sweep_text import HEADS, Found

_MOST_ROWS = 100


def panels(found: Found) -> list[estimate_plots.Panel]:
    """The charts that a sweep gives.

    Parameters
    ----------
    found : Found
    """
    rows = found.rows
    return [("front", 4.2, lambda axes: charts.sweep_front(axes, rows["cpu_share"], rows["freed_bytes"], rows["seconds_to_99"]))]


def page_rows(found: Found) -> list[tuple[str, list[str]]]:
    """The rows of the page's table: those that no other beats, the present and the advised one."""
    names = sweep_text.tunables(found)
    out = []
    for at in found.table_rows()[:_MOST_ROWS].tolist():
        cells = [
            *sweep_text.words_of(found, at, names), report.size(int(found.rows["freed_bytes"][at])),
            percent(float(found.rows["cpu_share"][at])), report.duration(float(found.rows["seconds_to_90"][at])),
            sweep_text.mark(found, at),
        ]  # fmt: skip
        out.append(("best" if at == found.best else "", [page.text(cell) for cell in cells]))
    return out


def page_of_sources(found: Found) -> list[str]:
    """What the advised setting brings on each machine; nothing where there is one only."""
    if len(found.names) < 2 or found.best is None:
        return []
    heads = (("source", "text"), ("freed now", ""), ("freed as advised", ""), ("CPU as advised", ""))
    rows = []
    for name, some in zip(found.names, found.each, strict=True):
        now, then = some[found.present], some[found.best]
        freed = [report.size(int(row["freed_bytes"])) for row in (now, then)]
        cells = [name, *freed, percent(float(then["cpu_share"]))]
        rows.append(("", [page.text(cell) for cell in cells]))
    return ["<h2>Machines</h2>", *page.table(heads, rows)]


def written(found: Found) -> str:
    """The page as text, whole.

    Parameters
    ----------
    found : Found
    """
    heads = [
        *((HEADS[name], "") for name in sweep_text.tunables(found)), ("freed", ""), ("CPU", ""), ("90 % after", ""), ("", "mark"),
    ]  # fmt: skip
    parts = [
        f'<p class="faint">{page.text(", ".join(found.names))}; ksmwalk {__version__}</p>',
        f'<div class="answer{"" if sweep_text.not_worth(found) else " worth"}"><p>{page.text(sweep_text.advice(found))}</p></div>',
        *page.drawings(panels(found)),
        f"<h2>Settings that no other beats ({int(front(found.rows).sum()):,} of {len(found.rows):,})</h2>",
        *page.table(heads, page_rows(found)),
        f'<p class="faint">{page.text(sweep_text.legend(found))}</p>',
        *page_of_sources(found),
        *page.notes(sweep_text.notes(found), "sweep"),
    ]
    return page.document(sweep_text.heading(found), parts, found.to_json(), "sweep")
