"""Where live workloads run: their processes started, made to stand still, and ended whatever happens."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..layout import PAGE_SIZE as PAGE
from ..proc import processes
from ..proc.child import Child
from .surround import Surroundings

PROGRAM = Path(__file__).with_name("workload_program.py")
#: seconds for a program to be ready, for a process to stand still and to be gone
_READY, _STILL, _GONE = 60.0, 10.0, 5.0
_HUGEPAGE = 14
#: what gives a child the functions of the program
_LOAD = f"exec(compile(open({str(PROGRAM)!r}).read().rpartition('if __name__')[0], 'workload_program', 'exec'))"


class WorkloadFailed(RuntimeError):
    """A workload did not come to life, or not to its end; the text says why."""


class Yard:
    """The processes of one workload.

    A context manager; all processes end with it, and with this program however that ends.

    Attributes
    ----------
    pids : list of int
        In the order in which they registered with KSM.
    directory : Path
        For sockets and data, removed in the end.
    """

    def __init__(self) -> None:
        self.pids: list[int] = []
        self._groups: list[int] = []
        self._stack = contextlib.ExitStack()
        self.directory: Path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ksmwalk-")))

    # ------------------------------------------------------------ processes that do as they are told

    def child(self, merge_any: bool = False) -> Child:
        """Start a process that maps memory as it is told, with the functions of `workload_program` at hand.

        Parameters
        ----------
        merge_any : bool
            Whether all its memory is mergeable, asked for before an exec.

        Returns
        -------
        Child
        """
        child = self._stack.enter_context(Child())
        self._groups.append(child.pid)
        child.do(_LOAD)
        if merge_any:
            child.do("merge_any()")
            # no further line before the exec: the program would have read it already, and take it along
            child.tell("os.execv(sys.executable, [sys.executable, '-S', '-E', '-P', *sys.argv, 'again'])")
            _wait(lambda: processes.command_line(child.pid)[-1:] == ["again"], _STILL, f"process {child.pid}: no exec")
            child.do(_LOAD)
        self.pids.append(child.pid)
        return child

    def around(self, env: dict[str, Any]) -> None:
        """Make the machine as an environment of scenarios says, until after the processes that come now have ended."""
        self._stack.enter_context(Surroundings(env))

    def area(self, child: Child, pages: int, *, huge: bool | None = False, mark: bool = True) -> int:
        """Map memory in a child.

        Parameters
        ----------
        child : Child
        pages : int
        huge : bool or None
            Whether it asks for huge pages or for none; None: neither.
        mark : bool
            Whether it is marked mergeable.

        Returns
        -------
        int
            Its address, at the start of a huge page.
        """
        size = pages * PAGE
        address: int = child.do(f"new({size}, align=M)")
        if huge is not None:
            child.do(f"call('madvise', {address}, {size}, {_HUGEPAGE if huge else 'NOHUGEPAGE'})")
        if mark:
            child.do(f"call('madvise', {address}, {size}, MERGEABLE)")
        return address

    def fork(self, child: Child, line: str = "") -> int:
        """Fork a worker of a child, which runs a line; its number."""
        pid: int = child.do(f"fork({line!r})")
        self.pids.append(pid)
        return pid

    # ------------------------------------------------------------ programs

    def program(self, what: str, *args: object) -> None:
        """Start a program of `workload_program` through an exec that keeps the wish to merge everything."""
        self.command([sys.executable, "-P", str(PROGRAM), what, *map(str, args)])

    def command(self, command: list[str], *, merge_any: bool = True, ready: bool = True) -> int:
        """Start a program.

        Parameters
        ----------
        command : list of str
        merge_any : bool
            Whether all its memory is mergeable, asked for before the exec.
        ready : bool
            Whether to wait until it prints ``ready``, and the numbers of further processes behind it.

        Returns
        -------
        int
            Its process number.

        Raises
        ------
        WorkloadFailed
            It is not ready in time.
        """
        log = open(self.directory / f"log{len(self.pids)}", "wb")
        self._stack.callback(log.close)
        start = [sys.executable, "-S", "-E", "-P", str(PROGRAM), "exec", str(int(merge_any)), *command]
        process = subprocess.Popen(
            start, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, process_group=0, cwd=self.directory
        )
        self._groups.append(process.pid)
        self._stack.callback(_end, process)
        self.pids.append(process.pid)
        if ready:
            assert process.stdout is not None
            self.pids += self._ready(process.stdout.fileno(), command[0], Path(log.name))
        return process.pid

    def _ready(self, fd: int, name: str, log: Path) -> list[int]:
        said, end = b"", time.monotonic() + _READY
        while b"\n" not in said.partition(b"ready")[2]:
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                raise WorkloadFailed(f"{name}: not ready in {_READY:.0f} s")
            if not (more := os.read(fd, 4096)):
                raise WorkloadFailed(f"{name} ended: {log.read_bytes()[-400:].decode(errors='replace').strip()}")
            said += more
        return [int(word) for word in said.partition(b"ready")[2].split(b"\n")[0].split()]

    def connect(self, name: str) -> socket.socket:
        """Connect to a socket of the directory, once it is there."""
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        made.settimeout(_READY)
        end = time.monotonic() + _READY
        while True:
            try:
                made.connect(str(self.directory / name))
                return made
            except OSError as error:
                if time.monotonic() > end:
                    raise WorkloadFailed(f"{name}: {error.strerror}") from None
                time.sleep(0.02)

    # ------------------------------------------------------------ standing still

    def stop(self) -> None:
        """Stop all processes with SIGSTOP and wait until every task of them stands.

        Raises
        ------
        WorkloadFailed
            One does not, or is gone.
        """
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                raise WorkloadFailed(f"process {pid} has ended") from None
        for pid in self.pids:
            _wait(functools.partial(_stands, pid), _STILL, f"process {pid} does not stop")
            if not _states(pid):
                raise WorkloadFailed(f"process {pid} has ended")

    def end(self, pid: int) -> None:
        """End one process and wait until its memory is gone."""
        self.pids.remove(pid)
        os.kill(pid, signal.SIGKILL)
        _wait(lambda: set(_states(pid)) <= {"Z"}, _GONE, f"process {pid} does not end")

    def close(self) -> None:
        """End all processes and wait until they are gone."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._stack.close()
        _wait(lambda: all(state == "Z" for pid in self.pids for state in _states(pid)), _GONE, "processes do not end")

    def __enter__(self) -> Yard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _wait(condition: Callable[[], bool], seconds: float, failed: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise WorkloadFailed(failed)
        time.sleep(0.002)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def _states(pid: int) -> list[str]:
    """State letters of all tasks of a process; none where it is gone."""
    states = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/stat").read_bytes()
            states.append(text.rpartition(b")")[2].split()[0].decode())
    return states


def _stands(pid: int) -> bool:
    return set(_states(pid)) <= set("Tt")


def ask_qemu(connection: socket.socket, command: str) -> Any:
    """Give a QEMU machine protocol command and return its answer."""
    connection.sendall(json.dumps({"execute": command}).encode())
    said = b""
    while True:
        more = connection.recv(4096)
        if not more:
            raise WorkloadFailed(f"QEMU closed the connection at {command}")
        said += more
        while b"\n" in said:
            line, _, said = said.partition(b"\n")
            answer = json.loads(line)
            if "error" in answer:
                raise WorkloadFailed(f"QEMU refuses {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]
