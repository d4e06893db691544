"""Cores and images that nobody honest wrote: one line of error each, and never a hang or an absurd allocation."""

import gc
import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from corefiles import (
    PAGE,
    R,
    Segment,
    auxv,
    files,
    header,
    note,
    page,
    phdr,
    prpsinfo,
    prstatus,
    qemu,
    vmcoreinfo,
    write_core,
)
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import PageTables, sources
from ksmwalk.errors import KsmwalkError
from ksmwalk.sources import BadImage, guest_tables, read_core, read_guest

pytest.importorskip("elftools")

BASE = 0x7F00_0000_0000
READERS = (read_core, read_guest, guest_tables, sources.is_guest)
#: bytes that a reader may allocate for files of a few pages
MOST = 64 << 20


def refused(path, words, readers=READERS):
    for reader in readers:
        with pytest.raises(BadImage, match=words) as caught:
            reader(path)
        assert isinstance(caught.value, (KsmwalkError, ValueError)) and "\n" not in str(caught.value)
        assert caught.value.path == os.fspath(path)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_never_opened(tmp_path, reader):
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "is no regular file", [reader])
    refused(tmp_path, "is a directory", [reader])
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        if os.path.exists(device):
            refused(device, "is no regular file", [reader])
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "is empty", [reader])
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "absent")


def test_what_the_kernel_makes_up_is_refused(tmp_path):
    for path in ("/proc/self/maps", "/sys/kernel/mm/ksm/run", "/proc/kcore"):
        if os.path.exists(path) and os.access(path, os.R_OK):
            with pytest.raises(ValueError):
                read_guest(path)


@pytest.mark.parametrize(
    ("magic", "words"),
    [
        (b"KDUMP   ", "compressed kdump; have it written as ELF"),
        (b"makedumpfile\0\0\0\0", "flattened dump"),
        (b"QEVM", "migration stream"),
        (b"LibvirtQemudSave", "virsh dump --memory-only"),
        (b"EMiL", "LiME"),
        (b"QFI\xfb", "qcow2"),
        (b"\x28\xb5\x2f\xfd", "zstd -d"),
        (b"\x1f\x8b", "gzip -d"),
    ],
)
def test_other_formats_are_refused_with_what_to_do(tmp_path, magic, words):
    path = tmp_path / "dump"
    path.write_bytes(magic.ljust(PAGE, b"\1"))
    refused(path, words)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"elf_class": 1}, "ELFCLASS32.*of 64 bits"),
        ({"data": 2}, "ELFDATA2MSB.*little-endian"),
        ({"machine": 183}, "EM_AARCH64.*x86-64"),
        ({"kind": 2}, "ET_EXEC.*a core"),
        ({"elf_class": 9}, "not an ELF header"),
        ({"phentsize": 32}, "program headers of 32 bytes"),
        ({"phoff": 1 << 40}, "truncated"),
        ({"phoff": 1 << 63}, "truncated"),
        ({"phoff": (1 << 64) - 1}, "truncated"),
    ],
)
def test_headers_of_other_machines_and_forged_ones_are_refused(tmp_path, head, words):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1)])], prpsinfo(1, b"x"), **head)
    refused(path, words)


@pytest.mark.parametrize("count", [5000, 0xFFFE, 0xFFFF])
def test_more_program_headers_than_the_file_holds_are_refused(tmp_path, count):
    path = tmp_path / "core"
    path.write_bytes(header(count) + phdr(1, 6, PAGE, BASE, 0, PAGE, PAGE) + bytes(PAGE))
    refused(path, "truncated|no program|no memory", [read_core])


def test_a_forged_count_beyond_16_bits_is_held_against_the_file(tmp_path):
    path = tmp_path / "core"
    for count, words in ((1 << 31, "more than any address space"), (1 << 19, "truncated")):
        section = bytes(44) + struct.pack("<I", count) + bytes(16)
        path.write_bytes(header(0xFFFF, shoff=64, phoff=PAGE) + section + bytes(PAGE))
        refused(path, words)


