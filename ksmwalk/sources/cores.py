"""ELF core dumps: the address space of a process as it was when the core was taken."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..drawing.words import printable
from ..gate import counted
from ..layout import PAGE_SIZE
from ..proc.maps import USER_END, VmaRecord
from ..proc.pagemap import PAGE_IS_FILE, PAGE_IS_PRESENT
from ..proc.processes import Identity
from ..signatures import BoolArray, I64Array
from . import elf, images
from .elf import Elf
from .images import FilePages, ImageFile, Unkeyed
from .reading import ProcessCapture

_PAGES_PER_BATCH = 1 << 12
_PID_OF_PRSTATUS = struct.Struct("<32xi")  # of struct elf_prstatus, x86-64
_AUXV = np.dtype([("type", "<u8"), ("value", "<u8")])
_AT_RANDOM, _AT_SYSINFO_EHDR = 25, 33
_FILES_HEAD = struct.Struct("<2Q")
_FILE = np.dtype([("start", "<u8"), ("end", "<u8"), ("offset", "<u8")])
# What the kernel calls the files behind shared memory that has none of its own.
_SHARED = ("/dev/zero (deleted)", "/SYSV", "/memfd:", "/dev/shm/", "/anon_hugepage", "/dev/hugepages/", "/[aio]")


class _Mapped(NamedTuple):
    """A file that was mapped: [start, end) in bytes, from byte `offset` of it on."""

    start: int
    end: int
    offset: int
    name: str


@dataclass(slots=True)
class _Process:
    """What the notes of a core say."""

    pid: int = 0
    name: str = ""
    uid: int = -1
    command: tuple[str, ...] = ()
    files: list[_Mapped] = field(default_factory=list)
    stack: int = 0  # an address in it
    vdso: int = 0
    of_process: bool = False
    of_guest: bool = False


def read_core(path: str | os.PathLike[str]) -> Unkeyed:
    """Read the core dump of a process, of x86-64, as the kernel or a debugger writes it.

    Parameters
    ----------
    path : path
        A regular file; it is kept open as long as the result is held.

    Returns
    -------
    Unkeyed
        The capture, with `found_by` "core", and the bytes of its anonymous pages. Frames are not known, files have
        made-up inode numbers.

    Raises
    ------
    BadImage
        No core, truncated, forged, of another machine, of a guest; what, where, and what to do.
    OSError
        It can't be opened.
    KsmwalkError
        pyelftools is missing (extra `cores`).

    Models: a process's vmas and present pages by its core, Linux 6.18.
    Differs: holes of the file are absent pages: the kernel leaves out those that were not there, the shared zero page
    among them. Where a core has none, and in those of debuggers, absent pages are written as zeros: there pages of
    zeros are left out, and counted in a note. Huge pages, frames, swapped pages and VmFlags beyond read, write and
    execute are in no core. Of a private mapping of a file that was written to, all pages are in the core, so all count
    as anonymous, the unwritten too; a shared mapping can't be told from a private one but by the names of shared memory.
    """
    file = ImageFile(path)
    if not file.is_elf:
        raise file.bad("no ELF file, so no core dump")
    core = Elf(file)
    process = _process(core)
    if is_of_guest(core, process):
        raise file.bad("the memory of a guest or a whole machine, not the core of a process: read it as a guest's")
    segments = _segments(core)
    finder = _Finder(process.files)
    mapped = [finder.find(int(s["vaddr"]), int(s["vaddr"] + s["memsz"])) for s in segments]
    written = _written_files(core, segments, mapped)
    addr, categories, at = _pages(core, segments, process, mapped, written)
    notes = ["Frames are in no core: which pages fork shares, and which were KSM's already, is unknown."]
    if any(written):
        notes.append(
            f"{counted(sum(written), 'private mapping', 'of files was', 'of files were')} written to: all pages there count as "
            f"anonymous, those that were still the file's too."
        )
    anon = categories & PAGE_IS_FILE == 0
    pages = FilePages(file, at[anon])
    if core.has_sections or not file.sparse:
        keep, pages = _without_zeros(file, pages, core.has_sections, notes)
        anon[anon] = keep
        there = anon | (categories & PAGE_IS_FILE != 0)
        addr, categories, anon = addr[there], categories[there], anon[there]
    vmas = _vmas(segments, mapped, process, addr, anon)
    name = process.name or printable(os.path.basename(file.path))
    capture = ProcessCapture(process.pid, name, vmas, addr.view(np.uint64), categories.view(np.uint64))
    capture.found_by, capture.notes = "core", notes
    capture.identity = Identity(uid=process.uid, command=process.command)
    return Unkeyed(capture, pages)


def is_of_guest(core: Elf, process: _Process | None = None) -> bool:
    """Whether an ELF core is of physical memory (a guest's, a crashed machine's) and not of a process."""
    said = process or _process(core)
    if said.of_guest or said.of_process:
        return said.of_guest
    return bool(core.segments["paddr"].any())


def _segments(core: Elf) -> np.ndarray:
    """The mappings by address, the kernel's own half left out, each checked."""
    segments = core.segments[core.segments["vaddr"] < USER_END]
    segments = segments[np.argsort(segments["vaddr"], kind="stable")]
    if not len(segments):
        raise core.file.bad("no memory in it: no segment has a size")
    start, size = segments["vaddr"].astype(np.int64), segments["memsz"]
    page = np.uint64(PAGE_SIZE - 1)
    for wrong, why in (
        ((segments["vaddr"] | size) & page != 0, "is not of whole pages"),
        ((start > images.TASK_SIZE) | (size > np.uint64(images.TASK_SIZE)), "is larger than any address space"),
    ):
        if wrong.any():
            one = segments[wrong.argmax()]
            raise core.file.bad(f"the segment of {int(one['vaddr']):#x}, {int(one['memsz']):#x} bytes, {why}")
    for name, length, why in (("vaddr", "memsz", "memory"), ("offset", "filesz", "the file")):
        pair = elf.overlap(segments[name].astype(np.int64), segments[length].astype(np.int64))
        if pair:
            first, second = (int(segments["vaddr"][at]) for at in pair)
            raise core.file.bad(f"the segments of {first:#x} and {second:#x} overlap in {why}")
    return segments


