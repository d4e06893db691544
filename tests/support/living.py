"""A real process that does as it is told: what the tests of the live sources look at."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys

import pytest

from ksmwalk.kernel import knobs

CHILD = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for name, extra in (("munmap", []), ("madvise", [ctypes.c_int]), ("mprotect", [ctypes.c_int])):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t] + extra
P, M = 4096, 2 << 20
def new(size, flags=0x4022, prot=3, align=P):
    a = libc.mmap(None, size + align, prot, flags, -1, 0)
    assert a != 2**64 - 1, ctypes.get_errno()
    b = (a + align - 1) // align * align
    if b > a: libc.munmap(a, b - a)
    libc.munmap(b + size, a + align - b)
    return b
def write(a, n=1, step=P):
    for i in range(n): ctypes.memset(a + i * step, 1, 1)
def read(a, n=1, step=P):
    for i in range(n): ctypes.string_at(a + i * step, 1)
def call(name, *args):
    if getattr(libc, name)(*args): raise OSError(ctypes.get_errno(), name)
for line in sys.stdin:
    out = None
    try:
        try: out = eval(line)
        except SyntaxError: exec(line)
    except Exception as error: out = error
    print(repr(out), flush=True)
"""


class Living:
    """A child process; `do` runs a line of Python in it (see CHILD for what is at hand) and gives its value."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.do("None")

    def tell(self, line: str) -> None:
        """Start a line without waiting for its end."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def do(self, line: str):
        self.tell(line)
        answer = self.process.stdout.readline().strip()
        try:
            return eval(answer, {})
        except Exception:
            raise RuntimeError(f"{line!r} in the child: {answer}") from None

    def __enter__(self) -> Living:
        return self

    def __exit__(self, *exc_info) -> None:
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


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
