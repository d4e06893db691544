"""The five versions of the 2025 patch that made ksmd walk page tables, as callbacks on the public API.

Before the patch ksmd asked for every address of a mergeable area, mapped or not. Each version of the patch searched for
the next page with the kernel's page-table walk instead. Here each is a small class over `ksmwalk.walk_page_range` and
its kin, run on the same address space: a big sparse area, two huge pages, a page with no access, zero pages and a guard
marker. The table says what each version found, and what it got wrong.

    python examples/patch_history.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from ksmwalk import Entry, Frame, Host, Mm, MmWalk, MmWalkOps, Pte, entries, walk_page_range, walk_page_range_vma

PAGE, PMD, GIB = 4096, 2 << 20, 1 << 30
SPARSE, HUGE, ODD = 64 * GIB, 512 * GIB, 600 * GIB
FOUND = 1


class BadPageMap(Exception):
    """The kernel's "BUG: Bad page map": a pte that can't be what the caller takes it for."""

    def __init__(self, addr: int, entry: int):
        super().__init__(f"Bad page map at {addr:#x}: pte {entry:016x}")
        self.addr, self.entry = addr, entry


def make_host() -> Host:
    """The same address space for every version."""
    host = Host(8192)
    mm = host.new_mm()
    mm.mmap(32 * GIB, addr=SPARSE, noreserve=True)
    for i in range(20):
        mm.write(SPARSE + i * GIB + i * PAGE, 100 + i)
    mm.mmap(2 * PMD, addr=HUGE)
    mm.madvise(HUGE, 2 * PMD, "hugepage")
    mm.write(HUGE, 1)
    mm.write(HUGE + PMD, 2)
    mm.mmap(64 * PAGE, addr=ODD)
    mm.write(ODD, np.arange(7, 7 + 16, dtype=np.uint64))
    mm.read(ODD + 20 * PAGE, 4)  # maps the shared zero page
    mm.mprotect(ODD + 3 * PAGE, PAGE, "none")
    mm.madvise(ODD + 30 * PAGE, 2 * PAGE, "guard_install")  # markers, such as fffffffffffff600
    mm.write(ODD + 40 * PAGE, 99)
    for start, length in ((SPARSE, 32 * GIB), (HUGE, 2 * PMD), (ODD, 64 * PAGE)):
        mm.madvise(start, length, "mergeable")
    return host


class Search:
    """What the versions share: which frames count, and where the last page was found."""

    def __init__(self, host: Host):
        self.frames = host.frames
        self.address = self.pfn = 0
        self.callbacks = 0

    def normal_page(self, addr: int, entry: int, level: int = 1) -> int | None:
        """The frame behind a present entry; None for the zero page. Like the kernel's it trusts its caller for that."""
        if entry & Pte.SPECIAL:
            # The kernel compares with its zero page's frame. A marker's inverted frame bits say 0, which is a Host's
            # zero page but no kernel's, so P has to be asked for here.
            if not entry & Pte.P:
                raise BadPageMap(addr, entry)
            return None
        return int(entries.pfn(entry, level))

    def mergeable(self, pfn: int | None) -> TypeGuard[int]:
        return pfn is not None and bool(self.frames.flags[pfn] & Frame.ANON)

    def found(self, addr: int, pfn: int) -> int:
        self.address, self.pfn = addr, pfn
        return FOUND

    def next_page(self, mm: Mm, start: int) -> bool:
        """Find the first page from an address on."""
        raise NotImplementedError


