"""The memory for ChampSim (`examples/champsim`) without ChampSim: compiled against the package that the tests found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedding import embedding_flags

import ksmwalk

HERE = Path(__file__).parents[2] / "examples" / "champsim"
sys.path.insert(0, str(HERE))

import apply  # noqa: E402 - found through the line above
import traces  # noqa: E402


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not there")
def test_the_memory_alone(tmp_path):
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", str(HERE / "alone.cpp")]
    command += ["-o", str(tmp_path / "alone"), f"-I{ksmwalk.get_include()}", *embedding_flags()]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    env = {**os.environ, "KSMWALK_PYTHON": sys.executable, "PYTHONPATH": str(Path(ksmwalk.__file__).parents[1])}
    done = subprocess.run([str(tmp_path / "alone")], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "alone"


def test_traces_are_records_of_64_bytes_with_contents_beside_them(tmp_path):
    for core in (0, 1):
        traces.write(tmp_path, core, instructions=2000, equal=True)
    records = np.fromfile(tmp_path / "core0.trace", traces.INSTRUCTION)
    assert traces.INSTRUCTION.itemsize == 64 and len(records) == 2000
    assert (records["source_memory"][:, 1:] == 0).all() and (records["destination_memory"] > 0).any()
    pages = [np.fromfile(tmp_path / f"core{core}.trace.pages", traces.CONTENT) for core in (0, 1)]
    assert (pages[0]["key"] == pages[1]["key"]).all() and not np.intersect1d(pages[0]["page"], pages[1]["page"]).size
    touched = np.unique(records["source_memory"][:, 0] // 4096)
    assert np.isin(pages[0]["page"], touched).mean() > 0.5
    traces.write(tmp_path, 0, instructions=10, equal=False)
    assert not (tmp_path / "core0.trace.pages").exists()


def places(folder):
    """Files of a ChampSim of which there is nothing but the places where something goes."""
    for name, words, _, _ in apply.EDITS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if words not in text:
            path.write_text(f"{text}// ...\n{words}\n")
    return {path: path.read_text() for path in folder.rglob("*.*")}


def test_every_place_gets_its_line(tmp_path):
    before = places(tmp_path)
    apply.apply(tmp_path)
    for name in ("used", "store", "operate", "connect", "report"):
        assert sum(f"ksm_hooks::{name}(" in path.read_text() for path in before) == 1
    assert all("ksm_hooks" in path.read_text() for path in before)
    for ours, place in apply.FILES.items():
        assert (tmp_path / place).read_bytes() == (HERE / ours).read_bytes()


def test_a_champsim_that_is_another_is_not_changed(tmp_path):
    places(tmp_path)
    other = tmp_path / "src" / "cache.cc"
    other.write_text("something else\n")
    before = {path: path.read_text() for path in tmp_path.rglob("*.*")}
    with pytest.raises(SystemExit, match="cache.cc: 0 places"):
        apply.apply(tmp_path)
    assert {path: path.read_text() for path in tmp_path.rglob("*.*")} == before
