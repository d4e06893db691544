"""Charts of policies side by side, with matplotlib (the extra `plot`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..estimates.comparing import Followed
from ..layout import PAGE_SIZE
from . import charts, report
from .charts import FAINT, MAIN


def freed_by_cpu(axes: Any, found: list[Followed]) -> None:
    """Memory freed against the CPU time that ksmd has taken by then, a point a full scan.

    Parameters
    ----------
    axes : matplotlib Axes
    found : list of Followed
    """
    axes.set_title("Memory freed by ksmd's CPU time")
    last = max(float(one.rows["cpu_seconds"][-1]) for one in found)
    name, each = (("ms", 1e-3) if last < 1 else ("seconds", 1.0) if last < 300 else ("minutes", 60.0))
    for number, one in enumerate(found):
        colour, line, marker, width = charts.line_of(number, len(found))
        x = np.concatenate([[0], one.rows["cpu_seconds"]]) / each
        y = np.concatenate([[0], one.rows["freed"]]) * PAGE_SIZE
        axes.plot(x, y, color=colour, ls=line, marker=marker, ms=width + 2, lw=width, label=charts.short(one.name))
    axes.set_xlabel(f"ksmd's CPU time, {name}")
    axes.set_xlim(0, max(last / each, 1e-9) * 1.02)
    most = max(int(one.rows["freed"].max(initial=0)) for one in found) * PAGE_SIZE
    axes.set_ylim(0, max(most, 4096) * 1.08)
    charts.sizes(axes.yaxis)
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def examined(axes: Any, found: list[Followed]) -> None:
    """Pages looked at, and merges broken, a bar a policy.

    Parameters
    ----------
    axes : matplotlib Axes
    found : list of Followed
    """
    axes.set_title("Pages looked at")
    values = np.array([int(one.rows["examined"][-1]) for one in found])
    places = np.arange(len(found))
    axes.barh(places, values, color=MAIN, height=0.62)
    most = max(int(values.max(initial=0)), 1)
    for place, one, value in zip(places, found, values.tolist(), strict=True):
        broken = int(one.rows["broken"][-1])
        words = report.count(value) + (f", {report.count(broken)} merges broken" if broken else "")
        axes.text(value + most * 0.012, place, words, va="center", fontsize=8.5, color=FAINT)
    axes.set_yticks(places, [charts.short(one.name) for one in found])
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.45)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
