"""A live process in a Host: the same pages, frames and areas, and arrays that hold together."""

from __future__ import annotations

import dataclasses
import tempfile
import time

import hostcheck
import numpy as np
import pytest
from living import Living, footprint, sees_frames

from ksmwalk import ArenaFullError, Host
from ksmwalk.host import _load
from ksmwalk.layout import Frame, MmFlag, Vm
from ksmwalk.proc import pagemap
from ksmwalk.proc.frames import Kpf
from ksmwalk.sources import VmaRecord, capture, load, process
from ksmwalk.sources.folios import huge_folios
from ksmwalk.sources.reading import ProcessCapture

P, M = 4096, 2 << 20
FRAMES = sees_frames()
needs_frames = pytest.mark.skipif(not FRAMES, reason="needs CAP_SYS_ADMIN to see frame numbers")


@pytest.fixture
def child():
    with Living() as living:
        yield living


def expand(mappings):
    """(addr, pfn) of every small page, leaves taken apart: plain Python."""
    out = []
    for record in mappings:
        for index in range(512 if record["level"] == 2 else 1):
            out.append((int(record["addr"]) + index * P, int(record["pfn"]) + index))
    return out


def marked(what, start):
    """A capture with one area marked mergeable: really marking it would meet whoever drives the machine's KSM."""
    vmas = [dataclasses.replace(vma, flags=(*vma.flags, "mg")) if vma.start == start else vma for vma in what.vmas]
    return dataclasses.replace(what, vmas=vmas)


def grown(child):
    """A child with pages of all kinds; its areas by name."""
    sizes = {"giant": "1 << 45", "huge": "6 * M, align=M", "plain": "64 * P", "shared": "8 * P, 0x21"}
    areas = {name: child.do(f"new({size})") for name, size in sizes.items()}
    child.do(f"write({areas['giant']} + (1 << 44), 3, 1 << 31)")
    child.do(f"call('madvise', {areas['huge']}, 6 * M, 14)")
    child.do(f"write({areas['huge']}, 2, M)")
    child.do(f"read({areas['huge']} + 2 * M)")
    child.do(f"write({areas['huge']} + 4 * M)")
    child.do(f"call('mprotect', {areas['huge']} + 4 * M, P, 1)")
    child.do(f"write({areas['plain']}, 20)")
    child.do(f"read({areas['plain']} + 30 * P, 5)")
    child.do(f"call('mprotect', {areas['plain']} + 10 * P, 4 * P, 0)")
    child.do(f"write({areas['shared']}, 4)")
    return areas


def test_files_may_be_mapped_at_any_offset(child):
    """A sparse file is soon longer than any memory, and who maps it must not keep others from being looked at."""
    child.do("import mmap; fd = os.memfd_create('far'); os.ftruncate(fd, 1 << 62)")
    child.do("far = mmap.mmap(fd, 2 * P, flags=mmap.MAP_PRIVATE, offset=1 << 60)")
    child.do("far.write(b'x' * P); far[P]")
    child.do("near = mmap.mmap(fd, 2 * P); near[0] = 1")
    image = process(child.pid, frames=FRAMES)
    hostcheck.check(image.host)
    assert {vma.offset for vma in image.capture.vmas if "memfd:far" in vma.name} == {0, 1 << 60}
    assert [addr for addr, _ in expand(image.mm.tables.mappings())] == image.capture.addr.tolist()


@pytest.mark.parametrize("frames", [pytest.param(True, marks=needs_frames), False])
def test_the_same_pages_and_areas(child, frames):
    areas = grown(child)
    before = footprint(child.pid)
    image = process(child.pid, frames=frames)
    assert footprint(child.pid) == before
    what, mm = image.capture, image.mm
    assert image.true_frames == frames
    hostcheck.check(image.host)
    pages = expand(mm.tables.mappings())
    assert [addr for addr, _ in pages] == what.addr.tolist()
    if frames:
        zero = what.zero & ~what.huge
        assert [pfn for _, pfn in pages] == np.where(zero, 0, what.pfn).tolist()
    assert [(vma.vm_start, vma.vm_end) for vma in mm.vmas] == [(vma.start, vma.end) for vma in what.vmas]
    by_start = {vma.vm_start: vma for vma in mm.vmas}
    assert not by_start[areas["giant"]].vm_flags & Vm.MERGEABLE and by_start[areas["giant"]].vm_flags & Vm.NORESERVE
    assert by_start[areas["shared"]].vm_flags & Vm.SHARED and not by_start[areas["plain"]].vm_flags & Vm.SHARED
    leaves = mm.tables.mappings(areas["huge"], areas["huge"] + 6 * M)
    if what.huge.any():
        assert leaves["level"][:3].tolist() == [2, 2, 2] and len(leaves) >= 3 + 512
    # the hardware doesn't see the pages without access, the kernel does
    start = areas["plain"] + 10 * P
    assert len(mm.tables.mappings(start, start + 4 * P)) == 4
    assert len(mm.tables.mappings(start, start + 4 * P, view="hardware")) == 0


