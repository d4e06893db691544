"""The packed 64-bit page-table entry: named bits, the level table, predicates, pack and unpack.

Everything works on Python ints, numpy scalars and uint64 arrays of any shape alike, and answers in kind: a scalar for a
scalar, an array for an array. The predicates are the kernel's (what Linux asks), except where one says "hardware".
The compiled core has the same predicates inline (`_core.pxd`); a truth table test holds the two together.

Levels: 1 pte, 2 pmd, 3 pud, 4 p4d (the folded top with 4 levels), 5 pgd.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

from .gate import as_array, as_int
from .signatures import AnyArray, BoolArray, Integer, Integers, U64Array

PTE, PMD, PUD, P4D, PGD = 1, 2, 3, 4, 5


class Pte(IntFlag):
    """Bits of an entry. PS and PAT share bit 7, G and PROTNONE bit 8: which one it is depends on level and P."""

    P = 1 << 0
    RW = 1 << 1
    US = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PS = 1 << 7
    PAT = 1 << 7
    G = 1 << 8
    PROTNONE = 1 << 8
    SPECIAL = 1 << 9
    UFFD_WP = 1 << 10
    SOFT_DIRTY = 1 << 11
    PAT_LARGE = 1 << 12
    NX = 1 << 63


class Bit(NamedTuple):
    """One row of the table of bits."""

    name: str
    shift: int
    nr: int
    note: str


BITS = (
    Bit("P", 0, 1, "present"),
    Bit("RW", 1, 1, "writable"),
    Bit("US", 2, 1, "user"),
    Bit("PWT", 3, 1, "write-through"),
    Bit("PCD", 4, 1, "cache disabled"),
    Bit("A", 5, 1, "accessed"),
    Bit("D", 6, 1, "dirty, leaf entries"),
    Bit("PS", 7, 1, "leaf at pmd and pud level; PAT at pte level"),
    Bit("G", 8, 1, "global; PROT_NONE when P is 0"),
    Bit("SPECIAL", 9, 1, "no struct page to be used"),
    Bit("UFFD_WP", 10, 1, "write-protected by userfaultfd"),
    Bit("SOFT_DIRTY", 11, 1, "soft-dirty"),
    Bit("PFN", 12, 40, "frame number; stored inverted where P is 0 and the entry is not zero"),
    Bit("SOFT", 52, 7, "ignored by the hardware"),
    Bit("PKEY", 59, 4, "protection key"),
    Bit("NX", 63, 1, "not executable"),
)


class Level(NamedTuple):
    """One row of the table of levels."""

    number: int
    name: str
    shift: int
    size: int
    leaf: bool


LEVELS = {
    PTE: Level(PTE, "pte", 12, 1 << 12, True),
    PMD: Level(PMD, "pmd", 21, 1 << 21, True),
    PUD: Level(PUD, "pud", 30, 1 << 30, True),
    P4D: Level(P4D, "p4d", 39, 1 << 39, False),
    PGD: Level(PGD, "pgd", 48, 1 << 48, False),
}

PFN_MASK = 0x000F_FFFF_FFFF_F000
_AD = int(Pte.A | Pte.D)


_Kind = TypeVar("_Kind")
_Numbers_co = TypeVar("_Numbers_co", covariant=True)


def _entries(e: object) -> tuple[Any, bool]:
    """(uint64 scalar or array, whether the caller gave a scalar)."""
    if isinstance(e, (int, np.integer)):
        return np.uint64(as_int(e, "entry")), True
    if not isinstance(e, np.ndarray):
        if hasattr(e, "__index__") or not isinstance(e, (list, tuple)):
            return np.uint64(as_int(e, "entry")), True
        return as_array(e, "entries", ndim=None), False
    if e.dtype != np.uint64:
        raise TypeError(f"entries of dtype {e.dtype}: must be uint64")
    return e, e.ndim == 0


def _bits(value: object, name: str, high: int) -> tuple[Any, bool]:
    """(uint64 scalar or array, whether the caller gave a scalar)."""
    if isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim:
        return as_array(value, name, np.uint64, 0, high, ndim=None), False
    return np.uint64(as_int(value, name, 0, high)), True


def _level(level: int) -> Level:
    if type(level) is not int or level not in LEVELS:
        level = as_int(level, "level", PTE, PGD)
    return LEVELS[level]


def _answer(value: Any, scalar: bool, kind: Callable[[Any], _Kind]) -> _Kind | AnyArray:
    return kind(value) if scalar else value


@overload
def none(e: Integer) -> bool: ...
@overload
def none(e: Integers) -> BoolArray: ...
def none(e: Integer | Integers) -> bool | BoolArray:
    """Whether entries are none: nothing but the A and D bits, which hardware may leave behind.

    Models: pte_none and its kin of Linux 6.18, x86-64. Differs: nothing known.
    """
    a, scalar = _entries(e)
    return _answer((a & np.uint64(~_AD & (1 << 64) - 1)) == 0, scalar, bool)


@overload
def present(e: Integer, level: int = PTE) -> bool: ...
@overload
def present(e: Integers, level: int = PTE) -> BoolArray: ...
def present(e: Integer | Integers, level: int = PTE) -> bool | BoolArray:
    """Whether entries are present to the kernel at a level.

    pte and pud: P or PROT_NONE; pmd: also PS alone (a huge page being split); p4d and pgd: P.

    Models: pte_present, pmd_present, pud_present, p4d_present, pgd_present of Linux 6.18, x86-64.
    Differs: nothing known.
    """
    a, scalar = _entries(e)
    number = _level(level).number
    mask = Pte.P
    if number <= PUD:
        mask |= Pte.PROTNONE
    if number == PMD:
        mask |= Pte.PS
    return _answer((a & np.uint64(mask)) != 0, scalar, bool)


@overload
def hardware_present(e: Integer) -> bool: ...
@overload
def hardware_present(e: Integers) -> BoolArray: ...
def hardware_present(e: Integer | Integers) -> bool | BoolArray:
    """Whether the MMU sees entries: P alone.

    Models: the x86-64 MMU. Differs: nothing known.
    """
    a, scalar = _entries(e)
    return _answer((a & np.uint64(Pte.P)) != 0, scalar, bool)


@overload
def leaf(e: Integer, level: int = PTE) -> bool: ...
@overload
def leaf(e: Integers, level: int = PTE) -> BoolArray: ...
def leaf(e: Integer | Integers, level: int = PTE) -> bool | BoolArray:
    """Whether entries are leaves: every present pte; a present pmd or pud with PS; never a p4d or pgd.

    Models: pmd_leaf, pud_leaf of Linux 6.18, x86-64. Differs: nothing known.
    """
    a, scalar = _entries(e)
    number = _level(level).number
    if number == PTE:
        value = (a & np.uint64(Pte.P | Pte.PROTNONE)) != 0
    elif number in (PMD, PUD):
        value = ((a & np.uint64(Pte.PS)) != 0) & ((a & np.uint64(Pte.P | Pte.PROTNONE | Pte.PS)) != 0)
        if number == PUD:
            value = value & ((a & np.uint64(Pte.P | Pte.PROTNONE)) != 0)
    else:
        value = np.zeros(a.shape, bool) if a.ndim else False
    return _answer(value, scalar, bool)


@overload
def special(e: Integer) -> bool: ...
@overload
def special(e: Integers) -> BoolArray: ...
def special(e: Integer | Integers) -> bool | BoolArray:
    """Whether entries are special: no `struct page` is to be used (zero page, raw pfn mappings).

    Models: pte_special, pmd_special of Linux 6.18, x86-64. Differs: nothing known.
    """
    a, scalar = _entries(e)
    return _answer((a & np.uint64(Pte.SPECIAL)) != 0, scalar, bool)


@overload
def prot_none(e: Integer) -> bool: ...
@overload
def prot_none(e: Integers) -> BoolArray: ...
def prot_none(e: Integer | Integers) -> bool | BoolArray:
    """Whether entries are PROT_NONE: bit 8 set with P clear.

    Models: pte_protnone of Linux 6.18, x86-64. Differs: nothing known.
    """
    a, scalar = _entries(e)
    return _answer((a & np.uint64(Pte.P | Pte.PROTNONE)) == np.uint64(Pte.PROTNONE), scalar, bool)


@overload
def swap_like(e: Integer, level: int = PTE) -> bool: ...
@overload
def swap_like(e: Integers, level: int = PTE) -> BoolArray: ...
def swap_like(e: Integer | Integers, level: int = PTE) -> bool | BoolArray:
    """Whether entries are neither none nor present: swap, migration, guard and other markers; never a page to scan.

    Models: is_swap_pte of Linux 6.18, x86-64. Differs: the kinds are not told apart.
    """
    a, scalar = _entries(e)
    return _answer(~(np.asarray(none(a)) | np.asarray(present(a, level))), scalar, bool)


def _decoded(a: Any) -> Any:
    """Entries with the inversion of the frame bits undone."""
    inverted = (a != 0) & ((a & np.uint64(Pte.P)) == 0)
    return np.where(inverted, a ^ np.uint64(PFN_MASK), a)


@overload
def pfn(e: Integer, level: int = PTE) -> int: ...
@overload
def pfn(e: Integers, level: int = PTE) -> U64Array: ...
def pfn(e: Integer | Integers, level: int = PTE) -> int | U64Array:
    """Frame numbers that entries hold, decoded (a non-zero entry with P clear stores them inverted).

    A large leaf's low bits (bit 12 is PAT) are masked by its size; for a table entry it is the table's frame.

    Returns
    -------
    int or uint64 array

    Models: pte_pfn, pmd_pfn, pud_pfn of Linux 6.18, x86-64. Differs: nothing known.
    """
    a, scalar = _entries(e)
    lv = _level(level)
    d = _decoded(a)
    value = d & np.uint64(PFN_MASK)
    if lv.number in (PMD, PUD):
        low = np.uint64(PFN_MASK & (lv.size - 1))
        value = np.where((a & np.uint64(Pte.PS)) != 0, value & ~low, value)
    return _answer(value >> np.uint64(12), scalar, int)


@overload
def flags(e: Integer, level: int = PTE) -> int: ...
@overload
def flags(e: Integers, level: int = PTE) -> U64Array: ...
def flags(e: Integer | Integers, level: int = PTE) -> int | U64Array:
    """All bits of entries that are not frame bits (of a large leaf: bit 12, PAT, among them).

    Models: pte_flags, pmd_flags, pud_flags of Linux 6.18, x86-64. Differs: of a large leaf the unused bits 13 up are out.
    """
    a, scalar = _entries(e)
    lv = _level(level)
    value = a & np.uint64(~PFN_MASK & (1 << 64) - 1)
    if lv.number in (PMD, PUD):
        large = (a & np.uint64(Pte.PS)) != 0
        value = np.where(large, value | (a & np.uint64(Pte.PAT_LARGE)), value)
    return _answer(value, scalar, int)


@overload
def pack(pfn: Integer, flags: Integer, level: int = PTE) -> int: ...
@overload
def pack(pfn: Integers, flags: Integer | Integers, level: int = PTE) -> U64Array: ...
@overload
def pack(pfn: Integer, flags: Integers, level: int = PTE) -> U64Array: ...
def pack(pfn: Integer | Integers, flags: Integer | Integers, level: int = PTE) -> int | U64Array:
    """Entries of frame numbers and flags; the frame bits are inverted where P is clear. Inverse of `unpack`.

    Parameters
    ----------
    pfn : int or array of int
        Frame numbers, below 2**40; of a large leaf a multiple of its size in frames.
    flags : int or array of int
        `Pte` bits, and PAT_LARGE for a large leaf.
    level : int
        1 to 5.

    Raises
    ------
    ValueError
        A frame number or flag that does not fit, named.

    Models: pfn_pte, pfn_pmd, pfn_pud of Linux 6.18, x86-64. Differs: nothing known.
    """
    lv = _level(level)
    p, one = _bits(pfn, "pfn", (1 << 40) - 1)
    f, alike = _bits(flags, "flags", (1 << 64) - 1)
    scalar = one and alike
    if not scalar and not one and not alike and p.shape != f.shape:
        raise ValueError(f"pfn of shape {p.shape} and flags of shape {f.shape}: must be alike")
    large = (f & np.uint64(Pte.PS)) != 0
    allowed: Any = np.uint64(~PFN_MASK & (1 << 64) - 1)
    if lv.number in (PMD, PUD):
        step = np.uint64((lv.size >> 12) - 1)
        if np.any(large & ((p & step) != 0)):
            raise ValueError(f"frame number not aligned to a {lv.name} leaf of {int(step) + 1} frames")
        allowed = np.where(large, allowed | np.uint64(Pte.PAT_LARGE), allowed)
    if np.any((f & ~allowed) != 0):
        raise ValueError("flags with frame bits set")
    e = (p << np.uint64(12)) | f
    frame_bits: Any = np.uint64(PFN_MASK)
    if lv.number in (PMD, PUD):
        # Of a large leaf fewer bits are frame bits: those below, PAT among them, are never inverted.
        frame_bits = np.where(large, frame_bits & np.uint64(~(lv.size - 1) & (1 << 64) - 1), frame_bits)
    e = np.where((e != 0) & ((f & np.uint64(Pte.P)) == 0), e ^ frame_bits, e)
    return _answer(e, scalar, int)


class Unpacked(NamedTuple, Generic[_Numbers_co]):
    """A packed entry taken apart: frame number and flags, each a scalar or an array."""

    pfn: _Numbers_co
    flags: _Numbers_co


@overload
def unpack(e: Integer, level: int = PTE) -> Unpacked[int]: ...
@overload
def unpack(e: Integers, level: int = PTE) -> Unpacked[U64Array]: ...
def unpack(e: Integer | Integers, level: int = PTE) -> Unpacked[int | U64Array]:
    """Frame numbers and flags of entries: the inverse of `pack`.

    Models: what `pfn` and `flags` do. Differs: nothing known.
    """
    return Unpacked(pfn(e, level), flags(e, level))


def describe(e: int, level: int = PTE) -> str:
    """One entry in words, for error messages and exploration: `pfn 0x1234 P RW US A D NX`.

    Models: nothing of Linux. Differs: has no counterpart there.
    """
    value = as_int(e, "entry")
    if none(value):
        return "none"
    f = flags(value, level)
    names = []
    for bit in BITS:
        if bit.name in ("PFN", "SOFT"):
            continue
        field = (f >> bit.shift) & ((1 << bit.nr) - 1)
        if not field:
            continue
        name = bit.name
        if name == "PS" and level == PTE:
            name = "PAT"
        elif name == "G" and not f & Pte.P:
            name = "PROT_NONE"
        elif name == "PKEY":
            name = f"PKEY={field}"
        names.append(name)
    if swap_like(value, level):
        return f"swap-like {value:#018x}"
    return f"pfn {pfn(value, level):#x} " + " ".join(names)
