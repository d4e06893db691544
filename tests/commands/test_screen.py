"""What commands write: names from outside, tables that fit, the same with rich as without it."""

from __future__ import annotations

import io
import re

import pytest

from ksmwalk.commands import report, screen
from ksmwalk.commands.screen import Column, Screen

SGR = re.compile(r"\x1b\[[0-9;]*m")


def test_report_words():
    assert [report.size(n) for n in (0, 4096, 1536, 32 << 40, (32 << 40) + 1)] == [
        "0 B", "4 KiB", "1.5 KiB", "32 TiB", "32.0 TiB",
    ]  # fmt: skip
    assert [report.duration(s) for s in (0, 1.5e-8, 1.234e-5, 0.002, 3.0, 400, 10_000, 1e6, 1e9)] == [
        "0 s", "15 ns", "12.3 us", "2 ms", "3 s", "6.67 minutes", "2.78 hours", "11.6 days", "31.7 years",
    ]  # fmt: skip
    assert report.table(("a", "bb"), [("x", 1), ("long", 22)], right=(1,)).splitlines() == [
        "a     bb", "----  --", "x      1", "long  22",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def __init__(self, encoding="utf-8"):
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return True


def plain_clock(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))


def test_progress_only_where_somebody_looks(monkeypatch, capsys):
    monkeypatch.setattr(screen, "rich", None)
    plain_clock(monkeypatch)
    there = Terminal()
    assert list(screen.progress([1, 2, 3], "things", there)) == [1, 2, 3]
    assert "things: 1 of 3" in there.getvalue() and there.getvalue().endswith("\r\x1b[K")
    assert list(screen.progress([1, 2, 3], "things")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_progress_with_rich_says_how_far_it_is(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(screen, "_PATIENCE", -1)
    there = Terminal()
    seen = []
    for item in screen.progress([1, 2, 3], "things", there):
        seen.append(item)
    assert seen == [1, 2, 3] and "things" in there.getvalue() and "of 3" in there.getvalue()
    # an interrupt leaves no bar behind, and no cursor hidden
    there = Terminal()
    walk = screen.progress([1, 2, 3], "things", there)
    next(walk)
    walk.close()
    assert there.getvalue().count("\x1b[?25l") == there.getvalue().count("\x1b[?25h")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("python3 -m x", "python3 -m x"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("two\nlines\r\ttab\x7f\x9b", "two\\nlines\\r\\ttab\\x7f\\x9b"),
        (b"a\xff\xfeb".decode(errors="surrogateescape"), "a\ufffd\ufffdb"),
        ("turned \u202e round\u2028\u200b", "turned \\u202e round\\u2028\\u200b"),
        ("漢字 é [red]", "漢字 é [red]"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_names_from_outside_are_printed_and_not_obeyed(name, shown):
    assert report.printable(name) == shown and shown.isprintable()
    assert report.printable(shown) == shown


def test_texts_are_cut_and_broken_by_the_columns_they_take():
    assert report.cells("漢字") == 4 and report.cells("e\u0301") == 1
    assert report.cut("abcdef", 6) == "abcdef" and report.cut("abcdefg", 6) == "abcde…"
    assert report.cut("漢字漢字", 6) == "漢字…" and report.cells(report.cut("漢字漢字", 6)) <= 6
    assert report.cut("abcdefg", 6, "...") == "abc..." and report.cut("abcdefg", 2, "...") == ".."
    assert report.wrap("one two  three", 7) == ["one two", "three"]
    assert report.wrap("a 0123456789 b", 4) == ["a", "0123", "4567", "89 b"]
    assert report.wrap("漢字漢字", 5) == ["漢字", "漢字"] and report.wrap("", 5) == []


def test_what_stands_behind_a_line_goes_below_it_where_there_is_no_room(monkeypatch):
    def entry(width, *parts, **how):
        monkeypatch.setenv("COLUMNS", str(width))
        out = io.StringIO()
        Screen(out).entry(*parts, **how)
        return out.getvalue().splitlines()

    parts = "  pages ", ("12", "bold")
    assert entry(40, *parts, more="as read") == ["  pages 12  as read"]
    assert entry(19, *parts, more="as read") == ["  pages 12  as read"]
    assert entry(18, *parts, more="as read twice") == ["  pages 12", "    as read twice"]
    assert entry(12, *parts, more="as read twice") == ["  pages 12", "    as read", "    twice"]
    assert entry(10, "  some longer ", ("words", "red")) == ["  some", "  longer", "  words"]
    monkeypatch.delenv("COLUMNS")
    out = io.StringIO()
    Screen(out).entry("x" * 300, more="y" * 300)
    assert out.getvalue() == f"{'x' * 300}  {'y' * 300}\n"


COLUMNS = (
    Column("pid"), Column("much", rank=1), Column("more", rank=2, style="green"), Column("command", right=False, elastic=True),
)  # fmt: skip
ROWS = [(1, "12,345", "8,589,934,592", "python [red]bold[/red] " + "x" * 200), (4194304, "-", "0", "漢字" * 40)]


def shown(out, columns, rows, monkeypatch, width, **options):
    monkeypatch.setenv("COLUMNS", str(width)) if width else monkeypatch.delenv("COLUMNS", raising=False)
    made = Screen(out)
    made.table(columns, rows, **options)
    made.line(("[bold]no markup[/bold]", "red"), " plain")
    return [line.rstrip() for line in SGR.sub("", out.getvalue()).splitlines()]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 300])
@pytest.mark.parametrize("total", [None, ("total", "1", "2", "")])
def test_rich_says_the_same_as_plain_text(monkeypatch, width, total):
    pytest.importorskip("rich")
    fancy = Terminal()
    with_rich = shown(fancy, COLUMNS, ROWS, monkeypatch, width, total=total, styles=["bold", "red"])
    assert with_rich == shown(io.StringIO(), COLUMNS, ROWS, monkeypatch, width, total=total)
    assert "[red]" in with_rich[2] or width < 60
    assert with_rich[-1] == "[bold]no markup[/bold] plain"
    monkeypatch.setattr(screen, "rich", None)
    assert shown(Terminal(), COLUMNS, ROWS, monkeypatch, width, total=total) == with_rich


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_fits_and_cuts_no_number(monkeypatch, width):
    lines = shown(io.StringIO(), COLUMNS, ROWS, monkeypatch, width)[:-1]
    assert max(map(report.cells, lines)) <= width
    heads = lines[0].split()
    for row, line in zip(ROWS, lines[2:], strict=True):
        words = line.split()
        for head, cell in zip(("pid", "much", "more"), row, strict=False):
            assert head not in heads or words[heads.index(head)] == str(cell)
    assert "…" in lines[2]


def test_the_highest_rank_goes_first(monkeypatch):
    heads = [shown(io.StringIO(), COLUMNS, ROWS, monkeypatch, width)[0].split() for width in (60, 50, 36)]
    assert heads == [["pid", "much", "more", "command"], ["pid", "much", "command"], ["pid", "command"]]


def test_without_a_terminal_nothing_is_cut(monkeypatch):
    lines = shown(io.StringIO(), COLUMNS, ROWS, monkeypatch, None)
    assert lines[2].endswith("x" * 200) and lines[0].split() == ["pid", "much", "more", "command"]


@pytest.mark.parametrize("with_rich", [True, False])
def test_letters_the_terminal_has_not_got_are_escaped(monkeypatch, with_rich):
    if with_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setattr(screen, "rich", None)
    lines = shown(Terminal("ascii"), COLUMNS, ROWS, monkeypatch, 80)
    assert "\n".join(lines).isascii()
    assert "..." in lines[2] and "\\u6f22" in lines[3] and max(map(len, lines)) <= 80


def test_a_closed_output_is_an_error(monkeypatch):
    monkeypatch.setattr(report.sys, "stdout", None)
    with pytest.raises(OSError, match="standard output"):
        Screen()
    with pytest.raises(OSError, match="standard output"):
        report.print_json({})
