"""Addresses and lengths of 64 bits in the system calls of this machine's kernel and in the model: the same errno."""

import ctypes
import errno
import os

import pytest

from ksmwalk import Host

PAGE = 4096
CALLS = {"munmap": 11, "mprotect": 10, "mergeable": 28, "mlock": 149, "munlock": 150, "mremap": 25}
FAR = [2**47 - 4096, 2**47 - 8192, 2**47, 2**48, 2**56, 2**63 - 4096, 2**63, 2**64 - 8192, 2**64 - 4096]
LENGTHS = [0, 1, 4096, 8192, 2**47, 2**63, 2**64 - 4096, 2**64 - 1]
RELEASE = tuple(int(x) for x in os.uname().release.split("-")[0].split(".")[:2])

pytestmark = pytest.mark.skipif(
    RELEASE < (6, 17) or os.uname().machine != "x86_64",
    reason=f"Linux {os.uname().release}: the model is of 6.18 on x86-64",
)


def real(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    return ctypes.get_errno() if result == -1 else 0


def model(name, mm, addr, length):
    call = {
        "munmap": lambda: mm.munmap(addr, length), "mprotect": lambda: mm.mprotect(addr, length, "rw"),
        "mergeable": lambda: mm.madvise(addr, length, "mergeable"), "mlock": lambda: mm.mlock(addr, length),
        "munlock": lambda: mm.munlock(addr, length), "mremap": lambda: mm.mremap(addr, length, PAGE),
    }[name]  # fmt: skip
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("name", CALLS)
def test_what_lies_beyond_user_memory(name):
    """Nothing is mapped there, so the real calls do nothing."""
    mm = Host(64).new_mm()
    more = {"mprotect": (3,), "mergeable": (12,), "mremap": (PAGE, 1)}.get(name, ())
    if name == "mergeable" and real(CALLS[name], 0, 0, *more) == errno.EINVAL:
        pytest.skip("this kernel has no KSM")
    for addr in FAR:
        for length in LENGTHS:
            want = real(CALLS[name], addr, length, *more)
            assert model(name, mm, addr, length) == want, (hex(addr), hex(length))


def test_lengths_that_wrap_from_an_area():
    """Only calls that are refused as a whole: the real ones must not touch this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    base = libc.mmap(None, ctypes.c_size_t(16 * PAGE), 3, 0x22, -1, ctypes.c_long(0))
    mm = Host(64).new_mm()
    mm.mmap(16 * PAGE, base)
    for name, lengths in {
        "munmap": [0, 2**47, 2**63, 2**64 - 4096, 2**64 - 1, 2**64 - base],
        "mergeable": [2**64 - 1, 2**64 - 4096, 2**64 - base, 2**64 - base - 4095],
        "munlock": [2**64 - 1, 2**64 - 4096, 2**64 - base], "mlock": [2**64 - 1, 2**64 - 4096, 2**64 - base],
    }.items():  # fmt: skip
        for length in lengths:
            want = real(CALLS[name], base, length, *((12,) if name == "mergeable" else ()))
            assert model(name, mm, base, length) == want, (name, hex(length))
    for old, new in [(PAGE, 0), (PAGE, 2**47), (PAGE, 2**63), (PAGE, 2**64 - 1), (2**47, PAGE), (2**63, PAGE), (2**64 - 1, PAGE)]:
        with pytest.raises(OSError) as caught:
            mm.mremap(base, old, new)
        assert caught.value.errno == real(CALLS["mremap"], base, old, new, 1), (hex(old), hex(new))
    for to in (1, 2**47 - 4096, 2**47, 2**63, 2**64 - 4096, 2**64 - 1):
        with pytest.raises(OSError) as caught:
            mm.mremap(base, PAGE, PAGE, to)
        assert caught.value.errno == real(CALLS["mremap"], base, PAGE, PAGE, 3, to) == errno.EINVAL, hex(to)
    libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(16 * PAGE))


def test_what_no_program_can_pass_is_no_oserror():
    host = Host(64)
    mm = host.new_mm()
    start = mm.mmap(PAGE)
    for call in (
        lambda: mm.munmap(-PAGE, PAGE), lambda: mm.munmap(start, 2**64), lambda: mm.mremap(start, 2**64, PAGE),
        lambda: mm.mprotect(start, -1, "r"), lambda: mm.write(start, -1), lambda: mm.write(start, [-1]),
        lambda: mm.mmap(PAGE, flags=1 << 60), lambda: mm.mmap(2 << 20, flags=0x400000),
        lambda: mm.mmap(PAGE, kind="pfnmap", pfn=1 << 40),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must be|may be given"):
            call()
    for call in (lambda: mm.write(start, 1.5), lambda: mm.munmap(float(start), PAGE), lambda: mm.populate(start, "4096")):
        with pytest.raises(TypeError, match="must be an integer"):
            call()
    with pytest.raises(OSError, match="populate") as caught:
        mm.populate(start, 2**64 - 4096)
    assert caught.value.errno == errno.EINVAL and host.frames_used == 1
