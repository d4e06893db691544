"""A real guest's page tables against its emulator's own listing of what the hardware maps."""

from pathlib import Path

import numpy as np
import pytest

from ksmwalk import PageTables

HARDWARE = np.uint64(0x80000000000001FE)  # NX and RW US PWT PCD A D PS/PAT G: what the emulator prints
SIZES = {1: 1 << 12, 2: 1 << 21, 3: 1 << 30}


@pytest.fixture(scope="module")
def guest():
    with np.load(Path(__file__).parents[1] / "data" / "guest-4level.npz") as data:
        return {name: data[name] for name in data.files}


def load(guest, i):
    return PageTables.from_image(
        guest["tables"], int(guest["cr3"][i]) >> 12, levels=int(guest["levels"]), frames=guest["frames"],
        max_pfn=int(guest["ram_end"]) >> 12,
    )


@pytest.mark.parametrize("i", range(3))
def test_hardware_view_is_the_emulators_listing(guest, i):
    tables = load(guest, i)
    m = tables.mappings(view="hardware")
    tlb = guest[f"tlb{i}"]
    np.testing.assert_array_equal(m["addr"], tlb[:, 0])
    np.testing.assert_array_equal(m["pfn"] * np.uint64(4096), tlb[:, 1])
    np.testing.assert_array_equal(m["flags"] & HARDWARE, tlb[:, 2])
    assert (m["nr"] == 1).all()
    assert tables.bad_count == 0


@pytest.mark.parametrize("i", range(3))
def test_effective_permissions(guest, i):
    m = load(guest, i).mappings(view="hardware")
    size = np.array([0, *SIZES.values()], dtype=np.uint64)[m["level"]]
    rwu = (m["perms"] & 3) | np.where(m["perms"] & 8, 4, 0)
    end = m["addr"] + size
    first = np.ones(len(m), dtype=bool)
    first[1:] = (m["addr"][1:] != end[:-1]) | (rwu[1:] != rwu[:-1])
    starts = np.nonzero(first)[0]
    last = np.append(starts[1:], len(m)) - 1
    got = np.stack([m["addr"][starts], end[last], rwu[starts].astype(np.uint64)], axis=1)
    np.testing.assert_array_equal(got, guest[f"mem{i}"].astype(np.uint64))


@pytest.mark.parametrize("i", range(3))
def test_kernel_view_adds_the_prot_none_pages_with_their_true_frames(guest, i):
    tables = load(guest, i)
    kernel, hardware = tables.mappings(view="kernel"), tables.mappings(view="hardware")
    extra = kernel[~np.isin(kernel["addr"], hardware["addr"])]
    assert len(extra) == 64 and len(kernel) == len(hardware) + 64
    assert (extra["flags"] & np.uint64(0x101) == 0x100).all()
    pagemap = {}
    for va, frame, pages, _kind in guest[f"pm{i}"].tolist():
        pagemap.update((va + 4096 * k, frame + k) for k in range(pages))
    assert [pagemap[a] for a in extra["addr"].tolist()] == extra["pfn"].tolist()


@pytest.mark.parametrize("i", range(3))
def test_runs_are_the_same_mappings(guest, i):
    tables = load(guest, i)
    m, runs = tables.mappings(), tables.mappings(runs=True)
    assert runs["nr"].sum() == len(m) and len(runs) < len(m)
    nr = runs["nr"].astype(np.int64)
    within = np.arange(nr.sum()) - np.repeat(np.cumsum(nr) - nr, nr)
    pages = np.array([0, 1, 512, 512 * 512], dtype=np.uint64)[np.repeat(runs["level"], nr)]
    offset = within.astype(np.uint64) * pages
    np.testing.assert_array_equal(m["addr"], np.repeat(runs["addr"], nr) + offset * np.uint64(4096))
    np.testing.assert_array_equal(m["pfn"], np.repeat(runs["pfn"], nr) + offset)
    for field in ("flags", "level", "perms"):
        np.testing.assert_array_equal(m[field], np.repeat(runs[field], nr))


def test_ranges_and_lookup_agree_with_the_whole(guest):
    tables = load(guest, 0)
    m = tables.mappings()
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(m) - 50, 40):
        start, end = int(m["addr"][at]), int(m["addr"][at + 49]) + 4096
        part = tables.mappings(start, end)
        np.testing.assert_array_equal(part, m[(m["addr"] >= start) & (m["addr"] < end)])
    assert tables.lookup(0) is None
