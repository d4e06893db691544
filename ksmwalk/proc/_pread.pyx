"""Many small reads of one file, without Python in between: records of /proc's arrays, pages of a process's memory."""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, int64_t offset)

cdef enum:
    SPAN = 1 << 15         # records read in one call at most
    RECORD = 8
    PAGE = 4096


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


def records(int fd, const int64_t[::1] index, int64_t gap, uint64_t[::1] out):
    """Read the 64-bit records with these numbers; neighbours up to `gap` apart and ascending share a call.

    0, -errno of the read that failed, or 1 where the file ended before.
    """
    cdef int64_t i = 0, j, k, n = index.shape[0], span, got
    cdef uint64_t *buffer = NULL
    cdef int64_t answer = 0
    if out.shape[0] != n:
        raise ValueError("a place for each record is needed")
    with nogil:
        while i < n:
            j = i + 1
            while j < n and 0 < index[j] - index[j - 1] <= gap + 1 and index[j] - index[i] < SPAN:
                j += 1
            span = index[j - 1] - index[i] + 1
            if span == j - i:
                got = whole(fd, <char *>&out[i], span * RECORD, index[i] * RECORD)
            else:
                if buffer == NULL:
                    buffer = <uint64_t *>malloc(SPAN * RECORD)
                    if buffer == NULL:
                        answer = -12
                        break
                got = whole(fd, <char *>buffer, span * RECORD, index[i] * RECORD)
                if got == span * RECORD:
                    for k in range(i, j):
                        out[k] = buffer[index[k] - index[i]]
            if got != span * RECORD:
                answer = got if got < 0 else 1
                break
            i = j
        free(buffer)
    return answer


def pages(int fd, const int64_t[::1] vpn, const uint8_t[::1] wanted, uint8_t[:, ::1] into, uint8_t[::1] done):
    """Read the wanted ones of the pages with these numbers into their rows, neighbours in one call; done[i]: it was read.

    What can't be read is passed over.
    """
    cdef int64_t i = 0, j, k, n = vpn.shape[0], got
    if wanted.shape[0] != n or into.shape[0] != n or done.shape[0] != n or into.shape[1] != PAGE:
        raise ValueError("a mark, 4096 bytes and an answer for each page are needed")
    with nogil:
        while i < n:
            done[i] = 0
            if not wanted[i]:
                i += 1
                continue
            j = i + 1
            while j < n and wanted[j] and vpn[j] == vpn[j - 1] + 1:
                j += 1
            got = whole(fd, <char *>&into[i, 0], (j - i) * PAGE, vpn[i] * PAGE) // PAGE
            for k in range(i, j):
                done[k] = k < i + got
            # the page after the last that came is the one that can't be read
            i = j if got >= j - i else i + (got if got > 0 else 0) + 1
