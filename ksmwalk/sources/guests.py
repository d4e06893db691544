"""Guest memory images: a guest's RAM as the host's ksmd would see it, and the guest's own page tables."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from ..drawing.words import printable
from ..gate import counted
from ..layout import PAGE_SHIFT, PAGE_SIZE
from ..proc.maps import VmaRecord
from ..proc.pagemap import PAGE_IS_PRESENT
from ..signatures import BoolArray, I64Array, U64Array
from . import elf, images
from .cores import is_of_guest
from .elf import Elf
from .images import FilePages, ImageFile, Unkeyed
from .reading import ProcessCapture

#: where the made-up process that runs the guest has its RAM: guest physical address 0
GUEST_BASE = 1 << 32
#: a guest's physical addresses are below
MOST_MEMORY = 1 << 46
# As QEMU maps RAM with its default mem-merge=on.
_RAM_FLAGS = tuple("rd wr mr mw me dc ac mg".split())

# Of QEMU's note, one a CPU: struct QEMUCPUState of its target/i386, version 1.
_QEMU_HEAD = struct.Struct("<2I")
_QEMU_CR = struct.Struct("<5Q")
_QEMU_CR_AT = _QEMU_HEAD.size + 18 * 8 + 10 * 24
_CR0_PG, _CR4_PAE, _CR4_LA57 = 1 << 31, 1 << 5, 1 << 12
CR3_FRAME = 0x000F_FFFF_FFFF_F000
# Of a vmcoreinfo note: where x86-64 Linux has its text mapped, the link address of the kernel's own tables' symbol.
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_VMCOREINFO = re.compile(rb"^(?:SYMBOL|NUMBER)\((swapper_pg_dir|init_top_pgt|phys_base|pgtable_l5_enabled)\)=(-?[0-9a-f]+)$", re.M)


@dataclass(slots=True)
class Physical:
    """Guest physical memory in a file: stretches [start, end) in bytes, page aligned, ascending and apart; int64[n].

    `delta` is what to add to an address for the byte of the file that holds it.
    """

    file: ImageFile
    start: I64Array
    end: I64Array
    delta: I64Array
    elf: Elf | None = None
    notes: list[str] = field(default_factory=list)

    def find(self, addresses: I64Array) -> tuple[I64Array, BoolArray]:
        """(byte of the file, whether it is there) for each physical address."""
        at = np.searchsorted(self.start, addresses, "right") - 1
        there = (at >= 0) & (addresses < self.end[np.maximum(at, 0)])
        return addresses + self.delta[np.maximum(at, 0)], there

    def tables(self, frames: I64Array) -> U64Array:
        """Contents of frames that are there, as entries: uint64[n, 512]."""
        at, _ = self.find(frames << PAGE_SHIFT)
        rows = np.zeros((len(frames), PAGE_SIZE // 8), np.uint64)
        got = FilePages(self.file, at).read(np.arange(len(at)), rows.view(np.uint8))
        if not got.all():
            raise self.file.bad(f"became shorter while it was read: frame {int(frames[got.argmin()]):#x} is gone")
        return rows


def read_guest(path: str | os.PathLike[str]) -> Unkeyed:
    """Read a guest's memory as the host's ksmd would see it: private anonymous memory of the process that runs it.

    Parameters
    ----------
    path : path
        A raw image (guest physical memory byte by byte), or an ELF core as QEMU's `dump-guest-memory` and Linux's
        /proc/vmcore (or `makedumpfile -E`) have it. It is kept open as long as the result is held.

    Returns
    -------
    Unkeyed
        A capture with one mapping, of `found_by` "image", and the bytes of its pages. Guest physical address 0 is at
        `GUEST_BASE`. The pid is 0.

    Raises
    ------
    BadImage
        Truncated, forged, of another machine or kind (compressed kdump); what, where, and what to do.
    OSError
        It can't be opened.
    KsmwalkError
        An ELF file, and pyelftools is missing (extra `cores`).

    Models: the RAM of a QEMU guest as mapped in its host, marked mergeable as QEMU does by default.
    Differs: holes of the file are absent pages; a dump writes memory that the guest never touched as zeros, so it counts
    as present pages of zeros, and ROM and video memory as RAM. Whether the host had huge pages under it, and the other
    memory of the process that ran it, is not in an image.
    """
    memory = open_physical(path)
    data = memory.file.data()
    parts = [
        images.runs_of(data, int(start + delta), int(end - start), int(start))
        for start, end, delta in zip(memory.start, memory.end, memory.delta, strict=True)
    ]
    addr, delta = images.pages_of(parts)
    at = addr + delta
    addr += GUEST_BASE
    nbytes = len(addr) * PAGE_SIZE
    last = GUEST_BASE + int(memory.end[-1])
    vma = VmaRecord(GUEST_BASE, last, "rw-p", 0, "00:00", 0, "", _RAM_FLAGS, rss=nbytes, anonymous=nbytes)
    name = printable(os.path.basename(memory.file.path))
    capture = ProcessCapture(0, name, [vma], addr.view(np.uint64), np.full(len(addr), PAGE_IS_PRESENT, np.uint64))
    capture.found_by, capture.notes = "image", memory.notes
    if not memory.file.sparse:
        capture.notes.append("The image has no holes: memory that the guest never touched counts as pages of zeros.")
    capture.notes.append("Whether the host had huge pages under this memory is unknown: they count as small pages.")
    return Unkeyed(capture, FilePages(memory.file, at))


def is_guest(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a guest's memory (raw, or ELF by physical addresses) and not the core of a process.

    Raises
    ------
    BadImage, OSError, KsmwalkError
        As `read_guest` does.
    """
    file = ImageFile(path)
    return not file.is_elf or is_of_guest(Elf(file))


