"""What the authors of each shipped policy claim, and the scenarios in which that must show.

Written down before the policies are: a scenario says what memory there is, what writes to it between two full scans, and
in figures what has to come of it. `tests/policies/test_claims.py` runs them. Sizes are in pages.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ksmwalk import Host

PAGE = 4096
BASE = 1 << 32
GAP = 1 << 30


@dataclass(frozen=True)
class Scenario:
    """Memory, what writes to it before each full scan, and how many full scans are followed."""

    build: Callable[[], Host]
    scans: int
    write: Callable[[Host, int], None] = lambda host, scan: None


def add(host: Host, areas: list[np.ndarray]) -> None:
    """A process with these areas, all of them marked."""
    mm = host.new_mm()
    for number, keys in enumerate(areas):
        start = BASE + number * GAP
        mm.mmap(len(keys) * PAGE, start)
        mm.write(start, keys)
        mm.madvise(start, len(keys) * PAGE, "mergeable")
    host.drain()


def machine(processes: list[list[np.ndarray]]) -> Host:
    pages = sum(len(keys) for areas in processes for keys in areas)
    host = Host(2 * pages + 4096)
    host.ksm.smart_scan = 0
    for areas in processes:
        add(host, areas)
    return host


def unique(*shape: int, seed: int = 1) -> np.ndarray:
    """Contents that nobody else has."""
    return np.random.default_rng(seed).permutation(1 << 22)[: int(np.prod(shape))].reshape(shape).astype(np.uint64) + (seed << 32)


# ------------------------------------------------------------------ the scan before the patch

# "Without this patch ksmd uses 100% of the cpu for a long time (more than 1 hour in my test machine) scanning all the
# 32 TiB virtual address space that contain only one mapped page. With this patch ksmd walks only the one mapped page."
# P. Demarchi Gomes, "ksm: use range-walk function to jump over holes", linux-mm, October 2025.
# The old scan looks at 2^33 addresses, the new one at fewer than 100 entries: at least a million times as much.
SPARSE_SPAN = 1 << 45
SPARSE_LEAST = 1_000_000


def sparse() -> Host:
    host = Host(4096)
    host.ksm.smart_scan = 0
    for _ in range(2):
        mm = host.new_mm()
        mm.mmap(SPARSE_SPAN, BASE)
        mm.write(BASE + SPARSE_SPAN // 2, 7)
        mm.madvise(BASE, SPARSE_SPAN, "mergeable")
    host.drain()
    return host


# Where nothing is missing there is nothing to jump: the new scan reads an entry for every address that the old one looked
# up, and merges the same.
DENSE = Scenario(lambda: machine([[unique(2048)], [unique(2048)]]), 3)


# ------------------------------------------------------------------ merging by domain

# "Merging of pages only takes place within a partition, improving security. Furthermore, trees in each partitioning
# becomes smaller, improving CPU efficiency." S. Panda, "mm: Selective KSM", RFC, linux-mm, 2025.
# Four tenants with three machines each; 100 pages that all have, 100 of each tenant, 300 of each machine.
# No frame is mapped by two tenants (in Linux all of the 100 are); the largest stable tree has less than half of Linux's
# contents; and it costs 16 % of what is freed: 100 * 11 + 4 * 100 * 2 = 1900 pages, against 4 * 200 * 2 = 1600.
TENANTS, MACHINES = 4, 3


def tenants() -> Host:
    common, own, alone = unique(100), unique(TENANTS, 100, seed=2), unique(TENANTS * MACHINES, 300, seed=3)
    return machine([[np.concatenate([common, own[i // MACHINES], alone[i]])] for i in range(TENANTS * MACHINES)])


TENANTED = Scenario(tenants, 4)
TENANTED_FREED_LINUX, TENANTED_FREED_DOMAINS = 1900, 1600
# Where every tenant has one machine only, nothing is freed at all.
LONELY = Scenario(lambda: machine([[unique(200)] for _ in range(TENANTS)]), 4)


# ------------------------------------------------------------------ sampling areas, climbing where duplicates are

# "With the same amount of CPU cycles in the same time envelop, UKSM can achieve up to 12.6x and 5x more memory saving than
# CBPS approaches on static and dynamic workloads." N. Xia et al., "UKSM: Swift Memory Deduplication via Hierarchical and
# Adaptive Memory Region Distilling", FAST 2018.
# 120 areas of contents that nobody else has, and 2 machines that are alike, at the end of the list. With the CPU time in which
# sampling has freed nine tenths of what there is, Linux has freed less than a third of that; and Linux, to free as much,
# takes 3 to 13 times as long.
POOR, RICH = 120, 2
AREA = 2048
RICH_FREED = (RICH - 1) * 4 * AREA


def distilled() -> Host:
    poor, rich = unique(POOR, AREA), unique(4, AREA, seed=2)
    return machine([[keys] for keys in poor] + [list(rich) for _ in range(RICH)])


DISTILLED = Scenario(distilled, 12)
DISTILLED_LEAST, DISTILLED_MOST = 3.0, 13.0


# Duplicates spread thinly over all areas, 2 pages of 100, each at another place: no area ever seems worth it, and with the
# CPU time of Linux, which frees them all, sampling frees less than a half.
def thin() -> Host:
    keys, twice, random = unique(40, AREA), unique(20 * (AREA // 50), seed=2), np.random.default_rng(5)
    for i in range(40):
        at = random.permutation(AREA)[: AREA // 50]
        keys[i, at] = twice[(i // 2) * len(at) : (i // 2 + 1) * len(at)]
    return machine([[each] for each in keys])


THIN = Scenario(thin, 12)
THIN_FREED = 20 * (AREA // 50)


# ------------------------------------------------------------------ skipping hot areas

# "Thrashing area avoidance: thrashing area (a VMA that has frequent KSM page break-out) can be filtered out", with
# thrash_threshold, "the percentage of the COWed ksm page you can tolerate for a memory area. The areas causing a thrashing
# ratio above this value will be degraded to a slow scan speed." UKSM's documentation (uksm.txt and its usage page).
# Two machines with 4 quiet areas and 4 that are written to every third scan, alike in both: Linux merges these again every
# time, only to have them broken. Skipping them: at most half of the merges broken, at most three quarters of the CPU time,
# and all of the quiet areas freed.
QUIET = HOT = 4


def hot_and_quiet() -> Host:
    return machine([list(unique(QUIET + HOT, 512)) for _ in range(2)])


def heat(host: Host, scan: int) -> None:
    if scan % 3 == 0 and scan:
        for mm in host.mm_list:
            for number in range(QUIET, QUIET + HOT):
                first = (1000 + scan * HOT + number) << 32
                mm.write(BASE + number * GAP, np.arange(first, first + 512, dtype=np.uint64))


HEATED = Scenario(hot_and_quiet, 30, heat)
HEATED_BROKEN, HEATED_CPU, HEATED_FREED = 0.5, 0.75, QUIET * 512


# What was hot once, and never again, is freed later than by Linux: after 8 scans Linux has freed all of it, and skipping
# less than two thirds.
def heat_once(host: Host, scan: int) -> None:
    if scan == 3:
        heat(host, scan)


COOLED = Scenario(hot_and_quiet, 8, heat_once)
COOLED_FREED = (QUIET + HOT) * 512


# ------------------------------------------------------------------ merging on request, without a daemon

# "The synchronous aspect eliminates the need of ksmd running in the background. Instead, userspace can trigger merging on
# the specified memory region synchronously." S. Panda, RFC of 2025; as M. Desnoyers, "SKSM: Synchronous Kernel Samepage
# Merging", RFC, linux-mm, February 2025, has it with MADV_MERGE.
# Three machines alike. A request frees, in the call, all that Linux frees in the end; over 12 scans Linux takes at least
# 2 times the CPU time.
ASKED = Scenario(lambda: machine([[unique(1024)] for _ in range(3)]), 12)
ASKED_FREED, ASKED_CPU = 2 * 1024, 2.0


# Memory that becomes alike after the request is never merged; Linux frees it.
def become_alike(host: Host, scan: int) -> None:
    if scan == 2:
        for mm in host.mm_list:
            mm.write(BASE, unique(1024))


ALIKE_LATER = Scenario(lambda: machine([[unique(1024, seed=2 + i)] for i in range(3)]), 8, become_alike)
