"""Captured memory of a made-up machine: servers with equal, own and empty pages, under names as they come."""

from __future__ import annotations

import numpy as np
from seen import capture_of

from ksmwalk import Host
from ksmwalk.ksm.costs import Costs
from ksmwalk.proc.processes import Identity

P = 4096
COSTS = Costs()
EVIL = "</script><script>x"


def memory(*servers, fork=0, marked=False, **ksm):
    """A MemoryCapture with a process for each (name, common, own, zeros): pages equal everywhere, alone, of zeros.

    The first one has `fork` children that share all of its frames.
    """
    host = Host(1 << 15)
    mms, names = [], []
    for number, (name, common, own, zeros) in enumerate(servers):
        mm = host.new_mm()
        pages = common + own + zeros
        start = mm.mmap(pages * P, addr=1 << 30)
        if marked:
            mm.madvise(start, pages * P, "mergeable")
        keys = np.concatenate((np.arange(1, common + 1), 100_000 * (number + 1) + np.arange(own), np.zeros(zeros)))
        mm.write(start, keys.astype(np.uint64))
        mms.append(mm)
        names.append(name)
    mms += [mms[0].fork() for _ in range(fork)]
    names += [names[0]] * fork
    what = capture_of(host, mms)
    for number, (one, name) in enumerate(zip(what.processes, names, strict=True)):
        one.name = name
        one.identity = Identity(1000 + number % 2, f"/{name}.service", "", (f"/usr/bin/{name}", "--serve"))
    what.machine["ksm"] |= {"run": "0"} | {key: str(value) for key, value in ksm.items()}
    return what
