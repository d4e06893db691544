"""What `ksmwalk sweep` found, in words, as rows and as plain data."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..estimates.advice import too_little
from ..estimates.spread import MERGING, PACE, SWEEP_DTYPE
from ..estimates.sweep import advised, front
from ..ksm import sysfs
from ..ksm.costs import Costs
from ..layout import PAGE_SIZE
from ..signatures import I64Array, RecordArray
from . import report
from .estimate_text import lines, percent
from .screen import Column, Screen

_MOST_ROWS, _PARAGRAPH = 16, 110
_SWITCH = "switch it on (echo 1 > /sys/kernel/mm/ksm/run)"
# How columns are called that stand beside many others.
HEADS = {
    "pages_to_scan": "pages", "sleep_millisecs": "sleep", "max_page_sharing": "sharing", "use_zero_pages": "zero",
    "smart_scan": "smart", "merge_across_nodes": "nodes", "stable_node_chains_prune_millisecs": "prune",
}  # fmt: skip


@dataclass(slots=True)
class Found:
    """What a sweep found.

    Parameters
    ----------
    names : list of str
        Of the machines.
    each : ndarray of SWEEP_DTYPE, shape (machines, settings)
    rows : ndarray of SWEEP_DTYPE, shape (settings,)
        All machines together: `sweep.of_all`.
    present : int
        The present setting's index.
    costs : Costs
    seconds : float
        That it took.
    machines : list of dict
        As `MemoryCapture.machine` has each, as far as it is known.
    """

    names: list[str]
    each: RecordArray
    rows: RecordArray
    present: int
    costs: Costs
    seconds: float
    machines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> int | None:
        return advised(self.rows, self.present)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        on_front = front(self.rows)
        names = SWEEP_DTYPE.names or ()
        return {
            "sources": self.names,
            "settings": [
                {**dict(zip(names, row.tolist(), strict=True)), "front": bool(on_front[at]), "present": at == self.present,
                 "advised": at == self.best}
                for at, row in enumerate(self.rows)
            ],
            "by_source": [
                {"source": name, **dict(zip(names, row.tolist(), strict=True))}
                for name, some in zip(self.names, self.each, strict=True) for row in some
            ],
            "advice": advice(self),
            "costs": self.costs.source,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip

    def to_csv(self) -> str:
        """All settings of each machine as a table: source, tunables, what comes of them."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["source", *(SWEEP_DTYPE.names or ())])
        for name, some in zip(self.names, self.each, strict=True):
            # a spreadsheet would take such a name for a formula
            safe = f"'{name}" if name[:1] in "=+-@\t\r" else name
            writer.writerows([report.printable(safe), *row.tolist()] for row in some)
        return out.getvalue()

    def table_rows(self) -> I64Array:
        """The settings to be shown, by what they free and cost: those that no other beats, the present one, the advised."""
        some = np.flatnonzero(front(self.rows))
        order = some[np.lexsort((self.rows["seconds_to_90"][some], self.rows["cpu_share"][some], -self.rows["freed_bytes"][some]))]
        if len(order) > _MOST_ROWS:
            order = order[np.unique(np.linspace(0, len(order) - 1, _MOST_ROWS).round().astype(np.int64))]
        more = [at for at in (self.present, self.best) if at is not None and at not in order]
        shown: I64Array = np.array(sorted([*order.tolist(), *dict.fromkeys(more)], key=self._place), np.int64)
        return shown

    def _place(self, at: int) -> tuple[float, float, float]:
        row = self.rows[at]
        return -float(row["freed_bytes"]), float(row["cpu_share"]), float(row["seconds_to_90"])


def tunables(found: Found) -> list[str]:
    """The tunables that differ between settings."""
    several = [name for name in (*PACE, *MERGING) if len(np.unique(found.rows[name])) > 1]
    return [name for name in (*PACE, *MERGING) if name in PACE or name in several]


def words_of(found: Found, at: int, names: list[str]) -> list[str]:
    """A setting's values."""
    return [
        "own" if found.rows[name][at] < 0 else f"{found.rows[name][at]:,}{' ms' if 'millisecs' in name else ''}" for name in names
    ]


def mark(found: Found, at: int) -> str:
    """Whether a setting is the present one, or the advised one."""
    return ", ".join(word for word, there in (("now", at == found.present), ("advised", at == found.best)) if there)


def heading(found: Found) -> str:
    """What the sweep is of and what came out, in a few words."""
    most = int(found.rows["freed_bytes"].max(initial=0))
    where = found.names[0] if len(found.names) == 1 else f"{len(found.names)} machines"
    return f"{len(found.rows):,} settings of KSM on {report.printable(where)}: up to {report.size(most)} come free"


