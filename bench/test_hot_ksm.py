"""Hot calls of ksmd: the cursor, and scans that merge."""

import hosts
import numpy as np
import pytest
from measure import SIZES, SMOKE, per

ROUNDS = 2 if SMOKE else 5


@pytest.mark.benchmark(group="KsmScan.scan")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "random frames"])
def test_scan_again(benchmark, pages, shuffled):
    host = hosts.dense_host(pages, shuffled)
    hosts.full_scan(host)
    assert per(benchmark, pages)(hosts.full_scan, host) == pages


@pytest.mark.benchmark(group="KsmScan.scan")
@pytest.mark.parametrize("pages", SIZES)
def test_scan_first(benchmark, pages):
    found = per(benchmark, pages).pedantic(
        hosts.full_scan, setup=lambda: ((hosts.dense_host(pages),), {}), rounds=2 if SMOKE or pages > 1 << 16 else 10
    )
    assert found == pages


@pytest.mark.benchmark(group="KsmScan.scan, one page in so much")
@pytest.mark.parametrize("span", [1 << 30, 1 << 40, 32 << 40], ids=["1 GiB", "1 TiB", "32 TiB"])
def test_scan_of_one_page(benchmark, span):
    host = hosts.sparse_host(span)
    assert per(benchmark, 1)(hosts.full_scan, host) == 1


@pytest.mark.benchmark(group="KsmScan.scan, one address at a time")
def test_scan_one_address_at_a_time(benchmark):
    span = 1 << (22 if SMOKE else 28)
    host = hosts.sparse_host(span, strategy="per-address")
    host.ksm.scan.real_lookups = True
    assert per(benchmark, span // 4096, "address")(hosts.full_scan, host) == 1


@pytest.mark.benchmark(group="KsmScan.scan_get_next_rmap_item")
def test_next_item_from_python(benchmark):
    host = hosts.dense_host(SIZES[-1])
    get = host.ksm.scan.scan_get_next_rmap_item
    assert per(benchmark, 1)(get) is not None or get() is not None


def contents(what, pages):
    """Keys of so many pages, in random order."""
    random = np.random.default_rng(1)
    if what == "zeros":
        return np.zeros(pages, np.uint64)
    return random.permutation(np.arange(pages, dtype=np.uint64) // np.uint64(2 if what == "pairs" else 1) + np.uint64(1))


#: contents, full scans before the one that is measured, smart_scan, and what then is there to be done
SCANS = {
    "first pass": ("unique", 0, 0),
    "unique pages": ("unique", 1, 0),
    "pairs merging": ("pairs", 1, 0),
    "merged pages": ("pairs", 2, 0),
    "pages skipped": ("unique", 4, 1),
    "zeros": ("zeros", 0, 0),
}


@pytest.mark.benchmark(group="Ksm.do_scan")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", SCANS)
def test_do_scan(benchmark, what, pages):
    kind, before, smart = SCANS[what]

    def setup():
        host = hosts.host_with(contents(kind, pages))
        host.ksm.smart_scan, host.ksm.use_zero_pages = smart, int(kind == "zeros")
        for _ in range(before):
            host.ksm.do_scan(1 << 40)
        return (host,), {}

    done = per(benchmark, pages).pedantic(lambda host: host.ksm.do_scan(1 << 40), setup=setup, rounds=ROUNDS)
    assert done == pages or smart


@pytest.mark.benchmark(group="Ksm.run_until")
@pytest.mark.parametrize("pages", SIZES)
def test_run_until_settled(benchmark, pages):
    def setup():
        return (hosts.host_with(contents("pairs", pages)),), {}

    rows = per(benchmark, pages).pedantic(lambda host: host.ksm.run_until(), setup=setup, rounds=2)
    assert rows["pages_sharing"][-1] == pages // 2


@pytest.mark.benchmark(group="Ksm.run = 2")
@pytest.mark.parametrize("pages", SIZES[:2])
def test_unmerge_everything(benchmark, pages):
    def setup():
        host = hosts.host_with(contents("pairs", pages))
        for _ in range(2):
            host.ksm.do_scan(1 << 40)
        return (host,), {}

    def unmerge(host):
        host.ksm.run = 2
        return host.ksm.pages_sharing

    assert per(benchmark, pages).pedantic(unmerge, setup=setup, rounds=ROUNDS) == 0
