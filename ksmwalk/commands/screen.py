"""Where a command's words go: a terminal, with colours and progress if rich is there (the extra `term`), or plain text.

Both say the same, letter for letter, in the same columns.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO, TypeVar

from . import report

try:
    import rich
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
except ImportError:
    rich = None  # type: ignore[assignment] # a module where it is installed

#: what an elastic column is to have before others are left out for it
_WISH = 24
_LEAST = 8
_PARAGRAPH = 110
# How long a command may take until its progress is shown, and how often that changes.
_PATIENCE, _PACE = 0.5, 0.1

#: a text, or a text and its rich style
Part = str | tuple[str, str]
T = TypeVar("T")


class HelpFormatter(argparse.HelpFormatter):
    """Help whose description is filled as ever, and whose examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    head : str
    right : bool
        Whether it is set flush right, as numbers are.
    rank : int
        0: always shown; of the others the highest goes first where the terminal is too narrow.
    elastic : bool
        Whether its texts are cut to the room that is left. Others never are.
    style : str
        For rich.
    """

    head: str
    right: bool = True
    rank: int = 0
    elastic: bool = False
    style: str = ""


class Screen:
    """A place to write to.

    Parameters
    ----------
    out : file, optional
        Standard output by default.

    Attributes
    ----------
    width : int or None
        Columns; None where nobody sets a limit: no terminal and no COLUMNS in the environment.
    """

    def __init__(self, out: TextIO | None = None):
        self.out: TextIO = out or report.output()
        self.terminal: bool = self.out.isatty()
        self.width: int | None = _width(self.out, self.terminal)
        self.rich: bool = rich is not None and self.terminal
        self.ellipsis: str = "…" if self.can_write("…") else "..."

    def can_write(self, text: str) -> bool:
        """Whether the encoding has these letters."""
        return report.encodable(text, self.out) == text

    def line(self, *parts: Part) -> None:
        """Write a line made of texts; rich colours those that come with a style."""
        texts = [(part, "") if isinstance(part, str) else part for part in parts]
        texts = [(report.encodable(text, self.out), style) for text, style in texts]
        if not self.rich:
            print("".join(text for text, _ in texts).rstrip(), file=self.out)
            return
        whole = rich.text.Text.assemble(*texts)
        whole.rstrip()
        self._write(whole, whole.cell_len)

    def paragraph(self, text: str, style: str = "", indent: str = "") -> None:
        """Write sentences, broken at the width; each line behind `indent`."""
        for line in report.wrap(text, max(_LEAST, (self.width or _PARAGRAPH) - len(indent))):
            self.line(indent, (line, style))

    def entry(self, *parts: Part, more: str = "", style: str = "", indent: str = "    ") -> None:
        """Write a line with `more` behind it; where that has no room, below it, and what is too long is broken."""
        whole = "".join(part if isinstance(part, str) else part[0] for part in parts)
        room = self.width or report.cells(whole) + report.cells(more) + 2
        if report.cells(whole) + report.cells(more) + (2 if more else 0) <= room:
            self.line(*parts, ("  " + more if more else "", style))
            return
        if report.cells(whole) <= room:
            self.line(*parts)
        else:
            before = whole[: len(whole) - len(whole.lstrip())]
            self.paragraph(whole, next((part[1] for part in parts if not isinstance(part, str)), ""), before)
        self.paragraph(more, style, indent)

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[object]],
        *,
        total: Sequence[object] | None = None,
        styles: Sequence[str] | None = None,
    ) -> None:
        """Write a table.

        Parameters
        ----------
        columns : sequence of Column
        rows : sequence of sequences, as long as `columns`
            One elastic column at most is cut, and columns with a rank are left out, so that it fits.
        total : sequence, optional
            A last row.
        styles : sequence of str, optional
            rich's style of each row.
        """
        cells = [[report.encodable(str(cell), self.out) for cell in row] for row in (*rows, *([total] if total else []))]
        shown = self._fit(columns, cells)
        heads = [columns[at].head for at in shown]
        lines = [[row[at] for at in shown] for row in cells]
        right = [place for place, at in enumerate(shown) if columns[at].right]
        if total:
            widths = [max(report.cells(line[place]) for line in (heads, *lines)) for place in range(len(shown))]
            lines.insert(-1, list(map(report.rule, widths)))
        if not self.rich:
            print(report.table(heads, lines, right=right), file=self.out)
            return
        self._rich_table([columns[at] for at in shown], heads, lines, styles or [], bool(total))

    def _fit(self, columns: Sequence[Column], cells: list[list[str]]) -> list[int]:
        """The columns that are shown; cuts the texts of the elastic one in `cells`."""
        widths = [max(map(report.cells, [column.head, *(row[at] for row in cells)])) for at, column in enumerate(columns)]
        shown = list(range(len(columns)))
        if self.width is None:
            return shown
        width = self.width

        def room() -> int:
            fixed = sum(widths[at] for at in shown if not columns[at].elastic)
            return width - fixed - 2 * (len(shown) - 1)

        elastic = [at for at, column in enumerate(columns) if column.elastic]
        wish = min(max((widths[at] for at in elastic), default=0), _WISH)
        while room() < wish and (most := max(columns[at].rank for at in shown)):
            shown.remove(next(at for at in shown if columns[at].rank == most))
        for at in elastic:
            space = max(room(), len(columns[at].head), _LEAST)
            for row in cells:
                row[at] = report.cut(row[at], space, self.ellipsis)
        return shown

    def _rich_table(
        self, columns: list[Column], heads: list[str], lines: list[list[str]], styles: Sequence[str], total: bool
    ) -> None:
        widths = [max(report.cells(line[at]) for line in (heads, *lines)) for at in range(len(heads))]
        made = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for column, head, width in zip(columns, heads, widths, strict=True):
            # lined up here, by our own count of columns, so that rich has nothing to cut
            made.add_column(
                rich.text.Text(report.pad(head, width, column.right)), style=column.style, no_wrap=True, min_width=width
            )
        made.add_row(*map(report.rule, widths), style="dim")
        for number, line in enumerate(lines):
            rule = total and number == len(lines) - 2
            style = "dim" if rule else "bold" if total and number == len(lines) - 1 else ""
            if not style and number < len(styles):
                style = styles[number]
            texts = [report.pad(cell, width, column.right) for column, cell, width in zip(columns, line, widths, strict=True)]
            made.add_row(*map(rich.text.Text, texts), style=style)
        self._write(made, sum(widths) + 2 * len(widths))

    def _write(self, what: rich.text.Text | rich.table.Table, width: int) -> None:
        """Let rich write something of this width; never let it break or cut a line, which is done before."""
        console = rich.console.Console(file=self.out, width=max(self.width or 0, width + 2), highlight=False, soft_wrap=True)
        console.print(what, no_wrap=True, overflow="ignore", crop=False, soft_wrap=not isinstance(what, rich.table.Table))


def _width(out: TextIO, terminal: bool) -> int | None:
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and 0 < int(columns[:9]):
        return int(columns[:9])
    if not terminal:
        return None
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


def progress(items: Sequence[T], what: str, out: TextIO | None = None) -> Generator[T, None, None]:
    """Hand out the items; where the output is a terminal and it takes longer, say how far it has come."""
    out = out or sys.stderr
    if out is None or not out.isatty():
        yield from items
    elif rich is not None:
        yield from _rich_progress(items, what, out)
    else:
        yield from _plain_progress(items, what, out)


def _plain_progress(items: Sequence[T], what: str, out: TextIO) -> Iterator[T]:
    begin = last = time.monotonic()
    written = False
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - begin > _PATIENCE and now - last > _PACE:
                print(f"\r{what}: {done} of {len(items)}", end="", file=out, flush=True)
                last, written = now, True
            yield item
    finally:
        if written:
            print("\r\x1b[K", end="", file=out, flush=True)


def _rich_progress(items: Sequence[T], what: str, out: TextIO) -> Iterator[T]:
    begin = time.monotonic()
    shown = rich.progress.Progress(
        "{task.description}",
        rich.progress.BarColumn(),
        "{task.completed} of {task.total}",
        console=rich.console.Console(file=out),
        transient=True,
        refresh_per_second=1 / _PACE,
    )
    task = shown.add_task(what, total=len(items))
    try:
        for done, item in enumerate(items):
            if not shown.live.is_started and time.monotonic() - begin > _PATIENCE:
                shown.start()
            shown.update(task, completed=done)
            yield item
    finally:
        if shown.live.is_started:
            shown.stop()
