"""What is published: the source distribution is whole, builds nothing silently, and one place says the version."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import ksmwalk

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(ksmwalk.__file__).parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no source tree")


@pytest.fixture
def unbuilt(tmp_path):
    """The source tree as it is before anything was built in it."""
    made = ("_layout.pxd", "_layout_table.h", "_arrays.pxi", "_records.py")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "worker", *made)
    shutil.copytree(ROOT / "ksmwalk", tmp_path / "tree" / "ksmwalk", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    return tmp_path / "tree"


def python(*args, cwd, **env):
    """Run this Python as a user would in a folder: the folder itself comes first on the path."""
    whole = {**os.environ, **env}
    whole.pop("PYTHONSAFEPATH", None)
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, env=whole)


# ------------------------------------------------------------------ the source distribution


def tracked():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    done = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"git can't read this checkout: {done.stderr.strip()}")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_source_distribution_holds_every_file_of_the_checkout(tmp_path):
    wanted = {name for name in tracked() if not name.startswith(".ci/")}
    done = python("setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "-d", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        there = {name.partition("/")[2] for name in tar.getnames()}
    assert wanted - there == set()
    made = [name for name in there if name.endswith((".so", ".o", ".pyc", "kernel/worker")) or name.startswith("build/")]
    assert made == [], "nothing that was made here"
    c_files = {name for name in there if name.startswith("ksmwalk/") and name.endswith(".c")}
    assert c_files <= wanted, "no generated C"


def test_sources_without_pyx_files_are_refused(unbuilt):
    for path in unbuilt.rglob("*.pyx"):
        path.unlink()
    for command in (["sdist"], ["bdist_wheel"]):
        done = python("setup.py", "-q", *command, cwd=unbuilt)
        assert done.returncode != 0
        assert "no .pyx file" in done.stderr and "Traceback" not in done.stderr
    assert not (unbuilt / "dist").exists()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "no-such-compiler -O2"])
def test_a_missing_compiler_is_said_before_anything_is_made(unbuilt, compiler):
    began = time.monotonic()
    done = python("setup.py", "-q", "build_ext", "--inplace", cwd=unbuilt, CC=compiler)
    took = time.monotonic() - began
    assert done.returncode != 0
    assert "needs a C compiler, and 'no-such-compiler' is not there" in done.stderr and "Traceback" not in done.stderr
    assert not list(unbuilt.rglob("_*.c")), "nothing that is made"
    assert took < 5, "half a second on an idle machine; Cython alone would take half a minute"


def test_a_compiler_that_compiles_nothing_is_told_from_missing_headers(unbuilt):
    done = python("setup.py", "-q", "build_ext", "--inplace", cwd=unbuilt, CC="false")
    assert done.returncode != 0 and "'false' compiles nothing" in done.stderr and "Traceback" not in done.stderr
    shim = unbuilt / "cc-without-python"
    shim.write_text("#!/bin/sh\ngrep -q Python.h \"$3\" \"$2\" 2> /dev/null && exit 1\nexit 0\n")
    shim.chmod(0o755)
    done = python("setup.py", "-q", "build_ext", "--inplace", cwd=unbuilt, CC=str(shim))
    assert done.returncode != 0 and "finds no Python.h" in done.stderr and "python3-dev" in done.stderr


# ------------------------------------------------------------------ the checkout


def test_the_unbuilt_source_tree_says_in_one_line_how_to_go_on(unbuilt):
    done = python("-c", "import ksmwalk", cwd=unbuilt, PYTHONPATH="")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith("ImportError: ") and "source tree" in last and "pip install -e ." in last and "`pytest`" in last
    assert "circular" not in done.stderr and "During handling" not in done.stderr


def test_an_import_that_fails_for_another_reason_is_not_explained_away(unbuilt):
    (unbuilt / "numpy.py").write_text("raise ImportError('numpy is broken here', name='numpy')")
    shutil.copytree(PACKAGE, unbuilt / "built" / "ksmwalk", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(unbuilt / "ksmwalk")
    done = python("-c", "import ksmwalk", cwd=unbuilt, PYTHONPATH=str(unbuilt / "built"))
    assert done.returncode != 0 and "numpy is broken here" in done.stderr and "source tree" not in done.stderr


def test_python_m_pytest_in_an_unbuilt_checkout_tests_what_is_installed(unbuilt):
    (unbuilt / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", unbuilt / "tests")
    shutil.copytree(ROOT / "tests" / "support", unbuilt / "tests" / "support")
    (unbuilt / "tests" / "test_which.py").write_text(
        "import os, subprocess, sys\n"
        "import ksmwalk\n"
        "def test_which():\n"
        "    assert os.path.dirname(ksmwalk.__file__) == os.environ['WANTED']\n"
        "    out = subprocess.run([sys.executable, '-m', 'ksmwalk', '--version'], capture_output=True, text=True)\n"
        "    assert out.stdout.startswith('ksmwalk '), out.stderr\n"
    )
    elsewhere = {} if "site-packages" in str(PACKAGE) else {"PYTHONPATH": str(PACKAGE.parent)}
    done = python("-m", "pytest", "-q", "tests", cwd=unbuilt, WANTED=str(PACKAGE), **elsewhere)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_without_any_ksmwalk_the_tests_say_what_to_install(unbuilt):
    (unbuilt / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", unbuilt / "tests")
    shutil.copytree(ROOT / "tests" / "support", unbuilt / "tests" / "support")
    (unbuilt / "tests" / "test_which.py").write_text("import ksmwalk\n")
    hide = "import importlib.util, pytest, sys; importlib.util.find_spec = lambda name: None"
    done = python("-c", f"{hide}; sys.exit(pytest.main(['-q', 'tests']))", cwd=unbuilt)
    assert done.returncode != 0
    assert "pip install '.[test]'" in done.stderr + done.stdout


# ------------------------------------------------------------------ what is said about it


def test_one_place_says_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and "version" in project["dynamic"]
    assert f"version: {ksmwalk.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(ksmwalk.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
    if "site-packages" in str(PACKAGE):
        assert metadata.version("ksmwalk") == ksmwalk.__version__


def test_the_readme_has_no_link_that_leads_nowhere_on_a_package_index():
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert links and [link for link in links if not link.startswith(("https://", "#"))] == []
    base = "https://github.com/ksmwalk/ksmwalk/blob/main/"
    raw = "https://raw.githubusercontent.com/ksmwalk/ksmwalk/main/"
    for link in links:
        for prefix in (base, raw):
            if link.startswith(prefix):
                assert (ROOT / link.removeprefix(prefix).partition("#")[0]).exists(), link


# ------------------------------------------------------------------ what is built


@pytest.mark.skipif(ksmwalk.build_info()["profile"] != "release", reason="not what users install")
def test_the_release_build_carries_no_debug_information():
    compiled = sorted(PACKAGE.rglob("*.so"))
    assert compiled
    assert [path.name for path in compiled if b".debug_info" in path.read_bytes()] == []
    assert sum(path.stat().st_size for path in compiled) < 4 << 20, "a wheel is under 2 MB: this is it unpacked"
