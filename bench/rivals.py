"""What ksmwalk is measured against: a plain C walker, a numpy walk, the kernel's PAGEMAP_SCAN."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from ksmwalk import layout

HERE = Path(__file__).parent
FRAME = np.uint64(0x000FFFFFFFFFF000)
P, RW, US, PS, G, NX = (np.uint64(b) for b in (1, 2, 4, 0x80, 0x100, 1 << 63))

_library = None


def library() -> ctypes.CDLL:
    """rival_walk.c, compiled at -O3 once per run."""
    global _library
    if _library is None:
        where = tempfile.mkdtemp(prefix="ksmwalk-bench-")
        atexit.register(shutil.rmtree, where, ignore_errors=True)
        out = Path(where) / "rival.so"
        subprocess.run(
            ["gcc", "-O3", "-shared", "-fPIC", "-o", str(out), str(HERE / "rival_walk.c")], check=True,
            capture_output=True, text=True,
        )
        _library = ctypes.CDLL(str(out), use_errno=True)
        _library.rival_walk.restype = ctypes.c_size_t
        _library.rival_walk.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t,
        ]
        _library.pagemap_scan.restype = ctypes.c_int64
        _library.pagemap_scan.argtypes = [
            ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64,
            ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64),
        ]
    return _library


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
