"""Rows: the merge engine against the real ksmd of this machine (root), same layouts and contents; a 64 GiB host.

The real one is given one batch that is a whole scan and timed by its own trace events, start to stop.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from measure import SMOKE, Row, at_most, faster_than, memory_available, note, row

from ksmwalk import Host
from ksmwalk.kernel import knobs
from ksmwalk.kernel.fullscan import timed_scans
from ksmwalk.proc.child import Child, ChildError

PAGES = 1 << 12 if SMOKE else 1 << 19
ROUNDS = 1 if SMOKE else 3
HOST_PAGES = 1 << 14 if SMOKE else 1 << 24


def unique_ids() -> np.ndarray:
    """Ids in random order that differ in the first bytes of the page."""
    return np.random.default_rng(1).permutation(PAGES).astype(np.uint64) + np.uint64(1 << 40)


def paired_ids() -> np.ndarray:
    """Two areas of the same ids, each in an order of its own."""
    rng = np.random.default_rng(2)
    half = [rng.permutation(PAGES // 2).astype(np.uint64) + np.uint64(1 << 40) for _ in range(2)]
    return np.concatenate(half)


#: which scan of which contents shows what, the name of its row and how many times faster we want to be
STORIES = {
    "unique": (unique_ids, 5, {1: ("first pass over new pages", 10), 2: ("unique pages, unstable tree", 10),
                               5: ("pages skipped by smart scan", 10)}),
    "pairs": (paired_ids, 3, {2: ("merging scan, pairs", 10), 3: ("pages merged already", 40)}),
}


def rows() -> Iterator[Row]:
    real = real_times()
    for name, (_, _, shown) in STORIES.items():
        ours = engine_times(name)
        for scan, (what, least) in shown.items():
            ns = ours[scan - 1] * 1e9 / PAGES
            if real:
                yield faster_than(f"ksmd: {what}", ns, "ns", "real ksmd", real[name][scan - 1] * 1e9 / PAGES, least)
            else:
                yield row(f"ksmd: {what}", ns, "ns")
    yield from big_host()


def engine_times(name: str) -> list[float]:
    """Median seconds of each scan of a story in the model."""
    ids, scans, _ = STORIES[name]
    keys = ids()
    took: list[list[float]] = [[] for _ in range(scans)]
    for _ in range(ROUNDS):
        host = Host(nr_frames=2 * PAGES)
        mm = host.new_mm()
        addr = mm.mmap(PAGES * 4096)
        mm.populate(addr, PAGES * 4096, keys)
        mm.madvise(addr, PAGES * 4096, "mergeable")
        for scan in took:
            begin = time.perf_counter()
            host.ksm.do_scan(1 << 40)
            scan.append(time.perf_counter() - begin)
    return [statistics.median(t) for t in took]


def real_times() -> dict[str, list[float]] | None:
    """Seconds of each scan of each story by the real ksmd; None where it can't be had."""
    if os.geteuid() or memory_available() < 3 * PAGES * 4096:
        note("ksmd: no root, or too little memory: the real ksmd is left out")
        return None
    try:
        with knobs.taken(wait=60):
            return {name: real_story(ids(), scans) for name, (ids, scans, _) in STORIES.items()}
    except knobs.KernelUnavailable as why:
        note(f"ksmd: {why}: the real ksmd is left out")
        return None


def real_story(ids: np.ndarray, scans: int) -> list[float]:
    knobs.reset()
    with child(ids):
        timed = timed_scans(scans, 4 * PAGES, 120.0 * scans)
        knobs.reset()
    if not timed.finished:
        raise knobs.KernelUnavailable("ksmd did not finish a scan in two minutes")
    if timed.measured_by != "trace events":
        raise knobs.KernelUnavailable("no trace events to time its scans by")
    return timed.seconds


@contextlib.contextmanager
def child(ids: np.ndarray) -> Iterator[None]:
    """A process with a mergeable page for each id; in a page's first 8 bytes big-endian, as memcmp orders them."""
    try:
        with Child() as process:
            size = len(ids) * 4096
            area = process.do(f"new({size})")
            process.do(f"libc.madvise({area}, {size}, NOHUGEPAGE)")
            process.do(f"put({area}, range(0, {size}, P), numbers({len(ids)}))", ids.astype(np.uint64).byteswap().tobytes())
            process.do(f"call('madvise', {area}, {size}, MERGEABLE)")
            yield
    except ChildError as error:
        raise knobs.KernelUnavailable(f"the process to scan could not be made: {error}") from None


BIG = """
import resource, sys, time
import numpy as np
from ksmwalk import Host
pages, mms = int(sys.argv[1]), 16
host = Host(nr_frames=pages + pages // 8)
rng = np.random.default_rng(3)
each = pages // mms
begin = time.perf_counter()
for i in range(mms):
    # a guest: a tenth empty, four tenths as in the other guests, half its own
    keys = rng.integers(1 << 48, 1 << 62, each, dtype=np.uint64)
    keys[: each // 10] = 0
    keys[each // 10 : each // 2] = np.arange(each // 2 - each // 10, dtype=np.uint64) + 1
    mm = host.new_mm()
    addr = mm.mmap(each * 4096)
    mm.populate(addr, each * 4096, rng.permutation(keys))
    mm.madvise(addr, each * 4096, "mergeable")
filled = time.perf_counter()
before, scans = None, 0
while True:
    host.ksm.do_scan(1 << 40)
    scans += 1
    c = host.ksm.counters()
    now = c["pages_shared"], c["pages_sharing"]
    if scans > 2 and now == before:
        break
    before = now
print(filled - begin, time.perf_counter() - filled, scans, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def big_host() -> Iterator[Row]:
    """A host of 64 GiB from its first scan to the one that merges nothing new, in a process of its own."""
    out = subprocess.run([sys.executable, "-P", "-c", BIG, str(HOST_PAGES)], capture_output=True, text=True, check=True)
    fill, seconds, scans, peak = (float(x) for x in out.stdout.split())
    yield row(f"filling {HOST_PAGES} pages of 16 address spaces", fill, "s")
    yield at_most(f"{HOST_PAGES} pages to their steady state, {scans:.0f} scans", seconds, "s", 60)
    yield at_most("the same, peak memory", peak / (1 << 20), "GiB", 4)
