"""Hot calls on address spaces and Hosts: contents, system calls, keeping."""

import pickle

import hosts
import numpy as np
import pytest
from measure import SIZES, SMOKE, per

from ksmwalk import Host

ROUNDS = 2 if SMOKE else 5


@pytest.mark.benchmark(group="Mm.populate")
@pytest.mark.parametrize("pages", SIZES)
def test_populate(benchmark, pages):
    def setup():
        host = hosts.Host(pages + 4096)
        mm = host.new_mm()
        return (mm, mm.mmap(pages * 4096)), {}

    def populate(mm, start):
        mm.populate(start, pages * 4096, np.arange(pages, dtype=np.uint64))
        return int(mm.read(start + (pages - 1) * 4096))

    assert per(benchmark, pages).pedantic(populate, setup=setup, rounds=ROUNDS) == pages - 1


@pytest.fixture
def full(pages):
    """A Host with an address space of so many pages, in use from its first area's start on."""
    return hosts.host_with(np.arange(1, pages + 1, dtype=np.uint64))


@pytest.mark.benchmark(group="Mm.write_at, read_at")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", ["stores", "loads"])
def test_scattered(benchmark, full, pages, what):
    mm = full.mm_list[0]
    addrs = mm.vmas[0].vm_start + np.random.default_rng(1).integers(0, pages, pages) * 4096
    measured = per(benchmark, pages)
    if what == "stores":
        measured(mm.write_at, addrs, np.arange(pages, dtype=np.uint64))
        assert mm.read(int(addrs[-1])) == pages - 1
    else:
        assert len(measured(mm.read_at, addrs)) == pages


@pytest.mark.benchmark(group="Mm.write, read, read_keys, read_pfns")
@pytest.mark.parametrize("pages", [1, *SIZES])
@pytest.mark.parametrize("what", ["write", "read", "read_keys", "read_pfns"])
def test_in_a_row(benchmark, full, pages, what):
    mm = full.mm_list[0]
    start = mm.vmas[0].vm_start
    keys = 1 if pages == 1 else np.arange(1, pages + 1, dtype=np.uint64)
    argument = keys if what == "write" else pages
    per(benchmark, pages)(getattr(mm, what), start, argument)
    assert mm.read(start) == 1


@pytest.mark.benchmark(group="Mm.fork, exit")
@pytest.mark.parametrize("pages", SIZES)
def test_fork_and_exit(benchmark, full, pages):
    mm = full.mm_list[0]
    per(benchmark, pages)(lambda: mm.fork().exit())
    assert len(full.mm_list) == 1


@pytest.mark.benchmark(group="Mm.write after fork")
@pytest.mark.parametrize("pages", SIZES[:2])
def test_pages_copied_on_write(benchmark, pages):
    keys = np.arange(1, pages + 1, dtype=np.uint64)

    def setup():
        host = hosts.host_with(keys, spare=pages)
        host.mm_list[0].fork()
        mm = host.mm_list[0]
        return (mm, mm.vmas[0].vm_start), {}

    per(benchmark, pages).pedantic(lambda mm, start: mm.write(start, keys), setup=setup, rounds=ROUNDS)


@pytest.mark.benchmark(group="Mm.mprotect, mremap, mmap and munmap")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", ["mprotect", "mremap"])
def test_system_calls(benchmark, full, pages, what):
    mm = full.mm_list[0]
    start, length = mm.vmas[0].vm_start, pages * 4096

    def protect():
        mm.mprotect(start, length, "r")
        mm.mprotect(start, length, "rw")

    def move():
        there = mm.mremap(start, length, length, start - (64 << 30))
        mm.mremap(there, length, length, start)

    per(benchmark, 2 * pages)(protect if what == "mprotect" else move)
    assert mm.read(start) == 1


@pytest.mark.benchmark(group="Mm.mprotect, mremap, mmap and munmap")
def test_mmap_and_munmap_of_nothing(benchmark):
    mm = Host(4096).new_mm()
    per(benchmark, 1, "area")(lambda: mm.munmap(mm.mmap(1 << 20), 1 << 20))
    assert not mm.vmas


@pytest.mark.benchmark(group="Host()")
@pytest.mark.parametrize("frames", [1 << 12, 1 << 16, 1 << 20])
def test_new_host(benchmark, frames):
    assert per(benchmark, frames, "frame")(Host, frames).frames_used == 1


@pytest.mark.benchmark(group="Host.save, load")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", ["save", "load", "pickled and back"])
def test_keeping(benchmark, full, pages, what, tmp_path):
    measured = per(benchmark, pages)
    if what == "save":
        measured(full.save, tmp_path / "host", overwrite=True)
    elif what == "load":
        full.save(tmp_path / "host")
        assert measured(Host.load, tmp_path / "host").frames_used == full.frames_used
    else:
        assert measured(lambda: pickle.loads(pickle.dumps(full, 5))).frames_used == full.frames_used
