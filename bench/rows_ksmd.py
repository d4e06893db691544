"""Rows: the merge engine against the real ksmd of this machine (root), same layouts and contents; a 64 GiB host.

The real one is given one batch that is a whole scan and timed by its own trace events, start to stop.
"""

from __future__ import annotations

import contextlib
import itertools
import json
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
from ksmwalk.ksm import _engine
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
    "unique": (unique_ids, 5, {1: ("first pass over new pages", 30), 2: ("unique pages, unstable tree", 130),
                               5: ("pages skipped by smart scan", 20)}),
    "pairs": (paired_ids, 3, {2: ("merging scan, pairs", 70), 3: ("pages merged already", 60)}),
}
#: ns a page that we want to stay below
MOST = {"unique pages, unstable tree": 60, "merging scan, pairs": 150}


def rows() -> Iterator[Row]:
    real = real_times()
    for name, (_, _, shown) in STORIES.items():
        ours = engine_times(name)
        for scan, (what, least) in shown.items():
            ns = ours[scan - 1] * 1e9 / PAGES
            if real:
                yield faster_than(f"ksmd: {what}", ns, "ns", "real ksmd", real[name][scan - 1] * 1e9 / PAGES, least)
            if what in MOST:
                yield at_most(f"ksmd: {what}, a page", ns, "ns", MOST[what])
            elif not real:
                yield row(f"ksmd: {what}", ns, "ns")
    yield no_cliff()
    yield from bytes_a_page()
    yield from big_host()
    if "tib" in os.environ.get("KSMWALK_BENCH", ""):
        yield from tib_host()


def disturbed(host: Host, changed: np.ndarray) -> float:
    """CPU seconds of one scan in which a page is written before each batch of 10,000 visits."""
    mm = host.mm_list[0]
    start, took, before = mm.vmas[0].vm_start, 0.0, host.ksm.full_scans
    for at in itertools.cycle(changed):
        begin = time.process_time()
        host.ksm.do_scan(10_000)
        took += time.process_time() - begin
        if host.ksm.full_scans != before:
            return took
        mm.write(start + int(at) * 4096, int(at) + (1 << 50))
    raise AssertionError("a scan ends")


