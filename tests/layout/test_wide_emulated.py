"""The AVX-512 loops where no processor has them: compiled against SIMDe, which does their instructions in plain C.

Skipped where its headers are not installed (Debian: apt install libsimde-dev; or name their folder in CPATH).
"""

import ctypes
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ksmwalk

#: stands before the compiler's own, so that every intrinsic is SIMDe's
IMMINTRIN = "#define SIMDE_ENABLE_NATIVE_ALIASES\n#include <simde/x86/avx512.h>\n#define __mmask8 simde__mmask8\n"
PROGRAM = """
#include <immintrin.h>
#define target(instructions) unused /* or the compiler makes AVX-512 of the plain C */
#include "_wide.h"
int64_t pack(int wide, const uint64_t *row, int from, int to, uint64_t present, uint64_t *addr, uint64_t *entry)
{
    kw_emit c = {0xffff800000000000u, present, row, 15};
    return (wide ? kw_pack_avx512 : kw_pack_plain)(row, from, to, &c, addr, entry);
}
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    where = tmp_path_factory.mktemp("emulated")
    (where / "immintrin.h").write_text(IMMINTRIN)
    (where / "pack.c").write_text(PROGRAM)
    include = [f"-I{where}", f"-I{ksmwalk.get_include()}"]
    command = ["gcc", "-O1", "-w", "-shared", "-fPIC", *include, "-o", str(where / "pack.so"), str(where / "pack.c")]
    try:
        probe = subprocess.run(["gcc", "-E", str(where / "immintrin.h")], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no gcc")
    if probe.returncode:
        pytest.skip("no SIMDe headers")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(where / "pack.so")).pack
    function.restype = ctypes.c_int64
    function.argtypes = [*[ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64], *[ctypes.c_void_p] * 2]
    return function


@given(st.integers(0, 1 << 32), st.integers(0, 511), st.integers(0, 512), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_columns_packed_by_avx512(pack, seed, first, nr, share):
    rng = np.random.default_rng(seed)
    row = rng.integers(0, 1 << 64, 512, dtype=np.uint64)
    row = np.where(rng.random(512) < share, row | np.uint64(1), row & ~np.uint64(0x101))
    to = min(512, first + nr)
    answers = []
    for wide in (1, 0):
        room = np.full((2, 520), 0xDEAD, np.uint64)
        n = pack(wide, row.ctypes.data, first, to, 0x101, room[0].ctypes.data, room[1].ctypes.data)
        assert (room[:, to - first:] == 0xDEAD).all(), "more written than was asked for"
        answers.append((n, room[:, :n].tolist()))
    assert answers[0] == answers[1]
