"""Random page tables for tests: hypothesis strategies, and building what they draw with the public API.

A `Plan` is a list of (addr, kind) that is valid for both the fast tables and the reference: what needs a raw entry
(swap, guard, huge pages in the middle of a split) is first mapped and then overwritten in `rows`.
"""

from dataclasses import dataclass

from hypothesis import strategies as st
from reference import entries as ref

PAGE, PMD, PUD, P4D, PGD = (ref.size(level) for level in (1, 2, 3, 4, 5))
FLAGS = 0x8000000000000067
READ_ONLY = 0x8000000000000025

#: kind -> (level, flags or None, raw entry or None)
KINDS = {
    "page": (1, FLAGS, None),
    "read_only": (1, READ_ONLY, None),
    "prot_none": (1, 0x8000000000000160, None),
    "zero_page": (1, 0x8000000000000225, None),
    "pat": (1, FLAGS | 0x80, None),
    "soft": (1, FLAGS | 0xC00, None),
    "swap": (1, FLAGS, 0x000FFFFFFFFF0200),
    "guard": (1, FLAGS, 0xFFFFFFFFFFFFF600),
    "cleared": (1, FLAGS, 0x60),
    "huge": (2, FLAGS | 0x80, None),
    "huge_pat": (2, FLAGS | 0x1080, None),
    "huge_prot_none": (2, 0x80000000000001E0, None),
    "huge_splitting": (2, FLAGS | 0x80, "split"),
    "huge_swap": (2, FLAGS | 0x80, 0x000FFFFFFFFF0200),
    "gigantic": (3, FLAGS | 0x80, None),
    "gigantic_pat": (3, FLAGS | 0x1080, None),
}
SMALL = [k for k, v in KINDS.items() if v[0] == 1]
HUGE = [k for k, v in KINDS.items() if v[0] == 2]
GIGANTIC = [k for k, v in KINDS.items() if v[0] == 3]


def corners(levels):
    """Addresses where an entry of some level begins, the last of the lower half included."""
    top = 1 << (47 if levels == 4 else 56)
    some = [0, PMD, PUD - PMD, PUD, 2 * PUD, P4D - PUD, P4D, 3 * P4D, 5 * P4D + 7 * PUD + 9 * PMD, top - PMD]
    if levels == 5:
        some += [PGD - PMD, PGD, 3 * PGD + P4D + PUD]
    return some


@dataclass(frozen=True)
class Leaf:
    """One leaf of a plan."""

    addr: int
    kind: str
    pfn: int

    @property
    def level(self):
        return KINDS[self.kind][0]

    @property
    def end(self):
        return self.addr + ref.size(self.level)

    def raw(self):
        """The packed entry that must stand there in the end."""
        level, flags, raw = KINDS[self.kind]
        e = ref.make(self.pfn, flags, level)
        if raw == "split":
            return ref.make(self.pfn, flags & ~ref.P, level)
        return e if raw is None else raw


@st.composite
def plans(draw, levels, max_clusters=4, kinds=None):
    """A list of leaves, not overlapping, in clusters around the corners."""
    small = [k for k in SMALL if kinds is None or k in kinds]
    large = [k for k in HUGE + GIGANTIC if kinds is None or k in kinds]
    leaves = {}
    taken = []
    for corner in draw(st.lists(st.sampled_from(corners(levels)), min_size=1, max_size=max_clusters, unique=True)):
        if large and draw(st.booleans()):
            kind = draw(st.sampled_from(large))
            size = ref.size(KINDS[kind][0])
            addr = corner // size * size
            pfn = draw(st.integers(0, 1000)) * (size // PAGE)
            new = [Leaf(addr, kind, pfn)]
        else:
            where = draw(st.lists(st.integers(0, 511), min_size=1, max_size=8, unique=True))
            first = draw(st.integers(1, 1 << 30))
            new = [Leaf(corner + i * PAGE, draw(st.sampled_from(small)), first + i) for i in where]
        for leaf in new:
            if all(leaf.end <= s or leaf.addr >= e for s, e in taken):
                leaves[leaf.addr] = leaf
                taken.append((leaf.addr, leaf.end))
    return sorted(leaves.values(), key=lambda leaf: leaf.addr)


@st.composite
def ranges(draw, levels):
    """(start, end), page aligned, mostly near the corners, sometimes everything."""
    top = 1 << (47 if levels == 4 else 56)
    if draw(st.integers(0, 3)) == 0:
        return 0, top
    edges = st.builds(
        lambda c, i: min(max(c + i * PAGE, 0), top), st.sampled_from([*corners(levels), top]), st.integers(-520, 1030),
    )
    a, b = draw(edges), draw(edges)
    if a == b:
        b = a + PAGE if a < top else a - PAGE
    return min(a, b), max(a, b)


def entry_at(rows, root, levels, addr, level):
    """(row, index) of the entry of addr at a level, found by hand."""
    row = root
    for at in range(levels, level, -1):
        e = int(rows[row, addr // ref.size(at) % 512])
        assert not ref.none(e), f"no table at level {at} for {addr:#x}"
        row = ref.pfn(e, at)
    return row, addr // ref.size(level) % 512


def build(tables, plan):
    """Put a plan into a PageTables."""
    for leaf in plan:
        level, flags, raw = KINDS[leaf.kind]
        tables.map(leaf.addr, leaf.pfn, flags, level)
        if raw is not None:
            row, index = entry_at(tables.rows, tables.root, tables.levels, leaf.addr, level)
            tables._rows[row, index] = leaf.raw()
    return tables
