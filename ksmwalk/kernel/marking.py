"""How processes come to be merged: by what starts them, as no process can mark another.

Who started a process is read from its cgroup and its command line, both as somebody else wrote them: what is made of
them is a path or a command only where every letter is one that systemd has in names of units.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..drawing.words import printable
from ..ksm import sysfs
from ..proc import processes

#: what the whole of a unit's name may be made of
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_USER_MANAGER = re.compile(r"user@(\d{1,10})\.service")
_QEMU = re.compile(r"(?:qemu-system-[\w-]{1,40}|qemu-kvm|kvm)")
_DOMAIN = re.compile(r"[A-Za-z0-9_.+:-]{1,128}")
_DROP_IN = "[Service]\nMemoryKSM=yes\n"
_DROP_IN_NAME = "ksm.conf"
#: the service that starts the containers of each runtime, by what its cgroups are called
_RUNTIMES = (("docker", "containerd.service"), ("cri-containerd", "containerd.service"), ("crio", "crio.service"))
_MOST_WORDS = 200
_PR_SET_MEMORY_MERGE = 67
#: MemoryKSM= came with this systemd, and made every service fail until that one
_SYSTEMD_SINCE, _SYSTEMD_GOOD = 254, 256
# prctl(PR_SET_MEMORY_MERGE) came, and outlived exec, with these
_PRCTL_SINCE, _EXEC_SINCE = (6, 4), (6, 7)

SERVICE, USER_SERVICE, LIBVIRT, QEMU, CONTAINER, PROGRAM = "service", "user service", "libvirt", "qemu", "container", "program"


@dataclass(slots=True)
class Marking:
    """Processes that are marked in one go, and how.

    Attributes
    ----------
    how : str
        "service", "user service", "libvirt", "qemu", "container", "program".
    what : str
        Unit, domain, container, or the program's name; not fit to be printed as it is.
    pids : list of int
    marked : int
        How many of them are marked now.
    freed_bytes, rmap_items_bytes : int
    file, content : str
        A file to be written; "" where there is none.
    commands : list of str
        For a shell, to be run after that.
    notes : list of str

    Models: MemoryKSM= of systemd 256, mem-merge of QEMU, nosharepages of libvirt, PR_SET_MEMORY_MERGE of Linux 6.18.
    Differs: units of containers that a supervisor of its own has started are not told from others.
    """

    how: str
    what: str
    pids: list[int] = field(default_factory=list)
    marked: int = 0
    freed_bytes: int = 0
    rmap_items_bytes: int = 0
    file: str = ""
    content: str = ""
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def markings(rows: Iterable[Mapping[str, Any]], chosen: set[int] | None, here: bool) -> list[Marking]:
    """Say who should be marked, and how, those that give the most first.

    Parameters
    ----------
    rows : iterable of mapping
        `by_process` of an estimate.
    chosen : set of int or None
        Processes that are worth it by the estimate's advice; None: all are candidates.
    here : bool
        Whether they are processes of this machine, so that it can be seen which are marked.

    Returns
    -------
    list of Marking
        Of processes that free more than their rmap_items take.
    """
    found: dict[tuple[str, ...], Marking] = {}
    for row in rows:
        cost = row["ksm_rmap_items"] * sysfs.RMAP_ITEM_SIZE
        if row["freed_bytes"] <= cost or (chosen is not None and row["pid"] not in chosen):
            continue
        how, what = started_by(row)
        told = _told(how, what, row)
        # of programs those are one for which the same is to be done
        key = (how, what, *(told.commands if how == PROGRAM else ()))
        one = found.setdefault(key, told)
        one.pids.append(row["pid"])
        one.freed_bytes += row["freed_bytes"]
        one.rmap_items_bytes += cost
        one.marked += here and _is_marked(row)
    return sorted(found.values(), key=lambda one: -one.freed_bytes)


def _is_marked(row: Mapping[str, Any]) -> bool:
    """Whether the process is there still, by its name, and has mergeable memory."""
    try:
        return processes.comm(row["pid"]) == row["name"] and processes.marked(row["pid"])
    except OSError:
        return False


def started_by(row: Mapping[str, Any]) -> tuple[str, str]:
    """What has started a process, and its name there.

    Parameters
    ----------
    row : mapping
        Of `by_process`: name, command, cgroup, container.

    Returns
    -------
    (str, str)
        `Marking.how` and `Marking.what`.
    """
    command = row["command"]
    cgroup = row["cgroup"]
    if command and _QEMU.fullmatch(command[0].rsplit("/", 1)[-1]):
        domain = _domain(command)
        return (LIBVIRT, domain) if domain and "machine-qemu" in cgroup else (QEMU, domain or row["name"])
    unit, inside = _unit(cgroup.split("/"))
    manager = _USER_MANAGER.fullmatch(unit)
    if manager:
        unit, inside = _unit(inside)
        if unit.endswith(".service"):
            return USER_SERVICE, f"{manager[1]}/{unit}"
    elif unit.endswith(".service") and not (row["container"] and unit in {service for _, service in _RUNTIMES}):
        return SERVICE, unit
    if row["container"]:
        return CONTAINER, row["container"]
    return PROGRAM, row["name"]


def _unit(path: list[str]) -> tuple[str, list[str]]:
    """The unit of a cgroup's path, "" where there is none, and what is below it: the first that is no slice."""
    for at, name in enumerate(path):
        if name and not name.endswith(".slice"):
            # systemd puts this before names that the kernel has a use for
            name = name.removeprefix("_")
            return (name if _UNIT.fullmatch(name) and not name.startswith((".", "-")) else ""), path[at + 1 :]
    return "", []


