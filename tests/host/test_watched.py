"""userfaultfd: every answer here is one that Linux 6.18 gave to the same calls."""

import errno

import pytest

from ksmwalk import Host
from ksmwalk.host.vma import letters

PAGE = 4096
UFFD_WP = 1 << 10
BASE = 1 << 32
ELSEWHERE = BASE + 1024 * PAGE


def refused(code, call, *args, **options):
    with pytest.raises(OSError) as caught:
        call(*args, **options)
    assert caught.value.errno == code


def area(pages=8, **options):
    mm = Host(8192).new_mm()
    mm.mmap(pages * PAGE, BASE, **options)
    return mm


def at(n):
    return BASE + n * PAGE


def seen(mm, first=0, n=8, base=BASE):
    """One letter a page: - absent, s a marker, z the zero page, a any other; capital where it is protected."""
    absent = {(int(addr) - base) // PAGE for addr in mm.absent_entries()}
    leaves = mm.tables.mappings()
    protected = {
        int(leaf["addr"]) + i * PAGE
        for leaf in leaves[leaves["flags"] & UFFD_WP != 0]
        for i in range(512 ** (int(leaf["level"]) - 1))
    }
    out = ""
    for i in range(first, first + n):
        addr = base + i * PAGE
        pfn = int(mm.read_pfns(addr, 1)[0])
        letter = "s" if i in absent else "-" if pfn < 0 else "z" if pfn == 0 else "a"
        out += letter.upper() if addr in protected else letter
    return out


def modes(mm, n=0):
    return " ".join(word for word in letters(mm.find_vma(at(n)).vm_flags).split() if word in ("um", "uw", "ui"))


# ---------------------------------------------------------------- registering


def test_modes_are_replaced_unless_all_are_there_already():
    mm = area()
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    assert modes(mm) == "uw"
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    assert modes(mm) == "um"
    mm.uffd_register(at(0), 8 * PAGE, missing=True, wp=True)
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    assert modes(mm) == "um uw"


def test_what_can_not_be_watched():
    mm = area()
    refused(errno.EINVAL, mm.uffd_register, at(0), 8 * PAGE)
    refused(errno.EINVAL, mm.uffd_register, at(0), 8 * PAGE, minor=True)
    refused(errno.EINVAL, mm.uffd_register, at(0), 0, wp=True)
    refused(errno.EINVAL, mm.uffd_register, at(0) + 1, PAGE, wp=True)
    refused(errno.EINVAL, mm.uffd_register, at(20), PAGE, wp=True)
    mm.mmap(4 * PAGE, at(8), kind="droppable")
    refused(errno.EINVAL, mm.uffd_register, at(0), 12 * PAGE, wp=True)
    assert modes(mm) == ""
    mm.mmap(4 * PAGE, at(8), kind="file")
    mm.mmap(4 * PAGE, at(12), shared=True)
    mm.uffd_register(at(8), 8 * PAGE, minor=True)
    assert modes(mm, 8) == modes(mm, 12) == "ui"


def test_holes_are_passed_over():
    mm = area(2)
    mm.mmap(2 * PAGE, at(4))
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    assert modes(mm, 0) == modes(mm, 4) == "uw"
    refused(errno.EINVAL, mm.uffd_register, at(2), 2 * PAGE, wp=True)
    mm.uffd_protect(at(0), 6 * PAGE)
    mm.uffd_protect(at(1), 2 * PAGE)
    refused(errno.ENOENT, mm.uffd_protect, at(2), 2 * PAGE)
    refused(errno.EINVAL, mm.uffd_unregister, at(2), 2 * PAGE)
    mm.uffd_unregister(at(0), 8 * PAGE)
    assert seen(mm) == "--------" and modes(mm, 4) == ""


def test_protecting_needs_wp_and_does_what_lies_before():
    mm = area()
    mm.write(at(0), 1)
    mm.write(at(5), 1)
    refused(errno.ENOENT, mm.uffd_protect, at(0), 4 * PAGE)
    mm.uffd_register(at(0), 4 * PAGE, wp=True)
    refused(errno.ENOENT, mm.uffd_protect, at(0), 8 * PAGE)
    assert seen(mm) == "Asss-a--"
    mm.uffd_unregister(at(0), 8 * PAGE)
    assert seen(mm) == "a----a--"
    mm.write(at(0), 2)


def test_two_userfaultfds_keep_their_areas_apart():
    mm = area()
    mm.uffd_register(at(0), 4 * PAGE, wp=True)
    mm.uffd_register(at(4), 2 * PAGE, wp=True, userfaultfd=7)
    assert [(v.vm_start, v.userfaultfd) for v in mm.vmas] == [(at(0), 0), (at(4), 7), (at(6), None)]
    refused(errno.EBUSY, mm.uffd_register, at(0), 8 * PAGE, missing=True)
    refused(errno.EINVAL, mm.uffd_unregister, at(0), 8 * PAGE)
    refused(errno.EINVAL, mm.uffd_move, at(4), at(6), PAGE)
    assert [v.userfaultfd for v in mm.fork().vmas] == [None] * 3
    mm.uffd_unregister(at(4), 4 * PAGE, userfaultfd=7)
    mm.uffd_register(at(4), 2 * PAGE, wp=True)
    assert [v.userfaultfd for v in mm.vmas] == [0, None]
    with pytest.raises(ValueError, match="userfaultfd 65536"):
        mm.uffd_register(at(0), PAGE, wp=True, userfaultfd=65536)


# ---------------------------------------------------------------- accesses


def test_protected_and_marked_pages():
    mm = area()
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    mm.uffd_protect(at(0), 4 * PAGE)
    assert mm.read(at(0)) == 0 and seen(mm) == "Zsss----"
    refused(errno.EFAULT, mm.write, at(0), 5)
    refused(errno.EFAULT, mm.write, at(1), 5)
    refused(errno.EFAULT, mm.poke, at(2), 5)
    assert seen(mm) == "ZAAs----"
    mm.uffd_protect(at(1), PAGE, False)
    mm.write(at(1), 6)
    assert seen(mm) == "ZaAs----" and mm.read(at(1)) == 6 and mm.read(at(2)) == 0
    mm.madvise(at(0), 8 * PAGE, "dontneed")
    assert seen(mm) == "--------"


def test_an_asynchronous_store_takes_the_protection_away():
    mm = area()
    mm.write(at(0), 1)
    mm.read(at(2))
    mm.uffd_register(at(0), 8 * PAGE, wp=True, asynchronous=True)
    mm.uffd_protect(at(0), 4 * PAGE)
    pfn = mm.read_pfns(at(0), 1)[0]
    mm.write(at(0), 7)
    mm.write(at(1), 7)
    mm.write(at(2), 7)
    assert seen(mm) == "aaas----" and mm.read_pfns(at(0), 1)[0] == pfn


def test_what_is_missing_waits():
    mm = area()
    mm.write(at(1), 1)
    mm.uffd_register(at(0), 8 * PAGE, missing=True, wp=True)
    mm.uffd_protect(at(4), PAGE)
    for access in (mm.read, lambda addr: mm.write(addr, 1), lambda addr: mm.poke(addr, 1)):
        refused(errno.EFAULT, access, at(0))
        refused(errno.EFAULT, access, at(4))
    refused(errno.EFAULT, mm.write, at(1), [2, 3])
    refused(errno.EFAULT, mm.write_at, [at(1), at(2)], [2, 3])
    refused(errno.EFAULT, mm.madvise, at(0), 8 * PAGE, "populate_read")
    refused(errno.ENOMEM, mm.mlock, at(0), 8 * PAGE)
    assert seen(mm) == "-a--s---" and mm.read(at(1)) == 2


def test_a_huge_page_does_not_come_where_one_is_missing():
    mm = Host(8192).new_mm()
    mm.mmap(1024 * PAGE, BASE)
    mm.madvise(BASE, 1024 * PAGE, "hugepage")
    mm.uffd_register(BASE, 1024 * PAGE, missing=True)
    refused(errno.EFAULT, mm.write, BASE, 1)
    refused(errno.EFAULT, mm.read, BASE)
    mm.uffd_copy(at(512), 5)
    assert seen(mm, 512, 3) == "a--"
    mm.uffd_unregister(BASE, 1024 * PAGE)
    mm.write(BASE, 1)
    mm.write(at(513), 1)
    assert (mm.read_pfns(BASE, 512) >= 0).all() and seen(mm, 512, 3) == "aa-"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_protected_huge_page(asynchronous):
    mm = Host(8192).new_mm()
    mm.mmap(512 * PAGE, BASE)
    mm.madvise(BASE, 512 * PAGE, "hugepage")
    mm.write(BASE, 1)
    mm.uffd_register(BASE, 512 * PAGE, wp=True, asynchronous=asynchronous)
    mm.uffd_protect(BASE, 512 * PAGE)
    if asynchronous:
        mm.write(at(3), 4)
        assert seen(mm, 0, 5) == "AAAaA" and mm.read(at(3)) == 4
    else:
        refused(errno.EFAULT, mm.write, at(3), 4)
        mm.uffd_protect(BASE, 4 * PAGE, False)
        mm.write(at(3), 4)
        assert seen(mm, 0, 5) == "aaaaA"


def test_shared_memory_keeps_markers_where_pages_may_come_back():
    mm = area(shared=True)
    mm.write(at(0), [1, 2])
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    mm.uffd_protect(at(0), 8 * PAGE)
    refused(errno.EFAULT, mm.write, at(0), 2)
    assert mm.read(at(2)) == 0
    refused(errno.EFAULT, mm.write, at(3), 2)
    assert seen(mm) == "AAAAssss"
    mm.madvise(at(0), 8 * PAGE, "dontneed")
    assert seen(mm) == "ssssssss"
    mm.uffd_protect(at(0), 8 * PAGE, False)
    assert seen(mm) == "--------" and mm.read(at(1)) == 2
    mm.write(at(1), 3)


def test_of_shared_memory_the_object_says_what_is_missing():
    mm = area(shared=True)
    mm.write(at(0), [1, 2])
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    mm.madvise(at(0), 8 * PAGE, "dontneed")
    assert mm.read(at(0)) == 1
    refused(errno.EFAULT, mm.read, at(6))
    mm.uffd_copy(at(6), 5)
    refused(errno.EEXIST, mm.uffd_copy, at(6), 5)
    mm.uffd_zero(at(7), PAGE)
    assert mm.read(at(6), 2).tolist() == [5, 0]
    mm.uffd_register(at(0), 8 * PAGE, minor=True)
    mm.madvise(at(0), 8 * PAGE, "dontneed")
    refused(errno.EFAULT, mm.read, at(0))
    refused(errno.EFAULT, mm.write, at(1), 1)
    refused(errno.EEXIST, mm.uffd_copy, at(0), 5)
    assert mm.read(at(4)) == 0
    mm.uffd_copy(at(3), 9)
    assert seen(mm) == "---aa---"


def test_no_pages_around_one_that_is_read_are_mapped_where_they_would_not_be_told_of():
    mm = area(32, shared=True)
    mm.write(at(0), list(range(1, 33)))
    for mode, around in (("missing", "a"), ("wp", "-")):
        mm.madvise(at(0), 32 * PAGE, "dontneed")
        mm.uffd_register(at(0), 32 * PAGE, **{mode: True})
        mm.read(at(2))
        assert seen(mm, 0, 4) == around * 2 + "a" + around
        mm.uffd_unregister(at(0), 32 * PAGE)


def test_a_private_file():
    mm = area(kind="file")
    mm.read(at(0))
    mm.write(at(1), 4)
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    mm.uffd_protect(at(0), 4 * PAGE)
    assert seen(mm) == "AAss----"
    mm.madvise(at(0), 8 * PAGE, "dontneed")
    assert seen(mm) == "ssss----"
    refused(errno.EFAULT, mm.write, at(2), 3)
    mm.uffd_copy(at(3), 5)
    assert seen(mm) == "ssAa----"
    mm.uffd_unregister(at(0), 8 * PAGE)
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    assert mm.read(at(0)) == 0
    refused(errno.EFAULT, mm.write, at(5), 3)
    mm.uffd_zero(at(5), PAGE)
    assert seen(mm) == "aaaa-z--"
    mm.mremap(at(0), 8 * PAGE, 10 * PAGE)
    refused(errno.EFAULT, mm.uffd_copy, at(9), 3)


# ---------------------------------------------------------------- placing and moving


def test_placing_pages():
    mm = area()
    refused(errno.ENOENT, mm.uffd_copy, at(0), 5)
    refused(errno.ENOENT, mm.uffd_zero, at(0), PAGE)
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    refused(errno.EINVAL, mm.uffd_copy, at(0), 5, wp=True)
    mm.uffd_copy(at(0), [5, 6])
    refused(errno.EEXIST, mm.uffd_copy, at(0), 5)
    mm.uffd_register(at(0), 8 * PAGE, missing=True, wp=True)
    mm.uffd_protect(at(3), 2 * PAGE)
    refused(errno.EEXIST, mm.uffd_zero, at(2), 2 * PAGE)
    mm.uffd_copy(at(3), 7)
    mm.uffd_copy(at(5), 8, wp=True)
    assert seen(mm) == "aazasA--" and mm.read(at(3)) == 7
    refused(errno.EFAULT, mm.write, at(5), 1)
    mm.write(at(2), 1)
    mm.madvise(at(6), PAGE, "guard_install")
    mm.uffd_copy(at(6), 7)
    assert seen(mm) == "aaaasAa-" and mm.host.frames.mapcount[mm.read_pfns(at(6), 1)[0]] == 1


def test_zero_pages_go_along_with_a_fork():
    mm = area()
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    mm.uffd_zero(at(0), 2 * PAGE)
    assert seen(mm.fork()) == "zz------"


def test_moving_pages():
    mm = area()
    mm.mmap(8 * PAGE, ELSEWHERE)
    mm.write(ELSEWHERE, [5, 6, 7])
    mm.read(ELSEWHERE + 3 * PAGE)
    pfn = mm.read_pfns(ELSEWHERE, 1)[0]
    refused(errno.EINVAL, mm.uffd_move, at(0), ELSEWHERE, PAGE)
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    mm.uffd_protect(at(7), PAGE)
    mm.uffd_move(at(0), ELSEWHERE, PAGE)
    assert mm.read_pfns(at(0), 1)[0] == pfn and mm.read(at(0)) == 5
    refused(errno.EEXIST, mm.uffd_move, at(0), ELSEWHERE + PAGE, PAGE)
    refused(errno.EEXIST, mm.uffd_move, at(7), ELSEWHERE + PAGE, PAGE)
    refused(errno.ENOENT, mm.uffd_move, at(1), ELSEWHERE, PAGE)
    refused(errno.EFAULT, mm.uffd_move, at(2), at(7), PAGE)
    refused(errno.ENOENT, mm.uffd_move, at(1), ELSEWHERE + PAGE, 4 * PAGE)
    assert seen(mm) == "aaaz---s" and seen(mm, base=ELSEWHERE) == "--------"
    mm.uffd_protect(at(0), PAGE)
    mm.uffd_move(at(4), at(0), PAGE)
    assert seen(mm) == "-aaza--s"
    mm.write(at(4), 9)


@pytest.mark.parametrize("how", ["read-only", "both", "locked", "over the end", "shared", "no area"])
def test_what_does_not_move(how):
    mm = area()
    mm.mmap(4 * PAGE, ELSEWHERE)
    mm.write(ELSEWHERE, [1, 2, 3, 4])
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    source, n, code = ELSEWHERE, 1, errno.EINVAL
    if how == "read-only":
        mm.mprotect(ELSEWHERE, 4 * PAGE, "r")
    elif how == "both":
        mm.mprotect(ELSEWHERE, 4 * PAGE, "r")
        mm.mprotect(at(0), 8 * PAGE, "r")
    elif how == "locked":
        mm.mlock(ELSEWHERE, 4 * PAGE)
    elif how == "over the end":
        n = 6
    elif how == "shared":
        mm.mmap(4 * PAGE, ELSEWHERE, shared=True)
        mm.write(ELSEWHERE, 1)
    else:
        source, code = ELSEWHERE + 4 * PAGE, errno.ENOENT
    refused(code, mm.uffd_move, at(0), source, n * PAGE)
    assert seen(mm) == "--------"


def test_a_page_shared_by_fork_is_busy_until_it_is_stored_to():
    mm = area()
    mm.write(at(0), 1)
    mm.uffd_register(at(0), 8 * PAGE, wp=True)
    child = mm.fork()
    refused(errno.EBUSY, mm.uffd_move, at(5), at(0), PAGE)
    child.exit()
    refused(errno.EBUSY, mm.uffd_move, at(5), at(0), PAGE)
    mm.write(at(0), 2)
    mm.uffd_move(at(5), at(0), PAGE)
    assert seen(mm) == "-----a--"


def test_a_huge_page_is_split_to_be_moved():
    mm = Host(8192).new_mm()
    mm.mmap(512 * PAGE, BASE)
    mm.mmap(512 * PAGE, ELSEWHERE)
    mm.madvise(ELSEWHERE, 512 * PAGE, "hugepage")
    mm.write(ELSEWHERE, 1)
    mm.write(ELSEWHERE + 3 * PAGE, 7)
    mm.uffd_register(BASE, 512 * PAGE, missing=True)
    mm.uffd_move(at(1), ELSEWHERE + 3 * PAGE, PAGE)
    assert mm.read(at(1)) == 7 and seen(mm, base=ELSEWHERE) == "azz-zzzz"
    mm.write(ELSEWHERE + 4 * PAGE, 1)


@pytest.mark.parametrize(("pages", "table", "whole"), [(512, False, True), (511, False, False), (512, True, False)])
def test_a_huge_page_moves_whole_where_there_is_no_table(pages, table, whole):
    mm = Host(8192).new_mm()
    mm.mmap(512 * PAGE, BASE)
    mm.mmap(512 * PAGE, ELSEWHERE)
    mm.madvise(ELSEWHERE, 512 * PAGE, "hugepage")
    mm.write(ELSEWHERE, list(range(1, 513)))
    mm.uffd_register(BASE, 512 * PAGE, missing=True)
    if table:
        mm.uffd_copy(BASE, 7)
        mm.madvise(BASE, PAGE, "dontneed")
    mm.uffd_move(BASE, ELSEWHERE, pages * PAGE)
    assert mm.read(at(500)) == 501 and (mm.tables.mappings()["level"] == 2).any() == whole
    refused(errno.EEXIST, mm.uffd_move, BASE, ELSEWHERE, PAGE)


def test_a_huge_page_that_others_have_does_not_move():
    mm = Host(8192).new_mm()
    mm.mmap(512 * PAGE, BASE)
    mm.mmap(512 * PAGE, ELSEWHERE)
    mm.madvise(ELSEWHERE, 512 * PAGE, "hugepage")
    mm.write(ELSEWHERE, 1)
    mm.uffd_register(BASE, 512 * PAGE, missing=True)
    mm.fork()
    refused(errno.EBUSY, mm.uffd_move, BASE, ELSEWHERE, 512 * PAGE)
    refused(errno.EBUSY, mm.uffd_move, BASE, ELSEWHERE, PAGE)


# ---------------------------------------------------------------- fork, mremap, collapse, saving


def test_a_child_is_not_watched():
    mm = area()
    mm.write(at(1), [1, 2])
    mm.uffd_register(at(0), 8 * PAGE, missing=True, wp=True)
    mm.uffd_protect(at(0), 8 * PAGE)
    child = mm.fork()
    assert seen(mm) == "sAAsssss" and seen(child) == "-aa-----" and modes(child) == ""
    child.write(at(1), 3)
    assert child.read(at(4)) == 0


def test_a_moved_area_is_not_watched_and_the_one_left_behind_is():
    mm = area()
    mm.write(at(0), [1, 2])
    mm.read(at(3))
    mm.uffd_register(at(0), 8 * PAGE, missing=True, wp=True)
    mm.uffd_protect(at(0), 5 * PAGE)
    mm.mremap(at(0), 8 * PAGE, 8 * PAGE, ELSEWHERE, dontunmap=True)
    assert seen(mm) == "--------" and seen(mm, base=ELSEWHERE) == "aa-z----"
    assert modes(mm) == "um uw" and modes(mm, 1024) == ""
    mm.write(ELSEWHERE, 5)
    refused(errno.EFAULT, mm.write, at(0), 1)


def test_watched_areas_move_one_by_one_only():
    mm = area()
    mm.write(at(0), list(range(1, 9)))
    mm.mprotect(at(0), 2 * PAGE, "r")
    mm.uffd_register(at(4), 2 * PAGE, wp=True)
    refused(errno.EFAULT, mm.mremap, at(0), 8 * PAGE, 8 * PAGE, ELSEWHERE)
    assert seen(mm) == "----aaaa" and seen(mm, base=ELSEWHERE) == "aaaa----", "what lies before it has moved"
    refused(errno.EFAULT, mm.mremap, at(4), 4 * PAGE, 4 * PAGE, ELSEWHERE + 4 * PAGE)
    mm.munmap(at(6), 2 * PAGE)
    refused(errno.EFAULT, mm.mremap, at(4), 4 * PAGE, 4 * PAGE, ELSEWHERE + 4 * PAGE)
    mm.mremap(at(5), PAGE, PAGE, ELSEWHERE + 4 * PAGE)
    mm.mremap(at(4), PAGE, 3 * PAGE, ELSEWHERE + 5 * PAGE)
    assert seen(mm, base=ELSEWHERE) == "aaaaaa--"


@pytest.mark.parametrize(("watched", "hole", "code"), [("missing", 1, 16), ("wp", 1, 16), ("wp", 0, 0), (None, 1, 0)])
def test_a_watched_area_with_holes_is_not_collapsed(watched, hole, code):
    mm = Host(8192).new_mm()
    mm.mmap(512 * PAGE, BASE)
    mm.write(BASE, list(range(1, 513 - hole)))
    if watched:
        mm.uffd_register(BASE, 512 * PAGE, **{watched: True})
    if code:
        refused(code, mm.madvise, BASE, 512 * PAGE, "collapse")
    else:
        mm.madvise(BASE, 512 * PAGE, "collapse")


def test_a_saved_host_keeps_what_is_watched(tmp_path):
    mm = area()
    mm.write(at(0), 1)
    mm.uffd_register(at(0), 4 * PAGE, missing=True, wp=True, asynchronous=True)
    mm.uffd_protect(at(0), 4 * PAGE)
    mm.host.save(tmp_path / "host")
    kept = Host.load(tmp_path / "host").mm_list[0]
    assert seen(kept) == "Asss----" and modes(kept) == "um uw"
    kept.write(at(0), 2)


def test_a_stack_grows_watched():
    mm = area(flags=0x100)
    mm.uffd_register(at(0), 8 * PAGE, missing=True)
    refused(errno.EFAULT, mm.read, at(-2))
    assert mm.vmas[0].vm_start == at(-2) and modes(mm, -2) == "um"


# ---------------------------------------------------------------- KSM


def test_pages_that_were_placed_merge_and_moved_ones_are_new():
    mm = area()
    mm.madvise(at(0), 8 * PAGE, "mergeable")
    mm.uffd_register(at(0), 8 * PAGE, missing=True, wp=True)
    mm.uffd_copy(at(0), [5, 5, 6], wp=True)
    ksm = mm.host.ksm
    for _ in range(3):
        ksm.full_scan()
    assert ksm.pages_shared == ksm.pages_sharing == 1
    refused(errno.EBUSY, mm.uffd_move, at(6), at(0), PAGE)
    mm.uffd_move(at(6), at(2), PAGE)
    ksm.full_scan()
    assert ksm.pages_volatile == 1
    ksm.full_scan()
    assert ksm.pages_unshared == 1
