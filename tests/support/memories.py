"""Captured memory made up for a test: processes with mappings, pages, contents and frames as they are told."""

from __future__ import annotations

import numpy as np

from ksmwalk.proc import pagemap
from ksmwalk.proc.frames import Kpf
from ksmwalk.sources import ProcessCapture, VmaRecord
from ksmwalk.sources.contents import MemoryCapture

P = 4096
PLAIN = ("rd", "wr", "mr", "mw", "me", "ac")
MARKED = (*PLAIN, "mg")


class Area:
    """A mapping: the key of each present page, its first ones; `zero`, `ksm`, `huge`, `file`: what all of them are.

    `pfn` gives frames, else each page has one of its own.
    """

    def __init__(self, keys, *, flags=MARKED, pages=None, pfn=None, changes=None, counts=None, swap=0, **kinds):
        self.keys, self.flags, self.pfn, self.changes, self.counts = list(keys), flags, pfn, changes, counts
        self.pages, self.swap, self.kinds = pages or max(1, len(self.keys)), swap, kinds


def process(pid, *areas, stat=None, frames=True):
    """A ProcessCapture with these areas, 1 GiB apart."""
    columns = {name: [] for name in ("addr", "categories", "pfn", "flags", "counts", "key", "changes")}
    vmas = []
    for number, area in enumerate(areas):
        start = (1 << 40) + (number << 30)
        n, kinds = len(area.keys), area.kinds
        zero, file = kinds.get("zero", False), kinds.get("file", False)
        category = pagemap.PAGE_IS_PRESENT | (pagemap.PAGE_IS_PFNZERO if zero else 0)
        category |= (pagemap.PAGE_IS_FILE if file else 0) | (pagemap.PAGE_IS_HUGE if kinds.get("huge") else 0)
        first = (pid << 14) + (number << 10)
        flag = (0 if zero or file else int(Kpf.ANON)) | (int(Kpf.KSM) if kinds.get("ksm") else 0)
        columns["addr"] += [start + i * P for i in range(n)]
        columns["categories"] += [category] * n
        columns["pfn"] += [1] * n if zero else list(area.pfn or range(first, first + n))
        columns["flags"] += [flag] * n
        columns["counts"] += list(area.counts or [1] * n)
        columns["key"] += area.keys
        columns["changes"] += list(area.changes or [0] * n)
        anonymous = 0 if zero or file else n * P
        vmas.append(VmaRecord(start, start + area.pages * P, "rw-p", 0, "00:00", 0, f"area {number}", area.flags, n * P,
                              anonymous, 0, anonymous if kinds.get("ksm") else 0, area.swap))  # fmt: skip
    what = {name: np.array(values, np.uint16 if name == "changes" else np.uint64) for name, values in columns.items()}
    one = ProcessCapture(pid, f"p{pid}", vmas, what["addr"], what["categories"], key=what["key"], changes=what["changes"])
    if frames:
        one.pfn, one.frame_flags, one.frame_counts = what["pfn"], what["flags"], what["counts"]
        one.exclusive = one.frame_counts <= 1
    one.ksm_stat = {"ksm_rmap_items": 0, "ksm_zero_pages": 0, "ksm_merging_pages": 0, **(stat or {})}
    return one


def memory(*processes, **files):
    """A MemoryCapture of processes on a machine whose KSM shows `files`; two readings, two seconds apart."""
    known = [one.key[one.key < np.uint64(1 << 63)] for one in processes]
    top = int(max((int(key.max()) for key in known if len(key)), default=0))
    ksm = {"run": "1", "pages_to_scan": "100", "sleep_millisecs": "20", "smart_scan": "1", "full_scans": "0",
           "max_page_sharing": "256", "use_zero_pages": "0", **{name: str(value) for name, value in files.items()}}  # fmt: skip
    return MemoryCapture(list(processes), top + 1, samples=2, seconds_between=2.0, machine={"kind": "live", "ksm": ksm})