@pytest.mark.parametrize("frames", [pytest.param(True, marks=needs_frames), False])
def test_the_scan_finds_the_anonymous_pages(child, frames):
    areas = grown(child)
    image = load(marked(capture(child.pid, frames=frames), areas["giant"]))
    scan = image.host.ksm.scan
    for strategy in ("range", "per-address"):
        scan.strategy = strategy
        found = []
        while (step := scan.scan_get_next_rmap_item()) is not None:
            found.append(step[0].address)
        assert found == [areas["giant"] + (1 << 44) + (i << 31) for i in range(3)]
    everything = process(child.pid, frames=frames, mark="all")
    wanted = []
    for vma, (first, last) in zip(everything.capture.vmas, everything.capture.vma_slices(), strict=True):
        if vma.not_compatible is None:
            wanted += everything.capture.addr[first:last][everything.capture.anon[first:last]].tolist()
    found = []
    while (step := everything.host.ksm.scan.scan_get_next_rmap_item()) is not None:
        found.append(step[0].address)
    assert found == wanted
    nothing = process(child.pid, frames=frames, mark="none")
    assert nothing.host.ksm.scan.scan_get_next_rmap_item() is None


def test_the_image_lives_on(child):
    """Faults, discards, unmapping and exit work on a loaded address space as on one that was made."""
    areas = grown(child)
    image = process(child.pid)
    mm, host = image.mm, image.host
    mm.write(areas["giant"], 77)
    assert mm.read(areas["giant"]) == 77
    mm.madvise(areas["plain"], 5 * P, "dontneed")
    assert len(mm.tables.mappings(areas["plain"], areas["plain"] + 10 * P)) == 5
    shared = mm.tables.lookup(areas["shared"])["pfn"]
    mm.madvise(areas["shared"], 4 * P, "dontneed")
    mm.read(areas["shared"])
    assert mm.tables.lookup(areas["shared"])["pfn"] == shared  # the object kept it
    mm.mprotect(areas["huge"] + M, P, "r")
    mm.munmap(areas["huge"], 6 * M)
    hostcheck.check(host)
    twin = mm.fork()
    twin.write(areas["plain"] + 6 * P, 5)
    hostcheck.check(host)
    twin.exit()
    mm.exit()
    hostcheck.check(host)


@needs_frames
def test_two_processes_share_what_they_share(child):
    area = child.do("new(64 * P)")
    child.do(f"write({area}, 64)")
    child.do("r, w = os.pipe()")
    twin = child.do("os.fork() or (os.close(w), os.read(r, 1), os._exit(0))")
    nr_frames = 1 + max(int(capture(pid).pfn.max()) for pid in (child.pid, twin)) + 4096
    host = Host(nr_frames, huge=False)
    one, two = process(child.pid, host=host), process(twin, host=host)
    hostcheck.check(host)
    pfns = [image.mm.tables.mappings(area, area + 64 * P)["pfn"] for image in (one, two)]
    assert (pfns[0] == pfns[1]).all()
    assert (host.frames.mapcount[pfns[0]] == 2).all()


def made(vmas, runs, **more):
    """A capture from (address, pages, categories) runs."""
    addr = np.concatenate([np.arange(n, dtype=np.uint64) * np.uint64(P) + np.uint64(at) for at, n, _ in runs])
    categories = np.concatenate([np.full(n, c, np.uint64) for _, n, c in runs])
    return ProcessCapture(1, "made", vmas, addr, categories, **more)


def area(start, end, flags="rd wr mr mw me ac"):
    return VmaRecord(start, end, "rw-p", 0, "00:00", 0, "", tuple(flags.split()), anonymous=P)


