"""Truth table: every predicate x every bit x every level, scalar and vectorised, against the slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import entries as ref

from ksmwalk import entries

LEVELS = (1, 2, 3, 4, 5)
BIT_NAMES = {
    0: "P", 1: "RW", 2: "US", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G", 9: "SPECIAL", 10: "UFFD_WP",
    11: "SOFT_DIRTY", 12: "PAT_LARGE", 63: "NX",
}
#: name -> (fast, slow), both called with (entry, level)
PREDICATES = {
    "none": (lambda e, lv: entries.none(e), lambda e, lv: ref.none(e)),
    "present": (entries.present, ref.present),
    "leaf": (entries.leaf, ref.leaf),
    "special": (lambda e, lv: entries.special(e), lambda e, lv: ref.special(e)),
    "swap_like": (entries.swap_like, ref.swap_like),
    "prot_none": (lambda e, lv: entries.prot_none(e), lambda e, lv: ref.prot_none(e)),
    "pfn": (entries.pfn, ref.pfn),
}
#: entries around which every bit is flipped: nothing, an ordinary page, a PROT_NONE page, a swap entry, a guard marker,
#: a table, large leaves with and without PAT, a large leaf being split, all ones
BASES = {
    "zero": 0,
    "page": 0x8000000012345867,
    "prot_none": 0x800FFFFFF1234960,
    "swap": 0x000FFFFFFFFF0200,
    "guard": 0xFFFFFFFFFFFFF600,
    "table": 0x0000000012345067,
    "large": 0x80000000C00000E7,
    "large_pat": 0x80000000C00010E7,
    "large_split": 0x80000000C00000E6,
    "ones": 0xFFFFFFFFFFFFFFFF,
}


def test_the_named_bits_are_the_formats():
    for bit, name in BIT_NAMES.items():
        assert int(entries.Pte[name]) == 1 << bit
    assert int(entries.Pte.PAT) == 1 << 7
    assert int(entries.Pte.PROTNONE) == 1 << 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PREDICATES)
def test_every_bit_at_every_level(name, level):
    fast, slow = PREDICATES[name]
    values = [base ^ (1 << bit) for base in BASES.values() for bit in range(64)] + list(BASES.values())
    want = [slow(e, level) for e in values]
    got = fast(np.array(values, dtype=np.uint64), level)
    assert got.dtype == (np.uint64 if name == "pfn" else np.bool_)
    wrong = [(hex(e), w, int(g)) for e, w, g in zip(values, want, got.tolist(), strict=True) if w != g]
    assert not wrong
    for e, w in zip(values, want, strict=True):
        assert fast(e, level) == w, hex(e)
        assert fast(np.uint64(e), level) == w, hex(e)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bit_a", range(13))
def test_every_pair_of_low_bits(bit_a, level):
    values = [(1 << bit_a) | (1 << b) | frame for b in [*range(13), 63] for frame in (0, 0x40000000)]
    for name, (fast, slow) in PREDICATES.items():
        got = fast(np.array(values, dtype=np.uint64), level).tolist()
        assert got == [slow(e, level) for e in values], name


@given(st.integers(0, 2**64 - 1), st.sampled_from(LEVELS))
def test_any_entry(e, level):
    for name, (fast, slow) in PREDICATES.items():
        assert fast(e, level) == slow(e, level), name


@given(st.data(), st.sampled_from(LEVELS))
def test_pack_is_undone_by_pfn(data, level):
    flags = data.draw(st.sampled_from([0x67, 0x8000000000000067, 0x8000000000000160, 0x25, 0x600, 0x967]))
    if level in (2, 3):
        flags |= data.draw(st.sampled_from([0x80, 0x1080, 0])) if flags & 1 else 0x80
    large = level in (2, 3) and bool(flags & 0x80)
    unit = {2: 512, 3: 512 * 512}[level] if large else 1
    pfn = data.draw(st.integers(0, (1 << 40) // unit - 1)) * unit
    e = entries.pack(pfn, flags, level)
    assert int(entries.pfn(e, level)) == pfn
    assert ref.pfn(int(e), level) == pfn
    assert ref.flags(int(e), level) == flags
    if pfn and not flags & 1:
        assert (int(e) >> 12 & (1 << 40) - 1) != pfn, "frame bits of a non-P entry are inverted"


def test_pack_is_vectorised():
    pfns = np.array([0, 1, 512, 2**40 - 1], dtype=np.uint64)
    for flags in (0x67, 0x160):
        packed = entries.pack(pfns, flags)
        assert packed.dtype == np.uint64
        assert [ref.pfn(int(e), 1) for e in packed] == pfns.tolist()


def test_what_the_markers_are():
    guard = BASES["guard"]
    assert not entries.none(guard) and not entries.present(guard, 1) and entries.swap_like(guard, 1)
    assert entries.none(0x60), "A and D may be left over in an entry that was cleared"
    assert entries.present(0x80, 2) and not entries.present(0x80, 3), "a huge pmd being split is present"
    assert entries.prot_none(BASES["prot_none"]) and entries.present(BASES["prot_none"], 1)
    assert int(entries.pfn(BASES["prot_none"], 1)) == 0xEDCB


def test_bad_levels_are_refused():
    for level in (0, 6, -1):
        with pytest.raises(ValueError, match=str(level)):
            entries.present(1, level)
