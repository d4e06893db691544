"""The table of functions for C and C++ does what Python's doors do: the same arrays, the same refusals."""

import ctypes
import errno

import numpy as np
import pytest
from ctable import Counters, Table, table
from hypothesis import given
from hypothesis import strategies as st

import ksmwalk
from ksmwalk import layout
from ksmwalk.layout import Code

PAGE = 4096
ANYWHERE = (1 << 64) - 1
KW = table()
RW = int(layout.Vm.READ | layout.Vm.WRITE)


def world_of(host):
    return KW.host_world(id(host))


def made(nr_frames=4096, nr_nodes=1, levels=4, thp=0):
    """A Host made through the table, and its address there; the reference is Python's from here on."""
    out = ctypes.c_void_p()
    assert KW.host_new(nr_frames, nr_nodes, levels, thp, ctypes.addressof(out)) == 0
    host = ctypes.cast(out, ctypes.py_object).value
    KW.host_free(out)
    return host, world_of(host)


def frame_of(entry):
    return (entry & 0xFFFFFFFFFF000) >> 12


def code_of(call, *args, **kwargs):
    """What a Python call does, as the table answers it: its value, or -errno."""
    try:
        return call(*args, **kwargs)
    except ksmwalk.ArenaFullError:
        return "full"
    except OSError as error:
        return -error.errno


def test_the_table_is_as_large_as_the_header_says():
    assert (KW.version, KW.size) == (1, ctypes.sizeof(Table))


def test_a_host_is_made_and_let_go():
    host, w = made(nr_nodes=2, levels=5, thp=int(layout.Thp.ALWAYS))
    assert (host.nr_frames, host.nr_nodes, host.levels, host.thp) == (4096, 2, 5, "always")
    mm = KW.mm_new(w, 1)
    assert host.mm_by_number(mm).index == mm and host.mms[mm]["nid"] == 1
    again = ctypes.c_void_p()
    assert KW.host_of(id(host), ctypes.addressof(again)) == 0 and again.value == id(host)
    KW.host_free(again)
    KW.host_free(None)


def test_what_a_host_is_refused_for_is_said():
    out = ctypes.c_void_p(1)
    assert KW.host_new(4096, 1, 7, 0, ctypes.addressof(out)) == -errno.EINVAL
    assert out.value is None and b"levels 7" in KW.host_error()
    assert KW.host_new(4096, 1, 4, 9, ctypes.addressof(out)) == -errno.EINVAL
    assert KW.host_of(id("text"), ctypes.addressof(out)) == -errno.EINVAL and out.value is None


def test_tunables_are_written_as_into_their_files():
    host, _ = made()
    assert KW.host_tunable(id(host), b"use_zero_pages", 1) == 0 and host.ksm.use_zero_pages == 1
    assert KW.host_tunable(id(host), b"run", 7) == -errno.EINVAL and b"run = 7" in KW.host_error()
    assert KW.host_tunable(id(host), b"pages_shared", 1) == -errno.ENOENT
    assert KW.host_tunable(id(host), b"merge_across_nodes", 1 << 40) == -errno.EINVAL


def test_codes_have_words():
    assert KW.code_text(0) == KW.code_text(17) == b"done"
    assert KW.code_text(-1) == b"nothing there"
    assert KW.code_text(-errno.ENOMEM) == b"Cannot allocate memory"
    texts = {int(code): KW.code_text(int(code)).decode() for code in Code if code < -4095}
    assert len(set(texts.values())) == len(texts) and "no code of ksmwalk" not in texts.values()
    assert "frames" in texts[Code.NOFRAMES] and "room" in texts[Code.FULL] and "signal" in texts[Code.INTR]
    assert KW.code_text(-6000) == b"no code of ksmwalk"


