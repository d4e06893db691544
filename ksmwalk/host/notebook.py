"""Hosts and address spaces as notebooks show them: looked at, nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from ..drawing import html
from ..drawing.spaces import KSM, OTHER, SHARED, SMALL, THP, ZERO, Picture, Runs, picture
from ..drawing.words import size
from ..gate import counted
from ..layout import PAGE_SIZE, PUD_SIZE, Frame, Vm
from ..signatures import RecordArray, U8Array
from ..tables.tables import PageTables
from .door import Door
from .vma import why_not

if TYPE_CHECKING:
    from .host import Host
    from .mm import Mm

# records read at a time; pages of a picture at most: with more of them it takes seconds
_AT_ONCE, _MOST = 1 << 20, 1 << 26
_MOST_SPACES = 16
_COLUMNS = ("address space", "areas", "mapped", "table pages", "rmap_items", "merged", "zero pages")


@dataclass(frozen=True, slots=True)
class _Area:
    """An area as a picture needs it."""

    start: int
    end: int
    flags: int
    name: str

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def mergeable(self) -> bool:
        return bool(self.flags & Vm.MERGEABLE)

    @property
    def not_compatible(self) -> str | None:
        return why_not(self.flags | Vm.MERGEABLE)

    @property
    def sort(self) -> tuple[int, str]:
        return self.flags, self.name


class ShownMm(Door):
    """An address space as a map."""

    def _repr_html_(self) -> str:
        if self._life.gone:
            return html.card(f"Address space {self.index}: exited", ())
        return html.address_space(space(cast("Mm", self)))


class ShownHost:
    """A Host as its memory, its KSM and its address spaces."""

    def _repr_html_(self) -> str:
        return _host(cast("Host", self))


def space(mm: Mm) -> Picture:
    """The picture of an address space; nothing is faulted in, nothing is counted."""
    with mm._world:
        areas = [_Area(v.vm_start, v.vm_end, v.vm_flags, f"object {v.backing}" if v.backing else "") for v in mm.vmas]
        seen = PageTables.of_world(mm._world, mm.index, mm.host.levels, "report", mm._life)
        runs, notes = _runs(mm, areas, seen)
        if seen.bad_count:
            notes.append(f"{counted(seen.bad_count, 'entry', 'leads', 'lead')} nowhere: see tables.mappings()")
    drawn = picture(areas, runs, max_rows=16)
    drawn.title, drawn.notes = f"Address space {mm.index}", notes
    return drawn


def _runs(mm: Mm, areas: list[_Area], tables: PageTables) -> tuple[Runs, list[str]]:
    """What is present in an address space, by kind."""
    found, pages, notes = [], 0, []
    for area in areas:
        for leaves in _leaves(tables, area.start, area.end):
            kind, nr = _kinds(mm, area, leaves), np.int64(1) << np.int64(9) * (leaves["level"].astype(np.int64) - 1)
            found.append(Runs.of_pages(np.ascontiguousarray(leaves["addr"]), kind, nr))
            pages += int(nr.sum())
        if pages > _MOST:
            notes.append(f"more than {size(_MOST * PAGE_SIZE)} are present: only areas up to {area.end:#x} are drawn")
            break
    each = [np.concatenate([getattr(some, name) for some in found] or [np.empty(0, np.uint64)]) for name in ("addr", "kind", "nr")]
    return Runs.of_pages(each[0].astype(np.uint64), each[1].astype(np.uint8), each[2].astype(np.int64)), notes


def _leaves(tables: PageTables, start: int, end: int) -> Iterator[RecordArray]:
    """The leaves of a range, some at a time."""
    try:
        yield tables.mappings(start, end, limit=_AT_ONCE)
    except ValueError:
        if end - start <= 2 * PUD_SIZE:
            raise
        # So many leaves are more than 4 GiB: a cut at a GiB leaves all of them whole.
        middle = (start + (end - start) // 2) & -PUD_SIZE
        yield from _leaves(tables, start, middle)
        yield from _leaves(tables, middle, end)


def _kinds(mm: Mm, area: _Area, leaves: RecordArray) -> U8Array:
    """What each leaf is, as `ksmwalk map` would say of a process."""
    if area.not_compatible:
        return np.full(len(leaves), OTHER, np.uint8)
    frames = mm.host.frames
    pfn = np.minimum(leaves["pfn"], np.uint64(len(frames) - 1)).astype(np.int64)
    flags, shared = frames.flags[pfn], frames.mapcount[pfn] > 1
    flags = np.where(leaves["pfn"] < np.uint64(len(frames)), flags, 0)
    anon = (flags & Frame.ANON != 0) | (flags & Frame.KSM != 0)
    kind = np.select(
        [flags & Frame.ZERO != 0, ~anon, flags & Frame.KSM != 0, shared, leaves["level"] > 1],
        [ZERO, OTHER, KSM, SHARED, THP], SMALL,
    )  # fmt: skip
    return kind.astype(np.uint8)


def _host(host: Host) -> str:
    with host.world:
        spaces, ksm = host.mm_list, host._arrays["ksm"][0]
        used, merged = host.frames_used, int(ksm["pages_shared"])
        mapped = np.bincount(host.vmas["mm"], (host.vmas["end"] - host.vmas["start"]).astype(float), len(host.mms))
        records = host.mms
        rows = [
            (mm.index, r["nr_vmas"], size(int(mapped[mm.index])), r["nr_tables"], r["nr_rmap_items"], r["nr_merging"], r["nr_zero"])
            for mm in spaces[:_MOST_SPACES]
            for r in [records[mm.index]]
        ]
        scans = int(host._arrays["cursor"]["seqnr"][0])
    levels = "" if host.levels == 4 else f", {host.levels} levels of page tables"
    title = f"Host: {size(host.nr_frames * PAGE_SIZE)} in {host.nr_frames:,} frames on {counted(host.nr_nodes, 'node')}{levels}"
    shares = [
        (html.COLOURS[KSM], 1.0, f"KSM pages {size(merged * PAGE_SIZE)}", merged),
        (html.COLOURS[SMALL], 1.0, f"other frames in use {size((used - merged) * PAGE_SIZE)}", used - merged),
        ("currentColor", 0.12, f"free {size((host.nr_frames - used) * PAGE_SIZE)}", host.nr_frames - used),
    ]
    running = ("stopped", "running", "unmerging")[int(ksm["run"])]
    parts = [
        html.parts(shares, "frames"),
        html.line(
            f"KSM: {running}, {counted(scans, 'full scan')}, {int(ksm['pages_sharing']):,} pages are mappings of "
            f"{merged:,} KSM pages"
        ),
    ]
    if rows:
        parts.append(html.table(_COLUMNS, rows))
    if len(spaces) > _MOST_SPACES:
        parts.append(html.line(f"and {len(spaces) - _MOST_SPACES:,} more address spaces"))
    return html.card(title, parts)
