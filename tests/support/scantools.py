"""Random programs of address-space operations, run on several Hosts at once and on the reference cursor."""

import numpy as np
from hypothesis import strategies as st
from reference import cursor as slow
from reference import tables as slow_tables

from ksmwalk import Host

PAGE, PMD = 4096, 2 << 20
MERGEABLE = 0x80000000
#: where the areas of a program lie: small ones, one that a huge page fits into, a sparse one
AREAS = [(0x10000000, 8), (0x10100000, 16), (0x20000000, 1024), (0x7000000000, 4), (0x40000000, 1 << 14)]


def number(limit):
    return st.integers(0, limit - 1)


#: operations: name and up to four numbers, made valid by taking them modulo what there is
OPERATIONS = st.one_of(
    st.tuples(st.just("mmap"), number(8), number(len(AREAS))),
    st.tuples(st.just("mergeable"), number(8), number(len(AREAS)), number(8)),
    st.tuples(st.just("mergeable"), number(8), number(len(AREAS)), st.just(0)),
    st.tuples(st.just("unmergeable"), number(8), number(len(AREAS)), number(8)),
    st.tuples(st.just("hugepage"), number(8)),
    st.tuples(st.just("write"), number(8), number(len(AREAS)), number(1 << 14), number(4)),
    st.tuples(st.just("write"), number(8), number(len(AREAS)), number(16), number(4)),
    st.tuples(st.just("write"), number(8), number(len(AREAS)), number(16), number(4)),
    st.tuples(st.just("read"), number(8), number(len(AREAS)), number(16)),
    st.tuples(st.just("munmap"), number(8), number(len(AREAS)), number(16), number(16)),
    st.tuples(st.just("dontneed"), number(8), number(len(AREAS)), number(16), number(16)),
    st.tuples(st.just("protect"), number(8), number(len(AREAS)), number(16), number(3)),
    st.tuples(st.just("spawn")),
    st.tuples(st.just("fork"), number(8)),
    st.tuples(st.just("exit"), number(8)),
    st.tuples(st.just("exit_at_cursor")),
    st.tuples(st.just("munmap_at_cursor"), number(3)),
    st.tuples(st.just("write_at_cursor"), number(3)),
    st.tuples(st.just("smart"), number(2)),
    st.tuples(st.just("mark_ksm"), number(100)),
    st.tuples(st.just("next"), number(12)),
    st.tuples(st.just("next"), number(12)),
    st.tuples(st.just("next"), st.just(60)),
)


class Sut:
    """One Host under a program."""

    def __init__(self, strategy="range", real=False, batched=False, levels=4):
        self.host = Host(16384, levels=levels)
        self.scan = self.host.ksm.scan
        self.scan.strategy = strategy
        self.scan.real_lookups = real
        self.batched = batched
        self.names = {}  # mm number -> name
        self.mms = {}  # name -> Mm, the living

    def add(self, name, mm):
        self.names[number_of(mm)] = name
        self.mms[name] = mm

    def arrays(self):
        return self.host.world.arrays

    def do(self, name, method, *args, **kw):
        """The result of a call, or the errno it fails with."""
        try:
            return getattr(self.mms[name], method)(*args, **kw)
        except OSError as err:
            return ("errno", err.errno)

    def pages(self, n):
        """The next n pages, as (name, addr, pfn)."""
        if self.batched:
            return self.scan.scan(n)
        out = []
        for _ in range(n):
            found = self.scan.scan_get_next_rmap_item()
            if found is None:
                break
            item, pfn = found
            out.append((self.names[number_of(item.mm)], int(item.address), int(pfn)))
        return out

    def slots(self):
        mms, out = self.arrays()["mms"], []
        at = int(mms[0]["slot_next"])
        while at:
            out.append(self.names[at])
            at = int(mms[at]["slot_next"])
        return out

    def items(self, name):
        """(addr, age, skips) of every rmap_item of an mm on the list."""
        mms, items = self.arrays()["mms"], self.arrays()["items"]
        ident = next(i for i, n in self.names.items() if n == name)
        out, at = [], int(mms[ident]["rmap_list"])
        while at:
            r = items[at]
            assert int(r["mm"]) == ident
            out.append((int(r["addr"]), int(r["age"]), int(r["skips"])))
            at = int(r["next"])
        assert len(out) == int(mms[ident]["nr_rmap_items"])
        return out

    def state(self):
        """Everything that the cursor owns."""
        at = int(self.arrays()["cursor"][0]["slot"])
        return {
            "slots": [(name, self.items(name)) for name in self.slots()],
            "at": self.names[at] if at else None,
            "address": int(self.scan.address) if at else 0,
            "seqnr": int(self.scan.seqnr),
            "live": int(self.arrays()["ctl"][0]["items_live"]),
        }


