"""ELF files of memory: their segments and notes, with everything that a forged one could say checked.

pyelftools (the extra `cores`) reads the headers. The tables that can be long, and all sizes, are read here: they have to
be held against the file before anything is allocated by them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import KsmwalkError
from ..signatures import BoolArray, RecordArray
from .images import ImageFile

PT_LOAD, PT_NOTE = 1, 4
PF_X, PF_W, PF_R = 1, 2, 4
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45

PHDR = np.dtype(
    [("type", "<u4"), ("flags", "<u4")]
    + [(name, "<u8") for name in ("offset", "vaddr", "paddr", "filesz", "memsz", "align")]
)
_EHDR_SIZE, _SHDR_SIZE = 64, 64
_PN_XNUM = 0xFFFF
_NHDR = struct.Struct("<3I")
_WINDOW, _MOST_NAME = 1 << 16, 32  # bytes
# More than any real file has: an address space has at most so many mappings as vm.max_map_count says, a process a few
# notes a thread.
_MOST_SEGMENTS, _MOST_NOTES, _MOST_DESC = 1 << 20, 1 << 18, 64 << 20


class Note(NamedTuple):
    """One note: whose it is, its type, where its description is in the file and how long."""

    name: bytes
    type: int
    offset: int
    size: int


class Elf:
    """An ELF core of an x86-64 machine.

    Attributes
    ----------
    segments : ndarray of PHDR
        All segments of memory (PT_LOAD) that have a size, in the order of the file; what they have in the file lies in it.
    has_sections : bool
        Whether it has a table of sections: those that debuggers write have, the kernel's have not.

    Raises
    ------
    BadImage
        Not such a file, truncated or forged; what, and where.
    KsmwalkError
        pyelftools is missing.
    """

    file: ImageFile

    def __init__(self, file: ImageFile):
        self.file = file
        header = self._header()
        count = self._nr_segments(header)
        self.has_sections = bool(header["e_shoff"]) and header["e_phnum"] != _PN_XNUM
        if header["e_phentsize"] != PHDR.itemsize:
            raise file.bad(f"program headers of {header['e_phentsize']} bytes: they must have {PHDR.itemsize}")
        if count > _MOST_SEGMENTS:
            raise file.bad(f"{count} program headers: more than any address space has mappings")
        raw = file.read(header["e_phoff"], count * PHDR.itemsize)
        headers = np.frombuffer(raw, PHDR)
        self.segments: RecordArray = headers[(headers["type"] == PT_LOAD) & (headers["memsz"] != 0)]
        self._notes = headers[headers["type"] == PT_NOTE]
        for header in (self.segments, self._notes):
            self._check_inside(header)
        self._check_sizes()

    def _header(self) -> Any:
        file = self.file
        try:
            from elftools.elf.elffile import ELFFile
        except ImportError as error:
            raise KsmwalkError(f"reading ELF cores needs pyelftools ({error}): pip install 'ksmwalk[cores]'") from None
        start = file.read(0, min(file.size, _EHDR_SIZE))
        if len(start) < _EHDR_SIZE:
            raise file.bad(f"truncated: an ELF header has {_EHDR_SIZE} bytes, the file {file.size}")
        try:
            self._parsed = ELFFile(io.BytesIO(start))
            header = self._parsed.header
        except Exception as error:  # whatever a damaged header makes of the parser
            raise file.bad(f"not an ELF header: {error}") from None
        ident = header["e_ident"]
        for value, wanted, words in (
            (ident["EI_CLASS"], "ELFCLASS64", "of 64 bits"),
            (ident["EI_DATA"], "ELFDATA2LSB", "little-endian"),
            (header["e_machine"], "EM_X86_64", "of x86-64"),
            (header["e_type"], "ET_CORE", "a core"),
        ):
            if value != wanted:
                raise file.bad(f"{value}: only ELF files that are {words} ({wanted}) can be read")
        return header

    def _nr_segments(self, header: Any) -> int:
        if header["e_phnum"] != _PN_XNUM:
            return int(header["e_phnum"])
        # More than 16 bits hold: the first section's sh_info has the number.
        raw = self.file.read(header["e_shoff"], _SHDR_SIZE)
        return int(self._parsed.structs.Elf_Shdr.parse(raw)["sh_info"])

    def _check_inside(self, headers: RecordArray) -> None:
        size = np.uint64(self.file.size)
        offset, length = headers["offset"], headers["filesz"]
        # QEMU gives those without contents the offset -1
        wrong = np.flatnonzero((length > 0) & ((offset > size) | (length > size - np.minimum(offset, size))))
        if wrong.size:
            one = headers[wrong[0]]
            raise self.file.bad(
                f"truncated: the segment of {int(one['vaddr']) or int(one['paddr']):#x} ends at byte "
                f"{int(one['offset']) + int(one['filesz']):#x}, the file at {self.file.size:#x}; take it again, with "
                f"enough room on the disk and `ulimit -c unlimited`"
            )

    def _check_sizes(self) -> None:
        s = self.segments
        for name in ("vaddr", "paddr"):
            end = s[name] + s["memsz"]
            self._refuse((end < s[name]) & (end != 0), "goes on behind the end of all addresses")
        self._refuse(s["filesz"] > s["memsz"], "has more bytes in the file than in memory")

    def _refuse(self, wrong: BoolArray, why: str) -> None:
        if wrong.any():
            one = self.segments[wrong.argmax()]
            raise self.file.bad(f"the segment of {int(one['vaddr']):#x}, {int(one['memsz']):#x} bytes, {why}")

    def notes(self) -> Iterator[Note]:
        """All notes in the order of the file; their descriptions are not read."""
        file, left = self.file, _MOST_NOTES
        window = _Window(file)
        for segment in self._notes:
            at = int(segment["offset"])
            end = at + int(segment["filesz"])
            while at + _NHDR.size <= end:
                namesz, descsz, kind = _NHDR.unpack(window.read(at, _NHDR.size))
                if not (namesz or descsz or kind):
                    break  # padding
                name_at = at + _NHDR.size
                desc_at = name_at + (namesz + 3 & ~3)
                if desc_at + descsz > end:
                    raise file.bad(f"the note at {at:#x} ({namesz} and {descsz} bytes) ends behind its segment, at {end:#x}")
                left -= 1
                if not left:
                    raise file.bad(f"more than {_MOST_NOTES} notes")
                name = window.read(name_at, namesz).rstrip(b"\0") if namesz <= _MOST_NAME else b""
                yield Note(name, kind, desc_at, descsz)
                at = desc_at + (descsz + 3 & ~3)

    def read_note(self, note: Note) -> bytes:
        """The description of a note."""
        if note.size > _MOST_DESC:
            raise self.file.bad(f"the note at {note.offset:#x} has {note.size} bytes: more than {_MOST_DESC}")
        return self.file.read(note.offset, note.size)

    def process_info(self, description: bytes) -> Any:
        """A note of type NT_PRPSINFO by its fields (pr_pid, pr_fname, ...)."""
        try:
            return self._parsed.structs.Elf_Prpsinfo.parse(description)
        except Exception as error:
            raise self.file.bad(f"note NT_PRPSINFO of {len(description)} bytes: {error}") from None


class _Window:
    """Small pieces of a file in ascending order, without a system call for each."""

    def __init__(self, file: ImageFile):
        self.file, self.at, self.block = file, 0, b""

    def read(self, offset: int, size: int) -> bytes:
        if not self.at <= offset <= self.at + len(self.block) - size:
            self.at = offset
            self.block = self.file.read(offset, max(min(_WINDOW, self.file.size - offset), size))
        return self.block[offset - self.at : offset - self.at + size]


def overlap(start: np.ndarray, size: np.ndarray) -> tuple[int, int] | None:
    """The first two of [start, start + size) that overlap, in ascending order of start; None if none do."""
    order = np.argsort(start, kind="stable")
    order = order[size[order] > 0]
    end = start[order] + size[order]
    wrong = np.flatnonzero(np.maximum.accumulate(end)[:-1] > start[order][1:])
    return (int(order[wrong[0]]), int(order[wrong[0] + 1])) if wrong.size else None
