"""The knobs and counters of the machine's real KSM: taken under a lock, put back on any way out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

KSM = Path("/sys/kernel/mm/ksm")
LOCK = Path("/run/lock/ksmwalk-ksm.lock")

#: defaults of the writable knobs, in the order in which they can be written back: the advisor must be off for some,
#: and is switched on last
DEFAULTS = {
    "advisor_mode": "none",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
    "smart_scan": "1",
    "use_zero_pages": "0",
    "max_page_sharing": "256",
    "merge_across_nodes": "1",
    "stable_node_chains_prune_millisecs": "2000",
    "advisor_max_cpu": "70",
    "advisor_min_pages_to_scan": "500",
    "advisor_max_pages_to_scan": "30000",
    "advisor_target_scan_time": "200",
}

#: knobs outside KSM that are set while KSM is stepped: awake, khugepaged rebuilds the huge pages that KSM split
AROUND = {Path("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs"): "4294967295"}


class KernelUnavailable(RuntimeError):
    """The machine's KSM can't be taken; the text says why."""


def read(name: str) -> str:
    """Return what a file of /sys/kernel/mm/ksm holds, of a choice the word in brackets.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
    """
    text = (KSM / name).read_text().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


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
        return -error.errno
    try:
        os.write(fd, text.encode())
    except OSError as error:
        return -error.errno
    finally:
        os.close(fd)
    return 0


def why_not() -> str | None:
    """Return why the machine's KSM can't be taken now, or None; looks only, the lock aside.

    Returns
    -------
    str or None
    """
    if not KSM.is_dir():
        return f"{KSM} is not there: a kernel without KSM"
    if os.geteuid() != 0:
        return "root is needed to drive the kernel's KSM"
    if read("run") == "1":
        return "KSM is in use: run is 1"
    if shared := int(read("pages_shared")):
        return f"KSM is in use: pages_shared is {shared}"
    if foreign := mergeable_processes():
        pid, name = foreign[0]
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return f"another process has mergeable memory: {pid} ({name}){more}"
    return None


def mergeable_processes() -> list[tuple[int, str]]:
    """Return (pid, name) of every process that has mergeable memory.

    Returns
    -------
    list of (int, str)

    Models: ``ksm_mergeable`` of ksm_stat (Linux 6.16); older kernels: ksm_merge_any, or ``mg`` among the VmFlags.
    Differs: nothing known.
    """
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # a process may be gone by the time it is read
            with contextlib.suppress(OSError):
                if _mergeable(Path(entry.path)):
                    found.append((int(entry.name), Path(entry.path, "comm").read_text().strip()))
    return sorted(found)


def _mergeable(process: Path) -> bool:
    stat = process / "ksm_stat"
    text = stat.read_text() if stat.exists() else ""
    if "ksm_mergeable:" in text:
        return "ksm_mergeable: yes" in text
    if "ksm_merge_any: yes" in text:
        return True
    return any(line.startswith("VmFlags:") and " mg" in line for line in (process / "smaps").read_text().splitlines())


@contextlib.contextmanager
def lock(say=None, wait: float | None = None) -> Iterator[None]:
    """Hold the machine-wide lock on KSM, waiting for it.

    Parameters
    ----------
    say : callable of str, optional
        Called once if the lock is held by somebody else; default: print to stderr.
    wait : float, optional
        Seconds to wait for it at most; default: for ever.

    Raises
    ------
    KernelUnavailable
        It was not to be had in that time.
    """
    path = LOCK if LOCK.parent.is_dir() else Path("/tmp", LOCK.name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:
        # somebody else's file, but a lock needs no right to write
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not _try_lock(fd):
            (say or to_stderr)(f"waiting for {path}: somebody else drives KSM")
            if wait is None:
                fcntl.flock(fd, fcntl.LOCK_EX)
            else:
                end = time.monotonic() + wait
                while not _try_lock(fd):
                    if time.monotonic() > end:
                        raise KernelUnavailable(f"{path} is held by somebody else who drives KSM")
                    time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def to_stderr(text: str) -> None:
    """Print a line where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminating_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that what has been taken is put back on their way out too."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    old = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # only the main thread may set handlers; elsewhere the caller's own are in force
            with contextlib.suppress(ValueError):
                old[number] = signal.signal(number, leave)
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back while things are put in order; they come afterwards."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


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
def taken(say=None, wait: float | None = None) -> Iterator[None]:
    """Take the machine's KSM: lock, refusal if it is in use, and every tunable put back on any way out.

    Parameters
    ----------
    say : callable of str, optional
        Told when the lock has to be waited for.
    wait : float, optional
        Seconds to wait for the lock at most.

    Raises
    ------
    KernelUnavailable
        No root, no KSM, KSM in use, or another process has mergeable memory; nothing has been changed.
    """
    with _terminating_signals(), lock(say, wait):
        if reason := why_not():
            raise KernelUnavailable(reason)
        values = saved()
        try:
            for path, value in AROUND.items():
                if path.exists():
                    write_file(path, value)
            yield
        finally:
            with _uninterrupted():
                failed = restore(values)
            if failed:
                print("could not be put back:", *failed, sep="\n  ", file=sys.stderr)


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