def no_cliff() -> Row:
    """One page in 10,000 changed in mid-scan: the trees that are built late against trees that are built at once."""
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for at_once in took:
            host = Host(nr_frames=2 * PAGES)
            host.ksm.smart_scan = 0
            mm = host.new_mm()
            addr = mm.mmap(PAGES * 4096)
            mm.populate(addr, PAGES * 4096, unique_ids())
            mm.madvise(addr, PAGES * 4096, "mergeable")
            host.ksm.do_scan(1 << 40)
            _engine.py_trees(host.world, at_once)
            rng = np.random.default_rng(6)
            # a good few scans: what went wrong in one is not tried again at once
            took[at_once].append(sum(disturbed(host, rng.integers(0, PAGES, PAGES // 10_000 + 2)) for _ in range(4)) / 4)
    late, tree = (min(took[key]) * 1e9 / PAGES for key in (False, True))
    return faster_than("ksmd: one page in 10,000 changed in mid-scan", late, "ns", "trees built at once", tree, 1)


def bytes_a_page() -> Iterator[Row]:
    """What a mapped and scanned page costs, all told: memory of a process of its own, with and without the pages.

    And what bounds it: the records that a page has. The rest is the index, and of each array the huge page it has begun.
    """
    out = subprocess.run([sys.executable, "-P", "-c", BYTES, str(2 * PAGES)], capture_output=True, text=True, check=True)
    everything, used = json.loads(out.stdout)
    records = {name: size for name, size in used.items() if size >= 0.5}
    name = "bytes a mapped and scanned page, everything"
    yield at_most(name, everything, "bytes", 64, "its records alone", sum(records.values()))
    yield from (row(f"  of these in {name}", size, "bytes") for name, size in records.items())


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


BYTES = """
import json
import sys
import numpy as np
from ksmwalk import Host
pages = int(sys.argv[1])
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
warm = Host(nr_frames=4096)
mm = warm.new_mm()
mm.mmap(4096)
warm.ksm.do_scan(100)
host = Host(nr_frames=pages + pages // 8)
before = resident()
mm = host.new_mm()
addr = mm.mmap(pages * 4096)
part = pages // 64
for i in range(64):
    mm.populate(addr + i * part * 4096, part * 4096, np.random.default_rng(i).integers(1, 1 << 62, part, dtype=np.uint64))
mm.madvise(addr, pages * 4096, "mergeable")
for _ in range(3):
    host.ksm.do_scan(1 << 40)
everything = (resident() - before) / pages
# what was never written takes no memory
used = {name: size / pages for name, size in host.memory()["used"].items()
        if host._arrays[name][: pages // 2].view(np.uint8).any()}
print(json.dumps([everything, used]))
"""

BIG = """
import sys, time
import numpy as np
from ksmwalk import Host
pages, mms = int(sys.argv[1]), 16
host = Host(nr_frames=pages + pages // 8)
host.ksm.smart_scan = 0
rng = np.random.default_rng(3)
each = pages // mms
part = min(each, 1 << 20)
begin = time.perf_counter()
for i in range(mms):
    # a guest: a tenth empty, four tenths as in the other guests, half its own
    mm = host.new_mm()
    addr = mm.mmap(each * 4096)
    for first in range(0, each, part):
        keys = rng.integers(1 << 48, 1 << 62, part, dtype=np.uint64)
        keys[: part // 10] = 0
        keys[part // 10 : part // 2] = np.arange(part // 2 - part // 10, dtype=np.uint64) + (1 + first)
        rng.shuffle(keys)
        mm.populate(addr + first * 4096, part * 4096, keys)
    mm.madvise(addr, each * 4096, "mergeable")
filled = time.perf_counter()
before, scans, same = None, 0, 0
while same < 2:
    host.ksm.do_scan(1 << 40)
    scans += 1
    c = host.ksm.counters()
    now = c["pages_shared"], c["pages_sharing"], c["pages_unshared"], c["pages_volatile"]
    same = same + 1 if now == before else 0
    before = now
took = time.perf_counter() - filled
# not ru_maxrss: that begins with the memory of the process which started this one
with open("/proc/self/status") as f:
    peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
print(filled - begin, took, scans, peak)
"""


def big_host() -> Iterator[Row]:
    """A host of 64 GiB from its first scan to the one that merges nothing new, in a process of its own."""
    out = subprocess.run([sys.executable, "-P", "-c", BIG, str(HOST_PAGES)], capture_output=True, text=True, check=True)
    fill, seconds, scans, peak = (float(x) for x in out.stdout.split())
    yield row(f"filling {HOST_PAGES} pages of 16 address spaces", fill, "s")
    yield at_most(f"{HOST_PAGES} pages to their steady state, {scans:.0f} scans, filling included", fill + seconds, "s", 7)
    yield at_most("the same, peak memory", peak / (1 << 20), "GiB", 2)


def tib_host() -> Iterator[Row]:
    """The same for 1 TiB (`KSMWALK_BENCH=tib`), where the memory is there."""
    pages = 1 << 28
    if memory_available() < 20 << 30:
        note("ksmd: less than 20 GiB of memory: the host of 1 TiB is left out")
        return
    out = subprocess.run([sys.executable, "-P", "-c", BIG, str(pages)], capture_output=True, text=True, check=True)
    fill, seconds, scans, peak = (float(x) for x in out.stdout.split())
    yield at_most(f"{pages} pages to their steady state, {scans:.0f} scans, filling included", fill + seconds, "s", 240)
    yield at_most("the same, peak memory", peak / (1 << 20), "GiB", 18)
