"""The walks with vmas against the reference: test_walk, gaps, pfnmap, hugetlb, splits, framing, return codes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as slow_tables
from reference import walk as slow
from tabletools import KINDS, PAGE, PMD, PUD, plans, ranges
from walktools import ALL, FRAMING, FastSide, SlowSide, scripts

from ksmwalk import Host, MmWalkOps, walk_page_range, walk_page_range_vma, walk_page_vma

TOP = 1 << 47
#: leaves that the tables of an ordinary vma may hold and that need no raw write
PLAIN = [k for k, v in KINDS.items() if v[2] is None and v[0] < 3]


@st.composite
def address_spaces(draw):
    """(levels, vmas as (start, end, kind), plan of leaves inside the ordinary ones)."""
    levels = draw(st.sampled_from([4, 5]))
    plan = [leaf for leaf in draw(plans(levels, kinds=PLAIN)) if leaf.end <= TOP - PMD]
    vmas = []
    floor = 16 * PAGE
    for leaf in plan:
        before = draw(st.sampled_from([0, 0, PAGE, 5 * PAGE, PMD]))
        after = draw(st.sampled_from([0, PAGE, 3 * PAGE, PMD + PAGE]))
        start, end = max(leaf.addr - before, floor), leaf.end + after
        if start > leaf.addr or end <= start or any(start < e and s < end for s, e, _ in vmas):
            continue
        vmas.append((start, end, draw(st.sampled_from(["anon", "anon", "anon", "pfnmap"]))))
        floor = end
    inside = [leaf for leaf in plan if any(s <= leaf.addr and leaf.end <= e for s, e, _ in vmas)]
    return levels, vmas, inside


def make(levels, vmas, plan):
    """A Host with one address space of these vmas and leaves, and the reference's picture of it."""
    host = Host(4096, levels=levels)
    mm = host.new_mm()
    for start, end, kind in vmas:
        mm.mmap(end - start, addr=start, kind=kind)
    for leaf in plan:
        level, flags, _ = KINDS[leaf.kind]
        mm.tables.map(leaf.addr, leaf.pfn, flags, level)
    model = slow_tables.Tables(host.tables.rows.copy(), mm.tables.root, levels)
    slow_vmas = [slow.Vma(v.vm_start, v.vm_end, mm="mm", pfnmap=bool(v.vm_flags & 0x400)) for v in mm.vmas]
    return host, mm, model, slow_vmas


def leaves(mm):
    return [tuple(int(m[f]) for f in ("addr", "pfn", "flags", "level")) for m in mm.tables.mappings()]


@given(st.data(), address_spaces(), scripts())
def test_walk_page_range(data, space, script):
    host, mm, model, slow_vmas = make(*space)
    start, end = data.draw(ranges(4))
    names = data.draw(st.sets(st.sampled_from([*ALL, *FRAMING]), min_size=1))
    fast_side, slow_side = FastSide(script), SlowSide(script)
    want = slow.walk_page_range(model, "mm", slow_vmas, start, end, slow_side.callbacks(names), 7)
    got = walk_page_range(mm, start, end, MmWalkOps(**fast_side.callbacks(names)), 7)
    assert fast_side.log == slow_side.log
    assert got == want
    assert leaves(mm) == [m[:4] for m in model.mappings(0, 1 << 64)]


@given(st.data(), address_spaces(), scripts())
def test_walks_of_one_vma(data, space, script):
    host, mm, model, slow_vmas = make(*space)
    if not slow_vmas:
        return
    i = data.draw(st.integers(0, len(slow_vmas) - 1))
    vma, slow_vma = mm.vmas[i], slow_vmas[i]
    names = data.draw(st.sets(st.sampled_from([*ALL, *FRAMING]), min_size=1))
    fast_side, slow_side = FastSide(script), SlowSide(script)
    ops = MmWalkOps(**fast_side.callbacks(names))
    if data.draw(st.booleans()):
        want = slow.walk_page_vma(model, slow_vma, slow_side.callbacks(names))
        got = walk_page_vma(vma, ops)
    else:
        pages = (slow_vma.vm_end - slow_vma.vm_start) // PAGE
        a, b = data.draw(st.integers(-1, pages + 1)), data.draw(st.integers(-1, pages + 1))
        start, end = (slow_vma.vm_start + i * PAGE for i in (a, b))
        want = slow.walk_page_range_vma(model, slow_vma, start, end, slow_side.callbacks(names))
        got = walk_page_range_vma(vma, start, end, ops)
    assert fast_side.log == slow_side.log
    assert got == want
    assert leaves(mm) == [m[:4] for m in model.mappings(0, 1 << 64)]


