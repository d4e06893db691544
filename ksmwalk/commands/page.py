"""An estimate as one page: charts, tables, text and the data in a single file that asks for nothing from elsewhere."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .. import __version__
from ..estimates.advice import Advice, Setting
from ..estimates.estimate import Estimate
from ..layout.whole import write_whole
from ..sources.matrix import SharingMatrix
from . import charts, estimate_plots, estimate_text, files, report, sharing_text

_MOST_ROWS = 20
_WIDTH = 5.4
# No script runs and nothing is fetched, whatever a name may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root{--ink:#24292f;--faint:#5c646d;--line:#d8dee5;--ground:#fff;--card:#f6f8fa;--good:#1a7f37;--bad:#9a6700;--main:#2f81d7}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#9aa4af;--line:#363d46;--ground:#0d1117;--card:#161b22;
--good:#3fb950;--bad:#d29922}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;color-scheme:light dark}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .6rem}
p{margin:.5rem 0}.faint{color:var(--faint);font-size:.9rem}
.answer{border-left:.35rem solid var(--bad);background:var(--card);padding:.8rem 1rem;border-radius:.3rem;margin:1rem 0}
.answer.worth{border-color:var(--good)}.answer p:first-child{font-size:1.12rem;font-weight:600;margin-top:0}
.answer p{overflow-wrap:anywhere}code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.92em}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.2rem;margin:0}dt{font-weight:600}dd{margin:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1.2rem;align-items:start}
.charts figure{margin:0;padding:.8rem;border:1px solid var(--line);border-radius:.4rem;min-width:0}
.charts svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
th{color:var(--faint);font-weight:600;white-space:normal}
td.text,th.text{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:11rem}
td.mark{white-space:normal}
td.bar{width:6rem;min-width:3rem}td.bar div{height:.8rem;margin-top:.3rem;background:var(--main);border-radius:.15rem}
tr.best td{color:var(--good);font-weight:600}
@media (max-width:36rem){body{padding:.7rem}dl{grid-template-columns:1fr;gap:0}dd{margin:0 0 .5rem}.charts figure{padding:.3rem}
th.wide,td.wide{display:none}td.text,th.text{min-width:8rem}}
"""
_NAMES = {
    "process": "Processes", "mapping": "Mappings", "user": "Users", "cgroup": "Control groups", "container": "Containers",
}  # fmt: skip


def check(path: str) -> None:
    """Raises KsmwalkError where no page can be written there; before anything is read."""
    files.check("--html", path)


def write(of: Estimate, advice: Advice, domains: dict[str, int | None], path: str, matrix: SharingMatrix | None = None) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    of : Estimate
    advice : Advice
    domains : dict
        Bytes freed by domain.
    path : str
    matrix : SharingMatrix, optional
        Of several sources.

    Raises
    ------
    OSError
        It can't be written; what was there is as it was.
    """
    write_whole(path, page(of, advice, domains, matrix).encode("utf-8", "backslashreplace"))


def page(of: Estimate, advice: Advice, domains: dict[str, int | None], matrix: SharingMatrix | None = None) -> str:
    """The page as text: see `write`."""
    data = {**of.to_json(), "advice": advice.to_json(), "by_domain": domains}
    if matrix is not None:
        data["matrix"] = matrix.to_json()
    parts = [
        f'<p class="faint">{text(_where(of))}</p>',
        f'<div class="answer{" worth" if advice.worth else ""}"><p>{text(estimate_text.answer(of, advice))}</p>',
        *(f"<p>{text(words)}</p>" for words in [estimate_text.how_to(of, advice)] if words),
        "</div>",
        "<h2>What it rests on</h2><dl>",
        *(f"<dt>{text(label)}</dt><dd>{_code(words)}</dd>" for label, words in estimate_text.facts(of, domains)),
        "</dl>",
        *drawings(estimate_plots.panels(of, matrix)),
        *_settings(advice),
        *_sharing(matrix),
        *_tables(of),
        *notes([*of.notes, *estimate_text.hints(of, advice)], "estimate"),
    ]
    return document(estimate_plots.heading(of), parts, data, "estimate")


def document(title: str, parts: Iterable[str], data: dict[str, Any], called: str) -> str:
    """A whole page.

    Parameters
    ----------
    title : str
    parts : iterable of str
        HTML.
    data : dict
        Put into the element `called`, as JSON.
    called : str
    """
    # a closing tag in a name would end the element: no < stands in it
    embedded = json.dumps(data, default=report.plain).replace("<", "\\u003c")
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">',
        f"<title>{text(title)}</title>",
        f"<style>{_STYLE}{charts.dark_rules()}</style></head><body>",
        f"<h1>{text(title)}</h1>",
    ]
    foot = [f'<script type="application/json" id="{called}">{embedded}</script>', "</body></html>"]
    return "\n".join([*head, *parts, *foot]) + "\n"


def text(words: object) -> str:
    """Words from anywhere as HTML."""
    # numbers stay beside their units
    return html.escape(estimate_text.UNITS.sub("\xa0", report.printable(words)))


def _code(words: str) -> str:
    """Text with `code` in it."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", text(words))


