"""A signal ends any long compiled run soon, with the exception of its handler, and leaves the Host as it should be."""

import os
import signal
import threading
import time

import hostcheck
import ksmcheck
import numpy as np
import pytest

from ksmwalk import Host, PageTables

TIB = 1 << 40
#: the runs below would take a minute and more
SOON = 5.0


class Enough(Exception):
    pass


@pytest.fixture
def alarm():
    """Raise Enough in a moment, once."""

    def ring(number, frame):
        raise Enough

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def giant(strategy):
    """32 TiB with two equal pages in them, merged."""
    host = Host(4096)
    mm = host.new_mm()
    start = mm.mmap(32 * TIB, noreserve=True)
    mm.madvise(start, 32 * TIB, "mergeable")
    for page in (1, 31):
        mm.write(start + page * TIB, 5)
    host.ksm.run = 1
    host.ksm.run_until()
    assert host.ksm.pages_sharing == 1
    host.ksm.scan.strategy = strategy
    host.ksm.scan.real_lookups = True
    return host, mm, start


@pytest.mark.parametrize(
    "run",
    [
        lambda host, mm, start: host.ksm.scan.scan(10),
        lambda host, mm, start: host.ksm.do_scan(10),
        lambda host, mm, start: host.ksm.full_scan(),
        lambda host, mm, start: mm.madvise(start, 32 * TIB, "unmergeable"),
        lambda host, mm, start: setattr(host.ksm, "run", 2),
        lambda host, mm, start: mm.prctl_merge(True) or mm.prctl_merge(False),
    ],
    ids=["scan", "do_scan", "full_scan", "unmergeable", "run=2", "prctl"],
)
def test_a_real_scan_address_by_address_ends_with_a_signal(run, alarm):
    host, mm, start = giant("per-address")
    alarm()
    begin = time.perf_counter()
    with pytest.raises(Enough):
        run(host, mm, start)
    assert time.perf_counter() - begin < SOON
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    # It goes on from there.
    host.ksm.scan.strategy = "range"
    host.ksm.run = 1
    host.ksm.run_until()
    hostcheck.check(host)
    ksmcheck.check_ksm(host)


def test_a_batch_without_end_ends_with_a_signal(alarm):
    """Pages that change all the time: batch after batch without a pause."""
    host = Host(1 << 17)
    mm = host.new_mm()
    start = mm.mmap(1 << 28)
    mm.madvise(start, 1 << 28, "mergeable")
    mm.populate(start, 1 << 28)
    alarm()
    with pytest.raises(Enough):
        while True:
            host.ksm.do_scan(1 << 40)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)


def test_loads_and_stores_end_with_a_signal(alarm):
    host = Host(1 << 17)
    mm = host.new_mm()
    start = mm.mmap(64 << 30)
    alarm()
    with pytest.raises(Enough):
        while True:
            mm.read(start, 1 << 20)
            mm.madvise(start, 4 << 30, "dontneed")
            mm.populate(start + (8 << 30), 1 << 28)
    hostcheck.check(host)


def test_raw_frames_are_mapped_until_a_signal_comes(alarm):
    """4 TiB of them, 12 seconds in one go: none is left half mapped."""
    host = Host(1 << 22)
    mm = host.new_mm()
    alarm()
    begin = time.perf_counter()
    with pytest.raises(Enough):
        mm.mmap(4 * TIB, kind="pfnmap", pfn=1)
    assert time.perf_counter() - begin < SOON
    assert mm.vmas == []
    hostcheck.check(host)


def test_a_range_is_mapped_whole_or_not_at_all_when_a_signal_comes(alarm):
    tables = PageTables(capacity=1 << 18)
    pfns = np.zeros(1 << 26, np.uint64)
    alarm()
    with pytest.raises(Enough):
        for at in range(64):
            tables.map_range(at << 38, pfns)
    nothing = [tables.lookup(at << 38) is None for at in range(64)]
    assert nothing == sorted(nothing) and any(nothing)
    for at in range(64):
        assert (tables.lookup((at << 38) + (pfns.size - 1) * 4096) is None) == nothing[at]


def test_a_walk_in_threads_ends_with_a_signal(alarm):
    """Tables that are walked again and again; the threads that share the walk are gone when it ends."""
    rows = np.zeros((515, 512), dtype=np.uint64)
    rows[0, 0] = 1 << 12 | 0x67
    rows[1, :16] = 2 << 12 | 0x67
    rows[2] = (np.arange(512, dtype=np.uint64) + np.uint64(3)) << np.uint64(12) | np.uint64(0x67)
    rows[3:515] = 0x867
    tables = PageTables.from_image(rows, 0)
    out = [np.zeros(1 << 22, np.uint64) for _ in range(2)]
    before = threading.active_count(), len(os.listdir("/proc/self/task"))
    alarm()
    begin = time.perf_counter()
    with pytest.raises(Enough):
        for _ in range(100_000):
            tables.mappings(columns=True, threads=3, out=out)
    assert time.perf_counter() - begin < SOON
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before
    assert len(tables.mappings(columns=True, threads=3, out=out).addr) == 16 * 512 * 512
