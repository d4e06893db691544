"""Captures put into one, and the matrix of who shares with whom."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from madecapture import made, process

from ksmwalk.estimates.estimate import estimate
from ksmwalk.sources import matrix
from ksmwalk.sources.contents import MemoryCapture, key_pages, readable
from ksmwalk.sources.joining import NotComparable, join
from ksmwalk.sources.keys import UNKNOWN
from ksmwalk.sources.matrix import sharing_matrix

SECRET = b"0123456789abcdef"


class Bytes:
    """Pages that stand in memory."""

    def __init__(self, pages):
        self.pages = np.asarray(pages, np.uint8)
        self.nr_pages = len(pages)

    def read(self, which, into):
        into[:] = self.pages[which]
        return np.ones(len(which), bool)


def page(content):
    out = np.zeros(4096, np.uint8)
    out[100:104] = np.frombuffer(np.uint32(content).tobytes(), np.uint8)
    return out


def captured(contents, secret=SECRET, hostname="one", frames=True):
    """A capture of one process whose small pages hold these."""
    one = process(1, 512, np.zeros(1, np.uint64), frames=frames)
    which = np.arange(512, 576)[: len(contents)]
    result = key_pages([(one, Bytes([page(c) for c in contents]), which)], "live", secret=secret)
    result.machine["hostname"] = hostname
    return result


def test_equal_bytes_of_two_captures_have_one_key_and_others_two():
    a, b = captured([0, 5, 6, 7], hostname="a"), captured([7, 9, 0, 5], hostname="b")
    both = join([a, b])
    ka, kb = (one.key[512:516] for one in both.processes)
    assert ka[0] == kb[2] == 0 and ka[1] == kb[3] and ka[3] == kb[0]
    assert len({*ka.tolist(), *kb.tolist()}) == both.nr_contents == 5
    assert (both.processes[0].key[516:] == np.uint64(UNKNOWN)).all()
    assert both.sources == ["a", "b"] and not both.ordered and len(both.digests) == 5


def test_what_was_joined_can_be_joined_again():
    a, b, c = captured([1, 2], hostname="a"), captured([2, 3], hostname="b"), captured([3, 1], hostname="c")
    step, once = join([join([a, b]), c]), join([a, b, c])
    for one, other in zip(step.processes, once.processes, strict=True):
        assert np.array_equal(one.key, other.key)
    assert step.sources == once.sources == ["a", "b", "c"] and len(step.machine["machines"]) == 3


def test_captures_without_a_secret_or_with_two_are_refused_by_name():
    a, b = captured([1], hostname="a"), captured([1], None, hostname="b")
    with pytest.raises(NotComparable, match="b: captured without --secret"):
        join([a, b])
    with pytest.raises(NotComparable, match="b: captured with another secret than a"):
        join([a, captured([1], b"another secret!!", hostname="b")])
    assert join([b]).processes is b.processes


def test_frames_of_two_captures_are_never_the_same():
    both = join([made(digests=True, hostname="a"), made(digests=True, hostname="b")])
    frames = [set(one.pfn.tolist()) for one in both.processes if one.pfn is not None]
    assert len(frames) == 4 and not (frames[0] | frames[1]) & (frames[2] | frames[3])
    # each keeps its place in its block, so that huge pages stay huge
    assert (both.processes[3].pfn[:512] & np.uint64(511) == np.arange(512)).all()


def test_tunables_are_kept_where_the_machines_agree():
    a, b = made(digests=True), made(digests=True)
    assert join([a, b]).machine["ksm"] == {"pages_to_scan": "100"}
    b.machine = {**b.machine, "ksm": {"pages_to_scan": "7", "pages_shared": "5"}}
    joined = join([a, b])
    assert "ksm" not in joined.machine and any("tunables" in note for note in joined.notes)
    assert joined.machine["mem_total"] == 1 << 35


@given(st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=2, max_size=4))
def test_joined_keys_are_equal_exactly_where_the_bytes_are(contents):
    both = join([captured(some, hostname=str(i)) for i, some in enumerate(contents)])
    seen = {}
    for one, some in zip(both.processes, contents, strict=True):
        for content, key in zip(some, one.key[512:].tolist(), strict=False):
            assert seen.setdefault(content, key) == key
    assert len(set(seen.values())) == len(seen) and seen.get(0, 0) == 0


def test_two_machines_together_free_what_the_matrix_says():
    a, b = captured(range(1, 40), hostname="a"), captured([*range(20, 60), 1, 1], hostname="b")
    for one in (a, b):  # nothing but the pages that were read, none of a huge page
        some = one.processes[0]
        keep = np.flatnonzero(some.key != np.uint64(UNKNOWN))
        arrays = {name: getattr(some, name)[keep] for name in ("addr", "categories", "pfn", "exclusive", "frame_flags",
                                                               "frame_counts", "key", "changes")}  # fmt: skip
        one.processes = [dataclasses.replace(some, ksm_stat={}, folios=some.folios[:0], **arrays)]
    both = sharing_matrix([a, b])
    assert both.names == ["a", "b"] and both.nr_pages.tolist() == [39, 42]
    assert both.pages.tolist() == [[0, 21], [22, 2]]
    for freed, memory in ((both.freed_bytes[0, 1], join([a, b])), (both.freed_bytes[1, 1], b), (both.freed_bytes[0, 0], a)):
        assert estimate(memory, mark="all").expected.counters["freed_bytes"] == freed
    assert both.gain_bytes.tolist() == [[0, 21 * 4096], [21 * 4096, 0]]


def slow(groups):
    """The matrix, from lists of (frame, key)."""
    n = len(groups)
    pages, freed = np.zeros((n, n), int), np.zeros((n, n), int)
    for i in range(n):
        for j in range(n):
            mine = dict(groups[i])
            other = list(dict(groups[j]).values())
            pages[i, j] = sum((other.count(key) > 1) if i == j else key in other for key in mine.values())
            together = {**mine, **dict(groups[j])}
            freed[i, j] = 4096 * (len(together) - len(set(together.values())))
    return pages, freed


@pytest.mark.parametrize("together", [40, 1 << 22])
@given(data=st.data())
def test_the_matrix_is_that_of_a_slow_count(together, data):
    n = data.draw(st.sampled_from([1, 2, 3, 40]))
    size = data.draw(st.integers(1, 30))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    key_of = rng.integers(0, data.draw(st.integers(1, 20)), 64)
    processes, groups = [], []
    for i in range(n):
        one = process(i + 1, 512, np.zeros(1, np.uint64))
        one.key[:] = UNKNOWN
        frames = rng.choice(64, size)
        where = np.arange(512, 512 + size)
        one.pfn[where], one.key[where] = frames, key_of[frames]
        assert readable(one)[where].all()
        processes.append(one)
        groups.append(list(zip(frames.tolist(), key_of[frames].tolist(), strict=True)))
    old = matrix._TOGETHER
    matrix._TOGETHER = together
    try:
        got = sharing_matrix(MemoryCapture(processes, 64), by="process")
    finally:
        matrix._TOGETHER = old
    pages, freed = slow(groups)
    assert np.array_equal(got.pages, pages) and np.array_equal(got.freed_bytes, freed)


def test_rows_of_bits_are_counted_without_numpys_own_count(monkeypatch):
    rows = np.random.default_rng(1).integers(0, 1 << 63, (5, 8)).astype(np.uint64)
    wanted = [sum(int(x).bit_count() for x in row) for row in rows]
    assert matrix._ones(rows).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert matrix._ones(rows).tolist() == wanted


def test_groups_are_those_asked_for():
    capture = made()
    assert sharing_matrix(capture, by="user").names == ["user 1000"]
    assert sharing_matrix(capture, by="container").names == ["outside containers"]
    assert len(sharing_matrix(capture, by="process").names) == 3
    with pytest.raises(ValueError, match="by 'vm': not one of"):
        sharing_matrix(capture, by="vm")
