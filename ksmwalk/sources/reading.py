"""One consistent reading of a live process: its mappings, its present pages, their frames."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from ..drawing import html
from ..drawing.words import printable
from ..gate import counted
from ..layout import PAGE_SHIFT
from ..proc import maps, pagemap
from ..proc.errors import NoAddressSpace, ProcessChanged, ProcessExited, not_allowed
from ..proc.frames import LYING, Kpf, bits_lie, frame_records, has
from ..proc.gather import gather
from ..proc.maps import VmaRecord
from ..proc.pagemap import Regions
from ..proc.processes import Identity, identity, ksm_stat
from ..signatures import BoolArray, I64Array, U16Array, U64Array
from .folios import huge_folios

PAGES_PER_BLOCK = 512
#: arrays with an element a page, by the attribute of `ProcessCapture` they are in
PAGE_ARRAYS: dict[str, np.dtype[Any]] = {
    "addr": np.dtype(np.uint64),
    "categories": np.dtype(np.uint64),
    "pfn": np.dtype(np.uint64),
    "exclusive": np.dtype(np.bool_),
    "frame_flags": np.dtype(np.uint64),
    "frame_counts": np.dtype(np.uint64),
    "key": np.dtype(np.uint64),
    "changes": np.dtype(np.uint16),
}
FIND = ("auto", "ioctl", "pagemap")


@dataclass(slots=True)
class ProcessCapture:
    """The present pages of a process and what could be learned of their frames; nothing in it refers to the process.

    The page arrays have one element per present page, in ascending order of `addr`.

    Parameters
    ----------
    pid : int
    name : str
        The name of the process as the kernel has it (`comm`).
    vmas : list of VmaRecord
    addr : ndarray of uint64
        Address in bytes.
    categories : ndarray of uint64
        PAGE_IS_* bits.
    pfn : ndarray of uint64 or None
        Frame number; None where the caller may not see frames.
    exclusive : ndarray of bool or None
        Whether this is the frame's only mapping; None where pagemap wasn't read.
    frame_flags : ndarray of uint64 or None
        KPF_* bits of the frame.
    frame_counts : ndarray of uint64 or None
        Mappings of the frame in all processes.
    folios : ndarray of int64
        First frames of huge pages of which some frames are mapped one by one: their other frames belong to them too.
    key : ndarray of uint64 or None
        Content: 0 for a page of zeros, equal keys for equal bytes, in the order of the bytes among all that was captured
        together; `keys.UNKNOWN` where it was not read. None: contents weren't asked for.
    changes : ndarray of uint16 or None
        How often the page had another content when it was looked at again.
    identity : Identity
    ksm_stat : dict
        /proc/PID/ksm_stat at the time; empty where it could not be read.
    found_by : str
        "ioctl" or "pagemap".
    attempts : int
        How many readings it took until the mappings stood still.
    seconds : dict
        Time by step.
    notes : list of str
        What the reader of the result has to know, in sentences.

    Models: `/proc/PID/{smaps,pagemap}`, PAGEMAP_SCAN, `/proc/{kpageflags,kpagecount}` of Linux 6.18.
    Differs: the mapping list, the pages and the frames are three moments; the list is read again afterwards and must be
    the same, pages that went in between are dropped and counted in a note. Swapped pages are not listed.
    """

    pid: int
    name: str
    vmas: list[VmaRecord]
    addr: U64Array
    categories: U64Array
    pfn: U64Array | None = None
    exclusive: BoolArray | None = None
    frame_flags: U64Array | None = None
    frame_counts: U64Array | None = None
    folios: I64Array = field(default_factory=lambda: np.empty(0, np.int64))
    key: U64Array | None = None
    changes: U16Array | None = None
    identity: Identity = field(default_factory=Identity)
    ksm_stat: dict[str, int] = field(default_factory=dict)
    found_by: str = "ioctl"
    attempts: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        present = f"{counted(len(self.vmas), 'area')}, {counted(self.nr_pages, 'page')} present"
        return f"<ProcessCapture {self.pid} {printable(self.name)}: {present}>"

    def _repr_html_(self) -> str:
        from .pictures import picture

        return html.address_space(picture(self, 16))

    @property
    def nr_pages(self) -> int:
        """Number of present pages."""
        return len(self.addr)

    @property
    def zero(self) -> BoolArray:
        """Which pages are the shared zero page, small or huge: bool[nr_pages]."""
        return has(self.categories, pagemap.PAGE_IS_PFNZERO)

    @property
    def file(self) -> BoolArray:
        """Which pages belong to a file or to shared memory: bool[nr_pages]."""
        return has(self.categories, pagemap.PAGE_IS_FILE)

    @property
    def huge(self) -> BoolArray:
        """Which pages are mapped by a leaf of 2 MiB or more: bool[nr_pages]."""
        return has(self.categories, pagemap.PAGE_IS_HUGE)

    @property
    def anon(self) -> BoolArray:
        """Which pages are anonymous, KSM pages included: bool[nr_pages]."""
        if self.frame_flags is not None:
            return has(self.frame_flags, Kpf.ANON)
        return ~(self.file | self.zero)

    @property
    def ksm(self) -> BoolArray | None:
        """Which pages are KSM pages: bool[nr_pages]; None where frame flags can't be seen."""
        return None if self.frame_flags is None else has(self.frame_flags, Kpf.KSM)

    def stray_page(self) -> str | None:
        """A page outside every mapping, in words: of a mapping that came and went between two looks at the list."""
        inside = sum(last - first for first, last in self.vma_slices())
        if inside == self.nr_pages:
            return None
        starts = np.array([vma.start for vma in self.vmas], np.uint64)
        ends = np.array([vma.end for vma in self.vmas], np.uint64)
        at = np.searchsorted(starts, self.addr, "right") - 1
        stray = self.addr[(at < 0) | (self.addr >= ends[at])][0]
        return f"a page at {int(stray):#x}, outside every mapping listed"

    def vma_slices(self) -> list[tuple[int, int]]:
        """For each vma the half-open range of its pages in the page arrays."""
        starts = np.array([vma.start for vma in self.vmas], np.uint64)
        ends = np.array([vma.end for vma in self.vmas], np.uint64)
        first, last = np.searchsorted(self.addr, starts), np.searchsorted(self.addr, ends)
        return list(zip(first.tolist(), last.tolist(), strict=True))


