"""What may be shared by fork already, where nobody can see which pages are one frame: the least that merging frees."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..proc.pagemap import PAGE_IS_HUGE
from ..signatures import AnyArray
from ..sources.contents import MemoryCapture

_BEGIN = "Frames can't be seen here: what processes share by fork already would not be freed again. The lower figures take "
_PLACES = f"{_BEGIN}equal pages at equal addresses of two processes as shared already."
_OWN = f"{_BEGIN}every page that is not its process's alone (pagemap's bit 56) as shared with somebody who was not read."


def shared_already(capture: MemoryCapture) -> tuple[MemoryCapture, str]:
    """The same with all on one frame that may be, and what is taken for it.

    Parameters
    ----------
    capture : MemoryCapture
        Without frame numbers.

    Returns
    -------
    MemoryCapture, str
        Where it is known which pages are a process's alone, all others are on frames that somebody else maps, too, so
        that merging frees none of them; else equal pages at equal addresses are one frame, as fork leaves them.

    Models: fork, and bit 56 of /proc/PID/pagemap of Linux 6.18. Differs: pages of KSM count as shared by fork.
    """
    known = all(one.exclusive is not None for one in capture.processes)
    pages = [np.flatnonzero(one.anon & ~one.zero) for one in capture.processes]

    def joined(arrays: list[Any]) -> AnyArray:
        return np.concatenate([array[mine] for array, mine in zip(arrays, pages, strict=True)])

    addr = joined([one.addr for one in capture.processes])
    key = joined([one.addr if one.key is None else one.key for one in capture.processes])
    own = joined([one.exclusive for one in capture.processes]) if known else np.zeros(len(addr), bool)
    order = np.lexsort((key, own, addr))
    new = np.ones(len(addr), bool)
    new[1:] = (np.diff(addr[order]) != 0) | (np.diff(key[order]) != 0) | own[order][1:]
    frame = np.empty(len(addr), np.uint64)
    frame[order] = np.cumsum(new).astype(np.uint64)
    mapped = np.bincount(frame.astype(np.int64), minlength=int(frame.max(initial=0)) + 1)
    some: list[Any] = []
    at, last = 0, len(mapped)
    for one, mine in zip(capture.processes, pages, strict=True):
        pfn = np.arange(last, last + one.nr_pages, dtype=np.uint64)
        last += one.nr_pages
        pfn[mine] = frame[at : at + len(mine)]
        counts = one.frame_counts
        if known:
            counts = np.zeros(one.nr_pages, np.uint64)
            counts[mine] = mapped[frame[at : at + len(mine)].astype(np.int64)] + ~own[at : at + len(mine)]
        at += len(mine)
        # frames made up so lie nowhere in a row: no huge pages
        categories = one.categories & ~np.uint64(PAGE_IS_HUGE)
        some.append(dataclasses.replace(one, pfn=pfn, categories=categories, frame_counts=counts))
    return dataclasses.replace(capture, processes=some), _OWN if known else _PLACES
