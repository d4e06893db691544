"""`ksmwalk map`: the cutting of gaps, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from living import Living

from ksmwalk.commands import cli, picture
from ksmwalk.proc import pagemap
from ksmwalk.sources import VmaRecord
from ksmwalk.sources.reading import ProcessCapture

P, M = 4096, 2 << 20
HUGE = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_HUGE
ZERO = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_PFNZERO
FILE = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_FILE


def ksmwalk(*args, env=None):
    command = [sys.executable, "-m", "ksmwalk", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})


def vma(start, end, flags="rd wr mr mw me ac", name=""):
    return VmaRecord(start, end, "rw-p", 0, "00:00", 0, name, tuple(flags.split()))


def synthetic(vmas, runs):
    """A capture from (address, pages, categories) runs."""
    addr = np.concatenate([np.arange(n, dtype=np.uint64) * np.uint64(P) + np.uint64(at) for at, n, _ in runs] or [[]])
    categories = np.concatenate([np.full(n, c, np.uint64) for _, n, c in runs] or [[]])
    return ProcessCapture(1, "made", vmas, addr.astype(np.uint64), categories.astype(np.uint64))


def test_kinds_and_gaps():
    base, other = 1 << 40, 1 << 45
    what = synthetic(
        [
            vma(base, base + (1 << 40), "rd wr mg"),
            vma(other, other + 8 * M),
            vma(other + 8 * M, other + 9 * M, "rd sh"),
        ],
        [
            (base + (1 << 30), 3, pagemap.PAGE_IS_PRESENT),
            (other, 512, HUGE),
            (other + M, 10, ZERO),
            (other + 8 * M, 5, pagemap.PAGE_IS_PRESENT),
        ],
    )
    drawn = picture.picture(what)
    assert [(row.start, row.end) for row in drawn.rows] == [
        (base + (1 << 30), base + (1 << 30) + 3 * P),
        (other, other + M + 10 * P),
        (other + 8 * M, other + 8 * M + 5 * P),
    ]
    assert [row.pages.tolist() for row in drawn.rows] == [[3, 0, 0, 0, 0], [0, 512, 0, 10, 0], [0, 0, 0, 0, 5]]
    inner = (1 << 40) - (1 << 30) - 3 * P
    assert [(gap.size, gap.mapped) for gap in drawn.gaps] == [
        (1 << 30, 1 << 30),
        (other - base - (1 << 30) - 3 * P, inner),
        (6 * M + 502 * P, 6 * M + 502 * P),
        (M - 5 * P, M - 5 * P),
    ]
    assert picture.gap_label(drawn.gaps[0]) == "1 GiB mapped, nothing present"
    assert picture.gap_label(drawn.gaps[1]) == "1023.0 GiB mapped, nothing present; 30 TiB unmapped"
    assert picture.marks(drawn.rows[0]) == "; all marked mergeable"
    # rows and gaps together cover everything once
    edges = [(piece.start, piece.end) for piece in drawn.pieces()]
    assert edges[0][0] == base and edges[-1][1] == other + 9 * M
    assert all(before[1] == after[0] for before, after in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_only_the_largest_gaps_are_cut(rows):
    runs, at = [], 1 << 30
    for index in range(10):
        runs.append((at, 1, pagemap.PAGE_IS_PRESENT))
        at += (index + 1) << 24
    drawn = picture.picture(synthetic([vma(1 << 30, 1 << 40)], runs), rows)
    assert len(drawn.rows) == rows
    inside = [gap.size for gap in drawn.gaps if gap.end < 1 << 40]
    assert inside == [((index + 1) << 24) - P for index in range(10 - rows, 9)]


def test_nothing_present_and_nothing_mapped():
    drawn = picture.picture(synthetic([vma(P, 1 << 30)], []))
    assert not drawn.rows and [(gap.start, gap.end) for gap in drawn.gaps] == [(P, 1 << 30)]
    assert picture.picture(synthetic([], [])).pieces() == []
    with pytest.raises(ValueError, match="max_rows=0"):
        picture.picture(synthetic([], []), 0)


@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_columns_keep_every_byte(width):
    """The shares of all columns add up to what is present, whether pages are wider or narrower than columns."""
    start = 1 << 40
    what = synthetic(
        [vma(start, start + 64 * P), vma(start + 100 * P, start + 300 * P)],
        [
            (start, 1, pagemap.PAGE_IS_PRESENT),
            (start + 60 * P, 4, ZERO),
            (start + 200 * P, 57, pagemap.PAGE_IS_PRESENT),
        ],
    )
    drawn = picture.picture(what)
    (row,) = drawn.rows
    share, at = picture.columns(drawn, row, width)
    present = share.sum(axis=0) * row.size / width / P
    assert present == pytest.approx([58, 0, 0, 4, 0])
    assert share.max() <= 1 + 1e-9
    if width == 1000:
        middle = (np.arange(width) + 0.5) * 257 / width
        assert (at == np.where(middle < 64, 0, np.where(middle < 100, -1, 1))).all()


@pytest.fixture
def giant():
    with Living() as child:
        area = child.do("new(1 << 45)")
        child.do(f"write({area} + (1 << 44), 3)")
        yield child, area


def test_text(giant):
    child, area = giant
    result = ksmwalk("map", child.pid, env={"COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{area + (1 << 44):016x}"))
    assert lines[at].split() == [f"{area + (1 << 44):016x}", "aaa"]
    assert lines[at + 1].strip() == "12 KiB: 12 KiB anonymous"
    assert "16.0 TiB mapped, nothing present" in lines[at - 1]
    assert all(len(line) <= 100 for line in lines if line.startswith("0000"))
    assert "\x1b" not in result.stdout and not result.stderr


def test_json(giant):
    child, area = giant
    answer = json.loads(ksmwalk("map", child.pid, "--json").stdout)
    assert answer["pid"] == child.pid and answer["mapped"] > 1 << 45
    (piece,) = [piece for piece in answer["pieces"] if piece["start"] == area + (1 << 44)]
    assert piece["present"]["anonymous"] == 3 * P and not piece["mergeable"]
    assert sum(sum(p["present"].values()) for p in answer["pieces"] if not p["gap"]) == answer["present"]


def test_plot(giant, tmp_path):
    pytest.importorskip("matplotlib")
    child, _ = giant
    target = tmp_path / "map.png"
    result = ksmwalk("map", child.pid, "--plot", target)
    assert result.returncode == 0, result.stderr
    assert target.read_bytes().startswith(b"\x89PNG") and str(target) in result.stdout
    result = ksmwalk("map", child.pid, "--plot", tmp_path / "map.nonsense")
    assert result.returncode == 1 and "map.nonsense" in result.stderr and "Traceback" not in result.stderr


def test_without_matplotlib(giant, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no such thing here')")
    first = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = ksmwalk("map", giant[0].pid, "--plot", tmp_path / "x.png", env={"PYTHONPATH": first})
    assert result.returncode == 1 and "pip install 'ksmwalk[plot]'" in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_errors_are_one_line_each(capsys):
    with Living() as child:
        pid = child.pid
    result = ksmwalk("map", pid)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"ksmwalk map: process {pid} does not exist\n"
    assert cli.main(["map", str(os.getpid()), "--rows", "0"]) == 1
    assert "--rows 0" in capsys.readouterr().err
    for args, code in ((["map"], 2), ([], 2), (["--version"], 0)):
        with pytest.raises(SystemExit) as end:
            cli.main(args)
        assert end.value.code == code
    assert capsys.readouterr().out.startswith("ksmwalk 0.")
