"""userfaultfd against a slow and plain second implementation: a list of pages, each with what is known of it."""

import errno
from dataclasses import dataclass

from hostcheck import check
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import Host

PAGE = 4096
BASE = 1 << 32
N = 12
UFFD_WP = 1 << 10


class Refused(Exception):
    pass


@dataclass
class Page:
    """Key None: absent; zero: the zero page; shared: a child has, or had, it too since the last store."""

    key: int | None = None
    zero: bool = False
    marked: bool = False
    protected: bool = False
    shared: bool = False


class Slow:
    """What Linux 6.18 was seen to do, one page after the other."""

    def __init__(self):
        self.pages = [Page() for _ in range(N)]
        self.modes = [frozenset()] * N

    def _same_area(self, i, n):
        if i + n > N or len(set(self.modes[i : i + n])) > 1:
            raise Refused(errno.EINVAL)

    def register(self, i, n, modes):
        modes = frozenset(modes)
        if not modes - {"async"}:
            raise Refused(errno.EINVAL)
        for k in range(i, min(i + n, N)):
            if not modes <= self.modes[k]:
                self.modes[k] = modes

    def unregister(self, i, n):
        for k in range(i, min(i + n, N)):
            if "wp" in self.modes[k]:
                self._open(k)
            self.modes[k] = frozenset()

    def _open(self, k):
        self.pages[k].protected = self.pages[k].marked = False

    def protect(self, i, n, on):
        for k in range(i, min(i + n, N)):
            if "wp" not in self.modes[k]:
                raise Refused(errno.ENOENT)
            if not on:
                self._open(k)
            elif self.pages[k].key is None:
                self.pages[k].marked = True
            else:
                self.pages[k].protected = True

    def _met(self, i):
        """A page as a fault finds it: a marker of an area that is not watched for stores any more goes."""
        if "wp" not in self.modes[i]:
            self.pages[i].marked = False
        return self.pages[i]

    def read(self, i):
        if self.pages[i].key is None:
            page = self._met(i)
            if "missing" in self.modes[i]:
                raise Refused(errno.EFAULT)
            self.pages[i] = Page(0, zero=True, protected=page.marked)

    def write(self, i, key):
        page = self._met(i)
        if page.key is None and "missing" in self.modes[i]:
            raise Refused(errno.EFAULT)
        if (page.marked or page.protected) and "wp" in self.modes[i] and "async" not in self.modes[i]:
            if page.marked:
                self.pages[i] = Page(0, protected=True)
            raise Refused(errno.EFAULT)
        self.pages[i] = Page(key)

    def copy(self, i, key, wp):
        if not self.modes[i]:
            raise Refused(errno.ENOENT)
        if wp and "wp" not in self.modes[i]:
            raise Refused(errno.EINVAL)
        if self.pages[i].key is not None:
            raise Refused(errno.EEXIST)
        self.pages[i] = Page(key, protected=wp)

    def zero(self, i):
        if not self.modes[i]:
            raise Refused(errno.ENOENT)
        if self.pages[i].key is not None or self.pages[i].marked:
            raise Refused(errno.EEXIST)
        self.pages[i] = Page(0, zero=True)

    def move(self, to, i, n):
        self._same_area(i, n)
        self._same_area(to, n)
        if not self.modes[to]:
            raise Refused(errno.EINVAL)
        for k in range(n):
            page, place = self.pages[i + k], self.pages[to + k]
            if place.key is not None or place.marked:
                raise Refused(errno.EEXIST)
            if page.shared and not page.zero:
                raise Refused(errno.EBUSY)
            if page.key is None:
                raise Refused(errno.EFAULT if page.marked else errno.ENOENT)
            self.pages[to + k] = Page(page.key, zero=page.zero)
            self.pages[i + k] = Page()

    def dontneed(self, i, n):
        for k in range(i, min(i + n, N)):
            self.pages[k] = Page()

    def fork(self):
        for page in self.pages:
            page.shared = page.key is not None and not page.zero

    def shown(self):
        return [("s" if page.marked else page.key, page.protected, page.zero) for page in self.pages]


PLACE, LENGTH, KEY = st.integers(0, N - 1), st.integers(1, 4), st.integers(1, 3)
MODES = st.sets(st.sampled_from(["missing", "wp", "wp", "async"]))
OPS = st.one_of(
    st.tuples(st.just("register"), PLACE, st.integers(1, N), MODES),
    st.tuples(st.just("unregister"), PLACE, LENGTH),
    st.tuples(st.just("protect"), PLACE, LENGTH, st.booleans()),
    st.tuples(st.just("read"), PLACE),
    st.tuples(st.just("write"), PLACE, KEY),
    st.tuples(st.just("copy"), PLACE, KEY, st.booleans()),
    st.tuples(st.just("zero"), PLACE),
    st.tuples(st.just("move"), PLACE, PLACE, LENGTH),
    st.tuples(st.just("dontneed"), PLACE, LENGTH),
    st.tuples(st.just("fork")),
)


def addr(i):
    return BASE + i * PAGE


def bytes_of(i, n):
    return (min(i + n, N) - i) * PAGE


def do(mm, op, *args):
    match op, args:
        case "register", (i, n, modes):
            named = {"asynchronous" if mode == "async" else mode: True for mode in modes}
            mm.uffd_register(addr(i), bytes_of(i, n), **named)
        case "unregister", (i, n):
            mm.uffd_unregister(addr(i), bytes_of(i, n))
        case "protect", (i, n, on):
            mm.uffd_protect(addr(i), bytes_of(i, n), on)
        case "read", (i,):
            mm.read(addr(i))
        case "write", (i, key):
            mm.write(addr(i), key)
        case "copy", (i, key, wp):
            mm.uffd_copy(addr(i), key, wp=wp)
        case "zero", (i,):
            mm.uffd_zero(addr(i), PAGE)
        case "move", (to, i, n):
            mm.uffd_move(addr(to), addr(i), n * PAGE)
        case "dontneed", (i, n):
            mm.madvise(addr(i), bytes_of(i, n), "dontneed")
        case "fork", ():
            mm.fork().exit()


def shown(mm):
    absent = {int(one) for one in mm.absent_entries()}
    flags = {int(leaf["addr"]): int(leaf["flags"]) for leaf in mm.tables.mappings()}
    pfns, keys = mm.read_pfns(BASE, N).tolist(), mm.read_keys(BASE, N).tolist()
    return [
        (
            "s" if addr(i) in absent else None if pfns[i] < 0 else keys[i],
            bool(flags.get(addr(i), 0) & UFFD_WP),
            pfns[i] == 0,
        )
        for i in range(N)
    ]


@given(st.lists(OPS, min_size=1, max_size=40))
def test_pages_are_what_a_plain_list_of_them_says(ops):
    mm = Host(4096).new_mm()
    mm.mmap(N * PAGE, BASE)
    mm.write(BASE, 1)  # all parts of the area have one anon_vma, and join where they are alike
    slow = Slow()
    slow.pages[0] = Page(1)
    for op, *args in ops:
        wanted = got = 0
        try:
            getattr(slow, op)(*args)
        except Refused as error:
            (wanted,) = error.args
        try:
            do(mm, op, *args)
        except OSError as error:
            got = error.errno
        assert got == wanted, (op, args)
        assert shown(mm) == slow.shown(), (op, args)
    check(mm.host)