def _domain(command: list[str]) -> str:
    """What a virtual machine is called in QEMU's command line, "" if it isn't or in odd letters."""
    for word, after in zip(command, command[1:], strict=False):
        if word in ("-name", "--name"):
            name = after.split(",")[0].removeprefix("guest=")
            return name if _DOMAIN.fullmatch(name) and not name.startswith("-") else ""
    return ""


# ---------------------------------------------------------------- what to do


def _told(how: str, what: str, row: Mapping[str, Any]) -> Marking:
    one = Marking(how, what)
    if how in (SERVICE, USER_SERVICE):
        _service(one)
    elif how == LIBVIRT:
        one.commands = [f"virsh edit {what}", f"virsh shutdown {what}", f"virsh start {what}"]
        one.notes = [
            "<memoryBacking><nosharepages/></memoryBacking> must not be in the definition: QEMU marks the guest's memory then",
            "shared memory and huge pages (<source type='memfd'/>, <access mode='shared'/>, <hugepages/>) are never merged",
        ]
    elif how == QEMU:
        one.notes = [
            "-machine ...,mem-merge=on (which is QEMU's default; -object memory-backend-ram,...,merge=on for a backend of its own)",
            "memory with share=on, of memory-backend-file on hugetlbfs or of memory-backend-memfd is never merged",
        ]
    elif how == CONTAINER:
        _container(one, row)
    else:
        _program(one, row)
    return one


def _service(one: Marking) -> None:
    user, _, unit = one.what.rpartition("/")
    directory = "/etc/systemd/user" if user else "/etc/systemd/system"
    one.file, one.content = f"{directory}/{unit}.d/{_DROP_IN_NAME}", _DROP_IN
    name = shlex.quote(unit)
    if user:
        one.commands = ["systemctl --user daemon-reload", f"systemctl --user restart {name}"]
        one.notes = [f"as user {user}; the file is for the services of that name of all users"]
    else:
        one.commands = ["systemctl daemon-reload", f"systemctl restart {name}"]
    one.notes.append("the service and all that it starts are marked once it is started anew")


