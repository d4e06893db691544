"""`ksmwalk estimate`, as a user runs it: on made-up memory and on real processes."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from living import Living
from servers import EVIL, P, memory

from ksmwalk.commands import cli, estimate, report
from ksmwalk.ksm.costs import Costs

WORTH = (("web", 2000, 10, 30), ("web", 2000, 10, 30), ("alone", 0, 500, 0))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command on memory that is given to it: (exit code, output, what it complained about)."""
    costs = Costs().save(tmp_path / "costs.json")

    def run(what, *words, width=80):
        monkeypatch.setattr(estimate, "memory_of", lambda args, progress: what)
        monkeypatch.setenv("COLUMNS", str(width))
        code = cli.main(["estimate", "--costs", str(costs), *map(str, words)])
        return code, *capsys.readouterr()

    return run


def first_sentences(text):
    return " ".join(text.split("\n\n")[0].split())


def test_the_answer_comes_first_with_whom_how_much_at_which_price_and_settings(run):
    code, out, err = run(memory(*WORTH))
    assert (code, err) == (0, "")
    said = first_sentences(out)
    # 2000 that are equal, and 59 of 60 pages of zeros
    assert said.startswith("Switch it on for web (2): 8.0 MiB of their 15.9 MiB of anonymous memory would come free (50 %), for ")
    assert "at pages_to_scan=100 and sleep_millisecs=20, as they are. " in said
    assert said.endswith("echo 1 > /sys/kernel/mm/ksm/run.")


def test_where_nothing_is_equal_the_answer_is_no_and_says_why(run):
    code, out, _ = run(memory(("a", 0, 500, 0), ("b", 0, 500, 0)))
    assert code == 0
    said = first_sentences(out)
    assert said.startswith("Don't switch it on: nothing would come free of 3.9 MiB of anonymous memory: of 1,000 pages no two")
    assert "echo" not in said


def test_ksm_that_has_merged_already_is_to_be_kept_on(run):
    from seen import capture_of

    from ksmwalk import Host

    host = Host(1 << 15)
    for _ in range(2):
        mm = host.new_mm()
        start = mm.mmap(2000 * P, addr=1 << 30)
        mm.madvise(start, 2000 * P, "mergeable")
        mm.write(start, list(range(1, 2001)))
    for _ in range(3):
        host.ksm.full_scan()
    what = capture_of(host)
    what.machine["ksm"]["run"] = "1"
    _, out, _ = run(what)
    assert first_sentences(out).startswith("Keep it on for model 1 and model 2: 7.8 MiB of their 15.6 MiB of anonymous memory")
    assert "of which 7.8 MiB are all so already" in first_sentences(out)


@pytest.mark.parametrize("width", [36, 44, 60, 80, 120])
@pytest.mark.parametrize("by", ["process", "mapping", "user", "cgroup", "container"])
def test_it_fits_the_terminal(run, width, by):
    names = (("a name with \N{CJK UNIFIED IDEOGRAPH-4E2D}" * 3, 2000, 10, 30), ("web", 2000, 10, 30), ("alone", 0, 500, 0))
    code, out, _ = run(memory(*names), "--by", by, "--domains", width=width)
    assert code == 0
    assert [line for line in out.splitlines() if report.cells(line) > width] == []


def test_what_fork_shares_already_is_why_the_kernel_promises_more(run):
    _, out, _ = run(memory(("pool", 1000, 1, 0), ("other", 1000, 1, 0), fork=3))
    (line,) = re.findall(r"general_profit(.*?)zero pages", " ".join(out.split()))
    assert "11.7 MiB that fork shares already" in line


def test_without_frames_what_is_freed_is_a_range_and_says_why(run):
    what = memory(("web", 2000, 0, 0), ("web", 2000, 0, 0))
    for one in what.processes:
        one.pfn = one.exclusive = one.frame_flags = one.frame_counts = None
    _, out, _ = run(what)
    # equal pages at equal addresses: by fork, for all that can be seen
    assert "7.8 MiB (0 B to 7.8 MiB) of their 15.6 MiB" in first_sentences(out)
    assert "0 B at least, 7.8 MiB expected, 7.8 MiB at most: frames can't be seen" in " ".join(out.split())


