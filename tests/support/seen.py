"""A Host of the model as an observer of a real machine would see it: what /proc shows of it, and no more."""

from __future__ import annotations

import numpy as np

from ksmwalk.host.vma import LETTERS
from ksmwalk.layout import PAGE_SHIFT, Frame
from ksmwalk.proc import pagemap
from ksmwalk.proc.frames import Kpf
from ksmwalk.proc.maps import VmaRecord
from ksmwalk.sources.contents import MemoryCapture
from ksmwalk.sources.reading import ProcessCapture


def _vma(host, mm, vma, pages, flags) -> VmaRecord:
    inside = (pages >= vma.vm_start >> PAGE_SHIFT) & (pages < vma.vm_end >> PAGE_SHIFT)
    anon = int(np.count_nonzero(inside & (flags & Frame.ANON != 0))) << PAGE_SHIFT
    letters = tuple(name for bit, name in LETTERS if vma.vm_flags & bit)
    return VmaRecord(vma.vm_start, vma.vm_end, "rw-p", 0, "00:00", 0, "", letters, rss=anon, anonymous=anon)


def process_of(host, mm) -> ProcessCapture:
    found = mm.tables.mappings()
    many = np.where(found["level"] == 2, 512, 1)
    first = np.repeat(np.cumsum(many) - many, many)
    inner = np.arange(len(first)) - first
    pages = np.repeat(found["addr"] >> np.uint64(PAGE_SHIFT), many).astype(np.int64) + inner
    pfn = np.repeat(found["pfn"], many).astype(np.int64) + inner
    flags = host.frames.flags[pfn]
    zero = flags & Frame.ZERO != 0
    categories = np.full(len(pfn), pagemap.PAGE_IS_PRESENT, np.uint64)
    categories[zero] |= np.uint64(pagemap.PAGE_IS_PFNZERO)
    categories[np.repeat(found["level"], many) == 2] |= np.uint64(pagemap.PAGE_IS_HUGE)
    kpf = np.zeros(len(pfn), np.uint64)
    for bit, shown in ((Frame.ANON, Kpf.ANON | Kpf.MMAP), (Frame.KSM, Kpf.KSM), (Frame.ZERO, Kpf.ZERO_PAGE),
                       (Frame.HEAD, Kpf.COMPOUND_HEAD | Kpf.THP), (Frame.TAIL, Kpf.COMPOUND_TAIL | Kpf.THP)):  # fmt: skip
        kpf[flags & bit != 0] |= np.uint64(shown)
    one = ProcessCapture(
        1000 + mm.number,
        f"model {mm.number}",
        [_vma(host, mm, vma, pages, flags) for vma in mm.vmas],
        (pages << PAGE_SHIFT).astype(np.uint64),
        categories,
        pfn.astype(np.uint64),
        host.frames.mapcount[pfn] == 1,
        kpf,
        host.frames.mapcount[pfn].astype(np.uint64),
    )
    leaf = one.huge
    heads = np.unique(host.frames.head[pfn[(flags & (Frame.HEAD | Frame.TAIL) != 0) & ~leaf]]).astype(np.int64)
    one.folios = heads[host.frames.flags[heads] & Frame.HEAD != 0]
    one.key = host.frames.key[pfn].copy()
    one.changes = np.zeros(len(pfn), np.uint16)
    one.ksm_stat = mm.ksm_stat()
    return one


def capture_of(host, mms=None) -> MemoryCapture:
    """What would be captured of (some of) its address spaces now; contents above 2**62 are not to be used."""
    mms = host.mm_list if mms is None else mms
    processes = [process_of(host, mm) for mm in mms]
    most = max((int(one.key.max()) for one in processes if len(one.key)), default=0)
    knobs = {name: str(getattr(host.ksm, name)) for name in (
        "pages_to_scan", "sleep_millisecs", "smart_scan", "use_zero_pages", "max_page_sharing")}  # fmt: skip
    return MemoryCapture(processes, most + 1, machine={"kind": "live", "ksm": knobs})
