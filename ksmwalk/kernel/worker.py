"""The processes of a scenario: bare workers, driven by pipes."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
from pathlib import Path
from typing import Any

from .knobs import KernelUnavailable

PROGRAM = Path(__file__).with_name("worker")

#: the worker itself lives from here on; all below belongs to the scenario
LIMIT_VPN = 0x7FF000000

SYSCALL, STORE, TOUCH, MEMSET, FORK, EXEC, UFFD_WP = range(7)
_CHUNK = 1000

_ADDR_NO_RANDOMIZE = 0x0040000
_libc = ctypes.CDLL(None, use_errno=True)


class WorkerDied(RuntimeError):
    """A process of the scenario ended by itself; the text says how."""


def available() -> str | None:
    """Return why there is no worker to run, or None."""
    if not PROGRAM.exists():
        return f"{PROGRAM} is missing: it could not be built when ksmwalk was installed (it needs gcc on x86-64)"
    if not os.access(PROGRAM, os.X_OK):
        return f"{PROGRAM} can't be executed"
    return None


class Pool:
    """Pipes for a fixed set of process names, and the processes alive.

    Every worker inherits the pipe ends of all names, so that a child forked by a worker finds its own.

    Parameters
    ----------
    names : list of str
        Every name the scenario uses.

    Raises
    ------
    KernelUnavailable
        The worker program is not there.
    """

    def __init__(self, names: list[str]):
        if reason := available():
            raise KernelUnavailable(reason)
        self.slot: dict[str, int] = {name: index for index, name in enumerate(names)}
        self.pid: dict[str, int] = {}
        self._to: list[int] = []  # our ends: commands to, answers from
        self._from: list[int] = []
        self._theirs: list[int] = []  # read end and write end of each slot in turn
        for _ in names:
            theirs, ours = os.pipe()
            self._to.append(ours)
            self._theirs.append(theirs)
            ours, theirs = os.pipe()
            self._from.append(ours)
            self._theirs.append(theirs)

    def close(self) -> None:
        """End every process and wait until it is gone."""
        for name in list(self.pid):
            os.kill(self.pid[name], signal.SIGKILL)
            self.reap(name)
        for fd in self._to + self._from + self._theirs:
            os.close(fd)

    def spawn(self, name: str) -> int:
        """Start a process; returns its pid."""
        slot = self.slot[name]
        # Descriptors 3 on must be the slots' in order. dup2 one after the other would overwrite those still to come,
        # so they go to high numbers first.
        high = 3 + 2 * len(self.slot) + max(self._theirs)
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, high + i) for i, fd in enumerate(self._theirs)]
        for i in range(len(self._theirs)):
            actions += [(os.POSIX_SPAWN_DUP2, high + i, 3 + i), (os.POSIX_SPAWN_CLOSE, high + i)]
        before = _libc.personality(0xFFFFFFFF)
        _libc.personality(before | _ADDR_NO_RANDOMIZE)
        try:
            pid = os.posix_spawn(PROGRAM, [PROGRAM.name, str(slot)], {}, file_actions=actions, setsigmask=[])
        finally:
            _libc.personality(before)
        self.pid[name] = pid
        self._answer(name)
        return pid

    def fork(self, parent: str, child: str) -> int:
        """Fork; returns the child's pid, or -errno."""
        pid = self.do(parent, FORK, [self.slot[child]])
        if pid > 0:
            self.pid[child] = pid
            self._answer(child)
        return pid

    def exec(self, name: str) -> int:
        """Replace the process's memory by a fresh worker's; 0 or -errno."""
        return self.do(name, EXEC, [self.slot[name]])

    def exit(self, name: str) -> None:
        """Let the process end and wait until its memory is gone."""
        self._send(name, SYSCALL, [231, 0, 0, 0, 0, 0, 0])
        self.reap(name)

    def reap(self, name: str) -> int:
        """Wait for the end of a process; returns its wait status."""
        return os.waitpid(self.pid.pop(name), 0)[1]

    def syscall(self, name: str, number: int, *args: int) -> int:
        """Let the process make a system call; returns what it returns."""
        words = [number, *args]
        return self.do(name, SYSCALL, words + [0] * (7 - len(words)))

    def do(self, name: str, what: int, words: list[int]) -> int:
        """Send one command; a list longer than the worker's buffer goes in parts, up to the first that fails."""
        for start in range(0, len(words) or 1, _CHUNK):
            self._send(name, what, words[start : start + _CHUNK])
            answer = self._answer(name)
            if answer < 0:
                break
        return answer

    def _send(self, name: str, what: int, words: list[int]) -> None:
        masked = [word & 0xFFFFFFFFFFFFFFFF for word in words]
        message = struct.pack(f"={2 + len(words)}Q", what, len(words), *masked)
        while message:
            message = message[os.write(self._to[self.slot[name]], message) :]

    def _answer(self, name: str) -> int:
        fd = self._from[self.slot[name]]
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(1000):
            pid, status = os.waitpid(self.pid[name], os.WNOHANG)
            if pid:
                del self.pid[name]
                raise WorkerDied(f"process {name} ended by itself, wait status {status:#x}")
        answer: int = struct.unpack("=q", os.read(fd, 8))[0]
        return answer
