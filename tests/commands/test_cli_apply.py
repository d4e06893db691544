"""`ksmwalk apply` on a made-up machine: what it says, what it does, what it refuses."""

from __future__ import annotations

import json
import os
import re
from types import SimpleNamespace

import pytest
from fakekernel import FakeKernel, an_estimate, row

from ksmwalk.commands import apply as command
from ksmwalk.commands.cli import main
from ksmwalk.kernel import applied, knobs, state


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    path = tmp_path / "machine"
    path.mkdir(mode=0o755)
    monkeypatch.setenv("COLUMNS", "80")
    return FakeKernel(path, monkeypatch)


@pytest.fixture
def estimate(tmp_path):
    """Writes an estimate into a file, and names that."""

    def write(*rows, **advice):
        path = tmp_path / "est.json"
        path.write_text(json.dumps(an_estimate(*rows, **advice)))
        return str(path)

    return write


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_by_itself_it_says_what_would_be_done_as_commands_and_does_nothing(kernel, estimate, capsys):
    word = estimate(row(cgroup="/system.slice/web.service"), row(pid=5, name="tool", command=["tool", "-x"]))
    assert main(["apply", word]) == 0
    out = capsys.readouterr().out
    assert f"  echo 2000 > {kernel.ksm}/pages_to_scan" in out and out.index("pages_to_scan") < out.index("ksm/run")
    assert "/etc/systemd/system/web.service.d/ksm.conf:\n      [Service]\n      MemoryKSM=yes\n" in out
    assert "ksmwalk apply --exec tool -x" in out and "Nothing was changed." in out
    assert "and 1 MiB of memory that must be found (3.9 MiB are available)" in " ".join(out.split())
    assert kernel.writes == [] and not state.DIRECTORY.exists()


def test_libvirts_own_command_for_the_settings_is_named_where_there_is_a_domain(kernel, estimate, capsys):
    there = r"/machine.slice/machine-qemu\x2d1\x2dweb.scope"
    main(["apply", estimate(row(command=["qemu-kvm", "-name", "guest=web"], cgroup=there))])
    out = capsys.readouterr().out
    assert "virsh node-memory-tune --shm-pages-to-scan 2000\n" in out and "virsh edit web" in out


@needs_root
def test_with_yes_it_is_done_and_undo_takes_it_back(kernel, estimate, capsys):
    before = kernel.all()
    assert main(["apply", estimate(), "--yes"]) == 0
    assert "pages_to_scan: 100 -> 2000\nrun: 0 -> 1\n" in capsys.readouterr().out
    assert kernel.holds("pages_to_scan") == "2000" and kernel.holds("run") == "1"
    assert main(["apply", "--undo"]) == 0
    assert "Undone." in capsys.readouterr().out and kernel.all() == before


