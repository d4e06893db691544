"""The search for the next page that KSM would look at: one range walk, or a look-up for every address as before it.

The contract stands in `_find.pxd`. A range walk does what a pmd operation of the walk (`tables/_walk.pyx`) would, without a
call per entry.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    bad_entry, below, child_row, eligible, entry_decode, entry_leaf, entry_none, entry_pfn, entry_present,
    interrupted, level_index, level_shift, level_size,
)
from ksmwalk.memory._frames cimport leaf_split
from ksmwalk.layout._layout cimport *


cdef extern from "_wide.h" nogil:
    int kw_first(const uint64_t *row, int lo, int hi, uint64_t mask) noexcept
    int kw_choose(int most) noexcept
    void kw_prefetch_row(const uint64_t *row) noexcept

kw_choose(1)

cdef uint64_t PRESENT = PTE_P | PTE_PROTNONE


def choose_wide(int most):
    """As `tables._leaves.choose_wide`, for this module."""
    return kw_choose(most)


# ------------------------------------------------------------------ work counts

cdef inline void count_pass(kw_work *work, int levels, int level, int64_t n, bint per_address) noexcept nogil:
    """n addresses (per-address) or n entries (range) passed at a level without a page being found there."""
    cdef int lv
    if per_address:
        work.lookups += n
        work.lookup_misses += n
        work.resched += n
        for lv in range(level, levels + 1):
            if lv > 1:
                work.entries[lv] += n
        if level <= 1:
            work.ptes += n
    elif level > 1:
        work.entries[level] += n
    else:
        work.ptes += n


cdef int64_t find_in_ptes(kw_world *w, uint64_t *row, uint64_t *addr, uint64_t end, bint per_address) noexcept nogil:
    """The search within one pte table, [*addr, end) inside it."""
    cdef int first = level_index(addr[0], 1)
    cdef int stop = first + <int>((end - addr[0]) >> 12)
    cdef int i = first
    cdef uint64_t base = addr[0] - (<uint64_t>first << 12), e, pfn
    cdef int64_t nr_frames = w.ctl.nr_frames
    while i < stop:
        e = row[i]
        if not (e & PRESENT):
            i = kw_first(row, i, stop, PRESENT)
            continue
        if not (e & PTE_SPECIAL):
            pfn = (entry_decode(e) & PTE_PFN_MASK) >> 12
            if <int64_t>pfn >= nr_frames:
                addr[0] = base + (<uint64_t>i << 12)
                return bad_entry(w, addr[0], 1, e, BAD_PFN)
            if eligible(w.f_flags[pfn]):
                addr[0] = base + (<uint64_t>i << 12)
                if per_address:
                    count_pass(w.work, <int>w.ctl.levels, 1, i - first, True)
                else:
                    w.work.ptes += i - first + 1
                return <int64_t>pfn
        i += 1
    count_pass(w.work, <int>w.ctl.levels, 1, stop - first, per_address)
    addr[0] = base + (<uint64_t>stop << 12)
    return KW_NONE


cdef inline void count_hit(kw_work *work, int levels, int level, bint per_address) noexcept nogil:
    cdef int lv
    if per_address:
        work.lookups += 1
        work.resched += 1
        for lv in range(level, levels + 1):
            if lv > 1:
                work.entries[lv] += 1
        if level == 1:
            work.ptes += 1


cdef inline int64_t steps_so_far(kw_work *work, bint per_address) noexcept nogil:
    if per_address:
        return work.lookups
    return work.entries[2] + work.entries[3] + work.entries[4] + work.entries[5] + work.ptes


cdef struct Search:
    kw_world *w
    int32_t mm
    int levels
    bint per_address       # what is passed counts as lookups, not as entries read
    int level              # of the table at hand
    int64_t rows[6]        # by level: the tables from the top one to the one at hand
    uint64_t at, end


cdef inline uint64_t entry_end(Search *s) noexcept nogil:
    """Where the entry at hand ends, or the range before it."""
    cdef uint64_t size = level_size(s.level)
    return min((s.at & ~(size - 1)) + size, s.end)


cdef inline void climb(Search *s) noexcept nogil:
    """Out of the tables whose last entry is behind."""
    while s.level < s.levels and level_index(s.at, s.level) == 0:
        s.level += 1


cdef inline void pass_on(Search *s, uint64_t next) noexcept nogil:
    """Past an entry without a page for KSM."""
    if s.per_address:
        count_pass(s.w.work, s.levels, s.level, <int64_t>((next - s.at) >> 12), True)
    s.at = next
    climb(s)


cdef bint skip_holes(Search *s, const uint64_t *row) noexcept nogil:
    """On to the first entry of the table at hand that is not none: False, the table is done.

    A hole: on to the end of the entry, nothing below it is touched.
    """
    cdef int level = s.level, first = level_index(s.at, level), stop = 512, i
    cdef uint64_t size = level_size(level), next
    if ((s.at ^ (s.end - 1)) >> level_shift(level + 1)) == 0:
        stop = level_index(s.end - 1, level) + 1
    i = first
    if entry_none(row[i]):
        i = kw_first(row, first, stop, ~(PTE_A | PTE_D))
        next = min((s.at & ~(size - 1)) + <uint64_t>(i - first) * size, s.end)
        count_pass(s.w.work, s.levels, level, <int64_t>((next - s.at) >> 12) if s.per_address else i - first,
                   s.per_address)
        s.w.work.holes += i - first
        s.at = next
    return i < stop


cdef int64_t in_huge(Search *s, uint64_t e) noexcept nogil:
    """A leaf pmd: the page at the very address, if KSM looks at such pages."""
    cdef kw_world *w = s.w
    cdef int64_t pfn = <int64_t>entry_pfn(e, 2)
    if not e & PTE_SPECIAL:
        if pfn + 512 > w.ctl.nr_frames:
            return bad_entry(w, s.at, 2, e, BAD_PFN)
        if eligible(w.f_flags[pfn]):
            count_hit(w.work, s.levels, 2, s.per_address)
            return pfn + <int64_t>((s.at & (KW_PMD_SIZE - 1)) >> 12)
    pass_on(s, entry_end(s))
    return KW_NONE


cdef int64_t in_table(Search *s, const uint64_t *pmd) noexcept nogil:
    """The ptes below a pmd. The table is remembered: the next search of the batch begins there."""
    cdef kw_world *w = s.w
    cdef kw_cursor *cur = w.cursor
    cdef uint64_t next = entry_end(s)
    cdef int64_t row = child_row(w, pmd), ahead, pfn
    if row < 0:
        return bad_entry(w, s.at, 2, pmd[0], BAD_FRAME)
    # While this table is searched the next one is on its way.
    if next < s.end and level_index(next, 2):
        ahead = child_row(w, pmd + 1)
        if ahead >= 0:
            kw_prefetch_row(w.rows + ahead * 512)
    cur.cache_base = s.at & ~(KW_PMD_SIZE - 1)
    cur.cache_row = row
    cur.cache_end = next
    pfn = find_in_ptes(w, w.rows + row * 512, &s.at, next, s.per_address)
    if pfn >= 0:
        count_hit(w.work, s.levels, 1, s.per_address)
    elif pfn == KW_NONE:
        forget_table(w)
        s.at = next
        climb(s)
    return pfn


cdef int64_t one_entry(Search *s, uint64_t *p) noexcept nogil:
    """An entry that is not none: what the range walk does with it. KW_NONE: go on."""
    cdef kw_world *w = s.w
    cdef int64_t row
    cdef int rc
    if not s.per_address:
        w.work.entries[s.level] += 1
        if s.level == 2:
            w.work.resched += 1
            w.work.callbacks += 1
    if s.level <= 3 and not entry_present(p[0], s.level):
        pass_on(s, entry_end(s))
        return KW_NONE
    if s.level == 2:
        return in_huge(s, p[0]) if entry_leaf(p[0], 2) else in_table(s, p)
    if entry_leaf(p[0], s.level):
        # Within a vma a leaf is split before the walk goes below it; then it is read again.
        rc = leaf_split(w, s.mm, p, s.level)
        if rc == KW_OK and not s.per_address:
            w.work.entries[s.level] -= 1
        return rc if rc < 0 else KW_NONE
    row = child_row(w, p)
    if row < 0:
        return below(w, p, s.level, s.at)
    s.level -= 1
    s.rows[s.level] = row
    return KW_NONE


cdef int64_t find_from(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end, bint per) noexcept nogil:
    cdef kw_cursor *cur = w.cursor
    cdef Search s
    cdef int64_t pfn, steps = 0
    cdef uint64_t *row
    s.at = addr[0]
    # The table of the last search again, instead of a fresh descent.
    if (s.at & ~(KW_PMD_SIZE - 1)) == cur.cache_base:
        pfn = find_in_ptes(w, w.rows + cur.cache_row * 512, &s.at, min(cur.cache_base + KW_PMD_SIZE, end), per)
        if not per:
            w.work.cached += 1
        addr[0] = s.at
        if pfn != KW_NONE:
            if pfn >= 0:
                count_hit(w.work, <int>w.ctl.levels, 1, per)
            return pfn
        forget_table(w)
    elif not per:
        w.work.searches += 1
    s.w = w
    s.mm = mm
    s.levels = s.level = <int>w.ctl.levels
    s.per_address = per
    s.end = end
    s.rows[s.level] = w.mms[mm].root
    while s.at < end:
        row = w.rows + s.rows[s.level] * 512
        if not skip_holes(&s, row):
            if s.level == s.levels:
                break
            # The table is done: go on in the one above.
            s.level += 1
            climb(&s)
            continue
        pfn = one_entry(&s, row + level_index(s.at, s.level))
        if pfn == KW_NONE:
            steps += 1
            if steps & 4095 == 0 and interrupted():
                pfn = KW_EINTR
        if pfn != KW_NONE:
            addr[0] = s.at
            return pfn
    addr[0] = end
    return KW_NONE


cdef inline int64_t look_up(kw_world *w, int64_t root, int levels, uint64_t addr, int64_t *ended) noexcept nogil:
    """One full descent to the page of an address that KSM looks at; KW_NONE, KW_EBADENTRY. Counts in ended[level]."""
    cdef int level = levels
    cdef int64_t row = root, pfn
    cdef int32_t owner = w.r_owner[root]
    cdef uint64_t e
    while True:
        e = w.rows[row * 512 + level_index(addr, level)]
        if entry_none(e):
            ended[level] += 1
            return KW_NONE
        if entry_leaf(e, level):
            ended[level] += 1
            if e & PTE_SPECIAL or not entry_present(e, level):
                return KW_NONE
            pfn = <int64_t>(entry_pfn(e, level) + ((addr & (level_size(level) - 1)) >> 12))
            if pfn >= w.ctl.nr_frames:
                return bad_entry(w, addr, level, e, BAD_PFN)
            return pfn if eligible(w.f_flags[pfn]) else KW_NONE
        # As child_row, with the owner of the table at hand known.
        pfn = <int64_t>((e & PTE_PFN_MASK) >> 12)
        owner -= 1
        if KW_UNLIKELY(not e & PTE_P or pfn <= 0 or pfn >= w.ctl.rows_used or w.r_owner[pfn] != owner):
            ended[level] += 1
            return below(w, w.rows + row * 512 + level_index(addr, level), level, addr)
        row = pfn
        level -= 1


cdef int64_t find_really(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    """The scan before the patch, performed: one full descent for every address."""
    cdef kw_work *work = w.work
    cdef int64_t root = w.mms[mm].root, pfn = KW_NONE, done = 0
    cdef int levels = <int>w.ctl.levels, level
    cdef int64_t ended[6]      # by level: the look-ups whose last entry was of it
    cdef uint64_t a = addr[0]
    for level in range(6):
        ended[level] = 0
    while a < end:
        pfn = look_up(w, root, levels, a, ended)
        done += 1
        if pfn != KW_NONE:
            break
        a += KW_PAGE_SIZE
        if done & 0xffff == 0 and interrupted():
            pfn = KW_EINTR
            break
    addr[0] = a
    work.lookups += done
    work.resched += done
    work.lookup_misses += done - (pfn != KW_NONE and pfn != KW_EINTR)
    work.ptes += ended[1]
    for level in range(2, levels + 1):
        ended[level] += ended[level - 1]
        work.entries[level] += ended[level]
    return pfn


cdef int64_t find_page(kw_world *w, int32_t mm, uint64_t *addr, uint64_t end) noexcept nogil:
    cdef bint per = w.cursor.strategy == STRATEGY_PER_ADDRESS
    cdef kw_work *work = w.work
    cdef int64_t before, pfn
    if addr[0] >= end:
        return KW_NONE
    before = steps_so_far(work, per)
    if per and w.cursor.real_lookups:
        pfn = find_really(w, mm, addr, end)
    else:
        pfn = find_from(w, mm, addr, end, per)
    before = steps_so_far(work, per) - before
    if before > work.longest:
        work.longest = before
    return pfn
