"""Why pages are not merged, on a real process beside the machine's real ksmd: what is said, against what ksmd then does."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from living import Living

from ksmwalk.estimates.answers import answers
from ksmwalk.estimates.why import Reason, explain_pages
from ksmwalk.kernel import knobs
from ksmwalk.proc.child import ChildError
from ksmwalk.sources.contents import capture_memory
from ksmwalk.sources.second_look import look_again

REASON = knobs.unusable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
HUGE_SLEEP = (4_000_000_000, 4_000_000_001)
_LONGEST = 30.0


@pytest.fixture
def ksm():
    try:
        with knobs.taken(lambda text: None, wait=300):
            knobs.reset()
            yield
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def child(ksm):
    with Living() as living:
        yield living


def marked(child, words):
    """A marked area with a word at the head of each page, a page each."""
    area = child.do(f"new({len(words)} * P)")
    child.do(f"put({area}, range(0, {len(words)} * P, P), {list(words)})")
    child.do(f"call('madvise', {area}, {len(words)} * P, MERGEABLE)")
    return area


def run_ksmd(scans, pages=10_000):
    """Let ksmd make some full scans more, as fast as it can."""
    knobs.write("pages_to_scan", pages)
    knobs.write("sleep_millisecs", 0)
    goal = int(knobs.read("full_scans")) + scans
    knobs.write("run", 1)
    wait_for(lambda: int(knobs.read("full_scans")) >= goal)
    knobs.write("run", 0)


def wait_for(what):
    end = time.monotonic() + _LONGEST
    while not what():
        assert time.monotonic() < end, "ksmd did not come to it"
        time.sleep(0.005)


def one_batch(pages):
    """Let ksmd make one batch, and leave it running and asleep."""
    before = int(knobs.read("pages_scanned"))
    knobs.write("pages_to_scan", pages)
    knobs.write("sleep_millisecs", HUGE_SLEEP[knobs.read("sleep_millisecs") == str(HUGE_SLEEP[0])])
    knobs.write("run", 1)
    wait_for(lambda: int(knobs.read("pages_scanned")) >= before + pages)


def explained(child, ages=True, **options):
    begin = time.monotonic()
    what = capture_memory([child.pid], samples=1)
    second = look_again(what, since=begin, **options)
    if not ages:
        second.ages.clear()
    return explain_pages(what, second=second)


def of_area(why, area, pages):
    """How many pages of an area have which reason."""
    one = why.capture.processes[0]
    inside = (one.addr >= area) & (one.addr < area + pages * 4096)
    return Counter(Reason(reason) for reason in why.reasons[0][inside])


def test_what_waits_for_ksm_to_be_switched_on_merges_when_it_is(child):
    area = marked(child, [5] * 20 + list(range(100, 110)))
    assert of_area(explained(child), area, 30) == {Reason.OFF: 20, Reason.UNIQUE: 10}
    run_ksmd(3)
    assert of_area(explained(child), area, 30) == {Reason.MERGED: 20, Reason.UNIQUE: 10}


def test_the_scan_has_come_as_far_as_the_items_say(child):
    area = marked(child, [5] * 40)
    one_batch(15)
    why = explained(child)
    assert of_area(why, area, 40) == {Reason.SECOND_PASS: 15, Reason.NOT_SCANNED: 25}
    said = next(one for one in answers(why) if one.reason is Reason.NOT_SCANNED)
    assert "ksm_rmap_items 15 of 40" in said.figure


def test_what_smart_scan_passes_over_is_not_merged_by_the_next_scan(child):
    """Pages that were unique for twelve scans, and are equal now."""
    area = marked(child, range(100, 120))
    run_ksmd(15)
    child.do(f"put({area}, range(0, 20 * P, P), [5] * 20)")
    knobs.write("pages_to_scan", 1)
    knobs.write("sleep_millisecs", HUGE_SLEEP[0])
    knobs.write("run", 1)
    # at the present speed, set a moment ago, nobody could have been met fifteen times
    why = explained(child, ages=False)
    assert of_area(why, area, 20) == {Reason.SMART_SCAN: 20}
    assert "passes at a time" in next(one for one in answers(why) if one.reason is Reason.SMART_SCAN).figure
    run_ksmd(30)
    assert of_area(explained(child), area, 20) == {Reason.MERGED: 20}


def test_zero_pages_that_ksm_placed_are_told_from_others(child):
    knobs.write("use_zero_pages", 1)
    area = marked(child, [0] * 12)
    run_ksmd(3)
    assert of_area(explained(child), area, 12) == {Reason.ZERO_PLACED: 12}


def test_one_page_is_left_over_at_the_limit_and_ksmd_leaves_it(child):
    assert knobs.write("max_page_sharing", 2) == 0
    area = marked(child, [5] * 5)
    run_ksmd(6)
    knobs.write("pages_to_scan", 1)
    knobs.write("sleep_millisecs", HUGE_SLEEP[0])
    knobs.write("run", 1)
    why = explained(child)
    assert of_area(why, area, 5) == {Reason.MERGED: 4, Reason.LIMIT: 1}
    said = {one.reason: one.figure for one in answers(why)}
    assert "max_page_sharing 2" in said[Reason.LIMIT] and "2 in 1 chains" in said[Reason.MERGED]


def test_a_pinned_page_is_one_that_ksmd_refuses_for_as_many_passes_as_asked_for(child):
    knobs.write("smart_scan", 0)
    area = marked(child, [5, 5, 5, 6, 6])
    child.do("ends = os.pipe()")
    child.do(f"vector = (ctypes.c_ulong * 2)({area} + 3 * P, P)")
    assert child.do("libc.vmsplice(ends[1], vector, 1, 0)") == 4096
    knobs.write("pages_to_scan", 1000)
    knobs.write("sleep_millisecs", 200)
    begin = time.monotonic()
    what = capture_memory([child.pid], samples=1)
    knobs.write("run", 1)
    why = explain_pages(what, second=look_again(what, since=begin, passes=4))
    # the last page has nobody to merge with but the pinned one: a merge begun with it is undone at every pass
    told = of_area(why, area, 5)
    assert told == {Reason.MERGED: 3, Reason.REFUSED: 2}, why.notes
    assert why.figures["second_look_passes"] >= 4
    said = next(one for one in answers(why) if one.reason is Reason.REFUSED)
    assert "in no file" in said.figure and "0 of 2 have mappings beyond" in said.figure


def test_a_huge_page_that_was_built_again_over_merged_pages_is_told(child):
    """Two of 512 pages merge, which splits the huge page; then it is collapsed again, as khugepaged does."""
    huge = child.do("new(M, align=M)")
    child.do(f"call('madvise', {huge}, M, 14)")
    child.do(f"put({huge}, range(0, M, P), range(100, 612))")
    child.do(f"call('madvise', {huge}, M, MERGEABLE)")
    small = marked(child, [100, 101])
    run_ksmd(4)
    assert of_area(explained(child), small, 2) == {Reason.MERGED: 2}
    # running, and asleep: what it met next would be merged again at once
    one_batch(1)
    try:
        child.do(f"call('madvise', {huge}, M, 25)")  # MADV_COLLAPSE
    except ChildError as error:
        pytest.skip(f"the kernel does not collapse: {error.why}")
    what = capture_memory([child.pid], samples=1)
    second = look_again(what)
    second.khugepaged["pages_collapsed"] = max(1, second.khugepaged.get("pages_collapsed", 0))
    second.ages.clear()
    told = of_area(explain_pages(what, second=second), huge, 512)
    assert told == {Reason.UNIQUE: 510, Reason.KHUGEPAGED: 2}
