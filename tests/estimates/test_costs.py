"""Costs on disk, and counts times costs: what the stored ones say is what was seen of the real ksmd."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest

from ksmwalk.ksm.costs import FIELDS, WORK_DTYPE, BadCosts, Costs, default_path, design, ksmd_seconds


def row(**counts):
    made = np.zeros((), WORK_DTYPE)
    for name, value in {"batches": 1, **counts}.items():
        made[name] = value
    return made


def ns_a_page(work, costs=None):
    return float(ksmd_seconds(work, costs or Costs())[0]) * 1e9 / int(work["visits"] + work["skipped"])


def searched(n, **more):
    return row(visits=n, stable_searches=n, unstable_searches=n, unstable_items=n, **more)


#: the real ksmd on a quiet machine: pages, work of a full scan, nanoseconds a page from and to
SEEN = [
    (1 << 16, lambda n: row(visits=n, first=n, changed=n), 870, 1470),
    (1 << 18, lambda n: row(visits=n, first=n, changed=n), 680, 1200),
    (1 << 16, lambda n: searched(n), 5300, 6400),
    (1 << 18, lambda n: searched(n), 6700, 8000),
    (1 << 19, lambda n: searched(n), 7400, 8300),
    (1 << 16, lambda n: searched(n, prefix=4088), 11400, 12600),
    (1 << 18, lambda n: searched(n, prefix=4088), 13800, 15200),
    (1 << 19, lambda n: searched(n, prefix=4088), 14800, 16300),
    *(
        (n, lambda n: row(visits=n, stable_searches=n, stable_nodes=n // 4, unstable_searches=n, unstable_items=n // 2,
                          merges=n // 2), 0.95 * ns, 1.05 * ns)
        for n, ns in ((1 << 16, 7900), (1 << 18, 9600), (1 << 19, 10900))
    ),
    *((1 << n, lambda n: row(visits=n, merged=n, stable_nodes=n // 2), 280, 420) for n in (16, 18, 19)),
    *((1 << n, lambda n: row(skipped=n), 235, 280) for n in (16, 18, 19)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SEEN)))
def test_stored_costs_say_what_was_seen(number):
    pages, work, least, most = SEEN[number]
    assert least <= ns_a_page(work(pages)) <= most


def test_a_scan_costs_what_its_counts_cost():
    costs = Costs()
    nothing = float(ksmd_seconds(row(batches=0), costs)[0])
    assert nothing == pytest.approx(costs.scan_ns / 1e9)
    for count, cost in (("batches", "batch_ns"), ("splits", "split_ns"), ("merges", "merge_ns"), ("zeroed", "zero_ns"),
                        ("stable_hits", "hit_ns"), ("ptes", "pte_ns"), ("holes", "hole_ns"), ("freed", "freed_ns")):
        more = float(ksmd_seconds(row(**{"batches": 0, count: 1000}), costs)[0]) - nothing
        assert more == pytest.approx(getattr(costs, cost) / 1e6), count


def test_scans_add_up_and_a_single_row_is_an_array_of_one():
    rows = np.stack([searched(1000), row(skipped=77)])
    each = ksmd_seconds(rows, Costs())
    assert each.shape == (2,) and ksmd_seconds(rows[0], Costs()).tolist() == [each[0]]
    assert design(rows, 10.0).shape == (2, len(FIELDS))
    with pytest.raises(TypeError, match="WORK_DTYPE"):
        ksmd_seconds(np.zeros(3), Costs())


def test_pages_cost_more_in_a_larger_tree_and_less_in_huge_pages():
    small, large = ns_a_page(searched(1 << 12)), ns_a_page(searched(1 << 20))
    assert small < large
    assert ns_a_page(searched(1 << 20, huge=1 << 20)) < large


def test_each_level_costs_more_where_contents_have_chains():
    n = 1 << 14
    plain, chains = (searched(n, stable_nodes=1023, stable_pages=pages) for pages in (1023, 3 * 1023))
    assert ns_a_page(chains) == pytest.approx(ns_a_page(plain) + 2 * 10 * Costs().dup_ns)


def test_small_batches_with_pauses_cost_more_than_one_batch():
    n = 1 << 14
    assert ns_a_page(searched(n, batches=n // 100)) > ns_a_page(searched(n)) + Costs().batch_ns / 100


@pytest.mark.parametrize(("cost", "half", "counts"), [
    ("read_start_ns", 20, lambda n: {"visits": n}),
    ("search_start_ns", 2, lambda n: {"unstable_searches": n}),
    ("merge_start_ns", 20, lambda n: {"merges": n}),
])  # fmt: skip
def test_a_batch_begins_slowly_and_no_more_than_once(cost, half, counts):
    def begun(batches, n):
        work = row(batches=batches, **counts(n))
        slow, quick = (dataclasses.replace(Costs(), **{cost: ns}) for ns in (100_000.0, 0.0))
        return float((ksmd_seconds(work, slow) - ksmd_seconds(work, quick))[0]) * 1e9

    assert begun(1, half) == pytest.approx(50_000)
    assert begun(10, 10 * half) == pytest.approx(500_000)
    assert begun(1, 1 << 20) == pytest.approx(100_000, rel=0.01)
    assert begun(1, 0) == begun(0, 100) == 0


def test_costs_of_a_slower_machine_are_all_as_much_higher():
    costs, work = Costs(), searched(10_000, batches=100, merges=50)
    assert ksmd_seconds(work, costs.scaled(1.5))[0] == pytest.approx(1.5 * ksmd_seconds(work, costs)[0])
    assert costs.scaled(1.5).near_levels == costs.near_levels and costs.scaled(1.0) == costs


def test_costs_come_back_from_disk(tmp_path):
    costs = dataclasses.replace(Costs(), page_ns=123.5, source="measured here", machine="a\x1b machine", date="2026-01-02")
    path = costs.save(tmp_path / "costs.json")
    assert Costs.load(path) == costs
    assert json.loads(path.read_text())["version"] == 3
    assert os.listdir(tmp_path) == ["costs.json"]


def test_without_a_file_the_stored_ones_are_used_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "ksmwalk" / "costs.json"
    assert Costs.load() == Costs() and Costs.load().source == "stored"
    measured = dataclasses.replace(Costs(), source="measured here")
    measured.save()
    assert Costs.load().source == "measured here"
    with pytest.raises(FileNotFoundError):
        Costs.load(tmp_path / "none.json")


def test_a_relative_cache_directory_is_not_heeded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "ksmwalk" / "costs.json"


def changed(**fields):
    data = {"format": "ksmwalk costs", "version": 3, **dataclasses.asdict(Costs()), **fields}
    return {name: value for name, value in data.items() if value is not ...}


@pytest.mark.parametrize(
    "raw, what",
    [
        ("", "no JSON"),
        ("[" * 5000, "no JSON"),
        ("[1, 2]", "no file of costs"),
        (json.dumps({"version": 2}), "no file of costs"),
        (json.dumps(changed(version=1)), "version 1: this ksmwalk reads 3"),
        (json.dumps(changed(version=True)), "version True"),
        (json.dumps(changed(page_ns=...)), "field page_ns is missing"),
        (json.dumps(changed(other=1)), "unknown field 'other'"),
        (json.dumps(changed(page_ns="3")), "page_ns '3': must be a number"),
        (json.dumps(changed(page_ns=-1)), "page_ns -1: must be from 0"),
        (json.dumps(changed(page_ns=math.nan)), "page_ns nan: must be from 0"),
        (json.dumps(changed(page_ns=10**400)), "page_ns"),
        (json.dumps(changed(source="guessed")), "source 'guessed'"),
        (json.dumps(changed(machine=None)), "machine None: must be a text"),
        ('{"format": "' + "x" * (1 << 17), "too long"),
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_refused_with_its_place(tmp_path, raw, what):
    path = tmp_path / "costs.json"
    path.write_text(raw)
    with pytest.raises(BadCosts) as refused:
        Costs.load(path)
    assert str(refused.value).startswith(f"{path}: ") and what in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "costs.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BadCosts, match="no JSON"):
        Costs.load(path)


def test_what_can_not_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = Costs().save(tmp_path / "costs.json")
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left") as refused:
        dataclasses.replace(Costs(), page_ns=1.0).save(path)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["costs.json"]
