"""The wide inner loops and their plain twins give the same answers, on tables with anything in them."""

import numpy as np
import pytest
from fuzz_images import random_entries
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import Host, PageTables, layout
from ksmwalk.ksm import _find
from ksmwalk.tables import _leaves

SWITCHES = [m.choose_wide for m in (_find, _leaves)]
PAGE = 4096


@pytest.fixture(autouse=True)
def wide_again():
    yield
    for choose in SWITCHES:
        choose(True)


def every(call):
    """The answer with the widest loops, with those of AVX2 and with the plain ones."""
    answers = []
    for wide in (True, 256, False):
        for choose in SWITCHES:
            choose(wide)
        answers.append(call())
    return answers


def random_row(seed):
    """A pte table: anything, all of one kind, or a few entries."""
    rng = np.random.default_rng(seed)
    row = random_entries(rng, 512, 1000)
    style = rng.integers(0, 4)
    if style == 0:
        row[rng.random(512) < 0.9] = 0
    elif style == 1:
        row[:] = (np.arange(512, dtype=np.uint64) << np.uint64(12)) | np.uint64(0x8000000000000067)
        row[rng.integers(0, 512, 3)] = random_entries(rng, 3, 1000)
    elif style == 2:
        row[row & np.uint64(0x101) != 0] = 0xFFFFFFFFFFFFF600
        row[rng.integers(0, 512, 2)] = 0x8000000000001067
    return row


VIEWS = st.sampled_from(["kernel", "hardware"])


@given(st.integers(0, 1 << 32), st.integers(0, 511), st.integers(1, 512), st.booleans(), VIEWS)
def test_mappings(seed, first, nr, runs, view):
    rows = np.zeros((5, 512), dtype=np.uint64)
    for row in (1, 2, 3):
        rows[row, 0] = (row + 1) << 12 | 0x67
    rows[4] = random_row(seed)
    tables = PageTables.from_image(rows, 1)
    start, end = first * PAGE, min(first + nr, 512) * PAGE
    wide, avx2, plain = every(lambda: tables.mappings(start, end, view, runs))
    assert wide.dtype == layout.MAPPING
    np.testing.assert_array_equal(wide, plain)
    np.testing.assert_array_equal(avx2, plain)
    out = np.zeros(len(wide), layout.MAPPING)  # no room for a wide store too many
    for answer in every(lambda: tables.mappings(start, end, view, runs, out=out).copy()):
        np.testing.assert_array_equal(answer, plain)


@given(st.integers(0, 1 << 32), st.integers(0, 511), st.integers(1, 512), VIEWS)
def test_columns(seed, first, nr, view):
    rows = np.zeros((5, 512), dtype=np.uint64)
    for row in (1, 2, 3):
        rows[row, 0] = (row + 1) << 12 | 0x67
    rows[4] = random_row(seed)
    tables = PageTables.from_image(rows, 1)
    start, end = first * PAGE, min(first + nr, 512) * PAGE
    at = np.arange(first, min(first + nr, 512))
    at = at[rows[4, at] & np.uint64(1 if view == "hardware" else 0x101) != 0]
    guard = np.uint64(0xDEAD)
    for found in every(lambda: tables.mappings(start, end, view, columns=True)):
        np.testing.assert_array_equal(found.addr, at * PAGE)
        np.testing.assert_array_equal(found.entry, rows[4, at])

    def into(size):
        room = np.full((2, 600), guard)
        tables.mappings(start, end, view, columns=True, out=(room[0, :size], room[1, :size]))
        return room

    for size in (len(at), 512):  # without room for wide stores, and with; nothing is written beyond what was asked for
        for room in every(lambda size=size: into(size)):
            np.testing.assert_array_equal(room[:, : len(at)], [at * PAGE, rows[4, at]])
            assert (room[:, max(len(at), min(size, nr)) :] == guard).all()


@given(st.integers(0, 1 << 32), st.integers(0, 511), st.integers(1, 512))
def test_the_finder(seed, first, nr):
    """Which pages the cursor finds in one table, and how many ptes it counts."""
    row = random_row(seed)
    frames = row >> np.uint64(12) & np.uint64((1 << 40) - 1)
    frames = np.where(row & np.uint64(1), frames, ~frames & np.uint64((1 << 40) - 1))
    row[(frames >= 1000) & (row & np.uint64(0x101) != 0)] = 0  # a frame that is not there is an error, tested elsewhere
    nr = min(nr, 512 - first)

    def scan():
        host = Host(1024)
        mm = host.new_mm()
        start = mm.mmap(512 * PAGE, addr=1 << 30)
        mm.write(start, 1)
        mm.madvise(start + first * PAGE, nr * PAGE, "mergeable")
        host._arrays["vmas"]["anon_vma"] = 1
        host._arrays["f_flags"][1:1000] = np.where(np.arange(1, 1000) % 3, layout.Frame.ANON, layout.Frame.FILE)
        at = int(np.flatnonzero((host.tables.rows & np.uint64(1 << 63)).any(axis=1))[0])
        host._arrays["rows"][at] = row
        out = []
        while (page := host.ksm.scan.scan_get_next_rmap_item()) is not None:
            out.append((page[0].address, page[1]))
        return out, host.ksm.scan.work

    wide, avx2, plain = every(scan)
    assert wide == avx2 == plain
    usable = (row & np.uint64(0x101) != 0) & (row & np.uint64(0x200) == 0)
    expected = [i for i in range(first, first + nr) if usable[i] and int(frames[i]) % 3]
    assert [(addr - (1 << 30)) // PAGE for addr, _ in wide[0]] == expected
