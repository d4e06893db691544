"""The file system a guest starts from: this very Python, numpy and ksmwalk, with what they load, and nothing else.

No shell, no other program: the kernel starts Python, and Python runs `ksmwalk.kernel.guest_harness`. What it needs is
found out by importing all of it once, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ksmwalk

from . import worker
from .knobs import KernelUnavailable

#: what the kernel starts
HARNESS = "ksmwalk.kernel.guest_harness"
_PACKAGE = Path(ksmwalk.__file__).parent
#: rooms of the package whose every module goes along: some are loaded only when they are wanted
_ROOMS = (
    "", "layout", "memory", "tables", "ksm", "host", "scenarios", "proc", "kernel", "drawing", "embedding", "policies",
    "controllers",
)  # fmt: skip
#: imports that are made late, by others
_LATE = ("ctypes", "encodings.idna", "json", "linecache", "numpy.ma", "runpy", "select", "traceback", "zlib")
_LISTING = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
files = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
mapped = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if len(line.split(None, 5)) == 6]
print(json.dumps([[f for f in files if f], [f for f in mapped if f.startswith("/") and ".so" in f]]))
"""
#: in front of compiled code: its file is not looked at
_UNCHECKED = importlib.util.MAGIC_NUMBER + struct.pack("<I8x", 1)
_LINKED = re.compile(r"(?:=> )?(/\S+) \(0x")
_DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3), "dev/ttyS0": (4, 64), "dev/ttyS1": (4, 65), "dev/urandom": (1, 9)}
_EMPTY = ("proc", "sys", "run", "tmp", "dev")


class Archive:
    """An archive in the form ``cpio -H newc`` writes, as kernels unpack it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = set()

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Add a file, and the directories above it."""
        if name in self._known:
            return
        if "/" in name:
            self.add(name.rsplit("/", 1)[0], stat.S_IFDIR | 0o755)
        self._known.add(name)
        number = len(self._known)
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file at an absolute path."""
        self.add(path.lstrip("/"), stat.S_IFREG | mode, data)

    def whole(self) -> bytes:
        """The archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _modules() -> list[str]:
    """Names of ksmwalk's modules that go along."""
    names = []
    for room in _ROOMS:
        for path in sorted((_PACKAGE / room).glob("*.py")):
            parts = ["ksmwalk", *([room] if room else []), *([] if path.stem == "__init__" else [path.stem])]
            if path.stem not in ("__main__", "generate") or room == "scenarios":
                names.append(".".join(parts))
    return names


def _loaded() -> tuple[list[str], list[str]]:
    """Files of modules, and libraries that were loaded with them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-c", _LISTING, *_LATE, *_modules()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise KernelUnavailable(f"what a guest needs can't be imported here: {done.stderr.strip().splitlines()[-1]}")
    modules, libraries = json.loads(done.stdout.splitlines()[-1])
    return modules, libraries


def search_path() -> list[str]:
    """Where a guest finds ksmwalk and numpy, as it is found here."""
    spec = importlib.util.find_spec("numpy")
    places = [str(_PACKAGE.parent), str(Path(spec.origin).parents[1]) if spec is not None and spec.origin else ""]
    return list(dict.fromkeys(place for place in places if place))


def why_not() -> str | None:
    """Return why there is nothing to put into a guest, or None."""
    if reason := worker.available():
        return reason
    return None if shutil.which("ldd") else "ldd is not there: it says what a guest's Python is linked with"


def home() -> str:
    """Where a guest finds Python's own library."""
    return sys.base_prefix


def program() -> str:
    """The Python that runs here, itself and no link to it."""
    return os.path.realpath(sys.executable)


def _linked(paths: list[str]) -> Iterator[str]:
    """The libraries that programs and libraries are linked with, under the names they are looked for by."""
    done = subprocess.run(["ldd", *paths], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if found := _LINKED.search(line):
            yield found[1]


def build() -> bytes:
    """Make the archive.

    Returns
    -------
    bytes
        Not compressed: an emulated machine would be long about it.

    Raises
    ------
    KernelUnavailable
        Something that belongs into it is not to be had here.
    """
    made = Archive()
    for name in _EMPTY:
        made.add(name, stat.S_IFDIR | 0o755)
    for name, device in _DEVICES.items():
        made.add(name, stat.S_IFCHR | 0o600, device=device)
    modules, libraries = _loaded()
    binaries = [program(), *sorted({*libraries, *(path for path in modules if path.endswith(".so"))})]
    try:
        for path in dict.fromkeys([*binaries, *_linked(binaries), str(_PACKAGE / "kernel" / "worker")]):
            made.file(path, Path(path).read_bytes(), 0o755)
    except FileNotFoundError as error:
        raise KernelUnavailable(f"{error.filename} is missing: a guest needs it") from None
    for path in modules:
        if path.endswith(".py"):
            # compiled here: an emulated processor would be a minute at it
            code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
            made.file(f"{path}c", _UNCHECKED + marshal.dumps(code))
    return made.whole()
