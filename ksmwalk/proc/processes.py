"""The processes of this machine: which there are, what they are called, and which have memory marked mergeable."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from ..drawing.words import printable

__all__ = [
    "Identity", "comm", "command_line", "every_pid", "has_memory", "identity", "kernel_thread", "ksm_stat", "marked",
    "pinned_bytes", "printable",
]  # fmt: skip

# the parent of all kernel threads
_KTHREADD = b"2"


def every_pid(own: bool = False) -> list[int]:
    """The numbers of all processes, this one if it is `own`, ascending; each may be gone by the time it is looked at."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if own or pid != os.getpid()]


def has_memory(pid: int) -> bool:
    """Whether a process has memory of its own: kernel threads and zombies have none, nor has one that is gone."""
    try:
        return _read(pid, "statm").split()[0] != b"0"
    except (OSError, IndexError):
        return False


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


#: the name that a runtime gives a container's cgroup: 64 hex digits, perhaps between a prefix and .scope
_CONTAINER = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?:\.scope)?(?:/|$)")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is.

    Attributes
    ----------
    uid : int
        Of its owner (real user id), -1: not known.
    cgroup : str
        Path in the unified hierarchy (version 2, else the longest of version 1), "" where there is none.
    container : str
        Its container's id as Docker, Podman, CRI-O and containerd put it into that path; "" outside one.
    command : tuple of str
        The words it was started with.
    started : int
        Clock ticks from boot to its start, 0: not known.
    """

    uid: int = -1
    cgroup: str = ""
    container: str = ""
    command: tuple[str, ...] = ()
    started: int = 0


def identity(pid: int) -> Identity:
    """Who a process is, as far as that can be seen.

    Models: /proc/PID/{status,cgroup,cmdline,stat} of Linux 6.18. Differs: nothing known.
    """
    texts = {}
    for name in ("status", "cgroup", "stat"):
        try:
            texts[name] = _read(pid, name).decode(errors="surrogateescape")
        except OSError:
            texts[name] = ""
    uid = re.search(r"^Uid:\s+(\d+)", texts["status"], re.M)
    paths = [line.split(":", 2)[2] for line in texts["cgroup"].splitlines() if line.count(":") >= 2]
    unified = [line.removeprefix("0::") for line in texts["cgroup"].splitlines() if line.startswith("0::")]
    cgroup = unified[0] if unified and unified[0] != "/" else max(paths, key=len, default="")
    container = _CONTAINER.search(cgroup)
    fields = texts["stat"].rpartition(")")[2].split()
    command: list[str] = []
    with contextlib.suppress(OSError):
        command = command_line(pid)
    return Identity(
        int(uid[1]) if uid else -1,
        cgroup,
        container[1] if container else "",
        tuple(command),
        int(fields[19]) if len(fields) > 19 else 0,
    )


def ksm_stat(pid: int) -> dict[str, int]:
    """The numbers of /proc/PID/ksm_stat by name, yes as 1 and no as 0; empty where it can't be read.

    Models: /proc/PID/ksm_stat of Linux 6.18. Differs: nothing known.
    """
    try:
        text = _read(pid, "ksm_stat").decode()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.replace(":", " ").strip().partition(" ")
        value = value.strip()
        if value in ("yes", "no"):
            found[name] = int(value == "yes")
        elif value.lstrip("-").isdigit():
            found[name] = int(value)
    return found


def pinned_bytes(pid: int) -> int:
    """What drivers and io_uring have pinned of a process's memory for long, as far as the kernel counts it for it.

    Raises OSError where the process is gone.

    Models: ``VmPin`` of /proc/PID/status of Linux 6.18. Differs: pins of a single call (O_DIRECT, vmsplice), and those of
    VFIO, which counts them as locked, are in no file.
    """
    found = re.search(rb"^VmPin:\s+(\d+) kB", _read(pid, "status"), re.M)
    return int(found[1]) << 10 if found else 0
