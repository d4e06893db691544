"""Who the processes are, whatever they call themselves."""

from __future__ import annotations

import os

import pytest
from living import Living

from ksmwalk.kernel import knobs
from ksmwalk.proc import processes

HOSTILE = b"\x1b[2J\n\xffk"


def call_it(child, name: bytes) -> None:
    child.do(f"libc.prctl(15, ctypes.cast({name!r}, ctypes.c_void_p).value, 0, 0, 0)")


def test_names_are_read_byte_by_byte():
    with Living() as child:
        call_it(child, HOSTILE)
        assert processes.comm(child.pid) == HOSTILE.decode(errors="surrogateescape")
        assert processes.command_line(child.pid)[-1] == str(os.getpid())
        assert child.pid in processes.every_pid()
    with pytest.raises(FileNotFoundError):
        processes.comm(child.pid)
    own = os.getpid()
    assert own not in processes.every_pid() and own in processes.every_pid(own=True)


def test_kernel_threads_have_no_command_line_and_no_double():
    with Living() as child:
        call_it(child, b"ksmd")
        assert processes.comm(child.pid) == "ksmd"
        pid = processes.kernel_thread("ksmd")
        assert pid != child.pid and (pid is None or processes.command_line(pid) == [])
        assert processes.kernel_thread("no such thread") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_process_whose_name_is_no_text_stops_nobody():
    with Living() as child:
        call_it(child, HOSTILE)
        assert child.pid not in dict(knobs.mergeable_processes())
        pid = processes.kernel_thread("ksmd")
        assert pid is None or pid > 2
