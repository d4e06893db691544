"""Hosts that an earlier version saved, seen as this one would have saved them.

A record is taken over field by field, by name; fields that it did not have are 0. What it holds is checked afterwards
like that of any other Host.

Version 1 had one pair of trees a NUMA node and no domains: all its address spaces are in domain 0. Up to version 2 there
was one CPU with one LRU batch, kept in `ctl`; no swap, no other kernel than Linux 6.18. Who owns a page was found out by
counting: owners of folios, and which pages are exclusive, follow from the page tables. Version 3 had no heaps; up to it
khugepaged went over all address spaces in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import kernels, layout
from ..layout import Frame, MmFlag

__all__ = ["complete", "seen_as_now"]

#: (array, field now) -> its name before
_RENAMED = {("nodes", "tree"): "nid", ("vmas", "anon_root"): "anon_vma"}
#: (array, field) that holds fewer bits now: 0 or 1, and what is neither stays neither
_NARROWED = {("vmas", "forked")}

#: bits of page-table entries: present or PROT_NONE, leaf of 2 MiB, not a counted page, frame number
_PRESENT, _LEAF, _SPECIAL, _PFN = np.uint64(0x101), np.uint64(0x80), np.uint64(0x200), np.uint64(0x000FFFFFFFFFF000)


class _Earlier:
    """An array of an earlier version, not read yet (`layout.stored.Stored`) or in memory, with dtype and shape of now."""

    def __init__(self, name: str, found: Any):
        self._name, self._found = name, found
        self.where = getattr(found, "where", name)
        want = layout.ARRAYS[name].dtype
        self.dtype, self.shape = (want if _known(name, found.dtype) else found.dtype), found.shape
        if name == "trees" and len(self.shape) == 1:
            self.shape = (self.shape[0] // 2, 2)

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """The content, as records of now."""
        before = self._found if isinstance(self._found, np.ndarray) else self._found.read()
        if out is None:
            out = np.zeros(self.shape, self.dtype)
        if self._name == "trees":
            out[...] = before.reshape(2, -1).T  # first the stable ones of all NUMA nodes, then the unstable ones
        elif self.dtype.names is None:
            out[...] = before
        else:
            for field in self.dtype.names:
                source = _RENAMED.get((self._name, field), field)
                if source in before.dtype.names:
                    narrow = (self._name, field) in _NARROWED
                    out[field] = np.clip(before[source], -1, 2) if narrow else before[source]
        return out


def _known(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether records of this dtype can be taken over: every field that has one of the same meaning now is like it."""
    want = layout.ARRAYS[name].dtype
    if want.names is None or dtype.names is None:
        return False
    pairs = [((name, field) in _NARROWED, want[field], dtype[_RENAMED.get((name, field), field)]) for field in want.names
             if _RENAMED.get((name, field), field) in dtype.names]  # fmt: skip
    return bool(pairs) and all(now.shape == then.shape and now.base.kind in "iu" and then.base.kind in "iu"
                               and (narrow or then.base.itemsize <= now.base.itemsize) for narrow, now, then in pairs)  # fmt: skip


