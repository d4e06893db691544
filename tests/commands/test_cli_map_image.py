"""`ksmwalk map --image`: what a guest's page tables map, as a user asks for it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from corefiles import Segment, page, prpsinfo, qemu, write_core

from ksmwalk import PageTables

pytest.importorskip("elftools")


def ksmwalk(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "ksmwalk", "map", *map(str, args)], capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
    )  # fmt: skip


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """A dump of a guest with 5 small pages and a large one mapped, and its CR3."""
    made = PageTables(4)
    made.map_range(0x400000, np.arange(50, 55))
    made.map(0x40000000, 512, level=2)
    made.map((1 << 47) + (1 << 40), 60)
    memory = [bytes(4096), *(made.rows[row].tobytes() for row in range(1, len(made.rows))), *(page(7) for _ in range(60))]
    path = write_core(tmp_path_factory.mktemp("guest") / "guest.elf", [Segment(0, memory, paddr=0)], qemu(made.root << 12))
    return path, made.root << 12


def test_the_notes_cr3_is_taken_where_none_is_given(guest):
    path, cr3 = guest
    done = ksmwalk("--image", path, COLUMNS="80")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"CR3 {cr3:#x} of guest.elf: 2.0 MiB mapped in 2 areas, 2.0 MiB present"
    assert "20 KiB present" not in done.stdout and "20 KiB small pages, 2 MiB large pages" in done.stdout
    assert "by QEMU's note of CPU 0" in " ".join(lines) and all(len(line) <= 80 for line in lines)
    given = ksmwalk("--image", path, "--cr3", f"{cr3:x}", "--levels", 4, COLUMNS="80").stdout.splitlines()
    assert given[:8] == lines[:8] and "as given" in " ".join(given)


def test_json_says_what_is_mapped_and_has_no_pid(guest):
    path, cr3 = guest
    said = json.loads(ksmwalk("--image", path, "--cr3", hex(cr3), "--json").stdout)
    assert said["pid"] is None and said["mapped"] == said["present"] == (512 + 5) * 4096
    assert said["present_by_kind"] == {"small pages": 5 * 4096, "large pages": 512 * 4096}
    kernel = json.loads(ksmwalk("--image", path, "--half", "kernel", "--json").stdout)
    assert [piece["start"] for piece in kernel["pieces"]] == [0xFFFF_8100_0000_0000]


def test_the_kernel_half_is_drawn_where_the_user_half_is_empty(tmp_path):
    made = PageTables(4)
    made.map(1 << 47, 3)
    memory = [bytes(4096), *(made.rows[row].tobytes() for row in range(1, len(made.rows)))]
    path = write_core(tmp_path / "guest", [Segment(0, memory, paddr=0)], qemu(0))
    done = ksmwalk("--image", path, "--cr3", f"{made.root << 12:#x}")
    assert "ffff800000000000" in done.stdout and done.returncode == 0


def test_a_picture_is_drawn(guest, tmp_path):
    pytest.importorskip("matplotlib")
    done = ksmwalk("--image", guest[0], "--plot", tmp_path / "map.svg")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "map.svg").read_text()
    assert "<svg" in drawn


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("1", "--image", "FILE"), "PID 1 and --image: only one"),
        (("1", "--cr3", "1000"), "--cr3: goes with --image"),
        (("1", "--half", "user"), "--half: goes with --image"),
        (("--image", "FILE", "--cr3", "0x3000000"), "CR3 0x3000000 (as given) is not the root of page tables of 4 levels: no such"),
        (("--image", "FILE", "--levels", "5"), "is not the root of page tables of 5 levels"),
        (("--image", "/dev/zero"), "/dev/zero: is no regular file"),
        (("--image", "/nonexistent/x"), "/nonexistent/x: No such file"),
        (("--image", "TEXT"), "not a multiple of 4096"),
    ],
)
def test_what_can_not_be_is_one_line_and_exit_code_2(guest, tmp_path, args, words):
    text = tmp_path / "text"
    text.write_text("no memory")
    named = {"FILE": str(guest[0]), "TEXT": str(text)}
    done = ksmwalk(*(named.get(one, one) for one in args))
    assert done.returncode == 2 and not done.stdout
    assert words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["zz", "-1", "1" * 17, ""])
def test_a_cr3_that_is_no_hexadecimal_number_is_refused(guest, text):
    done = ksmwalk("--image", guest[0], f"--cr3={text}")
    assert done.returncode == 2 and "--cr3" in done.stderr


def test_without_anything_to_draw_the_usage_is_said():
    done = ksmwalk()
    assert done.returncode == 2 and "PID or --image FILE is required" in done.stderr


def test_a_process_core_is_no_guest(tmp_path):
    path = write_core(tmp_path / "core", [Segment(0x7F00_0000_0000, [page(1)])], prpsinfo(3, b"x"))
    done = ksmwalk("--image", path, "--cr3", "1000")
    assert done.returncode == 2 and "the core of a process" in done.stderr
