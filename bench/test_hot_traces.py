"""Hot calls on traces: applying, asking what was touched, reading files."""

import struct

import numpy as np
import pytest
from measure import SIZES, SMOKE, per

from ksmwalk import Host
from ksmwalk.host import trace_events
from ksmwalk.sources.traces import read_trace, save_trace

BASE, PROCESSES = 1 << 40, 16
ROUNDS = 2 if SMOKE else 5


def accesses(n, pages):
    rng = np.random.default_rng(1)
    mm = rng.integers(0, PROCESSES, n)
    return trace_events(rng.integers(1, 3, n), BASE + rng.integers(0, pages, n) * 4096, rng.integers(0, 1 << 60, n), mm=mm)


@pytest.mark.benchmark(group="Player.apply")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("there", [False, True], ids=["faults", "present"])
def test_random_accesses(benchmark, pages, there):
    events = accesses(4 * pages, -(-pages // PROCESSES))

    def setup():
        player = Host(pages + 4096).player(map_missing=True)
        if there:
            player.apply(events)
        return (player,), {}

    assert per(benchmark, len(events)).pedantic(lambda player: player.apply(events), setup=setup, rounds=ROUNDS) == len(events)


@pytest.mark.benchmark(group="Mm.touched, clear_touched")
@pytest.mark.parametrize("pages", SIZES)
@pytest.mark.parametrize("what", ["touched", "clear_touched"])
def test_touched(benchmark, pages, what):
    mm = Host(pages + 4096).new_mm()
    mm.populate(mm.mmap(pages * 4096), pages * 4096)
    found = per(benchmark, pages)(getattr(mm, what))
    assert found is None or len(found) == pages


@pytest.mark.benchmark(group="sources.traces")
@pytest.mark.parametrize("kind", ["npy", "csv", "lackey", "champsim"])
def test_reading(benchmark, tmp_path, kind):
    events = accesses(SIZES[1], 1000)
    path = tmp_path / f"t.{kind}"
    if kind in ("npy", "csv"):
        save_trace(path, events)
    elif kind == "lackey":
        path.write_text("".join(f" L {addr:x},8\n" for addr in events["addr"].tolist()))
    else:
        path.write_bytes(b"".join(struct.pack("<Q8xQQ32x", 1, 0, addr) for addr in events["addr"].tolist()))
    assert len(per(benchmark, len(events)).pedantic(read_trace, (path, kind), rounds=ROUNDS)) == len(events)
