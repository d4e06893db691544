"""The page tables that a guest has made for itself, out of an image of its memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from .. import entries
from ..drawing.words import printable
from ..entries import Pte
from ..errors import BadEntryError
from ..layout import BLOCK, PAGE_SHIFT, PAGE_SIZE, Perm
from ..proc.maps import VmaRecord
from ..proc.pagemap import PAGE_IS_HUGE, PAGE_IS_PRESENT
from ..signatures import BoolArray, I64Array, RecordArray, U64Array
from ..tables.tables import PageTables
from . import images
from .guests import CR3_FRAME, MOST_MEMORY, Physical, Root, find_root, open_physical
from .reading import ProcessCapture

# Tables that are copied out of an image at most: 4 GiB of them map 2 TiB of small pages.
_MOST_TABLES = 1 << 20
# Pages that are listed one by one at most: 256 GiB.
_MOST_PAGES = 1 << 26
# Of the entries of a level below the top, this part may lead nowhere: the guest may have run while it was dumped.
_TORN = 1 / 16


@dataclass(slots=True)
class GuestTables:
    """The page tables of a guest, or of one of its processes.

    Parameters
    ----------
    tables : PageTables
        Read-only, with the frames that the root leads to and no others; every frame may be mapped (devices are beyond
        the end of memory).
    path : str
        The image.
    root : Root
        CR3, levels, and who said so.
    notes : list of str

    Models: x86-64 page tables. Differs: nothing known.
    """

    tables: PageTables
    path: str
    root: Root
    notes: list[str] = field(default_factory=list)

    def capture(self, half: str = "user") -> ProcessCapture:
        """What is mapped, page by page, as if it were a process.

        Parameters
        ----------
        half : {"user", "kernel"}
            The lower or the upper half of the address space.

        Returns
        -------
        ProcessCapture
            `found_by` "tables"; `pfn` are the guest's frames; a mapping is what is mapped without a gap and with equal
            permissions. Which pages are anonymous is in no page table: all count so.

        Raises
        ------
        ValueError
            Another half; more pages than can be listed.

        Models: what walk_page_range_novma() reaches on Linux 6.18. Differs: nothing known.
        """
        if half not in ("user", "kernel"):
            raise ValueError(f"half={half!r}: must be 'user' or 'kernel'")
        middle, end = self.tables.end // 2, self.tables.end
        bounds = (0, middle) if half == "user" else (middle, end)
        self.tables.forget_bad()
        # more runs than that have more pages too
        found = self.tables.mappings(*bounds, runs=True, limit=_MOST_PAGES)
        size = np.array([0, 1, BLOCK, BLOCK * BLOCK], np.int64)[found["level"]]
        if len(found) and float((size.astype(float) * found["nr"]).sum()) > _MOST_PAGES:
            raise images.BadImage(self.path, f"its tables map more than {_MOST_PAGES >> 18} GiB: too much to list by pages")
        length = size * found["nr"].astype(np.int64) * PAGE_SIZE
        start = found["addr"].view(np.int64)
        large = np.where(found["level"] > 1, PAGE_IS_PRESENT | PAGE_IS_HUGE, PAGE_IS_PRESENT).astype(np.int64)
        first = found["pfn"].astype(np.int64) - (start >> PAGE_SHIFT)
        addr, categories, pfn = images.expand(start, start + length, large, first)
        pfn += addr >> PAGE_SHIFT
        name = f"CR3 {self.root.cr3:#x} of {printable(os.path.basename(self.path))}"
        vmas = _mappings(found, start, length)
        capture = ProcessCapture(0, name, vmas, addr.view(np.uint64), categories.view(np.uint64), pfn.view(np.uint64))
        capture.found_by = "tables"
        capture.notes = list(self.notes)
        if self.tables.bad_count:
            bad = f"{self.tables.bad_count:,} entr{'y' if self.tables.bad_count == 1 else 'ies'} of the tables"
            capture.notes.append(f"{bad} can't be followed: {_first(self.tables.bad)}.")
        capture.notes.append(
            f"The {half} half of the guest's page tables of {self.root.levels} levels, CR3 {self.root.cr3:#x} "
            f"{self.root.said_by}. Which pages belong to files, and what is mapped but absent, is in no page table."
        )
        return capture


def guest_tables(path: str | os.PathLike[str], cr3: int | None = None, levels: int | None = None) -> GuestTables:
    """Read a guest's own page tables out of an image of its memory.

    Parameters
    ----------
    path : path
        As for `read_guest`. Byte n of a raw image is guest physical address n.
    cr3 : int, optional
        The register, or the physical address of the top table. By default as the notes of an ELF image have it: of the
        first CPU by QEMU's note, the kernel's own by vmcoreinfo.
    levels : int, optional
        4 or 5; by default as the notes have it, else 4.

    Returns
    -------
    GuestTables

    Raises
    ------
    BadImage
        As for `read_guest`; no CR3 to be found; a CR3 that is not the root of page tables.

    Models: x86-64 page tables of a guest at the moment of the image. Differs: nothing known.
    """
    memory = open_physical(path)
    root = find_root(memory, cr3, levels)
    frames, rows = _reachable(memory, root)
    tables = PageTables.from_image(rows, (root.cr3 & CR3_FRAME) >> PAGE_SHIFT, root.levels, frames)
    return GuestTables(tables, memory.file.path, root, list(memory.notes))


def _reachable(memory: Physical, root: Root) -> tuple[I64Array, U64Array]:
    """The table frames that the root leads to, ascending, and their contents."""
    top = (root.cr3 & CR3_FRAME) >> PAGE_SHIFT
    current = np.array([top], np.int64)
    if not memory.find(current << PAGE_SHIFT)[1].all():
        raise _wrong(memory, root, "no such address in the image")
    frames, rows = current, memory.tables(current)
    mapped = False
    for level in range(root.levels, 0, -1):
        here = rows[np.searchsorted(frames, current)]
        present = here & np.uint64(Pte.P) != 0
        large = (here & np.uint64(Pte.PS) != 0) & (level in (2, 3))
        mapped |= bool((present & large).any() if level > 1 else entries.present(here).any())
        is_table = present & ~large if level > 1 else np.zeros(here.shape, bool)
        _check(memory, root, level, here, is_table)
        if level == 1:
            break
        current = _frames_of(here[is_table])
        current = current[memory.find(current << PAGE_SHIFT)[1]]
        fresh = current[~np.isin(current, frames)]
        if len(frames) + len(fresh) > _MOST_TABLES:
            raise _wrong(memory, root, f"it leads to more than {_MOST_TABLES} tables")
        order = np.argsort(np.concatenate((frames, fresh)), kind="stable")
        rows = np.concatenate((rows, memory.tables(fresh)))[order]
        frames = np.concatenate((frames, fresh))[order]
    if not mapped:
        raise _wrong(memory, root, "nothing at all is mapped from there")
    return frames, rows


def _frames_of(tables: U64Array) -> I64Array:
    """The frames that entries lead to, ascending, each once."""
    return np.unique(tables & np.uint64(CR3_FRAME)).view(np.int64) >> PAGE_SHIFT


def _check(memory: Physical, root: Root, level: int, here: U64Array, is_table: BoolArray) -> None:
    """Refuse a root below which too many entries of a level are none that a guest could have made."""
    address = (here & np.uint64(CR3_FRAME)).view(np.int64)
    wrong = (here & np.uint64(Pte.P) != 0) & (address >= MOST_MEMORY)
    wrong[is_table] |= ~memory.find(address[is_table])[1]
    if level > 2:
        # Only the lowest two levels hold anything but tables, leaves and nothing.
        wrong |= ~np.asarray(entries.none(here)) & (here & np.uint64(Pte.P) == 0)
    if level > 3:
        wrong |= is_table & (here & np.uint64(Pte.PS) != 0)
    nr_wrong, nr = int(wrong.sum()), int(((here & np.uint64(Pte.P) != 0) | wrong).sum())
    if nr_wrong > (0 if level == root.levels else _TORN * nr):
        row, column = np.argwhere(wrong)[0]
        where = "the top table" if level == root.levels else f"level {entries.LEVELS[level].name}"
        raise _wrong(
            memory, root, f"{nr_wrong} of {nr} entries of {where} are none of a page table's, the first of them entry "
            f"{int(column)}, {int(here[row, column]):#018x}",
        )  # fmt: skip


def _wrong(memory: Physical, root: Root, why: str) -> images.BadImage:
    other = 9 - root.levels
    return memory.file.bad(
        f"CR3 {root.cr3:#x} ({root.said_by}) is not the root of page tables of {root.levels} levels: {why}; take it from "
        f"the guest at the moment of the image (`info registers`), or try {other} levels"
    )


def _first(bad: RecordArray) -> str:
    return f"the first of them {BadEntryError(*(int(bad[name][0]) for name in ('addr', 'level', 'raw', 'kind')))}"


def _mappings(found: RecordArray, start: I64Array, length: I64Array) -> list[VmaRecord]:
    """What is mapped without a gap and with equal permissions, as mappings of a process."""
    if not len(found):
        return []
    end = start + length
    perms = found["perms"] & np.uint8(Perm.R | Perm.W | Perm.X)
    new = np.flatnonzero((start[1:] != end[:-1]) | (perms[1:] != perms[:-1])) + 1
    first = np.concatenate(([0], new))
    last = np.append(new, len(found)) - 1
    vmas = []
    # as unsigned numbers again; there is none behind the very last page
    ends = (end[last].view(np.uint64) - np.uint64(1)).tolist()
    for a, b, bits in zip(found["addr"][first].tolist(), ends, perms[first].tolist(), strict=True):
        letters = [text for bit, text in ((Perm.R, "rd"), (Perm.W, "wr"), (Perm.X, "ex")) if bits & bit]
        shown = "".join(text if bits & bit else "-" for bit, text in ((Perm.R, "r"), (Perm.W, "w"), (Perm.X, "x")))
        behind = min(b + 1, (1 << 64) - 1)
        vmas.append(VmaRecord(a, behind, shown + "p", 0, "00:00", 0, "", tuple(letters), rss=behind - a, anonymous=behind - a))
    return vmas
