"""The knobs and counters of the machine's real KSM: taken under a lock, put back on any way out."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..drawing.words import printable
from ..ksm import sysfs
from ..proc import processes
from . import applied, devices, signals, state
from .state import KernelUnavailable, lock, to_stderr

__all__ = [
    "AROUND", "DEFAULTS", "KHUGEPAGED", "KSM", "MAY_CHANGE", "THP", "KernelUnavailable", "changed", "lock", "mergeable_processes",
    "put_back_after_killed", "read", "reset", "restore", "saved", "taken", "to_stderr", "unusable", "why_not", "write",
    "write_file",
]  # fmt: skip

KSM = Path("/sys/kernel/mm/ksm")


def _default(name: str) -> str:
    number = sysfs.KNOBS[name].default
    return sysfs.ADVISORS[number] if name == "advisor_mode" else str(number)


#: defaults of the writable knobs as texts, in the order in which they can be written back: the advisor must be off for
#: some, and is switched on last
DEFAULTS = {
    name: _default(name) for name in sorted(sysfs.KNOBS, key=lambda name: name != "advisor_mode") if name != "run"
}

THP = Path("/sys/kernel/mm/transparent_hugepage")
KHUGEPAGED = THP / "khugepaged"
#: knobs outside KSM that are set while KSM is stepped: awake, khugepaged rebuilds the huge pages that KSM split
AROUND = {KHUGEPAGED / "scan_sleep_millisecs": "4294967295"}

#: what can be changed for a while besides, and is put back: see `changed`
MAY_CHANGE = {
    THP / "enabled",
    *(THP / f"hugepages-{16 << order}kB" / "enabled" for order in range(7)),
    *(KHUGEPAGED / name for name in ("pages_to_scan", "max_ptes_none", "max_ptes_shared", "max_ptes_swap")),
}

#: seconds that the processes of a killed run are given to end
_LAST_BREATH = 2.0


def read(name: str) -> str:
    """Return what a file of /sys/kernel/mm/ksm holds, of a choice the word in brackets.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
    """
    return sysfs.chosen((KSM / name).read_text())


def write(name: str, value: object) -> int:
    """Write a knob.

    Parameters
    ----------
    name : str
    value : object
        Written as its text.

    Returns
    -------
    int
        0, or -errno where the kernel refuses.
    """
    return write_file(KSM / name, str(value))


def write_file(path: Path, text: str) -> int:
    """Write a file in one call; 0 or -errno."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except OSError as error:
        return -(error.errno or 0)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        return -(error.errno or 0)
    finally:
        os.close(fd)
    return 0


def unusable() -> str | None:
    """Return why this user can't drive this machine's KSM at all, or None: what need not be waited for to be said.

    Returns
    -------
    str or None
    """
    if not KSM.is_dir():
        return f"{KSM} is not there: a kernel without KSM"
    if os.geteuid() != 0:
        return "root is needed to drive the kernel's KSM"
    return None


def why_not() -> str | None:
    """Return why the machine's KSM can't be taken now, or None; looks only, the lock aside.

    Returns
    -------
    str or None
    """
    if reason := unusable():
        return reason
    if read("run") == "1":
        return "KSM is in use: run is 1"
    if shared := int(read("pages_shared")):
        return f"KSM is in use: pages_shared is {shared}"
    return _foreign()


def _foreign() -> str | None:
    """Who else has mergeable memory, in words."""
    if not (foreign := mergeable_processes()):
        return None
    pid, name = foreign[0]
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    return f"another process has mergeable memory: {pid} ({printable(name)}){more}"


def mergeable_processes() -> list[tuple[int, str]]:
    """Return (pid, name) of every process that has mergeable memory.

    Returns
    -------
    list of (int, str)

    Models: see `proc.processes.marked`.
    Differs: see there.
    """
    found = []
    for pid in processes.every_pid(own=True):
        # a process may be gone by the time it is read
        with contextlib.suppress(OSError):
            if processes.marked(pid):
                found.append((pid, processes.comm(pid)))
    return found


def saved() -> dict[Path, str]:
    """Return what the writable knobs hold now, `run` included, those that this kernel has."""
    values = {KSM / name: read(name) for name in ("run", *DEFAULTS) if (KSM / name).exists()}
    for path in AROUND:
        if path.exists():
            values[path] = path.read_text().strip()
    return values


