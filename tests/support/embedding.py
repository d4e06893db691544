"""Builds a consumer of ksmwalk as a user would: a .pyx, C or C++ of one's own against the package that the tests found."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

import ksmwalk

SETUP = """
    import ksmwalk
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    setup(
        name="consumer",
        ext_modules=cythonize(
            [Extension("consumer", ["consumer.pyx"], include_dirs=[ksmwalk.get_include()])], language_level=3,
        ),
    )
"""


def run(args: list[str], cwd: Path) -> str:
    """What a Python program prints, run in a folder with the ksmwalk that the tests found."""
    # -O0: this is about what compiles and links, and it is four times as quick
    env = {**os.environ, "CFLAGS": "-O0 -Werror=incompatible-pointer-types"}
    env.pop("PYTHONSAFEPATH", None)  # the consumer stands beside the script
    env["PYTHONPATH"] = str(Path(ksmwalk.__file__).parents[1])
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(folder: Path, consumer: str) -> None:
    """Compile the consumer into a folder, as a module named `consumer`."""
    for name, text in (("consumer.pyx", consumer), ("setup.py", SETUP)):
        (folder / name).write_text(textwrap.dedent(text))
    run(["setup.py", "-q", "build_ext", "--inplace"], folder)


def embedding_flags() -> list[str]:
    """What a C compiler needs to build a program that starts this Python, or skip where there is no library of it."""
    folder, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    found = [*Path(folder).glob(f"**/libpython{version}.so*"), *Path(folder).glob(f"**/libpython{version}.a")]
    if not found:
        pytest.skip(f"no libpython{version} in {folder}: this Python can't be embedded")
    where, libraries = str(found[0].parent), (sysconfig.get_config_var("LIBS") or "").split()
    return [f"-I{sysconfig.get_path('include')}", f"-L{where}", f"-Wl,-rpath,{where}", f"-lpython{version}", *libraries, "-lm"]
