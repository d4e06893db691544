"""What a full scan of the model had to do, counted: each kind of visit where it is known by construction."""

import numpy as np
import pytest

from ksmwalk import Host
from ksmwalk.estimates.work import count_full_scan, mean_prefix
from ksmwalk.ksm.costs import WORK_DTYPE

P = 4096


def scanned(host, keys=None, advice="nohugepage"):
    mm = host.new_mm()
    addr = mm.mmap(len(keys) * P + (2 << 20))
    addr = -(-addr // (2 << 20)) * (2 << 20)
    mm.madvise(addr, len(keys) * P, advice)
    mm.populate(addr, len(keys) * P, np.asarray(keys, np.uint64))
    mm.madvise(addr, len(keys) * P, "mergeable")
    return mm, addr


def counts(host, **more):
    row = count_full_scan(host, **more)
    assert row.dtype == WORK_DTYPE and row.shape == ()
    shown = {name: row[name].item() for name in row.dtype.names if row[name]}
    for name in ("batches", "huge", "ptes", "tables", "holes"):
        shown.pop(name, None)
    return shown


def test_unique_pages_are_noted_then_searched_for_then_skipped():
    host = Host(1 << 14)
    scanned(host, range(1, 1001))
    assert counts(host) == {"visits": 1000, "first": 1000, "changed": 1000}
    for _ in range(3):
        assert counts(host) == {
            "visits": 1000, "stable_searches": 1000, "unstable_searches": 1000, "unstable_items": 1000,
        }  # fmt: skip
    assert counts(host) == {"skipped": 1000}


def test_pairs_merge_and_a_third_joins_them():
    host = Host(1 << 14)
    host.ksm.smart_scan = 0
    scanned(host, [*range(1, 501), *range(1, 501)])
    counts(host)
    assert counts(host) == {
        "visits": 1000, "stable_searches": 1000, "stable_nodes": 250, "stable_pages": 250, "unstable_searches": 1000,
        "unstable_items": 500, "merges": 500,
    }  # fmt: skip
    assert counts(host) == {"visits": 1000, "merged": 1000, "stable_nodes": 500, "stable_pages": 500}
    scanned(host, range(1, 501))
    assert counts(host) == {"visits": 1500, "merged": 1000, "first": 500, "changed": 500, "stable_nodes": 500, "stable_pages": 500}
    assert counts(host) == {
        "visits": 1500, "merged": 1000, "stable_searches": 500, "stable_hits": 500, "stable_nodes": 500, "stable_pages": 500,
    }  # fmt: skip


def test_empty_pages_become_the_zero_page_and_their_items_are_freed():
    host = Host(1 << 14)
    host.ksm.use_zero_pages = 1
    scanned(host, [0] * 300)
    counts(host)
    assert counts(host) == {"visits": 300, "zeroed": 300}
    assert counts(host)["freed"] == 300


def test_changing_pages_are_noted_again():
    host = Host(1 << 14)
    mm, addr = scanned(host, range(1, 101))
    counts(host)
    mm.write(addr, np.arange(1000, 1050, dtype=np.uint64))
    row = counts(host)
    assert row["changed"] == 50 and row["stable_searches"] == 50 and "first" not in row


def test_what_fork_shares_with_a_ksm_page_is_neither_searched_for_nor_merged():
    host = Host(1 << 14)
    mm, _ = scanned(host, [7] * 2 + [8] * 2)
    mm.fork()
    assert counts(host)["first"] == 8
    row = counts(host)
    assert row["merges"] == 2 and row["merged"] == 2 and row["stable_hits"] == 2 and row["stable_searches"] == 6


def test_a_huge_page_that_is_split_counts_once():
    host = Host(1 << 14)
    host.thp = "always"
    keys = np.arange(1, 1025, dtype=np.uint64)
    keys[512] = keys[0]
    scanned(host, keys, "hugepage")
    first = count_full_scan(host)
    assert first["huge"] == pytest.approx(1024, abs=2) and first["ptes"] == 0
    row = count_full_scan(host)
    assert row["splits"] == 2 and row["merges"] == 1


def test_batches_follow_from_the_tunable_or_from_what_is_asked():
    host = Host(1 << 14)
    scanned(host, range(1, 1001))
    assert count_full_scan(host)["batches"] == 11
    assert count_full_scan(host, pages_to_scan=500)["batches"] == 3
    with pytest.raises(ValueError, match="pages_to_scan 0"):
        count_full_scan(host, pages_to_scan=0)


def test_holes_and_ptes_on_the_way_are_counted():
    host = Host(1 << 14)
    mm = host.new_mm()
    addr = -(-mm.mmap(1 << 30) // (2 << 20)) * (2 << 20)
    mm.write_at(np.uint64(addr) + np.arange(10, dtype=np.uint64) * np.uint64(4 << 20), np.arange(1, 11, dtype=np.uint64))
    mm.madvise(addr, 40 << 20, "mergeable")
    row = count_full_scan(host)
    assert row["visits"] == 10 and row["huge"] == 0
    assert row["ptes"] == 10 * 511 and row["holes"] >= 9 and row["tables"] >= 9


def test_the_prefix_of_pages_that_are_compared():
    pages = np.zeros((100, P), np.uint8)
    pages[:, 1000] = np.arange(100)
    assert mean_prefix(pages) == 1000
    pages[:, 0] = np.arange(100)
    assert mean_prefix(pages) == 0
    assert mean_prefix(pages[:1]) == 0 and mean_prefix(pages[:0]) == 0
