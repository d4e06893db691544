"""The reading of live processes, against processes whose memory is known."""

from __future__ import annotations

import os
import pickle
import time
import traceback

import numpy as np
import pytest
from living import Living, become_nobody, footprint, ksm_to_ourselves, sees_frames

from ksmwalk.proc import pagemap
from ksmwalk.proc.frames import Kpf
from ksmwalk.proc.gather import gather
from ksmwalk.sources import NoAddressSpace, ProcessChanged, ProcessExited, capture

P, M = 4096, 2 << 20
FRAMES = sees_frames()
needs_frames = pytest.mark.skipif(not FRAMES, reason="needs CAP_SYS_ADMIN to see frame numbers")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def scan_missing() -> bool:
    with open("/proc/self/pagemap", "rb") as file:
        try:
            pagemap.scan_regions(file.fileno(), os.getpid(), 0, P)
        except pagemap.ScanMissing:
            return True
    return False


needs_scan = pytest.mark.skipif(scan_missing(), reason="this kernel has no PAGEMAP_SCAN")


@pytest.fixture
def child():
    with Living() as living:
        yield living


def within(result, start, size):
    """Indices of the captured pages of [start, start + size)."""
    return np.flatnonzero((result.addr >= start) & (result.addr < start + size))


def vma_at(result, addr):
    return next(vma for vma in result.vmas if vma.start <= addr < vma.end)


def thp_available() -> bool:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            return "[never]" not in file.read()
    except OSError:
        return False


@needs_scan
def test_32_tib_and_nothing_faulted_in(child):
    area = child.do("new(1 << 45)")
    child.do(f"write({area} + (1 << 44))")
    before = footprint(child.pid)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = capture(child.pid)
        seconds.append(time.process_time() - start)
        at = within(result, area, 1 << 45)
        assert result.addr[at].tolist() == [area + (1 << 44)]
        assert result.anon[at].all()
    assert footprint(child.pid) == before
    assert min(seconds) < 0.05
    vma = vma_at(result, area)
    assert not vma.mergeable and vma.why_not == "not marked" and vma.rss == P
    assert (vma.start, vma.end) == (area, area + (1 << 45))


@pytest.mark.skipif(not os.path.isdir("/sys/kernel/mm/ksm"), reason="a kernel without KSM")
def test_marked_memory_is_seen_as_such(child):
    with ksm_to_ourselves():
        area = child.do("new(16 * P)")
        child.do(f"call('madvise', {area}, 16 * P, 12)")
        vma = vma_at(capture(child.pid), area)
        child.__exit__()
    assert vma.mergeable and vma.why_not is None


