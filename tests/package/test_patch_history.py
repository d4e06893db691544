"""Every row of examples/patch_history.py: what each version of the patch got wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import patch_history  # noqa: E402 - found through the line above

PAGES = 20 + 2 * 512 + 16 + 1


@pytest.fixture(scope="module")
def rows():
    return {row.version: row for row in patch_history.table()}


def test_the_right_answer_is_the_compiled_cursors():
    want = patch_history.expected()
    assert len(want) == PAGES
    assert want == sorted(want)


def test_v1_finds_everything_and_splits_every_huge_page(rows):
    row = rows["v1"]
    assert (row.found, row.missed, row.split, row.stopped_by) == (PAGES, 0, 2, None)
    assert row.callbacks > 10 * 512, "a callback for every pte of every table"


def test_v2_never_scans_huge_pages(rows):
    row = rows["v2"]
    assert (row.found, row.missed, row.split, row.stopped_by) == (PAGES - 1024, 1024, 0, None)


def test_v3_trips_over_the_guard_marker(rows):
    row = rows["v3"]
    assert row.stopped_by == f"Bad page map at {patch_history.ODD + 30 * 4096:#x}: pte fffffffffffff600"
    assert (row.found, row.missed, row.split) == (PAGES - 1, 1, 0)


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_v4_and_v5_are_right(rows, version):
    row = rows[version]
    assert (row.found, row.missed, row.split, row.stopped_by, row.wrong) == (PAGES, 0, 0, None, "nothing")
    assert row.callbacks < rows["v1"].callbacks / 5


def test_the_example_prints_its_table(rows):
    example = str(EXAMPLES / "patch_history.py")
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(rows)
    for line, row in zip(lines[1:], rows.values(), strict=True):
        assert line.endswith(row.wrong) and f" {row.found} " in line
