"""What surrounds a scenario on this machine: settings of `scenarios.environment`, made before it and put back after."""

from __future__ import annotations

import contextlib
import errno
import mmap
import time
from pathlib import Path
from typing import Any

from ..ksm import sysfs
from ..proc import processes
from ..scenarios.environment import FOLIO_KIB
from . import devices, knobs
from .knobs import KHUGEPAGED, THP, KernelUnavailable

#: two times between khugepaged's batches that are never over: writing the other one wakes it for one batch
_NEVER = ("4294967294", "4294967295")
#: entries of page tables that a batch looks at: all there are
_ALL_PTES = "4294967295"
#: seconds that one whole pass of khugepaged may take, and after which it is woken again
_PASS, _AGAIN = 120.0, 1.0
#: of our own, see `engage`
_AREA_BYTES = 1 << 22
_areas: list[mmap.mmap] = []

_NAMES = {"thp": THP / "enabled", **{f"mthp_{kib}": THP / f"hugepages-{kib}kB" / "enabled" for kib in FOLIO_KIB}}
#: what holds where a scenario says nothing
_PLAIN = {"thp": "madvise", **{f"mthp_{kib}": "never" for kib in FOLIO_KIB}}


def lacking(env: dict[str, Any]) -> str | None:
    """Return what of an environment this machine has not, in words, or None.

    Parameters
    ----------
    env : dict
        Of a scenario.
    """
    for key in env:
        if key == "swap_mib" and (reason := devices.no_swap()):
            return reason
        if key == "memcg" and env[key] and devices.memory_cgroups() is None:
            return "no memory cgroups"
        path = _path(key)
        if path is not None and not path.exists():
            return f"no {path}"
    return None


def _path(key: str) -> Path | None:
    if key.startswith("khugepaged/"):
        return THP / key
    return _NAMES.get(key)


class Surroundings:
    """The machine as a scenario wants it, from entering to leaving; KSM must be taken.

    Parameters
    ----------
    env : dict
        Of a scenario.
    """

    def __init__(self, env: dict[str, Any]):
        self.env = env
        self.swap: devices.SwapDevice | None = None
        self.cgroup: devices.Cgroup | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Surroundings:
        """Make it so.

        Raises
        ------
        KernelUnavailable
            The machine lacks something of it, or refuses; all is as it was.
        """
        with contextlib.ExitStack() as undo:
            for key, value in (_PLAIN | self.env).items():
                path = _path(key)
                if path is not None and (path.exists() or key in self.env):
                    self._set(undo, path, str(value))
            if "swap_mib" in self.env:
                self.swap = devices.SwapDevice(self.env["swap_mib"])
                undo.callback(self.swap.close)
            if self.env.get("memcg"):
                self.cgroup = devices.Cgroup()
                undo.callback(self.cgroup.close)
            if "thp" in self.env:
                engage()
            undo.callback(devices.ksmd_anywhere)
            undo.callback(devices.khugepaged_as_before)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @staticmethod
    def _set(undo: contextlib.ExitStack, path: Path, text: str) -> None:
        try:
            now = sysfs.chosen(path.read_text())
        except OSError as error:
            raise KernelUnavailable(f"{path}: {error.strerror}") from None
        if now != text:
            undo.enter_context(knobs.changed(path, text))

    def one_pass(self) -> int:
        """Let khugepaged go once over all processes; 0 or -errno.

        Models: nothing. A knob of khugepaged is written for that, as whose value changes it begins a batch, with a batch
        made large enough for all memory.
        """
        if self.env.get("thp", "madvise") == "never":
            return 0  # there is none
        pid = processes.kernel_thread("khugepaged")
        if pid is None:
            return -errno.ESRCH
        devices.hurry_khugepaged(pid)
        passes = KHUGEPAGED / "full_scans"
        with knobs.changed(KHUGEPAGED / "pages_to_scan", _ALL_PTES):
            before, sleep = passes.read_text(), KHUGEPAGED / "scan_sleep_millisecs"
            end, again = time.monotonic() + _PASS, 0.0
            while passes.read_text() == before or not _asleep(pid):
                if (now := time.monotonic()) > end:
                    return -errno.ETIME
                # woken while it was just going to sleep it goes to sleep all the same
                if now > again and (error := knobs.write_file(sleep, _NEVER[sleep.read_text().strip() == _NEVER[0]])):
                    return error
                again = now + _AGAIN if now > again else again
                time.sleep(0)
        return 0


def engage() -> None:
    """Let khugepaged know this process: one that knows nobody begins a pass as soon as somebody comes.

    KSM must be taken, so that its time between batches is never over.
    """
    if not _areas:
        _areas.append(mmap.mmap(-1, _AREA_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    with contextlib.suppress(OSError):  # a kernel without huge pages
        _areas[0].madvise(mmap.MADV_HUGEPAGE)
    pid = processes.kernel_thread("khugepaged")
    end = time.monotonic() + _AGAIN
    while pid is not None and not _asleep(pid) and time.monotonic() < end:
        time.sleep(0.001)


def _asleep(pid: int) -> bool:
    """Does this thread do nothing now? One that has ended never will: khugepaged goes where no huge page is to be had."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        where = Path(f"/proc/{pid}/syscall").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text[text.rindex(b")") + 2 :][:1] == b"S" and not where.startswith(b"running")
