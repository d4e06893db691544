"""Domains: pages are merged only with those of address spaces of the same number."""

import pickle

import hostcheck
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ksmcheck import check_ksm

from ksmwalk import Host
from ksmwalk.errors import ArenaFullError

PAGE = 4096
BASE = 1 << 32
TUNABLES = {"smart_scan": 0, "max_page_sharing": 3, "stable_node_chains_prune_millisecs": 0}


def process(host: Host, keys, domain: int = 0, nid: int = 0):
    mm = host.new_mm(nid)
    mm.domain = domain
    mm.mmap(len(keys) * PAGE, BASE)
    mm.write(BASE, np.array(keys, np.uint64))
    mm.madvise(BASE, len(keys) * PAGE, "mergeable")
    return mm


def settled(host: Host) -> dict[str, int]:
    host.drain()
    for name, value in TUNABLES.items():
        host.ksm.write(name, value)
    for _ in range(4):
        host.ksm.full_scan()
        check_ksm(host)
    hostcheck.check(host)
    return host.ksm.counters()


def frames_of(*mms) -> set[int]:
    return set(np.concatenate([mm.read_pfns(BASE, 2) for mm in mms]).tolist())


def test_equal_pages_are_merged_within_a_domain_only():
    host = Host(4096)
    a, b, c, d = (process(host, [7, 8], domain) for domain in (0, 1, 0, 1))
    counters = settled(host)
    assert (counters["pages_shared"], counters["pages_sharing"]) == (4, 4)
    assert frames_of(a) == frames_of(c) and frames_of(b) == frames_of(d) and not frames_of(a) & frames_of(b)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 6), min_size=1, max_size=12)), min_size=1, max_size=8),
    st.sampled_from([0, 1]),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 11), st.integers(1, 6)), max_size=6),
)
def test_domains_are_machines_of_their_own(processes, across, writes):
    """Every domain merges as a Host does that has nothing but its processes."""
    domains = sorted({domain for domain, _ in processes})

    def run(which) -> tuple[dict[str, int], list]:
        host = Host(8 * 512, 2)
        host.ksm.merge_across_nodes = across
        mms = [
            process(host, keys, domain, i % 2) if domain in which else None for i, (domain, keys) in enumerate(processes)
        ]
        settled(host)
        for who, at, key in writes:
            if who < len(mms) and mms[who] is not None and at < len(processes[who][1]):
                mms[who].write(BASE + at * PAGE, key)
        counters = settled(host)
        shapes = []
        for mm, (_, keys) in zip(mms, processes, strict=True):
            if mm is not None:
                shapes.append([(item.address, item.stable, item.unstable, item.age) for item in mm.rmap_items])
                assert mm.read_keys(BASE, len(keys)).min() >= 1
        return counters, shapes

    together, shapes = run(domains)
    alone = [run([domain]) for domain in domains]
    for name in ("pages_shared", "pages_sharing", "pages_unshared", "pages_scanned", "stable_node_chains", "stable_node_dups"):
        assert together[name] == sum(counters[name] for counters, _ in alone), name
    assert sorted(shapes) == sorted(shape for _, each in alone for shape in each)


def test_changing_the_domain_breaks_what_is_merged_and_merges_it_again():
    host = Host(4096)
    a, b, c = (process(host, [7, 8]) for _ in range(3))
    assert settled(host)["pages_sharing"] == 4
    keys = c.read_keys(BASE, 2).tolist()
    c.domain = 5
    check_ksm(host)
    assert host.ksm.pages_sharing == 2 and not frames_of(a) & frames_of(c) and c.read_keys(BASE, 2).tolist() == keys
    assert settled(host)["pages_sharing"] == 2
    c.domain = 0
    assert settled(host)["pages_sharing"] == 4 and frames_of(a) == frames_of(b) == frames_of(c)
    c.domain = 0  # nothing to do
    assert host.ksm.pages_sharing == 4


