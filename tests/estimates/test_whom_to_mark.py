"""Whether to switch merging on, for whom, at which settings."""

from __future__ import annotations

import dataclasses

import pytest
from servers import COSTS, P, memory

from ksmwalk.estimates.advice import advise, by_domain, overhead, setting_for, too_little
from ksmwalk.estimates.estimate import estimate

UNIQUE = "of {} pages no two are equal but for those that fork shares already"


def advised(what, **options):
    found = estimate(what, costs=COSTS, **options)
    return found, advise(found)


def test_those_that_share_are_to_be_marked_and_no_others():
    found, advice = advised(memory(("web", 2000, 10, 0), ("alone", 0, 3000, 0), ("web", 2000, 10, 0)))
    assert advice.worth and advice.chosen == [0, 2] and advice.names == [("web", 2)]
    of_these = advice.estimate.expected.counters
    assert of_these["freed_bytes"] == found.expected.counters["freed_bytes"] == 2000 * P
    assert of_these["rmap_items"] == 4020 and advice.anonymous_bytes == 4020 * P


def test_where_a_partner_was_left_out_as_too_small_a_part_all_are_marked():
    # the big one gives too small a part of its own memory, but without it nobody has anyone to share with
    _, advice = advised(memory(("big", 1500, 25_000, 0), ("small", 1500, 0, 0)))
    assert sorted(advice.chosen) == [0, 1]
    assert advice.estimate.expected.counters["freed_bytes"] == 1500 * P


@pytest.mark.parametrize(
    "servers, options, why",
    [
        ([("a", 0, 500, 0), ("b", 0, 500, 0)], {}, UNIQUE.format("1,000")),
        ([("a", 0, 500, 0)], {"fork": 3}, UNIQUE.format("2,000")),
        ([("a", 5, 9000, 0), ("b", 5, 9000, 0)], {}, "KSM itself would need more than comes free"),
        ([("a", 300, 0, 0), ("b", 300, 0, 0)], {}, "that is too little"),
    ],
)
def test_it_says_why_it_is_not_worth_it(servers, options, why):
    _, advice = advised(memory(*servers, **options))
    assert (advice.worth, advice.why) == (False, why)


def test_nothing_is_marked():
    _, advice = advised(memory(("a", 300, 0, 0)), mark="marked")
    assert advice.why == "nothing that is present is marked for merging" and not advice.chosen and advice.best is None


def test_of_what_is_marked_nobody_is_left_out():
    _, advice = advised(memory(("web", 2000, 0, 0), ("web", 2000, 0, 0), ("alone", 0, 100, 0), marked=True))
    assert advice.estimate.mark == "marked" and advice.chosen == [0, 1, 2]


def test_settings_that_are_good_enough_stay():
    found, advice = advised(memory(("web", 2000, 0, 0), ("web", 2000, 0, 0)))
    assert (advice.best.pages_to_scan, advice.best.sleep_millisecs) == (100, 20)
    assert advice.best == advice.settings[0] == setting_for(found, 100, 20)


def test_settings_at_which_a_pass_would_take_for_ever_are_replaced():
    _, advice = advised(memory(("web", 2000, 0, 0), ("web", 2000, 0, 0)), knobs={"sleep_millisecs": 3_600_000})
    assert advice.asked.pass_seconds > 86400
    assert advice.best.sleep_millisecs == 20 and advice.best.pass_seconds < 60
    assert advice.best.cpu_while_merging < 0.05


def test_of_much_memory_more_pages_are_to_be_scanned_so_that_a_pass_ends_in_time():
    found, _ = advised(memory(("web", 9000, 0, 0), ("web", 9000, 0, 0)))
    found.expected.work["visits"] *= 1000  # as much as 69 GiB
    from ksmwalk.estimates.advice import settings

    some, best = settings(found)
    assert some[1].pages_to_scan > some[2].pages_to_scan > some[3].pages_to_scan
    assert [one.pass_seconds for one in some[2:4]] == pytest.approx([300, 1200], rel=0.1)
    assert all(one.pass_seconds <= limit * 1.001 for one, limit in zip(some[2:5], (300, 1200, 3600), strict=True))
    assert best.cpu_while_merging <= 0.05 < some[1].cpu_while_merging


