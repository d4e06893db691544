"""A bounded run of the image fuzzer; the long one is `python tests/tools/fuzz_images.py --count 1000000`."""

import os

import fuzz_images
import numpy as np
import pytest

from ksmwalk import PageTables
from ksmwalk.errors import BadEntryError
from ksmwalk.layout import Bad

COUNT = int(os.environ.get("KSMWALK_FUZZ", "4000"))


def test_random_and_mutated_images():
    images, bad = fuzz_images.run(COUNT, seed=20)
    assert images >= COUNT and bad > images // 10, "an image fuzzer that meets no bad entries tests nothing"


def image(*entries, rows=4):
    """Rows with (row, index, entry) put in; row 1 is the top table."""
    out = np.zeros((rows, 512), dtype=np.uint64)
    for row, index, e in entries:
        out[row, index] = e
    return out


CASES = {
    "a table out of range": (image((1, 5, 0x999 << 12 | 0x67)), Bad.FRAME, 4, 5 << 39),
    "a loop": (image((1, 0, 2 << 12 | 0x67), (2, 3, 1 << 12 | 0x67)), Bad.LOOP, 3, 3 << 30),
    "a leaf bit at the top": (image((1, 7, 2 << 12 | 0xE7)), Bad.LEAF, 4, 7 << 39),
    "a PROT_NONE table": (image((1, 0, 2 << 12 | 0x67), (2, 1, 0xFF << 12 | 0x100)), Bad.NONPRESENT, 3, 1 << 30),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_entries_are_reported_or_raised(name):
    rows, kind, level, addr = CASES[name]
    where = np.argwhere(rows)[-1]
    raw = int(rows[tuple(where)])
    rows[1, 9] = np.uint64(3 << 12 | 0x67)
    rows[3, 1] = np.uint64(2 << 30 | 0xE7)
    tables = PageTables.from_image(rows, 1)
    assert tables.mappings()["addr"].tolist() == [(9 << 39) + (1 << 30)], "walked around"
    assert tables.bad_count == 1
    bad = tables.bad[0]
    assert (int(bad["addr"]), int(bad["level"]), int(bad["raw"]), Bad(int(bad["kind"]))) == (addr, level, raw, kind)
    strict = PageTables.from_image(rows, 1, on_bad="raise")
    with pytest.raises(BadEntryError) as caught:
        strict.mappings()
    err = caught.value
    assert (err.addr, err.level, err.entry, err.kind) == (addr, level, raw, kind)
    assert hex(addr)[2:] in str(err)


def test_a_leaf_beyond_the_end_of_memory():
    rows = image((1, 0, 2 << 12 | 0x67), (2, 0, 3 << 12 | 0x67))
    rows[3, 4] = np.uint64((100 << 21) | 0xE7)
    tables = PageTables.from_image(rows, 1, max_pfn=100 * 512 + 511)
    assert len(tables.mappings()) == 0
    assert [int(k) for k in tables.bad["kind"]] == [Bad.PFN]
    assert len(PageTables.from_image(rows, 1, max_pfn=101 * 512).mappings()) == 1


def test_tables_shared_beyond_reason_end():
    """Four pages that describe 2**36 mappings."""
    rows = np.zeros((5, 512), dtype=np.uint64)
    for row in (1, 2, 3):
        rows[row] = np.uint64((row + 1) << 12 | 0x67)
    rows[4] = np.uint64(0x1234867)
    tables = PageTables.from_image(rows, 1)
    assert len(tables.mappings(runs=True)) < 1 << 24
    assert tables.bad["kind"].tolist()[-1:] == [Bad.BUDGET]
