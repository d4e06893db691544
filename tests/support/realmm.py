"""A real process that does what it is told with its memory, for test_mm_real.py: JSON lines in, JSON lines out.

Run as a script. It uses nothing but ctypes, and works in a region that nothing else uses.
"""

import ctypes
import json
import os
import struct
import sys

PAGE = 4096
BASE = 0x200000000000
PAGES = 96
END = BASE + PAGES * PAGE
PROT = {"none": 0, "r": 1, "rw": 3, "rx": 5, "rwx": 7}

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
for name, n in (("munmap", 2), ("mlock", 2), ("munlock", 2)):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t][:n]
for name in ("mprotect", "madvise"):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def at(page):
    return BASE + page * PAGE


def call(function, *args):
    ctypes.set_errno(0)
    result = function(*args)
    if result in (-1, ctypes.c_void_p(-1).value):
        return -ctypes.get_errno()
    return 0


def access(addr, value):
    """Store or load through /proc/self/mem's sibling: a pipe, which answers EFAULT instead of a signal."""
    r, w = os.pipe()
    try:
        if value is None:
            # write(2) reads one byte of the memory.
            return call(libc.write, w, ctypes.c_void_p(addr), 1)
        os.write(w, struct.pack(">Q", value))
        return call(libc.read, r, ctypes.c_void_p(addr), 8)
    finally:
        os.close(r)
        os.close(w)


def do(op):
    kind, *a = op
    if kind == "mmap":
        first, n, prot, shared, noreserve = a
        flags = (1 if shared else 2) | 0x20 | 0x10 | (0x4000 if noreserve else 0)
        return call(libc.mmap, at(first), n * PAGE, PROT[prot], flags, -1, 0)
    if kind in ("munmap", "mlock", "munlock"):
        return call(getattr(libc, kind), at(a[0]), a[1] * PAGE)
    if kind == "mprotect":
        return call(libc.mprotect, at(a[0]), a[1] * PAGE, PROT[a[2]])
    if kind == "madvise":
        return call(libc.madvise, at(a[0]), a[1] * PAGE, a[2])
    if kind == "mremap":
        first, old, new, to = a
        flags, where = (0, None) if to is None else (3, at(to))
        return call(libc.mremap, at(first), old * PAGE, new * PAGE, flags, where)
    if kind == "write":
        for page, key in a[0]:
            rc = access(at(page), key)
            if rc < 0:
                return rc
        return 0
    if kind == "read":
        for page in a[0]:
            rc = access(at(page), None)
            if rc < 0:
                return rc
        return 0
    if kind == "fork":
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os._exit(0)
        return 0
    raise ValueError(op)


def areas():
    out = []
    with open("/proc/self/smaps") as f:
        inside = False
        for line in f:
            head = line.split()
            if "-" in head[0] and not head[0].endswith(":"):
                start, end = (int(x, 16) for x in head[0].split("-"))
                inside = BASE <= start < END
                if inside:
                    out.append([(start - BASE) // PAGE, (end - BASE) // PAGE, head[1], int(head[2], 16)])
            elif inside and head[0] == "VmFlags:":
                out[-1].append([x for x in head[1:] if x != "sd"])
    return out


def pages():
    """Per page: [present, of a file or shared, mapped once in the whole system, content or None]."""
    out = []
    with open("/proc/self/pagemap", "rb", buffering=0) as f, open("/proc/self/mem", "rb", buffering=0) as mem:
        f.seek(BASE // PAGE * 8)
        for i, (e,) in enumerate(struct.iter_unpack("<Q", f.read(PAGES * 8))):
            key = None
            if e >> 63:
                mem.seek(at(i))
                key = struct.unpack(">Q", mem.read(8))[0]
            out.append([e >> 63, e >> 61 & 1, e >> 56 & 1, key])
    return out


if __name__ == "__main__":
    for line in sys.stdin:
        result = do(json.loads(line))
        print(json.dumps([result, areas(), pages()]), flush=True)
