"""A scan loop of one's own, compiled from what the .pxd files say, against `do_scan`: the same arrays, to the bit."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from embedding import build

from ksmwalk.host.host import Host
from ksmwalk.ksm import _engine

PAGE = 4096
BASE = 1 << 32
MOST = 24
RUNS = 1500 if os.environ.get("KSMWALK_HYPOTHESIS") == "long" else 150
PER_TEST = 50

CONSUMER = """
    from libc.stdint cimport int32_t, int64_t
    from ksmwalk._core cimport World
    from ksmwalk.ksm._cursor cimport scan_begin, scan_next
    from ksmwalk.ksm._engine cimport examine


    def batch(World world not None, int64_t n, between=None):
        '''One batch of at most n visits; `between` is called after each.'''
        cdef int64_t done = 0, pfn = 0
        cdef int32_t item
        cdef int err
        scan_begin(&world.w)
        while done < n:
            item = scan_next(&world.w, &pfn)
            if item <= 0:
                return done, item
            err = examine(&world.w, item, pfn)
            done += 1
            if err < 0:
                return done, err
            if between is not None and between():
                scan_begin(&world.w)
        return done, 0


    def twice(World world not None, int64_t n, change):
        '''n visits, each page examined, changed and examined again.'''
        cdef int64_t pfn = 0
        cdef int32_t item
        cdef int i
        for i in range(n):
            scan_begin(&world.w)
            item = scan_next(&world.w, &pfn)
            if item <= 0 or examine(&world.w, item, pfn) < 0:
                return i
            change(pfn)
            if examine(&world.w, item, pfn) < 0:
                return i
        return n
"""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consumer")
    build(folder, CONSUMER)
    (path,) = folder.glob("consumer*.so")
    spec = importlib.util.spec_from_file_location("consumer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """A Host with a few processes that change as one random generator says."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.host = Host(4096, int(rng.integers(1, 3)), thp=("never", "always")[int(rng.random() < 0.2)])
        self.mms = []
        self.ksm = self.host.ksm
        self.ksm.max_page_sharing = int(rng.choice([2, 3, 256]))
        self.ksm.use_zero_pages = int(rng.random() < 0.3)
        self.ksm.smart_scan = int(rng.random() < 0.5)
        self.ksm.merge_across_nodes = int(rng.random() < 0.7)
        self.ksm.scan.strategy = "range" if rng.random() < 0.8 else "per-address"
        self.few = int(rng.integers(2, 12))
        for _ in range(int(rng.integers(1, 4))):
            self.spawn()

    def spawn(self):
        mm = self.host.new_mm(int(self.rng.integers(0, self.host.nr_nodes)))
        mm.mmap(MOST * PAGE, BASE)
        mm.write(BASE, self.rng.integers(0, self.few, int(self.rng.integers(1, MOST))).astype(np.uint64))
        mm.madvise(BASE, MOST * PAGE, "mergeable")
        self.mms.append(mm)

    def change(self):
        rng = self.rng
        if not self.mms or rng.random() < 0.1:
            return self.spawn()
        mm = self.mms[int(rng.integers(len(self.mms)))]
        at = BASE + int(rng.integers(MOST)) * PAGE
        what = rng.random()
        if what < 0.6:
            mm.write(at, int(rng.integers(self.few)))
        elif what < 0.75:
            mm.madvise(at, PAGE, "dontneed")
        elif what < 0.82:
            mm.read(at)
        elif what < 0.88:
            self.host.drain()
        elif what < 0.94:
            self.mms.append(mm.fork())
        else:
            self.mms.remove(mm)
            mm.exit()

    def arrays(self):
        return self.host.__getstate__()["arrays"]


def same(one, two):
    for name, array in one.items():
        assert np.array_equal(array, two[name]), name


@pytest.mark.parametrize("first", range(0, RUNS, PER_TEST))
def test_the_contracts_calls_make_the_batches_of_do_scan(consumer, first):
    for seed in range(first, first + PER_TEST):
        engine, mine = Machine(seed), Machine(seed)
        sizes = np.random.default_rng([seed, 1])
        for _ in range(12):
            for _ in range(int(sizes.integers(0, 5))):
                engine.change(), mine.change()
            n = int(sizes.choice([1, 5, 20, 1000]))
            assert consumer.batch(mine.host.world, n) == (engine.ksm.do_scan(n), 0)
            same(engine.arrays(), mine.arrays())
        arrays = mine.arrays()
        assert arrays["ctl"]["changes"][0] == arrays["mms"]["epoch"].sum(), "an epoch rises only with the count of changes"


def test_an_epoch_rises_in_one_place_which_counts_it():
    source = Path(__file__).parents[2] / "ksmwalk"
    places = [
        path.name
        for path in sorted(source.rglob("*"))
        if path.suffix in (".py", ".pyx", ".pxd")
        for line in path.read_text().splitlines()
        if "epoch +=" in line or "epoch =" in line
    ]
    assert set(places) <= {"_core.pxd"}


@pytest.mark.parametrize("first", range(0, RUNS // 3, PER_TEST))
def test_changes_in_mid_batch_come_out_as_between_batches_of_one(consumer, first):
    for seed in range(first, first + PER_TEST):
        engine, mine = Machine(seed), Machine(seed)
        when = [np.random.default_rng([seed, 2]) for _ in range(2)]

        def change(machine, rng):
            if rng.random() < 0.2:
                machine.change()
                return True
            return False

        for _ in range(3):
            done = 0
            while done < 100 and engine.ksm.do_scan(1):
                done += 1
                change(engine, when[0])
            assert consumer.batch(mine.host.world, 100, lambda: change(mine, when[1])) == (done, 0)  # noqa: B023
            one, two = engine.arrays(), mine.arrays()
            for name in ("work", "cursor"):  # how far a search went on in one table depends on where batches begin
                del one[name], two[name]
            same(one, two)


def test_an_item_leaves_the_tree_with_the_contents_that_it_came_with(consumer):
    """Examined a second time, after its page has changed: a tree that is built late is still that of the first time."""
    hosts = []
    for at_once in (False, True):
        host = Host(4096)
        host.ksm.smart_scan = 0
        _engine.py_trees(host.world, at_once)
        mm = host.new_mm()
        mm.mmap(60 * PAGE, BASE)
        mm.write(BASE, np.random.default_rng(4).permutation(60).astype(np.uint64) + np.uint64(1))
        mm.madvise(BASE, 60 * PAGE, "mergeable")
        for _ in range(2):
            host.ksm.do_scan(60)
        keys = iter(np.random.default_rng(5).permutation(1000) + 1000)
        change = lambda pfn, host=host, keys=keys: host.frames.set_key(pfn, int(next(keys)))  # noqa: E731
        assert consumer.twice(host.world, 20, change) == 20
        host.ksm.do_scan(30)
        hosts.append(host)
    late, built = hosts
    assert built.world.arrays["trees"][0, 1] != 0
    same(late.__getstate__()["arrays"], built.__getstate__()["arrays"])
