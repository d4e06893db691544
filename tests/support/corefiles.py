"""Cores and images made by hand: what a kernel, a debugger or an emulator could have written, and what none would."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
R, W, X = 4, 2, 1
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45


def page(byte: int) -> bytes:
    return bytes([byte]) * PAGE


@dataclass
class Segment:
    """A PT_LOAD: pages in the file, None for those left out as holes; `size` in memory, by default what is in the file."""

    vaddr: int
    pages: list[bytes | None] = field(default_factory=list)
    size: int | None = None
    flags: int = R | W
    paddr: int = 0
    at: int | None = None  # offset in the file, if not the next free one
    filesz: int | None = None

    @property
    def nbytes(self) -> int:
        return PAGE * len(self.pages) if self.filesz is None else self.filesz


def note(name: bytes, kind: int, description: bytes) -> bytes:
    pad = lambda data: data + bytes(-len(data) % 4)  # noqa: E731
    return struct.pack("<3I", len(name) + 1, len(description), kind) + pad(name + b"\0") + pad(description)


def prstatus(pid: int) -> bytes:
    return note(b"CORE", NT_PRSTATUS, struct.pack("<32xi300x", pid))


def prpsinfo(pid: int, name: bytes) -> bytes:
    return note(b"CORE", NT_PRPSINFO, struct.pack("<4b4xQ2I4i16s80s", 0, 82, 0, 0, 0, 1000, 1000, pid, 1, pid, pid, name, b""))


def auxv(**values: int) -> bytes:
    kinds = {"random": 25, "vdso": 33}
    return note(b"CORE", NT_AUXV, b"".join(struct.pack("<2Q", kinds[k], v) for k, v in values.items()) + bytes(16))


def files(*mapped: tuple[int, int, int, bytes]) -> bytes:
    """NT_FILE of (start, end, offset in pages, name)."""
    table = b"".join(struct.pack("<3Q", *one[:3]) for one in mapped)
    return note(b"CORE", NT_FILE, struct.pack("<2Q", len(mapped), PAGE) + table + b"".join(one[3] + b"\0" for one in mapped))


def qemu(cr3: int, *, cr0: int = 0x80000011, cr4: int = 0x20, version: int = 1) -> bytes:
    registers = bytes(18 * 8 + 10 * 24)
    state = struct.pack("<2I", version, 440) + registers + struct.pack("<5Q", cr0, 0, 0, cr3, cr4) + bytes(8)
    return note(b"QEMU", 0, state)


def vmcoreinfo(**values: str) -> bytes:
    lines = "".join(f"{name.replace('__', '(', 1)})={value}\n" for name, value in values.items())
    return note(b"VMCOREINFO", 0, b"OSRELEASE=6.18.0\n" + lines.encode())


def header(
    phnum: int, *, machine: int = 62, kind: int = 4, elf_class: int = 2, data: int = 1, shoff: int = 0, phoff: int = 64,
    phentsize: int = 56, shnum: int = 0,
) -> bytes:  # fmt: skip
    ident = b"\x7fELF" + bytes([elf_class, data, 1]) + bytes(9)
    return ident + struct.pack("<2HI3QI6H", kind, machine, 1, 0, phoff, shoff, 0, 64, phentsize, phnum, 64, shnum, 0)


def phdr(kind: int, flags: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> bytes:
    return struct.pack("<2I6Q", kind, flags, offset, vaddr, paddr, filesz, memsz, 0)


def write_core(path: Path, segments: list[Segment], notes: bytes = b"", *, hole: bool = True, **head: int) -> Path:
    """An ELF core. `hole` puts one in front of the segments, so that it is sparse as the kernel's are."""
    at = 64 + 56 * (len(segments) + 1)
    table = phdr(4, 0, at, 0, 0, len(notes), 0)
    end = at + len(notes)
    end += -end % PAGE + (16 * PAGE if hole else 0)
    places = []
    for one in segments:
        offset = end if one.at is None else one.at
        places.append(offset)
        size = len(one.pages) * PAGE if one.size is None else one.size
        table += phdr(1, one.flags, offset, one.vaddr, one.paddr, one.nbytes, size)
        if one.at is None:
            end += PAGE * len(one.pages)
    with open(path, "wb") as file:
        file.write(header(len(segments) + 1, **head) + table + notes)
        for one, offset in zip(segments, places, strict=True):
            for number, data in enumerate(one.pages):
                if data is not None and offset < 1 << 50:
                    os.pwrite(file.fileno(), data, offset + number * PAGE)
        file.truncate(end)
    return path