def _process(core: Elf) -> _Process:
    said = _Process()
    thread = 0
    for note in core.notes():
        if note.name in (b"QEMU", b"VMCOREINFO"):
            said.of_guest = True
        if note.name != b"CORE":
            continue
        if note.type == elf.NT_PRSTATUS and not thread and note.size >= _PID_OF_PRSTATUS.size:
            (thread,) = _PID_OF_PRSTATUS.unpack_from(core.read_note(note))
        elif note.type == elf.NT_PRPSINFO:
            info: Any = core.process_info(core.read_note(note))
            said.pid = int(info["pr_pid"])
            said.name = info["pr_fname"].split(b"\0")[0].decode(errors="replace")
            said.uid = int(info["pr_uid"])
            # cut off after 80 bytes, and the words can't be told from their blanks
            said.command = tuple(info["pr_psargs"].split(b"\0")[0].decode(errors="surrogateescape").split())
            said.of_process = True
        elif note.type == elf.NT_AUXV:
            _read_auxv(core.read_note(note), said)
        elif note.type == elf.NT_FILE:
            said.files = sorted(_files(core, core.read_note(note)))
            said.of_process = True
    said.pid = said.pid or max(thread, 0)
    return said


def _read_auxv(description: bytes, said: _Process) -> None:
    whole = len(description) // _AUXV.itemsize * _AUXV.itemsize
    for kind, value in np.frombuffer(description[:whole], _AUXV).tolist():
        if kind == _AT_RANDOM:  # 16 bytes that the kernel puts on the stack
            said.stack = value
        elif kind == _AT_SYSINFO_EHDR:
            said.vdso = value


def _files(core: Elf, description: bytes) -> Iterator[_Mapped]:
    """The mapped files of a note of type NT_FILE."""
    if len(description) < _FILES_HEAD.size:
        raise core.file.bad(f"note NT_FILE of {len(description)} bytes: too short")
    count, unit = _FILES_HEAD.unpack_from(description)
    names_at = _FILES_HEAD.size + count * _FILE.itemsize
    names = description[names_at:].split(b"\0") if names_at <= len(description) else []
    if count > len(names) or unit > 1 << 30:
        raise core.file.bad(f"note NT_FILE of {len(description)} bytes: it can't have {count} files in units of {unit} bytes")
    table = np.frombuffer(description, _FILE, count, _FILES_HEAD.size)
    for (start, end, offset), name in zip(table.tolist(), names, strict=False):
        yield _Mapped(start, end, offset * unit, name.decode(errors="surrogateescape"))


class _Finder:
    """Which file a segment maps, asked in ascending order."""

    def __init__(self, files: list[_Mapped]):
        self.files, self.at = files, 0

    def find(self, start: int, end: int) -> _Mapped | None:
        while self.at < len(self.files) and self.files[self.at].end <= start:
            self.at += 1
        if self.at < len(self.files) and self.files[self.at].start < end:
            return self.files[self.at]
        return None


