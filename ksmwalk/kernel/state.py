"""What ksmwalk keeps of itself on a machine while it drives KSM: a lock that only root can hold, and a journal.

All of it is in one directory that belongs to root and is open to nobody else, so that no other user can hold the lock,
put a link in its place or write a journal. It is under /run, which a restart empties, as it does KSM's knobs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..drawing.words import printable
from ..proc import processes

DIRECTORY = Path("/run/ksmwalk")
#: what ksmwalk 0.1 locks: in a directory in which anybody may make files
OLD_LOCK = Path("/run/lock/ksmwalk-ksm.lock")

_LOCK, _JOURNAL = "lock", "knobs.json"
_POLL_SECONDS = 0.1
_MOST_JOURNAL = 1 << 16
_HELD_BY = re.compile(r"\d+: FLOCK +ADVISORY +WRITE +(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ")


class KernelUnavailable(RuntimeError):
    """The machine's KSM can't be taken; the text says why."""


def to_stderr(text: str) -> None:
    """Print a line where it does not mix with results."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the directory


def directory() -> int:
    """Open the directory, making it where it is not.

    Returns
    -------
    int
        A file descriptor, to be closed.

    Raises
    ------
    KernelUnavailable
        It can't be had as a directory that only root can use.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(DIRECTORY, 0o700)
        fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise KernelUnavailable(f"{DIRECTORY}: {error.strerror}: only root can drive KSM, and needs it for that") from None
    try:
        above, found = os.stat(DIRECTORY.parent), os.fstat(fd)
        if above.st_uid != 0 or above.st_mode & 0o022 or found.st_uid != 0:
            raise KernelUnavailable(f"{DIRECTORY} is not root's alone: others could hold its lock for ever")
        if found.st_mode & 0o077:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_private(name: str, flags: int, at: int | None) -> int:
    """Open a regular file of root's that others can't use, following no link."""
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=at)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_nlink != 1:
            raise OSError(errno.EPERM, f"{name} is no file of root's alone")
        if found.st_mode & 0o077:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


# ---------------------------------------------------------------- the lock


@contextlib.contextmanager
def lock(say: Callable[[str], None] | None = None, wait: float | None = None) -> Iterator[None]:
    """Hold the machine-wide lock on KSM, waiting for it.

    Parameters
    ----------
    say : callable of str, optional
        Called once if the lock is held by somebody else, with who that is; default: print to stderr.
    wait : float, optional
        Seconds to wait for it at most; default: for ever.

    Raises
    ------
    KernelUnavailable
        It was not to be had in that time, or not at all: only root can hold it.

    Models: nothing; flock(2) on a file in `DIRECTORY`, and on the one of ksmwalk 0.1 if that is root's.
    Differs: holds among those who see the same /run; two containers of one machine don't.
    """
    if os.geteuid() != 0:
        raise KernelUnavailable("root is needed to drive the kernel's KSM")
    say = say or to_stderr
    end = None if wait is None else time.monotonic() + wait
    with contextlib.ExitStack() as files:
        at = directory()
        files.callback(os.close, at)
        try:
            fd = _open_private(_LOCK, os.O_RDWR | os.O_CREAT, at)
        except OSError as error:
            raise KernelUnavailable(f"{DIRECTORY / _LOCK}: {error.strerror}") from None
        files.callback(os.close, fd)
        _take(fd, DIRECTORY / _LOCK, say, end)
        old = _old_lock()
        if old is not None:
            files.callback(os.close, old)
            _take(old, OLD_LOCK, say, end, heed_users=False)
        yield


def _old_lock() -> int | None:
    """The lock of ksmwalk 0.1, made root's own where there is none; None where somebody else has made it."""
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL):
        # no such file; no such directory; a file, a link or a directory of another user's
        with contextlib.suppress(OSError):
            return _open_private(str(OLD_LOCK), flags, None)
    return None


