"""`ksmwalk why`, as a user runs it, on real processes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import pytest
from living import Living, sees_frames
from memories import PLAIN, Area, memory, process

from ksmwalk.commands import cli, report, why_text
from ksmwalk.commands.screen import Screen
from ksmwalk.estimates.why import Reason, explain_pages
from ksmwalk.sources.captures import save_capture

P = 4096
BASE = (1 << 50) + (7 << 21)


def ksmwalk(*args, env=None):
    command = [sys.executable, "-m", "ksmwalk", "why", *map(str, args), "--samples", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)


@pytest.fixture(scope="module")
def child():
    """A child with 40 equal pages, 30 alike but for a number, and a giant with little in it; nothing is marked."""
    with Living() as living:
        area = living.do("new(100 * P)")
        living.do(f"put({area}, range(0, 40 * P, P), [{BASE}] * 40)")
        for page in range(40, 70):
            living.do(f"put({area} + {page} * P, range(0, P, 8), range({BASE}, {BASE} + 512))")
            living.do(f"put({area} + {page} * P, [0x40], [{70_000 + page}])")
        giant = living.do("new(1 << 40)")
        living.do(f"write({giant} + (1 << 39), 3, 1 << 30)")
        living.rest()
        yield living, area


@pytest.fixture(scope="module")
def answered(child):
    result = ksmwalk(child[0].pid, "--near", "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_every_page_in_one_reason(child, answered):
    [one] = answered["processes"]
    assert one["pid"] == child[0].pid
    present = [row for row in answered["answers"] if row["reason"] not in answered["absent"]]
    assert sum(row["pages"] for row in present) == one["present"] == sum(row["present"] for row in answered["mappings"])
    [mapping] = [row for row in answered["mappings"] if row["start"] <= child[1] < row["end"]]
    assert mapping["pages"]["not_marked"] == mapping["present"] >= 70 and mapping["would_merge"] >= 40
    assert not mapping["marked"] and mapping["letter"] == ""
    assert all(row["figure"] for row in answered["answers"])


def test_json_says_which_pages_are_near_and_where(answered):
    group = next(group for group in answered["near"]["groups"] if group["pages"] == 30)
    assert group["words"] == [0x40] and group["kind"] == "counter"
    assert answered["near"]["offsets"]["64"] >= 1 and answered["near"]["near_pages"] >= 30


@pytest.mark.parametrize("width", [30, 50, 80, 132])
def test_words_fit_the_screen(child, width):
    result = ksmwalk(child[0].pid, "--near", env={"COLUMNS": str(width)})
    assert result.returncode == 0 and not result.stderr
    assert max(map(report.cells, result.stdout.splitlines())) <= width
    text = re.sub(r"\s+", " ", result.stdout)
    assert "Not marked No mg in VmFlags" in text and "To do: Mark them" in text
    assert "30 pages of" in text and "at offset 0x40-0x47" in text


def test_every_mapping_has_a_line_of_its_own_with_areas(child):
    result = ksmwalk(child[0].pid, "--areas", env={"COLUMNS": "100"})
    rows = [line for line in result.stdout.splitlines() if re.match(r" *[0-9a-f]{6,} +[0-9.]+ [KMGT]iB ", line)]
    with open(f"/proc/{child[0].pid}/maps") as file:
        user = [line for line in file if not line.startswith("ffff")]
    assert len(rows) == len(user)


def test_areas_fit_a_narrow_screen(child):
    result = ksmwalk(child[0].pid, "--areas", env={"COLUMNS": "45"})
    assert result.returncode == 0 and max(map(report.cells, result.stdout.splitlines())) <= 45


def test_a_partner_that_was_named_counts(child):
    with Living() as other:
        area = other.do("new(P)")
        other.do(f"put({area}, range(0, P, 8), range({BASE}, {BASE} + 512))")
        other.do(f"put({area}, [0x40], [{70_000 + 50}])")
        alone = json.loads(ksmwalk(child[0].pid, "--json").stdout)
        both = json.loads(ksmwalk(child[0].pid, "--json", "--with", other.pid).stdout)
    assert other.pid not in alone["partners"] and other.pid in both["partners"]
    assert {row["pid"] for row in both["mappings"]} == {child[0].pid}


def test_a_process_that_is_not_there_is_said_to_be_missing(child, capsys):
    with Living() as gone:
        pass
    assert cli.main(["why", str(gone.pid), "--samples", "1"]) == 2
    assert f"process {gone.pid} does not exist" in capsys.readouterr().err
    assert cli.main(["why", str(child[0].pid), str(gone.pid), "--samples", "1"]) == 1
    captured = capsys.readouterr()
    assert "does not exist" in captured.err and "present pages" in captured.out
    assert cli.main(["why", "no such\x1bname"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["why", "scan"])
def test_a_capture_is_told_from_a_name_that_nobody_has(tmp_path, capsys, command):
    save_capture(memory(process(1, Area([5, 6]))), tmp_path / "kept")
    assert cli.main([command, str(tmp_path / "kept")]) == 2
    assert capsys.readouterr().err == f"ksmwalk {command}: {tmp_path / 'kept'} is a capture: {command} reads live processes\n"


def test_looking_does_not_read_the_command_itself(capsys):
    assert cli.main(["why", str(os.getpid()), "--samples", "1"]) == 2
    assert "this command itself" in capsys.readouterr().err


def text_of(why, width=80):
    out = io.StringIO()
    screen = Screen(out)
    screen.width = width
    why_text.show(screen, why, False, None, None)
    return out.getvalue()


def test_names_of_mappings_and_processes_can_not_drive_the_terminal():
    one = process(1, Area([5, 5, 6]))
    one.name = "evil\x1b[2J"
    one.vmas[0] = one.vmas[0].__class__(one.vmas[0].start, one.vmas[0].end, "rw-p", 0, "00:00", 0, "/x\x1b[31mred", PLAIN,
                                        anonymous=3 * P)  # fmt: skip
    text = text_of(explain_pages(memory(one)))
    assert "\x1b" not in text and "evil\\x1b[2J" in text


def test_the_bars_stand_for_the_pages():
    why = explain_pages(memory(process(1, Area([5] * 75 + list(range(100, 125)), ksm=False)), run=0))
    lines = [line for line in text_of(why).splitlines() if "█" in line]
    assert [line.split()[0] for line in lines] == ["KSM", "unique"]
    assert lines[0].count("█") == pytest.approx(3 * lines[1].count("█"), abs=2)
    assert "75 %" in lines[0] or "75%" in lines[0]
    assert why.totals == {Reason.OFF: 75, Reason.UNIQUE: 25}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_told_what_can_not_be_seen(child):
    """Without rights nothing of other users' processes can be read: one line, exit code 2."""
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__) + '/../support'!r}); from living import become_nobody;"
        f"from ksmwalk.commands import cli; cli.build_parser(); become_nobody();"
        f"sys.exit(cli.main(['why', '{child[0].pid}', '--samples', '1']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert sees_frames() and not result.stdout
