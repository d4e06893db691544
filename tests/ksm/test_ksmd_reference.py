"""Whole scans of the engine against a slow reference that shares no code with it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from ksmcheck import check_ksm
from reference.slow_ksm import SlowKsm

from ksmwalk.host.host import Host
from ksmwalk.layout import Frame

PAGE = 4096
BASE = 1 << 32
MOST = 12

contents = st.integers(0, 4)
places = st.integers(0, MOST - 1)
which = st.integers(0, 5)
changes = st.one_of(
    st.tuples(st.just("spawn"), st.lists(contents, min_size=1, max_size=MOST)),
    st.tuples(st.just("write"), which, places, contents),
    st.tuples(st.just("write"), which, places, contents),
    st.tuples(st.just("discard"), which, places),
    st.tuples(st.just("exit"), which),
    st.tuples(st.just("smart_scan"), st.booleans()),
    st.tuples(st.just("use_zero_pages"), st.booleans()),
    st.tuples(st.just("idle"), st.integers(1, 5)),
)


class Pair:
    """The same processes in the engine and in the reference."""

    def __init__(self):
        self.host, self.slow, self.both = Host(4096), SlowKsm(), []

    def spawn(self, keys):
        mm = self.host.new_mm()
        mm.mmap(MOST * PAGE, BASE)
        mm.write(BASE, np.array(keys, np.uint64))
        mm.madvise(BASE, MOST * PAGE, "mergeable")
        self.host.drain()
        self.both.append((mm, self.slow.spawn(keys)))

    def pick(self, number):
        return self.both[number % len(self.both)]

    def write(self, number, place, key):
        if self.both:
            mm, slow = self.pick(number)
            mm.write(BASE + place * PAGE, key)
            self.slow.write(slow, place, key)

    def discard(self, number, place):
        if self.both:
            mm, slow = self.pick(number)
            mm.madvise(BASE + place * PAGE, PAGE, "dontneed")
            self.slow.gone(slow, place)

    def exit(self, number):
        if self.both:
            mm, slow = self.both.pop(number % len(self.both))
            mm.exit()
            self.slow.exit(slow)

    def smart_scan(self, on):
        self.host.ksm.smart_scan = self.slow.smart_scan = on

    def use_zero_pages(self, on):
        self.host.ksm.use_zero_pages = self.slow.use_zero_pages = on

    def idle(self, scans):
        for _ in range(scans):
            self.scan()

    def scan(self):
        self.host.drain()
        before = self.host.ksm.full_scans
        while self.host.ksm.registered and self.host.ksm.full_scans == before:
            self.host.ksm.do_scan(5)
        self.slow.scan()
        seen = self.host.ksm.counters()
        assert {name: seen[name] for name in self.slow.counters()} == self.slow.counters()
        for mm, slow in self.both:
            assert self.classes(mm) == self.slow.classes(slow)
        check_ksm(self.host)

    def classes(self, mm):
        pfns, keys = mm.read_pfns(BASE, MOST), mm.read_keys(BASE, MOST)
        flags, first, out = self.host.frames.flags, {}, []
        for number in range(MOST):
            pfn = int(pfns[number])
            if pfn >= 0:
                zero, ksm = bool(flags[pfn] & Frame.ZERO), bool(flags[pfn] & Frame.KSM)
                out.append((number, zero, ksm, first.setdefault(pfn, number), int(keys[number])))
        return out


@given(st.lists(st.lists(changes, max_size=8), min_size=1, max_size=12))
def test_whole_scans_come_out_alike(rounds):
    pair = Pair()
    pair.spawn([1, 1, 2, 0, 0])
    for round_ in rounds:
        for what, *arguments in round_:
            getattr(pair, what)(*arguments)
        pair.scan()