def test_a_capture_loads_again_and_a_small_host_is_refused():
    base = 1 << 40
    what = made([area(base, base + 64 * M, "rd wr mg")], [(base, 100, pagemap.PAGE_IS_PRESENT)])
    what.pfn = np.arange(5000, 5100, dtype=np.uint64)
    host = Host(6000)
    used = host.frames_used
    load(what, host=host)
    hostcheck.check(host)
    what.pfn[50] = 6000
    with pytest.raises(ArenaFullError, match="frame 0x1770 of process 1: this Host has only 0x1770 frames"):
        load(what, host=host)
    assert host.frames_used == used + 100 and len(host.mm_list) == 1
    with pytest.raises(ValueError, match="mark='some'"):
        load(what, mark="some")


@pytest.mark.parametrize("heads", [[0], [0, 256], []])
def test_folios_mapped_page_by_page(heads):
    """512 frames of one folio, in ptes, keep together; frames of smaller folios are small pages."""
    base, first = 1 << 40, 1024
    what = made([area(base, base + 64 * M)], [(base + 3 * P, 512, pagemap.PAGE_IS_PRESENT)])
    what.pfn = np.arange(first, first + 512, dtype=np.uint64)
    kpf = np.full(512, Kpf.THP | Kpf.ANON | Kpf.MMAP | Kpf.COMPOUND_TAIL, np.uint64)
    kpf[heads] ^= np.uint64(Kpf.COMPOUND_HEAD | Kpf.COMPOUND_TAIL)
    what.frame_flags, what.exclusive = kpf, np.ones(512, bool)
    with tempfile.TemporaryFile() as kpageflags:
        kpageflags.write(np.concatenate((np.zeros(first, np.uint64), kpf)).tobytes())
        kpageflags.flush()
        what.folios = huge_folios(kpageflags.fileno(), what.pfn, kpf, what.huge, 1)
    # the head, and others, are mapped nowhere any more: they are there all the same
    what = made([area(base, base + 64 * M)], [(base + 10 * P, 400, pagemap.PAGE_IS_PRESENT)], pfn=what.pfn[7:407],
                frame_flags=kpf[7:407], exclusive=what.exclusive[7:407], folios=what.folios)  # fmt: skip
    image = load(what)
    hostcheck.check(image.host)
    together = heads == [0]
    assert (image.host.frames.head[first : first + 512] == first).all() == together


def test_writable_where_a_store_needs_no_fault():
    base = 1 << 40
    kinds = ("rd wr mr mw me ac", "rd", "rd wr sh mr mw ms")
    vmas = [area(base + i * M, base + (i + 1) * M, flags) for i, flags in enumerate(kinds)]
    present = pagemap.PAGE_IS_PRESENT
    what = made(
        vmas, [(base, 2, present), (base + M, 1, present), (base + 2 * M, 1, present | pagemap.PAGE_IS_FILE)]
    )
    what.pfn, what.exclusive = np.arange(600, 604, dtype=np.uint64), np.array([True, False, True, True])
    image = load(what)
    assert [bool(flags & 2) for flags in image.mm.tables.mappings()["flags"]] == [True, False, False, True]


def test_five_levels_where_needed():
    base = 1 << 50
    what = made([area(base, base + 64 * M, "rd wr mg")], [(base + M, 3, pagemap.PAGE_IS_PRESENT)])
    image = load(what)
    assert image.host.levels == 5
    assert image.mm.tables.mappings()["addr"].tolist() == [base + M + i * P for i in range(3)]


def test_slots_are_where_a_first_madvise_puts_them():
    """The list of a host with several loaded processes: as with mms that are marked by hand."""
    base = 1 << 40
    what = made([area(base, base + 64 * M, "rd wr mg")], [(base, 4, pagemap.PAGE_IS_PRESENT)])
    hosts = Host(1 << 16), Host(1 << 16)
    for _ in range(3):
        load(what, host=hosts[0])
        mm = hosts[1].new_mm()
        mm.mmap(64 * M, addr=base)
        mm.write(base, np.arange(1, 5, dtype=np.uint64))
        mm.madvise(base, 64 * M, "mergeable")
        for host in hosts:
            host.ksm.scan.scan(3)
    order = [host.world.arrays["mms"][["slot_next", "slot_prev"]][:4].tolist() for host in hosts]
    slots = [[step[0].address for step in iter(host.ksm.scan.scan_get_next_rmap_item, None)] for host in hosts]
    assert slots[0] == slots[1]
    assert [len(o) for o in order] == [4, 4]
    for host in hosts:
        assert sum(bool(flags & MmFlag.HAS_SLOT) for flags in host.mms["flags"]) == 3


