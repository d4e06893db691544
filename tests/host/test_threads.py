"""One thread at a time per Host: a second one is told so and breaks nothing. Two Hosts run side by side."""

import sys
import threading
import time

import hostcheck
import ksmcheck
import numpy as np
import pytest

from ksmwalk import Host, MmWalkOps, PageTables, walk_page_range, walk_page_range_novma

PAGE, M = 4096, 1 << 20
AT = 1 << 30
THREADS = 4
PAGES = 1024


@pytest.fixture(autouse=True)
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run(jobs):
    """Every job in a thread of its own, all started together; what they raised."""
    raised = []
    start = threading.Barrier(len(jobs))

    def work(job):
        try:
            start.wait()
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(job,), name=f"worker {i}") for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return raised


def one_call(host, mm, rng):
    """Some call that changes a Host; OSError as a lone process might get it too."""
    page = int(rng.integers(PAGES))
    addr, n = AT + page * PAGE, int(rng.integers(1, PAGES - page + 1))
    calls = [
        lambda: mm.write(addr, rng.integers(0, 5, n).astype(np.uint64)),
        lambda: mm.read(addr, n),
        lambda: mm.munmap(addr, n * PAGE),
        lambda: mm.mmap(n * PAGE, addr),
        lambda: mm.mmap(n * PAGE),
        lambda: mm.mremap(addr, PAGE, 3 * PAGE),
        lambda: mm.mprotect(addr, n * PAGE, "r"),
        lambda: mm.madvise(addr, n * PAGE, str(rng.choice(["mergeable", "unmergeable", "dontneed", "hugepage"]))),
        lambda: mm.populate(addr, n * PAGE, nid=0),
        lambda: mm.fork().exit(),
        lambda: mm.mlock(addr, PAGE),
        lambda: host.ksm.do_scan(n),
        lambda: host.ksm.scan.scan_get_next_rmap_item(),
        lambda: mm.tables.mappings(),
        lambda: walk_page_range(mm, AT, AT + 4 * M, MmWalkOps(pmd_entry=lambda e, *a: None)),
        lambda: [v.vm_flags for v in mm.vmas],
        lambda: mm.read_pfns(addr, n),
    ]
    try:
        calls[int(rng.integers(len(calls)))]()
    except OSError:
        pass


def test_threads_on_one_host_are_turned_away_and_break_nothing():
    host = Host(1 << 14)
    mm = host.new_mm()
    mm.mmap(PAGES * PAGE, AT)
    mm.write(AT, np.arange(PAGES, dtype=np.uint64))
    mm.madvise(AT, PAGES * PAGE, "mergeable")
    turned_away, allowed = [], (RuntimeError, ReferenceError, LookupError)
    until = time.monotonic() + 3

    def hammer(seed):
        rng = np.random.default_rng(seed)
        while time.monotonic() < until:
            try:
                one_call(host, mm, rng)
            except allowed as error:
                turned_away.append(error)

    assert run([lambda seed=seed: hammer(seed) for seed in range(THREADS)]) == []
    busy = [error for error in turned_away if isinstance(error, RuntimeError)]
    assert busy and all("one thread at a time" in str(error) for error in busy)
    # Others have seen areas go between two calls of their own.
    assert all("gone" in str(e) or "not an area" in str(e) for e in turned_away if not isinstance(e, RuntimeError))
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    mm.write(mm.mmap(PAGE), 1)


def test_the_thread_at_work_is_named_and_callbacks_of_its_own_are_no_second_caller():
    host = Host(4096)
    mm = host.new_mm()
    mm.mmap(16 * PAGE, AT)
    mm.write(AT, [1] * 16)
    image = PageTables.from_image(host.tables.rows, mm.tables.root)
    said, inside = [], threading.Event()

    def pte_entry(entry, addr, next, walk):
        mm.write(addr, mm.read(addr) + 1)  # our own thread
        other = threading.Thread(target=second)
        other.start()
        other.join()
        inside.set()
        return 1

    def second():
        for use in (lambda: mm.write(AT, 5), lambda: host.ksm.do_scan(1), lambda: mm.tables.lookup(AT), lambda: mm.vmas,
                    host.new_mm, lambda: image.lookup(AT)):  # fmt: skip
            with pytest.raises(RuntimeError, match="in use by thread 'MainThread'"):
                use()
            said.append(use)

    def both(entry, addr, next, walk):
        return walk_page_range(mm, AT, AT + PAGE, MmWalkOps(pte_entry=pte_entry))

    assert walk_page_range_novma(image, AT, AT + PAGE, MmWalkOps(pte_entry=both)) == 1
    assert inside.is_set() and len(said) == 6 and mm.read(AT) == 2
    mm.write(AT, 5)
    assert run([lambda: mm.write(AT, 6)]) == [], "it is free again"


