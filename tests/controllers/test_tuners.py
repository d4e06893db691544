"""ksmtuned, MoM, KubeVirt and the kernel's advisor: each does as its published rules say, worked by hand."""

import numpy as np
import pytest

from ksmwalk import Host
from ksmwalk.controllers import CONTROLLERS, Ksmtuned, KubeVirt, Memory, Mom, ScanTime, memory_of

P, GIB = 4096, 1 << 30


def process(host, pages, size=None, mark=True):
    mm = host.new_mm()
    addr = mm.mmap((size or pages) * P)
    mm.write(addr, np.arange(1, pages + 1, dtype=np.uint64))
    if mark:
        mm.madvise(addr, (size or pages) * P, "mergeable")
    return mm, addr


def trail(controller, frames=()):
    """run, pages_to_scan and sleep_millisecs after each act, with so many pages in use."""
    host, seen = Host(1 << 15), []
    mm, addr = process(host, 1, 20_000)
    for pages in frames:
        mm.madvise(addr, 20_000 * P, "dontneed")
        mm.write(addr, np.arange(1, pages + 1, dtype=np.uint64))
        controller.act(host)
        seen.append((host.ksm.run, host.ksm.pages_to_scan, host.ksm.sleep_millisecs))
    return seen


def test_what_is_seen_of_memory():
    host = Host(1 << 14)
    process(host, 100, 300)
    process(host, 50, mark=False)
    gone, _ = process(host, 10)
    both, addr = process(host, 20, 40)
    other = both.mmap(60 * P)
    assert memory_of(host).mergeable == (300 + 10 + 40) * P
    gone.exit()
    assert memory_of(host) == Memory((1 << 14) * P, ((1 << 14) - 170) * P, 340 * P, 400 * P)
    assert memory_of(host, 1000 * P) == Memory(1000 * P, 830 * P, 340 * P, 400 * P)
    assert memory_of(host, 100 * P).free == 0
    both.munmap(other, 60 * P)
    assert memory_of(host).committed == 340 * P
    assert memory_of(Host(1024)) == Memory(1024 * P, 1024 * P, 0, 0)


def test_ksmtuned_boosts_decays_and_stops():
    # 10,000 pages of memory: a threshold of 2,000; what is committed, 20,000 pages, is always too much
    tuned = Ksmtuned(total=10_000 * P, thres_const=0)
    sleep = 10 * 16 * GIB // (10_000 * P)
    assert trail(tuned, [9000, 9000, 5000, 5000]) == [(1, 300, sleep), (1, 600, sleep), (1, 550, sleep), (1, 500, sleep)]
    assert trail(tuned, [9000] * 9)[-1] == (1, 1250, sleep)
    assert trail(tuned, [1] * 30)[-1] == (1, 64, sleep)
    # 110,000 pages: 20,000 committed and 22,000 are less, so that free memory alone decides
    tuned = Ksmtuned(total=110_000 * P, thres_const=0)
    assert trail(tuned, [1, 1]) == [(0, 100, 20)] * 2
    # twice as much memory sleeps half as long, none less than 10 ms
    assert trail(Ksmtuned(total=10_000 * P, sleep_msec=100), [1])[0][2] == 100 * 16 * GIB // (10_000 * P)
    assert trail(Ksmtuned(total=1 << 50, thres_const=1 << 40), [1])[0] == (1, 300, 10)


def test_the_constant_of_ksmtuned_counts_where_it_is_more():
    # 42,000 pages committed and free pages above the threshold: only the constant brings it to work
    assert trail(Ksmtuned(total=200_000 * P, thres_const=0), [1])[0][0] == 0
    assert trail(Ksmtuned(total=200_000 * P, thres_const=190_000 * 4), [1])[0][:2] == (1, 64)
    assert trail(Ksmtuned(total=200_000 * P, thres_const=210_000 * 4), [1])[0][:2] == (1, 300)


def test_mom_averages_what_is_free():
    # 10,000 pages, 2,000 of them the threshold; a decision every second look
    mom = Mom(total=10_000 * P, interval=10, sample_interval=5, history=2)
    assert mom.interval == 5
    sleep = 10 * 16 * GIB // (10_000 * P)
    seen = trail(mom, [9000, 9500, 1000, 9000, 1000, 1000])
    # mean free 750 pages: boost; 5,000: decay; 9,000: decay
    assert seen == [(0, 100, 20), (1, 400, sleep), (1, 400, sleep), (1, 350, sleep), (1, 350, sleep), (1, 300, sleep)]
    # with room for all that is mergeable and more free than that it stops
    host = Host(1 << 15)
    process(host, 10)
    host.ksm.run = 1
    mom = Mom()
    mom.act(host)
    assert host.ksm.run == 1
    mom.act(host)
    assert host.ksm.run == 0