def _take(fd: int, path: Path, say: Callable[[str], None], end: float | None, heed_users: bool = True) -> None:
    said = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = holder(fd)
        if not heed_users and pid is not None and _user(pid) != 0:
            # taken while the file was open to all: whoever that is can't drive KSM
            say(f"{path} is held by {describe(pid)}, who is not root: not waited for")
            return
        who = "somebody else" + (f", {describe(pid)}," if pid is not None else "")
        if end is not None and time.monotonic() > end:
            raise KernelUnavailable(f"{path} is held by {who} who drives KSM")
        if not said:
            say(f"waiting for {path}: {who} drives KSM")
            said = True
        time.sleep(_POLL_SECONDS)


def held_by() -> str | None:
    """Who holds the lock now, in words; None where nobody does or this user can't see it."""
    try:
        fd = os.open(DIRECTORY / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        pid = holder(fd)
    finally:
        os.close(fd)
    return None if pid is None else describe(pid)


def holder(fd: int) -> int | None:
    """Return the pid of who holds a flock(2) lock on an open file; None where that can't be seen.

    Models: /proc/locks of Linux. Differs: nothing known.
    """
    found = os.fstat(fd)
    wanted = os.major(found.st_dev), os.minor(found.st_dev), found.st_ino
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            match = _HELD_BY.match(line)
            if match and (int(match[2], 16), int(match[3], 16), int(match[4])) == wanted and int(match[1]) > 0:
                return int(match[1])
    return None


def describe(pid: int) -> str:
    """Return pid and command of a process, in characters that can be printed."""
    try:
        clean = printable(" ".join(processes.command_line(pid)))
    except OSError:
        clean = ""
    return f"pid {pid}" + (f" ({clean[:100]}{'...' if len(clean) > 100 else ''})" if clean else "")


def _user(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return 0  # it has just ended


# ---------------------------------------------------------------- the journal


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_record(name: str, data: dict[str, Any]) -> None:
    """Write a file of the directory; it is on the disk when this returns, whole or not at all.

    Parameters
    ----------
    name : str
    data : dict
        Plain data; the boot and the process that it is of are added.

    Raises
    ------
    OSError
        It could not be written; what was there before is there still.
    """
    at = directory()
    new = f"{name.removesuffix('.json')}.new"
    try:
        fd = _open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, at)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"boot": _boot(), "pid": os.getpid(), **data}, file)
            file.flush()
            os.fsync(fd)
        os.rename(new, name, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=at)
        raise
    finally:
        os.close(at)


def read_record(name: str) -> dict[str, Any] | None:
    """Return what a file of the directory holds; None where there is none.

    Parameters
    ----------
    name : str

    Returns
    -------
    dict or None
        None too where it is of before the machine was started, or damaged.
    """
    at = directory()
    try:
        with open(_open_private(name, os.O_RDONLY, at), "rb") as file:
            data: Any = json.loads(file.read(_MOST_JOURNAL))
        return data if data["boot"] == _boot() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    finally:
        os.close(at)


def remove_record(name: str) -> None:
    """Remove a file of the directory, if it is there."""
    at = directory()
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=at)
            os.fsync(at)
    finally:
        os.close(at)


def write_journal(values: dict[Path, str]) -> None:
    """Write down what files hold before they are changed; it is on the disk when this returns, whole or not at all.

    Parameters
    ----------
    values : dict of Path to str
    """
    write_record(_JOURNAL, {"values": {str(path): text for path, text in values.items()}})


def read_journal() -> tuple[int, dict[Path, str]] | None:
    """Return what a run that was killed has left: its pid and what files held before; None where there is nothing.

    Returns
    -------
    (int, dict of Path to str) or None
        None too where it is of before the machine was started, or damaged.
    """
    data = read_record(_JOURNAL)
    try:
        return None if data is None else (int(data["pid"]), {Path(str(path)): str(text) for path, text in data["values"].items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def remove_journal() -> None:
    """Forget it: all is as it was."""
    remove_record(_JOURNAL)
