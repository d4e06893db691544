"""map, unmap, lookup, split and mappings of PageTables against the slow reference, on random tables of all kinds."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as slow
from tabletools import FLAGS, KINDS, PAGE, PMD, PUD, build, corners, entry_at, plans, ranges

from ksmwalk import PageTables

VIEWS = ("kernel", "hardware")


def reference(tables):
    return slow.Tables(tables.rows, tables.root, tables.levels)


def as_tuples(mappings, with_nr=False):
    """MAPPING records as the reference gives them; permissions only where the hardware has any."""
    out = []
    for m in mappings:
        perms = int(m["perms"]) if int(m["flags"]) & 1 else None
        t = (int(m["addr"]), int(m["pfn"]), int(m["flags"]), int(m["level"]), perms)
        out.append((*t, int(m["nr"])) if with_nr else t)
    return out


def expected(mappings):
    return [(*m[:4], m[4] if m[2] & 1 else None, *m[5:]) for m in mappings]


def frame_of(record, addr):
    """Frame of the 4 KiB page at an address, by the record of the leaf that maps it."""
    return int(record["pfn"]) + (addr - int(record["addr"])) // PAGE


@given(st.data(), st.sampled_from([4, 5]))
def test_mappings_and_lookup(data, levels):
    plan = data.draw(plans(levels))
    tables = build(PageTables(levels), plan)
    model = reference(tables)
    start, end = data.draw(ranges(levels))
    for view in VIEWS:
        want = expected(model.mappings(0, 1 << 64, view))
        assert as_tuples(tables.mappings(view=view)) == want
        part = expected(model.mappings(start, end, view))
        assert as_tuples(tables.mappings(start, end, view)) == part
        runs = [(*r[:4], r[4] if r[2] & 1 else None, r[5]) for r in slow.runs(model.mappings(start, end, view))]
        assert as_tuples(tables.mappings(start, end, view, runs=True), with_nr=True) == runs
        assert as_tuples(tables.mappings(start, end, view, limit=len(part))) == part
        if part:
            with pytest.raises(ValueError, match=f"more than {len(part) - 1} "):
                tables.mappings(start, end, view, limit=len(part) - 1)
        for leaf in plan:
            for addr in {leaf.addr, leaf.end - PAGE, leaf.end, max(leaf.addr - PAGE, 0)}:
                if addr >= 1 << (47 if levels == 4 else 56):
                    continue
                got, w = tables.lookup(addr, view), model.lookup(addr, view)
                assert (got is None) == (w is None), hex(addr)
                if got is not None:
                    assert (frame_of(got, addr), int(got["level"])) == (w[0], w[2]), hex(addr)


@given(st.data(), st.sampled_from([4, 5]))
def test_unmap_leaves_the_rest_and_frees_tables(data, levels):
    plan = data.draw(plans(levels, kinds=[k for k, v in KINDS.items() if v[2] is None and v[0] < 3]))
    tables = PageTables(levels)
    empty = tables.nr_tables
    build(tables, plan)
    full = tables.nr_tables
    start, end = data.draw(ranges(levels))
    before = reference(tables)
    want = {a: (p, f & ~0x1080) for a, p, f, lv, _ in pages(before) if not start <= a < end}
    tables.unmap(start, end)
    got = {a: (p, f & ~0x1080) for a, p, f, lv, _ in pages(reference(tables))}
    assert got == want
    tables.unmap(0, 1 << (47 if levels == 4 else 56))
    assert len(tables.mappings()) == 0 and tables.nr_tables == empty
    build(tables, plan)
    assert tables.nr_tables == full, "freed rows are used again"


def pages(model):
    """The mappings of a model as 4 KiB pages."""
    for addr, pfn, flags, level, perms in model.mappings(0, 1 << 64):
        for i in range({1: 1, 2: 512}[level]):
            yield addr + i * PAGE, pfn + i, flags, level, perms


LARGE = ["huge", "huge_pat", "huge_prot_none", "gigantic", "gigantic_pat"]


@given(st.data(), st.sampled_from([4, 5]), st.sampled_from(LARGE))
def test_split_keeps_pages_and_flags(data, levels, kind):
    level, flags, _ = KINDS[kind]
    size = {2: PMD, 3: PUD}[level]
    addr = data.draw(st.sampled_from(corners(levels))) // size * size
    pfn = data.draw(st.integers(0, 500)) * (size // PAGE)
    tables = PageTables(levels)
    tables.map(addr, pfn, flags, level)
    before = tables.nr_tables
    model = reference(tables)
    row, index = model.root, None
    for at in range(levels, level, -1):
        row = slow.E.pfn(model.table(row)[addr // slow.E.size(at) % 512], at)
    index = addr // slow.E.size(level) % 512
    model.split(model.table(row), index, level)
    tables.split(addr)
    assert tables.nr_tables == before + 1
    assert as_tuples(tables.mappings()) == expected(model.mappings(0, 1 << 64))


@given(st.data(), st.sampled_from([4, 5]))
def test_map_range_is_map_page_by_page(data, levels):
    first = data.draw(st.sampled_from(corners(levels))) + data.draw(st.integers(0, 511)) * PAGE
    top = 1 << (47 if levels == 4 else 56)
    nr = data.draw(st.integers(1, 1200))
    nr = min(nr, (top - first) // PAGE)
    pfns = data.draw(st.one_of(st.none(), st.randoms(use_true_random=False)))
    array = np.arange(nr, dtype=np.uint64) + np.uint64(7)
    if pfns is not None:
        np.random.default_rng(pfns.randint(0, 1000)).shuffle(array)
    a, b = PageTables(levels), PageTables(levels)
    a.map_range(first, array, FLAGS)
    for i, pfn in enumerate(array.tolist()):
        b.map(first + i * PAGE, pfn, FLAGS)
    np.testing.assert_array_equal(a.mappings(), b.mappings())
    assert a.nr_tables == b.nr_tables


def test_bad_calls_name_the_value_and_change_nothing():
    tables = PageTables()
    tables.map(PMD, 5)
    before = tables.rows.copy()
    for call, names in [
        (lambda: tables.map(123, 5), "0x7b"),
        (lambda: tables.map(PMD, 6), "0x200000"),
        (lambda: tables.map(PAGE, 1 << 40), str(1 << 40)),
        (lambda: tables.map(PAGE, 512, FLAGS, 2), "0x1000"),
        (lambda: tables.map(1 << 48, 5), hex(1 << 48)),
        (lambda: tables.map(0, 5, FLAGS, 4), "4"),
        (lambda: tables.split(0), "0x0"),
    ]:
        with pytest.raises(ValueError, match=names):
            call()
    with pytest.raises(ValueError, match="3"):
        PageTables(levels=3)
    np.testing.assert_array_equal(tables.rows, before)


def test_save_load_pickle(tmp_path):
    tables = PageTables(5)
    tables.map_range(PUD - PMD, np.arange(1000, dtype=np.uint64) + np.uint64(1), FLAGS)
    tables.map(3 * PUD, 512 * 512, FLAGS | 0x80, 3)
    tables.save(tmp_path / "t")
    for other in (PageTables.load(tmp_path / "t"), pickle.loads(pickle.dumps(tables))):
        np.testing.assert_array_equal(other.mappings(), tables.mappings())
        assert (other.levels, other.root, other.nr_tables) == (tables.levels, tables.root, tables.nr_tables)
        other.map(0, 9)
        assert tables.lookup(0) is None
    assert not list((tmp_path / "t").glob("*.pkl"))


def test_the_last_page_of_the_address_space():
    """The end of the last entry is 2**64: nothing may overflow there."""
    rows = np.zeros((5, 512), dtype=np.uint64)
    rows[1, 511], rows[2, 511], rows[3, 511] = (np.uint64(n << 12 | 0x67) for n in (2, 3, 4))
    rows[4, 511] = np.uint64(77 << 12 | FLAGS)
    tables = PageTables.from_image(rows, 1)
    last = (1 << 64) - PAGE
    assert tables.mappings()["addr"].tolist() == [last]
    assert tables.mappings(last, 1 << 64)["pfn"].tolist() == [77]
    assert int(tables.lookup(last)["pfn"]) == 77
    assert len(tables.mappings(0, last)) == 0


@given(st.data(), st.sampled_from([4, 5]), st.booleans())
def test_an_output_of_exactly_the_right_length_is_long_enough(data, levels, runs):
    tables = build(PageTables(levels), data.draw(plans(levels)))
    want = tables.mappings(runs=runs)
    out = np.zeros(len(want), dtype=want.dtype)
    np.testing.assert_array_equal(tables.mappings(runs=runs, out=out), want)
    if len(want):
        with pytest.raises(ValueError, match="too short"):
            tables.mappings(runs=runs, out=out[:-1])


def test_a_large_entry_that_is_not_present_is_not_split():
    tables = PageTables()
    tables.map(PUD, 1 << 18, FLAGS | 0x80, 3)
    row, index = entry_at(tables.rows, tables.root, tables.levels, PUD, 3)
    tables._rows[row, index] = int(tables.rows[row, index]) & ~1
    before = tables.nr_tables
    with pytest.raises(ValueError, match="no large leaf"):
        tables.split(PUD)
    assert tables.nr_tables == before
