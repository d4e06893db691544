"""Guest memory: raw and ELF images by hand, and what a real emulator writes; the guest's own page tables out of them."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from corefiles import PAGE, Segment, page, prpsinfo, qemu, vmcoreinfo, write_core

from ksmwalk import PageTables, sources
from ksmwalk.sources import BadImage, guest_tables, read_guest
from ksmwalk.sources.guests import GUEST_BASE

pytest.importorskip("elftools")

RECORDED = Path(__file__).parents[1] / "data" / "guest-4level.npz"


def contents(unkeyed):
    """The bytes of every page by its guest physical address."""
    pages = unkeyed.pages
    into = np.zeros((pages.nr_pages, PAGE), np.uint8)
    assert pages.read(np.arange(pages.nr_pages), into).all()
    return dict(zip((unkeyed.capture.addr - np.uint64(GUEST_BASE)).tolist(), map(bytes, into), strict=True))


def write_raw(path, frames, nr_frames):
    with open(path, "wb") as file:
        file.truncate(nr_frames * PAGE)
        for frame, data in frames.items():
            os.pwrite(file.fileno(), data, frame * PAGE)
    return path


def tables_of_a_guest(levels=4):
    """(frames by number, CR3, the tables): page tables that lie in the memory they map."""
    made = PageTables(levels)
    made.map_range(0x400000, np.arange(100, 103))
    made.map_range(0x7000_0000_0000, np.arange(110, 115))
    made.map_range(0xFFFF_8000_0000_0000 & (1 << 48) - 1 if levels == 4 else 1 << 56, np.arange(0, 512, 512), level=2)
    return {row: made.rows[row].tobytes() for row in range(1, len(made.rows))}, made.root << 12, made


def test_a_raw_image_is_one_mapping_without_its_holes(tmp_path):
    made = read_guest(write_raw(tmp_path / "ram", {0: page(1), 5: page(2), 6: bytes(PAGE)}, 64))
    what = made.capture
    (vma,) = what.vmas
    assert (vma.start, vma.size, vma.anonymous) == (GUEST_BASE, 64 * PAGE, 3 * PAGE)
    assert vma.mergeable and vma.not_compatible is None and what.stray_page() is None
    assert contents(made) == {0: page(1), 5 * PAGE: page(2), 6 * PAGE: bytes(PAGE)}
    assert what.anon.all() and what.pfn is None and what.name == "ram"
    assert sources.is_guest(tmp_path / "ram")
    assert sources.load(what).host.nr_frames >= 3


def test_an_elf_image_is_ordered_by_physical_addresses(tmp_path):
    low, high = Segment(0, [page(1), page(2)], paddr=PAGE), Segment(0, [page(3)], paddr=1 << 32)
    made = read_guest(write_core(tmp_path / "dump", [high, low], qemu(0)))
    assert contents(made) == {PAGE: page(1), 2 * PAGE: page(2), 1 << 32: page(3)}
    assert made.capture.vmas[0].size == (1 << 32) + PAGE
    with pytest.raises(BadImage, match="read it as a guest's"):
        sources.read_core(tmp_path / "dump")


def test_memory_that_is_in_the_file_twice_counts_once(tmp_path):
    """A kdump has the kernel's text a second time; a dump by virtual addresses points at the same bytes again."""
    text = Segment(0xFFFF_FFFF_8100_0000, [page(2)], paddr=PAGE)
    memory = Segment(0xFFFF_8880_0000_0000, [page(1), page(2), page(3)], paddr=0)
    path = write_core(tmp_path / "vmcore", [text, memory], vmcoreinfo())
    assert contents(read_guest(path)) == {0: page(1), PAGE: page(2), 2 * PAGE: page(3)}
    again = Segment(1 << 30, [], size=2 * PAGE, paddr=0, at=16 * PAGE + PAGE, filesz=2 * PAGE)
    path = write_core(tmp_path / "paged", [memory, again], qemu(0))
    assert contents(read_guest(path)) == {0: page(1), PAGE: page(2), 2 * PAGE: page(3)}


