"""Many small reads of one file, without Python in between: records of /proc's arrays, pages of a process's memory."""
from libc.errno cimport EINTR, ENOMEM, ESRCH, errno
from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc

from ksmwalk._core cimport records as array_of

cdef extern from *:
    """
    #include <sys/ioctl.h>
    /* of an entry of pagemap; the lowest bit of a frame stands for the page of zeros where PAGEMAP_SCAN was asked */
    #define KW_PRESENT (1ull << 63)
    #define KW_FRAME ((1ull << 55) - 1)
    #define KW_ZERO 1ull

    /* linux/fs.h since 6.7 */
    struct kw_scan_arg {
        uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
        uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
    };
    struct kw_region { uint64_t start, end, categories; };
    enum { KW_IS_PRESENT = 1 << 3, KW_IS_PFNZERO = 1 << 5 };

    static long kw_scan(int fd, uint64_t start, uint64_t end, struct kw_region *out, uint64_t most, uint64_t *walked)
    {
        struct kw_scan_arg arg = {.size = sizeof arg, .start = start, .end = end, .vec = (uint64_t)(uintptr_t)out,
                                  .vec_len = most, .category_mask = KW_IS_PRESENT,
                                  .return_mask = KW_IS_PRESENT | KW_IS_PFNZERO};
        long n = ioctl(fd, _IOWR('f', 16, struct kw_scan_arg), &arg);
        *walked = arg.walk_end;
        return n;
    }
    """
    const uint64_t KW_PRESENT
    const uint64_t KW_FRAME
    const uint64_t KW_ZERO
    enum:
        KW_IS_PFNZERO
    struct kw_region:
        uint64_t start
        uint64_t end
        uint64_t categories
    long kw_scan(int fd, uint64_t start, uint64_t end, kw_region *out, uint64_t most, uint64_t *walked) nogil

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, int64_t offset)

cdef extern from "_fold.h" nogil:
    enum:
        KW_FOLD_SEEDS
    uint64_t kw_hash_page(const uint64_t *words, const uint64_t *seeds, int wide)

cdef enum:
    SPAN = 1 << 15         # records read in one call at most
    RECORD = 8
    PAGE = 4096
    WINDOW = 64            # pages between two looks: 256 KiB, which the second cache holds
    REGIONS = 2 * WINDOW   # asked for in one call


cdef int64_t whole(int fd, char *into, int64_t count, int64_t offset) noexcept nogil:
    """Read count bytes: how many there were, -errno where it was none for an error."""
    cdef int64_t done = 0
    cdef ssize_t n
    while done < count:
        n = pread(fd, into + done, <size_t>(count - done), offset + done)
        if n < 0 and errno == EINTR:
            continue
        if n <= 0:
            return -errno if n < 0 and done == 0 else done
        done += n
    return done


cdef int64_t gather(int fd, const int64_t *index, int64_t n, int64_t gap, uint64_t *out, uint64_t **buffer) noexcept nogil:
    """Records by number, neighbours up to gap apart in one call. 0, -errno of the read that failed, 1: the file ended.

    What is read along goes into a buffer, made when it is needed first, to be freed by the caller.
    """
    cdef int64_t i = 0, j, k, span, got
    while i < n:
        j = i + 1
        while j < n and 0 < index[j] - index[j - 1] <= gap + 1 and index[j] - index[i] < SPAN:
            j += 1
        span = index[j - 1] - index[i] + 1
        if span == j - i:
            got = whole(fd, <char *>&out[i], span * RECORD, index[i] * RECORD)
        else:
            if buffer[0] == NULL:
                buffer[0] = <uint64_t *>malloc(SPAN * RECORD)
                if buffer[0] == NULL:
                    return -ENOMEM
            got = whole(fd, <char *>buffer[0], span * RECORD, index[i] * RECORD)
            if got == span * RECORD:
                for k in range(i, j):
                    out[k] = buffer[0][index[k] - index[i]]
        if got != span * RECORD:
            return got if got < 0 else 1
        i = j
    return 0


cdef int64_t scanned(int fd, const int64_t *vpn, int64_t n, int64_t gap, uint64_t *out) noexcept nogil:
    """Which of some pages, ascending, are present, and which of them are the page of zeros, by PAGEMAP_SCAN. 0 or -errno."""
    cdef kw_region found[REGIONS]
    cdef int64_t i = 0, j, k, r
    cdef long some
    cdef uint64_t start, end, walked
    while i < n:
        j = i + 1
        while j < n and 0 < vpn[j] - vpn[j - 1] <= gap + 1:
            j += 1
        start, end = <uint64_t>vpn[i] * PAGE, <uint64_t>(vpn[j - 1] + 1) * PAGE
        k = i
        while start < end:
            some = kw_scan(fd, start, end, found, REGIONS, &walked)
            if some < 0 and errno == EINTR:
                continue
            if some < 0:
                return -errno
            for r in range(some):
                while k < j and <uint64_t>vpn[k] * PAGE < found[r].start:
                    out[k] = 0
                    k += 1
                while k < j and <uint64_t>vpn[k] * PAGE < found[r].end:
                    out[k] = KW_PRESENT | (KW_ZERO if found[r].categories & KW_IS_PFNZERO else 0)
                    k += 1
            # a short answer means the end; where it goes on the kernel may say too early, in front of what it has told
            if some < REGIONS:
                break
            start = walked if walked > found[some - 1].end else found[some - 1].end
        while k < j:
            out[k] = 0
            k += 1
        i = j
    return 0


