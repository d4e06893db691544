"""What Python calls for the mappings of page tables, in one thread or in several.

In several threads the range is cut into units of a few tables, which the threads take in turn. Each reads its unit into
an array of its own; then, unit by unit in ascending order, it takes its place in the output and notes its bad entries,
and copies. So everything comes out as one thread makes it. What can't be cut like that (images that share tables beyond
reason, an output that is too short) is left to one thread.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

import numpy as np

from ksmwalk._core cimport entry_none, interrupted, level_index, level_size, pointer
from ksmwalk.layout._layout cimport *
from ksmwalk.tables._leaves cimport Walk, child, joins, note_large, read_level
from ksmwalk.tables._read cimport Tables, honest_range


cdef extern from "_team.h" nogil:
    int KW_TEAM_MOST
    ctypedef void (*kw_job)(void *shared, int who) noexcept nogil
    void kw_team(kw_job job, void *shared, int n) noexcept
    int64_t kw_next(int64_t *p) noexcept
    int64_t kw_hear(const int64_t *p) noexcept
    void kw_say(int64_t *p, int64_t value) noexcept
    void kw_wait(int64_t times) noexcept

cdef enum:
    A_TABLE = 512          # leaves that a table of ptes has at most; also about what it costs to read
    A_MIDDLE_TABLE = 64    # what a table above costs
    ALL_PERMS = PERM_R | PERM_W | PERM_X | PERM_U
    KEPT = 1024            # bad entries of a unit that are kept; PageTables keeps no more of all
    ALONE = 1              # no code of _layout.h: one thread has to do it

cdef int64_t UNIT = 8 * A_TABLE      # leaves of a unit at most
cdef int64_t LEAST = 16              # units that are worth a second thread
cdef int64_t SHARED = 0              # walks that were made in threads


def cut_finely(bint finely):
    """Cut work for threads into the smallest units, as few as there may be; for tests. False: as is worth while.

    Returns
    -------
    int
        Walks that threads have shared so far.
    """
    global UNIT, LEAST
    UNIT = A_TABLE + 4 * A_MIDDLE_TABLE if finely else 8 * A_TABLE
    LEAST = 2 if finely else 16
    return SHARED


# ------------------------------------------------------------------ cutting

cdef struct Plan:
    uint64_t *starts       # [nr] where units begin; each ends where the next one begins
    int64_t nr
    int64_t cap
    int64_t at             # leaves of the last unit so far, or what it costs
    int64_t tables         # that the walk will visit, at most
    int64_t budget         # that it may visit
    int64_t middle         # tables of pmds looked into


cdef int weigh(Plan *p, uint64_t addr, int64_t weight) noexcept nogil:
    """Something of this weight at an address belongs to the last unit, or begins the next one."""
    cdef uint64_t *more
    if p.at + weight > UNIT:
        if p.nr == p.cap:
            p.cap = 2 * p.cap + 64
            more = <uint64_t *>realloc(p.starts, p.cap * sizeof(uint64_t))
            if more == NULL:
                return ALONE
            p.starts = more
        p.starts[p.nr] = addr
        p.nr += 1
        p.at = 0
    p.at += weight
    return KW_OK


cdef int plan_level(Plan *p, Walk *k, int64_t row, int level, uint64_t a, uint64_t end) noexcept nogil:
    """Cut [a, end) lower one table into units, tables that can be followed looked into as `read_level` does.

    KW_OK; ALONE: better not; KW_EINTR.
    """
    cdef uint64_t size = level_size(level), next, e
    cdef uint64_t *entries = k.t.rows + row * 512
    cdef int64_t lower, known
    cdef int code = KW_OK
    k.rows[level] = row
    while a < end:
        e = entries[level_index(a, level)]
        next = min((a & ~(size - 1)) + size, end)
        if entry_none(e):
            pass
        elif e & PTE_PS:
            if level <= 3:
                code = weigh(p, a, 1)
        elif not e & PTE_P:
            pass
        elif level == 2:
            p.tables += 1
            code = weigh(p, a, A_TABLE)
        else:
            known = k.t.bad_count
            lower = child(k, e, a, level)
            k.t.bad_count = known      # the walk itself will note it
            if lower >= 0:
                p.tables += 1
                code = weigh(p, a, A_MIDDLE_TABLE)
                if code == KW_OK:
                    code = plan_level(p, k, lower, level - 1, a, next)
        if code != KW_OK:
            return code
        if p.tables > p.budget:
            return ALONE
        a = next
    k.rows[level] = -1
    if level == 2:
        p.middle += 1
        if p.middle & 63 == 0 and interrupted():
            return KW_EINTR
    return KW_OK


# ------------------------------------------------------------------ several threads

cdef struct Member:
    Walk k                 # of the unit at hand
    kw_tables t
    kw_work work

cdef struct Team:
    Walk *whole            # where all comes together
    Plan *plan
    uint64_t end
    Member *members
    int64_t next           # the unit that nobody has taken yet
    int64_t turn           # the unit whose place in the output is to be found
    int64_t stop           # ALONE or KW_EINTR: to be ended; 0


cdef int64_t place(Team *g, Walk *k) noexcept nogil:
    """Where the records of the unit whose turn it is go; bad entries and large leaves are noted. ALONE as stop: nowhere."""
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
    for i in range(k.nr_large):
        w.n = at + (k.large[i] >> 2)
        if note_large(w, k.large[i] & 3) != KW_OK:
            kw_say(&g.stop, ALONE)
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


cdef void deliver(Team *g, Walk *k, int64_t unit) noexcept nogil:
    """Copy a unit to its place in the output. Its turn has come; it is the next one's as soon as the place is known."""
    cdef Walk *w = g.whole
    cdef int64_t at = place(g, k)
    if kw_hear(&g.stop):
        return
    if w.runs:
        # The next one looks at the last record.
        memcpy(w.out + at, k.out, k.n * sizeof(kw_mapping))
        kw_say(&g.turn, unit + 1)
        return
    kw_say(&g.turn, unit + 1)
    if w.out != NULL:
        memcpy(w.out + at, k.out, k.n * sizeof(kw_mapping))
    else:
        memcpy(w.addr + at, k.addr, k.n * 8)
        memcpy(w.entry + at, k.entry, k.n * 8)


