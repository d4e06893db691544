"""Rows: two Hosts in two threads against one after the other (compiled calls let go of the GIL), and what the mark costs."""

from __future__ import annotations

import os
import threading
import timeit
from collections.abc import Iterator

import hosts
import numpy as np
import rivals
from measure import SMOKE, Row, at_most, faster_than, medians, note

from ksmwalk.host import _doors

ROUNDS = 3 if SMOKE else 7
SCANS = 2 if SMOKE else 10
MEMORY = (16 if SMOKE else 512) << 20  # bytes, many times what caches hold


def rows() -> Iterator[Row]:
    if (os.cpu_count() or 1) < 2:
        note("threads: one processor only, left out")
        return
    pair = [hosts.dense_host() for _ in range(2)]
    for host in pair:
        hosts.full_scan(host)

    def scans(host) -> None:
        for _ in range(SCANS):
            hosts.full_scan(host)

    def together() -> None:
        threads = [threading.Thread(target=scans, args=(host,)) for host in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    array = np.ones(MEMORY // 8, dtype=np.uint64)
    took = medians(
        {
            "together": together, "in turn": lambda: [scans(host) for host in pair],
            "read by two": lambda: rivals.read_memory(array, 2), "read": lambda: rivals.read_memory(array),
        },
        rounds=ROUNDS,
    )
    ms = {name: seconds * 1e3 for name, seconds in took.items()}
    yield faster_than("full scans of two Hosts, a thread each", ms["together"], "ms", "in turn", ms["in turn"], 1.8)
    # A scan reads some sixty bytes a page and does little with them: no more can be had than memory gives to two.
    yield faster_than("  memory read by two threads", ms["read by two"], "ms", "by one", ms["read"])
    yield mark()


def mark() -> Row:
    """What a compiled call costs in all, the mark of the thread at work taken and given back."""
    host = hosts.dense_host()
    mm = host.mm_list[0]
    calls = 20_000
    best = min(timeit.repeat(lambda: _doors.munmap(host.world, mm.index, 4096, 8192), number=calls, repeat=5))
    return at_most("a compiled call that takes the mark", best / calls * 1e9, "ns", 200)