def test_the_mark_is_given_back_by_calls_that_fail():
    host = Host(4096)
    mm = host.new_mm()
    mm.mmap(PAGE, AT)

    def fail(*args):
        raise KeyError

    for call in (
        lambda: mm.write(AT + PAGE, [1]), lambda: mm.mmap(PAGE, AT + (1 << 47)), lambda: mm.mremap(AT + M, PAGE, 2 * PAGE),
        lambda: mm.tables.mappings(limit=0), lambda: mm.populate(AT, 2 * PAGE, nid=0), lambda: mm.write(AT, 1, nid=9),
        lambda: walk_page_range(mm, AT, AT + M, MmWalkOps(pte_hole=fail, pte_entry=fail)),
    ):  # fmt: skip
        with pytest.raises((OSError, ValueError, KeyError)):
            mm.write(AT, 1)
            call()
        assert run([lambda: mm.write(AT, 2)]) == []


def test_two_hosts_run_in_two_threads():
    def job():
        host = Host(1 << 14)
        mm = host.new_mm()
        mm.mmap(PAGES * PAGE, AT)
        mm.madvise(AT, PAGES * PAGE, "mergeable")
        rng = np.random.default_rng(1)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            one_call(host, mm, rng)
        hostcheck.check(host)

    assert run([job, job]) == []


def test_a_setting_is_not_changed_behind_the_back_of_another_thread():
    """What writes into the arrays that compiled code is at work on is a second caller like any other."""
    host = Host(1 << 12)
    mm = host.new_mm()
    mm.mmap(PAGES * PAGE, AT)
    mm.populate(AT, PAGES * PAGE)
    pfn = int(mm.read_pfns(AT, 1)[0])
    ksm = host.ksm
    before = {name: array.copy() for name, array in host.world.arrays.items() if array.nbytes < 1 << 20}
    changes = [
        lambda: setattr(host, "thp", "always"), lambda: setattr(host, "lru_batch", 3), lambda: host.lock_page(pfn),
        lambda: host.frames.set_key(pfn, 7), lambda: setattr(mm, "nid", 0), lambda: mm.thp_disable(True),
        lambda: setattr(ksm, "pages_to_scan", 7), lambda: setattr(ksm, "run", 1), lambda: setattr(ksm, "now_ms", 7),
        lambda: setattr(ksm, "cpu_ms", 7), lambda: setattr(ksm, "max_page_sharing", 7), lambda: ksm.events.take(),
        lambda: setattr(ksm.events, "on", True), lambda: setattr(ksm.scan, "strategy", "per-address"),
        lambda: setattr(ksm.scan, "real_lookups", True), ksm.scan.reset_work,
    ]  # fmt: skip
    with host.world:
        raised = run(changes)
    assert len(raised) == len(changes)
    for error in raised:
        assert isinstance(error, RuntimeError) and "one thread at a time" in str(error)
    for name, array in before.items():
        assert np.array_equal(array, host.world.arrays[name]), name


def test_what_one_thread_loaded_another_uses(tmp_path):
    host = Host(1024)
    mm = host.new_mm()
    mm.mmap(8 * PAGE, AT)
    mm.write(AT, 7)
    host.save(tmp_path / "host")
    tables = PageTables()
    tables.map_range(AT, np.arange(8))
    tables.save(tmp_path / "tables")
    loaded = []
    run([lambda: loaded.append((Host.load(tmp_path / "host"), PageTables.load(tmp_path / "tables")))])
    again, walked = loaded[0]
    again.mm_list[0].write(AT + PAGE, 8)
    again.ksm.run = 1
    again.ksm.do_scan(10)
    assert again.mm_list[0].read_keys(AT, 2).tolist() == [7, 8]
    walked.unmap(AT, AT + PAGE)
    assert walked.save(tmp_path / "once more") is None