cdef void take_part(void *shared, int who) noexcept nogil:
    """What one thread of a team does: unit by unit, until there is none left."""
    cdef Team *g = <Team *>shared
    cdef Walk *k = &g.members[who].k
    cdef int64_t unit, waited, taken = 0
    cdef uint64_t end
    while kw_hear(&g.stop) == 0:
        unit = kw_next(&g.next)
        if unit >= g.plan.nr:
            return
        end = g.plan.starts[unit + 1] if unit + 1 < g.plan.nr else g.end
        k.n = k.nr_large = k.t.bad_count = 0
        k.t.budget = g.plan.budget + 1      # of all together; the plan has seen to it
        if read_level(k, k.t.root, <int>k.t.levels, g.plan.starts[unit], end, ALL_PERMS) != KW_OK:
            # The tables have changed since the plan was made.
            kw_say(&g.stop, ALONE)
        waited = 0
        taken += 1
        # Only the thread that called may hear of signals.
        if who == 0 and taken & 63 == 0 and interrupted():
            kw_say(&g.stop, KW_EINTR)
        while kw_hear(&g.turn) != unit and kw_hear(&g.stop) == 0:
            waited += 1
            kw_wait(waited)
            if who == 0 and waited & 1023 == 0 and interrupted():
                kw_say(&g.stop, KW_EINTR)
        if kw_hear(&g.stop) == 0:
            deliver(g, k, unit)


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
            if g.plan.starts[i] & (level_size(lv) - 1):
                all.entries[lv] -= 1


cdef int work_together(Walk *w, Plan *plan, uint64_t end, int n) noexcept nogil:
    """The planned units by n threads. KW_OK; KW_EINTR; ALONE: nothing is done."""
    cdef Team g
    cdef Walk *k
    cdef int64_t known = w.t.bad_count
    cdef size_t one = UNIT * sizeof(kw_mapping) + KEPT * sizeof(kw_bad)
    cdef char *room = <char *>malloc(n * one)
    cdef int i
    memset(&g, 0, sizeof(g))
    g.whole = w
    g.plan = plan
    g.end = end
    g.members = <Member *>malloc(n * sizeof(Member))
    if room == NULL or g.members == NULL:
        free(room)
        free(g.members)
        return ALONE
    for i in range(n):
        k = &g.members[i].k
        memset(&g.members[i].work, 0, sizeof(kw_work))
        g.members[i].t = w.t[0]
        g.members[i].t.work = &g.members[i].work
        g.members[i].t.bad = <kw_bad *>(room + i * one + UNIT * sizeof(kw_mapping))
        g.members[i].t.bad_cap = KEPT
        k[0] = w[0]
        k.t = &g.members[i].t
        k.alone = False
        k.cap = UNIT
        k.large = NULL
        k.large_cap = 0
        if w.out != NULL:
            k.out = <kw_mapping *>(room + i * one)
        else:
            k.addr = <uint64_t *>(room + i * one)
            k.entry = k.addr + UNIT
    kw_team(take_part, &g, n)
    if g.stop == 0:
        add_work(&g, n)
    else:
        w.t.bad_count = known
    for i in range(n):
        free(g.members[i].k.large)
    free(room)
    free(g.members)
    return <int>g.stop


cdef int read_together(Walk *w, uint64_t start, uint64_t end, int64_t budget, int threads) noexcept nogil:
    """The whole range in several threads. KW_OK; KW_EINTR; ALONE: nothing is done."""
    cdef Plan plan
    cdef int code = ALONE, n
    memset(&plan, 0, sizeof(plan))
    plan.budget = budget
    plan.at = UNIT             # the first thing that is met begins a unit
    code = plan_level(&plan, w, w.t.root, <int>w.t.levels, start, end)
    for n in range(6):
        w.rows[n] = -1
    n = <int>min(threads, plan.nr * 2 // LEAST)
    if code == KW_OK:
        code = ALONE
        if plan.nr >= LEAST and n > 1:
            # What comes before the first thing met may hold entries that can't be followed.
            plan.starts[0] = start
            code = work_together(w, &plan, end, n)
    free(plan.starts)
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
    k.n = k.nr_large = k.large_cap = 0
    k.large = NULL
    for lv in range(6):
        k.rows[lv] = -1
    tables.take_mark()
    k.t = &tables.t
    if start != end and 0 <= tables.t.root < tables.t.nrows:
        with nogil:
            code = read_together(k, start, end, budget, min(threads, KW_TEAM_MOST)) if threads > 1 else ALONE
            shared = code == KW_OK
            if code == ALONE:
                k.n = k.nr_large = 0
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
        As `read_mappings`; and of each leaf above the ptes index * 4 + level.
    """
    cdef Walk k
    cdef int64_t n
    cdef size_t size
    k.out = NULL
    k.addr = <uint64_t *>pointer(addr, True)
    k.entry = <uint64_t *>pointer(entry, True)
    k.cap = len(addr)
    k.runs = False
    n = read_all(tables, &k, start, end, hardware, budget, threads)
    large = np.empty(k.nr_large, np.int64)
    size = k.nr_large * 8
    if size:
        memcpy(pointer(large, True), k.large, size)
    free(k.large)
    return n, large
