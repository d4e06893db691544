"""`ksmwalk scan`: which processes are sparse giants, and what a scan of them costs with either strategy."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np

from ..layout import Vm
from ..proc.maps import VmaRecord
from ..sources import NoAddressSpace, ProcessChanged, ProcessExited, ProcessImage, process
from . import report
from .scanning import full_scan

PAGE = 4096
# From where on, and how empty, an address space is called a sparse giant.
GIANT, FULL = 1 << 30, 0.01
# Areas that are scanned one by one at most: each such scan looks at the whole list of areas.
MOST_AREAS = 4096


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "scan",
        help="what ksmd's scan of running processes costs, area by area",
        description="Load processes without touching their memory and scan them in the model with both strategies, as "
        "if all memory that can be were marked mergeable. Answers which of them are sparse giants.",
    )
    parser.add_argument("pids", nargs="*", type=int, metavar="PID")
    parser.add_argument("--all", action="store_true", help="every process that may be read, one line each")
    parser.add_argument("--marked", action="store_true", help="only memory that really is marked mergeable")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if bool(args.pids) == args.all:
        raise ValueError("either the PIDs of processes or --all is needed")
    mark = "as-is" if args.marked else "all"
    found, errors, refused = [], [], 0
    for pid in report.progress(_every_pid() if args.all else args.pids, "processes"):
        try:
            # The overview needs no frames: who is anonymous shows without them.
            found.append(scan_process(process(pid, mark=mark, frames=not args.all), areas=not args.all))
        except (NoAddressSpace, ProcessExited, PermissionError, ProcessChanged) as error:
            if not args.all or isinstance(error, ProcessChanged):
                errors.append({"pid": pid, "error": error.strerror if isinstance(error, OSError) else str(error)})
            refused += isinstance(error, PermissionError)
    found.sort(key=lambda one: (-one["totals"]["lookups_saved"], one["pid"]))
    if args.json:
        report.print_json({"processes": found, "errors": errors, "refused": refused, "marked_only": args.marked})
    else:
        print(text(found, args.all, args.marked))
        if args.all and refused:
            who = "1 process" if refused == 1 else f"{refused} processes"
            print(f"\n{who} may not be read by this user.")
    for one in errors:
        print(f"ksmwalk scan: {one['error']}", file=sys.stderr)
    return 1 if errors and not args.all else 0


def _every_pid() -> list[int]:
    own = os.getpid()
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own)


def scan_process(image: ProcessImage, areas: bool = True) -> dict[str, Any]:
    """A loaded process, area by area and in all, as plain data; sizes in bytes."""
    what, host = image.capture, image.host
    host.ksm.smart_scan = 0  # every page in every pass
    new = full_scan(host, "range")
    old = full_scan(host, "per-address")
    size = sum(vma.vm_end - vma.vm_start for vma in image.mm.vmas if vma.mergeable)
    return {
        "pid": what.pid,
        "name": what.name,
        "found_by": what.found_by,
        "true_frames": image.true_frames,
        "attempts": what.attempts,
        "load_seconds": sum(image.seconds.values()),
        "notes": [note for note in image.notes if what.pfn is not None or "not asked for" not in note],
        "totals": {
            "size": sum(vma.size for vma in what.vmas),
            "present": what.nr_pages * PAGE,
            "huge": int(what.huge.sum()) * PAGE,
            "marked": sum(vma.size for vma in what.vmas if vma.mergeable),
            "searched": size,
            "pages_found": new.pages,
            "holes_jumped": new.work["holes"],
            "entries_read": new.entries,
            "lookups": old.work["lookups"],
            "lookups_saved": old.work["lookup_misses"],
            "sparse_giant": size >= GIANT and new.pages * PAGE < size * FULL,
        },
        "areas": _areas(image) if areas else None,
    }


def _areas(image: ProcessImage) -> list[dict[str, Any]]:
    """Every area; those with pages are scanned one at a time, the others' marks taken away for that long."""
    what, host = image.capture, image.host
    records, numbers = host.world.arrays["vmas"], np.array([vma.index for vma in image.mm.vmas])
    flags = records["flags"][numbers]
    mergeable = flags & np.uint64(Vm.MERGEABLE) != 0
    slices = np.array(what.vma_slices()).reshape(-1, 2)
    pages = slices[:, 1] - slices[:, 0]
    alone = np.flatnonzero(mergeable & (pages > 0))
    if len(alone) > MOST_AREAS:
        alone = np.sort(alone[np.argsort(pages[alone])[::-1][:MOST_AREAS]])
        image.notes.append(f"Only the {MOST_AREAS} areas with the most pages were scanned one by one.")
    counts: dict[int, dict[str, int]] = {}
    records["flags"][numbers] = flags & ~np.uint64(Vm.MERGEABLE)
    huge = np.append(0, np.cumsum(what.huge))
    for at in alone.tolist():
        records["flags"][numbers[at]] = flags[at]
        new, old = full_scan(host, "range"), full_scan(host, "per-address")
        records["flags"][numbers[at]] = flags[at] & ~np.uint64(Vm.MERGEABLE)
        counts[at] = {
            "pages_found": new.pages,
            "holes_jumped": new.work["holes"],
            "lookups_saved": old.work["lookup_misses"],
        }
    records["flags"][numbers] = flags
    nothing = {"pages_found": 0, "holes_jumped": 0, "lookups_saved": 0}
    return [
        {
            "start": vma.start,
            "end": vma.end,
            "size": vma.size,
            "perms": vma.perms,
            "name": vma.name,
            "present": int(pages[at]) * PAGE,
            "huge": int(huge[slices[at, 1]] - huge[slices[at, 0]]) * PAGE,
            "mergeable": vma.mergeable,
            "could_be": vma.not_compatible is None,
            "why_not": vma.why_not,
            "state": _state(vma),
            **counts.get(at, nothing),
        }
        for at, vma in enumerate(what.vmas)
    ]


