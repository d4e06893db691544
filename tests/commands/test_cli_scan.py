"""`ksmwalk scan`, as a user runs it, on real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from living import Living, ksm_to_ourselves, sees_frames
from terminal import in_terminal

from ksmwalk.commands import cli, report, scan, scan_text
from ksmwalk.kernel import knobs
from ksmwalk.proc import processes
from ksmwalk.sources import process

P = 4096
SGR = re.compile(r"\x1b\[[0-9;]*m")


def ksmwalk(*args, env=None, **options):
    command = [sys.executable, "-m", "ksmwalk", *map(str, args)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, **options)


def answer(*args):
    result = ksmwalk(*args, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def shown(*args, width=80):
    """What a command writes to a terminal of this width, colours and all."""
    code, text = in_terminal([sys.executable, "-m", "ksmwalk", *map(str, args)], width)
    return code, text.replace("\r\n", "\n")


@pytest.fixture
def sparse():
    with Living() as child:
        area = child.do("new(1 << 40)")
        child.do(f"write({area} + (1 << 39), 5, 1 << 30)")
        shared = child.do("new(64 * P, 0x21)")
        child.do(f"write({shared}, 3)")
        yield child, area, shared


def test_scan_area_by_area(sparse):
    child, area, shared = sparse
    got = answer("scan", child.pid)
    (one,) = got["processes"]
    by_start = {row["start"]: row for row in one["areas"]}
    giant = by_start[area]
    assert (giant["size"], giant["present"], giant["pages_found"]) == (1 << 40, 5 * P, 5)
    assert giant["lookups_saved"] == (1 << 28) - 5 and giant["holes_jumped"] > 500
    assert giant["could_be"] and not giant["mergeable"] and giant["why_not"] == "not marked"
    assert by_start[shared]["why_not"] == "shared" and by_start[shared]["present"] == 3 * P
    totals = one["totals"]
    assert totals["sparse_giant"] and totals["marked"] == 0
    assert totals["pages_found"] == sum(row["pages_found"] for row in one["areas"])
    assert totals["lookups_saved"] == sum(row["lookups_saved"] for row in one["areas"])
    assert totals["present"] == sum(row["present"] for row in one["areas"])
    assert totals["lookups"] == totals["lookups_saved"] + totals["pages_found"]


def test_scan_of_marked_memory_only(sparse):
    child, _, _ = sparse
    (one,) = answer("scan", child.pid, "--marked")["processes"]
    assert one["totals"]["pages_found"] == one["totals"]["lookups"] == one["totals"]["searched"] == 0


def test_scan_in_words(sparse):
    child, area, _ = sparse
    result = ksmwalk("scan", child.pid, "--areas")
    assert result.returncode == 0 and not result.stderr
    row = next(line for line in result.stdout.splitlines() if line.split()[:1] == [f"{area:x}"])
    assert row.split()[:7] == [f"{area:x}", "1", "TiB", "20", "KiB", "-", "could"]
    assert "1 of 1 is a sparse giant" in result.stdout and "\x1b" not in result.stdout


def test_scan_all(sparse):
    child, _, _ = sparse
    got = answer("scan", "--all")
    mine = [one for one in got["processes"] if one["pid"] == child.pid]
    assert len(mine) == 1 and mine[0]["areas"] is None and mine[0]["totals"]["pages_found"] >= 5
    saved = [one["totals"]["lookups_saved"] for one in got["processes"]]
    assert saved == sorted(saved, reverse=True)
    result = ksmwalk("scan", "--all")
    assert result.returncode == 0 and f"{child.pid}" in result.stdout


def test_scan_says_what_it_could_not_read(sparse, capsys):
    child, _, _ = sparse
    with Living() as gone:
        pass
    assert cli.main(["scan", str(child.pid), str(gone.pid)]) == 1
    out, err = capsys.readouterr()
    assert f"process {gone.pid} does not exist" in err
    assert str(child.pid) in out  # the other one is there all the same
    for wrong in ([], ["1", "--all"]):
        assert cli.main(["scan", *wrong]) == 2
        assert "either" in capsys.readouterr().err


def test_areas_one_by_one_leave_the_marks_alone(sparse):
    child, _, _ = sparse
    image = process(child.pid, mark="all", frames=False)
    before = image.host.vmas["flags"].copy()
    scan.scan_process(image)
    assert (image.host.vmas["flags"] == before).all()


def body(text):
    """The rows of the last table, as words."""
    lines = text.splitlines()
    first = max(number for number, line in enumerate(lines) if line.split()[:1] == ["pid"]) + 2
    last = next(number for number in range(first, len(lines)) if not lines[number])
    return [line.split() for line in lines[first:last]]


def test_a_process_is_one_line_with_its_command_and_anonymous_memory(sparse):
    child, _, _ = sparse
    result = ksmwalk("scan", child.pid)
    (row,) = body(result.stdout)
    (one,) = answer("scan", child.pid)["processes"]
    assert row[0] == str(child.pid) and report.size(one["totals"]["anonymous"]) == " ".join(row[3:5])
    assert one["command"] in result.stdout and "child_program.py" in one["command"]
    assert one["totals"]["anonymous"] == sum(area["anonymous"] for area in one["areas"])
    assert len(result.stdout.splitlines()) < 12


def test_anonymous_memory_is_what_was_written(sparse):
    child, area, shared = sparse
    before = answer("scan", child.pid)["processes"][0]["totals"]
    more = child.do("new(64 * P)")
    child.do(f"libc.madvise({more}, 64 * P, NOHUGEPAGE)")
    child.do(f"write({more}, 33)")
    child.do(f"write({shared} + 3 * P, 7)")
    after = answer("scan", child.pid)["processes"][0]["totals"]
    # shared memory is present, but not anonymous
    assert 33 * P <= after["anonymous"] - before["anonymous"] <= 36 * P
    assert after["present"] - before["present"] == after["anonymous"] - before["anonymous"] + 7 * P


def test_a_total_stands_below_several():
    with Living() as one, Living() as two:
        result = ksmwalk("scan", one.pid, two.pid)
        *rows, rule, total = body(result.stdout)
        assert {row[0] for row in rows} == {str(one.pid), str(two.pid)} and set("".join(rule)) == {"-"}
        assert total[0] == "total" and total[-2:] == ["2", "processes"]
        saved = [int(row[12].replace(",", "")) for row in rows]
        assert int(total[12].replace(",", "")) == sum(saved) > 0


def test_the_answer_in_json_keeps_its_keys(sparse):
    child, _, _ = sparse
    got = answer("scan", child.pid)
    assert {"processes", "errors", "refused", "marked_only"} <= set(got)
    (one,) = got["processes"]
    assert {
        "pid", "name", "found_by", "true_frames", "attempts", "load_seconds", "notes", "totals", "areas",
    } <= set(one)  # fmt: skip
    assert {
        "size", "present", "huge", "marked", "searched", "pages_found", "holes_jumped", "entries_read", "lookups",
        "lookups_saved", "sparse_giant",
    } <= set(one["totals"])  # fmt: skip
    assert {
        "start", "end", "size", "perms", "name", "present", "huge", "mergeable", "could_be", "why_not", "state",
        "pages_found", "holes_jumped", "lookups_saved",
    } <= set(one["areas"][0])  # fmt: skip
    assert one["true_frames"] == sees_frames()


@pytest.mark.parametrize("key", scan.SORT)
def test_the_order_is_as_asked_for(key):
    with Living() as one, Living() as two, Living() as three:
        two.do("write(new(1 << 33), 300)")
        three.do("write(new(1 << 30), 900)")
        found = answer("scan", three.pid, one.pid, two.pid, "--sort", key)["processes"]
    if key in ("pid", "name"):
        assert found == sorted(found, key=lambda row: (row[key], row["pid"]))
    else:
        values = [row["totals"][scan.SORT[key]] for row in found]
        assert values == sorted(values, reverse=True)
        if key in ("anon", "present", "pages"):
            assert [row["pid"] for row in found] == [three.pid, two.pid, one.pid]
        if key in ("saved", "mapped", "searched"):
            assert [row["pid"] for row in found] == [two.pid, three.pid, one.pid]


def named(child, name: bytes):
    """Give a child a name."""
    child.do(f"libc.prctl(15, ctypes.cast({name!r}, ctypes.c_void_p).value, 0, 0, 0)")


def test_processes_are_found_by_name_and_pattern():
    with Living() as one, Living() as two, Living() as other:
        named(one, b"kw-%d-one" % os.getpid())
        named(two, b"kw-%d-two" % os.getpid())

        def pids(*words):
            return sorted(row["pid"] for row in answer("scan", *words)["processes"])

        assert pids(f"kw-{os.getpid()}-one") == [one.pid]
        assert pids(f"kw-{os.getpid()}-*") == sorted([one.pid, two.pid])
        assert pids(f"kw-{os.getpid()}-t?o", two.pid, other.pid, f"kw-{os.getpid()}-[ot]*") == sorted(
            [one.pid, two.pid, other.pid]
        )
        # what the kernel's 15 bytes have no room for: the file in the command line
        found = scan.Findings()
        assert other.pid in scan._wanted([os.path.basename(sys.executable)], found)[0] and not found.errors
        result = ksmwalk("scan", f"kw-{os.getpid()}-", other.pid)
        assert result.returncode == 1 and str(other.pid) in result.stdout
        assert result.stderr == f"ksmwalk scan: no process is called kw-{os.getpid()}-\n"


def test_errors_stand_before_the_table(sparse):
    child, _, _ = sparse
    with Living() as gone:
        pass
    command = [sys.executable, "-m", "ksmwalk", "scan", str(child.pid), str(gone.pid)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.stdout.splitlines()[0] == f"ksmwalk scan: process {gone.pid} does not exist"
    assert result.returncode == 1 and "sparse giant" in result.stdout


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_not_one_process_readable_is_an_error(monkeypatch, capsys, json_too):
    with Living() as gone:
        pass
    for asked in ([str(gone.pid)], ["9" * 30], ["no such process"], ["\x1b[2J*"]):
        assert cli.main(["scan", *asked, *json_too]) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and err.startswith("ksmwalk scan: ") and "\x1b" not in err
        assert json.loads(out)["processes"] == [] if json_too else out == ""
    monkeypatch.setattr(processes, "every_pid", lambda: [gone.pid])
    assert cli.main(["scan", "--all", *json_too]) == 2
    assert capsys.readouterr().err == "ksmwalk scan: not one process could be read\n"


def test_those_that_vanish_or_are_broken_are_no_reason_to_stop(sparse, monkeypatch, capsys):
    child, _, _ = sparse
    with Living() as gone, Living() as broken:
        pass

    def only_this_one(pid, **options):
        if pid == broken.pid:
            raise ValueError("smaps: not the head of a mapping: b'\x1b'\x1b")
        return process(pid, **options)

    monkeypatch.setattr(scan, "process", only_this_one)
    monkeypatch.setattr(processes, "every_pid", lambda: sorted([gone.pid, child.pid, broken.pid, 2]))
    assert cli.main(["scan", "--all"]) == 0
    out, err = capsys.readouterr()
    assert str(child.pid) in out
    assert err == f"ksmwalk scan: process {broken.pid}: smaps: not the head of a mapping: b'\\x1b'\\x1b\n"


def test_others_processes_are_counted(sparse, monkeypatch, capsys):
    child, _, _ = sparse

    def not_ours(pid, **options):
        if pid == 1:
            raise PermissionError(13, "/proc/1/pagemap: not allowed")
        return process(pid, **options)

    monkeypatch.setattr(scan, "process", not_ours)
    monkeypatch.setattr(processes, "every_pid", lambda: [1, child.pid])
    assert cli.main(["scan", "--all"]) == 0
    assert capsys.readouterr().err == "ksmwalk scan: 1 process may not be read by this user (root may)\n"
    assert cli.main(["scan", "1", str(child.pid)]) == 1
    assert capsys.readouterr().err == "ksmwalk scan: /proc/1/pagemap: not allowed\n"


def test_the_head_says_how_ksm_stands(sparse, monkeypatch, capsys, tmp_path):
    for name, value in (("run", "1\n"), ("pages_shared", "12\n"), ("pages_sharing", "3456\n")):
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(knobs, "KSM", tmp_path)
    monkeypatch.setattr(processes, "marked", lambda pid: False)
    state = scan.ksm_state()
    assert scan_text.head(state) == ["KSM: running (run is 1), 3,456 pages saved by sharing 12. Nothing is marked mergeable."]
    many = [{"pid": n, "name": f"\x1bq{n}"} for n in range(1, 8)]
    assert scan_text.head({**state, "run": 0, "pages_sharing": 0, "marked": many[:2], "unseen": True}) == [
        "KSM: stopped (run is 0). Memory is marked mergeable in \\x1bq1 (1), \\x1bq2 (2), of those that this user may look into."
    ]
    assert "\\x1bq5 (5), 2 more." in scan_text.head({**state, "marked": many})[0]
    monkeypatch.setattr(knobs, "KSM", tmp_path / "nothing")
    assert cli.main(["scan", str(sparse[0].pid)]) == 0
    assert capsys.readouterr().out.startswith("KSM: this kernel has none")


@pytest.mark.skipif(not knobs.KSM.is_dir(), reason="a kernel without KSM")
def test_what_is_marked_is_said():
    with ksm_to_ourselves(), Living() as child:
        area = child.do("new(16 * P)")
        child.do(f"call('madvise', {area}, 16 * P, MERGEABLE)")
        assert processes.marked(child.pid)
        state = scan.ksm_state()
        assert {"pid": child.pid, "name": processes.comm(child.pid)} in state["marked"]
        head = ksmwalk("scan", child.pid).stdout.splitlines()[0]
        assert f"({child.pid})" in head and "marked mergeable in" in head
        (row,) = body(ksmwalk("scan", child.pid, env={"COLUMNS": "80"}).stdout)
        assert row[3:5] == ["64", "KiB"]
        child.close()
    with Living() as child:
        assert not processes.marked(child.pid)


def steady(text):
    """The lines that are the same in two runs: without the times, and without KSM's state, which others change."""
    lines = [re.sub(r"loaded in .*", "", line.rstrip()) for line in text.splitlines()]
    return lines[lines.index("") :]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("areas", [(), ("--areas",)])
