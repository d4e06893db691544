"""Rows: what it costs to ask a policy: full scans of a million pages in a thousand areas, CPU time, best of several."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import numpy as np
from measure import SMOKE, Row, times_of

from ksmwalk import Host
from ksmwalk.policies import Linux, Policy

P = 4096
AREAS = 10 if SMOKE else 1000
PAGES = 1024  # an area
ROUNDS = 2 if SMOKE else 4
#: what a full scan does, by its number: nine of ten pages are alike in pairs
SCANS = ("contents noted", "pairs merged", "all but a tenth merged already")
LIMIT = 1.1


class PerArea(Policy):
    """Asked for each area, in Python."""

    def area(self, area):
        return self.SCAN


class PerTable(PerArea):
    """And for each table, with arrays."""

    def pages(self, pages):
        return pages.pfn > 0


POLICIES = {"no policy": None, "a policy per area": PerArea, "a policy per table": PerTable, "every method": Linux}


def _host(policy: type[Policy] | None) -> Host:
    host = Host(AREAS * PAGES + 8192)
    host.ksm.smart_scan = 0
    mm = host.new_mm()
    keys = np.random.default_rng(1).permutation(AREAS * PAGES).astype(np.uint64) + np.uint64(1)
    alike = np.flatnonzero(np.arange(len(keys)) % 20 < 18)
    keys[alike[::2]] = keys[alike[1::2]]
    for number in range(AREAS):
        start = (1 << 32) + number * (PAGES * P + (1 << 21))
        mm.mmap(PAGES * P, start)
        mm.write(start, keys[number * PAGES : (number + 1) * PAGES])
        mm.madvise(start, PAGES * P, "mergeable")
    host.drain()
    host.ksm.policy = None if policy is None else policy()
    return host


def rows() -> Iterator[Row]:
    best: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        for name, policy in POLICIES.items():
            host = _host(policy)
            gc.collect()
            for scan in SCANS:
                begin = time.process_time()
                visits = host.ksm.full_scan()
                took = (time.process_time() - begin) / visits
                best[name, scan] = min(took, best.get((name, scan), took))
            del host
    for scan in SCANS:
        for name in list(POLICIES)[1:]:
            limit = LIMIT if name == "a policy per area" else None
            ours, plain = best[name, scan] * 1e9, best["no policy", scan] * 1e9
            yield times_of(f"asking: {name}, {AREAS} areas: {scan}", ours, "ns/page", "no policy", plain, limit)
