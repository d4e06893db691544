"""docs/verification.md, written from the results of a verify run."""

from __future__ import annotations

import itertools
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from ..host import ADVICE
from ..kernel.verify import Results
from ..kernel.workload_runs import BAND, RUNS, STATIC_RUNS, STEADY, WITHIN, Outcome
from ..scenarios.ops import OPS
from ..scenarios.said import all_there_is

#: how near the CPU time of an estimate is to come
_NEAR = 0.2
#: what the model has and this comparison can't judge, with the reason
UNVERIFIED = (
    (
        "NUMA: a tree per node, migration of nodes (merge_across_nodes = 0)",
        "needs a machine with several nodes: compared with recordings of two (`tests/golden`), and in an emulated one by "
        "`verify --guest`",
    ),
    (
        "the scan-time advisor's adaptation",
        "depends on the machine's speed: the model takes scan time and CPU time as "
        "inputs; its switching and its refusals are compared, its arithmetic against recorded steps "
        "(`tests/ksm/test_advisor.py`)",
    ),
    (
        "chain pruning after a finite time",
        "depends on the clock: random scenarios have 0 (always due) and a time that never passes, recordings one of 1.5 s",
    ),
    ("batches of new pages that nobody drains", "whatever runs on a CPU empties them; batches of locked pages are compared"),
    ("work counts and times", "the kernel does not show them"),
)

#: what the model does not have, with what happens instead
NOT_MODELLED = (
    ("memory pressure", "reclaim comes when it is asked for; a Host without a free frame raises ArenaFullError"),
    ("readahead of swap", "a fault brings its own page in; from a disk, and from zram where several share what is out, the kernel "
     "brings neighbours into the swap cache, which are then older than others (`vm.page-cluster` 0: as here)"),
    (
        "folios that come back from swap whole",
        "scenarios with both swap and `mthp_...` are refused. A fault brings in the largest allowed folio whose slots lie in a "
        "row and aligned as its pages do, shared with nobody and not in the swap cache; which slots small pages got depends "
        "on the CPU that took them out, so the same calls do not give the same again",
    ),
    ("how recently a page was used, in steps", "reclaim is done over until nothing more goes; once would leave some"),
    (
        "which memory a stable node gets",
        "that of the last one that was freed. It shows: an rmap_item whose node went stale and whose page has become that of "
        "the next node in the same memory is taken for listed, and counted nowhere. The kernel's allocator mostly does the "
        "same (54 of 62 runs of five scenarios)",
    ),
    (
        "pages of the programs themselves",
        "stacks and the like are reclaimed too, which counts for when the THP shrinker has its turn where MADV_FREE marked "
        "pages: one of each process, two of a child; the model takes it that there is one process",
    ),
    (
        "what mlock2 of 5.10 locks at once",
        "with MLOCK_ONFAULT the pages that are there and may be stored to: merged away they wait in a batch; in the model none",
    ),
    ("compaction, memory hotplug", "frames stay where they are; KSM pages are compared by number, not by frame"),
)

#: between these stands what `verify --workloads` writes
_BEGIN, _END = "\n<!-- workloads -->\n", "<!-- end of workloads -->\n"

_KINDS = {
    "a": "anonymous", "k": "KSM", "h": "huge", "z": "zero page", "f": "other", "s": "swap entry or marker",
    "-": "not present",
}  # fmt: skip


