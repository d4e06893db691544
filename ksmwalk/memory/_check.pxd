# The contract of the check of arrays that came from outside (a saved Host, a pickle), before the engine, which trusts
# its own arrays, works on them. Nothing here trusts anything: each list is walked once, with a mark on every record, each
# tree down to a depth that no honest one has.
#
# A function answers 0, or -1 with the place in the Check: array, field, record (and entry), what it holds, and what is
# wrong with that.
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t

from ksmwalk.layout._layout cimport *


cdef enum:
    SEEN_FREE = 1       # on the list of free records
    SEEN_LISTED = 2     # where a record in use has to stand
    SEEN_EXITED = 4     # mms: on the list of those that exited
    SEEN_TREE = 8       # items: in an unstable tree; nodes: in a stable tree
    SEEN_NODE = 16      # items: on the list of a stable node
    SEEN_DUP = 32       # nodes: in a chain
    SEEN_MIGRATE = 64   # nodes: waiting to change trees

ctypedef struct Check:
    kw_world *w
    int64_t known       # frames whose fields are at hand: all beyond are free
    bint strict         # a Host: entries lie in areas and map frames; else an arena of tables alone
    uint8_t *rows       # marks of the records of each array
    uint8_t *vmas
    uint8_t *mms
    uint8_t *items
    uint8_t *nodes
    uint8_t *blocks
    int32_t *mapped     # entries found that map a frame
    int32_t *held       # references to a folio found, at its head
    int32_t *owned      # entries found that map any page of a folio of several, by its head / 4: a leaf pmd counts 1
    int64_t tails       # frames of folios behind their heads
    int64_t *users      # areas found that map an object
    uint8_t *slots      # marks of swap slots
    uint8_t *anon_marks  # marks of records of families
    kw_anon *anons      # what was counted of them: areas, children, users
    int32_t *swapped    # entries found that mean a swap slot
    int64_t reached     # table pages found
    int32_t area        # the area at hand: addresses of the tables only grow
    uint64_t key        # the content before, in a tree ordered by contents
    bint ordered
    int64_t counted     # records found on the list or tree at hand
    # the answer
    const char *array
    const char *field
    int64_t record
    int64_t entry       # of a table page, -1: not one
    int64_t value
    int64_t wanted      # what was counted, where `counts`
    bint counts
    const char *why

cdef inline int refuse(Check *c, const char *array, const char *field, int64_t record, int64_t value,
                       const char *why) noexcept nogil:
    c.array = array
    c.field = field
    c.record = record
    c.value = value
    c.why = why
    return -1

cdef inline int counted(Check *c, const char *array, const char *field, int64_t record, int64_t value, int64_t wanted,
                        const char *why) noexcept nogil:
    # 0 if value is what was counted.
    if value == wanted:
        return 0
    c.counts = True
    c.wanted = wanted
    return refuse(c, array, field, record, value, why)

cdef inline int within(Check *c, const char *array, const char *field, int64_t record, int64_t value, int64_t low,
                       int64_t high, const char *why) noexcept nogil:
    # 0 if low <= value < high.
    if low <= value < high:
        return 0
    return refuse(c, array, field, record, value, why)

cdef int free_list(Check *c, const char *array, const char *start, const char *next, char *records, int64_t size,
                   int64_t link, int64_t used, int64_t first, uint8_t *marks) noexcept nogil
    # Free records, linked by the int32 `link` bytes into each and empty besides, from `first` (ctl.<start>) on.

cdef object answer(Check *c)
    # (array, field, record, entry, value, counted or None, why) of what was refused.
