"""A saved Host continues exactly as if it had not been; files that no Host wrote are refused by name."""

import pickle
import time

import numpy as np
import pytest
from busy import busy_host, crowded_host, numa_host
from hostcheck import check

from ksmwalk import Host
from ksmwalk.host.saved import kept_arrays

PAGE = 4096


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


@pytest.mark.parametrize("make", [crowded_host, lambda: crowded_host(1), numa_host])
def test_hosts_of_all_kinds_are_kept(make, tmp_path):
    host = make()
    other = through_directory(host, tmp_path)
    same(host, other)
    for one in (host, other):
        one.ksm.do_scan(3000)
        one.mm_list[0].fork()
        one.mm_list[1].exit()
        one.ksm.do_scan(3000)
        one.ksm.run = 2
    same(host, other)


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
        ("f_head", lambda a: a.__setitem__(1, 2**31), "f_head: record 1 holds 2147483648"),
        ("ctl", lambda a: a["nr_frames"].__setitem__(0, 1), r"ctl\.nr_frames: record 0 holds 1,"),
        ("ctl", lambda a: a["vmas_used"].__setitem__(0, 5), "array vmas: shape"),
        ("b_next", lambda a: a.__setitem__(0, 70), "b_next: record 0 holds 70"),
        ("cursor", lambda a: a["slot"].__setitem__(0, 12), r"cursor\.slot"),
        ("mms", lambda a: a["vma_first"].__setitem__(1, 999), r"mms\.vma_first: record 1 holds 999"),
        ("mms", lambda a: a["nid"].__setitem__(1, 1), r"mms\.nid: record 1 holds 1: no NUMA node"),
        ("f_nid", lambda a: a.__setitem__(3, 1), "f_nid: record 3 holds 1: no NUMA node"),
        ("event_pos", lambda a: a.__setitem__(0, -1), "event_pos: record 0 holds -1"),
        ("batches", lambda a: a["nr_lru"].__setitem__(0, 70), r"batches\.nr_lru: record 0 holds 70"),
        ("batches", lambda a: a["nr_mlock"].__setitem__(0, 31), r"batches\.nr_mlock: record 0 holds 31"),
        ("batches", lambda a: a["nr_mlock"].__setitem__(0, 1), r"batches\.mlock: record 0 holds 0: no small page in use"),
        ("ksm", lambda a: a["cpu"].__setitem__(0, 1), r"ksm\.cpu: record 0 holds 1: no CPU"),
        ("mms", lambda a: a["cpu"].__setitem__(0, 1), r"mms\.cpu: record 0 holds 1: no CPU"),
        ("ctl", lambda a: a["lru_batch"].__setitem__(0, 1 << 40), r"ctl\.lru_batch"),
        ("b_free", lambda a: a.__setitem__((0, 0), 0), "b_count: record 0 holds 510, counted 448 bits set in b_free"),
        ("b_heads", lambda a: a.__setitem__(slice(None), a[::-1].copy()), "b_count: record .* on the list of another NUMA node"),
        ("vmas", lambda a: a["end"].__setitem__(1, 0), r"vmas\.end: record 1 holds 0"),
        ("vmas", lambda a: a["start"].__setitem__(1, 123), r"vmas\.start: record 1 holds 123"),
        ("vmas", lambda a: a["next"].__setitem__(1, 1), r"vmas\.next: record 1 holds 1: an area that is free, or on a list"),
        ("rows", lambda a: a.__setitem__((1, 0), 0x1067), "rows: table page 1, entry 0 holds 0x1067: points to a table page"),
        ("rows", lambda a: a.__setitem__((1, 0), 0x99067), "rows: table page 1, entry 0 holds 0x99067: neither a table"),
        ("r_owner", lambda a: a.__setitem__(1, 13), "r_owner: record 1 holds 13"),
        ("f_mapcount", lambda a: a.__setitem__(1, 2), "f_mapcount: record 1 holds 2, counted 1 entries that map it"),
        ("f_extra", lambda a: a.__setitem__(1, -1), "f_extra: record 1 holds -1: negative"),
        ("ctl", lambda a: a["rows_cap"].__setitem__(0, 1 << 50), r"ctl\.rows_cap: record 0 holds 1125899906842624"),
        ("ksm", lambda a: a["pages_shared"].__setitem__(0, 3), r"ksm\.pages_shared: record 0 holds 3, counted 0"),
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


