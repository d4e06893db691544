"""Arenas that fill up: the last record is given out, and none beyond it."""

import numpy as np
import pytest

from ksmwalk import Host
from ksmwalk.errors import ArenaFullError

PAGE = 4096
BASE = 1 << 32
GIB = 1 << 30


def one_area_more(host, mm, number):
    mm.mmap(PAGE, BASE + 2 * number * PAGE)


def one_process_more(host, mm, number):
    host.new_mm()


def tables_for_another_gib(host, mm, number):
    mm.mmap(PAGE, BASE + number * GIB)
    mm.write(BASE + number * GIB, 1)


def scan_of_one_more_page(host, mm, number):
    mm.mmap(PAGE, BASE + 2 * number * PAGE)
    mm.madvise(BASE + 2 * number * PAGE, PAGE, "mergeable")
    mm.write(BASE + 2 * number * PAGE, number)
    host.ksm.do_scan(20)


def merge_of_two_more_pages(host, mm, number):
    start = BASE + 3 * number * PAGE
    mm.mmap(2 * PAGE, start)
    mm.madvise(start, 2 * PAGE, "mergeable")
    mm.write(start, np.full(2, number + 1, np.uint64))
    for _ in range(3):
        host.ksm.do_scan(100)


@pytest.mark.parametrize(
    "arena, use",
    [
        ("vmas", one_area_more),
        ("mms", one_process_more),
        ("rows", tables_for_another_gib),
        ("items", scan_of_one_more_page),
        ("stable", merge_of_two_more_pages),
    ],
)
def test_the_last_record_of_an_arena_is_given_out_and_none_beyond_it(arena, use):
    host = Host(4096)
    host.ksm.smart_scan = 0
    host.ksm.run = 1
    mm = host.new_mm()
    ctl = host.world.arrays["ctl"]
    ctl[f"{arena}_cap"] = ctl[f"{arena}_used"] + 3
    with pytest.raises(ArenaFullError):
        for number in range(12):
            use(host, mm, number)
    assert ctl[f"{arena}_used"][0] == ctl[f"{arena}_cap"][0]
