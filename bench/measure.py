"""How the bench measures: interleaved rounds, medians, one row per comparison."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SMOKE = bool(os.environ.get("KSMWALK_BENCH_SMOKE"))


@dataclass
class Row:
    """One line of the comparison. `ratio` is value / against unless `speedup`, then against / value."""

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None

    def as_json(self) -> dict:
        return {k: getattr(self, k) for k in ("name", "value", "unit", "against", "ratio", "goal", "met")}


def row(name: str, value: float, unit: str) -> Row:
    """A figure that is not held against anything."""
    return Row(name, value, unit)


def at_most(name: str, value: float, unit: str, limit: float) -> Row:
    """A figure with a goal of its own."""
    return Row(name, value, unit, None, None, f"<= {limit:g} {unit}", value <= limit)


def times_of(name: str, value: float, unit: str, against: str, other: float, limit: float | None = None) -> Row:
    """How many times the rival's figure ours is; the goal is at most `limit`."""
    ratio = value / other
    goal = None if limit is None else f"<= {limit:g}x its time"
    return Row(name, value, unit, f"{against}: {other:.4g} {unit}", ratio, goal, None if limit is None else ratio <= limit)


def faster_than(name: str, value: float, unit: str, against: str, other: float, least: float | None = None) -> Row:
    """How many times faster ours is than the rival; the goal is at least `least`."""
    ratio = other / value
    goal = None if least is None else f">= {least:g}x faster"
    return Row(name, value, unit, f"{against}: {other:.4g} {unit}", ratio, goal, None if least is None else ratio >= least)


def medians(candidates: dict[str, Callable[[], object]], rounds: int = 7, inner: dict[str, int] | None = None) -> dict[str, float]:
    """Seconds per call of each candidate: medians over rounds that take turns, so that all see the same machine.

    The order is turned round by one in each round, the collector of garbage is off, and one unmeasured call of each comes first.
    """
    inner = inner or {}
    if SMOKE:
        rounds = 2
    took = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    names = list(candidates)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for r in range(rounds):
            for name in names[r % len(names):] + names[:r % len(names)]:
                call, n = candidates[name], inner.get(name, 1)
                begin = time.perf_counter()
                for _ in range(n):
                    call()
                took[name].append((time.perf_counter() - begin) / n)
    finally:
        if enabled:
            gc.enable()
    return {name: statistics.median(t) for name, t in took.items()}


def require_release() -> dict:
    """build_info() of the core under test; anything but the release build is refused."""
    import ksmwalk

    info = ksmwalk.build_info()
    if info["profile"] != "release":
        raise SystemExit(f"bench: the core is the {info['profile']} build; only release is measured")
    return info


def memory_available() -> int:
    """Bytes that can be used without swapping, by the kernel's own estimate."""
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


def text_table(rows: Iterator[Row]) -> str:
    """The rows as aligned text."""
    cells = [("", "value", "against", "ratio", "goal", "")]
    for r in rows:
        cells.append((
            r.name, f"{r.value:.4g} {r.unit}", r.against or "", "" if r.ratio is None else f"{r.ratio:.3g}", r.goal or "",
            {True: "met", False: "MISSED", None: ""}[r.met],
        ))
    width = [max(len(c[i]) for c in cells) for i in range(6)]
    return "\n".join("  ".join(v.ljust(w) for v, w in zip(c, width, strict=True)).rstrip() for c in cells)