cdef int64_t look(
    int pagemap, const int64_t *vpn, int64_t n, int64_t gap, bint by_scan, uint64_t *out, uint64_t **buffer
) noexcept nogil:
    return scanned(pagemap, vpn, n, gap, out) if by_scan else gather(pagemap, vpn, n, gap, out, buffer)


cdef void read_pages(
    int fd, const int64_t *vpn, const uint64_t *entry, int64_t n, uint8_t *into, uint8_t *done
) noexcept nogil:
    """Read the pages that were present into their rows, neighbours in one call; what can't be read is passed over."""
    cdef int64_t i = 0, j, k, got
    while i < n:
        done[i] = 0
        if not entry[i] & KW_PRESENT:
            i += 1
            continue
        j = i + 1
        while j < n and entry[j] & KW_PRESENT and vpn[j] == vpn[j - 1] + 1:
            j += 1
        got = whole(fd, <char *>into + i * PAGE, (j - i) * PAGE, vpn[i] * PAGE) // PAGE
        for k in range(i, j):
            done[k] = k < i + got
        # the page after the last that came is the one that can't be read
        i = j if got >= j - i else i + (got if got > 0 else 0) + 1


cdef int64_t count_odd(const uint64_t *before, const uint64_t *after, int64_t n, const uint8_t *done) noexcept nogil:
    """Of how many pages it is not plain that what was read is what they held all the time."""
    cdef int64_t i, odd = 0
    for i in range(n):
        odd += not done[i] or not after[i] & KW_PRESENT or ((before[i] ^ after[i]) & KW_FRAME) != 0
    return odd


def records(int fd, index, int64_t gap, out):
    """Read the 64-bit records with these numbers; neighbours up to `gap` apart and ascending share a call.

    0, -errno of the read that failed, or 1 where the file ended before.
    """
    cdef int64_t n, room, answer
    cdef const int64_t *wanted = <const int64_t *>array_of(index, False, 8, 8, &n)
    cdef uint64_t *found = <uint64_t *>array_of(out, True, 8, 8, &room)
    cdef uint64_t *buffer = NULL
    if room != n:
        raise ValueError("a place for each record is needed")
    with nogil:
        answer = gather(fd, wanted, n, gap, found, &buffer)
        free(buffer)
    return answer


def present(
    int pagemap, int mem, vpn, int64_t gap, bint by_scan, into, before, after, done, seeds, hashes, between=None
):
    """Read the present ones of some pages of a process, each looked up in pagemap right before it is read and right after.

    64 pages at a time: looked up by PAGEMAP_SCAN, or by their entries of pagemap, read, looked up again. before, after:
    those entries; of PAGEMAP_SCAN the bit for present pages, and as frame 1 for the page of zeros. done[i]: it was read.
    With the seeds of _fold.h they are hashed too, while they are in the cache, be they read or not. `between` is called after each
    first look, to see what happens to what goes then.

    How many pages call for a second thought: not read, gone since, in another frame since. -errno; -ESRCH also where
    pagemap ended.
    """
    cdef int64_t at = 0, i, n, hashed, odd = 0, answer = 0, some
    cdef int64_t[5] room
    cdef const int64_t *page = <const int64_t *>array_of(vpn, False, 8, 8, &n)
    cdef uint8_t *bytes_ = <uint8_t *>array_of(into, True, 1, PAGE, &room[0])
    cdef uint64_t *first = <uint64_t *>array_of(before, True, 8, 8, &room[1])
    cdef uint64_t *second = <uint64_t *>array_of(after, True, 8, 8, &room[2])
    cdef uint8_t *mark = <uint8_t *>array_of(done, True, 1, 1, &room[3])
    cdef const uint64_t *seed = <const uint64_t *>array_of(seeds, False, 8, 8, &hashed)
    cdef uint64_t *hash_ = <uint64_t *>array_of(hashes, True, 8, 8, &room[4])
    cdef uint64_t *buffer = NULL
    cdef bint told = between is not None
    if min(min(room[0], room[1]), min(room[2], room[3])) < n:
        raise ValueError("two entries, a mark and 4096 bytes for each page are needed")
    if hashed and (hashed != KW_FOLD_SEEDS or room[4] < n):
        raise ValueError("all seeds and a place for each hash are needed")
    with nogil:
        while at < n:
            some = min(<int64_t>WINDOW, n - at)
            answer = look(pagemap, page + at, some, gap, by_scan, first + at, &buffer)
            if answer:
                break
            if told:
                with gil:
                    between()
            read_pages(mem, page + at, first + at, some, bytes_ + at * PAGE, mark + at)
            answer = look(pagemap, page + at, some, gap, by_scan, second + at, &buffer)
            if answer:
                break
            if hashed:
                for i in range(at, at + some):
                    hash_[i] = kw_hash_page(<const uint64_t *>(bytes_ + i * PAGE), seed, 1)
            odd += count_odd(first + at, second + at, some, mark + at)
            at += some
        free(buffer)
    return odd if not answer else -ESRCH if answer > 0 else answer
