"""Hosts that an earlier version saved, seen as this one would have saved them.

A record is taken over field by field, by name; fields that it did not have are 0. What it holds is checked afterwards
like that of any other Host.

Version 1 had one pair of trees a NUMA node and no domains: all its address spaces are in domain 0. Up to version 2 there
was one CPU with one LRU batch, kept in `ctl`; no swap, no other kernel than Linux 6.18. Who owns a page was found out by
counting: owners of folios, and which pages are exclusive, follow from the page tables. Version 3 had no heaps; up to it
khugepaged went over all address spaces in the order in which they were made. Up to version 4 areas knew of their families
the number alone, and whether they came from a fork; swapoff went over address spaces in the order in which they were made;
small pages had a head, themselves, and references (`f_refs`) were counted with the mappings. Up to version 5 there was one
userfaultfd an address space: number 0. Up to version 6 what MADV_FREE marked waited nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import kernels, layout
from ..layout import Frame, MmFlag

__all__ = ["NAMES_BEFORE", "complete", "seen_as_now"]

#: names that arrays had once -> those of now
NAMES_BEFORE = {"f_refs": "f_extra"}

#: (array, field now) -> its names before, the last one first. Of areas `_make_families` finds there: the number of their
#: anon_vma, that of their family, and whether they came from a fork.
_RENAMED = {("nodes", "tree"): ("nid",), ("vmas", "anon_chain"): ("anon_root", "anon_vma"), ("vmas", "linked"): ("forked",)}
#: (array, field then) that held more bits once -> lowest and highest to keep: what is no value of it then is none now
_NARROWED = {("vmas", "forked"): (-1, 2), ("vmas", "page_shift"): (0, 0xFFFF)}

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
                source = _source(self._name, field, before.dtype.names)
                if source is not None:
                    kept = _NARROWED.get((self._name, source))
                    out[field] = np.clip(before[source], *kept) if kept else before[source]
        return out


def _source(array: str, field: str, names: tuple[str, ...]) -> str | None:
    """Which field of before, of these, a field of now takes its values from."""
    return next((name for name in (field, *_RENAMED.get((array, field), ())) if name in names), None)


def _known(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether records of this dtype can be taken over: every field that has one of the same meaning now is like it."""
    want = layout.ARRAYS[name].dtype
    if want.names is None or dtype.names is None:
        return False
    sources = ((field, _source(name, field, dtype.names)) for field in want.names)
    pairs = [((name, source) in _NARROWED, want[field], dtype[source]) for field, source in sources if source is not None]
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
    found = {NAMES_BEFORE.get(name, name): a for name, a in found.items()}
    if "nr_cpus" in names:
        lifted = {name: a if _as_now(name, a) else _Earlier(name, a) for name, a in found.items()}
        return lifted if "anons_cap" in names else _with_families(lifted)
    assert ctl is not None
    if _Earlier("ctl", ctl).dtype == layout.CTL:
        found = {**found, "ctl": ctl if isinstance(ctl, np.ndarray) else ctl.read()}
    lifted = {name: _Earlier(name, array) if name in layout.ARRAYS else array for name, array in found.items()}
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
    return _with_families({**lifted, **{name: _Earlier(name, array) for name, array in new.items()}, "ctl": ctl})


def _with_families(lifted: dict[str, Any]) -> dict[str, Any]:
    """With the arrays that were not there before version 5, empty: `complete` fills them."""
    ctl = lifted["ctl"]
    if ctl.dtype != layout.CTL:
        return lifted
    ctl = ctl if isinstance(ctl, np.ndarray) else ctl.read()
    ctl["anons_used"], ctl["anons_cap"] = 1, anons(int(ctl["vmas_cap"][0]))
    new = {"anons": np.zeros(1, layout.ANON), "born_of": np.zeros(0, layout.ARRAYS["born_of"].dtype)}
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
    if "f_refs" in kept:
        _count_besides(arrays)
        arrays["f_flags"][arrays["f_flags"] & Frame.KSM != 0] |= np.uint16(Frame.REFERENCED)
    if "anons_cap" not in names:
        _make_families(arrays)
        _make_swap_list(arrays)


