"""The Python face of the walk: entries and walks as callbacks see them, and the C callbacks that call Python.

The contract of the callbacks stands in `pagewalk.py`.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    child_row, entry_find, entry_leaf, entry_none, entry_pfn, entry_present, level_index, mm_changed,
)
from ksmwalk.tables._read cimport Tables, own_table, row_of_frame
from ksmwalk.tables._walk cimport (
    WALK_BAD, WALK_NOROWS, descend, done_fn, entry_fn, hole_fn, inside_vma, over_vmas, prepare, range_fn,
    walk_ops, walk_state,
)
from ksmwalk.layout._layout cimport *


from ksmwalk.gate import as_int, shown

# What a Python callback answers to the C walker after its result or exception was put aside.
cdef int STOP = 1
cdef object MAX64 = (1 << 64) - 1


cdef bint stands(walk_state *s, Tables tables, uint64_t addr) noexcept:
    """Whether the tables on the way down to addr are those the walk came through."""
    cdef int lv = <int>s.tables.levels, lowest = 1
    cdef int64_t row = s.tables.root
    cdef uint64_t *p
    if tables.life is not None and tables.life.gone:
        return False
    while lowest <= lv and s.rows[lowest] < 0:
        lowest += 1
    while lv >= lowest:
        if s.rows[lv] != row:
            return False
        p = s.world.rows + row * 512 + level_index(addr, lv)
        row = KW_NONE if lv == 1 else child_row(s.world, p)
        lv -= 1
    return True


cdef int still_there(MmWalk walk, uint64_t addr) except -1:
    """After a callback: the tables the walk stands on must not be among those it freed."""
    cdef walk_state *s = walk.s
    if s.world == NULL or s.world.rows_freed == s.freed:
        return 0
    if not stands(s, walk.tables, addr):
        raise ReferenceError(f"a callback freed the page tables that were being walked, at address {addr:#x}")
    s.freed = s.world.rows_freed
    return 0


cdef class Entry:
    """One packed entry in its place, as a callback sees it: readable and, in a Host's tables, writable.

    Good during the callback only; used later, or after its table was freed, it raises ReferenceError.

    Models: the pgd_t, p4d_t, pud_t, pmd_t and pte_t pointers of struct mm_walk_ops of Linux 6.18.
    Differs: one type for all levels, which knows its level.
    """

    cdef uint64_t *p
    cdef walk_state *s
    cdef Tables tables
    cdef uint64_t addr
    cdef object view               # of the 512 ptes below, given out in this callback
    cdef readonly int level

    cdef uint64_t get(self) except? 0x5ca1ab1e:
        if self.p == NULL:
            raise ReferenceError("a page-table entry of a callback that has returned")
        if self.s.world != NULL and self.s.world.rows_freed != self.s.freed and not self.in_place():
            raise ReferenceError(f"the table of the entry at address {self.addr:#x}, level {self.level} was freed")
        return self.p[0]

    cdef bint in_place(self) noexcept:
        # In hugetlb memory the walk stands on no tables: the entry is looked up anew.
        cdef kw_world *w = self.s.world
        if not stands(self.s, self.tables, self.addr):
            return False
        if self.s.rows[self.s.tables.levels] >= 0:
            return True
        return self.p == entry_find(w, self.s.tables.root, self.addr, self.level)

    cdef void changed(self) noexcept:
        if self.tables.mm:
            mm_changed(self.s.world, self.tables.mm, 1)

    cdef int close(self) except -1:
        # Whoever kept the view can go on reading, but writes to a table later are no business of this walk.
        if self.view is not None:
            self.view.setflags(False)
            self.view = None
            self.changed()
        return 0

    @property
    def value(self):
        """The raw 64 bits."""
        return self.get()

    @value.setter
    def value(self, e):
        self.get()
        if self.s.world == NULL:
            raise ValueError("page tables of an image are read-only")
        self.p[0] = <uint64_t>as_int(e, "entry", 0, MAX64)
        self.changed()

    @property
    def none(self):
        """Whether nothing is there."""
        return entry_none(self.get())

    @property
    def present(self):
        """Whether the kernel calls it present at its level."""
        return entry_present(self.get(), self.level)

    @property
    def leaf(self):
        """Whether it maps pages itself."""
        cdef uint64_t e = self.get()
        return entry_present(e, self.level) and entry_leaf(e, self.level)

    @property
    def pfn(self):
        """Frame number it holds, decoded."""
        return entry_pfn(self.get(), self.level)

    @property
    def ptes(self):
        """The 512 ptes below a pmd that points to a table: a zero-copy uint64 array. None for any other entry.

        In a Host's tables it may be written to until the callback returns.
        """
        cdef uint64_t e = self.get()
        cdef int64_t row
        if self.level != 2 or not (e & PTE_P) or entry_leaf(e, 2):
            return None
        row = row_of_frame(self.s.tables, (e & PTE_PFN_MASK) >> 12)
        if row < 0 or not own_table(self.s.tables, row, 1):
            return None
        if self.view is not None:
            return self.view
        view = self.tables.arrays[0][row]
        if self.s.world == NULL:
            view.flags.writeable = False
        else:
            self.view = view
        return view

    def __int__(self):
        return self.get()

    def __repr__(self):
        return f"<Entry level {self.level} {self.get():#018x}>" if self.p != NULL else "<Entry, gone>"


cdef class MmWalk:
    """A walk under way, as callbacks see it (`struct mm_walk`).

    Attributes
    ----------
    mm : Mm or None
        The address space.
    vma : Vma or None
        The mapping walked now; None outside every vma and in a walk without vmas.
    ops : MmWalkOps
        The callbacks.
    private : object
        What the caller passed.
    action : Action
        Set by a pud or pmd callback: SUBTREE (default), CONTINUE, AGAIN.

    Models: struct mm_walk of Linux 6.18. Differs: no_vma is `vma is None`.
    """

    cdef walk_state *s
    cdef Tables tables
    cdef readonly object mm
    cdef readonly object ops
    cdef public object private
    cdef object given_vma
    cdef object result
    cdef object failed
    cdef object high               # in the upper half of the address space: what makes an address canonical
    cdef tuple fns                 # pgd, p4d, pud, pmd, pte, hugetlb, hole, test, pre, post
    cdef list entries              # one reusable door a level

    @property
    def vma(self):
        if self.s == NULL:
            raise ReferenceError("a walk that has ended")
        if self.s.vma == 0:
            return None
        if self.given_vma is not None:
            return self.given_vma
        if self.s.world.vmas[self.s.vma].mm != self.s.mm:
            raise ReferenceError(f"vma {self.s.vma} is gone: a callback unmapped it")
        return self.mm._area(self.s.vma)

    @property
    def action(self):
        return ACTIONS[self.s.action] if self.s != NULL else None

    @action.setter
    def action(self, value):
        if self.s == NULL:
            raise ReferenceError("a walk that has ended")
        self.s.action = as_int(value, "action", 0, 2)


cdef tuple ACTIONS = (0, 1, 2)


def set_actions(*actions):
    """Give the values of `Action` (pagewalk.py) to the compiled side."""
    global ACTIONS
    ACTIONS = actions


cdef int settle(MmWalk walk, object result) except? -7:
    """What a callback's answer means to the C walker; the answer itself is kept as it is."""
    if result is None:
        return 0
    if not isinstance(result, int):
        raise TypeError(f"a callback returned {shown(result)}: must be an int or None")
    if not result:
        return 0
    walk.result = result
    return STOP


