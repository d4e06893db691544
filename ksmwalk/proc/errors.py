"""What can go wrong while a live process is read; each error carries the pid and says what to do."""

from __future__ import annotations

import errno

from ..errors import KsmwalkError


class ProcessExited(KsmwalkError, ProcessLookupError):
    """There is no such process, or it ended (or replaced its address space) while it was being read."""

    def __init__(self, pid: int, when: str):
        super().__init__(errno.ESRCH, f"process {pid} {when}")
        self.pid = pid


class NoAddressSpace(KsmwalkError, ProcessLookupError):
    """The process exists and has no memory of its own: a kernel thread or a zombie."""

    def __init__(self, pid: int):
        super().__init__(errno.ESRCH, f"process {pid} has no address space (a kernel thread or a zombie)")
        self.pid = pid


class ProcessChanged(KsmwalkError, RuntimeError):
    """The process mapped or unmapped memory during every attempt to read it, so no attempt was of one piece."""

    def __init__(self, pid: int, attempts: int, change: str):
        super().__init__(
            f"the mappings of process {pid} changed during each of {attempts} attempts to read it (last: {change}); "
            f"stop the process for the moment of the reading, or allow more attempts"
        )
        self.pid = pid
        self.attempts = attempts
        self.change = change


def not_allowed(pid: int, path: str) -> PermissionError:
    """The error for a process that the caller may not look into."""
    return PermissionError(
        errno.EACCES,
        f"/proc/{pid}/{path}: not allowed; other people's processes need CAP_SYS_PTRACE (run as root)",
    )
