"""Who owns a page, and so whether a store copies it: random processes against the rules as they are said."""

import numpy as np
import pytest
from hostcheck import check
from hypothesis import given
from hypothesis import strategies as st
from reference.owners import HUGE, Folio

from ksmwalk import Host
from ksmwalk.layout import Frame

PAGE = 4096
AT, AWAY = 1 << 30, 1 << 31
MOST = 6

who = st.integers(0, MOST - 1)
page = st.one_of(st.integers(0, 3), st.integers(0, HUGE - 1))
length = st.one_of(st.integers(1, 3), st.sampled_from([100, 500, 512]))
OPS = st.one_of(
    st.tuples(st.just("store"), who, page),
    st.tuples(st.just("store"), who, page),
    st.tuples(st.just("fork"), who),
    st.tuples(st.just("exit"), who),
    st.tuples(st.sampled_from(["dontneed", "munmap", "move"]), who, page, length),
    st.tuples(st.just("protect"), who, page, length),
    st.tuples(st.sampled_from(["pin", "unpin"]), who, page),
)


class Program:
    """A Host in which processes share a folio, and the reference that is told the same."""

    def __init__(self, pages):
        self.pages = pages
        self.host = Host(16384, thp="always" if pages == HUGE else "never", mthp={} if pages == HUGE else {pages * 4: "always"})
        mm = self.host.new_mm()
        mm.mmap(pages * PAGE, AT)
        mm.write(AT, 1)
        self.head = int(mm.read_pfns(AT, 1)[0])
        self.folio = Folio(mm.number, pages)
        self.mms, self.pins = [mm], []
        self.away = {mm.number: set()}  # pages that stand at the other place
        self.area = {mm.number: set(range(pages))}  # pages that have an area, wherever it is

    def place(self, mm, at):
        return (AWAY if at in self.away[mm.number] else AT) + at * PAGE

    def run(self, op):
        kind, at, *a = op
        if a:
            a[0] %= self.pages
        mm = self.mms[at % len(self.mms)]
        getattr(self, f"do_{kind}")(mm, *a)
        self.compare()

    def do_store(self, mm, at):
        if at in self.area[mm.number]:
            ours = self.folio.maps(mm.number, at)
            kept = ours and self.folio.store(mm.number, at)
            mm.write(self.place(mm, at), 5)
            assert (int(mm.read_pfns(self.place(mm, at), 1)[0]) == self.head + at) == kept, (mm, at)

    def do_fork(self, mm):
        if len(self.mms) < MOST:
            child = mm.fork()
            self.folio.fork(mm.number, child.number)
            self.mms.append(child)
            self.away[child.number] = set(self.away[mm.number])
            self.area[child.number] = set(self.area[mm.number])

    def do_exit(self, mm):
        if len(self.mms) > 1:
            if mm.number in self.folio.whole:
                self.folio.unmap(mm.number, 0, self.pages)
            self.folio.unmap(mm.number, 0, self.pages)
            self.mms.remove(mm)
            mm.exit()

    def do_dontneed(self, mm, at, n):
        self.drop(mm, at, n, False)

    def do_munmap(self, mm, at, n):
        self.drop(mm, at, n, True)

    def drop(self, mm, at, n, for_good):
        n = min(n, self.pages - at)
        if not self.fits(mm, at, n):
            return
        self.folio.unmap(mm.number, at, n)
        if for_good:
            self.area[mm.number] -= set(range(at, at + n))
            mm.munmap(AT + at * PAGE, n * PAGE)
        else:
            mm.madvise(AT + at * PAGE, n * PAGE, "dontneed")

    def fits(self, mm, at, n):
        """Whether all of these pages have their area at the first place."""
        return set(range(at, at + n)) <= self.area[mm.number] - self.away[mm.number]

    def do_move(self, mm, at, n):
        n = min(n, self.pages - at)
        if self.fits(mm, at, n):
            if n < HUGE:
                self.folio.split_pmd(mm.number)  # nothing else changes
            mm.mremap(AT + at * PAGE, n * PAGE, n * PAGE, AWAY + at * PAGE)
            self.away[mm.number] |= set(range(at, at + n))

    def do_protect(self, mm, at, n):
        n = min(n, self.pages - at)
        if self.fits(mm, at, n):
            if n < HUGE:
                self.folio.split_pmd(mm.number)
            mm.mprotect(AT + at * PAGE, n * PAGE, "r")
            mm.mprotect(AT + at * PAGE, n * PAGE, "rw")

    def do_pin(self, mm, at):
        if self.folio.maps(mm.number, at) and at in self.area[mm.number]:
            self.pins.append(self.host.pin(mm, self.place(mm, at)))
            self.folio.pins += 1

    def do_unpin(self, mm, at):
        if self.pins:
            self.host.unpin(self.pins.pop(at % len(self.pins)))
            self.folio.pins -= 1

    def compare(self):
        folio = self.folio
        if folio.total == 0:
            return  # it is gone
        owners = self.host.world.arrays["owners"][self.head >> 2]
        slots = [[0, 0] if slot is None else slot for slot in folio.slots]
        said = [owners["mm"].tolist(), owners["nr"].tolist(), int(owners["total"]), int(owners["shared"])]
        assert said == [[slots[0][0], slots[1][0]], [slots[0][1], slots[1][1]], folio.total, int(folio.shared)]
        if not folio.whole:
            flags = self.host.frames.flags[self.head : self.head + self.pages]
            mapped = set().union(*folio.parts.values())
            exclusive = set(np.flatnonzero(flags & Frame.EXCLUSIVE).tolist())
            assert exclusive & mapped == folio.exclusive & mapped


