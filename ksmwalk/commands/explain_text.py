"""What `ksmwalk explain` says to a person: the machine's KSM in words, a line a process, and what the counters hide."""

from __future__ import annotations

import functools
import pwd
from collections.abc import Iterator
from typing import Any

from ..ksm import sysfs
from ..layout import PAGE_SIZE
from ..proc.ksmstate import KsmProcess, KsmState
from . import report
from .explaining import against, costs_more, hidden, limit, merged_share, pass_least, saved, scan_pass
from .screen import Column, Screen

_LABEL = 9
# Below this many columns a label stands above its words.
_NARROW = 50
_GIB_PAGES = (1 << 30) // PAGE_SIZE
_COSTS_MORE = "!"

PROCESSES = (
    Column("pid"),
    Column("user", right=False, rank=3),
    Column("marked", rank=4, style="cyan"),
    Column("merged", style="green"),
    Column("zero", rank=5),
    Column("rmap_items", rank=2),
    Column("profit"),
    Column("", right=False),
    Column("name", right=False, elastic=True),
    Column("cgroup", right=False, rank=6),
)
PREDICTED = (
    Column("", right=False),
    Column("predicted"),
    Column("band", rank=1),
    Column("now"),
    Column("share", rank=2),
)


def show(
    screen: Screen, state: KsmState, seen: dict[str, Any], prediction: dict[str, dict[str, float]] | None = None
) -> None:
    """Write everything: whether it is on, what is saved, where the pass is, what is hidden, process by process.

    Parameters
    ----------
    screen : Screen
    state : KsmState
    seen : dict
        From `explaining.pace`.
    prediction : dict, optional
        From `explaining.read_prediction`.
    """
    style = "green" if state.number("run") == 1 else "yellow"
    _entry(screen, "KSM", _on(state, seen), style)
    for label, sentences in (
        ("saved", _saved(state)),
        ("cost", _cost(state)),
        ("pass", _pass(state, seen)),
        ("hidden", _hidden(state)),
    ):
        _entry(screen, label, sentences)
    if state.refused:
        screen.paragraph(f"{_many(state.refused, 'process')} may not be looked into by this user (root may).", "yellow")
    screen.line()
    if state.processes:
        _processes(screen, state)
        screen.line()
    if prediction is not None:
        _predicted(screen, prediction, state)
        screen.line()
    for label, sentences in (
        ("limit", _sharing_limit(state)),
        ("advisor", _advisor(state)),
        ("tunables", _tunables(state)),
    ):
        _entry(screen, label, sentences)
    for words in state.odd:
        screen.paragraph(report.printable(words), "yellow")


def _entry(screen: Screen, label: str, sentences: Iterator[str], style: str = "") -> None:
    """A label and its sentences beside it, or below it where there is little room."""
    words = " ".join(sentences)
    if not words:
        return
    width = screen.width or 110
    if width < _NARROW:
        screen.line((label, "bold"))
        for line in report.wrap(words, max(8, width - 1)):
            screen.line(" ", (line, style))
        return
    for number, line in enumerate(report.wrap(words, width - _LABEL)):
        screen.line((f"{'' if number else label:{_LABEL}}", "bold"), (line, style))


# ---------------------------------------------------------------- sentences


def _on(state: KsmState, seen: dict[str, Any]) -> Iterator[str]:
    run, pages, sleep = (state.number(name) for name in ("run", "pages_to_scan", "sleep_millisecs"))
    if run == 1:
        yield "is on (run is 1)."
    elif run == 0:
        yield "is off (run is 0): nothing is scanned, what was merged stays merged."
    elif run == 2:
        yield "is off (run is 2): everything was unmerged, nothing is scanned."
    else:
        yield "can't be told to be on or off: run can't be read."
    if pages is None or sleep is None:
        return
    would = "looks" if run == 1 else "would look"
    if pages == 0:
        yield "pages_to_scan is 0: ksmd looks at nothing."
    elif most := limit(state):
        yield (
            f"ksmd {would} at {_many(pages, 'page')} every {report.duration(sleep / 1000)}: at most "
            f"{_rate(most)} pages ({report.size(round(most * PAGE_SIZE))}) a second, {report.duration(_GIB_PAGES / most)} a GiB."
        )
    else:
        yield f"ksmd {would} at {_many(pages, 'page')} and goes on without a pause (sleep_millisecs is 0)."
    if run == 1 and seen["visits_per_second"] is not None:
        visits = f"In the last {report.duration(seen['seconds'])} it was {_rate(seen['visits_per_second'])} a second"
        if seen["cpu_share"] is not None:
            visits += f", with {seen['cpu_share']:.1%} of a CPU"
        yield visits + "."


