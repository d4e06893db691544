"""A saved Host continues exactly as if it had not been; files that no Host wrote are refused by name."""

import pickle

import numpy as np
import pytest
from hostcheck import check

from ksmwalk import Host

PAGE = 4096


def busy_host():
    """A Host in mid-scan, with KSM pages, huge pages, children, an exited process, pins, and gaps in its arenas."""
    host = Host(16 * 512 + 77, 2)
    host.ksm.run = 1
    host.ksm.pages_to_scan = 50
    a, b = host.new_mm(), host.new_mm(nid=1)
    for mm in (a, b):
        start = mm.mmap(2000 * PAGE, 0x40000000)
        mm.madvise(start, 2000 * PAGE, "mergeable")
        mm.madvise(start, 512 * PAGE, "hugepage")
        mm.write(start, np.arange(1500, dtype=np.uint64) % 97)
    c = a.fork()
    host.ksm.do_scan(5000)
    host.ksm.do_scan(700)
    b.munmap(0x40000000 + 600 * PAGE, 100 * PAGE)
    c.write(0x40000000 + 5 * PAGE, 1234)
    host.pin(a, 0x40000000 + 7 * PAGE)
    a.mmap(8 * PAGE, shared=True)
    b.exit()
    host.ksm.do_scan(333)
    return host


def go_on(host):
    """Everything a while later: the same calls give the same arrays."""
    a = host.mm_list[0]
    for i in range(6):
        host.ksm.do_scan(500)
        a.write(0x40000000 + i * 13 * PAGE, i)
        child = a.fork()
        child.populate(child.mmap(64 * PAGE), 64 * PAGE)
        if i % 2:
            child.exit()
    host.ksm.do_scan(5000)
    return host


def same(x, y):
    for name, want in x.world.arrays.items():
        got = y.world.arrays[name]
        n = x._used(name)
        assert n == y._used(name), name
        assert want[:n].tobytes() == got[:n].tobytes(), name


def through_directory(host, tmp_path):
    host.save(tmp_path / "host")
    return Host.load(tmp_path / "host")


@pytest.mark.parametrize("how", ["directory", "pickle"])
def test_a_kept_host_continues_exactly(how, tmp_path):
    host = busy_host()
    check(host, pinned=[int(host.mm_list[0].read_pfns(0x40000000 + 7 * PAGE, 1)[0])])
    other = through_directory(host, tmp_path) if how == "directory" else pickle.loads(pickle.dumps(host))
    same(host, other)
    assert [m.index for m in other.mm_list] == [m.index for m in host.mm_list]
    go_on(host)
    go_on(other)
    same(host, other)
    assert host.ksm.counters() == other.ksm.counters()


def test_two_runs_give_the_same_arrays():
    same(go_on(busy_host()), go_on(busy_host()))


def test_saving_takes_an_empty_directory_only(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        Host(100).save(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    Host(100).save(tmp_path / "h")
    (tmp_path / "h" / "vmas.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"vmas\.npy"):
        Host.load(tmp_path / "h")
    with pytest.raises(FileNotFoundError, match="no directory"):
        Host.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("vmas", lambda a: a["next"].__setitem__(1, 999), r"vmas\.next: record 1 holds 999"),
        ("mms", lambda a: a["root"].__setitem__(1, -3), r"mms\.root: record 1 holds -3"),
        ("f_head", lambda a: a.__setitem__(5, 2**31), "f_head: record 5"),
        ("ctl", lambda a: a["nr_frames"].__setitem__(0, 1), r"ctl\.nr_frames: record 0 holds 1,"),
        ("ctl", lambda a: a["vmas_used"].__setitem__(0, 5), "array vmas: shape"),
        ("b_next", lambda a: a.__setitem__(0, 70), "b_next: record 0 holds 70"),
        ("cursor", lambda a: a["slot"].__setitem__(0, 12), r"cursor\.slot"),
    ],
)
def test_links_that_lead_nowhere_are_refused(array, change, message, tmp_path):
    host = Host(4096)
    mm = host.new_mm()
    mm.write(mm.mmap(8 * PAGE), 1)
    host.save(tmp_path / "h")
    file = tmp_path / "h" / f"{array}.npy"
    content = np.load(file)
    change(content)
    np.save(file, content)
    with pytest.raises(ValueError, match=message):
        Host.load(tmp_path / "h")


def test_a_wrong_dtype_is_refused(tmp_path):
    Host(100).save(tmp_path / "h")
    np.save(tmp_path / "h" / "items.npy", np.zeros(4))
    with pytest.raises(ValueError, match="array items: dtype float64"):
        Host.load(tmp_path / "h")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1,), "nr_frames 1"), ((100, 2), "nr_nodes 2"), ((5000, 0), "nr_nodes 0"), ((5000, 1, 3), "levels 3"),
    ],
)  # fmt: skip
def test_bad_sizes_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        Host(*args)


def test_bad_settings_are_named_and_change_nothing():
    host = Host(4096)
    with pytest.raises(ValueError, match="thp 'maybe'"):
        host.thp = "maybe"
    assert host.thp == "madvise"
    with pytest.raises(ValueError, match="lru_batch 64"):
        host.lru_batch = 64
    with pytest.raises(ValueError, match="nid 1"):
        host.new_mm(nid=1)
    with pytest.raises(LookupError, match="address space 4"):
        host.mm_by_number(4)
    with pytest.raises(ValueError, match="frame 3: not pinned"):
        host.unpin(3)
    with pytest.raises(ValueError, match="object 9"):
        host.new_mm().mmap(PAGE, backing=9)


def test_memory_of_the_records():
    host = Host(4096)
    assert host.memory()["rmap_item"] <= 64 and host.memory()["frame"] <= 32
    assert host.memory()["per_mapped_page"] == 0
    mm = host.new_mm()
    mm.populate(mm.mmap(100 * PAGE), 100 * PAGE)
    assert host.memory()["mapped_pages"] == 100


def test_unpickled_doors_are_fresh_and_exited_ones_say_so():
    host = Host(4096)
    mm = host.new_mm()
    start = mm.mmap(PAGE)
    vma = mm.vmas[0]
    mm.munmap(start, PAGE)
    with pytest.raises(ReferenceError, match="is gone"):
        _ = vma.vm_start
    mm.mmap(PAGE, start)
    with pytest.raises(ReferenceError):
        _ = vma.vm_flags
    mm.exit()
    for call in (mm.fork, mm.exit, mm.maps, lambda: mm.write(start, 1), lambda: mm.madvise(start, PAGE, 4)):
        with pytest.raises(ProcessLookupError):
            call()
