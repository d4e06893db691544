"""What the workloads of `ksmwalk verify --workloads` run: a program of its own, which imports nothing of ksmwalk.

In two ways: its functions are handed to a `proc.child.Child`, whose lines then have them at hand beside those of
`proc.child_program`; and as a program, `workload_program.py WHAT ARG...`, which writes ``ready`` and the numbers of the
processes that it started, and then waits.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import signal
import sys
import time

_PAGE = 4096
_PR_SET_PDEATHSIG, _PR_SET_MEMORY_MERGE = 1, 67
_MREMAP_MAYMOVE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _checked(answer: int) -> None:
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def merge_any() -> None:
    """Ask for all memory of this process to be merged, also after an exec and in children."""
    _checked(_libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0))


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def mlock(address: int, size: int) -> None:
    """Lock pages in memory."""
    _checked(_libc.mlock(address, size))


def fork(line: str = "") -> int:
    """Fork a worker that runs a line and then sleeps for ever; its number, once it has run it."""
    done, doing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(doing)
        said = os.read(done, 1)
        os.close(done)
        if said != b"d":
            raise OSError(0, f"the worker failed: {line}")
        return pid
    try:
        die_with_parent()
        exec(line, globals())
        os.write(doing, b"d")
        while True:
            signal.pause()
    finally:
        os._exit(1)


def rewrite(address: int, pages: int, rate: float, contents: int = 0, seed: int = 1) -> None:
    """Store into `rate` pages a second for ever.

    Without `contents` one after the other, round and round, what no page has had before; else at random, one of so many
    contents, which they have from the beginning on.
    """
    at, draw, done = ctypes.c_uint64.from_address, random.Random(seed).randrange, 0
    for page in range(pages if contents else 0):
        at(address + page * _PAGE).value = 1 << 40 | draw(contents)
    start = time.monotonic()
    while True:
        for number in range(done, due := int((time.monotonic() - start) * rate)):
            if contents:
                at(address + draw(pages) * _PAGE).value = 1 << 40 | draw(contents)
            else:
                at(address + number % pages * _PAGE).value = 1 << 48 | seed << 40 | number
        done = due
        time.sleep(0.005)


def _ready(*pids: int) -> None:
    print("ready", *pids, flush=True)
    while True:
        signal.pause()


def run_modules(*names: str) -> None:
    """Have modules loaded."""
    for name in names:
        importlib.import_module(name)
    _ready()


def run_pool(workers: str, objects: str) -> None:
    """Have a heap of objects and workers forked over it, each of which changes a part."""
    heap = [{"name": f"object {number}", "number": number, "parts": [number] * 8} for number in range(int(objects))]
    globals()["heap"] = heap
    share = len(heap) // int(workers) // 2
    lines = (
        f"for one in heap[{first}:{first + share}]: one['number'] += {first + 1}"
        for first in range(0, share * int(workers), share)
    )
    _ready(*[fork(line) for line in lines])


def run_sqlite(rows: str) -> None:
    """Have a database in memory, with an index, and have answered some queries."""
    import sqlite3

    base = sqlite3.connect(":memory:")
    base.execute("create table readings (id integer primary key, place text, value real)")
    base.executemany(
        "insert into readings values (?, ?, ?)", ((i, f"place {i % 97}", i * 0.5) for i in range(int(rows)))
    )
    base.execute("create index by_place on readings (place)")
    for place in range(0, 97, 7):
        base.execute("select sum(value) from readings where place = ?", (f"place {place}",)).fetchone()
    globals()["base"] = base
    _ready()


def run_exec(marked: str, *command: str) -> None:
    """Become another program, with all memory of it mergeable if `marked` is 1."""
    die_with_parent()
    if marked == "1":
        merge_any()
    os.execvp(command[0], command)


if __name__ == "__main__":
    globals()[f"run_{sys.argv[1]}"](*sys.argv[2:])