def test_a_terminal_gets_what_fits_and_the_same_as_plain_text(sparse, width, areas):
    child, _, _ = sparse
    with Living() as other:
        code, fancy = shown("scan", child.pid, other.pid, *areas, width=width)
        plain = ksmwalk("scan", child.pid, other.pid, *areas, env={"COLUMNS": str(width)}).stdout
    assert code == 0 and max(map(report.cells, plain.splitlines())) <= width
    assert steady(SGR.sub("", fancy)) == steady(plain)
    saved = answer("scan", child.pid)["processes"][0]["totals"]["lookups_saved"]
    assert f"{saved:,}" in plain and "…" in plain


HOSTILE = b"\x1b[2J\x1b]0;owned\x07\xff[red]$x$ \xfe\nnext \xe2\x80\xae"


@pytest.fixture
def hostile(tmp_path):
    """A process whose name, command line and mapped file clear a terminal, break lines and are no UTF-8."""
    path = os.fsencode(tmp_path) + b"/" + HOSTILE
    with open(path, "wb") as file:
        file.write(bytes(P))
    with Living() as child:
        child.do("import mmap")
        child.do(f"keep = mmap.mmap(os.open({path!r}, os.O_RDWR), P)")
        child.do("keep[0]")
        named(child, b"\x1b[2J\n\xff[red]")
        # the kernel shows what stands where the words once were
        where = child.do("[int(word) for word in open('/proc/self/stat', 'rb').read().rpartition(b')')[2].split()[45:47]]")
        words = (HOSTILE + b"\0")[: where[1] - where[0] - 1]
        child.do(f"ctypes.memmove({where[0]}, {words!r}, {len(words)})")
        yield child


