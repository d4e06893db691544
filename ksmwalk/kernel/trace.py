"""The ksm:* trace events of the kernel, through a tracing instance of our own."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import signals, state
from .state import to_stderr

PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

_libc = ctypes.CDLL(None, use_errno=True)
# A program that mounts would be ended by the Ctrl-C that this one holds back.
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PREFIX = "ksmwalk-"
#: those that this process has at present
_ours: set[Path] = set()

#: comm-pid [cpu] flags time: event: fields
_LINE = re.compile(r"-(\d+)\s+\[\d+\].*?: (ksm_\w+): (.*)")
_START = re.compile(r"seq (-?\d+) rmap size (\d+)")
_MERGE = re.compile(r"(ksm )?pfn (\d+) rmap_item (\S+) mm (\S+) error (-?\d+)")
_RMI = re.compile(r"pfn (\d+) rmap_item (\S+) mm (\S+)")


class Events:
    """The events since they were last read.

    Parameters
    ----------
    instance : Path
        A directory of tracefs/instances.

    Models: the ``ksm`` trace events of Linux 6.18.
    Differs: ``ksm_advisor`` is left out.
    """

    def __init__(self, instance: Path):
        self.instance = instance
        (instance / "tracing_on").write_text("0")
        # a global counter orders events over all CPUs; clocks of two CPUs may disagree by a little
        with contextlib.suppress(OSError):
            (instance / "trace_clock").write_text("counter")
        (instance / "buffer_size_kb").write_text("4096")
        for event in (instance / "events" / "ksm").iterdir():
            if event.is_dir() and event.name != "ksm_advisor":
                (event / "enable").write_text("1")
        self._pipe = os.open(instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        (instance / "tracing_on").write_text("1")
        self.read()

    def close(self) -> None:
        """Stop tracing."""
        os.close(self._pipe)
        (self.instance / "tracing_on").write_text("0")

    def read(self) -> list[tuple[Any, ...]]:
        """Return the events since the last call, in order, and forget them.

        Returns
        -------
        list of tuple
            ``("start" | "stop", seq, items)``, ``("enter" | "exit", mm, pid)``, ``("new", pfn, mm, err, item)``,
            ``("add", pfn, mm, err, item)``, ``("zero", mm, err)``, ``("rmi", pfn, mm, item)``, ``("rmk", pfn)``;
            mm and item are the kernel's hashed pointers as text.

        Raises
        ------
        RuntimeError
            Events were lost, or one can't be understood.
        """
        text = b""
        while True:
            try:
                got = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                break
            if not got:
                break
            text += got
        return [_event(line) for line in text.decode().splitlines() if line.strip()]


def _event(line: str) -> tuple[Any, ...]:
    match = _LINE.search(line)
    if match:
        pid, name, fields = int(match[1]), match[2], match[3]
        if name in ("ksm_start_scan", "ksm_stop_scan") and (found := _START.match(fields)):
            return name[4:-5], int(found[1]), int(found[2])
        if name in ("ksm_enter", "ksm_exit"):
            return name[4:], fields.split()[-1], pid
        # one page alone is what merging with the zero page is traced as
        if name == "ksm_merge_one_page" and (found := _MERGE.match(fields)):
            return "zero", found[4], int(found[5])
        if name == "ksm_merge_with_ksm_page" and (found := _MERGE.match(fields)):
            if not found[1]:  # there was no KSM page: this page became one
                return "new", int(found[2]), found[4], int(found[5]), found[3]
            return "add", int(found[2]), found[4], int(found[5]), found[3]
        if name == "ksm_remove_rmap_item" and (found := _RMI.match(fields)):
            return "rmi", int(found[1]), found[3], found[2]
        if name == "ksm_remove_ksm_page":
            return "rmk", int(fields.split()[-1])
    raise RuntimeError(f"a trace line that can't be understood: {line!r}")


@contextlib.contextmanager
def tracefs(say: Callable[[str], None] | None = None) -> Iterator[Path | None]:
    """Find tracefs, mounting it for the time being where it is not; None where it can't be had.

    The machine's KSM must be taken: what a killed run has left mounted is used, and unmounted at the end.

    Parameters
    ----------
    say : callable of str, optional
        Told of the mount; default: print to stderr.
    """
    for place in PLACES:
        if (place / "instances").is_dir():
            yield place
            return
    place = state.DIRECTORY / "tracefs"
    mounted = False
    try:
        with signals.held():
            mounted = _mount(place)
        if mounted:
            (say or to_stderr)(f"tracefs is not mounted: on {place} for the time being")
        yield place if mounted else None
    finally:
        with signals.held():
            if mounted and _libc.umount2(os.fsencode(place), _UMOUNT_NOFOLLOW):
                # somebody looks around in it: it goes when they leave
                _libc.umount2(os.fsencode(place), _UMOUNT_NOFOLLOW | _MNT_DETACH)
            with contextlib.suppress(OSError):
                place.rmdir()


def _mount(place: Path) -> bool:
    """Mount tracefs in a directory that only root can enter, unless it is there from before."""
    os.close(state.directory())
    with contextlib.suppress(FileExistsError):
        place.mkdir(0o700)
    if (place / "instances").is_dir():
        return True
    return bool(_libc.mount(b"tracefs", os.fsencode(place), b"tracefs", _NOSUID_NODEV_NOEXEC, None) == 0)


def _places(root: Path) -> Iterator[Path]:
    """Names for instances of this process: the second is for one that is made while there is the first."""
    for number in itertools.count():
        yield root / "instances" / f"{_PREFIX}{os.getpid()}{f'-{number}' if number else ''}"


@contextlib.contextmanager
def instance(root: Path) -> Iterator[Path]:
    """A tracing instance of our own; those that killed runs have left are removed.

    Parameters
    ----------
    root : Path
        Of tracefs.

    Yields
    ------
    Path
        Its directory.
    """
    place = next(one for one in _places(root) if one not in _ours)
    made = False
    try:
        with signals.held():
            for other in root.glob(f"instances/{_PREFIX}*"):
                pid = other.name.removeprefix(_PREFIX).partition("-")[0]
                if not Path("/proc", pid).exists() or other == place:
                    # an enabled event or an open pipe of somebody's keeps it: then it stays
                    with contextlib.suppress(OSError):
                        other.rmdir()
            place.mkdir()
            made = True
            _ours.add(place)
        yield place
    finally:
        if made:
            with signals.held():
                place.rmdir()
                _ours.discard(place)


@contextlib.contextmanager
def events(say: Callable[[str], None] | None = None) -> Iterator[Events | None]:
    """Trace KSM in an instance of our own; None where the kernel has no such events.

    Parameters
    ----------
    say : callable of str, optional
        Told if tracefs has to be mounted.
    """
    with tracefs(say) as root:
        if root is None or not (root / "events" / "ksm").is_dir():
            yield None
            return
        reader = None
        with instance(root) as place:
            try:
                with signals.held():
                    reader = Events(place)
                yield reader
            finally:
                if reader is not None:
                    with signals.held():
                        reader.close()
