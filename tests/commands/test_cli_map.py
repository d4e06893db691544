"""`ksmwalk map`: the cutting of gaps, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from living import Living, sees_frames

from ksmwalk.commands import cli
from ksmwalk.commands import map as map_command
from ksmwalk.drawing import spaces
from ksmwalk.proc import pagemap
from ksmwalk.sources import VmaRecord, pictures
from ksmwalk.sources.reading import ProcessCapture

P, M = 4096, 2 << 20
HUGE = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_HUGE
ZERO = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_PFNZERO
FILE = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_FILE


def ksmwalk(*args, env=None):
    command = [sys.executable, "-m", "ksmwalk", *map(str, args)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)


def first_on_path(folder):
    """An environment in which modules of `folder` come before all others."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


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
    drawn = pictures.picture(what)
    assert [(row.start, row.end) for row in drawn.rows] == [
        (base + (1 << 30), base + (1 << 30) + 3 * P),
        (other, other + M + 10 * P),
        (other + 8 * M, other + 8 * M + 5 * P),
    ]
    assert [row.pages.tolist() for row in drawn.rows] == [[3, 0, 0, 0, 0, 0], [0, 512, 0, 10, 0, 0], [0, 0, 0, 0, 5, 0]]
    inner = (1 << 40) - (1 << 30) - 3 * P
    assert [(gap.size, gap.mapped) for gap in drawn.gaps] == [
        (1 << 30, 1 << 30),
        (other - base - (1 << 30) - 3 * P, inner),
        (6 * M + 502 * P, 6 * M + 502 * P),
        (M - 5 * P, M - 5 * P),
    ]
    assert spaces.gap_label(drawn.gaps[0]) == "1 GiB mapped, nothing present"
    assert spaces.gap_label(drawn.gaps[1]) == "1023.0 GiB mapped, nothing present; 30 TiB unmapped"
    assert spaces.marks(drawn.rows[0]) == "; all marked mergeable"
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
    drawn = pictures.picture(synthetic([vma(1 << 30, 1 << 40)], runs), rows)
    assert len(drawn.rows) == rows
    inside = [gap.size for gap in drawn.gaps if gap.end < 1 << 40]
    assert inside == [((index + 1) << 24) - P for index in range(10 - rows, 9)]


def test_nothing_present_and_nothing_mapped():
    drawn = pictures.picture(synthetic([vma(P, 1 << 30)], []))
    assert not drawn.rows and [(gap.start, gap.end) for gap in drawn.gaps] == [(P, 1 << 30)]
    assert pictures.picture(synthetic([], [])).pieces() == []
    with pytest.raises(ValueError, match="max_rows=0"):
        pictures.picture(synthetic([], []), 0)


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
    drawn = pictures.picture(what)
    (row,) = drawn.rows
    share, at = spaces.columns(drawn, row, width)
    present = share.sum(axis=0) * row.size / width / P
    assert present == pytest.approx([58, 0, 0, 4, 0, 0])
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
    assert lines[at].split() == [f"{area + (1 << 44):016x}", "███"]
    assert lines[at + 1].strip() == "12 KiB: 12 KiB anonymous"
    # exactly 16 TiB, or a little more where what is mapped below it joins on: where the kernel places it differs
    assert re.search(r"~~ 16(\.0)? TiB mapped, nothing present", lines[at - 1])
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in result.stdout and not result.stderr


def test_json(giant):
    child, area = giant
    answer = json.loads(ksmwalk("map", child.pid, "--json").stdout)
    assert answer["pid"] == child.pid and answer["mapped"] > 1 << 45
    (piece,) = [piece for piece in answer["pieces"] if piece["start"] == area + (1 << 44)]
    assert piece["present"]["anonymous"] == 3 * P and not piece["mergeable"]
    assert sum(sum(p["present"].values()) for p in answer["pieces"] if not p["gap"]) == answer["present"]


@pytest.mark.parametrize(
    ("name", "begin"), [("map.png", b"\x89PNG"), ("a map.SVG", b"<?xml"), ("x.y.pdf", b"%PDF"), ("-.png", b"\x89PNG")]
)
def test_plot_writes_the_file_it_was_given(giant, tmp_path, name, begin):
    pytest.importorskip("matplotlib")
    child, _ = giant
    result = ksmwalk("map", child.pid, f"--plot={tmp_path / name}")
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes().startswith(begin)
    assert result.stdout.startswith(f"{tmp_path / name}: ") and not result.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("map", "must end in .png, .svg or .pdf"),
        ("map.nonsense", "must end in .png, .svg or .pdf"),
        ("map.png.gz", "must end in .png, .svg or .pdf"),
        (".png", "must end in .png, .svg or .pdf"),
        ("", "must end in .png, .svg or .pdf"),
        ("folder.png", "is a directory"),
        ("nowhere/map.png", "there is no directory"),
        ("\x1b[2J.txt", "\\x1b[2J.txt: the name"),
    ],
)
def test_plot_refuses_what_it_cannot_write_as_it_is_called(tmp_path, capsys, name, why):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["map", str(os.getpid()), "--plot", f"{tmp_path}/{name}" if name else ""]) == 2
    out, err = capsys.readouterr()
    assert out == "" and why in err and err.count("\n") == 1 and "\x1b" not in err
    assert os.listdir(tmp_path) == ["folder.png"]


