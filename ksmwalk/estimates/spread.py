"""The work of a sweep on any `concurrent.futures` executor: memory goes to each worker once, dead workers lose nothing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..gate import shown
from ..ksm.costs import Costs
from ..signatures import RecordArray
from ..sources.captures import META, open_capture, save_capture
from ..sources.contents import MemoryCapture
from .estimate import cost_of, estimate
from .steady import WATCHED

#: tunables that decide how fast ksmd works, and not what it merges
PACE = ("pages_to_scan", "sleep_millisecs")
#: the others that a setting may have
MERGING = (
    "smart_scan", "use_zero_pages", "max_page_sharing", "merge_across_nodes", "stable_node_chains_prune_millisecs",
)  # fmt: skip
FOUND = ("freed_bytes", "general_profit", *WATCHED, "full_scans", "rmap_items_bytes", "nodes_bytes", "huge_pages_split")
TIMES = ("cpu_seconds", "seconds", "seconds_per_scan", "cpu_share", "seconds_to_50", "seconds_to_90", "seconds_to_99")
#: a row a setting: its tunables; what comes of it (bytes, pages, as `Estimate`); CPU and time (seconds), and the share of
#: a CPU that ksmd goes on taking once nothing changes any more
SWEEP_DTYPE = np.dtype(
    [(name, np.int64) for name in (*PACE, *MERGING, *FOUND)] + [(name, np.float64) for name in TIMES]
)
#: a machine's number, and its settings' values of `MERGING`: one run of the model
Job = tuple[int, tuple[int, ...]]
# How often what dead workers left is given to others before it is done here.
_AGAIN = 3
# Kept captures that a worker has open at once.
_OPEN = 4
# Seconds between two looks at whether what was sent is still there.
_LOOK = 1.0


@dataclass(frozen=True)
class Kept:
    """A capture in a directory, for a worker to open.

    Attributes
    ----------
    path : str
    digest : str
        Of its meta.json: the worker's directory of that name must hold the same capture.
    """

    path: str
    digest: str


def _kept(path: str) -> Kept:
    where = os.path.abspath(path)
    return Kept(where, hashlib.sha256(Path(where, META).read_bytes()).hexdigest())


@functools.lru_cache(maxsize=_OPEN)
def _opened(kept: Kept) -> MemoryCapture:
    if _kept(kept.path) != kept:
        raise ValueError(f"{shown(kept.path)}: a worker finds another capture there than the one that was asked about")
    return open_capture(kept.path, mmap=True)


def of_group(what: MemoryCapture | Kept, settings: list[dict[str, int]], mark: str, costs: Costs) -> RecordArray:
    """Settings that merge the same and differ in pace only: one run of the model, and what it costs at each pace.

    Parameters
    ----------
    what : MemoryCapture or Kept
    settings : list of dict
        All tunables of each.
    mark, costs
        As for `estimate`.

    Returns
    -------
    ndarray of SWEEP_DTYPE, shape (len(settings),)

    Models: see `estimate`. Differs: see `estimate`.
    """
    capture = _opened(what) if isinstance(what, Kept) else what
    one = estimate(capture, mark=mark, knobs=settings[0], costs=costs, changing=False)
    out = np.zeros(len(settings), SWEEP_DTYPE)
    for row, setting in zip(out, settings, strict=True):
        cost = cost_of(one.expected, costs, setting)
        cost["cpu_share"] = cost["cpu_seconds_per_scan"] / cost["seconds_per_scan"] if cost["seconds_per_scan"] else 0.0
        for name in (*PACE, *MERGING):
            row[name] = setting[name]
        for name in (*FOUND, *TIMES):
            row[name] = one.expected.counters.get(name, cost.get(name, 0))
    return out


class Spread(contextlib.AbstractContextManager["Spread"]):
    """Memory of some machines and what is asked of it, to be spread over workers; a context, which clears up.

    Parameters
    ----------
    captures : sequence of MemoryCapture
    paths : sequence of (str or None)
        Where workers find each themselves.
    mark, costs
        As for `estimate`.

    Models: nothing of Linux. Differs: has no counterpart there.
    """

    def __init__(self, captures: Sequence[MemoryCapture], paths: Sequence[str | None], mark: str, costs: Costs):
        self.captures, self.mark, self.costs = captures, mark, costs
        self._kept = [None if path is None else _kept(path) for path in paths]
        self._folder: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, jobs: Mapping[Job, list[dict[str, int]]], executor: Executor | Any | None) -> Iterator[tuple[Job, RecordArray]]:
        """Do all jobs, those of dead workers again.

        Parameters
        ----------
        jobs : mapping
            The settings of each.
        executor : Executor, callable that makes one, or None
            As for `sweep`.

        Yields
        ------
        (job, ndarray of SWEEP_DTYPE)
            As they come.
        """
        left = dict(jobs)
        given = executor is not None and not callable(executor)
        for attempt in range(_AGAIN + 1):
            last = attempt == _AGAIN or (given and attempt > 0 and _client(executor) is None)
            pool, ours = _pool(None if last else executor)
            broken: BaseException | None = None
            try:
                for job, found in self._on(pool, left):
                    if isinstance(found, BaseException):
                        broken = found
                        continue
                    del left[job]
                    yield job, found
            finally:
                if ours:
                    _end(pool)
            if not left:
                return
            if last:
                raise broken or RuntimeError(f"{len(left)} jobs came to no end")

    def _on(
        self, pool: Executor, jobs: Mapping[Job, list[dict[str, int]]]
    ) -> Iterator[tuple[Job, RecordArray | BaseException]]:
        """What comes of the jobs; of those that workers died of, what was said then."""
        futures: dict[Future[RecordArray], Job] = {}
        lost: list[tuple[Job, BaseException]] = []
        what: dict[int, Any] = {}
        try:
            what = self._sent(pool, sorted({machine for machine, _ in jobs}))
            for job, settings in jobs.items():
                futures[pool.submit(of_group, what[job[0]], settings, self.mark, self.costs)] = job
        except BaseException as error:
            # to a cluster without workers nothing can be sent in time
            if not _of_dead_worker(error) and not (_client(pool) is not None and isinstance(error, TimeoutError)):
                raise
            given = set(futures.values())
            lost = [(job, error) for job in jobs if job not in given]
        try:
            for future in _as_they_come(futures, [some for some in what.values() if hasattr(some, "status")]):
                try:
                    found = future.result()
                except BaseException as error:
                    if not _of_dead_worker(error):
                        raise
                    lost.append((futures[future], error))
                else:
                    yield futures[future], found
        finally:
            for future in futures:
                future.cancel()
        yield from lost

    def _sent(self, pool: Executor, machines: Sequence[int]) -> dict[int, Any]:
        """What a job is given as its memory: nothing that is pickled for each job, where that can be."""
        client = _client(pool)
        what: dict[int, Any] = {}
        for machine in machines:
            kept = self._kept[machine]
            if kept is not None:
                what[machine] = kept
            elif client is not None:
                # one capture to all workers at once; of many each to those that come to it
                what[machine] = client.scatter(self.captures[machine], broadcast=len(machines) == 1, hash=False)
            elif isinstance(pool, ProcessPoolExecutor):
                what[machine] = self._kept_here(machine)
            else:
                what[machine] = self.captures[machine]
        return what

    def _kept_here(self, machine: int) -> MemoryCapture | Kept:
        """A capture put where processes of this machine map it."""
        capture = self.captures[machine]
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="ksmwalk-")
        path = os.path.join(self._folder, str(machine))
        try:
            save_capture(capture, path)
        except ValueError:
            return capture  # not all that can be estimated can be kept; it takes longer
        self._kept[machine] = kept = _kept(path)
        return kept


def _as_they_come(futures: Iterable[Future[RecordArray]], sent: Sequence[Any]) -> Iterator[Future[RecordArray]]:
    """Futures as they are done, up to the moment at which memory that was sent out has gone with all who had it: jobs that
    need it would wait for ever."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=_LOOK if sent else None, return_when=FIRST_COMPLETED)
        yield from done
        if not done and any(one.status in ("lost", "cancelled", "error") for one in sent):
            return


def _client(pool: Any) -> Any:
    """The Dask client behind an executor; None where it is another one."""
    client = getattr(pool, "_client", None)
    return client if client is not None and hasattr(client, "scatter") else None


def _end(pool: Executor) -> None:
    if _client(pool) is not None:
        pool.shutdown(wait=False)  # which cancels what is left; it knows of no cancel_futures
    else:
        pool.shutdown(cancel_futures=True)


def _of_dead_worker(error: BaseException) -> bool:
    """Whether this says that a worker went, and nothing of the job itself."""
    # Dask's own can't be named where it isn't installed
    gone = type(error).__module__.startswith("distributed.") and type(error).__name__ in (
        "KilledWorker", "FutureCancelledError", "FuturesCancelledError", "CommClosedError",
    )  # fmt: skip
    return gone or isinstance(error, BrokenExecutor | CancelledError)


def _pool(executor: Any) -> tuple[Executor, bool]:
    """An executor, and whether it is ours to end."""
    if executor is None:
        return ThreadPoolExecutor(len(os.sched_getaffinity(0))), True
    if callable(executor):
        return executor(), True
    return executor, False
