"""What is not known for certain, as pages change: lower and upper figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..layout import PAGE_SIZE
from ..sources.contents import MemoryCapture
from ..sources.memory import LoadedMemory
from .changing import LOOKS, SLOWER, band, run_changing, write_rates

Counters = dict[str, int]


def changing_pages(capture: MemoryCapture) -> int:
    """Pages whose content differed between two readings.

    Parameters
    ----------
    capture : MemoryCapture

    Returns
    -------
    int
    """
    return sum(int(np.count_nonzero(one.changes)) for one in capture.processes if one.changes is not None)


def while_changing(
    what: MemoryCapture,
    loaded: LoadedMemory,
    counters: Counters,
    frames: int,
    seconds_per_scan: float,
    *,
    again: Callable[[], LoadedMemory],
    each: Callable[[int], object],
) -> tuple[Counters, Counters, Counters, float]:
    """Counters while pages go on changing as they did.

    Parameters
    ----------
    what : MemoryCapture
    loaded : LoadedMemory
        It, in its steady state.
    counters : dict
        Those of the steady state.
    frames : int
        In use before anything was merged.
    seconds_per_scan : float
        In the steady state.
    again : callable
        Makes another `loaded`.
    each : callable of int
        Told the number of scans made.

    Returns
    -------
    (dict, dict, dict, float)
        What nine of ten moments lie above, the mean, what nine of ten lie below; and how many stores a second find their
        page merged and have to copy it.

    Models: see `run_changing`. Differs: see `run_changing`.
    """
    bands: list[tuple[Counters, Counters, Counters]] = []
    copies: list[float] = []
    for spread in (False, True) if what.samples == 2 else (True,):
        memory = loaded if not bands else again()
        writers = write_rates(what, spread)
        for slower in (1.0, SLOWER):
            seconds = seconds_per_scan * slower
            rows = run_changing(memory, writers, seconds, each=each)
            bands.append(band(rows, frames, PAGE_SIZE))
            if slower == 1.0 and seconds > 0:
                copies.append(float(rows["copies"].mean()) / (seconds / LOOKS))
    mean = {name: round(sum(one[1][name] for one in bands[::2]) * 2 / len(bands)) for name in bands[0][1]}
    low = {name: min(one[0][name] for one in bands) for name in mean}
    high = {name: max(one[2][name] for one in bands) for name in mean}
    return counters | low, mean, counters | high, sum(copies) / len(copies) if copies else 0.0


def lower_of(one: Counters, other: Counters) -> Counters:
    """The smaller one of each counter that both have.

    Parameters
    ----------
    one, other : dict

    Returns
    -------
    dict
        All of `other`.
    """
    return other | {name: min(value, other[name]) for name, value in one.items() if name in other}