class CaptureOptions(TypedDict, total=False):
    """What `capture` may be told besides the process."""

    frames: bool
    counts: bool
    find: str
    attempts: int


def capture(
    pid: int,
    *,
    frames: bool = True,
    counts: bool = False,
    find: str = "auto",
    attempts: int = 8,
    _between: Callable[[str], None] | None = None,
) -> ProcessCapture:
    """Read the mappings, present pages and frames of a live process without touching its memory.

    Parameters
    ----------
    pid : int
    frames : bool
        Read frame numbers and flags where the caller may see them (CAP_SYS_ADMIN).
    counts : bool
        Also read how often each frame is mapped on the whole machine.
    find : str
        "ioctl" (PAGEMAP_SCAN), "pagemap" (for kernels without it; slow on large mappings), "auto": whichever there is.
    attempts : int
        How many readings to make at most while the process keeps changing its mappings.

    Returns
    -------
    ProcessCapture

    Raises
    ------
    ProcessExited
        No such process, or it ended meanwhile.
    NoAddressSpace
        A kernel thread or a zombie.
    PermissionError
        The caller may not look into this process.
    ProcessChanged
        The mappings changed during every attempt.

    Models: nothing; this is the real kernel's own view.
    Differs: see ProcessCapture.
    """
    if find not in FIND:
        raise ValueError(f"find={find!r}: not one of {', '.join(FIND)}")
    if attempts < 1:
        raise ValueError(f"attempts={attempts}: at least 1 is needed")
    between = _between or (lambda step: None)
    with _Process(pid) as process:
        change: str | None = None
        for attempt in range(1, attempts + 1):
            result = _read_once(process, frames, counts, find, between)
            result.attempts = attempt
            between("checked")
            change = maps.first_difference(result.vmas, process.maps()) or result.stray_page()
            if change is None:
                return result
    raise ProcessChanged(pid, attempts, change or "")


