"""Captured memory as a Host: all processes together, with what their pages hold, KSM's pages taken over."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import numpy as np

from .. import kernels
from ..errors import check
from ..gate import counted, shown
from ..host import Host, Mm, _load
from ..ksm import _takeover
from ..layout import Frame
from ..proc.pagemap import PAGE_IS_HUGE
from ..signatures import BoolArray, I64Array
from .contents import MemoryCapture
from .loading import MARK, folios_of, leaf_pages, load
from .reading import PAGES_PER_BLOCK, ProcessCapture

# Frames beside those of the capture: copies that a store makes, huge zero page and the like.
_ROOM = 1 << 14


@dataclass(slots=True)
class LoadedMemory:
    """A capture loaded into a Host.

    Attributes
    ----------
    host : Host
    mms : list of Mm
        Of `host`, one for each process of the capture, in its order.
    capture : MemoryCapture
    nr_merged : int
        Pages that were KSM's already and were taken over: their mappings in marked areas.
    notes : list of str
    seconds : float

    Models: see `load_memory`. Differs: see `load_memory`.
    """

    host: Host
    mms: list[Mm]
    capture: MemoryCapture
    nr_merged: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"<LoadedMemory of {counted(len(self.mms), 'process')} in {self.host!r}>"


def load_memory(
    what: MemoryCapture,
    *,
    mark: str = "as-is",
    knobs: dict[str, object] | None = None,
    take_over: bool = True,
) -> LoadedMemory:
    """Load all processes of a capture into one Host, which goes on from there.

    Parameters
    ----------
    what : MemoryCapture
    mark : str
        Which areas ksmd is to search: "as-is", "all" that could be marked, "none".
    knobs : dict, optional
        Tunables of the Host's KSM by their names in /sys/kernel/mm/ksm; others have the kernel's defaults.
    take_over : bool
        Take pages that KSM has merged as merged: each is a stable node, each of its mappings in a marked area an
        rmap_item. Else they count as pages like others, shared as by fork.

    Returns
    -------
    LoadedMemory

    Raises
    ------
    ValueError, OSError, AttributeError
        No such `mark`; a value or name of a knob that the kernel does not know.

    Models: the memory of the processes on the kernel that the capture names, and KSM at the beginning of a full scan.
    Differs: checksums, ages, the order of address spaces and of the pages in a chain, and which zero pages are KSM's can't
    be seen. Checksums are taken to be those of the contents in a process that has as many rmap_items as it has pages that
    ksmd looks at, so that each was visited (one that was stored to since has another), else unknown; ages 0; orders that of
    the capture; zero pages any. A steady state does not depend on them, unless max_page_sharing is reached; how many scans
    there are to it does. Frames have other numbers.
    """
    if mark not in MARK:
        raise ValueError(f"mark {shown(mark)}: not one of {', '.join(MARK)}")
    start = time.perf_counter()
    parts, torn = _agreed(renumbered(what.processes))
    kernel, note = kernel_of(what)
    levels = 5 if any(one.vmas[-1].end > 1 << 47 for one in parts if one.vmas) else 4
    host = Host(_frames_needed(parts), levels=levels, kernel=kernel.version)
    lacking = []
    for name, value in (knobs or {}).items():
        if not host.ksm.has(name) and name in what.machine.get("ksm", {}):
            lacking.append(name)  # the machine has it, the nearest kernel that was seen has not
        else:
            setattr(host.ksm, name, value)
    merged = take_over and mark != "none"
    images = {}
    above = _first_unseen(parts)
    for number in _entered(what):
        images[number] = load(parts[number], host=host, mark=mark, merged=merged, together=True, above=above)
    _load.fill_folios(host.world, np.unique(np.concatenate([folios_of(one) for one in parts])))
    _hold_for_others(host, parts)
    result = LoadedMemory(host, [images[number].mm for number in range(len(parts))], what)
    if merged:
        result.nr_merged = _take_over(host, parts, result.mms)
    result.notes = list(dict.fromkeys(note for image in images.values() for note in image.notes))
    result.notes += [note] if note else []
    if lacking:
        result.notes.append(f"Linux {kernel.version} has no {', '.join(lacking)}: left out.")
    if torn:
        result.notes.append(f"{counted(torn, 'huge page', 'was', 'were')} split between two looks: taken as small pages.")
    result.seconds = time.perf_counter() - start
    return result


def kernel_of(what: MemoryCapture) -> tuple[kernels.Profile, str]:
    """The kernel that a capture is of, and what there is to say where it is none that was seen.

    Parameters
    ----------
    what : MemoryCapture

    Returns
    -------
    (Profile, str)
        That of `kernels.DEFAULT` where the capture names none (a core, a virtual machine).
    """
    release = str(what.machine.get("release", ""))
    return kernels.of_release(release, str(what.machine.get("version", "")))


def _entered(what: MemoryCapture) -> list[int]:
    """Indices of the processes in the order in which they are on ksmd's list."""
    if what.registered is None:
        return list(range(len(what.processes)))
    place = {pid: number for number, pid in enumerate(what.registered)}
    return sorted(range(len(what.processes)), key=lambda i: place.get(what.processes[i].pid, len(place)))


