"""`ksmwalk scan`: which processes are sparse giants, and what a scan of them costs with either strategy."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import KsmwalkError
from ..kernel import knobs
from ..layout import Vm
from ..proc import processes
from ..proc.maps import VmaRecord
from ..sources import NoAddressSpace, ProcessExited, ProcessImage, process
from . import report, scan_text
from .choosing import choose, no_such
from .codes import FAILED, FINE, UNUSABLE, complain
from .scanning import FULL, GIANT, full_scan
from .screen import HelpFormatter, Screen, progress

PAGE = 4096
# Areas that are scanned one by one at most: each such scan looks at the whole list of areas.
MOST_AREAS = 4096

# What --sort takes: the total it sorts by, the largest first; these two stand beside the totals, the smallest first.
SORT: dict[str, str | None] = {
    "saved": "lookups_saved",
    "anon": "anonymous",
    "present": "present",
    "mapped": "size",
    "marked": "marked",
    "searched": "searched",
    "pages": "pages_found",
    "holes": "holes_jumped",
    "pid": None,
    "name": None,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "scan",
        help="what ksmd's scan of running processes costs",
        description="Load processes without touching their memory and scan them in the model with both strategies, as "
        "if all memory that can be were marked mergeable. Answers which of them are sparse giants.",
        epilog="examples:\n"
        "  ksmwalk scan --all                    every process, the one the range walk helps most first\n"
        "  ksmwalk scan 'qemu*' --sort anon      by name, the largest first\n"
        "  ksmwalk scan 4711 --areas             one process, area by area\n\n"
        "A narrow terminal gets fewer columns; without a terminal, or with --json, all are there.\n"
        "Exit code: 0, 1 if a process that was asked for could not be read, 2 if none could.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "processes", nargs="*", metavar="PROCESS", help="a PID, a name, or a pattern of names such as 'python*'"
    )
    parser.add_argument("--all", action="store_true", help="every process that may be read")
    parser.add_argument("--areas", action="store_true", help="each process area by area")
    parser.add_argument(
        "--sort", choices=SORT, default="saved", metavar="KEY", help=f"order: {', '.join(SORT)} (default saved)"
    )
    parser.add_argument("--marked", action="store_true", help="only memory that really is marked mergeable")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


@dataclass(slots=True)
class Findings:
    """What came out: processes as plain data, what went wrong, and how many may not be read, of these unnamed ones."""

    found: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    refused_unnamed: int = 0


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, 1 where a process that was asked for can't be read, 2 where none can."""
    if bool(args.processes) == args.all:
        raise ValueError("either processes (PIDs, names, patterns) or --all is needed")
    ksm = ksm_state()
    result = Findings()
    pids, named = (processes.every_pid(), set()) if args.all else _wanted(args.processes, result)
    # JSON has the areas of processes that were asked for; the overview needs no frames: who is anonymous shows without.
    areas = args.areas or (args.json and not args.all)
    with contextlib.closing(progress(pids, "processes")) as steps:
        for pid in steps:
            _look(pid, pid in named, areas, args.marked, result)
    result.found.sort(key=lambda one: _place(one, args.sort))
    _complain(result, bool(args.all))
    if args.json:
        report.print_json(
            {
                "processes": result.found,
                "errors": result.errors,
                "refused": result.refused,
                "marked_only": args.marked,
                "ksm": ksm,
            }
        )
    elif result.found:
        scan_text.show(Screen(), result.found, ksm, args.areas, args.marked)
    if not result.found:
        return UNUSABLE
    return FAILED if result.errors and not args.all else FINE


def _wanted(words: Iterable[str], result: Findings) -> tuple[list[int], set[int]]:
    """The processes that are meant, each once: (all of them, those that were called by their number)."""
    chosen = choose(words)
    result.errors += [{"pid": None, "error": no_such(word, "scan")} for word in chosen.unknown]
    return chosen.pids, chosen.named


