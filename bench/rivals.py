"""What ksmwalk is measured against: a plain C walker, a numpy walk, the kernel's PAGEMAP_SCAN."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from ksmwalk import layout

HERE = Path(__file__).parent
FRAME = np.uint64(0x000FFFFFFFFFF000)
P, RW, US, PS, G, NX = (np.uint64(b) for b in (1, 2, 4, 0x80, 0x100, 1 << 63))


def _compiled(source: str, *flags: str) -> ctypes.CDLL:
    where = tempfile.mkdtemp(prefix="ksmwalk-bench-")
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    out = str(Path(where) / "rival.so")
    command = ["gcc", "-O3", *flags, "-shared", "-fPIC", "-o", out, str(HERE / source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(out, use_errno=True)


@functools.cache
def library() -> ctypes.CDLL:
    """rival_walk.c, compiled at -O3 once per run."""
    lib = _compiled("rival_walk.c")
    walked = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    lib.rival_walk.restype = lib.rival_walk_again.restype = ctypes.c_size_t
    lib.rival_walk.argtypes = walked
    lib.rival_walk_again.argtypes = [*walked, ctypes.c_size_t]
    lib.pagemap_scan.restype = ctypes.c_int64
    lib.pagemap_scan.argtypes = [
        ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64,
        ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64),
    ]
    return lib


@functools.cache
def fast_library() -> ctypes.CDLL:
    """rival_fast.c, compiled for this processor once per run."""
    lib = _compiled("rival_fast.c", "-march=native", "-pthread")
    lib.fast_walk.restype = ctypes.c_size_t
    lib.fast_walk.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
    ]
    for read in (lib.read_words, lib.read_words_by_two):
        read.restype = ctypes.c_uint64
        read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return lib


def fast_walk(rows: np.ndarray, root: int, addr: np.ndarray, entry: np.ndarray) -> int:
    """All mappings of 4 levels as packed columns, by the C walker made for this processor; how many."""
    return fast_library().fast_walk(rows.ctypes.data, len(rows), root, 4, addr.ctypes.data, entry.ctypes.data)


def read_memory(array: np.ndarray, threads: int = 1) -> int:
    """All words of an array read once, in order, by one thread or two: nothing that reads it is faster."""
    lib = fast_library()
    return (lib.read_words if threads == 1 else lib.read_words_by_two)(array.ctypes.data, array.nbytes // 8)


def c_walk(rows: np.ndarray, root: int, levels: int, out: np.ndarray) -> np.ndarray:
    """All mappings by the plain C walker, into an array that is long enough."""
    n = library().rival_walk(rows.ctypes.data, len(rows), root, levels, out.ctypes.data, len(out))
    return out[:n]


def numpy_walk(rows: np.ndarray, root: int, levels: int) -> np.ndarray:
    """All mappings level by level: one gather, one nonzero and a few masks per level."""
    table = np.array([root])
    base = np.zeros(1, dtype=np.uint64)
    perms = np.array([RW | US])
    parts = []
    for level in range(levels, 0, -1):
        shift = np.uint64(3 + 9 * level)
        entries = rows[table]
        seen = entries & (P | G | PS if level == 2 else P | G)
        at, index = np.nonzero(seen)
        e = entries[at, index]
        addr = base[at] + (index.astype(np.uint64) << shift)
        below = (perms[at] & e & (RW | US)) | ((perms[at] | e) & NX)
        leaf = np.ones(len(e), dtype=bool) if level == 1 else ((e & PS) != 0) & (level <= 3)
        m = np.zeros(int(leaf.sum()), dtype=layout.MAPPING)
        frame = FRAME & ~((np.uint64(1) << shift) - np.uint64(1)) if level > 1 else FRAME
        le, lp = e[leaf], below[leaf]
        m["addr"] = addr[leaf]
        m["pfn"] = (np.where(le & P, le, le ^ FRAME) & frame) >> np.uint64(12)
        m["flags"] = le & ~frame
        m["level"] = level
        m["perms"] = P | (lp & RW) | (~lp & NX) >> np.uint64(61) | (lp & US) << np.uint64(1)
        m["nr"] = 1
        parts.append(m)
        table, base, perms = ((e & FRAME) >> np.uint64(12))[~leaf].astype(np.int64), addr[~leaf], below[~leaf]
    parts = [p for p in parts if len(p)]
    if len(parts) == 1:
        return parts[0]
    out = np.concatenate(parts)
    return out[np.argsort(out["addr"], kind="stable")]


PRESENT = 1 << 3
EVERYTHING = 0xFF


class PagemapScan:
    """The kernel's own PAGEMAP_SCAN on a process of ours."""

    def __init__(self, pid: int):
        self.file = open(f"/proc/{pid}/pagemap", "rb", buffering=0)
        self.vec = np.zeros((1 << 20, 3), dtype=np.uint64)
        self.pages = ctypes.c_uint64()
        self.regions = 0

    def __call__(self, start: int, end: int) -> int:
        """Present pages of [start, end); raises OSError where the kernel has no PAGEMAP_SCAN."""
        n = library().pagemap_scan(
            self.file.fileno(), start, end, self.vec.ctypes.data, len(self.vec), PRESENT, EVERYTHING,
            ctypes.byref(self.pages),
        )
        if n < 0:
            raise OSError(ctypes.get_errno(), f"PAGEMAP_SCAN of [{start:#x}, {end:#x})")
        self.regions = n
        return self.pages.value

    def close(self) -> None:
        self.file.close()
