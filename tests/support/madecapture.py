"""A capture put together by hand, with everything in it that a capture can have."""

from __future__ import annotations

import numpy as np

from ksmwalk.proc.frames import Kpf
from ksmwalk.proc.maps import VmaRecord
from ksmwalk.proc.processes import Identity
from ksmwalk.sources.contents import MemoryCapture
from ksmwalk.sources.keys import UNKNOWN
from ksmwalk.sources.reading import ProcessCapture

P = 4096
MARKED = ("rd", "wr", "mr", "mw", "me", "ac", "mg")
PRESENT, FILE, ZERO, HUGE = 8, 4, 32, 64
HOSTILE = "\udcffev\x1b[31mil\n\u202e"


def vma(start, pages, name="", flags=MARKED, perms="rw-p", inode=0, **more):
    device = "fd:01" if inode else "00:00"
    return VmaRecord(start, start + pages * P, perms, 0, device, inode, name, flags, **{"anonymous": pages * P, **more})


def process(pid, base_pfn, keys, *, frames=True, name="made", **identity):
    """Three mappings: a huge page and 64 small ones; a file's 8 pages; 2 zero pages and 6 KSM pages in 512 pages."""
    first, second, third = 0x40000000, 0x50000000, 0x60000000
    addr = [first + i * P for i in range(512 + 64)] + [second + i * P for i in range(8)] + [third + 7 * i * P for i in range(8)]
    n = len(addr)
    categories = np.full(n, PRESENT, np.uint64)
    categories[:512] |= np.uint64(HUGE)
    categories[576:584] |= np.uint64(FILE)
    categories[584:586] |= np.uint64(ZERO)
    key = np.full(n, UNKNOWN, np.uint64)
    key[:576] = keys[np.arange(576) % len(keys)]
    key[584:586] = 0
    key[586:] = 1
    one = ProcessCapture(
        pid, name,
        [vma(first, 1024, flags=(*MARKED, "hg"), huge=512 * P), vma(second, 8, "/lib/x" + HOSTILE, ("rd", "mr"), "r--p", 77),
         vma(third, 512, "[heap]")],
        np.array(addr, np.uint64), categories, key=key, changes=np.zeros(n, np.uint16),
        identity=Identity(1000, "/user.slice/" + HOSTILE, "", ("made", HOSTILE), 5),
        ksm_stat={"ksm_zero_pages": 1, "ksm_process_profit": -5},
        attempts=2, seconds={"smaps": 0.25}, notes=["a note"],
    )  # fmt: skip
    one.changes[3] = 1
    if frames:
        pfn = np.arange(base_pfn, base_pfn + n, dtype=np.uint64)
        pfn[584:586] = 3  # the machine's zero page
        pfn[586:] = base_pfn - 1  # one KSM page
        flags = np.full(n, Kpf.MMAP | Kpf.ANON, np.uint64)
        flags[:512] |= np.uint64(Kpf.THP | Kpf.COMPOUND_TAIL)
        flags[0] ^= np.uint64(Kpf.COMPOUND_HEAD | Kpf.COMPOUND_TAIL)
        flags[576:584] = Kpf.MMAP
        flags[584:586] = Kpf.ZERO_PAGE
        flags[586:] |= np.uint64(Kpf.KSM)
        one.pfn, one.frame_flags = pfn, flags
        # a huge page that is mapped in part, and page by page
        pfn[512:576] += np.uint64(512)
        flags[512:576] |= np.uint64(Kpf.THP | Kpf.COMPOUND_TAIL)
        one.folios = np.array([base_pfn, base_pfn + 1024])
        one.exclusive = np.ones(n, bool)
        one.exclusive[584:] = False
        one.frame_counts = np.ones(n, np.uint64)
        one.frame_counts[586:] = 6
    return one


def made(digests=False, hostname="one", seed=0):
    """Three processes, the last without frames; contents 0 to 59."""
    rng = np.random.default_rng(seed)
    processes = [
        process(100, 0x123400, np.arange(60, dtype=np.uint64)),
        process(200, 0x567800, np.arange(30, 60, dtype=np.uint64), name=HOSTILE),
        process(300, 0, np.arange(10, dtype=np.uint64), frames=False),
    ]
    result = MemoryCapture(processes, 60, not digests, 2, 1.5, notes=["noted"], seconds={"contents": 1.0})
    result.machine = {"kind": "live", "release": "6.18", "hostname": hostname, "ksm": {"run": "1", "pages_to_scan": "100"},
                      "mem_total": 1 << 34}  # fmt: skip
    result.registered = [200, 100]
    if digests:
        result.digests = np.sort(rng.integers(1, 1 << 63, (60, 2)).astype(np.uint64), axis=0)
        result.digests[0] = 7, 7
    return result
