"""`ksmwalk demo --guest`: a page in ever more address space, scanned by other kernels, beside what the model says of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KsmwalkError
from ..kernel import giants, guest
from ..kernel.giants import Giant, Measured, Work
from ..kernel.knobs import KernelUnavailable, to_stderr
from ..layout.whole import write_whole
from . import report
from .screen import Column, Screen

#: seconds that a scan may take; what would take longer by the model is not tried
PATIENCE = 600.0
#: the smallest span that is shown, and how much larger each is than the one before
_FIRST, _TIMES = 1 << 30, 4


@dataclass(frozen=True, slots=True)
class Row:
    """One span: the work that the model counts, the seconds that it must take, and the scans of ksmd, if made."""

    giant: Giant
    work: Work
    predicted: float
    measured: Measured | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "span": self.giant.span, "lookups": self.work.lookups, "entries": self.work.entries, "pages": self.work.pages,
            "predicted": self.predicted,
            "measured": self.measured.median if self.measured else None,
            "scans": self.measured.seconds if self.measured else [],
            "visits": self.measured.visits if self.measured else None,
        }  # fmt: skip


@dataclass
class Judged:
    """A kernel: what its scans cost in its emulated machine, and its rows."""

    kernel: str
    version: str
    note: str
    costs: dict[str, float]
    left: float
    rows: list[Row] = field(default_factory=list)

    @property
    def by_address(self) -> bool:
        """Whether it looks up one address after the other."""
        return self.rows[-1].work.lookups > 0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "kernel": self.kernel, "version": self.version, "note": self.note, "by_address": self.by_address,
            "costs": self.costs, "largest_difference": self.left, "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip


def spans(most: int) -> list[int]:
    """The spans that are shown, up to `most` bytes."""
    shown = [_FIRST]
    while shown[-1] * _TIMES < most:
        shown.append(shown[-1] * _TIMES)
    return sorted({*(span for span in shown if span < most), most})


def judge(image: Path, most: int, pages: int, say: Callable[[str], None]) -> Judged:
    """Start a kernel, learn what its scans cost on small spans, and let it scan the large ones."""
    with guest.guest(image, 1, say, counted=True) as taken:
        version = taken.profile.profile.version

        def scanned(giant: Giant) -> tuple[Measured, Work]:
            measured = taken.scanned(giant, PATIENCE)
            return measured, giants.work_of(giant, version, measured.address)

        say(f"{taken.kernel}: small spans, from which the costs are")
        samples = [(work, measured.median) for measured, work in map(scanned, giants.SMALL)]
        made = Judged(taken.kernel, version, taken.profile.note, *giants.costs_of(samples))
        for span in spans(most):
            giant = Giant(span, pages)
            work, measured = giants.work_of(giant, version), None
            if (seconds := giants.predicted(work, made.costs)) < PATIENCE / 2:
                say(f"{taken.kernel}: {report.size(span)}, about {report.duration(seconds)} a scan")
                measured, work = scanned(giant)
            made.rows.append(Row(giant, work, giants.predicted(work, made.costs), measured))
        return made


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk demo --guest``."""
    for image in args.guest:
        if reason := guest.why_not(image):
            raise KsmwalkError(reason)
    if args.plot:
        from .plot import check

        kind = check(args.plot)
    try:
        found = [judge(image, args.span, args.pages, to_stderr) for image in args.guest]
    except KernelUnavailable as error:
        raise KsmwalkError(report.printable(str(error))) from None
    if args.json:
        report.print_json([one.to_json() for one in found])
    else:
        show(Screen(), found)
    if args.plot:
        from . import guest_charts

        write_whole(args.plot, guest_charts.picture(found, kind))
    return 0


# ---------------------------------------------------------- words


def show(screen: Screen, found: list[Judged]) -> None:
    """Write what came of it: a table for each kernel, and what they come to."""
    for one in found:
        how = "looks up one address after the other" if one.by_address else "walks page tables"
        screen.paragraph(f"Linux {one.kernel} {how}.", "bold")
        if one.note:
            screen.paragraph(f"{one.note}.", "yellow")
        screen.line()
        screen.table(_columns(one), [_cells(one, row) for row in one.rows])
        screen.line()
        screen.paragraph(_costs(one))
        screen.line()
    last = [one.rows[-1] for one in found]
    if len(last) > 1 and all(row.measured for row in last):
        first, *_, final = (row.measured.median for row in last if row.measured)
        screen.paragraph(
            f"{report.size(last[0].giant.span)}, {_pages(last[0].giant)}, in the same emulator: {report.duration(first)} a scan "
            f"before, {report.duration(final)} after: 1/{first / final:,.0f} of the time.", "bold",
        )  # fmt: skip


def _pages(giant: Giant) -> str:
    return f"{report.count(giant.pages)} page{'s' if giant.pages > 1 else ''}"


def _columns(one: Judged) -> tuple[Column, ...]:
    work = "addresses looked up" if one.by_address else "entries read"
    return tuple(map(Column, ("span", "pages found", work, "the model says", "measured")))


def _cells(one: Judged, row: Row) -> list[str]:
    counted = row.work.lookups if one.by_address else row.work.entries
    seconds = report.duration(row.measured.median) if row.measured else "not tried"
    cells = [report.size(row.giant.span), report.count(row.work.pages), report.count(counted), report.duration(row.predicted)]
    return [*cells, seconds]


def _costs(one: Judged) -> str:
    words = {"scan": "a scan", "page": "a page", "lookup": "an address looked up", "entry": "an entry read"}
    costs = ", ".join(f"{report.duration(one.costs[name])} {words[name]}" for name in giants.COSTS if one.costs[name])
    largest = report.size(max(giant.span for giant in giants.SMALL))
    return (
        f"The model's counts times their costs in this emulated machine: {costs}. These were fitted to {len(giants.SMALL)} "
        f"layouts of up to {largest} (the worst is {one.left:.0%} off). Measured: ksmd's CPU time, median of the scans."
    )
