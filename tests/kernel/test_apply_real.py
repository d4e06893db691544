"""`apply` on the real KSM of this machine: predicted, set, watched, reached, taken back; and killed in the middle.

The machine's KSM is taken first, so all is put back however this ends; lock and journal of `apply` are of its own here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ksmwalk.commands.cli import main
from ksmwalk.kernel import applied, apply, knobs, state
from ksmwalk.ksm import sysfs

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

#: a program with 300 pages that all of its kind have, and 50 of its own
PROGRAM = """
import mmap, os, sys
area = mmap.mmap(-1, 350 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(350):
    area[page * 4096 : page * 4096 + 8] = (page if page < 300 else os.getpid() << 16 | page).to_bytes(8, "little")
print(flush=True)
sys.stdin.read()
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from ksmwalk.kernel import apply, knobs, state
state.DIRECTORY, state.OLD_LOCK = Path(sys.argv[1]) / "ksmwalk", Path(sys.argv[1]) / "old.lock"
real, left = knobs.write_file, int(sys.argv[2])
def write(path, text):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return real(path, text)
knobs.write_file = write
apply.apply({"pages_to_scan": "1234", "use_zero_pages": "1", "max_page_sharing": "77"}, {}, print)
"""


@contextlib.contextmanager
def real_ksm(tmp_path, monkeypatch):
    """The machine's KSM, with a lock and a journal that are of this test only; gives their directory."""
    run = tmp_path / "run"
    run.mkdir(0o755)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(knobs.taken(lambda text: None, wait=120))
            with monkeypatch.context() as patch:
                patch.setattr(state, "DIRECTORY", run / "ksmwalk")
                patch.setattr(state, "OLD_LOCK", run / "old.lock")
                yield run
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))


def tunables():
    return {name: knobs.read(name) for name in sysfs.KNOBS if (knobs.KSM / name).exists()}


@contextlib.contextmanager
def programs(number):
    """Programs that were started marked."""
    words = [sys.executable, "-m", "ksmwalk", "apply", "--exec", sys.executable, "-S", "-c", PROGRAM]
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(number):
            process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout.readline() == b"\n"
            os.kill(process.pid, signal.SIGSTOP)
        yield [process.pid for process in started]


def test_what_was_predicted_is_reached_and_taken_back(tmp_path, monkeypatch, capsys):
    with real_ksm(tmp_path, monkeypatch), programs(3) as pids:
        before = tunables()
        quick = ["--set", "pages_to_scan=100000", "--set", "sleep_millisecs=5"]
        assert main(["estimate", *map(str, pids), "--samples", "1", "--json", *quick]) == 0
        path = tmp_path / "est.json"
        path.write_text(capsys.readouterr().out)
        expected = json.loads(path.read_text())["expected"]
        assert expected["pages_sharing"] >= 600
        assert main(["apply", str(path), "--yes", "--force", "--watch", "0.2", *quick]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "100% of the merging that was predicted is done" in out, out
        for name in ("pages_shared", "pages_sharing"):
            assert knobs.read(name) == str(expected[name])
        assert knobs.read("pages_to_scan") == "100000" and applied.find().complete
        # merged memory is left alone unless somebody asks
        assert main(["apply", "--undo"]) == 0
        assert tunables() == before and knobs.read("pages_sharing") == str(expected["pages_sharing"])
        assert main(["apply", str(path), "--yes", "--force", *quick]) == 0
        assert main(["apply", "--undo", "--unmerge"]) == 0
        assert tunables() == before and knobs.read("pages_shared") == "0"
        assert "of memory that must be found" in capsys.readouterr().err


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_one_that_is_killed_in_the_middle_is_taken_back_by_the_next_undo(tmp_path, monkeypatch, writes):
    with real_ksm(tmp_path, monkeypatch) as run:
        before = tunables()
        done = subprocess.run([sys.executable, "-c", KILLED, str(run), str(writes)], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert sum(before[name] != value for name, value in tunables().items()) == writes
        assert not apply.undo(lambda text: None).failed
        assert tunables() == before and applied.find() is None


def test_the_real_kernel_refuses_in_the_middle_and_nothing_stays(tmp_path, monkeypatch):
    """What only the kernel knows: pages are shared, which is kept from the check before."""
    with real_ksm(tmp_path, monkeypatch), programs(2):
        knobs.write("pages_to_scan", 100000)
        knobs.write("sleep_millisecs", 1)
        knobs.write("run", 1)
        end = time.monotonic() + 60
        while knobs.read("pages_shared") == "0" and time.monotonic() < end:
            time.sleep(0.02)
        knobs.write("run", 0)
        before = tunables()
        monkeypatch.setattr(apply, "obstacles", lambda wanted, state: [])
        with pytest.raises(apply.Refused, match="max_page_sharing refuses 77: Device or resource busy; .* put back$"):
            apply.apply({"pages_to_scan": "1234", "use_zero_pages": "1", "max_page_sharing": "77"}, {}, pytest.fail)
        assert tunables() == before and applied.find() is None
        knobs.write("run", 2)


def test_with_the_real_advisor_every_tunable_comes_back(tmp_path, monkeypatch):
    with real_ksm(tmp_path, monkeypatch):
        if not (knobs.KSM / "advisor_mode").exists():
            pytest.skip("this kernel has no advisor")
        knobs.write("pages_to_scan", 777)
        before = tunables()
        apply.apply({"advisor_mode": "scan-time", "advisor_min_pages_to_scan": "600"}, {}, pytest.fail)
        assert knobs.read("advisor_mode") == "scan-time"
        with pytest.raises(apply.Refused, match="advisor"):
            apply.apply({"pages_to_scan": "5"}, {}, pytest.fail)
        apply.undo(pytest.fail)
        assert tunables() == before
        knobs.write("advisor_mode", "scan-time")
        apply.apply({"advisor_mode": "none", "pages_to_scan": "55"}, {}, pytest.fail)
        assert knobs.read("pages_to_scan") == "55"
        apply.undo(pytest.fail)
        assert knobs.read("advisor_mode") == "scan-time"
