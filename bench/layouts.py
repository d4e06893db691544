"""The address-space shapes that the bench walks, as images of table pages: rows uint64[n, 512], row = frame number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from measure import SMOKE

TABLE = 0x067  # P RW US A D
LEAF = 0x8000000000000867  # P RW US A D soft-dirty NX
PAGES = 1 << (14 if SMOKE else 20)  # of the scattered shapes
DENSE = 1 << (13 if SMOKE else 19)


@dataclass
class Layout:
    """An image of page tables, and where its pages are (bytes from the start of the mapping)."""

    name: str
    rows: np.ndarray
    root: int
    span: int
    base: int
    small: np.ndarray
    huge: np.ndarray
    nr_gigantic: int = 0
    levels: int = 4

    @property
    def nr_leaves(self) -> int:
        return len(self.small) + len(self.huge) + self.nr_gigantic


class _Builder:
    """Hands out table rows, in order or shuffled."""

    def __init__(self, capacity: int, shuffled: bool, seed: int):
        self.rows = np.zeros((capacity + 2, 512), dtype=np.uint64)
        order = np.arange(1, capacity + 1)
        if shuffled:
            np.random.default_rng(seed).shuffle(order)
        self.order = order
        self.used = 0
        self.root = self.take(1)[0]

    def take(self, n: int) -> np.ndarray:
        out = self.order[self.used:self.used + n]
        if len(out) < n:
            raise ValueError(f"layout needs more than {len(self.order)} tables")
        self.used += n
        return out

    def tables_for(self, addrs: np.ndarray, level: int) -> np.ndarray:
        """Row of the table at `level` that maps each address (ascending), made where missing."""
        keys = addrs >> np.uint64(12 + 9 * level)
        first, inverse = np.unique(keys, return_inverse=True)
        if level == 4:
            return np.full(len(addrs), self.root)
        starts = first << np.uint64(12 + 9 * level)
        above = self.tables_for(starts, level + 1)
        index = ((starts >> np.uint64(12 + 9 * level)) & np.uint64(511)).astype(np.int64)
        entry = self.rows[above, index]
        missing = entry == 0
        entry[missing] = (self.take(int(missing.sum())).astype(np.uint64) << np.uint64(12)) | np.uint64(TABLE)
        self.rows[above, index] = entry
        return (entry >> np.uint64(12)).astype(np.int64)[inverse]

    def put(self, addrs: np.ndarray, level: int, pfns: np.ndarray) -> None:
        if not len(addrs):
            return
        row = self.tables_for(addrs, level)
        index = ((addrs >> np.uint64(3 + 9 * level)) & np.uint64(511)).astype(np.int64)
        flags = np.uint64(LEAF | (0x80 if level > 1 else 0))
        self.rows[row, index] = (pfns.astype(np.uint64) << np.uint64(12)) | flags


BASE = 0x100000000000  # a multiple of 512 GiB


def _finish(name, builder, span, small, huge=(), gigantic=()) -> Layout:
    rng = np.random.default_rng(7)
    small, huge, gigantic = (np.asarray(a, dtype=np.uint64) for a in (small, huge, gigantic))
    builder.put(small + np.uint64(BASE), 1, rng.permutation(len(small)) + 4096)
    builder.put(huge + np.uint64(BASE), 2, (np.arange(len(huge)) + 8192) * 512)
    builder.put(gigantic + np.uint64(BASE), 3, (np.arange(len(gigantic)) + 64) * 512 * 512)
    rows = np.ascontiguousarray(builder.rows[:int(builder.order[:builder.used].max()) + 1])
    return Layout(name, rows, int(builder.root), span, BASE, small, huge, nr_gigantic=len(gigantic))


def dense() -> Layout:
    """512Ki pages side by side."""
    offsets = np.arange(DENSE, dtype=np.uint64) * np.uint64(4096)
    return _finish(f"{DENSE >> 10}Ki dense pages", _Builder(DENSE // 512 + 16, False, 1), DENSE * 4096, offsets)


def sparse(percent: int) -> Layout:
    """About a million pages in 1 TiB, each page table `percent` full, the tables in shuffled places."""
    span = 1 << 40
    per_table = max(1, round(512 * percent / 100))
    nr_tables = PAGES // per_table
    rng = np.random.default_rng(percent)
    tables = np.sort(rng.choice(span >> 21, nr_tables, replace=False)).astype(np.uint64)
    slots = np.argpartition(rng.random((nr_tables, 512), dtype=np.float32), per_table, axis=1)[:, :per_table]
    slots = np.sort(slots, axis=1)
    offsets = ((tables[:, None] << np.uint64(9)) | slots.astype(np.uint64)).reshape(-1) << np.uint64(12)
    name = f"{len(offsets) / 1e6:.2f}M pages in 1 TiB, tables {percent} % full"
    return _finish(name, _Builder(nr_tables + 1100, True, 2), span, offsets)


def mixed() -> Layout:
    """Leaves of all sizes side by side: of every eight GiB one is a leaf, the others hold huge pages and tables."""
    gib = 8 if SMOKE else 64
    rng = np.random.default_rng(3)
    pmds = np.arange(gib * 512, dtype=np.uint64)
    gigantic = np.arange(0, gib, 8, dtype=np.uint64) << np.uint64(30)
    free = pmds[(pmds >> np.uint64(9)) % np.uint64(8) != 0]
    kind = rng.random(len(free))
    huge = free[kind < 0.6] << np.uint64(21)
    tables = free[kind > 0.95]
    small = ((tables[:, None] << np.uint64(9)) + np.arange(0, 512, 1, dtype=np.uint64)).reshape(-1) << np.uint64(12)
    builder = _Builder(len(tables) + gib + 64, True, 4)
    return _finish("1 GiB, 2 MiB and 4 KiB leaves mixed", builder, gib << 30, small, huge, gigantic)


def all_layouts() -> list:
    """Makers of the four shapes, one at a time to keep memory low."""
    return [dense, lambda: sparse(10), lambda: sparse(1), mixed]
