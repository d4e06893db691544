"""Directories of arrays: written whole or not at all, read without trust."""

import errno
import json
import os
import stat
import sys

import numpy as np
import pytest
from busy import busy_host, busy_image, busy_tables

from ksmwalk import Host, PageTables
from ksmwalk.layout import stored

MADE = {"host": busy_host, "tables": busy_tables, "image": busy_image}
PAGE = 4096


@pytest.fixture(params=list(MADE))
def made(request):
    return MADE[request.param]()


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_two_saves_are_the_same_files(made, tmp_path):
    made.save(tmp_path / "a")
    made.save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_loaded_one_is_saved_as_the_same_files(made, tmp_path):
    made.save(tmp_path / "a")
    type(made).load(tmp_path / "a").save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_used_directory_is_refused_and_left_alone(made, tmp_path):
    made.save(tmp_path / "a")
    before = files(tmp_path / "a")
    with pytest.raises(FileExistsError, match="not empty; overwrite=True"):
        made.save(tmp_path / "a")
    assert files(tmp_path / "a") == before


def test_overwriting_leaves_nothing_of_the_older_save(tmp_path):
    """An image has frames.npy; an arena saved over it must not take them for its own."""
    busy_image().save(tmp_path / "a")
    tables = PageTables()
    tables.map(0x1000, 7)
    tables.save(tmp_path / "a", overwrite=True)
    assert not (tmp_path / "a" / "frames.npy").exists()
    assert len(PageTables.load(tmp_path / "a").mappings()) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_only_what_ksmwalk_wrote_is_overwritten(made, tmp_path):
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(FileExistsError, match=r"not written by ksmwalk \(letters\)"):
        made.save(tmp_path, overwrite=True)
    assert files(tmp_path) == {"letters": b"dear"}
    np.save(tmp_path / "mine.npy", np.zeros(3))
    (tmp_path / "letters").unlink()
    with pytest.raises(FileExistsError, match=r"no format\.json"):
        made.save(tmp_path, overwrite=True)
    for text in ("{}", "[", '{"kind": "letters", "arrays": ["mine"]}', '{"kind": "saved Host", "arrays": ["rows"]}'):
        (tmp_path / "format.json").write_text(text)
        with pytest.raises(FileExistsError, match="not written by ksmwalk"):
            made.save(tmp_path, overwrite=True)
    assert set(files(tmp_path)) == {"mine.npy", "format.json"}


def test_a_save_ended_between_any_two_steps_leaves_a_whole_one_in_its_place(made, tmp_path):
    """Ended as by SIGKILL, before each of the calls by which it changes names."""
    made.save(tmp_path / "a")
    for steps in range(4):
        child = os.fork()
        if not child:
            seen = []

            def end_there(event, args, seen=seen, steps=steps):
                if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                    seen.append(event)
                    if len(seen) > steps:
                        os._exit(0)

            sys.addaudithook(end_there)
            made.save(tmp_path / "a", overwrite=True)
            os._exit(0)
        os.waitpid(child, 0)
        assert repr(type(made).load(tmp_path / "a")) == repr(made)


def test_overwrite_is_a_switch(made, tmp_path):
    made.save(tmp_path / "a")
    before = files(tmp_path / "a")
    for value in ("no", None, 2, []):
        with pytest.raises(TypeError, match="overwrite .*: must be True or False"):
            made.save(tmp_path / "a", overwrite=value)
    assert files(tmp_path / "a") == before


def test_what_only_the_owner_may_read_stays_so(made, tmp_path):
    (tmp_path / "a").mkdir(mode=0o700)
    for _ in range(2):
        made.save(tmp_path / "a", overwrite=True)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


