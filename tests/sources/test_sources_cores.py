"""ELF cores: by hand, of every kind that can be told, and real ones against the process that they were taken of."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corefiles import PAGE, R, Segment, X, auxv, files, page, prpsinfo, prstatus, write_core

from ksmwalk import sources
from ksmwalk.proc import pagemap
from ksmwalk.sources import BadImage, read_core

pytest.importorskip("elftools")

BASE = 0x7F00_0000_0000


def contents(unkeyed):
    """The bytes of every anonymous page by its address."""
    pages = unkeyed.pages
    into = np.zeros((pages.nr_pages, PAGE), np.uint8)
    assert pages.read(np.arange(pages.nr_pages), into).all()
    return dict(zip(unkeyed.capture.addr[unkeyed.capture.anon].tolist(), map(bytes, into), strict=True))


def test_pages_left_out_of_the_file_are_absent_and_pages_of_zeros_are_there(tmp_path):
    path = write_core(
        tmp_path / "core",
        [
            Segment(BASE, [page(1), None, bytes(PAGE), page(2)], size=6 * PAGE),
            Segment(BASE + 16 * PAGE, [], size=8 * PAGE),
        ],
        prstatus(77) + prpsinfo(76, b"sleeper"),
    )
    made = read_core(path)
    what = made.capture
    assert (what.pid, what.name, what.found_by) == (76, "sleeper", "core")
    assert contents(made) == {BASE: page(1), BASE + 2 * PAGE: bytes(PAGE), BASE + 3 * PAGE: page(2)}
    assert [(vma.start, vma.end, vma.rss, vma.anonymous) for vma in what.vmas] == [
        (BASE, BASE + 6 * PAGE, 3 * PAGE, 3 * PAGE),
        (BASE + 16 * PAGE, BASE + 24 * PAGE, 0, 0),
    ]
    assert what.pfn is None and what.frame_flags is None and not what.huge.any()
    assert all(vma.not_compatible is None and not vma.mergeable for vma in what.vmas)


def test_without_holes_pages_of_zeros_may_be_absent_ones_and_are_left_out(tmp_path):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1), bytes(PAGE), page(2)])], prpsinfo(5, b"x"), hole=False)
    made = read_core(path)
    assert contents(made) == {BASE: page(1), BASE + 2 * PAGE: page(2)}
    assert any(text.startswith("1 page of zeros is left out") for text in made.capture.notes)
    assert made.capture.vmas[0].anonymous == 2 * PAGE


def test_pages_of_files_are_told_from_anonymous_ones(tmp_path):
    text, relocated, data, shared, vdso, stack = (BASE + n * 16 * PAGE for n in range(6))
    path = write_core(
        tmp_path / "core",
        [
            Segment(text, [page(1)], size=4 * PAGE, flags=R | X),
            Segment(relocated, [page(2)], flags=R),
            Segment(data, [page(3), page(4)]),
            Segment(shared, [page(5)]),
            Segment(vdso, [page(6)], flags=R | X),
            Segment(stack, [page(7)]),
        ],
        prpsinfo(5, b"x") + auxv(vdso=vdso, random=stack + 100) + files(
            (text, text + 4 * PAGE, 0, b"/lib/a.so"),
            (relocated, relocated + PAGE, 9, b"/lib/a.so"),
            (data, data + 2 * PAGE, 10, b"/lib/a.so"),
            (shared, shared + PAGE, 0, b"/dev/zero (deleted)"),
        ),
    )  # fmt: skip
    made = read_core(path)
    what = made.capture
    assert sorted(contents(made)) == [relocated, data, data + PAGE, stack]
    assert what.addr[what.file].tolist() == [text, shared, vdso]
    assert [vma.name for vma in what.vmas] == [*["/lib/a.so"] * 3, "/dev/zero (deleted)", "[vdso]", "[stack]"]
    assert [vma.offset for vma in what.vmas[:3]] == [0, 9 * PAGE, 10 * PAGE]
    assert [vma.inode for vma in what.vmas] == [1, 1, 1, 2, 0, 0]
    assert [vma.perms for vma in what.vmas] == ["r-xp", "r--p", "rw-p", "rw-s", "r-xp", "rw-p"]
    assert [vma.not_compatible for vma in what.vmas] == [None, None, None, "shared", "dontexpand", None]
    image = sources.load(what, mark="all")
    assert len(image.mm.vmas) == 6


def test_with_code_in_the_core_read_only_files_say_nothing_of_having_been_written(tmp_path):
    text, other = BASE, BASE + 16 * PAGE
    path = write_core(
        tmp_path / "core",
        [Segment(text, [page(1), page(2)], flags=R | X), Segment(other, [page(3), page(4)], flags=R)],
        prpsinfo(5, b"x") + files((text, text + 2 * PAGE, 0, b"/a"), (other, other + 2 * PAGE, 2, b"/a")),
    )
    assert read_core(path).pages.nr_pages == 0


def test_pages_are_read_in_any_order_again_and_again_until_the_file_is_cut(tmp_path):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(n) for n in range(1, 20)])], prpsinfo(5, b"x"))
    pages = read_core(path).pages
    which = np.array([3, 4, 5, 0, 18, 18, 2])
    into = np.zeros((len(which), PAGE), np.uint8)
    for _ in range(2):
        assert pages.read(which, into).all()
        assert into[:, 0].tolist() == [4, 5, 6, 1, 19, 19, 3] and (into == into[:, :1]).all()
    os.truncate(path, path.stat().st_size - PAGE)
    assert pages.read(which, into).tolist() == [True, True, True, True, False, False, True]
    assert pages.read(which[:0], into[:0]).tolist() == []
    with pytest.raises(TypeError, match="into of dtype"):
        pages.read(which, into[:2])


def test_names_are_as_hostile_as_they_like(tmp_path):
    path = write_core(
        tmp_path / "core",
        [Segment(BASE, [page(1)])],
        prpsinfo(5, b"\x1b[2J\xff\n") + files((BASE, BASE + PAGE, 0, b"/tmp/\xfe\n\x1b")),
    )
    what = read_core(path).capture
    assert what.name == "\x1b[2J\ufffd\n" and what.vmas[0].name == "/tmp/\udcfe\n\x1b"
    assert "\x1b" not in str(what.vmas[0])


def test_a_core_without_a_name_or_pid_is_called_as_its_file(tmp_path):
    what = read_core(write_core(tmp_path / "some.core", [Segment(BASE, [page(1)])])).capture
    assert (what.pid, what.name) == (0, "some.core")


def test_many_mappings_are_counted_beyond_16_bits(tmp_path):
    """The kernel writes 0xffff, and the number into the only section header."""
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1)])], prpsinfo(5, b"x"))
    raw = bytearray(path.read_bytes())
    at = len(raw)
    raw[56:58] = b"\xff\xff"
    raw[40:48] = at.to_bytes(8, "little")
    path.write_bytes(bytes(raw) + bytes(44) + (2).to_bytes(4, "little") + bytes(16))
    assert read_core(path).pages.nr_pages == 1


# ---- real ones


PROGRAM = """
import ctypes, mmap, os, resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
sparse = mmap.mmap(-1, 64 << 20, flags=private)
sparse.madvise(mmap.MADV_NOHUGEPAGE)
for i in range(0, 64 << 20, 16 * 4096):
    sparse[i] = i // 4096 % 251
