"""The layout of all arrays: record dtypes, named bits, the table of a Host's arrays.

Every array of a Host has one of these dtypes or a plain integer one, so it can be looked at, saved and handed on. All of
it is said in `_layout.h`, field by field, and written from there when the package is built.
"""

from __future__ import annotations

from ._records import (
    ANON,
    ARRAYS,
    BAD,
    BATCH,
    CTL,
    CURSOR,
    EVENT,
    ITEM,
    KSM,
    LINK,
    MAPPING,
    MM,
    NODE,
    OWNERS,
    PAGE_SIZE,
    PMD_SIZE,
    PUD_SIZE,
    SLOT,
    TRACE_EVENT,
    VMA,
    WORK,
    Array,
    Bad,
    Batch,
    Code,
    Event,
    Frame,
    ItemFlag,
    LoadedPage,
    MmFlag,
    NodeFlag,
    Operation,
    Perm,
    SlotFlag,
    Strategy,
    Switch,
    Thp,
    Vm,
)

__all__ = [
    "ANON",
    "ARRAYS",
    "BAD",
    "BATCH",
    "BLOCK",
    "CTL",
    "CURSOR",
    "EVENT",
    "FRAME_FIELDS",
    "ITEM",
    "KSM",
    "LINK",
    "MAPPING",
    "MM",
    "NODE",
    "OWNERS",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "PMD_SIZE",
    "PUD_SIZE",
    "SLOT",
    "TRACE_EVENT",
    "TREES",
    "VMA",
    "WORK",
    "Array",
    "Bad",
    "Batch",
    "Code",
    "Event",
    "Frame",
    "ItemFlag",
    "LoadedPage",
    "MmFlag",
    "NodeFlag",
    "Operation",
    "Perm",
    "SlotFlag",
    "Strategy",
    "Switch",
    "Thp",
    "Vm",
]

#: the arrays with one record a frame: name -> dtype
FRAME_FIELDS = {name.removeprefix("f_"): array.dtype for name, array in ARRAYS.items() if name.startswith("f_")}
PAGE_SHIFT = PAGE_SIZE.bit_length() - 1
BLOCK = 512  # frames in an allocator block (one THP)
TREES = 1 << 16  # pairs of trees at most: as many as a stable node's `tree` can number
