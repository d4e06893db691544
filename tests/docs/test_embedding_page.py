"""The C and C++ of the embedding page: built as the page says, against the package that the tests found, and run."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import guidecode
import pytest
from embedding import embedding_flags, run

import ksmwalk

pytestmark = [
    pytest.mark.skipif(not guidecode.DOCS.is_dir(), reason="the documentation is not beside these tests"),
    pytest.mark.skipif(not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="Python's headers are not there"),
]


def files(folder, *names):
    found = {block.file: block for block in guidecode.blocks(guidecode.DOCS / "guide" / "embedding.md") if block.file}
    for name in names:
        (folder / name).write_text(found[name].code)
    return found


def need(compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not there")
    return compiler


def start(program, folder):
    env = {**os.environ, "KSMWALK_PYTHON": sys.executable, "PYTHONPATH": str(Path(ksmwalk.__file__).parents[1])}
    done = subprocess.run([str(program)], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "name, compiler, flags",
    [("main.c", "gcc", ["-std=c11"]), ("main.cpp", "g++", ["-std=c++17", "-Wshadow", "-Wconversion", "-Wpedantic"])],
)
def test_a_program_with_a_main_of_its_own(tmp_path, name, compiler, flags):
    need(compiler)
    found = files(tmp_path, name)
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, *warnings, name, "-o", "program", f"-I{ksmwalk.get_include()}", *embedding_flags()]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert start(tmp_path / "program", tmp_path) == found[name].output


def test_what_comes_before_start_is_an_exception(tmp_path):
    need("g++")
    (tmp_path / "early.cpp").write_text(
        '#include "ksmwalk.hpp"\n#include <cstdio>\n'
        "int main() { try { ksmwalk::Host host(4096); } catch (const std::logic_error &e) { std::puts(e.what()); } }\n"
    )
    command = ["g++", "-std=c++17", "-O0", "early.cpp", "-o", "program", f"-I{ksmwalk.get_include()}", *embedding_flags()]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert start(tmp_path / "program", tmp_path) == "ksmwalk: start() comes first, or kw_import() in a module\n"


def test_a_cpp_module_that_python_calls(tmp_path):
    need("g++")
    found = files(tmp_path, "rounds.cpp", "setup_rounds.py", "use_rounds.py")
    run(["setup_rounds.py", "-q", "build_ext", "--inplace"], tmp_path)
    assert run(["use_rounds.py"], tmp_path) == found["use_rounds.py"].output
