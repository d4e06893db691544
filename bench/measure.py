"""How the bench measures: interleaved rounds, medians, one row per comparison."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

SMOKE = bool(os.environ.get("KSMWALK_BENCH_SMOKE"))
#: pages that hot calls are timed with
SIZES = [1 << 9, 1 << 12] if SMOKE else [1 << 9, 1 << 14, 1 << 19]


@dataclass
class Row:
    """One line of the comparison: a figure of ours, what it is held against, how many times better or longer it is."""

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None

    def as_json(self) -> dict:
        return asdict(self)


def row(name: str, value: float, unit: str) -> Row:
    """A figure that is not held against anything."""
    return Row(name, value, unit)


def at_most(name: str, value: float, unit: str, limit: float, against: str | None = None, other: float = 0.0) -> Row:
    """A figure with a goal of its own; where a second figure is given, the ratio to it is shown too."""
    ratio = value / other if against else None
    return Row(name, value, unit, _other(against, other, unit), ratio, f"at most {limit:g} {unit}", value <= limit)


def times_of(name: str, value: float, unit: str, against: str, other: float, limit: float | None = None) -> Row:
    """How many times the rival's figure ours is (small is good); the goal is at most `limit`."""
    ratio = value / other
    goal, met = (None, None) if limit is None else (f"at most {limit:g}x", ratio <= limit)
    return Row(name, value, unit, _other(against, other, unit), ratio, goal, met)


def faster_than(name: str, value: float, unit: str, against: str, other: float, least: float | None = None) -> Row:
    """How many times faster ours is than the rival (large is good); the goal is at least `least`."""
    ratio = other / value
    goal, met = (None, None) if least is None else (f"{least:g}x faster", ratio >= least)
    return Row(name, value, unit, _other(against, other, unit), ratio, goal, met)


def either(first: Row, second: Row) -> Row:
    """Two goals of which one is enough: the row of the first, or of the second where only that one is met."""
    chosen = second if second.met and not first.met else first
    return replace(chosen, goal=f"{first.goal} than {first.against}, or {second.goal} {second.against}")


def _other(against: str | None, other: float, unit: str) -> str | None:
    return None if against is None else f"{against}: {other:.4g} {unit}"


def medians(
    candidates: dict[str, Callable[[], object]], rounds: int = 7, inner: dict[str, int] | None = None
) -> dict[str, float]:
    """Seconds per call of each candidate: medians over rounds in which all take turns, so that they see one machine.

    Who begins changes from round to round, the garbage collector is off, and one unmeasured call of each comes first.
    `inner` says how often a short call is repeated within a round.
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
                repeat = range(n)
                begin = time.perf_counter()
                for _ in repeat:
                    call()
                took[name].append((time.perf_counter() - begin) / n)
    finally:
        if enabled:
            gc.enable()
    return {name: statistics.median(t) for name, t in took.items()}


def per(benchmark, count: int, of: str = "page"):
    """The fixture of pytest-benchmark, told how many pages (entries, events) one call works on.

    `per(benchmark, n)(call, *args)` is measured as `benchmark(call, *args)` is; its row says the time for each as well.
    """
    benchmark.extra_info.update(of=of, count=int(count))
    return benchmark


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


def note(text: str) -> None:
    """A remark for whoever watches the bench run."""
    print(f"# {text}", file=sys.stderr, flush=True)


def text_table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""
    cells = [("", "value", "against", "ratio", "goal", "")]
    for r in rows:
        ratio = "" if r.ratio is None else f"{r.ratio:.3g}"
        met = {True: "met", False: "MISSED", None: ""}[r.met]
        cells.append((r.name, f"{r.value:.4g} {r.unit}", r.against or "", ratio, r.goal or "", met))
    width = [max(len(c[i]) for c in cells) for i in range(6)]
    return "\n".join("  ".join(v.ljust(w) for v, w in zip(c, width, strict=True)).rstrip() for c in cells)