def test_kubevirt_ramps_up_and_down():
    node = KubeVirt(total=10_000 * P)
    busy, calm = 8000, 7000
    seen = trail(node, [calm, busy, busy, busy, busy, busy, busy, calm, calm])
    sleeps = {pages: 100 * 16 * GIB // (pages * P) for pages in (busy, calm)}
    want = [100, 400, 700, 1000, 1250, 1250]
    assert seen[0] == (0, 100, 20)
    assert seen[1:7] == [(1, pages, sleeps[busy]) for pages in want]
    assert seen[7:] == [(1, 1200, sleeps[calm]), (1, 1150, sleeps[calm])]
    down = trail(node, [busy, busy, *[calm] * 8])
    assert [pages for run, pages, _ in down if run] == [100, 400, 350, 300, 250, 200, 150, 100]
    assert down[-1][0] == 0
    # it begins again where it began
    assert trail(node, [busy, busy, *[calm] * 8, busy])[-1][:2] == (1, 100)


def test_kubevirt_leaves_the_sleep_to_what_is_in_use():
    # the table of the proposal: 2.2 s on 8 GiB with little in use, 10 ms on 1 TiB
    node = KubeVirt(total=8 * GIB, free_percent=100)
    assert trail(node, [10_000])[0][2] == int(100 * 16 * GIB / (10_000 * P))
    full = KubeVirt(total=10_000 * P, free_percent=100, sleep_msec=0.01)
    assert trail(full, [9999])[0][2] == 10


def test_the_advisor_is_switched_on_and_left_alone():
    host = Host(1 << 14)
    for _ in range(2):
        process(host, 3000)
    rows = host.run(30, controllers=[ScanTime(target_scan_time=100, max_pages_to_scan=5000)])
    assert host.ksm.advisor_mode == "scan-time" and host.ksm.advisor_target_scan_time == 100
    assert rows["run"].all() and rows["pages_sharing"][-1] == 3000 and rows["pages_to_scan"].max() <= 5000


@pytest.mark.parametrize("name", ["ksmtuned", "mom", "kubevirt"])
def test_what_the_advisor_holds_is_refused_and_the_run_goes_on(name):
    """As a script's echo fails, and the script does not."""
    host = Host(1 << 15)
    for _ in range(3):
        process(host, 4000)
    controller = CONTROLLERS[name](total=14_000 * P, interval=5)
    rows = host.run(60, controllers=[ScanTime(target_scan_time=100), controller])
    assert controller.refused > 0 and len(rows) == 61
    assert host.ksm.advisor_mode == "scan-time" and rows["pages_sharing"][-1] == 8000


@pytest.mark.parametrize("name", ["ksmtuned", "mom", "kubevirt"])
def test_in_a_run_memory_comes_free_and_ksmd_calms_down(name):
    host = Host(1 << 15)
    for _ in range(3):
        process(host, 4000)
    host.ksm.smart_scan = 0
    controller = CONTROLLERS[name](total=14_000 * P, interval=5, sleep_msec=0.2)
    rows = host.run(120, controllers=[controller])
    assert rows["pages_to_scan"].max() >= 300 and rows["pages_sharing"][-1] == 8000
    assert rows["pages_to_scan"][-1] < rows["pages_to_scan"].max()
    if name == "kubevirt":
        assert rows["run"][-1] == 0


@pytest.mark.parametrize("kind", [Ksmtuned, Mom, KubeVirt])
@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"interval": 0}, ValueError), ({"interval": "x"}, TypeError), ({"boost": -1}, ValueError), ({"decay": 1}, ValueError),
        ({"npages_min": 0}, ValueError), ({"npages_min": 2000}, ValueError), ({"sleep_msec": 0}, ValueError),
        ({"total": 0}, ValueError), ({"total": 1.5}, TypeError), ({"interval": float("nan")}, ValueError),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(kind, more, error):
    name = next(iter(more)) if "npages_min" not in more else "npages_min"
    if kind is Mom and name == "interval":
        name = "interval"
    with pytest.raises(error, match=name):
        kind(**more)


def test_the_advisor_has_no_other_knobs():
    with pytest.raises(TypeError, match="no such tunable"):
        ScanTime(speed=3)