def number_of(mm):
    """The number of an address space in the Host's arrays."""
    return int(mm if isinstance(mm, (int, np.integer)) else mm.number)


class Model:
    """The reference cursor, looking at the arrays of one Sut."""

    def __init__(self, sut):
        self.sut = sut
        self.dead = set()
        self.cursor = slow.Cursor(self.space, sut.arrays()["f_flags"])

    def space(self, name):
        if name in self.dead:
            return slow.Space(name, [], None, exiting=True)
        arrays = self.sut.arrays()
        mm = self.sut.mms[name]
        record, vmas = arrays["mms"][number_of(mm)], []
        at = int(record["vma_first"])
        while at:
            v = arrays["vmas"][at]
            vmas.append((int(v["start"]), int(v["end"]), bool(int(v["flags"]) & MERGEABLE), bool(v["anon_vma"])))
            at = int(v["next"])
        tables = slow_tables.Tables(arrays["rows"], int(record["root"]), int(arrays["ctl"][0]["levels"]))
        return slow.Space(name, vmas, tables)

    def state(self):
        c = self.cursor
        return {
            "slots": [(s.ident, [i.state() for i in s.items]) for s in c.slots],
            "at": c.at.ident if c.at else None,
            "address": c.address if c.at else 0,
            "seqnr": c.seqnr,
            "live": sum(len(s.items) for s in c.slots),
        }


