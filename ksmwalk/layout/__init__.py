"""The record dtypes and named bits of the arenas: what `_layout.h` says to C, said to numpy.

Every array of a Host has one of these dtypes or a plain integer one, so it can be looked at, saved and handed on. The
meaning of each field stands in `_layout.h`; tests/test_layout.py holds the two files together, offset by offset.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np


def _record(*fields: tuple) -> np.dtype:
    return np.dtype(list(fields), align=True)


VMA = _record(
    ("start", "u8"),
    ("end", "u8"),
    ("flags", "u8"),
    ("pgoff", "u8"),
    ("next", "i4"),
    ("prev", "i4"),
    ("mm", "i4"),
    ("backing", "i4"),
    ("anon_vma", "i4"),
    ("page_shift", "i4"),
    ("reserved", "i8"),
)
MM = _record(
    ("root", "i8"),
    ("vma_first", "i4"),
    ("flags", "u4"),
    ("slot_next", "i4"),
    ("slot_prev", "i4"),
    ("rmap_list", "i4"),
    ("nr_vmas", "i4"),
    ("nr_rmap_items", "i8"),
    ("nr_merging", "i8"),
    ("nr_zero", "i8"),
    ("nr_tables", "i8"),
    ("epoch", "u8"),
    ("reserved", "i8"),
    ("length", "i8"),
)
ITEM = _record(
    ("addr", "u8"),
    ("checksum", "u8"),
    ("next", "i4"),
    ("mm", "i4"),
    ("node", "i4"),
    ("flags", "u1"),
    ("seq", "u1"),
    ("age", "u1"),
    ("skips", "u1"),
)
LINK = _record(
    ("key", "u8"),
    ("left", "i4"),
    ("right", "i4"),
    ("parent", "i4"),
    ("aux", "u4"),
)
NODE = _record(
    ("key", "u8"),
    ("prune_time", "u8"),
    ("pfn", "i8"),
    ("left", "i4"),
    ("right", "i4"),
    ("parent", "i4"),
    ("color", "u1"),
    ("flags", "u1"),
    ("nid", "u1"),
    ("reserved", "u1"),
    ("items", "i4"),
    ("count", "i4"),
    ("dups", "i4"),
    ("dup_next", "i4"),
    ("dup_prev", "i4"),
    ("chain", "i4"),
)
CTL = _record(
    ("rows_used", "i8"),
    ("rows_free", "i8"),
    ("rows_live", "i8"),
    ("rows_cap", "i8"),
    ("vmas_used", "i8"),
    ("vmas_free", "i8"),
    ("vmas_cap", "i8"),
    ("mms_used", "i8"),
    ("mms_free", "i8"),
    ("mms_cap", "i8"),
    ("items_used", "i8"),
    ("items_free", "i8"),
    ("items_live", "i8"),
    ("items_cap", "i8"),
    ("nodes_used", "i8"),
    ("nodes_free", "i8"),
    ("nodes_live", "i8"),
    ("nodes_cap", "i8"),
    ("nr_frames", "i8"),
    ("nr_nodes", "i8"),
    ("nr_blocks", "i8"),
    ("frames_used", "i8"),
    ("anon_vmas", "i8"),
    ("huge_zero", "i8"),
    ("lru_batch", "i8"),
    ("lru_pending", "i8"),
    ("levels", "i8"),
    ("thp", "i8"),
    ("vma_serial", "i8"),
    ("changes", "i8"),
    ("lru", "i8", (64,)),
)
KSM = _record(
    ("run", "i8"),
    ("pages_to_scan", "i8"),
    ("sleep_millisecs", "i8"),
    ("smart_scan", "i8"),
    ("use_zero_pages", "i8"),
    ("max_page_sharing", "i8"),
    ("merge_across_nodes", "i8"),
    ("prune_millisecs", "i8"),
    ("advisor_mode", "i8"),
    ("advisor_max_cpu", "i8"),
    ("advisor_min_pages", "i8"),
    ("advisor_max_pages", "i8"),
    ("advisor_target", "i8"),
    ("pages_scanned", "i8"),
    ("pages_skipped", "i8"),
    ("pages_shared", "i8"),
    ("pages_sharing", "i8"),
    ("pages_unshared", "i8"),
    ("zero_pages", "i8"),
    ("chains", "i8"),
    ("dups", "i8"),
    ("now_ms", "i8"),
    ("migrate", "i8"),
    ("events_on", "i8"),
    ("long_wait", "i8"),
    ("generation", "i8"),
    ("tree_generation", "i8"),
    ("changes_seen", "i8"),
    ("advisor", "i8", (8,)),
)
CURSOR = _record(
    ("address", "u8"),
    ("seqnr", "u8"),
    ("slot", "i4"),
    ("link", "i4"),
    ("vma", "i4"),
    ("strategy", "i4"),
    ("real_lookups", "i4"),
    ("reserved", "i4"),
    ("cache_base", "u8"),
    ("cache_row", "i8"),
    ("cache_end", "u8"),
)
WORK = _record(
    ("entries", "i8", (6,)),
    ("ptes", "i8"),
    ("searches", "i8"),
    ("cached", "i8"),
    ("lookups", "i8"),
    ("lookup_misses", "i8"),
    ("callbacks", "i8"),
    ("resched", "i8"),
    ("longest", "i8"),
    ("holes", "i8"),
    ("found", "i8"),
)
BAD = _record(
    ("addr", "u8"),
    ("raw", "u8"),
    ("level", "i4"),
    ("kind", "i4"),
)
MAPPING = _record(
    ("addr", "u8"),
    ("pfn", "u8"),
    ("flags", "u8"),
    ("level", "u1"),
    ("perms", "u1"),
    ("reserved", "u2"),
    ("nr", "u4"),
)
EVENT = _record(
    ("kind", "i4"),
    ("mm", "i4"),
    ("a", "i8"),
    ("b", "i8"),
    ("node", "i4"),
    ("err", "i4"),
)


class Frame(IntFlag):
    """What a frame is (`Frames.flags`)."""

    ANON = 0x1
    KSM = 0x2
    HEAD = 0x4
    TAIL = 0x8
    ZERO = 0x10
    FILE = 0x20
    HUGETLB = 0x40
    DEVICE = 0x80
    LRU = 0x100
    LOCKED = 0x200
    USED = 0x400



class Vm(IntFlag):
    """vm_flags of a vma, with the kernel's bit values (DAX is ours)."""

    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    SHARED = 0x8
    PFNMAP = 0x400
    LOCKED = 0x2000
    IO = 0x4000
    DONTCOPY = 0x20000
    DONTEXPAND = 0x40000
    NORESERVE = 0x200000
    HUGETLB = 0x400000
    UFFD_WP = 0x1000
    MIXEDMAP = 0x10000000
    HUGEPAGE = 0x20000000
    NOHUGEPAGE = 0x40000000
    MERGEABLE = 0x80000000
    DROPPABLE = 0x10000000000
    DAX = 0x20000000000
    MAYBE_GUARD = 0x800
    MAYREAD = 0x10
    MAYWRITE = 0x20
    MAYEXEC = 0x40
    MAYSHARE = 0x80
    SEQ_READ = 0x8000
    RAND_READ = 0x10000
    ACCOUNT = 0x100000
    WIPEONFORK = 0x2000000
    DONTDUMP = 0x4000000


