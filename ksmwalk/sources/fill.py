"""Filling a Host from arrays: the records of an address space that exists already.

System calls and faults of the model would tell the same story too slowly, join areas that the kernel keeps apart, and
not keep true frame numbers. Everything here works on the Host's arrays as `_layout.h` describes them.
"""

from __future__ import annotations

import numpy as np

from ..entries import Pte
from ..errors import ArenaFullError
from ..layout import MmFlag, Vm

PER_TABLE = 512
BLOCK_SHIFT = 9


def add_mm(arrays: dict[str, np.ndarray], flags: MmFlag) -> int:
    """A new record of an address space (or of a backing object) with an empty top table: its number."""
    ctl = arrays["ctl"]
    for used, cap, what in (("mms_used", "mms_cap", "address spaces"), ("rows_used", "rows_cap", "table pages")):
        if ctl[used][0] >= ctl[cap][0]:
            raise ArenaFullError(f"no {what} left: make the Host with more of them")
    number, row = int(ctl["mms_used"][0]), int(ctl["rows_used"][0])
    ctl["mms_used"] += 1
    ctl["rows_used"] += 1
    ctl["rows_live"] += 1
    mm = arrays["mms"][number]
    mm["flags"], mm["root"], mm["nr_tables"] = int(MmFlag.USED | flags), row, 1
    mm["epoch"] += 1
    return number


def add_vmas(arrays: dict[str, np.ndarray], number: int, columns: dict[str, np.ndarray]) -> np.ndarray:
    """The vmas of an mm that has none yet, in ascending order; `columns` by field of layout.VMA. Their numbers."""
    ctl, vmas, mm = arrays["ctl"], arrays["vmas"], arrays["mms"][number]
    n, first = len(columns["start"]), int(ctl["vmas_used"][0])
    if first + n > int(ctl["vmas_cap"][0]):
        left = int(ctl["vmas_cap"][0]) - first
        raise ArenaFullError(f"{n} vmas needed, {left} left: make the Host with more frames")
    numbers = np.arange(first, first + n)
    some = vmas[first : first + n]
    some[:] = 0
    for name, values in columns.items():
        some[name] = values
    some["mm"] = number
    some["prev"][1:] = numbers[:-1]
    some["next"][:-1] = numbers[1:]
    serial = int(ctl["vma_serial"][0])
    some["reserved"] = (serial + 1 + np.arange(n)) << 1
    ctl["vma_serial"] += n
    ctl["vmas_used"] += n
    mm["vma_first"] = first if n else 0
    mm["nr_vmas"] = n
    mm["epoch"] += 1
    return numbers


def relink_blocks(arrays: dict[str, np.ndarray]) -> None:
    """Build the allocator's lists of partly and wholly free blocks anew, each ascending."""
    ctl = arrays["ctl"]
    nr_nodes, nr_blocks = int(ctl["nr_nodes"][0]), int(ctl["nr_blocks"][0])
    count = arrays["b_count"][:nr_blocks]
    heads = arrays["b_heads"].reshape(-1)
    first_of = np.arange(nr_blocks) << BLOCK_SHIFT
    node = arrays["f_nid"][first_of]
    for kind, some in enumerate(((count > 0) & (count < PER_TABLE), count == PER_TABLE)):
        for nid in range(nr_nodes):
            blocks = np.flatnonzero(some & (node == nid))
            heads[kind * nr_nodes + nid] = blocks[0] if len(blocks) else -1
            arrays["b_next"][blocks] = np.append(blocks[1:], -1)[: len(blocks)]
            arrays["b_prev"][blocks] = np.append(-1, blocks[:-1])[: len(blocks)]


def first_free_block(arrays: dict[str, np.ndarray]) -> int:
    """The block of 512 frames from which on every one is wholly free."""
    count = arrays["b_count"][: int(arrays["ctl"]["nr_blocks"][0])]
    partly = np.flatnonzero(count < PER_TABLE)
    return int(partly[-1]) + 1 if len(partly) else 0


def page_flags(vm_flags: np.ndarray, writable: bool, special: bool) -> np.ndarray:
    """Flags of the entries of areas with these vm_flags, as the kernel's faults would have left them.

    `writable`: for pages that may be stored to without a fault; `special`: for zero pages.
    """
    flags = np.full(len(vm_flags), int(Pte.A), np.uint64)
    access = vm_flags & np.uint64(Vm.READ | Vm.WRITE | Vm.EXEC) != 0
    flags |= np.where(access, np.uint64(Pte.P | Pte.US), np.uint64(Pte.G))
    flags |= np.where(access & (vm_flags & np.uint64(Vm.EXEC) == 0), np.uint64(Pte.NX), np.uint64(0))
    if special:
        flags |= np.uint64(Pte.SPECIAL)
    elif writable:
        stored = access & (vm_flags & np.uint64(Vm.WRITE) != 0)
        flags |= np.where(stored, np.uint64(Pte.RW | Pte.D), np.uint64(0))
    return flags


def enter_ksm(arrays: dict[str, np.ndarray], number: int) -> None:
    """Put an mm on ksmd's list just behind the cursor, as the first MADV_MERGEABLE does."""
    mms = arrays["mms"]
    if int(mms["flags"][number]) & MmFlag.HAS_SLOT:
        return
    at = 0 if arrays["ksm"]["run"][0] == 2 else int(arrays["cursor"]["slot"][0])
    before = int(mms["slot_prev"][at])
    mms["flags"][number] |= int(MmFlag.HAS_SLOT)
    mms["slot_prev"][number], mms["slot_next"][number] = before, at
    mms["slot_next"][before] = number
    mms["slot_prev"][at] = number
