"""The structs and constants as the C compiler has them are the dtypes and enums that were written for Python."""

import numpy as np
import pytest

from ksmwalk import Host, _core, layout

DTYPES = ("vma", "mm", "item", "link", "node", "ctl", "ksm", "cursor", "work", "bad", "mapping", "event")
#: constants of the header that stand in an enum class of layout.py: prefix -> class
CLASSES = {
    "FRAME_": layout.Frame, "VM_": layout.Vm, "MM_": layout.MmFlag, "ITEM_": layout.ItemFlag, "NODE_": layout.NodeFlag,
    "STRATEGY_": layout.Strategy, "EV_": layout.Event, "BAD_": layout.Bad, "PERM_": layout.Perm, "KW_E": layout.Code,
    "LOADED_": layout.LoadedPage, "THP_": layout.Thp,
}
SIZES = {
    "KW_RING": len(Host(64).world.arrays["events"]),
    "KW_PAGE_SIZE": layout.PAGE_SIZE, "KW_PMD_SIZE": layout.PMD_SIZE, "KW_PUD_SIZE": layout.PUD_SIZE,
}


def c_structs():
    return {name.removeprefix("kw_").lower(): value for name, value in _core.layout_offsets().items()}


@pytest.mark.parametrize("name", DTYPES)
def test_offsets(name):
    dtype: np.dtype = getattr(layout, name.upper())
    size, offsets = c_structs()[name]
    assert dtype.itemsize == size
    assert {field: dtype.fields[field][1] for field in dtype.names} == offsets


def test_the_promised_sizes():
    assert layout.ITEM.itemsize + layout.LINK.itemsize <= 64
    assert sum(dtype.itemsize for dtype in layout.FRAME_FIELDS.values()) <= 32
    assert layout.MAPPING.itemsize == 32


def test_constants():
    constants = _core.constants()
    seen = set()
    for name, value in constants.items():
        if name in SIZES:
            assert SIZES[name] == value, name
            continue
        for prefix, cls in CLASSES.items():
            if name.startswith(prefix) and not name.endswith("_MASK"):
                member = name.removeprefix(prefix)
                if prefix == "KW_E" and member not in cls.__members__:
                    member = {m.upper(): m for m in cls.__members__}[member]
                assert int(cls[member]) == value, name
                seen.add((cls.__name__, member))
    for prefix, cls in CLASSES.items():
        if cls is layout.Code:
            continue
        missing = {m for m in cls.__members__ if (cls.__name__, m) not in seen}
        assert not missing, f"{prefix}*: not told by the core: {sorted(missing)}"


def test_bits_of_an_entry():
    from ksmwalk.entries import Pte

    constants = {k.removeprefix("PTE_"): v for k, v in _core.constants().items() if k.startswith("PTE_")}
    assert constants, "the core tells no PTE bits"
    for name, bit in Pte.__members__.items():
        assert constants[name] == int(bit), name