def renumbered(processes: list[ProcessCapture]) -> list[ProcessCapture]:
    """The same with frame numbers that begin at one block, in the same order: a Host as small as can be.

    Parameters
    ----------
    processes : list of ProcessCapture

    Returns
    -------
    list of ProcessCapture
        Frames keep their place in the block of 2 MiB, and equal ones stay equal. The machine's own are forgotten.
    """
    known = [one.pfn >> np.uint64(9) for one in processes if one.pfn is not None]
    if not known:
        return [dataclasses.replace(one) for one in processes]
    blocks = np.unique(np.concatenate([np.unique(some) for some in known]))

    def renumber(one: ProcessCapture) -> ProcessCapture:
        if one.pfn is None:
            return dataclasses.replace(one)
        block = np.searchsorted(blocks, one.pfn >> np.uint64(9)).astype(np.uint64) + np.uint64(1)
        # of some no page is left: what went meanwhile was dropped
        there = one.folios[np.isin(one.folios >> 9, blocks.astype(np.int64))]
        folios = (np.searchsorted(blocks, (there >> 9).astype(np.uint64)) + 1) << 9
        inside = (block << np.uint64(9)) | (one.pfn & np.uint64(PAGES_PER_BLOCK - 1))
        return dataclasses.replace(one, pfn=inside, folios=folios)

    return [renumber(one) for one in processes]


def _agreed(processes: list[ProcessCapture]) -> tuple[list[ProcessCapture], int]:
    """The same where all agree on which frames are anonymous huge pages, and how many that one has and another has not.

    Processes are read one after the other; a huge page may be split between.
    """
    seen = [one for one in processes if one.pfn is not None and one.nr_pages]
    nr = max([int(one.pfn.max()) >> 9 for one in seen if one.pfn is not None], default=0) + 1
    whole, torn = np.zeros(nr, bool), np.zeros(nr, bool)
    parts = []
    for one in seen:
        block = (one.pfn >> np.uint64(9)).view(np.int64)  # type: ignore[operator] # seen
        own = np.zeros(nr, bool)
        own[one.folios >> 9] = True
        leaf = leaf_pages(one)
        anon = one.anon if one.ksm is None else one.anon & ~one.ksm
        whole[block[leaf & anon]] = True
        whole |= own
        parts.append(block[~((leaf | own[block]) & anon | one.zero)])
    for alone in parts:
        torn[alone] = True
    torn &= whole
    if not torn.any():
        return processes, 0
    out = []
    for one in processes:
        if one.pfn is not None:
            split = one.huge & torn[one.pfn >> np.uint64(9)]
            categories = np.where(split, one.categories & ~np.uint64(PAGE_IS_HUGE), one.categories)
            one = dataclasses.replace(one, categories=categories, folios=one.folios[~torn[one.folios >> 9]])
        out.append(one)
    return out, int(torn.sum())


