"""What `ksmwalk apply` says to a person: commands to copy, in their order, and what they rest on."""

from __future__ import annotations

from typing import Any

from ..kernel import apply as kernel
from ..kernel.marking import CONTAINER, LIBVIRT, PROGRAM, QEMU, SERVICE, USER_SERVICE, Marking
from ..proc.ksmstate import KsmState, Moment
from . import report
from .applying import Plan
from .screen import Screen

_MOST_MARKS = 20
_CALLED = {
    SERVICE: "service", USER_SERVICE: "user's service", LIBVIRT: "libvirt domain", QEMU: "virtual machine",
    CONTAINER: "container", PROGRAM: "program",
}  # fmt: skip
# virsh's names for three of the tunables
_VIRSH = {
    "pages_to_scan": "--shm-pages-to-scan", "sleep_millisecs": "--shm-sleep-millisecs",
    "merge_across_nodes": "--shm-merge-across-nodes",
}  # fmt: skip


def show(screen: Screen, plan: Plan, done: bool) -> None:
    """Write a plan.

    Parameters
    ----------
    screen : Screen
    plan : Plan
    done : bool
        Whether the settings are made; said of them then, and the rest is left to whoever reads it.
    """
    if not plan.worth:
        screen.paragraph(f"Not worth it by the estimate: {plan.why}.", "yellow")
        screen.line()
    if not done:
        settings(screen, plan)
        screen.line()
    marks(screen, plan)
    for words in plan.notes:
        screen.paragraph(f"Note: {words}.", "yellow")
    if not done:
        screen.line()
        screen.paragraph(
            "Nothing was changed. `ksmwalk apply ... --yes` makes these settings (root), starts KSM and watches it; marking is "
            "left to you. `ksmwalk apply --undo` takes it back."
        )
        cost = cost_words(plan.undo_cost)
        screen.paragraph(f"With --unmerge it unmerges, too, which will take, once all is marked and merged: {cost}.")


def settings(screen: Screen, plan: Plan) -> None:
    """Write the tunables as commands, in their order."""
    if not plan.changes:
        screen.entry(("Settings: ", "bold"), "all are as they should be, and KSM runs.")
    else:
        screen.paragraph("Settings, in the order in which the kernel takes them:", "bold")
        width = max(len(one.command) for one in plan.changes)
        for one in plan.changes:
            # what is to be copied stays on its line
            now, room = f"# now {one.old}", screen.width or width + 80
            if width + len(now) + 4 <= room:
                screen.line("  ", (f"{one.command:{width}}", "cyan"), f"  {now}")
            else:
                screen.line("  ", (one.command, "cyan"))
                screen.line("    ", now)
    virsh = [f"{_VIRSH[one.name]} {one.new}" for one in plan.changes if one.name in _VIRSH]
    if virsh and any(one.how == LIBVIRT for one in plan.marks):
        screen.line("  or, through libvirt:")
        screen.line("  ", (f"virsh node-memory-tune {' '.join(virsh)}", "cyan"))
    for words in plan.obstacles:
        screen.paragraph(f"In the way: {words}.", "red")


def marks(screen: Screen, plan: Plan) -> None:
    """Write who should be marked, and how."""
    if not plan.marks:
        screen.entry(("Marking: ", "bold"), "no process frees more than its rmap_items take.")
        return
    todo = [one for one in plan.marks if one.marked < len(one.pids)]
    already = [one for one in plan.marks if one.marked == len(one.pids)]
    if todo:
        screen.paragraph("Marking (no process can mark another; what starts it must):", "bold")
    for one in todo[:_MOST_MARKS]:
        _mark(screen, one)
    if len(todo) > _MOST_MARKS:
        freed = report.size(sum(one.freed_bytes for one in todo[_MOST_MARKS:]))
        screen.paragraph(f"and {len(todo) - _MOST_MARKS} more, which free {freed}: --json has them", indent="  ")
    if already:
        names = ", ".join(report.printable(one.what)[:40] for one in already[:5])
        more = f" and {len(already) - 5} more" if len(already) > 5 else ""
        screen.paragraph(f"Marked already: {names}{more}.")


