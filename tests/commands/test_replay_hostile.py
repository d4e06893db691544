"""Whatever stands in a file, `ksmwalk replay` says one line of it: no traceback, no hang, the other files go on."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ksmwalk.commands.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"
#: seconds that no file may take, on a machine that does other things as well
PATIENCE = 20.0

ABSURD = [
    -1, 0, 1, 2, 255, 4096, 1 << 31, 2**31 - 1, 10**12, (1 << 45) - 1, 1 << 45, 2**63, 2**64 - 1, 2**64, 10**300,
    1.5, -0.0, 1e308, True, False, None, "", "A", "none", "\ud800", "x" * 5000, "9" * 5000, "\x1b[2J", [], {}, [[]],
    [None], {"prot": "rw"}, {"": []}, [0, 1], [[0, 0]], "step", "mergeable", "k99999999999",
]  # fmt: skip


def places(data, path=()):
    """Every place in a JSON value, the value itself first."""
    yield path
    if isinstance(data, dict):
        for key in data:
            yield from places(data[key], (*path, key))
    elif isinstance(data, list):
        for index in range(len(data)):
            yield from places(data[index], (*path, index))


def spoil(rng: random.Random, data):
    """Change one to three things of a recording: values, types, keys, order."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        all_places = [path for path in places(data) if path]
        if not all_places:
            return data
        # shallow places are few, and as likely as deep ones
        depth = rng.choice(sorted({len(path) for path in all_places}))
        *to, last = rng.choice([path for path in all_places if len(path) == depth])
        holder = data
        for key in to:
            holder = holder[key]
        match rng.randrange(6):
            case 0 | 1 | 2:
                holder[last] = copy.deepcopy(rng.choice(ABSURD))
            case 3:
                del holder[last]
            case 4 if isinstance(holder, dict):
                holder[rng.choice(["", "op", "ops", "c", "more", "A", "\ud800"])] = holder.pop(last)
            case 4:
                holder.insert(last, copy.deepcopy(rng.choice(ABSURD)))
            case 5 if isinstance(holder, list):
                rng.shuffle(holder)
            case 5:
                holder[last] = [holder[last]]
    return data


def confuse(rng: random.Random, data):
    """Put numbers and words of a scenario in each other's place, and operations too: much of that can still be run."""
    data = data["scenario"]
    ops = data["ops"]
    for _ in range(rng.choice((1, 2, 5))):
        leaves = [path for path in places(ops) if len(path) > 1]
        *to, last = rng.choice(leaves)
        holder = ops
        for key in to:
            holder = holder[key]
        alike = []
        for path in leaves:
            value = ops
            for key in path:
                value = value[key]
            if type(value) is type(holder[last]):
                alike.append(value)
        if not (last == 0 and len(to) == 1):
            holder[last] = copy.deepcopy(rng.choice(alike))
        ops.insert(rng.randrange(len(ops)), copy.deepcopy(rng.choice(ops)))
        if rng.random() < 0.3 and len(ops) > 2:
            del ops[rng.randrange(len(ops))]
    for op in ops:
        # many batches are as much work as they are
        if op[0] == "step" and len(op) == 2 and isinstance(op[1], int):
            op[1] = min(op[1], 50)
    return data


def cut(rng: random.Random, text: bytes) -> bytes:
    """Damage the bytes of a file."""
    at = rng.randrange(len(text))
    match rng.randrange(4):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        case 2:
            return text[:at] + rng.choice([b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"\xff", b"[" * 2000]) + text[at:]
    return text[:at] + text[rng.randrange(len(text)) :]


def replayed(capsys, *line: str) -> tuple[int, str, str]:
    """Run the command here; anything but an exit code fails the test that asks."""
    start = time.monotonic()
    try:
        code = main(["replay", *line])
    except SystemExit as leaving:
        code = leaving.code
    assert time.monotonic() - start < PATIENCE, line
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "\x1b" not in err + out
    return code, out, err


@pytest.fixture(scope="module")
def small():
    """Recordings that take little time, with all kinds of operations among them."""
    texts = [path.read_bytes() for path in sorted(GOLDEN.glob("*.json"))]
    return [text for text in texts if len(text) < 12_000]


