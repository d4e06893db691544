"""Locked memory: which calls lock what, and what waits in the batch of which CPU."""

import errno
import pickle

import numpy as np
import pytest
from hostcheck import check
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import Host
from ksmwalk.host.locking import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT
from ksmwalk.layout import Vm

PAGE, AT = 4096, 1 << 30


def locks(mm):
    """[(start, pages, VM_LOCKED and VM_LOCKONFAULT)] of its areas."""
    both = Vm.LOCKED | Vm.LOCKONFAULT
    return [((v.vm_start - AT) // PAGE, (v.vm_end - v.vm_start) // PAGE, Vm(v.vm_flags) & both) for v in mm.vmas]


def waiting(host, cpu=0):
    """Entries of the mlock batch of a CPU, new pages as others."""
    batch = host.world.arrays["batches"][cpu]
    return np.abs(batch["mlock"][: batch["nr_mlock"]]).tolist()


def made(n=8, nr_cpus=2, **options):
    host = Host(4096, nr_cpus=nr_cpus)
    mm = host.new_mm()
    mm.mmap(n * PAGE, AT, **options)
    return host, mm


def test_each_call_locks_what_it_says():
    host, mm = made()
    mm.mlock(AT, 2 * PAGE)
    mm.mlock(AT + 2 * PAGE, 2 * PAGE, MLOCK_ONFAULT)
    assert locks(mm) == [(0, 2, Vm.LOCKED), (2, 2, Vm.LOCKED | Vm.LOCKONFAULT), (4, 4, Vm(0))]
    assert (mm.read_pfns(AT, 8) >= 0).tolist() == [True] * 2 + [False] * 6
    mm.mlockall(MCL_CURRENT | MCL_ONFAULT)
    assert locks(mm) == [(0, 8, Vm.LOCKED | Vm.LOCKONFAULT)]
    mm.mlockall(MCL_FUTURE | MCL_ONFAULT)
    assert mm.locks_future == MCL_FUTURE | MCL_ONFAULT
    mm.munlockall()
    assert locks(mm) == [(0, 8, Vm(0))] and mm.locks_future == 0
    check(host)
    mm.mlockall(MCL_FUTURE | MCL_ONFAULT)
    again = pickle.loads(pickle.dumps(host))
    assert (again.mms["flags"] == host.mms["flags"]).all()


def test_an_exit_lets_go_of_what_waits_on_its_cpu():
    host, mm = made()
    other, elsewhere = host.new_mm(), host.new_mm()
    other.cpu, elsewhere.cpu = 0, 1
    mm.mlock(AT, 8 * PAGE, MLOCK_ONFAULT)
    mm.write(AT, 1)
    waits = waiting(host)
    elsewhere.exit()
    assert len(waits) == 1 and waiting(host) == waits
    other.exit()
    assert waiting(host) == []


def test_a_child_and_a_new_program_inherit_no_lock():
    host, mm = made(locked=True)
    mm.mlockall(MCL_FUTURE)
    child = mm.fork()
    assert child.locks_future == 0 and locks(child) == [(0, 8, Vm(0))]
    assert mm.exec().locks_future == 0


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda mm: mm.mlock(AT, PAGE, 2), errno.EINVAL),
        (lambda mm: mm.mlock(AT, 9 * PAGE), errno.ENOMEM),
        (lambda mm: mm.mlockall(0), errno.EINVAL),
        (lambda mm: mm.mlockall(MCL_ONFAULT), errno.EINVAL),
        (lambda mm: mm.mlockall(8), errno.EINVAL),
    ],
)
def test_what_is_refused(call, code):
    _, mm = made()
    with pytest.raises(OSError) as caught:
        call(mm)
    assert caught.value.errno == code


def test_what_can_not_be_had_is_passed_over_by_mmap():
    _, mm = made(prot="none", locked=True)
    assert locks(mm) == [(0, 8, Vm.LOCKED)] and (mm.read_pfns(AT, 8) < 0).all()


def test_cpus_are_those_of_the_host():
    host, mm = made(nr_cpus=2)
    for door, name in ((mm, "cpu"), (host.ksm, "cpu"), (host.ksm, "writer_cpu")):
        setattr(door, name, 1)
        assert getattr(door, name) == 1
        with pytest.raises(ValueError, match="cpu"):
            setattr(door, name, 2)