def advice(found: Found) -> str:
    """Which setting to take, in a sentence."""
    best = found.best
    if best is None:
        return "No setting frees anything: leave KSM off."
    now, row = found.rows[found.present], found.rows[best]
    live = [one for one in found.machines if one.get("kind", "live") == "live"]
    without = "This kernel has no KSM (CONFIG_KSM). With one that has it: " if live and not any(map(_ksm, live)) else ""
    off = not without and any(_ksm(one) and _ksm(one).get("run") != "1" for one in live)
    freed, most = (report.size(int(value)) for value in (row["freed_bytes"], found.rows["freed_bytes"].max()))
    if why := not_worth(found):
        leave = "leave KSM off" if off or without or not live else "don't keep KSM on for this"
        words = f"{leave}: {freed} would come free with the best settings: {why}."
        return without + words if without else words[0].upper() + words[1:]
    what = f"{freed}{'' if freed == most else f' of at most {most}'} come free, {_soon(row)}"
    share = f"{percent(float(row['cpu_share']))} of a processor"
    if best == found.present:
        head = f"{_SWITCH} with the settings as they are" if off else "leave the settings as they are"
        words = f"{head}: {what}, and ksmd takes {share} from then on."
    else:
        names = [name for name in (*PACE, *MERGING) if row[name] != now[name] and row[name] >= 0]
        change = [f"{name}={row[name]}" for name in names]
        listed = change[0] if len(change) == 1 else f"{', '.join(change[:-1])} and {change[-1]}"
        head = f"set {listed}, and {_SWITCH}" if off else f"set {listed}"
        before = f"{report.size(int(now['freed_bytes']))}, {_soon(now)}, for {percent(float(now['cpu_share']))}"
        words = f"{head}: {what}, and ksmd takes {share} from then on (with the settings as they are: {before})."
    return without + words if without else words[0].upper() + words[1:]


def _ksm(machine: dict[str, Any]) -> dict[str, str]:
    """The files of a machine's KSM."""
    files: dict[str, str] = machine.get("ksm") or {}
    return files


def not_worth(found: Found) -> str:
    """Why the best setting is not worth it, as `estimate` judges it; "" if it is.

    Parameters
    ----------
    found : Found
    """
    if found.best is None:
        return "nothing"
    row = found.rows[found.best]
    needed = int(row["rmap_items_bytes"] + row["nodes_bytes"])
    searched = int(row["rmap_items_bytes"]) // sysfs.RMAP_ITEM_SIZE * PAGE_SIZE
    whole = sum(int(one.get("mem_total", 0)) for one in found.machines)
    return too_little(int(row["freed_bytes"]), needed, whole, searched)


def _soon(row: Any) -> str:
    return f"90 % of it after {report.duration(float(row['seconds_to_90']))}"


def notes(found: Found) -> list[str]:
    """What the reader has to know, in sentences."""
    said = []
    if len(found.names) > 1:
        said.append(
            f"Memory is that of all {len(found.names)} machines; CPU and time are those of the machine that takes the most; now "
            f"means each as it is."
        )
    if found.costs.source == "stored":
        said.append(
            "Times are by stored costs of another machine: `ksmwalk calibrate` measures them here (root, about a minute)."
        )
    return said


def legend(found: Found) -> str:
    """What the heads of the table mean, and the tunables that are the same everywhere."""
    names = tunables(found)
    same = [f"{name}={found.rows[name][0]}" for name in MERGING if name not in names and found.rows[name][0] >= 0]
    long = ", ".join(f"{HEADS[name]}: {name}" for name in names)
    return f"{long}; CPU: of one processor, once all is merged; 90 %: when that much of it is free. Always {', '.join(same)}."


def show(screen: Screen, found: Found) -> None:
    """Write the advice, and the settings that no other beats.

    Parameters
    ----------
    screen : Screen
    found : Found
    """
    _paragraph(screen, advice(found), "bold yellow" if not_worth(found) else "bold green")
    screen.line()
    names = tunables(found)
    columns = [
        # in a narrow terminal those go that make the least difference; the advice names all
        *(Column(HEADS[name], rank=at + 1 if at else 0) for at, name in enumerate(names)),
        Column("freed", style="green"), Column("CPU"), Column("90 % after", rank=2), Column("", right=False),
    ]  # fmt: skip
    shown = found.table_rows()
    screen.table(columns, [
        (
            *words_of(found, at, names), report.size(int(found.rows["freed_bytes"][at])),
            percent(float(found.rows["cpu_share"][at])), report.duration(float(found.rows["seconds_to_90"][at])), mark(found, at),
        )
        for at in shown.tolist()
    ], styles=["green" if at == found.best else "" for at in shown.tolist()])  # fmt: skip
    on_front = int(np.count_nonzero(front(found.rows)))
    screen.line()
    count = f"{on_front:,} of {len(found.rows):,} settings (those within 1 % of each other once) are beaten by no other in memory"
    count += " freed, CPU and time"
    left = "" if len(shown) >= on_front else f", {len(shown)} are shown"
    _paragraph(screen, f"{count}{left}. {legend(found)}", "dim")
    for words in notes(found):
        _paragraph(screen, words, "dim")


def _paragraph(screen: Screen, words: str, style: str = "") -> None:
    for line in lines(words, screen.width or _PARAGRAPH):
        screen.line((line, style))
