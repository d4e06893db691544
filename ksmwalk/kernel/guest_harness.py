"""What runs in a guest, as its only process: KSM taken, scenarios run as they come in, records sent back.

The kernel starts Python with this module in the place of init. Messages are JSON, compressed, with their length in
front, on the second serial line; what there is to be said to people goes to the first, the console.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import struct
import sys
import termios
import traceback
import tty
import zlib
from typing import Any

from ..proc.processes import kernel_thread
from ..scenarios.format import ScenarioError, scenario_from_json
from . import probe, surround
from .giants import Giant, scanned
from .session import Session, session
from .worker import WorkerDied

_LINE = "/dev/ttyS1"
_LENGTH = struct.Struct(">I")
_POWER_OFF = 0x4321FEDC
_MOUNTS = (
    ("proc", "/proc", None), ("sysfs", "/sys", None), ("tracefs", "/sys/kernel/tracing", None),
    ("tmpfs", "/run", b"mode=755"),
)  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class Line:
    """A serial line, both ways."""

    def __init__(self, fd: int):
        self._fd = fd

    def send(self, what: dict[str, Any]) -> None:
        """Send a message."""
        data = zlib.compress(json.dumps(what).encode())
        data = _LENGTH.pack(len(data)) + data
        while data:
            data = data[os.write(self._fd, data) :]

    def take(self) -> dict[str, Any]:
        """Wait for a message; an empty one where the line has ended."""
        head = self._exactly(_LENGTH.size)
        made: dict[str, Any] = json.loads(zlib.decompress(self._exactly(_LENGTH.unpack(head)[0]))) if head else {}
        return made

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            if not (got := os.read(self._fd, n - len(data))):
                return b""
            data += got
        return data


def _open_line() -> Line:
    fd = os.open(_LINE, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(fd)
    attributes = termios.tcgetattr(fd)
    attributes[4] = attributes[5] = termios.B115200
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    return Line(fd)


def _mount() -> None:
    for kind, place, options in _MOUNTS:
        # no tracefs: a kernel without; then there are no events
        _libc.mount(kind.encode(), place.encode(), kind.encode(), 0, options)


def _about(taken: Session) -> dict[str, Any]:
    """What the other side has to know of this kernel."""
    name = os.uname()
    return {
        "release": name.release, "version": name.version, "left_out": taken.left_out, "ignore": sorted(taken.ignore),
        "missing": sorted(taken.missing), "lacking": sorted(taken.lacking),
    }  # fmt: skip


def _answer(taken: Session, asked: dict[str, Any]) -> dict[str, Any]:
    if "env" in asked:
        return {"lacks": surround.lacking(asked["env"])}
    try:
        if "giant" in asked:
            return {"scanned": dataclasses.astuple(scanned(Giant(*asked["giant"]), asked["patience"]))}
        if "look" in asked:
            return probe.look()
        return {"records": taken.record(scenario_from_json(asked["scenario"], "scenario"))}
    except ScenarioError as error:
        return {"refused": str(error)}
    except WorkerDied as error:
        return {"died": str(error)}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"}


def serve() -> None:
    """Run what comes in until nothing does."""
    line = _open_line()
    try:
        with session(lambda text: print(text, flush=True)) as taken:
            line.send(_about(taken))
            while asked := line.take():
                if "end" in asked:
                    break
                line.send(_answer(taken, asked))
    except Exception as error:
        line.send({"broken": f"{type(error).__name__}: {error}"})
        raise


def main() -> None:
    """Be the first process of a machine, and switch it off at the end."""
    _mount()
    # What nobody places is on the first node, what ksmd and khugepaged make too.
    for pid in (0, *filter(None, map(kernel_thread, ("ksmd", "khugepaged")))):
        os.sched_setaffinity(pid, {0})
    try:
        serve()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    os.sync()
    _libc.reboot(_POWER_OFF)


if __name__ == "__main__":
    main()
