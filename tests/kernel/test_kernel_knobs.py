"""The real KSM's knobs: put back on any way out. Skipped with a reason where they can't be had."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ksmwalk.kernel import knobs, state, trace
from ksmwalk.proc.processes import kernel_thread

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


#: like CODE, with a tracing instance, and run with everything changed
SESSION = """
import os, time
from ksmwalk.kernel import knobs, stepper
try:
    with stepper.session(lambda text: None, wait=60):
        for name, value in (("pages_to_scan", 77), ("max_page_sharing", 3), ("advisor_mode", "scan-time"), ("run", 1)):
            assert knobs.write(name, value) == 0, name
        print("ready", flush=True)
        HERE
except knobs.KernelUnavailable as error:
    print("unavailable:", error, flush=True)
"""

SLOW = """
import time
from ksmwalk.kernel import knobs, signals, trace, session
def slow(owner, name):
    fast = getattr(owner, name)
    def call(*args):
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            time.sleep(0.01)
        return fast(*args)
    setattr(owner, name, call)
slow(knobs, "restore")
slow(trace.Events, "close")
slow(session.Session, "close")
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
        assert state.read_journal() is None


def unchanged_or_skip():
    """The knobs now, while nobody drives KSM."""
    try:
        with knobs.lock(quiet, wait=60):
            if reason := knobs.why_not():
                pytest.skip(reason)
            return knobs.saved()
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))


def started(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = process.stdout.readline()
    if said != "ready\n":
        process.kill()
        err = process.communicate()[1]
        pytest.skip(said) if said.startswith("unavailable") else pytest.fail(said + err)
    return process


def test_what_a_killed_run_left_is_put_back_by_the_next():
    before = unchanged_or_skip()
    with started(SESSION.replace("HERE", "time.sleep(60)")) as process:
        process.kill()
        process.communicate()
    assert (knobs.read("max_page_sharing"), knobs.read("run")) == ("3", "1")
    said = []
    with knobs.taken(said.append, wait=60):
        assert knobs.saved() | dict.fromkeys(knobs.AROUND) == before | dict.fromkeys(knobs.AROUND)
        with trace.tracefs(quiet) as root:
            if root is not None:
                with trace.instance(root) as place:
                    assert [other.name for other in root.glob("instances/ksmwalk-*")] == [place.name]
    assert [text for text in said if f"pid {process.pid}" in text and "put back" in text]
    with knobs.lock(quiet, wait=60):
        assert knobs.saved() == before and state.read_journal() is None
    assert not os.path.exists(state.DIRECTORY / "tracefs")


def test_a_journal_that_is_damaged_or_of_an_earlier_start_is_not_heeded():
    with knobs.lock(quiet, wait=60):
        values = {knobs.KSM / "pages_to_scan": "123"}
        state.write_journal(values)
        try:
            assert state.read_journal() == (os.getpid(), values)
            path = state.DIRECTORY / "knobs.json"
            assert path.stat().st_mode & 0o777 == 0o600
            good = json.loads(path.read_text())
            for text in ("", "{", "[]", "7", '{"boot": 1}', json.dumps({**good, "boot": "x"}), json.dumps({**good, "values": 1})):
                path.write_text(text)
                assert state.read_journal() is None
        finally:
            state.remove_journal()


def test_a_journal_names_no_files_but_knobs():
    """Whatever stands in it, nothing else is written."""
    before = unchanged_or_skip()
    with knobs.lock(quiet, wait=60):
        state.write_journal({**before, knobs.KSM / "../../../../tmp/ksmwalk-nothing": "1"})
    with knobs.taken(quiet, wait=60):
        pass
    assert not os.path.exists("/tmp/ksmwalk-nothing")
    with knobs.lock(quiet, wait=60):
        assert knobs.saved() == before


@pytest.mark.parametrize("signals", [[signal.SIGTERM] * 30, [signal.SIGINT] * 30, [signal.SIGINT, signal.SIGTERM] * 15])
def test_more_signals_while_it_cleans_up_leave_nothing_behind(signals):
    """Each step of the clean-up is made slow, so that signals come in the middle of it."""
    before = unchanged_or_skip()
    with started(SLOW + SESSION.replace("HERE", "time.sleep(60)")) as process:
        for number in signals:
            if process.poll() is None:
                process.send_signal(number)
                time.sleep(0.03)
        _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "could not be put back" not in err
    with knobs.lock(quiet, wait=60):
        assert knobs.saved() == before and state.read_journal() is None
        assert not os.path.exists(state.DIRECTORY / "tracefs")
        with trace.tracefs(quiet) as root:
            assert root is None or not list(root.glob(f"instances/ksmwalk-{process.pid}"))


def test_a_process_whose_name_is_no_text_or_ksmds_is_not_minded():
    """Names are what a process calls itself: bytes of any kind, a kernel thread's name too."""
    pid = kernel_thread("ksmd")
    code = (
        "import ctypes, sys; prctl = ctypes.CDLL(None).prctl; prctl(15, sys.argv[1].encode('latin-1'))\n"
        "prctl(67, 1, 0, 0, 0); print('ready', flush=True); sys.stdin.read()"
    )
    with knobs.lock(quiet, wait=60):
        for name in ("\xff\x1b[2J", "ksmd"):
            with subprocess.Popen(
                [sys.executable, "-S", "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout.readline() == b"ready\n"
                assert kernel_thread("ksmd") == pid and process.pid in dict(knobs.mergeable_processes())
                assert (knobs.why_not() or "x").isprintable()
                process.stdin.close()


def test_a_refused_value_is_an_errno():
    with knobs.lock(quiet, wait=60):
        assert knobs.write("max_page_sharing", 1) == -22
        assert knobs.write("no_such_knob", 1) == -2
        assert knobs.read("advisor_mode") in ("none", "scan-time")