def _container(one: Marking, row: Mapping[str, Any]) -> None:
    one.notes = [
        "no setting of Docker, Podman or Kubernetes marks a container: its program must ask, or inherit it from who starts it",
        "in the image: `ksmwalk apply --exec PROGRAM...` as its entry point",
    ]
    service = next((service for prefix, service in _RUNTIMES if re.search(rf"(?:^|/){prefix}[-/]", row["cgroup"])), "")
    if service:
        one.notes.append(
            f"or MemoryKSM=yes for {service}: every container that is started after it was is marked then, whoever's it is "
            "(not tried by us; merging across tenants is a side channel)"
        )


def _program(one: Marking, row: Mapping[str, Any]) -> None:
    words = [printable(word) for word in row["command"]]
    if words and words == row["command"] and len(whole := shlex.join(words)) <= _MOST_WORDS:
        one.commands = [f"ksmwalk apply --exec {whole}"]
    else:
        one.commands = ["ksmwalk apply --exec PROGRAM ..."]
    one.notes = ["or prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) in the program; either way it must be started anew"]


# ---------------------------------------------------------------- what this machine can do


def limits(found: Iterable[Marking], release: str, systemd: int | None) -> list[str]:
    """What of it this machine is too old for, in sentences without a full stop.

    Parameters
    ----------
    found : iterable of Marking
    release : str
        The kernel's.
    systemd : int or None
        Version, from `systemd_version`.

    Returns
    -------
    list of str
    """
    how = {one.how for one in found}
    told = []
    if how - {QEMU, LIBVIRT}:
        if (0, 0) < kernel_version(release) < _PRCTL_SINCE:
            told.append("this kernel has no PR_SET_MEMORY_MERGE (Linux 6.4): programs must call madvise(MADV_MERGEABLE) themselves")
        elif (0, 0) < kernel_version(release) < _EXEC_SINCE:
            told.append("this kernel forgets PR_SET_MEMORY_MERGE at exec (until Linux 6.7): the program itself must ask")
    if how & {SERVICE, USER_SERVICE} and systemd is not None:
        if systemd < _SYSTEMD_SINCE:
            told.append(
                f"systemd {systemd} has no MemoryKSM= (systemd {_SYSTEMD_SINCE}): let ExecStart= begin with `ksmwalk apply --exec`"
            )
        elif systemd < _SYSTEMD_GOOD:
            told.append(
                f'MemoryKSM=yes may keep services from starting with systemd {systemd} ("Failed to set KSM"; mended in '
                f"{_SYSTEMD_GOOD} and some distributions' {systemd}): try it with `systemd-run --wait -p MemoryKSM=yes true`"
            )
    return told


def kernel_version(release: str) -> tuple[int, int]:
    """The first two numbers of a kernel's name; (0, 0) where it has none."""
    found = re.match(r"(\d{1,5})\.(\d{1,5})", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def systemd_version() -> int | None:
    """The version of this machine's systemd; None where there is none."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(rb"systemd (\d{1,5})", said)
    return int(found[1]) if found else None


# ---------------------------------------------------------------- a program started marked


def exec_marked(words: list[str]) -> NoReturn:
    """Become a program whose memory is all mergeable, and that of what it starts too.

    Parameters
    ----------
    words : list of str
        The program, looked for in PATH, and its arguments.

    Raises
    ------
    OSError
        The kernel refuses, or forgets it at exec; there is no such program.

    Models: PR_SET_MEMORY_MERGE of Linux 6.7 and later.
    Differs: nothing known.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_MEMORY_MERGE): {os.strerror(error)} (it came with Linux 6.4, with CONFIG_KSM)")
    if _forgotten_at_exec():
        raise OSError("this kernel forgets PR_SET_MEMORY_MERGE at exec (until Linux 6.7): the program itself must ask")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores these, which exec would hand on
        signal.signal(number, signal.SIG_DFL)
    os.execvp(words[0], words)


def _forgotten_at_exec() -> bool:
    """Whether a child, marked by inheritance, is not any more once it has become another program."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["cat", "/proc/self/ksm_stat"], capture_output=True, timeout=5, check=False).stdout
        return b"ksm_merge_any: no" in said
    return False