sparse[3 * 4096:4 * 4096] = bytes(4096)
read = [sparse[i * 4096 + 9 * 4096] for i in range(0, 1600, 16)]
shared = mmap.mmap(-1, 1 << 20)
shared[0] = 1
huge = mmap.mmap(-1, 8 << 20, flags=private)
huge.madvise(mmap.MADV_HUGEPAGE)
huge[5 << 20] = 1
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def stopped(tmp_path):
    """A process with memory of all kinds that stands still, its capture, and the bytes of its anonymous pages."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=tmp_path) as child:
        try:
            assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
            what = sources.capture(child.pid)
            try:
                memory = os.open(f"/proc/{child.pid}/mem", os.O_RDONLY)
            except PermissionError:
                pytest.skip("/proc/PID/mem of a child can't be read here")
            try:
                there = {addr: os.pread(memory, PAGE, addr) for addr in what.addr[what.anon].tolist()}
            finally:
                os.close(memory)
            yield child, what, there
        finally:
            child.kill()


def named_after_a_file(what):
    """Which mappings are of files: where what fork or a first write left to the file is in the core as well."""
    return [(vma.start, vma.end) for vma in what.vmas if vma.inode]


def within(addr, ranges):
    return any(start <= addr < end for start, end in ranges)


def test_a_core_of_the_kernel_has_the_pages_that_the_process_had(stopped, tmp_path):
    """Same anonymous pages, same bytes as pagemap and /proc/PID/mem had of the process before it died."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core_pattern {pattern!r}: cores go elsewhere")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("cores are forbidden by a limit (ulimit -H -c)")
    child, what, there = stopped
    os.kill(child.pid, signal.SIGABRT)
    os.kill(child.pid, signal.SIGCONT)
    child.wait()
    made = sorted(tmp_path.iterdir())
    if not made:
        pytest.skip("the kernel wrote no core")
    core = read_core(made[0])
    assert core.capture.pid == child.pid and core.capture.name == what.name
    found = contents(core)
    of_files = named_after_a_file(what)
    assert there.keys() <= found.keys()
    # the kernel writes a file's own pages too where it had one page of the mapping copied
    assert all(within(addr, of_files) for addr in found.keys() - there.keys())
    assert len([addr for addr in there if not within(addr, of_files)]) > 1024
    # dying changes nothing but what lies below the stack's end, for the signal
    assert [hex(addr) for addr in there if found[addr] != there[addr]] == []
    # what was never there, the shared zero page among it, is not in it; what was written with zeros is
    (area,) = (vma for vma in what.vmas if vma.size >= 64 << 20 and vma.anonymous)
    zeros = [addr for addr in found if area.start <= addr < area.end and not any(found[addr])]
    assert zeros == [addr for addr in there if area.start <= addr < area.end and not any(there[addr])]
    assert [(vma.start, vma.end, vma.perms[:3]) for vma in core.capture.vmas] == [
        (vma.start, vma.end, vma.perms[:3]) for vma in what.vmas
    ]
    assert {vma.start for vma in core.capture.vmas if vma.name == "[stack]"} == {
        vma.start for vma in what.vmas if vma.name == "[stack]"
    }


