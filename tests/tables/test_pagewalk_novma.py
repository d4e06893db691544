"""walk_page_range_novma against the reference: the same calls in the same order with the same arguments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as slow_tables
from reference import walk as slow
from tabletools import FLAGS, PAGE, PMD, PUD, build, plans, ranges
from walktools import ALL, FastSide, SlowSide, scripts

from ksmwalk import MmWalkOps, PageTables, walk_page_range_novma


@given(st.data(), st.sampled_from([4, 5]))
def test_call_logs_are_equal(data, levels):
    plan = data.draw(plans(levels))
    start, end = data.draw(ranges(levels))
    names = data.draw(st.sets(st.sampled_from(ALL), min_size=1))
    script = data.draw(scripts())
    tables = build(PageTables(levels), plan)
    model = slow_tables.Tables(tables.rows.copy(), tables.root, levels)
    fast_side, slow_side = FastSide(script), SlowSide(script)
    want = slow.walk_page_range_novma(model, start, end, slow_side.callbacks(names), "private")
    got = walk_page_range_novma(tables, start, end, MmWalkOps(**fast_side.callbacks(names)), "private")
    assert fast_side.log == slow_side.log
    assert got == want
    after = [tuple(int(m[f]) for f in ("addr", "pfn", "flags", "level")) for m in tables.mappings()]
    assert after == [m[:4] for m in model.mappings(0, 1 << 64)]


def two_pages():
    tables = PageTables()
    tables.map(PUD, 5)
    tables.map(PUD + PAGE, 6)
    return tables


def test_empty_ranges_are_einval():
    ops = MmWalkOps(pte_entry=lambda *a: 0)
    assert walk_page_range_novma(two_pages(), PUD, PUD, ops) == -22
    assert walk_page_range_novma(two_pages(), PUD + PAGE, PUD, ops) == -22


@pytest.mark.parametrize("value", [1, 7, -1, -14, 2**31 - 1, -(2**31)])
def test_what_a_callback_returns_comes_out(value):
    seen = []

    def pte_entry(entry, addr, next, walk):
        seen.append(addr)
        return value if addr == PUD + PAGE else 0

    assert walk_page_range_novma(two_pages(), PUD, PUD + PMD, MmWalkOps(pte_entry=pte_entry)) == value
    assert seen == [PUD, PUD + PAGE]


def test_none_counts_as_zero_and_other_things_are_refused():
    assert walk_page_range_novma(two_pages(), PUD, PUD + PMD, MmWalkOps(pte_entry=lambda *a: None)) == 0
    with pytest.raises(TypeError):
        walk_page_range_novma(two_pages(), PUD, PUD + PMD, MmWalkOps(pte_entry=lambda *a: "stop"))


@pytest.mark.parametrize("name", ["pgd_entry", "p4d_entry", "pud_entry", "pmd_entry", "pte_entry", "pte_hole"])
def test_an_exception_comes_out_unchanged(name):
    error = ZeroDivisionError("mine")

    def callback(*args):
        raise error

    tables = two_pages()
    before = tables.rows.copy()
    with pytest.raises(ZeroDivisionError) as caught:
        walk_page_range_novma(tables, 0, 4 * PUD, MmWalkOps(**{name: callback, "pte_entry": callback}))
    assert caught.value is error
    assert (tables.rows == before).all()
    assert walk_page_range_novma(tables, 0, 4 * PUD, MmWalkOps(pte_entry=lambda *a: 0)) == 0


def test_ptes_is_a_view_of_the_table():
    tables = two_pages()

    def pmd_entry(entry, addr, next, walk):
        ptes = entry.ptes
        assert len(ptes) == 512 and ptes.dtype == "uint64"
        ptes[2] = (9 << 12) | FLAGS
        return 0

    assert walk_page_range_novma(tables, PUD, PUD + PMD, MmWalkOps(pmd_entry=pmd_entry)) == 0
    assert int(tables.lookup(PUD + 2 * PAGE)["pfn"]) == 9


def test_nothing_below_a_hole_is_touched_and_big_holes_are_one_call():
    calls = []
    ops = MmWalkOps(pmd_entry=lambda *a: 0, pte_hole=lambda addr, next, depth, walk: calls.append((addr, next, depth)))
    assert walk_page_range_novma(two_pages(), 0, 1 << 47, ops) == 0
    assert calls[0] == (0, PUD, 2)
    assert calls[1] == (PUD + PMD, PUD + 2 * PMD, 3)
    assert calls[-1] == ((1 << 47) - (1 << 39), 1 << 47, 0)
    assert len(calls) == 1 + 511 + 510 + 255


def test_ops_must_be_callable():
    with pytest.raises(TypeError, match="3"):
        walk_page_range_novma(two_pages(), PUD, PUD + PMD, MmWalkOps(pte_entry=3))
    with pytest.raises(TypeError, match="no_such_entry"):
        MmWalkOps(no_such_entry=lambda *a: 0)


@given(st.data(), st.sampled_from([4, 5]))
def test_the_upper_half_is_the_lower_one_moved(data, levels):
    """The same tables hung into the upper half of an image: the same calls, at canonical addresses."""
    plan = data.draw(plans(levels, kinds=["page", "prot_none", "swap", "huge", "gigantic"]))
    start, end = data.draw(ranges(levels))
    rows = build(PageTables(levels), plan).rows.copy()
    half = 1 << (47 if levels == 4 else 56)
    rows[1, 256:], rows[1, :256] = rows[1, :256].copy(), 0

    def walk(tables, low):
        log = []
        ops = MmWalkOps(
            pmd_entry=lambda e, a, n, w: log.append((a, n, e.value)), pud_entry=lambda e, a, n, w: log.append((a, n)),
            pte_hole=lambda a, n, d, w: log.append((a, n, d)),
        )
        assert walk_page_range_novma(tables, low + start, low + end, ops) == 0
        return [(a - low, n - low, *rest) for a, n, *rest in log]

    upper = PageTables.from_image(rows, 1, levels)
    assert walk(build(PageTables(levels), plan), 0) == walk(upper, (1 << 64) - half)


def test_a_range_over_both_halves_leaves_out_what_is_not_canonical():
    calls = []
    ops = MmWalkOps(pgd_entry=lambda *a: 0, pte_hole=lambda addr, next, depth, walk: calls.append((addr, next)))
    assert walk_page_range_novma(PageTables(), 0, 1 << 64, ops) == 0
    assert len(calls) == 512
    assert calls[255][1] == 1 << 47 and calls[256][0] == (1 << 64) - (1 << 47) and calls[511][1] == 1 << 64
    calls.clear()
    assert walk_page_range_novma(PageTables(), 1 << 47, 1 << 50, ops) == 0
    assert calls == []
