"""`ksmwalk replay --kernel`, and recordings of kernels that show less."""

import json
from pathlib import Path

import pytest

from ksmwalk.commands.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"


def changed(tmp_path, source, change):
    recording = json.loads((GOLDEN / source).read_text())
    change(recording)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(recording))
    return str(path)


@pytest.mark.parametrize("folder", ["5.10", "6.1", "6.12"])
def test_a_recording_is_checked_as_its_own_kernel(folder, capsys):
    file = str(GOLDEN / "guests" / folder / "mprotect.json")
    assert main(["replay", "--check", file]) == 0
    assert main(["replay", "--check", "--kernel", "7.3.4", str(GOLDEN / "guests" / folder / "cow_break.json")]) != 0
    capsys.readouterr()


@pytest.mark.parametrize("kernel", ["5.10.223", "6.1.192", "6.12.43", "6.16.12", "6.17.8", "6.19.14", "7.1.13", "7.3.4"])
def test_what_a_kernel_does_not_show_is_left_out(kernel, capsys):
    """A scenario that all kernels answer alike, recorded on the newest of them that shows everything."""
    assert main(["replay", "--check", "--kernel", kernel, str(GOLDEN / "batch_boundary.json")]) == 0
    assert main(["replay", "--kernel", kernel, str(GOLDEN / "batch_boundary.json")]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    old = kernel.startswith(("5", "6.1."))
    assert any("t" in record for record in records) != old
    assert any("pages_scanned" in record.get("c", {}) for record in records) != old


def test_a_difference_that_both_show_is_still_one(tmp_path, capsys):
    def more(recording):
        recording["records"][-1].setdefault("c", {})["pages_shared"] = 77

    assert main(["replay", "--check", "--kernel", "6.1.192", changed(tmp_path, "batch_boundary.json", more)]) == 1
    assert "c.pages_shared" in capsys.readouterr().out


def test_columns_that_are_null_and_events_that_nobody_saw(tmp_path, capsys):
    def less(recording):
        for record in recording["records"]:
            record.pop("t", None)
            for line in record.get("s", {}).values():
                line[5] = None

    assert main(["replay", "--check", changed(tmp_path, "batch_boundary.json", less)]) == 0

    def one(recording):
        less(recording)
        next(record for record in recording["records"] if "s" in record)["s"]["A"][0] = 5

    assert main(["replay", "--check", changed(tmp_path, "batch_boundary.json", one)]) == 1
    capsys.readouterr()


def test_one_event_less_is_a_difference(tmp_path, capsys):
    def less(recording):
        next(record for record in recording["records"] if len(record.get("t", [])) > 1)["t"].pop()

    assert main(["replay", "--check", changed(tmp_path, "batch_boundary.json", less)]) == 1
    assert " t\n" in capsys.readouterr().out


def test_it_says_when_another_kernel_answers(tmp_path, capsys):
    between = changed(tmp_path, "batch_boundary.json", lambda recording: recording.update(kernel="6.18.30-mine"))
    assert main(["replay", "--check", between]) == 0
    assert "Linux 6.18.30 was not seen: answered as 6.18.44" in capsys.readouterr().err
    strange = changed(tmp_path, "batch_boundary.json", lambda recording: recording.update(kernel="4.4.0"))
    assert main(["replay", "--check", strange]) == 0
    assert "4.4.0" in (err := capsys.readouterr().err) and "answered as 6.18.44" in err
    assert main(["replay", "--check", "--kernel", "6.18.40", between]) == 0
    assert "answered as 6.18.44" in capsys.readouterr().err
    assert main(["replay", "--kernel", "4.4", between]) == 2
    assert "known are 5.10.223" in capsys.readouterr().err
