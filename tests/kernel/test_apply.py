"""Tunables put into a made-up KSM, all or none of them, and taken back."""

from __future__ import annotations

import errno
import json
import os

import pytest
from fakekernel import FakeKernel, an_estimate

from ksmwalk.kernel import applied, apply, knobs, state
from ksmwalk.ksm import sysfs
from ksmwalk.proc.ksmstate import read_ksm_state

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    path = tmp_path / "machine"
    path.mkdir(mode=0o755)
    return FakeKernel(path, monkeypatch)


def wanted(**values):
    return {name: str(value) for name, value in values.items()}


def do(said=None, **values):
    return apply.apply(wanted(**values), {"expected": {"pages_sharing": 5.0}}, (said if said is not None else []).append)


def test_the_estimates_best_setting_and_its_tunables_are_wanted_and_the_given_ones_before_both():
    estimate = an_estimate(knobs_={"use_zero_pages": 1, "pages_to_scan": 7, "advisor_mode": "none"})
    found = apply.wanted_tunables(estimate, {"sleep_millisecs": "50"})
    assert found["pages_to_scan"] == "2000" and found["use_zero_pages"] == "1" and found["sleep_millisecs"] == "50"
    assert "run" not in found and "advisor_mode" not in found


def test_with_the_advisor_asked_for_pages_to_scan_is_its_own():
    found = apply.wanted_tunables(an_estimate(), {"advisor_mode": "scan-time"})
    assert "pages_to_scan" not in found and found["advisor_mode"] == "scan-time"
    with pytest.raises(ValueError, match="pages_to_scan"):
        apply.wanted_tunables(an_estimate(), {"advisor_mode": "scan-time", "pages_to_scan": "5"})


def test_a_value_that_the_kernel_would_refuse_is_refused_before_anything_is_read():
    with pytest.raises(OSError, match="max_page_sharing") as error:
        apply.wanted_tunables(an_estimate(), {"max_page_sharing": "1"})
    assert error.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="nonsense"):
        apply.wanted_tunables(an_estimate(knobs_={}), {"nonsense": "1"})


def test_only_what_differs_is_written_and_run_is_the_last(kernel):
    todo, now = do(pages_to_scan=2000, sleep_millisecs=20, use_zero_pages=1)
    assert [(name, text) for name, text, _ in kernel.writes] == [("pages_to_scan", "2000"), ("use_zero_pages", "1"), ("run", "1")]
    assert [(one.name, one.old, one.new) for one in todo][-1] == ("run", "0", "1")
    assert now.former == {"pages_to_scan": "100", "use_zero_pages": "0", "run": "0"} and now.complete


def test_the_journal_is_roots_alone_and_says_what_was_before(kernel):
    do(pages_to_scan=2000)
    assert kernel.journal.stat().st_mode & 0o777 == 0o600
    found = applied.find()
    assert found.complete and found.former == {"pages_to_scan": "100", "run": "0"}
    assert found.wrote == {"pages_to_scan": "2000", "run": "1"} and found.prediction == {"expected": {"pages_sharing": 5.0}}
    assert [path.name for path in state.DIRECTORY.iterdir() if path.name != "lock"] == ["apply.json"]


@pytest.mark.parametrize("advisor", ["none", "scan-time"])
def test_every_tunable_comes_back_from_every_other_value_of_every_one(kernel, advisor):
    kernel.write(kernel.ksm / "advisor_mode", advisor)
    before = kernel.all()
    other = {
        "sleep_millisecs": 7, "smart_scan": 0, "use_zero_pages": 1, "max_page_sharing": 9, "merge_across_nodes": 0,
        "stable_node_chains_prune_millisecs": 1, "advisor_max_cpu": 5, "advisor_min_pages_to_scan": 6,
        "advisor_max_pages_to_scan": 77, "advisor_target_scan_time": 8,
    }  # fmt: skip
    mode = {"advisor_mode": "scan-time"} if advisor == "none" else {"advisor_mode": "none", "pages_to_scan": 123}
    do(**other, **mode)
    assert all(kernel.holds(name) == str(value) for name, value in (other | mode).items()) and kernel.holds("run") == "1"
    result = apply.undo(pytest.fail)
    assert kernel.all() == before and not result.failed and not kernel.journal.exists()
    assert all(answer == 0 for _, _, answer in kernel.writes)