def test_pages_wait_where_the_process_runs_and_go_at_31():
    host, mm = made(40)
    mm.mlock(AT, 40 * PAGE, MLOCK_ONFAULT)
    mm.cpu = 1
    mm.populate(AT, 30 * PAGE, np.arange(30))
    assert waiting(host, 1) == mm.read_pfns(AT, 30).tolist() and waiting(host, 0) == []
    check(host)
    mm.write(AT + 30 * PAGE, 5)
    assert waiting(host, 1) == []
    check(host)


def test_run_2_fills_the_batch_of_the_writer():
    host, mm = made(4, locked=True)
    mm.madvise(AT, 4 * PAGE, "mergeable")
    mm.write(AT, [5, 5, 6, 6])
    for _ in range(3):
        host.ksm.full_scan()
    assert host.ksm.pages_sharing == 2
    host.drain()
    host.ksm.writer_cpu, mm.cpu, host.ksm.cpu = 1, 0, 0
    host.ksm.run = 2
    # each page's copy, then the KSM page it was
    assert len(waiting(host, 1)) == 8 and waiting(host, 0) == []
    check(host)


def test_a_page_that_waits_may_not_be_taken_for_a_pinned_one(tmp_path):
    host, mm = made(locked=True)
    child = mm.fork()
    mm.write(AT, 9)         # the copy and the page it was wait
    pfn = int(child.read_pfns(AT, 1)[0])
    assert pfn in waiting(host)
    host.save(tmp_path / "host")
    kept = Host.load(tmp_path / "host")
    with pytest.raises(ValueError, match="not pinned"):
        kept.unpin(pfn)
    assert waiting(kept) == waiting(host)


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, 39), st.integers(1, 20), st.integers(0, 2)),
    st.tuples(st.sampled_from(["mlock", "onfault", "munlock", "dontneed_locked"]), st.integers(0, 1), st.integers(0, 39),
              st.integers(1, 20)),
    st.tuples(st.just("cpu"), st.integers(0, 2), st.integers(0, 1)),
    st.tuples(st.sampled_from(["scan", "drain", "fork", "run2"])),
    st.tuples(st.just("drain_one"), st.integers(0, 1)),
)  # fmt: skip


@given(st.lists(steps, max_size=40), st.sampled_from([0, 3, 31]))
def test_references_are_what_is_mapped_and_what_waits(program, lru_batch):
    """Whatever is done, and a Host that was saved goes on the same."""
    host, mm = made(40)
    host.lru_batch = lru_batch
    mm.madvise(AT, 40 * PAGE, "mergeable")
    mms = [mm, host.new_mm()]
    mms[1].mmap(40 * PAGE, AT)
    mms[1].madvise(AT, 40 * PAGE, "mergeable")
    for kind, *a in program:
        if kind == "write":
            n = min(a[2], 40 - a[1])
            mms[a[0]].write(AT + a[1] * PAGE, np.full(n, a[3]))
        elif kind == "cpu":
            (*mms, host.ksm)[a[0]].cpu = a[1]
        elif kind == "scan":
            host.ksm.do_scan(25)
        elif kind == "run2":
            host.ksm.run = 2
            host.ksm.run = 1
        elif kind.startswith("drain"):
            host.drain(*a)
        elif kind == "fork":
            mms[1].exit()
            mms[1] = mms[0].fork()
        else:
            n = min(a[2], 40 - a[1])
            args = (AT + a[1] * PAGE, n * PAGE)
            if kind == "dontneed_locked":
                mms[a[0]].madvise(*args, kind)
            elif kind == "munlock":
                mms[a[0]].munlock(*args)
            else:
                mms[a[0]].mlock(*args, MLOCK_ONFAULT if kind == "onfault" else 0)
    check(host)
    again = Host.__new__(Host)
    again.__setstate__(host.__getstate__())
    assert [waiting(again, cpu) for cpu in (0, 1)] == [waiting(host, cpu) for cpu in (0, 1)]
    host.drain()
    check(host)
    held = host.frames.refs - host.frames.mapcount
    assert not held[host.frames.flags & 0x400 != 0][1:].any()
