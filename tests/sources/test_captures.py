"""Captures kept in directories: they come back as they were, and what is forged is refused or harmless."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys

import hostcheck
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from madecapture import HOSTILE, made

from ksmwalk.errors import KsmwalkError
from ksmwalk.estimates.estimate import estimate
from ksmwalk.layout import Frame, stored
from ksmwalk.sources.captures import BadCapture, open_capture, save_capture
from ksmwalk.sources.memory import load_memory, renumbered
from ksmwalk.sources.reading import PAGE_ARRAYS


def same(one, other):
    """Assert that two values are equal in everything, arrays in dtype too."""
    assert type(one) is type(other) or np.ndarray in (type(one), type(other))
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


@pytest.fixture
def kept(tmp_path):
    save_capture(made(digests=True), tmp_path / "kept")
    return tmp_path / "kept"


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("digests", [False, True])
def test_a_capture_comes_back_in_every_field_and_array_but_for_the_frame_numbers(tmp_path, digests, mmap):
    before = made(digests)
    save_capture(before, tmp_path / "a")
    after = open_capture(tmp_path / "a", mmap=mmap)
    same(after, dataclasses.replace(before, processes=renumbered(before.processes)))
    assert after.processes[1].name == HOSTILE and after.processes[0].identity.command == ("made", HOSTILE)


def test_an_opened_capture_is_kept_as_the_same_files(kept, tmp_path):
    save_capture(open_capture(kept), tmp_path / "again")
    for file in kept.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_capture_of_nothing_comes_back(tmp_path):
    empty = dataclasses.replace(made(), processes=[])
    save_capture(empty, tmp_path / "a")
    same(open_capture(tmp_path / "a"), empty)


def test_frame_numbers_of_the_machine_are_in_no_file(kept):
    pfn = np.load(kept / "pfn.npy")
    assert pfn.max() < 16 << 9 and set((pfn[:512] & 511).tolist()) == set(range(512))


def test_only_the_owner_may_read_it_whatever_the_umask_and_what_was_there(tmp_path):
    (tmp_path / "a").mkdir(mode=0o755)
    old = os.umask(0)
    try:
        save_capture(made(), tmp_path / "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "a").iterdir()} == {0o600}


def test_a_used_place_is_refused_and_only_a_capture_is_replaced(kept, tmp_path):
    with pytest.raises(FileExistsError, match="not empty"):
        save_capture(made(), kept)
    save_capture(made(), kept, overwrite=True)
    assert open_capture(kept).digests is None and not (kept / "digests.npy").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters").write_text("dear")
    with pytest.raises(FileExistsError, match="not written by ksmwalk"):
        save_capture(made(), tmp_path / "mine", overwrite=True)
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(OSError, match="a symbolic link") as error:
        save_capture(made(), tmp_path / "link", overwrite=True)
    assert error.value.errno == errno.ELOOP


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(file, array):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored, "_write_array", full)
    with pytest.raises(OSError, match="No space left"):
        save_capture(made(), tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_anywhere_leaves_nothing_or_all(tmp_path):
    script = """
import sys
sys.path[:0] = sys.argv[2:]
import os
from madecapture import made
from ksmwalk.sources.captures import save_capture
steps, seen = int(sys.argv[1]), []
def stop(event, args):
    if event in ("os.mkdir", "open", "os.rename"):
        seen.append(event)
        if len(seen) == steps:
            raise KeyboardInterrupt
capture = made()
sys.addaudithook(stop)
try:
    save_capture(capture, "a")
except KeyboardInterrupt:
    pass