def test_what_the_kernel_refuses_in_the_middle_leaves_nothing_half_done(kernel):
    before = kernel.all()
    kernel.refuses["use_zero_pages", "1"] = errno.EPERM
    with pytest.raises(apply.Refused, match=r"use_zero_pages refuses 1: Operation not permitted; what had been written"):
        do(pages_to_scan=2000, smart_scan=0, use_zero_pages=1)
    assert kernel.all() == before and not kernel.journal.exists()
    assert ("smart_scan", "0", 0) in kernel.writes and kernel.holds("run") == "0"


def test_a_refused_start_takes_the_tunables_back_too(kernel):
    kernel.refuses["run", "1"] = errno.ENOMEM
    with pytest.raises(apply.Refused, match="run refuses 1"):
        do(pages_to_scan=2000)
    assert kernel.holds("pages_to_scan") == "100" and not kernel.journal.exists()


def test_a_journal_that_cannot_be_written_changes_nothing(kernel, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        do(pages_to_scan=2000)
    assert kernel.writes == [] and [path.name for path in state.DIRECTORY.iterdir()] == ["lock"]


def test_a_second_apply_keeps_what_was_before_the_first(kernel):
    do(pages_to_scan=2000)
    do(pages_to_scan=3000, use_zero_pages=1)
    assert applied.find().former == {"pages_to_scan": "100", "use_zero_pages": "0", "run": "0"}
    apply.undo(pytest.fail)
    assert kernel.holds("pages_to_scan") == "100" and kernel.holds("use_zero_pages") == "0"


def test_a_second_apply_that_is_refused_leaves_the_first(kernel):
    do(pages_to_scan=2000)
    kept = applied.find()
    kernel.refuses["use_zero_pages", "1"] = errno.EIO
    with pytest.raises(apply.Refused):
        do(pages_to_scan=3000, use_zero_pages=1)
    assert kernel.holds("pages_to_scan") == "2000" and applied.find().former == kept.former and applied.find().wrote == kept.wrote


def test_with_nothing_to_do_nothing_is_kept(kernel):
    kernel.set("run", 1)
    assert do(pages_to_scan=100)[0] == [] and kernel.writes == [] and not kernel.journal.exists()


class Killed(BaseException):
    """As kill -9: nothing that would tidy up runs."""


def killed_after(kernel, monkeypatch, number, **values):
    """An apply that is gone after so many writes."""

    def write(path, text):
        if len(kernel.writes) == number:
            raise Killed
        return kernel.write(path, text)

    monkeypatch.setattr(knobs, "write_file", write)
    with pytest.raises(Killed):
        do(**values)
    monkeypatch.setattr(knobs, "write_file", kernel.write)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_undo_finds_what_a_killed_apply_has_left(kernel, monkeypatch, number):
    before = kernel.all()
    killed_after(kernel, monkeypatch, number, pages_to_scan=2000, smart_scan=0, use_zero_pages=1)
    said = []
    result = apply.undo(said.append)
    assert kernel.all() == before and not kernel.journal.exists() and not result.failed
    # killed as run was to be written it was all but started: no accident to be put back by others
    assert bool(said) == (number < 3)


def test_whoever_takes_ksm_next_puts_back_what_a_killed_apply_has_left(kernel, monkeypatch):
    killed_after(kernel, monkeypatch, 2, pages_to_scan=2000, smart_scan=0, use_zero_pages=1)
    said = []
    with knobs.taken(said.append):
        assert kernel.holds("pages_to_scan") == "100" and kernel.holds("smart_scan") == "1"
    assert "apply that was killed" in said[0] and not kernel.journal.exists()
    assert kernel.holds("pages_to_scan") == "100" and kernel.holds("run") == "0"


def test_the_next_apply_starts_from_what_was_before_the_killed_one(kernel, monkeypatch):
    killed_after(kernel, monkeypatch, 2, pages_to_scan=2000, smart_scan=0, use_zero_pages=1)
    do([], pages_to_scan=500)
    assert applied.find().former == {"pages_to_scan": "100", "run": "0"} and kernel.holds("smart_scan") == "1"


def test_a_run_in_progress_is_waited_for_by_nobody_and_changed_by_nobody(kernel):
    with knobs.lock(pytest.fail):
        for what in (lambda: do(pages_to_scan=2000), lambda: apply.undo(pytest.fail)):
            with pytest.raises(state.KernelUnavailable, match="drives KSM"):
                what()
    assert kernel.writes == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 5}', '{"former": []}'])
