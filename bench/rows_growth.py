"""Rows: the same 10,000 pages spread over 1 GiB ... 32 TiB. `growth.py` draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import hosts
import numpy as np
from measure import SMOKE, Row, faster_than, medians, row

PAGES = 500 if SMOKE else 10_000
SPANS = [1 << n for n in ((30, 35, 45) if SMOKE else range(30, 46, 1))]


@dataclass
class Point:
    """One span: seconds of a full scan by the engine and by PAGEMAP_SCAN (0: not had), tables there, lookups before."""

    span: int
    engine: float
    kernel: float
    tables: int
    lookups: int


def offsets(span: int) -> np.ndarray:
    """Where the pages are: one in each of `PAGES` equal parts of the span."""
    part = span // PAGES // 4096 * 4096
    inside = np.random.default_rng(5).integers(0, max(part // 4096, 1), PAGES) * 4096
    return np.arange(PAGES) * part + inside


def measure(span: int, kernel: bool = True) -> Point:
    where = offsets(span)
    host = hosts.sparse_host(span, where)
    if hosts.full_scan(host) != PAGES:
        raise AssertionError(f"a scan of {span:#x} bytes must find {PAGES} pages")
    calls = {"engine": lambda: hosts.full_scan(host)}
    process = hosts.shape(span, where) if kernel else None
    scan = process and hosts.pagemap_scan(process)
    if scan:
        calls["kernel"] = lambda: scan(process.start, process.end)
    took = medians(calls, rounds=5, inner={"engine": 10, "kernel": 3})
    if scan:
        scan.close()
    if process:
        process.close()
    return Point(span, took["engine"], took.get("kernel", 0.0), int(host.mm_list[0].nr_tables), span // 4096)


def points(spans=SPANS) -> list[Point]:
    return [measure(span) for span in spans]


def size(n: int) -> str:
    """A power of two of bytes in words."""
    for unit, shift in (("TiB", 40), ("GiB", 30)):
        if n >= 1 << shift:
            return f"{n >> shift} {unit}"
    return f"{n} bytes"


def rows() -> Iterator[Row]:
    for p in points([s for s in SPANS if s.bit_length() % 5 == 1]):
        name = f"{PAGES} pages spread over {size(p.span)} ({p.tables} tables)"
        if p.kernel:
            yield faster_than(name, p.engine * 1e3, "ms", "PAGEMAP_SCAN", p.kernel * 1e3)
        else:
            yield row(name, p.engine * 1e3, "ms")
