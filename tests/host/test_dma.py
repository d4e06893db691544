"""Pages in the hands of devices, by Python: what the recordings of pins don't show."""

import errno

import hostcheck
import numpy as np
import pytest

from ksmwalk import Host

PAGE = 4096
AT = 1 << 30


def made(pages=8):
    host = Host(4096)
    mm = host.new_mm()
    mm.mmap(pages * PAGE, AT)
    return host, mm


def test_taking_a_page_is_a_store_to_it_and_leaves_what_is_in_it():
    host, mm = made()
    mm.write(AT, [5, 6])
    child = mm.fork()
    before = mm.read_pfns(AT, 2)
    pfns = host.dma_pin(mm, AT + 5, 3 * PAGE - 5)
    assert mm.read_keys(AT, 3).tolist() == [5, 6, 0] and child.read_keys(AT, 2).tolist() == [5, 6]
    assert not set(pfns.tolist()) & set(before.tolist()) and (child.read_pfns(AT, 2) == before).all()
    hostcheck.check(host)
    host.dma_unpin(pfns)
    hostcheck.check(host)


def test_a_fork_copies_what_a_device_has_and_shares_the_rest():
    host, mm = made()
    mm.write(AT, np.arange(8, dtype=np.uint64))
    pfns = host.dma_pin(mm, AT + 2 * PAGE, 2 * PAGE)
    child = mm.fork()
    apart = mm.read_pfns(AT, 8) != child.read_pfns(AT, 8)
    assert apart.tolist() == [False, False, True, True, False, False, False, False]
    assert child.read_keys(AT, 8).tolist() == list(range(8))
    mm.write(AT + 2 * PAGE, 77)
    assert (mm.read_pfns(AT + 2 * PAGE, 2) == pfns).all() and child.read_keys(AT + 2 * PAGE, 1)[0] == 2
    hostcheck.check(host)


def test_a_page_is_pinned_as_often_as_it_was_and_no_plain_unpin_takes_that_back():
    host, mm = made()
    one = host.dma_pin(mm, AT)
    assert (host.dma_pin(mm, AT) == one).all()
    with pytest.raises(ValueError, match="not pinned"):
        host.unpin(int(one[0]))
    mm.exit()
    assert host.frames.refs[one[0]] == 2
    host.dma_unpin([one[0], one[0]])
    with pytest.raises(ValueError, match=r"pfns\[0\].*not pinned for DMA"):
        host.dma_unpin(one)
    assert host.frames.describe(int(one[0])).endswith("free")
    hostcheck.check(host)


def test_what_may_not_be_stored_to_is_not_given_to_a_device():
    host, mm = made()
    mm.mprotect(AT + 3 * PAGE, PAGE, "r")
    with pytest.raises(OSError, match="EFAULT|address"):
        host.dma_pin(mm, AT, 5 * PAGE)
    with pytest.raises(OSError):
        host.dma_pin(mm, AT + 7 * PAGE, 2 * PAGE)
    for length in (PAGE * host.nr_frames * 2, 1 << 52, (1 << 64) - 1):
        with pytest.raises(OSError) as caught:
            host.dma_pin(mm, AT, length)
        assert caught.value.errno == errno.EFAULT and str(length) in str(caught.value)
    for addr in (mm.task_size, 1 << 63, (1 << 64) - 1):
        with pytest.raises(OSError, match=f"pin at {addr:#x}"):
            host.pin(mm, addr)
    hostcheck.check(host)


def test_a_pin_on_one_part_of_a_folio_makes_the_next_be_copied():
    host = Host(4096, thp="never", mthp={16: "always"})
    mm = host.new_mm()
    mm.mmap(4 * PAGE, AT)
    mm.write(AT, 1)
    mm.fork().exit()
    before = mm.read_pfns(AT, 4)
    pfns = host.dma_pin(mm, AT, 3 * PAGE)
    assert (pfns == before[:3]).tolist() == [True, False, False]
    hostcheck.check(host)


def test_pins_are_kept_with_a_host(tmp_path):
    host, mm = made()
    pfns = host.dma_pin(mm, AT, 4 * PAGE)
    host.save(tmp_path / "host")
    again = Host.load(tmp_path / "host")
    hostcheck.check(again)
    again.dma_unpin(pfns)
    hostcheck.check(again)
    state = host.__getstate__()
    state["arrays"]["pins_of"][pfns[0]] += 1
    with pytest.raises(ValueError, match="dma_pins: record 0 holds 4, counted 5"):
        Host.__new__(Host).__setstate__(state)
    state["arrays"]["pins_of"][pfns[0]] = -1
    with pytest.raises(ValueError, match="pins_of: record .* no number of pins"):
        Host.__new__(Host).__setstate__(state)