def slots(nr_frames: int) -> int:
    """Swap slots that a Host of so many frames has room for."""
    return nr_frames + 1024


def anons(areas: int) -> int:
    """Records of families that a Host with so many areas has room for (`memory/_anon.pyx` says why)."""
    return min(5 * areas + 1, (1 << 31) - 1)


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


def _count_besides(arrays: Mapping[str, np.ndarray]) -> None:
    """Take the mappings off the references of each folio; those of folios that are not anonymous are counted as well."""
    flags, heads, extra, owners = (arrays[name] for name in ("f_flags", "f_head", "f_extra", "owners"))
    large = flags & (Frame.HEAD | Frame.TAIL) != 0
    heads[~large] = 0
    of = np.where(large, np.minimum(heads, len(flags) - 1), np.arange(len(flags)))
    mapped = np.zeros(len(flags), np.int64)
    np.add.at(mapped, of, arrays["f_mapcount"])
    extra[...] = np.clip(extra - mapped, -1, None)
    _, pfn, _, _ = _mappings(arrays)
    other = large[pfn] & (flags[pfn] & (Frame.ANON | Frame.ZERO) == 0)
    np.add.at(owners["total"], of[pfn[other]] >> 2, 1)


def _make_known(arrays: Mapping[str, np.ndarray]) -> None:
    """Let khugepaged know all address spaces, in the order in which they were made."""
    mms = arrays["mms"]
    known = np.flatnonzero(mms["flags"] & int(MmFlag.USED | MmFlag.BACKING) == MmFlag.USED)
    mms["khuge"][known[np.argsort(mms["serial"][known], kind="stable")]] = np.arange(1, len(known) + 1)
    arrays["ctl"]["khuges"] = len(known)


def _make_families(arrays: Mapping[str, np.ndarray]) -> None:
    """Give areas the records of their families: below each root, all that came from a fork side by side."""
    ctl = arrays["ctl"]
    vmas = arrays["vmas"][: int(ctl["vmas_used"][0])]
    at = np.flatnonzero(vmas["anon_vma"])
    forked = vmas["linked"][at] != 0
    roots, root_of = np.unique(vmas["anon_chain"][at], return_inverse=True)
    below, first, below_of = np.unique(vmas["anon_vma"][at[forked]], return_index=True, return_inverse=True)
    record = root_of + 1
    record[forked] = len(roots) + 1 + below_of
    records = arrays["anons"][1 : len(roots) + len(below) + 1]
    records["number"][: len(roots)] = roots
    records["number"][len(roots) :] = int(ctl["anon_vmas"][0]) + 1 + np.arange(len(below))
    above = root_of[forked][first] + 1
    records["above"][len(roots) :] = records["parent"][len(roots) :] = above
    records["areas"] = np.bincount(record, minlength=len(records) + 1)[1:]
    records["children"] = np.bincount(above, minlength=len(records) + 1)[1:]
    records["users"] = records["areas"] + records["children"]
    vmas["anon_vma"][at] = vmas["anon_chain"][at] = record
    vmas["anon_chain"][vmas["anon_vma"] == 0] = 0
    vmas["linked"] = np.where(vmas["anon_vma"] != 0, vmas["serial"], 0)
    ctl["anons_used"], ctl["anon_vmas"], ctl["anon_links"] = len(records) + 1, ctl["anon_vmas"] + len(below), ctl["vma_serial"]


def _make_swap_list(arrays: Mapping[str, np.ndarray]) -> None:
    """Let swapoff go through all address spaces, in the order in which they were made."""
    ctl, mms = arrays["ctl"], arrays["mms"]
    if int(ctl["slots_used"][0]) == 1:
        return
    listed = np.flatnonzero((mms["flags"] & int(MmFlag.USED | MmFlag.BACKING | MmFlag.EXITING) == MmFlag.USED) & (mms["root"] != 0))
    listed = listed[np.argsort(mms["serial"][listed], kind="stable")]
    mms["swap_next"][listed[:-1]], mms["swap_prev"][listed[1:]] = listed[1:], listed[:-1]
    ctl["swap_first"] = listed[0] if len(listed) else 0


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