def test_memory_that_ends_amid_a_page_is_cut_there(tmp_path):
    segment = Segment(0, [page(1), page(2), page(3)], paddr=0x800, filesz=2 * PAGE + 0x900)
    made = read_guest(write_core(tmp_path / "vmcore", [segment], vmcoreinfo()))
    assert contents(made) == {PAGE: bytes([1]) * 0x800 + bytes([2]) * 0x800, 2 * PAGE: bytes([2]) * 0x800 + bytes([3]) * 0x800}
    assert any("amid a page" in text for text in made.capture.notes)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("kind", ["raw", "elf"])
def test_the_tables_are_found_in_the_memory_that_they_map(tmp_path, levels, kind):
    frames, cr3, made = tables_of_a_guest(levels)
    if kind == "raw":
        path = write_raw(tmp_path / "ram", frames, 200)
        found = guest_tables(path, cr3 | 0x18, levels)
    else:
        memory = [bytes(PAGE), *(frames[row] for row in sorted(frames)), *(page(9) for _ in range(200))]
        path = write_core(tmp_path / "dump", [Segment(0, memory, paddr=0)], qemu(cr3, cr4=0x20 | (0x1000 if levels == 5 else 0)))
        found = guest_tables(path)
        assert found.root.said_by == "by QEMU's note of CPU 0"
    assert found.root.levels == levels
    np.testing.assert_array_equal(found.tables.mappings(), made.mappings())
    # the frames of tables and no others
    assert len(found.tables.rows) == len(made.rows) - 1
    user, kernel = found.capture(), found.capture("kernel")
    assert user.addr.tolist() == [0x400000 + n * PAGE for n in range(3)] + [0x7000_0000_0000 + n * PAGE for n in range(5)]
    assert user.pfn.tolist() == [100, 101, 102, 110, 111, 112, 113, 114]
    assert kernel.nr_pages == 512 and kernel.huge.all() and kernel.pfn.tolist() == list(range(512))
    assert user.stray_page() is None and kernel.stray_page() is None
    assert [(vma.start, vma.size) for vma in user.vmas] == [(0x400000, 3 * PAGE), (0x7000_0000_0000, 5 * PAGE)]


def test_a_real_guests_tables_out_of_its_memory_are_those_recorded(tmp_path):
    with np.load(RECORDED) as data:
        frames = {int(frame): row.tobytes() for frame, row in zip(data["frames"], data["tables"], strict=True)}
        path = write_raw(tmp_path / "ram", frames, int(data["ram_end"]) >> 12)
        for cr3 in data["cr3"].tolist():
            whole = PageTables.from_image(data["tables"], cr3 >> 12, frames=data["frames"])
            found = guest_tables(path, cr3)
            np.testing.assert_array_equal(found.tables.mappings(), whole.mappings())
            assert len(found.tables.rows) < len(data["tables"]) and found.tables.bad_count == 0


def test_the_kernels_own_tables_are_found_by_vmcoreinfo(tmp_path):
    frames, cr3, made = tables_of_a_guest()
    memory = Segment(0, [bytes(PAGE), *(frames[row] for row in sorted(frames))], paddr=0)
    base = -0x1000000
    symbol = 0xFFFF_FFFF_8000_0000 + cr3 - base
    notes = vmcoreinfo(SYMBOL__swapper_pg_dir=f"{symbol:x}", NUMBER__phys_base=str(base), NUMBER__pgtable_l5_enabled="0")
    found = guest_tables(write_core(tmp_path / "vmcore", [memory], notes))
    assert found.root.said_by == "by the kernel's vmcoreinfo note"
    np.testing.assert_array_equal(found.tables.mappings(), made.mappings())


def test_a_cpu_without_paging_has_no_cr3_to_give(tmp_path):
    frames, cr3, _ = tables_of_a_guest()
    memory = Segment(0, [bytes(PAGE), *(frames[row] for row in sorted(frames))], paddr=0)
    path = write_core(tmp_path / "dump", [memory], qemu(0x5000, cr0=0x11) + qemu(cr3))
    assert guest_tables(path).root.said_by == "by QEMU's note of CPU 1"
    for notes in (qemu(cr3, cr0=0x11), qemu(cr3, version=2), vmcoreinfo(NUMBER__phys_base="0")):
        with pytest.raises(BadImage, match="no CR3 in its notes: give one"):
            guest_tables(write_core(tmp_path / "dump", [memory], notes))


