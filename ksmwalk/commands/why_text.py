"""What `ksmwalk why` says to a person: the sum with bars, each reason in words, the mappings, and near pages."""

from __future__ import annotations

from typing import Any

from ..estimates.answers import TITLES, Answer, answers
from ..estimates.why import ABSENT, Reason, Why
from ..layout import PAGE_SIZE
from ..sources.near import Near
from . import report
from .screen import Column, Part, Screen

_MOST_ROWS = 10
_MOST_NEAR = 12
_MOST_NAMES = 3
_BAR, _LEAST_BAR = 30, 6
# below this many columns sizes are left out, so that there is a bar
_NARROW = 66
_RUN = {0: "stopped (run is 0)", 1: "running", 2: "stopped, everything unmerged (run is 2)"}

_FOLDED = (
    Column("present"),
    Column("merged", rank=1, style="green"),
    Column("mappings", rank=3),
    Column("mapping", right=False, elastic=True),
    Column("why", right=False),
)
_AREAS = (
    Column("start"),
    Column("size", rank=2),
    Column("present"),
    Column("merged", rank=3, style="green"),
    Column("mapping", right=False, elastic=True),
    Column("why", right=False),
)
_GOOD = (Reason.MERGED, Reason.ZERO_PLACED)
_NOTHING = (Reason.EMPTY, Reason.NOT_ANONYMOUS, Reason.FORK_SHARED)
_TO_COME = (Reason.NOT_SCANNED, Reason.SECOND_PASS, Reason.SMART_SCAN)


def _style(reason: Reason) -> str:
    if reason in _GOOD:
        return "green"
    if reason in _TO_COME:
        return "cyan"
    return "dim" if reason in _NOTHING or reason in ABSENT else "yellow"


def show(screen: Screen, why: Why, areas: bool, near: Near | None, groups: list[dict[str, Any]] | None) -> None:
    """Write everything."""
    said = answers(why)
    for words in _head(why, said):
        screen.paragraph(words)
    screen.line()
    present = [answer for answer in said if answer.reason not in ABSENT]
    absent = [answer for answer in said if answer.reason in ABSENT]
    _bars(screen, present)
    screen.line()
    for answer in present:
        _say(screen, answer)
    if absent:
        words = ", ".join(f"{answer.title} {report.size(answer.pages * PAGE_SIZE)}" for answer in absent)
        screen.paragraph(f"Addresses without a page: {words}. {_sentence(absent[-1].figure.split('; ')[-1])}")
        screen.line()
    _areas(screen, why) if areas else _folded(screen, why)
    if near is not None and groups is not None:
        screen.line()
        _near(screen, near, groups)
    if why.notes:
        screen.line()
    for note in why.notes:
        screen.paragraph(report.printable(note))


def _sentence(text: str) -> str:
    """With a full stop, and a capital where it does not begin with the name of a file or command."""
    if (first := text.split(" ", 1)[0]).isalpha() and first != "echo":
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith(".") else ".")


def _head(why: Why, said: list[Answer]) -> list[str]:
    some = [why.capture.processes[i] for i in why.about]
    names = [f"{report.printable(one.name)} ({one.pid})" for one in some[:_MOST_NAMES]]
    if len(some) > _MOST_NAMES:
        names.append(f"{len(some) - _MOST_NAMES} more")
    pages = sum(one.nr_pages for one in some)
    merged = sum(answer.pages for answer in said if answer.reason in _GOOD)
    others = len(why.capture.processes) - len(some)
    figures = why.figures
    words = f"{', '.join(names)}: {report.count(merged)} of {report.count(pages)} present pages are merged"
    words += f"; compared with {report.count(others)} other process{'es' if others != 1 else ''}." if others else "."
    state = _RUN.get(figures["run"], "unknown") if why.capture.machine.get("ksm") else "not in this kernel"
    return [words, f"KSM is {state}, {report.count(figures['full_scans'])} full scans made."]


def _bars(screen: Screen, said: list[Answer]) -> None:
    """A line a reason: its share as a bar, pages, size."""
    total = sum(answer.pages for answer in said)
    if not total:
        screen.paragraph("No page is present.")
        return
    width = screen.width or 80
    sizes = width >= _NARROW
    label = max(len(answer.title) for answer in said)
    counts = max(len(report.count(answer.pages)) for answer in said)
    room = min(_BAR, width - label - counts - 4 - 6 - (11 if sizes else 0))
    full, empty = ("█", "░") if screen.can_write("█░") else ("#", ".")
    for answer in said:
        filled = max(1, round(answer.pages / total * room))
        share = f"{answer.pages / total:.0%}" if answer.pages * 200 >= total else "<1%"
        bar: list[Part] = [(full * filled, _style(answer.reason)), empty * (room - filled), "  "] if room >= _LEAST_BAR else []
        size = f"  {report.size(answer.pages * PAGE_SIZE):>9}" if sizes else ""
        screen.line(
            (f"{answer.title:<{label}}  ", _style(answer.reason)), *bar, f"{report.count(answer.pages):>{counts}}{size}  {share:>4}"
        )


