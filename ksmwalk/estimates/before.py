"""Memory as it would be if KSM had not merged any of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..proc.frames import Kpf
from ..sources.contents import MemoryCapture


def unmerged(capture: MemoryCapture) -> MemoryCapture:
    """The same with a frame of its own for each mapping of a page of KSM.

    Parameters
    ----------
    capture : MemoryCapture

    Returns
    -------
    MemoryCapture
        The same one, but for its rmap_items, where nothing is merged, or frames can't be seen.

    Models: what unmerging leaves (run = 2) on Linux 6.18. Differs: pages that KSM has made zero pages stay such, as
    nobody can tell which these are.
    """
    last = max((int(one.pfn.max()) + 1 for one in capture.processes if one.pfn is not None and one.nr_pages), default=0)
    some = []
    for one in capture.processes:
        if one.ksm is not None and one.frame_flags is not None and one.pfn is not None and one.ksm.any():
            mine = np.flatnonzero(one.ksm)
            pfn, flags = one.pfn.copy(), one.frame_flags.copy()
            pfn[mine] = np.arange(last, last + len(mine), dtype=np.uint64)
            last += len(mine)
            flags[mine] &= ~np.uint64(Kpf.KSM)
            one = dataclasses.replace(one, pfn=pfn, frame_flags=flags)
            if one.exclusive is not None:
                one.exclusive = one.exclusive.copy()
                one.exclusive[mine] = True
            if one.frame_counts is not None:
                one.frame_counts = one.frame_counts.copy()
                one.frame_counts[mine] = 1
        if one.ksm_stat.get("ksm_rmap_items"):
            # nor has ksmd looked at any
            one = dataclasses.replace(one, ksm_stat={**one.ksm_stat, "ksm_rmap_items": 0})
        some.append(one)
    return dataclasses.replace(capture, processes=some)
