"""Tunables against each other: many settings over one capture, on any executor."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from ..gate import shown
from ..host import Host
from ..ksm.costs import Costs
from ..signatures import BoolArray, I64Array, RecordArray
from ..sources.captures import open_capture
from ..sources.contents import MemoryCapture
from .advice import MOST_CPU, SOON, present_value
from .spread import FOUND, MERGING, PACE, SWEEP_DTYPE, TIMES, Job, Spread

# What a setting is to free of what the best one does; seconds to 90 % that are good enough for what is to be set.
_ENOUGH, _AT_ONCE = 0.95, 60

# By which settings count as the same: this part of a figure, or so many bytes, so much of a CPU, so many seconds.
_SAME, _NOTHING = 0.01, np.array([0.0, 0.0005, 1.0])

Settings = Sequence[Mapping[str, int]]
Pool = Executor | Callable[[], Executor]
#: memory, or the directory that a capture was kept in
Memory = MemoryCapture | str | os.PathLike[str]


def grid(**values: Iterable[int]) -> list[dict[str, int]]:
    """All combinations of some tunables' values.

    Parameters
    ----------
    **values : iterable of int
        By the names of /sys/kernel/mm/ksm.

    Returns
    -------
    list of dict
        In the order of the values, the last name's fastest.

    Examples
    --------
    >>> grid(smart_scan=[0, 1], pages_to_scan=[100])
    [{'smart_scan': 0, 'pages_to_scan': 100}, {'smart_scan': 1, 'pages_to_scan': 100}]
    """
    names = list(values)
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*(list(values[name]) for name in names))]


def default_settings() -> list[dict[str, int]]:
    """Settings worth comparing where nothing else is said: 192 of them."""
    return grid(
        max_page_sharing=[64, 256, 1024],
        use_zero_pages=[0, 1],
        smart_scan=[0, 1],
        sleep_millisecs=[20, 200],
        pages_to_scan=[100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000],
    )


def sweep(
    capture: Memory,
    settings: Settings,
    *,
    executor: Pool | None = None,
    shared: bool = False,
    mark: str = "auto",
    costs: Costs | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> RecordArray:
    """Estimate what comes of each of many settings.

    Parameters
    ----------
    capture : MemoryCapture, or the directory of a kept one
    settings : sequence of mappings
        Tunables of each by name; what one does not name is the captured machine's.
    executor : concurrent.futures.Executor, or a callable that makes one
        Where the work is done: threads of this process by default (the model lets go of Python's lock), processes, a Dask
        cluster (`dask.distributed.Client.get_executor()`). Given as a callable it is made anew when a worker dies; of one
        given as it is, what a dead worker has left is done here.
    shared : bool
        The workers find the directory under the same path and open it themselves; nothing of it is sent.
    mark, costs
        As for `estimate`.
    progress : callable of (int, int)
        Settings done, and all.

    Returns
    -------
    ndarray of SWEEP_DTYPE, shape (len(settings),)
        A row a setting, in their order, the same whatever the executor.

    Raises
    ------
    ValueError, OSError
        A tunable that KSM has not got, that no setting may have, or a value it refuses; with the number of the setting.
        Nothing has been run.
    BadCapture
        As `open_capture`.

    Models: see `estimate`. Differs: see `estimate`; pages that change are taken to stand still.
    """
    rows: RecordArray = sweep_each(
        [capture], settings, executor=executor, shared=shared, mark=mark, costs=costs, progress=progress
    )[0]
    return rows


def sweep_each(
    captures: Sequence[Memory],
    settings: Settings,
    *,
    executor: Pool | None = None,
    shared: bool = False,
    mark: str = "auto",
    costs: Costs | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> RecordArray:
    """Estimate what comes of each of many settings on each of several machines.

    Parameters
    ----------
    captures : sequence of MemoryCapture or of directories of kept ones
        Each for itself.
    settings, executor, shared, mark, costs, progress
        As for `sweep`.

    Returns
    -------
    ndarray of SWEEP_DTYPE, shape (len(captures), len(settings))

    Raises
    ------
    ValueError, OSError
        As `sweep`.

    Models: see `sweep`. Differs: see `sweep`.
    """
    costs = costs or Costs.load()
    jobs: dict[Job, list[dict[str, int]]] = {}
    places: dict[Job, list[int]] = {}
    opened = [one if isinstance(one, MemoryCapture) else open_capture(one, mmap=True) for one in captures]
    for machine, capture in enumerate(opened):
        rows = checked(capture, settings)
        for number, row in enumerate(rows):
            job = (machine, tuple(int(row[name]) for name in MERGING))
            places.setdefault(job, []).append(number)
            jobs.setdefault(job, []).append({name: int(row[name]) for name in (*PACE, *MERGING)})
    out = np.zeros((len(captures), len(settings)), SWEEP_DTYPE)
    done = 0
    progress(0, out.size)
    sources = [str(one) if shared and not isinstance(one, MemoryCapture) else None for one in captures]
    with Spread(opened, sources, mark, costs) as spread:
        for job, found in spread.run(jobs, executor):
            out[job[0], places[job]] = found
            done += len(found)
            progress(done, out.size)
    return out


def checked(capture: MemoryCapture, settings: Settings) -> RecordArray:
    """The tunables of all settings, those of the machine filled in.

    Parameters
    ----------
    capture : MemoryCapture
    settings : sequence of mappings

    Returns
    -------
    structured array, shape (len(settings),)
        int64 fields `PACE` and `MERGING`.

    Raises
    ------
    ValueError, OSError
        As `sweep`.

    Models: what /sys/kernel/mm/ksm takes. Differs: nothing known.
    """
    host = Host(1024)  # what the model makes of a value is asked of the model
    here = {name: present_value(capture, name) for name in (*PACE, *MERGING)}
    rows = np.zeros(len(settings), [(name, np.int64) for name in (*PACE, *MERGING)])
    for number, setting in enumerate(settings):
        for name in setting:
            if name not in here:
                known = ", ".join((*PACE, *MERGING))
                raise ValueError(f"settings[{number}]: {shown(name)} can't be varied; these can: {known}")
        for name, default in here.items():
            try:
                setattr(host.ksm, name, setting.get(name, default))
            except (ValueError, TypeError) as error:
                raise type(error)(f"settings[{number}]: {error}") from None
            except OSError as error:
                where = f"settings[{number}]: {name} {shown(setting.get(name, default))}"
                raise OSError(error.errno, f"{where}: {error.strerror}") from None
            rows[name][number] = getattr(host.ksm, name)
    return rows


def front(rows: RecordArray) -> BoolArray:
    """Which settings no other one beats: none frees as much or more, at no more CPU and in no more time, and is better.

    Of settings that differ by less than 1 % in each of these (0.05 % of a CPU and a second count as nothing) one is left.

    Parameters
    ----------
    rows : ndarray of SWEEP_DTYPE, shape (n,)

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    good = np.stack([-rows["freed_bytes"].astype(float), rows["cpu_share"], rows["seconds_to_90"]], axis=1)
    keep = np.ones(len(good), bool)
    for i, row in enumerate(good):
        better = (good <= row).all(axis=1) & (good < row).any(axis=1)
        keep[i] = not better.any()
    # of settings that come to the same the first
    _, first = np.unique(good, axis=0, return_index=True)
    only: I64Array = np.zeros(len(good), np.int64)
    only[first] = 1
    some = np.flatnonzero(keep & (only > 0))
    kept = np.zeros(len(good), bool)
    kept[some[_spread_out(good[some])]] = True
    return kept


def _spread_out(good: NDArray[np.float64]) -> I64Array:
    """Of settings, the less the better in each column, some that are no more than a little worse than all the others."""
    slack = np.maximum(np.abs(good) * _SAME, _NOTHING)
    # [i, j]: i is as good as j, but for a little
    stands_for = (good[:, None, :] <= good[None, :, :] + slack[None, :, :]).all(axis=2)
    left = np.ones(len(good), bool)
    chosen = []
    for _ in range(len(good)):
        if not left.any():
            break
        # a setting that is left stands at least for itself
        best = int(np.argmax(np.where(left, (stands_for & left).sum(axis=1), -1)))
        chosen.append(best)
        left &= ~stands_for[best]
    return np.array(sorted(chosen), np.int64)


def advised(rows: RecordArray, present: int | None = None) -> int | None:
    """The setting to take, of those that free nearly as much as the best.

    Parameters
    ----------
    rows : ndarray of SWEEP_DTYPE, shape (n,)
    present : int, optional
        Index of the present setting, which stays if it takes no more than 5 % of a CPU and 5 minutes to 90 %.

    Returns
    -------
    int or None
        Index of the one of least CPU that is there (90 %) within a minute; else the quickest that takes no more than 5 % of a
        CPU; else the one of least CPU. None where none frees anything.

    Models: nothing of Linux. Differs: the limits are ours.
    """
    most = int(rows["freed_bytes"].max(initial=0))
    if most <= 0:
        return None
    cpu, seconds = rows["cpu_share"], rows["seconds_to_90"]
    good = rows["freed_bytes"] >= _ENOUGH * most
    cheap = good & (cpu <= MOST_CPU)
    if present is not None and cheap[present] and seconds[present] <= SOON:
        return present
    some = np.flatnonzero(cheap if cheap.any() else good)
    quick = some[seconds[some] <= _AT_ONCE]
    if len(quick) or not cheap.any():
        some = quick if cheap.any() else some
        return int(some[np.lexsort((seconds[some], cpu[some]))[0]])
    return int(some[np.lexsort((cpu[some], seconds[some]))[0]])


def of_all(rows: RecordArray) -> RecordArray:
    """Several machines together: pages and bytes of all, CPU and time of the one that takes the longest.

    Parameters
    ----------
    rows : ndarray of SWEEP_DTYPE, shape (machines, n)

    Returns
    -------
    ndarray of SWEEP_DTYPE, shape (n,)
        A tunable that the machines have at different values is -1.

    Models: see `sweep`. Differs: see `sweep`.
    """
    out = np.zeros(rows.shape[1], SWEEP_DTYPE)
    for name in FOUND:
        out[name] = rows[name].sum(axis=0)
    for name in TIMES:
        out[name] = rows[name].max(axis=0)
    for name in (*PACE, *MERGING):
        out[name] = np.where((rows[name] == rows[name][0]).all(axis=0), rows[name][0], -1)
    return out
