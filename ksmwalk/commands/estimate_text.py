"""What `ksmwalk estimate` says to a person: the answer first, then what it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..estimates.advice import YOUNG, Advice, Setting, likely, present_value
from ..estimates.bounds import changing_pages
from ..estimates.estimate import Estimate
from ..layout import PAGE_SIZE
from ..sources.contents import MemoryCapture, readable
from . import report
from .screen import Column, Screen

_PACE = ("pages_to_scan", "sleep_millisecs")
_MOST_NAMES, _MOST_ROWS = 4, 10
_LABEL, _NARROW = 16, 50
_BAR = 8
_LONGEST = 100
_PARAGRAPH = 110
# the space between a number and its unit, and what stands there while lines are broken
UNITS, _GLUE = re.compile(r"(?<=\d) (?=%|[KMGTPE]?i?B\b|[mun]?s\b|minutes|hours|days|years)"), "\ue000"
# By less than this part a range is not worth two figures.
_SAME = 0.05
_WITHIN = {"all": "everything", "user": "a user", "container": "a container", "process": "a process"}

#: what the first and the last column of a table are called
HEADS = {
    "process": ("pid", "process"),
    "mapping": ("pid", "mapping"),
    "user": ("processes", "uid"),
    "cgroup": ("processes", "cgroup"),
    "container": ("processes", "container"),
}


def percent(part: float) -> str:
    """A part of 1 in percent, in two digits; small ones as what they are below."""
    if 0 < part < 0.0001:
        return "<0.01 %"
    return f"{part * 100:.2g} %" if part < 0.095 else f"{part * 100:.0f} %"


def answer(of: Estimate, advice: Advice) -> str:
    """Whether to switch it on, for which processes, and at which settings, in one or two sentences."""
    counters = advice.estimate.expected.counters
    searched = advice.anonymous_bytes
    already = counters["freed_bytes"] - counters["freed_more_bytes"]
    running = of.capture.machine.get("ksm", {}).get("run") == "1"
    if not advice.worth:
        whole = sum(row["anonymous_pages"] for row in of.expected.by_process) * PAGE_SIZE
        what = "Don't keep it on" if already > 0 else "Don't switch it on"
        if not of.expected.counters["freed_bytes"]:
            return f"{what}: nothing would come free of {report.size(whole)} of anonymous memory: {advice.why}."
        freed = max(likely(of), 0)
        return f"{what}: {report.size(freed)} of {report.size(whole)} of anonymous memory would come free: {advice.why}."
    part = percent(likely(advice.estimate) / max(searched, 1))
    whom = f"{_whom(advice)}: {freed_range(advice.estimate)} of their {report.size(searched)} of anonymous memory"
    if already > 0 and running:
        more = counters["freed_more_bytes"]
        after = f"of which {report.size(already)} {'are' if more > 0 else 'are all'} so already"
        words = f"Keep it on for {whom} come free ({part}), {after}"
    else:
        words = f"Switch it on for {whom} would come free ({part})"
        if no_ksm(of.capture):
            words = f"This kernel has no KSM (CONFIG_KSM). With one that has it: {words[0].lower()}{words[1:]}"
    if advice.best is None:
        return f"{words}."
    return f"{words}, {_price(advice.best)}, at {_at(of, advice.best)}."


def _whom(advice: Advice) -> str:
    names = [f"{report.printable(name)}{f' ({number})' if number > 1 else ''}" for name, number in advice.names]
    if len(names) > _MOST_NAMES + 1:
        rest = sum(number for _, number in advice.names[_MOST_NAMES:])
        names = [*names[:_MOST_NAMES], f"{rest} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _price(best: Setting) -> str:
    if not best.seconds_to_settle:
        return f"for {percent(best.cpu_after)} of a processor"
    return (
        f"for {percent(best.cpu_while_merging)} of a processor until all is merged, after "
        f"{report.duration(best.seconds_to_settle)}, and {percent(best.cpu_after)} from then on"
    )


def _at(of: Estimate, best: Setting) -> str:
    now = (present_value(of.capture, "pages_to_scan"), present_value(of.capture, "sleep_millisecs"))
    words = f"pages_to_scan={best.pages_to_scan} and sleep_millisecs={best.sleep_millisecs}"
    as_it_is = "as they are" if of.capture.machine.get("ksm") else "which are the kernel's by default"
    return f"{words}, {as_it_is}" if now == (best.pages_to_scan, best.sleep_millisecs) else words


def freed_range(of: Estimate) -> str:
    """What comes free, on average where pages change; in brackets from the least to the most, where these differ."""
    low, high = (one["freed_bytes"] for one in (of.lower, of.upper))
    expected = report.size(likely(of))
    if high - low > _SAME * max(high, 1):
        return f"{expected} ({report.size(max(low, 0))} to {report.size(high)})"
    return expected


def how_to(of: Estimate, advice: Advice) -> str:
    """What has to be done to follow the advice, in a sentence; "" where nothing has."""
    if not advice.worth or of.capture.machine.get("kind", "live") != "live":
        return ""
    if of.capture.machine.get("machines"):
        return "This is as if all of it ran on one machine; what to set on which an estimate of each alone says."
    if no_ksm(of.capture):
        return ""
    words = []
    if of.mark == "all":
        words.append("MemoryKSM=yes in the [Service] of their systemd units (or prctl PR_SET_MEMORY_MERGE)")
    best = advice.best
    wanted = {name: of.knobs[name] for name in of.knobs_given if name not in _PACE}
    if best is not None:
        wanted |= {name: getattr(best, name) for name in _PACE}
    for name, value in wanted.items():
        if name != "run" and value != present_value(of.capture, name):
            words.append(f"echo {value} > /sys/kernel/mm/ksm/{name}")
    if of.capture.machine.get("ksm", {}).get("run") != "1":
        words.append("echo 1 > /sys/kernel/mm/ksm/run")
    return f"To do it: {'; '.join(words)}." if words else ""


def no_ksm(capture: MemoryCapture) -> bool:
    """Whether a live machine was captured whose kernel has no KSM."""
    return capture.machine.get("kind", "live") == "live" and not capture.machine.get("ksm") and not capture.machine.get("machines")


def facts(of: Estimate, domains: dict[str, int | None]) -> Iterator[tuple[str, str]]:
    """Labels and what is to be said under them, in the order of importance."""
    counters, cost = of.expected.counters, of.cost
    whole = sum(row["anonymous_pages"] for row in of.expected.by_process) * PAGE_SIZE
    already = counters["freed_bytes"] - counters["freed_more_bytes"]
    many = len(of.capture.processes)
    whose = f"{many} processes" if many > 1 else "one process"
    about = "marked for merging now" if of.mark == "marked" else "as if all of it were marked"
    freed = f"{report.size(counters['freed_bytes'])} of {report.size(whole)} of anonymous memory in {whose}, {about}"
    freed += ", and nothing changed any more" if of.moving else ""
    yield "freed", freed + (f"; {report.size(already)} of it is free already" if already else "")
    if of.lower is not of.expected.counters or of.upper is not of.expected.counters:
        yield "range", _range(of)
    yield "general_profit", _profit(of)
    yield "zero pages", _zeros(of)
    if sum(value is not None for value in domains.values()) > 1:
        within = [f"{_WITHIN[name]} {report.size(value)}" for name, value in domains.items() if value is not None]
        yield "merged within", f"{within[0]}; only {', '.join(within[1:])} (sharing beyond these is a side channel)"
    yield "time", _time(of)
    yield "KSM's memory", f"{report.size(cost['rmap_items_bytes'])} of rmap_items, {report.size(cost['nodes_bytes'])} of nodes"
    split = cost["huge_pages_split"]
    yield "huge pages", f"{split:,} of 2 MiB are split" if split else "none is split"
    if cost["copies_per_second"] >= 1:
        yield "copies", f"{cost['copies_per_second']:,.0f} stores a second find their page merged, and have to copy it"
    yield "if all broke", f"{report.size(cost['broken_bytes'])} must be found if every merged page were written to"
    yield "costs", _costs(of)


def _range(of: Estimate) -> str:
    low, middle, high = (
        report.size(one["freed_bytes"]) for one in (of.lower, of.moving or of.expected.counters, of.upper)
    )
    why = []
    if changing := changing_pages(of.capture):
        why.append(f"{changing:,} pages changed while they were read")
    if not of.capture.frames_seen:
        why.append("frames can't be seen, so what fork shares already is unknown")
    mean = "on average" if of.moving else "expected"
    return f"{low} at least, {middle} {mean}, {high} at most: {', and '.join(why)}"


def _profit(of: Estimate) -> str:
    counters = of.expected.counters
    items = of.cost["rmap_items_bytes"]
    forked = counters["general_profit"] + items - counters["freed_bytes"]
    words = f"{report.size(counters['general_profit'])} is what the kernel will say: less {report.size(items)} for rmap_items"
    if forked > 0:
        words += f", but with {report.size(forked)} that fork shares already, which merging does not free"
    elif forked < 0:
        words += f", and without {report.size(-forked)} that it does not count"
    return words


def _zeros(of: Estimate) -> str:
    placed = of.expected.counters["ksm_zero_pages"]
    if of.knobs["use_zero_pages"]:
        return f"{placed:,} become the zero page ({report.size(placed * PAGE_SIZE)} of what is freed)"
    holding = sum(int(np.count_nonzero(readable(one) & (one.key == 0))) for one in of.capture.processes if one.key is not None)
    if not holding:
        return "no page holds only zeros"
    return f"{holding:,} ({report.size(holding * PAGE_SIZE)}) hold only zeros; they count as others (use_zero_pages is 0)"


def _time(of: Estimate) -> str:
    cost = of.cost
    if not cost["scans"]:
        return "nothing is searched"
    if not cost["scans_to_settle"]:
        return f"nothing changes; a pass takes {report.duration(cost['seconds_per_scan'])}"
    passes = "passes" if cost["scans_to_settle"] > 1 else "pass"
    milestones = ", ".join(f"{at} % after {report.duration(cost[f'seconds_to_{at}'])}" for at in (50, 90, 99))
    cpu = float(of.over_time()["cpu_seconds"][cost["scans_to_settle"]])
    return (
        f"{cost['scans_to_settle']} {passes}, {report.duration(cost['seconds_to_settle'])} at the tunables asked about, of it "
        f"{report.duration(cpu)} of CPU; {milestones}"
    )


def _costs(of: Estimate) -> str:
    costs = of.costs
    if costs.source == "stored":
        return "times are by stored costs of another machine: `ksmwalk calibrate` measures them here (root, about a minute)"
    where = " ".join(report.printable(part) for part in (costs.machine, costs.release, costs.date) if part)
    return f"times are by costs {costs.source}{f' ({where})' if where else ''}"


# ---------------------------------------------------------- on screen


def show(screen: Screen, of: Estimate, advice: Advice, domains: dict[str, int | None], by: str) -> None:
    """Write everything."""
    _paragraph(screen, answer(of, advice), "bold green" if advice.worth else "bold yellow")
    if words := how_to(of, advice):
        _paragraph(screen, words)
    screen.line()
    for label, words in facts(of, domains):
        _fact(screen, label, words)
    screen.line()
    _settings(screen, of, advice)
    _rows(screen, of, by)
    for note in (*of.notes, *hints(of, advice)):
        _paragraph(screen, report.printable(note), "dim")


def show_sample(screen: Screen, of: Estimate, by: str) -> None:
    """Print an estimate from a part of the contents.

    Parameters
    ----------
    screen : Screen
    of : Estimate
        From `sampling.estimate_sample`.
    by : str
        Rows of the table.
    """
    size = report.size

    def between(name: str) -> str:
        return f"between {size(of.lower[name])} and {size(of.upper[name])}"

    _fact(screen, "freed", f"{size(of.expected.counters['freed_bytes'])}, {between('freed_bytes')}")
    _fact(screen, "general_profit", between("general_profit"))
    _fact(screen, "time", _time(of))
    kept = f"{size(of.cost['rmap_items_bytes'])} of rmap_items, {size(of.cost['nodes_bytes'])} of nodes"
    _fact(screen, "KSM's memory", kept)
    _rows(screen, of, "process" if by == "mapping" else by)
    for note in of.notes:
        _paragraph(screen, note)


def hints(of: Estimate, advice: Advice) -> list[str]:
    """What might be asked next, in sentences."""
    said = []
    if no_ksm(of.capture):
        said.append("This kernel has no KSM (no /sys/kernel/mm/ksm): tunables are those that a kernel has by default.")
    if advice.young:
        processes = f"{report.count(advice.young)} process{' is' if advice.young == 1 else 'es are'}"
        said.append(f"{processes} younger than {YOUNG / 60:.0f} minutes and may be gone soon: not among those to be marked.")
    if of.mark == "marked":
        said.append("This is about what is marked for merging now: --as all is about everything that could be.")
    return said


def lines(words: str, room: int) -> list[str]:
    """Sentences in lines of at most `room` columns, numbers beside their units."""
    glued = UNITS.sub(_GLUE, words)
    return [line.replace(_GLUE, " ") for line in report.wrap(glued, room)]


def _paragraph(screen: Screen, words: str, style: str = "") -> None:
    for line in lines(words, screen.width or _PARAGRAPH):
        screen.line((line, style))


def _fact(screen: Screen, label: str, words: str) -> None:
    width = screen.width or _PARAGRAPH
    if width < _NARROW:
        screen.line((label, "bold"))
        for line in lines(words, width - 2):
            screen.line("  ", line)
        return
    for number, line in enumerate(lines(words, width - _LABEL)):
        screen.line((report.pad("" if number else label, _LABEL), "bold"), line)


def _settings(screen: Screen, of: Estimate, advice: Advice) -> None:
    if not advice.settings or not len(advice.estimate.expected.work):
        return
    columns = (
        Column("pages_to_scan"), Column("sleep", rank=4), Column("a pass", rank=2), Column("all merged"),
        Column("CPU till then", rank=1), Column("after", rank=3), Column("", right=False, elastic=True),
    )  # fmt: skip
    rows = [
        (
            f"{one.pages_to_scan:,}", f"{one.sleep_millisecs} ms", report.duration(one.pass_seconds),
            report.duration(one.seconds_to_settle), percent(one.cpu_while_merging), percent(one.cpu_after),
            mark(one, advice),
        )
        for one in advice.settings
    ]  # fmt: skip
    screen.table(columns, rows, styles=["green" if one == advice.best else "" for one in advice.settings])
    screen.line()


def mark(one: Setting, advice: Advice) -> str:
    """Whether a setting is the machine's, the one asked about, the advised one."""
    known = bool(advice.estimate.capture.machine.get("ksm"))
    which = (("now" if known else "default", advice.now), ("asked", advice.asked), ("advised", advice.best))
    return ", ".join(word for word, that in which if one == that)