def _first_unseen(parts: list[ProcessCapture]) -> int:
    """The frame above all that are known."""
    return max([int(one.pfn.max()) + 1 for one in parts if one.pfn is not None and len(one.pfn)], default=0)


def _frames_needed(parts: list[ProcessCapture]) -> int:
    made_up = sum(one.nr_pages + PAGES_PER_BLOCK for one in parts if one.pfn is None)
    # as many rmap_items as there are mappings need not fit what is reserved for the frames
    mapped = sum(one.nr_pages for one in parts) // 8
    needed = max(_first_unseen(parts) + made_up + 2 * PAGES_PER_BLOCK, mapped) + _ROOM
    return -(-needed // PAGES_PER_BLOCK) * PAGES_PER_BLOCK


def _hold_for_others(host: Host, parts: list[ProcessCapture]) -> None:
    """Count the mappings of frames that processes outside the capture have: merging does not free such a frame."""
    seen = [(one.pfn[one.anon].astype(np.int64), one.frame_counts[one.anon].astype(np.int64))
            for one in parts if one.pfn is not None and one.frame_counts is not None]  # fmt: skip
    if not seen:
        return
    arrays = host.world.arrays
    counted = np.zeros(host.nr_frames, np.int64)
    for pfn, count in seen:
        counted[pfn] = count
    others = np.flatnonzero(counted > arrays["f_mapcount"])
    more = (counted[others] - arrays["f_mapcount"][others]).astype(np.int32)
    arrays["f_mapcount"][others] += more
    arrays["f_flags"][others] &= ~np.uint16(Frame.EXCLUSIVE)
    large = arrays["f_flags"][others] & (Frame.HEAD | Frame.TAIL) != 0
    owners = arrays["owners"]
    at = arrays["f_head"][others[large]] >> 2
    np.add.at(owners["total"], at, more[large])
    owners["shared"][at] = 1


def _take_over(host: Host, parts: list[ProcessCapture], mms: list[Mm]) -> int:
    """Give KSM's pages their nodes and items; how many items that were."""
    items = 0
    for one, mm in zip(parts, mms, strict=True):
        if one.ksm is None or one.pfn is None:
            continue
        marked = np.zeros(one.nr_pages, bool)
        for vma, (first, last) in zip(mm.vmas, one.vma_slices(), strict=True):
            marked[first:last] = vma.mergeable
        pfn: I64Array = one.pfn.astype(np.int64)
        # a frame that a mapping seen a moment earlier had as a page like others stays one
        merged = one.ksm & marked & (host.frames.flags[pfn] & Frame.KSM != 0)
        mine = np.flatnonzero(merged | _visited(one, marked))
        check(_takeover.take_over(host.world, mm.number, one.addr[mine], pfn[mine]), f"KSM's pages of process {one.pid}")
        others = np.unique(pfn[one.ksm & ~marked])
        others = others[host.frames.flags[others] & Frame.KSM != 0]
        check(_takeover.take_over(host.world, 0, one.addr[:0], others), f"KSM's pages of process {one.pid}")
        items += int(np.count_nonzero(merged))
    return items


def _visited(one: ProcessCapture, marked: BoolArray) -> BoolArray:
    """Which pages, merged ones aside, ksmd has visited before, so that it knows a checksum of theirs.

    An rmap_item is made by the first visit: a process with as many as it has pages that ksmd looks at has one for each.
    """
    looked_at = marked & one.anon & ~one.zero
    if one.ksm_stat.get("ksm_rmap_items") != np.count_nonzero(looked_at):
        return np.zeros(one.nr_pages, bool)
    return looked_at & ~one.ksm if one.ksm is not None else looked_at