class _Process:
    """The open files of one process: a number used again for another process can't be mistaken for it."""

    def __init__(self, pid: int):
        self.pid = pid
        try:
            self.directory = os.open(f"/proc/{pid:d}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessExited(pid, "does not exist") from None
        try:
            self.pagemap = self.open("pagemap")
        except BaseException:
            os.close(self.directory)
            raise

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self.pagemap)
        os.close(self.directory)

    def open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
        except PermissionError:
            raise not_allowed(self.pid, path) from None
        except OSError as error:
            raise self.gone(error) from None

    def gone(self, error: OSError) -> OSError:
        """What a failed access means: an ended process, one without memory, or the error itself."""
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            return error
        try:
            os.stat("stat", dir_fd=self.directory)
        except OSError:
            return ProcessExited(self.pid, "ended while it was being read")
        return NoAddressSpace(self.pid)

    def read(self, path: str) -> bytes:
        try:
            with open(self.open(path), "rb", buffering=0) as file:
                return file.read()
        except PermissionError:
            raise not_allowed(self.pid, path) from None
        except OSError as error:
            raise self.gone(error) from None

    def maps(self) -> list[VmaRecord]:
        return maps.parse_maps(self.read("maps"))

    def smaps(self) -> list[VmaRecord]:
        vmas = maps.parse_smaps(self.read("smaps"))
        if not vmas:
            raise NoAddressSpace(self.pid)
        return vmas

    def name(self) -> str:
        return self.read("comm").decode(errors="replace").rstrip("\n")


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self.last
        self.last = now


def _read_once(process: _Process, frames: bool, counts: bool, find: str, between: Callable[[str], None]) -> ProcessCapture:
    clock = _Clock()
    notes: list[str] = []
    vmas = process.smaps()
    clock.lap("smaps")
    between("mapped")
    regions, found_by = _find(process, vmas, find, notes)
    pages, categories = regions.pages()
    clock.lap("find")
    between("found")
    result = ProcessCapture(process.pid, process.name(), vmas, (pages << PAGE_SHIFT).view(np.uint64), categories)
    result.found_by, result.seconds, result.notes = found_by, clock.seconds, notes
    result.identity, result.ksm_stat = identity(process.pid), ksm_stat(process.pid)
    if frames and len(pages):
        _read_frames(process, result, pages, counts, clock, between)
    elif not frames:
        notes.append("Frame numbers and flags were not asked for.")
    if found_by == "pagemap":
        _huge_by_contiguity(result)
    return result


def _find(process: _Process, vmas: list[VmaRecord], find: str, notes: list[str]) -> tuple[Regions, str]:
    if find != "pagemap":
        try:
            return pagemap.scan_regions(process.pagemap, process.pid, vmas[0].start, vmas[-1].end), "ioctl"
        except pagemap.ScanMissing:
            if find == "ioctl":
                raise
    notes.append(
        "Found without PAGEMAP_SCAN, by reading pagemap: zero pages in mappings without any resident page are missed."
    )
    return pagemap.read_regions(process.pagemap, process.pid, vmas), "pagemap"


