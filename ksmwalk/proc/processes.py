"""The processes of this machine: which there are, what they are called, and which have memory marked mergeable."""

from __future__ import annotations

import contextlib
import os

# the parent of all kernel threads
_KTHREADD = b"2"


def printable(name: object) -> str:
    """A name from outside as text that a terminal prints and does not obey.

    Parameters
    ----------
    name : str, or what has a text
        Undecodable bytes as surrogates, as `errors="surrogateescape"` leaves them.

    Returns
    -------
    str
        Undecodable bytes replaced by U+FFFD; control characters, line ends, marks that turn the direction of writing
        and whatever else is not printable as escapes: `\\x1b`, `\\n`, `\\u202e`.
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    return "\ufffd" if "\ud800" <= letter <= "\udfff" else letter.encode("unicode_escape").decode()


def every_pid(own: bool = False) -> list[int]:
    """The numbers of all processes, this one if it is `own`, ascending; each may be gone by the time it is looked at."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if own or pid != os.getpid()]


def _read(pid: int, path: str) -> bytes:
    with open(f"/proc/{pid}/{path}", "rb", buffering=0) as file:
        return file.read()


def comm(pid: int) -> str:
    """The name of a process as the kernel has it, at most 15 bytes; undecodable bytes as surrogates.

    Raises OSError where the process is gone.
    """
    return _read(pid, "comm").removesuffix(b"\n").decode(errors="surrogateescape")


def kernel_thread(name: str) -> int | None:
    """The number of the kernel's own thread of this name, or None; any process may call itself that."""
    for pid in every_pid():
        with contextlib.suppress(OSError):
            if comm(pid) == name and _read(pid, "stat").rpartition(b")")[2].split()[1] == _KTHREADD:
                return pid
    return None


def command_line(pid: int) -> list[str]:
    """The words a process was started with, undecodable bytes as surrogates; empty for those without memory.

    Raises OSError where the process is gone or the kernel refuses.
    """
    words = _read(pid, "cmdline").rstrip(b"\0")
    return [word.decode(errors="surrogateescape") for word in words.split(b"\0")] if words else []


def marked(pid: int) -> bool:
    """Whether a process has memory marked mergeable.

    Raises OSError where the process is gone or is not for the caller to look into.

    Models: ``ksm_mergeable`` of ksm_stat (Linux 6.16); older kernels: ksm_merge_any, or ``mg`` among the VmFlags.
    Differs: nothing known.
    """
    try:
        stat = _read(pid, "ksm_stat")
    except FileNotFoundError:
        stat = b""
    if b"ksm_mergeable:" in stat:
        return b"ksm_mergeable: yes" in stat
    if b"ksm_merge_any: yes" in stat:
        return True
    return any(line.startswith(b"VmFlags:") and b" mg" in line for line in _read(pid, "smaps").splitlines())
