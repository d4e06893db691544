"""Trees that are built late against trees that are built at once: the same arrays, events and answers, whatever changes
when, whoever looks."""

import contextlib
import os
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
from ksmcheck import check_ksm

from ksmwalk.host.host import Host
from ksmwalk.ksm import _engine
from ksmwalk.layout import ItemFlag

PAGE = 4096
BASE = 1 << 32
RUNS = 4000 if os.environ.get("KSMWALK_HYPOTHESIS") == "long" else 120
PER_TEST = 40


class Machine:
    """A Host that changes, is scanned and is looked at as one random generator says."""

    def __init__(self, seed, at_once):
        self.rng = rng = np.random.default_rng(seed)
        self.host = Host(4096, int(rng.choice([1, 1, 1, 2])), thp=("never", "always")[int(rng.random() < 0.2)])
        self.ksm = ksm = self.host.ksm
        _engine.py_trees(self.host.world, at_once)
        self.at_once = at_once
        ksm.events.on = True
        ksm.max_page_sharing = int(rng.choice([2, 3, 4, 256]))
        ksm.use_zero_pages = int(rng.random() < 0.3)
        ksm.smart_scan = int(rng.random() < 0.4)
        ksm.merge_across_nodes = int(rng.random() < 0.8)
        ksm.stable_node_chains_prune_millisecs = int(rng.choice([0, 5, 2000]))
        self.few = int(rng.choice([3, 12, 60, 400]))
        self.most = int(rng.choice([8, 24, 120]))
        self.calm = rng.random() < 0.5  # changes between scans only
        self.mms = []
        for _ in range(int(rng.integers(1, 4))):
            self.spawn()

    def spawn(self):
        mm = self.host.new_mm(int(self.rng.integers(0, self.host.nr_nodes)))
        mm.mmap(self.most * PAGE, BASE)
        mm.write(BASE, self.rng.integers(0, self.few, int(self.rng.integers(1, self.most))).astype(np.uint64))
        mm.madvise(BASE, self.most * PAGE, "mergeable")
        self.mms.append(mm)

    def change(self):
        rng = self.rng
        if not self.mms or rng.random() < 0.1:
            return self.spawn()
        mm = self.mms[int(rng.integers(len(self.mms)))]
        at = BASE + int(rng.integers(self.most)) * PAGE
        what = rng.random()
        if what < 0.5:
            with contextlib.suppress(OSError):
                mm.write(at, int(rng.integers(self.few)))
        elif what < 0.65:
            with contextlib.suppress(OSError):
                mm.madvise(at, PAGE, "dontneed")
        elif what < 0.7:
            mm.munmap(at, PAGE)
        elif what < 0.75:
            self.host.drain()
        elif what < 0.85:
            self.mms.append(mm.fork())
        elif what < 0.9:
            self.ksm.now_ms += int(rng.integers(0, 7))
        elif what < 0.93:
            for advice in ("unmergeable", "mergeable"):
                with contextlib.suppress(OSError):  # there are holes
                    mm.madvise(BASE, self.most * PAGE, advice)
        elif what < 0.95:
            self.ksm.run = 2
            self.ksm.run = 1
        elif what < 0.97:
            mm.domain = int(rng.integers(3))
        else:
            self.mms.remove(mm)
            mm.exit()

    def step(self):
        """One batch, what changes before it, and perhaps somebody who reads; all that he is told."""
        rng = self.rng
        if not self.calm or not self.ksm.scan.mm_slot:
            for _ in range(int(rng.choice([0, 0, 1, 5]))):
                self.change()
        told = [self.ksm.do_scan(int(rng.choice([1, 7, 30, 1000]))), self.ksm.counters()]
        told += [mm.ksm_stat() for mm in self.mms]
        who = rng.random()
        if who < 0.15:
            told.append(seen(self.host))
        elif who < 0.25:
            copy = pickle.loads(pickle.dumps(self.host))
            copy.ksm.do_scan(20)
            told.append(seen(copy))
        elif who < 0.3:
            check_ksm(self.host)
        return told


def seen(host):
    """All arrays as somebody sees them who asks for them."""
    used = {name: host._used(name) for name in host.world.arrays}
    out = {name: array[: used[name]].copy() for name, array in host.world.arrays.items()}
    out["mms"]["vma_hint"] = 0  # where somebody looked last
    return {name: array.tobytes() for name, array in out.items()}


def different(one, two):
    return [name for name in one if one[name] != two[name]]


@pytest.mark.parametrize("first", range(0, RUNS, PER_TEST))
def test_trees_built_late_are_those_built_at_once(first):
    for seed in range(first, first + PER_TEST):
        late, at_once = Machine(seed, False), Machine(seed, True)
        for step in range(int(np.random.default_rng([seed, 1]).choice([5, 25]))):
            one, two = late.step(), at_once.step()
            assert [type(a) for a in one] == [type(b) for b in two]
            for a, b in zip(one, two, strict=True):
                assert a == b, (seed, step, different(a, b) if isinstance(a, dict) else a)
        assert different(seen(late.host), seen(at_once.host)) == [], seed
        check_ksm(late.host)