@pytest.mark.parametrize("seed", range(300))
def test_a_spoiled_recording_is_named_or_run(seed, small, tmp_path, capsys):
    rng = random.Random(f"spoiled {seed}")
    text = rng.choice(small)
    if rng.random() < 0.8:
        text = json.dumps(rng.choice((spoil, confuse))(rng, json.loads(text))).encode()
    else:
        text = cut(rng, text)
    path = tmp_path / "spoiled.json"
    path.write_bytes(text)
    check = rng.random() < 0.7
    code, out, err = replayed(capsys, *(["--check"] if check else []), *(["--json"] if seed % 3 == 0 else []), str(path))
    assert code in (0, 1, 2)
    assert code != 2 or "spoiled.json" in err
    if seed % 3 == 0:
        json.loads(out)


OPS = [["spawn", "A"], ["mmap", "A", 16, 4]]


def scenario(*ops, **more) -> dict:
    return {"name": "odd", "ops": [*OPS, *ops], **more}


HOSTILE = {
    "lists in lists": b"[" * 50_000 + b"]" * 50_000,
    "objects in objects": b'{"ops":' * 50_000,
    "deep in an operation": b'{"ops":[["touch","A",' + b"[" * 900 + b"]" * 900 + b"]]}",
    "a step for ever": json.dumps(scenario(["step", 2**31 - 1])).encode(),
    "steps in all": json.dumps(scenario(*[["step", 999_999]] * 3)).encode(),
    "memset of a terabyte": json.dumps(scenario(["memset", "A", 16, 1, 10**12])).encode(),
    "NaN": b'{"ops":[["sleep", NaN]]}',
    "Infinity": b'{"ops":[["sleep", Infinity]]}',
    "beyond a float": b'{"ops":[["sleep", 1e999]]}',
    "a huge number": b'{"ops":[["run", ' + b"9" * 5000 + b"]]}",
    "a large number": b'{"ops":[["run", ' + b"9" * 4000 + b"]]}",
    "a huge word": json.dumps(scenario(["set", "pages_to_scan", "9" * 5000])).encode(),
    "a knob that is a list": b'{"ops":[["set", [], 1]]}',
    "an advice that is a list": json.dumps(scenario(["madvise", "A", 16, 4, ["mergeable"]])).encode(),
    "a process that is an object": b'{"ops":[["spawn", {}]]}',
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "a name that leads elsewhere": b'{"name":"../../elsewhere","ops":[]}',
    "a name with an escape": b'{"name":"\\u001b[2J","ops":[]}',
    "records of a terabyte": b'{"scenario":{"ops":[["spawn","A"]]},"records":[{"op":["spawn","A"],'
    b'"p":{"A":[[0,1000000000000,"a"]]}}]}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("option", [[], ["--check"]], ids=["run", "check"])
def test_a_hostile_file_is_named_in_one_line(text, option, tmp_path, capsys):
    (tmp_path / "hostile.json").write_bytes(text)
    code, out, err = replayed(capsys, *option, str(tmp_path / "hostile.json"))
    assert code == 2 and "hostile.json" in err and len(err.splitlines()) == 1
    assert len(err) < 1500


RECORD = {"op": ["spawn", "A"], "s": {"A": [0, 0, 0, 0, 0, 0]}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"ret": "0"}, {"ret": 1.5}, {"c": []}, {"c": {"pages_shared": "1"}}, {"c": {"a b": 1}}, {"s": [1]}, {"s": {"A": 5}},
        {"s": {"A": [0] * 5}}, {"s": {"A": [0, 0, 0, 0, 0, "0"]}}, {"s": {"A B": [0] * 6}}, {"p": None},
        {"p": {"A": [[1, 2]]}}, {"p": {"A": [[1, "2", "a"]]}}, {"p": {"A": [[1, -2, "a"]]}}, {"p": {"A": [[1, 2, ["a"]]]}},
        {"p": {"A": [[1, 2, ""]]}}, {"p": {"A": [[1, 2, "kx"]]}}, {"p": {"A": {}}}, {"t": "start"}, {"t": [1]}, {"t": [""]},
        {"t": ["\x1b[2J"]}, {"more": 1},
    ],
)  # fmt: skip
def test_a_wrong_part_of_a_record_is_named(wrong, tmp_path, capsys):
    data = {"scenario": {"name": "odd", "ops": [["spawn", "A"]]}, "records": [{**RECORD, **wrong}]}
    (tmp_path / "odd.json").write_text(json.dumps(data))
    code, _, err = replayed(capsys, "--check", str(tmp_path / "odd.json"))
    assert code == 2 and "odd.json: record 0: " in err


