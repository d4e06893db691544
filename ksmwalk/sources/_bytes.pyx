"""Pages as bytes: how they begin, whether they are equal, where they differ. Arrays in, arrays out, no state.

A page is 512 words of 64 bits. Byte order is the order of `memcmp`, which for words is that of big-endian numbers: ranks
of contents follow it, because it decides the shape of the kernel's trees.
"""
from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, memcpy

from ksmwalk._core cimport records

cdef enum:
    WORDS = 512
    PAGE = 4096

cdef extern from *:
    uint64_t big_endian "__builtin_bswap64"(uint64_t) nogil

cdef extern from "_fold.h" nogil:
    enum:
        KW_FOLD_SEEDS
    uint64_t kw_hash_page(const uint64_t *words, const uint64_t *seeds, int wide)


#: random numbers that `hashes` needs
SEEDS = KW_FOLD_SEEDS


cdef const uint64_t *words_of(object pages, int64_t *n) except? NULL:
    """Pages of 512 words, and how many."""
    return <const uint64_t *>records(pages, False, 8, PAGE, n)


def hashes(pages, seeds, out, bint wide=True):
    """A hash of each page by random numbers: pages with different ones differ, others have to be compared.

    wide: by what the processor has for it; the answer is the same.
    """
    cdef int64_t i, n, nr_seeds, room
    cdef const uint64_t *page = words_of(pages, &n)
    cdef const uint64_t *seed = <const uint64_t *>records(seeds, False, 8, 8, &nr_seeds)
    cdef uint64_t *answer = <uint64_t *>records(out, True, 8, 8, &room)
    if nr_seeds != KW_FOLD_SEEDS or room != n:
        raise ValueError("pages of 512 words, all seeds and a place for each hash are needed")
    with nogil:
        for i in range(n):
            answer[i] = kw_hash_page(page + i * WORDS, seed, wide)


def beginnings(pages, out):
    """How each page begins, as four numbers that compare as the pages do unless all four are equal.

    out[i, 0]: 512 less the number of words that are 0 before the first that isn't: 0 for a page of zeros; out[i, 1:]:
    that word and the next two, big-endian.
    """
    cdef int64_t _i, k, j, n, room
    cdef const uint64_t *page = words_of(pages, &n)
    cdef uint64_t *answer = <uint64_t *>records(out, True, 8, 4 * 8, &room)
    if room != n:
        raise ValueError("pages of 512 words and four numbers for each are needed")
    with nogil:
        for _i in range(n):
            k = 0
            while k < WORDS and page[k] == 0:
                k += 1
            answer[0] = <uint64_t>(WORDS - k)
            for j in range(3):
                answer[1 + j] = big_endian(page[k + j]) if k + j < WORDS else 0
            page += WORDS
            answer += 4


def equal(pages, other, out):
    """Whether page i has the bytes of page other[i] of the same array."""
    cdef int64_t i, n, others, room
    cdef const uint64_t *page = words_of(pages, &n)
    cdef const int64_t *second = <const int64_t *>records(other, False, 8, 8, &others)
    cdef uint8_t *answer = <uint8_t *>records(out, True, 1, 1, &room)
    if others != n or room != n:
        raise ValueError("pages of 512 words, and another page and an answer for each, are needed")
    for i in range(n):
        if not 0 <= second[i] < n:
            raise IndexError(f"page {second[i]} of {n}")
    with nogil:
        for i in range(n):
            answer[i] = second[i] == i or memcmp(page + i * WORDS, page + second[i] * WORDS, PAGE) == 0


def against(pages, reference, out):
    """Where each page first differs from a reference, as two numbers that compare as the pages do unless both are equal.

    out[i, 0]: which side, and how early; 512 for an equal page. out[i, 1]: the word there, big-endian.
    """
    cdef int64_t _i, k, n, references, room
    cdef const uint64_t *page = words_of(pages, &n)
    cdef const uint64_t *one = words_of(reference, &references)
    cdef uint64_t *answer = <uint64_t *>records(out, True, 8, 2 * 8, &room)
    cdef uint64_t word
    if references != 1 or room != n:
        raise ValueError("pages and a reference of 512 words, and two numbers for each page, are needed")
    with nogil:
        for _i in range(n):
            k = 0
            while k < WORDS and page[k] == one[k]:
                k += 1
            answer[1] = 0
            answer[0] = WORDS
            if k < WORDS:
                word = big_endian(page[k])
                answer[1] = word
                # below the reference: the earlier it differs the lower it is; above: the higher
                answer[0] = <uint64_t>k if word < big_endian(one[k]) else <uint64_t>(2 * WORDS - k)
            page += WORDS
            answer += 2


