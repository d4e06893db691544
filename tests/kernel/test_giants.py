"""Few pages in very much address space: work counts, costs fitted to scans, and scans by this machine's ksmd."""

import contextlib
import os

import pytest

from ksmwalk.kernel import giants, knobs
from ksmwalk.kernel.giants import SMALL, Giant, costs_of, predicted, work_of

BEFORE, AFTER = "6.12.43", "6.12.117"


def test_pages_are_spread_evenly():
    assert list(Giant(1 << 30).offsets()) == [1 << 29]
    assert list(Giant(16 * 4096, 4).offsets()) == [n * 4096 for n in (2, 6, 10, 14)]
    assert len(Giant(8 << 20, 2048).offsets()) == 2048


@pytest.mark.parametrize("giant", [*SMALL, Giant(1 << 40)])
def test_before_each_address_is_looked_up_and_after_tables_are_walked(giant):
    before, after = work_of(giant, BEFORE), work_of(giant, AFTER)
    assert before.lookups == giant.span // 4096 and after.lookups == 0
    assert before.pages == after.pages == giant.pages
    assert after.entries < 1100 * giant.pages + 1100


def test_where_it_lies_decides_how_many_entries_there_are():
    aligned, across = (work_of(Giant(1 << 30), AFTER, address).entries for address in (1 << 39, (1 << 39) - (1 << 29)))
    assert aligned != across


def test_costs_come_out_of_the_scans_that_they_went_into():
    costs = {"scan": 6e-5, "page": 2e-5, "lookup": 1.5e-7, "entry": 5e-9}
    for kernel in (BEFORE, AFTER):
        works = [work_of(giant, kernel) for giant in SMALL]
        found, left = costs_of([(work, predicted(work, costs)) for work in works])
        assert left < 1e-6
        large = work_of(Giant(1 << 40), kernel)
        assert predicted(large, found) == pytest.approx(predicted(large, costs), rel=1e-6)


def test_no_cost_is_negative_and_what_is_left_is_said():
    works = [work_of(giant, AFTER) for giant in SMALL]
    found, left = costs_of([(work, 1e-3) for work in works])
    assert all(cost >= 0 for cost in found.values()) and found["lookup"] == 0
    assert left == pytest.approx(max(abs(predicted(work, found) / 1e-3 - 1) for work in works))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not knobs.KSM.is_dir(), reason="needs root and a kernel with KSM")
def test_this_machines_ksmd_scans_one_and_one_too_large_is_said():
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(knobs.taken(wait=60))
        except knobs.KernelUnavailable as reason:
            pytest.skip(str(reason))
        found = giants.scanned(Giant(1 << 30, 3), 20)
        with pytest.raises(knobs.KernelUnavailable, match="no process with"):
            giants.scanned(Giant(1 << 60), 20)
    assert len(found.seconds) == giants.SCANS and 0 < found.median < 5 and found.visits in (3, None)
    assert found.address > 0
