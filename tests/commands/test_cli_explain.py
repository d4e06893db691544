"""`ksmwalk explain`, as a user runs it, on machines that are made up and on this one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from fakeroot import FakeRoot
from living import Living
from terminal import in_terminal

from ksmwalk.commands import cli, report
from ksmwalk.kernel import knobs

SGR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def machine(tmp_path):
    made = FakeRoot(tmp_path / "root")
    made.thread(37)
    made.sets(run=1, full_scans=12, pages_shared=1200, pages_sharing=105472, pages_unshared=30000, pages_volatile=9000,
              ksm_zero_pages=512, general_profit=(105472 + 512) * 4096 - 145672 * 64)  # fmt: skip
    for pid in (4000, 4001):
        made.process(pid, b"gunicorn", items=50000, merging=50000, marked_pages=52000, ksm_pages=49990, family=(5, 6, 7))
    made.process(5100, b"\x1b[2Jevil\xff", items=4567, merging=2, marked_pages=4600, cgroup="/a\x1bb")
    return made


def words(machine, capsys, *args, width=80, monkeypatch=None):
    """What is printed, in one line; every line fits."""
    if monkeypatch is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["explain", "--root", str(machine.path), "--interval", "0", *args]) == 0
    out, err = capsys.readouterr()
    assert not err and "\x1b" not in out
    if monkeypatch is not None:
        assert all(report.cells(line) <= width for line in out.splitlines()), out
    return " ".join(out.split())


def test_it_is_said_what_is_saved_and_what_it_costs(machine, capsys, monkeypatch):
    said = words(machine, capsys, monkeypatch=monkeypatch)
    assert "is on (run is 1). ksmd looks at 100 pages every 20 ms: at most 5,000 pages (19.5 MiB) a second" in said
    assert "saved 412 MiB as the kernel counts: 105,472 mappings more (pages_sharing) of 1,200 KSM pages" in said
    assert "Apart from that 2 MiB of empty pages" in said
    assert "cost 8.9 MiB: 145,672 rmap_items of 64 bytes" in said and "a profit of 405.1 MiB (general_profit)" in said
    assert "the 13th is under way (12 complete)." in said and "108,600 pages" in said
    assert r"\x1b[2Jevil" in said


def test_what_the_counters_hide_is_said_with_figures(machine, capsys):
    said = words(machine, capsys)
    assert "2 of the processes are forks of one another: up to 195.3 MiB" in said
    assert "20 pages (80 KiB) counted as merged were written to or unmapped since" in said
    assert "!: 1 process pays more for rmap_items than is saved: 277.4 KiB in all." in said


def test_frames_are_counted_when_asked_for(machine, capsys):
    machine.frames({pfn: 3 for pfn in range(1150)}, others=2000)
    assert "in fact" not in words(machine, capsys).lower()
    said = words(machine, capsys, "--frames")
    assert "In fact there are 1,150 KSM pages (50 fewer than pages_shared, gone), with 2,300 mappings beyond" in said
    machine.frames({pfn: 1 for pfn in range(20_000)}, others=20_000)
    assert "can't be told: this kernel calls other anonymous pages KSM's too" in words(machine, capsys, "--frames")
    (machine.proc / "kpageflags").unlink()
    assert cli.main(["explain", "--root", str(machine.path), "--interval", "0", "--frames"]) == 2
    assert "kpageflags: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 50, 49, 40, 20])
def test_sentences_fit_the_terminal(machine, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["explain", "--root", str(machine.path), "--interval", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = next(number for number, line in enumerate(lines) if line.split()[:1] == ["pid"])
    assert all(report.cells(line) <= width for line in lines[:table])


def test_everything_else_than_the_table_is_within_the_first_screen(machine, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["explain", "--root", str(machine.path), "--interval", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(number for number, line in enumerate(lines) if line.split()[:1] == ["pid"]) < 22


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"run": 0}, "is off (run is 0): nothing is scanned, what was merged stays merged."),
        ({"run": 2}, "is off (run is 2): everything was unmerged"),
        ({"run": "?"}, "can't be told to be on or off"),
        ({"pages_to_scan": 0}, "pages_to_scan is 0: ksmd looks at nothing."),
        ({"sleep_millisecs": 0}, "goes on without a pause"),
        ({"full_scans": 0}, "The first pass merges nothing, it takes checksums"),
        ({"pages_sharing": "x\x1b"}, "pages_sharing holds"),
        ({"pages_sharing": 0, "pages_shared": 0, "ksm_zero_pages": 0}, "saved nothing: no page is merged."),
        ({"stable_node_chains": 3, "stable_node_dups": 9}, "reached by 3 contents: 6 pages (24 KiB) spent again"),
        ({}, "limit not reached: 88.9 mappings a KSM page on average, 256 at most"),
        ({"advisor_mode": "none [scan-time]"}, "for a pass in 200 s with at most 70 % of a CPU and 30,000 pages a batch"),
        ({"smart_scan": 0}, "but for smart_scan 0 (default 1; 1: pages that did not merge for long are skipped"),
        ({}, "all as the kernel has them by default."),
    ],
)
def test_each_state_has_its_words(machine, capsys, values, said):
    machine.sets(**values)
    assert said in words(machine, capsys)


def test_a_machine_where_nothing_is_marked_says_so(tmp_path, capsys):
    machine = FakeRoot(tmp_path)
    machine.set("run", 1)
    said = words(machine, capsys)
    assert "ksmd sleeps: no process has memory marked mergeable." in said and "cost nothing" in said


def test_a_directory_with_no_files_in_it_is_no_crash(tmp_path, capsys):
    machine = FakeRoot(tmp_path)
    machine.remove(*(path.name for path in list(machine.ksm.iterdir())))
    assert "can't be told" in words(machine, capsys)
    assert cli.main(["explain", "--root", str(tmp_path), "--interval", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["saved"]["sharing"] is None


def test_a_kernel_without_ksm_is_unusable(tmp_path, capsys):
    machine = FakeRoot(tmp_path, ksm=False)
    metrics = tmp_path / "k.prom"
    assert cli.main(["explain", "--root", str(machine.path), "--openmetrics", str(metrics)]) == 2
    out, err = capsys.readouterr()
    assert not out and "this kernel has no KSM" in err and not metrics.exists()


def test_json_has_everything_and_names_are_fit_to_print(machine, capsys):
    assert cli.main(["explain", "--root", str(machine.path), "--interval", "0.01", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["rmap_items"] == 145672 and got["saved"]["sharing"] == 105472 * 4096 and got["pass"]["number"] == 13
    evil = next(one for one in got["processes"] if one["pid"] == 5100)
    assert evil["name"] == "\\x1b[2Jevil\ufffd" and evil["costs_more"] and evil["cgroup"] == "/a\\x1bb"
    assert got["predicted"] is None and got["pace"]["seconds"] > 0 and got["refused"] == 0


def test_a_prediction_is_told_against_what_it_came_to(machine, tmp_path, capsys, monkeypatch):
    estimate = tmp_path / "estimate.json"
    estimate.write_text(json.dumps({
        "expected": {"freed_bytes": 200 << 20, "pages_sharing": 210000, "ksm_zero_pages": 1968},
        "lower": {"pages_sharing": 200000, "ksm_zero_pages": 1968},
        "upper": {"pages_sharing": 220000, "ksm_zero_pages": 1968},
    }))  # fmt: skip
    said = words(machine, capsys, "--predicted", str(estimate), monkeypatch=monkeypatch)
    assert "pages_sharing 210,000 200,000 to 220,000 105,472 50%" in said
    assert "ksm_zero_pages 1,968 512 26%" in said  # nothing of it changes
    assert "freed_bytes 200 MiB not shown" in said and "50% of the merging that was predicted is done." in said
    assert cli.main(["explain", "--root", str(machine.path), "--predicted", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_metrics_go_into_the_file_and_nowhere_else(machine, tmp_path, capsys):
    path = tmp_path / "k.prom"
    assert words(machine, capsys, "--openmetrics", str(path)) == ""
    assert "ksmwalk_ksm_pages_sharing 105472\n" in path.read_text()
    assert cli.main(["explain", "--root", str(machine.path), "--interval", "0", "--openmetrics", "/dev/null"]) == 2
    assert "/dev/null: there is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["-1", "x", "nan", "inf", "1e9", "\x1b"])
def test_an_interval_that_is_none_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", f"--interval={wrong}"])
    assert ended.value.code == 2 and "seconds from 0" in capsys.readouterr().err


def test_watching_too_fast_is_refused(machine, capsys):
    assert cli.main(["explain", "--root", str(machine.path), "--watch", "0.001"]) == 2
    assert "--watch 0.001" in capsys.readouterr().err


# ---------------------------------------------------------------- watching


def watched(machine, rich, until, height=50, width=80, *more):
    """What a terminal gets until `until` was shown `2` times and Ctrl-C came: exit code, text."""
    arguments = ["explain", "--root", str(machine.path), "--watch", "0.1", *more]
    # whoever starts the suite in the background has Ctrl-C ignored
    program = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "" if rich else "sys.modules['rich'] = None\n"
    program += f"from ksmwalk.commands.cli import main\nsys.exit(main({arguments!r}))"
    told = []

    def interrupt(running, written):
        if not told and written.count(until) >= 2:
            running.send_signal(signal.SIGINT)
            told.append(True)

    code, text = in_terminal([sys.executable, "-c", program], width, height, interrupt)
    assert told
    return code, text


@pytest.mark.parametrize("rich", [False, True])
def test_watching_shows_it_again_and_leaves_the_last_on_screen(machine, rich):
    if rich:
        pytest.importorskip("rich")
    code, text = watched(machine, rich, b"105,472")
    assert code == 0
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1  # the screen as it was before
    after = text.rpartition("\x1b[?1049l")[2]
    assert "105,472" in after and "gunicorn" in after and SGR.sub("", after).startswith("KSM ")


@pytest.mark.parametrize("rich", [False, True])
def test_watching_in_a_low_terminal_says_that_there_is_more(machine, rich):
    if rich:
        pytest.importorskip("rich")
    _, text = watched(machine, rich, b"more lines", height=10)
    during = SGR.sub("", text.rpartition("\x1b[?1049l")[0])
    assert "more lines: a taller terminal shows them)" in during and "evil" not in during


def test_watching_without_a_terminal_is_a_line_of_json_each_time_and_a_fresh_file(machine, tmp_path):
    path = tmp_path / "k.prom"
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from ksmwalk.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "explain", "--root", machine.path, "--watch", "0.1", "--json",
               "--openmetrics", path]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        lines = [json.loads(running.stdout.readline()) for _ in range(3)]
        running.send_signal(signal.SIGINT)
        running.stdout.read()
        assert running.stderr.read() == ""
    assert running.returncode == 0 and all(line["rmap_items"] == 145672 for line in lines)
    assert path.read_text().endswith("# EOF\n") and [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []


# ---------------------------------------------------------------- this machine


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_real_ksmd_is_told_as_it_is():
    """Two processes with the same 300 pages: what is saved, who has it, and that a pass has an end."""
    try:
        with knobs.taken(lambda text: None, wait=60), Living() as one, Living() as two:
            zeros = int(knobs.read("ksm_zero_pages"))  # left over from others for ever
            for child in (one, two):
                area = child.do("new(300 * P)")
                child.do(f"put({area}, range(0, 300 * P, P), range(1, 301))")
                child.do(f"call('madvise', {area}, 300 * P, MERGEABLE)")
            knobs.write("pages_to_scan", 200)
            knobs.write("run", 1)
            command = [sys.executable, "-m", "ksmwalk", "explain", "--json", "--interval", "2", "--frames"]
            done = subprocess.run(command, capture_output=True, text=True)
    except knobs.KernelUnavailable as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["saved"]["sharing"] == 300 * 4096 and got["saved"]["kept"] == 300 * 4096 and got["rmap_items"] == 600
    assert got["saved"]["profit"] == got["counters"]["general_profit"] == 300 * 4096 - 600 * 64 + zeros * 4096
    assert {row["pid"]: (row["merging_pages"], row["ksm_pages"], row["owed"]) for row in got["processes"]} == {
        one.pid: (300, 300, 0), two.pid: (300, 300, 0),
    }  # fmt: skip
    assert (got["hidden"]["frames"], got["hidden"]["frame_mappings"], got["hidden"]["stale"]) == (300, 600, 0)
    assert got["pass"]["pages"] == 600 and got["pace"]["passes"] > 2 and 0 <= got["pass"]["done"] <= 600
    assert got["pace"]["cpu_share"] > 0 and got["changed_knobs"]["pages_to_scan"] == {"value": "200", "default": "100"}
