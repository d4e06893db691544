"""Mappings as columns and in several threads: what one thread gives as records, whatever the entries hold."""

import pickle

import fuzz_images
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import entries as E
from reference import tables as slow
from tabletools import build, plans, ranges

from ksmwalk import BadEntryError, Host, PageTables, entries, layout
from ksmwalk.tables import _leaves, _mappings

PAGE = 4096
VIEWS = st.sampled_from(["kernel", "hardware"])


@pytest.fixture(autouse=True)
def as_before():
    yield
    _mappings.cut_finely(False)
    _leaves.choose_wide(True)


def raw_entry(model, addr, level):
    """The entry that maps an address, found by a descent of its own."""
    row, at = model.root, model.levels
    while at > level:
        row = E.pfn(model.table(row)[addr // E.size(at) % 512], at)
        at -= 1
    return model.table(row)[addr // E.size(level) % 512]


@given(st.data(), st.sampled_from([4, 5]), VIEWS, st.sampled_from([False, 256, True]))
def test_columns_are_what_the_slow_reference_finds(data, levels, view, wide):
    tables = build(PageTables(levels), data.draw(plans(levels)))
    model = slow.Tables(tables.rows, tables.root, tables.levels)
    start, end = data.draw(ranges(levels))
    _leaves.choose_wide(wide)
    found = tables.mappings(start, end, view, columns=True)
    expected = model.mappings(start, end, view)
    assert found.addr.tolist() == [m[0] for m in expected]
    assert found.level.tolist() == [m[3] for m in expected]
    assert found.entry.tolist() == [raw_entry(model, m[0] % (1 << 12 + 9 * levels), m[3]) for m in expected]


def images(seed):
    """One image of any kind: random, mutated, honest; or of a few tables that many entries share."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng, next(fuzz_images.random_images(rng, 1))
    if kind < 3:
        return rng, next(fuzz_images.mutated_images(rng, 1))
    rows = fuzz_images.HONEST.copy()
    rows[3, : rng.integers(1, 60)] = np.uint64(6 << 12 | 0x67)
    rows[3, rng.integers(0, 60, 4)] = fuzz_images.random_entries(rng, 4, len(rows))
    rows[2, : rng.integers(1, 9)] = np.uint64(5 << 12 | 0x67)
    rows[5, rng.integers(0, 512, 90)] = np.uint64(7 << 12 | 0x67)
    return rng, rows


def tables_of(rng, rows):
    """PageTables of an image, read in one of many ways."""
    root, frames = 0, None
    if rng.random() < 0.2:
        frames = np.arange(len(rows), dtype=np.uint64)
        frames[rng.integers(0, len(rows))] = 1 << 39
        root = int(frames[0])
    levels = 4 if rng.random() < 0.7 else 5
    max_pfn = int(rng.choice([0, 0, 6 << 9, 1 << 20]))
    return PageTables.from_image(rows, root, levels, frames, max_pfn=max_pfn)


def some_range(rng, tables):
    """Everything, or a piece with corners at anything."""
    if rng.random() < 0.5:
        return 0, tables.end
    at = np.sort(rng.integers(0, 1 << 31, 2) * PAGE)
    return int(at[0]), int(at[1])


def asked(tables, **how):
    """The answer in bytes, or the error in words; what was noted; what was counted."""
    tables.forget_bad()
    tables._work[:] = 0
    try:
        found = tables.mappings(**how)
    except (ValueError, BadEntryError) as error:
        answer = (type(error), str(error))
    else:
        answer = [a.tobytes() for a in (found.addr, found.entry, found.level)] if how.get("columns") else found.tobytes()
    return answer, tables.bad_count, tables.bad.tobytes(), tables._work.tobytes()


@given(st.integers(0, 1 << 32), VIEWS)
def test_columns_hold_what_records_hold(seed, view):
    rng, rows = images(seed)
    tables = tables_of(rng, rows)
    start, end = some_range(rng, tables)
    how = {"start": start, "end": end, "view": view, "limit": 1 << 18}
    try:
        records = tables.mappings(**how)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            tables.mappings(**how, columns=True)
        return
    noted = tables.bad.tobytes()
    tables.forget_bad()
    found = tables.mappings(**how, columns=True)
    assert tables.bad.tobytes() == noted
    np.testing.assert_array_equal(found.addr, records["addr"])
    np.testing.assert_array_equal(found.level, records["level"])
    for level in (1, 2, 3):
        here = found.level == level
        np.testing.assert_array_equal(entries.pfn(found.entry[here], level), records["pfn"][here])
        np.testing.assert_array_equal(
            found.entry[here] & ~np.uint64(0xFFFFFFFFFF000 & ~0x1000), records["flags"][here] | (
                found.entry[here] & np.uint64(0x1000))
        )  # fmt: skip


@given(st.integers(0, 1 << 32), VIEWS, st.sampled_from(["records", "runs", "columns"]), st.integers(2, 5))
def test_several_threads_give_what_one_gives(seed, view, form, threads):
    rng, rows = images(seed)
    tables = tables_of(rng, rows)
    tables.on_bad = "raise" if rng.random() < 0.2 else "report"
    start, end = some_range(rng, tables)
    how = {"start": start, "end": end, "view": view, "runs": form == "runs", "columns": form == "columns"}
    how["limit"] = int(rng.choice([3, 1 << 18]))
    one = asked(tables, **how)
    _mappings.cut_finely(True)
    assert asked(tables, **how, threads=threads) == one


@given(st.integers(0, 1 << 32), st.sampled_from(["records", "runs", "columns"]), st.integers(0, 2))
def test_threads_into_an_array_that_is_just_long_enough_or_not(seed, form, missing):
    rng, rows = images(seed)
    tables = tables_of(rng, rows)
    how = {"runs": form == "runs", "columns": form == "columns", "end": 1 << 40}
    n = len(tables.mappings(**how | {"columns": False}))
    n = max(0, n - missing)
    out = (np.zeros(n, np.uint64), np.zeros(n, np.uint64)) if form == "columns" else np.zeros(n, layout.MAPPING)
    one = asked(tables, **how, out=out)
    _mappings.cut_finely(True)
    assert asked(tables, **how, out=out, threads=3) == one


def test_many_threads_on_much():
    """Cut as it is in earnest, over more units than threads can take at once."""
    rng = np.random.default_rng(5)
    rows = np.zeros((2048, 512), np.uint64)
    rows[1, 3] = np.uint64(2 << 12 | 0x67)
    rows[2, 7:11] = (np.arange(3, 7, dtype=np.uint64) << np.uint64(12)) | np.uint64(0x67)
    rows[3:7] = (rng.permutation(2041)[:2048].astype(np.uint64).repeat(2)[: 4 * 512].reshape(4, 512) + np.uint64(7)) << np.uint64(
        12
    ) | np.uint64(0x67)
    rows[7:] = np.where(rng.random((2041, 512)) < 0.3, np.uint64(0x8000000000000867), np.uint64(0)) | (
        rng.integers(0, 1 << 24, (2041, 512)).astype(np.uint64) << np.uint64(12)
    )
    rows[9, 3], rows[4, 100], rows[5, 9], rows[6, 511] = 0x999 << 12 | 0xE7, 0x99999 << 12 | 0x67, 77 << 21 | 0xE7, 0
    tables = PageTables.from_image(rows, 1, max_pfn=(1 << 24) - 5)
    for how in ({}, {"runs": True}, {"columns": True}, {"view": "hardware"}):
        one = asked(tables, **how)
        assert one[1] >= 1
        for threads in (2, 3, 16, 256):
            assert asked(tables, **how, threads=threads) == one


def test_threads_in_the_tables_of_a_host():
    host = Host(1 << 17)
    mm = host.new_mm()
    start = mm.mmap(256 << 20, addr=1 << 40)
    mm.populate(start, 256 << 20, np.arange(1 << 16, dtype=np.uint64))
    mm.munmap(start + (77 << 20), 5 << 20)
    one = mm.tables.mappings()
    assert len(one) == (256 - 5) << 8
    np.testing.assert_array_equal(mm.tables.mappings(threads=4), one)
    np.testing.assert_array_equal(mm.tables.mappings(threads=4, columns=True).addr, one["addr"])


def test_records_that_join_need_no_room():
    """Two large leaves that go on are one run, and one record's room is enough."""
    tables = PageTables()
    tables.map_range(1 << 30, [512, 1024], level=2)
    out = np.zeros(1, layout.MAPPING)
    assert tables.mappings(runs=True, out=out)["nr"].tolist() == [2]


def test_what_is_refused():
    tables = PageTables()
    tables.map_range(1 << 30, [7, 8])
    column = np.zeros(8, np.uint64)
    with pytest.raises(ValueError, match="no room for runs"):
        tables.mappings(columns=True, runs=True)
    for threads in (0, 257, -1):
        with pytest.raises(ValueError, match="threads"):
            tables.mappings(threads=threads)
    for out in (column, np.zeros(8, layout.MAPPING), (column,), (column, np.zeros(8, np.int64)), (column, column[::2])):
        with pytest.raises(TypeError, match="out "):
            tables.mappings(columns=True, out=out)
    for out in ((column, np.zeros(9, np.uint64)), (column, column)):
        with pytest.raises(ValueError, match="out"):
            tables.mappings(columns=True, out=out)
    with pytest.raises(ValueError, match="out of 1 records"):
        tables.mappings(columns=True, out=(column[:1], np.zeros(1, np.uint64)))
    assert not column[1:].any()


def test_columns_can_be_taken_apart_and_kept():
    tables = PageTables()
    tables.map_range(1 << 30, [512], level=2)
    tables.map_range(1 << 31, [7, 8])
    found = tables.mappings(columns=True)
    addr, entry = found
    assert addr is found.addr and entry is found.entry and found.level.tolist() == [2, 1, 1]
    assert repr(found) == "<Columns addr, entry of 3 mappings>"
    again = pickle.loads(pickle.dumps(found))
    assert again.level.tolist() == [2, 1, 1] and again.addr.tolist() == addr.tolist()
