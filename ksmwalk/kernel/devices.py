"""What a scenario wants of the machine beside knobs: a swap device, a memory cgroup, ksmd on one CPU; all put back.

Each is noted in a file of `state.DIRECTORY` before it is made, so that what a killed run has left is found and undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..layout import PAGE_SIZE as PAGE
from ..proc import processes
from . import state, worker
from .state import KernelUnavailable

ZRAM = Path("/sys/class/zram-control")
_BLOCK = Path("/sys/block")
_NOTES = "devices.json"
#: seconds that a device or a cgroup may stay in use by what has just ended
_PATIENCE = 5.0
_MMAP, _MUNMAP, _COUNTER = 9, 11, "counter"
#: protection and flags of a mapping: read, write; private, anonymous, populated
_POPULATED = (3, 0x8022)
#: pages that have come and gone before a cgroup's statistics are brought up to date where they are read
_PAGES_COUNTED = 1024
#: what is counted of each kind in cgroups of version 1, then in those of version 2
_KINDS = (b"rss", b"mapped_file", b"inactive_anon", b"active_anon", b"inactive_file", b"active_file", b"shmem", b"anon")

_libc = ctypes.CDLL(None, use_errno=True)
_MOST_DEVICES = 4096


# ---------------------------------------------------------------- what there is


def no_swap() -> str | None:
    """Return why there can be no swap device of our own, alone, or None."""
    if not (ZRAM / "hot_add").exists():
        return "no zram (a kernel without it, or its module is not loaded)"
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        return "other swap is in use, and a scenario's swap device must be alone"
    return None


def memory_cgroups() -> Path | None:
    """Return where cgroups that limit memory can be made; None where there are none."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        root = Path(place)
        if kind == "cgroup" and "memory" in options.split(",") and (root / "memory.force_empty").exists():
            return root
        if kind == "cgroup2":
            with contextlib.suppress(OSError):
                if "memory" in (root / "cgroup.subtree_control").read_text().split():
                    return root
    return None


# ---------------------------------------------------------------- notes


def _note(**what: Any) -> None:
    """Add to what is to be undone; None takes it off."""
    notes = {key: value for key, value in (_notes() | what).items() if value is not None}
    if notes:
        state.write_record(_NOTES, notes)
    else:
        state.remove_record(_NOTES)


def _notes() -> dict[str, Any]:
    notes = state.read_record(_NOTES) or {}
    return {key: notes[key] for key in ("zram", "cgroup", "cpus", "nice") if key in notes}


def put_back_left(say: Callable[[str], None]) -> None:
    """Undo what a killed run has left; the lock must be held and its processes gone.

    Parameters
    ----------
    say : callable of str
        Told what was undone, and what could not be.
    """
    notes = _notes()
    for key, undo in (("zram", _remove_zram), ("cgroup", _remove_cgroup), ("cpus", _put_on), ("nice", _renice)):
        if key not in notes:
            continue
        try:
            undo(notes[key])
        except (OSError, ValueError, TypeError, KernelUnavailable) as error:
            say(f"a run that was killed had left {key} {notes[key]}, which could not be undone: {error}")
        else:
            say(f"a run that was killed had left {key} {notes[key]}: undone")
        _note(**{key: None})


# ---------------------------------------------------------------- a swap device


class SwapDevice:
    """A zram device of our own, swapped to.

    Parameters
    ----------
    mib : int
        Its size.

    Raises
    ------
    KernelUnavailable
        It can't be had, or there is other swap.
    """

    def __init__(self, mib: int):
        if reason := no_swap():
            raise KernelUnavailable(reason)
        self.on: bool = False
        # the kernel gives out the lowest number that is free: noted before it is made
        number = next(n for n in range(_MOST_DEVICES) if not (_BLOCK / f"zram{n}").exists())
        _note(zram=number)
        self.number: int = int((ZRAM / "hot_add").read_text())
        if self.number != number:
            _note(zram=self.number)
        try:
            (_BLOCK / f"zram{self.number}" / "disksize").write_text(str(mib << 20))
            self.node: Path = _node_of(self.number)
            _format(self.node, (mib << 20) // PAGE)
            if error := self.switch_on():
                raise KernelUnavailable(f"swap on {self.node}: {os.strerror(-error)}")
        except BaseException:
            self.close()
            raise

    def switch_on(self) -> int:
        """Begin to swap to it; 0 or -errno."""
        return self._call("swapon", True)

    def switch_off(self) -> int:
        """Bring all pages back and stop; 0 or -errno."""
        return self._call("swapoff", False)

    def _call(self, name: str, on: bool) -> int:
        path = os.fsencode(self.node)
        if (_libc.swapon(path, 0) if on else _libc.swapoff(path)) < 0:
            return -ctypes.get_errno()
        self.on = on
        return 0

    def close(self) -> None:
        """Stop swapping and remove the device."""
        _remove_zram(self.number)
        _note(zram=None)


def _node_of(number: int) -> Path:
    """The node of a device, made in our own directory where /dev has none."""
    node = Path(f"/dev/zram{number}")
    if not node.is_block_device():
        node = state.DIRECTORY / f"zram{number}"
        major, minor = map(int, (_BLOCK / f"zram{number}" / "dev").read_text().split(":"))
        node.unlink(missing_ok=True)
        os.mknod(node, 0o600 | 0o060000, os.makedev(major, minor))
    return node


def _format(node: Path, pages: int) -> None:
    """Write what makes a device a swap device: version 1, its last page, the magic at the first page's end."""
    head = bytearray(PAGE)
    head[1024:1036] = b"".join(number.to_bytes(4, "little") for number in (1, pages - 1, 0))
    head[-10:] = b"SWAPSPACE2"
    fd = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, head)
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_zram(number: int) -> None:
    if not (_BLOCK / f"zram{number}").exists():
        return
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        if Path(line.split()[0]).name == f"zram{number}" and _libc.swapoff(os.fsencode(line.split()[0])) < 0:
            raise OSError(ctypes.get_errno(), f"zram{number} is swapped to still")
    # it is in use for a moment by what looks at new devices
    _patiently(lambda: (_BLOCK / f"zram{number}" / "reset").write_text("1"))
    _patiently(lambda: (ZRAM / "hot_remove").write_text(str(number)))
    (state.DIRECTORY / f"zram{number}").unlink(missing_ok=True)


