"""`ksmwalk trace` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest

from ksmwalk.commands import cli
from ksmwalk.host import trace_events
from ksmwalk.sources.traces import save_trace

LACKEY = Path(__file__).parents[1] / "data" / "lackey.log"
PAGE, AT = 4096, 1 << 40


@pytest.fixture
def trace(tmp_path):
    events = np.concatenate([
        trace_events("map", AT, 8 * PAGE, mm=[1, 2]), trace_events("write", AT + np.arange(8) * PAGE, 7, mm=1, time=5000),
        trace_events("read", AT + np.arange(4) * PAGE, mm=2, time=9000), trace_events("exit", mm=3),
    ])  # fmt: skip
    save_trace(tmp_path / "t.npy", events)
    return tmp_path / "t.npy"


def test_what_is_in_a_trace_is_told(trace, capsys):
    assert cli.main(["trace", str(trace)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "15 events of 3 processes: 4 read, 8 write, 2 map, 1 exit" in words
    assert "12 pages (48 KiB) accessed over 9 us, 67% of them written to" in words


def test_json_says_the_same_and_what_came_of_applying_it(trace, capsys):
    assert cli.main(["trace", str(trace), "--run", "--scans", "3", "--json", "--frames", "4096"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["pages"], said["written_pages"], said["footprint"]) == (12, 8, [{"seconds": 9e-06, "pages": 12}])
    ran = said["run"]
    assert (ran["events"], ran["failed"], ran["processes"], ran["touched_pages"]) == (15, {"ESRCH": 1}, 2, 12)
    assert ran["ksm"]["pages_sharing"] == 7 and ran["ksm"]["full_scans"] == 3


def test_applied_it_says_what_is_there_and_what_failed(trace, capsys):
    assert cli.main(["trace", str(trace), "--run", "--scans", "3", "--frames", "4096"]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "15 events. 2 processes alive" in words and "12 pages touched, 8 written to." in words
    assert "1 events failed with ESRCH (No such process)." in words and "1 pages shared, 7 sharing them" in words


def test_how_the_footprint_grew_is_a_table_of_at_most_a_dozen_lines(tmp_path, capsys, monkeypatch):
    from ksmwalk.sources import traces

    monkeypatch.setattr(traces, "_PIECE", 3200)
    save_trace(tmp_path / "t.npy", trace_events("read", AT + np.arange(9000) * PAGE, time=np.arange(9000) * 1000))
    assert cli.main(["trace", str(tmp_path / "t.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.split()[:2] == ["0.008999", "9,000"]] and len(lines) < 20


def test_lackey_is_taken_as_it_is(capsys):
    assert cli.main(["trace", str(LACKEY), "--fetches", "--run", "--frames", "4096"]) == 0
    assert "events of 1 process" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["/dev/null"], "no regular file"),
        (["/nowhere"], "No such file"),
        ([str(LACKEY), "--kind", "champsim"], "ends within the record"),
        ([str(LACKEY), "--scans", "2"], "needs --run"),
    ],
)
def test_what_can_not_be_run_is_said_in_a_line(words, why, capsys):
    assert cli.main(["trace", *words]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


@pytest.mark.parametrize("words", [["--frames", "1"], ["--frames", "x"], ["--scans", "-1"], ["--kind", "xml"]])
def test_a_wrong_call_is_refused(words):
    with pytest.raises(SystemExit):
        cli.main(["trace", str(LACKEY), *words])


def test_a_quote_that_nothing_closes_is_refused(tmp_path, capsys):
    (tmp_path / "t.csv").write_text('addr,operation\n"4096,read\n' + "4096,read\n" * 20_000)
    assert cli.main(["trace", str(tmp_path / "t.csv")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/t.csv: line 2: no row of CSV" in " ".join(said.split()) and "Traceback" not in said