class MmFlag(IntFlag):
    """State of an address space."""

    EXITING = 1
    MERGE_ANY = 2
    HAS_SLOT = 4
    THP_DISABLED = 8
    USED = 16
    BACKING = 32
    DEVICE = 64


class Thp(IntEnum):
    """Huge pages for anonymous memory: never, where madvise asks for them, always."""

    NEVER = 0
    MADVISE = 1
    ALWAYS = 2


class ItemFlag(IntFlag):
    """State of an rmap_item."""

    STABLE = 1
    UNSTABLE = 2
    HAS_CHECKSUM = 4
    USED = 8


class NodeFlag(IntFlag):
    """State of a stable node."""

    USED = 1
    CHAIN = 2
    DUP = 4
    MIGRATE = 8


class Strategy(IntEnum):
    """How the cursor finds the next page: the 2025 range walk, or one address at a time as before it."""

    RANGE = 0
    PER_ADDRESS = 1


class Event(IntEnum):
    """The ksm:* trace events a Host can record."""

    START = 1
    STOP = 2
    ENTER = 3
    EXIT = 4
    NEW = 5
    ADD = 6
    ZERO = 7
    RMI = 8
    RMK = 9


class Bad(IntEnum):
    """Why an entry can't be followed."""

    FRAME = 1
    LOOP = 2
    LEAF = 3
    PFN = 4
    NONPRESENT = 5
    BUDGET = 6


class Perm(IntFlag):
    """Effective permissions of a mapping over all levels."""

    R = 1
    W = 2
    X = 4
    U = 8


class Code(IntEnum):
    """What compiled functions answer besides a count or an index; `errors.check` turns them into exceptions."""

    OK = 0
    NONE = -1
    BADENTRY = -2
    NOROWS = -3
    NOFRAMES = -4
    NOITEMS = -5
    NONODES = -6
    NOVMAS = -7
    BUSYENTRY = -8


#: frame arrays of a Host, in the order of `kw_world`: name -> dtype
FRAME_FIELDS = {
    "flags": np.dtype("u2"),
    "nid": np.dtype("u1"),
    "head": np.dtype("u4"),
    "mapcount": np.dtype("i4"),
    "refs": np.dtype("i4"),
    "key": np.dtype("u8"),
    "node": np.dtype("i4"),
}

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PMD_SIZE = 1 << 21
PUD_SIZE = 1 << 30
BLOCK = 512  # frames in an allocator block (one THP)
