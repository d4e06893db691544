"""What the search for one address takes for a page, and what for a table."""

import errno

import pytest

from ksmwalk import BadEntryError, Host, KsmScan

PAGE = 4096
BASE = 1 << 32
PFN = 0x000FFFFFFFFFF000


@pytest.fixture
def host():
    host = Host(4096)
    mm = host.new_mm()
    mm.mmap(4 * PAGE, BASE)
    mm.madvise(BASE, 4 * PAGE, "mergeable")
    mm.write(BASE, 7)
    return host


def pmd_of(host):
    """(row, index) of the entry that points to the pte table of BASE."""
    rows, row = host.world.arrays["rows"], int(host.mms["root"][host.mm_list[0].number])
    for level in (4, 3):
        row = (int(rows[row, BASE >> (3 + 9 * level) & 511]) & PFN) >> 12
    return row, BASE >> 21 & 511


def test_a_guard_marker_is_no_page(host):
    mm = host.mm_list[0]
    mm.madvise(BASE, PAGE, "guard_install")
    assert mm.read_pfns(BASE, 2).tolist() == [-1, -1] and mm.read_keys(BASE, 2).tolist() == [0, 0]


def test_the_scan_calls_an_entry_bad_that_points_to_the_first_table_page_never_used(host):
    used = int(host.world.arrays["ctl"]["rows_used"][0])
    row, index = pmd_of(host)
    entry = int(host.world.arrays["rows"][row, index])
    assert entry & 1
    host.world.arrays["rows"][row, index] = entry & ~PFN | (used - 1) << 12
    KsmScan(host.world).scan_get_next_rmap_item()
    host.world.arrays["rows"][row, index] = entry & ~PFN | used << 12
    with pytest.raises(BadEntryError, match="level 2"):
        KsmScan(host.world).scan_get_next_rmap_item()


def test_a_broken_ksm_page_is_write_enabled_by_the_first_store_only(host):
    mm = host.mm_list[0]
    mm.write(BASE + PAGE, 7)
    host.ksm.run = 1
    for _ in range(3):
        host.ksm.do_scan(10)
    assert host.ksm.pages_sharing == 1
    mm.madvise(BASE, 2 * PAGE, "unmergeable")
    row, index = pmd_of(host)
    table = host.world.arrays["rows"][(int(host.world.arrays["rows"][row, index]) & PFN) >> 12]
    assert not int(table[0]) & 2 and not int(table[1]) & 2
    mm.write(BASE, 8)
    assert int(table[0]) & 2 and not int(table[1]) & 2


@pytest.mark.parametrize("level", [2, 3])
def test_scans_and_unmerging_pass_over_what_is_not_present_in_an_upper_table(host, level):
    rows, row = host.world.arrays["rows"], int(host.mms["root"][host.mm_list[0].number])
    for above in range(4, level, -1):
        row = (int(rows[row, BASE >> (3 + 9 * above) & 511]) & PFN) >> 12
    rows[row, BASE >> (3 + 9 * level) & 511] = 0x3E00
    scan = KsmScan(host.world)
    assert scan.scan_get_next_rmap_item() is None
    scan.strategy, scan.real_lookups = "per-address", True
    assert scan.scan_get_next_rmap_item() is None
    host.mm_list[0].madvise(BASE, 4 * PAGE, "unmergeable")


def test_what_is_not_present_in_the_top_table_is_bad(host):
    root = int(host.mms["root"][host.mm_list[0].number])
    host.world.arrays["rows"][root, BASE >> 39 & 511] = 0x3E00
    with pytest.raises(BadEntryError, match="level 4"):
        KsmScan(host.world).scan_get_next_rmap_item()


@pytest.mark.parametrize("pfn", [1000, 1 << 30])
def test_a_store_through_an_entry_that_maps_no_page_of_the_host_is_refused(host, pfn):
    mm = host.mm_list[0]
    mm.tables.map(BASE + PAGE, pfn)
    with pytest.raises(OSError) as caught:
        mm.write(BASE + PAGE, 9)
    assert caught.value.errno == errno.EFAULT
    assert not host.frames.key[1000] and mm.read(BASE) == 7


def test_an_entry_of_an_object_that_leads_into_a_folio_drops_nobodys_reference():
    host = Host(4096)
    host.thp = "always"
    mm = host.new_mm()
    mm.mmap(512 * PAGE, BASE)
    mm.write(BASE, 7)
    head = int(mm.read_pfns(BASE, 1)[0])
    refs = int(host.frames.refs[head])
    mm.mmap(PAGE, 2 * BASE, shared=True)
    mm.write(2 * BASE, 8)
    page = int(mm.read_pfns(2 * BASE, 1)[0])
    rows = host.world.arrays["rows"]
    found = zip(*((rows & PFN) >> 12 == page).nonzero(), strict=True)
    at = next(where for where in found if not int(rows[where]) & 4)  # not the process's own: no user's
    rows[at] = int(rows[at]) & ~PFN | (head + 1) << 12
    mm.munmap(2 * BASE, PAGE)
    assert host.frames.refs[head] == refs