cdef int call_entry(int slot, uint64_t *p, uint64_t addr, uint64_t next, walk_state *s) noexcept:
    cdef MmWalk walk = <MmWalk>s.user
    cdef Entry entry = <Entry>walk.entries[s.level]
    cdef int code
    entry.p = p
    entry.addr = addr
    try:
        if walk.high is not None:
            code = settle(walk, walk.fns[slot](entry, addr + walk.high, next + walk.high, walk))
        else:
            code = settle(walk, walk.fns[slot](entry, addr, next, walk))
        entry.close()
        if code == 0:
            still_there(walk, addr)
        return code
    except BaseException as err:
        entry.close()
        walk.failed = err
        return STOP


cdef int py_pgd(uint64_t *p, uint64_t a, uint64_t n, walk_state *s) noexcept:
    return call_entry(0, p, a, n, s)
cdef int py_p4d(uint64_t *p, uint64_t a, uint64_t n, walk_state *s) noexcept:
    return call_entry(1, p, a, n, s)
cdef int py_pud(uint64_t *p, uint64_t a, uint64_t n, walk_state *s) noexcept:
    return call_entry(2, p, a, n, s)
cdef int py_pmd(uint64_t *p, uint64_t a, uint64_t n, walk_state *s) noexcept:
    return call_entry(3, p, a, n, s)