def _look(pid: int, named: bool, areas: bool, marked: bool, result: Findings) -> None:
    """Scan one process; that one of many vanished, or has no memory, is nothing to speak of."""
    try:
        one = scan_process(process(pid, mark="as-is" if marked else "all", frames=areas), areas)
    except (NoAddressSpace, ProcessExited, PermissionError) as error:
        result.refused += isinstance(error, PermissionError)
        if named:
            result.errors.append({"pid": pid, "error": error.strerror})
        else:
            result.refused_unnamed += isinstance(error, PermissionError)
    except KsmwalkError as error:
        result.errors.append({"pid": pid, "error": str(error)})
    except (OSError, ValueError) as error:
        # whatever is wrong with one is no reason not to show the others
        result.errors.append({"pid": pid, "error": f"process {pid}: {error}"})
    else:
        result.found.append(one)


def _place(one: dict[str, Any], key: str) -> tuple[Any, int]:
    if key in ("pid", "name"):
        return (one[key], one["pid"])
    return (-one["totals"][SORT[key]], one["pid"])


def _complain(result: Findings, everybody: bool) -> None:
    """Say what went wrong before anything is shown."""
    lines = [report.printable(one["error"]) for one in result.errors]
    if many := result.refused_unnamed:
        lines.append(f"{many} process{'es' if many > 1 else ''} may not be read by this user (root may)")
    if not result.found and (everybody or not lines):
        lines.append("not one process could be read")
    for line in lines:
        complain("ksmwalk scan", line)


def ksm_state() -> dict[str, Any]:
    """KSM as it stands on this machine, and who has memory marked mergeable, as far as this user may know.

    Returns
    -------
    dict
        run: int, None in a kernel without KSM; pages_shared, pages_sharing: int or None; marked: pid and name of each
        process with marked memory; unseen: whether there are processes that this user may not ask.
    """
    state: dict[str, Any] = {"run": None, "pages_shared": None, "pages_sharing": None, "marked": [], "unseen": False}
    for name in ("run", "pages_shared", "pages_sharing"):
        try:
            state[name] = int(knobs.read(name))
        except (OSError, ValueError):
            continue
    for pid in processes.every_pid():
        try:
            if processes.marked(pid):
                state["marked"].append({"pid": pid, "name": processes.comm(pid)})
        except PermissionError:
            state["unseen"] = True
        except OSError:
            continue  # gone by now
    return state


def _command(pid: int, name: str) -> str:
    """The command line in one, as `ps` shows it: the name in brackets where there is none."""
    try:
        return " ".join(processes.command_line(pid)) or f"[{name}]"
    except OSError:
        return f"[{name}]"


def scan_process(image: ProcessImage, areas: bool = True) -> dict[str, Any]:
    """A loaded process, area by area and in all, as plain data; sizes in bytes."""
    what, host = image.capture, image.host
    if host.ksm.has("smart_scan"):
        host.ksm.smart_scan = 0  # every page in every pass
    new = full_scan(host, "range")
    old = full_scan(host, "per-address")
    size = sum(vma.vm_end - vma.vm_start for vma in image.mm.vmas if vma.mergeable)
    return {
        "pid": what.pid,
        "name": what.name,
        "command": _command(what.pid, what.name),
        "found_by": what.found_by,
        "true_frames": image.true_frames,
        "attempts": what.attempts,
        "load_seconds": sum(image.seconds.values()),
        "notes": [note for note in image.notes if what.pfn is not None or "not asked for" not in note],
        "totals": {
            "size": sum(vma.size for vma in what.vmas),
            "present": what.nr_pages * PAGE,
            "anonymous": int(what.anon.sum()) * PAGE,
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
    huge, anon = (np.append(0, np.cumsum(pages)) for pages in (what.huge, what.anon))
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
            "anonymous": int(anon[slices[at, 1]] - anon[slices[at, 0]]) * PAGE,
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
