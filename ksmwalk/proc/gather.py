"""Reading scattered 64-bit records out of the arrays that /proc offers as files.

`pagemap` is an array indexed by page number, `kpageflags` and `kpagecount` by frame number. A system call costs as much
as some hundred records that nobody asked for, so near neighbours share one.
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..signatures import I64Array, U64Array
from . import _pread
from .errors import ProcessExited

RECORD = 8
PIECE_RECORDS = 1 << 15
PIECES_WORTH_THREADS = 4
MAX_WORKERS = 4


def read_span(fd: int, first: int, count: int, pid: int) -> U64Array:
    """`count` records from number `first` on, uint64[count]; a short read means that the process is gone."""
    out = np.empty(count, np.uint64)
    _read(out, fd, np.arange(first, first + count), 0, pid)
    return out


def gather(fd: int, index: I64Array, gap: int, pid: int) -> U64Array:
    """The records with the numbers `index` (int64[n]), as uint64[n].

    Records up to `gap` apart and ascending are read in one call, together with those between them. The kernel's work
    on a record (up to 0.1 us) is done outside Python's lock, so a long list is shared out over the processors.
    """
    out = np.empty(len(index), np.uint64)
    pieces = [slice(at, at + PIECE_RECORDS) for at in range(0, len(index), PIECE_RECORDS)]

    def read(piece: slice) -> None:
        _read(out[piece], fd, index[piece], gap, pid)

    workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    if len(pieces) < PIECES_WORTH_THREADS or workers < 2:
        for piece in pieces:
            read(piece)
    else:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(read, pieces):
                pass
    return out


def _read(out: U64Array, fd: int, index: I64Array, gap: int, pid: int) -> None:
    code = _pread.records(fd, np.ascontiguousarray(index), gap, out)
    if code:
        raise failed(errno.ESRCH if code > 0 else -code, pid)


def failed(code: int, pid: int) -> OSError:
    """The error behind a number that a read of a process's files failed with."""
    return ProcessExited(pid, "ended while it was being read") if code == errno.ESRCH else OSError(code, os.strerror(code))