def _read_frames(
    process: _Process, result: ProcessCapture, pages: I64Array, counts: bool, clock: _Clock, between: Callable[[str], None]
) -> None:
    entries = gather(process.pagemap, pages, pagemap.PAGEMAP_GAP, process.pid)
    clock.lap("pagemap")
    between("framed")
    present = entries >> np.uint64(63) != 0
    _keep(result, present, "unmapped between finding and reading them")
    entries = entries[present]
    result.exclusive = entries & np.uint64(pagemap.PM_EXCLUSIVE) != 0
    pfn = entries & np.uint64(pagemap.PM_PFN)
    # root in a container may be refused, so ask pagemap itself
    if not pfn.any():
        result.notes.append(
            "Frame numbers are hidden from this user (CAP_SYS_ADMIN shows them): pages, zero pages, huge leaves and "
            "files are true; who shares a frame, and which pages are KSM's already, can't be seen."
        )
        return
    result.pfn = pfn
    alone = result.exclusive & (entries & np.uint64(pagemap.PM_FILE) == 0)
    _read_frame_flags(process.pid, result, result.pfn.view(np.int64), alone if counts else None)
    between("flagged")
    entries = _look_again(process, result, entries)
    clock.lap("frames")
    _settle(result, entries & np.uint64(pagemap.PM_FILE) != 0)
    clock.lap("settle")


def _look_again(process: _Process, result: ProcessCapture, entries: U64Array) -> U64Array:
    """Drop the pages that have left the frames whose flags were read: others may have got these in between."""
    now = gather(process.pagemap, result.addr.view(np.int64) >> PAGE_SHIFT, pagemap.PAGEMAP_GAP, process.pid)
    same = (now ^ entries) & np.uint64(pagemap.PM_PRESENT | pagemap.PM_PFN) == 0
    if not same.all():
        _keep(result, same, "unmapped or moved before the flags of their frames were read")
    kept: U64Array = now[same]
    return kept


def _keep(result: ProcessCapture, keep: BoolArray, why: str) -> None:
    """Drop the pages that went while they were read, from all arrays alike."""
    gone = len(keep) - int(np.count_nonzero(keep))
    if not gone:
        return
    result.notes.append(f"{counted(gone, 'page', 'was', 'were')} {why}: left out.")
    for name in PAGE_ARRAYS:
        array = getattr(result, name)
        if array is not None:
            setattr(result, name, array[keep])


def _read_frame_flags(pid: int, result: ProcessCapture, pfn: I64Array, alone: BoolArray | None) -> None:
    """Flags of every frame; and counts, unless it is not known which anonymous pages have one mapping alone."""
    try:
        files = [os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)]
    except OSError as error:
        result.notes.append(f"Frame flags can't be read: /proc/kpageflags: {error.strerror}.")
        return
    try:
        if alone is not None:
            files.append(os.open("/proc/kpagecount", os.O_RDONLY | os.O_CLOEXEC))
        leaf = whole_blocks(result, result.huge) if result.huge.any() else None
        result.frame_flags = _flags_of_frames(files[0], pfn, leaf, pid)
        if bits_lie():
            result.frame_flags &= ~np.uint64(Kpf.KSM)
            result.notes.append(LYING)
        result.folios = huge_folios(files[0], pfn.view(np.uint64), result.frame_flags, result.huge, pid)
        if alone is not None:
            result.frame_counts = np.ones(len(pfn), np.uint64)
            result.frame_counts[~alone] = frame_records(files[1], pfn[~alone], pid)
    finally:
        for fd in files:
            os.close(fd)


def _flags_of_frames(fd: int, pfn: I64Array, leaf: BoolArray | None, pid: int) -> U64Array:
    """The flags of each frame; of a leaf's 512 only the first is read, as they are one folio with one set of flags."""
    if leaf is None:
        return frame_records(fd, pfn, pid)
    head = leaf & (pfn & (PAGES_PER_BLOCK - 1) == 0)
    read = np.flatnonzero(head | ~leaf)
    some = frame_records(fd, pfn[read], pid)
    out = np.repeat(some, np.diff(np.append(read, len(pfn))))
    swap = np.uint64(Kpf.COMPOUND_HEAD | Kpf.COMPOUND_TAIL)
    tail = leaf & ~head
    # hugetlb pages of 1 GiB have one head in 512 such leaves: there the first is a tail as well
    out[tail] ^= np.where(has(out[tail], Kpf.COMPOUND_HEAD), swap, np.uint64(0))
    split = leaf & (out & swap == 0)
    if split.any():
        # no folio any more: its frames go their own ways
        out[split] = frame_records(fd, pfn[split], pid)
    return out


