"""Rows: the next mergeable page, in batches of compiled code with rmap_items; what a call from Python costs; memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import hosts
import numpy as np
from measure import SMOKE, Row, at_most, faster_than, medians, row, times_of

from ksmwalk import MmWalkOps, walk_page_range


def rows() -> Iterator[Row]:
    yield from next_page()
    yield from calls_from_python()
    yield from memory()


def first_pass(shuffled: bool) -> tuple[float, object]:
    """(median seconds of a first pass, the last Host): every round needs a Host of its own."""
    took = []
    for _ in range(2 if SMOKE else 3):
        host = hosts.dense_host(shuffled=shuffled)
        begin = time.perf_counter()
        found = hosts.full_scan(host)
        took.append(time.perf_counter() - begin)
        if found != hosts.DENSE:
            raise AssertionError(f"a first pass over {hosts.DENSE} pages found {found}")
    return statistics.median(took), host


def next_page() -> Iterator[Row]:
    first, ordered = first_pass(False)
    first_random, random = first_pass(True)
    calls = {"ordered": lambda: hosts.full_scan(ordered), "random": lambda: hosts.full_scan(random)}
    process = hosts.shape(hosts.DENSE * 4096, np.arange(hosts.DENSE) * 4096)
    scan = process and hosts.pagemap_scan(process)
    if scan:
        calls["kernel"] = lambda: scan(process.start, process.end)
    took = medians(calls, rounds=7)
    if process:
        process.close()
    ns = {k: v * 1e9 / hosts.DENSE for k, v in took.items()}
    first, first_random = (t * 1e9 / hosts.DENSE for t in (first, first_random))
    what = "next mergeable page"
    if scan:
        scan.close()
        against, kernel = "PAGEMAP_SCAN, per page", ns["kernel"]
        yield faster_than(f"{what}, first pass", first, "ns", against, kernel)
        yield faster_than(f"{what}, later passes", ns["ordered"], "ns", against, kernel, 1)
        yield faster_than(f"{what}, later passes, random frames", ns["random"], "ns", against, kernel)
    yield times_of(f"{what}, first pass, random frames", first_random, "ns", "frames in order", first, 3)
    yield times_of(f"{what}, later passes, random frames", ns["random"], "ns", "frames in order", ns["ordered"], 3)


def empty(entry, addr, next, walk):
    return None


def calls_from_python() -> Iterator[Row]:
    pages = 1 << (12 if SMOKE else 16)
    host = hosts.dense_host(pages)
    hosts.full_scan(host)
    get = host.ksm.scan.scan_get_next_rmap_item
    mm = host.mm_list[0]
    start, end = mm.vmas[0].vm_start, mm.vmas[0].vm_end
    ops = MmWalkOps(pmd_entry=empty)
    nothing = MmWalkOps(pgd_entry=empty)
    pmds = pages // 512

    def scan_from_python():
        while get() is not None:
            pass

    def empty_calls():
        for _ in range(pages):
            empty(1, 2, 3, 4)

    took = medians(
        {
            "item": scan_from_python, "empty": empty_calls,
            "walk": lambda: walk_page_range(mm, start, end, ops),
            "start": lambda: walk_page_range(mm, start, end, nothing),
        },
        rounds=9, inner={"walk": 200, "start": 200},
    )
    call = took["empty"] / pages * 1e6
    item = took["item"] / pages * 1e6
    callback = (took["walk"] - took["start"]) / pmds * 1e6
    against = "an empty Python call"
    yield at_most("scan_get_next_rmap_item() from Python", item, "us", 0.3, against, call)
    yield at_most("a Python pmd_entry callback", callback, "us", 0.4, against, call)
    yield row("walk_page_range(), the call itself", took["start"] * 1e6, "us")


def memory() -> Iterator[Row]:
    host = hosts.dense_host()
    hosts.full_scan(host)
    used = host.memory()
    yield at_most("memory per rmap_item", used["rmap_item"], "bytes", 64)
    yield at_most("memory per frame", used["frame"], "bytes", 32)
    yield row("memory per mapped and scanned page, everything", used["per_mapped_page"], "bytes")