def test_another_thread_is_kept_off_a_host_that_is_held():
    import threading

    host, _ = made()
    assert KW.host_enter(id(host)) == 0
    met = []

    def other():
        try:
            host.new_mm()
        except RuntimeError as error:
            met.append(error)
        met.append(KW.host_enter(id(host)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert isinstance(met[0], RuntimeError) and met[1] == -errno.EBUSY
    assert KW.host_leave(id(host)) == 0
    assert KW.host_leave(id(host)) == -errno.EINVAL
    host.new_mm()


@pytest.mark.parametrize("mm", [0, -1, 9, 1 << 30])
def test_an_address_space_that_is_not_there_is_refused(mm):
    host, w = made()
    n, out = ctypes.c_int(), np.zeros(4, np.uint64)
    for answer in (
        KW.mm_fork(w, mm), KW.mm_exec(w, mm), KW.mm_exit(w, mm), KW.mm_map(w, mm, ANYWHERE, PAGE, RW), KW.mm_unmap(w, mm, 0, PAGE),
        KW.mm_protect(w, mm, 0, PAGE, 1), KW.mm_advise(w, mm, 0, PAGE, 12), KW.mm_remap(w, mm, 0, PAGE, PAGE, ANYWHERE),
        KW.mm_merge_any(w, mm, 1), KW.write(w, mm, 0, 1), KW.read(w, mm, 0), KW.look(w, mm, 0, 1, None, None),
        KW.translate(w, mm, 0, None, None), KW.walk(w, mm, 0, PAGE, None, None, 1), KW.mappings(w, mm, 0, PAGE, 0, None, 0),
    ):  # fmt: skip
        assert answer == -errno.ESRCH
    for call in (KW.write_range, KW.write_at):
        first = 0 if call is KW.write_range else out.ctypes.data
        assert call(w, mm, first, 1, out.ctypes.data, 1, ctypes.addressof(n)) == 0
        assert n.value == -errno.ESRCH
    assert KW.mm_new(w, 1) == -errno.EINVAL


def test_what_is_mapped_after_mlockall_is_locked_and_there():
    host, w = made()
    mm = KW.mm_new(w, 0)
    host.mm_by_number(mm).mlockall(2)
    at = KW.mm_map(w, mm, ANYWHERE, 4 * PAGE, RW)
    area = host.mm_by_number(mm).vmas[0]
    assert (area.vm_start, area.vm_end) == (at, at + 4 * PAGE) and area.vm_flags & int(layout.Vm.LOCKED)
    assert len(host.mm_by_number(mm).tables.mappings()) == 4


def test_ranges_and_flags_that_can_not_be_are_refused():
    _, w = made()
    mm = KW.mm_new(w, 0)
    at = KW.mm_map(w, mm, ANYWHERE, 4 * PAGE, RW)
    assert KW.mm_map(w, mm, 1, PAGE, RW) == KW.mm_map(w, mm, ANYWHERE, 0, RW) == -errno.EINVAL
    assert KW.mm_map(w, mm, ANYWHERE, PAGE, int(layout.Vm.MERGEABLE)) == -errno.EINVAL
    assert KW.mm_map(w, mm, 1 << 47, PAGE, RW) == KW.mm_map(w, mm, ANYWHERE, 1 << 48, RW) == -errno.ENOMEM
    assert KW.mm_map(w, mm, ANYWHERE, (1 << 64) - 1, RW) == -errno.EINVAL
    assert KW.mm_unmap(w, mm, at + 1, PAGE) == KW.mm_unmap(w, mm, at, 0) == -errno.EINVAL
    assert KW.mm_protect(w, mm, at, PAGE, 1 << 20) == -errno.EINVAL
    assert KW.mm_advise(w, mm, at, PAGE, 999) == -errno.EINVAL
    assert KW.look(w, mm, at, -1, None, None) == -errno.EINVAL
    assert KW.mappings(w, mm, at + 1, at + PAGE, 0, None, 0) == -errno.EINVAL
    assert KW.walk(w, mm, PAGE, PAGE, None, None, 1) == -errno.EINVAL


def test_numbers_of_pages_that_can_not_be_are_refused():
    _, w = made()
    mm = KW.mm_new(w, 0)
    at = np.array([KW.mm_map(w, mm, ANYWHERE, 4 * PAGE, RW)], np.uint64)
    key, code = np.ones(1, np.uint64), ctypes.c_int()
    for n in (-1, -(1 << 63), 1 << 62):
        for call, where in ((KW.write_range, int(at[0])), (KW.write_at, at.ctypes.data)):
            code.value = 0
            assert call(w, mm, where, n, key.ctypes.data, 0, ctypes.addressof(code)) == 0 and code.value == -errno.EINVAL
    assert KW.write_at(w, mm, None, 0, None, 0, ctypes.addressof(code)) == 0 and code.value == 0


def test_contents_frames_and_mappings_are_what_python_sees():
    host, w = made()
    number = KW.mm_new(w, 0)
    mm = host.mm_by_number(number)
    at = KW.mm_map(w, number, ANYWHERE, 8 * PAGE, RW)
    keys, code = np.array([5, 6, 5], np.uint64), ctypes.c_int()
    assert KW.write_range(w, number, at, 3, keys.ctypes.data, 1, ctypes.addressof(code)) == 3 and code.value == 0
    there = np.array([at + 5 * PAGE, at + 3 * PAGE], np.uint64)
    assert KW.write_at(w, number, there.ctypes.data, 2, keys.ctypes.data, 0, ctypes.addressof(code)) == 2
    assert KW.read(w, number, at + 7 * PAGE) == 0          # the zero page
    assert mm.read(at, 8).tolist() == [5, 6, 5, 5, 0, 5, 0, 0]
    seen, pfns = np.zeros(8, np.uint64), np.zeros(8, np.int64)
    KW.look(w, number, at, 8, seen.ctypes.data, pfns.ctypes.data)
    assert seen.tolist() == mm.read(at, 8).tolist()
    entry, level = ctypes.c_uint64(), ctypes.c_int()
    for i, pfn in enumerate(mm.read_pfns(at, 8).tolist()):
        assert KW.translate(w, number, at + i * PAGE + 77, ctypes.addressof(entry), ctypes.addressof(level)) == pfn
        assert level.value == 1 and frame_of(entry.value) == pfn
    assert KW.translate(w, number, at + 8 * PAGE, None, None) == Code.NONE
    assert KW.translate(w, number, 1 << 60, None, None) == Code.NONE
    for runs in (False, True):
        expected = mm.tables.mappings(at, at + 8 * PAGE, runs=runs)
        out = np.zeros(len(expected), layout.MAPPING)
        assert KW.mappings(w, number, at, at + 8 * PAGE, runs, out.ctypes.data, len(out)) == len(expected)
        assert (out == expected).all()
        assert KW.mappings(w, number, at, at + 8 * PAGE, runs, out.ctypes.data, len(out) - 1) == Code.FULL


def test_a_huge_page_is_translated_within():
    host, w = made(thp=int(layout.Thp.ALWAYS))
    mm = KW.mm_new(w, 0)
    at = KW.mm_map(w, mm, ANYWHERE, 2 << 20, RW)
    assert at % (2 << 20) == 0 and KW.write(w, mm, at, 3) == 0
    level = ctypes.c_int()
    head = KW.translate(w, mm, at, None, ctypes.addressof(level))
    assert level.value == 2
    assert KW.translate(w, mm, at + 511 * PAGE, None, None) == head + 511


def test_what_the_tables_say_wrongly_is_an_error():
    host, w = made()
    mm = KW.mm_new(w, 0)
    at = KW.mm_map(w, mm, ANYWHERE, PAGE, RW)
    KW.write(w, mm, at, 1)
    root = int(host.mms[mm]["root"])
    host.world.arrays["rows"][root, (at >> 39) & 511] = 99999 << 12 | 7
    assert KW.mappings(w, mm, 0, 1 << 47, 0, None, 0) == Code.BADENTRY
    ops = (ctypes.c_void_p * 10)(*[None] * 4, ctypes.cast(ENTRY_FN(lambda *a: 0), ctypes.c_void_p))
    assert KW.walk(w, mm, 0, 1 << 47, ctypes.addressof(ops), None, 0) == Code.BADENTRY
    assert host.world.arrays["bad"]["level"][0] == 4


ENTRY_FN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)


def test_a_walk_calls_back_and_ends_with_the_answer():
    _, w = made()
    mm = KW.mm_new(w, 0)
    at = KW.mm_map(w, mm, ANYWHERE, 4 * PAGE, RW)
    for i in range(4):
        KW.write(w, mm, at + i * PAGE, i + 1)
    seen = []

    def on_pte(entry, addr, next_, walk):
        seen.append(((addr - at) // PAGE, frame_of(ctypes.c_uint64.from_address(entry).value)))
        return 42 if len(seen) == 3 else 0

    callback = ENTRY_FN(on_pte)
    ops = (ctypes.c_void_p * 10)(*[None] * 4, ctypes.cast(callback, ctypes.c_void_p))
    assert KW.walk(w, mm, at, at + 4 * PAGE, ctypes.addressof(ops), None, 1) == 42
    assert seen == [(i, KW.translate(w, mm, at + i * PAGE, None, None)) for i in range(3)]


# ---------------------------------------------------------------- the same as through Python

PLACES = st.integers(0, 15)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("map"), PLACES, st.integers(1, 6), st.sampled_from(["rw", "r", "none", "rwx"])),
        st.tuples(st.just("unmap"), PLACES, st.integers(0, 6), st.none()),
        st.tuples(st.just("protect"), PLACES, st.integers(0, 6), st.sampled_from(["rw", "r", "none"])),
        st.tuples(st.just("advise"), PLACES, st.integers(0, 6), st.sampled_from([4, 12, 12, 12, 13, 23, 77])),
        st.tuples(st.just("remap"), PLACES, st.integers(0, 6), st.integers(0, 6)),
        st.tuples(st.just("write"), PLACES, st.integers(0, 3), st.none()),
        st.tuples(st.just("write"), PLACES, st.integers(0, 3), st.none()),
        st.tuples(st.just("scan"), st.integers(0, 40), st.none(), st.none()),
        st.tuples(st.just("fork"), st.none(), st.none(), st.none()),
        st.tuples(st.just("exit"), st.none(), st.none(), st.none()),
        st.tuples(st.just("merge_any"), st.booleans(), st.none(), st.none()),
    ),
    max_size=40,
)
PROT = {"none": 0, "r": 1, "rw": 3, "rwx": 7}


