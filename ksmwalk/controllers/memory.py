"""What a controller sees of a machine's memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..host import Host
from ..layout import PAGE_SIZE, MmFlag, Vm


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a machine, all in bytes.

    Attributes
    ----------
    total, free : int
    mergeable : int
        Of all areas that are marked mergeable, whether their pages are there or not.
    committed : int
        Of all areas of the processes that have such ones: guests, on a virtualization host.
    """

    total: int
    free: int
    mergeable: int
    committed: int


def memory_of(host: Host, total: int | None = None) -> Memory:
    """What a controller sees of a Host's memory.

    Parameters
    ----------
    host : Host
    total : int, optional
        Bytes of the machine that it stands for; by default its frames. What is not in use of them is free.

    Returns
    -------
    Memory

    Models: /proc/meminfo and the sizes of processes. Differs: the page cache and what the kernel itself uses are not
    there, so that free memory and available memory are one.
    """
    areas, mms = host.vmas, host.mms
    alive = (mms["flags"] & np.uint32(MmFlag.USED | MmFlag.EXITING | MmFlag.BACKING)) == np.uint32(MmFlag.USED)
    here = (areas["mm"] > 0) & (areas["end"] > areas["start"])
    here[here] &= alive[areas["mm"][here]]
    sizes = np.where(here, areas["end"] - areas["start"], 0).astype(np.int64)
    marked = here & (areas["flags"] & np.uint64(Vm.MERGEABLE) != 0)
    of_guests = here & np.isin(areas["mm"], np.unique(areas["mm"][marked]))
    total = host.nr_frames * PAGE_SIZE if total is None else total
    used = (host.frames_used - 1) * PAGE_SIZE  # the zero page is the kernel's
    return Memory(total, max(0, total - used), int(sizes[marked].sum()), int(sizes[of_guests].sum()))