def test_pages_that_change_make_a_range(run):
    what = memory(*WORTH)
    what.processes[0].changes[:1500] = 1
    what.samples, what.seconds_between = 2, 1.0
    _, out, _ = run(what)
    found = json.loads(run(what, "--json")[1])
    low, mean, high = (report.size(found[name]["freed_bytes"]) for name in ("lower", "moving", "upper"))
    # three of four pages that are equal change: what they were read as promises more than there will ever be
    assert found["upper"]["freed_bytes"] < found["expected"]["freed_bytes"] == 2059 * P
    assert f"{mean} of 17.9 MiB of anonymous memory would come free: that is too little." in first_sentences(out)
    assert f"{low} at least, {mean} on average, {high} at most" in " ".join(out.split())
    assert "1,500 pages changed while they were read" in " ".join(out.split())


def test_zero_pages_are_told_apart(run):
    _, out, _ = run(memory(*WORTH))
    assert "zero pages      60 (240 KiB) hold only zeros" in out
    _, out, _ = run(memory(*WORTH), "--set", "use_zero_pages=1")
    assert "zero pages      60 become the zero page (240 KiB of what is freed)" in out


def test_json_has_the_estimate_the_advice_and_the_domains(run):
    code, out, _ = run(memory(*WORTH), "--json", "--set", "pages_to_scan=150")
    got = json.loads(out)
    assert code == 0 and got["expected"]["freed_bytes"] == (2000 + 59) * P
    assert got["knobs"]["pages_to_scan"] == 150 == got["advice"]["best"]["pages_to_scan"]
    assert [one["name"] for one in got["advice"]["processes"]] == ["web", "web"]
    assert got["by_domain"] == {"all": 2059 * P, "user": 59 * P, "container": 2059 * P, "process": 59 * P}


def test_what_was_asked_about_is_not_what_is_set_now(run):
    what = memory(*WORTH, run=1)
    _, out, _ = run(what, "--set", "pages_to_scan=2000", width=120)
    rows = {line.split()[0]: line.rstrip() for line in out.splitlines() if re.match(r" +[\d,]+ +20 ms", line)}
    assert rows["100"].endswith("now, advised") and rows["2,000"].endswith("asked")
    said = first_sentences(out)
    assert "at pages_to_scan=100 and sleep_millisecs=20, as they are" in said
    assert "echo" not in said
    said = first_sentences(run(what, "--set", "use_zero_pages=1", "--set", "pages_to_scan=150")[1])
    assert "echo 1 > /sys/kernel/mm/ksm/use_zero_pages; echo 150 > /sys/kernel/mm/ksm/pages_to_scan." in said


def test_a_kernel_without_ksm_is_said_to_have_none(run):
    what = memory(*WORTH)
    del what.machine["ksm"]
    code, out, _ = run(what)
    said = first_sentences(out)
    assert code == 0 and said.startswith("This kernel has no KSM (CONFIG_KSM). With one that has it: switch it on for web (2): ")
    assert "echo" not in said and "default, advised" in out
    assert "as they are" not in said and "which are the kernel's by default." in said


def test_of_two_machines_no_commands_are_given(run):
    what = memory(*WORTH)
    what.machine["machines"] = [{"name": "one", "ksm": {}}, {"name": "two"}]
    said = first_sentences(run(what)[1])
    assert "echo" not in said and "as if all of it ran on one machine" in said


def test_the_young_are_only_advised_where_they_are_named(run):
    what = memory(*WORTH)
    for one in what.processes:
        one.identity = dataclasses.replace(one.identity, started=99_000)
    what.machine["uptime"] = 1000.0
    what.processes[2].identity = dataclasses.replace(what.processes[2].identity, started=1)
    assert "Switch it on for web (2)" in run(what, "web")[1]
    _, out, _ = run(what, "--all", width=200)
    assert "Switch it on" not in out and "2 processes are younger than 2 minutes and may be gone soon" in out


