"""Pages as bytes: how they begin, whether they are equal, where they differ. Arrays in, arrays out, no state.

A page is 512 words of 64 bits. Byte order is the order of `memcmp`, which for words is that of big-endian numbers: ranks
of contents follow it, because it decides the shape of the kernel's trees.
"""
from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp

cdef enum:
    WORDS = 512

cdef extern from *:
    uint64_t big_endian "__builtin_bswap64"(uint64_t) nogil

cdef extern from "_fold.h" nogil:
    enum:
        KW_FOLD_SEEDS
    uint64_t kw_hash_page(const uint64_t *words, const uint64_t *seeds, int wide)


#: random numbers that `hashes` needs
SEEDS = KW_FOLD_SEEDS


def hashes(const uint64_t[:, ::1] pages, const uint64_t[::1] seeds, uint64_t[::1] out, bint wide=True):
    """A hash of each page by random numbers: pages with different ones differ, others have to be compared.

    wide: by what the processor has for it; the answer is the same.
    """
    cdef int64_t i, n = pages.shape[0]
    if pages.shape[1] != WORDS or seeds.shape[0] != KW_FOLD_SEEDS or out.shape[0] != n:
        raise ValueError("pages of 512 words, all seeds and a place for each hash are needed")
    with nogil:
        for i in range(n):
            out[i] = kw_hash_page(&pages[i, 0], &seeds[0], wide)


def beginnings(const uint64_t[:, ::1] pages, uint64_t[:, ::1] out):
    """How each page begins, as four numbers that compare as the pages do unless all four are equal.

    out[i, 0]: 512 less the number of words that are 0 before the first that isn't: 0 for a page of zeros; out[i, 1:]:
    that word and the next two, big-endian.
    """
    cdef int64_t i, k, j, n = pages.shape[0]
    if pages.shape[1] != WORDS or out.shape[0] != n or out.shape[1] != 4:
        raise ValueError("pages of 512 words and four numbers for each are needed")
    with nogil:
        for i in range(n):
            k = 0
            while k < WORDS and pages[i, k] == 0:
                k += 1
            out[i, 0] = <uint64_t>(WORDS - k)
            for j in range(3):
                out[i, 1 + j] = big_endian(pages[i, k + j]) if k + j < WORDS else 0


def equal(const uint64_t[:, ::1] pages, const int64_t[::1] other, uint8_t[::1] out):
    """Whether page i has the bytes of page other[i] of the same array."""
    cdef int64_t i, n = pages.shape[0]
    if pages.shape[1] != WORDS or other.shape[0] != n or out.shape[0] != n:
        raise ValueError("pages of 512 words, and another page and an answer for each, are needed")
    for i in range(n):
        if not 0 <= other[i] < n:
            raise IndexError(f"page {other[i]} of {n}")
    with nogil:
        for i in range(n):
            out[i] = other[i] == i or memcmp(&pages[i, 0], &pages[other[i], 0], 4096) == 0


def against(const uint64_t[:, ::1] pages, const uint64_t[::1] reference, uint64_t[:, ::1] out):
    """Where each page first differs from a reference, as two numbers that compare as the pages do unless both are equal.

    out[i, 0]: which side, and how early; 512 for an equal page. out[i, 1]: the word there, big-endian.
    """
    cdef int64_t i, k, n = pages.shape[0]
    cdef uint64_t word
    if pages.shape[1] != WORDS or reference.shape[0] != WORDS or out.shape[0] != n or out.shape[1] != 2:
        raise ValueError("pages and a reference of 512 words, and two numbers for each page, are needed")
    with nogil:
        for i in range(n):
            k = 0
            while k < WORDS and pages[i, k] == reference[k]:
                k += 1
            out[i, 1] = 0
            out[i, 0] = WORDS
            if k < WORDS:
                word = big_endian(pages[i, k])
                out[i, 1] = word
                # below the reference: the earlier it differs the lower it is; above: the higher
                out[i, 0] = <uint64_t>k if word < big_endian(reference[k]) else <uint64_t>(2 * WORDS - k)


cdef int by_bytes(const void *one, const void *other) noexcept nogil:
    return memcmp((<const void *const *>one)[0], (<const void *const *>other)[0], 4096)


def sort_runs(const uint64_t[:, ::1] pages, int64_t[::1] row, const int64_t[::1] first):
    """Sort each run row[first[k]:first[k + 1]] of row numbers by the bytes of the pages in these rows."""
    cdef int64_t i, k, n = row.shape[0], runs = first.shape[0] - 1
    cdef const uint64_t **page
    if pages.shape[1] != WORDS or runs < 0 or first[0] != 0 or first[runs] != n:
        raise ValueError("pages of 512 words, and runs that cover the rows, are needed")
    for i in range(n):
        if not 0 <= row[i] < pages.shape[0]:
            raise IndexError(f"row {row[i]} of {pages.shape[0]}")
    for k in range(runs):
        if not first[k] <= first[k + 1] <= n:
            raise IndexError(f"run {k} ends at {first[k + 1]} of {n}")
    page = <const uint64_t **>malloc(<size_t>(n + 1) * sizeof(void *))
    if page == NULL:
        raise MemoryError("pointers to pages")
    with nogil:
        for i in range(n):
            page[i] = &pages[row[i], 0]
        for k in range(runs):
            if first[k + 1] - first[k] > 1:
                qsort(&page[first[k]], <size_t>(first[k + 1] - first[k]), sizeof(void *), by_bytes)
        for i in range(n):
            row[i] = (page[i] - &pages[0, 0]) // WORDS
        free(page)
