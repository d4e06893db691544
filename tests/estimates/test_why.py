"""Why pages are, or are not, merged: each reason shown by memory made up for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from memories import MARKED, PLAIN, Area, memory, process

from ksmwalk.estimates.answers import TITLES, answers
from ksmwalk.estimates.estimate import NothingToMerge
from ksmwalk.estimates.why import ABSENT, MAPPING_DTYPE, Reason, explain_pages, longest_skip
from ksmwalk.sources.contents import MemoryCapture
from ksmwalk.sources.keys import UNKNOWN
from ksmwalk.sources.second_look import Later, SecondLook


def why(*processes, second=None, about=None, **files):
    return explain_pages(memory(*processes, **files), second=second, about=about)


def reasons(*processes, **options):
    """The reasons of the pages of the first process."""
    return [Reason(number) for number in why(*processes, **options).reasons[0]]


def answer(result, reason):
    return next(one for one in answers(result) if one.reason is reason)


def scanned(pages, **more):
    """ksm_stat of a process that ksmd has gone through."""
    return {"ksm_rmap_items": pages, **more}


def look(passes=0, still=(), collapsed=(), merged=(), **more):
    n = max(map(len, (still, collapsed, merged)))
    columns = [np.array([*some, *[False] * (n - len(some))], bool) for some in (still, still[:1], collapsed, merged)]
    return SecondLook(passes=passes, later={0: Later(*columns)}, **more)


def test_a_page_of_ksm_is_merged_whatever_else_may_be_said_of_it():
    one = process(1, Area([5, 5], ksm=True, pfn=[7000, 7000], counts=[2, 2], changes=[1, 1]), stat=scanned(2))
    result = why(one)
    assert [Reason(r) for r in result.reasons[0]] == [Reason.MERGED] * 2
    assert "kpageflags" in answer(result, Reason.MERGED).figure


def test_without_frames_as_many_pages_of_a_mapping_are_merged_as_smaps_says():
    one = process(1, Area([5, 5, 6, 7], ksm=False), frames=False, stat=scanned(4, ksm_merging_pages=2))
    one.vmas[0] = dataclasses.replace(one.vmas[0], ksm=8192)
    result = why(one)
    assert [Reason(r) for r in result.reasons[0]] == [Reason.MERGED, Reason.MERGED, Reason.UNIQUE, Reason.UNIQUE]
    assert any("can't be seen" in note for note in result.notes)


def test_a_kernel_that_calls_every_anonymous_page_ksm_s_is_not_believed():
    one = process(1, Area([5, 5, 6, 7], ksm=True), stat=scanned(4, ksm_merging_pages=0))
    one.vmas[0] = dataclasses.replace(one.vmas[0], ksm=0)
    result = why(one)
    assert [Reason(r) for r in result.reasons[0]] == [Reason.SECOND_PASS] * 2 + [Reason.UNIQUE] * 2
    assert any("every anonymous page" in note for note in result.notes)
    one.vmas[0] = dataclasses.replace(one.vmas[0], ksm=4096)
    assert why(one).totals[Reason.MERGED] == 1


def test_zero_pages_are_ksm_s_up_to_the_number_that_the_process_shows():
    one = process(1, Area([0, 0, 0], zero=True), stat=scanned(0, ksm_zero_pages=2))
    assert reasons(one) == [Reason.ZERO_PLACED, Reason.ZERO_PLACED, Reason.EMPTY]
    assert "ksm_zero_pages 2" in answer(why(one), Reason.ZERO_PLACED).figure


@pytest.mark.parametrize("letter, words", [("sh", "shared memory"), ("ht", "hugetlb"), ("pf", "raw frames"), ("dp", "droppable")])
def test_memory_that_ksm_can_not_take_names_the_letter_that_says_so(letter, words):
    result = why(process(1, Area([5, 5], flags=(*MARKED, letter))))
    assert [Reason(r) for r in result.reasons[0]] == [Reason.NOT_ELIGIBLE] * 2
    assert result.mappings["letter"].tolist() == [letter]
    assert f"{letter} ({words}" in answer(result, Reason.NOT_ELIGIBLE).figure


def test_pages_of_a_file_are_no_anonymous_memory():
    assert reasons(process(1, Area([UNKNOWN, UNKNOWN], file=True))) == [Reason.NOT_ANONYMOUS] * 2


def test_memory_that_is_not_marked_says_how_much_of_it_would_merge():
    result = why(process(1, Area([5, 5, 5, 6], flags=PLAIN)))
    assert [Reason(r) for r in result.reasons[0]] == [Reason.NOT_MARKED] * 4
    assert result.mappings["would_merge"].tolist() == [3]
    said = answer(result, Reason.NOT_MARKED)
    assert "3 of them" in said.figure and "MADV_MERGEABLE" in said.todo
    alone = why(process(1, Area([5, 6], flags=PLAIN)))
    assert answer(alone, Reason.NOT_MARKED).todo.startswith("Nothing")


def test_partners_count_for_what_would_merge_whether_they_are_marked_or_not():
    mine = process(1, Area([5, 6, 7, 7], flags=PLAIN))
    result = why(mine, process(2, Area([5], flags=PLAIN)), process(3, Area([6])), about=[1])
    assert result.mappings["would_merge"].tolist() == [4] and len(result.reasons) == 1
    said = answer(result, Reason.NOT_MARKED).figure
    assert "4 of them (100%) would merge if it were there, 1 of these only if it were there in other processes too" in said
    result = why(mine, process(3, Area([6])), about=[1])
    assert "3 of them (75%) would merge if it were there, and free 8 KiB" in answer(result, Reason.NOT_MARKED).figure


def test_what_would_merge_and_free_nothing_is_not_to_be_marked():
    # each frame has a mapping in a process that was not read, which keeps it
    said = answer(why(process(1, Area([5, 5, 6, 6], flags=PLAIN, counts=[2, 2, 2, 2]))), Reason.NOT_MARKED)
    assert "4 of them (100%) would merge if it were there, but nothing would come free" in said.figure
    assert "fork" in said.figure and said.todo.startswith("Nothing: ")


def test_a_page_that_was_not_read_is_not_said_to_be_unique():
    assert reasons(process(1, Area([UNKNOWN, 3]))) == [Reason.UNREAD, Reason.UNIQUE]


def test_a_page_that_changes_says_how_fast():
    result = why(process(1, Area([5, 5, 5], changes=[1, 0, 0])))
    assert Reason(result.reasons[0][0]) is Reason.CHANGING
    assert "1 of 1 comparisons within 2 s, at least 0.5 stores" in answer(result, Reason.CHANGING).figure


def test_what_would_merge_waits_for_ksm_to_be_switched_on():
    assert reasons(process(1, Area([5, 5, 6])), run=0) == [Reason.OFF, Reason.OFF, Reason.UNIQUE]
    assert reasons(process(1, Area([5, 5, 6])), run=2) == [Reason.UNMERGING, Reason.UNMERGING, Reason.UNIQUE]
    assert "run is 2" in answer(why(process(1, Area([5, 5])), run=2), Reason.UNMERGING).figure


def test_what_lies_behind_the_items_of_the_first_pass_has_not_been_scanned():
    one = process(1, Area([5, 6, 5, 6]), stat=scanned(2))
    result = why(one)
    assert [Reason(r) for r in result.reasons[0]] == [Reason.SECOND_PASS] * 2 + [Reason.NOT_SCANNED] * 2
    said = answer(result, Reason.NOT_SCANNED)
    assert "ksm_rmap_items 2 of 4" in said.figure and "pages_to_scan 100" in said.figure


def test_when_the_scan_comes_follows_from_the_tunables():
    one = process(1, Area([5] * 4))
    slow = why(one, pages_to_scan=1, sleep_millisecs=60_000, pages_unshared=1000)
    assert slow.figures["pass_seconds"] == pytest.approx(1000 * 60, rel=1e-3)
    assert "16.7 hours" in answer(slow, Reason.NOT_SCANNED).figure
    never = why(one, pages_to_scan=0)
    assert never.figures["pass_seconds"] is None and "never" in answer(never, Reason.NOT_SCANNED).figure
    seen = why(one, pages_unshared=1000, second=SecondLook(scanned_per_second=500.0))
    assert seen.figures["pass_seconds"] == 2.0 and "pages_scanned shows" in answer(seen, Reason.NOT_SCANNED).figure


def test_a_page_that_was_visited_waits_for_the_second_pass():
    result = why(process(1, Area([5, 5]), stat=scanned(2)), full_scans=1)
    assert [Reason(r) for r in result.reasons[0]] == [Reason.SECOND_PASS] * 2


def test_an_old_page_is_passed_over_by_smart_scan_for_as_long_as_its_age_says():
    one = process(1, Area([5, 5]), stat=scanned(2))
    result = why(one, full_scans=10, pages_skipped=7)
    assert [Reason(r) for r in result.reasons[0]] == [Reason.SMART_SCAN] * 2
    assert "up to 4 passes at a time" in answer(result, Reason.SMART_SCAN).figure
    assert reasons(one, full_scans=10, pages_skipped=7, smart_scan=0) == [Reason.SECOND_PASS] * 2
    assert reasons(one, full_scans=10, pages_skipped=0) == [Reason.SECOND_PASS] * 2
    # the process is younger than that
    young = SecondLook(scanned_per_second=1.0, ages={1: 5.0})
    assert reasons(one, full_scans=10, pages_skipped=7, second=young) == [Reason.SECOND_PASS] * 2


def test_skips_are_those_of_smart_scan():
    """The fourth to the tenth visit come in scans 4 6 9 14 23 32 41: what is left out between them."""
    visits = [4, 6, 9, 14, 23, 32, 41]
    assert [longest_skip(scan) for scan in visits[1:]] == [later - scan - 1 for scan, later in
                                                           zip(visits[1:], [*visits[2:], 50], strict=True)]  # fmt: skip
    assert longest_skip(4) == 0 and longest_skip(5) == 1


def test_a_page_that_should_have_merged_by_the_second_look_is_refused():
    one = process(1, Area([5, 5, 6], counts=[1, 3, 1]), stat=scanned(3))
    result = why(one, smart_scan=0, second=look(3, still=[True, True, True], pinned={1: 8192}))
    assert [Reason(r) for r in result.reasons[0]] == [Reason.REFUSED, Reason.REFUSED, Reason.UNIQUE]
    said = answer(result, Reason.REFUSED).figure
    assert "not merged in 3 passes" in said and "1 were merged and undone" in said
    assert "1 of 2 have mappings beyond those read" in said and "8 KiB" in said
    # smart scan may have passed them over as often
    assert reasons(one, second=look(3, still=[True, True, True])) == [Reason.SECOND_PASS] * 2 + [Reason.UNIQUE]
    assert reasons(one, second=look(10, still=[True, True, True]))[:2] == [Reason.REFUSED] * 2


def test_a_huge_page_whose_contents_have_equals_was_built_again_by_khugepaged():
    pages = Area(range(1, 513), huge=True, pfn=range(1 << 16, (1 << 16) + 512))
    one = process(1, pages, Area([1, 2]), stat=scanned(514, ksm_merging_pages=2))
    seen = SecondLook(khugepaged={"pages_collapsed": 3})
    result = why(one, full_scans=9, second=seen)
    assert [Reason(r) for r in result.reasons[0][:3]] == [Reason.KHUGEPAGED, Reason.KHUGEPAGED, Reason.UNIQUE]
    assert "3 huge pages" in answer(result, Reason.KHUGEPAGED).figure
    # without anything that khugepaged has built, or in its first passes, it only waits
    assert Reason(why(one, full_scans=9).reasons[0][0]) is Reason.SECOND_PASS
    assert Reason(why(one, full_scans=1, second=seen).reasons[0][0]) is Reason.SECOND_PASS


def test_a_page_that_is_on_another_frame_of_a_huge_page_by_now_was_collapsed():
    one = process(1, Area([5, 5]), stat=scanned(2))
    assert reasons(one, second=look(2, collapsed=[True, False])) == [Reason.KHUGEPAGED, Reason.SECOND_PASS]


def test_what_was_merged_by_the_second_look_is_merged():
    result = why(process(1, Area([5, 5, 6]), stat=scanned(3)), second=look(2, merged=[True, True, False]))
    assert [Reason(r) for r in result.reasons[0]] == [Reason.MERGED, Reason.MERGED, Reason.UNIQUE]
    assert "2 of them since the first look" in answer(result, Reason.MERGED).figure


def test_one_page_too_many_is_left_over_at_the_sharing_limit():
    result = why(process(1, Area([5] * 5), stat=scanned(5)), max_page_sharing=2)
    assert result.totals == {Reason.SECOND_PASS: 4, Reason.LIMIT: 1}
    assert "max_page_sharing 2" in answer(result, Reason.LIMIT).figure


def test_pages_that_fork_shares_already_have_nothing_to_save():
    parent, child = process(1, Area([5], pfn=[9000], counts=[2])), process(2, Area([5], pfn=[9000], counts=[2]))
    assert reasons(parent, child, about=[1]) == [Reason.FORK_SHARED]
    assert reasons(parent, child, process(3, Area([5])), about=[1]) == [Reason.NOT_SCANNED]


def test_an_equal_page_in_memory_that_is_not_marked_is_no_partner():
    result = why(process(1, Area([5, 6])), process(2, Area([5], flags=PLAIN)), about=[1])
    assert [Reason(r) for r in result.reasons[0]] == [Reason.UNMARKED_EQUAL, Reason.UNIQUE]
    assert "Mark the other" in answer(result, Reason.UNMARKED_EQUAL).todo


def test_a_page_without_an_equal_is_unique_and_says_among_how_many():
    result = why(process(1, Area([5])), process(2, Area([6, 7])), about=[1])
    assert [Reason(r) for r in result.reasons[0]] == [Reason.UNIQUE]
    assert "among 3 pages of 2 processes" in answer(result, Reason.UNIQUE).figure


def test_addresses_without_a_page_are_swapped_never_written_or_not_present():
    one = process(1, Area([5], pages=10, swap=3 * 4096), Area([], pages=7))
    result = why(one)
    assert result.totals == {Reason.UNIQUE: 1, Reason.SWAPPED: 3, Reason.NOT_PRESENT: 6, Reason.NEVER_WRITTEN: 7}
    assert "1 of 17 pages of the mappings are present" in answer(result, Reason.NOT_PRESENT).figure


def test_every_page_has_one_reason_and_every_reason_words():
    one = process(1, Area([5, 5, 6], changes=[0, 0, 1]), Area([5], flags=PLAIN, pages=4), Area([0], zero=True))
    result = why(one, process(2, Area([5])))
    present = sum(pages for reason, pages in result.totals.items() if reason not in ABSENT)
    assert present == sum(one.nr_pages for one in result.capture.processes) == int(result.mappings["present"].sum())
    assert result.mappings.dtype == MAPPING_DTYPE and set(TITLES) == set(Reason)
    for said in answers(result):
        assert said.figure and said.title and said.pages == result.totals[said.reason]
        assert said.to_json()["reason"] == said.reason.name.lower()


def test_nobody_or_nothing_read_is_an_error():
    with pytest.raises(NothingToMerge):
        why(process(1, Area([5])), about=[2])
    one = process(1, Area([5]))
    one.key = None
    with pytest.raises(NothingToMerge):
        explain_pages(MemoryCapture([one], 1))
