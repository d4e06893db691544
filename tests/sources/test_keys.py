"""Bytes to keys, against sorting the pages."""

from __future__ import annotations

import hashlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk.sources import _bytes, keys, ordering
from ksmwalk.sources.keys import UNKNOWN, intern

P = 4096


class Held:
    """Pages held in memory; `turn` changes some from a reading on."""

    def __init__(self, pages, turn=None, lost=()):
        self.pages = [bytes(page) for page in pages]
        self.turn = turn or {}
        self.lost = set(lost)
        self.readings = [0] * len(self.pages)

    @property
    def nr_pages(self):
        return len(self.pages)

    def read(self, which, into):
        assert (np.diff(which) > 0).all()
        for row, i in zip(into, which.tolist(), strict=True):
            page = self.turn[i](self.readings[i]) if i in self.turn else self.pages[i]
            self.readings[i] += 1
            row[:] = np.frombuffer(page, np.uint8)
        return np.array([i not in self.lost for i in which.tolist()], bool)


class Weak:
    """A hash of one bit: most pages share theirs."""

    numbers = 1

    def hash(self, pages):
        return (pages[:, 0] & 1).astype(np.uint64)[None]


def page(at=0, text=b"", base=b"\0"):
    whole = bytearray(base * P)
    whole[at : at + len(text)] = text
    return bytes(whole)


def ranks(pages):
    """Slowly: the place of each content among all, zeros 0."""
    order = sorted(set(pages) - {bytes(P)})
    return [0 if one == bytes(P) else order.index(one) + 1 for one in pages]


# where a page differs and by what: early, late, after zeros, in one bit
ODD = st.tuples(
    st.sampled_from([0, 1, 7, 8, 9, 15, 16, 23, 24, 32, 63, 64, 2048, 4088, 4095]),
    st.sampled_from([b"\0", b"\1", b"\x80", b"\xff"]),
    st.sampled_from([b"\0", b"\0", b"x", b"\xff"]),
)


@given(st.lists(st.lists(ODD, max_size=40), min_size=1, max_size=4))
def test_keys_are_the_ranks_of_the_bytes(parts):
    parts = [[page(*one) for one in part] for part in parts]
    found = intern([Held(part) for part in parts])
    wanted = ranks([one for part in parts for one in part])
    assert [int(key) for part in found.keys for key in part] == wanted
    assert found.nr_contents == max(wanted, default=0) + 1
    assert not any(change.any() for change in found.changes)


@given(st.lists(ODD, max_size=40))
def test_a_hash_that_agrees_is_not_taken_for_equal_bytes(pages):
    pages = [page(*one) for one in pages]
    with mock.patch.object(keys, "hasher", lambda secret: Weak()):
        found = intern([Held(pages)])
    assert found.keys[0].tolist() == ranks(pages)


@given(st.lists(ODD, min_size=1, max_size=20), st.integers(0, 1 << 32))
def test_the_hash_is_the_same_with_and_without_wide_loads(pages, seed):
    rng = np.random.default_rng(seed)
    words = np.frombuffer(b"".join(page(*one) for one in pages), np.uint64).reshape(-1, 512)
    words = np.concatenate([words, rng.integers(0, 1 << 63, (3, 512), np.uint64)])
    seeds = rng.integers(0, 1 << 64, _bytes.SEEDS, np.uint64)
    wide, plain = (np.empty(len(words), np.uint64) for _ in range(2))
    _bytes.hashes(words, seeds, wide, True)
    _bytes.hashes(words, seeds, plain, False)
    assert wide.tolist() == plain.tolist()
    # a chance of 2**-32 for each pair, in the worst case
    assert len(set(wide.tolist())) == len({row.tobytes() for row in words})


@pytest.mark.parametrize("together", [4, 16])
@given(st.lists(ODD, min_size=20, max_size=60))
def test_runs_too_long_for_memory_are_split(together, pages):
    pages = [page(*one) for one in pages]
    with mock.patch.object(ordering, "_TOGETHER", together):
        found = intern([Held(pages)])
    assert found.keys[0].tolist() == ranks(pages)


def test_a_thousand_pages_that_begin_alike():
    rng = np.random.default_rng(3)
    pages = [page(at, bytes([x]), b"h") for at, x in rng.integers((64, 0), (P, 255), (1000, 2)).tolist()]
    with mock.patch.object(ordering, "_TOGETHER", 100):
        found = intern([Held(pages)])
    assert found.keys[0].tolist() == ranks(pages)


