"""What valgrind's lackey writes with --trace-mem=yes, taken apart at the speed of memory.

A line is `I  ADDR,SIZE` (an instruction), ` L ADDR,SIZE` (a load), ` S` (a store) or ` M` (a load and a store), the address
in hexadecimal digits, the size in bytes; lines of valgrind itself begin with == or --.
"""
from libc.stdint cimport int64_t, uint64_t

from ksmwalk._core cimport records
from ksmwalk.layout._layout cimport *


cdef enum:
    MOST = 1 << 16      # bytes of one access

cdef struct Parser:
    const unsigned char *text
    int64_t n, at
    bint fetches
    uint64_t mm, instructions, stores
    uint64_t *out
    int64_t found


cdef void put(Parser *s, uint64_t addr, uint64_t size, uint64_t operation) noexcept nogil:
    """An event for every page that an access touches."""
    cdef uint64_t page = addr, last = addr + size - 1
    cdef uint64_t *e
    while True:
        e = s.out + s.found * 4
        e[0] = s.instructions
        e[1] = page
        e[2] = 0
        if operation == OP_WRITE:
            e[2] = <uint64_t>1 << 63 | s.mm << 40 | s.stores
            s.stores += 1
        e[3] = s.mm | operation << 32
        s.found += 1
        if page >> 12 == last >> 12:
            return
        page = (page | (KW_PAGE_SIZE - 1)) + 1


cdef bint hexadecimal(Parser *s, uint64_t *value) noexcept nogil:
    """1 to 16 digits."""
    cdef int64_t first = s.at
    cdef unsigned char c
    value[0] = 0
    while s.at < s.n and s.at - first < 17:
        c = s.text[s.at]
        if c'0' <= c <= c'9':
            c -= c'0'
        elif c'a' <= c <= c'f':
            c -= c'a' - 10
        elif c'A' <= c <= c'F':
            c -= c'A' - 10
        else:
            break
        value[0] = value[0] << 4 | c
        s.at += 1
    return 0 < s.at - first < 17


cdef bint decimal(Parser *s, uint64_t *value) noexcept nogil:
    cdef int64_t first = s.at
    value[0] = 0
    while s.at < s.n and s.at - first < 6 and c'0' <= s.text[s.at] <= c'9':
        value[0] = value[0] * 10 + (s.text[s.at] - c'0')
        s.at += 1
    return 0 < value[0] <= MOST


cdef bint one_line(Parser *s) noexcept nogil:
    """Take a line, up to its end of line: False: it is none of lackey's."""
    cdef unsigned char kind, first = s.text[s.at]
    cdef uint64_t addr = 0, size = 0
    if s.at + 2 <= s.n and (first == c'=' or first == c'-') and s.text[s.at + 1] == first:
        while s.at < s.n and s.text[s.at] != c'\n':
            s.at += 1
        return True
    if s.at + 3 > s.n or s.text[s.at + 2] != c' ':
        return False
    kind = first if s.text[s.at + 1] == c' ' else s.text[s.at + 1]
    if (kind == c'I') != (first == c'I') or kind != c'I' and first != c' ':
        return False
    if kind != c'I' and kind != c'L' and kind != c'S' and kind != c'M':
        return False
    s.at += 3
    if not hexadecimal(s, &addr) or s.at >= s.n or s.text[s.at] != c',':
        return False
    s.at += 1
    if not decimal(s, &size) or addr > ~<uint64_t>0 - size:
        return False
    if kind == c'I':
        s.instructions += 1
        if s.fetches:
            put(s, addr, size, OP_READ)
    if kind == c'L' or kind == c'M':
        put(s, addr, size, OP_READ)
    if kind == c'S' or kind == c'M':
        put(s, addr, size, OP_WRITE)
    return s.at == s.n or s.text[s.at] == c'\n'


def parse(text, bint fetches, uint64_t mm, uint64_t instructions, uint64_t stores, out):
    """(events, bytes and lines taken, whether the next line is wrong, instructions, stores) of text in whole lines.

    `out`: records of layout.TRACE_EVENT, four words each; text ends early where fewer than 40 are left, the most that a
    line can give. Times are instructions; a store leaves a content that no other has: 1 << 63 | mm << 40 | its number.
    """
    cdef Parser s
    cdef int64_t lines = 0, room
    cdef bint wrong = False
    s.text = <const unsigned char *>records(text, False, 1, 1, &s.n)
    s.at = 0
    s.fetches, s.mm, s.instructions, s.stores, s.found = fetches, mm, instructions, stores, 0
    s.out = <uint64_t *>records(out, True, 8, sizeof(kw_trace_event), &room)
    if room < s.n // 6 * 2 + 40:
        raise ValueError("no room for the events of so much text")
    with nogil:
        while s.at < s.n:
            if s.found + 40 > room:
                break
            if not one_line(&s):
                wrong = True
                break
            s.at += 1
            lines += 1
    return s.found, min(s.at, s.n), lines, wrong, s.instructions, s.stores
