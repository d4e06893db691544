"""Hosts and page tables in which every kind of record is in use, for what is saved, forged and loaded again."""

from __future__ import annotations

import numpy as np

from ksmwalk import Host, PageTables

PAGE = 4096
AT = 0x40000000
HUGE = 0x60000000


def busy_host() -> Host:
    """A Host in mid-scan, with KSM pages, huge pages, children, an exited process, pins, and gaps in its arenas."""
    host = Host(16 * 512 + 77, 2)
    host.ksm.run = 1
    host.ksm.pages_to_scan = 50
    a, b = host.new_mm(), host.new_mm(nid=1)
    for mm in (a, b):
        start = mm.mmap(2000 * PAGE, AT)
        mm.madvise(start, 2000 * PAGE, "mergeable")
        mm.madvise(start, 512 * PAGE, "hugepage")
        mm.write(start, np.arange(1500, dtype=np.uint64) % 97)
    c = a.fork()
    host.ksm.do_scan(5000)
    host.ksm.do_scan(700)
    b.munmap(AT + 600 * PAGE, 100 * PAGE)
    c.write(AT + 5 * PAGE, 1234)
    host.pin(a, AT + 7 * PAGE)
    a.mmap(8 * PAGE, shared=True)
    b.exit()
    host.ksm.do_scan(333)
    return host


def crowded_host(nodes: int = 2) -> Host:
    """Chains with several dups, unstable trees, a filled LRU batch, files, hugetlb, zero pages."""
    host = Host(8 * 512 + 300, nodes, thp="always")
    ksm = host.ksm
    ksm.max_page_sharing = 3
    ksm.use_zero_pages = 1
    ksm.smart_scan = 0
    ksm.run = 1
    ksm.events.on = True
    first, second = host.new_mm(), host.new_mm(nid=nodes - 1)
    for mm in (first, second):
        mm.mmap(300 * PAGE, AT)
        mm.madvise(AT, 300 * PAGE, "nohugepage")
        mm.madvise(AT, 300 * PAGE, "mergeable")
        mm.write(AT, np.arange(250, dtype=np.uint64) % 20)
        mm.write(AT + 100 * PAGE, np.arange(100, dtype=np.uint64) + 1000 * mm.number)
        mm.mmap(1024 * PAGE, HUGE)
        mm.write(HUGE, 7)
        mm.read(HUGE + 512 * PAGE)
    for _ in range(5):
        ksm.do_scan(800)
    file = host.new_object(64 * PAGE)
    for mm in (first, second):
        mm.write(mm.mmap(32 * PAGE, shared=True, backing=file), 5)
    first.write(first.mmap(512 * PAGE, kind="hugetlb"), 9)
    gone = [host.new_mm() for _ in range(3)]
    for mm in gone:
        mm.mmap(40 * PAGE, AT)
        mm.madvise(AT, 40 * PAGE, "mergeable")
        mm.write(AT, np.arange(30, dtype=np.uint64))
    ksm.do_scan(900)
    gone[0].exit()
    gone[1].munmap(AT, 20 * PAGE)
    second.munmap(AT + 100 * PAGE, 30 * PAGE)
    second.mprotect(AT + 50 * PAGE, 10 * PAGE, "r")
    second.mmap(PAGE, AT - 16 * PAGE)
    second.munmap(AT - 16 * PAGE, PAGE)
    host.new_mm().exit()
    first.write(AT, np.arange(12, dtype=np.uint64) + 500)
    second.write(AT, np.arange(12, dtype=np.uint64) + 600)
    second.write(AT + 20 * PAGE, np.arange(30, dtype=np.uint64) + 700)
    ksm.do_scan(1200)
    host.lru_batch = 20
    gone[2].write(AT + 31 * PAGE, np.arange(7, dtype=np.uint64))
    while not ksm.scan.mm_slot or host.world.arrays["trees"][0, 1] == 0:
        ksm.do_scan(40)
    ksm.do_scan(50)
    return host


def numa_host() -> Host:
    """A tree for each NUMA node."""
    host = Host(4 * 512, 2)
    ksm = host.ksm
    ksm.merge_across_nodes = 0
    ksm.smart_scan = 0
    ksm.run = 1
    a, b = host.new_mm(nid=0), host.new_mm(nid=1)
    for mm in (a, b):
        mm.mmap(64 * PAGE, AT)
        mm.madvise(AT, 64 * PAGE, "mergeable")
        mm.write(AT, np.arange(64, dtype=np.uint64) // 4)
    for _ in range(3):
        ksm.do_scan(200)
    ksm.do_scan(70)
    return host


def busy_tables() -> PageTables:
    """An arena with leaves of all sizes and free table pages."""
    tables = PageTables(capacity=200)
    tables.map_range(AT, np.arange(700, dtype=np.uint64))
    tables.map(2 << 30, 1 << 18, level=3)
    tables.map(1 << 40, 512, level=2)
    tables.map_range(1 << 41, np.arange(600, dtype=np.uint64))
    tables.unmap(1 << 41, (1 << 41) + 600 * PAGE)
    return tables


def busy_image() -> PageTables:
    """The same as a read-only image that is not whole."""
    tables = busy_tables()
    rows = np.array(tables.rows)
    return PageTables.from_image(rows[::-1], tables.root, frames=np.arange(len(rows))[::-1].copy(), max_pfn=1 << 20)