@pytest.mark.parametrize("find", [pytest.param("ioctl", marks=needs_scan), "pagemap"])
def test_kinds_of_pages(child, find):
    area = child.do("new(16 * P)")
    child.do(f"write({area}, 2)")
    child.do(f"read({area} + 3 * P)")
    child.do(f"write({area} + 5 * P)")
    child.do(f"call('mprotect', {area} + 5 * P, P, 0)")
    shared = child.do("new(4 * P, 0x21)")
    child.do(f"write({shared} + P)")
    before = footprint(child.pid)
    result = capture(child.pid, find=find, counts=True)
    assert footprint(child.pid) == before
    at = within(result, area, 16 * P)
    assert ((result.addr[at] - np.uint64(area)) // P).tolist() == [0, 1, 3, 5]
    assert vma_at(result, area + 5 * P).perms == "---p"
    there = within(result, shared, 4 * P)
    assert result.addr[there].tolist() == [shared + P]
    assert result.file[there].all() and not result.file[at].any()
    assert vma_at(result, shared).why_not == "shared"
    assert vma_at(result, area).why_not == "not marked"
    assert result.found_by == find
    if find == "ioctl" or FRAMES:
        assert result.zero[at].tolist() == [False, False, True, False]
        assert result.anon[at].tolist() == [True, True, False, True]
    if FRAMES:
        assert len(set(result.pfn[at].tolist())) == 4
        assert result.exclusive[at].tolist() == [True, True, False, True]
        assert result.frame_counts[at][[0, 1, 3]].tolist() == [1, 1, 1]
        assert not any("hidden" in note for note in result.notes)
    else:
        assert result.pfn is None and result.frame_flags is None
        assert any("hidden" in note for note in result.notes)


@pytest.mark.skipif(not thp_available(), reason="transparent huge pages are off")
@pytest.mark.parametrize("find", [pytest.param("ioctl", marks=needs_scan), "pagemap"])
def test_huge_pages(child, find):
    area = child.do("new(4 * M, align=M)")
    child.do(f"call('madvise', {area}, 4 * M, 14)")
    child.do(f"write({area})")
    child.do(f"read({area} + M)")
    child.do(f"write({area} + 3 * M)")
    child.do(f"call('mprotect', {area} + 3 * M, P, 1)")  # splits the leaf, not the folio
    result = capture(child.pid, find=find)
    at = within(result, area, 4 * M)
    if len(at) < 3 * 512:
        pytest.skip("the kernel gave no huge pages")
    assert len(at) == 3 * 512
    if find == "ioctl":
        assert result.huge[at].tolist() == [True] * 1024 + [False] * 512
        assert result.zero[at].tolist() == [False] * 512 + [True] * 512 + [False] * 512
    if FRAMES:
        assert (np.diff(result.pfn[at[:512]]) == 1).all()
        assert (result.frame_flags[at[:512]] & np.uint64(Kpf.THP) != 0).all()
        assert (result.frame_flags[at[-512:]] & np.uint64(Kpf.ANON) != 0).all()


@needs_scan
def test_more_regions_than_one_call_holds(child):
    """walk_end of a finished call is stale from 512 regions on: following it alone gives regions twice."""
    area = child.do("new(8192 * P)")
    child.do(f"call('madvise', {area}, 8192 * P, 15)")
    child.do(f"write({area}, 2000, 2 * P)")
    expected = [area + 2 * i * P for i in range(2000)]
    with open(f"/proc/{child.pid}/pagemap", "rb") as file:
        for per_call in (1, 7, 511, 512, 513, 600, 1000, 2000, 4096):
            found = pagemap.scan_regions(file.fileno(), child.pid, area, area + 8192 * P, per_call)
            assert found.start.tolist() == expected, per_call
            assert found.nr_pages == 2000


@needs_scan
@needs_frames
def test_frames_agree_with_single_reads(child):
    """Every pfn and flag of the gathered reading equals what one small read per page gives."""
    area = child.do("new(1 << 30)")
    child.do(f"call('madvise', {area}, 1 << 30, 15)")
    child.do(f"write({area}, 300)")
    child.do(f"write({area} + (1 << 29), 300, 3 * P)")
    child.do(f"write({area} + (3 << 28), 100, 300 * P)")
    child.do(f"read({area} + (7 << 27), 50)")
    huge = child.do("new(4 * M, align=M)")
    child.do(f"call('madvise', {huge}, 4 * M, 14)")
    child.do(f"write({huge})")
    child.do(f"read({huge} + M)")
    child.do(f"write({huge} + 2 * M)")
    child.do(f"call('mprotect', {huge} + 2 * M, P, 1)")
    result = capture(child.pid)
    with (
        open(f"/proc/{child.pid}/pagemap", "rb", buffering=0) as entries,
        open("/proc/kpageflags", "rb", buffering=0) as flags,
    ):
        for index in [*within(result, area, 1 << 30), *within(result, huge, 4 * M)]:
            entries.seek(int(result.addr[index]) // P * 8)
            pfn = int.from_bytes(entries.read(8), "little") & ((1 << 55) - 1)
            assert pfn == result.pfn[index]
            flags.seek(pfn * 8)
            moving = 0b111_1111 | 1 << 8 | 1 << 25  # locks, LRU, dirtiness and idleness come and go
            assert int.from_bytes(flags.read(8), "little") & ~moving == int(result.frame_flags[index]) & ~moving
    assert len(within(result, area, 1 << 30)) == 750


def test_gather_takes_any_order(tmp_path):
    """Random, repeated, descending and sparse record numbers, against plain indexing."""
    records = np.arange(1 << 18, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    path = tmp_path / "records"
    records.tofile(path)
    rng = np.random.default_rng(7)
    lists = [
        np.arange(1 << 18),
        rng.integers(0, 1 << 18, 5000),
        np.arange(70000)[::-1],
        np.repeat(np.arange(0, 1 << 18, 997), 3),
        np.sort(rng.choice(1 << 18, 100_000, replace=False)),
        np.empty(0, np.int64),
    ]
    with open(path, "rb") as file:
        for index in lists:
            for gap in (0, 3, 1000):
                assert (gather(file.fileno(), index.astype(np.int64), gap, 1) == records[index]).all()
        with pytest.raises(ProcessExited, match="process 17"):
            gather(file.fileno(), np.array([5, 1 << 18]), 0, 17)


def test_no_such_process(child):
    pid = child.pid
    child.__exit__()
    with pytest.raises(ProcessExited, match=f"{pid} does not exist"):
        capture(pid)


def test_zombie():
    with Living() as child:
        child.process.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoAddressSpace, match=f"{child.pid} has no address space"):
            capture(child.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="kernel threads are root's to read")
def test_kernel_thread():
    with pytest.raises(NoAddressSpace):
        capture(2)


@pytest.mark.parametrize("step", ["mapped", "found", "framed", "checked"])
def test_exit_at_every_step(step):
    with Living() as child:

        def kill(now):
            if now == step:
                child.process.kill()
                child.process.wait()

        if step == "framed" and not FRAMES:
            pytest.skip("without frames that step is not reached")
        with pytest.raises(ProcessLookupError, match=str(child.pid)):
            capture(child.pid, _between=kill)


@pytest.mark.parametrize("step", ["mapped", "found", "checked"])
def test_a_change_is_noticed_and_read_again(child, step):
    area = child.do("new(64 * P)")
    child.do(f"write({area}, 64)")
    times = []

    def unmap(now):
        if now == step and not times:
            times.append(now)
            child.do(f"call('munmap', {area} + 16 * P, 16 * P)")

    result = capture(child.pid, _between=unmap)
    assert result.attempts == 2
    at = within(result, area, 64 * P)
    assert ((result.addr[at] - np.uint64(area)) // P).tolist() == [*range(16), *range(32, 64)]


@needs_scan
def test_a_mapping_that_comes_and_goes_between_two_lists(child):
    """The lists before and after are equal, and yet pages of another mapping were found."""
    before = capture(child.pid)
    times = []

    def visit(now):
        if now == "mapped" and not times:
            times.append(child.do("new(64 * P, align=64 * P)"))
            child.do(f"write({times[0]}, 64)")
        if now == "found" and len(times) == 1:
            times.append(child.do(f"call('munmap', {times[0]}, 64 * P)"))

    result = capture(child.pid, frames=False, _between=visit)
    assert result.attempts == 2
    assert [vma.key for vma in result.vmas] == [vma.key for vma in before.vmas]
    assert not len(within(result, times[0], 64 * P))


def test_endless_change_is_an_error(child):
    def unrest(now):
        if now == "checked":
            child.do("new(P, prot=len(open('/proc/self/maps').readlines()) % 4)")

    with pytest.raises(ProcessChanged, match=f"process {child.pid} changed during each of 3 attempts.*new mapping"):
        capture(child.pid, attempts=3, _between=unrest)


@needs_scan
@needs_frames
@pytest.mark.skipif(not thp_available(), reason="transparent huge pages are off")
@pytest.mark.parametrize("step", ["found", "framed"])
def test_a_huge_page_that_is_split_meanwhile(child, step):
    """The leaf is gone or the folio is: flags and leaf bits are those of one state."""
    area = child.do("new(2 * M, align=M)")
    child.do(f"call('madvise', {area}, 2 * M, 14)")
    child.do(f"write({area}, 2, M)")
    child.do("x = 1")

    def split(now):
        if now == step:
            child.do(f"call('madvise', {area} + 5 * P, P, 4)")

    result = capture(child.pid, _between=split)
    first, second = within(result, area, M), within(result, area + M, M)
    if len(second) < 512 or not result.huge[second].all():
        pytest.skip("the kernel gave no huge pages")
    assert area + 5 * P not in result.addr[first].tolist() or step == "framed"
    flags = result.frame_flags[first]
    assert (flags & np.uint64(Kpf.ANON) != 0).all()
    if step == "found":
        assert len(first) == 511 and not result.huge[first].any()


@needs_scan
@needs_frames
@pytest.mark.parametrize("step", ["found", "framed"])
def test_pages_that_go_meanwhile_are_left_out(child, step):
    """MADV_DONTNEED changes no mapping: only the pages themselves show it."""
    area = child.do("new(64 * P)")
    child.do(f"write({area}, 64)")

    def discard(now):
        if now == step:
            child.do(f"call('madvise', {area} + 8 * P, 8 * P, 4)")

    result = capture(child.pid, _between=discard)
    at = within(result, area, 64 * P)
    assert ((result.addr[at] - np.uint64(area)) // P).tolist() == [*range(8), *range(16, 64)]
    assert any("8 pages were unmapped" in note for note in result.notes)
    assert len(result.pfn) == len(result.frame_flags) == len(result.exclusive) == result.nr_pages


@needs_scan
def test_churn(child):
    """A process that maps, writes and unmaps all the time: each answer is a whole one or a clear error."""
    child.do("keep = new(256 * P)")
    keep = child.do("keep")
    child.do("write(keep, 256)")
    child.tell("for i in range(4000): a = new(64 * P, align=64 * P); write(a, 64); call('munmap', a, 64 * P)")
    answers = 0
    for _ in range(30):
        try:
            result = capture(child.pid)
        except ProcessChanged:
            continue
        answers += 1
        assert len(within(result, keep, 256 * P)) == 256
        inside = np.zeros(result.nr_pages, bool)
        for first, last in result.vma_slices():
            inside[first:last] = True
        # a page outside every mapping was of a mapping that came and went: never handed out
        assert inside.all()
    assert answers


@needs_scan
def test_fork_meanwhile(child):
    area = child.do("new(64 * P)")
    child.do(f"write({area}, 64)")
    twins = []

    def fork(now):
        if now == "found":
            child.do("r, w = os.pipe()")
            twins.append(child.do("os.fork() or (os.close(w), os.read(r, 1), os._exit(0))"))

    result = capture(child.pid, counts=True, _between=fork)
    at = within(result, area, 64 * P)
    assert len(at) == 64 and result.anon[at].all()
    if FRAMES:
        assert not result.exclusive[at].any()
        assert (result.frame_counts[at] == 2).all()
        twin = capture(twins[0])
        assert (twin.pfn[within(twin, area, 64 * P)] == result.pfn[at]).all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="find='fast'"):
        capture(os.getpid(), find="fast")
    with pytest.raises(ValueError, match="attempts=0"):
        capture(os.getpid(), attempts=0)


def as_nobody(function):
    """What `function` gives in a forked process without any rights."""
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            become_nobody()
            answer = pickle.dumps((function(), None))
        except BaseException:
            answer = pickle.dumps((None, traceback.format_exc()))
        with os.fdopen(w, "wb") as out:
            out.write(answer)
        os._exit(0)
    os.close(w)
    with os.fdopen(r, "rb") as answer:
        value, trouble = pickle.loads(answer.read())
    os.waitpid(pid, 0)
    assert trouble is None, trouble
    return value


@needs_root
@needs_scan
def test_as_the_ordinary_owner():
    """Without rights the owner still gets every page, kind and huge leaf; frames are None and a note says so.

    pagemap hides frame numbers, and not which pages are a process's alone."""
    result, count = as_nobody(lambda: (capture(os.getpid()), len(os.sched_getaffinity(0))))
    assert count and result.nr_pages > 100
    assert result.pfn is None and result.frame_flags is None
    assert 0 < result.exclusive.sum() < result.nr_pages == len(result.exclusive)
    assert any("hidden from this user" in note for note in result.notes)
    assert any(vma.name == "[stack]" for vma in result.vmas)


@needs_root
def test_other_peoples_processes_are_refused(child):
    def attempt():
        try:
            capture(child.pid)
        except PermissionError as error:
            return str(error)

    message = as_nobody(attempt)
    assert f"/proc/{child.pid}/pagemap" in message and "CAP_SYS_PTRACE" in message


@needs_scan
def test_many_pages_in_time(child):
    """An eighth of a million pages in the (processor) time that a million may take."""
    size = 1 << 29
    area = child.do(f"new({size})")
    child.do(f"call('madvise', {area}, {size}, 15)")
    child.do(f"call('madvise', {area}, {size}, 23)")  # MADV_POPULATE_WRITE
    before = footprint(child.pid)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = capture(child.pid)
        seconds.append(time.process_time() - start)
    assert len(within(result, area, size)) == size // P
    assert footprint(child.pid) == before
    assert min(seconds) < 0.5, seconds
