"""What is looked at of a kept capture before anything is made of it: plain data field by field, arrays by what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..gate import shown
from ..host.vma import why_not
from ..layout import PAGE_SIZE, Vm
from ..proc import pagemap
from ..proc.frames import Kpf, has
from ..proc.maps import VM_BITS
from ..signatures import AnyArray, BoolArray, RecordArray
from .keys import UNKNOWN

#: those that every process has
ALWAYS = ("addr", "categories")
VMA_NUMBERS = ("start", "end", "offset", "inode", "rss", "anonymous", "huge", "ksm", "swap", "page_size")
VMA_TEXTS = ("perms", "device", "name", "flags")
#: a row a mapping; its texts by their number in the list of all texts
VMA_DTYPE = np.dtype([(name, np.uint64) for name in VMA_NUMBERS] + [(name, np.uint32) for name in VMA_TEXTS])

_USER_END = 1 << 56
_FRAMES = 1 << 40  # of 52 bits of physical address
MOST_CONTENTS = 1 << 40
_MOST_BYTES = 1 << 63
# Mappings of one frame: by fork no more than there can be processes; KSM's by max_page_sharing.
_MOST_SHARED, _MOST_MERGED = 1 << 21, 1 << 30
_CATEGORIES = (1 << 7) - 1


class Wrong(ValueError):
    """Something that no capture has: `name` is the array or file, the text says where in it and what."""

    name: str
    why: str

    def __init__(self, name: str, why: str):
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


class Fields:
    """An object of a JSON file, taken apart field by field.

    Parameters
    ----------
    value : object
        What stands there.
    place : str
        Where that is, "" for the whole file.

    Raises
    ------
    ValueError
        By each method: the field, what it holds, what it must be.
    """

    place: str

    def __init__(self, value: object, place: str = ""):
        if not isinstance(value, dict):
            raise ValueError(f"{place} {shown(value)}: must be an object".lstrip())
        self.left: dict[str, Any] = dict(value)
        self.place = place

    def _wrong(self, name: str, value: object, what: str) -> ValueError:
        return ValueError(f"{self.path(name)} {shown(value)}: must be {what}")

    def path(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def take(self, name: str) -> Any:
        """The value of a field, whatever it is."""
        if name not in self.left:
            raise ValueError(f"field {self.path(name)} is missing")
        return self.left.pop(name)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        value = self.take(name)
        if type(value) not in (int, float) or not (0 <= value <= 1e15 and math.isfinite(value)):
            raise self._wrong(name, value, "a number, not negative")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def items(self, name: str, of: type, what: str) -> list[Any]:
        """A list of things of one type."""
        value = self.take(name)
        if not isinstance(value, list) or not all(type(one) is of for one in value):
            raise self._wrong(name, value, f"a list of {what}")
        return value

    def optional(self, name: str, of: type, what: str) -> list[Any] | None:
        """The same, or nothing (null)."""
        if name in self.left and self.left[name] is None:
            del self.left[name]
            return None
        return self.items(name, of, what)

    def numbers(self, name: str, real: bool = False) -> dict[str, Any]:
        """An object of integers, or of times in seconds if `real`."""
        inner = Fields(self.take(name), self.path(name))
        return {
            key: inner.number(key) if real else inner.integer(key, -(1 << 63), (1 << 64) - 1) for key in list(inner.left)
        }

    def done(self) -> None:
        """Refuse what is left over."""
        for name in self.left:
            raise ValueError(f"unknown field {shown(self.path(name))}")


def check_vmas(vmas: RecordArray, texts: Sequence[str], where: str) -> None:
    """Refuse mappings that are none, or stand in no order.

    Parameters
    ----------
    vmas : ndarray of VMA_DTYPE
        Of one process.
    texts : sequence of str
    where : str
        The process, for messages.

    Raises
    ------
    Wrong
    """
    if not len(vmas):
        raise Wrong("vmas", f"{where} has no mapping")
    start, end = vmas["start"], vmas["end"]
    amid = (start | end) & np.uint64(PAGE_SIZE - 1) != 0
    _refuse(vmas, "vmas", where, "start", amid | (start >= end), "not of whole pages, or not before its end")
    _refuse(vmas, "vmas", where, "end", end > np.uint64(_USER_END), "beyond any address space")
    before = np.zeros(len(vmas), bool)
    before[1:] = start[1:] < end[:-1]
    _refuse(vmas, "vmas", where, "start", before, "below the end of the mapping before it")
    for name in VMA_NUMBERS:
        if name not in ("start", "end", "inode", "offset"):
            _refuse(vmas, "vmas", where, name, vmas[name] >= np.uint64(_MOST_BYTES), "no size")
    for name in VMA_TEXTS:
        _refuse(vmas, "vmas", where, name, vmas[name] >= np.uint32(len(texts)), f"there are {len(texts)} texts")
    huge = _with_flag(vmas, texts, "ht")
    block = np.uint64((1 << 21) - 1)
    _refuse(vmas, "vmas", where, "start", huge & ((start | end) & block != 0), "a hugetlb mapping begins and ends with a huge page")


def _cannot_merge(vmas: RecordArray, texts: Sequence[str]) -> BoolArray:
    """Which mappings have a flag that keeps ksmd away for good; unknown flags have none."""
    numbers, place = np.unique(vmas["flags"], return_inverse=True)
    bits = [sum(VM_BITS.get(letters, 0) for letters in texts[number].split(" ")) for number in numbers.tolist()]
    return np.array([why_not(some | Vm.MERGEABLE) is not None for some in bits], bool)[place]


def _with_flag(vmas: RecordArray, texts: Sequence[str], letters: str) -> BoolArray:
    """Which mappings have one of VmFlags."""
    numbers, place = np.unique(vmas["flags"], return_inverse=True)
    return np.array([letters in texts[number].split(" ") for number in numbers.tolist()], bool)[place]


def check_pages(
    arrays: Mapping[str, AnyArray], folios: AnyArray, vmas: RecordArray, texts: Sequence[str], nr_contents: int, where: str
) -> None:
    """Refuse pages that could not have been read so.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Those of `PAGE_ARRAYS` that the process has, of one length.
    folios : int64[n]
        Checked.
    vmas : ndarray of VMA_DTYPE
        Checked.
    texts : sequence of str
    nr_contents : int
    where : str

    Raises
    ------
    Wrong
    """
    addr = arrays["addr"]
    _refuse(addr, "addr", where, None, addr & np.uint64(PAGE_SIZE - 1) != 0, "no address of a page")
    falling = np.zeros(len(addr), bool)
    falling[1:] = addr[1:] <= addr[:-1]
    _refuse(addr, "addr", where, None, falling, "not in ascending order")
    slices = np.stack([np.searchsorted(addr, vmas["start"]), np.searchsorted(addr, vmas["end"])], axis=1)
    if int((slices[:, 1] - slices[:, 0]).sum()) != len(addr):
        outside = np.ones(len(addr), bool)
        for first, last in slices.tolist():
            outside[first:last] = False
        _refuse(addr, "addr", where, None, outside, "in no mapping")
    some = arrays["categories"]
    present = np.uint64(pagemap.PAGE_IS_PRESENT)
    _refuse(some, "categories", where, None, (some > np.uint64(_CATEGORIES)) | (some & present == 0), "not of a present page")
    if "exclusive" in arrays:
        raw = np.ascontiguousarray(arrays["exclusive"]).view(np.uint8)
        _refuse(raw, "exclusive", where, None, raw > 1, "neither 0 nor 1")
    if "pfn" in arrays:
        _refuse(arrays["pfn"], "pfn", where, None, arrays["pfn"] >= np.uint64(_FRAMES), "beyond any memory")
    if "key" in arrays:
        key = arrays["key"]
        _refuse(key, "key", where, None, (key >= np.uint64(nr_contents)) & (key != np.uint64(UNKNOWN)),
                f"there are {nr_contents} contents")  # fmt: skip
    _check_frames(arrays, folios, vmas, texts, slices, where)


def check_folios(folios: AnyArray, where: str) -> None:
    """Refuse first frames of huge pages, int64, that can be none, or stand in no order; `Wrong` as elsewhere."""
    beyond = (folios < 0) | (folios >= _FRAMES)
    _refuse(folios, "folios", where, None, beyond | (folios & 511 != 0), "no first frame of a huge page", "number")
    falling = np.zeros(len(folios), bool)
    falling[1:] = folios[1:] <= folios[:-1]
    _refuse(folios, "folios", where, None, falling, "not in ascending order", "number")


def _check_frames(
    arrays: Mapping[str, AnyArray], folios: AnyArray, vmas: RecordArray, texts: Sequence[str], slices: AnyArray, where: str
) -> None:
    away = np.uint64(pagemap.PAGE_IS_FILE | pagemap.PAGE_IS_PFNZERO)
    anon = arrays["categories"] & away == 0
    ksm = np.zeros(len(anon), bool)
    if "frame_flags" in arrays:
        flags = arrays["frame_flags"]
        anon, ksm = has(flags, Kpf.ANON), has(flags, Kpf.KSM)
        _refuse(flags, "frame_flags", where, None, ksm & ~anon, "KSM's, and not anonymous")
        never = _cannot_merge(vmas, texts)
        if ksm.any() and never.any():
            inside = np.zeros(len(flags), bool)
            for first, last in slices[never].tolist():
                inside[first:last] = True
            _refuse(flags, "frame_flags", where, None, ksm & inside, "KSM's, in a mapping that it never merges")
        half = np.zeros(len(flags), bool)
        block = arrays["addr"] >> np.uint64(21)
        huge = has(arrays["categories"], pagemap.PAGE_IS_HUGE) & ~ksm
        half[1:] = huge[1:] & huge[:-1] & (block[1:] == block[:-1]) & (anon[1:] != anon[:-1])
        _refuse(flags, "frame_flags", where, None, half, "the huge page is anonymous in part")
    if "pfn" in arrays and len(folios):
        strange = np.isin(arrays["pfn"].astype(np.int64) >> 9, folios >> 9) & (~anon | ksm)
        _refuse(arrays["pfn"], "pfn", where, None, strange, "of a huge page by folios, and not anonymous, or KSM's")
    if "frame_counts" in arrays:
        counts = arrays["frame_counts"]
        most = np.where(ksm, np.uint64(_MOST_MERGED), np.uint64(_MOST_SHARED))
        _refuse(counts, "frame_counts", where, None, anon & (counts > most), "more mappings than there can be")


def _refuse(
    array: AnyArray, name: str, where: str, field: str | None, wrong: AnyArray, why: str, kind: str = "page"
) -> None:
    """Complain of the first element that is wrong."""
    if not wrong.any():
        return
    at = int(wrong.argmax())
    value = int(array[field][at] if field else array[at])
    place = f"mapping {at}.{field}" if field else f"{kind} {at}"
    raise Wrong(name, f"{where}, {place} holds {shown(value)}: {why}")
