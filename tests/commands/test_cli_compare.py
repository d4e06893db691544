"""`ksmwalk compare`, as a user runs it."""

from __future__ import annotations

import json

import pytest
from servers import memory

from ksmwalk.commands import cli
from ksmwalk.estimates.comparing import compare
from ksmwalk.ksm.costs import Costs
from ksmwalk.policies import POLICIES, ByDomain, Linux, OnRequest
from ksmwalk.sources.captures import save_capture

WORTH = (("web", 200, 10, 30), ("web", 200, 10, 30), ("alone", 0, 500, 0))
MINE = """
from ksmwalk.policies import Policy

class Mine(Policy):
    def area(self, area):
        return self.SCAN if area.pages < 300 else self.PAUSE

class Named(Mine):
    name = "my own"

class Needs(Policy):
    def __init__(self, what): ...
"""


@pytest.fixture
def kept(tmp_path):
    save_capture(memory(*WORTH, marked=True, run=1), tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    costs = Costs().save(tmp_path / "costs.json")

    def run(*words, width=100):
        monkeypatch.setenv("COLUMNS", str(width))
        code = cli.main(["compare", "--costs", str(costs), *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_all_policies_side_by_side(run, kept):
    code, out, err = run(kept, "--scans", 12)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("6 policies, 12 full scans each: ")
    named = [line.split()[0] for line in lines[4:10]]
    assert named == list(POLICIES)
    linux, before = lines[4].split()[1:], lines[5].split()[1:]
    assert linux[:2] == before[:2]


def test_json_has_every_scan(run, kept):
    code, out, _ = run(kept, "--scans", 12, "--policy", "linux", "--policy", "on-request", "--json")
    found = json.loads(out)
    linux, asked = found["policies"]
    assert code == 0 and found["scans"] == len(linux["scans"]) == 12 and found["knobs"]["pages_to_scan"] == 100
    assert linux["freed_bytes"] == asked["freed_bytes"] > 0
    assert linux["pages_examined"] > asked["pages_examined"] > 0 and asked["cpu_seconds"] < linux["cpu_seconds"]
    assert linux["scans"][0]["freed"] == 0 < asked["scans"][0]["freed"]
    assert all(a["cpu_seconds"] <= b["cpu_seconds"] for a, b in zip(linux["scans"], linux["scans"][1:], strict=False))


def test_a_policy_of_ones_own(run, kept, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    code, out, err = run(kept, "--scans", 4, "--policy", f"{file}:Mine", "--policy", f"{file}:Named")
    assert (code, err) == (0, "") and "Mine" in out and "my own" in out


def test_it_says_at_which_tunables(run, kept):
    code, out, _ = run(kept, "--scans", 2, "--policy", "linux", "--set", "pages_to_scan=7")
    assert code == 0 and "At pages_to_scan 7, sleep_millisecs 20, smart_scan 1" in out


def test_no_page_a_batch_ends_no_scan(run, kept, tmp_path):
    said = "pages_to_scan 0: must be at least 1 for a scan to end"
    code, out, err = run(kept, "--policy", "linux", "--set", "pages_to_scan=0")
    assert (code, out) == (2, "") and said in err.replace("\n", " ")
    file = tmp_path / "idle.py"
    file.write_text("from ksmwalk.policies import Policy\nclass Idle(Policy):\n    def pace(self, ksm): return 0, 20\n")
    code, out, err = run(kept, "--policy", f"{file}:Idle")
    assert (code, out) == (2, "") and said in err.replace("\n", " ")


def test_a_policy_knows_the_processes_and_its_files_neighbours(run, kept, tmp_path):
    (tmp_path / "beside_it.py").write_text("SCANNED = 'web'\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from beside_it import SCANNED\nfrom ksmwalk.policies import Policy\n"
        "class Web(Policy):\n"
        "    def order(self, mms): return [number for number in mms.tolist() if self.processes[number].name == SCANNED]\n"
        "    def begin(self, ksm): assert {mm.number for mm in ksm.host.mm_list} == set(self.processes)\n"
    )
    code, out, err = run(kept, "--scans", 3, "--policy", f"{file}:Web", "--policy", "linux", "--json")
    web, linux = json.loads(out)["policies"]
    assert (code, err) == (0, "") and 0 < web["freed_bytes"] <= linux["freed_bytes"]
    assert web["pages_examined"] < linux["pages_examined"]


WRONG = """
from ksmwalk.policies import Policy
class Raises(Policy):
    def area(self, area):
        return {}["x"]
class Exits(Policy):
    def area(self, area):
        raise SystemExit(0)
class Unmade(Policy):
    def __init__(self):
        raise OSError("no")
class Linux(Policy):
    name = "linux"
class Prints(Policy):
    def area(self, area):
        print("here")
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "wrong.py:5, area: KeyError: 'x'"), ("Exits", "wrong.py:8, area: SystemExit: 0"),
        ("Unmade", "can't be made without arguments: OSError: no"), ("Linux", "two policies are called 'linux'"),
    ],
)  # fmt: skip
def test_what_a_policy_raises_is_one_line(run, kept, tmp_path, name, said):
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    code, out, err = run(kept, "--policy", "linux", "--policy", f"{file}:{name}")
    assert code == 2 and said in err and not out and "Traceback" not in err


def test_what_a_policy_prints_is_no_result(run, kept, tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    code, out, err = run(kept, "--scans", 2, "--policy", f"{file}:Prints", "--json")
    assert code == 0 and json.loads(out)["policies"] and "here" in err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("linus", "'linus': no such policy; there are linux, before-the-patch"),
        ("nowhere.py:Mine", "there is no file 'nowhere.py'"),
        ("{}:Yours", "has no class Yours made from ksmwalk.policies.Policy; it has Mine, Named, Needs"),
        ("{}:Policy ", "has no class"), ("{}:Needs", "can't be made without arguments"), ("{}", "no such policy"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_named(run, kept, tmp_path, word, said):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    code, out, err = run(kept, "--policy", word.format(file))
    assert (code, out) == (2, "") and said in err.replace("\n", " ")


def test_a_file_that_fails_is_named(run, kept, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    code, _, err = run(kept, "--policy", f"{file}:Mine")
    assert code == 2 and "broken.py can't be run: ZeroDivisionError" in err


def test_nothing_is_asked_for_twice(run, kept):
    assert run(kept, "--policy", "linux", "--policy", "linux")[0] == 2
    with pytest.raises(SystemExit):
        run(kept, "--scans", "0")


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_it_fits_the_terminal(run, kept, width):
    out = run(kept, "--scans", 3, width=width)[1]
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_it_can_be_drawn(run, kept, tmp_path, ending):
    pytest.importorskip("matplotlib")
    target = tmp_path / f"plot.{ending}"
    assert run(kept, "--scans", 3, "--plot", target)[0] == 0
    assert target.stat().st_size > 1000


def test_domains_and_moving_pages(tmp_path):
    capture = memory(*WORTH, marked=True, run=1)
    names = []
    found = compare(
        capture, [Linux(), ByDomain(), OnRequest()], scans=12, domain="process", each=lambda name, n: names.append((name, n))
    )
    linux, apart, _ = found
    assert linux.rows["freed"][-1] > apart.rows["freed"][-1]
    assert names[0] == ("linux", 1) and len(names) == 36
    with pytest.raises(ValueError, match="scans 0"):
        compare(capture, [Linux()], scans=0)
    with pytest.raises(ValueError, match="mark 'x'"):
        compare(capture, [Linux()], mark="x")
