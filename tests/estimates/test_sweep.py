"""Many settings over one memory: the same rows from every executor, whatever becomes of its workers."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from servers import COSTS, P, memory

from ksmwalk.estimates import spread
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.sweep import SWEEP_DTYPE, advised, default_settings, front, grid, of_all, sweep, sweep_each
from ksmwalk.sources.captures import BadCapture, save_capture
from ksmwalk.sources.contents import MemoryCapture

SPAWN = multiprocessing.get_context("spawn")
# 200: 40 runs of the model, each at five paces
SETTINGS = grid(
    smart_scan=[0, 1], use_zero_pages=[0, 1], max_page_sharing=[2, 3, 5, 8, 16, 32, 64, 128, 256, 512],
    pages_to_scan=[10, 100, 1000, 10_000, 100_000],
)  # fmt: skip
FEW = grid(use_zero_pages=[0, 1], max_page_sharing=[2, 8, 256], pages_to_scan=[100, 1000])


def servers(scale=1):
    return memory(*((name, 120 * scale, 40 * scale, 30 * scale) for name in ("web", "web", "db")), marked=True)


@pytest.fixture(scope="module")
def what():
    return servers()


@pytest.fixture(scope="module")
def wanted(what):
    """Setting by setting, by `estimate` alone."""
    return sweep(what, SETTINGS, executor=ThreadPoolExecutor(1), costs=COSTS)


def same(one, other):
    return one.dtype == other.dtype == SWEEP_DTYPE and one.tobytes() == other.tobytes()


def test_a_row_is_what_estimate_says_of_its_setting(what, wanted):
    for number in range(0, len(SETTINGS), 23):
        one = estimate(what, knobs=SETTINGS[number], costs=COSTS)
        for name in ("freed_bytes", "pages_shared", "pages_sharing", "ksm_zero_pages", "stable_node_chains", "full_scans"):
            assert wanted[name][number] == one.expected.counters[name]
        for name in ("cpu_seconds", "seconds", "seconds_to_90", "rmap_items_bytes"):
            assert wanted[name][number] == one.cost[name]
        assert {name: int(wanted[name][number]) for name in SETTINGS[number]} == SETTINGS[number]
    # the settings do make a difference
    assert len(np.unique(wanted["freed_bytes"])) > 5 and len(np.unique(wanted["cpu_share"])) > 15


def test_threads_and_processes_give_the_same_array_for_200_settings(what, wanted):
    assert len(SETTINGS) == 200
    assert same(sweep(what, SETTINGS, costs=COSTS), wanted)
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        assert same(sweep(what, SETTINGS, executor=pool, costs=COSTS), wanted)


def test_no_capture_is_pickled_for_a_process(what, monkeypatch):
    sent = []

    class Counted(ProcessPoolExecutor):
        def submit(self, fn, *args, **kwargs):
            sent.append(len(pickle.dumps((fn, args))))
            return super().submit(fn, *args, **kwargs)

    with Counted(1, mp_context=SPAWN) as pool:
        sweep(what, FEW, executor=pool, costs=COSTS)
    assert len(sent) == 6 and max(sent) < 4096 < len(pickle.dumps(what))


def test_what_was_kept_for_processes_is_gone_afterwards_and_its_owners_alone_before(what, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def told(done, total):
        seen.extend((path.name, path.stat().st_mode & 0o77) for path in tmp_path.iterdir())

    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        sweep(what, FEW, executor=pool, costs=COSTS, progress=told)
    assert seen and {mode for _, mode in seen} == {0}
    assert list(tmp_path.iterdir()) == []


def test_memory_that_cannot_be_kept_is_sent_instead(what):
    odd = dataclasses.replace(what, machine={**what.machine, "mem_total": -1})
    with pytest.raises(ValueError):
        save_capture(odd, "/nowhere/at/all")
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        assert same(sweep(odd, FEW, executor=pool, costs=COSTS), sweep(what, FEW, costs=COSTS))


def test_a_killed_process_loses_nothing(what):
    """Its pool is broken; a callable makes another, of one that was given the rest is done here."""
    large = servers(20)
    rows = sweep(large, FEW, costs=COSTS)
    made = []

    def pool():
        made.append(ProcessPoolExecutor(2, mp_context=SPAWN))
        return made[-1]

    assert same(sweep(large, FEW, executor=pool, costs=COSTS, progress=_killer(made, lambda pool: pool._processes)), rows)
    assert len(made) == 2
    with ProcessPoolExecutor(2, mp_context=SPAWN) as given:
        assert same(sweep(large, FEW, executor=given, costs=COSTS, progress=_killer([given], lambda one: one._processes)), rows)
        with pytest.raises(BrokenProcessPool):
            given.submit(int)


def _killer(pools, pids):
    """Progress that kills a worker once, when the first job is done: others are at work then."""
    done_for = []

    def told(done, total):
        if 0 < done < total and not done_for:
            done_for.append(pid := next(iter(pids(pools[0]))))
            os.kill(pid, signal.SIGKILL)
    return told


class Dies(Executor):
    """Does `good` jobs, then all its workers are dead."""

    def __init__(self, good):
        self.good = good

    def submit(self, fn, *args, **kwargs):
        future = Future()
        self.good -= 1
        if self.good < 0:
            future.set_exception(BrokenProcessPool("dead"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_what_dead_workers_left_is_done_again_and_nothing_twice(what, monkeypatch):
    rows, runs = sweep(what, FEW, costs=COSTS), []
    real = spread.of_group
    monkeypatch.setattr(spread, "of_group", lambda *args: runs.append(args[1][0]) or real(*args))
    made = []
    assert same(sweep(what, FEW, executor=lambda: made.append(1) or Dies(2), costs=COSTS), rows)
    assert len(runs) == 6 and len(made) == 3
    runs.clear()
    # no worker lives long enough: in the end it is done here
    assert same(sweep(what, FEW, executor=lambda: Dies(0), costs=COSTS), rows)
    assert same(sweep(what, FEW, executor=Dies(1), costs=COSTS), rows)


def test_an_error_of_a_job_is_not_taken_for_a_dead_worker(what, monkeypatch):
    monkeypatch.setattr(spread, "of_group", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(what, FEW, costs=COSTS)


def test_progress_counts_settings_up_to_all_of_them(what):
    seen = []
    sweep(what, FEW, costs=COSTS, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 12) and seen[-1] == (12, 12) and [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---------------------------------------------------------- captures in directories, fleets


@pytest.fixture
def kept(what, tmp_path):
    save_capture(what, tmp_path / "one")
    save_capture(servers(2), tmp_path / "two")
    return [tmp_path / "one", tmp_path / "two"]


@pytest.mark.parametrize("shared", [False, True])
def test_captures_of_a_fleet_are_swept_each_for_itself(what, kept, shared):
    rows = sweep_each(kept, FEW, costs=COSTS, shared=shared)
    assert rows.shape == (2, 12)
    assert same(rows[0], sweep(what, FEW, costs=COSTS)) and same(rows[1], sweep(servers(2), FEW, costs=COSTS))
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        assert sweep_each(kept, FEW, executor=pool, costs=COSTS, shared=shared).tobytes() == rows.tobytes()


def test_a_worker_that_finds_another_capture_under_the_path_refuses_it(kept):
    one = spread._kept(str(kept[0]))
    os.rename(kept[0], kept[0].with_name("old"))
    os.rename(kept[1], kept[0])
    spread._opened.cache_clear()
    with pytest.raises(ValueError, match="another capture there"):
        spread.of_group(one, [], "auto", COSTS)


def test_a_directory_without_a_capture_is_refused(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(BadCapture, match="meta.json"):
        sweep(tmp_path, FEW, costs=COSTS)


def test_together_machines_free_what_each_does_and_the_slowest_decides(kept):
    rows = sweep_each(kept, FEW, costs=COSTS)
    rows["smart_scan"][1] = 0
    all_ = of_all(rows)
    assert (all_["freed_bytes"] == rows["freed_bytes"].sum(axis=0)).all()
    assert (all_["seconds_to_90"] == rows["seconds_to_90"].max(axis=0)).all()
    assert (all_["pages_to_scan"] == rows["pages_to_scan"][0]).all() and (all_["smart_scan"] == -1).all()


# ---------------------------------------------------------- settings


def test_a_tunable_that_cannot_be_varied_or_a_value_the_kernel_refuses_is_named_with_its_setting(what):
    for bad, said in (
        ({"run": 1}, r"settings\[1\]: 'run' can't be varied; these can: pages_to_scan"),
        ({"max_page_sharing": 1}, r"settings\[1\]: max_page_sharing 1"),
        ({"pages_to_scan": -1}, r"settings\[1\]"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            sweep(what, [{}, bad], costs=COSTS)


def test_what_a_setting_does_not_name_is_the_machines():
    what = servers()
    what.machine["ksm"] |= {"pages_to_scan": "777", "max_page_sharing": "4"}
    row = sweep(what, [{"sleep_millisecs": 5}], costs=COSTS)[0]
    assert (row["pages_to_scan"], row["sleep_millisecs"], row["max_page_sharing"]) == (777, 5, 4)
    assert len(default_settings()) == 192


def rows_of(*rows):
    out = np.zeros(len(rows), SWEEP_DTYPE)
    out["freed_bytes"], out["cpu_share"], out["seconds_to_90"] = zip(*rows, strict=True)
    return out


def test_the_front_leaves_out_what_another_beats_and_all_but_one_of_equals():
    rows = rows_of((100, 0.1, 10), (100, 0.2, 5), (100, 0.2, 20), (90, 0.1, 10), (50, 0.01, 10), (100, 0.1, 10), (105, 0.9, 99))
    assert front(rows).tolist() == [True, True, False, False, True, False, True]


def test_of_settings_that_come_to_nearly_the_same_the_front_has_one():
    near = [(8 << 20) + 4096 * n for n in range(10)]
    others = (16 << 20, 0.5, 10), (8 << 20, 0.01, 99)
    rows = rows_of(*((freed, 0.02 + 0.00001 * n, 10 + 0.1 * n) for n, freed in enumerate(near)), *others)
    found = front(rows)
    assert found[:10].sum() == 1 and found[10:].all()


@pytest.mark.parametrize(
    "rows, present, chosen",
    [
        ([(100, 0.04, 200), (100, 0.01, 50)], 0, 0),  # good enough as it is
        ([(100, 0.06, 200), (100, 0.02, 50), (100, 0.01, 59)], 0, 2),  # the cheapest of those within a minute
        ([(100, 0.04, 900), (100, 0.02, 400), (100, 0.01, 500)], 0, 1),  # none is: the quickest
        ([(90, 0.01, 10), (100, 0.03, 10)], 0, 1),  # frees too little
        ([(100, 0.5, 1), (100, 0.2, 10)], 0, 1),  # each takes too much: the least
        ([(0, 0.0, 0), (0, 0.0, 0)], 0, None),
    ],
)
def test_the_advised_setting(rows, present, chosen):
    assert advised(rows_of(*rows), present) == chosen


# ---------------------------------------------------------- Dask


@contextlib.contextmanager
def cluster(workers=2):
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, protocol="tcp://", dashboard_address=None,
                silence_logs=60,
            ) as local,
            distributed.Client(local, set_as_default=False) as client,
        ):  # fmt: skip
            yield client


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_over_tcp_gives_the_same_array_for_200_settings(what, wanted, kept):
    with cluster() as client:
        assert client.scheduler.address.startswith("tcp://")
        assert all(address.startswith("tcp://") for address in client.scheduler_info()["workers"])
        assert same(sweep(what, SETTINGS, executor=client.get_executor(), costs=COSTS), wanted)
        fleet = sweep_each(kept, FEW, costs=COSTS)
        for shared in (False, True):
            assert sweep_each(kept, FEW, executor=client.get_executor(), costs=COSTS, shared=shared).tobytes() == fleet.tobytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [False, True])
def test_killed_dask_workers_lose_nothing(every):
    """One of two; or both, and with them all copies of the memory."""
    large = servers(20)
    rows = sweep(large, FEW, costs=COSTS)
    killed = []
    with cluster() as client:
        pids = list(client.run(os.getpid).values())

        def told(done, total):
            if 0 < done < total and not killed:
                killed.extend(pids if every else pids[:1])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        assert same(sweep(large, FEW, executor=client.get_executor(), costs=COSTS, progress=told), rows)
        assert len(killed) == 1 + every


def test_captures_are_not_changed_by_a_sweep(what):
    before = pickle.dumps(what)
    sweep(what, FEW, costs=COSTS)
    assert pickle.dumps(what) == before and isinstance(what, MemoryCapture) and threading.active_count() < 50 and P == 4096
