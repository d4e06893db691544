"""Reading scattered 64-bit records out of the arrays that /proc offers as files.

`pagemap` is an array indexed by page number, `kpageflags` and `kpagecount` by frame number. A system call costs as much
as some hundred records that nobody asked for, so near neighbours share one, and many calls share one pass of numpy.
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..signatures import I64Array, U64Array
from .errors import ProcessExited

RECORD = 8
SPAN_SHIFT = 17
BUFFER_RECORDS = 1 << 17
# Pieces this small keep the arrays made on the way in memory that is used over and over: the first touch of new memory
# costs more than all the rest, in a virtual machine above all.
PIECE_RECORDS = 1 << 15
PIECES_WORTH_THREADS = 4
MAX_WORKERS = 4


def read_span(fd: int, first: int, count: int, pid: int) -> U64Array:
    """`count` records from number `first` on, uint64[count]; a short read means that the process is gone."""
    buffer = np.empty(count, np.uint64)
    _read_into(fd, buffer.data.cast("B"), first, pid)
    return buffer


def _read_into(fd: int, view: memoryview, first: int, pid: int) -> None:
    done = 0
    while done < len(view):
        try:
            n = os.preadv(fd, [view[done:]], first * RECORD + done)
        except OSError as error:
            if error.errno == errno.ESRCH:
                n = 0
            else:
                raise
        if n == 0:
            raise ProcessExited(pid, "ended while it was being read")
        done += n


def gather(fd: int, index: I64Array, gap: int, pid: int) -> U64Array:
    """The records with the numbers `index` (int64[n]), as uint64[n].

    Records up to `gap` apart and ascending are read in one call, together with those between them. The kernel's work
    on a record (up to 0.1 us) is done outside Python's lock, so a long list is shared out over the processors.
    """
    out = np.empty(len(index), np.uint64)
    pieces = [slice(at, at + PIECE_RECORDS) for at in range(0, len(index), PIECE_RECORDS)]

    def read(piece: slice) -> None:
        _gather_piece(out[piece], fd, index[piece], gap, pid)

    workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    if len(pieces) < PIECES_WORTH_THREADS or workers < 2:
        for piece in pieces:
            read(piece)
    else:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(read, pieces):
                pass
    return out


def _gather_piece(out: U64Array, fd: int, index: I64Array, gap: int, pid: int) -> None:
    # Runs also end at every 2^SPAN_SHIFT-th record, which bounds the buffer whatever the gaps are.
    step = np.diff(index)
    cuts = np.flatnonzero((step > gap + 1) | (step < 1) | (np.diff(index >> SPAN_SHIFT) != 0)) + 1
    begin = np.concatenate(([0], cuts))
    stop = np.concatenate((cuts, [len(index)]))
    first = index[begin]
    length = index[stop - 1] - first + 1
    total = np.cumsum(length)
    buffer = np.empty(min(int(total[-1]), BUFFER_RECORDS), np.uint64)
    run, base = 0, 0
    while run < len(first):
        after = max(run + 1, int(np.searchsorted(total, base + BUFFER_RECORDS, "right")))
        some = slice(run, after)
        here = slice(begin[run], stop[after - 1])
        at = total[some] - length[some] - base
        base = int(total[after - 1])
        if int(at[-1] + length[after - 1]) == here.stop - here.start:
            _read_runs(fd, out[here], first[some], length[some], at, pid)
        else:
            _read_runs(fd, buffer, first[some], length[some], at, pid)
            shift = np.repeat(first[some] - at, stop[some] - begin[some])
            out[here] = buffer[index[here] - shift]
        run = after


def _read_runs(fd: int, into: U64Array, first: I64Array, length: I64Array, at: I64Array, pid: int) -> None:
    """Read run after run of `length` records from number `first` on into the array, at `at`."""
    view = into.data.cast("B")
    preadv = os.preadv
    starts, ends = (at * RECORD).tolist(), ((at + length) * RECORD).tolist()
    for number, start, end in zip(first.tolist(), starts, ends, strict=True):
        part = view[start:end]
        try:
            whole = preadv(fd, (part,), number * RECORD) == end - start
        except OSError:
            whole = False
        if not whole:
            _read_into(fd, part, number, pid)
