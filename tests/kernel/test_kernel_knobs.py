"""The real KSM's knobs: put back on any way out. Skipped with a reason where they can't be had."""

import os
import signal
import subprocess
import sys

import pytest

from ksmwalk.kernel import knobs

REASON = "needs root" if os.geteuid() else knobs.why_not() if not knobs.KSM.is_dir() else None
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

CODE = """
import time
from ksmwalk.kernel import knobs
try:
    with knobs.taken(lambda text: None, wait=60):
        for name, value in (("pages_to_scan", 77), ("max_page_sharing", 3), ("advisor_mode", "scan-time"), ("run", 1)):
            assert knobs.write(name, value) == 0, name
        print("ready", flush=True)
        HERE
except knobs.KernelUnavailable as error:
    print("unavailable:", error, flush=True)
"""


def quiet(text):
    pass


@pytest.mark.parametrize(
    ("here", "number", "status"),
    [
        ("time.sleep(30)", signal.SIGINT, None),
        ("time.sleep(30)", signal.SIGTERM, 128 + signal.SIGTERM),
        ("time.sleep(30)", signal.SIGHUP, 128 + signal.SIGHUP),
        ("raise RuntimeError", None, 1),
    ],
)
def test_knobs_come_back(here, number, status):
    try:
        with knobs.lock(quiet, wait=60):
            before = knobs.saved()
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))
    with subprocess.Popen(
        [sys.executable, "-c", CODE.replace("HERE", here)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        said = process.stdout.readline()
        if said.startswith("unavailable"):
            pytest.skip(said)
        assert said == "ready\n"
        if number is not None:
            assert knobs.read("run") == "1"
            process.send_signal(number)
        ended = process.wait(10)
    assert ended == status or (status is None and ended != 0)
    with knobs.lock(quiet, wait=60):
        assert knobs.saved() == before


def test_a_refused_value_is_an_errno():
    with knobs.lock(quiet, wait=60):
        assert knobs.write("max_page_sharing", 1) == -22
        assert knobs.write("no_such_knob", 1) == -2
        assert knobs.read("advisor_mode") in ("none", "scan-time")
