"""Tasks of one address space, advice for others, stacks, pages moved away from an area that stays, private files."""

import errno

import pytest

from ksmwalk import Host
from ksmwalk.host.vma import letters
from ksmwalk.layout import Vm

PAGE = 4096
BASE = 1 << 32
ELSEWHERE = BASE + 64 * PAGE


def refused(code, call, *args, **options):
    with pytest.raises(OSError) as caught:
        call(*args, **options)
    assert caught.value.errno == code


def area(pages=4, **options):
    mm = Host(4096).new_mm()
    mm.mmap(pages * PAGE, BASE, **options)
    return mm


# ---------------------------------------------------------------- tasks


def test_memory_lives_until_its_last_task_is_gone(tmp_path):
    mm = area()
    mm.write(BASE, [5, 5])
    mm.madvise(BASE, 4 * PAGE, "mergeable")
    assert mm.clone() is mm and mm.clone().tasks == 3
    mm.exit()
    mm.host.save(tmp_path / "host")
    kept = Host.load(tmp_path / "host").mm_list[0]
    kept.exit()
    assert kept.alive and kept.tasks == 1 and kept.read(BASE) == 5
    kept.exit()
    assert not kept.alive
    mm.exit()
    mm.exit()
    assert not mm.alive
    refused(errno.ESRCH, mm.clone)


def test_exec_by_one_task_leaves_the_memory_to_the_others():
    mm = area()
    mm.write(BASE, 5)
    mm.prctl_merge(True)
    child = mm.clone().exec()
    assert child is not mm and child.merge_any and not child.vmas and child.tasks == mm.tasks == 1
    assert mm.read(BASE) == 5
    number = mm.index
    assert mm.exec() is mm and mm.index != number and not mm.vmas


def test_a_child_of_a_fork_has_one_task_whatever_its_parent_has():
    mm = area()
    mm.clone()
    assert mm.fork().tasks == 1


def test_advice_for_others_is_of_the_harmless_kind():
    mm = area()
    mm.write(BASE, [1, 2, 3, 4])
    other = mm.host.new_mm()
    for advice in ("cold", "willneed"):
        other.process_madvise(mm, BASE, 4 * PAGE, advice)
        refused(errno.ENOMEM, other.process_madvise, mm, BASE + 2 * PAGE, 4 * PAGE, advice)
    for advice in ("mergeable", "dontneed", "free", "hugepage", "populate_write", 777):
        refused(errno.EINVAL, other.process_madvise, mm, BASE, 4 * PAGE, advice)
    mm.process_madvise(mm, BASE, PAGE, "dontneed")
    assert mm.read_pfns(BASE, 2).tolist()[0] == -1 and mm.read(BASE + PAGE) == 2
    with pytest.raises(ValueError, match="advice 'cool'"):
        other.process_madvise(mm, BASE, PAGE, "cool")
    with pytest.raises(ValueError, match="other 5"):
        other.process_madvise(5, BASE, PAGE, "cold")
    with pytest.raises(ValueError, match="same Host"):
        other.process_madvise(area(), BASE, PAGE, "cold")


# ---------------------------------------------------------------- stacks


def stack(below=None, prot="rw", **options):
    """A stack of four pages with another area (this far below it, pages) and its address space."""
    mm = area(flags=int(Vm.GROWSDOWN))
    if below is not None:
        mm.mmap(4 * PAGE, BASE - (4 + below) * PAGE, prot, **options)
    return mm


@pytest.mark.parametrize("access", ["write", "read", "poke", "write many", "read many", "scattered", "loads"])
def test_an_access_below_a_stack_grows_it(access):
    mm = stack()
    mm.madvise(BASE, 4 * PAGE, "mergeable")
    at = BASE - 40 * PAGE
    match access:
        case "write":
            mm.write(at, 5)
        case "read":
            assert mm.read(at) == 0
        case "poke":
            mm.poke(at, 5)
        case "write many":
            mm.write(at, [5, 6])
        case "read many":
            mm.read(at, 2)
        case "scattered":
            mm.write_at([BASE, at], [1, 5])
        case "loads":
            mm.read_at([BASE, at])
    (area,) = mm.vmas
    assert (area.vm_start, area.vm_end) == (at, BASE + 4 * PAGE)
    assert area.vm_flags & Vm.MERGEABLE and area.vm_pgoff == at // PAGE
    child = mm.fork()
    child.write(at - PAGE, 1)
    assert mm.vmas[0].vm_start == at and child.vmas[0].vm_start == at - PAGE
    assert (child.read_pfns(at, 1)[0] >= 0) == (mm.read_pfns(at, 1)[0] >= 0), "the tables were copied: it has an anon_vma"


@pytest.mark.parametrize(
    ("prot", "flags", "pages", "grows"),
    [("rw", 0, 256, True), ("rw", 0, 255, False), ("r", 0, 255, False), ("none", 0, 0, True), ("rw", Vm.GROWSDOWN, 0, True)],
)
def test_a_gap_is_kept_to_what_may_be_accessed_below(prot, flags, pages, grows):
    mm = stack(below=300, prot=prot, flags=int(flags))
    at = BASE - 300 * PAGE + pages * PAGE
    if grows:
        mm.write(at, 5)
        assert mm.find_vma(at).vm_start == at
    else:
        refused(errno.EFAULT, mm.write, at, 5)
        assert mm.find_vma(BASE).vm_start == BASE