def _say(screen: Screen, answer: Answer) -> None:
    title = answer.title
    screen.line((f"{title[:1].upper()}{title[1:]}", f"bold {_style(answer.reason)}"))
    for text in (_sentence(answer.figure), f"To do: {answer.todo}" if answer.todo else ""):
        for line in report.wrap(text, (screen.width or 110) - 2):
            screen.line(f"  {line}")
    screen.line()


def _why(row: dict[Reason, int], letters: set[str], most: int = 2) -> str:
    """The reasons of a mapping's pages that weigh the most, in a few words."""
    total = sum(pages for reason, pages in row.items() if reason not in ABSENT)
    if not total:
        return next((TITLES[reason] for reason in ABSENT if row.get(reason)), "")
    words = []
    for reason, pages in sorted(row.items(), key=lambda pair: -pair[1]):
        if reason in ABSENT:
            continue
        title = TITLES[reason]
        if reason is Reason.NOT_ELIGIBLE:
            title += f" ({','.join(sorted(letters))})"
        words.append(title if pages == total else f"{title} {pages / total:.0%}" if pages * 200 >= total else title)
    return ", ".join(words[:most]) + (" ..." if len(words) > most else "")


def _row(record: Any) -> dict[Reason, int]:
    return {reason: int(record[reason.name.lower()]) for reason in Reason if record[reason.name.lower()]}


def _name(record: Any) -> str:
    return report.printable(str(record["name"]).rsplit("/", 1)[-1]) or "(anonymous)"


def _folded(screen: Screen, why: Why) -> None:
    """Mappings of one name in one line, those with the most pages first."""
    groups: dict[str, tuple[dict[Reason, int], set[str], list[int]]] = {}
    for record in why.mappings:
        row, letters, count = groups.setdefault(_name(record), ({}, set(), [0, 0]))
        for reason, pages in _row(record).items():
            row[reason] = row.get(reason, 0) + pages
        letters |= {str(record["letter"])} - {""}
        count[0] += 1
        count[1] += int(record["present"])
    order = sorted(groups.items(), key=lambda group: (-group[1][2][1], group[0]))
    rows = [
        (report.count(count[1]), report.count(sum(row.get(reason, 0) for reason in _GOOD)), count[0], name,
         _why(row, letters, _most(screen)))
        for name, (row, letters, count) in order[:_MOST_ROWS]
    ]
    screen.table(_FOLDED, _cut_why(screen, rows, 0))
    if len(order) > _MOST_ROWS:
        pages = sum(group[1][2][1] for group in order[_MOST_ROWS:])
        screen.paragraph(f"and {len(order) - _MOST_ROWS} more with {report.count(pages)} pages: --areas shows every mapping.")


def _most(screen: Screen) -> int:
    """How many reasons of a mapping there is room for."""
    return 2 if (screen.width or 80) >= _NARROW else 1


def _cut_why(screen: Screen, rows: list[tuple[Any, ...]], beside: int) -> list[tuple[Any, ...]]:
    """Rows whose last text leaves room for the rest on a narrow screen: `beside`, pages, and a name cut short."""
    width = screen.width or 200
    room = max(width - 36, min(18, width - 19 - beside), 6)
    return [(*row[:-1], report.cut(row[-1], room, screen.ellipsis)) for row in rows]


def _areas(screen: Screen, why: Why) -> None:
    """Every mapping of every process."""
    for at, index in enumerate(why.about):
        one = why.capture.processes[index]
        if at:
            screen.line()
        screen.line((f"{report.printable(one.name)} ({one.pid})", "bold"))
        rows, styles = [], []
        for record in why.mappings[why.mappings["process"] == index]:
            row = _row(record)
            start, length = int(record["start"]), int(record["end"] - record["start"])
            merged = report.count(sum(row.get(reason, 0) for reason in _GOOD))
            words = _why(row, {str(record["letter"])}, _most(screen))
            rows.append((f"{start:x}", report.size(length), report.count(int(record["present"])), merged, _name(record), words))
            styles.append("green" if record["marked"] else "" if not record["letter"] else "dim")
        screen.table(_AREAS, _cut_why(screen, rows, max((len(row[0]) for row in rows), default=0) + 2), styles=styles)


def _near(screen: Screen, near: Near, groups: list[dict[str, Any]]) -> None:
    screen.line(("Unique by a few bytes only", "bold"))
    found, unique = report.count(len(near.pairs)), report.count(near.looked_at)
    screen.paragraph(f"{found} of {unique} unique pages differ from another page in a few bytes.")
    for group in groups[:_MOST_NEAR]:
        name = report.printable(str(group["name"]).rsplit("/", 1)[-1]) or "(anonymous)"
        pages = f"{report.count(group['pages'])} page{'s' if group['pages'] > 1 else ''} of {name}"
        verb = group["text"] if group["pages"] > 1 else group["text"].replace("differ ", "differs ", 1)
        for number, line in enumerate(report.wrap(f"{pages} {verb}", (screen.width or 110) - 2)):
            screen.line(("- " if not number else "  ") + line)
    if len(groups) > _MOST_NEAR:
        rest = sum(group["pages"] for group in groups[_MOST_NEAR:])
        screen.paragraph(f"and {report.count(rest)} more pages in {len(groups) - _MOST_NEAR} groups (--json has all).")
    for todo in dict.fromkeys(group["todo"] for group in groups[:_MOST_NEAR] if group["kind"] != "data"):
        screen.paragraph(f"To do: {todo}")