def page(results: Results, command: str) -> str:
    """Return the verification page.

    Parameters
    ----------
    results : Results
    command : str
        What makes it again.

    Returns
    -------
    str
        Markdown.
    """
    total, agree = len(results.verdicts), results.count("agrees")
    lines = [
        "# Verification",
        "",
        f"Made by `{command}`; not to be edited by hand.",
        "",
        "The model and the real ksmd run the same scenarios, ksmd stepped batch by batch. Every record is compared:",
        "counters, per-process statistics, which page shares a frame with which, what kind of page it is, which frame",
        "survives a merge, and the trace events in order.",
        "",
        "| | |",
        "|---|---|",
        f"| kernel | {results.kernel}, {platform.machine()} |",
        f"| scenarios | {total} |",
        f"| **agree** | **{agree}** |",
        f"| differ | {results.count('differs')} |",
        f"| not repeatable by the kernel itself | {results.count('not repeatable')} |",
        f"| not modelled | {results.count('not modelled')} |",
        f"| about what this kernel does not have | {results.count('left out')} |",
        f"| could not be run | {results.count('not run')} |",
        f"| records compared | {results.records:,} |",
        f"| single values compared | {results.values:,} |",
        f"| time | {results.seconds:.1f} s, of which kernel {results.kernel_seconds:.1f} s, model "
        f"{results.model_seconds:.1f} s |",
        f"| left out on this kernel | {', '.join(results.left_out) or 'nothing'} |",
        "",
        "## Fields compared",
        "",
        "Each is compared after every operation and every batch; the number says in how many records it changed.",
        "",
        "| field | records in which it changed |",
        "|---|---|",
    ]
    for name, number in sorted(results.changes.items()):
        lines.append(f"| {_field(name)} | {number:,} |")
    lines += ["", "## What a scenario can say", "", "With the scenarios of this run that say it, and how many of them agree.", ""]
    lines += ["| what | scenarios | agree | run | |", "|---|---|---|---|---|"]
    lines += [_said(results, word) for word in all_there_is(tuple(ADVICE))]
    lines += ["", "## Differences", ""]
    notable = [verdict for verdict in results.verdicts if verdict.status != "agrees" or verdict.nondet]
    if not notable:
        lines.append("None.")
    for verdict in notable:
        where = f", record {verdict.difference.index} {verdict.difference.op[0]}" if verdict.difference else ""
        fields = ", ".join(name for name, _, _ in verdict.difference.fields) if verdict.difference else ""
        detail = "; ".join(
            filter(
                None,
                (fields, verdict.reason, "kernel runs differ in " * bool(verdict.nondet) + ", ".join(verdict.nondet)),
            )
        )
        lines.append(f"- `{verdict.scenario.name}`: {verdict.status}{where}: {detail}")
    return "\n".join(lines) + "\n" + beyond()


def beyond() -> str:
    """Return the end of the page: what this comparison can't judge, and what there is nothing of to judge."""
    lines = ["", "## Modelled but not verified here", "", "| what | why |", "|---|---|"]
    lines += [f"| {what} | {why} |" for what, why in UNVERIFIED]
    lines += ["", "## Not modelled", "", "| what | instead |", "|---|---|"]
    lines += [f"| {what} | {instead} |" for what, instead in NOT_MODELLED]
    return "\n".join(lines) + "\n"


def _said(results: Results, word: str) -> str:
    times = f"{results.ops[word]:,}" if word in OPS else ""
    needs = OPS[word].needs if word in OPS else ""
    why = f"this machine has no {needs}" if needs in results.lacking else "" if results.said[word] else "not in this run"
    return f"| {word} | {results.said[word]:,} | {results.agreed[word]:,} | {times} | {why} |"


def _field(name: str) -> str:
    group, _, rest = name.partition(".")
    if group == "c":
        return f"counter {rest}"
    if group == "p":
        return f"pages: {_KINDS.get(rest, rest)}"
    if group == "t":
        return f"event {rest}"
    return {"s": "per-process statistics", "ret": "return values"}[name]


def write(results: Results, command: str, path: Path) -> None:
    """Write the verification page into a file.

    Parameters
    ----------
    results : Results
    command : str
    path : Path
    """
    text = page(results, command)
    _, section, _ = _around_workloads(path.read_text(encoding="utf-8")) if path.exists() else ("", "", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.removesuffix(beyond()) + section + beyond(), encoding="utf-8")


def _around_workloads(text: str) -> tuple[str, str, str]:
    """What stands before the section of the workloads, the section, and what stands behind it."""
    before, found, rest = text.partition(_BEGIN)
    if not found:
        end = text.find(beyond())
        return (text, "", "") if end < 0 else (text[:end], "", text[end:])
    section, end_mark, after = rest.partition(_END)
    return before, _BEGIN + section + end_mark, after


