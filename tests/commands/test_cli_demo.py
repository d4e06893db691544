"""`ksmwalk demo` and `ksmwalk scan`, as a user runs them, on real processes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import pytest
from living import Living, ksm_to_ourselves, sees_frames

from ksmwalk.commands import cli, demo, report, scan, scanning
from ksmwalk.commands.child import Giant, footprint
from ksmwalk.kernel import knobs
from ksmwalk.sources import process

P = 4096


def ksmwalk(*args):
    return subprocess.run([sys.executable, "-m", "ksmwalk", *map(str, args)], capture_output=True, text=True)


def answer(*args):
    result = ksmwalk(*args, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_demo_shows_the_patch():
    start = time.process_time()
    got = answer("demo")
    assert time.process_time() - start < 5
    assert got["span"] == 32 << 40 and got["loading"]["unchanged"]
    assert got["loading"]["true_frames"] == sees_frames()
    assert got["range"]["pages"] == got["per_address"]["pages"] == 1
    assert got["per_address"]["work"]["lookups"] == 1 << 33
    assert got["range"]["work"]["lookups"] == 0
    assert got["range"]["entries"] < 10_000
    assert got["range"]["seconds"] < 0.01
    assert got["per_address"]["seconds"] == pytest.approx(got["per_address"]["seconds_per_lookup"] * (1 << 33))
    assert got["per_address"]["lookups_timed"] >= 1 << 20
    assert got["ratio"]["time"] > 1e4 and got["ratio"]["lookups_to_entries"] > 1e5


def test_demo_in_words():
    result = ksmwalk("demo", "--span", "100G", "--pages", "300")
    assert result.returncode == 0 and not result.stderr
    assert "100 GiB of mergeable memory, 300 pages written" in result.stdout
    assert "26,214,400" in result.stdout and "present pages and page tables as before" in result.stdout
    assert "\x1b" not in result.stdout


def test_demo_refuses_nonsense(capsys):
    for bad in ("many", "-3T", "1E", "100P", "0"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["demo", f"--span={bad}"])
        assert bad in capsys.readouterr().err
    assert cli.main(["demo", "--span", "64K", "--pages", "17"]) == 2
    assert "--pages 17: must be from 1 to 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("5000", 8192), ("32T", 32 << 40), ("1.5G", 3 << 29), ("2MiB", 2 << 20), ("8kb", 8192)],
)
def test_sizes(text, size):
    assert demo.span(text) == size


def test_bad_size():
    with pytest.raises(argparse.ArgumentTypeError, match="'x'"):
        demo.span("x")


@pytest.mark.skipif(os.geteuid() == 0, reason="for those who are not root")
def test_kernel_needs_root():
    result = ksmwalk("demo", "--kernel")
    assert result.returncode == 2 and "root" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not knobs.KSM.is_dir(), reason="needs root and a kernel with KSM")
def test_kernel_scans_and_is_put_back():
    with ksm_to_ourselves():
        before = knobs.saved()
    result = ksmwalk("demo", "--kernel", "--pages", "40", "--span", "1T", "--json")
    if result.returncode and ("held by somebody" in result.stderr or "KSM is in use" in result.stderr):
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout)["kernel"]
    if got["finished"]:
        assert 0 < got["seconds"] < 5 and got["pages_scanned"] == 40 and got["scans"] >= 5
    with ksm_to_ourselves():
        assert knobs.saved() == before


def test_the_giant_ends_with_us():
    with Giant(1 << 40, 7, mark=False) as giant:
        image = process(giant.pid, frames=False, mark="all")
        assert giant.unmarked is None and not giant.marked
        first = footprint(giant.pid)
        time.sleep(0.05)
        assert footprint(giant.pid) == first
        vma = image.mm.find_vma(giant.address)
        at = image.mm.tables.mappings(giant.address, giant.address + (1 << 40))["addr"] - giant.address
        step = (1 << 40) // 7 // P
        assert at.tolist() == [(page * step + step // 2) * P for page in range(7)]
        assert vma is not None
    with pytest.raises(ProcessLookupError):
        os.kill(giant.pid, 0)


def test_a_giant_too_large_is_an_error():
    with pytest.raises(Exception, match="no process with .* bytes of address space: .*memory"):
        Giant(1 << 60, 1)


def test_the_slice_costs_what_it_says():
    """The lookups that are timed are really made, around a page, and stay inside the mapping."""
    with Giant(1 << 33, 2, mark=False) as giant:
        what = process(giant.pid, frames=False, mark="none").capture
        vma = next(vma for vma in what.vmas if vma.start <= giant.address < vma.end)
        each, lookups = scanning.seconds_per_lookup(what, vma)
        assert lookups == 1 << 20 and 0 < each < 1e-5
        part = scanning.cut_out(what, vma, giant.address, giant.address + (1 << 32))
        assert part.nr_pages == 1 and part.vmas[0].size == 1 << 32 and len(what.vmas) > 1


@pytest.fixture
def sparse():
    with Living() as child:
        area = child.do("new(1 << 40)")
        child.do(f"write({area} + (1 << 39), 5, 1 << 30)")
        shared = child.do("new(64 * P, 0x21)")
        child.do(f"write({shared}, 3)")
        yield child, area, shared


def test_scan_area_by_area(sparse):
    child, area, shared = sparse
    got = answer("scan", child.pid)
    (one,) = got["processes"]
    by_start = {row["start"]: row for row in one["areas"]}
    giant = by_start[area]
    assert (giant["size"], giant["present"], giant["pages_found"]) == (1 << 40, 5 * P, 5)
    assert giant["lookups_saved"] == (1 << 28) - 5 and giant["holes_jumped"] > 500
    assert giant["could_be"] and not giant["mergeable"] and giant["why_not"] == "not marked"
    assert by_start[shared]["why_not"] == "shared" and by_start[shared]["present"] == 3 * P
    totals = one["totals"]
    assert totals["sparse_giant"] and totals["marked"] == 0
    assert totals["pages_found"] == sum(row["pages_found"] for row in one["areas"])
    assert totals["lookups_saved"] == sum(row["lookups_saved"] for row in one["areas"])
    assert totals["present"] == sum(row["present"] for row in one["areas"])
    assert totals["lookups"] == totals["lookups_saved"] + totals["pages_found"]


def test_scan_of_marked_memory_only(sparse):
    child, _, _ = sparse
    (one,) = answer("scan", child.pid, "--marked")["processes"]
    assert one["totals"]["pages_found"] == one["totals"]["lookups"] == one["totals"]["searched"] == 0


def test_scan_in_words(sparse):
    child, area, _ = sparse
    result = ksmwalk("scan", child.pid)
    assert result.returncode == 0 and not result.stderr
    row = next(line for line in result.stdout.splitlines() if line.split()[:1] == [f"{area:x}"])
    assert row.split()[:7] == [f"{area:x}", "1", "TiB", "20", "KiB", "-", "could"]
    assert "1 of 1 is a sparse giant" in result.stdout and "\x1b" not in result.stdout


def test_scan_all(sparse):
    child, _, _ = sparse
    got = answer("scan", "--all")
    mine = [one for one in got["processes"] if one["pid"] == child.pid]
    assert len(mine) == 1 and mine[0]["areas"] is None and mine[0]["totals"]["pages_found"] >= 5
    saved = [one["totals"]["lookups_saved"] for one in got["processes"]]
    assert saved == sorted(saved, reverse=True)
    result = ksmwalk("scan", "--all")
    assert result.returncode == 0 and f"{child.pid}" in result.stdout


def test_scan_says_what_it_could_not_read(sparse, capsys):
    child, _, _ = sparse
    with Living() as gone:
        pass
    assert cli.main(["scan", str(child.pid), str(gone.pid)]) == 1
    out, err = capsys.readouterr()
    assert f"process {gone.pid} does not exist" in err
    assert str(child.pid) in out  # the other one is there all the same
    for wrong in ([], ["1", "--all"]):
        assert cli.main(["scan", *wrong]) == 2
        assert "either" in capsys.readouterr().err


def test_areas_one_by_one_leave_the_marks_alone(sparse):
    child, _, _ = sparse
    image = process(child.pid, mark="all", frames=False)
    before = image.host.vmas["flags"].copy()
    scan.scan_process(image)
    assert (image.host.vmas["flags"] == before).all()


def test_report_words():
    assert [report.size(n) for n in (0, 4096, 1536, 32 << 40, (32 << 40) + 1)] == [
        "0 B", "4 KiB", "1.5 KiB", "32 TiB", "32.0 TiB",
    ]  # fmt: skip
    assert [report.duration(s) for s in (0, 1.5e-8, 1.234e-5, 0.002, 3.0, 400, 10_000, 1e6, 1e9)] == [
        "0 s", "15 ns", "12.3 us", "2 ms", "3 s", "6.67 minutes", "2.78 hours", "11.6 days", "31.7 years",
    ]  # fmt: skip
    assert report.table(("a", "bb"), [("x", 1), ("long", 22)], right=(1,)).splitlines() == [
        "a     bb", "----  --", "x      1", "long  22",
    ]  # fmt: skip


class Terminal:
    def __init__(self):
        self.written = ""

    def isatty(self):
        return True

    def write(self, text):
        self.written += text

    def flush(self):
        pass


def test_progress_only_where_somebody_looks(monkeypatch, capsys):
    clock = iter(range(100))
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    screen = Terminal()
    assert list(report.progress([1, 2, 3], "things", screen)) == [1, 2, 3]
    assert "things: 1 of 3" in screen.written and screen.written.endswith("\r\x1b[K")
    assert list(report.progress([1, 2, 3], "things")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