def test_a_stack_has_8_mib_at_most_and_is_private():
    mm = stack()
    refused(errno.EFAULT, mm.write, BASE - 2045 * PAGE, 5)
    mm.write(BASE - 2044 * PAGE, 5)
    refused(errno.EINVAL, mm.mmap, PAGE, BASE + 8 * PAGE, shared=True, flags=int(Vm.GROWSDOWN))
    refused(errno.EINVAL, mm.mmap, PAGE, BASE + 8 * PAGE, kind="file", flags=int(Vm.GROWSDOWN))
    assert "gd" in letters(mm.vmas[0].vm_flags).split()


def test_places_keep_away_from_a_stack():
    mm = Host(4096).new_mm()
    top = mm.mmap(4 * PAGE, flags=int(Vm.GROWSDOWN))
    assert mm.mmap(4 * PAGE) == top - 260 * PAGE


def test_what_may_not_be_read_grows_all_the_same():
    mm = stack()
    mm.mprotect(BASE, 4 * PAGE, "none")
    refused(errno.EFAULT, mm.read, BASE - PAGE)
    assert mm.vmas[0].vm_start == BASE - PAGE


# ---------------------------------------------------------------- MREMAP_DONTUNMAP


def test_pages_move_and_the_area_stays():
    mm = area()
    mm.write(BASE, [5, 6, 7, 8])
    mm.madvise(BASE, 4 * PAGE, "mergeable")
    assert mm.mremap(BASE, 4 * PAGE, 4 * PAGE, ELSEWHERE, dontunmap=True) == ELSEWHERE
    assert [v.vm_start for v in mm.vmas] == [BASE, ELSEWHERE]
    assert all(v.vm_flags & Vm.MERGEABLE for v in mm.vmas)
    assert mm.read_pfns(BASE, 4).tolist() == [-1] * 4 and mm.read(ELSEWHERE + 3 * PAGE) == 8
    anywhere = mm.mremap(ELSEWHERE, 2 * PAGE, 2 * PAGE, dontunmap=True)
    assert anywhere not in (BASE, ELSEWHERE) and mm.read(anywhere) == 5


@pytest.mark.parametrize(("pages", "copied"), [(4, False), (2, True)])
def test_an_area_that_all_pages_left_is_as_if_it_never_had_any(pages, copied):
    mm = area()
    mm.write(BASE, 5)
    mm.mremap(BASE, pages * PAGE, pages * PAGE, ELSEWHERE, dontunmap=True)
    mm.read(BASE)
    assert (mm.fork().read_pfns(BASE, 1)[0] == 0) == copied


def test_the_lock_goes_along_and_does_not_stay_where_pages_stay_either():
    mm = area()
    mm.mlock(BASE, 4 * PAGE)
    mm.mremap(BASE, 2 * PAGE, 2 * PAGE, ELSEWHERE, dontunmap=True)
    locked = [(v.vm_start, v.vm_end, bool(v.vm_flags & Vm.LOCKED)) for v in mm.vmas]
    assert locked == [(BASE, BASE + 4 * PAGE, False), (ELSEWHERE, ELSEWHERE + 2 * PAGE, True)]


def test_several_areas_leave_several():
    mm = area()
    mm.write(BASE, [1, 2, 3, 4])
    mm.mprotect(BASE, 2 * PAGE, "r")
    mm.mremap(BASE, 4 * PAGE, 4 * PAGE, ELSEWHERE, dontunmap=True)
    assert len(mm.vmas) == 4 and mm.read(ELSEWHERE, 4).tolist() == [1, 2, 3, 4]


def test_what_dontunmap_is_refused_with():
    mm = area()
    mm.mprotect(BASE, 2 * PAGE, "r")
    for old, new, options in ((2, 4, {}), (4, 2, {}), (2, 2, {"maymove": False})):
        refused(errno.EINVAL, mm.mremap, BASE, old * PAGE, new * PAGE, ELSEWHERE, dontunmap=True, **options)
    refused(errno.EFAULT, mm.mremap, BASE, 4 * PAGE, 4 * PAGE, dontunmap=True)
    refused(errno.EINVAL, mm.mremap, BASE, 2 * PAGE, 2 * PAGE, BASE + PAGE, dontunmap=True)


# ---------------------------------------------------------------- collapse of shared memory


def test_shared_memory_whose_offset_does_not_fit_is_never_collapsed():
    mm = Host(8192).new_mm()
    mm.mmap(1024 * PAGE, BASE + 5 * PAGE, shared=True)
    refused(errno.EINVAL, mm.madvise, BASE + 20 * PAGE, 1000 * PAGE, "collapse")
    mm.mmap(1024 * PAGE, BASE + 4096 * PAGE, shared=True)
    mm.madvise(BASE + 4097 * PAGE, 1000 * PAGE, "collapse")