def test_every_truncation_of_a_core_is_refused(tmp_path):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1), page(2)])], prpsinfo(1, b"x"))
    size = path.stat().st_size
    for left in [*range(1, 900, 61), size - 3 * PAGE, size - PAGE, size - 1]:
        os.truncate(path, left)
        refused(path, "truncated|no ELF file|no raw image|not an ELF", [read_core, read_guest])
        write_core(path, [Segment(BASE, [page(1), page(2)])], prpsinfo(1, b"x"))


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([Segment(BASE, [page(1)], at=1 << 40)], "truncated"),
        ([Segment(BASE, [page(1)], at=(1 << 64) - PAGE)], "truncated"),
        ([Segment(BASE, [page(1)], size=1 << 63)], "larger than any address space"),
        ([Segment(BASE, [page(1)], size=(1 << 64) - PAGE)], "behind the end of all addresses"),
        ([Segment(BASE, [page(1)], size=1 << 63, filesz=1 << 63)], "truncated"),
        ([Segment(BASE, [page(1), page(2)], size=PAGE)], "more bytes in the file than in memory"),
        ([Segment(BASE + 5, [page(1)])], "not of whole pages"),
        ([Segment(BASE, [page(1)], size=PAGE + 1)], "not of whole pages"),
        ([Segment(1 << 60, [page(1)])], "larger than any address space"),
        ([Segment(BASE, [page(1), page(2)]), Segment(BASE + PAGE, [page(3)])], "overlap in memory"),
        ([Segment(BASE + n * PAGE, [page(n)], at=at) for n, at in enumerate((8 * PAGE, 8 * PAGE, None))], "overlap in the file"),
        ([Segment(BASE, [])], "no memory in it"),
        ([], "no memory in it"),
        ([Segment(0xFFFF_FFFF_FF60_0000, [page(1)])], "no memory in it"),
    ],
)  # fmt: skip
def test_segments_that_can_not_be_are_refused(tmp_path, segments, words):
    path = write_core(tmp_path / "core", segments, prpsinfo(1, b"x"))
    if not path.stat().st_size:
        pytest.skip("can't be written")
    refused(path, words, [read_core])


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([Segment(0, [page(1)], paddr=1 << 46)], "beyond what a guest can have"),
        ([Segment(0, [page(1)], paddr=(1 << 64) - PAGE)], "beyond what a guest can have|behind the end"),
        ([Segment(0, [page(1)], paddr=(1 << 64) - 5)], "behind the end of all addresses"),
        ([Segment(0, [page(n)], paddr=n << 30, at=at) for n, at in enumerate((8 * PAGE, 8 * PAGE, None))], "overlaps in the file"),
        ([Segment(0, [page(1)], paddr=100)], "no segment holds a whole page"),
        ([Segment(0, [], size=PAGE)], "no segment has contents"),
    ],
)  # fmt: skip
def test_physical_memory_that_can_not_be_is_refused(tmp_path, segments, words):
    refused(write_core(tmp_path / "dump", segments, qemu(0x1000)), words, [read_guest, guest_tables])


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        (struct.pack("<3I", 5, (1 << 32) - 1, 1) + b"CORE\0\0\0\0", "ends behind its segment"),
        (struct.pack("<3I", (1 << 32) - 1, 4, 1) + b"CORE\0\0\0\0", "ends behind its segment"),
        (note(b"CORE", 3, b"short"), "NT_PRPSINFO of 5 bytes"),
        (note(b"CORE", 0x46494C45, b"short"), "NT_FILE of 5 bytes"),
        (note(b"CORE", 0x46494C45, struct.pack("<2Q", 1 << 62, PAGE)), "it can't have"),
        (note(b"CORE", 0x46494C45, struct.pack("<2Q", 5, PAGE) + bytes(60)), "it can't have"),
        (note(b"CORE", 0x46494C45, struct.pack("<2Q3Q", 1, 1 << 63, 0, 1, 0) + b"a\0"), "it can't have"),
    ],
)
def test_notes_that_lie_about_their_length_are_refused(tmp_path, notes, words):
    refused(write_core(tmp_path / "core", [Segment(BASE, [page(1)])], notes), words, [read_core, read_guest])


def test_an_endless_stretch_of_notes_ends(tmp_path):
    """A sparse file of terabytes of nothing, said to be notes; and more real ones than any process has."""
    path = tmp_path / "core"
    table = phdr(4, 0, PAGE, 0, 0, 1 << 42, 0) + phdr(1, 6, PAGE, BASE, 0, PAGE, PAGE)
    path.write_bytes(header(2) + table)
    os.truncate(path, (1 << 42) + PAGE)
    assert read_core(path).pages.nr_pages == 0
    one = note(b"CORE", 99, b"")
    path.write_bytes(header(2) + phdr(4, 0, 176, 0, 0, len(one) << 18, 0) + phdr(1, 6, 0, BASE, 0, PAGE, PAGE) + one * (1 << 18))
    refused(path, "more than 262144 notes", [read_core])
    big = struct.pack("<3I", 5, 1 << 30, 0x46494C45) + b"CORE\0\0\0\0"
    path.write_bytes(header(2) + phdr(4, 0, 176, 0, 0, 1 << 31, 0) + phdr(1, 6, 0, BASE, 0, PAGE, PAGE) + big)
    os.truncate(path, 1 << 32)
    refused(path, "has 1073741824 bytes", [read_core])