def _where(of: Estimate) -> str:
    machine = of.capture.machine
    words = [f"{machine[name]}" for name in ("hostname", "release") if machine.get(name)]
    pages = f"{of.capture.nr_pages:,} pages of {len(of.capture.processes):,} processes"
    return f"{', '.join([*words, pages])}; ksmwalk {__version__}"


def drawings(some: Sequence[estimate_plots.Panel]) -> Iterator[str]:
    """Charts as HTML.

    Parameters
    ----------
    some : sequence of (name, height in inches, what draws it)
    """
    with charts.style():
        if not some:
            return
        yield '<h2>Charts</h2><div class="charts">'
        for name, height, put in some:
            drawn = charts.figure(_WIDTH, height)
            axes = drawn.subplots()
            put(axes)
            yield f'<figure role="img" aria-label="{text(axes.get_title(loc="left"))}">{charts.inline(drawn, name)}</figure>'
        yield "</div>"


Cell = tuple[str, str]


def table(heads: Sequence[Cell], rows: Iterable[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """A table: heads with the classes of their columns, rows with a class and cells, which are HTML already."""

    def cell(tag: str, kind: str, content: str) -> str:
        return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"

    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(cell("th", kind, text(head)) for head, kind in heads) + "</tr></thead><tbody>"
    for row_kind, cells in rows:
        inside = "".join(cell("td", kind, content) for (_, kind), content in zip(heads, cells, strict=True))
        yield f'<tr class="{row_kind}">{inside}</tr>' if row_kind else f"<tr>{inside}</tr>"
    yield "</tbody></table></div>"


def _settings(advice: Advice) -> Iterator[str]:
    if not advice.settings or not len(advice.estimate.expected.work):
        return

    def row(one: Setting) -> tuple[str, Sequence[str]]:
        cells = (
            f"{one.pages_to_scan:,}", f"{one.sleep_millisecs} ms", report.duration(one.pass_seconds),
            report.duration(one.seconds_to_settle), estimate_text.percent(one.cpu_while_merging),
            estimate_text.percent(one.cpu_after), estimate_text.mark(one, advice),
        )  # fmt: skip
        return "best" if one == advice.best else "", [text(content) for content in cells]

    yield "<h2>Settings</h2>"
    heads = (
        ("pages_to_scan", ""), ("sleep", "wide"), ("a pass", ""), ("all merged after", ""), ("CPU until then", ""),
        ("CPU afterwards", "wide"), ("", "mark"),
    )  # fmt: skip
    yield from table(heads, (row(one) for one in advice.settings))


def _tables(of: Estimate) -> Iterator[str]:
    for by, called in _NAMES.items():
        rows = of.table(by)
        if not len(rows) or (by not in ("process", "mapping") and len(rows) < 2):
            continue
        most = max(int(rows["freed_bytes"][0]), 1)
        names = rows.dtype.names or ()
        first, last = estimate_text.HEADS[by]
        heads = (
            (first, ""), ("anonymous", "wide"), ("freed", ""), ("of it", ""), ("", "bar wide"), ("merged", "wide"), (last, "text"),
        )  # fmt: skip
        yield f"<h2>{called}</h2>"
        yield from table(heads, (
            ("", _row(dict(zip(names, row.tolist(), strict=True)), by, most)) for row in rows[:_MOST_ROWS]
        ))  # fmt: skip
        if (more := len(rows) - _MOST_ROWS) > 0:
            rest = report.size(int(rows["freed_bytes"][_MOST_ROWS:].sum()))
            yield f'<p class="faint">and {more:,} more: {rest}</p>'


def _row(row: dict[str, Any], by: str, most: int) -> list[str]:
    number, anonymous, freed, part, merged, name = estimate_text.cells(row, by)
    bar = f'<div style="width:{100 * max(row["freed_bytes"], 0) / most:.1f}%"></div>'
    return [text(number), text(anonymous), text(freed), text(part), bar, text(merged), text(name)]


def notes(words: Sequence[str], called: str) -> Iterator[str]:
    """What the reader has to know, as HTML; and where the data are."""
    if words:
        yield f"<h2>Notes</h2><ul>{''.join(f'<li>{text(note)}</li>' for note in words)}</ul>"
    yield f'<p class="faint">All figures are in this file as JSON, in the element "{called}".</p>'


def _sharing(matrix: SharingMatrix | None) -> Iterator[str]:
    if matrix is None:
        return
    yield "<h2>Who shares with whom</h2>"
    yield f"<p>{text(sharing_text.advice(matrix))}</p>"
    heads = (("together more", ""), ("the one", "text"), ("the other", "text"))
    yield from table(heads, (
        ("", [text(report.size(gain)), text(one), text(other)]) for gain, one, other in sharing_text.pairs(matrix)[:_MOST_ROWS]
    ))  # fmt: skip
