"""Rows: one page in 32 TiB, tables full of nothing, all mappings as packed arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hosts
import layouts
import numpy as np
import rivals
from measure import SMOKE, Row, either, faster_than, medians, row, times_of

from ksmwalk import Host, PageTables, layout

SPAN = 32 << 40
SLICE = 1 << (28 if SMOKE else 34)
AGAIN = 200 if SMOKE else 2000
SWAP = np.uint64(0x000FFFFFFFFFF200)


def rows() -> Iterator[Row]:
    yield from one_page_in_32_tib()
    yield from full_tables()
    for make in layouts.all_layouts():
        shape = make()
        yield from all_mappings(shape)
        yield from packed_columns(shape)


def one_page_in_32_tib() -> Iterator[Row]:
    host = hosts.sparse_host(SPAN)
    if hosts.full_scan(host) != 1:
        raise AssertionError("the scan of 32 TiB must find exactly its one page")
    slice_host = hosts.sparse_host(SLICE, strategy="per-address")
    slice_host.ksm.scan.real_lookups = True
    lookups = SLICE // 4096
    scanner, mm = host.ksm.scan, host.mm_list[0]
    tables, root, out = mm.tables.rows, mm.tables.root, np.zeros(1, layout.MAPPING)
    walk = tables.ctypes.data, len(tables), root, 4, out.ctypes.data, 1
    if rivals.library().rival_walk(*walk) != 1:
        raise AssertionError("the C walker must find that page too")
    calls = {
        "engine": lambda: hosts.full_scan(host), "scan": lambda: scanner.scan(1 << 40),
        "C": lambda: rivals.library().rival_walk_again(*walk, AGAIN), "baseline": lambda: hosts.full_scan(slice_host),
    }
    process = hosts.shape(SPAN, [0])
    scan = process and hosts.pagemap_scan(process)
    if scan:
        calls["kernel"] = lambda: scan(process.start, process.end)
    took = medians(calls, rounds=7, inner={"engine": AGAIN, "scan": AGAIN, "kernel": 200})
    engine = took["engine"] * 1e6
    name = "one ksm.scan from Python, 32 TiB with one page"
    yield times_of(name, took["scan"] * 1e6, "us", "plain C walk of its tables", took["C"] / AGAIN * 1e6, 1.5)
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
        {"engine": lambda: hosts.full_scan(host), "memory": lambda: rivals.read_memory(flat)}, rounds=7,
        inner={"engine": 20, "memory": 20} if SMOKE else None,
    )
    name = f"not-present ptes, {nr_tables >> 8} MiB of full tables"
    ms = {k: v * 1e3 for k, v in took.items()}
    yield times_of(name, ms["engine"], "ms", "the same array read in order, C -march=native", ms["memory"], 1.1)
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


def packed_columns(shape: layouts.Layout) -> Iterator[Row]:
    """Address and raw entry of every leaf into arrays that are there already, against a C walker for this processor.

    In two threads against one, and against the time in which two threads read the tables and do nothing else.
    """
    tables = PageTables.from_image(shape.rows, shape.root)
    n = shape.nr_leaves
    # One pair of arrays for all, or what is compared is where in memory they happen to lie.
    out = addr, entry = [np.zeros(n + 512, dtype=np.uint64) for _ in range(2)]
    calls = {
        "C": lambda: rivals.fast_walk(shape.rows, shape.root, addr, entry),
        "engine": lambda: tables.mappings(out=out, columns=True),
        "two": lambda: tables.mappings(out=out, columns=True, threads=2),
    }
    if calls["C"]() != n:
        raise AssertionError(f"{shape.name}: the fast C walker does not find {n} mappings")
    expected = [column[:n].copy() for column in out]
    for name in ("engine", "two"):
        addr[:] = entry[:] = 0
        if not all(np.array_equal(*pair) for pair in zip(calls[name](), expected, strict=True)):
            raise AssertionError(f"{shape.name}: {name} finds other mappings than the fast C walker")
    calls["read"] = lambda: rivals.read_memory(shape.rows)
    calls["read by two"] = lambda: rivals.read_memory(shape.rows, 2)
    quick = len(shape.rows) < 10_000
    took = medians(calls, rounds=21 if quick else 7)
    ms = {k: v * 1e3 for k, v in took.items()}
    name = f"packed columns of {shape.name}"
    yield times_of(name, ms["engine"], "ms", "C walker, -march=native", ms["C"], 1.15)
    yield times_of(f"{name}, its tables only read", ms["engine"], "ms", "one thread reading", ms["read"])
    if (os.cpu_count() or 1) > 1:
        yield either(
            faster_than(f"{name}, two threads", ms["two"], "ms", "one", ms["engine"], 1.7),
            times_of(f"{name}, two threads", ms["two"], "ms", "two threads reading", ms["read by two"], 1.11),
        )
        yield faster_than("  their reading alone", ms["read by two"], "ms", "one thread", ms["read"])