def test_command_lines_can_be_left_out_and_are_cut_where_nobody_sets_a_width(run, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    what = memory(*WORTH)
    for one in what.processes:
        one.identity = dataclasses.replace(one.identity, command=("/usr/bin/web", "--password", "hunter2", "x" * 5000))
    code, out, _ = run(what, "--no-command", "--json", "--html", tmp_path / "page.html")
    assert code == 0 and "hunter2" not in out and "hunter2" not in (tmp_path / "page.html").read_text()
    # without COLUMNS, and no terminal
    monkeypatch.setattr("ksmwalk.commands.screen._width", lambda out, terminal: None)
    _, out, _ = run(what)
    assert "hunter2" in out and max(map(len, out.splitlines())) < 180


def of_sources(*names):
    what = memory(("web", 2000, 10, 30), ("web", 2000, 10, 30), ("alone", 0, 500, 0), ("one", 0, 50, 0))
    what.sources = list(names)
    return what


@pytest.mark.parametrize("width", [36, 80])
def test_of_several_sources_it_says_which_belong_on_one_host(run, width):
    code, out, err = run(of_sources("hostA", "host\x1b[2JB", "hostC", "hostC"), width=width)
    assert (code, err) == (0, "") and "\x1b" not in out
    said = " ".join(out.split("Who shares with whom")[1].split())
    # 2000 equal pages, and a page of zeros that both have
    assert "Put on one host, where two and two have room: hostA and host\\x1b[2JB (7.8 MiB more freed than apart)." in said
    if width == 80:
        assert "+7.8 MiB 49 % 232 KiB hostA and host\\x1b[2JB" in said
    assert [line for line in out.splitlines() if report.cells(line) > width] == []


def test_of_two_sources_without_a_page_in_common_it_says_that(run):
    _, out, _ = run(of_sources("A", "A", "C", "C"))
    assert "Which of them share a host makes no difference: hardly any page of one occurs in another." in " ".join(out.split())


def test_of_one_source_nothing_is_said_of_sharing(run):
    for what in (memory(*WORTH), of_sources("A", "A", "A", "A")):
        assert "Who shares" not in run(what)[1] and "matrix" not in json.loads(run(what, "--json")[1])


def test_the_matrix_is_in_the_json_the_page_and_the_chart(run, tmp_path):
    what = of_sources("hostA", "hostB", EVIL, EVIL)
    found = json.loads(run(what, "--json")[1])["matrix"]
    assert found["names"] == ["hostA", "hostB", EVIL]
    # its own 29 pages of zeros each free alone
    assert found["gain_bytes"][0] == [0, 2001 * P, 0] and found["freed_bytes"][0] == [29 * P, (2001 + 58) * P, 29 * P]
    pytest.importorskip("matplotlib")
    code, _, err = run(what, "--html", tmp_path / "x.html", "--plot", tmp_path / "x.svg")
    assert (code, err) == (0, "")
    seen = read_page(tmp_path / "x.html")
    assert seen.tags.count("svg") == 5 and seen.tags.count("script") == 1 and json.loads(seen.data)["matrix"] == found
    assert "Who shares with whom" in (tmp_path / "x.html").read_text()
    assert "Freed by sharing a host" in (tmp_path / "x.svg").read_text()


def test_names_cannot_drive_the_terminal(run):
    _, out, _ = run(memory(("\x1b[2Jweb\n\u202e", 2000, 0, 0), ("web", 2000, 0, 0)))
    assert "\x1b" not in out and "\u202e" not in out and "\\x1b[2Jweb\\n\\u202e" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (("--set", "pages"), "--set 'pages': NAME=VALUE is needed"),
        (("--set", "pages_to_can=3"), "--set 'pages_to_can=3': KSM has no such tunable; it has run, "),
        (("--set", "max_page_sharing=1"), "Invalid argument"),
        (("--html", "/nowhere/x.html"), "--html /nowhere/x.html: there is no directory /nowhere"),
        (("--plot", "x.jpg"), "--plot x.jpg: the name must end in .png, .svg or .pdf"),
        (("--html", "/"), "--html /: is a directory"),
        (("--costs", "/nowhere/costs"), "/nowhere/costs: No such file or directory"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(run, words, said):
    if words[0] in ("--html", "--plot"):
        pytest.importorskip("matplotlib")
    code, out, err = run(memory(*WORTH), *words)
    assert (code, out) == (2, "") and err.startswith("ksmwalk estimate: ") and said in err and err.count("\n") == 1


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the text of its data."""

    def __init__(self):
        super().__init__()
        self.tags, self.urls, self.data, self.inside = [], [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.data += data * self.inside


def read_page(path):
    found = Elements()
    found.feed(path.read_text())
    return found


def test_the_page_stands_alone_and_holds_everything(run, tmp_path):
    pytest.importorskip("matplotlib")
    place = tmp_path / "ksm.html"
    code, out, err = run(memory(*WORTH), "--html", place)
    assert (code, err) == (0, "") and out.startswith("Switch it on")
    seen = read_page(place)
    assert seen.tags.count("svg") == 4 and seen.tags.count("table") >= 3 and seen.tags.count("script") == 1
    # inside the page itself, or an image in it
    assert [url for url in seen.urls if not url.startswith(("#", "data:"))] == []
    assert json.loads(seen.data)["expected"]["freed_bytes"] == 2059 * P
    text = place.read_text()
    assert "prefers-color-scheme:dark" in text and "default-src 'none'" in text and "@import" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert sorted(os.listdir(tmp_path)) == ["costs.json", "ksm.html"]


def test_a_name_cannot_get_out_of_the_page(run, tmp_path):
    pytest.importorskip("matplotlib")
    place = tmp_path / "ksm.html"
    run(memory(*((name, 2000, 10, 30) for name in (EVIL, '"><img src=x onerror=y>', "$\\frac{$&lt;")), fork=1), "--html", place)
    seen = read_page(place)
    assert seen.tags.count("script") == 1 and "img" not in seen.tags
    assert json.loads(seen.data)["by_process"][0]["name"] == EVIL


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    place = tmp_path / "ksm.html"
    place.write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = run(memory(*WORTH), "--html", place)
    assert code == 2 and err == f"ksmwalk estimate: {place}: No space left on device\n"
    assert place.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["costs.json", "ksm.html"]


@pytest.mark.parametrize("ending, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_it_is_drawn_into_a_file(run, tmp_path, ending, magic):
    pytest.importorskip("matplotlib")
    place = tmp_path / f"ksm.{ending}"
    code, _, err = run(memory((EVIL, 2000, 10, 30), ("$x$", 2000, 10, 30)), "--plot", place)
    assert (code, err) == (0, "") and place.read_bytes().startswith(magic)
    if ending == "svg":
        text = " ".join(ElementTree.parse(place).getroot().itertext())
        assert "Memory freed over time" in text and "prefers-color-scheme:dark" in text


def test_without_matplotlib_it_says_what_to_install_before_anything_is_read(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from ksmwalk.commands import cli, estimate\n"
        "estimate.memory_of = lambda *_: print('read')\n"
        f"sys.exit(cli.main(['estimate', '1', '--html', {str(tmp_path / 'x.html')!r}]))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert got.returncode == 2 and got.stdout == "" and "pip install 'ksmwalk[plot]'" in got.stderr


# ---------------------------------------------------------- real processes


def ksmwalk(*words):
    return subprocess.run([sys.executable, "-m", "ksmwalk", "estimate", *map(str, words)], capture_output=True, text=True)


@pytest.fixture
def pair():
    with Living() as one, Living() as other:
        for child in (one, other):
            area = child.do("new(64 * P)")
            child.do(f"write({area}, 64)")
        yield one, other


def test_real_processes_and_one_that_is_gone(pair):
    with Living() as gone:
        pass
    got = ksmwalk(*(child.pid for child in pair), gone.pid, "--interval", 0, "--json", "--as", "all")
    assert got.returncode == 1 and str(gone.pid) in got.stderr
    found = json.loads(got.stdout)
    assert [row["pid"] for row in found["by_process"]] == [child.pid for child in pair]
    assert found["expected"]["freed_bytes"] > 0


def test_what_could_not_be_read_is_said_once(pair):
    with Living() as gone:
        pass
    got = ksmwalk(pair[0].pid, gone.pid, "--samples", 1)
    assert got.returncode == 1 and (got.stdout + got.stderr).count("could not be read") == 1
    assert f"process {gone.pid} does not exist" in got.stdout


def test_nobody_of_that_name(pair):
    got = ksmwalk("no-such-program-at-all")
    assert got.returncode == 2 and got.stdout == "" and "no-such-program-at-all" in got.stderr
