"""Families of areas: who descends from whom by fork, as reclaim, swapoff and joins of areas ask."""

import hostcheck
import pytest

from ksmwalk import Host

P = 4096
BASE = 1 << 30


def records(host):
    return host.world.arrays["anons"][: int(host.world.arrays["ctl"]["anons_used"][0])]


def with_pages(host, n=1):
    mm = host.new_mm()
    mm.mmap(n * P, BASE)
    mm.write(BASE, [1] * n)
    return mm


def area(mm):
    return mm.host.world.arrays["vmas"][mm.vmas[0].index]


def test_a_child_gets_a_record_below_its_parents():
    host = Host(256)
    a = with_pages(host)
    b = a.fork()
    assert records(host)["above"][area(b)["anon_vma"]] == area(a)["anon_vma"]
    assert records(host)["children"][area(a)["anon_vma"]] == 1
    hostcheck.check(host)


def test_a_record_that_nobody_uses_is_taken_again():
    host = Host(256)
    a = with_pages(host)
    b = a.fork()
    c = b.fork()
    of_b = int(area(b)["anon_vma"])
    b.exit()
    d = c.fork()
    assert area(d)["anon_vma"] == of_b and area(d)["anon_chain"] == area(c)["anon_chain"]
    e = c.fork()
    assert area(e)["anon_vma"] not in (of_b, area(c)["anon_vma"])
    hostcheck.check(host)


def test_the_root_is_never_taken_again():
    host = Host(256)
    a = with_pages(host)
    b = a.fork()
    root = int(area(a)["anon_vma"])
    a.exit()
    assert area(b.fork())["anon_vma"] != root
    hostcheck.check(host)


def test_all_is_free_once_the_last_is_gone():
    host = Host(256)
    a = with_pages(host)
    b = a.fork()
    c = b.fork()
    for mm in (b, a, c):
        mm.exit()
        hostcheck.check(host)
    assert not records(host)["users"].any()


@pytest.mark.parametrize("deep", [2, 7])
def test_chains_whose_members_have_ended_make_room(deep):
    """More records were needed than there is room for: those that only lead on are taken out."""
    host = Host(4096)
    host.world.arrays["ctl"]["anons_cap"][0] = 128
    leaves = []
    for _ in range(40):
        chain = [with_pages(host)]
        for _ in range(deep):
            chain.append(chain[-1].fork())
        for mm in chain[:-1]:
            mm.exit()
        leaves.append(chain[-1])
        assert area(leaves[-1])["anon_vma"]
    hostcheck.check(host)
    assert all(records(host)["above"][area(mm)["anon_chain"]] for mm in leaves)  # still not the root: they were forked
    for mm in leaves:
        assert mm.fork().read(BASE) == 1
    hostcheck.check(host)


def test_parts_and_moved_areas_keep_their_family():
    host = Host(256)
    a = with_pages(host, 8)
    b = a.fork()
    family = int(area(b)["anon_vma"])
    b.mprotect(BASE + 2 * P, P, "r")
    b.mremap(BASE + 6 * P, 2 * P, 2 * P, BASE + 100 * P)
    assert {int(host.world.arrays["vmas"]["anon_vma"][vma.index]) for vma in b.vmas} == {family}
    assert records(host)["areas"][family] == len(b.vmas) == 4
    b.mprotect(BASE + 2 * P, P, "rw")
    assert records(host)["areas"][family] == len(b.vmas) == 2
    hostcheck.check(host)


def test_an_area_that_was_cut_is_the_last_among_relatives():
    host = Host(256)
    a = with_pages(host, 4)
    b = a.fork()
    assert area(a)["linked"] < area(b)["linked"]
    a.mprotect(BASE + 2 * P, P, "r")
    assert area(a)["linked"] > area(b)["linked"]


def test_guards_over_protected_pages_of_a_file_are_refused():
    """The kernel's own call never comes back."""
    host = Host(256)
    a = host.new_mm()
    a.mmap(4 * P, BASE, shared=True)
    a.write(BASE, [1, 2, 3, 4])
    a.uffd_register(BASE, 4 * P, wp=True)
    a.uffd_protect(BASE, P, True)
    with pytest.raises(OSError, match=r"Resource deadlock.*guard_install 0x40000000"):
        a.madvise(BASE, P, "guard_install")
    a.madvise(BASE + P, P, "guard_install")
    private = with_pages(host)
    private.uffd_register(BASE, P, wp=True)
    private.uffd_protect(BASE, P, True)
    private.madvise(BASE, P, "guard_install")