"""
    for steps in range(1, 14, 3):
        subprocess.run([sys.executable, "-c", script, str(steps), *sys.path], cwd=tmp_path, check=True)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.processes[0].addr.__setitem__(5, 0x40000000), "addr: process 0 .pid 100., page 5 holds .*ascending"),
        (lambda c: c.processes[0].key.__setitem__(5, 60), "key: .* page 5 holds 60: there are 60 contents"),
        (lambda c: c.notes.append("\ud83d\ude00") or c.machine.update(x="\ud83d\ude00"), "JSON can't keep"),
        (lambda c: setattr(c, "seconds_between", float("nan")), "seconds_between nan"),
        (lambda c: c.processes[2].vmas.clear(), r"processes\[2\].vmas 0"),
        (lambda c: setattr(c.processes[0], "changes", c.processes[0].changes[:5]), "changes: .* shape"),
    ],
)
def test_what_could_not_be_opened_again_is_not_kept(tmp_path, change, text):
    capture = made()
    change(capture)
    with pytest.raises(ValueError, match=f"this capture can't be kept: .*{text}"):
        save_capture(capture, tmp_path / "a")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ forged


def forge(path, name, at, value):
    """Write a value into an element (or a field of one) of a file; a text as a new one."""
    if isinstance(value, str):
        meta = json.loads((path / "meta.json").read_text())
        meta["texts"].append(value)
        (path / "meta.json").write_text(json.dumps(meta))
        value = len(meta["texts"]) - 1
    array = np.load(path / f"{name}.npy")
    if isinstance(at, tuple):
        array[at[1]][at[0]] = value
    else:
        array[at] = value
    os.unlink(path / f"{name}.npy")
    np.save(path / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("name", "at", "value", "text"),
    [
        ("addr", 1, 0x40000001, "page 1 holds .*no address of a page"),
        ("addr", 1, 0x40000000, "page 1 holds .*ascending"),
        ("addr", 575, 0x4F000000, "page 575 holds .*in no mapping"),
        ("categories", 0, 0, "not of a present page"),
        ("categories", 0, 1 << 40, "not of a present page"),
        ("pfn", 7, 1 << 52, "page 7 holds .*beyond any memory"),
        ("frame_flags", 580, 1 << 21, "KSM's, and not anonymous"),
        ("frame_flags", 100, 1 << 11, "page 100 holds .*anonymous in part"),
        ("frame_flags", 520, 1 << 11, "page 520 holds .*of a huge page by folios"),
        ("vmas", (2, "flags"), "sh", "page 586 holds .*a mapping that it never merges"),
        ("frame_counts", 4, 1 << 31, "more mappings than there can be"),
        ("folios", 0, 5, "number 0 holds 5: no first frame"),
        ("folios", 1, 512, "number 1 holds 512: not in ascending"),
        ("key", 4, 60, "page 4 holds 60: there are 60 contents"),
        ("vmas", (0, "start"), 1, "mapping 0.start holds 1"),
        ("vmas", (0, "end"), 1 << 63, "mapping 0.end"),
        ("vmas", (1, "start"), 0x40000000, "mapping 1.start .*below the end"),
        ("vmas", (1, "name"), 99, "there are .* texts"),
        ("vmas", (2, "rss"), 1 << 63, "no size"),
    ],
)
def test_a_forged_array_is_refused_with_file_and_place(kept, name, at, value, text):
    forge(kept, name, at, value)
    with pytest.raises(BadCapture, match=rf"(frame_flags|pfn|{name})\.npy: process [01] \(pid [12]00\), .*{text}"):
        open_capture(kept)


def test_a_flag_that_is_neither_yes_nor_no_is_refused(kept):
    raw = bytearray((kept / "exclusive.npy").read_bytes())
    raw[-1] = 2
    (kept / "exclusive.npy").write_bytes(raw)
    with pytest.raises(BadCapture, match=r"exclusive\.npy: .* holds 2: neither 0 nor 1"):
        open_capture(kept)


@pytest.mark.parametrize("array", [*PAGE_ARRAYS, "folios", "vmas", "digests"])
def test_files_of_another_dtype_shape_or_kind_are_refused_by_name(kept, array):
    file = kept / f"{array}.npy"
    raw, there = file.read_bytes(), np.load(file)
    twice = np.concatenate([there, there])
    for forged in (there[:-1], twice, there.reshape(1, -1), there.astype(there.dtype.newbyteorder()), np.zeros(3, "f4")):
        if forged.dtype == there.dtype and forged.shape == there.shape:
            continue  # one byte has no order
        np.save(file, forged)
        with pytest.raises(BadCapture, match=rf"{array}\.npy: (dtype|shape)"):
            open_capture(kept)
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(BadCapture, match=rf"{array}\.npy"):
        open_capture(kept)
    for broken in (raw[:-1], raw[:20], b"", raw + b"x"):
        file.write_bytes(broken)
        with pytest.raises(BadCapture, match=rf"{array}\.npy"):
            open_capture(kept)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{array}\.npy: missing"):
        open_capture(kept)
    file.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link"):
        open_capture(kept)


def test_a_size_that_no_memory_has_is_refused_before_memory_is_taken(kept):
    header = str({"descr": "<u8", "fortran_order": False, "shape": (1 << 58,)}).encode().ljust(117) + b"\n"
    (kept / "addr.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(BadCapture, match=r"addr\.npy: 0 bytes of content"):
        open_capture(kept)


META = [
    (("version",), 2, "newer ksmwalk"), (("version",), True, "no version"), (("kind",), "saved Host", "kind"),
    (("nr_contents",), -1, "nr_contents -1"), (("nr_contents",), 1 << 60, "nr_contents"), (("nr_contents",), 1.0, "nr_contents"),
    (("ordered",), 1, "ordered 1: must be true or false"), (("samples",), 0, "samples 0"), (("samples",), "2", "samples"),
    (("seconds_between",), float("inf"), "seconds_between inf"), (("seconds_between",), -1, "seconds_between"),
    (("machine",), [], "machine"), (("machine", "ksm"), {"run": 1}, "machine.ksm.run 1: must be a text"),
    (("machine", "ksm"), {"max_page_sharing": "1"}, "machine.ksm: Invalid argument: max_page_sharing = '1'"),
    (("machine", "mem_total"), -1, "machine.mem_total"), (("machine", "kind"), 3, "machine.kind"),
    (("machine", "machines"), [{"ksm": 1}], r"machine.machines\[0\].ksm"),
    (("registered",), [1.5], "registered"), (("sources",), ["a"], "sources: 1 of them"), (("notes",), [1], "notes"),
    (("seconds",), {"a": []}, "seconds.a"), (("texts",), {}, "texts"), (("processes",), 3, "processes 3"),
    (("processes", 0, "pid"), 1 << 31, r"processes\[0\].pid"), (("processes", 0, "pid"), -1, r"processes\[0\].pid"),
    (("processes", 1, "pages"), 5, "shape"), (("processes", 1, "pages"), 1 << 90, r"processes\[1\].pages"),
    (("processes", 0, "vmas"), 0, r"processes\[0\].vmas"), (("processes", 0, "vmas"), 4, "vmas"),
    (("processes", 0, "folios"), 5, "folios"),
    (("processes", 0, "has"), ["addr"], "has"), (("processes", 0, "has"), ["addr", "categories", "x"], "has"),
    (("processes", 0, "has"), ["addr", "addr", "categories"], "has"),
    (("processes", 0, "identity"), None, r"processes\[0\].identity"), (("processes", 0, "identity", "uid"), "0", "identity.uid"),
    (("processes", 0, "identity", "command"), "x", "identity.command"),
    (("processes", 0, "ksm_stat"), {"ksm_zero_pages": "1"}, "ksm_stat.ksm_zero_pages"), (("extra",), 1, "unknown field 'extra'"),
    (("processes", 0, "extra"), 1, r"unknown field 'processes\[0\].extra'"), (("arrays",), ["addr"], "array categories is missing"),
    (("arrays",), ["../x"], "arrays"), (("arrays",), 7, "arrays"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "text"), META)
def test_forged_meta_is_refused_with_the_field(kept, place, value, text):
    meta = json.loads((kept / "meta.json").read_text())
    inner = meta
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (kept / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(BadCapture, match=text):
        open_capture(kept)


@pytest.mark.parametrize("field", ["nr_contents", "machine", "processes", "texts", "notes"])
def test_a_field_that_is_missing_is_named(kept, field):
    meta = json.loads((kept / "meta.json").read_text())
    del meta[field]
    (kept / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(BadCapture, match=rf"meta\.json: field {field} is missing"):
        open_capture(kept)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[" * 100000, b"\xff", b'{"kind": 1e999}', b"9" * 5000])
def test_what_is_no_meta_is_refused(kept, raw):
    (kept / "meta.json").write_bytes(raw)
    with pytest.raises(BadCapture, match=r"meta\.json"):
        open_capture(kept)


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"meta\.json: missing"):
        open_capture(tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        open_capture(tmp_path / "nothing")


VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 511, 512, 4096, 0x40000000, 0x40200000, 1 << 21, 1 << 40, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 23).map(lambda flags: flags << 4),
)  # fmt: skip
FORGERIES = st.lists(
    st.tuples(
        st.sampled_from([*PAGE_ARRAYS, "folios", "folios", "vmas", "vmas", "flags"]),
        st.integers(0, 1751), st.integers(1, 600), VALUES,
        st.sampled_from(["put", "or", "xor", "copy"]),
    ), min_size=1, max_size=4,
)  # fmt: skip
LETTERS = ["mg", "ht", "sh", "pf", "ht mg", "sh mg", "rd wr mr mw me ac mg ht", "io", "uw mg", ""]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("forged") / "kept"
    save_capture(made(), path)
    return path


def change(path, name, at, length, value, how):
    if name == "flags":
        meta = json.loads((path / "meta.json").read_text())
        meta["texts"][at % len(meta["texts"])] = LETTERS[value % len(LETTERS)]
        (path / "meta.json").write_text(json.dumps(meta))
        return
    array = np.load(path / f"{name}.npy")
    if name == "vmas":
        field = array.dtype.names[value % 14]
        array[field][at % len(array)] ^= np.array(value & 0xFFFFFFFF).astype(array[field].dtype)
    elif array.dtype == bool:
        array[at % len(array) :][:length] ^= True
    else:
        part = array[at % len(array) :][:length]
        new = np.array(value, np.uint64).astype(array.dtype)
        if how == "copy":
            part[...] = array[value % len(array)]
        else:
            part[...] = new if how == "put" else part | new if how == "or" else part ^ new
    np.save(path / f"{name}.npy", array)


@given(FORGERIES)
def test_a_forged_capture_is_refused_or_estimated_without_harm(original, tmp_path_factory, forgeries):
    path = tmp_path_factory.mktemp("one")
    for file in original.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    for one in forgeries:
        change(path, *one)
    try:
        capture = open_capture(path)
        estimate(capture, mark="all")
        estimate(capture, mark="marked")
    except (KsmwalkError, ValueError, OSError):
        return
    for process in capture.processes:
        process.frame_counts = None  # mappings of processes that are not here
    loaded = load_memory(capture, mark="all")
    loaded.host.ksm.full_scan()
    hostcheck.check(loaded.host)


def test_a_huge_page_of_which_nothing_is_left_is_no_other_one():
    one = made().processes[0]
    one.folios = np.array([one.pfn[0], one.pfn[512] >> np.uint64(9) << np.uint64(9), 0x700000], np.int64)
    (again,) = renumbered([one])
    assert again.folios.tolist() == [again.pfn[0], again.pfn[512] & ~np.uint64(511)]


def test_a_huge_page_that_another_process_shows_as_split_is_small_for_both():
    capture = made()
    first, second = capture.processes[:2]
    second.pfn[512], second.frame_flags[512] = first.pfn[7], first.frame_flags[576] | np.uint64(1 << 12)
    loaded = load_memory(capture)
    assert any("1 huge page was split between two looks" in note for note in loaded.notes)
    for process in capture.processes:
        process.frame_counts = None
    host = load_memory(capture).host
    hostcheck.check(host, torn=True)
    heads = [np.count_nonzero(one.frames.flags & np.uint16(Frame.HEAD)) for one in (host, load_memory(made()).host)]
    assert heads[0] == heads[1] - 1
