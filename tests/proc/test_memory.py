"""The bytes of live processes, and that reading them makes nothing and moves nothing."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from living import Living, footprint, sees_frames

from ksmwalk.proc.freeze import frozen
from ksmwalk.proc.memory import LivePages, OpenFiles

P, M = 4096, 2 << 20
needs_frames = pytest.mark.skipif(not sees_frames(), reason="needs CAP_SYS_ADMIN to see frame numbers")


@pytest.fixture
def child():
    with Living() as living:
        yield living


def pages_of(pid, addr, files, pfn=None):
    return LivePages(pid, np.array(addr, np.uint64), pfn, files)


def state_of(pid):
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()


def test_what_is_absent_is_not_read_and_not_made(child):
    area = child.do("new(1024 * P)")
    child.do(f"write({area} + 5 * P, 3)")
    before = footprint(child.pid)
    files = OpenFiles()
    pages = pages_of(child.pid, [area + i * P for i in range(64)], files)
    into = np.zeros((64, P), np.uint8)
    ok = pages.read(np.arange(64), into)
    assert np.flatnonzero(ok).tolist() == [5, 6, 7]
    assert pages.gone == 61 and pages.made == 0 and pages.refused == 0
    assert footprint(child.pid) == before
    with open(f"/proc/{child.pid}/mem", "rb", buffering=0) as mem:
        for i in (5, 6, 7):
            mem.seek(area + i * P)
            assert into[i].tobytes() == mem.read(P)
    files.close()


@pytest.mark.parametrize("by_scan", [True, False])
def test_scattered_pages_are_found_as_pagemap_has_them(child, by_scan):
    """Runs and holes of all lengths, next to each other and far apart, some freed again, some only read."""
    rng = np.random.default_rng(11)
    area = child.do("new(20000 * P)")
    written = np.unique(np.concatenate([rng.integers(0, 3000, 700), np.arange(4000, 4600), rng.integers(5000, 20000, 90)]))
    zeros = np.unique(rng.integers(2900, 4100, 60))
    child.do(f"[ctypes.memset({area} + i * P, 1 + i % 255, P) for i in {written.tolist()}]; x = 1")
    child.do(f"[read({area} + i * P, 1) for i in {zeros.tolist()}]; x = 1")
    files = OpenFiles()
    there = np.union1d(written, zeros)
    asked = np.unique(np.concatenate([there, rng.integers(0, 20000, 500)]))
    pages = pages_of(child.pid, area + asked * P, files)
    pages._by_scan = by_scan
    into = np.full((len(asked), P), 7, np.uint8)
    ok = pages.read(np.arange(len(asked)), into)
    assert asked[ok].tolist() == there.tolist() and pages.gone == len(asked) - len(there) and pages.made == 0
    expected = np.where(np.isin(there, written), 1 + there % 255, 0)
    assert (into[ok] == expected[:, None]).all()
    files.close()


def test_memory_that_can_not_be_accessed_is_read_all_the_same(child):
    area = child.do("new(4 * P)")
    child.do(f"write({area}, 4)")
    child.do(f"call('mprotect', {area}, 4 * P, 0)")
    files = OpenFiles()
    into = np.zeros((4, P), np.uint8)
    assert pages_of(child.pid, [area + i * P for i in range(4)], files).read(np.arange(4), into).all()
    assert into.any(axis=1).all()
    files.close()


@pytest.mark.parametrize("by_scan", [True, pytest.param(False, marks=needs_frames)])
def test_pages_that_go_in_the_moment_of_the_reading_are_counted(child, by_scan):
    """They are made again, empty: not to be helped, and not to be taken for contents."""
    area = child.do("new(8 * P)")
    child.do(f"write({area}, 8)")
    files = OpenFiles()
    pages = pages_of(child.pid, [area + i * P for i in range(8)], files)
    pages._by_scan = by_scan
    pages._between = lambda: child.do(f"call('madvise', {area} + 2 * P, 2 * P, 4)")
    ok = pages.read(np.arange(8), np.zeros((8, P), np.uint8))
    assert np.flatnonzero(~ok).tolist() == [2, 3]
    assert pages.made == 2
    files.close()


def test_a_process_that_ends_has_no_pages(child):
    area = child.do("new(4 * P)")
    child.do(f"write({area}, 4)")
    files = OpenFiles()
    pages = pages_of(child.pid, [area], files)
    assert pages.read(np.arange(1), np.zeros((1, P), np.uint8)).all()
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    into = np.zeros((1, P), np.uint8)
    assert not pages.read(np.arange(1), into).any()
    assert pages.ended or pages.gone
    files.close()


def test_only_so_many_files_are_open_at_a_time(child):
    area = child.do("new(4 * P)")
    child.do(f"write({area}, 4)")
    files = OpenFiles(3)
    before = len(os.listdir("/proc/self/fd"))
    many = [pages_of(child.pid, [area], files) for _ in range(20)]
    for pages in many:
        assert pages.read(np.arange(1), np.zeros((1, P), np.uint8)).all()
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_only_few_files_may_be_open_fewer_are(child):
    area = child.do("new(4 * P)")
    child.do(f"write({area}, 4)")
    files = OpenFiles()
    many = [pages_of(child.pid, [area], files) for _ in range(40)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    most = next(n for n in itertools.count() if n - len([fd for fd in taken if fd < n]) == 8)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        read = [pages.read(np.arange(1), np.zeros((1, P), np.uint8)).all() for pages in many]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        files.close()
    assert all(read)


def test_a_process_is_held_still_and_goes_on(child):
    with frozen([child.pid]) as notes:
        assert notes == []
        assert state_of(child.pid) == "t"
    assert child.do("new(P)")


def test_all_threads_are_held(child):
    child.do("import threading, time; x = 1")
    for _ in range(5):
        child.do("threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
    with frozen([child.pid]):
        tasks = Path(f"/proc/{child.pid}/task").iterdir()
        states = {(task / "stat").read_bytes().rpartition(b")")[2].split()[0] for task in tasks}
        assert states == {b"t"}


def test_who_is_stopped_already_stays_so(child):
    os.kill(child.pid, signal.SIGSTOP)
    while state_of(child.pid) != "T":
        time.sleep(0.001)
    with frozen([child.pid]) as notes:
        assert notes == []
    end = time.monotonic() + 2
    while state_of(child.pid) != "T" and time.monotonic() < end:
        time.sleep(0.001)
    assert state_of(child.pid) == "T"
    os.kill(child.pid, signal.SIGCONT)
    assert child.do("new(P)")


def test_a_signal_that_comes_meanwhile_is_not_lost(child):
    """One pending signal stands for many of its kind: what is counted is that each round is heard at all."""
    child.do("import signal; seen = []; signal.signal(signal.SIGUSR1, lambda *a: seen.append(1)); x = 1")
    for _ in range(20):
        before = child.do("len(seen)")
        with frozen([child.pid]):
            os.kill(child.pid, signal.SIGUSR1)
        assert child.do("len(seen)") > before


def test_a_signal_that_comes_just_before_is_not_lost(child):
    child.do("import signal; seen = []; signal.signal(signal.SIGUSR1, lambda *a: seen.append(1)); x = 1")
    for _ in range(20):
        before = child.do("len(seen)")
        os.kill(child.pid, signal.SIGUSR1)
        with frozen([child.pid]):
            pass
        assert child.do("len(seen)") > before


def test_who_was_held_by_somebody_that_was_killed_goes_on(child):
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        with frozen([child.pid]):
            os.write(writer, b"x")
            time.sleep(60)
    os.read(reader, 1)
    assert state_of(child.pid) == "t"
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert child.do("new(P)")
    os.close(reader)
    os.close(writer)


def test_a_process_that_is_not_there_or_not_ours_is_said():
    with frozen([2**22 - 1]) as notes:
        assert notes == []  # nothing to hold
    if os.geteuid():
        with frozen([1]) as notes:
            assert "process 1 could not be stopped" in notes[0]
