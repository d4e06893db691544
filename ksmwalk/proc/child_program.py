"""What `Child` runs: a program of its own, which imports nothing of ksmwalk and keeps its memory small.

Each line of its input is Python to run with the names below; the answer is a line with `=` and the value, or with `!`
and what went wrong.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from array import array
from collections.abc import Iterable

P, M = 4096, 2 << 20
NOHUGEPAGE, MERGEABLE = 15, 12
PRIVATE_ANON_NORESERVE, READ_WRITE = 0x4022, 3
_PR_SET_PDEATHSIG = 1

libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
_ulong = ctypes.c_ulong
libc.prctl.argtypes = [ctypes.c_int, _ulong, _ulong, _ulong, _ulong]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def failed() -> OSError:
    """The error of the last call of the C library."""
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def new(size: int, flags: int = PRIVATE_ANON_NORESERVE, prot: int = READ_WRITE, align: int = P) -> int:
    """Map memory; its address."""
    mapped: int = libc.mmap(None, size + align, prot, flags, -1, 0)
    if mapped == 2**64 - 1:
        raise failed()
    start = (mapped + align - 1) // align * align
    if start > mapped:
        libc.munmap(mapped, start - mapped)
    libc.munmap(start + size, mapped + align - start)
    return start


def write(address: int, n: int = 1, step: int = P) -> None:
    """Write a byte to each of `n` pages."""
    for page in range(n):
        ctypes.memset(address + page * step, 1, 1)


def read(address: int, n: int = 1, step: int = P) -> None:
    """Read a byte of each of `n` pages."""
    for page in range(n):
        ctypes.string_at(address + page * step, 1)


def put(address: int, offsets: Iterable[int], words: Iterable[int]) -> None:
    """Write a word of 64 bits at each offset."""
    at = ctypes.c_uint64.from_address
    for offset, word in zip(offsets, words):  # noqa: B905, one of them may go on for ever
        at(address + offset).value = word


def call(name: str, *args: int) -> None:
    """Call munmap, madvise or mprotect."""
    if getattr(libc, name)(*args):
        raise failed()


def numbers(n: int) -> array[int]:
    """The `n` words of 64 bits that were sent behind the line."""
    out = array("Q")
    out.frombytes(sys.stdin.buffer.read(8 * n))
    return out


def main() -> None:
    """Answer line by line; end with the parent."""
    # The kernel is asked for the signal first, and the parent looked for afterwards: it may have gone in between.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
    names = globals()
    for line in iter(sys.stdin.buffer.readline, b""):
        out, sign = None, "="
        try:
            try:
                out = eval(line, names)
            except SyntaxError:
                exec(line, names)
        except OSError as error:
            out, sign = error.strerror, "!"
        except Exception as error:
            out, sign = repr(error), "!"
        os.write(1, (sign + ascii(out) + "\n").encode())


if __name__ == "__main__":
    main()