class Version1(Search):
    """pte_entry and test_walk, over the whole process."""

    def next_page(self, mm: Mm, start: int) -> bool:
        ops = MmWalkOps(test_walk=self.test_walk, pte_entry=self.pte_entry)
        return walk_page_range(mm, start, mm.tables.end // 2, ops) == FOUND

    def test_walk(self, start: int, next: int, walk: MmWalk) -> int:
        return 0 if walk.vma is not None and walk.vma.mergeable and walk.vma.anon_vma else 1

    def pte_entry(self, entry: Entry, addr: int, next: int, walk: MmWalk) -> int:
        self.callbacks += 1
        if entry.none or not entry.present:
            return 0
        pfn = self.normal_page(addr, entry.value)
        return self.found(addr, pfn) if self.mergeable(pfn) else 0


class ByArea(Search):
    """The later versions: area by area, one walk of [cursor, end of the area) with a pmd_entry."""

    def next_page(self, mm: Mm, start: int) -> bool:
        ops = MmWalkOps(pmd_entry=self.pmd_entry)
        for vma in mm.vmas:
            if vma.vm_end <= start or not (vma.mergeable and vma.anon_vma):
                continue
            if walk_page_range_vma(vma, max(start, vma.vm_start), vma.vm_end, ops) == FOUND:
                return True
        return False

    def pmd_entry(self, entry: Entry, addr: int, next: int, walk: MmWalk) -> int:
        self.callbacks += 1
        if not entry.present:
            return 0
        ptes = entry.ptes  # None for a leaf
        return self.huge(entry, addr) if ptes is None else self.small(ptes, addr, next)

    def huge(self, entry: Entry, addr: int) -> int:
        pfn = self.normal_page(addr, entry.value, 2)
        return self.found(addr, pfn + (addr & PMD - 1) // PAGE) if self.mergeable(pfn) else 0

    def small(self, ptes: NDArray[np.uint64], addr: int, next: int) -> int:
        first = (addr & PMD - 1) // PAGE
        for i, pte in enumerate(ptes[first:first + (next - addr) // PAGE].tolist()):
            if self.skip(pte):
                continue
            pfn = self.normal_page(addr + i * PAGE, pte)
            if self.mergeable(pfn):
                return self.found(addr + i * PAGE, pfn)
        return 0

    def skip(self, pte: int) -> bool:
        return not entries.present(pte)


class Version2(ByArea):
    """pmd_entry, huge pages skipped, the cursor kept inside."""

    def huge(self, entry: Entry, addr: int) -> int:
        self.address = addr + PMD
        return 0


class Version3(ByArea):
    """Huge pages handled, ptes only asked if they are none."""

    def skip(self, pte: int) -> bool:
        return entries.none(pte)


class Version4(ByArea):
    """The right one: a pte must be present to the kernel."""


class Version5(ByArea):
    """As right; here with the ptes as one array."""

    def small(self, ptes: NDArray[np.uint64], addr: int, next: int) -> int:
        first = (addr & PMD - 1) // PAGE
        part = ptes[first:first + (next - addr) // PAGE]
        usable = np.flatnonzero(entries.present(part) & ~entries.special(part))
        pfns = entries.pfn(part[usable]).astype(np.int64)
        anon = np.flatnonzero(self.frames.flags[pfns] & np.uint16(Frame.ANON))
        if not len(anon):
            return 0
        return self.found(addr + int(usable[anon[0]]) * PAGE, int(pfns[anon[0]]))


VERSIONS: dict[str, type[Search]] = {"v1": Version1, "v2": Version2, "v3": Version3, "v4": Version4, "v5": Version5}


@dataclass
class Outcome:
    """What one version did on the address space."""

    version: str
    found: int
    missed: int
    split: int
    callbacks: int
    stopped_by: str | None

    @property
    def wrong(self) -> str:
        if self.split:
            return f"splits every huge page in range ({self.split})"
        if self.stopped_by:
            return f"no present test: {self.stopped_by}"
        if self.missed:
            return f"huge pages are never scanned ({self.missed} pages missed)"
        return "nothing"


def huge_pages(mm: Mm) -> int:
    return int((mm.tables.mappings()["level"] == 2).sum())


def expected() -> list[tuple[int, int]]:
    """(address, frame) of every page that ksmd scans, by the compiled cursor."""
    host = make_host()
    out = []
    while (page := host.ksm.scan.scan_get_next_rmap_item()) is not None:
        out.append((page[0].address, page[1]))
    return out


def run(name: str) -> Outcome:
    """One full scan with one version of the patch."""
    host = make_host()
    mm = host.mm_list[0]
    search = VERSIONS[name](host)
    before = huge_pages(mm)
    pages, cursor, stopped_by = [], 0, None
    try:
        while search.next_page(mm, cursor):
            pages.append((search.address, search.pfn))
            cursor = search.address + PAGE
    except BadPageMap as err:
        stopped_by = str(err)
    want = expected()
    if not set(pages) <= set(want):
        raise AssertionError(f"{name} found pages that ksmd would not look at")
    return Outcome(name, len(pages), len(want) - len(pages), before - huge_pages(mm), search.callbacks, stopped_by)


def table() -> list[Outcome]:
    return [run(name) for name in VERSIONS]


def main() -> None:
    print(f"{'':4}{'how it searches':58}{'found':>7}{'missed':>8}{'splits':>8}{'callbacks':>11}  what it got wrong")
    for row in table():
        how = str(VERSIONS[row.version].__doc__).split(".")[0].strip()
        print(f"{row.version:4}{how:58.57}{row.found:7}{row.missed:8}{row.split:8}{row.callbacks:11}  {row.wrong}")


if __name__ == "__main__":
    main()
