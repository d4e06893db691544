"""The arrays of frames are for looking; what may be changed has a call that the engine hears of."""

import numpy as np
import pytest

from ksmwalk.host.host import Host
from ksmwalk.layout import FRAME_FIELDS, Frame
from ksmwalk.memory.frames import Frames

PAGE = 4096
BASE = 1 << 32
PAGES = 16


def marked(keys, host=None):
    host = host or Host(4096)
    mm = host.new_mm()
    mm.mmap(len(keys) * PAGE, BASE)
    mm.write(BASE, np.asarray(keys, np.uint64))
    mm.madvise(BASE, len(keys) * PAGE, "mergeable")
    return host, mm


@pytest.mark.parametrize("name", ["refs", *(name for name in FRAME_FIELDS if name != "extra")])
def test_an_array_of_frames_can_not_be_written_to(name):
    host, mm = marked([1, 2])
    pfn = int(mm.read_pfns(BASE, 1)[0])
    before = getattr(host.frames, name).copy()
    array = getattr(host.frames, name)
    with pytest.raises(ValueError, match="read-only"):
        array[pfn] = 3
    with pytest.raises(ValueError, match="read-only"):
        array += 1
    with pytest.raises(AttributeError, match="read-only"):
        setattr(host.frames, name, before)
    assert np.array_equal(getattr(host.frames, name), before)
    mm.write(BASE, 9)
    assert host.frames.key[pfn] == 9, "a view, no copy"


def test_the_attributes_are_the_arrays_of_the_layout_with_their_types():
    frames = Host(1024).frames
    arrays = {name: kind for name, kind in Frames.__annotations__.items()}
    assert {*arrays, "head", "extra"} == set(FRAME_FIELDS) and frames.head.dtype == FRAME_FIELDS["head"]
    for name, kind in arrays.items():
        assert kind == f"NDArray[np.{getattr(frames, name).dtype}]"
    with pytest.raises(AttributeError, match="did you mean key"):
        frames.keys = 1


@pytest.mark.parametrize("seed", range(8))
def test_a_content_set_by_frame_merges_like_one_that_was_stored(seed):
    for run in range(25):
        rng = np.random.default_rng([seed, run])
        keys = rng.integers(0, 6, PAGES)
        (one, stored), (other, by_frame) = marked(keys), marked(keys)
        for _ in range(12):
            for _ in range(int(rng.integers(0, 4))):
                place, key = int(rng.integers(PAGES)), int(rng.integers(6))
                pfn = int(by_frame.read_pfns(BASE + place * PAGE, 1)[0])
                stored.write(BASE + place * PAGE, key)
                if other.frames.flags[pfn] & (Frame.KSM | Frame.ZERO):
                    by_frame.write(BASE + place * PAGE, key)
                else:
                    other.frames.set_key(pfn, key)
            n = int(rng.choice([1, 3, 10, 100]))
            assert one.ksm.do_scan(n) == other.ksm.do_scan(n)
            assert one.ksm.counters() == other.ksm.counters()
            assert np.array_equal(stored.read_keys(BASE, PAGES), by_frame.read_keys(BASE, PAGES))
            assert np.array_equal(stored.read_pfns(BASE, PAGES), by_frame.read_pfns(BASE, PAGES))


def test_many_contents_are_set_at_once_and_every_mapping_sees_them():
    host, mm = marked([1, 2, 3])
    child = mm.fork()
    pfns, epochs = mm.read_pfns(BASE, 3), (mm.epoch, child.epoch)
    host.frames.set_key(pfns, [7, 8, 9])
    assert child.read_keys(BASE, 3).tolist() == mm.read_keys(BASE, 3).tolist() == [7, 8, 9]
    assert mm.epoch > epochs[0] and child.epoch > epochs[1]
    host.frames.set_key(pfns[:2], 5)
    assert mm.read_keys(BASE, 3).tolist() == [5, 5, 9]
    host.frames.set_key(int(pfns[0]), np.uint64(2**64 - 1))
    assert mm.read(BASE) == 2**64 - 1


def test_a_frame_whose_content_can_not_change_is_refused_and_nothing_is_set():
    host, mm = marked([1, 1, 2])
    host.ksm.run_until()
    shared, _, own = mm.read_pfns(BASE, 3).tolist()
    free = int(np.flatnonzero(host.frames.flags == 0)[0])
    before = host.frames.key.copy()
    for pfn, why in ((shared, "ksm"), (0, "zero"), (free, "free"), (-1, "from 0"), (4096, "from 0")):
        with pytest.raises(ValueError, match=rf"pfns\[1\].*{why}"):
            host.frames.set_key([own, pfn], 4)
    with pytest.raises(ValueError, match="2 keys for 1 frames"):
        host.frames.set_key(own, [1, 2])
    for pfns, keys in ((own, 1.0), (float(own), 1), ("a", 1), (own, None), ([[own]], 1)):
        with pytest.raises(TypeError):
            host.frames.set_key(pfns, keys)
    with pytest.raises(ValueError, match="keys"):
        host.frames.set_key(own, -1)
    assert np.array_equal(host.frames.key, before)


def test_a_page_lock_is_set_through_the_host():
    host, mm = marked([1])
    pfn = int(mm.read_pfns(BASE, 1)[0])
    host.lock_page(pfn)
    assert host.frames.flags[pfn] & Frame.LOCKED
    host.lock_page(pfn, False)
    assert not host.frames.flags[pfn] & Frame.LOCKED


def test_a_line_about_a_frame_says_what_the_arrays_say():
    host = Host(4096, thp="always")
    mm = host.new_mm()
    mm.mmap(1024 * PAGE, BASE)
    mm.write(BASE, [1, 2])
    mm.mmap(PAGE, 2 * BASE)
    mm.write(2 * BASE, 3)
    child = mm.fork()
    child.munmap(BASE, 3 * PAGE)
    host.pin(mm, 2 * BASE)
    frames = host.frames
    seen = set()
    for pfn in np.flatnonzero(frames.flags & Frame.USED).tolist():
        line = frames.describe(pfn)
        assert f", head {frames.head[pfn]}, mapcount {frames.mapcount[pfn]}, refs {frames.refs[pfn]}, " in line
        seen.add(int(frames.refs[pfn]))
    assert {0, 3, 512 + 509} <= seen
