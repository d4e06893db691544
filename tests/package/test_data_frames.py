"""Every table that the library gives goes into pandas and polars as it is: each column, each value, each kind of number."""

from __future__ import annotations

import functools

import memories
import numpy as np
import pytest

from ksmwalk import Host, PageTables
from ksmwalk.estimates.changing import run_changing, write_rates
from ksmwalk.estimates.costs import Costs
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.sweep import checked, grid, of_all, sweep, sweep_each
from ksmwalk.estimates.tables import BY
from ksmwalk.estimates.why import explain_pages
from ksmwalk.estimates.work import count_full_scan
from ksmwalk.sources.memory import load_memory

LIBRARIES = ("pandas", "polars")


def a_host():
    host = Host(1 << 12)
    host.ksm.events.on = True
    mm = host.new_mm()
    start = mm.mmap(64 * 4096)
    mm.write(start, np.arange(64, dtype=np.uint64) // 2)
    mm.madvise(start, 64 * 4096, "mergeable")
    return host


@functools.cache
def tables():
    """Every table by the call that gives it."""
    host = a_host()
    found = {"Ksm.run_until": host.ksm.run_until(), "Host.mms": host.mms, "Host.vmas": host.vmas}
    found["Events.take"] = host.ksm.events.take()
    mm = host.mm_list[0]
    found["PageTables.mappings"] = mm.tables.mappings()
    found["PageTables.mappings, runs"] = mm.tables.mappings(runs=True)
    found["PageTables.bad"] = _bad()
    other = a_host()
    found["count_full_scan"] = np.array([count_full_scan(other) for _ in range(3)])
    memory = _memory()
    made = estimate(memory, costs=Costs())
    found |= {f"Estimate.table({by})": made.table(by) for by in BY}
    found |= {"Estimate.over_time": made.over_time(), "Outcome.work": made.expected.work, "Steady.rows": made.expected.steady.rows}
    loaded = load_memory(memory)
    found["run_changing"] = run_changing(loaded, write_rates(memory, spread=False), 1.0)
    settings = grid(smart_scan=[0, 1], pages_to_scan=[100, 1000])
    found["sweep"], found["checked"] = sweep(memory, settings, costs=Costs()), checked(memory, settings)
    each = sweep_each([memory, memory], settings, costs=Costs())
    found["sweep_each, a machine"], found["of_all"] = each[1], of_all(each)
    found["Why.mappings"] = explain_pages(memory, costs=Costs()).mappings
    return found


def _bad():
    rows = np.zeros((2, 512), np.uint64)
    rows[0, :3] = 0xFFFFF067
    tables = PageTables.from_image(rows, 0)
    tables.mappings()
    return tables.bad


def _memory():
    areas = [memories.Area([1, 2, 3, 3, 0], changes=[0, 1, 0, 0, 0]), memories.Area([7], flags=memories.PLAIN, pages=9)]
    return memories.memory(memories.process(5, *areas), memories.process(6, memories.Area(range(1, 30))))


NAMES = [
    "Ksm.run_until", "Host.mms", "Host.vmas", "Events.take", "PageTables.mappings", "PageTables.mappings, runs",
    "PageTables.bad", "count_full_scan", *(f"Estimate.table({by})" for by in BY), "Estimate.over_time", "Outcome.work",
    "Steady.rows", "run_changing", "sweep", "checked", "sweep_each, a machine", "of_all", "Why.mappings",
]  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", NAMES)
def test_tables_are_data_frames_as_they_are(name, library):
    frames = pytest.importorskip(library)
    rows = tables()[name]
    assert rows.ndim == 1 and len(rows) and rows.dtype.names
    frame = frames.DataFrame(rows)
    assert frame.shape == (len(rows), len(rows.dtype.names)) and list(frame.columns) == list(rows.dtype.names)
    for column in rows.dtype.names:
        assert frame[column].to_list() == rows[column].tolist(), column
        kind = rows.dtype[column].kind
        if kind in "OU":  # a text is one, not an object that nothing can be asked about
            assert str(frame[column].dtype).lower() in ("str", "string", "object") and frame[column].dtype != "Object"
            assert library == "pandas" or frame.filter(frame[column] == frame[column][0]).height
        else:
            assert frame[column].to_numpy().dtype == rows.dtype[column], column


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_without_a_row_keep_their_columns(library):
    frames = pytest.importorskip(library)
    for name, rows in tables().items():
        frame = frames.DataFrame(rows[:0])
        assert frame.shape == (0, len(rows.dtype.names)), name


def test_the_tables_are_all_tried():
    assert sorted(NAMES) == sorted(tables())


def test_a_frame_is_worked_with_as_the_guide_does():
    pandas, polars = (pytest.importorskip(name) for name in LIBRARIES)
    rows = tables()["sweep"]
    best = pandas.DataFrame(rows).sort_values("freed_bytes").iloc[-1]
    assert best["freed_bytes"] == rows["freed_bytes"].max()
    by = polars.DataFrame(rows).group_by("smart_scan").agg(polars.col("freed_bytes").max()).sort("smart_scan")
    assert by["freed_bytes"].to_list() == [int(rows["freed_bytes"][rows["smart_scan"] == n].max()) for n in (0, 1)]
