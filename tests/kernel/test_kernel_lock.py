"""The lock on the machine's KSM: in a place that only root can use, and whoever else has got at it is not heeded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksmwalk.kernel import knobs, state

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NOBODY = 65534


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Places of our own in directories like /run and /run/lock: no test here holds the machine's lock."""
    run = tmp_path / "run"
    run.mkdir(0o755)
    shared = run / "lock"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(state, "DIRECTORY", run / "ksmwalk")
    monkeypatch.setattr(state, "OLD_LOCK", shared / "ksmwalk-ksm.lock")
    path = tmp_path
    while path != path.parent:  # others may look, as they may in /run
        if not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o055)
        path = path.parent
    return run


def held_by_nobody(path):
    """A process of another user's that has locked a file, or why it could not."""
    code = (
        "import fcntl, os, sys; os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "try: fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError as error: print(type(error).__name__, flush=True)\n"
        "else: print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def end(process):
    process.kill()
    process.communicate()


def test_no_other_user_can_hold_it():
    with knobs.lock(pytest.fail):
        assert state.DIRECTORY.stat().st_mode & 0o777 == 0o700
        assert (state.DIRECTORY / "lock").stat().st_mode & 0o777 == 0o600
    for path in (state.DIRECTORY / "lock", state.OLD_LOCK):
        process, said = held_by_nobody(path)
        assert said == "PermissionError"
        end(process)


def test_what_root_holds_is_waited_for_and_named():
    said = []
    code = (
        "import sys; from pathlib import Path; from ksmwalk.kernel import knobs, state\n"
        "state.DIRECTORY, state.OLD_LOCK = map(Path, sys.argv[1:])\n"
        "with knobs.lock(print): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(state.DIRECTORY), str(state.OLD_LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(knobs.KernelUnavailable, match=rf"held by somebody else, pid {process.pid} \("):
            with knobs.lock(said.append, wait=0.3):
                pytest.fail("two hold it")
        process.stdin.close()
    assert len(said) == 1 and f"pid {process.pid} (" in said[0]
    with knobs.lock(pytest.fail, wait=5):
        pass


def test_the_lock_of_before_is_waited_for_where_root_holds_it():
    """As a run of ksmwalk 0.1 does, which knows no other."""
    with open(state.OLD_LOCK, "w") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(knobs.KernelUnavailable, match=rf"ksmwalk-ksm.lock is held by somebody else, pid {os.getpid()}"):
            with knobs.lock(lambda text: None, wait=0.2):
                pytest.fail("two hold it")


def test_another_user_who_holds_the_lock_of_before_is_not_heeded():
    """Open to all as 0.1 made it: whoever has locked it then can keep nobody waiting."""
    state.OLD_LOCK.touch(0o644)
    process, said = held_by_nobody(state.OLD_LOCK)
    try:
        assert said == "held"
        told = []
        with knobs.lock(told.append, wait=5):
            assert len(told) == 1 and f"pid {process.pid} (" in told[0] and "not root" in told[0]
    finally:
        end(process)


@pytest.mark.parametrize("what", ["file of a user's", "link", "directory", "pipe"])
def test_what_another_user_puts_in_the_place_of_the_lock_of_before_is_left_alone(what, tmp_path):
    target = tmp_path / "target"
    target.write_text("as it was")
    target.chmod(0o644)
    match what:
        case "file of a user's":
            state.OLD_LOCK.touch(0o644)
            os.chown(state.OLD_LOCK, NOBODY, NOBODY)
        case "link":
            state.OLD_LOCK.symlink_to(target)
        case "directory":
            state.OLD_LOCK.mkdir()
        case "pipe":
            os.mkfifo(state.OLD_LOCK)
    with knobs.lock(pytest.fail, wait=5):
        pass
    assert target.read_text() == "as it was" and target.stat().st_mode & 0o777 == 0o644


def test_a_directory_that_is_not_roots_alone_is_refused(tmp_path, elsewhere):
    state.DIRECTORY.symlink_to(tmp_path)
    with pytest.raises(knobs.KernelUnavailable, match="ksmwalk"), knobs.lock(pytest.fail):
        pytest.fail("a link was followed")
    state.DIRECTORY.unlink()
    state.DIRECTORY.mkdir()
    os.chown(state.DIRECTORY, NOBODY, NOBODY)
    with pytest.raises(knobs.KernelUnavailable, match="not root's alone"), knobs.lock(pytest.fail):
        pytest.fail("another user's directory was used")
    os.chown(state.DIRECTORY, 0, 0)
    elsewhere.chmod(0o777)
    with pytest.raises(knobs.KernelUnavailable, match="not root's alone"), knobs.lock(pytest.fail):
        pytest.fail("a directory that others can replace was used")


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    state.DIRECTORY.mkdir(0o700)
    (tmp_path / "target").touch()
    (state.DIRECTORY / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(knobs.KernelUnavailable, match="lock"), knobs.lock(pytest.fail):
        pytest.fail("a link was followed")


def test_who_is_not_root_is_told_so_at_once(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for take in (knobs.lock, knobs.taken):
        with pytest.raises(knobs.KernelUnavailable, match="root|not there"), take(pytest.fail):
            pytest.fail("taken")
    assert not Path(state.DIRECTORY).exists()