cdef int py_pte(uint64_t *p, uint64_t a, uint64_t n, walk_state *s) noexcept:
    return call_entry(4, p, a, n, s)
cdef int py_hugetlb(uint64_t *p, uint64_t a, uint64_t n, walk_state *s) noexcept:
    return call_entry(5, p, a, n, s)


cdef int py_hole(uint64_t addr, uint64_t next, int depth, walk_state *s) noexcept:
    cdef MmWalk walk = <MmWalk>s.user
    cdef int code
    try:
        if walk.high is not None:
            code = settle(walk, walk.fns[6](addr + walk.high, next + walk.high, depth, walk))
        else:
            code = settle(walk, walk.fns[6](addr, next, depth, walk))
        if code == 0:
            still_there(walk, addr)
        return code
    except BaseException as err:
        walk.failed = err
        return STOP


cdef int py_test(uint64_t start, uint64_t end, walk_state *s) noexcept:
    cdef MmWalk walk = <MmWalk>s.user
    try:
        settle(walk, walk.fns[7](start, end, walk))
        if walk.result is None or walk.result > 0:
            still_there(walk, start)
        if walk.result is None:
            return 0
        if walk.result > 0:
            walk.result = None
            return STOP
        return -STOP
    except BaseException as err:
        walk.failed = err
        return -STOP


cdef int py_pre(uint64_t start, uint64_t end, walk_state *s) noexcept:
    cdef MmWalk walk = <MmWalk>s.user
    cdef int code
    try:
        code = settle(walk, walk.fns[8](start, end, walk))
        if code == 0:
            still_there(walk, start)
        return code
    except BaseException as err:
        walk.failed = err
        return STOP


cdef void py_post(walk_state *s) noexcept:
    cdef MmWalk walk = <MmWalk>s.user
    try:
        walk.fns[9](walk)
        still_there(walk, 0)
    except BaseException as err:
        s.failed = STOP
        if walk.failed is None:
            walk.failed = err


cdef int check_place(Tables tables, int32_t mm, int32_t vma, bint whole_mm) except -1:
    """What calls itself an mm or a vma need not be one of those that these tables belong to."""
    if not (mm or vma or whole_mm):
        return 0
    cdef kw_world *w
    if tables.world is None or tables.world.w.vmas == NULL or mm <= 0 or mm != tables.mm:
        raise ValueError(f"mm {mm}: not the address space of these page tables")
    w = &tables.world.w
    if not whole_mm and (vma <= 0 or vma >= w.ctl.vmas_used or w.vmas[vma].mm != mm):
        raise LookupError(f"vma {vma}: not an area of address space {mm}")
    return 0


