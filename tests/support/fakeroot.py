"""A root directory that looks like a machine with KSM, for what reads the machine's KSM."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ksmwalk.ksm import sysfs
from ksmwalk.proc.ksmstate import default_text

AREA = """{start:x}-{end:x} rw-p 00000000 00:00 0 {name}
Size:               {size} kB
KernelPageSize:        4 kB
Rss:                {anonymous} kB
Anonymous:          {anonymous} kB
KSM:                {ksm} kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac {flags}
"""


class FakeRoot:
    """A machine in a directory: files of /sys/kernel/mm/ksm with their defaults, and processes as they are added."""

    def __init__(self, path: Path, ksm: bool = True):
        self.path = path
        self.ksm = path / "sys/kernel/mm/ksm"
        self.proc = path / "proc"
        self.proc.mkdir(parents=True)
        if not ksm:
            return
        self.ksm.mkdir(parents=True)
        for name in sysfs.KNOBS:
            self.set(name, default_text(name))
        self.set("advisor_mode", "[none] scan-time")
        for name in sysfs.COUNTERS:
            self.set(name, 0)

    def set(self, name: str, value: object) -> None:
        (self.ksm / name).write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())

    def sets(self, **values: object) -> None:
        for name, value in values.items():
            self.set(name, value)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.ksm / name).unlink()

    def frames(self, ksm: dict[int, int], others: int = 100, flags: int = 1 << 21 | 1 << 11) -> None:
        """Frames: numbers of those that are KSM's (or have other flags) with their mappings, among `others` that are not."""
        there = np.full(others, 1 << 12, np.uint64)
        counts = np.ones(others, np.uint64)
        for pfn, mappings in ksm.items():
            there[pfn] |= np.uint64(flags)
            counts[pfn] = mappings
        (self.proc / "kpageflags").write_bytes(there.tobytes())
        (self.proc / "kpagecount").write_bytes(counts.tobytes())

    def thread(self, pid: int, name: str = "ksmd", cpu_ns: int = 0) -> Path:
        """A kernel thread."""
        there = self.proc / str(pid)
        there.mkdir()
        (there / "comm").write_text(f"{name}\n")
        (there / "stat").write_text(f"{pid} ({name}) S 2 0 " + "0 " * 50 + "\n")
        (there / "schedstat").write_text(f"{cpu_ns} 0 0\n")
        return there

    def process(
        self, pid: int, name: bytes = b"python", *, items: int = 0, merging: int = 0, zero: int = 0, marked: bool = True,
        any_: bool = True, marked_pages: int = 0, ksm_pages: int | None = None, uid: int = 0, cgroup: str = "/",
        family: tuple[int, int, int] = (1, 0, 0), start_time: int = 7,
    ) -> Path:  # fmt: skip
        """A process with what a kernel of today shows of it."""
        there = self.proc / str(pid)
        there.mkdir()
        (there / "comm").write_bytes(name + b"\n")
        fields = ["S", "1", *["0"] * 50]
        fields[19], fields[23], fields[25], fields[45] = map(str, (start_time, *family))
        (there / "stat").write_bytes(b"%d (%b) " % (pid, name) + " ".join(fields).encode() + b"\n")
        (there / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (there / "cgroup").write_text(f"0::{cgroup}\n")
        yes = {True: "yes", False: "no"}
        (there / "ksm_stat").write_text(
            f"ksm_rmap_items {items}\nksm_zero_pages {zero}\nksm_merging_pages {merging}\n"
            f"ksm_process_profit {(merging + zero) * 4096 - items * 64}\n"
            f"ksm_merge_any: {yes[any_]}\nksm_mergeable: {yes[marked]}\n"
        )
        ksm_pages = merging if ksm_pages is None else ksm_pages
        (there / "smaps").write_text(
            AREA.format(start=0x10000, end=0x20000, name="", size=64, anonymous=64, ksm=0, flags="")
            + AREA.format(start=1 << 32, end=1 << 33, name="[heap]", size=1 << 22, anonymous=marked_pages * 4,
                          ksm=ksm_pages * 4, flags="mg" if marked else "")
        )  # fmt: skip
        return there