def test_the_working_directory_is_not_replaced(made, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(OSError, match="the working directory"):
        made.save(".")
    assert os.getcwd() == str(tmp_path / "a")


def test_a_save_that_fails_leaves_what_was_there(made, tmp_path, monkeypatch):
    made.save(tmp_path / "a")
    before = files(tmp_path / "a")
    no_room = OSError(errno.ENOSPC, "")
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", lambda *_: (_ for _ in ()).throw(no_room))
    for name in ("a", "b"):
        with pytest.raises(OSError, match=r"\w+ can't be written: No space left on device") as raised:
            made.save(tmp_path / name, overwrite=True)
        assert raised.value.errno == errno.ENOSPC
    assert files(tmp_path / "a") == before and os.listdir(tmp_path) == ["a"]


def test_no_symbolic_link_is_followed_in_writing(made, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(OSError, match="a symbolic link, which is not followed"):
            made.save(tmp_path / name, overwrite=True)
    assert not os.listdir(tmp_path / "real") and not (tmp_path / "nowhere").exists()


def test_a_file_in_the_place_of_the_directory_is_refused(made, tmp_path):
    (tmp_path / "a").write_text("dear")
    with pytest.raises(FileExistsError, match="not a directory"):
        made.save(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_text() == "dear"


def test_modes_are_what_the_umask_leaves(made, tmp_path):
    old = os.umask(0o027)
    try:
        made.save(tmp_path / "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a").iterdir()} == {0o640}


def test_links_pipes_and_devices_are_not_read(made, tmp_path):
    made.save(tmp_path / "a")
    file = tmp_path / "a" / "rows.npy"
    file.rename(tmp_path / "rows.npy")
    file.symlink_to("../rows.npy")
    with pytest.raises(OSError, match=r"rows\.npy: a symbolic link"):
        type(made).load(tmp_path / "a")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OSError, match=r"rows\.npy: not a regular file"):
        type(made).load(tmp_path / "a")


def test_a_directory_may_be_reached_through_a_link(made, tmp_path):
    made.save(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    assert repr(type(made).load(tmp_path / "link")) == repr(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99: of a newer ksmwalk"),
        ({"version": 0}, "version 0: no version"),
        ({"version": True}, "version True"),
        ({"kind": "shoes"}, "kind 'shoes': must be 'saved"),
        ({"arrays": ["../rows"]}, r"arrays \['../rows'\]"),
        ({"arrays": 3}, "arrays 3"),
    ],
)
def test_formats_that_are_not_ours_are_refused_by_name(made, change, message, tmp_path):
    made.save(tmp_path / "a")
    file = tmp_path / "a" / "format.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"format\.json: {message}"):
        type(made).load(tmp_path / "a")
    state = made.__getstate__() | {name: value for name, value in change.items() if name != "arrays"}
    if "arrays" not in change:
        with pytest.raises(ValueError, match=message):
            type(made).__new__(type(made)).__setstate__(state)


def test_what_was_kept_before_there_were_versions_is_refused(made, tmp_path):
    made.save(tmp_path / "a")
    (tmp_path / "a" / "format.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"format\.json: missing"):
        type(made).load(tmp_path / "a")
    with pytest.raises(ValueError, match="before there were versions"):
        type(made).__new__(type(made)).__setstate__(made.__getstate__()["arrays"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"rows\.npy: no \.npy file"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<u8'}", r"rows\.npy: no \.npy file"),
        # what numpy's own filter for headers of old files can't take apart
        (b"\x93NUMPY\x01\x00\x20\x00{'descr': '<u8', 'shape\xff: (3,), }\n", r"rows\.npy: no \.npy file"),
        (b"\x93NUMPY\x01\x00\x00\x04{" + bytes(1023), r"^.*rows\.npy: no \.npy file: .{,103}$"),
        (b"\x93NUMPY\x03\x00\x00\x00\x00\x00", r"rows\.npy: no \.npy file: version \(3, 0\)"),
    ],
)
def test_headers_that_are_none_are_refused_by_name(made, raw, message, tmp_path):
    made.save(tmp_path / "a")
    (tmp_path / "a" / "rows.npy").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        type(made).load(tmp_path / "a")


def test_a_header_is_held_to_the_size_of_its_file_before_memory_is_taken(made, tmp_path):
    made.save(tmp_path / "a")
    file = tmp_path / "a" / "rows.npy"
    raw = file.read_bytes()
    n = str(len(np.load(file)))
    file.write_bytes(raw.replace(f"({n}, 512)".encode(), b"(%d, 512)" % (1 << 40)))
    with pytest.raises(ValueError, match=r"rows\.npy: \d+ bytes of content, must be 4503599627370496"):
        type(made).load(tmp_path / "a")


def test_pickled_objects_are_not_unpickled(made, tmp_path):
    made.save(tmp_path / "a")
    np.save(tmp_path / "a" / "rows.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"rows\.npy: dtype object"):
        type(made).load(tmp_path / "a")


def test_a_name_with_an_ending_of_its_own_is_kept_whole(tmp_path):
    Host(100).save(tmp_path / "host.v1.d")
    assert sorted(os.listdir(tmp_path)) == ["host.v1.d"]


def test_versions_below_the_newest_are_read():
    stored.check_version({"kind": "saved Host", "version": 1}, "saved Host", 3)
