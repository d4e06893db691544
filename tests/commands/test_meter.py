"""How far something has come, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from ksmwalk.commands import meter


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def test_where_there_is_no_terminal_nothing_is_written(clock):
    out = io.StringIO()
    with meter.Meter(out) as said:
        clock[0] += 10
        said("pages", 1, 2)
    assert out.getvalue() == ""


def test_what_is_done_soon_is_not_worth_a_word(clock):
    out = Terminal()
    with meter.Meter(out) as said:
        clock[0] += 0.4
        said("pages", 1, 2)
    assert out.getvalue() == ""


def test_a_line_that_is_gone_at_the_end_even_of_an_error(clock):
    out = Terminal()
    with pytest.raises(KeyboardInterrupt), meter.Meter(out) as said:
        clock[0] += 1
        said("pages", 500, 1000)
        said("pages", 501, 1000)  # too soon after the other
        clock[0] += 1
        said("full scans made", 3, 0)
        raise KeyboardInterrupt
    lines = out.getvalue().split("\r")[1:]
    assert lines == [f"pages: [{'#' * 10}{'.' * 10}] 500 of 1,000\x1b[K", "full scans made: 3\x1b[K", "\x1b[K"]
