"""Work counts of the engine: held to what a full scan leaves behind, and in sum the same however it is cut up."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reference import counted_scan

from ksmwalk import Host
from ksmwalk.ksm.costs import WORK_DTYPE, Costs, ksmd_seconds, nanoseconds
from ksmwalk.ksm.work import Stretch
from ksmwalk.layout import Event

P, M = 4096, 2 << 20
#: as the engine counts them and as the reference can tell
EXACT = ("visits", "skipped", "first", "freed", "changed", "stable_nodes", "stable_pages")


def make(spaces, **tunables):
    host = Host(1 << 14)
    for name, value in tunables.items():
        host.ksm.write(name, value)
    mms = []
    for keys, huge in spaces:
        mm = host.new_mm()
        addr = -(-mm.mmap(len(keys) * P + 2 * M) // M) * M
        mm.madvise(addr, len(keys) * P, "hugepage" if huge else "nohugepage")
        mm.write_at(np.uint64(addr) + np.arange(len(keys), dtype=np.uint64) * np.uint64(P), np.array(keys, np.uint64))
        mm.madvise(addr, len(keys) * P, "mergeable")
        mms.append((mm, addr, len(keys)))
    return host, mms


def change(host, mms, stores):
    for which, page, key in stores:
        mm, addr, n = mms[which % len(mms)]
        mm.write(addr + page % n * P, [key])


def told(events):
    """Merges, joins and empty pages, by the trace events."""
    kinds, failed = events["kind"], events["err"] != 0
    begun = np.concatenate([[False], kinds[:-1] == Event.NEW])
    return {
        "merges": np.count_nonzero((kinds == Event.ADD) & begun & ~failed),
        "stable_hits": np.count_nonzero((kinds == Event.ADD) & ~begun),
        "zeroed": np.count_nonzero((kinds == Event.ZERO) & ~failed),
    }


keys = st.lists(st.integers(0, 12), min_size=1, max_size=40)
memories = st.lists(st.tuples(keys, st.booleans()), min_size=1, max_size=3)
changes = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 39), st.integers(0, 12)), max_size=6), max_size=6)
tunables = st.fixed_dictionaries(
    {"smart_scan": st.integers(0, 1), "use_zero_pages": st.integers(0, 1), "max_page_sharing": st.sampled_from((2, 3, 256))}
)


@given(memories, changes, tunables)
def test_full_scans_are_counted_as_what_they_leave_behind(spaces, rounds, knobs):
    (host, mms), (other, others) = make(spaces, **knobs), make(spaces, **knobs)
    for stores in [[], [], *rounds]:
        change(host, mms, stores)
        change(other, others, stores)
        stretch, host.ksm.events.on = Stretch(host.world), True
        host.ksm.full_scan()
        row, want = stretch.row(), counted_scan.count_full_scan(other)
        assert {name: row[name] for name in EXACT} == {name: int(want[name]) for name in EXACT}
        assert row["scans"] == 1
        assert {name: row[name] for name in ("merges", "stable_hits", "zeroed")} == told(host.ksm.events.take())
        # a page may leave a KSM page and join it again, and a merge that fails has been searched for
        assert 0 <= row["merged"] <= row["visits"] and row["stable_hits"] <= row["stable_searches"]
        assert row["merged"] + row["changed"] + row["zeroed"] + row["stable_searches"] == row["visits"]
        assert row["unstable_items"] <= row["unstable_searches"] <= row["stable_searches"]


@given(memories, changes, tunables, st.integers(1, 17))
def test_cut_into_batches_the_counts_are_the_same_in_sum(spaces, rounds, knobs, batch):
    (host, mms), (other, others) = make(spaces, **knobs), make(spaces, **knobs)
    walk = ("ptes", "holes", "tables", "stable_nodes", "stable_pages")
    for stores in [[], [], *rounds]:
        change(host, mms, stores)
        change(other, others, stores)
        whole = Stretch(host.world)
        host.ksm.full_scan()
        parts, before = [], other.ksm.full_scans
        while other.ksm.full_scans == before:
            part = Stretch(other.world)
            other.ksm.do_scan(batch)
            parts.append(part.row())
        for name, value in whole.row().items():
            if name not in walk:  # a batch begins with a descent of its own
                assert sum(part[name] for part in parts) == value, name
    assert host.ksm.counters() == other.ksm.counters()


def test_pages_of_huge_pages_are_counted_as_such():
    host, _ = make([(list(range(1, 1025)), True), (list(range(2000, 2100)), False)])
    stretch = Stretch(host.world)
    host.ksm.full_scan()
    assert stretch.row()["huge"] == 1024 and stretch.row()["visits"] == 1124
    stretch = Stretch(host.world)
    for _ in range(20):
        host.ksm.do_scan(10)
    assert stretch.row()["huge"] == 200


def test_a_row_costs_the_same_alone_and_in_an_array():
    rng = np.random.default_rng(1)
    work = np.zeros(20, WORK_DTYPE)
    for name in WORK_DTYPE.names:
        work[name] = rng.integers(0, 5000, 20)
    work["huge"] = np.minimum(work["huge"], work["visits"])
    work["batches"][:5] = 0
    costs = Costs()
    alone = [nanoseconds({name: row[name].item() for name in WORK_DTYPE.names} | {"scans": 1}, costs) / 1e9 for row in work]
    np.testing.assert_allclose(alone, ksmd_seconds(work, costs), rtol=1e-12)