def _saved(state: KsmState) -> Iterator[str]:
    money, counters = saved(state), state.counters
    if money["sharing"] is None:
        yield "can't be told: no pages_sharing."
        return
    if not money["sharing"] and not money["kept"] and not money["zero"]:
        yield "nothing: no page is merged."
        return
    yield (
        f"{report.size(money['sharing'])} as the kernel counts: {_many(counters['pages_sharing'], 'mapping')} more "
        f"(pages_sharing) of {_many(counters.get('pages_shared', 0), 'KSM page')} (pages_shared, which take "
        f"{report.size(money['kept'] or 0)})."
    )
    if money["zero"] is None:
        yield "Empty pages: this kernel does not count them."
    elif money["zero"]:
        yield f"Apart from that {report.size(money['zero'])} of empty pages, mapped to the zero page (ksm_zero_pages)."
    elif state.number("use_zero_pages") == 0:
        yield "Empty pages are merged like others (use_zero_pages is 0)."


def _cost(state: KsmState) -> Iterator[str]:
    money, items = saved(state), state.rmap_items
    if money["rmap_items"] is None:
        return
    if not items:
        yield "nothing: no page has been looked at."
        return
    nodes = f" and about {report.size(money['nodes'])} for stable nodes" if money["nodes"] else ""
    yield f"{report.size(money['rmap_items'])}: {_many(items, 'rmap_item')} of {sysfs.RMAP_ITEM_SIZE} bytes{nodes},"
    said = "general_profit" if "general_profit" in state.counters else "worked out, this kernel does not say"
    if money["profit"] < 0:
        yield f"which is more than is saved: the profit ({said}) is {report.size(money['profit'])}."
    else:
        yield f"which leaves a profit of {report.size(money['profit'])} ({said})."
    parts = [
        f"{report.count(state.counters[name])} {words}"
        for name, words in (("pages_unshared", "unlike all others"), ("pages_volatile", "changing, new, skipped or empty"))
        if state.counters.get(name)
    ]
    if parts:
        yield f"Not merged: {' and '.join(parts)}."


def _pass(state: KsmState, seen: dict[str, Any]) -> Iterator[str]:
    scan = scan_pass(state, seen)
    if scan["idle"] in ("stopped", "unmerged", "unknown"):
        if scan["number"] is not None and scan["number"] > 1:
            yield f"stopped in the {_ordinal(scan['number'])}: {report.count(scan['number'] - 1)} are complete."
        if scan["pages"]:
            yield f"One would come across {_pages_from(scan)}{_theory(state, scan)}."
        return
    if scan["number"] is not None:
        yield f"the {_ordinal(scan['number'])} is under way ({report.count(scan['number'] - 1)} complete)."
    if scan["idle"] == "nothing marked":
        yield "ksmd sleeps: no process has memory marked mergeable."
        return
    if scan["idle"] == "asleep":
        yield (
            f"ksmd met no page in {report.duration(seen['seconds'])}: nobody who has marked memory has pages in it, "
            "or ksmd is held up."
        )
    if scan["pages"]:
        yield f"A pass comes across {_pages_from(scan)}."
    yield from _end_of_pass(state, seen, scan)
    if scan["number"] == 1:
        yield "The first pass merges nothing, it takes checksums; merging begins in the second."
    if seen["skipped_share"]:
        yield f"smart_scan skipped {seen['skipped_share']:.0%} of the pages just now, which did not merge lately."