def harmless(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("command", [("scan",), ("scan", "--areas"), ("map",)])
def test_no_name_reaches_the_terminal_as_it_is(hostile, command):
    result = ksmwalk(command[0], hostile.pid, *command[1:])
    assert result.returncode == 0 and not result.stderr
    assert harmless(result.stdout) and "\\x1b[2J" in result.stdout and "\ufffd" in result.stdout
    assert "[red]" in result.stdout
    code, fancy = shown(command[0], hostile.pid, *command[1:], width=120)
    assert code == 0 and harmless(SGR.sub("", fancy)) and "\\x1b[2J" in fancy
    # whoever can't print such letters is not stopped by them
    result = ksmwalk(command[0], hostile.pid, *command[1:], env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0 and result.stdout.isascii() and harmless(result.stdout)


def test_json_holds_hostile_names_escaped(hostile):
    for command in ("scan", "map"):
        result = ksmwalk(command, hostile.pid, "--json")
        assert result.returncode == 0 and result.stdout.isascii() and harmless(result.stdout)
        assert json.loads(result.stdout)
    (one,) = json.loads(ksmwalk("scan", hostile.pid, "--json").stdout)["processes"]
    assert one["name"].startswith("\x1b[2J\n") and one["command"].startswith("\x1b[2J")


def test_scan_all_is_not_stopped_by_a_hostile_process(hostile):
    result = ksmwalk("scan", "--all")
    assert result.returncode == 0 and harmless(result.stdout) and str(hostile.pid) in result.stdout


@pytest.mark.parametrize("command", ["scan", "map", "demo"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert "examples:\n" in out and out.count(f"  ksmwalk {command} ") + out.count(f"sudo ksmwalk {command} ") >= 3


def test_an_interrupt_ends_it_with_the_screen_in_order(sparse, monkeypatch, capsys):
    ended = []

    def interrupted(pid, **options):
        raise KeyboardInterrupt

    def steps(items, what):
        try:
            yield from items
        finally:
            ended.append(what)

    monkeypatch.setattr(scan, "process", interrupted)
    monkeypatch.setattr(scan, "progress", steps)
    assert cli.main(["scan", str(sparse[0].pid)]) == 130
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and ended == ["processes"]


@pytest.mark.parametrize("command", ["scan", "map"])
def test_nobody_hears_of_a_reader_that_has_gone(sparse, command):
    ours, theirs = os.pipe()
    os.close(ours)
    result = subprocess.run([sys.executable, "-m", "ksmwalk", command, str(sparse[0].pid)], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (result.returncode, result.stderr) == (141, b"")
