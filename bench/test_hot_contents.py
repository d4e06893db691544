"""Hot calls on captured memory: reading, keying, keeping, loading, estimating."""

import hosts
import numpy as np
import pytest
from measure import SIZES, SMOKE, per
from rows_contents import made_up

from ksmwalk.estimates.costs import Costs
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.sweep import grid, sweep
from ksmwalk.estimates.why import explain_pages
from ksmwalk.sources import capture, load
from ksmwalk.sources.captures import open_capture, save_capture
from ksmwalk.sources.contents import capture_memory
from ksmwalk.sources.keys import intern
from ksmwalk.sources.matrix import sharing_matrix
from ksmwalk.sources.memory import load_memory

SOME = SIZES[:2]
ROUNDS = 2 if SMOKE else 5


class Bytes:
    """Pages whose bytes are at hand: random, each fourth like another."""

    def __init__(self, pages):
        random = np.random.default_rng(1)
        self.pages = random.integers(0, 256, (pages, 4096), np.uint8)
        self.pages[::4] = self.pages[random.integers(0, pages, -(-pages // 4))]
        self.nr_pages = pages

    def read(self, which, into):
        into[: len(which)] = self.pages[which]
        return np.ones(len(which), bool)


@pytest.mark.benchmark(group="keys.intern")
@pytest.mark.parametrize("pages", SOME)
@pytest.mark.parametrize("secret", [None, b"0123456789abcdef"], ids=["hash", "secret"])
def test_bytes_to_keys(benchmark, pages, secret):
    found = per(benchmark, pages).pedantic(intern, ([Bytes(pages)],), {"secret": secret}, rounds=ROUNDS)
    assert found.nr_contents <= pages + 1


@pytest.fixture
def living(pages):
    process = hosts.shape(pages * 4096, np.arange(pages) * 4096)
    if process is None:
        pytest.skip("no such process here")
    with process:
        yield process


@pytest.mark.benchmark(group="sources.capture, load")
@pytest.mark.parametrize("pages", SOME)
@pytest.mark.parametrize("what", ["capture", "load"])
def test_live_process(benchmark, living, pages, what):
    seen = capture(living.pid)
    assert seen.nr_pages >= pages
    if what == "capture":
        per(benchmark, seen.nr_pages)(capture, living.pid)
    else:
        per(benchmark, seen.nr_pages).pedantic(load, (seen,), rounds=ROUNDS)


@pytest.mark.benchmark(group="sources.capture_memory")
@pytest.mark.parametrize("pages", SOME)
def test_contents_of_a_live_process(benchmark, living, pages):
    seen = per(benchmark, pages).pedantic(capture_memory, ([living.pid],), {"samples": 1}, rounds=ROUNDS)
    assert seen.nr_pages >= pages


@pytest.fixture
def memory(pages):
    return made_up(pages)


@pytest.mark.benchmark(group="save_capture, open_capture")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", ["save", "open"])
def test_kept(benchmark, memory, pages, what, tmp_path):
    if what == "save":
        per(benchmark, pages)(save_capture, memory, tmp_path / "kept", overwrite=True)
    else:
        save_capture(memory, tmp_path / "kept")
        assert per(benchmark, pages)(open_capture, tmp_path / "kept").nr_pages == memory.nr_pages


@pytest.mark.benchmark(group="load_memory")
@pytest.mark.parametrize("pages", SIZES)
def test_loaded(benchmark, memory, pages):
    assert per(benchmark, pages).pedantic(load_memory, (memory,), rounds=ROUNDS).host.frames_used > 1


@pytest.mark.benchmark(group="sharing_matrix")
@pytest.mark.parametrize("pages", SIZES)
def test_matrix(benchmark, memory, pages):
    assert len(per(benchmark, pages).pedantic(sharing_matrix, (memory, "process"), rounds=ROUNDS).names) == 16


@pytest.mark.benchmark(group="estimate")
@pytest.mark.parametrize("pages", SIZES)
def test_estimate(benchmark, memory, pages):
    assert per(benchmark, pages).pedantic(estimate, (memory,), {"costs": Costs()}, rounds=2).expected.counters["freed_bytes"]


@pytest.mark.benchmark(group="explain_pages")
@pytest.mark.parametrize("pages", SOME)
def test_why(benchmark, memory, pages):
    why = per(benchmark, pages).pedantic(explain_pages, (memory,), {"costs": Costs()}, rounds=2)
    assert sum(why.totals.values()) == memory.nr_pages


@pytest.mark.benchmark(group="sweep")
@pytest.mark.parametrize("pages", SOME)
def test_sweep(benchmark, memory, pages):
    settings = grid(pages_to_scan=[100, 1000], smart_scan=[0, 1], max_page_sharing=[16, 256])
    rows = per(benchmark, len(settings), "setting").pedantic(sweep, (memory, settings), {"costs": Costs()}, rounds=2)
    assert len(rows) == len(settings)
