"""What of this machine a scenario may change, to see that all is put back."""

import os
from pathlib import Path

from ksmwalk.kernel import devices, knobs
from ksmwalk.proc.processes import kernel_thread


def around():
    """All that a scenario may have changed of the machine."""
    ksmd, khugepaged = kernel_thread("ksmd"), kernel_thread("khugepaged")
    return {
        "knobs": knobs.saved(),
        "modes": {path: path.read_text() for path in sorted(knobs.MAY_CHANGE) if path.exists()},
        "zram": sorted(path.name for path in Path("/sys/block").glob("zram*")),
        "swaps": Path("/proc/swaps").read_text(),
        "cgroups": sorted(str(path) for path in (devices.memory_cgroups() or Path("/nowhere")).glob("ksmwalk-*")),
        "cpus": ksmd and os.sched_getaffinity(ksmd),
        "nice": khugepaged and os.getpriority(os.PRIO_PROCESS, khugepaged),
    }
