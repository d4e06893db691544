"""Live workloads whose cost for the real ksmd is predicted from their captured memory, then measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ksmwalk.estimates.work import count_full_scan, mean_prefix
from ksmwalk.kernel import knobs
from ksmwalk.kernel.fullscan import cpu_of_full_scan
from ksmwalk.ksm.costs import Costs, ksmd_seconds
from ksmwalk.sources.contents import capture_memory
from ksmwalk.sources.memory import load_memory

#: what every workload's program begins with: `heap` maps mergeable memory as an array of pages
HEAD = """
import mmap, os, random, sys
import numpy as np
P = 4096
kept = []
def heap(pages, huge=False):
    area = mmap.mmap(-1, pages * P, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(14 if huge else 15)
    area.madvise(mmap.MADV_MERGEABLE)
    kept.append(area)
    return np.frombuffer(area, np.uint8).reshape(pages, P)
def noise(seed, pages):
    return np.random.default_rng(seed).integers(0, 256, (pages, P), np.uint8)
def wait():
    print("ready", os.getpid(), flush=True)
    sys.stdin.readline()
number, pages = int(sys.argv[1]), int(sys.argv[2])
"""

#: random pages, unlike all others
RANDOM = HEAD + """
heap(pages)[:] = noise(number, pages)
wait()
"""

#: pages of few contents in all processes, some more often than others
COPIES = HEAD + """
few = noise(7, pages // 4)
heap(pages)[:] = few[np.minimum(np.random.default_rng(number).zipf(1.2, pages), len(few)) - 1]
wait()
"""

#: a heap of which half is alike by pairs, inherited by two children that write to a quarter of it
FORKED = HEAD + """
here = heap(pages)
here[:] = noise(3, pages)
here[pages // 2 :] = here[: pages - pages // 2]
sys.stdout.flush()
for child in range(2):
    if os.fork() == 0:
        here[child::4, :64] = noise(child, len(here[child::4]))[:, :64]
        break
wait()
"""

#: mostly empty, some alike, some not
EMPTY = HEAD + """
here, rng = heap(pages), np.random.default_rng(number)
here[:] = 0
here[rng.random(pages) < 0.3] = 7
own = np.flatnonzero(rng.random(pages) < 0.15)
here[own] = noise(number, len(own))
wait()
"""

#: all of Python's own memory, full of objects
OBJECTS = HEAD + """
import ctypes
assert ctypes.CDLL(None).prctl(67, 1, 0, 0, 0) == 0
rng = random.Random(5)
kept.append([{"id": n, "name": f"object {n}", "parts": [rng.random() for _ in range(8)]} for n in range(pages // 2)])
kept.append([bytes(1000) + b"%d" % n for n in range(pages)])
wait()
"""

#: huge pages, some of which are alike
HUGE = HEAD + """
here = heap(pages, huge=True)
here[:] = noise(number, pages)
here[::1024] = 9
wait()
"""


@dataclass
class Workload:
    """Processes of one program, and the scans of ksmd that are looked at."""

    name: str
    program: str
    pages: int
    processes: int = 1
    scans: int = 4
    tunables: dict[str, int] = field(default_factory=dict)
    pages_to_scan: int = 1 << 31
    sleep_millisecs: int | None = None
    forks: int = 0


@dataclass
class Seen:
    """What was predicted of each scan and what the real ksmd took, in seconds of CPU; and counters that differ."""

    workload: Workload
    predicted: np.ndarray
    measured: np.ndarray
    prefix: float
    differs: list[str]

    @property
    def off(self) -> float:
        """By how much the prediction of all scans together is wrong, relative."""
        return float(self.predicted.sum() / self.measured.sum() - 1)


WORKLOADS = [
    Workload("random pages", RANDOM, 25_000, 2),
    Workload("copies of few pages", COPIES, 20_000, 3),
    Workload("forked heap", FORKED, 30_000, forks=2),
    Workload("mostly empty, use_zero_pages", EMPTY, 45_000, 2, tunables={"use_zero_pages": 1}),
    Workload("python objects, merge any", OBJECTS, 20_000, 3),
    Workload("huge pages", HUGE, 40_960, 2),
    Workload("copies, 1,000 pages a batch", COPIES, 20_000, 3, 3, pages_to_scan=1000, sleep_millisecs=5),
    Workload("random pages, 100 a batch", RANDOM, 8_000, 2, 3, pages_to_scan=100, sleep_millisecs=20),
    Workload("random pages, many", RANDOM, 50_000, 3, 3),
]


@contextlib.contextmanager
def running(workload: Workload) -> Iterator[list[int]]:
    """The pids of a workload's processes, all of which have done their work and wait."""
    with contextlib.ExitStack() as stack:
        pids = []
        for number in range(workload.processes):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", workload.program, str(number), str(workload.pages)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            stack.callback(process.kill)
            for _ in range(1 + workload.forks):
                word, pid = process.stdout.readline().split()
                assert word == "ready"
                pids.append(int(pid))
        # as they registered: their numbers ascend
        yield sorted(pids)


def look_at(workload: Workload, costs: Costs, say: Callable[[str], None] = lambda text: None) -> Seen:
    """Predict a workload's scans and let ksmd do them; KSM is taken for that."""
    with knobs.taken(wait=600):
        knobs.reset()
        zeros = int(knobs.read("ksm_zero_pages"))  # left over from others for ever
        for name, value in workload.tunables.items():
            knobs.write(name, value)
        with running(workload) as pids:
            capture = capture_memory(pids, samples=1)
            prefix = mean_prefix(_contents(capture))
            say(f"{workload.name}: {len(pids)} processes captured, prefix {prefix:.0f} bytes")
            host = load_memory(capture, knobs=dict(workload.tunables)).host
            predicted, measured, differs = [], [], []
            for _ in range(workload.scans):
                work = count_full_scan(host, prefix=prefix, pages_to_scan=workload.pages_to_scan)
                predicted.append(float(ksmd_seconds(work, costs)[0]))
                measured.append(cpu_of_full_scan(workload.pages_to_scan, workload.sleep_millisecs) or 0.0)
                say(f"  {work} {predicted[-1]:.4f} {measured[-1]:.4f}")
            for name in ("pages_shared", "pages_sharing", "pages_unshared", "ksm_zero_pages"):
                real = int(knobs.read(name)) - (zeros if name == "ksm_zero_pages" else 0)
                if real != (ours := getattr(host.ksm, name)):
                    differs.append(f"{name} {real}, model {ours}")
        return Seen(workload, np.array(predicted), np.array(measured), prefix, differs)


def _contents(capture) -> np.ndarray:
    """Different contents of the marked memory of a capture: uint8[n, 4096], in byte order."""
    found = set()
    for one in capture.processes:
        slices = one.vma_slices()
        with open(f"/proc/{one.pid}/mem", "rb", buffering=0) as file:
            for vma, (first, last) in zip(one.vmas, slices, strict=True):
                if vma.mergeable:
                    anon = one.anon[first:last]
                    found.update(_page(file, int(addr)) for addr in one.addr[first:last][anon])
    return np.frombuffer(b"".join(sorted(found)), np.uint8).reshape(-1, 4096)


def _page(file, addr: int) -> bytes:
    file.seek(addr)
    return file.read(4096)