def restore(values: dict[Path, str]) -> list[str]:
    """Write knobs back.

    Parameters
    ----------
    values : dict
        From `saved`.

    Returns
    -------
    list of str
        What could not be put back; empty when all is as it was.
    """
    # with everything unmerged no knob is refused for pages that are still shared
    write("run", 2)
    order = ["sleep_millisecs", *(name for name in DEFAULTS if name not in ("sleep_millisecs", "advisor_mode"))]
    if KSM / "advisor_mode" in values:
        write("advisor_mode", "none")
        order.append("advisor_mode")
    paths = [KSM / name for name in order if KSM / name in values]
    paths += [path for path in values if path.parent != KSM] + [KSM / "run"]
    failed = []
    for path in paths:
        # the advisor owns pages_to_scan while it is on: what it had come to is not ours to write
        if error := write_file(path, values[path]):
            failed.append(f"{path}: {values[path]}: {os.strerror(-error)}")
    return failed


@contextlib.contextmanager
def taken(say: Callable[[str], None] | None = None, wait: float | None = None) -> Iterator[None]:
    """Take the machine's KSM: lock, refusal if it is in use, and every tunable put back on any way out.

    What a run that was killed has left changed is put back first, from its journal.

    Parameters
    ----------
    say : callable of str, optional
        Told when the lock has to be waited for, and of what a killed run left.
    wait : float, optional
        Seconds to wait for the lock at most.

    Raises
    ------
    KernelUnavailable
        No root, no KSM, KSM in use, or another process has mergeable memory; nothing has been changed.
    """
    if reason := unusable():
        raise KernelUnavailable(reason)
    say = say or to_stderr
    with signals.orderly(), lock(say, wait):
        left = put_back_after_killed(say)
        if reason := why_not():
            raise KernelUnavailable(reason)
        values = saved() | left
        try:
            state.write_journal(values)
            for path, value in AROUND.items():
                if path.exists():
                    write_file(path, value)
            yield
        finally:
            with signals.held():
                failed = restore(values)
                if not failed:
                    state.remove_journal()
            if failed:
                print("could not be put back:", *failed, sep="\n  ", file=sys.stderr)


@contextlib.contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Have a knob beside those of KSM at another value for a while; KSM must be taken.

    Parameters
    ----------
    path : Path
        One of `MAY_CHANGE`.
    text : str

    Raises
    ------
    KernelUnavailable
        It is not there, or refuses the value.
    """
    journal = state.read_journal()
    if path not in MAY_CHANGE or journal is None:
        raise ValueError(f"{path}: not to be changed, or KSM is not taken")
    try:
        before = sysfs.chosen(path.read_text())
    except OSError as error:
        raise KernelUnavailable(f"{path}: {error.strerror}") from None
    state.write_journal(journal[1] | {path: before})
    try:
        if refused := write_file(path, text):
            raise KernelUnavailable(f"{path} refuses {text}: {os.strerror(-refused)}")
        yield
    finally:
        with signals.held():
            if not write_file(path, before):
                state.write_journal(journal[1])


def put_back_after_killed(say: Callable[[str], None]) -> dict[Path, str]:
    """Put back what a killed run left changed; the lock must be held.

    Parameters
    ----------
    say : callable of str
        Told what was put back.

    Returns
    -------
    dict of Path to str
        What could not be.

    Raises
    ------
    KernelUnavailable
        Processes of that run are there still.
    """
    if KSM.is_dir():
        with signals.held():
            applied.put_back_unfinished(read, write, say)
            devices.put_back_left(say)
    journal = state.read_journal()
    if journal is None:
        return {}
    pid, values = journal
    known = {KSM / name for name in ("run", *DEFAULTS)} | set(AROUND) | MAY_CHANGE
    values = {path: text for path, text in values.items() if path in known}
    end = time.monotonic() + _LAST_BREATH
    # its processes end with it, by and by
    while (reason := _foreign()) and time.monotonic() < end:
        time.sleep(0.02)
    if reason:
        raise KernelUnavailable(f"{reason}; knobs that a killed run (pid {pid}) left are put back once that has ended")
    with signals.held():
        failed = restore(values)
        if not failed:
            state.remove_journal()
    say(f"a run that was killed (pid {pid}) had left KSM's knobs changed: they are put back")
    if failed:
        say("\n  ".join(["but for:", *failed]))
    return values if failed else {}


def reset() -> None:
    """Unmerge everything, forget every process, stop, and write the defaults of all knobs; ksmd ends in its long wait.

    Raises
    ------
    KernelUnavailable
        A default is refused.
    """
    write("run", 2)
    if (KSM / "advisor_mode").exists():
        write("advisor_mode", "none")
    for name, value in DEFAULTS.items():
        # the stepping needs its own time between batches
        if name != "sleep_millisecs" and (KSM / name).exists() and read(name) != value and write(name, value):
            raise KernelUnavailable(f"{KSM / name} refuses its default {value}")
    write("run", 0)