def _pages(
    core: Elf, segments: np.ndarray, process: _Process, mapped: list[_Mapped | None], written: list[bool]
) -> tuple[I64Array, I64Array, I64Array]:
    """The pages that are present: address, categories, and the byte of the file at which each begins."""
    data = core.file.data()
    parts, categories = [], []
    for segment, file, is_written in zip(segments, mapped, written, strict=True):
        start, offset, filesz = (int(segment[name]) for name in ("vaddr", "offset", "filesz"))
        part = images.runs_of(data, offset, filesz, start)
        of_file = start == process.vdso or file is not None and not is_written
        parts.append(part)
        categories.append(np.full(len(part.start), PAGE_IS_PRESENT | PAGE_IS_FILE if of_file else PAGE_IS_PRESENT))
    addr, category, delta = images.pages_of(parts, np.concatenate(categories))
    return addr, category, addr + delta


def _without_zeros(
    file: ImageFile, pages: FilePages, debugger: bool, notes: list[str]
) -> tuple[BoolArray, FilePages]:
    """Leave out the pages of zeros of a core in which they may as well be absent: (which stay, those)."""
    keep = np.zeros(pages.nr_pages, bool)
    into = np.empty((min(pages.nr_pages, _PAGES_PER_BATCH), PAGE_SIZE), np.uint8)
    for first in range(0, pages.nr_pages, _PAGES_PER_BATCH):
        which = np.arange(first, min(first + _PAGES_PER_BATCH, pages.nr_pages))
        there = pages.read(which, into[: len(which)])
        keep[which] = into[: len(which)].view(np.uint64).any(axis=1) & there
    gone = pages.nr_pages - int(keep.sum())
    if gone:
        why = "a debugger wrote this core" if debugger else "this core has no holes, as after a pipe or a copy"
        left = counted(gone, "page", "of zeros is", "of zeros are")
        notes.append(f"{left} left out: {why}, so pages of zeros can't be told from pages that were absent.")
    return keep, FilePages(file, pages.at[keep])


def _written_files(core: Elf, segments: np.ndarray, mapped: list[_Mapped | None]) -> list[bool]:
    """Which mappings of files hold anonymous pages: those that can be written, and those that once could.

    Of a private file the kernel's default puts only what was written to into a core (and the first page, if that is an
    ELF header), so what has more and is read-only was written once: a library's relocated part. If code is there too,
    it was told to put in all files, and that says nothing; nor does what a debugger puts in.
    """
    whole = core.has_sections or any(
        file is not None and segment["flags"] & elf.PF_X and segment["filesz"] > PAGE_SIZE
        for segment, file in zip(segments, mapped, strict=True)
    )
    out = []
    for segment, file in zip(segments, mapped, strict=True):
        if file is None or not segment["filesz"] or file.name.startswith(_SHARED):
            out.append(False)
            continue
        header_only = file.offset == 0 and segment["filesz"] <= PAGE_SIZE
        out.append(bool(segment["flags"] & elf.PF_W) or not (whole or header_only or segment["flags"] & elf.PF_X))
    return out


def _vmas(
    segments: np.ndarray, mapped: list[_Mapped | None], process: _Process, addr: I64Array, anon: BoolArray
) -> list[VmaRecord]:
    """The mappings, with the sizes of what is present in each."""
    bounds = segments["vaddr"].astype(np.int64), (segments["vaddr"] + segments["memsz"]).astype(np.int64)
    before = np.append(0, np.cumsum(anon))
    inodes: dict[str, int] = {}
    vmas = []
    for segment, file, first, last in zip(segments, mapped, *(np.searchsorted(addr, b) for b in bounds), strict=True):
        inode = inodes.setdefault(file.name, len(inodes) + 1) if file else 0
        sizes = int(last - first) * PAGE_SIZE, int(before[last] - before[first]) * PAGE_SIZE
        vmas.append(_vma(segment, file, inode, process, *sizes))
    return vmas


def _vma(segment: Any, file: _Mapped | None, inode: int, process: _Process, rss: int, anonymous: int) -> VmaRecord:
    start, end = int(segment["vaddr"]), int(segment["vaddr"] + segment["memsz"])
    bits = int(segment["flags"])
    shared = file is not None and file.name.startswith(_SHARED)
    letters = [text for bit, text in ((elf.PF_R, "rd"), (elf.PF_W, "wr"), (elf.PF_X, "ex")) if bits & bit]
    letters += ["sh", "mr", "mw", "me", "ms"] if shared else ["mr", "mw", "me"]
    name = file.name if file else ""
    if start == process.vdso:
        name = "[vdso]"
        letters.append("de")
    elif not file and start <= process.stack < end:
        name = "[stack]"
        letters.append("gd")
    perms = "".join(text if bits & bit else "-" for bit, text in ((elf.PF_R, "r"), (elf.PF_W, "w"), (elf.PF_X, "x")))
    # where a segment begins behind the file's mapping, or before it
    offset = max(file.offset + start - file.start, 0) if file else 0
    return VmaRecord(
        start, end, perms + ("s" if shared else "p"), offset, "00:00", inode, name, tuple(letters), rss=rss, anonymous=anonymous
    )
