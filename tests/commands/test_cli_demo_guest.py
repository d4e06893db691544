"""`ksmwalk demo --guest`: kernels of before and after the range walk, made up here but for one that answers.

That needs QEMU and a kernel image, which the environment variable KSMWALK_GUEST_KERNEL names (a vmlinuz).
"""

import contextlib
import json
import os
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from ksmwalk import kernels
from ksmwalk.commands import cli, demo_guest
from ksmwalk.kernel import giants, guest
from ksmwalk.kernel.giants import Measured
from ksmwalk.kernel.knobs import KernelUnavailable

IMAGE = os.environ.get("KSMWALK_GUEST_KERNEL", "")
COSTS = {"scan": 6e-5, "page": 2e-5, "lookup": 2e-7, "entry": 5e-9}


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Two images, and machines that take what their kernels' work costs, a tenth more each time."""

    @contextlib.contextmanager
    def started(image, nodes, say, *, counted):
        assert nodes == 1 and counted
        found = kernels.find(image.name.removeprefix("vmlinuz-"))

        def scanned(giant, patience):
            seconds = giants.predicted(giants.work_of(giant, found.profile.version), COSTS)
            assert seconds < patience
            return Measured(1 << 39, [seconds, 1.1 * seconds, 1.2 * seconds], giant.pages)

        yield SimpleNamespace(kernel=image.name, profile=found, scanned=scanned)

    monkeypatch.setattr(demo_guest.guest, "guest", started)
    monkeypatch.setattr(demo_guest.guest, "why_not", lambda image: None)
    return [str(tmp_path / f"vmlinuz-{version}") for version in ("6.12.43", "6.12.117")]


def test_spans_grow_to_the_one_that_was_asked_for():
    assert demo_guest.spans(1 << 40) == [1 << n for n in (30, 32, 34, 36, 38, 40)]
    assert demo_guest.spans(1 << 30) == [1 << 30] and demo_guest.spans(1 << 21) == [1 << 21]
    assert demo_guest.spans(100 << 30) == [1 << 30, 4 << 30, 16 << 30, 64 << 30, 100 << 30]


def test_both_kernels_beside_the_model(made_up, capsys):
    assert cli.main(["demo", "--span", "1T", "--guest", *made_up]) == 0
    out = capsys.readouterr().out
    assert "vmlinuz-6.12.43 looks up one address after the other." in out and "268,435,456" in out
    assert "vmlinuz-6.12.117 walks page tables." in out
    assert out.count(" 1 TiB") == 2 and "1 TiB, 1 page, in the same emulator: " in out and "before, " in out


def test_as_json(made_up, capsys):
    assert cli.main(["demo", "--span", "16G", "--pages", "3", "--guest", *made_up, "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out)
    assert before["by_address"] and not after["by_address"]
    assert [row["span"] for row in before["rows"]] == [1 << 30, 4 << 30, 16 << 30]
    for row in (*before["rows"], *after["rows"]):
        assert row["visits"] == row["pages"] == 3 and len(row["scans"]) == 3
        # what is fitted is the medians
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.02)
    assert before["costs"]["lookup"] == pytest.approx(1.1 * COSTS["lookup"], rel=0.01)


def test_what_would_take_too_long_is_not_tried(made_up, capsys):
    assert cli.main(["demo", "--span", "32T", "--guest", *made_up]) == 0
    out = capsys.readouterr().out
    assert out.count("not tried") == 2 and "in the same emulator" not in out


def test_drawn(made_up, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        path = tmp_path / f"scans.{ending}"
        assert cli.main(["demo", "--span", "64G", "--guest", *made_up, "--plot", str(path)]) == 0
        assert path.read_bytes().startswith(start)
    assert "looks up" in capsys.readouterr().out


def test_what_can_not_be_is_said_before_anything_is_started(made_up, tmp_path, monkeypatch, capsys):
    for words, reason in (
        (["--plot", "x.png"], "--plot goes with --guest"),
        (["--kernel", "--guest", *made_up], "one at a time"),
        (["--guest", *made_up, "--plot", str(tmp_path / "x.gif")], "must end in" if find_spec("matplotlib") else "matplotlib"),
    ):
        assert cli.main(["demo", *words]) == 2
        assert reason in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(["demo", "--guest", str(tmp_path / "none")]) == 2
    assert "is no file" in capsys.readouterr().err


def test_a_kernel_that_ends_is_said(made_up, monkeypatch, capsys):
    def refused(*args, **how):
        raise KernelUnavailable("the guest: it has ended")

    monkeypatch.setattr(demo_guest.guest, "guest", refused)
    assert cli.main(["demo", "--guest", *made_up]) == 2
    assert "the guest: it has ended" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which(guest.QEMU) is None or not IMAGE, reason="no QEMU, or KSMWALK_GUEST_KERNEL names no kernel image")
def test_a_real_kernel_takes_what_the_model_says(capsys):
    assert cli.main(["demo", "--span", "4G", "--guest", IMAGE, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        assert row["visits"] in (1, None) and row["predicted"] == pytest.approx(row["measured"], rel=0.3)