def seen_as_now(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays of a saved Host as this version would have saved them; the same where it did.

    Parameters
    ----------
    found : dict of str to Stored or ndarray
        What was kept, not checked yet.
    """
    ctl = found.get("ctl")
    names = getattr(getattr(ctl, "dtype", None), "names", None) or ()
    if not names or getattr(ctl, "shape", None) != (1,) or "trees" not in found:
        return found
    if "nr_cpus" in names:
        return {name: a if _as_now(name, a) else _Earlier(name, a) for name, a in found.items()}
    assert ctl is not None
    if _Earlier("ctl", ctl).dtype == layout.CTL:
        found = {**found, "ctl": ctl if isinstance(ctl, np.ndarray) else ctl.read()}
    lifted: dict[str, Any] = {name: _Earlier(name, array) if name in layout.ARRAYS else array for name, array in found.items()}
    if lifted["ctl"].dtype != layout.CTL:
        return lifted
    before, ctl = found["ctl"], lifted["ctl"].read()
    if "trees_used" not in names:
        ctl["trees_used"], ctl["trees_cap"] = ctl["nr_nodes"], layout.TREES
    frames = int(ctl["nr_frames"][0])
    ctl["kernel"] = kernels.PROFILES[kernels.DEFAULT].bits
    ctl["khuge_none"], ctl["khuge_shared"], ctl["khuge_swap"] = 511, 256, 64
    ctl["nr_cpus"], ctl["nr_quads"], ctl["slots_used"], ctl["slots_cap"] = 1, -(-frames // 4), 1, slots(frames)
    batch = np.zeros(1, layout.BATCH)
    if {"lru", "lru_pending"} <= set(names):
        batch["nr_lru"], batch["lru"] = before["lru_pending"], before["lru"]
    new = {"batches": batch, "slots": np.zeros(1, layout.SLOT)}
    new |= {name: np.zeros(0, layout.ARRAYS[name].dtype) for name in ("owners", "slot_of", "pins_of")}
    return {**lifted, **{name: _Earlier(name, array) for name, array in new.items()}, "ctl": ctl}


def _as_now(name: str, array: Any) -> bool:
    return name not in layout.ARRAYS or array.dtype == layout.ARRAYS[name].dtype


def complete(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> None:
    """Find out from the other arrays what those that were kept do not say.

    Parameters
    ----------
    arrays : dict of str to ndarray
        All arrays of a Host, not checked yet: what they should not hold is passed by.
    kept : dict of str to Stored or ndarray
        What they were read from, as an earlier version kept it.
    """
    names = getattr(getattr(kept.get("ctl"), "dtype", None), "names", None) or ()
    if "nr_cpus" not in names:
        _find_owners(arrays)
    if "khuges" not in names:
        _make_known(arrays)


def slots(nr_frames: int) -> int:
    """Swap slots that a Host of so many frames has room for."""
    return nr_frames + 1024


def _find_owners(arrays: Mapping[str, np.ndarray]) -> None:
    """Give folios their owners and make exclusive what can be stored to, by what the page tables say."""
    flags, owners, frames = arrays["f_flags"], arrays["owners"], len(arrays["f_flags"])
    heads = np.flatnonzero(flags & Frame.HEAD)
    owners["order"][heads >> 2] = 9
    arrays["ctl"]["folios"] = len(heads)
    mm, pfn, level, writable = _mappings(arrays)
    anon = flags[pfn] & (Frame.ANON | Frame.KSM | Frame.ZERO) == Frame.ANON
    once = arrays["f_mapcount"][pfn] == 1
    flags[pfn[anon & once & writable]] |= np.uint16(Frame.EXCLUSIVE)
    large = (flags[pfn] & Frame.ANON != 0) & (flags[pfn] & (Frame.HEAD | Frame.TAIL) != 0)
    at = np.minimum(arrays["f_head"][pfn[large]].astype(np.int64), frames - 1) >> 2
    who, number = np.unique(at << 32 | mm[large], return_counts=True)
    np.add.at(owners["total"], who >> 32, number.astype(np.int32))
    # The kernel's owners depend on who came when; here they come in the order of their numbers.
    first = np.searchsorted(who, who >> 32 << 32)
    for one in range(2):
        mine = np.flatnonzero(np.arange(len(who)) - first == one)
        owners["mm"][who[mine] >> 32, one] = who[mine] & 0xFFFFFFFF
        owners["nr"][who[mine] >> 32, one] = number[mine]
    owners["shared"] = owners["nr"][:, 0] != owners["total"]


def _make_known(arrays: Mapping[str, np.ndarray]) -> None:
    """Let khugepaged know all address spaces, in the order in which they were made."""
    mms = arrays["mms"]
    known = np.flatnonzero(mms["flags"] & int(MmFlag.USED | MmFlag.BACKING) == MmFlag.USED)
    mms["khuge"][known[np.argsort(mms["serial"][known], kind="stable")]] = np.arange(1, len(known) + 1)
    arrays["ctl"]["khuges"] = len(known)


def _mappings(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Address space, frame, level and whether it may be stored to of all ptes and leaf pmds of private memory."""
    mms, frames = arrays["mms"], len(arrays["f_flags"])
    rows = np.flatnonzero(np.isin(arrays["r_owner"] & 7, (1, 2)))
    rows = rows[rows < int(arrays["ctl"]["rows_used"][0])]
    found = []
    for some in np.array_split(rows, len(rows) // 4096 + 1):
        row, entry = np.nonzero(arrays["rows"][some])
        row = some[row]
        e = arrays["rows"][row, entry]
        owner = arrays["r_owner"][row].astype(np.int64)
        level, mm = owner & 7, owner >> 3
        present = np.where(level == 1, e & _PRESENT != 0, e & _LEAF != 0) & (e & _SPECIAL == 0) & (mm < len(mms))
        e, level, mm = e[present], level[present], mm[present]
        pfn = (np.where(e & 1, e, e ^ _PFN) & _PFN).astype(np.int64) >> 12
        pfn = np.where(level == 1, pfn, pfn & -512)
        keep = (pfn < frames) & (mms["flags"][mm] & np.uint32(MmFlag.BACKING) == 0)
        found.append(np.stack([mm[keep], pfn[keep], level[keep], (e[keep] & 2).astype(np.int64)]))
    mm, pfn, level, writable = np.concatenate(found, axis=1)
    return mm, pfn, level, writable != 0