def test_an_old_picture_stays_until_the_new_one_is_drawn(giant, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from ksmwalk.commands import plot

    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def fails(figure, *args, **options):
        raise MemoryError

    monkeypatch.setattr(plot.Figure, "savefig", fails)
    drawn = pictures.picture(synthetic([vma(1 << 40, (1 << 40) + M)], [(1 << 40, 3, pagemap.PAGE_IS_PRESENT)]))
    with pytest.raises(MemoryError):
        plot.address_space(drawn, str(path))
    assert path.read_bytes() == b"old"


def test_labels_of_a_picture_stay_inside_it(tmp_path):
    """However long the names are, whatever letters they have."""
    pytest.importorskip("matplotlib")
    from ksmwalk.commands import plot

    names = ["W" * 240, "$x_{2$" * 8, "漢字" * 40, *(f"lib{number}.so" for number in range(60))]
    at = 1 << 40
    areas = [vma(at + n * 16 * M, at + n * 16 * M + 16 * M, name=name) for n, name in enumerate(names)]
    drawn = pictures.picture(synthetic(areas, [(at, len(names) * 4096 * 2, pagemap.PAGE_IS_PRESENT)]))
    with plot._missing_letters_as_boxes():
        figure = plot._figure(drawn)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        (axes,) = figure.axes
        shown = "".join(text.get_text() for text in axes.texts).replace(" ", "")
        assert all(name in shown for name in names[:2]) and "lib59.so" in shown and "..." not in shown
        width, height = figure.canvas.get_width_height()
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()


def test_without_matplotlib(giant, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no such thing here')")
    result = ksmwalk("map", giant[0].pid, "--plot", tmp_path / "x.png", env=first_on_path(tmp_path))
    assert result.returncode == 2 and "pip install 'ksmwalk[plot]'" in result.stderr
    assert not (tmp_path / "x.png").exists()


def spread(count, stride, at=1 << 40, pages=1, categories=pagemap.PAGE_IS_PRESENT):
    return [(at + n * stride, pages, categories) for n in range(count)]


def letters(drawn, width=80, shades=map_command.SHADES):
    lines = map_command.text(drawn, width, shades)
    return ["".join(part if isinstance(part, str) else part[0] for part in line).rstrip() for line in lines]


def test_equal_rows_are_folded():
    what = synthetic([vma(1 << 40, 1 << 45)], spread(20, 64 << 20))
    drawn = pictures.picture(what)
    (row,) = drawn.rows
    assert (row.times, row.stride, row.start, row.end) == (20, 64 << 20, 1 << 40, (1 << 40) + 19 * (64 << 20) + P)
    assert (row.each.size, row.each.pages.tolist()) == (P, [1, 0, 0, 0, 0, 0])
    assert spaces.row_label(row) == "20 x 4 KiB every 64 MiB: 80 KiB anonymous"
    assert "                  20 x 4 KiB every 64 MiB: 80 KiB anonymous" in letters(drawn)
    # what is left of the address space is one gap
    assert [(gap.start, gap.end) for gap in drawn.gaps] == [(row.end, 1 << 45)]
    piece = map_command.as_json(what, drawn, None)["pieces"][0]
    assert (piece["times"], piece["stride"], piece["present"]["anonymous"]) == (20, 64 << 20, 20 * P)


@pytest.mark.parametrize("different", ["size", "kind", "place", "stride", "mapping", "nothing"])
def test_only_equal_rows_are_folded(different):
    """Ten rows alike, but for the fifth."""
    at, stride, areas = 1 << 40, 64 << 20, [vma(1 << 40, 1 << 45)]
    runs = [run for n in range(10) for run in spread(1, 0, at + n * stride, 2)] if different != "place" else []
    if different == "size":
        runs[5] = (at + 5 * stride, 3, pagemap.PAGE_IS_PRESENT)
    elif different == "kind":
        runs[5] = (at + 5 * stride, 2, ZERO)
    elif different == "place":
        # two pages of five, not always the same ones
        for n in range(10):
            runs += [(at + n * stride, 1, pagemap.PAGE_IS_PRESENT), (at + n * stride + 4 * P, 1, pagemap.PAGE_IS_PRESENT)]
            runs.insert(-1, (at + n * stride + (2 if n == 5 else 3) * P, 1, pagemap.PAGE_IS_PRESENT))
    elif different == "stride":
        runs[5:] = [(start + 4 * P, n, what) for start, n, what in runs[5:]]
    elif different == "mapping":
        middle = at + 5 * stride
        areas = [vma(at, middle), vma(middle, middle + stride, "rd wr mg"), vma(middle + stride, 1 << 45)]
    drawn = pictures.picture(synthetic(areas, runs))
    folded = [row.times for row in drawn.rows]
    assert folded == {"nothing": [10], "stride": [5, 5]}.get(different, [5, 1, 4])
    assert sum(row.pages.sum() for row in drawn.rows) == sum(pages for _, pages, _ in runs)


def test_folds_next_to_each_other_share_no_row():
    at = 1 << 40
    runs = spread(6, 16 << 20, at) + spread(6, 64 << 20, at + 5 * (16 << 20) + (64 << 20))
    drawn = pictures.picture(synthetic([vma(at, 1 << 45)], runs))
    assert [(row.times, row.stride) for row in drawn.rows] == [(6, 16 << 20), (6, 64 << 20)]
    # three are no fold, and a second one that is left with three is none either
    runs = spread(3, 16 << 20, at) + spread(1, 0, at + (1 << 32))
    assert [row.times for row in pictures.picture(synthetic([vma(at, 1 << 45)], runs)).rows] == [1, 1, 1, 1]


def test_a_million_equal_rows_are_one():
    at = 1 << 40
    addr = np.arange(1_000_000, dtype=np.uint64) * np.uint64(32 << 20) + np.uint64(at)
    what = ProcessCapture(1, "made", [vma(at, at + (1 << 45))], addr, np.full(len(addr), pagemap.PAGE_IS_PRESENT, np.uint64))
    start = time.process_time()
    (row,) = pictures.picture(what).rows
    assert row.times == 1_000_000 and time.process_time() - start < 5
    assert spaces.row_label(row) == "1,000,000 x 4 KiB every 32 MiB: 3.8 GiB anonymous"


@pytest.mark.parametrize("seed", range(20))
def test_rows_and_gaps_cover_everything_once_whatever_is_folded(seed):
    rng = np.random.default_rng(seed)
    runs, at = [], 1 << 40
    for _ in range(rng.integers(1, 12)):
        step = int(rng.choice([8, 12, 16])) << 20
        pages, kind = int(rng.integers(1, 4)), int(rng.choice([pagemap.PAGE_IS_PRESENT, ZERO]))
        for _ in range(rng.integers(1, 9)):
            runs.append((at, pages, kind))
            at += step
    most = int(rng.integers(1, 30))
    what = synthetic([vma(1 << 40, at + (1 << 30))], runs)
    drawn = pictures.picture(what, most)
    assert len(drawn.rows) <= most
    edges = [(piece.start, piece.end) for piece in drawn.pieces()]
    assert edges[0][0] == 1 << 40 and edges[-1][1] == at + (1 << 30)
    assert all(before[1] == after[0] for before, after in zip(edges, edges[1:], strict=False))
    assert np.sum([row.pages for row in drawn.rows], axis=0).tolist() == spaces.total(drawn).tolist()
    for row in drawn.rows:
        one = row.each
        pages = drawn.runs.addr[row.first : row.last]
        if row.times > 1:
            # every one of them is as the first
            first = pages[: len(pages) // row.times]
            shifts = np.arange(row.times, dtype=np.uint64)[:, None] * np.uint64(row.stride)
            assert (pages.reshape(row.times, -1) == first + shifts).all()
        assert one.start == row.start and (one.pages * row.times).tolist() == row.pages.tolist()


def test_a_cell_is_as_dense_as_its_memory():
    at, cells = 1 << 40, 62
    every = 100  # pages a cell
    share = [0, 1, 25, 26, 50, 51, 99, 100]
    runs = [(at + (n * every) * P, pages, pagemap.PAGE_IS_PRESENT) for n, pages in enumerate(share) if pages]
    # the first and the last page of the row, which has exactly as many pages as the bar has room for
    runs = [(at, 1, pagemap.PAGE_IS_PRESENT), *runs, (at + (cells * every - 1) * P, 1, pagemap.PAGE_IS_PRESENT)]
    drawn = pictures.picture(synthetic([vma(at, at + cells * every * P)], runs), min_gap=1 << 40)
    (bar,) = [line[18:] for line in letters(drawn) if line.startswith(f"{at:016x}")]
    assert bar == "░░░▒▒▓▓█" + "·" * (cells - 9) + "░"
    (bar,) = [line[18:] for line in letters(drawn, shades=map_command.PLAIN_SHADES) if line.startswith(f"{at:016x}")]
    assert bar == "...::++#" + "_" * (cells - 9) + "."


def test_kinds_stand_below_a_row_that_has_several():
    at = 1 << 40
    drawn = pictures.picture(synthetic([vma(at, at + M)], [(at, 4, pagemap.PAGE_IS_PRESENT), (at + 6 * P, 2, ZERO)]))
    lines = letters(drawn)
    row = lines.index(f"{at:016x}  ████··██")
    assert lines[row + 1].strip() == "aaaa  zz" and lines[row + 2].strip() == "32 KiB: 16 KiB anonymous, 8 KiB zero page"


def test_no_label_is_cut_and_no_line_too_long():
    at = 1 << 40
    names = [f"/usr/lib/library-{number}.so.{number}" for number in range(40)] + ["/x/" + "n" * 250]
    areas = [vma(at + n * M, at + n * M + M, name=name) for n, name in enumerate(names)]
    lines = letters(pictures.picture(synthetic(areas, [(at, len(names) * 512, pagemap.PAGE_IS_PRESENT)])))
    assert max(map(len, lines)) <= 80
    words = "".join(line.strip() for line in lines)
    assert all(name.rsplit("/", 1)[-1] in words for name in names) and "..." not in words and "…" not in words


def test_the_total_bar_shows_every_kind():
    assert spaces.parts(np.array([1, 0, 10**6, 10**6, 0, 1]), 60).tolist() == [1, 0, 29, 29, 0, 1]
    assert spaces.parts(np.array([0, 0, 0, 0, 0, 0]), 60).tolist() == [0] * 6
    assert spaces.parts(np.array([5, 0, 0, 0, 0, 0]), 60).tolist() == [60, 0, 0, 0, 0, 0]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        pages = rng.integers(0, 10 ** rng.integers(1, 9), 6) * (rng.random(6) < 0.7)
        cells = spaces.parts(pages, 20)
        assert cells.sum() == (20 if pages.any() else 0) and ((cells > 0) == (pages > 0)).all()
    at = 1 << 40
    drawn = pictures.picture(synthetic([vma(at, at + M)], [(at, 3, pagemap.PAGE_IS_PRESENT), (at + 6 * P, 1, ZERO)]))
    assert f"{'total':18}" + "a" * 47 + "z" * 15 in letters(drawn)
    assert "16 KiB present: 12 KiB anonymous, 4 KiB zero page" in "".join(letters(drawn))


def test_pages_shared_by_fork_are_told_apart():
    if not sees_frames():
        pytest.skip("frames can't be seen")
    with Living() as child:
        area = child.do("new(64 * P)")
        child.do(f"libc.madvise({area}, 64 * P, NOHUGEPAGE)")
        child.do(f"write({area}, 32)")
        child.do("r, w = os.pipe()")
        child.do("os.fork() or (os.close(w), os.read(r, 1), os._exit(0))")
        child.do(f"write({area}, 10)")  # copied

        def present():
            answer = json.loads(ksmwalk("map", child.pid, "--json").stdout)
            (piece,) = [piece for piece in answer["pieces"] if not piece["gap"] and piece["start"] <= area < piece["end"]]
            return piece["present"]

        both = present()
        assert both["shared by fork"] >= 22 * P and both["anonymous"] >= 10 * P
        child.do("os.close(w)")
        child.do("os.wait()[1]")
        alone = present()
        assert alone["shared by fork"] == 0 and alone["anonymous"] >= both["anonymous"] + 22 * P


def test_where_only_exclusive_is_known_that_tells():
    what = synthetic([vma(1 << 40, (1 << 40) + M)], [(1 << 40, 4, pagemap.PAGE_IS_PRESENT)])
    assert pictures.page_kinds(what).tolist() == [spaces.SMALL] * 4
    what.exclusive = np.array([True, False, True, False])
    assert pictures.page_kinds(what).tolist() == [spaces.SMALL, spaces.SHARED] * 2
    what.ksm_stat = {"ksm_merging_pages": 1}  # it may be one of these: all that is known of KSM's is that others map them
    assert pictures.page_kinds(what).tolist() == [spaces.SMALL] * 4
    what.frame_counts = np.array([1, 1, 2, 2], np.uint64)
    assert pictures.page_kinds(what).tolist() == [spaces.SMALL, spaces.SMALL, spaces.SHARED, spaces.SHARED]


def test_errors_are_one_line_each(capsys):
    with Living() as child:
        pid = child.pid
    result = ksmwalk("map", pid)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"ksmwalk map: process {pid} does not exist\n"
    assert cli.main(["map", str(os.getpid()), "--rows", "0"]) == 2
    assert "--rows 0" in capsys.readouterr().err
    for args, code in ((["map"], 2), ([], 2), (["--version"], 0)):
        with pytest.raises(SystemExit) as end:
            cli.main(args)
        assert end.value.code == code
    assert capsys.readouterr().out.startswith("ksmwalk 0.")