def _settle(result: ProcessCapture, file: BoolArray) -> None:
    """Let the later look win wherever finding and reading saw different states of a page."""
    flags = result.frame_flags
    if flags is None:
        return
    zero = has(flags, Kpf.ZERO_PAGE)
    # A page whose frame is mapped nowhere any more, or is no page at all, went before its flags were read.
    free = has(flags, Kpf.BUDDY | Kpf.NOPAGE) | ~(zero | file | has(flags, Kpf.MMAP | Kpf.ANON | Kpf.HUGE))
    known = np.uint64(pagemap.PAGE_IS_PFNZERO | pagemap.PAGE_IS_FILE)
    result.categories &= ~known
    result.categories |= np.where(zero, np.uint64(pagemap.PAGE_IS_PFNZERO), np.uint64(0))
    result.categories |= np.where(file & ~zero, np.uint64(pagemap.PAGE_IS_FILE), np.uint64(0))
    _keep(result, ~free, "unmapped before the flags of their frames were read")
    torn = result.huge & ~whole_blocks(result, result.huge)
    if torn.any():
        result.categories[torn] &= ~np.uint64(pagemap.PAGE_IS_HUGE)
        which = counted(int(torn.sum()), "page", "of huge leaves was", "of huge leaves were")
        result.notes.append(f"{which} split meanwhile: taken as small pages.")


def whole_blocks(result: ProcessCapture, candidate: BoolArray) -> BoolArray:
    """Which candidates lie in complete, aligned blocks of 2 MiB whose frames (if seen) follow one another."""
    aligned = result.addr & np.uint64((PAGES_PER_BLOCK << PAGE_SHIFT) - 1) == 0
    first = np.flatnonzero(aligned & candidate)
    first = first[first + PAGES_PER_BLOCK <= len(candidate)]
    follows = candidate[1:] & candidate[:-1] & (np.diff(result.addr) == np.uint64(1 << PAGE_SHIFT))
    if result.pfn is not None:
        first = first[result.pfn[first] & np.uint64(PAGES_PER_BLOCK - 1) == 0]
        follows &= np.diff(result.pfn) == np.uint64(1)
    # A block is whole if none of its pages but the last breaks the row.
    breaks = np.append(np.flatnonzero(~follows), len(candidate))
    first = first[breaks[np.searchsorted(breaks, first)] >= first + PAGES_PER_BLOCK - 1]
    edges = np.zeros(len(candidate) + 1, np.int8)
    edges[first] += 1
    edges[first + PAGES_PER_BLOCK] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).view(bool)


def _huge_by_contiguity(result: ProcessCapture) -> None:
    """Mark huge leaves where the account of the mapping and the blocks that could be leaves agree.

    pagemap doesn't tell a leaf from 512 small pages that stand in order.
    """
    undecided = 0
    for vma, (first, last) in zip(result.vmas, result.vma_slices(), strict=True):
        if not vma.huge:
            continue
        here = np.zeros(result.nr_pages, bool)
        here[first:last] = True
        blocks = whole_blocks(result, here)
        if int(blocks.sum()) << PAGE_SHIFT == vma.huge:
            result.categories[blocks] |= np.uint64(pagemap.PAGE_IS_HUGE)
        else:
            undecided += 1
    if undecided:
        result.notes.append(f"In {counted(undecided, 'mapping')} with huge leaves these can't be told from small pages.")