def _mark(screen: Screen, one: Marking) -> None:
    number = f"{len(one.pids)} processes" if len(one.pids) > 1 else f"process {one.pids[0]}"
    if one.marked:
        number += f", {one.marked} marked already"
    head = f"{_CALLED[one.how]} {report.printable(one.what)[:80]}"
    screen.entry("  ", (head, "bold"), more=f"{number}, {report.size(one.freed_bytes)} freed")
    if one.file:
        screen.line(f"    {report.printable(one.file)}:")
        for line in one.content.splitlines():
            screen.line("      ", (line, "cyan"))
    for words in one.commands:
        screen.line("    ", (report.printable(words), "cyan"))
    for words in one.notes:
        screen.paragraph(words, indent="    # ") if screen.width else screen.line(f"    # {words}")


def cost_words(cost: kernel.UnmergeCost) -> str:
    """What unmerging takes, in words without a full stop."""
    low, high = cost.seconds
    if not cost.area_bytes:
        took = "no time, as nothing is marked"
    elif cost.by_range:
        took = f"at most {report.duration(high)} for {report.size(cost.area_bytes)} of marked areas (this kernel passes over holes)"
    else:
        took = (
            f"{report.duration(low)} to {report.duration(high)} for {report.size(cost.area_bytes)} of marked areas, present or not"
        )
    found = f"{report.size(cost.found_bytes)} of memory that must be found"
    if cost.available_bytes is not None:
        found += f" ({report.size(cost.available_bytes)} are available)"
    words = f"{took}, and {found}"
    if cost.refused:
        words += f"; {report.count(cost.refused)} processes could not be looked into"
    return words


# ---------------------------------------------------------------- done


def done(screen: Screen, changes: list[kernel.Change]) -> None:
    """Write what was set."""
    if not changes:
        screen.line("All was as it should be; nothing was set.")
    for one in changes:
        screen.line(f"{one.name}: {one.old} -> ", (one.new, "bold"))


def undone(screen: Screen, result: kernel.Undone) -> None:
    """Write what was put back, what was not, and why."""
    for one in result.overruled:
        screen.paragraph(f"{one.name} had been set to {one.new} since; apply had set {one.old}.", "yellow")
    for one in result.changes:
        screen.line(f"{one.name}: {one.old} -> ", (one.new, "bold"))
    if result.cost is not None:
        screen.line("Everything is unmerged.")
    for words in result.notes:
        screen.paragraph(f"Note: {words}.")
    for words in result.failed:
        screen.paragraph(f"could not be put back: {words}", "red")
    if not result.failed:
        screen.line("Undone.")


def progress_words(rows: list[dict[str, Any]], state: KsmState, seen: Moment, first: Moment) -> str:
    """A line of the watch: how long, which pass, what of the prediction is reached, what ksmd takes."""
    parts = [_clock(seen.at - first.at)]
    if seen.full_scans is not None:
        parts.append(f"{report.count(seen.full_scans - (first.full_scans or 0))} passes")
    for row in rows:
        if row["name"] in ("pages_sharing", "pages_shared", "ksm_zero_pages") and row["achieved"] is not None:
            want = round(row["predicted"])
            if want or row["achieved"]:
                share = f" ({row['achieved'] / want:.0%})" if want else ""
                parts.append(f"{row['name']} {report.count(row['achieved'])} of {report.count(want)}{share}")
    if not rows and "pages_sharing" in state.counters:
        parts.append(f"pages_sharing {report.count(state.counters['pages_sharing'])}")
    if seen.cpu_ns is not None and first.cpu_ns is not None and seen.at > first.at:
        parts.append(f"ksmd {(seen.cpu_ns - first.cpu_ns) / 1e9 / (seen.at - first.at):.1%} of a CPU")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
