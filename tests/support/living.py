"""A real process that does as it is told: what the tests of the live sources look at."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time

import pytest

from ksmwalk.kernel import knobs
from ksmwalk.proc.child import Child

# `do` runs a line of Python in it.
Living = Child


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def footprint(pid: int) -> dict[str, int]:
    """Resident pages by kind and page-table bytes: what must not change by looking."""
    wanted = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmPTE", "VmSwap")
    with open(f"/proc/{pid}/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    return {name: int(rows[name].split()[0]) for name in wanted}


def sees_frames() -> bool:
    """Whether this user is shown frame numbers."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        here = ctypes.create_string_buffer(b"x", 1)
        file.seek(ctypes.addressof(here) // 4096 * 8)
        return int.from_bytes(file.read(8), "little") & ((1 << 55) - 1) != 0


@contextlib.contextmanager
def ksm_to_ourselves():
    """Keep everybody else from driving the machine's KSM, or skip: memory really marked mergeable meets them."""
    if os.geteuid():
        # only root can hold the lock, and a run that drives KSM refuses to begin while somebody has memory marked
        yield
        return
    try:
        with knobs.lock(lambda text: None, wait=20):
            yield
    except knobs.KernelUnavailable as reason:
        pytest.skip(str(reason))


def become_nobody() -> None:
    """Give up all rights of this process, and let its own /proc files stay its own."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
