"""The costs of ksmd's work: fitted to scans that are made up, and measured with the real one."""

import dataclasses
import json
import os

import costload
import numpy as np
import pytest

from ksmwalk.commands import cli
from ksmwalk.kernel import calibrate, knobs
from ksmwalk.kernel.calibrate import Sample, fit
from ksmwalk.ksm.costs import FIELDS, WORK_DTYPE, Costs, ksmd_seconds

root = [
    pytest.mark.root,
    pytest.mark.skipif(bool(os.geteuid()) or not knobs.KSM.is_dir(), reason="needs root and a kernel with KSM"),
]


def made_up(costs, n=200, noise=0.0):
    rng = np.random.default_rng(1)
    work = np.zeros(n, WORK_DTYPE)
    for name in (name for name in WORK_DTYPE.names if name != "stable_pages"):
        # each kind of work alone in some scans, so that its cost shows
        work[name] = rng.integers(0, 1 << 17, n) * (rng.random(n) < 0.3)
    work["batches"] = rng.integers(1, 1000, n)
    work["prefix"] = rng.integers(0, 4096, n)
    work["stable_pages"] = work["stable_nodes"] * np.random.default_rng(2).integers(1, 4, n)
    work["visits"] += work["merged"]
    work["huge"] = np.minimum(work["huge"], work["visits"])
    seconds = ksmd_seconds(work, costs) * (1 + noise * rng.standard_normal(n))
    return [Sample(str(number), work[number], float(seconds[number])) for number in range(n)]


def test_costs_that_made_the_scans_are_found_again():
    costs = dataclasses.replace(Costs(), near_levels=11.0, merged_ns=30.0, item_ns=50.0, table_ns=40.0)
    found = fit(made_up(costs))
    assert found.near_levels == 11.0 and found.residual < 1e-3
    for name in FIELDS:
        assert getattr(found, name) == pytest.approx(getattr(costs, name), rel=0.02, abs=1), name


def test_no_cost_is_negative_however_the_scans_scatter():
    found = fit(made_up(Costs(), n=40, noise=0.4))
    assert min(getattr(found, name) for name in FIELDS) >= 0 and found.residual > 0.1


def test_trees_that_hardly_outgrow_the_caches_give_no_wild_cost(monkeypatch):
    """A sliver of a level beyond the caches is no measure of what such a level costs."""
    costs = dataclasses.replace(Costs(), stable_far_ns=0.0, unstable_far_ns=0.0, cold_ns=0.0)
    samples = made_up(costs, n=80)
    for sample in samples:
        for name in ("stable_nodes", "unstable_items"):
            sample.work[name] = min(int(sample.work[name]), 1 << 13)
        sample.work["stable_pages"] = sample.work["stable_nodes"]
        sample.work["batches"] = sample.work["visits"]  # so that nothing is cold
    samples = [dataclasses.replace(sample, seconds=float(ksmd_seconds(sample.work, costs)[0])) for sample in samples]
    # one scan that was disturbed is the only one with 15 levels, one of the places tried for where the caches end
    third = [sample for sample in samples if sample.work["stable_searches"] > 1000][2]
    third.work["stable_nodes"] = third.work["stable_pages"] = 1 << 15
    samples[samples.index(third)] = dataclasses.replace(third, seconds=1.5 * third.seconds)
    assert fit(samples).stable_far_ns < 20_000
    monkeypatch.setattr(calibrate, "_SLOWEST_LEVEL_NS", 1e30)
    assert fit(samples).stable_far_ns > 20_000


def test_too_little_memory_is_said(monkeypatch):
    with pytest.raises(knobs.KernelUnavailable, match="100 MiB of memory to measure with, 512 are needed"):
        calibrate.stories(100 << 20)
    assert len(calibrate.stories(600 << 20)) == len(calibrate.stories(4 << 30)) - 1


def test_who_is_not_root_is_told_so_in_a_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["calibrate", "--output", str(tmp_path / "costs.json")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and ("root is needed" in said.err or "without KSM" in said.err) and not said.out
    assert not os.listdir(tmp_path)


def test_a_place_that_can_not_be_written_is_refused_before_anything_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "measure", lambda *args: pytest.fail("measured"))
    assert cli.main(["calibrate", "--output", str(tmp_path / "none" / "costs.json")]) == 2
    assert cli.main(["calibrate", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "No such file or directory" in said and "Is a directory" in said


class TestReal:
    """With the real ksmd."""

    pytestmark = [*root, pytest.mark.usefixtures("free")]

    def test_ksm_in_use_is_refused_in_a_line(self, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(knobs, "why_not", lambda: "KSM is in use: run is 1")
        assert cli.main(["calibrate", "--output", str(tmp_path / "costs.json")]) == 2
        # somebody else may have been waited for before
        assert capsys.readouterr().err.splitlines()[-1] == "ksmwalk calibrate: KSM is in use: run is 1"
        assert not os.listdir(tmp_path)

    def test_every_kind_of_story_agrees_with_the_model_and_is_put_back(self, capsys, monkeypatch, tmp_path):
        few = [
            lambda: calibrate.unique(1000),
            lambda: calibrate.alike(500),
            lambda: calibrate.pairs(1000),
            lambda: calibrate.changing(500),
            lambda: calibrate.empty(1000),
            lambda: calibrate.sparse(100, 1 << 16),
            lambda: calibrate.in_huge_pages(1024),
            lambda: calibrate.splitting(8),
            lambda: calibrate.batches(320, 100),
        ]
        monkeypatch.setattr(calibrate, "stories", lambda: few)
        with knobs.lock(wait=300):
            # while nobody else has it changed
            before = knobs.saved()
        path = tmp_path / "costs.json"
        assert cli.main(["calibrate", "--output", str(path), "--json"]) == 0
        with knobs.lock(wait=300):
            assert knobs.saved() == before
        said = json.loads(capsys.readouterr().out)
        assert Costs.load(path) == Costs(**said["costs"]) and said["costs"]["source"] == "measured here"
        assert len(said["scans"]) == 47 and all(scan["seconds"] > 0 for scan in said["scans"])
        splits = [scan["work"]["splits"] for scan in said["scans"] if "splitting" in scan["name"]]
        assert splits == [8]
        assert cli.main(["calibrate", "--output", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "merging two pages into a new KSM page" in shown and str(path) in shown and "\x1b" not in shown

    def test_a_disturbed_measurement_is_given_up(self):
        with knobs.taken(lambda text: None, wait=60), calibrate.Bench("a story") as bench:
            twin = bench.process(calibrate.Area(np.arange(1, 11, dtype=np.uint64)))
            # all alike, of which the model is not told
            twin.child.do(f"put({twin.places[0][0]}, range(0, 10 * P, P), [5] * 10)")
            bench.scan("first scan")
            with pytest.raises(knobs.KernelUnavailable, match="a story, second: disturbed: pages_sh"):
                bench.scan("second")

    def test_predictions_are_of_the_right_order(self):
        """Not a test of time: more work is predicted for what takes ksmd longer, by far."""
        light = costload.Workload("few pages", costload.EMPTY, 2000)
        middle = costload.Workload("random", costload.RANDOM, 6000, 2)
        heavy = costload.Workload("random, many", costload.RANDOM, 20000, 3)
        seen = [costload.look_at(one, Costs()) for one in (light, middle, heavy)]
        for one in seen:
            assert not one.differs, one.workload.name
            assert (one.predicted > 0).all() and (one.measured > 0).all()
        predicted, measured = ([float(getattr(one, name).sum()) for one in seen] for name in ("predicted", "measured"))
        assert predicted == sorted(predicted) and measured == sorted(measured)
