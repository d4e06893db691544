"""The processes of a scenario: bare workers, driven by pipes."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import time
from pathlib import Path
from typing import Any

from .state import KernelUnavailable

PROGRAM = Path(__file__).with_name("worker")

#: the worker itself lives from here on; all below belongs to the scenario
LIMIT_VPN = 0x7FF000000

SYSCALL, STORE, TOUCH, MEMSET, FORK, EXEC, UFFD_WP, TASK, CALL_WITH = range(9)
_CHUNK = 1000
_CLONE_VFORK = 0x4000
#: seconds that a process may take for one thing; a guest without KVM is some twenty times slower than a machine
PATIENCE = 100.0
#: words in front of the data of a system call with structures: number, six arguments, mask, answer, pointer
_CALL_HEAD = 10

_ADDR_NO_RANDOMIZE = 0x0040000
_libc = ctypes.CDLL(None, use_errno=True)


class WorkerDied(RuntimeError):
    """A process of the scenario ended by itself, or had to be killed; the text says how."""


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
        #: descriptors from here on are a process's own: a child does not get them
        self.first_own: int = 3 + 2 * len(names)
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
        return self._begun(child, self.do(parent, FORK, [self.slot[child], self.first_own]))

    def task(self, parent: str, child: str) -> int:
        """Start a process in the parent's memory (CLONE_VM); returns its pid, or -errno."""
        return self._begun(child, self.do(parent, TASK, [self.slot[child], self.first_own, 0]))

    def _begun(self, child: str, pid: int) -> int:
        if pid > 0:
            self.pid[child] = pid
            self._answer(child)
        return pid

    def vfork(self, parent: str, child: str) -> int:
        """Start a process in the parent's memory, which answers no more until that ends or execs; pid or -errno."""
        self._send(parent, TASK, [self.slot[child], self.first_own, _CLONE_VFORK])
        poll = select.poll()
        for name in (parent, child):
            poll.register(self._from[self.slot[name]], select.POLLIN)
        poll.poll()
        if any(fd == self._from[self.slot[parent]] for fd, _ in poll.poll(0)) and (error := self._answer(parent)) < 0:
            return error
        self.pid[child] = 0  # its first answer is who it is
        self.pid[child] = self._answer(child)
        return self.pid[child]

    def vforked(self, parent: str) -> int:
        """Wait until a parent is back from vfork; returns the child's pid."""
        return self._answer(parent)

    def exec(self, name: str) -> int:
        """Replace the process's memory by a fresh worker's; 0 or -errno."""
        # who it is, once it is another program
        return min(self.do(name, EXEC, [self.slot[name]]), 0)

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

    def call_with(
        self, name: str, number: int, args: list[int | bytes], answer: int | None = None, pointer: int | None = None
    ) -> int:
        """Let the process make a system call with structures.

        Parameters
        ----------
        name : str
        number : int
        args : list of int or bytes
            Up to six; for bytes the process passes a pointer to them.
        answer : int, optional
            Which 8 bytes of all the bytes given, one after the other, are to be returned where the call does not fail.
        pointer : int, optional
            Which 8 bytes are a place in all those bytes, for which the process puts a pointer.
        """
        head, mask, data = [number], 0, b""
        for place, arg in enumerate(args):
            if isinstance(arg, bytes):
                mask |= 1 << place
                head.append(8 * _CALL_HEAD + len(data))
                data += arg + bytes(-len(arg) % 8)
            else:
                head.append(arg)
        head += [0] * (7 - len(head))
        words = list(struct.unpack(f"={len(data) // 8}Q", data))
        if pointer is not None:
            words[pointer] += 8 * _CALL_HEAD
        places = (0 if place is None else _CALL_HEAD + place for place in (answer, pointer))
        return self.do(name, CALL_WITH, [*head, mask, *places, *words])

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
        until = time.monotonic() + PATIENCE
        while not poll.poll(1000):
            if time.monotonic() > until:
                os.kill(self.pid[name], signal.SIGKILL)
                self.reap(name)
                raise WorkerDied(f"process {name} does not come back: killed after {PATIENCE:.0f} s")
            pid, status = os.waitpid(self.pid[name], os.WNOHANG)
            if pid:
                del self.pid[name]
                raise WorkerDied(f"process {name} ended by itself, wait status {status:#x}")
        answer: int = struct.unpack("=q", os.read(fd, 8))[0]
        return answer
