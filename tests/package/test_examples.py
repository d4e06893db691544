"""The examples about live memory: what they say of processes that hold the same bytes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ksmwalk.estimates.estimate import estimate
from ksmwalk.sources.captures import save_capture

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import sweep_tunables  # noqa: E402 - found through the line above
import would_ksm_help  # noqa: E402

SAME = 8 << 20
HOLDS_THE_SAME = f"""
import random, sys
weights, zeros = random.Random(1).randbytes({SAME}), bytearray(b"x") * (1 << 20)
zeros[:] = bytes(1 << 20)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def memory():
    command = [sys.executable, "-c", HOLDS_THE_SAME]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for worker in workers:
            worker.stdout.read(1)
        yield would_ksm_help.memory([str(worker.pid) for worker in workers], samples=1)
    finally:
        for worker in workers:
            worker.communicate()


def test_the_table_credits_each_process_with_its_half(memory):
    rows = would_ksm_help.table(estimate(memory, mark="all"))
    assert rows.dtype.names == tuple(would_ksm_help.COLUMNS)
    assert len(rows) == 2 and (rows["freed_bytes"] >= SAME // 2).all()
    assert (rows["freed_bytes"] < rows["anonymous_bytes"]).all()


def test_the_answer_comes_before_the_table(memory, tmp_path, capsys):
    # on a large machine so little would not be worth it
    save_capture(dataclasses.replace(memory, machine={**memory.machine, "mem_total": 1 << 30}), tmp_path / "kept")
    would_ksm_help.main([str(tmp_path / "kept")])
    answer, first, *_ = capsys.readouterr().out.splitlines()
    assert answer.startswith("worth it: ") and "(2)" in answer
    assert first.split()[0] in {str(one.pid) for one in memory.processes}


def test_of_settings_only_those_are_shown_that_none_beats(memory, tmp_path, capsys):
    rows = sweep_tunables.best(memory)
    assert 0 < len(rows) < len(sweep_tunables.SETTINGS)
    assert (np.diff(rows["freed_bytes"]) <= 0).all()
    every = sweep_tunables.sweep(memory, sweep_tunables.SETTINGS, mark="all")
    assert rows["freed_bytes"][0] >= 0.99 * every["freed_bytes"].max()  # of those that come to the same one is shown
    save_capture(memory, tmp_path / "kept")
    sweep_tunables.main([str(tmp_path / "kept")])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_processes_find_what_threads_find(memory):
    assert (sweep_tunables.best(memory, workers=1) == sweep_tunables.best(memory)).all()
