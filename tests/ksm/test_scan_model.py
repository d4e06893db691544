"""Both strategies of the cursor, page by page and in batches, against the reference cursor, with churn between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scantools import OPERATIONS, PAGE, Sut, World

from ksmwalk import Host

#: a start in which there is something to scan: most random programs would otherwise scan nothing
PREFIX = [
    ("mmap", 0, 0), ("mmap", 0, 1), ("mergeable", 0, 0, 0), ("mergeable", 0, 1, 3),
    *[("write", 0, 0, i, i % 3) for i in range(6)], *[("write", 0, 1, i, 2) for i in (1, 4, 5, 15)],
]


@given(st.lists(OPERATIONS, max_size=40), st.sampled_from([4, 5]))
def test_strategies_and_reference_agree(program, levels):
    world = World([
        Sut("range", levels=levels), Sut("range", batched=True, levels=levels),
        Sut("per-address", levels=levels), Sut("per-address", real=True, levels=levels),
    ])
    for op in [*PREFIX, *program, ("next", 60), ("next", 60), ("next", 60)]:
        world.run(op)
    check_work(world)


def check_work(world):
    """What the counts of the four have in common."""
    one, batched, closed, real = (sut.scan.work for sut in world.suts)
    assert one["found"] == batched["found"] == closed["found"] == real["found"]
    assert one["lookups"] == 0
    for key in ("lookups", "lookup_misses", "pgd", "pud", "pmd", "pte"):
        assert closed[key] == real[key], f"{key}: counted in closed form {closed[key]}, performed {real[key]}"
    assert closed["lookups"] - closed["lookup_misses"] == closed["found"]


@given(st.lists(OPERATIONS, max_size=25))
def test_smart_scan_over_many_passes(program):
    world = World([Sut("range"), Sut("per-address")])
    for op in PREFIX:
        world.run(op)
    for i in range(45):
        if i < len(program):
            world.run(program[i])
        world.do_next(60)


def test_a_lookup_per_address_of_a_sparse_area():
    """2**33 lookups for 32 TiB, counted in closed form; the range walk reads a handful of entries."""
    world = World([Sut("range"), Sut("per-address")], model=False)
    span = 32 << 40
    world.each("P1", "mmap", span, addr=1 << 40, noreserve=True)
    world.each("P1", "write", (1 << 40) + 5 * PAGE, 1)
    world.each("P1", "madvise", 1 << 40, span, "mergeable")
    for sut in world.suts:
        sut.scan.reset_work()
    world.do_next(10)
    fast, slow = (sut.scan.work for sut in world.suts)
    assert slow["lookups"] == span // PAGE == 1 << 33
    assert slow["lookup_misses"] == (1 << 33) - 1
    assert fast["found"] == slow["found"] == 1
    # Two searches: down to the page, then from behind it over the rest of its tables and of the top one.
    assert (fast["searches"], fast["callbacks"], fast["lookups"]) == (2, 2, 0)
    assert (fast["pgd"], fast["pud"], fast["pmd"], fast["pte"]) == (1 + 64, 1 + 512, 1 + 512, 6 + 506)
    assert fast["holes"] == 63 + 511 + 511 and fast["longest"] == 64 + 512 + 512 + 506
    # A lookup reads an entry of each level down to where nothing is.
    assert (slow["pgd"], slow["pud"], slow["pmd"], slow["pte"]) == (1 << 33, 1 << 27, 1 << 18, 512)


def test_exit_at_the_cursor_keeps_the_slot_and_drops_its_items_later():
    world = World([Sut("range"), Sut("per-address")])
    for op in PREFIX:
        world.run(op)
    world.run(("next", 2))
    world.run(("exit_at_cursor",))
    assert world.suts[0].slots() == ["P1"]
    world.run(("next", 5))
    assert world.suts[0].slots() == [] and world.suts[0].state()["live"] == 0


def test_exit_elsewhere_moves_the_slot_right_behind_the_cursor():
    world = World([Sut("range"), Sut("per-address")])
    for op in PREFIX:
        world.run(op)
    world.run(("fork", 0))
    world.run(("fork", 0))
    for _ in range(2):
        world.run(("next", 60))
    world.run(("next", 1))
    order = world.suts[0].slots()
    world.do_exit(order[-1])
    world.check()
    assert world.suts[0].slots() == [order[0], order[-1], order[1]]
    world.run(("next", 60))
    assert world.suts[0].slots() == [order[0], order[1]]


@pytest.mark.parametrize("strategy, looked_at", [("range", "pte"), ("per-address", "lookups")])
def test_unmerging_everything_looks_at_marked_areas_only(strategy, looked_at):
    host = Host(4096)
    mm = host.new_mm()
    for number, pages in enumerate((3, 5)):
        start = (1 << 32) + number * 64 * PAGE
        mm.mmap(pages * PAGE, start)
        mm.populate(start, pages * PAGE)
        if number == 0:
            mm.madvise(start, pages * PAGE, "mergeable")
    host.ksm.scan.strategy = strategy
    host.ksm.scan.reset_work()
    host.ksm.write("run", 2)
    assert host.ksm.scan.work[looked_at] == 3