def _end_of_pass(state: KsmState, seen: dict[str, Any], scan: dict[str, Any]) -> Iterator[str]:
    if scan["idle"] == "between batches":
        yield f"It slept all the {report.duration(seen['seconds'])} looked at; by the tunables:"
    if scan["left"] is not None:
        share = f"is {scan['done'] / scan['pages']:.0%} done and " if scan["pages"] else ""
        takes = f" (a pass takes {report.duration(scan['seconds'])})" if scan["seconds"] is not None else ""
        yield f"This one {share}ends in about {report.duration(scan['left'])}{takes}."
    elif scan["seconds"] is not None:
        ended = f", {seen['passes']} ended in {report.duration(seen['seconds'])}" if seen["passes"] else ""
        pace = "by the tunables, or more" if scan["rate_from"] == "tunables" else "at this pace"
        yield f"It takes about {report.duration(scan['seconds'])} {pace}{ended}."
        if not ended:
            yield "How far this one is no kernel shows; --watch knows once one has ended."


def _pages_from(scan: dict[str, Any]) -> str:
    how = {
        "mappings": "present in marked memory",
        "rmap_items": "as there are rmap_items",
        "last pass": "as the last one did",
    }[scan["pages_from"]]
    least = "" if scan["complete"] or scan["pages_from"] == "last pass" else " or more"
    return f"{_many(scan['pages'], 'page')}{least} ({report.size(scan['pages'] * PAGE_SIZE)}, {how})"


def _theory(state: KsmState, scan: dict[str, Any]) -> str:
    least = pass_least(state, scan["pages"])
    return f" and take {report.duration(least)} or more" if least else ""


def _sharing_limit(state: KsmState) -> Iterator[str]:
    most, unsaid = state.number("max_page_sharing"), hidden(state)
    if most is None or unsaid["sharers"] is None:
        return
    chains = state.counters.get("stable_node_chains", 0)
    average = f"{unsaid['sharers']:.3g} mappings a KSM page on average, {report.count(most)} at most (max_page_sharing)"
    if not chains:
        yield f"not reached: {average}."
        return
    yield (
        f"reached by {_many(chains, 'content')}: {_many(unsaid['extra_pages'], 'page')} "
        f"({report.size(unsaid['extra_pages'] * PAGE_SIZE)}) spent again on what is there already; {average}. "
        "It can be changed only while nothing is merged."
    )


def _advisor(state: KsmState) -> Iterator[str]:
    if state.knobs.get("advisor_mode") != "scan-time":
        return
    target, cpu, most = (
        state.number(f"advisor_{name}") for name in ("target_scan_time", "max_cpu", "max_pages_to_scan")
    )
    if None in (target, cpu, most):
        yield "sets pages_to_scan after each pass (scan-time)."
        return
    assert target is not None and most is not None
    yield (
        f"sets pages_to_scan after each pass, for a pass in {report.duration(target)} with at most {cpu} % of a CPU and "
        f"{_many(most, 'page')} a batch. advisor_min_pages_to_scan is where it starts, no floor."
    )


def _hidden(state: KsmState) -> Iterator[str]:
    unsaid, counters = hidden(state), state.counters
    if not counters.get("pages_sharing") and not counters.get("ksm_zero_pages"):
        return
    if unsaid["fork_bytes"]:
        yield (
            f"{unsaid['forked']} of the processes are forks of one another: up to {report.size(unsaid['fork_bytes'])} of "
            "what counts as saved they shared before, and general_profit counts it all the same."
        )
    elif state.refused:
        yield "What fork shared before counts as saved too; how much can't be seen here."
    if unsaid["broken"]:
        yield (
            f"{_many(unsaid['broken'], 'page')} ({report.size(unsaid['broken'] * PAGE_SIZE)}) counted as merged "
            "were written to or unmapped since; the counters learn it when the pass comes by."
        )
    if unsaid["unvisited"]:
        yield f"{_many(unsaid['unvisited'], 'mapping')} of KSM pages made by fork are in no counter yet."
    if unsaid["frames"] is not None:
        gone = f" ({report.count(unsaid['stale'])} fewer than pages_shared, gone)" if unsaid["stale"] else ""
        beyond = max(0, unsaid["frame_mappings"] - unsaid["frames"])
        yield (
            f"In fact there are {_many(unsaid['frames'], 'KSM page')}{gone}, with {_many(beyond, 'mapping')} beyond the "
            f"first ({report.size(beyond * PAGE_SIZE)})."
        )
    elif state.frames is not None:
        yield "How many KSM pages there are in fact can't be told: this kernel calls other anonymous pages KSM's too."
    if unsaid["broken"] is None:
        yield "pages_shared and pages_sharing lag: a page written to counts as merged until the pass comes by."


