"""What a scenario has made of the machine is undone on any way out. Skipped where it can't be made."""

import os
import signal
import subprocess
import sys

import pytest
from machine import around

from ksmwalk.kernel import knobs, state, surround, worker

REASON = worker.available() or ("needs root" if os.geteuid() else knobs.why_not() if not knobs.KSM.is_dir() else None)
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def quiet(text):
    pass


KILLED = """
from ksmwalk.kernel import run_outside, stepper
from ksmwalk.scenarios.format import Scenario
env = {"thp": "always", "mthp_64": "always", "khugepaged/max_ptes_none": 7, "swap_mib": 16, "memcg": 1}
ops = [["cpu", "ksmd", 0], ["spawn", "A"], ["mmap", "A", 65536, 64], ["madvise", "A", 65536, 64, "mergeable"],
       ["fill", "A", 65536, [5] * 64], ["madvise", "A", 65536, 8, "pageout"], ["sleep", 60]]
def ready(seconds):
    if seconds == 60:
        print("ready", flush=True)
    sleep(seconds)
sleep, run_outside.time.sleep = run_outside.time.sleep, ready
with stepper.session(lambda text: None, wait=60) as session:
    session.record(Scenario("killed", ops, env=env))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_is_put_back_after_a_run_that_was_ended(number):
    with knobs.lock(quiet, wait=60):
        if reason := knobs.why_not() or surround.lacking({"swap_mib": 16, "memcg": 1, "mthp_64": "always"}):
            pytest.skip(reason)
        before = around()
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        during = around()
        assert during["swaps"] != before["swaps"] and during["cgroups"] and during["modes"] != before["modes"]
        assert during["cpus"] == {0}
        process.send_signal(number)
        process.communicate(timeout=30)
    if number == signal.SIGKILL:
        said = []
        with knobs.taken(said.append, wait=60):
            assert around() | {"knobs": 0} == before | {"knobs": 0}
        assert any("zram" in text and "undone" in text for text in said)
    with knobs.lock(quiet, wait=60):
        assert around() == before and state.read_record("devices.json") is None
