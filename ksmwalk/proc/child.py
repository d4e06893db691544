"""A live process that maps memory as it is told and waits: for `ksmwalk demo`, the tests and the benchmarks."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import time

# What a line has at hand. The parent's death is the child's: the kernel is asked for the signal first, and the parent
# looked for afterwards, as it may have gone in between.
_PROGRAM = """
import ctypes, os, signal, sys
from array import array
libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.c_ulong
libc.prctl.argtypes = [ctypes.c_int, word, word, word, word]
libc.prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): os._exit(1)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for name, extra in (("munmap", []), ("madvise", [ctypes.c_int]), ("mprotect", [ctypes.c_int])):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t] + extra
P, M = 4096, 2 << 20
NOHUGEPAGE, MERGEABLE = 15, 12
def failed():
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def new(size, flags=0x4022, prot=3, align=P):
    a = libc.mmap(None, size + align, prot, flags, -1, 0)
    if a == 2**64 - 1: raise failed()
    b = (a + align - 1) // align * align
    if b > a: libc.munmap(a, b - a)
    libc.munmap(b + size, a + align - b)
    return b
def write(a, n=1, step=P):
    for i in range(n): ctypes.memset(a + i * step, 1, 1)
def read(a, n=1, step=P):
    for i in range(n): ctypes.string_at(a + i * step, 1)
def put(a, offsets, words):
    at = ctypes.c_uint64.from_address
    for offset, word in zip(offsets, words): at(a + offset).value = word
def call(name, *args):
    if getattr(libc, name)(*args): raise failed()
def numbers(n):
    out = array("Q")
    out.frombytes(sys.stdin.buffer.read(8 * n))
    return out
for line in iter(sys.stdin.buffer.readline, b""):
    out, sign = None, "="
    try:
        try: out = eval(line)
        except SyntaxError: exec(line)
    except OSError as error: out, sign = error.strerror, "!"
    except Exception as error: out, sign = repr(error), "!"
    os.write(1, (sign + ascii(out) + "\\n").encode())
"""


class ChildError(RuntimeError):
    """A line failed in the child, or the child is gone: `why` says which."""

    def __init__(self, line: str, why: str):
        super().__init__(f"{line!r} in the child: {why}")
        self.why = why


class Child:
    """A child process; `do` runs a line of Python in it and gives its value.

    A line has `new(size, flags, prot, align)`, which maps and returns the address, `write` and `read` of `n` pages,
    `put(address, offsets, words)`, `call(name, ...)` of munmap, madvise and mprotect, `numbers(n)` for data that was
    sent behind the line, `P`, `M`, `NOHUGEPAGE`, `MERGEABLE`.

    A context manager; the process ends with it. It is killed when the thread that made it ends, however that ends, and
    is in a process group of its own, so that Ctrl-C is its parent's alone.

    Attributes
    ----------
    pid : int
    """

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROGRAM, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self.pid = self.process.pid
        try:
            # its own start, with all that Python maps in it, is over when it answers
            self.do("None")
        except BaseException:
            self.close()
            raise

    def tell(self, line: str, data: bytes = b"") -> None:
        """Start a line, with `data` behind it, without waiting for its end."""
        self.process.stdin.write(line.encode() + b"\n" + data)
        self.process.stdin.flush()

    def do(self, line: str, data: bytes = b""):
        """Run a line, with `data` behind it, and return its value.

        Raises
        ------
        ChildError
            The line failed, or the child is gone.
        """
        try:
            self.tell(line, data)
            answer = self.process.stdout.readline().decode().strip()
        except BrokenPipeError:
            answer = ""
        if not answer.startswith("="):
            raise ChildError(line, ast.literal_eval(answer[1:]) if answer else "it is gone")
        return ast.literal_eval(answer[1:])

    def rest(self) -> None:
        """Wait until it sleeps, where it touches no further memory."""
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"S":
                    return
            time.sleep(0.001)

    def close(self) -> None:
        """End the process and wait until it is gone."""
        self.process.kill()
        # what was not sent any more is nobody's loss
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()
