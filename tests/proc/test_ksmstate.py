"""What the machine's KSM shows, read from machines of every kind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fakeroot import FakeRoot
from living import Living, ksm_to_ourselves

from ksmwalk.ksm import sysfs
from ksmwalk.proc.frames import ksm_frames
from ksmwalk.proc.ksmstate import default_text, read_ksm_state, read_moment


@pytest.fixture
def machine(tmp_path):
    return FakeRoot(tmp_path)


def only(state):
    (one,) = state.processes
    return one


def test_a_machine_without_ksm_shows_nothing(tmp_path):
    state = read_ksm_state(FakeRoot(tmp_path, ksm=False).path)
    assert not state.available and not state.knobs and not state.counters and state.rmap_items is None


def test_tunables_and_counters_are_read_by_name(machine):
    machine.sets(run=1, pages_to_scan=7, pages_shared=3, pages_sharing=5, general_profit=-64, advisor_mode="none [scan-time]")
    state = read_ksm_state(machine.path)
    assert set(state.knobs) == set(sysfs.KNOBS) and set(state.counters) == set(sysfs.COUNTERS)
    assert (state.number("run"), state.number("pages_to_scan"), state.counters["general_profit"]) == (1, 7, -64)
    assert state.knobs["advisor_mode"] == "scan-time" and state.number("advisor_mode") is None
    assert state.changed_knobs() == {"pages_to_scan": ("7", "100"), "advisor_mode": ("scan-time", "none")}
    assert not state.odd


def test_defaults_are_those_of_the_real_files_of_a_kernel():
    # as a kernel starts: docs of /sys/kernel/mm/ksm
    assert {name: default_text(name) for name in ("pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode")} == {
        "pages_to_scan": "100", "sleep_millisecs": "20", "smart_scan": "1", "advisor_mode": "none",
    }  # fmt: skip


def test_rmap_items_are_what_the_four_counters_share_out(machine):
    machine.sets(pages_shared=1, pages_sharing=20, pages_unshared=300, pages_volatile=4000)
    assert read_ksm_state(machine.path).rmap_items == 4321
    machine.remove("pages_volatile")
    assert read_ksm_state(machine.path).rmap_items is None


def test_files_that_an_old_kernel_lacks_are_missing_and_nothing_to_speak_of(machine):
    machine.remove("pages_scanned", "pages_skipped", "smart_scan", "general_profit", "ksm_zero_pages", "advisor_mode")
    state = read_ksm_state(machine.path)
    assert not {"smart_scan", "advisor_mode"} & set(state.knobs) and "pages_scanned" not in state.counters
    assert not state.odd
    moment = read_moment(machine.path)
    assert moment.full_scans == 0 and moment.pages_scanned is None and moment.met is None


@pytest.mark.parametrize("text", [b"", b"x", b"\xff\x00", b"1 2", b"0x10", b"9" * 70000, b"-3", "٣".encode(), b"\x1b[2J"])
def test_a_counter_that_is_no_number_is_named_and_left_out(machine, text):
    machine.sets(pages_sharing=text, run=text, advisor_mode=text)
    state = read_ksm_state(machine.path)
    assert "pages_sharing" not in state.counters and state.number("run") is None and "advisor_mode" not in state.knobs
    assert len(state.odd) == 3 and all(words.isprintable() and len(words) < 300 for words in state.odd)
    assert any("pages_sharing" in words for words in state.odd)
    assert "pages_shared" in state.counters  # the others are there all the same


def test_a_file_that_cannot_be_read_is_named(machine):
    machine.remove("run")
    (machine.ksm / "run").mkdir()
    state = read_ksm_state(machine.path)
    assert any("run" in words and "directory" in words for words in state.odd)


def test_who_has_marked_memory_is_told_from_who_has_not(machine):
    machine.process(10, marked=False, any_=False)
    machine.process(11, items=5, merging=2, zero=1, uid=1000, cgroup="/a.slice", any_=False, start_time=99)
    machine.process(12, marked=False, items=3)  # unmarked, ksmd has not come by yet
    state = read_ksm_state(machine.path)
    eleven, twelve = state.processes
    assert (eleven.pid, eleven.rmap_items, eleven.merging_pages, eleven.zero_pages) == (11, 5, 2, 1)
    assert (eleven.uid, eleven.cgroup, eleven.start_time, eleven.merge_any) == (1000, "/a.slice", 99, False)
    assert eleven.profit == 3 * 4096 - 5 * 64 and eleven.marked
    assert twelve.pid == 12 and not twelve.marked


def test_names_stay_bytes_and_may_hold_brackets(machine):
    machine.process(10, b"a) S 2 (\xff\n\x1b[2J", start_time=5)
    one = only(read_ksm_state(machine.path))
    assert one.name == b"a) S 2 (\xff\n\x1b[2J".decode(errors="surrogateescape") and one.start_time == 5


def test_ksmd_is_the_kernels_own_thread(machine):
    machine.process(40, b"ksmd")
    assert read_ksm_state(machine.path).ksmd is None
    machine.thread(37, cpu_ns=123456)
    state = read_ksm_state(machine.path)
    assert state.ksmd == 37 and read_moment(machine.path, 37).cpu_ns == 123456
    (machine.proc / "37/schedstat").unlink()
    assert read_moment(machine.path, 37).cpu_ns == 0  # in ticks


def test_memory_of_marked_mappings_only_is_counted(machine):
    machine.process(10, merging=30, marked_pages=100, ksm_pages=30)
    assert only(read_ksm_state(machine.path)).marked_pages is None  # nobody asked
    one = only(read_ksm_state(machine.path, memory=True))
    assert (one.marked_pages, one.ksm_pages, one.owed) == (100, 30, 0)


@pytest.mark.parametrize(("ksm_pages", "owed"), [(27, 3), (30, 0), (78, -48)])
def test_what_is_owed_is_what_counters_have_and_mappings_have_not(machine, ksm_pages, owed):
    machine.process(10, merging=30, marked_pages=100, ksm_pages=ksm_pages)
    assert only(read_ksm_state(machine.path, memory=True)).owed == owed


def test_what_was_looked_into_before_is_handed_on_to_the_same_process_only(machine):
    there = machine.process(10, merging=30, marked_pages=100, start_time=7)
    known = {one.pid: one for one in read_ksm_state(machine.path, memory=True).processes}
    assert only(read_ksm_state(machine.path, known=known)).marked_pages == 100
    stat = (there / "stat").read_bytes()
    (there / "stat").write_bytes(stat.replace(b" 7 ", b" 8 ", 1))
    assert only(read_ksm_state(machine.path, known=known)).marked_pages is None


def test_forks_share_a_family_and_unknown_ones_have_none(machine):
    machine.process(10, family=(5, 6, 7))
    machine.process(11, family=(5, 6, 7))
    machine.process(12, family=(5, 6, 8))
    machine.process(13, family=(1, 0, 0))  # as it is shown to those who may not know
    families = [one.family for one in read_ksm_state(machine.path).processes]
    assert families == [(5, 6, 7), (5, 6, 7), (5, 6, 8), ()]


def test_kernel_6_1_says_it_in_two_files_and_the_mappings(machine):
    there = machine.process(10, marked_pages=9)
    (there / "ksm_stat").write_text("ksm_rmap_items 8\n")
    (there / "ksm_merging_pages").write_text("4\n")
    one = only(read_ksm_state(machine.path))
    assert one.marked and one.merge_any is None and one.zero_pages is None
    assert (one.rmap_items, one.merging_pages, one.profit) == (8, 4, 4 * 4096 - 8 * 64)


def test_kernel_5_10_shows_marked_mappings_and_no_numbers(machine):
    there = machine.process(10, marked_pages=9)
    (there / "ksm_stat").unlink()
    one = only(read_ksm_state(machine.path))
    assert one.marked and one.rmap_items is None and one.merging_pages is None and one.profit is None


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff" * 100, b"ksm_rmap_items \nksm_mergeable: yes\n", b"ksm_rmap_items -4\nksm_mergeable: yes\n",
     b"ksm_rmap_items 4 4\nksm_mergeable: yes\n", b"ksm_rmap_items 99999999999999999999999\nksm_mergeable: yes\n"],
)  # fmt: skip
def test_a_ksm_stat_that_is_none_gives_no_numbers(machine, text):
    there = machine.process(10, marked_pages=1)
    (there / "ksm_stat").write_bytes(text)
    one = only(read_ksm_state(machine.path, memory=True))
    assert one.rmap_items is None and one.marked


def test_mappings_that_cannot_be_understood_leave_the_rest(machine):
    there = machine.process(10, items=4, merging=2)
    (there / "smaps").write_text("no mapping\n")
    one = only(read_ksm_state(machine.path, memory=True))
    assert one.rmap_items == 4 and one.marked_pages is None


def test_a_process_that_is_gone_halfway_is_left_out(machine):
    there = machine.process(10, marked_pages=1)
    for name in ("ksm_stat", "smaps", "stat"):
        (there / name).unlink()
    machine.process(11)
    assert [one.pid for one in read_ksm_state(machine.path, memory=True).processes] == [11]


@pytest.mark.parametrize("ksm", [{}, {0: 1}, {3: 7, 99_999: 2, 50_000: 1}, {131_071: 4, 131_072: 5}])
def test_frames_of_ksm_are_counted_with_their_mappings(machine, ksm):
    machine.frames(ksm, others=200_000)
    assert ksm_frames(machine.path) == (len(ksm), sum(ksm.values()))


def test_frames_of_the_kernels_own_are_none_of_ksm(machine):
    # as Linux 6.18 shows some of its slabs: flags 7, 12 and 21, mapped nowhere
    machine.frames({3: 0, 4: 0}, flags=1 << 21 | 1 << 7)
    assert ksm_frames(machine.path) == (0, 0)


def test_frames_that_are_not_shown_are_an_error_with_the_file(machine):
    with pytest.raises(FileNotFoundError, match="kpageflags"):
        ksm_frames(machine.path)


def test_this_machine_can_be_read_as_it_is():
    with Living() as child, ksm_to_ourselves():
        area = child.do("new(64 * P)")
        child.do(f"write({area}, 9)")
        child.do(f"call('madvise', {area}, 64 * P, MERGEABLE)")
        state = read_ksm_state(memory=True)
        assert state.available and state.number("run") in (0, 1, 2) and not state.odd
        mine = [one for one in state.processes if one.pid == child.pid]
        assert len(mine) == 1 and mine[0].marked and mine[0].marked_pages == 9
        assert mine[0].uid == os.geteuid() and mine[0].start_time > 0 and mine[0].family


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_an_ordinary_user_gets_the_counters_and_the_number_of_those_he_may_not_ask():
    program = (
        "from living import become_nobody; from ksmwalk.proc.ksmstate import read_ksm_state\n"
        "become_nobody(); s = read_ksm_state(memory=True)\n"
        "print(s.available, 'pages_sharing' in s.counters, s.refused > 0, all(p.uid == 65534 for p in s.processes), s.odd)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.stdout.split() == ["True", "True", "True", "True", "[]"], done.stderr