def _state(vma: VmaRecord) -> str:
    """Mergeable or why not, in a few words."""
    if vma.not_compatible:
        return vma.not_compatible
    words = "marked" if vma.mergeable else "could be"
    return f"{words}, never written" if vma.never_written else words


def text(found: list[dict[str, Any]], overview: bool, marked: bool) -> str:
    """Tables: one of all processes, and without `overview` one of the areas of each."""
    scope = "memory that is marked mergeable" if marked else "memory that is, or could be, marked mergeable"
    lines = [] if overview else [part for one in found for part in (_process_text(one), "")]
    rows = []
    for one in found:
        totals = one["totals"]
        rows.append(
            (
                one["pid"],
                one["name"],
                report.size(totals["size"]),
                report.size(totals["present"]),
                report.size(totals["marked"]) if totals["marked"] else "-",
                report.size(totals["searched"]),
                report.count(totals["pages_found"]),
                report.count(totals["holes_jumped"]),
                report.count(totals["lookups_saved"]),
                "sparse giant" if totals["sparse_giant"] else "",
            )
        )
    head = ("pid", "name", "mapped", "present", "marked", "searched", "pages", "holes jumped", "lookups saved", "")
    lines += [report.table(head, rows, right=(0, 2, 3, 4, 5, 6, 7, 8)), ""]
    giants = [one for one in found if one["totals"]["sparse_giant"]]
    lines.append(f"Searched: {scope}.")
    lines.append("Lookups saved: addresses without a page, which ksmd looked up one by one before the range walk.")
    if giants:
        many = "are sparse giants" if len(giants) > 1 else "is a sparse giant"
        lines.append(
            f"{len(giants)} of {len(found)} {many}: {report.size(GIANT)} or more to search, "
            f"less than {FULL:.0%} of it there."
        )
    else:
        lines.append(f"No sparse giant among them ({len(found)}).")
    return "\n".join(lines)


def _process_text(one: dict[str, Any]) -> str:
    rows = [
        (
            f"{area['start']:x}",
            report.size(area["size"]),
            report.size(area["present"]) if area["present"] else "-",
            report.size(area["huge"]) if area["huge"] else "-",
            area["state"],
            report.count(area["pages_found"]) if area["could_be"] else "-",
            report.count(area["holes_jumped"]) if area["could_be"] else "-",
            report.count(area["lookups_saved"]) if area["could_be"] else "-",
            area["name"].rsplit("/", 1)[-1],
        )
        for area in one["areas"]
    ]
    head = ("start", "size", "present", "THP", "mergeable", "pages", "holes jumped", "lookups saved", "name")
    lines = [f"{one['name']} ({one['pid']}), loaded in {report.duration(one['load_seconds'])}"]
    lines += [report.table(head, rows, right=(0, 1, 2, 3, 5, 6, 7)), *one["notes"]]
    return "\n".join(lines)
