"""Random programs of system calls and stores: contents against a plain dictionary, arrays against their invariants."""

import numpy as np
import pytest
from hostcheck import check
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import Host
from ksmwalk.errors import ArenaFullError

PAGE = 4096
BASE = 0x40000000
PAGES = 3 * 512  # three huge pages' worth

page = st.one_of(st.integers(0, 40), st.integers(500, 530), st.integers(0, PAGES - 1))
length = st.one_of(st.integers(1, 8), st.sampled_from([512, 600, 1024]))
keys = st.integers(0, 3)
who = st.integers(0, 7)

OPS = st.one_of(
    st.tuples(st.just("mmap"), who, page, length, st.sampled_from(["rw", "rw", "r", "none"]), st.booleans()),
    st.tuples(st.just("munmap"), who, page, length),
    st.tuples(st.just("mprotect"), who, page, length, st.sampled_from(["rw", "r", "none"])),
    st.tuples(st.just("madvise"), who, page, length, st.sampled_from(
        ["mergeable", "unmergeable", "hugepage", "hugepage", "nohugepage", "dontneed", "free", "dontfork", "dofork",
         "collapse", "populate_write", "guard_install", "guard_remove", "wipeonfork"])),
    st.tuples(st.just("mremap"), who, page, length, length, st.one_of(st.none(), page)),
    st.tuples(st.just("write"), who, page, keys),
    st.tuples(st.just("write"), who, page, keys),
    st.tuples(st.just("fill"), who, page, length),
    st.tuples(st.just("read"), who, page),
    st.tuples(st.just("poke"), who, page, keys),
    st.tuples(st.just("fork"), who),
    st.tuples(st.just("exit"), who),
    st.tuples(st.just("exec"), who),
    st.tuples(st.just("prctl"), who, st.booleans()),
    st.tuples(st.just("pin"), who, page),
    st.tuples(st.just("lru"), st.sampled_from([0, 1, 5])),
    st.tuples(st.just("mlock"), who, page, st.integers(1, 8)),
    st.tuples(st.just("ksm"), st.integers(1, 700)),
)


class Program:
    """A Host, and what each address space should read as: page number -> key."""

    def __init__(self, nr_frames=16 * 512, nodes=1, levels=4, thp="madvise"):
        self.host = Host(nr_frames, nodes, levels, thp=thp)
        self.host.ksm.smart_scan = 0
        self.host.ksm.run = 1
        self.mms, self.pins = [self.host.new_mm()], []

    def run(self, op):
        kind, *a = op
        if kind in ("lru", "ksm"):
            getattr(self, f"do_{kind}")(*a)
            return
        if not self.mms:
            self.mms.append(self.host.new_mm())
        mm = self.mms[a[0] % len(self.mms)]
        before = self.snapshot()
        changed = {id(mm)}
        try:
            getattr(self, f"do_{kind}")(mm, *a[1:])
        except (OSError, ArenaFullError):
            pass
        # Whatever one address space does, no other sees its private memory change.
        after = self.snapshot()
        for other, was in before.items():
            if other not in changed and other in after:
                assert after[other] == was, (op, diff(after[other], was))

    def snapshot(self):
        """Private contents that a load would see, of each address space."""
        return {id(mm): seen(mm) for mm in self.mms}

    def do_mmap(self, mm, first, n, prot, shared):
        mm.mmap(n * PAGE, BASE + first * PAGE, prot, shared=shared and n < 512)

    def do_munmap(self, mm, first, n):
        mm.munmap(BASE + first * PAGE, n * PAGE)
        assert not [v for v in mm.vmas if v.vm_start < BASE + (first + n) * PAGE and BASE + first * PAGE < v.vm_end]

    def do_mprotect(self, mm, first, n, prot):
        was = seen(mm)
        try:
            mm.mprotect(BASE + first * PAGE, n * PAGE, prot)
        finally:
            assert seen(mm) == was

    def do_madvise(self, mm, first, n, advice):
        was = seen(mm)
        try:
            mm.madvise(BASE + first * PAGE, n * PAGE, advice)
        finally:
            if advice not in ("dontneed", "guard_install", "guard_remove"):
                now = seen(mm)
                assert now == was, (advice, diff(now, was))

    def do_mremap(self, mm, first, old, new, to):
        where = None if to is None else BASE + to * PAGE
        was = seen(mm)
        got = mm.mremap(BASE + first * PAGE, old * PAGE, new * PAGE, where)
        now = mm.read_keys(got, min(old, new))
        for i in range(min(old, new)):
            if first + i in was:
                assert now[i] == was[first + i], (i, was[first + i], now[i])

    def do_write(self, mm, first, key):
        mm.write(BASE + first * PAGE, key)
        assert mm.read_keys(BASE + first * PAGE, 1)[0] == key

    def do_fill(self, mm, first, n):
        content = (np.arange(n) % 5).astype(np.uint64)
        mm.write(BASE + first * PAGE, content)
        assert np.array_equal(mm.read_keys(BASE + first * PAGE, n), content)

    def do_read(self, mm, first):
        was = seen(mm)
        got, area = mm.read(BASE + first * PAGE), mm.find_vma(BASE + first * PAGE)
        assert got == was.get(first, 0) or area.backing
        assert {k: v for k, v in seen(mm).items() if v} == {k: v for k, v in was.items() if v}

    def do_poke(self, mm, first, key):
        mm.poke(BASE + first * PAGE, key)
        assert mm.read_keys(BASE + first * PAGE, 1)[0] == key

    def do_fork(self, mm):
        if len(self.mms) < 4:
            child = mm.fork()
            self.mms.append(child)

    def do_exit(self, mm):
        self.mms.remove(mm)
        mm.exit()

    def do_exec(self, mm):
        mm.exec()
        assert not mm.vmas

    def do_prctl(self, mm, on):
        was = seen(mm)
        mm.prctl_merge(on)
        assert seen(mm) == was

    def do_pin(self, mm, first):
        if len(self.pins) > 2:
            self.host.unpin(self.pins.pop(0))
        self.pins.append(self.host.pin(mm, BASE + first * PAGE))

    def do_mlock(self, mm, first, n):
        mm.mlock(BASE + first * PAGE, n * PAGE)

    def do_lru(self, n):
        self.host.lru_batch = n

    def do_ksm(self, n):
        before = self.snapshot()
        self.host.ksm.do_scan(n)
        after = self.snapshot()
        for mm in before:
            assert after[mm] == before[mm], diff(after[mm], before[mm])


