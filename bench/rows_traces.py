"""Rows: traces of random loads and stores by 16 processes, against plain C that stores into an array; what was touched."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import numpy as np
from measure import SMOKE, Row, at_most, faster_than, medians, times_of

from ksmwalk import Host
from ksmwalk.host import trace_events
from ksmwalk.layout import Operation

PROCESSES = 16
PAGES = 1 << (9 if SMOKE else 16)  # of each
EVENTS = 10_000 if SMOKE else 10_000_000
CALLS = EVENTS // 200
BASE = 1 << 40


def rival(events: np.ndarray, keys: np.ndarray, entries: np.ndarray | None, library: ctypes.CDLL) -> None:
    at = None if entries is None else entries.ctypes.data
    library.rival_trace(
        ctypes.c_void_p(events.ctypes.data), ctypes.c_size_t(len(events)), ctypes.c_uint64(BASE), ctypes.c_size_t(PAGES),
        ctypes.c_void_p(keys.ctypes.data), ctypes.c_void_p(at),
    )  # fmt: skip


def compiled(folder: str) -> ctypes.CDLL:
    out = Path(folder, "trace.so")
    source = Path(__file__).with_name("rival_trace.c")
    subprocess.run(["gcc", "-O3", "-shared", "-fPIC", "-o", str(out), str(source)], check=True)
    return ctypes.CDLL(str(out))


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(1)
    events = trace_events(
        rng.integers(Operation.READ, Operation.WRITE, EVENTS, endpoint=True), BASE + rng.integers(0, PAGES, EVENTS) * hosts.PAGE,
        rng.integers(0, 1 << 60, EVENTS), mm=rng.integers(0, PROCESSES, EVENTS),
    )  # fmt: skip
    maps = trace_events("map", BASE, PAGES * hosts.PAGE, mm=np.arange(PROCESSES))
    first = []
    for _ in range(3):
        player = Host(PROCESSES * PAGES + 4096).player()
        player.apply(maps)
        begin = time.perf_counter()
        player.apply(events)
        first.append(time.perf_counter() - begin)
    yield at_most(f"{EVENTS:.0e} random loads and stores of {PROCESSES} processes, faults included", sorted(first)[1], "s", 1.5)
    yield from present(player, events)


def present(player, events: np.ndarray) -> Iterator[Row]:
    """The same once more, with all pages there."""
    keys, entries = (np.ones(PROCESSES * PAGES, np.uint64) for _ in range(2))
    some = [(int(e["mm"]), int(e["addr"]), int(e["key"]), int(e["operation"])) for e in events[:CALLS]]

    def one_by_one() -> None:
        for number, addr, key, operation in some:
            mm = player.mms[number]
            mm.write(addr, key) if operation == Operation.WRITE else mm.read(addr)

    mm = player.mms[0]
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(folder)
        took = medians({
            "apply": lambda: player.apply(events),
            "stores": lambda: rival(events, keys, None, library),
            "stores and bits": lambda: rival(events, keys, entries, library),
            "one by one": one_by_one,
            "touched": mm.touched,
            "clear": mm.clear_touched,
        }, rounds=5, inner={"touched": 10, "clear": 10})  # fmt: skip
    each = {name: seconds / EVENTS * 1e9 for name, seconds in took.items()}
    yield times_of("an event, all pages present", each["apply"], "ns", "C, stores into an array", each["stores"])
    yield times_of("an event", each["apply"], "ns", "C, and accessed and dirty bits in another", each["stores and bits"])
    yield faster_than("an event", each["apply"], "ns", "a call of write or read", took["one by one"] / CALLS * 1e9, 20)
    yield at_most("what was touched, a page", took["touched"] / PAGES * 1e9, "ns", 10)
    yield at_most("clearing it, a page", took["clear"] / PAGES * 1e9, "ns", 10)