def unique(n=200):
    host = Host(4096)
    host.ksm.smart_scan = 0
    mm = host.new_mm()
    mm.mmap(n * PAGE, BASE)
    mm.write(BASE, np.random.default_rng(4).permutation(n).astype(np.uint64) + np.uint64(1))
    mm.madvise(BASE, n * PAGE, "mergeable")
    host.ksm.do_scan(1 << 20)
    return host, mm


def unstable(host):
    return host.world.arrays["trees"][0, 1]


def test_who_keeps_an_array_sees_every_batch_in_it():
    host, _ = unique()
    for keep in (
        lambda: host.world.arrays["links"],
        lambda: host.world.arrays["links"]["left"],
        lambda: host.world.arrays["links"][5:],
        lambda: memoryview(host.world.arrays["trees"]),
        lambda: dict(host.world.arrays),
        lambda: {**host.world.arrays},
    ):
        kept = keep()
        host.ksm.do_scan(100)
        raw = host._arrays["trees"]  # as they are, nothing built for who asks
        assert raw[0, 1] != 0
        assert np.count_nonzero(host._arrays["links"]["parent"]) == 99
        del kept, raw
        host.ksm.do_scan(1 << 20)
        host.ksm.do_scan(100)
        assert host._arrays["trees"][0, 1] == 0, "nobody looks: nothing is built"
        assert unstable(host) != 0
        host.ksm.do_scan(1 << 20)


def test_nothing_is_built_while_nobody_looks():
    host, _ = unique()
    for _ in range(3):
        host.ksm.do_scan(1 << 20)
    assert not host._arrays["links"].view(np.uint8).any()
    marked = host._arrays["items"]["flags"] & ItemFlag.UNSTABLE != 0
    assert np.count_nonzero(marked) == host.ksm.pages_unshared == 200


def test_an_item_that_is_freed_leaves_empty_links_behind():
    host, mm = unique()
    host.ksm.do_scan(100)
    assert unstable(host) != 0
    mm.munmap(BASE, 200 * PAGE)
    host.ksm.do_scan(1 << 20)
    host.ksm.do_scan(1 << 20)
    assert not host._arrays["links"].view(np.uint8).any()


def test_a_thousand_copies_are_as_quick_to_look_up_as_one():
    """The chain of a content shared by many stands in the way of no other search."""
    host = Host(1 << 13)
    host.ksm.smart_scan = 0
    host.ksm.max_page_sharing = 4
    mm = host.new_mm()
    keys = np.concatenate([np.zeros(1000), np.arange(1, 1000)]).astype(np.uint64)
    mm.mmap(len(keys) * PAGE, BASE)
    mm.write(BASE, np.random.default_rng(1).permutation(keys))
    mm.madvise(BASE, len(keys) * PAGE, "mergeable")
    for _ in range(3):
        host.ksm.do_scan(1 << 20)
    assert host.ksm.stable_node_chains == 1 and host.ksm.stable_node_dups > 200
    check_ksm(host)


def test_the_arrays_are_a_mapping_that_keeps_no_array_alive():
    host, _ = unique()
    arrays = host.world.arrays
    assert isinstance(arrays, Mapping)
    assert len(arrays) == len(list(arrays)) == len(dict(arrays.items())) == len(list(arrays.values()))
    assert "ctl" in arrays and arrays.get("no") is None and list(arrays.keys())[0] == "ctl"
    with pytest.raises(KeyError):
        arrays["no"]
    with pytest.raises(TypeError, match="door"):
        pickle.dumps(arrays)
    with pytest.raises(TypeError, match="made by it"):
        type(arrays)()


@pytest.mark.parametrize("pinned_first", [False, True])
def test_clean_pages_that_are_pinned_do_not_merge(pinned_first):
    """MADV_FREE and a protection leave neither bit of a store in the pte: the page is exclusive all the same."""
    host, pages = Host(1 << 14), 2000
    host.ksm.smart_scan = 0
    keys = np.arange(100, 100 + pages, dtype=np.uint64)
    pinned, other = mms = [host.new_mm(), host.new_mm()][:: 1 if pinned_first else -1]
    for mm in mms:
        mm.mmap(pages * PAGE, BASE)
        mm.madvise(BASE, pages * PAGE, "mergeable")
        mm.write(BASE, keys + np.uint64(10_000 * (mm is other)))
    for _ in range(3):
        host.ksm.full_scan()
    pinned.madvise(BASE, pages * PAGE, "free")
    pinned.uffd_wp(BASE, pages * PAGE)
    for page in range(1, pages, 2):
        host.pin(pinned, BASE + page * PAGE)
    other.write(BASE, keys)
    for _ in range(3):
        host.ksm.full_scan()
    check_ksm(host)
    assert host.ksm.pages_sharing == pages // 2
