"""Cores and guests as one capture with contents: equal keys for equal bytes, whatever kind of file they come from."""

import numpy as np
import pytest
from corefiles import PAGE, R, Segment, files, page, prpsinfo, qemu, write_core

from ksmwalk.estimates.estimate import estimate
from ksmwalk.sources.contents import readable
from ksmwalk.sources.cores import read_core
from ksmwalk.sources.keys import UNKNOWN
from ksmwalk.sources.memory import load_memory
from ksmwalk.sources.offline import capture_files

pytest.importorskip("elftools")

BASE = 0x7F00_0000_0000


@pytest.fixture
def made(tmp_path):
    core = write_core(
        tmp_path / "core",
        [Segment(BASE, [page(3), bytes(PAGE), page(1)]), Segment(BASE + 8 * PAGE, [page(9)], flags=R)],
        prpsinfo(7, b"some") + files((BASE + 8 * PAGE, BASE + 9 * PAGE, 0, b"/a")),
    )
    elf = write_core(tmp_path / "elf", [Segment(0, [page(1), page(2), bytes(PAGE)], paddr=0)], qemu(0))
    raw = tmp_path / "raw"
    raw.write_bytes(page(2) + page(3))
    return core, elf, raw


def test_equal_bytes_have_equal_keys_in_the_order_of_the_bytes(made):
    found = capture_files(made)
    assert [one.name for one in found.processes] == ["some", "elf", "raw"]
    assert [one.key.tolist() for one in found.processes] == [[3, 0, 1, UNKNOWN], [1, 2, 0], [2, 3]]
    assert found.ordered and found.machine["kind"] == "core" and not found.frames_seen
    assert capture_files(made[1:]).machine["kind"] == "guest"
    with pytest.raises(ValueError, match="no file"):
        capture_files([])


def test_what_is_read_of_a_core_is_what_ksmd_could_look_at(made):
    one = read_core(made[0])
    np.testing.assert_array_equal(one.which, np.flatnonzero(readable(one.capture)))
    assert one.capture.identity.uid == 1000


def test_they_load_into_one_host_and_merge(made):
    loaded = load_memory(capture_files(made), mark="all")
    host = loaded.host
    host.ksm.run = 1
    for _ in range(4):
        host.ksm.full_scan()
    # zeros, 1, 2 and 3 are there twice each
    assert (host.ksm.pages_shared, host.ksm.pages_sharing, host.ksm.pages_unshared) == (4, 4, 0)


def test_no_guest_shares_a_frame_with_another_by_fork(made):
    found = capture_files([made[1], made[2], made[2]])
    assert found.frames_seen
    frames = np.concatenate([one.pfn for one in found.processes])
    assert len(np.unique(frames)) == len(frames) == found.nr_pages
    result = estimate(found, mark="all")
    assert result.lower == result.expected.counters and result.expected.counters["freed_bytes"] == 3 * PAGE
    assert not any("rames can't be seen" in note for note in result.notes)


def test_a_core_beside_a_guest_leaves_it_unknown_what_fork_shares_in_the_core(made):
    result = estimate(capture_files([made[0], made[1]]), mark="all")
    assert result.lower["freed_bytes"] <= result.expected.counters["freed_bytes"] == 2 * PAGE