def seen(mm):
    """Page -> key of what is present (areas shared with others left out), zero pages as 0."""
    out = {}
    for v in mm.vmas:
        if v.backing or v.vm_end > BASE + 4 * PAGES * PAGE:
            continue
        n = (v.vm_end - v.vm_start) // PAGE
        first = (v.vm_start - BASE) // PAGE
        pfns, found = mm.read_pfns(v.vm_start, n), mm.read_keys(v.vm_start, n)
        for i in np.flatnonzero((pfns >= 0) & (found != 0)):
            out[first + int(i)] = int(found[i])
    return out


def diff(a, b):
    return {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}


@given(st.lists(OPS, min_size=5, max_size=40), st.sampled_from([(4, "madvise"), (5, "always")]))
def test_random_programs(ops, how):
    levels, thp = how
    program = Program(levels=levels, thp=thp)
    program.run(("mmap", 0, 0, PAGES, "rw", False))
    program.run(("madvise", 0, 0, 512, "hugepage"))
    for op in [("madvise", 0, 0, PAGES, "mergeable"), *ops]:
        program.run(op)
        check(program.host, program.pins)
    for mm in program.mms:
        mm.exit()
    for pfn in program.pins:
        program.host.unpin(pfn)
    program.host.drain()
    check(program.host)
    kept = 1 + (512 if program.host.world.arrays["ctl"]["huge_zero"][0] >= 0 else 0)
    assert program.host.frames_used == kept and program.host.tables.nr_tables == 0


@given(st.lists(OPS, min_size=5, max_size=30))
def test_scarce_frames(ops):
    program = Program(nr_frames=3 * 512 + 100, nodes=2, thp="always")
    program.run(("mmap", 0, 0, PAGES, "rw", False))
    for op in ops:
        program.run(op)
        check(program.host, program.pins)


def test_frames_come_from_the_preferred_node_and_then_from_others():
    host = Host(4 * 512, 2)
    mm = host.new_mm(nid=1)
    start = mm.mmap(1500 * PAGE)
    mm.populate(start, 1024 * PAGE)
    assert set(host.frames.nid[mm.read_pfns(start, 1024)]) == {1}
    mm.write(start + 1024 * PAGE, 1)
    assert host.frames.nid[mm.read_pfns(start + 1024 * PAGE, 1)[0]] == 0
    other = host.new_mm()
    at = other.mmap(PAGE)
    other.write(at, 7)
    assert host.frames.nid[other.read_pfns(at, 1)[0]] == 0
    mm.munmap(start, 1500 * PAGE)
    other.write(at, 8, nid=1)
    assert host.frames.nid[other.read_pfns(at, 1)[0]] == 0, "an existing page stays where it is"
    check(host)


def test_no_frame_left_is_an_error_that_says_so():
    host = Host(600)
    mm = host.new_mm()
    start = mm.mmap(1000 * PAGE)
    with pytest.raises(ArenaFullError, match="no frames left"):
        mm.populate(start, 1000 * PAGE)
    assert host.frames_used == 600
    check(host)
    mm.munmap(start, 500 * PAGE)
    mm.write(start + 999 * PAGE, 1)
    check(host)
