"""Rows: the engine called from C++ through ksmwalk.hpp, against the same calls from Python."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from measure import SMOKE, Row, medians, note, row, times_of

import ksmwalk

PAGE = 4096
PAGES = 1 << (12 if SMOKE else 17)
#: pages_to_scan of the kernel
BATCH = 100


def module() -> ModuleType:
    """embedded.cpp, compiled once per run."""
    where = Path(tempfile.mkdtemp(prefix="ksmwalk-bench-"))
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    out = where / f"embedded{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", str(Path(__file__).with_name("embedded.cpp")), "-o", str(out)]
    command += [f"-I{sysconfig.get_path('include')}", f"-I{ksmwalk.get_include()}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    spec = importlib.util.spec_from_file_location("embedded", out)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def host_in_a_steady_state() -> tuple[ksmwalk.Host, int]:
    """Half of the pages unlike all others, half of them merged in pairs; smart_scan off, so that all are visited."""
    host = ksmwalk.Host(2 * PAGES)
    mm = host.new_mm()
    start = mm.mmap(PAGES * PAGE)
    keys = np.arange(1, PAGES + 1, dtype=np.uint64)
    keys[: PAGES // 2] //= np.uint64(2)
    mm.write(start, np.random.default_rng(1).permutation(keys))
    mm.madvise(start, PAGES * PAGE, "mergeable")
    host.ksm.smart_scan = 0
    host.ksm.run_until()
    return host, start


def rows() -> Iterator[Row]:
    if shutil.which("g++") is None:
        note("embedding: left out, g++ is not there")
        return
    cpp = module()
    host, start = host_in_a_steady_state()
    index = host.mm_list[0].index

    def from_python(n):
        before = host.ksm.full_scans
        while host.ksm.full_scans == before:
            host.ksm.do_scan(n)

    took = medians(
        {
            "C++": lambda: cpp.scan(host, 1 << 40),
            "Python": lambda: from_python(1 << 40),
            "C++ small": lambda: cpp.scan(host, BATCH),
            "Python small": lambda: from_python(BATCH),
            "translate": lambda: cpp.translate(host, index, start, PAGES),
        },
        rounds=11,
    )
    ns = {name: seconds * 1e9 / PAGES for name, seconds in took.items()}
    yield times_of("visit of ksmd, C++, one batch", ns["C++"], "ns", "from Python", ns["Python"], 1.05)
    yield times_of(f"visit of ksmd, C++, batches of {BATCH}", ns["C++ small"], "ns", "from Python", ns["Python small"], 1.05)
    yield times_of(f"visit of ksmd, batches of {BATCH}, C++", ns["C++ small"], "ns", "one batch, C++", ns["C++"])
    yield row("translation of an address, C++, a call each", ns["translate"], "ns")