def test_what_ksm_needs_itself_is_rmap_items_and_nodes():
    found, _ = advised(memory(("web", 100, 50, 0), ("web", 100, 0, 0)))
    assert overhead(found) == 250 * 64 + 100 * 64


def test_a_narrower_domain_never_frees_more():
    found, _ = advised(memory(("web", 500, 10, 20), ("web", 500, 10, 20), ("web", 500, 10, 0), ("db", 0, 50, 30)))
    freed = by_domain(found)
    assert list(freed) == ["all", "user", "container", "process"]
    # pages of zeros are one content for all; the first and third process are of one user
    assert freed["all"] == freed["container"] == found.expected.counters["freed_bytes"] == (1000 + 69) * P
    assert freed["user"] == (500 + 69) * P and freed["process"] == 69 * P


def test_the_advice_goes_by_the_tunables_that_were_asked_about():
    _, advice = advised(memory(("web", 2000, 0, 90), ("alone", 0, 99, 0), ("web", 2000, 0, 0)), knobs={"use_zero_pages": 1})
    assert advice.estimate.expected.counters["ksm_zero_pages"] == 90


def test_what_is_set_now_is_the_machine_s_and_what_was_asked_about_is_told_apart():
    found, advice = advised(memory(("web", 2000, 0, 0), ("web", 2000, 0, 0)), knobs={"pages_to_scan": 2000})
    assert advice.settings[:2] == [advice.now, advice.asked]
    assert (advice.now.pages_to_scan, advice.asked.pages_to_scan) == (100, 2000)
    assert found.knobs["pages_to_scan"] == 2000 and len(set(advice.settings)) == len(advice.settings)
    _, advice = advised(memory(("web", 2000, 0, 0), ("web", 2000, 0, 0)), knobs={"pages_to_scan": 100})
    assert advice.asked is None and advice.now == advice.settings[0]


@pytest.mark.parametrize(
    "mem_total, freed, needed, why",
    [
        (24 << 30, 7 << 20, 1 << 20, "that is too little for a machine of 24 GiB"),
        (1 << 30, 7 << 20, 1 << 20, ""),
        (24 << 30, 65 << 20, 1 << 20, ""),
        (0, 7 << 20, 1 << 20, ""),
        (0, 8 << 20, 6 << 20, "KSM itself would need 75% of that"),
        (0, 1 << 20, 0, "that is too little"),
    ],
)
def test_what_is_worth_it_depends_on_the_machine_and_on_what_ksm_needs_itself(mem_total, freed, needed, why):
    assert too_little(freed, needed, mem_total) == why
    assert too_little(freed, needed, mem_total, 200 * freed) == "that is too little"


def test_advice_goes_by_the_machine():
    what = memory(("web", 2000, 0, 0), ("web", 2000, 0, 0))
    what.machine["mem_total"] = 24 << 30
    _, advice = advised(what)
    assert (advice.worth, advice.why) == (False, "that is too little for a machine of 24 GiB")


def test_processes_that_have_only_just_begun_are_not_to_be_marked():
    what = memory(("web", 2000, 0, 0), ("job", 2000, 0, 0), ("web", 2000, 0, 0))
    for one, started in zip(what.processes, (1000, 99_000, 2000), strict=True):
        one.identity = dataclasses.replace(one.identity, started=started)
    found = estimate(what, costs=COSTS)
    assert advise(found, young=120).chosen == [0, 1, 2]  # when it was is not known
    what.machine["uptime"] = 1000.0
    advice = advise(found, young=120)
    assert advice.chosen == [0, 2] and advice.young == 1
    assert advice.estimate.expected.counters["freed_bytes"] == 2000 * P
    assert advise(found).chosen == [0, 1, 2]