def test_lists_and_trees_without_an_end_are_refused():
    """Loops of all lists of records, and of both kinds of trees."""
    state = crowded_host().__getstate__()
    nodes = state["arrays"]["nodes"]
    chain, dup = int(np.flatnonzero(nodes["flags"] & 2)[0]), int(np.flatnonzero(nodes["flags"] & 4)[0])
    items = state["arrays"]["items"]
    stable, tree = int(np.flatnonzero(items["flags"] & 1)[0]), int(state["arrays"]["trees"][0, 1])
    free = {name: int(state["arrays"]["ctl"][name][0]) for name in ("items_free", "vmas_free", "mms_free")}
    first = int(state["arrays"]["mms"]["rmap_list"][1])
    for array, field, record in (
        ("items", "next", first), ("items", "next", free["items_free"]), ("vmas", "next", free["vmas_free"]),
        ("mms", "vma_first", free["mms_free"]), ("mms", "slot_next", 1), ("nodes", "dup_next", dup), ("nodes", "left", chain),
        ("links", "left", stable), ("links", "right", tree), ("nodes", "dups", chain),
    ):  # fmt: skip
        forged = {**state, "arrays": state["arrays"] | {array: state["arrays"][array].copy()}}
        forged["arrays"][array][field][record] = record
        with pytest.raises(ValueError, match=r"(items|vmas|mms|nodes|links|ctl)[.:].*record \d+ holds"):
            Host.__new__(Host).__setstate__(forged)


def test_a_nodes_list_of_items_is_refused_at_the_record_that_leads_nowhere():
    state = crowded_host().__getstate__()
    nodes, links = state["arrays"]["nodes"], state["arrays"]["links"]
    node = next(int(i) for i in np.flatnonzero(nodes["count"] > 1))
    first = int(nodes["items"][node])
    assert links["left"][first]
    for array, field, record in (("nodes", "items", node), ("links", "left", first)):
        forged = {**state, "arrays": state["arrays"] | {array: state["arrays"][array].copy()}}
        forged["arrays"][array][field][record] = 999999
        with pytest.raises(ValueError, match=rf"{array}\.{field}: record {record} holds 999999: no rmap_item"):
            Host.__new__(Host).__setstate__(forged)


def test_a_refused_pickle_changes_nothing():
    host = busy_host()
    before = host.__getstate__()
    forged = {**before, "arrays": before["arrays"] | {"trees": before["arrays"]["trees"] + 100000}}
    with pytest.raises(ValueError, match="trees: record 0"):
        host.__setstate__(forged)
    assert all(np.array_equal(a, host.__getstate__()["arrays"][name]) for name, a in before["arrays"].items())


def test_a_host_that_load_would_refuse_is_not_saved(tmp_path):
    host = Host(4096)
    mm = host.new_mm()
    mm.write(mm.mmap(8 * PAGE), 1)
    host.world.arrays["f_mapcount"][1] = 9
    with pytest.raises(ValueError, match="could not be loaded again: f_mapcount: record 1 holds 9"):
        host.save(tmp_path / "h")
    assert not (tmp_path / "h").exists()


def test_the_fields_of_frames_may_end_where_no_frame_was_used(tmp_path):
    host = Host(1 << 16)
    mm = host.new_mm()
    mm.write(mm.mmap(8 * PAGE), 1)
    host.save(tmp_path / "h")
    assert len(np.load(tmp_path / "h" / "f_key.npy")) == 512
    same(host, Host.load(tmp_path / "h"))


@pytest.mark.release
def test_a_large_host_is_checked_in_well_under_a_second():
    host = Host(1 << 21)
    mm = host.new_mm()
    mm.mmap(1 << 32, 1 << 40)
    mm.madvise(1 << 40, 1 << 32, "mergeable")
    mm.write(1 << 40, np.arange(1 << 20, dtype=np.uint64) % 500000)
    host.ksm.run = 1
    for _ in range(3):
        host.ksm.do_scan(1 << 20)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        kept_arrays(host)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.6, times
