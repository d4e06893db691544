"""`ksmwalk demo`: what the range walk did to the scan of a huge sparse process, shown on a real one."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

from ..errors import KsmwalkError
from ..kernel import knobs
from ..sources import ProcessImage, process
from . import report
from .child import Giant, footprint
from .scanning import Pass, full_scan, later_pass, seconds_per_lookup
from .screen import Column, HelpFormatter, Screen

PAGE = 4096
MOST = 1 << 46
# What the machine's own KSM may be waited for: another program may hold it for long.
_WAIT = 3.0
_KERNEL_WAIT = 60.0

TABLE = (
    Column("one full scan", right=False),
    Column("range walk (2025)", style="green"),
    Column("per address (before)", style="yellow"),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="scan a real 32 TiB process with both strategies",
        description="Start a real process with a huge mergeable mapping and a page in it, load it without touching its "
        "memory, and scan it as ksmd did before and after the range walk.",
        epilog="examples:\n"
        "  ksmwalk demo                          32 TiB with one page in it\n"
        "  ksmwalk demo --span 1T --pages 1000   another size, more pages\n"
        "  sudo ksmwalk demo --kernel            this machine's own ksmd beside the model\n"
        "  ksmwalk demo --span 1T --guest vmlinuz-6.12.43 vmlinuz-6.12.117\n"
        "                                        kernels before and after it, in emulated machines, beside the model",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--span", type=span, default=32 << 40, metavar="SIZE", help="of the mapping (default 32T)")
    parser.add_argument("--pages", type=int, default=1, metavar="N", help="pages written, evenly spread (default 1)")
    parser.add_argument("--kernel", action="store_true", help="also let this machine's ksmd scan the process (root)")
    parser.add_argument(
        "--guest",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="in its place let these kernels (vmlinuz), each in an emulated machine, scan spans from 1 GiB to this one, and "
        "say what the model makes of it: needs qemu-system-x86_64, no root; a kernel of before takes a minute for 1 TiB",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="with --guest: draw that too (.png, .svg or .pdf; needs matplotlib, the extra plot)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def span(text: str) -> int:
    """A size like 32T, 100GiB, 4096: bytes, rounded up to pages."""
    digits = text.rstrip("iBbKkMmGgTtPp")
    unit = text[len(digits) :].lower().removesuffix("b").removesuffix("i")
    scale = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
    try:
        size = int(float(digits) * (1 << scale[unit]))
    except (KeyError, ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 32T, 100G or 512M") from None
    if not PAGE <= size <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r}: must be from {PAGE} bytes to {report.size(MOST)}")
    return -(-size // PAGE) * PAGE


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.pages <= args.span // PAGE:
        raise ValueError(f"--pages {args.pages}: must be from 1 to {args.span // PAGE}, the pages of the mapping")
    if args.guest:
        if args.kernel:
            raise ValueError("--guest and --kernel: one at a time")
        from . import demo_guest

        return demo_guest.run(args)
    if args.plot:
        raise ValueError("--plot goes with --guest")
    with contextlib.ExitStack() as stack:
        if args.kernel:
            # Before the process is there: a KSM in use is refused.
            try:
                stack.enter_context(knobs.taken(wait=_KERNEL_WAIT))
            except knobs.KernelUnavailable as reason:
                # the reason may name a process
                raise KsmwalkError(f"--kernel: {report.printable(str(reason))}") from None
            knobs.reset()
            mark = True
        else:
            mark = _alone(stack)
        giant = stack.enter_context(Giant(args.span, args.pages, mark))
        result = measure(giant, args)
        if args.kernel:
            from ..kernel.fullscan import full_scans

            result["kernel"] = full_scans(giant, args.pages)
    if args.json:
        report.print_json(result)
    else:
        show(Screen(), result)
    return 0


def _alone(stack: contextlib.ExitStack) -> bool:
    """Keep the machine's KSM from being driven while our process has mergeable memory; whether that could be had.

    Unmerging goes over such a mapping address by address: whoever did it now would wait for minutes.
    """
    try:
        stack.enter_context(knobs.lock(lambda text: None, wait=_WAIT))
    except (knobs.KernelUnavailable, OSError):
        return False
    return True


def measure(giant: Giant, args: argparse.Namespace) -> dict[str, Any]:
    """Load the process and scan it both ways."""
    before = footprint(giant.pid)
    start = time.perf_counter()
    image = process(giant.pid, mark="as-is" if giant.marked else "none")
    loading = time.perf_counter() - start
    vma = next(vma for vma in image.capture.vmas if vma.start <= giant.address < vma.end)
    if not giant.marked:
        image.mm.madvise(giant.address, args.span, "mergeable")
    after = footprint(giant.pid)
    if image.host.ksm.has("smart_scan"):
        image.host.ksm.smart_scan = 0  # every page in every pass
    first = full_scan(image.host, "range")
    range_pass = later_pass(image.host, "range")
    old = later_pass(image.host, "per-address", rounds=1)
    each, really = seconds_per_lookup(image.capture, vma)
    old_seconds = each * old.work["lookups"]
    return {
        "pid": giant.pid,
        "span": args.span,
        "pages": args.pages,
        "marked_by_kernel": giant.marked,
        "why_not_marked": giant.unmarked,
        "loading": _loading(image, loading, before, after),
        "range": _as_json(range_pass) | {"first_seconds": first.seconds},
        "per_address": _as_json(old)
        | {
            "seconds": old_seconds,
            "seconds_per_lookup": each,
            "lookups_timed": really,
            "extrapolated": True,
        },
        "ratio": {
            "lookups_to_entries": old.work["lookups"] / range_pass.entries,
            "time": old_seconds / range_pass.seconds,
        },
        "notes": image.notes,
    }


def _loading(image: ProcessImage, seconds: float, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "found_by": image.capture.found_by,
        "find_seconds": image.capture.seconds["find"],
        "pages_present": image.capture.nr_pages,
        "true_frames": image.true_frames,
        "resident_before": before[0],
        "resident_after": after[0],
        "tables_before": before[1],
        "tables_after": after[1],
        "unchanged": before == after,
    }


def _as_json(one: Pass) -> dict[str, Any]:
    return {"pages": one.pages, "seconds": one.seconds, "entries": one.entries, "work": one.work}


def show(screen: Screen, result: dict[str, Any]) -> None:
    """Write the result in words and a table."""
    load, new, old, ratio = result["loading"], result["range"], result["per_address"], result["ratio"]
    pages = f"{report.count(result['pages'])} page{'s' if result['pages'] > 1 else ''}"
    state = "present pages and page tables as before" if load["unchanged"] else "its memory changed meanwhile"
    size = report.size(result["span"])
    screen.paragraph(f"A real process ({result['pid']}): {size} of mergeable memory, {pages} written.", "bold")
    screen.paragraph(
        f"Loaded in {report.duration(load['seconds'])}, {report.count(load['pages_present'])} present pages in all, "
        f"found by {load['found_by']} in {report.duration(load['find_seconds'])};"
    )
    screen.paragraph(f"{state} ({report.size(load['resident_after'])}, {report.size(load['tables_after'])}).")
    if not result["marked_by_kernel"]:
        why = result["why_not_marked"] or "somebody else is driving this machine's KSM"
        screen.paragraph(f"Marked mergeable in the model only: {why}.", "yellow")
    longest = [report.count(one["work"]["longest"]) for one in (new, old)]
    rows = [
        ("pages found", report.count(new["pages"]), report.count(old["pages"])),
        ("one-address lookups", report.count(0), report.count(old["work"]["lookups"])),
        ("page-table entries read", report.count(new["entries"]), report.count(old["entries"])),
        ("empty entries jumped", report.count(new["work"]["holes"]), "-"),
        ("scheduling points", report.count(new["work"]["resched"]), report.count(old["work"]["resched"])),
        ("longest step, entries or lookups", *longest),
        ("time of a full scan", report.duration(new["seconds"]), report.duration(old["seconds"]) + " *"),
    ]
    screen.line()
    screen.table(TABLE, rows)
    screen.line()
    screen.paragraph(
        f"* {report.count(old['work']['lookups'])} lookups at {report.duration(old['seconds_per_lookup'])} each, as "
        f"measured here on {report.count(old['lookups_timed'])} of them."
    )
    screen.paragraph(
        f"The range walk does 1/{ratio['lookups_to_entries']:,.0f} of the steps in 1/{ratio['time']:,.0f} of the time.", "bold"
    )
    if kernel := result.get("kernel"):
        screen.line()
        screen.paragraph(_kernel_text(kernel))
    for note in result["notes"]:
        screen.paragraph(report.printable(note))


def _kernel_text(kernel: dict[str, Any]) -> str:
    if kernel["finished"]:
        visits = kernel["pages_scanned"]
        return (
            f"This machine's ksmd (Linux {kernel['release']}): {report.duration(kernel['seconds'])} for a full scan "
            f"({kernel['measured_by']}, median of {kernel['scans']})"
            + (f", {report.count(visits)} pages visited in a scan" if visits is not None else "")
            + "; KSM is as it was."
        )
    return (
        f"This machine's ksmd (Linux {kernel['release']}) did not finish a full scan in "
        f"{report.duration(kernel['waited'])}: it looks up one address at a time. KSM is as it was."
    )