class World:
    """Several Suts driven by one program; the first carries the reference."""

    def __init__(self, suts, model=True):
        self.suts = suts
        self.model = Model(suts[0]) if model else None
        self.born = 0
        self.spawn()

    def spawn(self):
        self.born += 1
        for sut in self.suts:
            sut.add(f"P{self.born}", sut.host.new_mm())

    def living(self):
        return list(self.suts[0].mms)

    def each(self, name, method, *args, **kw):
        """The same call on every Host; all must answer alike."""
        first, *rest = [sut.do(name, method, *args, **kw) for sut in self.suts]
        for other in rest:
            assert same(first, other), (name, method, args, first, other)
        return first

    def run(self, op):
        kind, *n = op
        living = self.living()
        name = living[n[0] % len(living)] if n and living else None
        handler = getattr(self, f"do_{kind}")
        if kind == "spawn" and len(living) < 5:
            self.spawn()
        elif kind in ("exit_at_cursor", "munmap_at_cursor", "write_at_cursor", "smart", "mark_ksm", "next"):
            handler(*n)
        elif kind != "spawn" and name is not None:
            handler(name, *n[1:])

    # ------------------------------------------------------ operations

    def do_spawn(self):
        raise AssertionError("handled by run()")

    def do_mmap(self, name, area):
        start, pages = AREAS[area]
        self.each(name, "munmap", start, pages * PAGE)
        self.each(name, "mmap", pages * PAGE, addr=start, noreserve=pages > 5000)

    def do_mergeable(self, name, area, skip):
        start, pages = AREAS[area]
        skip = min(skip, pages - 1)
        self.each(name, "madvise", start + skip * PAGE, (pages - skip) * PAGE, "mergeable")
        if self.model and any(v[2] for v in self.model.space(name).vmas):
            self.model.cursor.enter(name)

    def do_unmergeable(self, name, area, keep):
        start, pages = AREAS[area]
        keep = min(keep, pages - 1)
        for sut in self.suts:  # nothing that is only called a KSM page can be broken
            sut.arrays()["f_flags"][:] &= ~np.uint16(2)
        self.each(name, "madvise", start + keep * PAGE, (pages - keep) * PAGE, "unmergeable")

    def do_hugepage(self, name):
        start, pages = AREAS[2]
        self.each(name, "madvise", start, pages * PAGE, "hugepage")

    def mapped(self, name, addr):
        return any(v.vm_start <= addr < v.vm_end and v.vm_flags & 2 for v in self.suts[0].mms[name].vmas)

    def write(self, name, addr, key):
        if self.mapped(name, addr):
            self.each(name, "write", addr, key)

    def do_write(self, name, area, page, key):
        start, pages = AREAS[area]
        self.write(name, start + page % pages * PAGE, key)

    def do_read(self, name, area, page):
        start, pages = AREAS[area]
        addr = start + page % pages * PAGE
        if any(v.vm_start <= addr < v.vm_end and v.vm_flags & 1 for v in self.suts[0].mms[name].vmas):
            self.each(name, "read", addr)

    def do_munmap(self, name, area, first, nr):
        start, pages = AREAS[area]
        self.each(name, "munmap", start + first % pages * PAGE, (nr + 1) * PAGE)

    def do_dontneed(self, name, area, first, nr):
        start, pages = AREAS[area]
        first %= pages
        self.each(name, "madvise", start + first * PAGE, min(nr + 1, pages - first) * PAGE, "dontneed")

    def do_protect(self, name, area, first, what):
        start, pages = AREAS[area]
        self.each(name, "mprotect", start + first % pages * PAGE, PAGE, ["none", "r", "rw"][what])

    def do_fork(self, name):
        if len(self.living()) >= 5:
            return
        self.born += 1
        child = f"P{self.born}"
        for sut in self.suts:
            sut.add(child, sut.mms[name].fork())
        if self.model and self.model.cursor.slot(name):
            self.model.cursor.enter(child)

    def do_exit(self, name):
        if self.model:
            self.model.cursor.exit(name)
            self.model.dead.add(name)
        for sut in self.suts:
            sut.mms.pop(name).exit()

    def at_cursor(self):
        """(name, address) of the cursor, where it is in a living address space."""
        sut = self.suts[0]
        at = int(sut.arrays()["cursor"][0]["slot"])
        name = sut.names[at] if at else None
        return (name, int(sut.scan.address)) if name in sut.mms else (None, 0)

    def do_exit_at_cursor(self):
        name, _ = self.at_cursor()
        if name:
            self.do_exit(name)

    def do_munmap_at_cursor(self, n):
        name, addr = self.at_cursor()
        if name and addr >= n * PAGE:
            self.each(name, "munmap", addr - n * PAGE, (n + 1) * PAGE)

    def do_write_at_cursor(self, n):
        name, addr = self.at_cursor()
        if name:
            self.write(name, addr + n * PAGE, 3)

    def do_smart(self, on):
        for sut in self.suts:
            sut.host.ksm.smart_scan = on
        if self.model:
            self.model.cursor.smart_scan = bool(on)

    def do_mark_ksm(self, which):
        """Call a page a KSM page: smart scan leaves those alone."""
        for sut in self.suts:
            flags = sut.arrays()["f_flags"]
            anon = np.nonzero(flags & 1)[0]
            if len(anon):
                flags[anon[which % len(anon)]] |= 2

    def do_next(self, n):
        got = [sut.pages(n) for sut in self.suts]
        if self.model:
            got.append(self.model.cursor.scan(n))
        lists = [g for g in got if isinstance(g, list)]
        for other in lists[1:]:
            assert other == lists[0]
        for g in got:
            assert len(lists[0]) == (g if isinstance(g, int) else len(g))
        self.check()

    def check(self):
        states = [sut.state() for sut in self.suts]
        if self.model:
            states.append(self.model.state())
        for other in states[1:]:
            assert other == states[0]


def same(a, b):
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and (a == b or not isinstance(a, (int, tuple, str)))
