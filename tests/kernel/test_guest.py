"""Other kernels in emulated machines: what is put into one, what is said where there is none, and one that answers.

The last needs QEMU and a kernel image, which the environment variable KSMWALK_GUEST_KERNEL names (a vmlinuz).
"""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from ksmwalk import kernels
from ksmwalk.kernel import guest, guest_archive
from ksmwalk.kernel.fitting import fit, lacks
from ksmwalk.kernel.knobs import KernelUnavailable
from ksmwalk.kernel.verify import verify
from ksmwalk.scenarios.format import load, scenario_from_json
from ksmwalk.scenarios.generate import generate
from ksmwalk.scenarios.replay import replay

IMAGE = os.environ.get("KSMWALK_GUEST_KERNEL", "")
NUMA = Path(__file__).parents[1] / "golden" / "guests" / "numa"
needs_qemu = pytest.mark.skipif(shutil.which(guest.QEMU) is None, reason=f"no {guest.QEMU}")
needs_kernel = pytest.mark.skipif(not IMAGE, reason="KSMWALK_GUEST_KERNEL names no kernel image")


def entries(data: bytes):
    """Name, mode, device and content of everything in a newc archive, as `cpio` and kernels read it."""
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, device, length = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = data[at + 110 : at + 109 + length].decode()
        at += 110 + length + -(110 + length) % 4
        if name == "TRAILER!!!":
            return
        yield name, mode, device, data[at : at + size]
        at += size + -size % 4


def test_an_archive_is_read_back_as_it_was_written():
    made = guest_archive.Archive()
    made.file("/a/b/one", b"x" * 5, 0o755)
    made.file("/a/two", b"")
    made.file("/a/two", b"not again")
    made.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    found = {name: (mode, device, data) for name, mode, device, data in entries(made.whole())}
    assert list(found) == ["a", "a/b", "a/b/one", "a/two", "dev", "dev/console"]
    assert found["a/b/one"] == (stat.S_IFREG | 0o755, (0, 0), b"xxxxx") and found["a/two"][2] == b""
    assert stat.S_ISDIR(found["a/b"][0]) and found["dev/console"][1] == (5, 1)


@pytest.mark.skipif(guest_archive.why_not() is not None, reason=str(guest_archive.why_not()))
def test_a_guest_gets_this_python_and_what_it_loads_and_no_source():
    names = {name for name, *_ in entries(guest_archive.build())}
    assert os.path.realpath(sys.executable).lstrip("/") in names
    assert any(name.endswith("ksmwalk/kernel/guest_harness.pyc") for name in names)
    assert any(name.endswith("ksmwalk/kernel/worker") for name in names) and "proc" in names
    assert any("ld-linux" in name or "ld-musl" in name for name in names)
    assert not [name for name in names if name.endswith(".py")]


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    assert "is no file" in guest.why_not(tmp_path)
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"no kernel")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install it" in guest.why_not(image)
    with pytest.raises(KernelUnavailable, match="is not there"), guest.guest(image):
        pass


@needs_qemu
def test_what_is_no_kernel_is_told_in_the_emulators_words(tmp_path):
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"no kernel" * 1000)
    with pytest.raises(KernelUnavailable, match="the guest: "), guest.guest(image, say=lambda text: None):
        pass


def test_scenarios_are_fitted_to_what_a_kernel_has():
    ops = [["spawn", "A"], ["set", "smart_scan", 1], ["place", "A", 10, 1, 1]]
    made = scenario_from_json({"name": "x", "tunables": {"smart_scan": 1, "pages_to_scan": 5}, "ops": ops})
    assert fit(made, set()) is made
    fitted = fit(made, {"smart_scan"})
    assert fitted.tunables == {"smart_scan": 0, "pages_to_scan": 5} and fitted.ops == [ops[0], ops[2]]
    assert lacks(made, set()) is None and lacks(made, {"two NUMA nodes"}) == "no two NUMA nodes"


@needs_qemu
@needs_kernel
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_model_of_a_guest_s_kernel_agrees_with_it(nodes):
    told: list[str] = []
    with guest.guest(Path(IMAGE), nodes, told.append) as taken:
        version = taken.profile.profile.version
        files = [load(path) for path in sorted(NUMA.glob("numa_move_*.json"))[:3]] if nodes == 2 else []
        scenarios = files or [generate(5, number) for number in range(3)]
        results = verify(scenarios, lambda one: replay(one, kernel=version), taken, say=told.append, shrink_seconds=0)
    assert version in kernels.PROFILES and results.count("agrees") == len(scenarios), "\n".join(told)
