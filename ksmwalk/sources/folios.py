"""Huge folios that are mapped page by page, perhaps in part: found by the flags of their frames."""

from __future__ import annotations

import numpy as np

from ..proc.frames import Kpf, frame_records, has
from ..signatures import BoolArray, I64Array, U64Array

PER_FOLIO = 512
_HUGE_ANON = np.uint64(Kpf.THP | Kpf.ANON)
#: blocks whose frames nobody maps are looked up, at most
_MOST = 1 << 16


def huge_folios(fd: int, pfn: U64Array, flags: U64Array, leaf: BoolArray, pid: int) -> I64Array:
    """The heads of folios of 2 MiB, of whose frames some are mapped page by page.

    Parameters
    ----------
    fd : int
        An open /proc/kpageflags.
    pfn, flags : uint64[n]
        Frames that are mapped, and their flags.
    leaf : bool[n]
        Which are mapped by a leaf of 2 MiB: these are known.
    pid : int
        For whom they are read.

    Returns
    -------
    int64[folios]
        First frames, ascending. A block is one only if the flags of all its 512 frames say so, mapped here or not.

    Models: KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_THP of /proc/kpageflags of Linux 6.18. Differs: nothing known.
    """
    parts = pfn[(flags & _HUGE_ANON == _HUGE_ANON) & ~leaf].astype(np.int64)
    blocks = np.unique(parts >> 9)[:_MOST]
    if not len(blocks):
        return np.empty(0, np.int64)
    all_flags = frame_records(fd, (blocks[:, None] * PER_FOLIO + np.arange(PER_FOLIO)).reshape(-1), pid)
    table = all_flags.reshape(-1, PER_FOLIO)
    whole = has(table[:, 0], Kpf.COMPOUND_HEAD) & has(table[:, 1:], Kpf.COMPOUND_TAIL).all(axis=1)
    whole &= has(table[:, 0], Kpf.THP)
    return blocks[whole] * PER_FOLIO
