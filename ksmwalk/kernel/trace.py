"""The ksm:* trace events of the kernel, through a tracing instance of our own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .knobs import to_stderr

PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

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

    def read(self) -> list[tuple]:
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


def _event(line: str) -> tuple:
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
def tracefs(say=None) -> Iterator[Path | None]:
    """Find tracefs, mounting it for the time being where it is not; None where it can't be had.

    Parameters
    ----------
    say : callable of str, optional
        Told of the mount; default: print to stderr.
    """
    for place in PLACES:
        if (place / "instances").is_dir():
            yield place
            return
    place = Path(tempfile.mkdtemp(prefix="ksmwalk-tracefs-"))
    try:
        done = subprocess.run(["mount", "-t", "tracefs", "tracefs", str(place)], capture_output=True, check=False)
        mounted = done.returncode == 0
    except OSError:
        mounted = False
    try:
        if mounted:
            (say or to_stderr)(f"tracefs is not mounted: on {place} for the time being")
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], capture_output=True, check=False)
        place.rmdir()


@contextlib.contextmanager
def events(say=None) -> Iterator[Events | None]:
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
        instance = root / "instances" / f"ksmwalk-{os.getpid()}"
        if instance.exists():  # left by a process of this number that was killed
            instance.rmdir()
        instance.mkdir()
        try:
            reader = Events(instance)
            try:
                yield reader
            finally:
                reader.close()
        finally:
            instance.rmdir()
