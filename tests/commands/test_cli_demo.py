"""`ksmwalk demo`, as a user runs it, on real processes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import pytest
from living import alive, ksm_to_ourselves, sees_frames

from ksmwalk.commands import cli, demo, scanning
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


def test_an_interrupted_demo_leaves_no_process_behind(monkeypatch, capsys):
    pids = []

    def interrupted(giant, args):
        pids.append(giant.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "measure", interrupted)
    assert cli.main(["demo", "--span", "1G"]) == 130
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and not alive(pids[0])
