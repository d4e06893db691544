"""What `ksmwalk scan` says to a person: KSM's own state, a line a process or a line an area, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import report
from .scanning import FULL, GIANT
from .screen import Column, Screen

_RUN = {0: "stopped", 1: "running", 2: "stopped, everything unmerged"}
_MOST_NAMES = 5

PROCESSES = (
    Column("pid"),
    Column("mapped", rank=4),
    Column("anon", style="cyan"),
    Column("present", rank=5),
    Column("marked", style="green"),
    Column("searched", rank=2),
    Column("pages", rank=3),
    Column("holes jumped", rank=6),
    Column("lookups saved"),
    Column("", right=False),
    Column("command", right=False, elastic=True),
)
AREAS = (
    Column("start"),
    Column("size"),
    Column("present", style="cyan"),
    Column("THP", rank=2),
    Column("mergeable", right=False),
    Column("pages", rank=1),
    Column("holes jumped", rank=3),
    Column("lookups saved"),
    Column("name", right=False, elastic=True),
)
_GIANT = "*"
# In fewer letters: what was never written could be marked, else another reason stands there.
_STATES = {"could be, never written": "never written", "marked, never written": "marked, unwritten"}


def show(screen: Screen, found: list[dict[str, Any]], ksm: dict[str, Any], areas: bool, marked: bool) -> None:
    """Write everything: the head, with `areas` a table for each process, a table of all, what the words mean."""
    for words in head(ksm):
        screen.paragraph(words, "green" if ksm["run"] == 1 else "yellow")
    screen.line()
    if areas:
        for one in found:
            _process(screen, one)
    _overview(screen, found)
    screen.line()
    scope = "memory that is marked mergeable" if marked else "memory that is, or could be, marked mergeable"
    screen.paragraph(
        "anon: anonymous memory that is present; what is shared by fork counts in each process. "
        f"searched: {scope}. lookups saved: addresses without a page, which ksmd looked up one by one before the range walk."
    )
    screen.paragraph(_giants(found))


def head(ksm: dict[str, Any]) -> list[str]:
    """KSM's own state in sentences."""
    if ksm["run"] is None:
        return ["KSM: this kernel has none (no /sys/kernel/mm/ksm)."]
    words = f"KSM: {_RUN.get(ksm['run'], 'unknown')} (run is {ksm['run']})"
    if ksm["pages_sharing"]:
        words += f", {report.count(ksm['pages_sharing'])} pages saved by sharing {report.count(ksm['pages_shared'])}"
    where = " in the processes that this user may look into" if ksm["unseen"] else ""
    many = ksm["marked"]
    if not many:
        return [f"{words}. Nothing is marked mergeable{where}."]
    names = [f"{report.printable(one['name'])} ({one['pid']})" for one in many[:_MOST_NAMES]]
    if len(many) > _MOST_NAMES:
        names.append(f"{len(many) - _MOST_NAMES} more")
    return [f"{words}. Memory is marked mergeable in {', '.join(names)}{where and ', of those that this user may look into'}."]


def _dash(value: int, words: Callable[[int], str]) -> str:
    return words(value) if value else "-"


def _overview(screen: Screen, found: list[dict[str, Any]]) -> None:
    rows = [
        (one["pid"], *_numbers(one["totals"]), _GIANT if one["totals"]["sparse_giant"] else "", report.printable(one["command"]))
        for one in found
    ]
    styles = ["bold magenta" if one["totals"]["sparse_giant"] else "" for one in found]
    total = None
    if len(found) > 1:
        keys = [key for key, value in found[0]["totals"].items() if not isinstance(value, bool)]
        sums = {key: sum(one["totals"][key] for one in found) for key in keys}
        total = ("total", *_numbers(sums), "", f"{len(found)} processes")
    screen.table(PROCESSES, rows, total=total, styles=styles)


def _numbers(totals: dict[str, int]) -> tuple[str, ...]:
    return (
        report.size(totals["size"]),
        report.size(totals["anonymous"]),
        report.size(totals["present"]),
        _dash(totals["marked"], report.size),
        report.size(totals["searched"]),
        report.count(totals["pages_found"]),
        report.count(totals["holes_jumped"]),
        report.count(totals["lookups_saved"]),
    )


def _giants(found: list[dict[str, Any]]) -> str:
    giants = sum(one["totals"]["sparse_giant"] for one in found)
    if not giants:
        return f"No sparse giant among them ({len(found)})."
    many = "are sparse giants" if giants > 1 else "is a sparse giant"
    return (
        f"{giants} of {len(found)} {many} ({_GIANT}): {report.size(GIANT)} or more to search, "
        f"less than {FULL:.0%} of it there."
    )


def _process(screen: Screen, one: dict[str, Any]) -> None:
    rows = [
        (
            f"{area['start']:x}",
            report.size(area["size"]),
            _dash(area["present"], report.size),
            _dash(area["huge"], report.size),
            _STATES.get(area["state"], area["state"]),
            report.count(area["pages_found"]) if area["could_be"] else "-",
            report.count(area["holes_jumped"]) if area["could_be"] else "-",
            report.count(area["lookups_saved"]) if area["could_be"] else "-",
            report.printable(area["name"].rsplit("/", 1)[-1]),
        )
        for area in one["areas"]
    ]
    styles = ["green" if area["mergeable"] else "" if area["could_be"] else "dim" for area in one["areas"]]
    name = f"{report.printable(one['name'])} ({one['pid']})"
    screen.line((name, "bold"), f", loaded in {report.duration(one['load_seconds'])}")
    screen.table(AREAS, rows, styles=styles)
    for note in one["notes"]:
        screen.paragraph(report.printable(note))
    screen.line()
