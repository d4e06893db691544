"""docs/verification.md, written from the results of a verify run."""

from __future__ import annotations

import platform
from pathlib import Path

from ..kernel.verify import Results

#: what the model has and this comparison can't judge, with the reason
UNVERIFIED = (
    (
        "NUMA: a tree per node, migration of nodes (merge_across_nodes = 0)",
        "needs a machine with several nodes; on one node the knob's refusals are compared",
    ),
    (
        "the scan-time advisor's adaptation",
        "depends on the machine's speed: the model takes scan time and CPU time as "
        "inputs; its switching and its refusals are compared",
    ),
    (
        "chain pruning after a finite time",
        "depends on the clock: compared with 0 (always due) and with a time that never passes",
    ),
    ("pinned pages and undrained LRU batches", "inputs of the model; the stepping drains before each operation"),
    ("work counts and times", "the kernel does not show them"),
)

#: what the model does not have, with what happens instead
NOT_MODELLED = (
    ("swap", "nothing is swapped out; cold, pageout and willneed only check their arguments"),
    ("page reclaim, memory pressure", "a Host without a free frame raises ArenaFullError"),
    ("khugepaged", "huge pages come from faults and MADV_COLLAPSE; the stepping puts it to sleep"),
    ("compaction, memory hotplug", "frames stay where they are; KSM pages are compared by number, not by frame"),
)

_KINDS = {"a": "anonymous", "k": "KSM", "h": "huge", "z": "zero page", "f": "other", "-": "not present"}


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
    lines += ["", "## Operations run", "", "| operation | times |", "|---|---|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(results.ops.items())]
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, command), encoding="utf-8")
