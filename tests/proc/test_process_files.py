"""The files about a process, whatever stands in them."""

import pytest

from ksmwalk.proc import process_files

NUMBERS = " ".join(map(str, range(4, 56)))


@pytest.mark.parametrize("name", [b"cat", b"a) R 1 (b", b") ) )", b"\xff\n"])
def test_fields_are_counted_from_behind_the_name(name):
    fields = process_files.stat_fields(b"7 (" + name + b") S " + NUMBERS.encode() + b"\n")
    # field n of proc(5), counted from 1, is n - 3 here
    assert fields[:2] == [0, 4] and fields[process_files.STARTTIME] == 22 and fields[process_files.PPID] == 4
    assert fields[process_files.CODE] == 26 and fields[process_files.ARGUMENTS] == 48


@pytest.mark.parametrize("stat", [b"", b"7", b"7 (cat) S 1 2", b"7 (cat) S " + b"x " * 60])
def test_a_stat_that_is_none_has_no_fields(stat):
    assert process_files.stat_fields(stat) == []


def test_what_ksm_says_of_a_process():
    text = b"ksm_rmap_items 12\nksm_process_profit -64\nksm_merge_any: no\nksm_mergeable: yes\nother 1\nksm_x y\n"
    words = process_files.ksm_words(text)
    assert words == {"ksm_rmap_items": b"12", "ksm_process_profit": b"-64", "ksm_merge_any": b"no", "ksm_mergeable": b"yes"}


def test_marked_as_each_kernel_says_it():
    def never():
        raise AssertionError("the list of mappings is not needed")

    assert process_files.is_marked({"ksm_mergeable": b"yes"}, never)
    assert not process_files.is_marked({"ksm_mergeable": b"no", "ksm_merge_any": b"yes"}, never)
    assert process_files.is_marked({"ksm_merge_any": b"yes"}, never)
    assert process_files.is_marked({"ksm_merge_any": b"no"}, lambda: b"Size: 4 kB\nVmFlags: rd wr mg ac \n")
    assert not process_files.is_marked({}, lambda: b"VmFlags: rd wr\nName: mg\n")


def test_users_and_groups():
    assert process_files.user_ids(b"Name:\tUid: 7 8\nUid:\t1000\t0\t1000\t1000\n") == (1000, 0)
    assert process_files.user_ids(b"Name:\tx\n") is None
    assert process_files.cgroup_path(b"0::/a/b:c\n") == "/a/b:c"
    assert process_files.cgroup_path(b"2:cpu:/\n1:memory:/docker/1\n0::/\n") == "/docker/1"
    assert process_files.cgroup_path(b"") == "" and process_files.cgroup_path(b"0::/\n") == "/"
    assert process_files.cgroup_path(b"0::/\xff\n") == "/\udcff"
