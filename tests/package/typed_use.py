"""What a type checker must make of the public names: read by mypy, not run (`tests/tools/check_types.py`)."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import ksmwalk
from ksmwalk import entries, sources
from ksmwalk.ksm.ksmd import Events
from ksmwalk.signatures import AddressSpace, Area

host = ksmwalk.Host(4096)
mm = host.new_mm()
addr = mm.mmap(1 << 20)

assert_type(host.ksm, ksmwalk.Ksm)
assert_type(host.ksm.scan, ksmwalk.KsmScan)
assert_type(host.ksm.events, Events)
assert_type(host.ksm.pages_to_scan, int)
assert_type(host.ksm.advisor_mode, str)
assert_type(host.ksm.pages_sharing, int)
host.ksm.run = 1
host.ksm.pages_to_scan = np.uint32(5)
host.ksm.page_to_scan = 5  # type: ignore[attr-defined] # a misspelt tunable
host.ksm.pages_sharing = 5  # type: ignore[assignment] # a counter, which is only read

assert_type(host.frames.key, NDArray[np.uint64])
assert_type(host.mms, NDArray[np.void])
assert_type(mm.read(addr), int)
assert_type(mm.read(addr, 3), NDArray[np.uint64])
assert_type(mm.read_pfns(addr, 3), NDArray[np.int64])
assert_type(mm.vmas[0].vm_mm, ksmwalk.Mm)
mm.write(addr, 7)
mm.write(addr, np.uint64(7))
mm.write(addr, [7, 8])
mm.write(addr, np.arange(3))
mm.write(addr, 7.5)  # type: ignore[arg-type] # no integer
mm.write_at([addr, addr + 4096], 7)

assert_type(entries.pfn(0x1067), int)
assert_type(entries.pfn(np.uint64(0x1067)), int)
assert_type(entries.pfn(np.zeros(3, np.uint64)), NDArray[np.uint64])
assert_type(entries.present([0x1067]), NDArray[np.bool_])
assert_type(entries.unpack(0x1067).flags, int)
assert_type(entries.unpack([0x1067]).flags, NDArray[np.uint64])

tables = ksmwalk.PageTables.from_image(np.zeros((1, 512), np.uint64), 0)
assert_type(tables.mappings(), NDArray[np.void])
assert_type(mm.tables, ksmwalk.PageTables)


def at_pmd(entry: ksmwalk.Entry, at: int, end: int, walk: ksmwalk.MmWalk) -> int | None:
    assert_type(entry.ptes, NDArray[np.uint64] | None)
    assert_type(walk.vma, Area | None)
    assert_type(walk.mm, AddressSpace | None)
    assert_type(walk.private, Any)
    walk.action = ksmwalk.Action.CONTINUE
    return None


def wrong(entry: ksmwalk.Entry) -> None: ...


ops = ksmwalk.MmWalkOps(pmd_entry=at_pmd, pte_hole=lambda at, end, depth, walk: depth)
ksmwalk.MmWalkOps(pmd_entry=wrong)  # type: ignore[arg-type] # a callback that takes too little
assert_type(ksmwalk.walk_page_range(mm, addr, addr + 4096, ops, "mine"), int)
assert_type(ksmwalk.walk_page_range_vma(mm.vmas[0], addr, addr + 4096, ops), int)
assert_type(ksmwalk.walk_page_vma(mm.vmas[0], ops), int)

if found := host.ksm.scan.scan_get_next_rmap_item():
    item, pfn = found
    assert_type(item, ksmwalk.RmapItem)
    item.mm.write(item.address, 5)
    if isinstance(item.mm, ksmwalk.Mm):
        item.mm.munmap(item.address, 4096)

image = sources.process(1, frames=False)
assert_type(image.mm, ksmwalk.Mm)
assert_type(image.capture.addr, NDArray[np.uint64])