def test_the_record_that_is_right_is_taken(tmp_path, capsys):
    data = {"scenario": {"name": "odd", "ops": [["spawn", "A"]]}, "records": [RECORD]}
    (tmp_path / "odd.json").write_text(json.dumps(data))
    assert replayed(capsys, "--check", str(tmp_path / "odd.json"))[:2] == (0, "1 of 1 agree\n")


def test_what_is_no_file_is_named(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path, tmp_path / "none", "/dev/null"):
        code, _, err = replayed(capsys, str(path))
        assert code == 2 and str(path) in err


def test_a_pipe_that_is_written_into_is_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    ready = os.open(tmp_path / "pipe", os.O_RDWR)

    def write():
        time.sleep(0.2)
        os.write(ready, b'{"name": "piped", "ops": [["spawn", "A"]]}')
        os.close(ready)

    writer = threading.Thread(target=write)
    writer.start()
    code, out, _ = replayed(capsys, str(tmp_path / "pipe"))
    writer.join()
    assert code == 0 and json.loads(out)["op"] == ["spawn", "A"]


def test_a_file_that_never_ends_is_read_up_to_a_bound(tmp_path, capsys):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(1 << 40)
    code, _, err = replayed(capsys, str(tmp_path / "large.json"))
    assert code == 2 and "large.json" in err and "more bytes" in err


def test_a_broken_file_of_many_is_named_and_the_others_go_on(tmp_path, capsys):
    good = str(GOLDEN / "pair_order.json")
    (tmp_path / "broken.json").write_text("{")
    code, out, err = replayed(capsys, "--check", good, str(tmp_path / "broken.json"), good)
    assert code == 1 and "broken.json" in err and out == "2 of 3 agree\n"
    code, out, _ = replayed(capsys, "--json", good, str(tmp_path / "broken.json"), good)
    told = json.loads(out)["files"]
    assert code == 1 and [("records" in one, "error" in one) for one in told] == [(True, False), (False, True), (True, False)]
    assert len(told[0]["records"]) == len(told[2]["records"]) > 20


def test_a_process_whose_fork_failed_is_named(tmp_path, capsys):
    """A scenario that runs out of memory half-way keeps the records that it made, and says why it ends."""
    ops = [["spawn", "A"], ["mmap", "A", 1 << 20, 1 << 33, {"populate": 1}], ["touch", "A", [5]]]
    (tmp_path / "full.json").write_text(json.dumps({"name": "full", "ops": ops}))
    code, out, err = replayed(capsys, str(tmp_path / "full.json"))
    assert code == 2 and "full: op 1: no frames left" in err and len(out.splitlines()) == 1
    code, out, _ = replayed(capsys, "--json", str(tmp_path / "full.json"))
    assert len(json.loads(out)["files"][0]["records"]) == 1


def test_records_are_written_as_they_come(tmp_path):
    """The first is read long before the last is made, and what is not read any more is not made."""
    (tmp_path / "long.json").write_text(json.dumps(scenario(["step", 1_000_000 - 2])))
    with subprocess.Popen(
        [sys.executable, "-m", "ksmwalk", "replay", str(tmp_path / "long.json")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert json.loads(process.stdout.readline())["op"] == ["spawn", "A"]
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env={**os.environ, "PY": sys.executable})


def test_output_that_can_not_be_written_ends_it_with_a_line():
    command = f'"$PY" -m ksmwalk replay {GOLDEN / "pair_order.json"}'
    closed = shell(f"{command} >&-")
    assert closed.returncode == 2 and "standard output is closed" in closed.stderr and len(closed.stderr.splitlines()) == 1
    full = shell(f"{command} >/dev/full")
    assert full.returncode == 2 and "No space left" in full.stderr and len(full.stderr.splitlines()) == 1
    silent = shell(f"{command} --no-such-option 2>&-")
    assert silent.returncode == 2 and silent.stderr == ""


def test_a_name_of_a_file_that_is_no_text_is_printed_all_the_same(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\x1b[2J.json"
    with open(name, "wb") as file:
        file.write(b"{")
    told = subprocess.run([sys.executable, "-m", "ksmwalk", "replay", "--check", name], capture_output=True)
    assert told.returncode == 2 and b"Traceback" not in told.stderr and b"\x1b" not in told.stderr


def test_help_tells_the_exit_codes(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert "exit codes" in told and "141" in told