def test_terabytes_of_nothing_are_no_pages(tmp_path):
    path = tmp_path / "ram"
    path.touch()
    os.truncate(path, 8 << 40)
    made = read_guest(path)
    assert made.pages.nr_pages == 0 and made.capture.vmas[0].size == 8 << 40
    refused(path, "no CR3 in its notes", [guest_tables])
    with pytest.raises(BadImage, match="nothing at all is mapped"):
        guest_tables(path, 0x1000)
    os.truncate(path, (8 << 40) + 1)
    refused(path, "no raw image of memory, or truncated", [read_guest])
    core = write_core(tmp_path / "core", [Segment(BASE, [], size=1 << 46, filesz=1 << 40, at=1 << 20)], prpsinfo(1, b"x"))
    os.truncate(core, 1 << 41)
    assert read_core(core).pages.nr_pages == 0


def test_names_of_files_are_made_printable_in_errors(tmp_path):
    path = tmp_path / "bad\n\x1b[2J\udcff"
    path.write_bytes(b"KDUMP   ")
    refused(path, "KDUMP|compressed kdump")
    with pytest.raises(BadImage) as caught:
        read_guest(path)
    assert "\x1b" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.why) == (BadImage, str(caught.value), caught.value.why)


def test_without_pyelftools_the_extra_is_named(tmp_path, monkeypatch):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1)])], prpsinfo(1, b"x"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "elftools"] + ["elftools.elf.elffile"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KsmwalkError, match=r"pip install 'ksmwalk\[cores\]'"):
        read_core(path)
    raw = tmp_path / "ram"
    raw.write_bytes(page(1))
    assert read_guest(raw).pages.nr_pages == 1  # needs no such thing


def test_files_are_closed_when_nobody_holds_them(tmp_path):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1)])], prpsinfo(1, b"x"))
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd"))
    held = [read_core(path) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    del held
    for _ in range(5):
        with pytest.raises(BadImage):
            read_guest(path)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- anything at all


def small_core(folder: Path) -> bytes:
    notes = prstatus(7) + prpsinfo(7, b"some") + auxv(random=BASE + 100, vdso=1 << 40)
    notes += files((BASE, BASE + 2 * PAGE, 0, b"/lib/a"), (BASE + 9 * PAGE, BASE + 10 * PAGE, 3, b"/lib/b"))
    segments = [
        Segment(BASE, [page(1), None], flags=R),
        Segment(BASE + 9 * PAGE, [page(2)]),
        Segment(BASE + 20 * PAGE, [page(3), bytes(PAGE), page(4)], size=6 * PAGE),
    ]
    return write_core(folder / "small", segments, notes, hole=False).read_bytes()


def small_guest(folder: Path) -> bytes:
    made = PageTables(4)
    made.map_range(0x400000, np.arange(5, 9))
    made.map_range(0xFFFF << 21, np.arange(512), level=1)
    memory = [bytes(PAGE), *(made.rows[row].tobytes() for row in range(1, len(made.rows)))]
    notes = prstatus(1) + qemu(made.root << 12) + vmcoreinfo(SYMBOL__swapper_pg_dir="ffffffff82000000", NUMBER__phys_base="-9")
    segments = [Segment(0, memory, paddr=0), Segment(0, [page(1)], paddr=1 << 32)]
    return write_core(folder / "small", segments, notes, hole=False).read_bytes()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return folder, (small_core(folder), small_guest(folder))


NASTY = [0, 1, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1, PAGE, PAGE - 1]
change = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 1 << 16), st.integers(0, 255)),
    # headers and notes are at the beginning
    st.tuples(st.just("byte"), st.integers(0, 1100), st.integers(0, 255)),
    st.tuples(st.just("word"), st.integers(0, 280), st.sampled_from(NASTY)),
    st.tuples(st.just("half"), st.integers(0, 550), st.sampled_from(NASTY)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 16), st.just(0)),
)


@given(
    which=st.integers(0, 1),
    changes=st.lists(change, min_size=1, max_size=4),
    cr3=st.sampled_from([None, 0x1000, 0x2000, 1 << 45]),
)
def test_a_mutated_file_is_read_or_refused_in_one_line(seeds, which, changes, cr3):
    folder, files_ = seeds
    raw = bytearray(files_[which])
    for kind, at, value in changes:
        if kind == "cut":
            del raw[at:]
            continue
        size = {"byte": 1, "word": 8, "half": 4}[kind]
        at = at % max(len(raw), 1) if size == 1 else at * size
        if at + size <= len(raw):
            raw[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    path = folder / "mutated"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        for reader in (read_core, read_guest, lambda path: guest_tables(path, cr3)):
            try:
                made = reader(path)
                if isinstance(made, sources.GuestTables):
                    made.capture(), made.capture("kernel")
                    continue
                capture = made.capture
                assert made.pages.nr_pages == int(capture.anon.sum()) <= len(raw) // PAGE + 1
                assert (np.diff(capture.addr) > 0).all() and capture.stray_page() is None
                into = np.empty((made.pages.nr_pages, PAGE), np.uint8)
                assert made.pages.read(np.arange(made.pages.nr_pages), into).all()
            except BadImage as error:
                assert "\n" not in str(error)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
