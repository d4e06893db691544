"""Charts of one estimate: what of it goes into which chart of `charts`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..estimates.advice import likely
from ..estimates.estimate import Estimate
from ..layout import PAGE_SIZE
from ..layout.whole import write_whole
from ..proc.maps import VmaRecord
from ..sources.matrix import SharingMatrix
from ..sources.reading import ProcessCapture
from . import charts, files, report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: a name, a height in inches, what draws it
Panel = tuple[str, float, "Callable[[Axes], None]"]
FORMATS = (".png", ".svg", ".pdf")
_MOST_BARS, _MOST_STRIPS, _COLUMNS = 12, 14, 240
# Mappings that are a smaller part of all that is anonymous get no bar of their own.
_LEAST_BAR = 0.01
_WIDTH = 8.4
_MOST_SOURCES = 16
_SHARING = "Freed by sharing a host\n(on the diagonal: by each alone)"


def check(path: str) -> str:
    """The format that a file's ending asks for; see `files.check`."""
    return files.check("--plot", path, FORMATS)[1:]


def panels(of: Estimate, matrix: SharingMatrix | None = None) -> list[Panel]:
    """The charts that an estimate gives.

    Parameters
    ----------
    of : Estimate
    matrix : SharingMatrix, optional
        Of several sources.
    """
    rows = of.over_time()
    found: list[Panel] = []
    if len(rows) > 1:
        found.append(("time", 2.9, lambda axes: charts.freed_over_time(axes, rows)))
    names, anonymous, merged = by_name(of)
    if names:
        found.append((
            "mappings", 1.0 + 0.23 * max(len(names), 3),
            lambda axes: charts.merge_ratio_by_mapping(axes, names, anonymous, merged),
        ))  # fmt: skip
    if len(rows) > 1:
        searched = int(rows["merged_pages"][-1]) + of.expected.counters["pages_unshared"] + of.expected.counters["pages_volatile"]
        found.append(("passes", 2.9, lambda axes: charts.passes_until_merged(axes, rows["merged_pages"], searched)))
    if (number := _largest(of)) is not None:
        one = of.capture.processes[number]
        parts = strips(one, of.expected.merged[number])
        title = f"Merged in {charts.short(one.name)} ({one.pid})"
        found.append(("map", 1.0 + 0.25 * len(parts), lambda axes: charts.merge_map(axes, parts, title)))
    if matrix is not None:
        called, shared = most_sharing(matrix)
        found.append(("matrix", 1.9 + 0.42 * len(called), lambda axes: charts.sharing_matrix(axes, called, shared, _SHARING)))
    return found


def most_sharing(matrix: SharingMatrix) -> tuple[list[str], np.ndarray]:
    """Those that share the most: names, and the bytes that each frees together with each beyond what both free alone.

    Parameters
    ----------
    matrix : SharingMatrix

    Returns
    -------
    (list of str, int64[n, n])
        On the diagonal what one frees alone.
    """
    shared = np.maximum(matrix.gain_bytes, 0)
    kept = np.sort(np.argsort(-shared.sum(axis=0), kind="stable")[:_MOST_SOURCES])
    np.fill_diagonal(shared, matrix.freed_bytes.diagonal())
    return [matrix.names[at] for at in kept.tolist()], shared[np.ix_(kept, kept)]


def by_name(of: Estimate) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Mappings of all processes by what they are called: names, bytes present, bytes merged; most merged first.

    Parameters
    ----------
    of : Estimate
    """
    sums: dict[str, list[int]] = {}
    for row in of.expected.by_mapping:
        both = sums.setdefault(_called(row["name"]), [0, 0])
        both[0] += row["anonymous_pages"] * PAGE_SIZE
        both[1] += row["merged_pages"] * PAGE_SIZE
    order = sorted(sums, key=lambda name: (-sums[name][1], -sums[name][0], name))
    least = _LEAST_BAR * sum(both[0] for both in sums.values())
    kept = [name for name in order if sums[name][0] >= least][: _MOST_BARS - 1]
    if rest := [name for name in order if name not in kept]:
        order = [*kept, f"{len(rest)} others"]
        sums[order[-1]] = [sum(sums[name][at] for name in rest) for at in (0, 1)]
    anonymous, merged = (np.array([sums[name][at] for name in order], np.int64) for at in (0, 1))
    return order, anonymous, merged


def _called(name: str) -> str:
    return name.rsplit("/", 1)[-1] or "anonymous"


def _largest(of: Estimate) -> int | None:
    """The process of which most is merged."""
    merged = [int(np.count_nonzero(some)) for some in of.expected.merged]
    return int(np.argmax(merged)) if any(merged) else None


def strips(one: ProcessCapture, merged: np.ndarray) -> list[charts.Strip]:
    """The largest mappings of a process, in the order of addresses.

    Parameters
    ----------
    one : ProcessCapture
    merged : bool[nr_pages]
    """
    anon = one.anon & ~one.zero
    here = [(vma, first, last, int(np.count_nonzero(anon[first:last])))
            for vma, (first, last) in zip(one.vmas, one.vma_slices(), strict=True)]  # fmt: skip
    most = sorted((some for some in here if some[3]), key=lambda some: -some[3])[:_MOST_STRIPS]
    return [_strip(one, merged, anon, *some) for some in sorted(most, key=lambda some: some[0].start)]


def _strip(
    one: ProcessCapture, merged: np.ndarray, anon: np.ndarray, vma: VmaRecord, first: int, last: int, pages: int
) -> charts.Strip:
    mine = np.flatnonzero(anon[first:last]) + first
    whole = vma.size // PAGE_SIZE
    many = min(_COLUMNS, whole)
    place = (one.addr[mine] - np.uint64(vma.start)) // np.uint64(PAGE_SIZE)
    column = (place.astype(np.float64) * many / whole).astype(np.int64)
    edges = np.ceil(np.arange(many + 1) * (whole / many))
    counts = np.bincount(column, minlength=many)
    ratio = np.bincount(column, merged[mine], minlength=many) / np.maximum(counts, 1)
    share = np.minimum(counts / np.maximum(np.diff(edges), 1), 1.0)
    part = np.count_nonzero(merged[mine]) / pages
    label = f"{vma.start:x} {_called(vma.name)}"
    return charts.Strip(label, f"{part:.0%} of {report.size(pages * PAGE_SIZE)}", share, ratio)


def draw(of: Estimate, path: str, matrix: SharingMatrix | None = None) -> None:
    """Draw all charts of an estimate into one file.

    Parameters
    ----------
    of : Estimate
    path : str
        Ending in .png, .svg or .pdf.
    matrix : SharingMatrix, optional
        Of several sources.

    Raises
    ------
    OSError
        The file can't be written; what was there is as it was.
    """
    draw_panels(panels(of, matrix), heading(of), path)


def draw_panels(some: list[Panel], title: str, path: str) -> None:
    """Draw charts one below the other into a file: see `draw`."""
    kind = check(path)
    with charts.style():
        heights = [height for _, height, _ in some] or [1.0]
        drawn = charts.figure(_WIDTH, math.fsum(heights) + 0.5)
        drawn.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for axes, (_, _, put) in zip(
            np.atleast_1d(drawn.subplots(len(heights), 1, height_ratios=heights)), some, strict=False
        ):
            put(axes)
        write_whole(path, charts.rendered(drawn, kind))


def heading(of: Estimate) -> str:
    """What the estimate is of and what came out, in a few words."""
    many = len(of.capture.processes)
    whose = charts.short(of.capture.processes[0].name) if many == 1 else f"{many} processes"
    return f"KSM estimate of {whose}: {report.size(likely(of))} would come free"