def test_a_core_of_gdb_has_the_pages_that_hold_anything(stopped, tmp_path):
    child, what, there = stopped
    if shutil.which("gcore") is None:
        pytest.skip("no gcore (gdb) here")
    done = subprocess.run(["gcore", "-o", tmp_path / "core", str(child.pid)], capture_output=True, text=True)
    made = tmp_path / f"core.{child.pid}"
    if done.returncode or not made.exists():
        pytest.skip(f"gcore can't be used here: {done.stderr.strip()[-200:]}")
    core = read_core(made)
    assert core.capture.pid == child.pid
    found = contents(core)
    of_files = named_after_a_file(what)
    wanted = {addr: data for addr, data in there.items() if any(data) and not within(addr, of_files)}
    assert {addr: data for addr, data in found.items() if not within(addr, of_files)} == wanted
    assert any("a debugger wrote this core" in text for text in core.capture.notes)


def test_a_core_is_no_guest(tmp_path):
    path = write_core(tmp_path / "core", [Segment(BASE, [page(1)])], prpsinfo(5, b"x"))
    assert not sources.is_guest(path)
    with pytest.raises(BadImage, match="read it as a core"):
        sources.read_guest(path)


def test_file_pages_carry_the_category_that_live_ones_have(tmp_path):
    path = write_core(
        tmp_path / "core", [Segment(BASE, [page(1)], flags=R)], prpsinfo(5, b"x") + files((BASE, BASE + PAGE, 0, b"/a"))
    )
    assert read_core(path).capture.categories.tolist() == [pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_FILE]
