"""The parser of smaps, on fixed texts and on the test's own process."""

from __future__ import annotations

import mmap

import pytest

from ksmwalk.proc.maps import first_difference, parse_maps, parse_smaps

HEAD = b"7f0000000000-7f0000200000 rw-p 00001000 08:01 42                         /tmp/a file (deleted)\n"
BODY = b"""Size:               2048 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                  36 kB
Pss:                  36 kB
Anonymous:            32 kB
KSM:                   8 kB
AnonHugePages:      2048 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                 12 kB
SwapPss:              12 kB
THPeligible:           0
VmFlags: rd wr mr mw me ac mg \n"""


def test_one_mapping():
    (vma,) = parse_smaps(HEAD + BODY)
    assert (vma.start, vma.end, vma.size) == (0x7F0000000000, 0x7F0000200000, 2 << 20)
    assert (vma.perms, vma.offset, vma.device, vma.inode) == ("rw-p", 0x1000, "08:01", 42)
    assert vma.name == "/tmp/a file (deleted)"
    assert (vma.rss, vma.anonymous, vma.ksm, vma.huge, vma.swap) == (36 << 10, 32 << 10, 8 << 10, 2 << 20, 12 << 10)
    assert vma.flags == ("rd", "wr", "mr", "mw", "me", "ac", "mg")
    assert vma.mergeable and vma.why_not is None and vma.not_compatible is None and not vma.never_written


def test_hugetlb_counts_as_resident():
    body = BODY.replace(b"Private_Hugetlb:       0", b"Private_Hugetlb:    2048")
    (vma,) = parse_smaps(HEAD + body)
    assert vma.rss == (2048 + 36) << 10


@pytest.mark.parametrize(
    ("letters", "why"),
    [
        ("sh", "shared"),
        ("ms", "shared"),
        ("pf", "raw frames (pfnmap)"),
        ("io", "device memory (io)"),
        ("de", "dontexpand"),
        ("ht", "hugetlb"),
        ("mm", "mixedmap"),
        ("dp", "droppable"),
    ],
)
def test_what_cannot_be_mergeable(letters, why):
    body = BODY.replace(b"ac mg", letters.encode())
    (vma,) = parse_smaps(HEAD + body)
    assert not vma.mergeable
    assert vma.why_not == vma.not_compatible == why


def test_not_marked_and_not_known():
    (vma,) = parse_smaps(HEAD + BODY.replace(b"mg ", b""))
    assert vma.not_compatible is None and vma.why_not == "not marked"
    (vma,) = parse_smaps(HEAD + BODY[: BODY.index(b"VmFlags")])
    assert vma.why_not == "flags not known"


def test_the_kernels_own_mapping_is_left_out():
    text = HEAD + b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
    assert len(parse_maps(text)) == 1
    assert len(parse_smaps(text)) == 1


def test_text_of_another_form_is_refused_by_name():
    with pytest.raises(ValueError, match="hello"):
        parse_smaps(b"hello world\n")


def test_both_files_of_this_process_agree():
    area = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_SHARED)
    with open("/proc/self/smaps", "rb", buffering=0) as file:
        smaps = parse_smaps(file.read())
    with open("/proc/self/maps", "rb", buffering=0) as file:
        maps = parse_maps(file.read())
    area.close()
    names = {vma.name for vma in smaps}
    assert "[stack]" in names and any("shared" == vma.not_compatible for vma in smaps)
    # the heap may have grown in between; the stack and the code have not
    assert {vma.key for vma in maps if vma.inode} == {vma.key for vma in smaps if vma.inode}


def test_first_difference_names_it():
    one = parse_smaps(HEAD + BODY)
    other = parse_smaps(HEAD.replace(b"rw-p", b"r--p") + BODY)
    assert first_difference(one, one) is None
    assert "new mapping 7f0000000000-7f0000200000 r--p" in first_difference(one, other)
    assert "mapping gone" in first_difference(one + parse_smaps(HEAD.replace(b"7f", b"6f") + BODY), one)