@pytest.mark.parametrize("what", ["absent", "zeros", "text", "leaf table", "noise"])
def test_a_wrong_cr3_is_one_clear_error(tmp_path, what):
    frames, cr3, made = tables_of_a_guest()
    text = (b"the quick brown fox jumps over the lazy dog; " * 100)[:PAGE]
    noise = np.random.default_rng(1).bytes(PAGE)
    frames |= {50: text, 51: noise} | {n: np.random.default_rng(n).bytes(PAGE) for n in range(100, 120)}
    path = write_raw(tmp_path / "ram", frames, 200)
    leaf = next(row for row in frames if row < 40 and np.frombuffer(frames[row], np.uint64)[0] >> 12 & 0xFFFFFFFFFF == 110)
    wrong = {"absent": 1 << 40, "zeros": 60 << 12, "text": 50 << 12, "leaf table": leaf << 12, "noise": 51 << 12}[what]
    with pytest.raises(BadImage, match=f"^[^\n]*CR3 {wrong:#x} .* is not the root of page tables of 4 levels: [^\n]*$"):
        guest_tables(path, wrong)
    guest_tables(path, cr3)


def test_tables_that_map_themselves_beyond_reason_end_in_an_error(tmp_path):
    """Large leaves, shared over and over: more pages than anybody could list."""
    top, pud = np.zeros(512, np.uint64), np.full(512, 0x83, np.uint64)
    top[:] = 2 << 12 | 3
    path = write_raw(tmp_path / "ram", {1: top.tobytes(), 2: pud.tobytes()}, 8)
    found = guest_tables(path, 1 << 12)
    with pytest.raises(ValueError, match="more than"):
        found.capture()
    loop = np.full(512, 1 << 12 | 3, np.uint64)
    path = write_raw(tmp_path / "loop", {1: loop.tobytes()}, 8)
    looped = guest_tables(path, 1 << 12).capture()
    assert not looped.nr_pages and "256 entries of the tables can't be followed" in looped.notes[0]


