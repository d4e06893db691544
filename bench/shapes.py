"""A process of a wanted shape, for PAGEMAP_SCAN to walk: a child that maps, writes the pages and waits.

Run as a program it is that child: `shapes.py SPAN` reads page offsets (uint64, bytes) from its input, writes one word
to each of these pages, prints the address of the mapping and waits until its input ends. Huge pages are only read, so
that they are the huge zero page and cost no memory.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np

PROT_RW, PRIVATE_ANON_NORESERVE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 3, 0x2 | 0x20 | 0x4000, 14, 15
PMD = 2 << 20


class Shape:
    """A child process with an anonymous mapping of `span` bytes in which exactly the pages at `offsets` are written."""

    def __init__(self, span: int, offsets, huge_offsets=()):
        self.span = span
        self.child = subprocess.Popen(
            [sys.executable, __file__, str(span)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        small = np.ascontiguousarray(offsets, dtype=np.uint64)
        huge = np.ascontiguousarray(huge_offsets, dtype=np.uint64)
        self.child.stdin.write(np.array([len(small), len(huge)], dtype=np.uint64).tobytes())
        self.child.stdin.write(small.tobytes() + huge.tobytes())
        self.child.stdin.flush()
        self.start = int(self.child.stdout.readline() or 0)
        if not self.start:
            self.close()
            raise OSError(f"the kernel gives no mapping of {span} bytes")

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def end(self) -> int:
        return self.start + self.span

    def close(self) -> None:
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()

    def __enter__(self) -> Shape:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _child(span: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    want = sys.stdin.buffer.read(16)
    nr_small, nr_huge = np.frombuffer(want, dtype=np.uint64).tolist()
    small = np.frombuffer(sys.stdin.buffer.read(8 * nr_small), dtype=np.uint64)
    huge = np.frombuffer(sys.stdin.buffer.read(8 * nr_huge), dtype=np.uint64)
    at = libc.mmap(None, span + PMD, PROT_RW, PRIVATE_ANON_NORESERVE, -1, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        return
    start = (at + PMD - 1) // PMD * PMD
    libc.madvise(start, span, MADV_NOHUGEPAGE)
    for offset in huge.tolist():
        libc.madvise(start + offset, PMD, MADV_HUGEPAGE)
    words = np.frombuffer((ctypes.c_uint8 * span).from_address(start), dtype=np.uint64)
    words[(small // np.uint64(8)).astype(np.int64)] = 1
    words[(huge // np.uint64(8)).astype(np.int64)].sum()
    print(start, flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    _child(int(sys.argv[1]))
