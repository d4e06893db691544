"""Hot calls on page tables and their entries."""

import hosts
import layouts
import numpy as np
import pytest
from measure import SIZES, SMOKE, per

from ksmwalk import MmWalkOps, PageTables, entries, layout, walk_page_range

SHAPES = {"dense": layouts.dense, "sparse 10 %": lambda: layouts.sparse(10), "mixed": layouts.mixed}
if not SMOKE:
    SHAPES["sparse 1 %"] = lambda: layouts.sparse(1)


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    return SHAPES[request.param]()


@pytest.fixture
def image(shape):
    return PageTables.from_image(shape.rows, shape.root)


@pytest.mark.benchmark(group="PageTables.mappings")
@pytest.mark.parametrize("view", ["kernel", "hardware"])
def test_mappings(benchmark, shape, image, view):
    out = np.zeros(shape.nr_leaves + 512, dtype=layout.MAPPING)
    assert len(per(benchmark, shape.nr_leaves, "leaf")(image.mappings, view=view, out=out)) == shape.nr_leaves


@pytest.mark.benchmark(group="PageTables.mappings")
def test_mappings_joined_into_runs(benchmark, shape, image):
    out = np.zeros(shape.nr_leaves + 512, dtype=layout.MAPPING)
    assert per(benchmark, shape.nr_leaves, "leaf")(image.mappings, runs=True, out=out)["nr"].sum() == shape.nr_leaves


@pytest.mark.benchmark(group="PageTables.mappings, columns")
@pytest.mark.parametrize("threads", [1, 2])
def test_mappings_as_columns(benchmark, shape, image, threads):
    out = [np.zeros(shape.nr_leaves + 512, dtype=np.uint64) for _ in range(2)]
    walk = per(benchmark, shape.nr_leaves, "leaf")
    assert len(walk(image.mappings, columns=True, threads=threads, out=out).addr) == shape.nr_leaves


@pytest.mark.benchmark(group="PageTables.lookup")
def test_lookup(benchmark, shape, image):
    addr = shape.base + int(shape.small[len(shape.small) // 2])
    assert per(benchmark, 1, "address")(image.lookup, addr)["addr"] == addr


@pytest.mark.benchmark(group="PageTables.map_range, unmap")
@pytest.mark.parametrize("pages", SIZES)
def test_map_range_and_unmap(benchmark, pages):
    tables = PageTables()
    pfns = np.arange(pages, dtype=np.uint64)

    def both():
        tables.map_range(1 << 40, pfns)
        return tables.unmap(1 << 40, (1 << 40) + pages * 4096)

    assert per(benchmark, pages)(both) == pages


@pytest.mark.benchmark(group="entries")
@pytest.mark.parametrize("pages", SIZES)
def test_predicates(benchmark, pages):
    e = np.random.default_rng(1).integers(0, 1 << 63, pages).astype(np.uint64)
    assert per(benchmark, pages, "entry")(lambda: entries.present(e) & ~entries.special(e)).dtype == bool


@pytest.mark.benchmark(group="walk_page_range")
@pytest.mark.parametrize("name", ["pmd_entry", "pte_entry"])
def test_walk_with_a_python_callback(benchmark, name):
    host = hosts.dense_host(SIZES[0])
    mm = host.mm_list[0]
    vma = mm.vmas[0]
    ops = MmWalkOps(**{name: lambda entry, addr, next, walk: 0})
    calls = SIZES[0] if name == "pte_entry" else -(-SIZES[0] // 512)
    assert per(benchmark, calls, "callback")(walk_page_range, mm, vma.vm_start, vma.vm_end, ops) == 0
