"""Files that are written whole or not at all: what was there, links, permissions, and where nothing can be written."""

import errno
import os
import stat
import threading

import pytest

from ksmwalk.layout.whole import write_whole


def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "k.prom"
    path.write_text("old")
    before = path.stat().st_ino
    mask = os.umask(0o022)
    try:
        write_whole(path, b"new\n", follow=False)
    finally:
        os.umask(mask)
    assert path.read_text() == "new\n" and path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["k.prom"]


def test_a_link_is_not_followed_and_nothing_is_left_behind(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "k.prom").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link") as refused:
        write_whole(tmp_path / "k.prom", b"new", follow=False)
    assert "k.prom" in str(refused.value)
    assert victim.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["k.prom", "victim"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused(tmp_path, make):
    make(tmp_path / "k.prom")
    with pytest.raises(OSError, match="not a regular file"):
        write_whole(tmp_path / "k.prom", b"new", follow=False)
    assert os.listdir(tmp_path) == ["k.prom"]


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("name", ["", "none/k.prom", "file/k.prom", "dir/", "dir"])
def test_a_place_where_no_file_can_be_is_named(tmp_path, name, follow):
    (tmp_path / "file").write_text("")
    (tmp_path / "dir").mkdir()
    given = f"{tmp_path}/{name}" if name else ""
    with pytest.raises(OSError) as refused:
        write_whole(given, b"new", follow=follow)
    assert refused.value.filename == given
    assert sorted(os.listdir(tmp_path)) == ["dir", "file"]


@pytest.mark.parametrize("follow", [True, False])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, follow):
    path = tmp_path / "k.prom"
    path.write_text("old")

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space") as refused:
        write_whole(path, b"new", follow=follow)
    assert refused.value.filename == str(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["k.prom"]


@pytest.mark.parametrize("follow", [True, False])
def test_permissions_stay_and_a_new_file_has_what_the_umask_leaves(tmp_path, follow):
    path = tmp_path / "a"
    mask = os.umask(0o027)
    try:
        write_whole(path, b"1", follow=follow)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_whole(path, b"2", follow=follow)
    finally:
        os.umask(mask)
    assert path.read_bytes() == b"2" and stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_link_that_is_followed_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "file"
    link.symlink_to(target)
    for data in (b"1", b"2"):  # made where it leads, and replaced
        write_whole(link, data)
        assert link.is_symlink() and target.read_bytes() == data
    assert os.listdir(tmp_path / "there") == ["file"]


def test_a_pipe_is_written_to(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"through")
    reader.join()
    assert got == [b"through"] and os.listdir(tmp_path) == ["pipe"]


def test_a_name_as_long_as_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_new_file_takes_no_other_ones_place(tmp_path):
    path = tmp_path / "a"
    write_whole(path, [b"1", b"", b"2"], new=True)
    assert path.read_bytes() == b"12" and os.listdir(tmp_path) == ["a"]
    (tmp_path / "link").symlink_to("nowhere")
    for there in ("a", "link"):
        with pytest.raises(FileExistsError) as refused:
            write_whole(tmp_path / there, iter([b"3"]), new=True)
        assert refused.value.filename == str(tmp_path / there)
    assert path.read_bytes() == b"12" and sorted(os.listdir(tmp_path)) == ["a", "link"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_place_that_was_taken_while_it_was_written(tmp_path, monkeypatch, links):
    def data(here):
        yield b"1"
        here.write_text("mine")

    def none(*args, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # as on FAT
        monkeypatch.setattr(os, "link", none)
    write_whole(tmp_path / "a", [b"1"], new=True)
    with pytest.raises(FileExistsError) as refused:
        write_whole(tmp_path / "b", data(tmp_path / "b"), new=True)
    assert refused.value.filename == str(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone", "x"), OSError("odd"), KeyError(3), KeyboardInterrupt()])
def test_an_error_of_what_is_written_comes_out_as_it_is(tmp_path, error):
    def data():
        yield b"1"
        raise error

    with pytest.raises(type(error)) as raised:
        write_whole(tmp_path / "a", data(), new=True)
    assert raised.value is error and not os.listdir(tmp_path)
