"""Tunables against each other: many settings over one capture, on any executor."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np

from ..gate import shown
from ..ksm import sysfs
from ..signatures import BoolArray, I64Array, RecordArray
from ..sources.contents import MemoryCapture
from .costs import Costs
from .estimate import cost_of, estimate
from .steady import WATCHED

#: tunables that decide how fast ksmd works, and not what it merges
PACE = ("pages_to_scan", "sleep_millisecs")
#: the others that a setting may have
MERGING = (
    "smart_scan", "use_zero_pages", "max_page_sharing", "merge_across_nodes", "stable_node_chains_prune_millisecs",
)  # fmt: skip
_FOUND = ("freed_bytes", "general_profit", *WATCHED, "full_scans", "rmap_items_bytes", "nodes_bytes", "huge_pages_split")
_TIMES = ("cpu_seconds", "seconds", "seconds_per_scan", "cpu_share", "seconds_to_50", "seconds_to_90", "seconds_to_99")
#: a row a setting: its tunables; what comes of it (bytes, pages, as `Estimate`); CPU and time (seconds), and the share of
#: a CPU that ksmd goes on taking once nothing changes any more
SWEEP_DTYPE = np.dtype(
    [(name, np.int64) for name in (*PACE, *MERGING, *_FOUND)] + [(name, np.float64) for name in _TIMES]
)
#: how often a pool whose worker died is made anew
_AGAIN = 3

Settings = Sequence[Mapping[str, int]]
Pool = Executor | Callable[[], Executor]


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
    capture: MemoryCapture,
    settings: Settings,
    *,
    executor: Pool | None = None,
    mark: str = "auto",
    costs: Costs | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> RecordArray:
    """Estimate what comes of each of many settings.

    Parameters
    ----------
    capture : MemoryCapture
    settings : sequence of mappings
        Tunables of each by name; what one does not name is the captured machine's.
    executor : concurrent.futures.Executor, or a callable that makes one
        Where the work is done: threads of this process by default (the model lets go of Python's lock), processes, a Dask
        cluster (`dask.distributed.Client.get_executor()`). Given as a callable it is made anew when a worker dies; of one
        given as it is, what a dead worker has left is done here.
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

    Models: see `estimate`. Differs: see `estimate`; pages that change are taken to stand still.
    """
    rows = _checked(capture, settings)
    costs = costs or Costs.load()
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(tuple(int(row[name]) for name in MERGING), []).append(number)
    jobs = {key: [{name: int(rows[name][i]) for name in (*PACE, *MERGING)} for i in numbers] for key, numbers in groups.items()}
    out = np.zeros(len(settings), SWEEP_DTYPE)
    done = 0
    progress(0, len(settings))
    for key, found in _everywhere(capture, jobs, mark, costs, executor):
        out[groups[key]] = found
        done += len(found)
        progress(done, len(settings))
    return out


def _checked(capture: MemoryCapture, settings: Settings) -> np.ndarray:
    """The tunables of all settings, those of the machine filled in."""
    # what the model makes of a value is asked of the model
    from ..host import Host

    host = Host(1024)
    here = {**{name: sysfs.KNOBS[name].default for name in (*PACE, *MERGING)}}
    for name, text in capture.machine.get("ksm", {}).items():
        if name in here:
            here[name] = sysfs.KNOBS[name].read(text)
    rows = np.zeros(len(settings), [(name, np.int64) for name in (*PACE, *MERGING)])
    for number, setting in enumerate(settings):
        for name in setting:
            if name not in here:
                known = ", ".join((*PACE, *MERGING))
                raise ValueError(f"settings[{number}]: {shown(name)} can't be varied; these can: {known}")
        for name, default in here.items():
            setattr(host.ksm, name, setting.get(name, default))
            rows[name][number] = getattr(host.ksm, name)
    return rows


def _of_group(capture: MemoryCapture, settings: list[dict[str, int]], mark: str, costs: Costs) -> np.ndarray:
    """Settings that merge the same and differ in pace only: one run of the model, and what it costs at each pace."""
    one = estimate(capture, mark=mark, knobs=settings[0], costs=costs, changing=False)
    out = np.zeros(len(settings), SWEEP_DTYPE)
    for row, setting in zip(out, settings, strict=True):
        cost = cost_of(one.expected, costs, setting)
        cost["cpu_share"] = cost["cpu_seconds_per_scan"] / cost["seconds_per_scan"] if cost["seconds_per_scan"] else 0.0
        for name in (*PACE, *MERGING):
            row[name] = setting[name]
        for name in (*_FOUND, *_TIMES):
            row[name] = one.expected.counters.get(name, cost.get(name, 0))
    return out


def _everywhere(
    capture: MemoryCapture, jobs: Mapping[tuple[int, ...], list[dict[str, int]]], mark: str, costs: Costs, executor: Pool | None
) -> Iterable[tuple[tuple[int, ...], np.ndarray]]:
    """Run all jobs, those of dead workers again."""
    left = dict(jobs)
    for attempt in range(_AGAIN + 1):
        last = attempt == _AGAIN or (executor is not None and not callable(executor) and attempt > 0)
        pool, ours = _pool(None if last else executor)
        try:
            for key, found in _on(pool, capture, left, mark, costs):
                del left[key]
                yield key, found
            return
        except BrokenExecutor:
            if last:
                raise
        finally:
            if ours:
                pool.shutdown(cancel_futures=True)


def _pool(executor: Pool | None) -> tuple[Executor, bool]:
    """An executor, and whether it is ours to end."""
    if executor is None:
        return ThreadPoolExecutor(len(os.sched_getaffinity(0))), True
    if isinstance(executor, Executor):
        return executor, False
    return executor(), True


def _on(
    pool: Executor, capture: MemoryCapture, jobs: Mapping[tuple[int, ...], list[dict[str, int]]], mark: str, costs: Costs
) -> Iterable[tuple[tuple[int, ...], np.ndarray]]:
    what: Any = capture
    client = getattr(pool, "_client", None)
    if client is not None and hasattr(client, "scatter"):  # Dask: the memory goes to each worker once
        what = client.scatter(capture, broadcast=True)
    futures: dict[Future[np.ndarray], tuple[int, ...]] = {
        pool.submit(_of_group, what, settings, mark, costs): key for key, settings in jobs.items()
    }
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def front(rows: RecordArray) -> BoolArray:
    """Which settings no other one beats: none frees as much or more, at no more CPU and in no more time, and is better.

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
    return keep & (only > 0)
