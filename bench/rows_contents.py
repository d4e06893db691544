"""Rows: contents of live processes read and keyed, processes loaded, captured memory estimated."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
from measure import SMOKE, Row, at_most, faster_than, medians, note

from ksmwalk.estimates.estimate import estimate
from ksmwalk.ksm.costs import Costs
from ksmwalk.proc.maps import VmaRecord
from ksmwalk.sources import capture, load
from ksmwalk.sources.contents import MemoryCapture, capture_memory, readable
from ksmwalk.sources.reading import ProcessCapture

P = 4096
PAGES = 1 << (13 if SMOKE else 18)
LOADED = 1 << (13 if SMOKE else 20)
ESTIMATED = 1 << (13 if SMOKE else 20)
GIANT = 1 << (14 if SMOKE else 24)
_SECRET = b"0123456789abcdef"
_HOLD = """
import numpy, sys, time
random = numpy.random.default_rng(int(sys.argv[1]))
pages = int(sys.argv[2])
memory = random.integers(0, 2**63, (pages, 512))
memory[: pages // 5] = numpy.random.default_rng(7).integers(0, 2**63, (pages // 5, 512))
print(flush=True)
time.sleep(600)
"""


def rows() -> Iterator[Row]:
    if not os.path.exists("/proc/self/pagemap"):
        note("contents: no pagemap here")
        return
    yield from _live()
    yield from _estimated()


def _hashed(pages: memoryview) -> None:
    for at in range(0, len(pages), P):
        hashlib.blake2b(pages[at : at + P], digest_size=16, key=_SECRET).digest()


def _held(number: int, pages: int) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", _HOLD, str(number), str(pages)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def _live() -> Iterator[Row]:
    children = [_held(1, PAGES // 2), _held(2, PAGES // 2)]
    try:
        pids = [child.pid for child in children]
        what = [capture(pid) for pid in pids]

        def plainly(then: Callable[[memoryview], object] = len) -> None:
            buffer = memoryview(bytearray(256 * P))
            for one in what:
                addr = one.addr[readable(one)]
                cuts = np.flatnonzero(np.diff(addr) != P) + 1
                fd = os.open(f"/proc/{one.pid}/mem", os.O_RDONLY)
                begin = np.concatenate(([0], cuts)).tolist()
                end = np.concatenate((cuts, [len(addr)])).tolist()
                for first, last in zip(begin, end, strict=True):
                    for at in range(first, last, 256):
                        some = buffer[: (min(at + 256, last) - at) * P]
                        os.preadv(fd, [some], int(addr[at]))
                        then(some)
                os.close(fd)

        took = medians({
            "keyed": lambda: capture_memory(pids, samples=1),
            "plain": plainly,
            "secret": lambda: capture_memory(pids, samples=1, secret=_SECRET),
            "hashed": lambda: plainly(_hashed),
        })  # fmt: skip
        pages = sum(int(np.count_nonzero(readable(one))) for one in what)
        speed = {name: pages * P / seconds / 1e9 for name, seconds in took.items()}
        plain = f"plain reading of {pages:,} pages through /proc/PID/mem"
        yield faster_than(f"contents of {pages:,} pages read and keyed", took["keyed"], "s", plain, took["plain"], 0.7)
        hashed = "plain reading and hashlib.blake2b of each page, by one thread"
        yield faster_than("the same with --secret (BLAKE2b)", took["secret"], "s", hashed, took["hashed"], 0.9)
        note(", ".join(f"{name} {rate:.2f} GB/s" for name, rate in speed.items()))
    finally:
        for child in children:
            child.kill()
            child.wait()
    child = _held(3, LOADED)
    try:
        seconds = medians({"load": lambda: load(capture(child.pid))})["load"]
        yield at_most(f"a process of {LOADED:,} pages loaded without contents", seconds, "s", 0.5)
    finally:
        child.kill()
        child.wait()


def made_up(pages: int, processes: int = 16) -> MemoryCapture:
    """A capture of so many pages in all: a third in pairs, a tenth zeros, the rest unique, spread over processes."""
    random = np.random.default_rng(5)
    each = pages // processes
    keys = np.arange(1, pages + 1, dtype=np.uint64)
    keys[: pages // 3] = random.integers(1, pages // 6, pages // 3)
    keys[pages // 3 : pages // 3 + pages // 10] = 0
    random.shuffle(keys)
    out = []
    for number in range(processes):
        base = 0x10000000000
        vma = VmaRecord(base, base + each * P, "rw-p", 0, "00:00", 0, "[heap]", ("rd", "wr", "mr", "mw", "me", "ac", "mg"),
                        rss=each * P, anonymous=each * P)  # fmt: skip
        one = ProcessCapture(1000 + number, "made", [vma], base + np.arange(each, dtype=np.uint64) * np.uint64(P),
                             np.full(each, 1 << 3, np.uint64))  # fmt: skip
        one.pfn = np.arange(number * each, (number + 1) * each, dtype=np.uint64) + np.uint64(512)
        one.exclusive, one.key = np.ones(each, bool), keys[number * each : (number + 1) * each]
        one.changes = np.zeros(each, np.uint16)
        out.append(one)
    return MemoryCapture(out, pages + 1, machine={"kind": "live", "ksm": {"smart_scan": "1"}})


def _estimated() -> Iterator[Row]:
    costs = Costs()
    small = made_up(ESTIMATED)
    seconds = medians({"estimate": lambda: estimate(small, costs=costs)})["estimate"]
    yield at_most(f"an estimate of {ESTIMATED:,} captured pages", seconds, "s", 2.0)
    large = made_up(GIANT)
    seconds = medians({"estimate": lambda: estimate(large, costs=costs)}, rounds=1)["estimate"]
    yield at_most(f"an estimate of {GIANT * P >> 30} GiB of captured pages", seconds, "s", 30.0)
