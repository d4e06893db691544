"""Pages that differ by a few bytes: which, where, and what the bytes look like."""

from __future__ import annotations

import time

import numpy as np
import pytest
from living import Living, footprint
from memories import Area, memory, process

from ksmwalk.estimates.near_words import near_groups
from ksmwalk.sources import near
from ksmwalk.sources.contents import MemoryCapture, capture_memory
from ksmwalk.sources.near import KINDS, find_near

P = 4096
#: fills pages with numbers that no other page has; page after page alike but for what is put into it later
FILL = "put({area} + {page} * P, range(0, P, 8), range({seed}, {seed} + 512))"
SEED = 0x1234567 << 32


@pytest.fixture
def child():
    with Living() as living:
        yield living


def alike(child, pages, offset, words, seed=SEED):
    """An area of pages that are equal but for the word at an offset."""
    area = child.do(f"new({pages} * P)")
    for page in range(pages):
        child.do(FILL.format(area=area, page=page, seed=seed))
        child.do(f"put({area} + {page} * P, [{offset}], [{words[page]}])")
    return area


def found(child, area, pages, **options):
    """(pairs in an area, their offsets, all) of a child that is read alone."""
    what = capture_memory([child.pid], samples=1)
    result = find_near(what, **options)
    inside = (result.pairs["addr"] >= area) & (result.pairs["addr"] < area + pages * P)
    return result.pairs[inside], result.offsets[inside], result, what


def test_pages_that_differ_in_one_word_are_near_and_the_word_is_named(child):
    area = alike(child, 20, 0x10, range(1 << 20, (1 << 20) + 20))
    pairs, offsets, result, what = found(child, area, 20)
    assert len(pairs) == 20 and (pairs["bytes"] == 1).all() and (pairs["words"] == 1).all()
    assert (offsets[:, 0] == 0x10).all() and (offsets[:, 1:] == -1).all()
    assert result.histogram[0x10] >= 20 and (pairs["first"] == 0x10).all() and (pairs["last"] == 0x11).all()
    group = next(one for one in near_groups(result, what) if one["pages"] == 20)
    assert group["words"] == [0x10] and "at offset 0x10-0x17: a counter" in group["text"] and group["pids"] == [child.pid]


def test_what_differs_in_more_bytes_than_asked_for_is_not_near(child):
    area = child.do("new(2 * P)")
    for page in range(2):
        child.do(FILL.format(area=area, page=page, seed=SEED))
    child.do(f"put({area}, range(0, 160, 8), [(1 << 64) - 1] * 20)")
    assert len(found(child, area, 2)[0]) == 0
    pairs, offsets, result, what = found(child, area, 2, few=200)
    assert len(pairs) == 2 and (pairs["words"] == 20).all() and (offsets[0] == [0, 8, 16, 24]).all()
    assert any("more than four places" in one["text"] for one in near_groups(result, what) if one["pages"] == 2)


def test_pages_of_other_content_are_not_near(child):
    area = child.do("new(8 * P)")
    for page in range(8):
        child.do(FILL.format(area=area, page=page, seed=SEED + page * 100_000))
    assert len(found(child, area, 8)[0]) == 0


def test_an_almost_empty_page_is_near_a_page_of_zeros(child):
    area = child.do("new(4 * P)")
    for page in range(4):
        child.do(f"put({area} + {page} * P, [{page} * 1024], [{77 + page} << 40])")
    pairs, _, _, _ = found(child, area, 4)
    assert len(pairs) == 4 and (pairs["other_process"] == near.ZERO).all() and (pairs["bytes"] == 1).all()


@pytest.mark.parametrize("kind", ["pointer", "time", "malloc", "counter", "data"])
def test_what_differs_is_guessed_from_its_value(child, kind):
    here = child.do("new(8 * P)")
    words = {
        "pointer": [here + 16 * page for page in range(6)],
        "time": [int(time.time()) * 10**9 + page * 10**7 for page in range(6)],
        "malloc": [0x1001 + 32 * page for page in range(6)],
        "counter": [40_000 + page for page in range(6)],
        "data": [0xABCDEF << 40 | page for page in range(6)],
    }
    area = alike(child, 6, 0x108 if kind == "malloc" else 0x100, words[kind])
    pairs, _, _, _ = found(child, area, 6)
    assert [KINDS[k] for k in pairs["kind"]] == [kind] * 6


def test_a_page_may_be_near_one_of_another_process_that_is_not_asked_about(child):
    area = alike(child, 1, 0x20, [1 << 33])
    with Living() as other:
        alike(other, 1, 0x20, [1 << 34])
        result = find_near(capture_memory([child.pid, other.pid], samples=1), about=[child.pid])
    [pair] = result.pairs[result.pairs["addr"] == area]
    assert pair["process"] == 0 and pair["other_process"] == 1
    assert (result.pairs["process"] == 0).all()


def test_looking_for_near_pages_makes_none(child):
    area = alike(child, 4, 0, range(1 << 20, (1 << 20) + 4))
    child.do("new(1 << 40)")
    child.rest()
    before = footprint(child.pid)
    assert len(found(child, area, 4)[0]) == 4
    assert footprint(child.pid) == before


def test_of_too_many_contents_some_are_left_out_and_that_is_said(child):
    area = alike(child, 20, 0x10, range(1 << 20, (1 << 20) + 20))
    _, _, result, _ = found(child, area, 20, most=100)
    assert any("only every" in note for note in result.notes)


def test_a_process_that_has_ended_has_no_near_pages():
    with Living() as child:
        alike(child, 4, 0, range(1 << 20, (1 << 20) + 4))
        what = capture_memory([child.pid], samples=1)
    result = find_near(what)
    assert len(result.pairs) == 0 and result.histogram.sum() == 0


def test_only_live_processes_can_be_read_again():
    what = memory(process(1, Area([5])))
    with pytest.raises(ValueError, match="live"):
        find_near(MemoryCapture(what.processes, what.nr_contents, machine={"kind": "core"}))
    with pytest.raises(ValueError, match="few"):
        find_near(what, few=0)


def test_pages_that_a_hash_takes_for_equal_are_told_apart_by_their_bytes(child, monkeypatch):
    """With a hash that finds all blocks equal pairs are still only those whose bytes are."""
    area = alike(child, 4, 0x10, range(1 << 20, (1 << 20) + 4))
    monkeypatch.setattr(near._Contents, "hash_blocks", lambda self, progress: np.ones((len(self.page), 16), np.uint64))
    pairs, _, _, _ = found(child, area, 4)
    assert (pairs["bytes"] <= near.FEW).all()
