"""`ksmwalk replay`: records, comparison, exit codes."""

import json
from pathlib import Path

import pytest

from ksmwalk.commands.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def files(tmp_path):
    """One recording that agrees, one that was changed, one with an operation the model lacks, one without records."""
    good = json.loads((GOLDEN / "pair_order.json").read_text())
    (tmp_path / "good.json").write_text(json.dumps(good))
    bad = json.loads((GOLDEN / "pair_order.json").read_text())
    bad["records"][7]["c"]["pages_volatile"] = 99
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    ops = [["spawn", "A"], ["syscall", "A", 39]]
    records = [{"op": op} for op in ops]
    (tmp_path / "lacking.json").write_text(json.dumps({"scenario": {"name": "x", "ops": ops}, "records": records}))
    (tmp_path / "bare.json").write_text(json.dumps({"name": "y", "ops": [["spawn", "A"]]}))
    return tmp_path


def test_records_are_those_of_the_recording(files, capsys):
    assert main(["replay", str(files / "good.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == json.loads((files / "good.json").read_text())["records"]


def test_check_names_the_first_difference(files, capsys):
    assert main(["replay", "--check", str(files / "good.json"), str(files / "bad.json")]) == 1
    out = capsys.readouterr().out
    assert "bad.json: record 7" in out and "c.pages_volatile" in out and "99" in out
    assert "good.json" not in out
    assert out.splitlines()[-1] == "1 of 2 agree"


def test_check_that_agrees(files, capsys):
    assert main(["replay", "--check", str(files / "good.json")]) == 0
    assert capsys.readouterr().out == "1 of 1 agree\n"


def test_what_the_model_lacks_is_named_and_does_not_agree(files, capsys):
    assert main(["replay", "--check", str(files / "lacking.json"), str(files / "good.json")]) == 1
    out = capsys.readouterr().out
    assert 'lacking.json: not modelled: ["syscall","A",39]' in out and out.endswith("1 of 2 agree\n")
    assert main(["replay", str(files / "lacking.json")]) == 1


def test_a_scenario_without_records_can_be_run_but_not_checked(files, capsys):
    assert main(["replay", str(files / "bare.json")]) == 0
    assert main(["replay", "--check", str(files / "bare.json")]) == 1
    assert "no records to compare with" in capsys.readouterr().out


def test_json(files, capsys):
    paths = [str(files / f"{name}.json") for name in ("good", "bad", "lacking")]
    assert main(["replay", "--check", "--json", *paths]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["agree"] == 1 and told["of"] == 3
    good, bad, lacking = told["files"]
    assert good["agree"] and not bad["agree"] and lacking["not_modelled"] == ["syscall", "A", 39]
    assert bad["record"] == 7 and {"field": "c.pages_volatile", "file": 99, "model": 3} in bad["fields"]
    assert main(["replay", "--json", paths[0]]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"][0]["records"]) > 20


@pytest.mark.parametrize("text", ["{", '{"ops": [["fly", "A"]]}', '{"ops": [["exit", "A"]]}', '{"tunables": 1, "ops": []}'])
def test_a_file_that_says_nothing_sensible(tmp_path, capsys, text):
    (tmp_path / "odd.json").write_text(text)
    assert main(["replay", str(tmp_path / "odd.json")]) == 2
    assert "odd.json" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_tunable_that_the_kernel_refuses(tmp_path, capsys):
    (tmp_path / "odd.json").write_text(json.dumps({"name": "z", "tunables": {"max_page_sharing": 1}, "ops": []}))
    assert main(["replay", str(tmp_path / "odd.json")]) == 2
    assert "max_page_sharing" in capsys.readouterr().err