def _patiently(do: Callable[[], object]) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            do()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


# ---------------------------------------------------------------- a memory cgroup


class Cgroup:
    """A memory cgroup of our own.

    Raises
    ------
    KernelUnavailable
        There are none.
    """

    def __init__(self) -> None:
        root = memory_cgroups()
        if root is None:
            raise KernelUnavailable("no memory cgroups")
        self.place: Path = root / f"ksmwalk-{os.getpid()}"
        self._counter: worker.Pool | None = None
        _note(cgroup=str(self.place))
        self.place.mkdir(exist_ok=True)

    def take(self, pid: int) -> None:
        """Put a process into it."""
        (self.place / "cgroup.procs").write_text(str(pid))

    def empty(self) -> int:
        """Reclaim all that it can give; 0 or -errno."""
        path, text = self.place / "memory.force_empty", "0"
        if not path.exists():
            path, text = self.place / "memory.reclaim", "1G"
        try:
            path.write_text(text)
        except OSError as error:
            # memory.reclaim: less than was asked for, which is all that there was
            return 0 if error.errno == errno.EAGAIN else -(error.errno or 0)
        return 0

    def empty_all(self) -> int:
        """Reclaim until nothing more goes; 0 or -errno.

        Once is not enough: what is thought to be in use, as it has just come back from swap or was stored to after
        MADV_FREE, stays until the statistics say that there is more of it than of the rest.
        """
        before, now = b"", self._statistics()
        while before != now:
            if error := self.empty():
                return error
            before, now = now, self._statistics()
        return 0

    def _statistics(self) -> bytes:
        """How much of each kind it has, up to date: by itself the kernel brings that up to date every two seconds only.

        It does so where they are read as well, if enough has changed since: a process takes some pages and gives them back.
        """
        if self._counter is None:
            self._counter = worker.Pool([_COUNTER])
            self.take(self._counter.spawn(_COUNTER))
        at = self._counter.syscall(_COUNTER, _MMAP, 0, _PAGES_COUNTED * PAGE, *_POPULATED, 2**64 - 1, 0)
        self._counter.syscall(_COUNTER, _MUNMAP, at, _PAGES_COUNTED * PAGE)
        lines = (self.place / "memory.stat").read_bytes().splitlines()
        return b" ".join(line for line in lines if line.split()[0] in _KINDS)

    def close(self) -> None:
        """Remove it, its processes being gone."""
        if self._counter is not None:
            self._counter.close()
        _remove_cgroup(str(self.place))
        _note(cgroup=None)


def _remove_cgroup(name: str) -> None:
    place = Path(name)
    if place.exists() and place.name.startswith("ksmwalk-") and (place / "cgroup.procs").exists():
        _patiently(place.rmdir)


# ---------------------------------------------------------------- ksmd's CPUs, khugepaged's priority


def ksmd_to(cpu: int) -> int:
    """Let ksmd run on one CPU; 0 or -errno."""
    pid = processes.kernel_thread("ksmd")
    if pid is None:
        return -errno.ESRCH
    try:
        before = sorted(os.sched_getaffinity(pid))
        if "cpus" not in _notes():
            _note(cpus=before)
        os.sched_setaffinity(pid, {cpu})
    except OSError as error:
        return -(error.errno or 0)
    return 0


def ksmd_anywhere() -> None:
    """Let ksmd run where it ran before `ksmd_to`."""
    if cpus := _notes().get("cpus"):
        _put_on(cpus)
        _note(cpus=None)


def _put_on(cpus: list[int]) -> None:
    pid = processes.kernel_thread("ksmd")
    if pid is not None:
        os.sched_setaffinity(pid, {int(cpu) for cpu in cpus})


def hurry_khugepaged(pid: int) -> None:
    """Give khugepaged the priority of everybody else: with its own it waits for a long time on a busy machine."""
    if "nice" not in _notes():
        _note(nice=os.getpriority(os.PRIO_PROCESS, pid))
    os.setpriority(os.PRIO_PROCESS, pid, 0)


def khugepaged_as_before() -> None:
    """Give it back the priority it had before `hurry_khugepaged`."""
    if (nice := _notes().get("nice")) is not None:
        _renice(nice)
        _note(nice=None)


def _renice(nice: int) -> None:
    pid = processes.kernel_thread("khugepaged")
    if pid is not None:
        os.setpriority(os.PRIO_PROCESS, pid, nice)
