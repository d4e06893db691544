"""`ksmwalk sweep`, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from servers import memory
from test_cli_estimate import read_page

from ksmwalk.commands import cli, report, sweep
from ksmwalk.ksm.costs import Costs
from ksmwalk.sources.captures import save_capture

WORTH = (("web", 2000, 10, 30), ("web", 2000, 10, 30), ("alone", 0, 500, 0))
SOME = ("--set", "pages_to_scan=100..100000:4", "--set", "max_page_sharing=2,256", "--set", "use_zero_pages=0,1")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command on captures that are given to it: (exit code, output, what it complained about)."""
    costs = Costs().save(tmp_path / "costs.json")

    def run(*words, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        code = cli.main(["sweep", "--costs", str(costs), *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def kept(tmp_path):
    save_capture(memory(*WORTH, *WORTH, marked=True, max_page_sharing=2, run=1), tmp_path / "one")
    return tmp_path / "one"


def test_one_sentence_of_advice_comes_first_then_the_front_with_the_present_settings_marked(run, kept):
    code, out, err = run(kept, *SOME)
    assert (code, err) == (0, "")
    said = " ".join(out.split("\n\n")[0].split())
    # at a limit of 2 half of them is lost
    assert said.startswith("Set ")
    assert "max_page_sharing=256: 23.9 MiB come free, 90 % of it after" in said
    assert "(with the settings as they are: 15.9 MiB, 90 % of it after" in said and said.endswith("%).")
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split()[:2] == ["pages", "sleep"] and "sharing" in table[0] and "zero" in table[0]
    (now,) = [line for line in table if "now" in line]
    assert now.split()[0] == "100" and " 2 " in now
    assert sum("advised" in line for line in table) == 1


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_it_fits_the_terminal(run, kept, width):
    for words in ((), SOME):
        code, out, _ = run(kept, *words, width=width)
        assert code == 0 and [line for line in out.splitlines() if report.cells(line) > width] == []


def test_settings_that_are_good_enough_stay(run, tmp_path):
    save_capture(memory(*WORTH, marked=True, run=1), tmp_path / "good")
    _, out, _ = run(tmp_path / "good", *SOME)
    assert out.startswith("Leave the settings as they are: 8.0 MiB come free, 90 % of it after")
    assert "now, advised" in out


def test_where_ksm_is_off_it_is_to_be_switched_on(run, tmp_path):
    save_capture(memory(*WORTH, marked=True), tmp_path / "off")
    said = " ".join(run(tmp_path / "off", *SOME)[1].split())
    assert said.startswith("Switch it on (echo 1 > /sys/kernel/mm/ksm/run) with the settings as they are: 8.0 MiB come free")


def test_what_estimate_calls_too_little_is_too_little_here(run, tmp_path):
    what = memory(*WORTH, marked=True)
    what.machine["mem_total"] = 24 << 30
    save_capture(what, tmp_path / "large")
    said = " ".join(run(tmp_path / "large", *SOME)[1].split())
    assert said.startswith("Leave KSM off: 8.0 MiB would come free with the best settings: that is too little for a machine of 24")


def test_a_kernel_without_ksm_is_said_to_have_none(run, tmp_path):
    what = memory(*WORTH, marked=True)
    del what.machine["ksm"]
    save_capture(what, tmp_path / "none")
    said = " ".join(run(tmp_path / "none", *SOME)[1].split())
    assert said.startswith("This kernel has no KSM (CONFIG_KSM). With one that has it: ") and "echo" not in said


def test_where_nothing_comes_free_it_says_so(run, tmp_path):
    save_capture(memory(("a", 0, 300, 0), marked=True), tmp_path / "none")
    _, out, _ = run(tmp_path / "none", *SOME)
    assert out.startswith("No setting frees anything: leave KSM off.\n")


def test_json_has_a_row_for_every_setting_and_csv_the_same(run, kept, tmp_path):
    code, out, _ = run(kept, *SOME, "--json", "--csv", tmp_path / "all.csv", "--processes", 2)
    got = json.loads(out)
    rows = got["settings"]
    # the present one is at the values that are swept
    assert code == 0 and len(rows) == 4 * 2 * 2 and sum(row["present"] for row in rows) == sum(row["advised"] for row in rows) == 1
    assert [row["pages_to_scan"] for row in rows if row["present"]] == [100]
    assert sorted({row["pages_to_scan"] for row in rows}) == [100, 1000, 10_000, 100_000]
    table = list(csv.DictReader(open_text(tmp_path / "all.csv")))
    assert [int(row["freed_bytes"]) for row in table] == [row["freed_bytes"] for row in rows]
    assert {row["source"] for row in table} == {str(kept)}
    _, again, _ = run(kept, *SOME, "--json", "--threads", 1)
    assert json.loads(again)["settings"] == rows


def open_text(path):
    return path.read_text().splitlines()


def test_the_present_settings_are_added_where_they_are_not_among_those_asked_for(run, kept):
    _, out, _ = run(kept, "--set", "pages_to_scan=3000", "--json")
    assert [(row["pages_to_scan"], row["present"]) for row in json.loads(out)["settings"]] == [(3000, False), (100, True)]


def test_captures_of_a_fleet_are_rows_of_their_own(run, kept, tmp_path):
    save_capture(memory(*WORTH, ("more", 2000, 0, 0), marked=True), tmp_path / "=two")
    for more in ((), ("--shared", "--processes", "1")):
        code, out, _ = run(kept, tmp_path / "=two", *SOME, "--json", "--csv", tmp_path / "all.csv", *more)
        got = json.loads(out)
        assert code == 0 and got["sources"] == [str(kept), str(tmp_path / "=two")]
        by = {name: np.array([row["freed_bytes"] for row in got["by_source"] if row["source"] == name]) for name in got["sources"]}
        both = np.array([row["freed_bytes"] for row in got["settings"]])
        assert len(both) == 17 and (sum(by.values()) == both).all()  # 16, and each as it is
        assert len(open_text(tmp_path / "all.csv")) == 1 + 2 * 17
    assert "now means each as it is" in " ".join(run(kept, tmp_path / "=two", *SOME)[1].split())


def test_the_page_and_the_chart(run, kept, tmp_path):
    pytest.importorskip("matplotlib")
    evil = tmp_path / "</script><b>"
    os.makedirs(evil.parent)
    os.rename(kept, evil)
    code, _, err = run(evil, *SOME, "--html", tmp_path / "x.html", "--plot", tmp_path / "x.svg")
    assert (code, err) == (0, "")
    seen = read_page(tmp_path / "x.html")
    assert seen.tags.count("svg") == 1 and seen.tags.count("table") == 1 and seen.tags.count("script") == 1 and "b" not in seen.tags
    assert len(json.loads(seen.data)["settings"]) == 16
    assert "Settings: cost, gain and time" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize(
    "words, said",
    [
        (("--set", "pages"), "--set 'pages': NAME=V1,V2,... or NAME=A..B:N is needed"),
        (("--set", "run=1"), "'run' can't be varied; these can: pages_to_scan"),
        (("--set", "pages_to_scan=1,x"), "--set 'pages_to_scan=1,x': 'x' is no number"),
        (("--set", "pages_to_scan=1..9"), "A..B:N is needed, with how many values"),
        (("--set", "pages_to_scan=0..9:3"), "A..B:N needs 1 <= A <= B and N from 2 to 1000"),
        (("--set", "smart_scan=0", "--set", "smart_scan=1"), "smart_scan has been given already"),
        (("--set", "max_page_sharing=1"), "settings[0]: max_page_sharing 1"),
        (("--set", "pages_to_scan=1..1000000:999", "--set", "sleep_millisecs=1..1000000:999"), "settings, more than 100,000"),
        (("--csv", "/nowhere/x.csv"), "--csv /nowhere/x.csv: there is no directory /nowhere"),
        (("--plot", "x.jpg"), "--plot x.jpg: the name must end in .png, .svg or .pdf"),
        (("--shared", "--all"), "--shared: workers can open captures only"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(run, kept, words, said):
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    code, out, err = run(kept, *words)
    assert (code, out) == (2, "") and err.startswith("ksmwalk sweep: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere at all", "http://127.0.0.1:1", "", "tcp://127.0.0.1:1\x1b[2J"])
def test_where_no_dask_scheduler_is_that_is_one_line_and_2(kept, address):
    pytest.importorskip("distributed")
    got = subprocess.run(
        [sys.executable, "-m", "ksmwalk", "sweep", str(kept), "--dask", address], capture_output=True, text=True, timeout=120
    )
    assert got.returncode == 2 and got.stdout == "" and got.stderr.count("\n") == 1 and "\x1b" not in got.stderr
    assert got.stderr.startswith("ksmwalk sweep: --dask ") and "no Dask scheduler answers there" in got.stderr


def test_without_distributed_it_says_what_to_install_before_anything_is_read():
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "from ksmwalk.commands import cli, sweep\n"
        "sweep.memory_of = lambda *_: print('read')\n"
        "sys.exit(cli.main(['sweep', '1', '--dask', 'tcp://127.0.0.1:1']))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert got.returncode == 2 and got.stdout == "" and "pip install 'ksmwalk[dask]'" in got.stderr


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_by_its_address(run, kept):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, protocol="tcp://", dashboard_address=None, silence_logs=60
    ) as local:
        code, out, err = run(kept, *SOME, "--dask", local.scheduler_address, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["settings"] == json.loads(run(kept, *SOME, "--json")[1])["settings"]


def test_values_in_equal_steps_of_a_logarithm():
    assert sweep.values_of(["pages_to_scan=100..10000:3"]) == [{"pages_to_scan": n} for n in (100, 1000, 10_000)]
    assert sweep.values_of(["pages_to_scan=1..3:5"]) == [{"pages_to_scan": n} for n in (1, 2, 3)]
    assert len(sweep.values_of([])) == 192
