"""KSM's events traced elsewhere: three forms of text, hostile ones, and comparison event by event."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from ksmwalk import KsmwalkError
from ksmwalk.commands.cli import main
from ksmwalk.scenarios.format import load
from ksmwalk.sources.ksm_events import KINDS, KSM_EVENT, compare_events, read_ksm_events

TESTS = Path(__file__).parents[1]
REAL = [("ksm_heavy_0.trace", "heavy_0", 187), ("ksm_fork_perf.txt", "fork_ksm", 66)]
ONE = "ksmd-37      [000] .....   100.100001: ksm_start_scan: seq 3 rmap size 12"


def written(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


@pytest.mark.parametrize(("file", "golden", "expected"), REAL)
def test_real_traces_are_as_expected(file, golden, expected):
    read = read_ksm_events(TESTS / "data" / file)
    assert read.events.dtype == KSM_EVENT and read.lost == 0
    found = compare_events(read, load(TESTS / "golden" / f"{golden}.json").records)
    assert (found.equal, found.expected, found.difference) == (expected, expected, "")


@pytest.mark.parametrize(
    "line",
    [
        ONE,
        "            ksmd-37    [000]   100.100001: ksm_start_scan:       seq 3 rmap size 12",
        "ksmd    37 [000]   100.100001:          ksm:ksm_start_scan: seq 3 rmap size 12",
        "            ksmd-37      (     37) [000] d..1.   100.100001: ksm_start_scan: seq 3 rmap size 12",
    ],
)
def test_all_forms_of_a_line(line, tmp_path):
    (event,) = read_ksm_events(written(tmp_path / "t", "cpus=2", "# tracer: nop", "", line)).events
    assert (event["time"], event["cpu"], event["pid"], KINDS[event["kind"]]) == (100.100001, 0, 37, "start")
    assert (event["a"], event["b"], event["mm"], event["frame"], event["line"]) == (3, 12, -1, -1, 4)


def test_fields_of_all_kinds(tmp_path):
    head = "ksmd-37 [001] ..... 5.000000: "
    lines = [
        "ksm_enter: mm 000000000000abcd", "ksm_merge_with_ksm_page: pfn 77 rmap_item 00000000000000ff mm 000000000000abcd error 0",
        "ksm_merge_with_ksm_page: ksm pfn 77 rmap_item 0xfe mm 0xABCD error -14", "ksm_exit: mm abcd",
        "ksm_merge_one_page: ksm pfn 78 rmap_item ff mm 12 error 0", "ksm_remove_rmap_item: pfn 77 rmap_item fe mm 12",
        "ksm_remove_ksm_page: pfn 77", "ksm_advisor: ksm scan time 2 pages_to_scan 500 cpu percent 7", "sched_switch: x ==> y",
    ]  # fmt: skip
    read = read_ksm_events(written(tmp_path / "t", *(head + line for line in lines)))
    rows = read.events
    assert [KINDS[kind] for kind in rows["kind"]] == ["enter", "new", "add", "exit", "zero", "rmi", "rmk", "advised"]
    assert rows["mm"].tolist() == [0, 0, 0, 0, 1, 1, -1, -1] and rows["item"].tolist() == [-1, 0, 1, -1, 0, 1, -1, -1]
    assert rows["error"].tolist() == [0, 0, -14, 0, 0, 0, 0, 0] and rows["frame"].tolist()[-3:] == [77, 77, 500]
    assert (rows["a"][-1], rows["b"][-1], read.others) == (2, 7, 1)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense", "ksmd-37 [000]", b"\xff\xfe\x00\x01", b"\x00" * 50, "x" * 5000, ONE[:-2] + "x", ONE.replace("seq 3", "seq"),
        ONE.replace("3 rmap", "9" * 19 + "9 rmap"), ONE.replace("37", "9" * 10), ONE.replace("start_scan", "later_event"),
        ONE.replace("100.1", "1e5"), "ksmd-37 [000] ..... 1.0: ksm_enter: mm (____ptrval____)",
        "ksmd-37 [000] ..... 1.0: ksm_enter: mm",
        "ksmd-37 [000] ..... 1.0: ksm_remove_ksm_page: pfn -5", "ksmd-37 [000] ..... 1.0: ksm:other: pfn 5",
        " " * 4000 + "-", "a " * 2000, "1-1-1-1-1 [1] [1] [1] 1:1:1",
    ],
)  # fmt: skip
def test_hostile_lines_are_named(line, tmp_path):
    with pytest.raises(KsmwalkError, match="line 2: "):
        read_ksm_events(written(tmp_path / "t", ONE, line))


def test_what_is_no_file(tmp_path, capsys):
    with pytest.raises((KsmwalkError, OSError)):
        read_ksm_events(tmp_path)
    with pytest.raises(KsmwalkError, match="file of text"):
        read_ksm_events("/dev/null")
    with pytest.raises(OSError):
        read_ksm_events(tmp_path / "none")
    assert main(["trace", str(tmp_path / "none"), "--events"]) == 2
    assert main(["trace", str(written(tmp_path / "t", "nonsense")), "--events"]) == 2
    assert "line 1" in capsys.readouterr().err


def test_nothing_is_an_empty_array(tmp_path):
    read = read_ksm_events(written(tmp_path / "t", "# tracer: nop"))
    assert len(read.events) == 0 and read.counts() == {}


def test_lost_events_can_not_be_compared(tmp_path):
    read = read_ksm_events(written(tmp_path / "t", ONE, "CPU:1 [LOST 5 EVENTS]", ONE))
    assert (read.lost, len(read.events)) == (1, 2)
    with pytest.raises(KsmwalkError, match="lost"):
        compare_events(read, [])


@pytest.mark.parametrize(
    "line", ["# entries-in-buffer/entries-written: 3/100   #P:4", "ksmd 37 [000] 100.000000: PERF_RECORD_LOST lost 12"]
)
def test_other_ways_to_say_that_events_are_lost(line, tmp_path):
    assert read_ksm_events(written(tmp_path / "t", line, ONE)).lost == 1
    assert read_ksm_events(written(tmp_path / "u", "# entries-in-buffer/entries-written: 3/3   #P:4", ONE)).lost == 0


def test_a_scenario_without_events_is_nothing_to_be_held_against(capsys, tmp_path):
    file = str(written(tmp_path / "t", ONE))
    with pytest.raises(KsmwalkError, match="no event of KSM"):
        compare_events(read_ksm_events(file), [{"op": ["step"]}])
    scenario = ["--scenario", str(TESTS / "golden" / "fork_ksm.json")]
    assert main(["trace", file, "--events", *scenario, "--kernel", "6.1.192"]) == 2
    assert "no event of KSM" in capsys.readouterr().err
    assert main(["trace", file, "--events", *scenario, "--kernel", "none"]) == 2
    assert "--kernel: kernel 'none'" in capsys.readouterr().err
    assert main(["trace", file, "--events", "--kernel", "6.1.192"]) == 2


@pytest.mark.parametrize("packer", [gzip, lzma, bz2])
def test_packed_text_is_unpacked_or_refused(packer, tmp_path):
    whole = packer.compress((ONE + "\n").encode() * 400)
    (tmp_path / "t").write_bytes(whole)
    assert len(read_ksm_events(tmp_path / "t").events) == 400
    (tmp_path / "t").write_bytes(whole[:-9])
    with pytest.raises(KsmwalkError, match="damaged at line"):
        read_ksm_events(tmp_path / "t")


def test_a_directory_is_named(tmp_path):
    with pytest.raises(KsmwalkError, match=str(tmp_path)):
        read_ksm_events(tmp_path)


def test_times_without_a_fraction_are_no_seconds(tmp_path, capsys):
    lines = [ONE.replace("100.100001", str(n)) for n in (100_000_001, 100_100_042)]
    assert main(["trace", str(written(tmp_path / "t", *lines)), "--events"]) == 0
    assert "2 events of KSM: 2 start" in capsys.readouterr().out


@pytest.mark.parametrize("file", [file for file, _, _ in REAL])
@pytest.mark.parametrize("field", ["kind", "a", "b", "frame", "error", "mm"])
def test_a_changed_event_is_found(file, field):
    golden = next(golden for name, golden, _ in REAL if name == file)
    records = load(TESTS / "golden" / f"{golden}.json").records
    read = read_ksm_events(TESTS / "data" / file)
    kinds = {"a": ["start"], "b": ["stop"], "frame": ["add"], "error": ["add", "new"], "mm": ["add"], "kind": ["new"]}[field]
    told = np.flatnonzero(np.isin(read.events["kind"], [KINDS.index(kind) for kind in kinds]))
    at = int(told[len(told) // 2])
    read.events[field][at] += 1 if field == "kind" else 10_000
    found = compare_events(read, records)
    assert found.difference.startswith(f"line {read.events['line'][at]}: "), found


def test_a_trace_that_ends_early_and_one_that_lacks_an_event():
    records = load(TESTS / "golden" / "heavy_0.json").records
    read = read_ksm_events(TESTS / "data" / "ksm_heavy_0.trace")
    whole = read.events
    read.events = whole[:100]
    assert compare_events(read, records).difference.startswith("the trace ends")
    read.events = np.delete(whole, 50)
    assert compare_events(read, records).difference.startswith("line ")


def test_the_command(tmp_path, capsys):
    file, scenario = str(TESTS / "data" / "ksm_fork_perf.txt"), str(TESTS / "golden" / "fork_ksm.json")
    assert main(["trace", file, "--events", "--scenario", scenario]) == 0
    assert "66 of 66" in capsys.readouterr().out
    assert main(["trace", file, "--events", "--scenario", scenario, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["events"] == 67 and told["compared"]["equal"] == 66 and told["compared"]["difference"] is None
    assert main(["trace", file, "--events", "--scenario", str(TESTS / "golden" / "pair_order.json")]) == 1
    for wrong in (["--events", "--run"], ["--scenario", scenario]):
        assert main(["trace", file, *wrong]) == 2
