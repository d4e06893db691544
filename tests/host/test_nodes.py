"""mbind, move_pages, migrate_pages: where pages are, and that everything else about them stays."""

import errno

import numpy as np
import pytest
from hostcheck import check
from hypothesis import given, settings
from hypothesis import strategies as st
from ksmcheck import check_ksm

import ksmwalk
from ksmwalk.layout import Vm

P = 4096
START = 0x10000000


def two_nodes(**options):
    return ksmwalk.Host(1 << 13, 2, **options)


def nodes(mm, addr, n):
    """Node of each page, -1 where nothing is present."""
    pfns = mm.read_pfns(addr, n)
    return np.where(pfns < 0, -1, mm.host.frames.nid[pfns]).tolist()


def area(host, n=8):
    mm = host.new_mm()
    return mm, mm.mmap(n * P, START)


def merged(host, content=7):
    """Two address spaces that map one KSM page, on node 0."""
    pair = [area(host) for _ in range(2)]
    for mm, at in pair:
        mm.madvise(at, 8 * P, "mergeable")
        mm.write(at, content)
    for _ in range(2):
        host.ksm.full_scan()
    assert pair[0][0].read_pfns(START, 1) == pair[1][0].read_pfns(START, 1)
    return [mm for mm, _ in pair]


def test_mbind_cuts_areas_and_joins_them_again():
    mm, at = area(two_nodes())
    mm.mbind(at + 2 * P, 2 * P, 1)
    assert [(v.vm_start - at) // P for v in mm.vmas] == [0, 2, 4]
    mm.mbind(at, 8 * P, 1)
    assert len(mm.vmas) == 1
    mm.mbind(at, 8 * P, None)
    mm.mbind(at + 2 * P, 2 * P, 1)
    mm.write(at, list(range(8)))
    assert nodes(mm, at, 8) == [0, 0, 1, 1, 0, 0, 0, 0]
    mm.mbind(at, 8 * P, 1)
    assert len(mm.vmas) == 3                # each has anonymous pages of its own by now
    assert nodes(mm, at, 8) == [0, 0, 1, 1, 0, 0, 0, 0]
    mm.munmap(at + 5 * P, P)
    with pytest.raises(OSError, match="Bad address"):
        mm.mbind(at, 8 * P, 0)
    mm.mbind(at, 8 * P, None)               # holes don't matter to that
    mm.madvise(at + 2 * P, P, "dontneed")
    mm.write(at + 2 * P, 1)
    assert nodes(mm, at + 2 * P, 1) == [0]


def test_huge_pages_copies_and_children_keep_to_the_policy():
    host = two_nodes()
    mm = host.new_mm()
    at = mm.mmap(4 << 20, 1 << 30)
    mm.madvise(at, 4 << 20, "hugepage")
    mm.mbind(at, 2 << 20, 1)
    mm.write(at, 1)
    mm.write(at + (2 << 20), 1)
    assert nodes(mm, at, 1) == [1] and nodes(mm, at + (2 << 20), 1) == [0]
    child = mm.fork()
    child.write(at, 2)
    assert nodes(child, at, 1) == [1]
    assert mm.move_pages([at], 0).tolist() == [-errno.EACCES]
    assert mm.move_pages([at + P, at + 2 * P], 0, move_all=True).tolist() == [0, -errno.EBUSY]
    assert set(nodes(mm, at, 512)) == {0}
    check(host)


@pytest.mark.parametrize("how", ["mbind", "move_pages", "migrate_pages"])
def test_a_ksm_page_is_moved_with_all_its_mappings_or_stays(how):
    host = two_nodes()
    one, two = merged(host)
    old = int(one.read_pfns(START, 1)[0])
    if how == "mbind":
        one.mbind(START, P, 1, move=True)
        assert one.read_pfns(START, 1)[0] == old
        one.mbind(START, P, 1, move_all=True)
    elif how == "move_pages":
        assert one.move_pages([START], 1).tolist() == [-errno.EACCES]
        assert one.move_pages([START], 1, move_all=True).tolist() == [1]
    else:
        assert one.migrate_pages(0, 1) == 0
    new = int(one.read_pfns(START, 1)[0])
    assert new != old and two.read_pfns(START, 1)[0] == new and host.frames.nid[new] == 1
    assert host.frames.mapcount[new] == 2 and host.frames.mapcount[old] == 0
    assert host.ksm.pages_shared == host.ksm.pages_sharing == 1
    host.ksm.full_scan()
    assert host.ksm.pages_shared == host.ksm.pages_sharing == 1
    two.write(START, 9)
    assert nodes(two, START, 1) == [0]      # a copy goes where the area's pages go
    check(host)


def test_what_each_page_is_told():
    host = two_nodes()
    mm, at = area(host)
    mm.write(at, [1, 2])
    mm.read(at + 2 * P)
    host.pin(mm, at + P)
    addrs = [at, at + P, at + 2 * P, at + 3 * P, at + 100 * P]
    told = [-errno.EFAULT, -errno.ENOENT, -errno.EFAULT]
    # one that somebody holds ends the call, which has told of the zero page by then, and of no other
    assert mm.move_pages(addrs, 1).tolist() == [0, 0, -errno.EFAULT, 0, 0]
    assert nodes(mm, at, 2) == [1, 0]
    assert mm.move_pages(addrs, [0, 0, 0, 0, 0]).tolist() == [0, 0, *told]
    host.unpin(int(mm.read_pfns(at + P, 1)[0]))
    assert mm.move_pages(addrs, 1).tolist() == [1, 1, *told]
    mm.move_pages(addrs[:2], 0)
    # a page that waits twice is busy; once the first has gone, it is there already
    assert mm.move_pages([at, at], 1).tolist() == [1, -errno.EBUSY]
    assert mm.move_pages([at, at + 3 * P, at], 0).tolist() == [0, -errno.ENOENT, 0]
    assert mm.move_pages([], 1).tolist() == []


def test_nodes_that_no_kernel_has_are_refused():
    mm = ksmwalk.Host(64).new_mm()
    assert [mm.migrate_pages(source, 0) for source in (0, 1, 1023)] == [0, 0, 0]
    for source in (1024, 1 << 63):
        with pytest.raises(OSError, match=f"from node {source} to 0"):
            mm.migrate_pages(source, 0)


def test_migrate_pages_counts_the_further_mappings_of_what_it_moves():
    host = two_nodes()
    mm, at = area(host)
    mm.madvise(at, 8 * P, "mergeable")
    mm.write(at, [5, 5, 5, 6])
    for _ in range(2):
        host.ksm.full_scan()
    assert mm.migrate_pages(0, 1) == 2 and nodes(mm, at, 4) == [1] * 4
    assert mm.migrate_pages(0, 1) == mm.migrate_pages(7, 0) == 0
    old = ksmwalk.Host(1 << 13, 2, kernel="6.1.192")
    mm, at = area(old)
    mm.madvise(at, 8 * P, "mergeable")
    mm.write(at, [5, 5, 5, 6])
    for _ in range(2):
        old.ksm.full_scan()
    assert mm.migrate_pages(0, 1) == 0 and nodes(mm, at, 4) == [1] * 4


def test_a_full_node_takes_nothing():
    host = ksmwalk.Host(1024, 2)
    mm = host.new_mm()
    at = mm.mmap(600 * P, START)
    mm.write(at, [1] * 600)         # node 0 and some of node 1
    mm.mbind(at, 600 * P, 1)
    status = mm.move_pages([at + i * P for i in range(600)], 1)
    assert (status == -errno.ENOMEM).sum() == 600 - 512
    check(host)


def test_bad_calls_change_nothing():
    mm, at = area(two_nodes())
    mm.write(at, 1)
    for call, code in (
        (lambda: mm.mbind(at, 8 * P, 2), errno.EINVAL),
        (lambda: mm.mbind(at + 1, P, 1), errno.EINVAL),
        (lambda: mm.mbind(at, 9 * P, 1, move=True), errno.EFAULT),
        (lambda: mm.move_pages([at], 2), errno.ENODEV),
        (lambda: mm.migrate_pages(0, 2), errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == code
    for call in (
        lambda: mm.move_pages([at], [0, 1]), lambda: mm.move_pages([-1], 1), lambda: mm.mbind(at, P, -1),
        lambda: mm.mbind(at, P, 1, move=2), lambda: mm.move_pages([at], 1.5), lambda: mm.migrate_pages("0", 1),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            call()
    assert nodes(mm, at, 1) == [0] and len(mm.vmas) == 1
    mm.exit()
    with pytest.raises(ProcessLookupError):
        mm.move_pages([at], 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 11), st.integers(0, 1), st.integers(0, 3)), max_size=40))
def test_contents_and_counts_survive_any_moves(steps):
    """Whatever is moved: each page holds what was stored, nothing is lost or leaked, KSM finds no difference."""
    host = two_nodes()
    host.ksm.write("merge_across_nodes", 0)
    host.ksm.write("max_page_sharing", 3)
    mms = [host.new_mm() for _ in range(2)]
    held = {}
    for mm in mms:
        mm.mmap(12 * P, START)
        mm.madvise(START, 12 * P, "mergeable")
    for what, page, which, content in steps:
        mm, at = mms[which], START + page * P
        if what < 2:
            mm.write(at, content)
            held[which, page] = content
        elif what == 2:
            mm.move_pages([at, START], content % 2, move_all=bool(content & 2))
        elif what == 3:
            mm.mbind(at, P, content % 2, move_all=bool(content & 2))
        elif what == 4:
            mm.migrate_pages(content % 2, 1 - content % 2)
        elif what == 5:
            mm.madvise(at, P, "dontneed")
            held.pop((which, page), None)
        else:
            host.ksm.full_scan()
    for which, mm in enumerate(mms):
        assert mm.read_keys(START, 12).tolist() == [held.get((which, page), 0) for page in range(12)]
        assert all(v.vm_flags & Vm.MERGEABLE for v in mm.vmas)
    check(host)
    check_ksm(host)
    for mm in mms:
        mm.exit()
    host.ksm.full_scan()
    host.ksm.write("run", 2)
    assert host.frames_used == 1 and host.ksm.pages_shared == 0
    check(host)


@pytest.mark.parametrize("kernel", ["6.12.117", "6.1.192"])
def test_a_huge_page_that_nobody_maps_in_part_is_split_before_it_moves(kernel):
    host = ksmwalk.Host(1 << 13, nr_nodes=2, kernel=kernel)
    mm = host.new_mm()
    at = mm.mmap(512 * 4096, addr=1 << 30)
    mm.madvise(at, 512 * 4096, "hugepage")
    mm.write(at, np.arange(512, dtype=np.uint64))
    mm.munmap(at + 200 * 4096, 10 * 4096)
    assert mm.move_pages([at + 5 * 4096], 1).tolist() == [1]
    maps = mm.tables.mappings()
    pfns = maps["pfn"].astype(np.int64)
    nodes = host.world.arrays["f_nid"][pfns]
    old = kernel == "6.1.192"
    assert len(pfns) == 502 and (nodes[pfns > 0] == 1).all()
    # the empty page became the zero page, if its huge page was split
    assert (pfns == 0).sum() == (0 if old else 1)
