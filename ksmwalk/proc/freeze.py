"""Processes held still for a moment, by ptrace: whatever becomes of us, they go on.

A stop by a signal would outlive a reader that is killed; what ptrace has stopped the kernel lets go with its tracer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Iterable, Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long

_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207
_WALL = 0x40000000
_SECONDS = 5.0


def _ptrace(request: int, task: int, data: int = 0) -> int:
    if _libc.ptrace(request, task, None, data) < 0:
        return ctypes.get_errno()
    return 0


def _tasks(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid:d}/task")]
    except OSError:
        return []


@contextlib.contextmanager
def frozen(pids: Iterable[int]) -> Iterator[list[str]]:
    """Hold processes still, all their threads.

    Yields
    ------
    list of str
        What could not be stopped and why, in sentences: threads in an uninterruptible sleep, processes that another
        debugger has, those the caller may not trace.

    Models: PTRACE_SEIZE and PTRACE_INTERRUPT of Linux 6.18. Differs: nothing known. Only the thread that entered may
    leave.
    """
    held: dict[int, int] = {}  # threads, and the signal each was about to get
    notes: list[str] = []
    try:
        for pid in pids:
            if problem := _hold(pid, held):
                notes.append(problem)
        yield notes
    finally:
        for task, signal in held.items():
            _ptrace(_DETACH, task, signal)


def _hold(pid: int, held: dict[int, int]) -> str | None:
    """Stop all threads of a process, those that start meanwhile too."""
    mine: set[int] = set()
    while fresh := [task for task in _tasks(pid) if task not in mine]:
        for task in fresh:
            mine.add(task)
            error = _ptrace(_SEIZE, task)
            if error == errno.ESRCH:
                continue
            if error:
                return f"process {pid} could not be stopped: {os.strerror(error)} (a debugger has it, or no permission)."
            held[task] = 0
            _ptrace(_INTERRUPT, task)
        for task in fresh:
            if task in held and not _stopped(task, held):
                return f"process {pid}: thread {task} did not stop within {_SECONDS:g} s."
    return None


def _stopped(task: int, held: dict[int, int]) -> bool:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            found, status = os.waitpid(task, _WALL | os.WNOHANG)
        except ChildProcessError:
            found, status = task, 0
        if found and not os.WIFSTOPPED(status):
            del held[task]  # it ended
        elif found and not status >> 16:
            held[task] = os.WSTOPSIG(status)  # stopped on its way to a signal, which it still has to get
        if found:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