def open_physical(path: str | os.PathLike[str]) -> Physical:
    """The physical memory that an image holds."""
    file = ImageFile(path)
    if file.is_elf:
        return _of_elf(file)
    if file.size % PAGE_SIZE:
        raise file.bad(f"{file.size} bytes, not a multiple of {PAGE_SIZE}: no raw image of memory, or truncated")
    if file.size > MOST_MEMORY:
        raise file.bad(f"{file.size} bytes: more than a guest can have ({MOST_MEMORY >> 40} TiB)")
    start, end, delta = (np.array([value], np.int64) for value in (0, file.size, 0))
    return Physical(file, start, end, delta)


def _of_elf(file: ImageFile) -> Physical:
    core = Elf(file)
    if not is_of_guest(core):
        raise file.bad("the core of a process, not the memory of a guest: read it as a core")
    segments = core.segments[core.segments["filesz"] > 0]
    if not len(segments):
        raise file.bad("no memory in it: no segment has contents")
    most = np.uint64(MOST_MEMORY)
    beyond = segments["filesz"] > most - np.minimum(segments["paddr"], most)
    if beyond.any():
        one = segments[beyond.argmax()]
        raise file.bad(
            f"the segment of physical address {int(one['paddr']):#x}, {int(one['filesz']):#x} bytes: beyond what a guest "
            f"can have ({MOST_MEMORY >> 40} TiB)"
        )
    notes: list[str] = []
    paddr = segments["paddr"].astype(np.int64)
    # whole pages: a stretch of memory may begin or end amid one
    start = -(-paddr // PAGE_SIZE) * PAGE_SIZE
    behind = paddr + segments["filesz"].astype(np.int64)
    end = behind // PAGE_SIZE * PAGE_SIZE
    cut = int(((start != paddr) | (end != behind)).sum())
    if cut:
        places = counted(cut, "stretch")
        notes.append(f"The memory of {places} begins or ends amid a page: what is there only in part is left out.")
    memory = Physical(file, *_apart(start, end, segments["offset"].astype(np.int64) - paddr), core, notes)
    if not len(memory.start):
        raise file.bad("no memory in it: no segment holds a whole page")
    pair = elf.overlap(memory.start + memory.delta, memory.end - memory.start)
    if pair:
        first, second = (int(memory.start[at]) for at in pair)
        raise file.bad(f"the memory of physical addresses {first:#x} and {second:#x} overlaps in the file")
    return memory


def _apart(start: I64Array, end: I64Array, delta: I64Array) -> tuple[I64Array, I64Array, I64Array]:
    """The stretches ascending and without what an earlier one has already.

    A kdump has the kernel's text a second time, a QEMU dump by virtual addresses as often as a page is mapped.
    """
    order = np.lexsort((-end, start))
    start, end, delta = start[order], end[order], delta[order]
    start[1:] = np.maximum(start[1:], np.maximum.accumulate(end)[:-1])
    keep = start < end
    start, end, delta = start[keep], end[keep], delta[keep]
    # those that go on where another ends, in memory and in the file
    new = np.ones(len(start), bool)
    new[1:] = (start[1:] != end[:-1]) | (delta[1:] != delta[:-1])
    return start[new], end[np.append(new[1:], True)] if len(end) else end, delta[new]


@dataclass(frozen=True, slots=True)
class Root:
    """Where the guest's page tables begin: CR3, the levels, and who said so."""

    cr3: int
    levels: int
    said_by: str


def find_root(memory: Physical, cr3: int | None = None, levels: int | None = None) -> Root:
    """CR3 and the number of levels: as given, else as the notes of an ELF image have them."""
    for value, high, name in ((cr3, (1 << 64) - 1, "CR3"), (levels, 5, "levels")):
        if value is not None and not 0 <= value <= high:
            raise memory.file.bad(f"{name} {value:#x}: out of range")
    if levels not in (None, 4, 5):
        raise memory.file.bad(f"levels {levels}: must be 4 or 5")
    if cr3 is not None:
        return Root(cr3, levels or 4, "as given")
    found = _root_of_notes(memory.elf) if memory.elf else None
    if found is None:
        raise memory.file.bad(
            "no CR3 in its notes: give one (--cr3; `info registers` in QEMU's monitor, `virsh qemu-monitor-command --hmp`)"
        )
    return Root(found.cr3, levels or found.levels, found.said_by)


def _root_of_notes(core: Elf) -> Root | None:
    cpu = 0
    info = None
    for note in core.notes():
        if note.name == b"QEMU" and note.size >= _QEMU_CR_AT + _QEMU_CR.size:
            description = core.read_note(note)
            cr0, _, _, cr3, cr4 = _QEMU_CR.unpack_from(description, _QEMU_CR_AT)
            version, _ = _QEMU_HEAD.unpack_from(description)
            if version == 1 and cr0 & _CR0_PG and cr4 & _CR4_PAE and cr3 & CR3_FRAME:
                return Root(cr3, 5 if cr4 & _CR4_LA57 else 4, f"by QEMU's note of CPU {cpu}")
            cpu += 1
        elif note.name == b"VMCOREINFO" and info is None:
            info = _root_of_kernel(core.read_note(note))
    return info


def _root_of_kernel(text: bytes) -> Root | None:
    """The tables of the kernel itself, by what it says of itself in a vmcoreinfo note."""
    said = dict(_VMCOREINFO.findall(text))
    symbol = said.get(b"swapper_pg_dir", said.get(b"init_top_pgt"))
    base = said.get(b"phys_base")
    if symbol is None or base is None or not re.fullmatch(rb"-?\d{1,20}", base) or not re.fullmatch(rb"[0-9a-f]{1,16}", symbol):
        return None
    cr3 = int(symbol, 16) - _KERNEL_MAP + int(base)
    if not 0 < cr3 <= CR3_FRAME:
        return None
    return Root(cr3, 5 if said.get(b"pgtable_l5_enabled") == b"1" else 4, "by the kernel's vmcoreinfo note")
