"""Live workloads: started, stopped and ended; what is told of them; the quickest held against the real ksmd."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ksmwalk.commands import kernel as commands
from ksmwalk.commands import verification_page as page
from ksmwalk.commands import workloads as command
from ksmwalk.kernel import knobs, workload_runs, workloads
from ksmwalk.kernel.workload_runs import Difference, Outcome
from ksmwalk.kernel.workload_yard import WorkloadFailed, Yard
from ksmwalk.ksm.costs import Costs
from ksmwalk.proc.frames import Kpf, folio_orders

REASON = "needs root" if os.geteuid() else None if knobs.KSM.is_dir() else "a kernel without KSM"
root = pytest.mark.root
needs_ksm = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SMALL = [workload.name for workload in workloads.WORKLOADS if workload.small]
NAMES = [workload.name for workload in workloads.WORKLOADS]


def parsed(*line):
    parser = argparse.ArgumentParser()
    commands.add_parsers(parser.add_subparsers())
    return parser.parse_args([str(word) for word in line])


def run(*line):
    args = parsed(*line)
    return args.run(args)


def outcome(name, status="agrees", **more):
    return Outcome(workloads.find([name])[0], status, **more)


def gone(pids):
    """A zombie has no memory any more, and is for its new parent to bury."""
    return not any(Path(f"/proc/{pid}/exe").is_symlink() and os.path.exists(f"/proc/{pid}/exe") for pid in pids)


# ---------------------------------------------------------------- the list and the command


def test_there_are_workloads_of_at_least_sixteen_kinds_and_names_are_names():
    assert len(NAMES) >= 16 and len(set(NAMES)) == len(NAMES) and all(name.isascii() for name in NAMES)
    assert sum(workload.static for workload in workloads.WORKLOADS) >= 16
    assert {"locked", "swapped", "collapsed"} <= set(NAMES)


def test_an_unknown_workload_is_named_with_those_there_are(capsys):
    assert run("verify", "--workloads", "zeros", "nothing\x1b[31m") == 2
    said = capsys.readouterr().err
    assert "nothing" in said and "fork-and-twin" in said and "\x1b" not in said


@pytest.mark.parametrize("more", [["x.json"], ["--random", "3"]])
def test_workloads_go_alone(more, capsys):
    assert run("verify", *more, "--workloads", "zeros") == 2
    assert "--workloads goes alone" in capsys.readouterr().err


# ---------------------------------------------------------------- what is told


def test_the_page_gets_a_section_of_workloads_that_is_replaced_and_kept(tmp_path):
    path = tmp_path / "docs" / "verification.md"
    differing = outcome("zeros", "differs", differences=[Difference("pages_shared", 71, 72)], model={"freed_bytes": 1 << 20},
                        kernel={"freed_bytes": 2 << 20, "full_scans": 4}, beside={"mem_free_bytes": -(1 << 20)})
    page.write_workloads([differing, outcome("redis", "skipped", reason="redis-server is not installed")], "k1", "first", path)
    text = path.read_text()
    assert text.endswith(page.beyond()) and "`first` on k1" in text
    assert "| zeros | three quarters zeros" in text and "| 1.00, 2.00 | -1.0 | 4 |" in text
    assert "- `zeros`: pages_shared: 71/72" in text and "skipped: redis-server is not installed" in text
    before, _, after = page._around_workloads(text)
    path.write_text(before + "\nA line.\n" + page.workloads_section([differing], "k1", "first") + after)
    page.write_workloads([outcome("pairs")], "k2", "second", path)
    text = path.read_text()
    assert text.count("## Live workloads") == 1 and "first" not in text and "A line." in text
    assert text.endswith(page.beyond()) and text.count(page.beyond()) == 1


def test_the_page_says_how_well_the_kernel_repeats_its_own_times(tmp_path):
    path = tmp_path / "verification.md"
    times = [{"model": 1.1, "kernel": 1.0, "kernel_runs": [0.9, 1.0, 1.3]}, {"model": 2.5, "kernel": 1.0, "kernel_runs": [1.0] * 3}]
    page.write_workloads([outcome("pairs", beside={"cpu_seconds": one}) for one in times], "k", "c", path)
    said = "is 1.80 times that of the kernel in the middle, and within 20% of it for 1 of 2 workloads; the kernel's own runs are "
    assert said + "within 20% of one another in 4 of 6 pairs." in path.read_text()


@pytest.mark.parametrize("worse", [0, 2])
def test_every_run_must_agree_and_the_median_time_counts(worse, monkeypatch):
    seconds = iter([3.0, 1.0, 2.0])

    def once(one, predict):
        spent = next(seconds)
        one.beside["cpu_seconds"] = {"model": 2.0}
        one.differences = [Difference("pages_shared", 1, 2)] if spent == worse else []
        return spent

    monkeypatch.setattr(workload_runs, "_run_once", once)
    found = workload_runs.run(workloads.find(["pairs"])[0], lambda *_: {})
    assert found.status == ("differs" if worse else "agrees")
    assert found.beside["cpu_seconds"] == {"model": 2.0, "kernel": 2.0, "kernel_runs": [3.0, 1.0, 2.0]}


def test_the_page_of_scenarios_keeps_the_section_of_workloads(tmp_path):
    from ksmwalk.kernel.verify import Results

    path = tmp_path / "verification.md"
    page.write(Results("k", []), "scenarios", path)
    assert "Live workloads" not in path.read_text()
    page.write_workloads([outcome("pairs")], "k", "of workloads", path)
    page.write(Results("k", []), "scenarios again", path)
    text = path.read_text()
    assert "scenarios again" in text and "of workloads" in text and text.count("Live workloads") == 1
    assert text.endswith(page.beyond()) and text.count("Modelled but not verified here") == 1


def test_the_last_line_counts_each_status():
    made = [outcome("zeros"), outcome("pairs", "differs"), outcome("locked", "excused"), outcome("redis", "skipped")]
    assert command.last_line(made) == "1 of 4 workloads agree (1 differs, 1 excused, 1 skipped)"
    assert command.last_line(made[:1]) == "1 of 1 workloads agree"


# ---------------------------------------------------------------- processes


@root
@needs_ksm
def test_processes_stand_still_and_are_gone_afterwards_with_their_workers():
    with Yard() as yard:
        child = yard.child(merge_any=True)
        address = yard.area(child, 64, mark=False)
        child.do(f"put({address}, range(0, 64 * P, P), range(1, 65))")
        yard.fork(child, f"put({address}, range(0, 8 * P, P), range(101, 109))")
        yard.stop()
        pids, directory = list(yard.pids), yard.directory
        assert len(pids) == 2
        for pid in pids:
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
            assert "ksm_merge_any: yes" in Path(f"/proc/{pid}/ksm_stat").read_text()
        both, first = workload_runs.frames(pids), workload_runs.frames(pids[:1])
        # what the worker has of its own: what it stored to, and a little of Python's
        assert first + 8 <= both < first + 1500
        assert both < first + workload_runs.frames(pids[1:])
    assert gone(pids) and not directory.exists()


def records(path, flags):
    """A file of records like kpageflags, the first at number 512."""
    path.write_bytes(np.concatenate((np.zeros(512, np.uint64), np.asarray(flags, np.uint64))).tobytes())
    return os.open(path, os.O_RDONLY)


def test_the_size_of_a_folio_is_read_of_all_its_frames(tmp_path):
    head, tail = Kpf.COMPOUND_HEAD | Kpf.ANON, Kpf.COMPOUND_TAIL | Kpf.ANON
    small = [Kpf.ANON] * 16 + [head, *[tail] * 15] + [head, tail] * 8 + [Kpf.ANON] * (512 - 48)
    fd = records(tmp_path / "flags", [*small, head, *[tail] * 511])
    try:
        orders = folio_orders(fd, np.array([512, 512 + 17, 512 + 16, 512 + 31, 512 + 33, 512 + 48, 1024, 1500, 1535]))
    finally:
        os.close(fd)
    assert orders.tolist() == [0, 4, 4, 4, 1, 0, 9, 9, 9]


@root
@needs_ksm
def test_a_program_that_fails_is_named_with_what_it_said():
    with pytest.raises(WorkloadFailed, match="No module named 'nothing_of_the_kind'"), Yard() as yard:
        yard.program("modules", "nothing_of_the_kind")


@root
@needs_ksm
def test_huge_pages_for_everybody_are_put_back(free):
    path = knobs.THP / "enabled"
    if not path.exists():
        pytest.skip("a kernel without huge pages")
    before = path.read_text()
    with knobs.taken():
        with pytest.raises(ZeroDivisionError), knobs.changed(path, "always"):
            assert "[always]" in path.read_text()
            raise ZeroDivisionError
        assert path.read_text() == before
        with pytest.raises(ValueError):
            knobs.changed(Path("/proc/sys/vm/swappiness"), "1").__enter__()
        with pytest.raises(knobs.KernelUnavailable, match="refuses"), knobs.changed(path, "nonsense"):
            pass


# ---------------------------------------------------------------- against the real ksmd


@root
@needs_ksm
def test_a_wrong_estimate_is_told_field_by_field(free, capsys):
    def wrong(pids, samples, seconds):
        values = {"pages_shared": 4000, "pages_sharing": 8001, "pages_unshared": 0, "pages_volatile": 0, "ksm_zero_pages": 0}
        values |= {"stable_node_chains": 0, "stable_node_dups": 0, "general_profit": 8000 * 4096 - 12000 * 64}
        values |= {"rmap_items": 12000, "full_scans": 6, "freed_more_bytes": 4000 * 4096}
        rows = [{"pid": pid, "ksm_rmap_items": 4000, "ksm_merging_pages": 4000, "ksm_zero_pages": 0} for pid in pids]
        return {"expected": values, "by_process": rows}

    before = knobs.saved()
    code = command.run_workloads(parsed("verify", "--json", "--workloads", "fork-and-twin"), wrong)
    said = capsys.readouterr()
    told = json.loads(said.out)["workloads"][0]
    assert code == 1 and told["status"] == "differs" and "pages_sharing: 8001/8000" in said.err
    assert told["differences"] == [{"field": "pages_sharing", "model": 8001, "kernel": 8000}]
    assert knobs.saved() == before


@root
@needs_ksm
def test_the_estimate_of_small_workloads_equals_the_kernel(free, capsys):
    pytest.importorskip("ksmwalk.estimates.estimate")
    code = run("verify", "--workloads", *SMALL)
    said = capsys.readouterr().out
    assert (code, said.splitlines()[-1]) == (0, f"{len(SMALL)} of {len(SMALL)} workloads agree"), said


def test_the_estimates_take_the_costs_that_are_named(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(command, "unusable", lambda: "")
    monkeypatch.setattr(command, "predicted", lambda pids, samples, seconds, costs: seen.append(costs))

    def run_all(chosen, predict):
        predict([1], 1, 0.0)
        yield outcome("pairs")

    monkeypatch.setattr(workload_runs, "run_all", run_all)
    costs = dataclasses.replace(Costs(), scan_ns=4321.0)
    costs.save(tmp_path / "costs.json")
    assert run("verify", "--workloads", "pairs", "--costs", tmp_path / "costs.json") == 0
    assert seen == [costs]
    assert run("verify", "--workloads", "pairs", "--costs", tmp_path / "none.json") == 2
    assert "none.json" in capsys.readouterr().err