def test_a_page_that_changes_between_samples_has_the_last_content():
    turning = Held([page(), page(0, b"a"), page(0, b"a")], {0: lambda n: page(0, b"b" if n else b"c")})
    found = intern([turning], samples=2)
    assert found.keys[0].tolist() == [2, 1, 1]
    assert found.changes[0].tolist() == [1, 0, 0]
    assert found.comparisons == 1


def test_a_page_that_changes_while_it_is_compared_is_equal_to_nobody():
    same = page(0, b"a")
    for turning in (0, 1, 2):  # the first of its group, which the others are compared with, too
        pages = Held([same, same, same], {turning: lambda n: page(0, b"z") if n else same})
        found = intern([pages])
        assert found.changes[0].tolist() == [int(i == turning) for i in range(3)]
        others = [int(key) for i, key in enumerate(found.keys[0]) if i != turning]
        assert others[0] == others[1] != int(found.keys[0][turning])


def test_a_page_that_turns_to_what_others_hold_while_it_is_compared_equals_them():
    one, other = page(0, b"s"), page(0, b"t")
    for turning in (0, 1, 4):
        pages = [one, one, other, other, one]
        # read as one, found to be the other when it is compared
        found = intern([Held(pages, {turning: lambda n: other if n > 1 else one})], samples=2)
        want = [int(other == (other if i == turning else text)) for i, text in enumerate(pages)]
        keys = found.keys[0].tolist()
        assert [int(key == keys[2]) for key in keys] == want
        assert found.changes[0].tolist() == [0] * 5  # between the samples it stood still


def test_a_page_that_never_stands_still_is_equal_to_nobody():
    same = page(0, b"s")
    found = intern([Held([same, same, same], {1: lambda n: page(0, bytes([1 + n % 200]))})], samples=2)
    first, turning, last = found.keys[0].tolist()
    assert first == last != turning and found.changes[0][1] == 1


def test_pages_that_could_not_be_read_have_no_key():
    found = intern([Held([page(0, b"a"), page(0, b"a"), page(0, b"b")], lost=[1])], samples=2)
    assert found.keys[0].tolist() == [1, UNKNOWN, 2]


def test_nothing_to_read():
    assert intern([]).nr_contents == 1
    assert intern([Held([])]).keys[0].tolist() == []


def test_a_secret_numbers_contents_by_their_hashes():
    pages = [page(0, bytes([i])) for i in (5, 3, 9, 3, 0)]
    one = intern([Held(pages)], secret=b"s" * 16)
    assert (one.keys[0] == 0).tolist() == [False, False, False, False, True]
    digest = {
        int(key): hashlib.blake2b(bytes(content), digest_size=16, key=b"s" * 16).digest()
        for key, content in zip(one.keys[0], pages, strict=True)
    }
    for key, wanted in digest.items():
        assert one.digests[key].astype(">u8").tobytes() == wanted
    assert one.keys[0][1] == one.keys[0][3]
    # the same contents elsewhere are found by their digests, and by them alone
    other = intern([Held(pages[2:])], secret=b"s" * 16)
    assert other.digests[int(other.keys[0][0])].tolist() == one.digests[int(one.keys[0][2])].tolist()
    assert intern([Held(pages)], secret=b"t" * 16).digests[1:].tolist() != one.digests[1:].tolist()


def test_progress_comes_to_its_end():
    told = []
    intern([Held([page(0, b"a")] * 700)], progress=lambda *row: told.append(row))
    assert ("reading 1", 700, 700) in told and ("comparing", 700, 700) in told


@given(st.lists(st.integers(0, 2**64 - 1), max_size=300), st.integers(0, 63), st.integers(0, 63))
def test_words_are_sorted_by_their_upper_bits_and_stay_in_order_else(numbers, skip, width):
    words = np.array(numbers, np.uint64) & np.uint64((1 << width) - 1 if width else 2**64 - 1)
    before = words.copy()
    _bytes.sort_words(words, skip)
    order = np.argsort(before >> np.uint64(skip), kind="stable")
    assert np.array_equal(words, before[order])


def test_words_that_can_not_be_sorted_are_refused():
    with pytest.raises(ValueError, match="skip 64: 0 to 63 bits"):
        _bytes.sort_words(np.zeros(2, np.uint64), 64)
    with pytest.raises((TypeError, ValueError)):
        _bytes.sort_words(np.zeros(2, np.int32), 3)
