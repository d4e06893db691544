"""Pages looked at in advance, where the cursor jumps over a run of merged pages: what was not looked at is not known."""

import ksmcheck
import pytest

from ksmwalk import Host

P = 4096
BASE = 1 << 30


@pytest.mark.parametrize("run", range(28, 64))
def test_a_twin_behind_a_long_run_of_merged_pages_is_merged_with(run):
    """`run` pages that are merged already, after one and before some that have a twin each in the tree."""
    host = Host(4096)
    a, b = host.new_mm(), host.new_mm()
    head, tail = 3, 40
    for mm, first in ((a, 10_000), (b, 20_000)):
        mm.mmap(512 * P, BASE)
        mm.madvise(BASE, 512 * P, "mergeable")
        mm.write(BASE, [first + i for i in range(head)] + [100 + i for i in range(run)] + [first + 100 + i for i in range(tail)])
    host.ksm.smart_scan = 0
    host.ksm.pages_to_scan = 1000
    host.ksm.run = 1
    for _ in range(4):
        host.ksm.full_scan()
    assert host.ksm.counters()["pages_sharing"] == run
    for mm in (a, b):
        mm.write(BASE + (head + run) * P, [5_000 + i for i in range(tail)])
    for _ in range(3):
        host.ksm.full_scan()
    counters = host.ksm.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (run + tail, run + tail)
    assert (a.read_pfns(BASE, 512)[head : head + run + tail] == b.read_pfns(BASE, 512)[head : head + run + tail]).all()
    ksmcheck.check_ksm(host)