def test_loading_in_time(child):
    """32 TiB in under 50 ms, an eighth of a million pages in what a million may take; of processor time."""
    giant = child.do("new(1 << 45)")
    child.do(f"write({giant} + (1 << 44))")

    def best(n):
        seconds = []
        for _ in range(n):
            start = time.process_time()
            process(child.pid)
            seconds.append(time.process_time() - start)
        return min(seconds)

    before = footprint(child.pid)
    assert best(5) < 0.05
    assert footprint(child.pid) == before
    many = child.do("new(1 << 29)")
    child.do(f"call('madvise', {many}, 1 << 29, 15)")
    child.do(f"call('madvise', {many}, 1 << 29, 23)")
    assert best(3) < 0.5


def test_captures_are_plain_data(child):
    """A capture says all there is: it can be changed and loaded without the process."""
    grown(child)
    what = capture(child.pid)
    child.__exit__()
    half = dataclasses.replace(what, vmas=what.vmas[:1])
    first, last = what.vma_slices()[0]
    for name in ("addr", "categories", "pfn", "exclusive", "frame_flags"):
        if getattr(what, name) is not None:
            setattr(half, name, getattr(what, name)[first:last])
    image = load(half)
    assert len(image.mm.vmas) == 1 and len(expand(image.mm.tables.mappings())) == last - first


def arrays_for_loading():
    """What `_load.load_pages` takes, for one leaf and three small pages behind it."""
    base, leaf = 1 << 40, 0x7000
    addr = np.append(base + np.arange(512) * P, base + M + np.arange(3) * P).astype(np.uint64)
    pfns = np.append(1024 + np.arange(512), [5000, 5001, 700]).astype(np.int64)
    pages = np.append(np.full(512, leaf & 0x6000 | Frame.ANON), np.full(3, int(Frame.ANON))).astype(np.uint16)
    return {
        "addr": addr,
        "pfns": pfns,
        "pages": pages,
        "slices": np.array([[0, 515]], np.int64),
        "vm_flags": np.array([Vm.READ | Vm.WRITE], np.uint64),
    }


def test_the_compiled_loop_takes_a_leaf():
    host = Host(8192)
    mm = host.new_mm()
    mm.mmap(4 * M, addr=1 << 40)
    assert _load.load_pages(host.world, mm.number, **arrays_for_loading()) == 515
    hostcheck.check(host)
    assert mm.tables.mappings()["level"].tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("pfns", 513, 8192),
        ("pfns", 513, -1),
        ("pfns", 0, 1023),
        ("pfns", 511, 1600),
        ("addr", 511, 1 << 41),
        ("pages", 512, 0x6001),
        ("pages", 0, 1),
        ("slices", (0, 1), 516),
        ("slices", (0, 1), 511),
        ("slices", (0, 0), 1),
        ("slices", (0, 0), -1),
    ],
)
def test_the_compiled_loop_refuses_nonsense(name, index, value):
    host = Host(8192)
    mm = host.new_mm()
    mm.mmap(4 * M, addr=1 << 40)
    arrays = arrays_for_loading()
    arrays[name][index] = value
    with pytest.raises((ValueError, IndexError), match=r"frame|leaf|slice"):
        _load.load_pages(host.world, mm.number, **arrays)
    hostcheck.check(host)


def test_a_full_arena_of_tables_is_said_and_cleaned_up():
    """Pages far apart on a host with hardly any table pages."""
    base = 1 << 40
    what = made(
        [area(base, base + (1 << 45), "rd wr mg")], [(base + (i << 35), 1, pagemap.PAGE_IS_PRESENT) for i in range(900)]
    )
    host = Host(2048)
    host.world.arrays["ctl"]["rows_cap"] = 1200
    with pytest.raises(ArenaFullError, match="no table page left at 0x"):
        load(what, host=host)
    hostcheck.check(host)
    assert host.mm_list == []


def test_an_object_lets_go_once_of_a_folio_that_it_holds_page_by_page():
    host = Host(8 * 512, thp="always")
    mm = host.new_mm()
    mm.mmap(M, M)
    mm.write(M, 7)
    first = int(mm.read_pfns(M, 1)[0])
    assert host.frames.flags[first] & Frame.HEAD and host.frames.refs[first] == 512
    held = host.new_object(M)
    _load.hold_pages(host.world, held, np.arange(512) * P, np.arange(first, first + 512))
    assert host.frames.refs[first] == 513
    host.drop_object(held)
    assert host.frames.refs[first] == 512 and mm.read(M) == 7
    hostcheck.check(host)