def _rows(screen: Screen, of: Estimate, by: str) -> None:
    rows = of.table(by)
    if not len(rows):
        return
    first, called = HEADS[by]
    columns = [
        Column(first), Column("anon", rank=2), Column("freed", style="green"), Column("of it", rank=1),
        Column("", right=False, rank=4), Column("merged", rank=3), Column(called, right=False, elastic=True),
    ]  # fmt: skip
    most = max(int(rows["freed_bytes"][0]), 1)
    full = "█" if screen.can_write("█") else "#"
    names = rows.dtype.names or ()
    shown = [_row(dict(zip(names, row.tolist(), strict=True)), by, most, full) for row in rows[:_MOST_ROWS]]
    if screen.width is None:
        # nobody's limit, but command lines can be as long as a page
        shown = [(*row[:-1], report.cut(row[-1], _LONGEST, screen.ellipsis)) for row in shown]
    screen.table(columns, shown)
    if (more := len(rows) - _MOST_ROWS) > 0:
        rest = int(rows["freed_bytes"][_MOST_ROWS:].sum())
        screen.line((f"and {more:,} more: {report.size(rest)}", "dim"))
    screen.line()


def cells(row: dict[str, Any], by: str) -> tuple[str, str, str, str, str, str]:
    """What a row of a table says: its number, anonymous memory, what is freed, which part, what is merged, its name.

    Parameters
    ----------
    row : dict
        Of `Estimate.table(by)`.
    by : str
    """
    freed, anonymous = row["freed_bytes"], row["anonymous_bytes"]
    first, _ = HEADS[by]
    merged = row["merged_bytes"] if by == "mapping" else (row["ksm_merging_pages"] + row["ksm_zero_pages"]) * PAGE_SIZE
    part = percent(freed / anonymous) if anonymous else "-"
    return str(row[first]), report.size(anonymous), report.size(freed), part, report.size(merged), label(row, by)


def _row(row: dict[str, Any], by: str, most: int, full: str) -> tuple[str, ...]:
    number, anonymous, freed, part, merged, name = cells(row, by)
    bar = full * round(_BAR * max(row["freed_bytes"], 0) / most)
    return number, anonymous, freed, part, bar, merged, report.printable(name)


def label(row: dict[str, Any], by: str) -> str:
    """What a row of a table is called; not yet printable.

    Parameters
    ----------
    row : dict
        Of `Estimate.table(by)`.
    by : str
    """
    if by == "mapping":
        return f"{row['start']:x} {row['name'].rsplit('/', 1)[-1] or 'anonymous'}"
    if by == "process":
        program, space, words = row["command"].partition(" ")
        program = program.rsplit("/", 1)[-1]
        # what the answer calls it, which need not be what it was started as
        called = row["name"] if program[:15] == row["name"] else f"{row['name']}: {program}"
        return f"{called}{space}{words}" if program else str(row["name"])
    if by == "container":
        return row["container"][:12] or "outside containers"
    return str(row["uid"] if by == "user" else row["cgroup"] or "/")