@pytest.mark.parametrize(
    "names", [("hugetlb_entry",), ("hugetlb_entry", "pte_hole"), ("pte_entry", "pmd_entry"), ("pte_hole",)]
)
def test_hugetlb_areas_step_by_their_page_size(names):
    host = Host(8192)
    mm = host.new_mm()
    start = mm.mmap(PUD + 4 * PMD, addr=PUD, kind="hugetlb")
    mm.write(start + PMD, 5)
    mm.write(start + 2 * PMD, 6)
    model = slow_tables.Tables(host.tables.rows.copy(), mm.tables.root, 4)
    vma = mm.vmas[0]
    assert vma.page_size == PMD
    slow_vma = slow.Vma(start, start + PUD + 4 * PMD, mm="mm", hugetlb=True, page_size=PMD)
    script = {"seed": 1, "actions": False, "writes": False, "stop": 0, "stop_one_in": 3}
    fast_side, slow_side = FastSide(script), SlowSide(script)
    a, b = start + 5 * PAGE, start + PUD + 3 * PMD + PAGE
    assert slow.walk_page_range_vma(model, slow_vma, a, b, slow_side.callbacks(names)) == 0
    assert walk_page_range_vma(vma, a, b, MmWalkOps(**fast_side.callbacks(names))) == 0
    assert fast_side.log == slow_side.log
    entries = [c for c in fast_side.log if c[0] == "hugetlb_entry"]
    holes = [c for c in fast_side.log if c[0] == "pte_hole"]
    if "hugetlb_entry" in names:
        # The first GiB has a pmd table, so its empty entries are entries; the rest has none, so they are holes.
        assert len(entries) == 512 and entries[0][1:3] == (a, start + PMD)
        assert [c[1] for c in entries if not c[6]] == [start + PMD, start + 2 * PMD]
        assert len(holes) == (4 if "pte_hole" in names else 0) and all(c[3] == -1 for c in holes)
        assert not holes or holes[-1][1:3] == (b - PAGE, b)
    else:
        assert not fast_side.log


def test_a_huge_leaf_is_split_only_when_walked_below():
    host = Host(4096)
    mm = host.new_mm()
    start = mm.mmap(PMD, addr=PUD)
    mm.madvise(start, PMD, "hugepage")
    mm.write(start, 1)
    first = mm.tables.lookup(start)
    assert first["level"] == 2
    calls = []
    assert walk_page_vma(mm.vmas[0], MmWalkOps(pmd_entry=lambda e, *a: calls.append(bool(e.leaf)))) == 0
    assert calls == [True] and mm.tables.lookup(start)["level"] == 2
    assert walk_page_vma(mm.vmas[0], MmWalkOps(pte_entry=lambda e, a, n, w: calls.append(int(e.pfn)))) == 0
    assert calls[1:] == list(range(int(first["pfn"]), int(first["pfn"]) + 512))
    assert mm.tables.lookup(start)["level"] == 1


def test_errors_are_einval_and_call_nothing():
    host = Host(64)
    mm = host.new_mm()
    start = mm.mmap(4 * PAGE, addr=PUD)
    calls = []
    names = ("pre_vma", "post_vma", "test_walk", "pte_hole", "pte_entry")
    ops = MmWalkOps(**{n: lambda *a: calls.append(1) for n in names})
    vma = mm.vmas[0]
    assert walk_page_range(mm, start, start, ops) == -22
    assert walk_page_range(mm, start + PAGE, start, ops) == -22
    assert walk_page_range(None, start, start + PAGE, ops) == -22
    assert walk_page_range_vma(vma, start, start, ops) == -22
    assert walk_page_range_vma(vma, start - PAGE, start + PAGE, ops) == -22
    assert walk_page_range_vma(vma, start, start + 5 * PAGE, ops) == -22
    assert not calls


def test_post_vma_comes_after_an_early_end_but_not_after_a_failed_pre_vma():
    host = Host(64)
    mm = host.new_mm()
    mm.mmap(4 * PAGE, addr=PUD)
    mm.write(PUD, 1)
    calls = []

    def note(name, value=0):
        def callback(*args):
            calls.append(name)
            return value

        return callback

    ops = MmWalkOps(pre_vma=note("pre"), post_vma=note("post"), pte_entry=note("pte", 3))
    assert walk_page_vma(mm.vmas[0], ops) == 3
    assert calls == ["pre", "pte", "post"]
    calls.clear()
    ops = MmWalkOps(pre_vma=note("pre", -5), post_vma=note("post"), pte_entry=note("pte"))
    assert walk_page_vma(mm.vmas[0], ops) == -5
    assert calls == ["pre"]


def test_an_exception_leaves_the_address_space_usable():
    host = Host(4096)
    mm = host.new_mm()
    start = mm.mmap(2 * PMD, addr=PUD)
    mm.madvise(start, 2 * PMD, "hugepage")
    mm.write(start, 1)
    mm.write(start + PMD, 2)
    seen = []

    def pte_entry(entry, addr, next, walk):
        seen.append(addr)
        if len(seen) == 10:
            raise KeyError(addr)
        return 0

    with pytest.raises(KeyError):
        walk_page_vma(mm.vmas[0], MmWalkOps(pte_entry=pte_entry))
    assert [int(m["nr"]) for m in mm.tables.mappings(runs=True)] == [512, 1]
    mm.write(start + 3 * PAGE, 9)
    assert int(mm.read(start + 3 * PAGE)) == 9 and int(mm.read(start + PMD)) == 2
    assert walk_page_vma(mm.vmas[0], MmWalkOps(pte_entry=lambda *a: 0)) == 0