def test_changing_the_domain_in_mid_scan_keeps_the_trees_whole():
    host = Host(4096)
    mms = [process(host, range(1 + i, 40 + i)) for i in range(3)]
    host.drain()
    host.ksm.smart_scan = 0
    host.ksm.full_scan()
    for step in range(30):
        host.ksm.do_scan(7)
        mms[step % 3].domain = step % 4
        check_ksm(host)
    settled(host)
    hostcheck.check(host)


def test_a_child_is_in_its_parents_domain_and_what_two_domains_share_by_fork_stays():
    host = Host(4096)
    parent = process(host, [7, 8, 9], 2)
    child = parent.fork()
    assert child.domain == 2
    child.exec()
    assert child.domain == 2
    child.exit()
    child = parent.fork()
    child.domain = 3
    twin = process(host, [7, 8, 9], 2)
    counters = settled(host)
    # the child's mappings are those of fork, and it finds nobody in its own domain
    assert counters["pages_sharing"] == 3
    assert child.read_keys(BASE, 3).tolist() == [7, 8, 9] and frames_of(parent) == frames_of(twin)
    child.write(BASE, 1)
    settled(host)


def test_domains_are_kept(tmp_path):
    host = Host(4096, 2)
    for domain in (0, 6, 6):
        process(host, [7, 8, 9], domain)
    host.ksm.smart_scan = 0
    host.ksm.full_scan()
    host.ksm.do_scan(4)
    host.save(tmp_path / "host")
    for copy in (Host.load(tmp_path / "host"), pickle.loads(pickle.dumps(host))):
        assert [mm.domain for mm in copy.mm_list] == [0, 6, 6]
        assert settled(copy)["pages_sharing"] == 3
    assert settled(host)["pages_sharing"] == 3


def test_forged_domains_are_refused():
    host = Host(4096)
    for domain in (0, 3, 3):
        process(host, [7, 8, 9], domain)
    host.drain()
    host.ksm.smart_scan = 0
    for _ in range(2):
        host.ksm.full_scan()
    host.ksm.do_scan(4)
    state = host.__getstate__()
    for array, field, record, value, message in (
        ("mms", "domain", 1, 9, r"mms\.domain: record 1 holds 9: no domain"),
        ("mms", "domain", 1, -1, r"mms\.domain: record 1 holds -1: no domain"),
        ("mms", "domain", 3, 0, r"nodes\.tree: record \d+ holds 3: not of the domain of its rmap_items"),
        ("nodes", "tree", 1, 77, r"nodes\.tree: record 1 holds 77: no tree"),
        ("nodes", "tree", 1, 0, r"nodes\.tree: record 1 holds 0: in another tree"),
        ("ctl", "trees_used", 0, 1 << 20, r"ctl\.trees_used: record 0 holds 1048576"),
        ("ctl", "trees_cap", 0, 8, r"ctl\.trees_cap: record 0 holds 8"),
    ):
        forged = {**state, "arrays": {name: a.copy() for name, a in state["arrays"].items()}}
        forged["arrays"][array][field][record] = value
        with pytest.raises(ValueError, match=message):
            Host.__new__(Host).__setstate__(forged)


def test_a_domain_is_a_small_number():
    host = Host(4096, 2)
    mm = host.new_mm()
    mm.domain = 32767
    for value in (-1, 32768, 1 << 70):
        with pytest.raises(ValueError, match=r"domain -?\d+.*: must be from 0 to 32767"):
            mm.domain = value
    with pytest.raises(TypeError, match="domain"):
        mm.domain = "web"
    assert mm.domain == 32767


def test_without_a_frame_left_the_domain_stays():
    host = Host(512)
    a = process(host, [7] * 8)
    settled(host)
    other = host.new_mm()
    other.mmap(600 * PAGE, BASE)
    with pytest.raises(ArenaFullError):
        other.write(BASE, np.arange(600, dtype=np.uint64) + 100)
    with pytest.raises(ArenaFullError):
        a.domain = 1
    assert a.domain == 0 and a.read_keys(BASE, 8).tolist() == [7] * 8
    hostcheck.check(host)
    check_ksm(host)