def test_a_damaged_journal_is_none(kernel, text):
    do(pages_to_scan=2000)
    kernel.journal.write_text(text)
    assert applied.find() is None
    with pytest.raises(apply.Refused, match="nothing is applied"):
        apply.undo(pytest.fail)


def test_a_journal_of_before_the_restart_is_none(kernel):
    do(pages_to_scan=2000)
    data = json.loads(kernel.journal.read_text())
    kernel.journal.write_text(json.dumps(data | {"boot": "another"}))
    assert applied.find() is None


# ---------------------------------------------------------------- what stands against it


def test_pages_to_scan_is_not_written_against_the_advisor(kernel):
    kernel.write(kernel.ksm / "advisor_mode", "scan-time")
    kernel.writes.clear()
    with pytest.raises(apply.Refused, match="--set advisor_mode=none"):
        do(pages_to_scan=2000)
    assert kernel.writes == []
    do(pages_to_scan=500)  # what the advisor has come to is no wish


@pytest.mark.parametrize("name", applied.ONLY_UNSHARED)
def test_what_only_an_unshared_machine_takes_says_what_to_do(kernel, name):
    kernel.sets(pages_shared=3)
    with pytest.raises(apply.Refused, match=f"{name} can't be changed .*pages_shared is 3.*--set {name}=.*echo 2"):
        do(pages_to_scan=2000, **{name: 0 if name == "merge_across_nodes" else 9})
    assert kernel.writes == []


def test_what_the_kernel_lacks_is_left_out_unless_it_is_to_differ(kernel):
    kernel.remove("smart_scan", "advisor_mode")
    state_ = read_ksm_state(kernel.path)
    assert [one.name for one in apply.changes(wanted(smart_scan=1, pages_to_scan=9), state_)] == ["pages_to_scan", "run"]
    with pytest.raises(ValueError, match="smart_scan = 0: this kernel has no such tunable"):
        apply.changes(wanted(smart_scan=0), state_)


# ---------------------------------------------------------------- undo


def test_undo_leaves_merged_what_is_merged_and_stops(kernel):
    kernel.merges = 256
    do(pages_to_scan=2000)
    apply.undo(pytest.fail)
    assert kernel.holds("run") == "0" and kernel.holds("pages_sharing") == "256"
    assert ("run", "2", 0) not in kernel.writes


def test_a_machine_that_had_been_unmerged_is_not_unmerged_unasked(kernel):
    kernel.merges = 256
    kernel.set("run", 2)
    do(pages_to_scan=2000)
    result = apply.undo(pytest.fail)
    assert kernel.holds("run") == "0" and kernel.holds("pages_sharing") == "256" and "run was 2" in result.notes[0]


def test_undo_with_shared_pages_and_a_tunable_that_they_hold_wants_to_unmerge(kernel):
    kernel.merges = 256
    do(max_page_sharing=9, pages_to_scan=2000)
    with pytest.raises(apply.Refused, match="max_page_sharing can't be put back .*--undo --unmerge"):
        apply.undo(pytest.fail)
    assert kernel.holds("pages_to_scan") == "2000" and kernel.journal.exists()
    told = []
    apply.undo(pytest.fail, unmerge=True, before_unmerging=told.append)
    assert kernel.holds("max_page_sharing") == "256" and kernel.holds("pages_shared") == "0"
    assert told[0].found_bytes == 256 * 4096


