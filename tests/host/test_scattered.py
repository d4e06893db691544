"""Loads and stores at scattered addresses: the same as one after the other, array by array, and far quicker."""

import errno
import os
import time

import numpy as np
import pytest

import ksmwalk
from ksmwalk.errors import ArenaFullError
from ksmwalk.host import contents
from ksmwalk.host.host import Host

PAGE, PMD = 4096, 1 << 21
BASE = 1 << 40
RUNS = 400 if os.environ.get("KSMWALK_HYPOTHESIS") == "long" else 60


def machine(rng, bad):
    """A Host with an address space of all sorts of areas; where they are: [(start, pages)]."""
    host = Host(16384, int(rng.integers(1, 3)), thp=("never", "always")[int(rng.integers(2))])
    host.lru_batch = int(rng.choice([0, 5]))
    mm = host.new_mm()
    kinds = [{}, {"shared": True}, {"kind": "file"}, {"kind": "hugetlb"}, {}, {"kind": "droppable"}]
    if bad:
        kinds += [{"prot": "r"}, {"prot": "none"}, {"kind": "pfnmap", "pfn": 99}]
    places, at = [], BASE
    for i in rng.permutation(len(kinds)):
        kind = kinds[i]
        pages = 512 * int(rng.integers(1, 3)) if kind.get("kind") == "hugetlb" else int(rng.integers(1, 1200))
        places.append((mm.mmap(pages * PAGE, at, **kind), pages))
        at += -(-pages // 512) * PMD + int(rng.integers(0, 3)) * PMD
        at += 0 if rng.integers(2) else PMD
    for start, pages in places:
        for _ in range(3):
            addr = start + int(rng.integers(pages)) * PAGE
            for call in (lambda: mm.write(addr, int(rng.integers(4))), lambda: mm.read(addr)):  # noqa: B023
                try:
                    call()
                except OSError:
                    pass
    mm.prctl_merge(True)
    host.ksm.use_zero_pages = int(rng.integers(2))
    for _ in range(2):
        host.ksm.full_scan()
    if rng.integers(2):
        mm.fork()
    return host, mm, places


def addresses(rng, places, n, bad):
    pick = rng.integers(0, len(places), n)
    some = np.array([places[i][0] + int(rng.integers(places[i][1])) * PAGE for i in pick], np.uint64)
    if bad and n:
        some[int(rng.integers(n))] = BASE - PAGE
    return rng.choice(some, n) if n else some


def one_by_one(call, addrs):
    """(what each call gave, index and errno of the one that failed)."""
    out = []
    for i, addr in enumerate(addrs):
        try:
            out.append(call(i, int(addr)))
        except OSError as err:
            return out, (i, err.errno)
    return out, None


def same(one, two):
    one, two = one.__getstate__()["arrays"], two.__getstate__()["arrays"]
    for name in one:
        assert np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("bad", [False, True], ids=["all allowed", "some refused"])
@pytest.mark.parametrize("seed", range(4))
def test_scattered_is_what_one_after_the_other_is(seed, bad, monkeypatch):
    for run in range(RUNS // 4):
        slow, one, places = machine(np.random.default_rng([seed, run]), bad)
        fast, two, _ = machine(np.random.default_rng([seed, run]), bad)
        rng = np.random.default_rng([seed, run, 1])
        monkeypatch.setattr(contents, "_AT_ONCE", int(rng.choice([1, 7, 64, 1 << 17])))
        for _ in range(4):
            addrs = addresses(rng, places, int(rng.choice([0, 1, 5, 40, 300])), bad)
            keys = rng.integers(0, 5, len(addrs)).astype(np.uint64)
            if rng.integers(2):
                done, failed = one_by_one(lambda i, a: one.write(a, int(keys[i])), addrs)  # noqa: B023
                call, given = two.write_at, (addrs, keys)
            else:
                addrs = addrs + rng.integers(0, PAGE, len(addrs)).astype(np.uint64)
                done, failed = one_by_one(lambda i, a: one.read(a), addrs)  # noqa: B023
                call, given = two.read_at, (addrs,)
            if failed:
                where = rf"addrs\[{failed[0]}\] {int(addrs[failed[0]]):#x} \({failed[0]} of {len(addrs)} pages done\)"
                with pytest.raises(OSError, match=where) as caught:
                    call(*given)
                assert caught.value.errno == failed[1]
            else:
                out = call(*given)
                assert out is None or out.tolist() == done
            same(slow, fast)


def test_an_address_that_comes_again_holds_what_was_stored_last():
    host = Host(4096)
    mm = host.new_mm()
    at = mm.mmap(4 * PAGE)
    mm.write_at([at, at + PAGE, at, at], [1, 2, 3, 4])
    assert mm.read_at([at, at + PAGE, at + 2 * PAGE]).tolist() == [4, 2, 0]
    mm.write_at(np.array([at + PAGE, at + 3 * PAGE]), 7)
    assert mm.read(at, 4).tolist() == [4, 7, 0, 7]
    mm.write_at([], []), mm.write_at([], 3)
    assert mm.read_at([]).dtype == np.uint64 and len(mm.read_at([])) == 0


def test_bad_arguments_write_nothing_and_are_named():
    host = Host(4096)
    mm = host.new_mm()
    at = mm.mmap(4 * PAGE)
    for addrs, keys, error, what in (
        ([at, at + 1], 1, ValueError, rf"addrs\[1\] {at + 1:#x}: must be page aligned"),
        ([at, -PAGE], 1, ValueError, r"addrs\[1\]"),
        ([at, 1 << 64], 1, ValueError, r"addrs\[1\]"),
        ([at, at], [1], ValueError, "1 keys for 2 addresses"),
        ([at], [1, 2], ValueError, "2 keys for 1 addresses"),
        ([at], -1, ValueError, "keys"),
        ([at], 1 << 64, ValueError, "keys"),
        ([at], 1.0, TypeError, "keys"),
        ([at], [[1]], TypeError, "keys"),
        ([float(at)], 1, TypeError, "addrs"),
        (at, 1, TypeError, "addrs"),
        ([at], None, TypeError, "keys"),
    ):
        with pytest.raises(error, match=what):
            mm.write_at(addrs, keys)
    for addrs in ([at, -1], [at, 1 << 64], [0.5], at, None, [[at]]):
        with pytest.raises((TypeError, ValueError), match="addrs"):
            mm.read_at(addrs)
    assert host.frames_used == 1 and mm.epoch == host.mm_list[0].epoch
    mm.exit()
    for call in (lambda: mm.write_at([], []), lambda: mm.read_at([])):
        with pytest.raises((ProcessLookupError, ReferenceError)):
            call()


@pytest.mark.parametrize("addr", [0, (1 << 47) - PAGE, 1 << 47, 1 << 56, 1 << 57, 1 << 63, (1 << 64) - PAGE])
def test_an_address_where_no_process_has_memory_is_a_fault(addr):
    host = Host(4096)
    mm = host.new_mm()
    at = mm.mmap(4 * PAGE)
    for call in (lambda: mm.write_at([at, addr], 1), lambda: mm.read_at([at, addr])):
        with pytest.raises(OSError, match=rf"addrs\[1\] {addr:#x} \(1 of 2") as caught:
            call()
        assert caught.value.errno == errno.EFAULT


def test_a_host_without_frames_left_says_how_far_it_came():
    host = Host(8)
    mm = host.new_mm()
    at = mm.mmap(16 * PAGE)
    with pytest.raises(ArenaFullError, match=r"addrs\[7\].*7 of 16"):
        mm.write_at(at + np.arange(16) * PAGE, np.arange(16))
    assert mm.read_keys(at, 16).tolist() == [*range(7), *[0] * 9]


@pytest.mark.release
@pytest.mark.skipif(ksmwalk.build_info()["profile"] != "release", reason="a build with checks")
def test_a_million_random_stores_take_a_fraction_of_a_second():
    pages = 1 << 20
    host = Host(pages + 4096)
    mm = host.new_mm()
    at = mm.mmap(pages * PAGE)
    mm.populate(at, pages * PAGE)
    rng = np.random.default_rng(1)
    addrs = at + rng.integers(0, pages, 10**6) * PAGE
    keys = rng.integers(0, 1 << 60, 10**6)
    took = []
    for call in (lambda: mm.write_at(addrs, keys), lambda: mm.read_at(addrs)):
        rounds = []
        for _ in range(3):
            begin = time.perf_counter()
            call()
            rounds.append(time.perf_counter() - begin)
        took.append(min(rounds))
    assert max(took) < 0.15, took
    last = dict(zip(addrs.tolist(), keys.tolist(), strict=True))
    assert all(mm.read(addr) == key for addr, key in list(last.items())[:1000])