cdef int bind_callbacks(walk_ops *c, tuple fns) except -1:
    """The C callbacks for those that Python has given, in the order of MmWalk.fns.

    Through void *, because the walker's callbacks are nogil functions and these need the GIL: it is held throughout,
    nobody lets go of it below.
    """
    for fn in fns:
        if fn is not None and not callable(fn):
            raise TypeError(f"callback {shown(fn)}: not callable")
    c.pgd_entry = <entry_fn><void *>py_pgd if fns[0] is not None else NULL
    c.p4d_entry = <entry_fn><void *>py_p4d if fns[1] is not None else NULL
    c.pud_entry = <entry_fn><void *>py_pud if fns[2] is not None else NULL
    c.pmd_entry = <entry_fn><void *>py_pmd if fns[3] is not None else NULL
    c.pte_entry = <entry_fn><void *>py_pte if fns[4] is not None else NULL
    c.hugetlb_entry = <entry_fn><void *>py_hugetlb if fns[5] is not None else NULL
    c.pte_hole = <hole_fn><void *>py_hole if fns[6] is not None else NULL
    c.test_walk = <range_fn><void *>py_test if fns[7] is not None else NULL
    c.pre_vma = <range_fn><void *>py_pre if fns[8] is not None else NULL
    c.post_vma = <done_fn><void *>py_post if fns[9] is not None else NULL
    return 0


cdef int make_entries(MmWalk walk, walk_state *s) except -1:
    """One reusable door for each level that has a callback: of hugetlb areas at pud or pmd level."""
    cdef Entry entry
    cdef tuple fns = walk.fns
    cdef int level
    walk.entries = [None, None, None, None, None, None]
    for level in range(1, 6):
        # A top entry of 4 levels is pgd and p4d in one.
        if fns[5 - level] is None and (level != 4 or fns[0] is None) and (fns[5] is None or level not in (2, 3)):
            continue
        entry = Entry.__new__(Entry)
        entry.tables = walk.tables
        entry.s = s
        entry.level = level
        walk.entries[level] = entry
    return 0


cdef int forget(object door) except -1:
    """The walk is over: the entry leads nowhere any more."""
    cdef Entry entry
    if door is not None:
        entry = <Entry>door
        entry.p = NULL
        entry.s = NULL
    return 0


def run_walk(Tables tables not None, int32_t mm, int32_t vma, uint64_t start, uint64_t end, ops, tuple fns, mm_door,
             vma_door, private, bint stop_on_bad, bint whole_mm, high=None):
    """One walk with Python callbacks: (result, code). Code 0, WALK_BAD or WALK_NOROWS.

    `fns`: the ten callbacks or None, in the order of MmWalk.fns. Addresses are as the tables index them; callbacks are
    given them plus `high` (None: as they are).
    """
    cdef walk_ops c
    cdef walk_state s
    cdef MmWalk walk = MmWalk.__new__(MmWalk)
    cdef int code
    bind_callbacks(&c, fns)
    walk.tables = tables
    walk.mm = mm_door
    walk.ops = ops
    walk.private = private
    walk.given_vma = vma_door
    walk.fns = fns
    walk.high = high
    tables.take_mark()
    prepare(&s, tables, mm, vma, &c, <void *>walk)
    s.stop_on_bad = stop_on_bad
    make_entries(walk, &s)
    walk.s = &s
    try:
        check_place(tables, mm, vma, whole_mm)
        if whole_mm:
            code = over_vmas(&s, start, end)
        elif vma:
            code = inside_vma(&s, start, end)
        else:
            code = descend(&s, s.tables.root, <int>s.tables.levels, start, end)
    finally:
        tables.drop_mark()
        walk.s = NULL
        for door in walk.entries:
            forget(door)
    if walk.failed is not None:
        # Not kept: the exception's traceback leads to the callback's frame, and that to the walk.
        failed, walk.failed = walk.failed, None
        raise failed
    if code == WALK_BAD or code == WALK_NOROWS:
        return 0, code
    return (0 if walk.result is None else walk.result), 0