@needs_root
def test_as_json_all_of_it_comes_back(kernel, estimate, capsys):
    kernel.merges = 256
    assert main(["apply", estimate(row(name="a\x1bb")), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["applied"] is False and [one["name"] for one in data["settings"]] == ["pages_to_scan", "run"]
    assert data["mark"][0]["how"] == "program" and data["mark"][0]["what"] == r"a\x1bb" and data["mark"][0]["unmarked"] == 1
    assert main(["apply", estimate(), "--json", "--yes"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["applied"] is True and data["watched"] == ""
    achieved = {one["name"]: one["achieved"] for one in data["achieved"]}
    assert achieved["pages_sharing"] == 256 and achieved["freed_bytes"] is None
    assert main(["apply", "--undo", "--unmerge", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["undone"] and data["unmerged"] and data["unmerge_cost"]["found_bytes"] == 256 * 4096


@needs_root
def test_watching_ends_when_nothing_has_changed_for_three_scans(kernel, estimate, capsys, monkeypatch):
    looks = iter([(1, 0), (2, 100), (3, 256), (4, 256), (5, 256), (6, 256), (7, 256), (8, 256)])

    def sleep(_seconds):
        scans, sharing = next(looks)
        kernel.sets(full_scans=scans, pages_sharing=sharing, pages_shared=1)

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    assert main(["apply", estimate(), "--yes", "--watch", "1"]) == 0
    out = capsys.readouterr().out
    assert "pages_sharing 100 of 256 (39%)" in out and "pages_sharing 256 of 256 (100%)" in out
    assert "Nothing has changed for 3 full scans. 100% of the merging" in " ".join(out.split())
    assert next(looks)[0] == 8  # and no sooner


@needs_root
def test_ctrl_c_while_watching_leaves_it_applied_and_says_so(kernel, estimate, capsys, monkeypatch):
    def sleep(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    assert main(["apply", estimate(), "--yes", "--watch", "1"]) == 0
    out = capsys.readouterr().out
    assert "No longer watched." in out and "It stays applied" in out
    assert kernel.holds("run") == "1" and applied.find().complete


@needs_root
def test_watching_ends_when_somebody_stops_ksm(kernel, estimate, capsys, monkeypatch):
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=lambda _seconds: kernel.set("run", 0)))
    assert main(["apply", estimate(), "--yes", "--watch", "1"]) == 0
    assert "Somebody else has stopped KSM" in capsys.readouterr().out


@needs_root
def test_the_cost_of_unmerging_is_said_before_it_is_done(kernel, estimate, capsys, monkeypatch):
    kernel.merges = 256
    kernel.process(500, marked_pages=300)
    main(["apply", estimate(), "--yes"])
    capsys.readouterr()
    written = []
    real = kernel.write

    def write(path, text):
        written.append((text, capsys.readouterr().err))
        return real(path, text)

    monkeypatch.setattr(knobs, "write_file", write)
    assert main(["apply", "--undo", "--unmerge"]) == 0
    (text, err), *_ = written
    assert text == "2" and "4 GiB of marked areas" in err and "1 MiB of memory that must be found" in err


@needs_root
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--undo"], "nothing is applied"),
        (["EST", "--yes", "--set", "max_page_sharing=9"], "while pages are shared"),
        (["EST", "--yes", "--set", "max_page_sharing=1"], "Invalid argument: max_page_sharing"),
        (["EST", "--set", "run=0"], "--set run"),
        (["EST", "--set", "nonsense=1"], "no such tunable"),
        (["EST", "EST"], "stands alone"),
        (["EST", "--unmerge"], "goes with --undo"),
        (["--undo", "EST"], "nothing is named beside it"),
        (["--exec"], "a command follows"),
        (["--yes"], "nothing to look at"),
    ],
)
def test_what_is_refused_is_one_line_with_code_2_and_changes_nothing(kernel, estimate, capsys, words, part):
    kernel.sets(pages_shared=5)
    before = kernel.all()
    assert main(["apply", *(estimate() if word == "EST" else word for word in words)]) == 2
    told = capsys.readouterr()
    assert part in told.err and told.err.startswith("ksmwalk apply: ") and told.err.count("\n") == 1
    assert kernel.all() == before and kernel.writes == []


@needs_root
def test_what_is_not_worth_it_is_not_done_unless_forced(kernel, estimate, capsys):
    word = estimate(worth=False, why="that is too little")
    assert main(["apply", word]) == 0
    assert "Not worth it by the estimate: that is too little." in capsys.readouterr().out
    assert main(["apply", word, "--yes"]) == 2 and kernel.writes == []
    assert "that is too little" in capsys.readouterr().err
    assert main(["apply", word, "--yes", "--force"]) == 0 and kernel.holds("run") == "1"


def test_a_user_who_is_not_root_is_told_before_anything_is_read(kernel, estimate, capsys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["apply", "/nowhere.json", "--yes"], ["apply", "--undo"]):
        assert main(words) == 2
        assert "root is needed" in capsys.readouterr().err


def test_an_estimate_of_another_machine_is_named(kernel, tmp_path, capsys):
    path = tmp_path / "est.json"
    path.write_text(json.dumps(an_estimate() | {"source": {"machine": {"hostname": "else\x1bwhere"}}}))
    assert main(["apply", str(path), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any(r"another machine (else\x1bwhere)" in note for note in notes)


def damaged(**changed):
    return {key: value for key, value in (an_estimate() | changed).items() if value is not ...}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ([], '"expected" is missing'),
        ({"expected": {}}, '"knobs" is no object'),
        (damaged(expected={}), '"expected" has none of the figures'),
        (damaged(knobs=[]), '"knobs" is no object'),
        (damaged(knobs={"nonsense": 1}), '"knobs"."nonsense"'),
        (damaged(knobs={"pages_to_scan": [1]}), '"knobs"."pages_to_scan"'),
        (damaged(by_process=...), '"by_process" is no list'),
        (damaged(by_process=[5]), '"by_process"[0] is no object'),
        (damaged(by_process=[row(pid="1")]), '"by_process"[0]."pid"'),
        (damaged(by_process=[row(pid=-1)]), '"by_process"[0]."pid"'),
        (damaged(by_process=[row(), row(freed_bytes=1.5)]), '"by_process"[1]."freed_bytes"'),
        (damaged(by_process=[row(cgroup=None)]), '"by_process"[0]."cgroup"'),
        (damaged(by_process=[row(command=[1])]), '"by_process"[0]."command"'),
        (damaged(advice=7), '"advice" is no object'),
        (damaged(advice={"worth": 1}), '"advice"."worth"'),
        (damaged(advice={"worth": True, "why": "", "best": {"pages_to_scan": "x"}}), '"advice"."best"."pages_to_scan"'),
        (damaged(advice={"worth": True, "why": "", "best": None, "processes": [1]}), '"advice"."processes"'),
    ],
)
def test_a_file_that_is_no_estimate_is_refused_by_file_and_field(kernel, tmp_path, capsys, data, part):
    path = tmp_path / "est.json"
    path.write_text(json.dumps(data))
    assert main(["apply", str(path)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and part in err and err.count("\n") == 1


def test_an_estimate_without_advice_goes_by_its_processes_and_tunables(kernel, tmp_path, capsys):
    path = tmp_path / "est.json"
    path.write_text(json.dumps(damaged(advice=...)))
    assert main(["apply", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in data["settings"]] == ["run"] and data["worth"] and len(data["mark"]) == 1


def test_a_kernel_without_ksm_is_said(kernel, estimate, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command.kernel, "ROOT", tmp_path)
    assert main(["apply", estimate()]) == 2
    assert "no KSM" in capsys.readouterr().err


@pytest.mark.parametrize("width", [30, 60])
def test_all_fits_a_narrow_terminal_but_what_is_to_be_copied(kernel, estimate, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    main(["apply", estimate(worth=False, why="that is too little")])
    long = [line for line in capsys.readouterr().out.splitlines() if len(line) > width]
    copied = re.compile(r" +(echo \d|virsh |systemctl |ksmwalk apply --exec|/|\[|\w+=|<|sudo )")
    assert not [line for line in long if not copied.match(line)], long
