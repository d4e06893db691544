"""What Python calls for the mappings of page tables, in one thread or in several.

In several threads the range is cut into units of a few tables, which the threads take in turn. Each reads its unit into
an array of its own; then, unit by unit in ascending order, it takes its place in the output, notes its bad entries, and
copies. As long as all tables are full the place is known beforehand, and nothing is copied. So everything comes out as
one thread makes it. What can't be cut like that (images that share tables beyond reason, an output that is too short) is
left to one thread.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

import numpy as np

from ksmwalk._core cimport interrupted, level_index, level_size, pointer
from ksmwalk.layout._layout cimport *
from ksmwalk.tables._leaves cimport Walk, child, joins, read_level, room_for_odd
from ksmwalk.tables._read cimport Tables, honest_range


cdef extern from "_team.h" nogil:
    int KW_TEAM_MOST
    ctypedef void (*kw_job)(void *shared, int who) noexcept nogil
    void kw_team(kw_job job, void *shared, int n) noexcept
    int64_t kw_next(int64_t *p) noexcept
    int64_t kw_hear(const int64_t *p) noexcept
    void kw_say(int64_t *p, int64_t value) noexcept
    void kw_copy(uint64_t *to, const uint64_t *from_, int64_t n) noexcept
    void kw_wait(int64_t times) noexcept

cdef enum:
    A_TABLE = 512          # leaves that a table of ptes has at most; also about what it costs to read
    A_MIDDLE_TABLE = 64    # what a table above costs
    ALL_PERMS = PERM_R | PERM_W | PERM_X | PERM_U
    KEPT = 1024            # bad entries of a unit that are kept; PageTables keeps no more of all
    KEPT_ROOM = 4 << 20    # bytes
    ALONE = 1              # no code of _layout.h: one thread has to do it

cdef int64_t UNIT = 16 * A_TABLE     # leaves of a unit at most
cdef int64_t LEAST = 8               # units that are worth a second thread
cdef int64_t SHARED = 0              # walks that were made in threads


def cut_finely(bint finely):
    """Cut work for threads into the smallest units, as few as there may be; for tests. False: as is worth while.

    Returns
    -------
    int
        Walks that threads have shared so far.
    """
    global UNIT, LEAST
    UNIT = A_TABLE + 4 * A_MIDDLE_TABLE if finely else 16 * A_TABLE
    LEAST = 2 if finely else 8
    return SHARED


# ------------------------------------------------------------------ cutting

cdef struct Unit:
    uint64_t start         # its address; it ends where the next one begins
    int64_t before         # leaves of the units before it, if all their tables are full

cdef struct Plan:
    Unit *units            # [nr]
    int64_t nr
    int64_t cap
    int64_t at             # what the last unit costs so far; no less than its leaves
    int64_t leaves         # of all so far, if tables are full
    int64_t tables         # that the walk will visit, at most
    int64_t budget         # that it may visit
    int64_t middle         # tables of pmds looked into


cdef int cut(Plan *p, uint64_t addr) noexcept nogil:
    """The next unit begins at an address."""
    cdef Unit *more
    if p.nr == p.cap:
        p.cap = 2 * p.cap + 64
        more = <Unit *>realloc(p.units, p.cap * sizeof(Unit))
        if more == NULL:
            return ALONE
        p.units = more
    p.units[p.nr].start = addr
    p.units[p.nr].before = p.leaves
    p.nr += 1
    p.at = 0
    return KW_OK


cdef inline int weigh(Plan *p, uint64_t addr, int64_t cost, int64_t leaves) noexcept nogil:
    """Something at an address belongs to the last unit, or begins the next one."""
    cdef int code = KW_OK
    if p.at + cost > UNIT:
        code = cut(p, addr)
    p.at += cost
    p.leaves += leaves
    return code


cdef int plan_pmds(Plan *p, const uint64_t *entries, uint64_t a, uint64_t end) noexcept nogil:
    """The pmds of [a, end) of one table."""
    cdef int first = level_index(a, 2), i, code = KW_OK
    cdef uint64_t base = a & ~(level_size(3) - 1), e, at
    for i in range(first, level_index(end - 1, 2) + 1):
        e = entries[i]
        if e & (PTE_P | PTE_PS) == 0:
            continue
        at = max(a, base + (<uint64_t>i << 21))
        if e & PTE_PS:
            code = weigh(p, at, 1, 1)
        else:
            p.tables += 1
            code = weigh(p, at, A_TABLE, <int64_t>((min(end, base + (<uint64_t>(i + 1) << 21)) - at) >> 12))
        if code != KW_OK:
            return code
    p.middle += 1
    if p.tables > p.budget:
        return ALONE
    return KW_EINTR if p.middle & 63 == 0 and interrupted() else KW_OK


cdef int plan_level(Plan *p, Walk *k, int64_t row, int level, uint64_t a, uint64_t end) noexcept nogil:
    """Cut [a, end) lower one table into units, tables that can be followed looked into as `read_level` does.

    KW_OK; ALONE: better not; KW_EINTR.
    """
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *entries = k.t.rows + row * 512
    cdef int64_t lower, known
    cdef int code = KW_OK
    if level == 2:
        return plan_pmds(p, entries, a, end)
    k.rows[level] = row
    while a < end:
        e = entries[level_index(a, level)]
        next = min((a & ~(size - 1)) + size, end)
        if e & PTE_PS:
            if level == 3:
                code = weigh(p, a, 1, 1)
        elif e & PTE_P:
            known = k.t.bad_count
            lower = child(k, e, a, level)
            k.t.bad_count = known      # the walk itself will note it
            if lower >= 0:
                p.tables += 1
                code = weigh(p, a, A_MIDDLE_TABLE, 0)
                if code == KW_OK:
                    code = plan_level(p, k, lower, level - 1, a, next)
        if code != KW_OK:
            return code
        a = next
    k.rows[level] = -1
    return KW_OK


# ------------------------------------------------------------------ several threads

cdef struct Member:
    Walk k                 # of the unit at hand
    kw_tables t
    kw_work work
    char *room             # for the unit, where its place in the output is not known

cdef struct Team:
    Walk *whole            # where all comes together
    Plan *plan
    uint64_t end
    Member *members
    int64_t next           # the unit that nobody has taken yet
    int64_t turn           # the unit whose place in the output is to be found
    int64_t stop           # ALONE or KW_EINTR: to be ended; 0
    int64_t gaps           # tables that are not full were met: what the plan says of places is not true


cdef int64_t place(Team *g, Walk *k) noexcept nogil:
    """Where the records of the unit whose turn it is go; bad entries and odd leaves are noted. ALONE as stop: nowhere."""
    cdef Walk *w = g.whole
    cdef kw_tables *t = w.t
    cdef int64_t at = w.n, i
    cdef bint joined = w.runs and w.n > 0 and k.n > 0 and joins(&w.out[w.n - 1], &k.out[0])
    cdef int64_t together = 0
    if joined:
        together = <int64_t>w.out[w.n - 1].nr + k.out[0].nr
    if w.n + k.n - joined > w.cap or together >> 32:
        kw_say(&g.stop, ALONE)
        return 0
    if joined:
        w.out[w.n - 1].nr += k.out[0].nr
        at -= 1
    if room_for_odd(w, k.nr_odd) != KW_OK:
        kw_say(&g.stop, ALONE)
        return 0
    for i in range(k.nr_odd):
        w.odd[w.nr_odd + i] = k.odd[i] + at * 4
    w.nr_odd += k.nr_odd
    w.n = at + k.n
    for i in range(min(k.t.bad_count, k.t.bad_cap)):
        if t.bad_count + i >= t.bad_cap:
            break
        t.bad[t.bad_count + i] = k.t.bad[i]
    t.bad_count += k.t.bad_count
    if joined:
        # The record before the first one stands already: what is copied begins behind it.
        k.out[0] = w.out[at]
    return at


cdef void aim(Walk *k, const Walk *w, char *room, int64_t at) noexcept nogil:
    """What k reads goes into the output of w from a record on; or, at < 0, into a room."""
    if w.out != NULL:
        k.out = w.out + at if at >= 0 else <kw_mapping *>room
    else:
        k.addr = w.addr + at if at >= 0 else <uint64_t *>room
        k.entry = w.entry + at if at >= 0 else k.addr + UNIT


cdef void bring(const Walk *k, const Walk *w, int64_t at) noexcept nogil:
    """What k has read to its place, unless it stands there; that is no later place than where it stands."""
    if w.out != NULL:
        if k.out != w.out + at:
            kw_copy(<uint64_t *>(w.out + at), <uint64_t *>k.out, k.n * (sizeof(kw_mapping) // 8))
    elif k.addr != w.addr + at:
        kw_copy(w.addr + at, k.addr, k.n)
        kw_copy(w.entry + at, k.entry, k.n)


cdef void read_unit(Team *g, Member *m, int64_t unit) noexcept nogil:
    """Read a unit, wait for its turn and deliver it."""
    cdef Walk *k = &m.k
    cdef Walk *w = g.whole
    cdef Unit *u = &g.plan.units[unit]
    cdef bint last = unit + 1 == g.plan.nr
    cdef int64_t most = (g.plan.leaves if last else u[1].before) - u.before, at
    # As long as all tables were full the place is known beforehand.
    cdef bint direct = not w.runs and kw_hear(&g.gaps) == 0 and u.before + most <= w.cap
    aim(k, w, m.room, u.before if direct else -1)
    k.cap = most if direct else UNIT
    k.n = k.nr_odd = k.t.bad_count = 0
    k.t.budget = g.plan.budget + 1      # of all together; the plan has seen to it
    if read_level(k, k.t.root, <int>k.t.levels, u.start, g.end if last else u[1].start, ALL_PERMS) != KW_OK:
        # The tables have changed since the plan was made.
        kw_say(&g.stop, ALONE)
    await_turn(g, unit, m == g.members)
    if kw_hear(&g.stop):
        return
    if k.n != most:
        kw_say(&g.gaps, 1)
    at = place(g, k)
    if kw_hear(&g.stop):
        return
    if direct or w.runs:
        # Others may write where it stands as soon as it is their turn; the next one looks at the last record of runs.
        bring(k, w, at)
        kw_say(&g.turn, unit + 1)
    else:
        kw_say(&g.turn, unit + 1)
        bring(k, w, at)


cdef void await_turn(Team *g, int64_t unit, bint called) noexcept nogil:
    """Until all units before are delivered, or all is to stop. Only the thread that called may hear of signals."""
    cdef int64_t waited = 0
    if called and unit & 31 == 0 and interrupted():
        kw_say(&g.stop, KW_EINTR)
    while kw_hear(&g.turn) != unit and kw_hear(&g.stop) == 0:
        waited += 1
        kw_wait(waited)
        if called and waited & 1023 == 0 and interrupted():
            kw_say(&g.stop, KW_EINTR)


cdef void take_part(void *shared, int who) noexcept nogil:
    """What one thread of a team does: unit by unit, until there is none left."""
    cdef Team *g = <Team *>shared
    cdef int64_t unit
    while kw_hear(&g.stop) == 0:
        unit = kw_next(&g.next)
        if unit >= g.plan.nr:
            return
        read_unit(g, &g.members[who], unit)


cdef void add_work(Team *g, int n) noexcept nogil:
    """What all of a team have read, as one thread would count it: an entry that units share is counted once."""
    cdef kw_work *all = g.whole.t.work
    cdef int64_t i
    cdef int lv
    for i in range(n):
        all.ptes += g.members[i].work.ptes
        for lv in range(2, 6):
            all.entries[lv] += g.members[i].work.entries[lv]
    for i in range(1, g.plan.nr):
        for lv in range(2, <int>g.whole.t.levels + 1):
            if g.plan.units[i].start & (level_size(lv) - 1):
                all.entries[lv] -= 1


cdef size_t room_of(const Walk *w) noexcept nogil:
    """Bytes that a thread needs for a unit and its bad entries."""
    return UNIT * (sizeof(kw_mapping) if w.out != NULL else 2 * sizeof(uint64_t)) + KEPT * sizeof(kw_bad)


cdef int work_together(Walk *w, Plan *plan, uint64_t end, int n, char *room) noexcept nogil:
    """The planned units by n threads. KW_OK; KW_EINTR; ALONE: nothing is done."""
    cdef Team g
    cdef Walk *k
    cdef int64_t known = w.t.bad_count
    cdef size_t one = room_of(w)
    cdef int i
    memset(&g, 0, sizeof(g))
    g.whole = w
    g.plan = plan
    g.end = end
    g.members = <Member *>malloc(n * sizeof(Member))
    if g.members == NULL:
        return ALONE
    for i in range(n):
        k = &g.members[i].k
        memset(&g.members[i].work, 0, sizeof(kw_work))
        g.members[i].t = w.t[0]
        g.members[i].t.work = &g.members[i].work
        g.members[i].t.bad = <kw_bad *>(room + (i + 1) * one) - KEPT
        g.members[i].t.bad_cap = KEPT
        k[0] = w[0]
        k.t = &g.members[i].t
        k.alone = False
        k.odd = NULL
        k.odd_cap = 0
        g.members[i].room = room + i * one
    kw_team(take_part, &g, n)
    if g.stop == 0:
        add_work(&g, n)
    else:
        w.t.bad_count = known
    for i in range(n):
        free(g.members[i].k.odd)
    free(g.members)
    return <int>g.stop


cdef char *ROOM = NULL               # of the last team, kept: its memory is there already. Taken and left by one step
cdef size_t ROOM_SIZE = 0


cdef char *take_room(size_t *size) noexcept nogil:
    """Room of so many bytes at least, size how many there are; NULL: there is none."""
    global ROOM, ROOM_SIZE
    cdef char *room
    cdef size_t have
    with gil:
        room, have, ROOM, ROOM_SIZE = ROOM, ROOM_SIZE, NULL, 0
    if have < size[0]:
        free(room)
        return <char *>malloc(size[0])
    size[0] = have
    return room


cdef void leave_room(char *room, size_t size) noexcept nogil:
    """For the next team, where there is none waiting and it is not a lot."""
    global ROOM, ROOM_SIZE
    with gil:
        if ROOM == NULL and size <= KEPT_ROOM:
            room, ROOM, ROOM_SIZE = NULL, room, size
    free(room)


cdef int read_together(Walk *w, uint64_t start, uint64_t end, int64_t budget, int threads) noexcept nogil:
    """The whole range in several threads. KW_OK; KW_EINTR; ALONE: nothing is done."""
    cdef Plan plan
    cdef int code, n
    cdef char *room
    cdef size_t size
    memset(&plan, 0, sizeof(plan))
    plan.budget = budget
    plan.at = UNIT             # the first thing that is met begins a unit
    code = plan_level(&plan, w, w.t.root, <int>w.t.levels, start, end)
    for n in range(6):
        w.rows[n] = -1
    n = <int>min(threads, plan.nr * 2 // LEAST)
    if code == KW_OK:
        code = ALONE
        size = n * room_of(w)
        room = take_room(&size) if plan.nr >= LEAST and n > 1 else NULL
        if room != NULL:
            # What comes before the first thing met may hold entries that can't be followed.
            plan.units[0].start = start
            code = work_together(w, &plan, end, n, room)
            leave_room(room, size)
    free(plan.units)
    return code


# ------------------------------------------------------------------ what Python sees

cdef int64_t read_all(
    Tables tables, Walk *k, uint64_t start, uint64_t end, bint hardware, int64_t budget, int threads
) except? -1:
    """Fill the output that k has; how many records, or a code."""
    global SHARED
    cdef int code = KW_OK, lv
    cdef bint shared = False
    if not honest_range(tables.t.levels, start, end) or (start | end) & 4095:
        raise ValueError(f"range {start:#x}-{end:#x}: not page aligned, or beyond {tables.t.levels} levels")
    k.hardware = hardware
    k.present = PTE_P if hardware else PTE_P | PTE_PROTNONE
    k.alone = True
    k.n = k.nr_odd = k.odd_cap = 0
    k.odd = NULL
    for lv in range(6):
        k.rows[lv] = -1
    tables.take_mark()
    k.t = &tables.t
    if start != end and 0 <= tables.t.root < tables.t.nrows:
        with nogil:
            code = read_together(k, start, end, budget, min(threads, KW_TEAM_MOST)) if threads > 1 else ALONE
            shared = code == KW_OK
            if code == ALONE:
                k.n = k.nr_odd = 0
                tables.t.budget = budget
                code = read_level(k, tables.t.root, <int>tables.t.levels, start, end, ALL_PERMS)
    SHARED += shared
    tables.drop_mark()
    return k.n if code == KW_OK or code == KW_NONE else code


def read_mappings(
    Tables tables not None, uint64_t start, uint64_t end, bint hardware, bint runs, out, int64_t budget, int threads
):
    """Fill `out` (layout.MAPPING) with the mappings of [start, end), in ascending order.

    The range is as the tables index it, from 0 to 2**48 or 2**57: the upper half follows the lower one.

    Returns
    -------
    int
        Records written, or KW_EFULL if `out` is too short. Bad entries are noted in the Tables.
    """
    cdef Walk k
    k.out = <kw_mapping *>pointer(out, True)
    k.addr = k.entry = NULL
    k.cap = len(out)
    k.runs = runs
    return read_all(tables, &k, start, end, hardware, budget, threads)


def read_columns(
    Tables tables not None, uint64_t start, uint64_t end, bint hardware, addr, entry, int64_t budget, int threads
):
    """The same into two columns of uint64, of equal length.

    Returns
    -------
    (int, ndarray of int64)
        As `read_mappings`; and what `note_odd` noted.
    """
    cdef Walk k
    cdef int64_t n
    cdef size_t size
    k.out = NULL
    k.addr = <uint64_t *>pointer(addr, True)
    k.entry = <uint64_t *>pointer(entry, True)
    k.cap = len(addr)
    k.runs = False
    if k.addr < k.entry + k.cap and k.entry < k.addr + k.cap:
        raise ValueError("out: addresses and entries must not share memory")
    n = read_all(tables, &k, start, end, hardware, budget, threads)
    odd = np.empty(k.nr_odd, np.int64)
    size = k.nr_odd * 8
    if size:
        memcpy(pointer(odd, True), k.odd, size)
    free(k.odd)
    return n, odd
