"""Rows: one page in 32 TiB, tables full of nothing, all mappings as packed arrays."""

from __future__ import annotations

from collections.abc import Iterator

import hosts
import layouts
import numpy as np
import rivals
from measure import SMOKE, Row, faster_than, medians, row, times_of

from ksmwalk import Host, PageTables, layout

SPAN = 32 << 40
SLICE = 1 << (28 if SMOKE else 34)
SWAP = np.uint64(0x000FFFFFFFFFF200)


def rows() -> Iterator[Row]:
    yield from one_page_in_32_tib()
    yield from full_tables()
    for make in layouts.all_layouts():
        yield from all_mappings(make())


def one_page_in_32_tib() -> Iterator[Row]:
    host = hosts.sparse_host(SPAN)
    if hosts.full_scan(host) != 1:
        raise AssertionError("the scan of 32 TiB must find exactly its one page")
    slice_host = hosts.sparse_host(SLICE, strategy="per-address")
    slice_host.ksm.scan.real_lookups = True
    lookups = SLICE // 4096
    calls = {"engine": lambda: hosts.full_scan(host), "baseline": lambda: hosts.full_scan(slice_host)}
    process = hosts.shape(SPAN, [0])
    scan = process and hosts.pagemap_scan(process)
    if scan:
        calls["kernel"] = lambda: scan(process.start, process.end)
    took = medians(calls, rounds=7, inner={"engine": 2000, "kernel": 200})
    engine = took["engine"] * 1e6
    if scan:
        name, kernel = "full scan of 32 TiB with one page", took["kernel"] * 1e6
        yield faster_than(name, engine, "us", "PAGEMAP_SCAN of the same mapping", kernel, 5)
        scan.close()
    if process:
        process.close()
    per_lookup = took["baseline"] / lookups
    against = f"one address at a time: {lookups} lookups performed, extrapolated to 2**33"
    name = "the same against the scan before the patch"
    yield faster_than(name, engine, "us", against, per_lookup * 2**33 * 1e6, 1e6)
    yield row("one lookup of the scan before the patch", per_lookup * 1e9, "ns")


def full_tables() -> Iterator[Row]:
    """Page tables full of swap entries: the finder has to look at each and finds nothing."""
    nr_tables = 1 << (12 if SMOKE else 18)
    host = Host(nr_tables)
    mm = host.new_mm()
    span = nr_tables << 21
    start = mm.mmap(span, addr=hosts.TIB, noreserve=True)
    mm.write(start, 1)  # the mapping has an anon_vma from here on
    mm.madvise(start, 4096, "dontneed")
    mm.madvise(start, span, "mergeable")
    tables = mm.tables
    pfns = np.ones(1 << 18, dtype=np.uint64)
    for at in range(start, start + span, len(pfns) << 12):
        n = min(len(pfns), start + span - at >> 12)
        tables.map_range(at, pfns[:n], 0x8000000000000067)
    arena = host._arrays["rows"][: len(host.tables.rows)]
    arena[arena & hosts.NX != 0] = SWAP
    flat = arena.reshape(-1)
    if hosts.full_scan(host) != 0 or host.ksm.scan.work["pte"] < nr_tables * 512:
        raise AssertionError("a scan of full tables must look at every pte and find nothing")
    took = medians(
        {"engine": lambda: hosts.full_scan(host), "memory": lambda: np.bitwise_or.reduce(flat)}, rounds=7,
        inner={"engine": 20, "memory": 20} if SMOKE else None,
    )
    name = f"not-present ptes, {nr_tables >> 8} MiB of full tables"
    ms = {k: v * 1e3 for k, v in took.items()}
    yield times_of(name, ms["engine"], "ms", "np.bitwise_or.reduce over the same array", ms["memory"], 1.25)
    yield row("not-present ptes, speed", flat.nbytes / took["engine"] / 1e9, "GB/s")


def all_mappings(shape: layouts.Layout) -> Iterator[Row]:
    """Everybody writes the same 32-byte records into an array that is there already; the C walker is told its size."""
    tables = PageTables.from_image(shape.rows, shape.root)
    n = shape.nr_leaves
    ours, theirs = np.zeros(n + 512, dtype=layout.MAPPING), np.zeros(n, dtype=layout.MAPPING)
    calls = {
        "engine": lambda: tables.mappings(out=ours),
        "C": lambda: rivals.c_walk(shape.rows, shape.root, 4, out=theirs),
        "numpy": lambda: rivals.numpy_walk(shape.rows, shape.root, 4),
        "fresh": lambda: tables.mappings(),
    }
    expected = calls["C"]().tobytes()
    for name, call in calls.items():
        if call().tobytes() != expected:
            raise AssertionError(f"{shape.name}: {name} finds other mappings than the C walker")
    rounds = 3 if len(shape.rows) > 100_000 else 5  # the numpy walk takes seconds there
    took = medians(calls, rounds)
    process = hosts.shape(shape.span, shape.small, shape.huge)
    scan = process and hosts.pagemap_scan(process)
    if scan:
        took |= medians({"kernel": lambda: scan(process.start, process.end)}, rounds=5)
        scan.close()
    if process:
        process.close()
    ms = {k: v * 1e3 for k, v in took.items()}
    name = f"all mappings of {shape.name}"
    yield times_of(name, ms["engine"], "ms", "plain C walker, -O3", ms["C"], 1)
    yield faster_than(name, ms["engine"], "ms", "level-by-level numpy walk", ms["numpy"], 5)
    if scan:
        without = ", without the 1 GiB leaves" if shape.nr_gigantic else ""
        yield faster_than(name, ms["engine"], "ms", f"PAGEMAP_SCAN of such a process{without}", ms["kernel"])
    yield row(f"{name}, into a fresh array", ms["fresh"], "ms")
