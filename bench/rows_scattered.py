"""Rows: stores and loads at random addresses of present pages, at array speed and one by one."""

from __future__ import annotations

from collections.abc import Iterator

import hosts
import numpy as np
from measure import SMOKE, Row, at_most, faster_than, medians

from ksmwalk import Host

PAGES = 1 << (13 if SMOKE else 20)
EVENTS = 10_000 if SMOKE else 1_000_000
ONE_BY_ONE = EVENTS // 100


def rows() -> Iterator[Row]:
    host = Host(PAGES + 4096)
    mm = host.new_mm()
    start = mm.mmap(PAGES * hosts.PAGE)
    rng = np.random.default_rng(1)
    mm.populate(start, PAGES * hosts.PAGE, rng.permutation(PAGES))
    addrs = start + rng.integers(0, PAGES, EVENTS) * hosts.PAGE
    keys = rng.integers(0, 1 << 60, EVENTS)
    few = list(zip(addrs[:ONE_BY_ONE].tolist(), keys[:ONE_BY_ONE].tolist(), strict=True))

    def one_by_one() -> None:
        for addr, key in few:
            mm.write(addr, key)

    took = medians({
        "stores": lambda: mm.write_at(addrs, keys), "loads": lambda: mm.read_at(addrs), "one by one": one_by_one,
    })  # fmt: skip
    each = took["stores"] / EVENTS * 1e9
    yield at_most(f"{EVENTS} stores at random addresses of {PAGES} present pages", took["stores"], "s", 0.15)
    yield at_most("loads from the same addresses", took["loads"], "s", 0.15)
    yield faster_than("one of these stores", each, "ns", "a call of write", took["one by one"] / ONE_BY_ONE * 1e9)
