"""The mappings of a process as `/proc/PID/smaps` lists them, and whether KSM may look at each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from ..drawing.words import printable
from ..host.vma import LETTERS, why_not
from ..layout import PAGE_SIZE, Vm

# The bit of each pair of VmFlags letters that the model knows.
VM_BITS = {letters: bit for bit, letters in LETTERS}

# Mappings from here up are the kernel's own (the vsyscall page), of no address space.
USER_END = 1 << 63

_HEADER = rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+)[ ]*([^\n]*)\n"
_MAPS_LINE = re.compile(rb"^" + _HEADER, re.M)
_SMAPS_SPLIT = re.compile(rb"^(?=[0-9a-f]+-[0-9a-f]+ )", re.M)
#: in the order of the kernel's lines
_FIELDS = (
    b"KernelPageSize",
    b"Rss",
    b"Anonymous",
    b"KSM",
    b"AnonHugePages",
    b"ShmemPmdMapped",
    b"FilePmdMapped",
    b"Shared_Hugetlb",
    b"Private_Hugetlb",
    b"Swap",
)
_TOKENS = [(key, b"\n" + key + b":") for key in _FIELDS]
_VMFLAGS = b"\nVmFlags:"
# Mappings are many, but of few kinds.
_KINDS = 1 << 12


@dataclass(frozen=True, slots=True)
class VmaRecord:
    """One mapping of a process; all sizes in bytes, [start, end) half-open.

    `flags` holds the two-letter VmFlags. `rss`, `anonymous`, `huge`, `ksm` and `swap` are the kernel's own account at
    the moment of reading; `rss` leaves out the shared zero page.

    Models: one entry of `/proc/PID/smaps`, Linux 6.18.
    Differs: `anon_vma` cannot be seen from outside, so `never_written` is a guess from `anonymous` and `swap`.
    """

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    name: str
    flags: tuple[str, ...] = ()
    rss: int = 0
    anonymous: int = 0
    huge: int = 0
    ksm: int = 0
    swap: int = 0
    page_size: int = PAGE_SIZE

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @property
    def key(self) -> tuple[int | str, ...]:
        """What must be equal in two readings for the mapping to count as unchanged."""
        return (self.start, self.end, self.perms, self.offset, self.device, self.inode, self.name)

    @property
    def sort(self) -> tuple[tuple[str, ...], str, str]:
        """What is equal of mappings of one kind."""
        return self.flags, self.perms, self.name

    @property
    def vm_flags(self) -> int:
        """The flags as `layout.Vm` bits; letters that the model has no use for are left out."""
        return _bits(self.flags)

    @property
    def mergeable(self) -> bool:
        """Whether the mapping is marked, so that ksmd searches it."""
        return "mg" in self.flags

    @property
    def not_compatible(self) -> str | None:
        """Why the mapping could never be marked mergeable, or None if it could be."""
        return _why_not(self.flags, int(Vm.MERGEABLE))

    @property
    def why_not(self) -> str | None:
        """Why ksmd does not search the mapping: None if it does."""
        return _why_not(self.flags, 0)

    @property
    def never_written(self) -> bool:
        """Whether the mapping shows no anonymous memory at all, so that ksmd very likely skips it whole."""
        return self.anonymous == 0 and self.swap == 0

    def __str__(self) -> str:
        return f"{self.start:x}-{self.end:x} {self.perms} {printable(self.name)}".rstrip()


@lru_cache(_KINDS)
def _bits(flags: tuple[str, ...]) -> int:
    return sum(VM_BITS.get(letters, 0) for letters in flags)


@lru_cache(_KINDS)
def _why_not(flags: tuple[str, ...], more: int) -> str | None:
    return why_not(_bits(flags) | more) if flags else "flags not known"


def _record(header: re.Match[bytes], fields: dict[bytes, int], flags: tuple[str, ...]) -> VmaRecord:
    start, end, perms, offset, device, inode, name = header.groups()
    get = fields.get
    hugetlb = get(b"Shared_Hugetlb", 0) + get(b"Private_Hugetlb", 0)
    return VmaRecord(
        start=int(start, 16),
        end=int(end, 16),
        perms=perms.decode(),
        offset=int(offset, 16),
        device=device.decode(),
        inode=int(inode),
        name=name.decode(errors="surrogateescape"),
        flags=flags,
        rss=get(b"Rss", 0) + hugetlb,
        anonymous=get(b"Anonymous", 0),
        huge=get(b"AnonHugePages", 0) + get(b"ShmemPmdMapped", 0) + get(b"FilePmdMapped", 0) + hugetlb,
        ksm=get(b"KSM", 0),
        swap=get(b"Swap", 0),
        page_size=get(b"KernelPageSize", PAGE_SIZE),
    )


def _fields(block: bytes) -> dict[bytes, int]:
    """The sizes in bytes that one mapping's lines give, those that we use; a missing line is left out."""
    fields = {}
    after = 0
    for key, token in _TOKENS:
        at = block.find(token, after)
        if at < 0:
            # of another kernel, say, whose lines stand in another order
            at = block.find(token)
        if at >= 0:
            after = block.index(b"kB", at)
            fields[key] = int(block[at + len(token) : after]) << 10
    return fields


def _letters(block: bytes) -> tuple[str, ...]:
    at = block.find(_VMFLAGS)
    return () if at < 0 else _split(block[at + len(_VMFLAGS) : block.index(b"\n", at + 1)])


@lru_cache(_KINDS)
def _split(flags: bytes) -> tuple[str, ...]:
    return tuple(flags.decode().split())


def parse_maps(text: bytes) -> list[VmaRecord]:
    """The mappings in the text of a `maps` file, without flags; those of the kernel's half are left out."""
    records = [_record(line, {}, ()) for line in _MAPS_LINE.finditer(text)]
    return [vma for vma in records if vma.start < USER_END]


def parse_smaps(text: bytes) -> list[VmaRecord]:
    """The mappings in the text of a `smaps` file; those of the kernel's half are left out.

    Raises ValueError, naming the line, where the text is not of that form.
    """
    records = []
    for block in _SMAPS_SPLIT.split(text):
        if not block:
            continue
        header = _MAPS_LINE.match(block)
        if header is None:
            raise ValueError(f"smaps: not the head of a mapping: {block.splitlines()[0]!r}")
        records.append(_record(header, _fields(block), _letters(block)))
    return [vma for vma in records if vma.start < USER_END]


def first_difference(before: list[VmaRecord], after: list[VmaRecord]) -> str | None:
    """What changed between two readings of the mapping list, in words; None if nothing did."""
    if [vma.key for vma in before] == [vma.key for vma in after]:
        return None
    old = {vma.key: vma for vma in before}
    new = {vma.key: vma for vma in after}
    for key, vma in new.items():
        if key not in old:
            return f"new mapping {vma}"
    for key, vma in old.items():
        if key not in new:
            return f"mapping gone {vma}"
    return "the order of the mappings"
