"""The scan-time advisor's arithmetic, held to every recorded step of a real one."""

import json
from pathlib import Path

import pytest

from ksmwalk import Host
from ksmwalk.ksm.advisor import advise

P = 4096
RUNS = json.loads((Path(__file__).parents[1] / "data" / "advisor_steps.json").read_text())["runs"]
# switched on in the middle of a scan: its beginning is not known any more, so that the clock since boot counts
IN_MID_SCAN = [
    (500, 924, 15000, 1, 2, 500, 30000, 70),
    (15000, 2, 8820, 17, 2, 500, 30000, 70),
    (8820, 2, 5180, 17, 2, 500, 30000, 70),
    (5180, 2, 3108, 17, 2, 500, 30000, 70),
    (3108, 2, 2237, 14, 2, 500, 30000, 70),
]
RUNS.append(IN_MID_SCAN)


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_every_recorded_step(run):
    change, last = 0, 0
    for before, seconds, after, cpu, target, _, most, max_cpu in RUNS[run]:
        knobs = {"target": target, "max_cpu": max_cpu, "max_pages": most}
        new, change, last = advise(before, change, last, 1000 * seconds, 10 * cpu * seconds, knobs)
        assert new == after, (before, seconds, cpu, target)


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_a_host_takes_every_recorded_step(run):
    host = Host(1024)
    mm = host.new_mm()
    addr = mm.mmap(3 * P)
    mm.write(addr, [1, 2, 3])
    mm.madvise(addr, 3 * P, "mergeable")
    ksm = host.ksm
    ksm.smart_scan = 0
    if run == 2:
        ksm.do_scan(1)  # a scan is under way
    ksm.advisor_mode = "scan-time"
    for number, (before, seconds, after, cpu, target, least, most, max_cpu) in enumerate(RUNS[run]):
        assert ksm.pages_to_scan == before
        ksm.do_scan(1)
        # a knob that is written in mid-scan counts at its end
        ksm.advisor_target_scan_time, ksm.advisor_max_cpu = target, max_cpu
        ksm.advisor_min_pages_to_scan, ksm.advisor_max_pages_to_scan = least, most
        ksm.now_ms += 1000 * seconds + (999 if run < 2 else 0)
        ksm.cpu_ms += 10 * cpu * seconds
        ksm.do_scan(1 << 20)
        assert ksm.pages_to_scan == after, number


def test_switching_it_on_forgets_what_it_knew():
    host = Host(1024)
    mm = host.new_mm()
    addr = mm.mmap(3 * P)
    mm.write(addr, [1, 2, 3])
    mm.madvise(addr, 3 * P, "mergeable")
    ksm = host.ksm
    # neither its floor nor its ceiling: what it knew shows
    ksm.advisor_target_scan_time, ksm.smart_scan = 50, 0
    steps = []
    for _ in range(2):
        ksm.now_ms, ksm.cpu_ms = 0, 0
        ksm.advisor_mode = "scan-time"
        for _ in range(4):
            ksm.do_scan(1)
            ksm.now_ms += 100_000
            ksm.cpu_ms += 50_000
            ksm.do_scan(1 << 20)
            steps.append(ksm.pages_to_scan)
        ksm.advisor_mode = "none"
        assert ksm.pages_to_scan == 100
    assert steps[:4] == steps[4:]


def test_least_of_everything():
    """No number is divided by, and none falls below one."""
    for cpu_ms in (0, 10**9):
        for scan_ms in (0, 10**9):
            new, change, last = advise(1, 0, 0, scan_ms, cpu_ms, {"target": 1, "max_cpu": 0, "max_pages": 10})
            assert new == 10 and change == 30 and last == max(1, scan_ms // 1000)
    assert advise(5, 0, 0, 0, 0, {"target": 1, "max_cpu": 1, "max_pages": 0})[0] == 0
