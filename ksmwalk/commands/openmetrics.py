"""The machine's KSM as OpenMetrics text, for a node exporter's textfile collector.

The text is valid OpenMetrics 1.0 and, as that collector reads it, Prometheus text 0.0.4 too: gauges and counters only, and
no timestamps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..ksm import sysfs
from ..layout import PAGE_SIZE
from ..proc.ksmstate import KsmState
from .explaining import against, hidden, limit, saved, scan_pass
from .report import printable

PREFIX = "ksmwalk_ksm_"
#: what only ever grows (but for a restart, and full_scans when everything is unmerged)
_GROWS = ("pages_scanned", "pages_skipped", "full_scans")
Sample = tuple[Mapping[str, object], float | int | None]


def escape(value: object) -> str:
    """A label's value, or words of a HELP line, between quotes."""
    return printable(value).replace("\\", "\\\\").replace('"', '\\"')


def family(name: str, kind: str, words: str, samples: Iterable[Sample], unit: str = "") -> list[str]:
    """The lines of one metric; none where it has no sample with a value.

    Parameters
    ----------
    name : str
        Without the prefix; ends in the unit if there is one.
    kind : str
        `gauge` or `counter`.
    words : str
        What it is.
    samples : iterable of (labels, value)
        Those whose value is None are left out.
    unit : str
        `bytes`, `seconds` or none.
    """
    whole = PREFIX + name
    lines = [f"# TYPE {whole} {kind}"]
    if unit:
        lines.append(f"# UNIT {whole} {unit}")
    lines.append(f"# HELP {whole} {escape(words)}")
    heads = len(lines)
    for labels, value in samples:
        if value is None:
            continue
        inside = ",".join(f'{label}="{escape(text)}"' for label, text in labels.items())
        number = repr(float(value)) if isinstance(value, float) else str(value)
        lines.append(f"{whole}{'_total' if kind == 'counter' else ''}{f'{{{inside}}}' if inside else ''} {number}")
    return lines if len(lines) > heads else []


def text(state: KsmState, seen: dict[str, Any], prediction: dict[str, dict[str, float]] | None = None) -> str:
    """The whole text.

    Parameters
    ----------
    state : KsmState
    seen : dict
        From `explaining.pace`.
    prediction : dict, optional
        From `explaining.read_prediction`.
    """
    lines: list[str] = []
    for name, counter in sysfs.COUNTERS.items():
        value = state.counters.get(name)
        kind, unit, metric = ("counter" if name in _GROWS else "gauge"), "", name
        if name == "general_profit":
            unit, metric = "bytes", "general_profit_bytes"
        lines += family(metric, kind, counter.__doc__ or name, [({}, value)], unit)
    lines += family("rmap_items", "gauge", "rmap_items there are.", [({}, state.rmap_items)])
    numbers = [({"name": name}, state.number(name)) for name in state.knobs if name != "advisor_mode"]
    lines += family("tunable", "gauge", "Tunables of /sys/kernel/mm/ksm.", numbers)
    if "advisor_mode" in state.knobs:
        modes = [({"mode": mode}, int(state.knobs["advisor_mode"] == mode)) for mode in sysfs.ADVISORS]
        lines += family("advisor_mode", "gauge", "1 for the advisor's mode.", modes)
    lines += _worked_out(state, seen)
    lines += _processes(state)
    if prediction is not None:
        lines += _predicted(prediction, state)
    return "\n".join([*lines, "# EOF", ""])


def _worked_out(state: KsmState, seen: dict[str, Any]) -> list[str]:
    money, unsaid, scan = saved(state), hidden(state), scan_pass(state, seen)
    lines: list[str] = []
    for name, words, value in (
        ("saved_bytes", "pages_sharing in bytes: what counts as saved by KSM pages.", money["sharing"]),
        ("zero_bytes", "ksm_zero_pages in bytes: saved by the shared zero page.", money["zero"]),
        ("kept_bytes", "pages_shared in bytes: what the KSM pages take themselves.", money["kept"]),
        ("rmap_items_bytes", "What the rmap_items take.", money["rmap_items"]),
        ("forked_bytes", "Of what counts as saved, at most so much fork had shared before.", unsaid["fork_bytes"]),
    ):
        lines += family(name, "gauge", words, [({}, value)], "bytes")
    for name, words, value in (
        ("broken_pages", "Pages counted as merged that are not any more, in the processes that could be looked into.",
         unsaid["broken"]),
        ("extra_pages", "KSM pages spent again on contents that have one, for the sharing limit.", unsaid["extra_pages"]),
        ("frames", "KSM pages that there are in fact.", unsaid["frames"]),
        ("frame_mappings", "Mappings of the KSM pages that there are.", unsaid["frame_mappings"]),
        ("limit_pages_per_second", "Pages a second that the tunables let ksmd visit at most.", limit(state)),
        ("visits_per_second", "Pages a second that ksmd visited just now.", seen["visits_per_second"]),
        ("cpu_ratio", "CPU time of ksmd just now, 1 is one CPU.", seen["cpu_share"]),
        ("pass_pages", "Pages that a pass comes across.", scan["pages"]),
        ("pass_done_pages", "Pages that this pass has come across, where that is known.", scan["done"]),
        ("refused_processes", "Processes that could not be asked.", state.refused),
    ):  # fmt: skip
        lines += family(name, "gauge", words, [({}, value)])
    for name, words, value in (
        ("pass_seconds", "How long a pass takes at the present pace.", scan["seconds"]),
        ("pass_left_seconds", "How long this pass will go on, where that is known.", scan["left"]),
    ):
        lines += family(name, "gauge", words, [({}, value)], "seconds")
    return lines


def _processes(state: KsmState) -> list[str]:
    who = [
        ({"pid": one.pid, "name": one.name, "uid": "" if one.uid is None else one.uid, "cgroup": one.cgroup}, one)
        for one in state.processes
    ]
    lines: list[str] = []
    for name, field in (("merging_pages", "merging_pages"), ("rmap_items", "rmap_items"), ("zero_pages", "zero_pages")):
        words = f"ksm_{name} of a process."
        lines += family(f"process_{name}", "gauge", words, [(labels, getattr(one, field)) for labels, one in who])
    lines += family(
        "process_profit_bytes", "gauge", "Bytes a process's merging saves, less what its rmap_items take.",
        [(labels, one.profit) for labels, one in who], "bytes",
    )  # fmt: skip
    marked = [(labels, None if one.marked_pages is None else one.marked_pages * PAGE_SIZE) for labels, one in who]
    return lines + family(
        "process_marked_bytes", "gauge", "Anonymous memory present in a process's mergeable mappings.", marked, "bytes"
    )


def _predicted(prediction: dict[str, dict[str, float]], state: KsmState) -> list[str]:
    rows = against(prediction, state, apart=True)
    lines: list[str] = []
    for row in rows:
        name, value = row["name"], "predicted_" + row["name"]
        in_bytes = name in ("freed_bytes", "general_profit")
        metric = value + ("_bytes" if name == "general_profit" else "")
        bands: list[Sample] = [
            ({"band": "expected"}, row["predicted"]),
            ({"band": "lower"}, row["lower"]),
            ({"band": "upper"}, row["upper"]),
        ]
        words = f"{name} as estimated for the steady state."
        lines += family(metric, "gauge", words, bands, "bytes" if in_bytes else "")
    shown = [({"name": row["name"]}, row["achieved"]) for row in rows]
    return lines + family("achieved", "gauge", "What the predicted figures have come to.", shown)
