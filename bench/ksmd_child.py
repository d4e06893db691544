"""A process for the real ksmd to scan: a child that maps, fills pages with given ids, marks them mergeable and waits.

Reads the number of pages and one uint64 id a page from its input (big-endian in the page's first 8 bytes, so that ids
order as memcmp does, the rest zeros), prints a line when all is in place and waits until its input ends.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

PROT_RW, PRIVATE_ANON, MADV_MERGEABLE, MADV_NOHUGEPAGE = 3, 0x22, 12, 15


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    n = int(np.frombuffer(sys.stdin.buffer.read(8), np.uint64)[0])
    ids = np.frombuffer(sys.stdin.buffer.read(8 * n), np.uint64)
    at = libc.mmap(None, n * 4096, PROT_RW, PRIVATE_ANON, -1, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"no mapping of {n} pages")
    libc.madvise(at, n * 4096, MADV_NOHUGEPAGE)
    words = np.frombuffer((ctypes.c_uint8 * (n * 4096)).from_address(at), dtype=">u8")
    words[::512] = ids
    if libc.madvise(at, n * 4096, MADV_MERGEABLE):
        raise OSError(ctypes.get_errno(), "madvise(MERGEABLE)")
    print("ready", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
