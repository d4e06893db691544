"""An estimate as structured arrays."""

from __future__ import annotations

import numpy as np
import pytest
from seen import capture_of
from servers import COSTS, P, memory

from ksmwalk import Host
from ksmwalk.estimates.advice import setting_for
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.tables import BY, scan_seconds


@pytest.fixture(scope="module")
def found():
    return estimate(memory(("web", 300, 100, 50), ("web", 300, 10, 0), ("alone", 0, 200, 0)), costs=COSTS)


@pytest.mark.parametrize("by", BY)
def test_every_table_adds_up_to_what_is_freed_the_largest_first(found, by):
    rows = found.table(by)
    assert rows["freed_bytes"].sum() == found.expected.counters["freed_bytes"] == (300 + 49) * P
    assert (np.diff(rows["freed_bytes"]) <= 0).all()
    assert rows["anonymous_bytes"].sum() == 960 * P


def test_rows_name_whom_they_are_of(found):
    assert [(row["name"], row["command"], int(row["uid"])) for row in found.table()] == [
        ("web", "/usr/bin/web --serve", 1000), ("web", "/usr/bin/web --serve", 1001), ("alone", "/usr/bin/alone --serve", 1000),
    ]  # fmt: skip
    assert found.table("cgroup")["cgroup"].tolist() == ["/web.service", "/alone.service"]
    assert found.table("user")["processes"].tolist() == [2, 1]
    assert found.table("mapping")["merged_bytes"].tolist() == [350 * P, 300 * P, 0]


def test_tables_go_into_a_data_frame_as_they_are(found):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(found.table("process"))
    assert frame.groupby("name")["freed_bytes"].sum().to_dict() == {"web": 349 * P, "alone": 0}
    assert len(pandas.DataFrame(found.over_time())) == found.expected.counters["full_scans"] + 1


def test_no_such_table_is_an_error_with_those_there_are(found):
    with pytest.raises(ValueError, match="by 'planet': not one of process, mapping"):
        found.table("planet")


def test_what_is_freed_over_time_ends_at_all_of_it(found):
    rows = found.over_time()
    assert rows["freed_bytes"][0] == 0 and rows["freed_bytes"][-1] == found.expected.counters["freed_bytes"]
    assert (rows["lower_bytes"] == rows["freed_bytes"]).all()  # nothing changes
    assert rows["seconds"][-1] == pytest.approx(found.cost["seconds"])
    assert rows["cpu_seconds"][-1] == pytest.approx(found.cost["cpu_seconds"])
    assert rows["merged_pages"][-1] == 650


def test_the_band_over_time_spans_what_changing_pages_leave_open():
    what = memory(("web", 300, 0, 0), ("web", 300, 0, 0))
    what.processes[0].changes[:150] = 1
    what.samples, what.seconds_between = 2, 1.0
    found = estimate(what, costs=COSTS)
    last = found.over_time()[-1]
    assert last["lower_bytes"] == found.lower["freed_bytes"] < last["freed_bytes"] == 300 * P


def test_sleeping_longer_takes_longer_and_costs_no_more(found):
    quick, cpu = scan_seconds(found, 1000, 20)
    slow, same = scan_seconds(found, 1000, 200)
    assert (slow > quick).all() and (same == cpu).all()


@pytest.mark.parametrize("pages", [0, 99, 100])
def test_all_say_the_same_of_how_long_a_pass_takes(pages):
    """Of nothing too: ksmd wakes, finds that out and sleeps again."""
    found = estimate(memory(("web", pages, 0, 0), marked=True) if pages else nothing(), costs=COSTS)
    seconds, cpu = scan_seconds(found)
    assert seconds.sum() == pytest.approx(found.cost["seconds"]) and cpu.sum() == pytest.approx(found.cost["cpu_seconds"])
    here = setting_for(found, 100, 20)
    assert here.seconds_to_settle == pytest.approx(found.cost["seconds_to_settle"])
    assert here.pass_seconds >= 0.02 * (1 + pages // 100) and 0 < here.cpu_after < 0.02


def nothing():
    """A process with an area that has no page."""
    host = Host(1 << 10)
    mm = host.new_mm()
    mm.madvise(mm.mmap(P), P, "mergeable")
    return capture_of(host, [mm])


def test_which_pages_end_merged_is_known_page_by_page(found):
    first, second, alone = found.expected.merged
    assert first.tolist() == [True] * 300 + [False] * 100 + [True] * 50
    assert second[:300].all() and not second[300:].any() and not alone.any()
