"""`ksmwalk simulate`, as a user runs it."""

from __future__ import annotations

import json

import pytest
from servers import memory

from ksmwalk.commands import cli, report, simulate
from ksmwalk.controllers import CONTROLLERS
from ksmwalk.ksm.costs import Costs
from ksmwalk.sources.captures import save_capture

WORTH = (("web", 2000, 10, 30), ("web", 2000, 10, 30), ("alone", 0, 500, 0))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command on a capture: (exit code, output, what it complained about)."""
    costs = Costs().save(tmp_path / "costs.json")
    save_capture(memory(*WORTH, marked=True, run=0), tmp_path / "kept")

    def run(*words, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        code = cli.main(["simulate", "--costs", str(costs), str(tmp_path / "kept"), *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_memory_comes_free_over_time(run):
    code, out, err = run("--seconds", 30, "--every", 10)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "alone"
    assert " ".join(lines[1].split()) == "time in use freed scans pages_to_scan sleep ms CPU of a CPU"
    rows = [line.split() for line in lines[3:7]]
    assert [row[0] for row in rows] == ["0", "10", "20", "30"]
    assert "0 B" in lines[3] and "8.0 MiB" in lines[6]


@pytest.mark.parametrize("width", [44, 60, 80])
def test_it_fits_the_terminal(run, width):
    code, out, _ = run("--seconds", 3, "--controller", "advisor", width=width)
    assert code == 0 and [line for line in out.splitlines() if report.cells(line) > width] == []


def test_controllers_are_replayed_against_the_same_memory(run):
    words = [word for name in CONTROLLERS for word in ("--controller", name)]
    code, out, _ = run("--seconds", 200, "--every", 20, "--memory", 0.02, "--json", "--controller", "alone", *words)
    found = json.loads(out)
    assert code == 0 and found["seconds"] == 200 and found["memory_bytes"] == int(0.02 * 2**30)
    runs = {one["controller"]: one for one in found["runs"]}
    assert list(runs) == [simulate.ALONE, *CONTROLLERS]
    assert len({tuple(one["used_bytes"][:1]) for one in runs.values()}) == 1
    for name, one in runs.items():
        assert one["time"] == list(range(0, 201, 20)) and one["freed_bytes"][0] == 0
        assert one["freed_bytes"][-1] > 0 or name == "kubevirt"
    assert runs["alone"]["pages_to_scan"] == [100] * 11
    assert runs["ksmtuned"]["pages_to_scan"][3] == 300 and runs["mom"]["pages_to_scan"][1] == 700
    assert runs["kubevirt"]["run"][:9] == [0] * 9 and runs["kubevirt"]["run"][9:] == [1, 1]
    assert runs["advisor"]["pages_to_scan"][0] == 500 and found["notes"] == []
    assert len({run("--seconds", 10, "--json", *words)[1] for _ in range(2)}) == 1


def test_what_the_advisor_does_not_let_others_set_is_said(run):
    words = ("--seconds", 130, "--memory", 0.001, "--set", "advisor_mode=scan-time", "--controller", "ksmtuned")
    code, out, _ = run(*words)
    said = "ksmtuned: KSM refused 2 settings, as it does of pages_to_scan while the advisor is on."
    assert code == 0 and said in " ".join(out.split())
    assert json.loads(run(*words, "--json")[1])["notes"][0].startswith("ksmtuned: KSM refused 2")


def test_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    for ending, head in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        path = tmp_path / f"ksm.{ending}"
        code, out, _ = run("--seconds", 5, "--png", path, "--controller", "ksmtuned", "--controller", "advisor")
        assert code == 0 and path.read_bytes().startswith(head) and "ksmtuned" in out
    assert run("--seconds", 5, "--png", tmp_path / "ksm.gif")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seconds", 0), "--seconds 0"), (("--seconds", "nan"), "--seconds nan"), (("--every", 0), "--every 0"),
        (("--seconds", 1, "--every", 2), "--every 2"), (("--memory", -1), "--memory -1"), (("--set", "run"), "--set 'run'"),
        (("--seconds", "1e-9"), "--seconds 1e-09: must be at least 0.001"), (("--every", "1e-4", "--seconds", 1), "--every 0.0001"),
        (("--memory", "nan"), "--memory nan"), (("--set", "pages_to_scan=-1"), "pages_to_scan"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(run, words, said):
    code, out, err = run(*words)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and said in err


def test_the_shortest_time_there_is(run):
    code, out, err = run("--seconds", 0.001)
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()[3:5]] == ["0", "0.001"]


@pytest.mark.parametrize("words", [("simulate",), ("estimate",), ("estimate", "--sample", "0.5"), ("sweep",), ("compare",)])
@pytest.mark.parametrize("processes", [0, 2])
def test_of_a_capture_without_contents_nothing_is_said(tmp_path, capsys, words, processes):
    what = memory(("web", 10, 0, 0), ("web", 10, 0, 0), marked=True)
    del what.processes[processes:]
    for one in what.processes:
        one.key = None
    what.registered = [one.pid for one in what.processes]
    save_capture(what, tmp_path / "kept")
    assert cli.main([*words, str(tmp_path / "kept")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "the capture has no contents: nothing can be said about merging" in said.err