cdef enum:
    DIGIT = 11                      # bits that one pass sorts by
    VALUES = 1 << DIGIT
    PASSES = 6                      # for all 64


cdef void sort_digits(uint64_t *words, uint64_t *other, int64_t n, int skip, int64_t *counts) noexcept nogil:
    # From the lowest digit to the highest, each pass in the order of the one before; a digit that all share needs none.
    cdef int64_t i, k, at, here
    cdef int digit, shift
    cdef uint64_t *source = words
    cdef uint64_t *into = other
    for i in range(n):
        for digit in range((64 - skip + DIGIT - 1) // DIGIT):
            counts[digit * VALUES + (words[i] >> (skip + digit * DIGIT) & (VALUES - 1))] += 1
    for digit in range((64 - skip + DIGIT - 1) // DIGIT):
        shift = skip + digit * DIGIT
        if counts[digit * VALUES + (words[0] >> shift & (VALUES - 1))] == n:
            continue
        at = 0
        for k in range(VALUES):
            here = counts[digit * VALUES + k]
            counts[digit * VALUES + k] = at
            at += here
        for i in range(n):
            k = digit * VALUES + <int64_t>(source[i] >> shift & (VALUES - 1))
            into[counts[k]] = source[i]
            counts[k] += 1
        source, into = into, source
    if source != words:
        memcpy(words, source, <size_t>n * 8)


def sort_words(words, int skip):
    """Sort uint64[n] in place by all but the lowest `skip` bits, by which they stand in order already."""
    cdef int64_t n
    cdef uint64_t *word = <uint64_t *>records(words, True, 8, 8, &n)
    cdef uint64_t *other
    cdef int64_t *counts
    if not 0 <= skip < 64:
        raise ValueError(f"skip {skip}: 0 to 63 bits")
    if n < 2:
        return
    other = <uint64_t *>malloc(<size_t>n * 8)
    counts = <int64_t *>calloc(PASSES * VALUES, 8)
    if other == NULL or counts == NULL:
        free(other)
        free(counts)
        raise MemoryError("a copy of the words, to sort them")
    with nogil:
        sort_digits(word, other, n, skip, counts)
        free(other)
        free(counts)


cdef int by_bytes(const void *one, const void *other) noexcept nogil:
    return memcmp((<const void *const *>one)[0], (<const void *const *>other)[0], 4096)


def sort_runs(pages, rows, starts):
    """Sort each run rows[starts[k]:starts[k + 1]] of row numbers by the bytes of the pages in these rows."""
    cdef int64_t i, k, n, nr_pages, runs
    cdef const uint64_t *all = words_of(pages, &nr_pages)
    cdef int64_t *row = <int64_t *>records(rows, True, 8, 8, &n)
    cdef const int64_t *first = <const int64_t *>records(starts, False, 8, 8, &runs)
    cdef const uint64_t **page
    runs -= 1
    if runs < 0 or first[0] != 0 or first[runs] != n:
        raise ValueError("pages of 512 words, and runs that cover the rows, are needed")
    for i in range(n):
        if not 0 <= row[i] < nr_pages:
            raise IndexError(f"row {row[i]} of {nr_pages}")
    for k in range(runs):
        if not first[k] <= first[k + 1] <= n:
            raise IndexError(f"run {k} ends at {first[k + 1]} of {n}")
    page = <const uint64_t **>malloc(<size_t>(n + 1) * sizeof(void *))
    if page == NULL:
        raise MemoryError("pointers to pages")
    with nogil:
        for i in range(n):
            page[i] = all + row[i] * WORDS
        for k in range(runs):
            if first[k + 1] - first[k] > 1:
                qsort(&page[first[k]], <size_t>(first[k + 1] - first[k]), sizeof(void *), by_bytes)
        for i in range(n):
            row[i] = (page[i] - all) // WORDS
        free(page)