def test_what_somebody_else_has_set_since_is_put_back_and_named(kernel):
    do(pages_to_scan=2000)
    kernel.set("pages_to_scan", 77)
    result = apply.undo(pytest.fail)
    assert [(one.name, one.old, one.new) for one in result.overruled] == [("pages_to_scan", "2000", "77")]
    assert kernel.holds("pages_to_scan") == "100"


def test_what_the_kernel_does_not_take_back_stays_in_the_journal(kernel):
    do(pages_to_scan=2000, use_zero_pages=1)
    kernel.refuses["use_zero_pages", "0"] = errno.EIO
    result = apply.undo(pytest.fail)
    assert result.failed == ["use_zero_pages = 0: Input/output error"] and kernel.holds("pages_to_scan") == "100"
    kernel.refuses.clear()
    assert not apply.undo(pytest.fail).failed and kernel.holds("use_zero_pages") == "0"


def test_unmerging_that_does_not_fit_is_refused_unless_forced(kernel):
    kernel.merges = 1001  # of 4 KiB each, and 4000 KiB are available
    do(pages_to_scan=2000)
    with pytest.raises(apply.Refused, match=r"needs 4,004 KiB, and 4,000 KiB are available .*--force"):
        apply.undo(pytest.fail, unmerge=True)
    assert kernel.holds("pages_sharing") == "1001" and kernel.holds("run") == "1" and kernel.journal.exists()
    apply.undo(pytest.fail, unmerge=True, force=True)
    assert kernel.holds("pages_sharing") == "0" and kernel.holds("run") == "0" and not kernel.journal.exists()


def test_a_page_less_fits(kernel):
    kernel.merges = 999
    kernel.set("ksm_zero_pages", 1)
    do(pages_to_scan=2000)
    assert apply.undo(pytest.fail, unmerge=True).cost.found_bytes == 1000 * 4096


def test_the_time_that_unmerging_takes_goes_by_areas_whatever_is_present(kernel, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.18.44", "v", "x86_64")))
    kernel.process(500, marked_pages=3)  # an area of 4 GiB
    kernel.process(501, marked=False, items=1)
    cost = apply.unmerge_cost()
    assert cost.area_bytes == 1 << 32
    assert cost.seconds == pytest.approx(((1 << 20) * 64e-9, (1 << 20) * 80e-9))
    # 64 KiB before the area are not marked
    assert apply.unmerge_cost(also=[500, 501]).area_bytes == 2 * ((1 << 32) + (64 << 10))
    assert apply.unmerge_cost(also=[777]).area_bytes == 1 << 32
    low, high = ((32 << 40) / 4096 * ns / 1e9 for ns in apply.UNMERGE_NS)
    assert low < 585 < high  # as it took for 32 TiB


@pytest.mark.parametrize(
    ("release", "by_range"),
    [("6.18.44-x", False), ("6.12.117", False), ("6.19.14", True), ("7.0.13", False), ("7.3.4", True), ("odd", False)],
)
def test_kernels_that_pass_over_holes_are_known(kernel, monkeypatch, release, by_range):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", release, "v", "x86_64")))
    assert apply.unmerge_cost().by_range is by_range


def test_every_tunable_has_its_place_in_the_order():
    values = {name: "1" for name in sysfs.KNOBS} | {"advisor_mode": "none"}
    steps = [name for name, _ in applied.ordered(values, "scan-time")]
    assert sorted(steps) == sorted(sysfs.KNOBS) and steps[0] == "advisor_mode" and steps[-1] == "run"
    steps = [name for name, _ in applied.ordered(values | {"advisor_mode": "scan-time"}, "none")]
    assert steps[-2:] == ["advisor_mode", "run"] and "pages_to_scan" not in steps
