"""The model against the real ksmd of this machine: a bounded run of `ksmwalk verify`."""

import argparse
import json
import os

import pytest

from ksmwalk.commands import kernel as commands
from ksmwalk.kernel import knobs, worker
from ksmwalk.scenarios.format import load

REASON = worker.available() or ("needs root" if os.geteuid() else knobs.why_not() if not knobs.KSM.is_dir() else None)
pytestmark = [
    pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON)), pytest.mark.usefixtures("free"),
]


def run(*line):
    parser = argparse.ArgumentParser()
    commands.add_parsers(parser.add_subparsers())
    args = parser.parse_args([str(word) for word in line])
    return args.run(args)


def test_random_scenarios_agree(tmp_path, capsys):
    docs = tmp_path / "verification.md"
    code = run("verify", "--random", 60, "--seed", 4, "--save", tmp_path, "--shrink-seconds", 5, "--docs", docs)
    said = capsys.readouterr().out
    assert (code, said.splitlines()[-1]) == (0, "60 of 60 agree"), said
    assert "| **agree** | **60** |" in docs.read_text()


def test_recorded_scenarios_agree(tmp_path, capsys):
    ops = [["spawn", "A"], ["mmap", "A", 65536, 4], ["madvise", "A", 65536, 4, "mergeable"]]
    ops += [["fill", "A", 65536, [5, 5, 6, 0]], ["run", 1], ["step", 3]]
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"name": "small", "ops": ops}))
    assert run("record", path, "-o", tmp_path / "made", "--runs", 2) == 0
    made = load(tmp_path / "made" / "small.json")
    assert made.kernel == os.uname().release and made.runs == 2 and made.nondet == []
    assert made.records[-1]["c"]["full_scans"] == 4
    capsys.readouterr()
    assert run("verify", tmp_path / "made" / "small.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["agree"], told["scenarios"], told["records"]) == (1, 1, 8)


def test_a_broken_file_of_many_is_named_and_the_others_go_on(tmp_path, capsys):
    ops = [["spawn", "A"], ["mmap", "A", 65536, 1]]
    for name, more in (
        ("good", []), ("calls", [["syscall", "A", 62, 1, 9]]), ("refused", []), ("broken", [["fly", "A"]])
    ):
        tunables = {"max_page_sharing": 1} if name == "refused" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "ops": ops + more, "tunables": tunables}))
    files = [tmp_path / f"{name}.json" for name in ("calls", "broken", "refused", "good")]
    assert run("record", *files, "-o", tmp_path / "made") == 1
    said = capsys.readouterr()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["good.json"]
    assert "calls.json: " in said.err and ": 62" in said.err and "broken.json: op 2" in said.err
    assert "refused.json: " in said.err and "max_page_sharing" in said.err
    assert run("verify", *files, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["agree"], told["scenarios"], len(told["broken"])) == (1, 2, 2)
    assert run("verify", *files[:2]) == 2
    assert run("record", *files[:3], "-o", tmp_path / "made") == 2