def _tunables(state: KsmState) -> Iterator[str]:
    changed = state.changed_knobs()
    if not changed:
        yield "all as the kernel has them by default."
        return
    yield "all as the kernel has them by default, but for"
    words = []
    for name, (value, default) in changed.items():
        # what these come to is said above
        doc = "" if name.startswith(("advisor", "pages_to", "sleep")) else sysfs.KNOBS[name].__doc__ or ""
        inside = f"default {default}" + (f"; {doc[:1].lower()}{doc[1:].rstrip('.')}" if doc else "")
        words.append(f"{name} {value} ({inside})")
    yield ", ".join(words) + "."


# ---------------------------------------------------------------- tables


def _processes(screen: Screen, state: KsmState) -> None:
    ranked = sorted(state.processes, key=lambda one: (-(one.merging_pages or 0) - (one.zero_pages or 0), one.pid))
    rows = [_row(one) for one in ranked]
    styles = ["yellow" if costs_more(one) else "" for one in ranked]
    screen.table(PROCESSES, rows, styles=styles)
    losing = [one for one in ranked if costs_more(one)]
    if losing:
        pays = "pays" if len(losing) == 1 else "pay"
        screen.paragraph(
            f"{_COSTS_MORE}: {_many(len(losing), 'process')} {pays} more for rmap_items than is saved: "
            f"{report.size(-sum(one.profit or 0 for one in losing))} in all."
        )


def _row(one: KsmProcess) -> tuple[object, ...]:
    return (
        one.pid,
        _user(one.uid),
        _pages(one.marked_pages) + ("" if one.marked else "*"),
        _pages(one.merging_pages),
        _pages(one.zero_pages),
        "?" if one.rmap_items is None else report.count(one.rmap_items),
        "?" if one.profit is None else report.size(one.profit),
        _COSTS_MORE if costs_more(one) else "",
        report.printable(one.name),
        report.printable(one.cgroup),
    )


def _pages(pages: int | None) -> str:
    return "?" if pages is None else report.size(pages * PAGE_SIZE) if pages else "-"


@functools.cache
def _user(uid: int | None) -> str:
    if uid is None:
        return "?"
    try:
        return report.printable(pwd.getpwuid(uid).pw_name)
    except (KeyError, OSError):
        return str(uid)


def _predicted(screen: Screen, prediction: dict[str, dict[str, float]], state: KsmState) -> None:
    rows = against(prediction, state)
    cells = []
    for row in rows:
        tell = report.size if row["name"] in ("freed_bytes", "general_profit") else report.count
        low, high = row["lower"], row["upper"]
        certain = low is None or high is None or low == high == row["predicted"]
        band = "" if certain else f"{tell(round(low))} to {tell(round(high))}"
        now, want = row["achieved"], round(row["predicted"])
        share = f"{now / want:.0%}" if now is not None and want > 0 and row["name"] != "full_scans" else ""
        cells.append((row["name"], tell(want), band, "not shown" if now is None else tell(now), share))
    screen.table(PREDICTED, cells)
    done = merged_share(rows)
    words = "Predicted for the steady state; the counters are of the whole machine, whatever the estimate covers."
    if done is not None:
        freed = prediction["expected"].get("freed_bytes")
        words = f"{done:.0%} of the merging that was predicted is done. {words}"
        if freed is not None:
            words += " Memory really freed no counter shows."
    screen.paragraph(words)


# ---------------------------------------------------------------- words


def _many(number: int, noun: str) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{report.count(number)} {noun}{ending}"


def _rate(number: float) -> str:
    return report.count(round(number)) if number >= 10 or not number else f"{number:.2g}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{report.count(number)}{ending}"
