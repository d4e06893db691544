# Reclaim's order: which folio comes when, and when the THP shrinker has its turn among them.
from libc.stdint cimport int64_t
from libc.stdlib cimport llabs


ctypedef struct Folio:
    int64_t born
    int64_t head
    int64_t marked      # its pages, where MADV_FREE marked it; less than 0 where it stays, as something was stored to it since

cdef inline int by_age(const void *a, const void *b) noexcept nogil:
    cdef const Folio *p = <const Folio *>a
    cdef const Folio *q = <const Folio *>b
    if p.born != q.born:
        return -1 if p.born < q.born else 1
    return (p.head > q.head) - (p.head < q.head)

cdef enum:
    ASKED = 32          # pages that reclaim asks for at a time

cdef inline int64_t late_from(const Folio *folio, int64_t n, int64_t waiting) noexcept nogil:
    # How many pages that are not marked go before huge pages that are hardly used are split, where MADV_FREE marked some, of
    # which so many wait in batches until others go.
    #
    # Reclaim goes through ever larger parts of its lists, 1/4096 to all, until it has what it asked for. While the part of
    # what was marked is a page at least, it takes none of the others, and the shrinker has its turn when it has come to the
    # whole. What was marked and stays because of a relative is gone through for nothing; more of the others go instead where
    # that leaves more than can be asked for at once. Seen: on 6.18.44, 600 pairs of numbers without relatives, 480 with some.
    cdef int64_t at, left = 0, stay = 0, others, early, gone, want
    cdef int part
    for at in range(n):
        left += llabs(folio[at].marked)
        stay -= min(folio[at].marked, <int64_t>0)
    if left < 4:
        return <int64_t>1 << 62
    # what goes of the others while there is no part of the marked ones
    others = 0 if left - waiting >= 128 else 1 if left >= 64 else 2 if left >= 32 else 5 if left >= 16 else 10 if left >= 8 else 23
    early = others + ASKED - 1 + (left < 64 or left < 128 and stay >= 16)      # if it has what it asked for before the whole
    gone = others
    at = 0
    for part in range(12, 0, -1):
        want = left >> part
        while want > 0:
            gone += max(folio[at].marked, <int64_t>0)
            want -= llabs(folio[at].marked)
            left -= llabs(folio[at].marked)
            at += 1
        if gone >= ASKED:
            return early
    return others + ASKED - 1 + (ASKED if left > ASKED else 0)
