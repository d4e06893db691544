"""Guarded arenas and poisoned free records: what is planted is reported, where it happens."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import ksmwalk

SANITIZED = ksmwalk.build_info()["profile"] == "asan"

HOST = """
import numpy as np, ksmwalk
host = ksmwalk.Host(4096)
a = host._arrays
mm = host.new_mm()
addr = mm.mmap(8 << 20)
mm.madvise(addr, 8 << 20, "mergeable")
mm.write(addr, np.arange(2048) % 7)
scan = host.ksm.scan
scan.scan(4096)
"""


def run(code, **env):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})


def test_an_arena_between_guards_is_as_long_and_as_empty_as_any():
    code = (
        "import numpy as np; from ksmwalk.layout.arena import reserve\n"
        "for n, dtype, shape in ((100_001, 'u1', ()), (70_000, 'u2', (3,)), (40, 'u8', (512,)), (1 << 40, 'u1', ())):\n"
        "    a = reserve(n, np.dtype(dtype), shape=shape)\n"
        "    assert a.shape == (n, *shape) and a.ctypes.data % 64 == 0 and not a[:1000].any() and not a[-1000:].any()\n"
        "    a[-1] = 1; a[0] = 1\n"
    )
    done = run(code, KSMWALK_GUARD="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("beyond", ["size", "-1"])
def test_a_byte_beyond_a_guarded_arena_can_not_be_read(beyond):
    code = (
        "import ctypes; from ksmwalk.layout.arena import reserve\n"
        "a = reserve(32, 'u8', shape=(512,)); size = a.nbytes\n"
        f"print('there', flush=True); ctypes.c_char.from_address(a.ctypes.data + {beyond}).value; print('read')"
    )
    done = run(code, KSMWALK_GUARD="1")
    assert done.returncode != 0 and done.stdout == "there\n"


def test_poison_of_an_arena_does_not_outlive_it():
    code = HOST + (
        "import gc\n"
        "for turn in range(40):\n"
        "    host = ksmwalk.Host(4096); mm = host.new_mm(); at = mm.mmap(4 << 20)\n"
        "    mm.write(at, np.ones(1024, np.uint64)); mm.munmap(at, 4 << 20)\n"
        "    del host, mm; gc.collect()\n"
        "    junk = [bytearray(1 << n) for n in range(12, 22)]\n"
    )
    done = run(code, KSMWALK_GUARD="1")
    assert done.returncode == 0, done.stderr[-3000:]


#: a Host with free records of every kind that is poisoned
FREED = HOST + """
import pickle
other = mm.mmap(4096, addr=1 << 45); mm.write(other, 1); live = a['r_owner'].copy(); mm.munmap(other, 4096)
host.ksm.smart_scan = 0; host.ksm.run = 1
for _ in range(4): host.ksm.do_scan(4096)
assert a['ctl']['stable_live'][0]; host.ksm.run = 2; mm.munmap(addr, 8 << 20)
free = {name: int(a['ctl'][name + '_free'][0]) for name in ('rows', 'vmas', 'items', 'stable')}
assert all(free.values()), free
"""


def test_a_host_with_free_records_can_be_kept(tmp_path):
    done = run(
        f"{FREED}back = pickle.loads(pickle.dumps(host)); host.save({str(tmp_path / 'host')!r})\n"
        "tables = ksmwalk.PageTables(capacity=200); tables.map(1 << 40, 512, level=2); tables.map(4096, 1)\n"
        f"tables.unmap(0, 1 << 41); pickle.loads(pickle.dumps(tables)); tables.save({str(tmp_path / 'tables')!r})\n"
        f"pickle.dumps(mm.tables); print('kept')",
        KSMWALK_GUARD="1",
    )
    assert done.returncode == 0 and done.stdout == "kept\n", done.stderr[-3000:]


@pytest.mark.parametrize(
    ("scribble", "message"),
    [
        ("a['rows'][free['rows']][300] = 7", "rows: table page .*, entry 300 holds 0x7: a free table page must be empty"),
        ("a['vmas']['pgoff'][free['vmas']] = 7", "vmas: record .* holds 7: on the list of free records, but not empty"),
        ("a['items']['checksum'][free['items']] = 7", "items: record .* holds 7: on the list of free records, but not empty"),
        ("a['nodes']['chain'][free['stable']] = 7", "nodes: record .* holds 7: on the list of free records, but not empty"),
        ("a['f_node'][0] = free['stable']", "f_node: record 0 holds .*: no stable node, or that of another page"),
    ],
)
def test_a_host_whose_free_records_were_written_to_is_refused_not_kept(scribble, message):
    done = run(f"{FREED}{scribble}\npickle.dumps(host)", KSMWALK_GUARD="1")
    last = done.stderr.splitlines()[-1]
    assert re.search(f"^ValueError: this Host could not be loaded again: {message}", last), done.stderr[-3000:]


#: name: what is planted in the Host made above, what then runs into it, what the report says
PLANTED = {
    "tables beyond the end of their arena": (
        "a['ctl']['rows_used'] = a['ctl']['rows_cap']; a['ctl']['rows_cap'] += 4096; a['ctl']['rows_free'] = 0",
        "for i in range(600): mm.write(mm.mmap(4096, addr=(1 << 45) + (i << 32)), 1)",
        "AddressSanitizer",
    ),
    "an item that was freed": (
        "item = int(a['mms']['rmap_list'][1]); mm.munmap(addr, 8 << 20); scan.scan(4096); scan.scan(4096)\n"
        "assert a['ctl']['items_live'] == 0; a['mms']['rmap_list'][1] = item\n"
        "addr = mm.mmap(8 << 20); mm.madvise(addr, 8 << 20, 'mergeable'); mm.write(addr, 1)",
        "scan.scan(4096); scan.scan(4096)",
        "use-after-poison",
    ),
    "an area that was freed": (
        "v = int(a['mms']['vma_first'][1]); other = mm.mmap(1 << 20); mm.munmap(addr, 8 << 20); a['mms']['vma_first'][1] = v\n"
        "a['vmas']['mm'][v] = 1",
        "mm.write(other, 1)",
        "use-after-poison",
    ),
    "a table that was freed": (
        "free = []\n"
        "other = mm.mmap(4096, addr=1 << 45); mm.write(other, 1); live = a['r_owner'].copy(); mm.munmap(other, 4096)\n"
        "a['r_owner'][:] = live\n"
        "row = int(np.flatnonzero(live % 8 == 3)[-1]); top = a['rows'][int(a['mms']['root'][1])]\n"
        "top[other >> 39] = (row << 12) | 0x67",
        "list(mm.tables.mappings())",
        "use-after-poison",
    ),
}


@pytest.mark.skipif(not SANITIZED, reason="only the asan build reports it")
@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_reported(name):
    plant, meet, report = PLANTED[name]
    sound = run(f"{HOST}print('there', flush=True)")
    assert sound.returncode == 0 and sound.stdout == "there\n", sound.stderr[-3000:]
    done = run(f"{HOST}\n{plant}\nprint('there', flush=True)\n{meet}")
    assert done.stdout == "there\n", done.stdout + done.stderr[-3000:]
    assert done.returncode != 0 and report in done.stderr, done.stderr[-3000:]


@pytest.mark.skipif(not SANITIZED, reason="only the asan build reports it")
@pytest.mark.parametrize("kept", [False, True])
def test_what_is_free_is_poison_in_the_asan_build(kept):
    import ctypes

    host = ksmwalk.Host(4096)
    mm = host.new_mm()
    addr = mm.mmap(4096)
    mm.write(addr, 1)
    live = host._arrays["r_owner"].copy()
    mm.munmap(addr, 4096)
    if kept:  # which looks at what is free
        host.__getstate__()
    gone = np.flatnonzero(live)[~host._arrays["r_owner"][np.flatnonzero(live)].astype(bool)]
    rows = host._arrays["rows"]
    is_poisoned = ctypes.CDLL(None).__asan_address_is_poisoned
    is_poisoned.argtypes = [ctypes.c_void_p]
    assert len(gone) and all(is_poisoned(rows[row].ctypes.data + 8) for row in gone)
    assert not is_poisoned(rows[int(host._arrays["mms"]["root"][1])].ctypes.data + 8)