@pytest.mark.parametrize("pages", [HUGE, 256, 16, 4])
@given(ops=st.lists(OPS, max_size=60))
def test_the_two_owners_of_a_folio_are_those_of_the_rules(pages, ops):
    program = Program(pages)
    for op in ops:
        program.run(op)
        if program.folio.total == 0:
            break
    check(program.host, pinned=program.pins)


def forked(n, pages=HUGE, thp="always"):
    host = Host(16384, thp=thp)
    mm = host.new_mm()
    mm.mmap(pages * PAGE, AT)
    mm.write(AT, np.arange(pages, dtype=np.uint64))
    return host, [mm, *(mm.fork() for _ in range(n - 1))]


def test_the_third_process_never_owns_what_it_is_left_with_alone():
    host, (a, b, c) = forked(3)
    c.mprotect(AT, PAGE, "r")  # splits its pmd
    c.mprotect(AT, PAGE, "rw")
    before = c.read_pfns(AT, 2)
    a.exit()
    b.exit()
    c.write(AT, 7)
    assert c.read_pfns(AT, 1)[0] != before[0]
    check(host)


@pytest.mark.parametrize("left", [0, 1])
def test_of_two_processes_the_one_that_is_left_stores_in_place(left):
    host, mms = forked(2)
    mms.pop(left).exit()
    before = mms[0].read_pfns(AT, HUGE)
    mms[0].write(AT, np.full(HUGE, 3, np.uint64))
    assert (mms[0].read_pfns(AT, HUGE) == before).all()
    assert len(mms[0].tables.mappings()) == 1
    check(host)


def test_an_exclusive_page_is_stored_to_in_place_though_pinned_and_a_shared_one_is_not():
    host, (a,) = forked(1, 4, "never")
    first = host.pin(a, AT)
    a.mprotect(AT, 4 * PAGE, "r")
    a.mprotect(AT, 4 * PAGE, "rw")
    a.write(AT, 9)
    assert a.read_pfns(AT, 1)[0] == first
    child = a.fork()
    child.exit()
    a.write(AT, 10)  # alone again, but the pin is in the way
    assert a.read_pfns(AT, 1)[0] != first
    before = a.read_pfns(AT + PAGE, 1)
    a.write(AT + PAGE, 11)
    assert a.read_pfns(AT + PAGE, 1) == before
    host.unpin(first)
    check(host)


def test_a_page_in_the_batch_of_another_cpu_is_copied_and_in_that_of_this_one_is_not():
    host = Host(4096, nr_cpus=2)
    host.lru_batch = 31
    a = host.new_mm()
    a.mmap(2 * PAGE, AT)
    a.write(AT, [1, 2])
    before = a.read_pfns(AT, 2)
    a.fork().exit()
    a.write(AT, 3)
    assert a.read_pfns(AT, 1)[0] == before[0]
    a.write(AT + PAGE, 4)
    host.drain()
    a.madvise(AT, 2 * PAGE, "dontneed")
    a.write(AT, 5)
    b = a.fork()
    b.cpu = a.cpu = 1
    b.exit()
    before = a.read_pfns(AT, 1)
    a.write(AT, 6)
    assert a.read_pfns(AT, 1)[0] != before[0]
    check(host)