def python_step(host, mms, step):
    what, a, b, c = step
    mm = mms[-1]
    at = (1 << 30) + a * PAGE if isinstance(a, int) and what not in ("scan", "merge_any") else None
    if what == "scan":
        return host.ksm.do_scan(a)
    if what == "fork":
        mms.append(mm.fork())
        return mms[-1].index
    if what == "exit":
        mm.exit()
        mms.pop()
        return 0
    calls = {
        "map": lambda: mm.mmap(b * PAGE, at, c),
        "unmap": lambda: mm.munmap(at, b * PAGE) or 0,
        "protect": lambda: mm.mprotect(at, b * PAGE, c) or 0,
        "advise": lambda: mm.madvise(at, b * PAGE, c) or 0,
        "remap": lambda: mm.mremap(at, b * PAGE, c * PAGE),
        "write": lambda: mm.write(at, b) or 0,
        "merge_any": lambda: mm.prctl_merge(a) or 0,
    }
    return calls[what]()


def c_step(w, mms, step):
    what, a, b, c = step
    mm = mms[-1]
    at = (1 << 30) + a * PAGE if isinstance(a, int) and what not in ("scan", "merge_any") else None
    if what == "scan":
        code = ctypes.c_int()
        done = KW.scan(w, a, ctypes.addressof(code))
        assert code.value == 0
        return done
    if what == "fork":
        mms.append(KW.mm_fork(w, mm))
        return mms[-1]
    if what == "exit":
        return KW.mm_exit(w, mms.pop())
    calls = {
        "map": lambda: KW.mm_map(w, mm, at, b * PAGE, PROT[c]),
        "unmap": lambda: KW.mm_unmap(w, mm, at, b * PAGE),
        "protect": lambda: KW.mm_protect(w, mm, at, b * PAGE, PROT[c]),
        "advise": lambda: KW.mm_advise(w, mm, at, b * PAGE, c),
        "remap": lambda: KW.mm_remap(w, mm, at, b * PAGE, c * PAGE, ANYWHERE),
        "write": lambda: KW.write(w, mm, at, b),
        "merge_any": lambda: KW.mm_merge_any(w, mm, a),
    }
    return calls[what]()


@given(STEPS)
def test_the_same_calls_leave_the_same_arrays(steps):
    one, w = made(1024)
    other = ksmwalk.Host(1024, thp="never")
    other.ksm.run_until(limit=1)  # its engine is bound
    theirs, ours = [other.new_mm()], [KW.mm_new(w, 0)]
    for step in steps:
        if step[0] == "exit" and len(ours) == 1:
            continue
        expected = code_of(python_step, other, theirs, step)
        assert c_step(w, ours, step) == expected, step
    for name, array in one.world.arrays.items():
        assert array[: one._used(name)].tobytes() == other.world.arrays[name][: other._used(name)].tobytes(), name
    counters = Counters()
    KW.counters(w, ctypes.addressof(counters))
    assert {name: getattr(counters, name) for name, _ in counters._fields_} == other.ksm.counters()
