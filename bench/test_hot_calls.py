"""Every hot call by layout and size, for those who track timings with pytest-benchmark.

    pytest bench
    KSMWALK_BENCH_SMOKE=1 pytest bench --benchmark-disable    # does it run at all
"""

import hosts
import layouts
import numpy as np
import pytest
from measure import SMOKE

from ksmwalk import MmWalkOps, PageTables, entries, layout, walk_page_range

SHAPES = {"dense": layouts.dense, "sparse 10 %": lambda: layouts.sparse(10), "mixed": layouts.mixed}
if not SMOKE:
    SHAPES["sparse 1 %"] = lambda: layouts.sparse(1)
SIZES = [1 << 9, 1 << 12] if SMOKE else [1 << 9, 1 << 14, 1 << 19]


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    return SHAPES[request.param]()


@pytest.mark.parametrize("view", ["kernel", "hardware"])
def test_mappings(benchmark, shape, view):
    tables = PageTables.from_image(shape.rows, shape.root)
    out = np.zeros(shape.nr_leaves + 512, dtype=layout.MAPPING)
    assert len(benchmark(tables.mappings, view=view, out=out)) == shape.nr_leaves


def test_mappings_joined_into_runs(benchmark, shape):
    tables = PageTables.from_image(shape.rows, shape.root)
    out = np.zeros(shape.nr_leaves + 512, dtype=layout.MAPPING)
    assert benchmark(tables.mappings, runs=True, out=out)["nr"].sum() == shape.nr_leaves


def test_lookup(benchmark, shape):
    tables = PageTables.from_image(shape.rows, shape.root)
    addr = shape.base + int(shape.small[len(shape.small) // 2])
    assert benchmark(tables.lookup, addr)["addr"] == addr


@pytest.mark.parametrize("pages", SIZES)
def test_map_range_and_unmap(benchmark, pages):
    tables = PageTables()
    pfns = np.arange(pages, dtype=np.uint64)

    def both():
        tables.map_range(1 << 40, pfns)
        return tables.unmap(1 << 40, (1 << 40) + pages * 4096)

    assert benchmark(both) == pages


@pytest.mark.parametrize("pages", SIZES)
def test_predicates(benchmark, pages):
    e = np.random.default_rng(1).integers(0, 1 << 63, pages).astype(np.uint64)
    assert benchmark(lambda: entries.present(e) & ~entries.special(e)).dtype == bool


@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "random frames"])
def test_scan_again(benchmark, pages, shuffled):
    host = hosts.dense_host(pages, shuffled)
    hosts.full_scan(host)
    assert benchmark(hosts.full_scan, host) == pages


@pytest.mark.parametrize("pages", SIZES)
def test_scan_first(benchmark, pages):
    found = benchmark.pedantic(
        hosts.full_scan, setup=lambda: ((hosts.dense_host(pages),), {}), rounds=2 if SMOKE or pages > 1 << 16 else 10
    )
    assert found == pages


@pytest.mark.parametrize("span", [1 << 30, 1 << 40, 32 << 40], ids=["1 GiB", "1 TiB", "32 TiB"])
def test_scan_of_one_page(benchmark, span):
    host = hosts.sparse_host(span)
    assert benchmark(hosts.full_scan, host) == 1


def test_scan_one_address_at_a_time(benchmark):
    host = hosts.sparse_host(1 << (22 if SMOKE else 28), strategy="per-address")
    host.ksm.scan.real_lookups = True
    assert benchmark(hosts.full_scan, host) == 1


def test_next_item_from_python(benchmark):
    host = hosts.dense_host(SIZES[-1])
    get = host.ksm.scan.scan_get_next_rmap_item
    assert benchmark(get) is not None or get() is not None


@pytest.mark.parametrize("name", ["pmd_entry", "pte_entry"])
def test_walk_with_a_python_callback(benchmark, name):
    host = hosts.dense_host(SIZES[0])
    mm = host.mm_list[0]
    vma = mm.vmas[0]
    ops = MmWalkOps(**{name: lambda entry, addr, next, walk: 0})
    assert benchmark(walk_page_range, mm, vma.vm_start, vma.vm_end, ops) == 0


@pytest.mark.parametrize("pages", SIZES)
def test_populate(benchmark, pages):
    def setup():
        host = hosts.Host(pages + 4096)
        mm = host.new_mm()
        return (mm, mm.mmap(pages * 4096)), {}

    def populate(mm, start):
        mm.populate(start, pages * 4096, np.arange(pages, dtype=np.uint64))
        return int(mm.read(start + (pages - 1) * 4096))

    assert benchmark.pedantic(populate, setup=setup, rounds=2 if SMOKE else 5) == pages - 1


@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", ["stores", "loads"])
def test_scattered(benchmark, pages, what):
    host = hosts.Host(pages + 4096)
    mm = host.new_mm()
    start = mm.mmap(pages * 4096)
    mm.populate(start, pages * 4096)
    addrs = start + np.random.default_rng(1).integers(0, pages, pages) * 4096
    if what == "stores":
        benchmark(mm.write_at, addrs, np.arange(pages, dtype=np.uint64))
        assert mm.read(int(addrs[-1])) == pages - 1
    else:
        assert len(benchmark(mm.read_at, addrs)) == pages


@pytest.mark.parametrize("pages", SIZES[:2])
def test_merge(benchmark, pages):
    """Two scans of pairs of equal pages, from nothing to all merged."""
    def setup():
        host = hosts.Host(pages + 4096)
        mm = host.new_mm()
        start = mm.mmap(pages * 4096)
        mm.populate(start, pages * 4096, np.arange(pages, dtype=np.uint64) // np.uint64(2) + np.uint64(1))
        mm.madvise(start, pages * 4096, "mergeable")
        host.ksm.smart_scan = 0
        host.ksm.run = 1
        return (host,), {}

    def merge(host):
        for _ in range(2):
            host.ksm.do_scan(pages + 1)
        return host.ksm.counters()["pages_sharing"]

    assert benchmark.pedantic(merge, setup=setup, rounds=2 if SMOKE else 5) == pages // 2