def test_levels_and_halves_that_do_not_exist_are_refused(tmp_path):
    frames, cr3, _ = tables_of_a_guest()
    path = write_raw(tmp_path / "ram", frames, 200)
    for call, words in (
        (lambda: guest_tables(path, cr3, 3), "levels 3"),
        (lambda: guest_tables(path, -1), "CR3 -0x1"),
        (lambda: guest_tables(path, 1 << 64), "CR3 0x1"),
        (lambda: guest_tables(path, cr3).capture("middle"), "half='middle'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# ---- what an emulator writes

# Boots into 64 bits with page tables at 0x9000: of the first 2 MiB every page but each eighth (0x7000 is mapped), the
# next 2 MiB as one leaf; the same again in the last 512 GiB. Writes a word at 3 MiB and 0x5000 behind, and halts.
BOOT = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cbf0090b90020fcf3ab66c706009003a0000066c706f89f03a0000066c70600a003b0000066c70600b003c00000"
    "66c70608b083002000bf00c066b80300000066a900700000740366890583c70866050010000081ff00d075e666c70638c0037000000f20e066"
    "83c8200f22e066b8009000000f22d866b9800000c00f32660d000100000f300f0116d87c0f20c0660d010000800f22c0eaa77c080048c7c700"
    "00300048b8887766554433221148890748898700500000f4ebfd0f1f00000000000000000000000000009a20000f00c87c"
).ljust(510, b"\0") + b"\x55\xaa"


class Monitor:
    """A QEMU guest of 16 MiB that runs BOOT, and its monitor."""

    def __init__(self, folder):
        (folder / "boot.bin").write_bytes(BOOT)
        words = (
            "qemu-system-x86_64 -accel tcg -machine pc,mem-merge=off -cpu qemu64 -m 16M -nodefaults -display none "
            "-drive file=boot.bin,format=raw,if=floppy -qmp stdio"
        )
        self.child = subprocess.Popen(words.split(), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()
        self.do("qmp_capabilities")

    def answer(self):
        while True:
            said = json.loads(self.child.stdout.readline())
            if "event" not in said:
                assert "error" not in said, said
                return said.get("return")

    def do(self, command, **arguments):
        self.child.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.child.stdin.flush()
        return self.answer()

    def say(self, line):
        return self.do("human-monitor-command", **{"command-line": line})


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A folder with guest.raw, guest.elf, paged.elf and guest.kdump of one stopped guest, and its listing of mappings."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64 here")
    folder = tmp_path_factory.mktemp("qemu")
    monitor = Monitor(folder)
    try:
        end = time.monotonic() + 60
        while "HLT=1" not in (registers := monitor.say("info registers")) or "CR3=0000000000009000" not in registers:
            assert time.monotonic() < end, registers
            time.sleep(0.1)
        monitor.do("stop")
        listing = monitor.say("info tlb")
        for name, paging in (("guest.elf", False), ("paged.elf", True)):
            monitor.do("dump-guest-memory", paging=paging, protocol=f"file:{folder / name}")
        monitor.do("dump-guest-memory", paging=False, protocol=f"file:{folder / 'guest.kdump'}", format="kdump-zlib")
        monitor.do("pmemsave", val=0, size=16 << 20, filename=str(folder / "guest.raw"))
    finally:
        monitor.child.kill()
        monitor.child.communicate()
    return folder, listing


def test_qemus_elf_dump_is_the_memory_that_it_saves_raw(dumped):
    folder, _ = dumped
    raw = (folder / "guest.raw").read_bytes()
    found = contents(read_guest(folder / "guest.elf"))
    # with the firmware below 4 GiB, which is no part of the first 16 MiB
    ram = {addr: data for addr, data in found.items() if addr < 16 << 20}
    assert ram == {addr: raw[addr : addr + PAGE] for addr in range(0, 16 << 20, PAGE)}
    assert ram[3 << 20][:8] == 0x1122334455667788 .to_bytes(8, "little")
    mapped = contents(read_guest(folder / "paged.elf"))
    assert 0x300000 in mapped and all(data == raw[addr : addr + PAGE] for addr, data in mapped.items())
    assert contents(read_guest(folder / "guest.raw")) == ram


@pytest.mark.parametrize("name", ["guest.elf", "paged.elf", "guest.raw"])
def test_the_tables_of_a_dumped_guest_are_qemus_own_listing(dumped, name):
    folder, listing = dumped
    found = guest_tables(folder / name, 0x9000 if name.endswith("raw") else None)
    assert (found.root.cr3, found.root.levels) == (0x9000, 4)
    there = found.tables.mappings(view="hardware")
    wanted = [(int(line[:16], 16), int(line[18:34], 16)) for line in listing.splitlines()]
    assert list(zip(there["addr"].tolist(), (there["pfn"] << np.uint64(12)).tolist(), strict=True)) == wanted
    assert len(wanted) == 2 * (512 - 64 + 1)


def test_qemus_compressed_dump_is_refused_with_what_to_do(dumped):
    folder, _ = dumped
    with pytest.raises(BadImage, match="a flattened dump.*dump-guest-memory FILE"):
        read_guest(folder / "guest.kdump")


def test_several_guests_are_several_captures(tmp_path):
    made = [read_guest(write_raw(tmp_path / name, {n: page(n + 1) for n in range(3)}, 8)) for name in ("a", "b")]
    assert [one.capture.name for one in made] == ["a", "b"]
    assert contents(made[0]) == contents(made[1])


def test_a_process_core_with_physical_addresses_is_no_guest(tmp_path):
    path = write_core(tmp_path / "core", [Segment(0x7000_0000_0000, [page(1)], paddr=5 * PAGE)], prpsinfo(4, b"x"))
    assert not sources.is_guest(path)
