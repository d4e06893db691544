"""A live process as a Host: its vmas, page tables and frames, ready to be walked, scanned and experimented with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np

from .. import kernels
from ..errors import ArenaFullError, check
from ..gate import counted
from ..host import Host, Mm, _load
from ..layout import PAGE_SHIFT, Frame, LoadedPage, Vm
from ..signatures import AnyArray, BoolArray, I32Array, I64Array, U16Array, U64Array
from . import reading
from .keys import UNKNOWN
from .reading import PAGES_PER_BLOCK, CaptureOptions, ProcessCapture, capture

# Frames that a Host has above those of the process, so that an experiment can go on from there.
_ROOM = 1 << 16
# Files may be larger than an object of a Host: each such part of one is an object of its own.
_PART = 1 << 46
# Present pages from which on a Host with huge pages under its arrays pays.
_HUGE_FROM = 1 << 18
MARK = ("as-is", "all", "none")
# Contents that were not read lie above all that were, and differ by frame.
_OF_ITS_OWN = 1 << 63


@dataclass(slots=True)
class ProcessImage:
    """A process loaded into a Host.

    Parameters
    ----------
    host : Host
    mm : Mm
        Of `host`, with the vmas and page tables of the process.
    capture : ProcessCapture
        What it was made from.
    true_frames : bool
        Whether frame numbers are the machine's own; else they are made up.
    notes : list of str
        What the reader of the result has to know, in sentences.
    seconds : dict
        Time by step, those of the capture included.

    Models: see `process`.
    Differs: see `process`.
    """

    host: Host
    mm: Mm
    capture: ProcessCapture
    true_frames: bool
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ProcessImage of {self.capture!r}, in {self.host!r}>"


def process(pid: int, *, host: Host | None = None, mark: str = "as-is", **options: Unpack[CaptureOptions]) -> ProcessImage:
    """Load a live process into a Host without touching its memory.

    Parameters
    ----------
    pid : int
    host : Host, optional
        Where to load it; several processes in one Host share frames as they really do, where frame numbers can be seen.
        By default one is made that is just large enough.
    mark : str
        Which areas ksmd is to search: "as-is", "all" that could be marked, "none".
    options
        As for `capture`.

    Returns
    -------
    ProcessImage

    Raises
    ------
    ProcessExited, NoAddressSpace, PermissionError, ProcessChanged
        As `capture` does.
    ArenaFullError
        The given host is too small.

    Models: the page tables, vmas and frames of a process on Linux 6.18.
    Differs: without contents in the capture every page counts as different; pages that KSM has merged already start as
    anonymous ones; frames that only others map, and swapped pages, are not there; folios of other sizes than 2 MiB
    count as small pages; a file that two loaded processes map is two objects, of which the first has the pages both
    map; whether an area has an anon_vma is guessed from its having anonymous pages.
    """
    what = capture(pid, **options)
    if host is not None:
        return load(what, host=host, mark=mark)
    kernel, note = kernels.here()
    image = load(what, mark=mark, kernel=kernel.version)
    image.notes += [note] if note else []
    return image


def load(
    what: ProcessCapture,
    *,
    host: Host | None = None,
    mark: str = "as-is",
    merged: bool = False,
    together: bool = False,
    above: int = 0,
    kernel: str = kernels.DEFAULT,
) -> ProcessImage:
    """Load a capture into a Host; the process itself may be gone by now.

    Parameters
    ----------
    what : ProcessCapture
    host, mark
        As for `process`.
    merged : bool
        Load KSM's pages as KSM's, and as many zero pages of marked areas as ksm_stat says: for `load_memory`, which gives
        them their stable nodes.
    together : bool
        Others that share frames follow: what nobody maps of huge pages is left to be taken then (`_load.fill_folios`).
    above : int
        Where frames are not known, those that are made up are this one or above: others that follow have those below.
    kernel : str
        The kernel that a Host made here is.

    Returns
    -------
    ProcessImage

    Raises
    ------
    ArenaFullError
        The given host is too small; what was begun is taken back.

    Models: see `process`.
    Differs: see `process`.
    """
    if mark not in MARK:
        raise ValueError(f"mark={mark!r}: not one of {', '.join(MARK)}")
    start = time.perf_counter()
    notes = list(what.notes)
    leaf = leaf_pages(what)
    if host is None:
        levels = 5 if what.vmas[-1].end > 1 << 47 else 4
        host = Host(_frames_needed(what, leaf), levels=levels, kernel=kernel, huge=what.nr_pages >= _HUGE_FROM)
    arrays = host.world.arrays
    pfn = _frame_numbers(what, leaf, arrays, above)
    if pfn.size and int(pfn.max()) >= host.nr_frames:
        raise ArenaFullError(
            f"frame {int(pfn.max()):#x} of process {what.pid}: this Host has only {host.nr_frames:#x} frames"
        )
    mm = host.new_mm()
    try:
        slices = np.array(what.vma_slices(), np.int64).reshape(-1, 2)
        vm_flags, backing = _add_vmas(host, mm.number, what, mark, slices)
        fresh = _map(host, mm.number, what, pfn, leaf, vm_flags, slices, merged)
        _fill_backing(host, what, pfn, fresh, backing, slices)
    except ArenaFullError:
        mm.exit()
        raise
    if not together:
        _load.fill_folios(host.world, folios_of(what))
    if (vm_flags & np.uint64(Vm.MERGEABLE)).any():
        _load.register(host.world, mm.number)
    if not merged and what.ksm is not None and what.ksm.any():
        notes.append(f"{counted(int(what.ksm.sum()), 'page', 'is', 'are')} KSM's already; in the model nothing is merged yet.")
    seconds = dict(what.seconds, build=time.perf_counter() - start)
    return ProcessImage(host, mm, what, what.pfn is not None, notes, seconds)


def leaf_pages(what: ProcessCapture) -> BoolArray:
    """Which pages lie in leaves of 2 MiB: bool[nr_pages]. 1 GiB leaves (hugetlb) count as 512 of them."""
    leaf = what.huge
    if what.ksm is not None:
        # a leaf that was split, and a page of it merged, between two looks
        leaf &= ~what.ksm
    if leaf.any():
        leaf &= reading.whole_blocks(what, leaf)
    return leaf


def _frames_needed(what: ProcessCapture, leaf: BoolArray) -> int:
    """Frames of a Host for this process alone, a multiple of a block, with some room."""
    if what.pfn is not None and what.nr_pages:
        used = int(what.pfn.max()) + 1
    else:
        # one block for the zero page and one for the huge zero page
        used = 2 * PAGES_PER_BLOCK + what.nr_pages
    return -(-(used + _ROOM) // PAGES_PER_BLOCK) * PAGES_PER_BLOCK


def _frame_numbers(what: ProcessCapture, leaf: BoolArray, arrays: Mapping[str, AnyArray], above: int = 0) -> I64Array:
    """The Host's frame of each page, int64[nr_pages]: the machine's own numbers where they are known, else made up.

    The shared zero page is frame 0 in every Host, whatever it is on the machine.
    """
    zero = what.zero
    if what.pfn is not None:
        pfn = what.pfn.astype(np.int64)
    else:
        pfn = np.empty(what.nr_pages, np.int64)
        own = leaf & ~zero
        first = max(_first_free_block(arrays), -(-above // PAGES_PER_BLOCK)) * PAGES_PER_BLOCK
        # Leaves first, as they have to be aligned.
        nr_leaf = int(own.sum())
        pfn[own] = first + np.arange(nr_leaf)
        first += nr_leaf
        if (leaf & zero).any():
            there = int(arrays["ctl"]["huge_zero"][0])
            block = there if there >= 0 else first
            first += 0 if there >= 0 else PAGES_PER_BLOCK
            pfn[leaf & zero] = block + (what.addr[leaf & zero].astype(np.int64) >> PAGE_SHIFT) % PAGES_PER_BLOCK
        small = ~(leaf | zero)
        pfn[small] = first + np.arange(int(small.sum()))
    pfn[zero & ~leaf] = 0
    return pfn


def _first_free_block(arrays: Mapping[str, AnyArray]) -> int:
    """The block of 512 frames from which on every one is wholly free."""
    partly = np.flatnonzero(arrays["b_count"] < PAGES_PER_BLOCK)
    return int(partly[-1]) + 1 if len(partly) else 0


def _add_vmas(host: Host, number: int, what: ProcessCapture, mark: str, slices: I64Array) -> tuple[U64Array, I32Array]:
    """Make the vmas: (vm_flags, backing) of each."""
    flags = np.array([vma.vm_flags for vma in what.vmas], np.uint64)
    marked = np.array([vma.why_not is None if mark == "as-is" else vma.not_compatible is None for vma in what.vmas], bool)
    flags &= ~np.uint64(Vm.MERGEABLE)
    if mark != "none":
        flags[marked] |= np.uint64(Vm.MERGEABLE)
    seen = np.append(0, np.cumsum(what.anon))
    anon = seen[slices[:, 1]] > seen[slices[:, 0]]
    anon |= np.array([not vma.never_written for vma in what.vmas], bool)
    backing, made = _add_objects(host, what)
    start = np.array([vma.start for vma in what.vmas], np.uint64)
    offset = np.array([vma.offset & _PART - 1 for vma in what.vmas], np.uint64)
    code = _load.add_vmas(
        host.world,
        number,
        start,
        np.array([vma.end for vma in what.vmas], np.uint64),
        flags,
        np.where(backing > 0, offset, start) >> np.uint64(PAGE_SHIFT),
        backing,
        anon.view(np.uint8),
    )
    for one in made:  # they live on with the areas that map them
        host.drop_object(one)
    check(code, f"the {len(what.vmas)} areas of process {what.pid}")
    return flags, backing


def _add_objects(host: Host, what: ProcessCapture) -> tuple[I32Array, list[int]]:
    """The file or shared object that each vma maps, int32[vmas], 0 where there is none; and all of them, to be dropped."""
    # How long an object really is can't be seen from outside; at least to where it is mapped.
    length: dict[tuple[str, int, int], int] = {}
    keys = [
        None if not vma.inode or {"pf", "ht"} & set(vma.flags) else (vma.device, vma.inode, vma.offset // _PART)
        for vma in what.vmas
    ]
    for key, vma in zip(keys, what.vmas, strict=True):
        if key is not None:
            length[key] = max(length.get(key, 0), (vma.offset & _PART - 1) + vma.size)
    numbers = {key: host.new_object(nbytes) for key, nbytes in length.items()}
    return np.array([0 if key is None else numbers[key] for key in keys], np.int32), list(numbers.values())


def _kinds(what: ProcessCapture, leaf: BoolArray, vm_flags: U64Array, slices: I64Array, merged: bool) -> U16Array:
    """Bits of each page for `_load.load_pages`: uint16[nr_pages]."""
    zero, anon = what.zero, what.anon
    kinds = np.where(anon, np.uint16(Frame.ANON), np.uint16(Frame.FILE))
    kinds[zero] = int(Frame.ZERO)
    kinds[leaf] |= np.uint16(LoadedPage.LEAF | LoadedPage.FOLIO)
    kinds[_folio_pages(what)] |= np.uint16(LoadedPage.FOLIO)
    # Without frames nobody can tell whether a page is shared; a private anonymous one most likely is not.
    writable = anon if what.exclusive is None else anon & what.exclusive
    if what.ksm is not None:
        writable &= ~what.ksm
    kinds[writable] |= np.uint16(LoadedPage.WRITABLE)
    for vma in np.flatnonzero(vm_flags & np.uint64(Vm.SHARED | Vm.HUGETLB) != 0):
        part = kinds[slices[vma, 0] : slices[vma, 1]]
        if vm_flags[vma] & np.uint64(Vm.HUGETLB):
            part &= ~np.uint16(Frame.ANON | Frame.FILE)
            part |= np.uint16(Frame.HUGETLB)
        if vm_flags[vma] & np.uint64(Vm.SHARED):
            part |= np.uint16(LoadedPage.WRITABLE)
    kinds[zero] &= ~np.uint16(LoadedPage.WRITABLE)
    if merged:
        if what.ksm is not None:
            kinds[what.ksm] |= np.uint16(Frame.KSM)
        kinds[_placed_zeros(what, leaf, vm_flags, slices)] |= np.uint16(LoadedPage.WRITABLE)
    return kinds


def _placed_zeros(what: ProcessCapture, leaf: BoolArray, vm_flags: U64Array, slices: I64Array) -> I64Array:
    """Zero pages that count as KSM's: which they really are can't be seen, only how many."""
    marked = np.zeros(what.nr_pages, bool)
    for first, last in slices[vm_flags & np.uint64(Vm.MERGEABLE) != 0].tolist():
        marked[first:last] = True
    return np.flatnonzero(what.zero & ~leaf & marked)[: what.ksm_stat.get("ksm_zero_pages", 0)]


def folios_of(what: ProcessCapture) -> I64Array:
    """First frames of the huge pages that some of its pages, mapped one by one, belong to: int64[folios], ascending."""
    if what.pfn is None:
        return what.folios[:0]
    here: I64Array = np.unique(what.pfn[_folio_pages(what)].astype(np.int64) >> 9) << 9
    return here


def _folio_pages(what: ProcessCapture) -> BoolArray:
    """Which pages, mapped one by one, belong to huge pages: bool[nr_pages]."""
    if what.pfn is None or not len(what.folios):
        return np.zeros(what.nr_pages, bool)
    return what.anon & np.isin(what.pfn.astype(np.int64) >> 9, what.folios >> 9)


def _keys(what: ProcessCapture, pfn: I64Array) -> U64Array | None:
    """Contents: what was not read is of nobody else's."""
    if what.key is None:
        return None
    unknown = what.key == np.uint64(UNKNOWN)
    return np.where(unknown, pfn.view(np.uint64) | np.uint64(_OF_ITS_OWN), what.key)


