"""What one version saved, all later ones load; the records change only with the version."""

import hashlib
import shutil
from pathlib import Path

import hostcheck
import ksmcheck
import numpy as np

from ksmwalk import Host, layout
from ksmwalk.host import saved
from ksmwalk.layout import Frame

DATA = Path(__file__).parents[1] / "data"
#: version of saved Hosts -> digest of the records and arrays it holds
DIGESTS = {1: "3cf46f9c0a5dea2f", 2: "e2992f7cbada1b60", 3: "fc3d5bb9667bc4c8", 4: "c4c31f2fd85929d6", 5: "143c8158856372e9",
           6: "399526d2d45bec8d", 7: "5e5d9d7b010518e6"}


def digest() -> str:
    said = [(name, array.dtype.descr, array.shape) for name, array in layout.ARRAYS.items()]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def test_the_records_change_with_the_version_of_saved_hosts():
    assert DIGESTS[saved.VERSION] == digest(), (
        "records or arrays of layout/_layout.h changed: raise VERSION in host/saved.py, teach it to read the version"
        " before, keep a Host saved by that one in tests/data, and add the new digest here"
    )


def test_a_host_that_version_1_saved_goes_on(tmp_path):
    shutil.unpack_archive(DATA / "host-version-1.zip", tmp_path)
    host = Host.load(tmp_path)
    counters = host.ksm.counters()
    assert (counters["full_scans"], counters["pages_shared"], counters["pages_sharing"]) == (3, 49, 61)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    a, b, child = host.mm_list
    assert a.read_keys(1 << 30, 40).tolist() == b.read_keys(1 << 30, 40).tolist() == [i // 3 for i in range(40)]
    child.exit()
    b.write(1 << 30, 77)
    host.ksm.run_until()
    hostcheck.check(host)
    ksmcheck.check_ksm(host)


def test_a_host_that_version_2_saved_goes_on_with_owners_found_in_its_tables(tmp_path):
    shutil.unpack_archive(DATA / "host-version-2.zip", tmp_path)
    host = Host.load(tmp_path)
    counters = host.ksm.counters()
    assert (counters["full_scans"], counters["pages_shared"], counters["pages_sharing"]) == (3, 14, 66)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    a, b, c, child, grandchild = host.mm_list
    # Three huge pages: two were split for one of the three that share each, one not.
    owners = host.world.arrays["owners"][host.frames.head[a.read_pfns(1 << 31, 3 * 512)[::512]] >> 2]
    assert owners["total"].tolist() == [2 + 511, 2 + 511, 3] and owners["shared"].tolist() == [1, 1, 1]
    assert host.frames.flags[c.read_pfns(1 << 30, 1)[0]] & Frame.EXCLUSIVE
    assert not host.frames.flags[a.read_pfns((1 << 30) + 50 * 4096, 1)[0]] & Frame.KSM
    child.exit()
    grandchild.exit()
    before = a.read_pfns(1 << 31, 3 * 512)
    a.write(1 << 31, np.arange(3 * 512, dtype=np.uint64))
    assert (a.read_pfns(1 << 31, 3 * 512) == before).all()  # the last owner stores in place
    b.write(1 << 30, 77)
    host.ksm.run_until()
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    host.save(tmp_path / "again")
    hostcheck.check(Host.load(tmp_path / "again"))


def test_a_host_that_version_3_saved_goes_on_without_heaps(tmp_path):
    shutil.unpack_archive(DATA / "host-version-3.zip", tmp_path)
    host = Host.load(tmp_path)
    counters = host.ksm.counters()
    assert (counters["full_scans"], counters["pages_shared"], counters["pages_sharing"]) == (3, 14, 66)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    a, b, child = host.mm_list
    assert a.start_brk == a.brk() == 0 and host.nr_cpus == 2
    # A huge page that a fork shares: its owners are those that were saved.
    owners = host.world.arrays["owners"][host.frames.head[a.read_pfns(1 << 31, 1)] >> 2]
    assert owners["total"].tolist() == [2] and owners["shared"].tolist() == [1]
    a.start_brk = 1 << 28
    assert child.fork().brk(1 << 28) == 0 and a.brk((1 << 28) + 4096) == (1 << 28) + 4096
    host.ksm.run_until()
    hostcheck.check(host)
    host.save(tmp_path / "again")
    assert Host.load(tmp_path / "again").mm_list[0].brk() == (1 << 28) + 4096


def test_a_host_that_version_4_saved_goes_on_with_its_families(tmp_path):
    shutil.unpack_archive(DATA / "host-version-4.zip", tmp_path)
    host = Host.load(tmp_path)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    a, b, grandchild = host.mm_list
    records = host.world.arrays["anons"]
    family = records["number"][[records["above"][grandchild.vmas[-1].anon_vma], b.vmas[-1].anon_vma]]
    assert family[0] == family[1] and not records["above"][b.vmas[-1].anon_vma]
    assert host.swap_used == 23
    host.swapoff()
    hostcheck.check(host)
    assert host.swap_used == 0 and b.read_keys(1 << 31, 8).tolist() == [100, 777, *range(102, 108)]
    assert grandchild.read_keys(1 << 31, 8).tolist() == [*range(100, 108)]
    host.save(tmp_path / "again")
    hostcheck.check(Host.load(tmp_path / "again"))


def test_a_host_that_version_5_saved_goes_on_with_its_userfaultfd(tmp_path):
    shutil.unpack_archive(DATA / "host-version-5.zip", tmp_path)
    host = Host.load(tmp_path)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    a, b = host.mm_list
    at, page = 1 << 30, 4096
    assert [v.userfaultfd for v in a.vmas] == [0, None, 0, None] and [v.userfaultfd for v in b.vmas] == [None]
    a.uffd_register(at + 4 * page, 4 * page, wp=True, asynchronous=True)
    assert [(v.vm_start, v.page_size) for v in a.vmas] == [(at, page), (at + 8 * page, page), (at + 12 * page, page)]
    assert host.ksm.counters()["pages_sharing"] == 28
    host.save(tmp_path / "again")
    hostcheck.check(Host.load(tmp_path / "again"))


def test_a_host_that_version_6_saved_goes_on_with_nothing_marked_waiting(tmp_path):
    shutil.unpack_archive(DATA / "host-version-6.zip", tmp_path)
    host = Host.load(tmp_path)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    batches = host.world.arrays["batches"]
    assert batches["nr_lru"].tolist() == [3, 0] and batches["nr_lazy"].tolist() == [0, 0]
    b = host.mm_list[1]
    b.madvise((1 << 30) + (1 << 21) + 2 * 4096, 3 * 4096, 8)
    assert batches["nr_lazy"].tolist() == [0, 3]
    hostcheck.check(host)
    host.save(tmp_path / "again")
    again = Host.load(tmp_path / "again")
    assert again.world.arrays["batches"].tobytes() == batches.tobytes()
    again.drain()
    hostcheck.check(again)
