"""Metrics for a node exporter: read back by Prometheus's own parsers, and a file that is never half there."""

from __future__ import annotations

import json

import pytest
from fakeroot import FakeRoot
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk.commands import explaining, openmetrics
from ksmwalk.proc.ksmstate import KsmProcess, KsmState, Moment, read_ksm_state

HOSTILE = b'a"\\\n},{pid="1"} 7\x1b\xff\xe2\x80\xae'


def read_back(text):
    """The samples as an OpenMetrics parser and a Prometheus text parser read them: both the same."""
    parsers = pytest.importorskip("prometheus_client.openmetrics.parser"), pytest.importorskip("prometheus_client.parser")
    strict, plain = (
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }
        for parser in parsers
    )
    assert strict == plain
    return {(name, *(value for _, value in labels)): number for (name, labels), number in strict.items()}


@pytest.fixture
def machine(tmp_path):
    made = FakeRoot(tmp_path / "root")
    made.sets(run=1, pages_shared=10, pages_sharing=90, pages_volatile=4, full_scans=3, general_profit=-5, pages_scanned=1000)
    return made


def text_of(machine, prediction=None):
    seen = explaining.pace([Moment(0.0, 3, 1000, 0, 0), Moment(2.0, 3, 1500, 0, 10**8)])
    return openmetrics.text(read_ksm_state(machine.path, memory=True), seen, prediction)


def test_metrics_are_what_the_files_hold(machine):
    machine.process(10, b"redis", items=5, merging=3, marked_pages=9, uid=6, cgroup="/x")
    got = read_back(text_of(machine))
    assert got["ksmwalk_ksm_pages_sharing",] == 90 and got["ksmwalk_ksm_full_scans_total",] == 3
    assert got["ksmwalk_ksm_general_profit_bytes",] == -5 and got["ksmwalk_ksm_rmap_items",] == 104
    assert got["ksmwalk_ksm_saved_bytes",] == 90 * 4096 and got["ksmwalk_ksm_visits_per_second",] == 250
    assert got["ksmwalk_ksm_tunable", "run"] == 1 and got["ksmwalk_ksm_advisor_mode", "scan-time"] == 0
    assert got["ksmwalk_ksm_process_merging_pages", "/x", "redis", "10", "6"] == 3
    assert got["ksmwalk_ksm_process_marked_bytes", "/x", "redis", "10", "6"] == 9 * 4096


def test_what_is_not_known_has_no_line(machine):
    machine.remove("pages_skipped", "general_profit", "pages_volatile")
    text = text_of(machine)
    assert "pages_skipped" not in text and "rmap_items" not in text and "pass_done" not in text
    assert read_back(text)["ksmwalk_ksm_pages_shared",] == 10


def test_hostile_names_stay_inside_their_quotes(machine):
    machine.process(10, HOSTILE, merging=3)
    machine.process(11, b"\\", merging=4, cgroup='/"\\')
    text = text_of(machine)
    assert text.isascii() or "\ufffd" in text
    assert all(line.isprintable() for line in text.splitlines())
    got = {key[2:4]: value for key, value in read_back(text).items() if key[0] == "ksmwalk_ksm_process_merging_pages"}
    # the name as it is printed: escapes for what would not be, their backslashes as letters
    assert got == {('a"\\\\n},{pid="1"} 7\\x1b\ufffd\\u202e', "10"): 3, ("\\", "11"): 4}


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name), st.text(max_size=30))
def test_any_name_and_cgroup_come_back_as_one_sample(name, cgroup):
    one = KsmProcess(7, name.decode(errors="surrogateescape"), 0, cgroup, merging_pages=5, rmap_items=6, zero_pages=0, profit=1)
    state = KsmState(True, {"run": "1"}, {"pages_sharing": 5}, processes=[one])
    got = read_back(openmetrics.text(state, explaining.pace([Moment(0.0)])))
    assert [value for key, value in got.items() if key[0] == "ksmwalk_ksm_process_merging_pages"] == [5]


def test_predicted_and_achieved_stand_side_by_side(machine, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(
        {"expected": {"freed_bytes": 1e6, "pages_sharing": 180, "general_profit": 9}, "lower": {"pages_sharing": 170}}
    ))  # fmt: skip
    got = read_back(text_of(machine, explaining.read_prediction(str(tmp_path / "e.json"))))
    assert got["ksmwalk_ksm_predicted_freed_bytes", "expected"] == 1e6
    assert got["ksmwalk_ksm_predicted_pages_sharing", "expected"] == 180
    assert got["ksmwalk_ksm_predicted_pages_sharing", "lower"] == 170
    assert got["ksmwalk_ksm_achieved", "pages_sharing"] == 90 and got["ksmwalk_ksm_achieved", "general_profit"] == -5
    assert not any(key[:2] == ("ksmwalk_ksm_achieved", "freed_bytes") for key in got)


def test_figures_keep_their_names_with_smart_scan(machine):
    machine.sets(smart_scan=1, pages_unshared=3, pages_volatile=4)
    got = read_back(text_of(machine, {"expected": {"pages_unshared": 5, "pages_volatile": 2}}))
    assert got["ksmwalk_ksm_predicted_pages_unshared", "expected"] == 5
    assert got["ksmwalk_ksm_achieved", "pages_volatile"] == 4


def test_units_end_names_and_kinds_are_those_that_a_text_collector_takes(machine):
    machine.process(10, marked_pages=3)
    lines = text_of(machine).splitlines()
    assert lines[-1] == "# EOF"
    for line in lines:
        words = line.split()
        if words[1:2] == ["UNIT"]:
            assert words[2].endswith("_" + words[3])
        if words[1:2] == ["TYPE"]:
            assert words[3] in ("gauge", "counter")
