"""`ksmwalk capture`, as a user runs it, and how commands find out what they are given."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from living import Living, become_nobody, footprint, sees_frames
from madecapture import made

from ksmwalk.commands import cli, given, meter
from ksmwalk.commands.meter import Meter
from ksmwalk.sources.captures import open_capture, save_capture
from ksmwalk.sources.joining import NotComparable
from ksmwalk.sources.keys import UNKNOWN

P = 4096


@pytest.fixture
def child():
    with Living() as one:
        area = one.do("new(64 * P)")
        one.do(f"write({area}, 64)")
        yield one


def run(capsys, *args):
    code = cli.main(["capture", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def arguments(*words):
    parser = argparse.ArgumentParser()
    given.add_source_arguments(parser)
    return parser.parse_args(list(map(str, words)))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_capture_of_somebody_else_is_not_said_to_be_none():
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as place:  # unlike tmp_path one that others may get to
        os.chmod(place, 0o755)
        save_capture(made(), f"{place}/kept")
        if not (pid := os.fork()):
            become_nobody()
            try:
                given.sort_words([f"{place}/kept"])
            except Exception as error:
                os.write(writer, repr(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as file:
        assert file.read() == "PermissionError(13, 'Permission denied')"


@pytest.mark.parametrize("width", [30, 80])
def test_what_is_said_fits_the_screen(capsys, child, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(capsys, child.pid, "-o", tmp_path / "kept", "--samples", 1)
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= width
    assert str(tmp_path / "kept") in out.replace("\n", "") and "as often as" in " ".join(out.split())



def test_a_process_is_captured_and_comes_back(child, tmp_path, capsys):
    before = footprint(child.pid)
    code, out, err = run(capsys, child.pid, "-o", tmp_path / "a", "--interval", 0.1, "--stop")
    assert (code, err) == (0, "") and "1 process captured in" in out and "different contents" in out
    assert footprint(child.pid) == before
    (one,) = open_capture(tmp_path / "a").processes
    assert one.pid == child.pid and (one.key != np.uint64(UNKNOWN)).sum() > 64
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


def test_the_summary_as_json_counts_what_is_in_the_files(child, tmp_path, capsys):
    code, out, _ = run(capsys, child.pid, "-o", tmp_path / "a", "--json", "--samples", 1)
    found = json.loads(out)
    one = open_capture(tmp_path / "a")
    assert code == 0 and found["processes"] == 1 and found["pages"] == one.nr_pages and found["samples"] == 1
    assert found["bytes"] == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert found["contents"] <= found["anonymous_pages"] <= found["pages"]


def test_pages_that_change_show_with_their_rate(child, tmp_path, capsys):
    area = child.do("new(P)")
    child.do(f"write({area}, 1)")
    child.do("import threading, ctypes, itertools, time")
    child.do(f"threading.Thread(target=lambda: [(ctypes.memset({area}, i & 255, 8), time.sleep(0.003)) "
             "for i in itertools.count(1)], daemon=True).start()")  # fmt: skip
    _, out, _ = run(capsys, child.pid, "-o", tmp_path / "a", "--interval", 0.2, "--samples", 3, "--json")
    found = json.loads(out)
    assert found["changing_pages"] >= 1 and found["changes_per_second"] > 0


def test_a_used_directory_is_refused_before_anything_is_read(child, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letters").write_text("dear")
    begin = time.monotonic()
    code, _, err = run(capsys, child.pid, "-o", tmp_path / "a", "--interval", 30)
    assert code == 2 and "not empty; --force would replace it" in err and time.monotonic() - begin < 20
    code, _, err = run(capsys, child.pid, "-o", tmp_path / "a", "--force")
    assert code == 2 and "not written by ksmwalk" in err and os.listdir(tmp_path / "a") == ["letters"]


def test_force_replaces_a_capture(child, tmp_path, capsys):
    save_capture(made(), tmp_path / "a")
    assert run(capsys, child.pid, "-o", tmp_path / "a", "--force", "--samples", 1)[0] == 0
    assert [one.pid for one in open_capture(tmp_path / "a").processes] == [child.pid]


def test_an_interrupt_leaves_nothing_and_is_said(child, tmp_path):
    command = [sys.executable, "-m", "ksmwalk", "capture", str(child.pid), "-o", str(tmp_path / "a"), "--interval", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        time.sleep(4)
        running.send_signal(signal.SIGINT)
        assert "interrupted" in running.communicate()[1] and running.returncode == 130
    assert os.listdir(tmp_path) == []


def test_words_that_mean_nothing_are_named(tmp_path, capsys):
    for words, text in (
        ([], "nothing to look at"), (["no-such-name"], "no process is called no-such-name"),
        ([tmp_path / "gone"], "gone: No such file"), ([tmp_path], "a directory, but no capture"),
        ([999999999], "process 999999999 does not exist"),
    ):  # fmt: skip
        code, _, err = run(capsys, *words, "-o", tmp_path / "a")
        assert code == 2 and text in err and err.count("\n") == 1
    (tmp_path / "raw").write_bytes(bytes(P))
    code, _, err = run(capsys, tmp_path / "raw", "-o", tmp_path / "a")
    assert code == 2 and "say --image" in err


def test_a_place_that_takes_no_directory_is_named_as_it_was_asked_for(child, capsys):
    code, _, err = run(capsys, child.pid, "-o", "/proc/x", "--samples", 1)
    assert code == 2 and err.startswith("ksmwalk capture: /proc/x: ") and err.count("\n") == 1


def test_command_lines_are_left_out_when_that_is_asked_for(child, tmp_path, capsys):
    assert run(capsys, child.pid, "-o", tmp_path / "a", "--samples", 1)[0] == 0
    assert run(capsys, child.pid, "-o", tmp_path / "b", "--samples", 1, "--no-command")[0] == 0
    assert open_capture(tmp_path / "a").processes[0].identity.command
    (one,) = open_capture(tmp_path / "b").processes
    assert one.identity.command == () and one.identity.started and one.pid == child.pid


def test_words_are_told_apart(tmp_path, child, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_capture(made(), "kept")
    (tmp_path / "core").write_bytes(b"\x7fELF" + bytes(60))
    (tmp_path / "raw").write_bytes(bytes(P))
    found = given.sort_words(["kept", "core", str(child.pid), "./core"])
    assert (found.captures, found.files, found.pids) == (["kept"], ["core", "./core"], [child.pid])
    assert given.sort_words(["raw"], image=True).files == ["raw"]
    with pytest.raises(ValueError, match="no process is called raw; the file of that name is no ELF file.* --image"):
        given.sort_words(["raw"])
    with pytest.raises(ValueError, match="no process is called wrong, and there is no capture or core"):
        given.sort_words(["wrong"])


def test_a_capture_given_comes_as_it_is_and_several_are_joined(tmp_path):
    save_capture(made(), tmp_path / "plain")
    for name in ("a", "b"):
        save_capture(made(digests=True, hostname=name), tmp_path / name)
    assert given.memory_of(arguments(tmp_path / "plain")).nr_contents == 60
    both = given.memory_of(arguments(tmp_path / "a", tmp_path / "b"))
    assert len(both.processes) == 6 and both.sources[0] == str(tmp_path / "a")
    with pytest.raises(NotComparable, match="plain: captured without --secret"):
        given.memory_of(arguments(tmp_path / "a", tmp_path / "plain"))
    with pytest.raises(NotComparable, match="name its secret"):
        given.memory_of(arguments(tmp_path / "a", os.getpid()))


def test_captures_with_one_secret_are_comparable_with_what_runs(tmp_path, child, capsys):
    (tmp_path / "key").write_bytes(os.urandom(100))
    (tmp_path / "key").chmod(0o600)
    assert run(capsys, child.pid, "-o", tmp_path / "a", "--secret", tmp_path / "key", "--samples", 1, "--stop") [::2] == (0, "")
    words = (tmp_path / "a", child.pid, "--secret", tmp_path / "key", "--samples", 1, "--stop")
    both = given.memory_of(arguments(*words))
    one, other = both.processes
    shared = np.isin(one.addr, other.addr)
    same = one.key[shared] == other.key[np.isin(other.addr, one.addr)]
    assert same.mean() > 0.9 and both.sources == [str(tmp_path / "a"), "this machine"]


def test_a_secret_has_sixteen_bytes_and_one_reader(tmp_path):
    key, said = tmp_path / "key", []
    key.write_bytes(b"x" * 15)
    with pytest.raises(ValueError, match="15 bytes, too few for a secret"):
        given.read_secret(str(key))
    key.write_bytes(b"x" * 65)
    key.chmod(0o644)
    secret = given.read_secret(str(key), said.append)
    assert len(secret) == 64 and secret != b"x" * 64 and "others than its owner" in said[0]
    key.chmod(0o400)
    key.write_bytes(b"x" * 64) if os.geteuid() == 0 else None
    assert not said[1:] and given.read_secret(str(key), said.append) and len(said) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="reads all processes")
def test_all_leaves_out_threads_of_the_kernel():
    pids = given.sort_words([], everybody=True).pids
    assert pids and 2 not in pids and os.getpid() not in pids


def test_progress_shows_in_a_terminal_alone_and_goes_away(monkeypatch, capsys):
    monkeypatch.setattr(meter, "_PATIENCE", 0)
    monkeypatch.setattr(meter, "_PACE", 0)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as out, Meter(out) as told:
        told("reading 1", 1, 3)
    written = os.read(ours, 65536)
    while not written.endswith(b"\r\x1b[K"):
        written += os.read(ours, 65536)
    assert b"reading 1" in written
    os.close(ours)
    with Meter() as told:
        told("reading 1", 1, 3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.root
@pytest.mark.skipif(not sees_frames(), reason="frames are hidden")
def test_no_frame_number_of_the_machine_is_kept(child, tmp_path, capsys):
    run(capsys, child.pid, "-o", tmp_path / "a", "--samples", 1)
    pfn = np.load(tmp_path / "a" / "pfn.npy")
    assert np.array_equal(np.unique(pfn >> np.uint64(9)), np.arange(1, len(np.unique(pfn >> np.uint64(9))) + 1))