def workloads_section(outcomes: Sequence[Outcome], kernel: str, command: str) -> str:
    """Return the section of the page about live workloads.

    Parameters
    ----------
    outcomes : sequence of Outcome
    kernel : str
        What the running kernel calls itself.
    command : str
        What makes it again.

    Returns
    -------
    str
        Markdown, between two comments by which it is found again.
    """
    lines = [
        _BEGIN.strip("\n"),
        "",
        "## Live workloads",
        "",
        f"Made by `{command}` on {kernel}, {platform.machine()}.",
        "",
        "Each is started, stopped, estimated from the contents of its memory, and then merged by the real ksmd to the",
        f"steady state: nothing changed over {STEADY} full scans. Compared are pages_shared, pages_sharing,",
        "pages_unshared and pages_volatile (where smart scan skips pages their sum), ksm_zero_pages, stable_node_chains,",
        "stable_node_dups, general_profit, rmap_items, the number of full scans but for a start in the middle, what",
        "ksm_stat says of each process, and memory freed: the frames that the processes have less. There are",
        f"{STATIC_RUNS} runs of each, which must all agree; of ksmd's CPU time the median counts. Writers go on writing,",
        f"{RUNS} runs of each: on average the memory freed is to lie in the estimate's band in {WITHIN} of them, and the band",
        f"is to be at most {BAND:.0%} of the expected value wide.",
        "",
        "| workload | what it is | processes | pages | MiB freed: model, kernel | MiB of MemFree | scans | "
        "CPU time of ksmd: model, kernel | result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(outcome) for outcome in outcomes]
    lines += _of_cpu(outcomes)
    notable = [f"- `{outcome.workload.name}`: {one}" for outcome in outcomes for one in outcome.differences]
    lines += ["", "Model / kernel where they differ:", "", *notable] if notable else []
    return "\n".join(["", *lines, _END.strip("\n")]) + "\n"


def _of_cpu(outcomes: Sequence[Outcome]) -> list[str]:
    """How well ksmd's CPU time is known, and how well the kernel itself repeats it."""
    times = [one.beside["cpu_seconds"] for one in outcomes if one.beside.get("cpu_seconds", {}).get("model")]
    if not times:
        return []
    ratios = [one["model"] / one["kernel"] for one in times]
    pairs = [a / b for one in times for a, b in itertools.combinations(one["kernel_runs"], 2)]
    near, again = (sum(abs(ratio - 1) <= _NEAR for ratio in some) for some in (ratios, pairs))
    return [
        "",
        f"ksmd's CPU time: the estimate is {statistics.median(ratios):.2f} times that of the kernel in the middle, and within "
        f"{_NEAR:.0%} of it for {near} of {len(ratios)} workloads; the kernel's own runs are within {_NEAR:.0%} of one another in "
        f"{again} of {len(pairs)} pairs.",
    ]


def _row(outcome: Outcome) -> str:
    about = outcome.workload.about
    result = outcome.status + (f": {outcome.reason}" if outcome.reason else "")
    if not outcome.kernel:
        return f"| {outcome.workload.name} | {about} | | | | | | | {result} |"
    freed = ", ".join(f"{side.get('freed_bytes', 0) / 2**20:.2f}" for side in (outcome.model, outcome.kernel))
    free = outcome.beside.get("mem_free_bytes")
    cpu = outcome.beside.get("cpu_seconds", {})
    times = ", ".join("-" if cpu.get(side) is None else f"{cpu[side]:.3f} s" for side in ("model", "kernel")) if cpu else ""
    if "within" in outcome.beside:
        result += f"; {outcome.beside['within']} of {len(outcome.beside['runs'])} in the band, {outcome.beside['widest']:.0%} wide"
    cells = [
        outcome.workload.name, about, str(outcome.processes), f"{outcome.pages:,}", freed,
        "" if free is None else f"{free / 2**20:+.1f}", str(outcome.kernel.get("full_scans", "")), times, result,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def write_workloads(outcomes: Sequence[Outcome], kernel: str, command: str, path: Path) -> None:
    """Write the section about live workloads into the page, in the place of the one that is there.

    Parameters
    ----------
    outcomes : sequence of Outcome
    kernel, command : str
    path : Path
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# Verification\n" + beyond()
    before, _, after = _around_workloads(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + workloads_section(outcomes, kernel, command) + after, encoding="utf-8")