def _map(
    host: Host, number: int, what: ProcessCapture, pfn: I64Array, leaf: BoolArray, vm_flags: U64Array, slices: I64Array,
    merged: bool,
) -> BoolArray:  # fmt: skip
    """Write the page tables, take the frames and count their mappings; which pages have frames nobody had before."""
    kinds = _kinds(what, leaf, vm_flags, slices, merged)
    done = _load.load_pages(host.world, number, what.addr, pfn, kinds, slices, vm_flags, _keys(what, pfn))
    if done < slices[-1, 1]:
        raise ArenaFullError(f"no table page left at {int(what.addr[done]):#x}: make the Host with more frames")
    huge_zero = leaf & what.zero
    if huge_zero.any():
        host.world.arrays["ctl"]["huge_zero"] = int(pfn[huge_zero][0]) & ~(PAGES_PER_BLOCK - 1)
    fresh: BoolArray = kinds & np.uint16(LoadedPage.FRESH) != 0
    return fresh


def _fill_backing(
    host: Host, what: ProcessCapture, pfn: I64Array, fresh: BoolArray, backing: I32Array, slices: I64Array
) -> None:
    """Give each file or shared object its pages, so that what is discarded can be faulted in again."""
    file = what.file & fresh
    for vma, number, (first, last) in zip(what.vmas, backing.tolist(), slices.tolist(), strict=True):
        if not number or first == last:
            continue
        there = file[first:last]
        place = what.addr[first:last][there].view(np.int64) + ((vma.offset & _PART - 1) - vma.start)
        if _load.hold_pages(host.world, number, place, pfn[first:last][there]) < len(place):
            raise ArenaFullError(f"no table page left for the pages of {vma.name}: make the Host with more frames")
